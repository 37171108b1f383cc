// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"
	"strings"
	"sync"
	"unicode"
)

// What a terminal is told. It keeps its own buffer, so that what was there last stays readable after the command.
const (
	cursorHome = "\x1b[H"
	cursorHide = "\x1b[?25l"
	cursorShow = "\x1b[?25h"
	clearLine  = "\x1b[K"
	clearRest  = "\x1b[J"
)

// screen redraws lines in place on a terminal. Its methods may be called from any goroutine.
type screen struct {
	w io.Writer

	mu     sync.Mutex
	hidden bool // the cursor
	begun  bool
	ended  bool
}

// draw shows lines from the top of the terminal on, in one write. There must be fewer of them than rows: the cursor
// stands below the last.
func (s *screen) draw(lines []string, rows int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	var b strings.Builder
	if !s.begun {
		// What stands there belongs into the scroll-back, not below our lines.
		b.WriteString(strings.Repeat("\r\n", max(0, rows-1)))
		s.begun = true
	}
	if !s.hidden {
		b.WriteString(cursorHide)
		s.hidden = true
	}
	b.WriteString(cursorHome)
	for _, line := range lines {
		// Cleared before it is written: after a line that fills the terminal, clearing takes its last character.
		b.WriteString(clearLine + line + "\r\n")
	}
	b.WriteString(clearRest)
	_, err := io.WriteString(s.w, b.String())
	if err != nil {
		return &outputError{err}
	}
	return nil
}

// release gives the cursor back. The next draw takes it again.
func (s *screen) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hidden {
		s.hidden = false
		_, _ = io.WriteString(s.w, cursorShow)
	}
}

// end gives the cursor back for good. It may be called several times.
func (s *screen) end() {
	s.release()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// runeWidth is how many columns a terminal takes for a printable rune.
func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r < 0x1100:
		return 1
	case r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff,
		r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6,
		r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}

func textWidth(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// fit cuts a text to a width, with more at its end where something was cut.
func fit(s string, width int, more string) string {
	if textWidth(s) <= width {
		return s
	}
	if width < textWidth(more) {
		more = ""
	}
	room, n := width-textWidth(more), 0
	for i, r := range s {
		if n += runeWidth(r); n > room {
			return s[:i] + more
		}
	}
	return s
}

// bar shows a percentage in width columns: in eighths where the terminal can, else in whole ones.
func bar(percent, width int, utf8 bool) string {
	percent = min(max(percent, 0), 100)
	if !utf8 {
		n := (percent*width + 50) / 100
		return strings.Repeat("#", n) + strings.Repeat(".", width-n)
	}
	// Rounded down, so that only what is full looks full; and what is not empty does not look so.
	eighths := percent * width * 8 / 100
	if percent > 0 {
		eighths = max(eighths, 1)
	}
	full, rest := eighths/8, eighths%8
	s := strings.Repeat("█", full)
	if rest > 0 {
		s += string([]rune("▏▎▍▌▋▊▉")[rest-1])
		full++
	}
	return s + strings.Repeat(" ", width-full)
}

// utf8Terminal reports whether the locale promises that the terminal shows more than ASCII.
func (e Env) utf8Terminal() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(e.getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}
