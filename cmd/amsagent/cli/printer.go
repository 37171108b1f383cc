// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/seconds"
)

// schemaVersion is the version of the JSON output. New fields do not change it; removed or changed ones do.
const schemaVersion = 1

// outputError: the result could not be written to stdout.
type outputError struct{ err error }

func (e *outputError) Error() string { return "writing to standard output: " + e.err.Error() }
func (e *outputError) Unwrap() error { return e.err }

// result prints data as one JSON object with -o json, else the lines of text. schema_version and kind precede data's
// fields.
//
// After a signal, a command that only reads prints nothing: its result is incomplete.
func (g *globals) result(kind string, data any, text func(*textWriter)) error {
	if g.readsOnly.Load() && g.ctx.Err() != nil {
		return context.Cause(g.ctx)
	}
	var out []byte
	if g.isJSON() {
		b, err := envelope(kind, data)
		if err != nil {
			return err
		}
		out = g.redactJSON(b)
	} else {
		w := &textWriter{color: g.palette(g.env.Stdout), now: g.env.Now()}
		text(w)
		out = []byte(g.redact(w.b.String()))
	}
	return g.write(out)
}

// write puts bytes on stdout in one piece.
func (g *globals) write(b []byte) error {
	if _, err := g.env.Stdout.Write(plain.Output(b)); err != nil {
		return &outputError{err}
	}
	return nil
}

// resultWriter is standard output for cobra, which writes completion scripts.
type resultWriter struct{ g *globals }

func (w resultWriter) Write(b []byte) (int, error) {
	if err := w.g.write(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func envelope(kind string, data any) ([]byte, error) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(data); err != nil {
		return nil, fmt.Errorf("encoding the result: %w", err)
	}
	fields := bytes.TrimSpace(body.Bytes())
	if len(fields) < 2 || fields[0] != '{' {
		return nil, errors.New("encoding the result: not an object")
	}
	head := fmt.Sprintf(`{"schema_version":%d,"kind":%q`, schemaVersion, kind)
	if !bytes.Equal(fields, []byte("{}")) {
		head += ","
	}
	var out bytes.Buffer
	if err := json.Indent(&out, append([]byte(head), fields[1:]...), "", "  "); err != nil {
		return nil, fmt.Errorf("encoding the result: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// textWriter collects the lines of a result for a person.
type textWriter struct {
	b     strings.Builder
	color palette
	now   time.Time
}

// line writes one line. Values from outside must have gone through printable or %q.
func (w *textWriter) line(format string, args ...any) {
	fmt.Fprintf(&w.b, format, args...)
	w.b.WriteByte('\n')
}

// heading starts a paragraph.
func (w *textWriter) heading(text string) {
	w.b.WriteByte('\n')
	w.line("%s", w.color.bold(text))
}

// table writes rows in columns, indented by two; empty trailing cells leave no blanks behind.
func (w *textWriter) table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(printable(cell)))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		b.WriteString("  ")
		for i, cell := range row {
			cell = printable(cell)
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		w.line("%s", strings.TrimRight(b.String(), " "))
	}
}

// fields writes "name  value" rows and leaves out those without a value.
func (w *textWriter) fields(pairs ...string) {
	var rows [][]string
	for pair := range slices.Chunk(pairs, 2) {
		if len(pair) == 2 && pair[1] != "" {
			rows = append(rows, pair)
		}
	}
	w.table(rows)
}

// ago says how long ago t was, as a person would: "12 s ago".
func (w *textWriter) ago(t time.Time) string { return agoAt(w.now, t) }

// agoAt says how long before now t was.
func agoAt(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t)
	switch {
	case d < 0:
		return "in " + roughly(-d)
	case d < time.Second:
		return "just now"
	}
	return roughly(d) + " ago"
}

// roughly rounds a duration to the one unit that matters: 12 s, 5 min, 3 h, 2 d.
func roughly[D time.Duration | seconds.Duration](duration D) string {
	d := time.Duration(duration)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Round(time.Second)/time.Second))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d/time.Minute))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d/time.Hour))
	}
	return fmt.Sprintf("%d d", int(d/(24*time.Hour)))
}

// zoned prints a time with its zone: the reader's need not be the machine's.
func zoned(t time.Time) string { return t.Format(time.DateTime + " MST") }

// rounded prints a span with at most two units: 850 ms, 1.2 s, 12 s, 4 min 30 s, 1 h 5 min.
func rounded[D time.Duration | seconds.Duration](duration D) string {
	d := time.Duration(duration)
	switch {
	case d < 0:
		return "-" + rounded(-d)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond)/time.Millisecond)
	case d < 10*time.Second:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", d.Round(time.Second)/time.Second)
	}
	d = d.Round(time.Second)
	h, m, s := d/time.Hour, d/time.Minute%60, d/time.Second%60
	switch {
	case h > 0 && m > 0:
		return fmt.Sprintf("%d h %d min", h, m)
	case h > 0:
		return fmt.Sprintf("%d h", h)
	case s > 0:
		return fmt.Sprintf("%d min %d s", m, s)
	}
	return fmt.Sprintf("%d min", m)
}

// palette colors words, or leaves them as they are.
type palette struct{ on bool }

// palette tells whether a stream gets color. Words are the same with and without.
func (g *globals) palette(stream io.Writer) palette {
	g.mu.Lock()
	form, when := g.output, g.color
	g.mu.Unlock()
	switch {
	case form == "json" || when == "never":
		return palette{}
	case when == "always":
		return palette{on: true}
	}
	return palette{on: g.env.IsTerminal(stream) && g.env.getenv("TERM") != "dumb"}
}

func (p palette) wrap(code, s string) string {
	if !p.on {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p palette) bold(s string) string   { return p.wrap("1", s) }
func (p palette) dim(s string) string    { return p.wrap("2", s) }
func (p palette) red(s string) string    { return p.wrap("31", s) }
func (p palette) green(s string) string  { return p.wrap("32", s) }
func (p palette) yellow(s string) string { return p.wrap("33", s) }

// From alarming on a load wants to be looked at: it is where AMS refuses more by default. Nearly full is worse.
const (
	loadAlarming = 75
	loadFull     = 90
)

// load colors what shows a load in percent.
func (p palette) load(percent *int, s string) string {
	switch {
	case percent == nil || *percent < loadAlarming:
		return s
	case *percent < loadFull:
		return p.yellow(s)
	}
	return p.red(s)
}
