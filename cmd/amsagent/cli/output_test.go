// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

func TestColor(t *testing.T) {
	for _, tt := range []struct {
		name     string
		terminal bool
		vars     map[string]string
		args     []string
		want     bool
	}{
		{"pipe", false, nil, nil, false},
		{"terminal", true, nil, nil, true},
		{"dumb", true, map[string]string{"TERM": "dumb"}, nil, false},
		{"NO_COLOR", true, map[string]string{"NO_COLOR": "1"}, nil, false},
		{"--color never", true, nil, []string{"--color", "never"}, false},
		{"--color always", false, nil, []string{"--color", "always"}, true},
		{"--color always -o json", true, nil, []string{"--color", "always", "-o", "json"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &testEnv{vars: tt.vars}
			env := e.env()
			env.IsTerminal = func(any) bool { return tt.terminal }
			args := append([]string{"config", "--offline", "--root", t.TempDir()}, tt.args...)
			if code := Main(args, env); code != 0 {
				t.Fatalf("exit %d: %s", code, e.stderr.String())
			}
			must.Equal(t, "color in\n"+e.stdout.String(), strings.Contains(e.stdout.String(), "\x1b["), tt.want)
		})
	}
}

func TestOSEnv(t *testing.T) {
	env := OS()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "f"))
	must.OK(t, err)
	defer f.Close()
	if env.IsTerminal(f) || env.IsTerminal((*os.File)(nil)) || env.IsTerminal(io.Discard) {
		t.Error("a file is no terminal")
	}
	if master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0); err == nil {
		defer master.Close()
		if !env.IsTerminal(master) {
			t.Error("a pseudo terminal is a terminal")
		}
	}
}
