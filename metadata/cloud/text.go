// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Quote quotes text of a service, for an error: not all of a page, and no control characters.
func Quote(s string) string {
	const most = 40
	if len(s) > most {
		return fmt.Sprintf("%q… (%d bytes)", s[:most], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// Printable is what may go into a log line or onto a screen of text that a service sent: one line, with room for more than a
// cloud says of an event or of a refusal.
func Printable(s string) string {
	const most = 300
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return s
}

// ParseLine reads an answer of one line that is no page.
func ParseLine(body []byte) (string, error) {
	s := strings.TrimSpace(string(body))
	if s == "" || len(s) > MaxTag || !utf8.ValidString(s) || strings.ContainsAny(s, "<>") || strings.ContainsFunc(s, unicode.IsControl) {
		return "", fmt.Errorf("%s is not one line of text", Quote(s))
	}
	return s, nil
}

// ParseValue reads the value of a tag: one line, which may be empty and hold any characters.
func ParseValue(body []byte) (string, error) {
	s := strings.TrimRight(string(body), "\r\n")
	if len(s) > MaxTag || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return "", fmt.Errorf("a value of %d bytes is not text of one line", len(s))
	}
	return s, nil
}

// ParseAddresses reads a list of addresses: one on each line, or a JSON array.
func ParseAddresses(body []byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, word := range strings.FieldsFunc(string(body), func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`[],"`, r) }) {
		text, _, _ := strings.Cut(word, "/")
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%s is no list of addresses", Quote(string(body)))
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

// ReachableAddresses reads addresses, with or without the length of their network, and leaves out what others cannot reach.
func ReachableAddresses(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		host, _, _ := strings.Cut(strings.TrimSpace(text), "/")
		a, err := netip.ParseAddr(host)
		if err == nil && a.Zone() == "" && a.IsGlobalUnicast() {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// ParseTime reads a time in one of the forms, or as RFC 3339 has it; zero for what is no time.
func ParseTime(text string, forms ...string) time.Time {
	for _, form := range append(forms, time.RFC3339) {
		if at, err := time.Parse(form, strings.TrimSpace(text)); err == nil {
			return at.UTC()
		}
	}
	return time.Time{}
}

// Decode reads JSON. A field of another type than expected is left out and returned as odd: it costs no node the rest.
func Decode[T any](body []byte) (v T, odd *json.UnmarshalTypeError, err error) {
	err = json.Unmarshal(body, &v)
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
		return v, e, nil
	}
	return v, nil, err
}

// Unread says in one sentence why something could not be read, with the hint if there is one.
func Unread(what string, err error) string {
	text := fmt.Sprintf("the %s could not be read: %v", what, err)
	if hint := HintOf(err); hint != "" {
		text += "; " + hint
	}
	return text
}
