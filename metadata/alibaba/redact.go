// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/metadata/record"
)

// policy says what of our exchanges may be written into a recording. Those with the APIs are not recorded at all.
type policy struct{}

var _ record.Policy = policy{}

const (
	pathDocument = "/latest/dynamic/instance-identity/document"
	dirMeta      = "/latest/meta-data/"
	dirRoles     = "/latest/" + credentialsDir
)

// Path implements record.Policy.
func (policy) Path(m *record.Mapper, path string) string {
	if role, ok := strings.CutPrefix(path, dirRoles); ok && role != "" {
		return dirRoles + m.Name("role", role)
	}
	return m.Text(path)
}

// Body implements record.Policy.
func (policy) Body(m *record.Mapper, path string, body []byte) string {
	switch path {
	case pathDocument:
		return redactDocument(m, body)
	case "/latest/user-data":
		return redactUserData(body)
	case "/latest/maintenance/active-system-events":
		return redactEvents(m, body)
	case dirRoles:
		return m.Name("role", strings.TrimSpace(string(body)))
	}
	item, ok := strings.CutPrefix(path, dirMeta)
	if !ok {
		return record.Redacted
	}
	text := strings.TrimSpace(string(body))
	switch item {
	case "private-ipv4", "eipv4", "mac", "zone-id", "region-id", "instance/instance-type", "instance/spot/termination-time":
		return m.Text(string(body))
	case "instance-id":
		return redactID(m, text)
	case "hostname":
		return m.Name("host", text)
	case "instance/instance-name":
		return m.Name("name", text)
	}
	if rest, ok := strings.CutPrefix(item, "network/interfaces/macs/"); ok {
		switch _, leaf, _ := strings.Cut(rest, "/"); leaf {
		case "", "ipv6s", "private-ipv4s", "primary-ip-address":
			return m.Text(string(body))
		}
	}
	return record.Redacted
}

// redactID keeps the form of an id. The mapper's own expression knows hexadecimal ones.
func redactID(m *record.Mapper, id string) string {
	if !isInstanceID(id) {
		return record.Redacted
	}
	return m.ID(id)
}

// redactDocument keeps the fields of the identity document that we know, rewritten where they name somebody, and of all
// others the name.
func redactDocument(m *record.Mapper, body []byte) string {
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		// Such a body is a finding, but it could hold anything.
		return record.Redacted + ": not a JSON object"
	}
	for k, v := range doc {
		s, isText := v.(string)
		switch {
		case !isText:
			doc[k] = nil
		case (k == "zone-id" || k == "region-id" || k == "instance-type") && isWord(s):
		case k == "owner-account-id" && isWord(s):
			doc[k] = "1234567890123456"
		case k == "instance-id":
			doc[k] = redactID(m, s)
		case k == "private-ipv4", k == "mac":
			// What the mapper leaves alone is not of the form we know.
			if r := m.Text(s); r != s || s == "" {
				doc[k] = r
			} else {
				doc[k] = record.Redacted
			}
		default:
			doc[k] = record.Redacted
		}
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return record.Redacted
	}
	return string(out)
}

// redactUserData keeps our own lines, of which the place of the database is one that nobody is to see.
func redactUserData(body []byte) string {
	tags := ParseUserData(body)
	var b strings.Builder
	b.WriteString("# " + record.Redacted + "\n")
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		value := tags[key]
		if !strings.HasSuffix(key, "role") && !strings.HasSuffix(key, "group") || !isWord(value) {
			value = record.Redacted
		}
		b.WriteString(key + "=" + value + "\n")
	}
	return b.String()
}

// redactEvents keeps what we understand of each event.
func redactEvents(m *record.Mapper, body []byte) string {
	events, err := ParseSystemEvents(body)
	if err != nil {
		return record.Redacted + ": not understood"
	}
	type event struct {
		ID        string `json:"EventId"`
		Type      string `json:"EventType"`
		State     string `json:"EventCycleStatus,omitempty"`
		NotBefore string `json:"NotBefore,omitempty"`
	}
	out := []event{}
	for _, e := range events {
		kept := event{ID: m.Name("e", e.ID), Type: e.Type, State: e.State}
		if !e.NotBefore.IsZero() {
			kept.NotBefore = e.NotBefore.Format(timeFormat)
		}
		out = append(out, kept)
	}
	b, err := json.Marshal(out)
	if err != nil {
		return record.Redacted
	}
	return string(b)
}
