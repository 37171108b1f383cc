// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Identity is the part of the instance identity document that we use.
type Identity struct {
	AccountID, InstanceID, Region, Zone, Type string
	// MAC is that of the first interface, as the metadata paths spell it; "" where the document does not tell it.
	MAC string
	// PrivateIP is the zero Addr where the document tells none.
	PrivateIP netip.Addr
}

func isDigit(r rune) bool { return r >= '0' && r <= '9' }
func isLower(r rune) bool { return r >= 'a' && r <= 'z' }
func isUpper(r rune) bool { return r >= 'A' && r <= 'Z' }

// isInstanceID is the form of ids such as i-bp13znx0m0me8cq0001.
func isInstanceID(s string) bool {
	rest, ok := strings.CutPrefix(s, "i-")
	return ok && len(rest) >= 8 && len(rest) <= 40 && all(rest, func(r rune) bool { return isDigit(r) || isLower(r) })
}

// isWord is the form of regions, zones, types, states, ids and role names, with room for what is yet to be named.
func isWord(s string) bool {
	return s != "" && len(s) <= 128 && s[0] != '.' && s[0] != '-' && all(s, isName)
}

func isName(r rune) bool {
	return isDigit(r) || isLower(r) || isUpper(r) || strings.ContainsRune("._-", r)
}

// isToken is the form of tokens and of ids that may hold a colon.
func isToken(s string) bool {
	return s != "" && len(s) <= 256 && all(s, func(r rune) bool {
		return isName(r) || strings.ContainsRune(":+/=*", r)
	})
}

func all(s string, allowed func(rune) bool) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !allowed(r) })
}

// ParseIdentity reads an instance identity document. Unknown fields are ignored; a document without an id or a region is
// not one.
func ParseIdentity(body []byte) (Identity, error) {
	var doc struct {
		AccountID  string  `json:"owner-account-id"`
		InstanceID string  `json:"instance-id"`
		Region     string  `json:"region-id"`
		Zone       string  `json:"zone-id"`
		Type       string  `json:"instance-type"`
		MAC        string  `json:"mac"`
		PrivateIP  *string `json:"private-ipv4"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return Identity{}, fmt.Errorf("the identity document is not the JSON expected: %w", err)
	}
	var errs []error
	check := func(field, value string, right func(string) bool, required bool) string {
		if right(value) || value == "" && !required {
			return value
		}
		errs = append(errs, fmt.Errorf("the identity document's %s is %s", field, cloud.Quote(value)))
		return ""
	}
	id := Identity{
		AccountID:  check("owner-account-id", doc.AccountID, isWord, false),
		InstanceID: check("instance-id", doc.InstanceID, isInstanceID, true),
		Region:     check("region-id", doc.Region, isWord, true),
		Zone:       check("zone-id", doc.Zone, isWord, false),
		Type:       check("instance-type", doc.Type, isWord, false),
	}
	if doc.MAC != "" {
		var err error
		if id.MAC, err = cloud.ParseMAC([]byte(doc.MAC)); err != nil {
			errs = append(errs, fmt.Errorf("the identity document's mac: %w", err))
		}
	}
	if doc.PrivateIP != nil && *doc.PrivateIP != "" {
		a, err := netip.ParseAddr(*doc.PrivateIP)
		if err != nil || !a.Is4() || a.IsUnspecified() || a.IsLoopback() {
			errs = append(errs, fmt.Errorf("the identity document's private-ipv4 is %s", cloud.Quote(*doc.PrivateIP)))
		} else if !a.IsLinkLocalUnicast() {
			id.PrivateIP = a
		}
	}
	if len(errs) > 0 {
		return Identity{}, errors.Join(errs...)
	}
	return id, nil
}

// maxAddresses on one interface: ECS allows a few dozen.
const maxAddresses = 256

// ParseAddresses reads a list of addresses. Which form the list of IPv6 addresses has is shown nowhere for sure, so all of
// them are read: a JSON array, the same without quotes, and one on each line.
func ParseAddresses(body []byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, word := range strings.FieldsFunc(string(body), func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`[],"`, r) }) {
		text, _, _ := strings.Cut(word, "/")
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || len(out) == maxAddresses {
			return nil, fmt.Errorf("%s is no list of addresses", cloud.Quote(string(body)))
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

// ParseHostname reads a host name.
func ParseHostname(body []byte) (string, error) {
	v := strings.TrimSpace(string(body))
	if v == "" || len(v) > 253 || v[0] == '.' || v[0] == '-' || !all(v, isName) {
		return "", fmt.Errorf("%s is no host name", cloud.Quote(v))
	}
	return v, nil
}

// ParseName reads the name that somebody gave the instance: any text of one line, in any script.
func ParseName(body []byte) (string, error) {
	v := strings.TrimSpace(string(body))
	// No page of a portal: a name has no brackets by ECS's rules.
	if v == "" || len(v) > 512 || !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) || strings.ContainsAny(v, "<>") {
		return "", fmt.Errorf("%s is no instance name", cloud.Quote(v))
	}
	return v, nil
}

// ParseTerminationTime reads when a spot instance is taken back.
func ParseTerminationTime(body []byte) (time.Time, error) {
	v := strings.TrimSpace(string(body))
	at, err := parseTime(v)
	if err != nil || at.Year() < 2000 {
		return time.Time{}, fmt.Errorf("the termination time is %s", cloud.Quote(v))
	}
	return at, nil
}

// parseTime reads the times of Alibaba Cloud, which some of its interfaces write without seconds.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t, err = time.Parse("2006-01-02T15:04Z", s)
	}
	return t.UTC(), err
}
