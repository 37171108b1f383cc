// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Identity is the part of the instance identity document that we use.
type Identity struct {
	AccountID, InstanceID, Region, Zone, Type string
	// PrivateIP is the zero Addr on a machine without IPv4.
	PrivateIP netip.Addr
}

// word is a shape of text: a prefix, and then so many characters of a kind. (As regular expressions, repetitions up to
// such counts take megabytes for as long as the process lives.)
type word struct {
	prefix      string
	first, rest func(rune) bool // first nil: as rest
	least, most int             // characters behind the prefix
}

// MatchString reports whether all of s has the shape.
func (w word) MatchString(s string) bool {
	s, ok := strings.CutPrefix(s, w.prefix)
	if !ok || !utf8.ValidString(s) {
		return false
	}
	n := 0
	for _, r := range s {
		allowed := w.rest
		if n == 0 && w.first != nil {
			allowed = w.first
		}
		if n++; !allowed(r) {
			return false
		}
	}
	return n >= w.least && n <= w.most
}

func isDigit(r rune) bool     { return r >= '0' && r <= '9' }
func isHex(r rune) bool       { return isDigit(r) || (r >= 'a' && r <= 'f') }
func isAlphanum(r rune) bool  { return isDigit(r) || (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') }
func isNameStart(r rune) bool { return isAlphanum(r) || r == '_' }
func isName(r rune) bool      { return isNameStart(r) || r == '.' || r == '-' }
func isTagKey(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsNumber(r) || strings.ContainsRune("+-=.,_:@", r)
}

var (
	instanceID = word{prefix: "i-", rest: isHex, least: 8, most: 32}
	// Twelve digits at AWS; amazon-ec2-metadata-mock has ten.
	accountID = word{rest: isDigit, least: 10, most: 12}
	// plainWord is what regions, zones, types and life cycles look like, with room for what AWS has yet to name.
	plainWord = word{first: isAlphanum, rest: isName, least: 1, most: 64}
	hostname  = word{first: isNameStart, rest: isName, least: 1, most: 253}
	// tagKey is what AWS allows in a key once tags are shown in the metadata.
	tagKey = word{rest: isTagKey, least: 1, most: 128}
)

// maxTagValue: AWS allows 256 characters, of at most four bytes each.
const maxTagValue = 1024

// maxTags: AWS allows 50 on an instance, and its own (aws:…) beside them.
const maxTags = 200

// ParseIdentity reads an instance identity document. Unknown fields are ignored; a document without an id, an account or
// a region is not one.
func ParseIdentity(body []byte) (Identity, error) {
	var doc struct {
		AccountID        string  `json:"accountId"`
		InstanceID       string  `json:"instanceId"`
		Region           string  `json:"region"`
		AvailabilityZone string  `json:"availabilityZone"`
		InstanceType     string  `json:"instanceType"`
		PrivateIP        *string `json:"privateIp"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return Identity{}, fmt.Errorf("the identity document is not the JSON expected: %w", err)
	}
	var errs []error
	check := func(field, value string, re word, required bool) string {
		if re.MatchString(value) || (value == "" && !required) {
			return value
		}
		errs = append(errs, fmt.Errorf("the identity document's %s is %s", field, cloud.Quote(value)))
		return ""
	}
	id := Identity{
		AccountID:  check("accountId", doc.AccountID, accountID, true),
		InstanceID: check("instanceId", doc.InstanceID, instanceID, true),
		Region:     check("region", doc.Region, plainWord, true),
		Zone:       check("availabilityZone", doc.AvailabilityZone, plainWord, false),
		Type:       check("instanceType", doc.InstanceType, plainWord, false),
	}
	// Null on a machine without IPv4; such a machine still has a link-local one for this very service.
	if doc.PrivateIP != nil && *doc.PrivateIP != "" {
		a, err := netip.ParseAddr(*doc.PrivateIP)
		switch {
		case err != nil || !a.Is4() || a.IsUnspecified() || a.IsLoopback():
			errs = append(errs, fmt.Errorf("the identity document's privateIp is %s", cloud.Quote(*doc.PrivateIP)))
		case !a.IsLinkLocalUnicast():
			id.PrivateIP = a
		}
	}
	if len(errs) > 0 {
		return Identity{}, errors.Join(errs...)
	}
	return id, nil
}

// ParseTagKeys reads the list of tag keys, one on each line.
func ParseTagKeys(body []byte) ([]string, error) {
	var keys []string
	seen := map[string]bool{}
	for line := range strings.Lines(string(body)) {
		key := strings.TrimRight(line, "\r\n")
		if key == "" || seen[key] {
			continue
		}
		if !tagKey.MatchString(key) {
			return nil, fmt.Errorf("the list of tags holds %s, which is no tag key", cloud.Quote(key))
		}
		if len(keys) == maxTags {
			return nil, fmt.Errorf("the list of tags holds more than %d keys", maxTags)
		}
		seen[key] = true
		// They would leave the folder of the tags, and EC2 forbids them.
		if key == "." || key == ".." || key == "_index" {
			continue
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// ParseTagValue reads the value of one tag.
func ParseTagValue(body []byte) (string, error) {
	v := strings.TrimRight(string(body), "\r\n")
	if len(v) > maxTagValue || !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) {
		return "", fmt.Errorf("a tag's value of %d bytes is not text that EC2 allows", len(v))
	}
	return v, nil
}

// ParseAddresses reads a list of addresses, one on each line.
func ParseAddresses(body []byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		a, err := netip.ParseAddr(line)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%s is no address", cloud.Quote(line))
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

// ParseWord reads a one-word answer: a life cycle, a zone.
func ParseWord(body []byte) (string, error) {
	v := strings.TrimSpace(string(body))
	if !plainWord.MatchString(v) {
		return "", fmt.Errorf("%s is not one word", cloud.Quote(v))
	}
	return v, nil
}

// ParseHostname reads a host name. With several domains in the DHCP options the answer is the name and then the other
// domains, separated by blanks.
func ParseHostname(body []byte) (string, error) {
	fields := strings.Fields(string(body))
	if len(fields) == 0 || len(fields) > 8 || !hostname.MatchString(fields[0]) {
		return "", fmt.Errorf("%s is no host name", cloud.Quote(string(body)))
	}
	return fields[0], nil
}
