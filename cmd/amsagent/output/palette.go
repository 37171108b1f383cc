// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package output

import "io"

// Palette colors words, or leaves them as they are.
type Palette struct{ On bool }

// Palette is that of a stream.
func (p *Printer) Palette(stream io.Writer) Palette {
	p.mu.Lock()
	form, when := p.form, p.color
	p.mu.Unlock()
	switch {
	case form == "json" || when == "never":
		return Palette{}
	case when == "always":
		return Palette{On: true}
	}
	return Palette{On: p.to.IsTerminal(stream) && p.to.Getenv("TERM") != "dumb"}
}

func (p Palette) wrap(code, s string) string {
	if !p.On {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// Bold is for headings and numbers.
func (p Palette) Bold(s string) string { return p.wrap("1", s) }

// Dim is for what matters less.
func (p Palette) Dim(s string) string { return p.wrap("2", s) }

// Red is for errors.
func (p Palette) Red(s string) string { return p.wrap("31", s) }

// Green is for what is well.
func (p Palette) Green(s string) string { return p.wrap("32", s) }

// Yellow is for warnings.
func (p Palette) Yellow(s string) string { return p.wrap("33", s) }
