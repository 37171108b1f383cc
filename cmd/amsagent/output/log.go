// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/amsagent/amsagent/internal/plain"
)

// newHandler selects the format of the log:
//
//   - with -o json, a JSON object per line;
//   - in the journal, key=value with the priority, without time;
//   - elsewhere under systemd, key=value without time;
//   - on a terminal, short lines for a person;
//   - in a pipe or a file, key=value with time.
func (p *Printer) newHandler(level slog.Level) slog.Handler {
	safe := plain.Writer{To: p.to.Stderr}
	w := redactWriter{w: safe, redact: p.Redact}
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: p.attrs()}
	line := func(shape func(slog.Record, string) string) slog.Handler {
		h := &lineHandler{w: w, mu: &sync.Mutex{}, buf: &bytes.Buffer{}, shape: shape}
		h.text = slog.NewTextHandler(h.buf, opts)
		return h
	}
	switch {
	case p.IsJSON():
		w.redact = func(line string) string { return string(p.RedactJSON([]byte(line))) }
		return slog.NewJSONHandler(w, opts)
	case p.to.IsJournal:
		opts.ReplaceAttr = p.attrs(slog.TimeKey)
		// sd-daemon(3)'s <N>, which the journal removes and keeps as PRIORITY.
		return line(func(r slog.Record, text string) string { return fmt.Sprintf("<%d>%s", priority(r.Level), text) })
	case p.to.IsTerminal(p.to.Stderr):
		opts.ReplaceAttr = p.attrs(slog.TimeKey, slog.LevelKey, slog.MessageKey)
		color := p.Palette(p.to.Stderr)
		return line(func(r slog.Record, attrs string) string { return terminalLine(color, r, attrs) })
	case p.to.Getenv("JOURNAL_STREAM") != "" || p.to.Getenv("INVOCATION_ID") != "":
		opts.ReplaceAttr = p.attrs(slog.TimeKey)
	}
	return slog.NewTextHandler(w, opts)
}

// attrs redacts attributes, and drops some keys of the record itself.
func (p *Printer) attrs(without ...string) func([]string, slog.Attr) slog.Attr {
	return func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && slices.Contains(without, a.Key) {
			return slog.Attr{}
		}
		return p.redactAttr(a)
	}
}

func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// terminalLine is a line for a person: "amsagent: warning: MESSAGE (key=value key=value)".
func terminalLine(c Palette, r slog.Record, attrs string) string {
	level := ""
	switch {
	case r.Level >= slog.LevelError:
		level = c.Red("error:") + " "
	case r.Level >= slog.LevelWarn:
		level = c.Yellow("warning:") + " "
	case r.Level < slog.LevelInfo:
		level = "debug: "
	}
	if attrs != "" {
		attrs = c.Dim(" (" + attrs + ")")
	}
	return "amsagent: " + level + OneLine(r.Message) + attrs
}

// lineHandler changes the lines of a text handler.
type lineHandler struct {
	w     io.Writer
	mu    *sync.Mutex // guards buf
	buf   *bytes.Buffer
	text  slog.Handler
	shape func(r slog.Record, text string) string
}

func (h *lineHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.text.Enabled(ctx, l) }

func (h *lineHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Reset()
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	_, err := io.WriteString(h.w, h.shape(r, strings.TrimSpace(h.buf.String()))+"\n")
	return err
}

func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.text = h.text.WithAttrs(attrs)
	return &c
}

func (h *lineHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.text = h.text.WithGroup(name)
	return &c
}
