// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package redact

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"strconv"
)

// Secret is text that must not be shown: every verb of fmt, slog, JSON, text and BSON give a placeholder, and only
// [Secret.Reveal] gives the text. An empty secret shows as empty: that none is set is worth seeing.
//
// fmt calls no methods on unexported fields: a struct that keeps a Secret in one and may be printed hides it behind a pointer.
type Secret string

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// String returns the placeholder.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return Placeholder
}

// Format answers every verb with the placeholder; without it %x would print the bytes. fmt asks no method for %p and %w;
// go vet reports both.
func (s Secret) Format(f fmt.State, verb rune) {
	out := s.String()
	if verb == 'q' || verb == 'v' && f.Flag('#') {
		out = strconv.Quote(out)
	}
	_, _ = io.WriteString(f, out)
}

// LogValue returns the placeholder.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText returns the placeholder; JSON, YAML and XML use it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalBSONValue returns the placeholder, as a string of BSON.
func (s Secret) MarshalBSONValue() (byte, []byte, error) {
	const typeString = 0x02
	text := s.String()
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(text)+1)) //nolint:gosec // the length of the placeholder
	return typeString, append(append(b, text...), 0), nil
}
