// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
)

var errCut = errors.New("canceled")

// cutStart is a server during whose next start the command is canceled.
type cutStart struct {
	stopping
	cut bool
}

func (s *cutStart) Start(ctx context.Context) error {
	err := s.stopping.Start(ctx)
	if s.cut {
		s.cut, err = false, errCut
	}
	return err
}

// scriptedTree is a node that the vendor's script made, and that joined after that.
func scriptedTree(t *testing.T) *Machine {
	t.Helper()
	m := ownTree(t, "3.0", "3.0.3")
	joinOffline(t, m, "10.0.9.9", "10.0.1.7")
	if err := os.Remove(filepath.Join(m.Root, undoPath)); err != nil { // the script leaves none
		t.Fatal(err)
	}
	return m
}

// A leave is interrupted in its restart and the server saves its old settings: the next leave restores the files, also after
// another join.
func TestInterruptedLeave(t *testing.T) {
	t.Parallel()
	const live = "webapps/LiveApp/WEB-INF/red5-web.properties"
	for name, tt := range map[string]struct {
		scripted, join, stuck bool
		next                  LeaveRequest
	}{
		"a join":                      {next: LeaveRequest{Now: true}},
		"a join, offline":             {next: LeaveRequest{Offline: true}},
		"a join, joined again":        {join: true, next: LeaveRequest{Offline: true}},
		"a stop that fails":           {stuck: true, next: LeaveRequest{Now: true}},
		"the script's, and it fails":  {scripted: true, stuck: true, next: LeaveRequest{Now: true}},
		"the script's":                {scripted: true, next: LeaveRequest{Now: true}},
		"the script's, offline":       {scripted: true, next: LeaveRequest{Offline: true}},
		"the script's, joined again":  {scripted: true, join: true, next: LeaveRequest{Offline: true}},
		"the script's, joined online": {scripted: true, join: true, next: LeaveRequest{Now: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits for a server that stays up
			m := ownTree(t, "3.0", "3.0.3")
			before := treeFiles(t, m)
			if tt.scripted {
				m = scriptedTree(t)
			}
			joinOffline(t, m, "10.0.2.4", "10.0.1.7")
			real, joined := saved(t, m, live)
			saves := 1
			service := &cutStart{cut: true}
			if tt.stuck {
				service.cut, service.stopErr = false, errCut
			}
			service.save = func() {
				if saves--; saves >= 0 {
					if err := os.WriteFile(real, joined, 0o644); err != nil {
						t.Error(err)
					}
				}
			}
			m.Service = service
			if _, err := m.Leave(t.Context(), LeaveRequest{Now: true}); !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			service.stopErr = nil
			if tt.join {
				joinOffline(t, m, "10.0.2.5", "10.0.1.7")
			}
			res, err := m.Leave(t.Context(), tt.next)
			must.OK(t, err)
			b, err := os.ReadFile(real)
			if err != nil || strings.Contains(string(b), "mongodb") || strings.Contains(string(b), "10.0.") {
				t.Errorf("%v: after the next leave, %+v:\n%s", err, res, b)
			}
			if after := treeFiles(t, m); !tt.scripted && !maps.Equal(after, before) {
				t.Error("the files are not those before the join")
			}
			for _, path := range []string{statePath, undoPath} {
				if _, err := os.Stat(filepath.Join(m.Root, path)); err == nil {
					t.Errorf("%s is left", path)
				}
			}
		})
	}
}

// hooked is a server that calls a function first. Its error replaces a stop or a start.
type hooked struct {
	stopping
	hook func(s *hooked, call string) error
}

func (s *hooked) State(ctx context.Context) (ams.State, error) {
	if err := s.hook(s, "state"); err != nil {
		return ams.State{}, err
	}
	return s.stopping.State(ctx)
}

func (s *hooked) Stop(ctx context.Context) error  { return s.do(ctx, "stop", s.stopping.Stop) }
func (s *hooked) Start(ctx context.Context) error { return s.do(ctx, "start", s.stopping.Start) }

func (s *hooked) do(ctx context.Context, call string, do func(context.Context) error) error {
	if err := s.hook(s, call); err != nil {
		s.did = append(s.did, call)
		return err
	}
	return do(ctx)
}

// A leave may be killed at each moment: what the next one needs is written before, and removed last.
func TestOrderOfALeave(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.Service = &hooked{stopping: stopping{save: func() {}}, hook: func(_ *hooked, call string) error {
		if call == "state" {
			return nil
		}
		return os.WriteFile(filepath.Join(m.Root, StateDir, call), nil, 0o600)
	}}
	must.OK(t, m.store().WriteFile(drainPath, []byte("{}"), 0o600, 0o700))
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must.OK(t, err)
	defer unix.Close(fd)
	// The server's files are opened for writing before, which changes nothing.
	for dir, events := range map[string]uint32{StateDir: unix.IN_CLOSE_WRITE, ams.DefaultDir + "/conf": 0} {
		_, err := unix.InotifyAddWatch(fd, filepath.Join(m.Root, dir), unix.IN_MOVED_TO|unix.IN_DELETE|events)
		must.OK(t, err)
	}
	_, err = m.Leave(t.Context(), LeaveRequest{Now: true})
	must.OK(t, err)
	var got []string
	events := make([]byte, 64<<10)
	n, err := unix.Read(fd, events)
	must.OK(t, err)
	for events = events[:n]; len(events) > 0; {
		size := unix.SizeofInotifyEvent + binary.NativeEndian.Uint32(events[12:])
		name := string(bytes.TrimRight(events[unix.SizeofInotifyEvent:size], "\x00"))
		if binary.NativeEndian.Uint32(events[4:])&unix.IN_DELETE != 0 {
			name = "-" + name
		}
		// The files of the commit itself are another test's.
		if !strings.Contains(name, ".amsagent-") && !strings.Contains(name, "journal") && name != "red5.properties" {
			got = append(got, name)
		}
		events = events[size:]
	}
	want := []string{"state.json", "stop", "jee-container.xml", "-undo.json", "start", "state.json", "state.json", "-drain.json", "-state.json"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A leave that can change no file removes what it wrote before.
func TestLeaveThatChangesNothing(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	before, journal := treeFiles(t, m), filepath.Join(m.Root, StateDir, "journal")
	joined, err := loadState(m.store())
	must.OK(t, err)
	service := &hooked{stopping: stopping{save: func() {}}, hook: func(*hooked, string) error { return os.MkdirAll(journal, 0o700) }}
	m.Service = service
	_, err = m.Leave(t.Context(), LeaveRequest{Now: true})
	if _, ok := errors.AsType[*FailedError](err); !ok || strings.Join(service.did, " ") != "stop start" {
		t.Fatalf("%v: %v", err, service.did)
	}
	must.OK(t, os.Remove(journal))
	now, err := loadState(m.store())
	if d := cmp.Diff(before, treeFiles(t, m)); err != nil || d != "" || !now.Equal(joined) {
		t.Errorf("%v; the state: %+v; want %+v (-before +after):\n%s", err, now, joined, d)
	}
}

// A join that comes before the next leave, and its rollback, do not forget that an
// application's settings may be a node's still.
func TestInterruptedLeaveIsRemembered(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	in, err := m.open()
	must.OK(t, err)
	j := &joiner{Machine: m, store: m.store(), result: &JoinResult{}, facts: &facts{install: in, state: &State{Phase: PhaseLeaving, Standalone: true}}}
	for what, save := range map[string]func() error{
		"a join":     func() error { return j.save(State{Phase: PhaseJoined}) },
		"a rollback": func() error { return j.saveUndoing(true) },
		"its end":    j.restoreFound,
	} {
		err := save()
		if s, lerr := loadState(m.store()); err != nil || lerr != nil || s == nil || !s.Standalone {
			t.Errorf("%s: %v, %v: %+v", what, err, lerr, s)
		}
	}
}

// saved is the path of a file of the installation, and what is in it.
func saved(t *testing.T, m *Machine, name string) (real string, text []byte) {
	t.Helper()
	real = filepath.Join(m.Root, ams.DefaultDir, name)
	text, err := os.ReadFile(real)
	must.OK(t, err)
	return real, text
}

// The server is being stopped by another process, or its files cannot be restored a second time: the leave is not complete.
func TestLeaveUntilTheLastSave(t *testing.T) {
	t.Parallel()
	const live = "webapps/LiveApp/WEB-INF/red5-web.properties"
	for name, tt := range map[string]struct {
		ending, broken bool
	}{
		"it is being stopped": {ending: true}, "it is being stopped, and its file cannot be read": {ending: true, broken: true},
		"it is restarted, and its file cannot be read": {broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := ownTree(t, "3.0", "3.0.3")
			before := treeFiles(t, m)
			joinOffline(t, m, "10.0.2.4", "10.0.1.7")
			real, joined := saved(t, m, live)
			saves := 1
			service := &stopping{save: func() {
				if saves--; saves < 0 {
					return
				}
				err := os.WriteFile(real, joined, 0o644)
				if tt.broken {
					err = errors.Join(err, os.Rename(filepath.Dir(real), filepath.Dir(real)+".away"), os.WriteFile(filepath.Dir(real), nil, 0o644))
				}
				if err != nil {
					t.Error(err)
				}
			}}
			if tt.ending {
				service.ending = 5
			}
			m.Service = service
			res, err := m.Leave(t.Context(), LeaveRequest{Now: true})
			_, record := os.Stat(filepath.Join(m.Root, undoPath))
			if !tt.broken {
				if err != nil || record == nil || !maps.Equal(treeFiles(t, m), before) {
					t.Errorf("%v, %+v: the record: %v", err, res, record)
				}
				return
			}
			if failed, ok := errors.AsType[*FailedError](err); !ok || !strings.Contains(failed.State, "still those of a cluster node") || record != nil {
				t.Errorf("%v, %+v: the record: %v", err, res, record)
			}
			must.OK(t, errors.Join(os.Remove(filepath.Dir(real)), os.Rename(filepath.Dir(real)+".away", filepath.Dir(real))))
			if _, err := m.Leave(t.Context(), LeaveRequest{Now: true}); err != nil || !maps.Equal(treeFiles(t, m), before) {
				t.Errorf("the next leave: %v", err)
			}
		})
	}
}
