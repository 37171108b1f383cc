// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
)

// Only root may change the program that the server's unit calls as root.
func TestProgramOfTheDropIn(t *testing.T) {
	dir := tree(t, map[string]string{"amsagent": "", "open/amsagent": ""})
	own, open := filepath.Join(dir, "amsagent"), filepath.Join(dir, "open/amsagent")
	must.OK(t, errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(open), 0o777)))
	installed := "" // unless it is here
	if _, err := os.Stat(installedProgram); err == nil {
		installed = installedProgram
	}
	for _, c := range []struct {
		runs, root, want string
		refused          bool
	}{
		{own, "", own, false},
		{own, dir, installedProgram, false},
		{open, "", installed, true},
		{filepath.Join(dir, "removed"), "", filepath.Join(dir, "removed"), false}, // replaced while it runs
	} {
		if got, err := unitProgram(c.root, func() (string, error) { return c.runs, nil }); got != c.want || (err != nil) != c.refused {
			t.Errorf("%s below %q: %q, %v, want %q", c.runs, c.root, got, err, c.want)
		}
	}
}

func TestOnSystemd(t *testing.T) {
	for _, c := range []struct {
		name          string
		m             *bootstrap.Machine
		with, without bool
	}{
		{"its unit", &bootstrap.Machine{Service: ams.NewSystemd(ams.DefaultUnit)}, true, true},
		{"a command", &bootstrap.Machine{Service: &ams.Command{}}, true, false},
		{"no service", &bootstrap.Machine{Service: ams.None{}}, false, false},
		{"another tree", &bootstrap.Machine{Root: t.TempDir(), Service: &ams.Command{}}, false, false},
	} {
		if with, without := onSystemd(c.m, true), onSystemd(c.m, false); with != c.with || without != c.without {
			t.Errorf("%s: %v with systemd, %v without", c.name, with, without)
		}
	}
	m := &bootstrap.Machine{Service: ams.NewSystemd(ams.DefaultUnit)}
	if handleDaemon(m, true); m.Daemon != nil {
		t.Error("an image starts a daemon")
	}
}
