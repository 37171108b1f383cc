// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/must"
)

// hostile has a control character, a C1 control, every kind of bidirectional mark, and a byte that is no UTF-8.
const hostile = "a\x07\x7f\u0085\u009b31m\u061c\u200e\u200f\u202a\u202e\u2066\u2069\x9bz"

func dangerous(b []byte) bool {
	return !utf8.Valid(b) || bytes.ContainsFunc(b, func(r rune) bool {
		return r != '\n' && r != '\t' && (r < 0x20 || r >= 0x7f && r <= 0x9f || r == 0x061c || r >= 0x200e && r <= 0x200f ||
			r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069)
	})
}

// Whatever a database, a tag or a server says, neither the result nor an error nor the log moves the terminal's cursor.
func TestOutputIsSafe(t *testing.T) {
	for _, form := range []string{"text", "json"} {
		e := &testEnv{}
		g := globalsOf(e.env())
		g.out.SetForm(form, "never", slog.LevelDebug)
		data := map[string]any{"role": hostile, hostile: "x"}
		must.OK(t, g.result("test", data, func(w *output.Text) { w.Line("%s", hostile) }))
		g.out.Log().Warn(hostile, "error", errors.New(hostile), hostile, "x") //nolint:sloglint // the key is hostile on purpose
		report(t.Context(), g, &userError{Msg: hostile, Cause: errors.New(hostile), Hints: []string{hostile}, State: hostile})
		const screen = "x\x1b[2J" // an error text, unlike a result, never colors
		report(t.Context(), g, &userError{Msg: screen, Cause: errors.New(screen), Hints: []string{screen}, State: screen})
		if strings.Contains(e.stderr.String(), "\x1b") {
			t.Errorf("an error text moves the cursor: %q", e.stderr.String())
		}
		for name, out := range map[string][]byte{"stdout": []byte(e.stdout.String()), "stderr": []byte(e.stderr.String())} {
			if dangerous(out) {
				t.Errorf("%s on %s: %q", form, name, out)
			}
			must.Contain(t, fmt.Sprintf("%s on %s", form, name), string(out), `\u009b31m`)
		}
		if form != "json" {
			continue
		}
		var got map[string]any
		must.OK(t, json.Unmarshal([]byte(e.stdout.String()), &got))
		// A program gets back what was said, but for what is no character.
		must.Equal[any](t, "role", got["role"], strings.ToValidUTF8(hostile, "\ufffd"))
		for line := range bytes.Lines([]byte(e.stderr.String())) {
			if !json.Valid(line) {
				t.Errorf("no JSON: %s", line)
			}
		}
	}
}
