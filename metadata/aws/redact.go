// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"strings"

	"github.com/amsagent/amsagent/metadata/record"
)

// policy says what of our exchanges may be written into a recording.
type policy struct{}

var _ record.Policy = policy{}

const (
	dirTags      = "/latest/meta-data/tags/instance/"
	pathTags     = "/latest/meta-data/tags/instance"
	pathDocument = "/latest/dynamic/instance-identity/document"
	dirMeta      = "/latest/meta-data/"
)

// Path implements record.Policy.
func (policy) Path(m *record.Mapper, path string) string {
	if key, ok := strings.CutPrefix(path, dirTags); ok {
		return dirTags + redactKey(m, key)
	}
	if rest, ok := strings.CutPrefix(path, dirMeta+"iam/"); ok && rest != "" {
		return dirMeta + "iam/" + record.Redacted
	}
	return m.Text(path)
}

// Body implements record.Policy.
func (policy) Body(m *record.Mapper, path string, body []byte) string {
	if path == pathDocument {
		return redactDocument(m, body)
	}
	if path == pathTags || path == dirTags {
		var b strings.Builder
		for line := range strings.Lines(string(body)) {
			key := strings.TrimRight(line, "\r\n")
			b.WriteString(redactKey(m, key) + line[len(key):])
		}
		return b.String()
	}
	if key, ok := strings.CutPrefix(path, dirTags); ok {
		return redactTag(m, key, string(body))
	}
	item, ok := strings.CutPrefix(path, dirMeta)
	if !ok {
		return record.Redacted
	}
	switch item {
	case "ami-id", "instance-id", "instance-life-cycle", "instance-type", "local-ipv4", "public-ipv4", "ipv6", "mac",
		"placement/availability-zone", "placement/availability-zone-id", "placement/region",
		"services/domain", "services/partition", "autoscaling/target-lifecycle-state",
		"spot/instance-action", "spot/termination-time", "events/recommendations/rebalance":
		return m.Text(string(body))
	case "local-hostname", "hostname", "public-hostname":
		return redactHostname(m, string(body))
	}
	if rest, ok := strings.CutPrefix(item, "network/interfaces/macs/"); ok {
		_, leaf, _ := strings.Cut(rest, "/")
		switch leaf {
		case "", "device-number", "interface-id", "ipv6s", "local-ipv4s", "mac", "public-ipv4s":
			return m.Text(string(body))
		}
	}
	return record.Redacted
}

// redactDocument keeps the fields of the identity document that we know, rewritten where they name somebody, and of all
// others the name and the type.
func redactDocument(m *record.Mapper, body []byte) string {
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		// Such a body is a finding, but it could hold anything.
		return record.Redacted + ": not a JSON object"
	}
	for k, v := range doc {
		s, isString := v.(string)
		switch {
		case !isString:
			doc[k] = record.EmptyLike(v)
		case k == "pendingTime":
			doc[k] = "2026-01-01T00:00:00Z"
		case k == "region", k == "availabilityZone", k == "instanceType", k == "architecture", k == "version":
			if !plainWord.MatchString(s) {
				doc[k] = record.Redacted
			}
		case k == "accountId" && accountID.MatchString(s):
			doc[k] = "123456789012"
		case k == "privateIp" && isAddress(s):
			// A link-local one stays as it is: it names no machine, and tells which kind of subnet this is.
			doc[k] = m.Text(s)
		case k == "instanceId", k == "imageId", k == "kernelId", k == "ramdiskId", k == "privateIp":
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

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

var ownTag = regexp.MustCompile(`^amsagent[:-](role|group|mongo)$`)

// redactKey keeps our own keys and AWS's, which are the same everywhere.
func redactKey(m *record.Mapper, key string) string {
	if key == "" || key == "Name" || strings.HasPrefix(key, "aws:") || ownTag.MatchString(key) {
		return key
	}
	return m.Name("tag", key)
}

func redactTag(m *record.Mapper, key, value string) string {
	switch {
	case ownTag.MatchString(key) && !strings.HasSuffix(key, "mongo") && plainWord.MatchString(value):
		return value
	case key == tagGroup:
		return m.Name("group", value)
	default:
		return m.Name("value", value)
	}
}

// amazonName is a host name that AWS made, which holds nothing but an address or an instance id.
var amazonName = regexp.MustCompile(`^(ip|ec2)-[0-9-]+\.|^i-[0-9a-f]+\.`)

func redactHostname(m *record.Mapper, value string) string {
	var out []string
	for _, name := range strings.Fields(value) {
		if amazonName.MatchString(name) && (strings.HasSuffix(name, ".internal") || strings.HasSuffix(name, ".amazonaws.com")) {
			out = append(out, m.Text(name))
			continue
		}
		out = append(out, m.Name("host", name)+".example.internal")
	}
	return strings.Join(out, " ")
}
