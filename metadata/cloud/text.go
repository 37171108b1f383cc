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

	"github.com/amsagent/amsagent/internal/plain"
)

// Quote quotes an answer for an error, truncated.
func Quote(s string) string {
	const most = 40
	if len(s) > most {
		return fmt.Sprintf("%q… (%d bytes)", s[:most], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// Printable returns one bounded line for logs and terminals.
func Printable(s string) string {
	const most = 300
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, s)
	return plain.Truncate(s, most)
}

// ParseLine parses one line that is not HTML.
func ParseLine(body []byte) (string, error) {
	s := strings.TrimSpace(string(body))
	if s == "" || len(s) > maxTag || !utf8.ValidString(s) || strings.ContainsAny(s, "<>") || strings.ContainsFunc(s, unicode.IsControl) {
		return "", fmt.Errorf("%s is not one line of text", Quote(s))
	}
	return s, nil
}

// ParseValue parses a tag value: one line, possibly empty.
func ParseValue(body []byte) (string, error) {
	s := strings.TrimRight(string(body), "\r\n")
	if len(s) > maxTag || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return "", fmt.Errorf("a value of %d bytes is not text of one line", len(s))
	}
	return s, nil
}

// ParseAddresses parses addresses: one a line, or JSON.
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

// ReachableAddresses parses addresses or prefixes and skips unreachable ones.
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

// ParseTime parses one of the forms or RFC 3339; zero if invalid.
func ParseTime(text string, forms ...string) time.Time {
	for _, form := range append(forms, time.RFC3339) {
		if at, err := time.Parse(form, strings.TrimSpace(text)); err == nil {
			return at.UTC()
		}
	}
	return time.Time{}
}

// Decode parses JSON. It returns a field of the wrong type as odd and keeps the rest.
func Decode[T any](body []byte) (v T, odd *json.UnmarshalTypeError, err error) {
	err = json.Unmarshal(body, &v)
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
		return v, e, nil
	}
	return v, nil, err
}

// Unread formats a read error with its hint.
func Unread(what string, err error) string {
	text := fmt.Sprintf("the %s could not be read: %v", what, err)
	if hint := HintOf(err); hint != "" {
		text += "; " + hint
	}
	return text
}
