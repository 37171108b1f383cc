// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// Verification applies to the tree that the service runs.
func TestOtherTree(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"opt/a", "opt/b"} {
		for _, sub := range []string{"conf", "webapps"} {
			must.OK(t, os.MkdirAll(filepath.Join(root, dir, sub), 0o755))
		}
		must.OK(t, os.WriteFile(filepath.Join(root, dir, "conf/jee-container.xml"), nil, 0o644))
	}
	link := func(to, name string) {
		t.Helper()
		must.OK(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		must.OK(t, os.Symlink(to, filepath.Join(root, name)))
	}
	link("a", "opt/current")
	link("/opt/b", "proc/12/cwd")
	link("/", "proc/13/cwd")
	in := &Installation{Root: root, Dir: "/opt/a"}
	for _, tt := range []struct {
		name string
		st   State
		want string // "" if not another tree
	}{
		{"nothing is known", State{}, ""},
		{"its own folder", State{WorkingDirectory: "/opt/a"}, ""},
		{"its own folder by a link", State{WorkingDirectory: "/opt/current"}, ""},
		{"a folder without a server", State{WorkingDirectory: "/"}, ""},
		{"a folder without a server, and the process works in another one", State{MainPID: 12, WorkingDirectory: "/"}, "/opt/b"},
		{"another one", State{WorkingDirectory: "/opt/b"}, "/opt/b"},
		{"the process works in another one", State{MainPID: 12}, "/opt/b"},
		{"the process works elsewhere", State{MainPID: 13}, ""},
		{"the next start is of this one", State{MainPID: 12, WorkingDirectory: "/opt/a"}, ""},
		{"no such process", State{MainPID: 14}, ""},
	} {
		if got := in.OtherTree(tt.st); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
