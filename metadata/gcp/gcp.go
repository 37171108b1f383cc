// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package gcp reads Google Cloud's instance metadata and watches its termination signals.
//
// It keeps only the agent's own attributes: others hold keys, scripts and user data.
package gcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Name is this provider's name.
const Name = "gcp"

// Time from soft to hard power-off, by the API reference (Scheduling.skipGuestOsShutdown). Older pages document 90 s for
// standard VMs.
const (
	StopWindowSpot     = 30 * time.Second
	StopWindowStandard = 120 * time.Second
)

// spotVM is a value of LifeCycle.
const spotVM = "spot"

const recursive = "?recursive=true&alt=json"

const (
	hintForeign = "what answers is not Google's metadata server: use the --provider of the cloud this machine is in, or generic"
	hintRefused = "the metadata server refuses this process: look for a proxy or a metadata concealment between it and 169.254.169.254, " +
		"or use --provider generic"
	hintUnreachable = "no metadata server at the address: if this is no machine of Google Cloud use --provider generic, else look for a " +
		"firewall rule or a missing route to 169.254.169.254"
)

// Provider reads the metadata of this machine. It is safe for concurrent use.
type Provider struct {
	cloud.Silent
	*cloud.Client
}

var _ cloud.Provider = (*Provider)(nil)

// New opens the provider. It makes no request.
func New(opts cloud.Options) (*Provider, error) {
	c, err := cloud.New(cloud.Client{
		// Not metadata.google.internal: at boot DNS may be missing.
		Provider: Name, Origin: "http://169.254.169.254", Path: "/computeMetadata/v1/", Foreign: hintForeign,
		// The header protects requests from web pages, and identifies the service.
		Header: map[string]string{"Metadata-Flavor": "Google"}, Echo: "Metadata-Flavor",
		Hints: map[int]string{0: hintUnreachable, http.StatusUnauthorized: hintRefused, http.StatusForbidden: hintRefused},
	}, opts)
	return &Provider{Silent: cloud.Silent{Without: "Google Cloud asks nothing before it ends a machine"}, Client: c}, err
}

type machine struct {
	ID          json.Number `json:"id"`
	Name        string      `json:"name"`
	Hostname    string      `json:"hostname"`
	Zone        string      `json:"zone"`
	MachineType string      `json:"machineType"`
	Scheduling  struct {
		// The metadata has the strings TRUE and FALSE.
		Preemptible       any    `json:"preemptible"`
		ProvisioningModel string `json:"provisioningModel"`
	} `json:"scheduling"`
	Interfaces []nic          `json:"networkInterfaces"`
	Attributes map[string]any `json:"attributes"`
	// odd is a field of the wrong type.
	odd *json.UnmarshalTypeError
}

type nic struct {
	IP            string   `json:"ip"`
	IPv6s         []string `json:"ipv6s"`
	AccessConfigs []struct {
		ExternalIP string `json:"externalIp"`
	} `json:"accessConfigs"`
}

func parseMachine(body []byte) (machine, error) {
	m, odd, err := cloud.Decode[machine](body)
	if err != nil {
		return m, fmt.Errorf("the instance metadata is not the JSON expected: %w", err)
	}
	m.odd = odd
	m.Zone, m.MachineType = last(m.Zone), last(m.MachineType)
	if !instanceID.MatchString(m.ID.String()) || m.Zone == "" {
		return m, fmt.Errorf("the instance metadata names instance %s in zone %s", cloud.Quote(m.ID.String()), cloud.Quote(m.Zone))
	}
	return m, nil
}

// A 64-bit number.
var instanceID = regexp.MustCompile(`^[1-9][0-9]{0,19}$`)

// last returns the last element of projects/123/zones/europe-west1-b.
func last(s string) string { return s[strings.LastIndexByte(s, '/')+1:] }

type project struct {
	ID         string         `json:"projectId"`
	Attributes map[string]any `json:"attributes"`
}

func parseProject(body []byte) (project, error) {
	var p project
	if err := json.Unmarshal(body, &p); err != nil || p.ID == "" {
		return p, errors.New("the project's metadata is not the JSON expected")
	}
	return p, nil
}

// Instance implements cloud.Provider.
func (p *Provider) Instance(ctx context.Context) (cloud.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, cloud.Timeout)
	defer cancel()
	m, err := cloud.Read(ctx, p.Client, cloud.Item{Name: "instance", Path: "instance/" + recursive, Required: true}, parseMachine)
	if err != nil {
		return cloud.Instance{}, err
	}
	inst := cloud.Instance{
		Provider: Name, ID: m.ID.String(), IDSource: "id of the instance metadata", Name: m.Name, Hostname: m.Hostname,
		Region: m.Zone[:max(0, strings.LastIndexByte(m.Zone, '-'))], Zone: m.Zone, Type: m.MachineType,
		LifeCycle: m.lifeCycle(), StopWindow: seconds.Duration(StopWindowStandard),
	}
	switch inst.LifeCycle {
	case "":
		inst.Notes = append(inst.Notes, fmt.Sprintf("the metadata does not show whether this is a Spot VM: %s are planned with", StopWindowSpot))
		fallthrough
	case spotVM:
		inst.StopWindow = seconds.Duration(StopWindowSpot)
	}
	if m.odd != nil {
		inst.Notes = append(inst.Notes, fmt.Sprintf("the metadata's %s is of no form that is known here", m.odd.Field))
	}
	var nics []cloud.NIC
	for _, n := range m.Interfaces {
		nics = append(nics, n.reached())
	}
	inst.Choose(nics, p.Options.Local)
	p.readTags(ctx, m, &inst)
	return inst, cloud.Left(ctx, Name)
}

// readTags merges the attributes of the project and of the machine, which take precedence.
func (p *Provider) readTags(ctx context.Context, m machine, inst *cloud.Instance) {
	inst.Tags, inst.TagsKnown = cloud.Tags{}, true
	if m.odd != nil && strings.HasPrefix(m.odd.Field, "attributes") {
		inst.Missing, inst.TagsKnown = []string{"tags"}, false
		inst.TagsHint = "the attributes of this instance are of no form that is known here"
	}
	proj, err := cloud.Read(ctx, p.Client, cloud.Item{Name: "project", Path: "project/" + recursive}, parseProject)
	if err != nil && !errors.Is(err, cloud.ErrNotFound) {
		// The unreadable attribute may name MongoDB, so it must not count as absent.
		inst.Miss(p.Options.Log, "account_id", err)
		inst.TagsKnown, inst.TagsHint = false, cloud.Unread("attributes", err)
	}
	inst.AccountID = proj.ID
	maps.Copy(inst.Tags, agentAttributes(proj.Attributes))
	// A group creates no project.
	delete(inst.Tags, attributeCreatedBy)
	delete(inst.Tags, attributeTemplate)
	maps.Copy(inst.Tags, agentAttributes(m.Attributes))
	if by := groupOf.FindStringSubmatch(inst.Tags[attributeCreatedBy]); by != nil {
		inst.Group = by[1]
	}
}

// lifeCycle returns spot, standard or Google's other name; "" if unknown.
func (m *machine) lifeCycle() string {
	model, preemptible := strings.ToLower(m.Scheduling.ProvisioningModel), strings.ToLower(fmt.Sprint(m.Scheduling.Preemptible))
	switch {
	case model == "spot", model == "preemptible", preemptible == "true":
		return spotVM
	case model == "" && preemptible == "false":
		return "standard"
	}
	return model
}

// Set by a managed instance group.
const (
	attributeCreatedBy = "created-by"
	attributeTemplate  = "instance-template"
)

// Other tools also write created-by.
var groupOf = regexp.MustCompile(`^(?:https://[a-z.]+/compute/[a-z0-9]+/)?projects/[^/\s]+/(?:zones|regions)/[^/\s]+/instanceGroupManagers/([a-z0-9][a-z0-9-]{0,62})$`)

// agentAttributes drops other programs' attributes, which may be secret.
func agentAttributes(attributes map[string]any) map[string]string {
	out := map[string]string{}
	for k, v := range attributes {
		text, ok := v.(string)
		if ok && (strings.HasPrefix(k, "amsagent") || k == attributeCreatedBy || k == attributeTemplate) {
			// A value from a file ends with a newline.
			out[k] = strings.TrimRight(text, "\r\n")
		}
	}
	return out
}

func (n nic) reached() cloud.NIC {
	out := cloud.NIC{Addresses: cloud.ReachableAddresses(append([]string{n.IP}, n.IPv6s...)...)}
	for _, c := range n.AccessConfigs {
		if public := cloud.ReachableAddresses(c.ExternalIP); len(public) > 0 && !out.Public.IsValid() {
			out.Public = public[0]
		}
	}
	return out
}
