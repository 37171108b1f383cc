// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

var errCut = errors.New("canceled")

// cutRestart is a server during whose next restart the command is canceled.
type cutRestart struct {
	stopping
	cut bool
}

func (s *cutRestart) Restart(ctx context.Context) error {
	err := s.stopping.Restart(ctx)
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

// What the server saves over a leave that is interrupted in its restart is given back by the
// next one, and by the one after a join.
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
			service := &cutRestart{cut: true}
			if tt.stuck {
				saves, service.cut, service.stopErr = 2, false, errCut // the second restart saves, too
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
			if got := property(t, m, live, "db.type"); got != "mongodb" {
				t.Fatalf("db.type is %s: the server saved nothing", got)
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

// hooked is a server that calls a function first. Its error replaces a start or a restart.
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

func (s *hooked) Restart(ctx context.Context) error { return s.do(ctx, "restart", s.stopping.Restart) }
func (s *hooked) Start(ctx context.Context) error   { return s.do(ctx, "start", s.stopping.Start) }

func (s *hooked) do(ctx context.Context, call string, do func(context.Context) error) error {
	if err := s.hook(s, call); err != nil {
		s.did = append(s.did, call)
		return err
	}
	return do(ctx)
}

// However often a leave is interrupted before the server runs with its former files, the next one knows that it must.
func TestInterruptedLeaveStartsTheServer(t *testing.T) {
	for did, stops := range map[string]bool{"restart restart restart": false, "restart start start": true} {
		t.Run(did, func(t *testing.T) {
			t.Parallel() // each waits for a server that stays up
			before, m := treeFiles(t, ownTree(t, "3.0", "3.0.3")), joinedTree(t)
			joined, err := loadState(m.store())
			must.OK(t, err)
			service := &hooked{stopping: stopping{save: func() {}}, hook: func(s *hooked, call string) error {
				if call == "state" || len(s.did) == 2 {
					return nil
				}
				s.stopped = stops
				return errCut
			}}
			m.Service = service
			for range 2 {
				if _, err := m.Leave(t.Context(), LeaveRequest{Now: true}); !errors.Is(err, errCut) {
					t.Fatal(err)
				}
				s, err := loadState(m.store())
				must.OK(t, err)
				want := State{
					Version: stateVersion, Phase: PhaseLeaving, RestartPending: true, WasRunning: true, Since: s.Since,
					InstanceID: joined.InstanceID, Address: joined.Address, Role: joined.Role, Group: joined.Group,
				}
				if record, err := m.store().Record(); err != nil || record == nil || !s.Equal(&want) {
					t.Errorf("the record: %v, %v; the state: %+v; want %+v", record != nil, err, s, want)
				}
			}
			res, err := m.Leave(t.Context(), LeaveRequest{Now: true})
			if got := strings.Join(service.did, " "); err != nil || got != did || !res.Restarted || res.Stopped {
				t.Errorf("%v: %s: %+v", err, got, res)
			}
			if left := settled(t, m); !maps.Equal(treeFiles(t, m), before) || left[filepath.Join(m.Root, statePath)] != "" || left[filepath.Join(m.Root, undoPath)] != "" {
				t.Errorf("the files are not those before the join: %v", slices.Sorted(maps.Keys(left)))
			}
		})
	}
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
	for _, dir := range []string{StateDir, ams.DefaultDir + "/conf"} {
		_, err := unix.InotifyAddWatch(fd, filepath.Join(m.Root, dir), unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_DELETE)
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
	want := []string{"state.json", "jee-container.xml", "undo.json", "restart", "state.json", "-undo.json", "-drain.json", "-state.json"}
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
	service := &hooked{hook: func(*hooked, string) error { return os.MkdirAll(journal, 0o700) }}
	m.Service = service
	_, err = m.Leave(t.Context(), LeaveRequest{Now: true})
	if _, ok := errors.AsType[*FailedError](err); !ok || len(service.did) > 0 {
		t.Fatalf("%v: %v", err, service.did)
	}
	must.OK(t, os.Remove(journal))
	now, err := loadState(m.store())
	if d := cmp.Diff(before, treeFiles(t, m)); err != nil || d != "" || !now.Equal(joined) {
		t.Errorf("%v; the state: %+v; want %+v (-before +after):\n%s", err, now, joined, d)
	}
}

// What a person had written is kept beside the file that a leave gives back. The server, killed
// while it saves, takes nothing of that away.
func TestKeptEditOutlivesATornFile(t *testing.T) {
	t.Parallel()
	const live = "webapps/LiveApp/WEB-INF/red5-web.properties"
	m := ownTree(t, "3.0", "3.0.3")
	before := treeFiles(t, m)
	joinOffline(t, m, "10.0.2.4", "10.0.1.7")
	real := filepath.Join(m.Root, ams.DefaultDir, live)
	edit := []byte("db.host=\\uZZZZ\n") // no editor of settings reads it
	must.OK(t, os.WriteFile(real, edit, 0o644))
	saves := 1
	m.Service = &stopping{save: func() {
		if saves--; saves < 0 {
			return
		}
		if err := os.WriteFile(real, []byte("#Sat Nov 21 00:34:56 UTC 2026\ndb.ty"), 0o644); err != nil {
			t.Error(err)
		}
	}}
	if res, err := m.Leave(t.Context(), LeaveRequest{Now: true}); err != nil {
		t.Fatalf("%v: %+v", err, res)
	}
	if kept, err := os.ReadFile(conf.SavedName(real)); err != nil || string(kept) != string(edit) {
		t.Errorf("%v: kept is %q", err, kept)
	}
	after := treeFiles(t, m)
	delete(after, "/"+conf.SavedName(live))
	delete(after, "/"+conf.SavedName(live)+"-1") // what was torn
	if !maps.Equal(after, before) {
		t.Error("the files are not those before the join")
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
		"a join":     func() error { return j.save(PhaseJoined, false) },
		"a rollback": j.saveUndoing,
		"its end":    j.restoreFound,
	} {
		err := save()
		if s, lerr := loadState(m.store()); err != nil || lerr != nil || s == nil || !s.Standalone {
			t.Errorf("%s: %v, %v: %+v", what, err, lerr, s)
		}
	}
}

// stuckOnce is a server that is not stopped by the first commands to stop.
type stuckOnce struct {
	stopping
	times int
}

func (s *stuckOnce) Stop(ctx context.Context) error {
	if s.stopErr = nil; s.times > 0 {
		s.times, s.stopErr = s.times-1, errCut
	}
	return s.stopping.Stop(ctx)
}

// What the server saves in the restart of a rollback that could not stop it is not what is left.
func TestRollbackThatCannotStop(t *testing.T) {
	t.Parallel()
	const live = "webapps/LiveApp/WEB-INF/red5-web.properties"
	for name, tt := range map[string]struct {
		joined       bool // before this join
		stuck, saves int
		did, says    string
	}{
		"a first join":               {false, 1, 2, "stop restart stop start", "runs again as before"},
		"a second join":              {true, 1, 2, "stop restart stop start", "runs again as before"},
		"a first join, none saved":   {false, 1, 0, "stop restart", "runs again as before"},
		"a second join, none saved":  {true, 1, 0, "stop restart", "runs again as before"},
		"a first join, never stops":  {false, 2, 2, "stop restart stop restart", "could not be stopped"},
		"a second join, never stops": {true, 2, 2, "stop restart stop restart", "could not be stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits for a server that stays up
			m := ownTree(t, "3.0", "3.0.3")
			original := treeFiles(t, m)
			f := &facts{mode: conf.ModeStandalone, service: ams.State{Activity: ams.ActivityActive}, address: ams.Address{Addr: netip.MustParseAddr("10.0.1.7")}}
			var err error
			if tt.joined {
				joinOffline(t, m, "10.0.2.9", "10.0.1.7")
				f.state, f.mode = &State{Phase: PhaseJoined, Address: "10.0.1.7"}, conf.ModeCluster
				if f.record, err = m.store().Record(); err != nil {
					t.Fatal(err)
				}
			}
			before := treeFiles(t, m)
			if f.install, err = m.open(); err != nil {
				t.Fatal(err)
			}
			// It answers nothing: the rollback goes on without it.
			if f.client, err = cluster.Connect(t.Context(), mustTarget(t, "mongodb://127.0.0.1:1"), cluster.Options{Timeout: time.Millisecond}); err != nil {
				t.Fatal(err)
			}
			defer closeClient(t.Context(), f.client)
			req := JoinRequest{Mongo: mustTarget(t, "10.0.3.3"), Valve: ValveKeep}
			j := &joiner{Machine: m, store: m.store(), result: &JoinResult{Restarted: true}, req: req, wasRunning: true, facts: f}
			if f.plan, err = j.replan(req); err == nil {
				err = j.commit(t.Context())
			}
			must.OK(t, err)
			real, failed := saved(t, m, live)
			service := &stuckOnce{times: tt.stuck}
			service.save = func() {
				if tt.saves--; tt.saves >= 0 {
					if err := os.WriteFile(real, failed, 0o644); err != nil {
						t.Error(err)
					}
				}
			}
			m.Service = service
			said := j.rollBack(t.Context(), "a reason")
			if did := strings.Join(service.did, " "); did != tt.did || !strings.Contains(said, tt.says) {
				t.Errorf("%s: %s", did, said)
			}
			s, err := loadState(m.store())
			switch {
			case err != nil:
				t.Error(err)
			case tt.stuck == 1:
				if !maps.Equal(treeFiles(t, m), before) {
					t.Error("the files are not those before the join")
				}
				if tt.joined != (s != nil) {
					t.Errorf("the state is %+v", s)
				}
			case s == nil || !s.RestartPending:
				t.Errorf("the state is %+v: nobody knows of the restart", s)
			}
			// The undo record that is there leads to the beginning.
			leaveOffline(t, m)
			if !maps.Equal(treeFiles(t, m), original) {
				t.Error("a leave after it does not give the files back")
			}
			if _, err := os.Stat(filepath.Join(m.Root, undoPath)); err == nil {
				t.Error("the undo record is left")
			}
		})
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

// A server that somebody stops, and one whose files cannot be given back for a second time: the leave is not over.
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
			if failed, ok := errors.AsType[*FailedError](err); !ok || !strings.Contains(failed.State, "run the same command again") || record != nil {
				t.Errorf("%v, %+v: the record: %v", err, res, record)
			}
			must.OK(t, errors.Join(os.Remove(filepath.Dir(real)), os.Rename(filepath.Dir(real)+".away", filepath.Dir(real))))
			if _, err := m.Leave(t.Context(), LeaveRequest{Now: true}); err != nil || !maps.Equal(treeFiles(t, m), before) {
				t.Errorf("the next leave: %v", err)
			}
		})
	}
}
