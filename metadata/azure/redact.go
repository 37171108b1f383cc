// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/metadata/record"
)

// policy says what of our exchanges may be written into a recording.
type policy struct{}

var _ record.Policy = policy{}

const (
	pathInstance     = "/metadata/instance"
	pathLoadBalancer = "/metadata/loadbalancer"
)

// Path implements record.Policy.
func (policy) Path(m *record.Mapper, path string) string { return m.Text(path) }

// Body implements record.Policy.
func (policy) Body(m *record.Mapper, path string, body []byte) string {
	if path != pathInstance && path != pathLoadBalancer {
		return record.Redacted
	}
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		// Such a body is a finding, but it could hold anything.
		return record.Redacted + ": not a JSON object"
	}
	for k, v := range doc {
		section, ok := v.(map[string]any)
		switch {
		case !ok:
			doc[k] = record.EmptyLike(v)
		case path == pathInstance && k == "compute":
			redactCompute(m, section)
		case path == pathInstance && k == "network", path == pathLoadBalancer && k == "loadbalancer":
			doc[k] = redactNetwork(m, "", section)
		default:
			doc[k] = record.EmptyLike(v)
		}
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return record.Redacted
	}
	return string(out)
}

// redactCompute keeps the fields that we know, rewritten where they name somebody, and of all others the name and the
// type.
func redactCompute(m *record.Mapper, c map[string]any) {
	set, _ := c["vmScaleSetName"].(string)
	if s, ok := c["virtualMachineScaleSet"].(map[string]any); ok && set == "" {
		id, _ := s["id"].(string)
		set = id[strings.LastIndexByte(id, '/')+1:]
	}
	for k, v := range c {
		s, isString := v.(string)
		switch {
		case isString && s == "":
		case isString && k == "vmId", isString && k == "subscriptionId":
			if c[k] = record.Redacted; isUUID(strings.ToLower(s)) {
				c[k] = m.Text(s)
			}
		case isString && slices.Contains(plainFields(), k):
			if !isWord(s) {
				c[k] = record.Redacted
			}
		case isString && k == "vmScaleSetName":
			c[k] = m.Name("group", s)
		case isString && k == "name":
			c[k] = m.Name("vm", s)
			if number, ok := strings.CutPrefix(s, set+"_"); ok && set != "" && len(number) <= 12 {
				c[k] = m.Name("group", set) + "_" + m.Name("vm", number)
			}
		case isString && k == "tags":
			var flat []string
			for name, value := range ParseFlatTags(s) {
				flat = append(flat, redactKey(m, name)+":"+redactTag(m, name, value))
			}
			slices.Sort(flat)
			c[k] = strings.Join(flat, ";")
		case isString:
			c[k] = record.Redacted
		case k == "tagsList":
			redactTags(m, v)
		case k == "virtualMachineScaleSet":
			if in, ok := v.(map[string]any); ok {
				c[k] = map[string]any{"id": ""}
				if id, _ := in["id"].(string); id != "" {
					c[k] = map[string]any{"id": "/" + record.Redacted + "/virtualMachineScaleSets/" + m.Name("group", set)}
				}
			}
		case k == "osProfile":
			if in, ok := v.(map[string]any); ok {
				name, _ := in["computerName"].(string)
				c[k] = map[string]any{"computerName": m.Name("host", name)}
			}
		default:
			c[k] = record.EmptyLike(v)
		}
	}
}

// plainFields are those of which the values are Azure's own words.
func plainFields() []string {
	return []string{"location", "zone", "vmSize", "priority", "evictionPolicy", "osType", "azEnvironment", "licenseType", "platformFaultDomain", "platformUpdateDomain"}
}

func redactTags(m *record.Mapper, v any) {
	list, _ := v.([]any)
	for i, e := range list {
		t, ok := e.(map[string]any)
		if !ok {
			list[i] = record.EmptyLike(e)
			continue
		}
		name, _ := t["name"].(string)
		value, _ := t["value"].(string)
		list[i] = map[string]any{"name": redactKey(m, name), "value": redactTag(m, name, value)}
	}
}

func isOwn(key string) bool {
	key = strings.ToLower(key)
	for _, name := range []string{"role", "group", "mongo"} {
		if key == "amsagent:"+name || key == "amsagent-"+name {
			return true
		}
	}
	return false
}

func redactKey(m *record.Mapper, key string) string {
	if isOwn(key) {
		return key
	}
	return m.Name("tag", key)
}

func redactTag(m *record.Mapper, key, value string) string {
	plain := !strings.ContainsFunc(value, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
	if isOwn(key) && !strings.HasSuffix(strings.ToLower(key), "mongo") && plain {
		return value
	}
	if !isTag(value) {
		return m.Name("value", value) + "\n" // as unusable as it was
	}
	return m.Name("value", value)
}

// redactNetwork keeps the shape, and of the values addresses and MACs, made up.
func redactNetwork(m *record.Mapper, key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = redactNetwork(m, k, e)
		}
		return v
	case []any:
		for i, e := range v {
			v[i] = redactNetwork(m, key, e)
		}
		return v
	case string:
		switch key {
		case "privateIpAddress", "publicIpAddress", "frontendIpAddress", "address":
			if a, err := netip.ParseAddr(strings.Trim(v, "[]")); err == nil {
				return m.Addr(a).String()
			}
		case "macAddress":
			if mac := normalMAC(v); mac != "" {
				return strings.ToUpper(strings.ReplaceAll(m.MAC(colons(mac)), ":", ""))
			}
		case "prefix", "frontendPort", "backendPort", "protocol":
			if isWord(v) {
				return v
			}
		}
		if v == "" {
			return v
		}
		return record.Redacted
	default:
		return record.EmptyLike(v)
	}
}

func colons(mac string) string {
	var parts []string
	for i := 0; i+2 <= len(mac); i += 2 {
		parts = append(parts, mac[i:i+2])
	}
	return strings.Join(parts, ":")
}
