// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

const (
	secretPath = "/etc/amsagent/mongo"
	ownHosts   = "/etc/hosts"
)

// planOwn plans the agent's own files, as a join does.
func planOwn(t testing.TB, s *Store, text string, own []*FileRecord) *Plan {
	t.Helper()
	p := s.NewPlan(nil, own...)
	must.OK(t, errors.Join(
		p.Edit(Target{Path: secretPath, Kind: KindWhole, CreateMode: 0o600, Own: true}, func(src []byte) ([]Span, error) {
			if string(src) == text {
				return nil, nil
			}
			return []Span{{Anchor: "whole", Old: src, New: []byte(text)}}, nil
		}),
		p.Edit(Target{Path: ownHosts, Kind: KindHosts, CreateMode: 0o644, Own: true}, func(src []byte) ([]Span, error) {
			return AddHost(src, netip.MustParseAddr("10.0.0.1"), "node"), nil
		}),
	))
	return p
}

// TestOwnFiles kills a join, a second one, and a leave at each system call, after the records were saved. The next join
// finishes the first ones, and a leave restores the files from before, with the folder. An edit since is kept beside.
func TestOwnFiles(t *testing.T) {
	t.Parallel()
	temps := func(s *Store) {
		t.Helper()
		must.OK(t, errors.Join(s.RemoveTemps("/etc/amsagent"), s.RemoveTemps("/etc")))
	}
	for _, killed := range []string{"join", "second join", "join of the former secret", "leave", "leave of an edit"} {
		for at := 1; ; at++ {
			s := newTree(t)
			must.OK(t, os.WriteFile(filepath.Join(s.Root, ownHosts), []byte("127.0.0.1 localhost\n"), 0o644))
			second := "second\n"
			if killed == "join of the former secret" {
				second = "former\n"
				must.OK(t, errors.Join(os.Mkdir(filepath.Join(s.Root, "/etc/amsagent"), 0o755), os.WriteFile(filepath.Join(s.Root, secretPath), []byte(second), 0o600)))
			}
			before := snapshot(t, s)
			p, f := planOwn(t, s, "first\n", nil), &faults{at: at, err: errKilled}
			own := p.Own()
			if killed != "join" {
				must.OK(t, p.WriteOwn())
				p = planOwn(t, s, second, own)
			}
			leaves := strings.HasPrefix(killed, "leave")
			if leaves {
				var err error
				if killed == "leave of an edit" {
					must.OK(t, os.WriteFile(filepath.Join(s.Root, secretPath), []byte("edit\n"), 0o600))
				}
				p, err = s.PlanUndo(nil, own...)
				must.OK(t, err)
			} else {
				own = p.Own()
			}
			s.hook = f.hook
			err := p.WriteOwn()
			s.hook = nil
			if f.seen < at {
				must.OK(t, err)
				break
			}
			temps(s)
			if !leaves && at%2 == 0 {
				p = planOwn(t, s, "third\n", own)
				own = p.Own()
				must.OK(t, p.WriteOwn())
			}
			p, err = s.PlanUndo(nil, own...)
			must.OK(t, err)
			must.OK(t, p.WriteOwn())
			if killed == "leave of an edit" {
				real := filepath.Join(s.Root, SavedName(secretPath))
				if b, err := os.ReadFile(real); string(b) != "edit\n" {
					t.Errorf("killed at %d: the edit is %q, %v", at, b, err)
				}
				must.OK(t, os.RemoveAll(filepath.Dir(real)))
				p.Conflicts = nil
			}
			if d := cmp.Diff(before, snapshot(t, s)); d != "" || len(p.Conflicts) > 0 {
				t.Errorf("%s, killed at %d: %v (-want +got):\n%s", killed, at, p.Conflicts, d)
			}
		}
	}
}

// TestMountedHosts: /etc/hosts of a container is a mount. It is edited in place, and so is its undo, also after a longer edit.
func TestMountedHosts(t *testing.T) {
	s := newTree(t)
	const found = "127.0.0.1 localhost\n10.0.0.9 " + "other\n"
	real, source := filepath.Join(s.Root, ownHosts), filepath.Join(t.TempDir(), "hosts")
	must.OK(t, errors.Join(os.WriteFile(real, nil, 0o644), os.WriteFile(source, []byte(found), 0o644)))
	if err := unix.Mount(source, real, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() { must.OK(t, unix.Unmount(real, unix.MNT_DETACH)) })
	if err := os.Rename(real, real+"~"); !errors.Is(err, syscall.EBUSY) {
		t.Fatalf("it is no mount point: %v", err)
	}
	p := planOwn(t, s, "secret\n", nil)
	own := p.Own()
	must.OK(t, p.WriteOwn())
	if b, err := os.ReadFile(source); err != nil || string(b) != found+"10.0.0.1\tnode\t# added by amsagent\n" {
		t.Errorf("%q, %v", b, err)
	}
	undo, err := s.PlanUndo(nil, own...)
	must.OK(t, err)
	must.OK(t, undo.WriteOwn())
	if b, err := os.ReadFile(source); err != nil || string(b) != found {
		t.Errorf("left with %q, %v", b, err)
	}
	// An undo that is killed before it shortens the file.
	must.OK(t, os.WriteFile(source, []byte(found+"\n\n\n"), 0o644))
	undo, err = s.PlanUndo(nil, own...)
	must.OK(t, err)
	must.OK(t, undo.WriteOwn())
	if b, err := os.ReadFile(source); err != nil || string(b) != found {
		t.Errorf("left again with %q, %v", b, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(real)); err != nil || len(entries) != 2 { // and systemd
		t.Errorf("%v, %v", entries, err)
	}
}
