// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Text collects the lines of a result for a person.
type Text struct {
	b     strings.Builder
	Color Palette
	Now   time.Time
}

// Line writes one line. Values from outside must have gone through [Printable] or %q.
func (w *Text) Line(format string, args ...any) {
	fmt.Fprintf(&w.b, format, args...)
	w.b.WriteByte('\n')
}

// Blank writes an empty line.
func (w *Text) Blank() { w.Raw("\n") }

// Raw writes a text as it is.
func (w *Text) Raw(text string) { w.b.WriteString(text) }

// String is what was written.
func (w *Text) String() string { return w.b.String() }

// Heading starts a paragraph.
func (w *Text) Heading(text string) {
	w.b.WriteByte('\n')
	w.Line("%s", w.Color.Bold(text))
}

// Table writes rows in columns, indented by two; empty trailing cells leave no whitespace behind.
func (w *Text) Table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(Printable(cell)))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		b.WriteString("  ")
		for i, cell := range row {
			cell = Printable(cell)
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		w.Line("%s", strings.TrimRight(b.String(), " "))
	}
}

// Fields writes "name  value" rows and leaves out those without a value.
func (w *Text) Fields(pairs ...string) {
	var rows [][]string
	for pair := range slices.Chunk(pairs, 2) {
		if len(pair) == 2 && pair[1] != "" {
			rows = append(rows, pair)
		}
	}
	w.Table(rows)
}

// Lines splits a text of a server or of metadata into lines that are safe for a terminal.
func Lines(s string) []string {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimSpace(s), "\n") {
		if line = strings.TrimRightFunc(line, unicode.IsSpace); line != "" {
			lines = append(lines, Printable(line))
		}
	}
	return lines
}

// OneLine joins the lines of a text.
func OneLine(s string) string { return strings.Join(Lines(s), "; ") }

// Printable makes control characters visible and drops broken UTF-8.
func Printable(s string) string {
	bad := func(r rune) bool {
		return r == utf8.RuneError || (r != '\t' && !unicode.IsPrint(r) && !unicode.Is(unicode.Zs, r))
	}
	if !strings.ContainsFunc(s, bad) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if bad(r) {
			fmt.Fprintf(&b, "\\u%04x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Dash is the text, or - for an empty one.
func Dash(s string) string { return cmp.Or(s, "-") }

// Count is a number with its noun.
func Count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
