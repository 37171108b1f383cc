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

func (p Palette) Bold(s string) string   { return p.wrap("1", s) }
func (p Palette) Dim(s string) string    { return p.wrap("2", s) }
func (p Palette) Red(s string) string    { return p.wrap("31", s) }
func (p Palette) Green(s string) string  { return p.wrap("32", s) }
func (p Palette) Yellow(s string) string { return p.wrap("33", s) }
