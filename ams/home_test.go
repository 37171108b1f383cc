// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
)

func TestUnitHomes(t *testing.T) {
	p := map[string]any{
		"Environment":      []string{"AMS_HOST_ADDRESS=10.0.0.1", "ANTMEDIA_HOME=/opt/a/"},
		"WorkingDirectory": "-/opt/b",
		"ExecStart":        [][]any{{"/bin/bash", []string{"/bin/bash", "/opt/c/start.sh", "-m", "cluster"}, false}, {"short"}},
	}
	got := unitHomes(p)
	want := []Home{
		{"/opt/a", "ANTMEDIA_HOME"}, {"/opt/b", "WorkingDirectory="}, {"/bin", "ExecStart="}, {"/opt/c", "ExecStart="},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := unitHomes(map[string]any{"WorkingDirectory": "!", "ExecStart": "text"}); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

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
	link("/opt/b/ant-media-server.jar", "proc/13/fd/7")
	in := &Installation{Root: root, Dir: "/opt/a", Real: filepath.Join(root, "opt/a")}
	for _, tt := range []struct {
		name string
		st   State
		want string // "" if not another tree
	}{
		{"nothing is known", State{}, ""},
		{"its own folder", State{Homes: []Home{{Dir: "/opt/a", Source: "WorkingDirectory="}}}, ""},
		{"its own folder by a link", State{Homes: []Home{{Dir: "/opt/current", Source: "WorkingDirectory="}}}, ""},
		{"folders without a server", State{Homes: []Home{{Dir: "/", Source: "WorkingDirectory="}, {Dir: "/bin", Source: "ExecStart="}}}, ""},
		{"another one", State{Homes: []Home{{Dir: "/bin"}, {Dir: "/opt/b", Source: "WorkingDirectory="}}}, "/opt/b"},
		{"both", State{Homes: []Home{{Dir: "/opt/b"}, {Dir: "/opt/a"}}}, ""},
		{"both, and the process works in another one", State{MainPID: 12, Homes: []Home{{Dir: "/opt/b"}, {Dir: "/opt/a"}}}, "/opt/b"},
		{"the process works in another one", State{MainPID: 12}, "/opt/b"},
		{"the process has the jar of another one open", State{MainPID: 13}, "/opt/b"},
		{"the next start is of this one", State{MainPID: 12, Homes: []Home{{Dir: "/opt/a"}}}, ""},
		{"no such process", State{MainPID: 14}, ""},
	} {
		home, other := in.OtherTree(root, tt.st)
		if other != (tt.want != "") || home.Dir != tt.want {
			t.Errorf("%s: %v, %v; want %q", tt.name, home, other, tt.want)
		}
	}
	for pid, want := range map[int]string{0: "", 12: "/opt/b", 13: "/opt/b", 14: ""} {
		if home, other := in.ProcessOfOther(root, pid); other != (want != "") || home.Dir != want {
			t.Errorf("process %d: %v, %v; want %q", pid, home, other, want)
		}
	}
}

func TestMayRun(t *testing.T) {
	root := t.TempDir()
	home := filepath.Join(root, DefaultDir)
	must.OK(t, os.MkdirAll(filepath.Join(home, "webapps"), 0o755))
	in := &Installation{Root: root, Dir: DefaultDir}
	is := func(what string, want bool) {
		t.Helper()
		if got := in.MayRun(root); got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	process := func(pid, cwd string) {
		t.Helper()
		dir := filepath.Join(root, "proc", pid)
		must.OK(t, errors.Join(os.MkdirAll(dir, 0o755), os.Symlink(cwd, filepath.Join(dir, "cwd"))))
	}
	if os.Geteuid() == 0 { // root sees all processes of this machine
		is("a tree", false)
		sleep := exec.Command("sleep", "60")
		sleep.Dir = home
		must.OK(t, sleep.Start())
		is("a tree in which something runs", true)
		_, _ = sleep.Process.Kill(), sleep.Wait()
	}
	must.OK(t, os.MkdirAll(filepath.Join(root, "proc/sys"), 0o755))
	if os.Geteuid() == 0 {
		is("an image, with an empty /proc", false)
	}
	process("1", "/")
	process("7", DefaultDir+"/webapps")
	is("others alone", false)
	process("12", DefaultDir)
	is("the server", true)
}
