// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package output prints results, progress and logs: as text or JSON, with or without color, and never a secret. It knows no
// command and no setting.
package output

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/redact"
)

// SchemaVersion is the version of the JSON output. New fields do not change it; removed or changed ones do.
const SchemaVersion = 1

// Error reports that the result could not be written to standard output.
type Error struct{ Err error }

func (e *Error) Error() string { return "writing to standard output: " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Streams are where a [Printer] prints; all fields are set.
type Streams struct {
	Stdout io.Writer
	// Stderr must be safe for concurrent use.
	Stderr io.Writer
	// IsTerminal reports whether one of them is a terminal, IsJournal whether Stderr is the journal.
	IsTerminal func(stream any) bool
	IsJournal  bool
	Getenv     func(name string) string
	Now        func() time.Time
}

// Printer prints in one form. It may be used by several goroutines.
type Printer struct {
	to Streams

	mu          sync.Mutex
	form, color string
	logger      *slog.Logger
	secrets     []redact.Secret
	said        map[string]bool
}

// New returns a printer that has no form yet.
func New(to Streams) *Printer { return &Printer{to: to} }

// SetForm fixes the form of everything from here on, text or json, and color (auto, always, never). [Printer.Once] begins again.
func (p *Printer) SetForm(form, color string, level slog.Level) {
	p.mu.Lock()
	p.form, p.color, p.said = form, color, map[string]bool{}
	p.mu.Unlock()
	l := slog.New(p.newHandler(level))
	p.mu.Lock()
	p.logger = l
	p.mu.Unlock()
}

// IsJSON reports whether the form is JSON.
func (p *Printer) IsJSON() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.form == "json"
}

// Log is the logger.
func (p *Printer) Log() *slog.Logger {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.logger
}

// Progress prints one step on stderr, in the form of the log.
func (p *Printer) Progress(line string) { p.Log().Info(OneLine(p.Redact(line))) } //nolint:sloglint // the step is the message

// Once reports whether this is the first call with what since the form was set.
func (p *Printer) Once(what string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.said[what] {
		return false
	}
	p.said[what] = true
	return true
}

// Result prints data as one JSON object, after schema_version and kind, or the lines of text.
func (p *Printer) Result(kind string, data any, text func(*Text)) error {
	if p.IsJSON() {
		b, err := Envelope(kind, data)
		if err != nil {
			return err
		}
		return p.Print(p.RedactJSON(b))
	}
	w := &Text{Color: p.Palette(p.to.Stdout), Now: p.to.Now()}
	text(w)
	return p.Print([]byte(p.Redact(w.String())))
}

// Print writes bytes to standard output in one piece. Its error is an [Error].
func (p *Printer) Print(b []byte) error { return p.print(plain.Output(b)) }

// Redraw empties a terminal and prints a text from its first line on.
func (p *Printer) Redraw(text string) error {
	return p.print(append([]byte("\x1b[H\x1b[2J"), plain.Output([]byte(text))...))
}

func (p *Printer) print(b []byte) error {
	if _, err := p.to.Stdout.Write(b); err != nil {
		return &Error{err}
	}
	return nil
}

// Write is Print for an [io.Writer].
func (p *Printer) Write(b []byte) (int, error) {
	if err := p.Print(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// PrintError writes bytes to standard error. Its own failure has no reader.
func (p *Printer) PrintError(b []byte) { _, _ = p.to.Stderr.Write(plain.Output(b)) }

// Envelope is data as one JSON object, after schema_version and kind.
func Envelope(kind string, data any) ([]byte, error) {
	b, err := JSONLine(data)
	if err != nil {
		return nil, fmt.Errorf("encoding the result: %w", err)
	}
	fields := bytes.TrimSpace(b)
	if len(fields) < 2 || fields[0] != '{' {
		return nil, errors.New("encoding the result: not an object")
	}
	head := fmt.Sprintf(`{"schema_version":%d,"kind":%q`, SchemaVersion, kind)
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

// JSONLine is a value in one line.
func JSONLine(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}
