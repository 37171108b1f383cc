// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"fmt"
	"slices"
)

// Span replaces the bytes Old at offset Off of the former content by New.
type Span struct {
	// Anchor names the span, such as "key:db.host" or "section:1".
	Anchor string
	Off    int
	Old    []byte
	New    []byte
	// Standalone is of a property: see [Key].
	Standalone *string
}

// applySpans returns an error if spans overlap, lie outside src, or have other Old bytes.
func applySpans(src []byte, spans []Span) ([]byte, error) {
	sorted := slices.Clone(spans)
	sortSpans(sorted)
	out := make([]byte, 0, len(src)+64)
	at := 0
	for _, s := range sorted {
		end := s.Off + len(s.Old)
		if s.Off < at || end < s.Off || end > len(src) {
			return nil, fmt.Errorf("span %s at byte %d overlaps another or lies outside the file", s.Anchor, s.Off)
		}
		if !bytes.Equal(src[s.Off:end], s.Old) {
			return nil, fmt.Errorf("span %s at byte %d does not hold the bytes it is said to replace", s.Anchor, s.Off)
		}
		out = append(out, src[at:s.Off]...)
		out = append(out, s.New...)
		at = end
	}
	return append(out, src[at:]...), nil
}

func sortSpans(s []Span) {
	slices.SortStableFunc(s, func(a, b Span) int { return a.Off - b.Off })
}

// lineAt is 1-based.
func lineAt(src []byte, off int) int {
	return 1 + bytes.Count(src[:min(off, len(src))], []byte{'\n'})
}
