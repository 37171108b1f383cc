// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
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
			if got := strings.Contains(e.stdout.String(), "\x1b["); got != tt.want {
				t.Errorf("color %t, want %t:\n%s", got, tt.want, e.stdout.String())
			}
		})
	}
}

func TestLogLevels(t *testing.T) {
	for level, want := range map[string]int{"debug": 4, "info": 3, "warn": 2, "error": 1} {
		e := &testEnv{vars: map[string]string{"AMSAGENT_LOG_LEVEL": level}}
		g := loaded(t, e, "--root", t.TempDir())
		g.out.Log().Debug("x")
		g.out.Log().Info("x")
		g.out.Log().Warn("x")
		g.out.Log().Error("x")
		if n := strings.Count(e.stderr.String(), "\n"); n != want {
			t.Errorf("%s: %d lines, want %d", level, n, want)
		}
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

func TestLeaveTextStartsAServiceCommand(t *testing.T) {
	w := &output.Text{}
	leaveText(w, &bootstrap.LeaveResult{Outcome: bootstrap.OutcomeLeft, Stopped: true}, false, "/opt/ctl.sh")
	if !strings.Contains(w.String(), "does not run; start it: /opt/ctl.sh start\n") {
		t.Errorf("got:\n%s", w.String())
	}
}
