// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/metadata/record"
)

// policy says what of our exchanges may be written into a recording.
type policy struct{}

var _ record.Policy = policy{}

// shownPaths are those that we ask for, below the version. Of every other one nothing is written but that it was asked.
var shownPaths = []string{
	"instance/", "project/", "instance/preempted", "instance/maintenance-event",
	"instance/shutdown-details/stop-state", "instance/shutdown-details/", "instance/upcoming-maintenance", "instance/scheduling/on-host-maintenance",
	"instance/id", "project/project-id",
}

// Path implements record.Policy.
func (policy) Path(_ *record.Mapper, path string) string {
	bare, query, asked := strings.Cut(path, "?")
	if item, ok := strings.CutPrefix(bare, base); !ok || !slices.Contains(shownPaths, item) {
		return base + record.Redacted
	}
	if asked && !plainQuery.MatchString(query) {
		return bare + "?" + record.Redacted
	}
	return path
}

// plainQuery is what we ask with: no value in it is anybody's.
var plainQuery = regexp.MustCompile(`^[a-z_]+=[a-z0-9]+(&[a-z_]+=[a-z0-9]+)*$`)

// Body implements record.Policy.
func (policy) Body(m *record.Mapper, path string, body []byte) string {
	item, ok := strings.CutPrefix(path, base)
	if !ok || !slices.Contains(shownPaths, item) {
		return record.Redacted
	}
	if !strings.HasSuffix(item, "/") && item != "instance/upcoming-maintenance" {
		return redactText(m, item, strings.TrimSpace(string(body)))
	}
	d := json.NewDecoder(bytes.NewReader(body))
	// An id has more digits than a floating number.
	d.UseNumber()
	var doc any
	if err := d.Decode(&doc); err != nil {
		if s := string(bytes.TrimSpace(body)); item == "instance/upcoming-maintenance" && plainWord.MatchString(s) {
			return s // NONE
		}
		// Such a body is a finding, but it could hold anything.
		return record.Redacted + ": not JSON"
	}
	fields, ok := doc.(map[string]any)
	if !ok {
		return record.Redacted + ": not a JSON object"
	}
	switch item {
	case "instance/":
		redactInstance(m, fields)
	case "project/":
		redactProject(m, fields)
	default:
		redactWords(fields)
	}
	out, err := json.MarshalIndent(fields, "", "  ")
	if err != nil {
		return record.Redacted
	}
	return string(out)
}

// plainWord is a word of a protocol, or a moment, and no name that somebody gave.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:+-]{0,40}$`)

func redactText(m *record.Mapper, item, s string) string {
	switch {
	case item == "instance/id":
		return redactID(m, s)
	case item == "project/project-id":
		return m.Name("project", s)
	case plainWord.MatchString(s):
		return s
	}
	return record.Redacted
}

// redactID gives another number of as many digits.
func redactID(m *record.Mapper, id string) string {
	if !instanceID.MatchString(id) {
		return record.Redacted
	}
	_, other, _ := strings.Cut(m.ID("gce-"+id), "-")
	return "4" + other[1:]
}

func redactInstance(m *record.Mapper, doc map[string]any) {
	for k, v := range doc {
		s, isText := v.(string)
		switch k {
		case "id":
			switch id := v.(type) {
			case json.Number:
				doc[k] = record.EmptyLike(v)
				if instanceID.MatchString(id.String()) {
					doc[k] = json.Number(redactID(m, id.String()))
				}
			case string:
				doc[k] = redactID(m, id)
			default:
				doc[k] = record.EmptyLike(v)
			}
		case "name":
			doc[k] = nameLike(m, v)
		case "hostname":
			doc[k] = record.EmptyLike(v)
			if isText {
				host, _, _ := strings.Cut(s, ".")
				doc[k] = m.Name("vm", host) + ".example.internal"
			}
		case "zone", "machineType", attributeCreatedBy:
			doc[k] = record.EmptyLike(v)
			if isText {
				doc[k] = redactResource(m, s)
			}
		case "networkInterfaces":
			doc[k] = redactInterfaces(m, v)
		case "scheduling", "shutdownDetails", "upcomingMaintenance":
			doc[k] = record.EmptyLike(v)
			if fields, ok := v.(map[string]any); ok {
				redactWords(fields)
				doc[k] = fields
			}
		case "attributes":
			doc[k] = record.EmptyLike(v)
			if fields, ok := v.(map[string]any); ok {
				doc[k] = redactAttributes(m, fields)
			}
		case "preempted", "maintenanceEvent":
			doc[k] = record.EmptyLike(v)
			if isText && plainWord.MatchString(s) {
				doc[k] = s
			}
		default:
			doc[k] = record.EmptyLike(v)
		}
	}
}

func nameLike(m *record.Mapper, v any) any {
	if s, ok := v.(string); ok {
		return m.Name("vm", s)
	}
	return record.EmptyLike(v)
}

func redactProject(m *record.Mapper, doc map[string]any) {
	for k, v := range doc {
		doc[k] = record.EmptyLike(v)
		switch k {
		case "projectId":
			if s, ok := v.(string); ok {
				doc[k] = m.Name("project", s)
			}
		case "attributes":
			if fields, ok := v.(map[string]any); ok {
				doc[k] = redactAttributes(m, fields)
			}
		}
	}
}

// place is the name of a zone, a region or a machine type, which are the same for everybody.
var place = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,40}$`)

// redactResource rewrites projects/123/zones/europe-west1-b and its like.
func redactResource(m *record.Mapper, s string) string {
	parts := strings.Split(s, "/")
	for i := range parts {
		of := ""
		if i > 0 {
			of = parts[i-1]
		}
		switch {
		case of == "projects":
			parts[i] = "123456789012"
		case (of == "zones" || of == "regions" || of == "machineTypes") && place.MatchString(parts[i]):
		case of == "instanceGroupManagers":
			parts[i] = m.Name("group", parts[i])
		case i%2 == 0 && slices.Contains([]string{"projects", "zones", "regions", "machineTypes", "instanceGroupManagers"}, parts[i]):
		default:
			parts[i] = record.Redacted
		}
	}
	return strings.Join(parts, "/")
}

func redactInterfaces(m *record.Mapper, v any) any {
	list, ok := v.([]any)
	if !ok {
		return record.EmptyLike(v)
	}
	for i := range list {
		fields, ok := list[i].(map[string]any)
		if !ok {
			list[i] = record.EmptyLike(list[i])
			continue
		}
		for k, v := range fields {
			switch k {
			case "mac", "ip", "ipv6", "ipv6s", "externalIp", "gateway", "subnetmask":
				fields[k] = redactAddresses(m, v)
			case "accessConfigs":
				fields[k] = redactInterfaces(m, v)
			default:
				fields[k] = record.EmptyLike(v)
			}
		}
	}
	return list
}

func redactAddresses(m *record.Mapper, v any) any {
	switch v := v.(type) {
	case string:
		host, _, _ := strings.Cut(v, "/")
		_, err := netip.ParseAddr(host)
		if _, merr := net.ParseMAC(v); v != "" && err != nil && merr != nil {
			return record.Redacted
		}
		return m.Text(v)
	case []any:
		for i := range v {
			v[i] = redactAddresses(m, v[i])
		}
		return v
	}
	return record.EmptyLike(v)
}

// redactWords keeps the words of the protocol, moments and numbers.
func redactWords(fields map[string]any) {
	for k, v := range fields {
		switch v := v.(type) {
		case string:
			if !plainWord.MatchString(v) {
				fields[k] = record.Redacted
			}
		case json.Number, bool, nil:
		case map[string]any:
			redactWords(v)
		default:
			fields[k] = record.EmptyLike(v)
		}
	}
}

var ownAttribute = regexp.MustCompile(`^amsagent-(role|group|mongo)$`)

// googleAttributes are keys of Google's own, which name nobody.
var googleAttributes = []string{
	"ssh-keys", "sshKeys", "block-project-ssh-keys", "enable-oslogin", "startup-script", "startup-script-url", "shutdown-script",
	"shutdown-script-url", "user-data", "windows-keys", "windows-startup-script-ps1", "serial-port-enable", "enable-guest-attributes",
	"kube-env", "google-logging-enabled", "google-monitoring-enabled", attributeTemplate,
}

// redactAttributes keeps of each attribute that it is there, and of ours the role and the group.
func redactAttributes(m *record.Mapper, fields map[string]any) map[string]any {
	out := map[string]any{}
	keys := make([]string, 0, len(fields))
	for k := range fields {
		keys = append(keys, k)
	}
	// The made-up names go by this order.
	slices.Sort(keys)
	for _, k := range keys {
		s, isText := fields[k].(string)
		switch {
		case k == attributeCreatedBy && isText:
			out[k] = redactResource(m, s)
		case slices.Contains(googleAttributes, k):
			out[k] = record.Redacted
		case !ownAttribute.MatchString(k):
			out[m.Name("attribute", k)] = record.Redacted
		case !strings.HasSuffix(k, "mongo") && isText && plainWord.MatchString(strings.TrimSpace(s)):
			out[k] = s
		case isText:
			out[k] = m.Name("value", s)
		default:
			out[k] = record.EmptyLike(fields[k])
		}
	}
	return out
}
