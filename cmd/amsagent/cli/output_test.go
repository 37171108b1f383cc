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
		file     string // config.yaml
		args     []string
		want     bool
	}{
		{name: "pipe"},
		{name: "terminal", terminal: true, want: true},
		{name: "dumb", terminal: true, vars: map[string]string{"TERM": "dumb"}},
		{name: "NO_COLOR", terminal: true, vars: map[string]string{"NO_COLOR": "0"}},
		{name: "NO_COLOR is empty", terminal: true, vars: map[string]string{"NO_COLOR": ""}, want: true},
		{name: "NO_COLOR over the file", terminal: true, vars: map[string]string{"NO_COLOR": "1"}, file: "color: always\n"},
		{name: "our variable over NO_COLOR", vars: map[string]string{"NO_COLOR": "1", "AMSAGENT_COLOR": "always"}, want: true},
		{name: "the flag over NO_COLOR", vars: map[string]string{"NO_COLOR": "1"}, args: []string{"--color", "always"}, want: true},
		{name: "--color never", terminal: true, args: []string{"--color", "never"}},
		{name: "--color always", args: []string{"--color", "always"}, want: true},
		{name: "--color always -o json", terminal: true, args: []string{"--color", "always", "-o", "json"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &testEnv{vars: tt.vars}
			env := e.env()
			env.IsTerminal = func(any) bool { return tt.terminal }
			args := append([]string{"config", "--offline", "--root", tree(t, map[string]string{"etc/amsagent/config.yaml": tt.file})}, tt.args...)
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
