// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/amsagent/amsagent/internal/plain"
)

// newHandler selects the format of the log:
//
//   - with -o json, a JSON object per line;
//   - in the journal, key=value with the priority, without time;
//   - elsewhere under systemd, key=value without time;
//   - on a terminal, short lines;
//   - in a pipe or a file, key=value with time.
func (g *globals) newHandler(level slog.Level) slog.Handler {
	safe := plain.Writer{To: g.env.Stderr}
	w := redactWriter{w: safe, redact: g.redact}
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr { return g.redactAttr(a) }}
	journal := g.env.getenv("JOURNAL_STREAM")
	noTime := func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return g.redactAttr(a)
	}
	switch {
	case g.isJSON():
		w.redact = func(line string) string { return string(g.redactJSON([]byte(line))) }
		return slog.NewJSONHandler(w, opts)
	case g.env.IsJournal:
		opts.ReplaceAttr = noTime
		return newJournalHandler(w, opts)
	case g.env.IsTerminal(g.env.Stderr):
		return &shortHandler{w: w, level: level, color: g.palette(g.env.Stderr), mu: &sync.Mutex{}}
	case journal != "" || g.env.getenv("INVOCATION_ID") != "":
		opts.ReplaceAttr = noTime
	}
	return slog.NewTextHandler(w, opts)
}

// journalHandler puts sd-daemon(3)'s <N> before a line, which the journal takes off and keeps as PRIORITY.
type journalHandler struct {
	byPriority map[int]slog.Handler
	level      slog.Level
}

func newJournalHandler(w io.Writer, opts *slog.HandlerOptions) *journalHandler {
	h := &journalHandler{byPriority: map[int]slog.Handler{}, level: opts.Level.Level()}
	for _, p := range []int{3, 4, 6, 7} {
		h.byPriority[p] = slog.NewTextHandler(prefixWriter{w, fmt.Sprintf("<%d>", p)}, opts)
	}
	return h
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

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.byPriority[priority(r.Level)].Handle(ctx, r)
}

func (h *journalHandler) each(f func(slog.Handler) slog.Handler) slog.Handler {
	c := &journalHandler{byPriority: map[int]slog.Handler{}, level: h.level}
	for p, sub := range h.byPriority {
		c.byPriority[p] = f(sub)
	}
	return c
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.each(func(s slog.Handler) slog.Handler { return s.WithAttrs(attrs) })
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	return h.each(func(s slog.Handler) slog.Handler { return s.WithGroup(name) })
}

type prefixWriter struct {
	w      io.Writer
	prefix string
}

func (p prefixWriter) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.w, p.prefix+string(b)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// shortHandler writes lines for a person at a terminal: "amsagent: warning: MESSAGE (key value, key value)".
type shortHandler struct {
	w      io.Writer
	level  slog.Level
	color  palette
	mu     *sync.Mutex
	attrs  []slog.Attr
	prefix string
}

func (h *shortHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *shortHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("amsagent: ")
	switch {
	case r.Level >= slog.LevelError:
		b.WriteString(h.color.red("error:") + " ")
	case r.Level >= slog.LevelWarn:
		b.WriteString(h.color.yellow("warning:") + " ")
	case r.Level < slog.LevelInfo:
		b.WriteString("debug: ")
	}
	b.WriteString(oneLine(r.Message))
	var words []string
	for _, a := range h.attrs {
		words = appendAttr(words, "", a)
	}
	r.Attrs(func(a slog.Attr) bool {
		words = appendAttr(words, h.prefix, a)
		return true
	})
	if len(words) > 0 {
		b.WriteString(h.color.dim(" (" + strings.Join(words, ", ") + ")"))
	}
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.w, b.String())
	return err
}

func appendAttr(words []string, prefix string, a slog.Attr) []string {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, sub := range v.Group() {
			words = appendAttr(words, prefix, sub)
		}
		return words
	}
	if a.Equal(slog.Attr{}) {
		return words
	}
	return append(words, prefix+a.Key+" "+oneLine(v.String()))
}

func (h *shortHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = append([]slog.Attr{}, h.attrs...)
	for _, a := range attrs {
		if h.prefix != "" {
			a.Key = h.prefix + a.Key
		}
		c.attrs = append(c.attrs, a)
	}
	return &c
}

func (h *shortHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "."
	return &c
}
