// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package generic

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// cloud-init's names of the clouds whose own data are read below.
const (
	ciOracle       = "oracle"
	ciOpenStack    = "openstack"
	ciConfigDrive  = "configdrive"
	ciDigitalOcean = "digitalocean"
)

// redacted is what cloud-init puts in the place of what only root may read; it may stand for a whole object.
const redacted = "redacted for non-root user"

// readData reads what cloud-init keeps of a cloud's own answers. cloud-init calls the shape of it experimental, so nothing
// there is counted on: what is of another type than expected is told and left out, and what is not known is not looked at.
//
//   - Oracle: ds is the answer of /opc/v2/instance itself, with freeformTags, definedTags and, where a pool made the
//     machine, instancePoolId.
//   - OpenStack, by service or by config drive: ds.meta_data is meta_data.json, with the properties that somebody gave the
//     server in meta, which is not there where there are none; ds.ec2_metadata has the addresses.
//   - DigitalOcean: ds.meta_data holds the interfaces. Its tags do not get there with the releases of cloud-init that could
//     be read (24.x); where they do, they are words such as amsagent-role:edge.
//   - Hetzner: ds.meta_data holds neither labels nor addresses.
func readData(ci *CloudInit, ds json.RawMessage) (errs []error) {
	d := data{at: "ds", errs: &errs}
	root := d.object(ds, "")
	switch strings.ToLower(ci.CloudName) {
	case ciOracle:
		readOracle(ci, root)
	case ciOpenStack, ciConfigDrive:
		readOpenStack(ci, root)
	case ciDigitalOcean:
		readDigitalOcean(ci, root)
	}
	return errs
}

// data is an object, or what stands in its place, within instance data.
type data struct {
	at     string
	fields map[string]json.RawMessage // nil where there is no object
	errs   *[]error
}

func (d data) fail(at string, err error) { *d.errs = append(*d.errs, fmt.Errorf("%s: %w", at, err)) }

// object reads an object. None at all, null and one that is kept from us are an object without fields.
func (d data) object(raw json.RawMessage, name string) data {
	out := data{at: strings.Trim(d.at+"."+name, "."), errs: d.errs}
	if len(raw) == 0 || string(raw) == "null" {
		return out
	}
	if err := json.Unmarshal(raw, &out.fields); err != nil {
		out.fields = nil
		if s, terr := text(raw); terr != nil || s != redacted {
			out.fail(out.at, fmt.Errorf("no object"))
		}
	}
	return out
}

func (d data) in(name string) data { return d.object(d.fields[name], name) }

// list reads a list of objects.
func (d data) list(name string) []data {
	raw, ok := d.fields[name]
	if !ok || string(raw) == "null" {
		return nil
	}
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		if s, terr := text(raw); terr != nil || s != redacted {
			d.fail(d.at+"."+name, fmt.Errorf("no list"))
		}
		return nil
	}
	out := make([]data, len(items))
	for i, item := range items {
		out[i] = d.object(item, fmt.Sprintf("%s[%d]", name, i))
	}
	return out
}

// text reads a short text, "" where there is none.
func (d data) text(name string) string {
	raw, ok := d.fields[name]
	if !ok || string(raw) == "null" {
		return ""
	}
	v, err := text(raw)
	if err != nil {
		d.fail(d.at+"."+name, err)
	}
	if v == redacted {
		return ""
	}
	return v
}

// address reads the first address of a text; what no other machine could use is none.
func (d data) address(name string) netip.Addr {
	first, _, _ := strings.Cut(d.text(name), ",")
	first = strings.TrimSpace(first)
	if first == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(first)
	if err != nil {
		d.fail(d.at+"."+name, fmt.Errorf("no address"))
		return netip.Addr{}
	}
	if a = a.Unmap(); !a.IsGlobalUnicast() || a.Zone() != "" {
		return netip.Addr{}
	}
	return a
}

// maxTagValue is above what any of these clouds allows (OpenStack: 255 characters).
const maxTagValue = 4 << 10

// tags adds the fields as tags, with a prefix before their names, and says whether all could be read. A value may have any
// characters; a number or a truth value is the text it is written as.
func (d data) tags(to map[string]string, prefix string, skip ...string) bool {
	ok := d.fields != nil
	for _, k := range slices.Sorted(maps.Keys(d.fields)) {
		if slices.Contains(skip, k) {
			continue
		}
		raw := d.fields[k]
		var v string
		if err := json.Unmarshal(raw, &v); err != nil {
			v = string(raw)
			if v == "" || strings.ContainsAny(v[:1], "{[n") {
				d.fail(d.at+"."+k, fmt.Errorf("no text, so it is no tag"))
				ok = false
				continue
			}
		}
		switch {
		case v == redacted:
			ok = false
		case k == "", len(k) > 255, len(v) > maxTagValue, !printable(k):
			d.fail(d.at, fmt.Errorf("a field that cannot be a tag"))
			ok = false
		default:
			to[prefix+k] = v
		}
	}
	return ok
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func readOracle(ci *CloudInit, ds data) {
	if ds.fields == nil {
		return
	}
	if ci.Region == "" {
		ci.Region = ds.text("canonicalRegionName")
	}
	ci.InstanceType = ds.text("shape")
	// An instance pool is what scales here; its machines carry its id.
	ci.Group = ds.text("instancePoolId")

	if launch := ds.in("metadata"); launch.fields != nil {
		ci.Launch = map[string]string{}
		launch.tags(ci.Launch, "", "ssh_authorized_keys", "user_data")
	}
	// An answer without a field for tags is that of an instance without tags.
	ci.Tags, ci.TagsKnown = map[string]string{}, true
	add := func(from data, name, prefix string) {
		if raw, there := from.fields[name]; there && string(raw) != "null" {
			ci.TagsKnown = from.in(name).tags(ci.Tags, prefix) && ci.TagsKnown
		}
	}
	namespaces := ds.in("definedTags")
	if raw, there := ds.fields["definedTags"]; there && string(raw) != "null" && namespaces.fields == nil {
		ci.TagsKnown = false
	}
	for _, ns := range slices.Sorted(maps.Keys(namespaces.fields)) {
		// In the notation of our own tags: namespace amsagent, key role.
		add(namespaces, ns, ns+":")
	}
	add(ds, "freeformTags", "")
}

func readOpenStack(ci *CloudInit, ds data) {
	md, ec2 := ds.in("meta_data"), ds.in("ec2_metadata")
	ci.InstanceType = ec2.text("instance-type")
	ci.Private, ci.Public = ec2.address("local-ipv4"), ec2.address("public-ipv4")
	if md.fields == nil {
		return
	}
	ci.Tags = map[string]string{}
	ci.TagsKnown = true
	if raw, ok := md.fields["meta"]; ok && string(raw) != "null" {
		ci.TagsKnown = md.in("meta").tags(ci.Tags, "")
	}
}

func readDigitalOcean(ci *CloudInit, ds data) {
	if ci.Region == "" {
		// A region there has no zones: cloud-init takes it for the zone.
		ci.Region = ci.AvailabilityZone
	}
	md := ds.in("meta_data")
	nics := md.in("interfaces")
	for _, n := range nics.list("public") {
		if ci.Public = n.in("ipv4").address("ip_address"); ci.Public.IsValid() {
			break
		}
	}
	for _, n := range nics.list("private") {
		if ci.Private = n.in("ipv4").address("ip_address"); ci.Private.IsValid() {
			break
		}
	}
	raw, ok := md.fields["tags"]
	if !ok {
		return
	}
	var words []string
	if err := json.Unmarshal(raw, &words); err != nil {
		if s, terr := text(raw); terr != nil || s != redacted {
			md.fail(md.at+".tags", fmt.Errorf("no list of words"))
		}
		return
	}
	ci.Tags, ci.TagsKnown = map[string]string{}, true
	for _, w := range words {
		key, value := w, ""
		if i := strings.LastIndexByte(w, ':'); i > 0 {
			key, value = w[:i], w[i+1:]
		}
		if key != "" && len(w) <= 255 && printable(w) {
			ci.Tags[key] = value
		}
	}
}
