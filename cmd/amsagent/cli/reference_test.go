// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestDescribe: every command that has a help text is described, with the same flags and the same exit codes.
func TestDescribe(t *testing.T) {
	r := Describe()
	seen := map[string]CommandReference{}
	for _, c := range r.Commands {
		if _, twice := seen[c.Path]; twice {
			t.Errorf("%s is there twice", c.Path)
		}
		seen[c.Path] = c
	}
	files, err := os.ReadDir("testdata/help")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".txt")
		if !ok || !strings.HasPrefix(name, "amsagent") {
			continue
		}
		path := strings.ReplaceAll(name, "_", " ")
		c, ok := seen[path]
		if !ok {
			t.Errorf("%s has a help text and is not described", path)
			continue
		}
		b, err := os.ReadFile("testdata/help/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		flags, exits := 0, 0
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "      --") || strings.HasPrefix(line, "  -") && strings.Contains(line, ", --") {
				flags++
			}
		}
		for _, fl := range append(c.Flags, c.Global...) {
			if !strings.Contains(text, "--"+fl.Name) {
				t.Errorf("%s: its help has no --%s", path, fl.Name)
			}
		}
		if got := len(c.Flags) + len(c.Global); got != flags {
			t.Errorf("%s: %d flags, its help has %d", path, got, flags)
		}
		_, status, _ := strings.Cut(text, "EXIT STATUS\n")
		for line := range strings.Lines(status) {
			if strings.TrimSpace(line) != "" {
				exits++
			}
		}
		for _, e := range c.Exits {
			if !strings.Contains(status, fmt.Sprintf("  %-4d %s\n", e.Code, e.Meaning)) {
				t.Errorf("%s: its help has no exit status %d", path, e.Code)
			}
		}
		if len(c.Exits) != exits {
			t.Errorf("%s: %d exit codes, its help has %d", path, len(c.Exits), exits)
		}
		delete(seen, path)
	}
	for path := range seen {
		t.Errorf("%s is described and has no help text", path)
	}
	if len(r.Settings) != len(settingsTable()) || len(r.Errors) != len(errorTable())+2 {
		t.Error("settings or errors are missing")
	}
}
