// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"io"
	"unicode/utf8"
)

// safeOutput is the last thing that happens to every byte for standard output and standard error: what could change how
// a terminal shows the rest is escaped as \uXXXX, in text as in JSON. Those are control characters, C1 controls (U+009B
// begins a sequence for xterm), and the marks that turn the direction of writing. In JSON they stand in strings only,
// where the escape means the same.
//
// Line ends, tabs and ESC pass: ESC is the color's own, and [printable] keeps out that of others.
func safeOutput(b []byte) []byte {
	if !bytes.ContainsFunc(b, unsafeRune) {
		return b
	}
	var out bytes.Buffer
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if unsafeRune(r) {
			fmt.Fprintf(&out, "\\u%04x", r)
		} else {
			out.Write(b[:n])
		}
		b = b[n:]
	}
	return out.Bytes()
}

// unsafeRune reports a character that is escaped wherever it comes from. Bytes that are no UTF-8 count: 0x9b alone is CSI
// to a terminal in another mode.
func unsafeRune(r rune) bool {
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

// safeWriter passes everything through safeOutput. Handlers write one record per call, so no character is cut in two.
type safeWriter struct{ w io.Writer }

func (s safeWriter) Write(p []byte) (int, error) {
	if _, err := s.w.Write(safeOutput(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
