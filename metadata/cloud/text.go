// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"fmt"
	"net"
	"strings"
)

// Quote quotes what somebody else sent, for an error: not all of a page, and no control characters.
func Quote(s string) string {
	const most = 40
	if len(s) > most {
		return fmt.Sprintf("%q… (%d bytes)", s[:most], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// Printable is what may go into a log line or onto a screen of what somebody else wrote: one line, with
// room for more than a cloud says of an event or of a refusal.
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

// ParseMAC reads a hardware address and returns it as the metadata paths spell it.
func ParseMAC(body []byte) (string, error) {
	v := strings.TrimSpace(string(body))
	hw, err := net.ParseMAC(v)
	if err != nil || len(hw) != 6 || !strings.EqualFold(hw.String(), v) {
		return "", fmt.Errorf("%s is no MAC address", Quote(v))
	}
	return strings.ToLower(v), nil
}
