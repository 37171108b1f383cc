// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package record

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"sync"
)

// Redacted stands where something was taken out.
const Redacted = "REDACTED"

// EmptyLike keeps the type of a JSON value, which is what a parser trips over, and nothing else.
func EmptyLike(v any) any {
	switch v := v.(type) {
	case string:
		if v == "" {
			return v
		}
		return Redacted
	case float64, json.Number:
		return 0
	case bool:
		return false
	case []any:
		return []any{}
	case map[string]any:
		return map[string]any{}
	default:
		return nil
	}
}

// Mapper replaces what identifies somebody by made-up values: the same by the same within one recording. It is safe for
// use by several goroutines.
type Mapper struct {
	mu    sync.Mutex
	seen  map[string]string
	count map[string]int
	re    *regexp.Regexp
	subs  []func(string) string
}

// NewMapper returns an empty Mapper.
func NewMapper() *Mapper {
	m := &Mapper{seen: map[string]string{}, count: map[string]int{}}
	// One expression, so that each stretch of text is replaced once and no made-up value is taken for a real one. What is
	// more specific comes first: the first alternative that fits wins.
	var alternatives []string
	for _, k := range []struct {
		re string
		fn func(string) string
	}{
		{`\b[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}\b`, m.uuid},
		{`\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b`, m.MAC},
		{`\b[a-z]{1,12}-[0-9a-f]{8,17}\b`, m.ID},
		{`\b(?:ip|ec2)-\d{1,3}-\d{1,3}-\d{1,3}-\d{1,3}\b`, m.ipName},
		{`\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b`, m.ip},
		{`[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f.]*`, m.ip},
		{`\b\d{12}\b`, m.account},
	} {
		alternatives = append(alternatives, "("+k.re+")")
		m.subs = append(m.subs, k.fn)
	}
	m.re = regexp.MustCompile(strings.Join(alternatives, "|"))
	return m
}

// Text replaces everything of the known kinds within a text.
func (m *Mapper) Text(s string) string {
	var b strings.Builder
	last := 0
	for _, loc := range m.re.FindAllStringSubmatchIndex(s, -1) {
		b.WriteString(s[last:loc[0]])
		last = loc[1]
		for i, fn := range m.subs {
			if loc[2+2*i] >= 0 {
				b.WriteString(fn(s[loc[0]:loc[1]]))
				break
			}
		}
	}
	b.WriteString(s[last:])
	return b.String()
}

// Name replaces a word of which nothing may remain, such as a host name or a tag: prefix-1, prefix-2, …
func (m *Mapper) Name(prefix, word string) string {
	if word == "" {
		return ""
	}
	return m.number("name:"+prefix, word, func(n int) string { return fmt.Sprintf("%s-%d", prefix, n) })
}

// number returns the replacement of a value, made from how many of its kind came before.
func (m *Mapper) number(kind, value string, fresh func(n int) string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := kind + "\x00" + value
	if r, ok := m.seen[key]; ok {
		return r
	}
	m.count[kind]++
	r := fresh(m.count[kind])
	m.seen[key] = r
	return r
}

func (m *Mapper) uuid(s string) string {
	return m.number("uuid", strings.ToLower(s), func(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", n) })
}

// MAC replaces a hardware address by a locally administered one.
func (m *Mapper) MAC(s string) string {
	return m.number("mac", strings.ToLower(s), func(n int) string { return fmt.Sprintf("02:00:00:00:%02x:%02x", n>>8&0xff, n&0xff) })
}

// ID replaces the number of a resource id (i-…, eni-…, ami-…) and keeps its kind and length.
func (m *Mapper) ID(s string) string {
	kind, digits, ok := strings.Cut(s, "-")
	if !ok {
		return Redacted
	}
	return kind + "-" + m.number("id:"+kind, digits, func(n int) string { return fmt.Sprintf("%0*x", len(digits), n) })
}

func (m *Mapper) account(s string) string {
	return m.number("account", s, func(n int) string { return fmt.Sprintf("%012d", 123456789011+n) })
}

func (m *Mapper) ip(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return m.Addr(a).String()
	}
	// Of the shape of an address and none: a time of day, an account between the colons of an ARN, or an address with
	// colons of the text at its ends. Parts of one or two digits tell nothing.
	parts := strings.Split(s, ":")
	for i, p := range parts {
		switch {
		case len(p) == 12 && strings.Trim(p, "0123456789") == "":
			parts[i] = m.account(p)
		case len(p) > 2:
			parts[i] = Redacted
		}
	}
	return strings.Join(parts, ":")
}

func (m *Mapper) ipName(s string) string {
	prefix, rest, _ := strings.Cut(s, "-")
	a, err := netip.ParseAddr(strings.ReplaceAll(rest, "-", "."))
	if err != nil {
		return prefix + "-" + Redacted
	}
	return prefix + "-" + strings.ReplaceAll(m.Addr(a).String(), ".", "-")
}

// Addr replaces an address: private IPv4 by 192.0.2.0/24, public by 203.0.113.0/24, IPv6 by 2001:db8::/32. What names no
// machine (loopback, link-local, unspecified, multicast) stays.
func (m *Mapper) Addr(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.IsValid() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a == netip.MustParseAddr("255.255.255.255") ||
		(a.IsLinkLocalUnicast() && a.Is4()) {
		return a
	}
	kind, base := "ip:public", netip.MustParseAddr("203.0.113.0")
	switch {
	case a.Is6():
		kind, base = "ip:v6", netip.MustParseAddr("2001:db8::")
	case a.IsPrivate():
		kind, base = "ip:private", netip.MustParseAddr("192.0.2.0")
	}
	return netip.MustParseAddr(m.number(kind, a.String(), func(n int) string { return add(base, n).String() }))
}

// add returns the n-th address after base, staying in its last byte (IPv4) or last two (IPv6).
func add(base netip.Addr, n int) netip.Addr {
	if base.Is4() {
		b := base.As4()
		b[3] = byte(n)
		return netip.AddrFrom4(b)
	}
	b := base.As16()
	b[14], b[15] = byte(n>>8), byte(n)
	return netip.AddrFrom16(b)
}
