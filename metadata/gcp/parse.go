// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Machine is what the metadata says about this instance.
type Machine struct {
	ID, Name, Hostname, Zone, Region, Type string
	// LifeCycle is spot or standard, or a word of Google's that is neither; "" is not told.
	LifeCycle  string
	Interfaces []Interface
	// Attributes are those that are ours.
	Attributes map[string]string
	// Group is the managed instance group that made this machine.
	Group string
	// Missing names the fields of an Instance whose source is there and cannot be understood.
	Missing []string
	// Notes are for people, Unknown are names of fields that this version does not know.
	Notes, Unknown []string
}

func (m *Machine) missing(field string) bool { return slices.Contains(m.Missing, field) }

// Interface is one network interface.
type Interface struct {
	MAC                   string
	Address, IPv6, Public netip.Addr
}

// Project is what the metadata says about the project.
type Project struct {
	ID         string
	Attributes map[string]string
}

// The attributes that a managed instance group sets.
const (
	attributeCreatedBy = "created-by"
	attributeTemplate  = "instance-template"
)

var (
	// instanceID is a number of 64 bits, which must not be read as a floating one.
	instanceID = regexp.MustCompile(`^[1-9][0-9]{0,19}$`)
	plainName  = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$`)
	// groupOf: other tools write into created-by too, so only a group counts. Zonal and regional ones are the same to us.
	groupOf = regexp.MustCompile(`^(?:https://[a-z.]+/compute/[a-z0-9]+/)?projects/[^/\s]+/(?:zones|regions)/[^/\s]+/instanceGroupManagers/([a-z0-9][a-z0-9-]{0,62})$`)
)

// known are the fields of an instance, those that nobody reads here among them.
var known = strings.Fields("attributes cpuPlatform credentials description disks gceWorkloadCertificates guestAttributes hostname id image " +
	"instanceIdentity licenses machineType maintenanceEvent name networkInterfaces partnerAttributes physicalHost " +
	"physicalHostTopology preempted remainingCpuTime scheduling serviceAccounts shutdownDetails tags upcomingMaintenance virtualClock zone")

// ParseMachine reads instance/?recursive=true. Without id and zone there is no machine; whatever else has another form
// than the one that is known is named in Missing, and the rest counts. ours chooses attributes.
func ParseMachine(body []byte, ours func(key string) bool) (Machine, error) {
	fields, err := object(body)
	if err != nil {
		return Machine{}, err
	}
	var m Machine
	for k := range fields {
		if !slices.Contains(known, k) {
			m.Unknown = append(m.Unknown, k)
		}
	}
	slices.Sort(m.Unknown)
	if m.ID, err = digits(fields["id"]); err != nil {
		return Machine{}, fmt.Errorf("field id: %w", err)
	}
	if m.Zone, err = last(fields["zone"]); err != nil {
		return Machine{}, fmt.Errorf("field zone: %w", err)
	}
	m.Region = region(m.Zone)
	if m.Name, err = text(fields["name"]); err != nil {
		return Machine{}, fmt.Errorf("field name: %w", err)
	}
	part := func(field, source string, read func(json.RawMessage) error) {
		raw, ok := fields[source]
		if !ok {
			return
		}
		if err := read(raw); err != nil {
			m.Missing = append(m.Missing, field)
			m.Notes = append(m.Notes, fmt.Sprintf("the metadata's %s is of no form that is known here: %v", source, err))
		}
	}
	part("hostname", "hostname", func(raw json.RawMessage) (err error) { m.Hostname, err = text(raw); return err })
	part("type", "machineType", func(raw json.RawMessage) (err error) { m.Type, err = last(raw); return err })
	part("life_cycle", "scheduling", func(raw json.RawMessage) (err error) { m.LifeCycle, err = lifeCycle(raw); return err })
	part("address", "networkInterfaces", func(raw json.RawMessage) (err error) { m.Interfaces, err = interfaces(raw); return err })
	part("tags", "attributes", func(raw json.RawMessage) (err error) { m.Attributes, err = attributes(raw, ours); return err })
	m.Group = group(m.Attributes)
	slices.Sort(m.Missing)
	return m, nil
}

// ParseProject reads project/?recursive=true.
func ParseProject(body []byte, ours func(key string) bool) (Project, error) {
	fields, err := object(body)
	if err != nil {
		return Project{}, err
	}
	var p Project
	if p.ID, err = text(fields["projectId"]); err != nil || p.ID == "" {
		return Project{}, errors.Join(errors.New("field projectId is no name"), err)
	}
	if raw, ok := fields["attributes"]; ok {
		if p.Attributes, err = attributes(raw, ours); err != nil {
			return Project{}, fmt.Errorf("field attributes: %w", err)
		}
	}
	// A group made no project.
	delete(p.Attributes, attributeCreatedBy)
	delete(p.Attributes, attributeTemplate)
	return p, nil
}

func object(body []byte) (map[string]json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if fields == nil {
		return nil, errors.New("not a JSON object")
	}
	return fields, nil
}

// text reads a string; one that is not there is "".
func text(raw json.RawMessage) (string, error) {
	if len(raw) == 0 {
		return "", nil
	}
	if raw[0] != '"' {
		return "", errors.New("not a text")
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err
}

// last reads the last element of a resource's name: projects/123/zones/europe-west1-b.
func last(raw json.RawMessage) (string, error) {
	s, err := text(raw)
	if err != nil {
		return "", err
	}
	s = s[strings.LastIndexByte(s, '/')+1:]
	if !plainName.MatchString(s) {
		return "", errors.New("not the name of a resource")
	}
	return s, nil
}

// digits reads the instance's id digit by digit. It is a number; in quotes it is taken as well.
func digits(raw json.RawMessage) (string, error) {
	s := string(bytes.Trim(raw, `"`))
	if !instanceID.MatchString(s) {
		return "", errors.New("not an instance's id")
	}
	return s, nil
}

// region cuts the last -x of a zone.
func region(zone string) string {
	if i := strings.LastIndexByte(zone, '-'); i > 0 {
		return zone[:i]
	}
	return ""
}

// lifeCycle reads the scheduling. In the metadata its truth values are texts in capitals; the other forms are those of
// the API. Of a Spot VM the API says that it is preemptible, too.
func lifeCycle(raw json.RawMessage) (string, error) {
	fields, err := object(raw)
	if err != nil {
		return "", err
	}
	yes := func(raw json.RawMessage) bool { return strings.EqualFold(string(bytes.Trim(raw, `"`)), "true") }
	model, err := text(fields["provisioningModel"])
	switch {
	case err != nil:
		return "", fmt.Errorf("field provisioningModel: %w", err)
	case yes(fields["preemptible"]), strings.EqualFold(model, "SPOT"), strings.EqualFold(model, "PREEMPTIBLE"):
		return Spot, nil
	case model == "" && len(fields["preemptible"]) == 0:
		return "", nil
	case model == "", strings.EqualFold(model, "STANDARD"):
		return Standard, nil
	}
	// A word of tomorrow. What is neither Spot nor preemptible goes down as a standard VM does.
	return strings.ToLower(model), nil
}

func interfaces(raw json.RawMessage) ([]Interface, error) {
	var list []struct {
		MAC           string          `json:"mac"`
		IP            string          `json:"ip"`
		IPv6          json.RawMessage `json:"ipv6"`
		IPv6s         json.RawMessage `json:"ipv6s"`
		AccessConfigs []struct {
			ExternalIP string `json:"externalIp"`
		} `json:"accessConfigs"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	var out []Interface
	for i, n := range list {
		nic := Interface{MAC: strings.ToLower(n.MAC)}
		if n.IP != "" {
			a, err := netip.ParseAddr(n.IP)
			if err != nil {
				return nil, fmt.Errorf("interface %d: %w", i, err)
			}
			if a = a.Unmap(); a.Is4() && valid(a) {
				nic.Address = a
			}
		}
		// A list of texts is what Google's own programs read. UNCONFIRMED are one text alone and the name without an s.
		for _, raw := range []json.RawMessage{n.IPv6s, n.IPv6} {
			v6, err := addresses(raw)
			if err != nil {
				return nil, fmt.Errorf("interface %d: ipv6s: %w", i, err)
			}
			if !nic.IPv6.IsValid() {
				nic.IPv6 = v6
			}
		}
		for _, c := range n.AccessConfigs {
			a, err := netip.ParseAddr(c.ExternalIP)
			if c.ExternalIP != "" && err != nil {
				return nil, fmt.Errorf("interface %d: externalIp: %w", i, err)
			}
			if valid(a) && !nic.Public.IsValid() {
				nic.Public = a
			}
		}
		out = append(out, nic)
	}
	return out, nil
}

// addresses gives the first address of a list of texts, or of one text, with or without the length of its network.
func addresses(raw json.RawMessage) (netip.Addr, error) {
	var list []string
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return netip.Addr{}, nil
	case raw[0] == '"':
		s, err := text(raw)
		if err != nil {
			return netip.Addr{}, err
		}
		list = strings.Fields(s)
	default:
		if err := json.Unmarshal(raw, &list); err != nil {
			return netip.Addr{}, err
		}
	}
	var first netip.Addr
	for _, s := range list {
		host, _, _ := strings.Cut(s, "/")
		a, err := netip.ParseAddr(host)
		if err != nil {
			return netip.Addr{}, err
		}
		if a.Is6() && !a.Is4In6() && valid(a) && !first.IsValid() {
			first = a.WithZone("")
		}
	}
	return first, nil
}

// maxAttribute is the longest attribute that is kept: a connection string is far shorter, and a script is not ours,
// whatever its name.
const maxAttribute = 16 << 10

// attributes keeps those that are ours. They are texts; one of another form is somebody else's.
func attributes(raw json.RawMessage, ours func(key string) bool) (map[string]string, error) {
	fields, err := object(raw)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for k, v := range fields {
		if !ours(k) || len(v) > maxAttribute {
			continue
		}
		s, err := text(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
		// A value that came out of a file ends with its line.
		out[k] = strings.TrimRight(s, "\r\n")
	}
	return out, nil
}

func group(attributes map[string]string) string {
	if m := groupOf.FindStringSubmatch(attributes[attributeCreatedBy]); m != nil {
		return m[1]
	}
	return ""
}
