// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package plain makes text of other programs fit to be shown: short, and without control characters.
package plain

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Truncate returns the text, or its beginning with … at its end: at most limit bytes, and never a part of a character.
func Truncate(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	const ellipsis = "…"
	end := limit - len(ellipsis)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	// A copy, since a part of a text keeps all of it in memory.
	return strings.Clone(text[:end]) + ellipsis
}

// Output escapes as \uXXXX what changes how a terminal shows the rest: control characters, C1 controls (U+009B begins a
// sequence for xterm), and marks of the writing direction. In JSON they occur in strings only.
//
// Line ends, tabs and ESC pass: the agent's colors need ESC.
func Output(b []byte) []byte {
	if !bytes.ContainsFunc(b, unsafe) {
		return b
	}
	var out bytes.Buffer
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if unsafe(r) {
			fmt.Fprintf(&out, "\\u%04x", r)
		} else {
			out.Write(b[:n])
		}
		b = b[n:]
	}
	return out.Bytes()
}

// Text is [Output] of a text without colors: ESC is escaped, too.
func Text(s string) string {
	return strings.ReplaceAll(string(Output([]byte(s))), "\x1b", `\u001b`)
}

// unsafe reports a character that is escaped wherever it comes from. Bytes that are no UTF-8 count: 0x9b alone is CSI
// to a terminal in another mode.
func unsafe(r rune) bool {
	switch {
	case r == '\n', r == '\t', r == '\x1b':
		return false
	case r < 0x20, r >= 0x7f && r <= 0x9f, r == utf8.RuneError:
		return true
	case r == 0x061c, r == 0x200e, r == 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
		return true
	}
	return false
}

// Writer passes everything through [Output]. A call of Write has whole characters.
type Writer struct{ To io.Writer }

// Write implements io.Writer.
func (w Writer) Write(p []byte) (int, error) {
	if _, err := w.To.Write(Output(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
