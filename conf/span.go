// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"fmt"
	"slices"
)

// Span is one replaced piece of a file: the bytes Old at offset Off of the
// former contents became New. Offsets count bytes of the former contents.
type Span struct {
	// Anchor names what the span belongs to, so that it can be found again
	// after other lines of the file were edited: "key:db.host", "section:1".
	Anchor string `json:"anchor"`
	Off    int    `json:"off"`
	Old    []byte `json:"old"`
	New    []byte `json:"new"`
	// Standalone is the value a property gets when its span was edited after
	// us and cannot simply be put back. Nil: there is none.
	Standalone *string `json:"standalone,omitempty"`
	// Added marks a property line that was not there before.
	Added bool `json:"added,omitempty"`
}

// applySpans replaces the spans in src. They must lie inside src, must not
// overlap, and their Old bytes must be what src holds.
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

// lineAt gives the 1-based number of the line that holds byte off of src.
func lineAt(src []byte, off int) int {
	return 1 + bytes.Count(src[:min(off, len(src))], []byte{'\n'})
}
