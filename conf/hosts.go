// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"net/netip"
)

// hostsMark ends the agent's line in /etc/hosts.
const hostsMark = "# added by amsagent"

// AddHost adds or replaces one marked line with address and name. It returns no spans if nothing changes.
func AddHost(src []byte, address netip.Addr, name string) []Span {
	line := []byte(address.String() + "\t" + name + "\t" + hostsMark)
	off := 0
	for _, l := range bytes.SplitAfter(src, []byte{'\n'}) {
		body := bytes.TrimRight(l, "\r\n")
		if bytes.HasSuffix(body, []byte(hostsMark)) {
			if bytes.Equal(body, line) {
				return nil
			}
			return []Span{{Anchor: "hosts", Off: off, Old: body, New: line}}
		}
		off += len(l)
	}
	eol := []byte(dominantEOL(src))
	added := append(bytes.Clone(line), eol...)
	if len(src) > 0 && src[len(src)-1] != '\n' {
		added = append(bytes.Clone(eol), line...)
	}
	return []Span{{Anchor: "hosts", Off: len(src), New: added}}
}

// HasMarkedHost reports whether the agent's line is in /etc/hosts.
func HasMarkedHost(src []byte) bool { return markedHost(src) != nil }

func isMarkedHost(line []byte) bool {
	return bytes.HasSuffix(bytes.TrimRight(line, "\r\n"), []byte(hostsMark))
}

// markedHost returns the marked line, without its end, or nil.
func markedHost(src []byte) []byte {
	for l := range bytes.SplitSeq(src, []byte{'\n'}) {
		if isMarkedHost(l) {
			return bytes.TrimRight(l, "\r")
		}
	}
	return nil
}

// replaceMarkedHost removes the marked lines, but for the first one if there is a line for it.
func replaceMarkedHost(src, line []byte) []byte {
	var out []byte
	for l := range bytes.SplitAfterSeq(src, []byte{'\n'}) {
		if !isMarkedHost(l) {
			out = append(out, l...)
			continue
		}
		if line != nil {
			end := l[len(bytes.TrimRight(l, "\r\n")):]
			out = append(append(out, line...), end...)
			line = nil
		}
	}
	return out
}
