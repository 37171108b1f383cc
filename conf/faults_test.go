// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
)

var (
	errKilled = errors.New("the process is dead")
	// errStays is a place that is broken: each later call on the same name fails as well.
	errStays = fmt.Errorf("%w, again and again", unix.EIO)
)

// faults lets one call fail, or all from one on: then the process is dead, and
// nothing of it reaches the disk any more.
type faults struct {
	mu   sync.Mutex
	seen int
	at   int // which call; 0 means no call
	err  error
	name string // of that call
	// first, if not nil, begins the count: the call for which it is true fails.
	first func(call, name string) bool
	begun bool
}

func (f *faults) hook(call, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.first != nil && !f.begun {
		if f.begun = f.first(call, name); f.begun {
			return unix.EIO
		}
		return nil
	}
	f.seen++
	switch {
	case f.at == 0 || f.seen < f.at:
		return nil
	case f.seen == f.at:
		f.name = name
		return f.err
	case errors.Is(f.err, errKilled), errors.Is(f.err, errStays) && name == f.name:
		return f.err
	}
	return nil
}

// faultRoot is a folder for many trees, in memory if there is room: an fsync
// proves nothing here.
func faultRoot(t *testing.T) func() *Store {
	t.Helper()
	parent := t.TempDir()
	if dir, err := os.MkdirTemp("/dev/shm", "conf"); err == nil { //nolint:usetesting // in memory: an fsync proves nothing here
		parent = dir
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	n := 0
	return func() *Store {
		_ = os.RemoveAll(filepath.Join(parent, fmt.Sprint(n)))
		n++
		return newTreeIn(t, filepath.Join(parent, fmt.Sprint(n)))
	}
}

// TestFaults lets each call of a commit, of a rollback and of a sample of the recoveries fail by EIO, once and for good, by
// ENOSPC and by the end of the process. One recovery makes all files old or all new, and leaves nothing.
func TestFaults(t *testing.T) {
	t.Parallel()
	tree := faultRoot(t)
	s := tree()
	standalone := snapshot(t, s)
	join(t, s, "10.0.0.1")
	joined := snapshot(t, s)
	kinds := []error{errKilled, unix.EIO, unix.ENOSPC}
	recoveryKinds := append(slices.Clone(kinds), errStays)
	kinds = must.Sample(kinds, recoveryKinds)
	step, killStep, recoveryStep, rollbackStep := 1, must.Sample(9, 1), must.Sample(3, 1), must.Sample(9, 1)
	if testing.Short() {
		step, killStep, recoveryStep, rollbackStep = 7, 63, 21, 21
	}

	// settled checks what one recovery without faults comes to.
	settled := func(s *Store, where string) {
		t.Helper()
		s.hook = nil
		if _, err := s.Recover(); err != nil {
			t.Fatalf("%s: recovery: %v", where, err)
		}
		after := snapshot(t, s)
		if !cmp.Equal(after, standalone) && !cmp.Equal(after, joined) {
			t.Fatalf("%s: neither all old nor all new; against joined (-want +got):\n%s", where, cmp.Diff(joined, after))
		}
		left, err := s.List(stateDir)
		must.OK(t, err)
		for _, name := range left {
			if name != undoName {
				t.Fatalf("%s: left behind: %s", where, name)
			}
		}
		record, err := s.Record()
		if err != nil || cmp.Equal(after, joined) != (record != nil) {
			t.Fatalf("%s: the record is %v, %v", where, record != nil, err)
		}
	}
	// kept checks what a commit promises with its result, before any recovery.
	kept := func(s *Store, op string, result error, where string) {
		t.Helper()
		s.hook = nil
		if _, unfinished := errors.AsType[*UnfinishedError](result); unfinished {
			return
		}
		want := joined
		if (op == "join") != (result == nil) {
			want = standalone
		}
		if d := cmp.Diff(want, snapshot(t, s)); d != "" || s.Interrupted() {
			t.Fatalf("%s: interrupted %v, (-want +got):\n%s", where, s.Interrupted(), d)
		}
	}
	// prepare gives a tree on which op is to run.
	prepare := func(op string) *Store {
		s := tree()
		if op == "leave" {
			join(t, s, "10.0.0.1")
		}
		return s
	}
	// The plan is made without faults: it changes nothing.
	commit := func(s *Store, op string, f *faults) error {
		if op == "join" {
			p := planCluster(t, s, "10.0.0.1")
			s.hook = f.hook
			return p.Commit("join")
		}
		p := planUndo(t, s)
		s.hook = f.hook
		return p.CommitUndo("leave")
	}
	total := 0
	for _, op := range []string{"join", "leave"} {
		// The rename of the last target, and the first fsync after the renames, begin
		// a rollback.
		renames := 0
		triggers := map[string]func() func(call, name string) bool{
			"commit": nil,
			"abandoned at the second staged file": func() func(string, string) bool {
				writes := 0
				return func(call, name string) bool {
					if call == "write" && strings.HasSuffix(name, stagedSuffix) {
						writes++
					}
					return writes == 2
				}
			},
			"rollback from the third rename": func() func(string, string) bool {
				renames = 0
				return func(call, name string) bool {
					if call == "renameat" && strings.HasSuffix(name, stagedSuffix) {
						renames++
					}
					return renames == 3
				}
			},
			"rollback from a folder's fsync": func() func(string, string) bool {
				renamed := false
				return func(call, name string) bool {
					renamed = renamed || call == "renameat" && strings.HasSuffix(name, stagedSuffix)
					return renamed && call == "fsync"
				}
			},
		}
		fault := func(phase string, at int, kind error) *faults {
			f := &faults{at: at, err: kind}
			if trigger := triggers[phase]; trigger != nil {
				f.first = trigger()
			}
			return f
		}
		for phase := range triggers {
			for _, kind := range kinds {
				for at := 1; ; at += step {
					s := prepare(op)
					f := fault(phase, at, kind)
					err := commit(s, op, f)
					total++
					if f.seen < at {
						break // there is no such call
					}
					where := fmt.Sprintf("%s, %s, call %d: %v (%v)", op, phase, at, kind, err)
					if !errors.Is(kind, errKilled) {
						kept(s, op, err, where)
					}
					if _, unfinished := errors.AsType[*UnfinishedError](err); unfinished && kind == unix.EIO { // it passes
						t.Fatalf("%s: half done", where)
					}
					settled(s, where)
					if at%10 == 1 {
						if err := commit(s, op, &faults{}); err != nil {
							t.Fatalf("%s: the next run: %v", where, err)
						}
					}
				}
			}
			// A recovery, after the end of the process in the commit or in its rollback, is itself cut short.
			every, sample := recoveryStep, 0
			if triggers[phase] != nil {
				every = rollbackStep
			}
			for killed := 1 + killStep/2; ; killed += killStep {
				f := fault(phase, killed, errKilled)
				if _ = commit(prepare(op), op, f); f.seen < killed {
					break
				}
				for _, kind := range recoveryKinds {
					sample++ // so that each kind meets each call after some kill
					for at := 1 + sample%every; ; at += every {
						s := prepare(op)
						_ = commit(s, op, fault(phase, killed, errKilled))
						f := &faults{at: at, err: kind}
						s.hook = f.hook
						_, err := s.Recover()
						total++
						if f.seen < at {
							break
						}
						where := fmt.Sprintf("%s, %s, killed at %d, recovery, call %d: %v (%v)", op, phase, killed, at, kind, err)
						if s.hook = nil; err == nil && s.Interrupted() {
							t.Fatalf("%s: it reports success, and the journal is there", where)
						}
						settled(s, where)
					}
				}
			}
		}
	}
	t.Logf("%d runs", total)
	if total < 100 {
		t.Errorf("only %d runs: the calls are not seen", total)
	}
}

// TestFaultsOfAPlan lets each call fail that a plan makes for a file which is to hold a password. There is no plan of it then:
// it would be made with the rights of a new file, or stay readable by all.
func TestFaultsOfAPlan(t *testing.T) {
	const secret, half = "hunter22", javaDate + "db.ty"
	owner := os.Geteuid()
	if owner == 0 {
		owner = 4711 // what is not known must not look like the owner
	}
	edit := func(p *Plan, path string) error {
		return p.Edit(Target{Path: path, Kind: KindProperties, CreateMode: 0o644, Private: true, Owner: owner}, set("db.password", secret))
	}
	for name, tt := range map[string]struct {
		path   string
		joined bool
		now    string // what is in the file by now; "": as it was
		leave  bool
	}{
		"first":               {path: appPath},
		"first, by a link":    {path: rootPath},
		"again":               {path: appPath, joined: true},
		"again, half written": {path: appPath, joined: true, now: half},
		"leave":               {path: appPath, joined: true, leave: true},
		"leave, half written": {path: appPath, joined: true, leave: true, now: half},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // what is half written is waited for
				s := newTree(t)
				target, err := s.Follow(tt.path)
				must.OK(t, err)
				must.OK(t, errors.Join(os.Chown(at(s, target), owner, -1), os.Chmod(at(s, target), 0o644)))
				if tt.joined {
					p := s.NewPlan(nil)
					must.OK(t, errors.Join(edit(p, tt.path), p.Commit("join")))
				}
				if tt.now != "" {
					put(t, s, target, tt.now)
				}
				record, err := s.Record()
				must.OK(t, err)
				plan := func(f *faults) (*Plan, error) {
					s.hook = f.hook
					defer func() { s.hook = nil }()
					if tt.leave {
						return s.PlanUndo(record)
					}
					p := s.NewPlan(record)
					return p, edit(p, tt.path)
				}
				all := &faults{}
				p, err := plan(all)
				must.OK(t, err)
				// The copy of a half written file comes before it.
				if got := p.files[len(p.files)-1]; got.Before.Path != tt.path || !tt.leave && got.Mode != 0o640 || strings.Contains(string(got.After), secret) == tt.leave {
					t.Fatalf("%s %v: %q", got.Before.Path, got.Mode, got.After)
				}
				if all.seen < 2 {
					t.Fatalf("only %d calls are seen", all.seen)
				}
				for at := 1; at <= all.seen; at++ {
					for _, kind := range []error{unix.EIO, errStays} {
						p, err := plan(&faults{at: at, err: kind})
						if !errors.Is(err, unix.EIO) || files.Refused(err) {
							t.Errorf("call %d, %v: %v", at, kind, err)
						}
						if p != nil && len(p.files) > 0 {
							t.Errorf("call %d, %v: there is a plan of %v", at, kind, p.ChangedPaths())
						}
					}
				}
			})
		})
	}
}
