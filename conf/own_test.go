// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

const (
	secretPath = "/etc/amsagent/mongo"
	ownHosts   = "/etc/hosts"
)

// undoOwn restores the agent's own files, and returns the conflicts.
func undoOwn(t testing.TB, s *Store, own []*FileRecord) []Conflict {
	t.Helper()
	p, err := s.PlanUndo(nil, own...)
	must.OK(t, err)
	must.OK(t, p.WriteOwn())
	return p.Conflicts
}

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
		p.Edit(Target{Path: ownHosts, Kind: KindHosts, CreateMode: 0o644, Own: true}, addHost("10.0.0.1")),
	))
	return p
}

// TestOwnFiles kills a join, a second one, and a leave at each system call, after the records were saved. The next join
// finishes the first ones, and a leave restores the files from before, with the folder. An edit since is kept beside.
func TestOwnFiles(t *testing.T) {
	t.Parallel()
	for _, killed := range []string{"join", "second join", "join of the former secret", "leave", "leave of an edit"} {
		for nth := 1; ; nth++ {
			s := newTree(t)
			put(t, s, ownHosts, "127.0.0.1 localhost\n")
			second := "second\n"
			if killed == "join of the former secret" {
				second = "former\n"
				put(t, s, secretPath, second)
				must.OK(t, os.Chmod(at(s, secretPath), 0o600))
			}
			before := snapshot(t, s)
			p, f := planOwn(t, s, "first\n", nil), &faults{at: nth, err: errKilled}
			own := p.Own()
			if killed != "join" {
				must.OK(t, p.WriteOwn())
				p = planOwn(t, s, second, own)
			}
			leaves := strings.HasPrefix(killed, "leave")
			if leaves {
				var err error
				if killed == "leave of an edit" {
					put(t, s, secretPath, "edit\n")
				}
				p, err = s.PlanUndo(nil, own...)
				must.OK(t, err)
			} else {
				own = p.Own()
			}
			s.hook = f.hook
			err := p.WriteOwn()
			s.hook = nil
			if f.seen < nth {
				must.OK(t, err)
				break
			}
			must.OK(t, errors.Join(s.RemoveTemps("/etc/amsagent"), s.RemoveTemps("/etc")))
			if !leaves && nth%2 == 0 {
				p = planOwn(t, s, "third\n", own)
				own = p.Own()
				must.OK(t, p.WriteOwn())
			}
			conflicts := undoOwn(t, s, own)
			where := fmt.Sprintf("%s, killed at %d", killed, nth)
			if killed == "leave of an edit" {
				must.Equal(t, where+": the edit", content(t, s, SavedName(secretPath)), "edit\n")
				must.OK(t, os.RemoveAll(filepath.Dir(at(s, secretPath))))
			} else {
				must.Equal(t, where+": conflicts", len(conflicts), 0)
			}
			must.NoDiff(t, where, snapshot(t, s), before)
		}
	}
}

// TestMountedHosts: /etc/hosts of a container is a mount. It is edited in place, and so is its undo, also after a longer edit.
func TestMountedHosts(t *testing.T) {
	s := newTree(t)
	const found = "127.0.0.1 localhost\n10.0.0.9 " + "other\n"
	real, source := at(s, ownHosts), filepath.Join(t.TempDir(), "hosts")
	put(t, s, ownHosts, "")
	must.OK(t, os.WriteFile(source, []byte(found), 0o644))
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
	must.Equal(t, ownHosts, content(t, s, ownHosts), found+"10.0.0.1\tnode\t# added by amsagent\n")
	undoOwn(t, s, own)
	must.Equal(t, "after the leave", content(t, s, ownHosts), found)
	// An undo that is killed before it shortens the file.
	put(t, s, ownHosts, found+"\n\n\n")
	undoOwn(t, s, own)
	must.Equal(t, "after the second leave", content(t, s, ownHosts), found)
	if entries, err := os.ReadDir(filepath.Dir(real)); err != nil || len(entries) != 2 { // and systemd
		t.Errorf("%v, %v", entries, err)
	}
}
