// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

// bounded is a server whose manager does nothing for a context that has ended.
type bounded struct{ hooked }

func (s *bounded) Reload(ctx context.Context) error {
	s.did = append(s.did, "reload")
	return ctx.Err()
}

func (s *bounded) Start(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.hooked.Start(ctx)
}

func newBounded(found ams.State) *bounded {
	s := &bounded{}
	s.save, s.found = func() {}, found
	s.hook = func(*hooked, string) error { return nil }
	return s
}

// pendingTree returns a tree whose server was stopped by an interrupted command of this boot.
func pendingTree(t *testing.T, change func(*State)) *Machine {
	t.Helper()
	m := joinedTree(t)
	put(t, m, "/proc/sys/kernel/random/boot_id", "boot-1\n")
	s, err := loadState(m.store())
	must.OK(t, err)
	s.Phase, s.Start, s.Boot, s.Since = PhaseJoining, true, "boot-1", time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	change(s)
	must.OK(t, saveState(m.store(), *s))
	return m
}

// joinerOf is a join of a machine under its state.
func joinerOf(t *testing.T, m *Machine, service ams.State) *joiner {
	t.Helper()
	in, err := m.open()
	must.OK(t, err)
	record, err := m.store().Record()
	must.OK(t, err)
	state, err := loadState(m.store())
	must.OK(t, err)
	client, err := cluster.Connect(t.Context(), mustTarget(t, "mongodb://127.0.0.1:1"), cluster.Options{Timeout: time.Millisecond})
	must.OK(t, err)
	j := &joiner{
		Machine: m, store: m.store(), result: &JoinResult{}, req: JoinRequest{Mongo: mustTarget(t, testMongo), Valve: ValveKeep},
		facts: &facts{
			install: in, record: record, state: state, mode: conf.ModeCluster, service: service, client: client,
			address: ams.Address{Addr: netip.MustParseAddr("10.0.1.7")},
		},
	}
	j.facts.plan, err = j.replan(j.req)
	must.OK(t, err)
	return j
}

var isDown = ams.State{Activity: ams.ActivityInactive}

// isStartPending reports whether the state has a pending start of the server.
func isStartPending(t *testing.T, m *Machine) bool {
	t.Helper()
	s, err := loadState(m.store())
	must.OK(t, err)
	return s != nil && s.Start
}

// A leave that ends between stop and start starts the server, with the unit as it is now.
func TestLeaveStartsTheServerAfterItsEnd(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	service := newBounded(ams.State{})
	m.Service = service
	ctx, cancel := context.WithCancel(t.Context())
	m.Progress = func(said string) {
		if strings.HasPrefix(said, "gave back") {
			cancel()
		}
	}
	_, err := m.Leave(ctx, LeaveRequest{Now: true})
	if did := strings.Join(service.did, " "); err == nil || did != "stop reload start" || isStartPending(t, m) {
		t.Errorf("%v: %s, start pending: %v", err, did, isStartPending(t, m))
	}
}

// reloads is whether the service manager has read its files before the start.
type reloads struct {
	bounded
	failed int
}

func (s *reloads) Reload(ctx context.Context) error {
	err := s.bounded.Reload(ctx)
	if err != nil {
		s.failed++
	}
	return err
}

// A join that ends in its stop starts the server with its former drop-in.
func TestJoinReloadsAfterItsEnd(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	j := joinerOf(t, m, ams.State{Activity: ams.ActivityActive})
	ctx, cancel := context.WithCancel(t.Context())
	service := &reloads{bounded: *newBounded(ams.State{})}
	service.hook = func(_ *hooked, call string) error {
		if call == "stop" {
			cancel()
			return ctx.Err()
		}
		return nil
	}
	m.Service = service
	j.wasRunning = true
	err := j.change(ctx, true)
	if did := strings.Join(service.did, " "); err == nil || !strings.HasPrefix(did, "stop reload start") || service.failed > 0 {
		t.Errorf("%v: %s, %d reloads failed", err, did, service.failed)
	}
}

// A join that fails before the change keeps the state that has to start the server.
func TestFailedJoinKeepsTheOwedStart(t *testing.T) {
	t.Parallel()
	m := pendingTree(t, func(*State) {})
	m.Service = newBounded(isDown)
	j := joinerOf(t, m, isDown)
	_ = j.failed(t.Context(), stepWrite, errCut)
	if !isStartPending(t, m) {
		t.Error("the start is forgotten")
	}
}

// A server that runs again has no pending start left for the next command.
func TestNoStartIsOwedTwice(t *testing.T) {
	t.Parallel()
	t.Run("join", func(t *testing.T) {
		t.Parallel()
		m := pendingTree(t, func(s *State) { s.WasJoined = true })
		service := newBounded(isDown)
		m.Service = service
		j := joinerOf(t, m, isDown)
		j.wasRunning = true
		live := filepath.Join(m.Root, ams.DefaultDir, liveFile)
		must.OK(t, errors.Join(os.Remove(live), syscall.Mkfifo(live, 0o644)))
		err := j.change(t.Context(), true)
		if err == nil || !slices.Contains(service.did, "start") || isStartPending(t, m) {
			t.Errorf("%v: %v, start pending: %v", err, service.did, isStartPending(t, m))
		}
	})
	t.Run("leave", func(t *testing.T) {
		t.Parallel()
		m := pendingTree(t, func(s *State) { s.Phase = PhaseLeaving })
		journal := filepath.Join(m.Root, StateDir, "journal")
		service := newBounded(isDown)
		service.hook = func(*hooked, string) error { return os.MkdirAll(journal, 0o700) }
		m.Service = service
		_, err := m.Leave(t.Context(), LeaveRequest{Now: true})
		must.OK(t, os.Remove(journal))
		if err == nil || !slices.Contains(service.did, "start") || isStartPending(t, m) {
			t.Errorf("%v: %v, start pending: %v", err, service.did, isStartPending(t, m))
		}
	})
}

// A server that an operator started and stopped since stays down in the next leave, too.
func TestLeaveKeepsAnOperatorsStop(t *testing.T) {
	t.Parallel()
	m := pendingTree(t, func(s *State) { s.Phase = PhaseLeaving })
	service := newBounded(ams.State{Activity: ams.ActivityInactive, Started: time.Now().Add(-10 * time.Second)})
	service.stopped = true
	m.Service = service
	res, err := m.Leave(t.Context(), LeaveRequest{Now: true})
	must.OK(t, err)
	if slices.Contains(service.did, "start") || !res.Stopped {
		t.Errorf("%v, stopped: %v", service.did, res.Stopped)
	}
}

// A join stops a server that starts only for a change, and starts it again if the change fails.
func TestJoinWhileTheServerStarts(t *testing.T) {
	t.Parallel()
	starts := ams.State{Activity: ams.ActivityActivating, Sub: "start-pre"}
	t.Run("nothing changes", func(t *testing.T) {
		t.Parallel()
		m := joinedTree(t)
		service := newBounded(starts)
		asked := 0
		service.hook = func(s *hooked, _ string) error {
			if asked++; asked > 1 {
				s.found = ams.State{} // it runs
			}
			return nil
		}
		m.Service = service
		j := joinerOf(t, m, starts)
		must.OK(t, j.change(t.Context(), false))
		if len(service.did) > 0 || !j.facts.service.Running() {
			t.Errorf("%v, %s", service.did, j.facts.service)
		}
	})
	for name, st := range map[string]ams.State{"it fails": starts, "it fails while the server crashes": {Activity: ams.ActivityActivating, Sub: "auto-restart"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := joinedTree(t)
			service := newBounded(st)
			m.Service = service
			j := joinerOf(t, m, st)
			live := filepath.Join(m.Root, ams.DefaultDir, liveFile)
			must.OK(t, errors.Join(os.Remove(live), syscall.Mkfifo(live, 0o644)))
			if err := j.change(t.Context(), true); err == nil || !slices.Contains(service.did, "start") {
				t.Errorf("%v: %v", err, service.did)
			}
		})
	}
}

// Before a start the files are recovered in every phase.
func TestBeforeStartRecovers(t *testing.T) {
	t.Parallel()
	for _, phase := range []Phase{PhaseJoining, PhaseLeaving} {
		m := pendingTree(t, func(s *State) { s.Phase = phase })
		put(t, m, StateDir+"/journal", "{")
		req := watchRequest(t)
		req.Mode = ConvergeBeforeStart
		if _, err := m.Converge(t.Context(), req); err == nil {
			t.Errorf("%s: the journal was not read", phase)
		}
	}
}

// A pending start reloads the unit's files first.
func TestOwedStartReloads(t *testing.T) {
	t.Parallel()
	m := pendingTree(t, func(s *State) { s.Phase = PhaseLeaving })
	service := newBounded(isDown)
	m.Service = service
	converge(t, m, watchRequest(t))
	if did := strings.Join(service.did, " "); did != "reload start" {
		t.Errorf("%s", did)
	}
}

// The plan after the stop keeps the drop-in's stop timeout: the service's state is from before the drop-in.
func TestSecondPlanKeepsTheStopTimeout(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.Service = newBounded(ams.State{})
	in, err := m.open()
	must.OK(t, err)
	want := ams.StopTimeout(len(in.Apps))
	was := want + time.Minute
	put(t, m, ams.DropInPath, string(ams.DropIn(netip.MustParseAddr("10.0.1.7"), was, "")))
	j := joinerOf(t, m, ams.State{Activity: ams.ActivityActive, StopTimeout: was})
	must.OK(t, j.facts.plan.WriteOwn())
	must.OK(t, j.change(t.Context(), true))
	if v, err := ams.ReadDropIn(m.Root); err != nil || v.StopTimeout != want {
		t.Errorf("%v: %s, want %s", err, v.StopTimeout, want)
	}
}

// The drop-in, which has the stop's time, stays until a stop that outlasts its command has ended.
func TestNothingIsPutBackWhileTheServerStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := newBounded(ams.State{})
		service.hook = func(s *hooked, call string) error {
			if call == "stop" {
				s.ending = 5
				return context.DeadlineExceeded
			}
			return nil
		}
		m := &Machine{Service: service}
		_, err := m.change(t.Context(), serverChange{
			managed: true, ran: true, start: true, save: func(bool) error { return nil },
			back: func() error {
				if service.ending > 0 {
					t.Error("the server is still stopping")
				}
				return nil
			},
		})
		if did := strings.Join(service.did, " "); err == nil || did != "stop start" {
			t.Errorf("%v: %s", err, did)
		}
	})
}

// A file with a password that other users may read is protected while the server runs: its contents stay.
func TestPasswordIsProtectedWhileTheServerRuns(t *testing.T) {
	t.Parallel()
	const mongo = "mongodb://u:hush@10.0.2.4/"
	for name, do := range map[string]func(*testing.T, *Machine){
		"the daemon": func(t *testing.T, m *Machine) {
			req := watchRequest(t)
			req.Mongo = mustTarget(t, mongo)
			if c := converge(t, m, req); ids(c.Repairs) != IDDrift || len(c.Differences) > 0 || c.RestartNeeded {
				t.Errorf("%+v", c)
			}
		},
		"a join": func(t *testing.T, m *Machine) {
			j := joinerOf(t, m, running().state)
			j.req.Mongo = mustTarget(t, mongo)
			var err error
			j.facts.plan, err = j.replan(j.req)
			must.OK(t, err)
			must.OK(t, j.change(t.Context(), false))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := joinedTree(t)
			joinOffline(t, m, mongo, "10.0.1.7")
			m.Service = running()
			live := filepath.Join(m.Root, ams.DefaultDir, liveFile)
			must.OK(t, os.Chmod(live, 0o644))
			was, err := os.Stat(live)
			must.OK(t, err)
			do(t, m)
			is, err := os.Stat(live)
			must.OK(t, err)
			if is.Mode().Perm() != 0o640 || !os.SameFile(was, is) {
				t.Errorf("mode %o, the same file: %v", is.Mode(), os.SameFile(was, is))
			}
		})
	}
}

// A join that gave up the lock leaves a server alone that another command may have stopped.
func TestJoinWithoutTheLockStartsNothing(t *testing.T) {
	t.Parallel()
	m := pendingTree(t, func(*State) {})
	service := newBounded(isDown)
	m.Service = service
	j := joinerOf(t, m, running().state)
	var err error
	j.locked, err = m.lock(t.Context())
	must.OK(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := j.proveUnlocked(ctx); err == nil {
		t.Fatal("it proved something")
	}
	j.startAfterRefusal(ctx)
	if len(service.did) > 0 {
		t.Errorf("%v", service.did)
	}
}

// A join that cannot note its stop stops nothing, and reports no restart: the daemon tries again soon.
func TestUnnotedStopIsNoRestart(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	up := running().state
	service := newBounded(up)
	m.Service = service
	j := joinerOf(t, m, up)
	file := filepath.Join(m.Root, statePath)
	must.OK(t, errors.Join(os.Remove(file), os.Mkdir(file, 0o755)))
	if err := j.change(t.Context(), true); err == nil || slices.Contains(service.did, "stop") || j.result.Restarted {
		t.Errorf("%v: %v, restarted: %v", err, service.did, j.result.Restarted)
	}
}

// The daemon looks at the server just before it writes: a name server may be slow.
func TestServerStartsDuringAConvergence(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	service := newBounded(isDown)
	m.Service = service
	m.Interfaces = func() ([]ams.Interface, error) {
		service.found = running().state
		return nil, nil
	}
	edit(t, m, liveFile, "db.type=mongodb", "db.type=mapdb")
	if c := converge(t, m, watchRequest(t)); len(c.Differences) != 1 || property(t, m, liveFile, "db.type") != "mapdb" {
		t.Errorf("%+v", c)
	}
}

// A command that cannot write its state starts the server all the same that another one stopped.
func TestOwedStartWithoutAState(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"join", "leave"} {
		m := pendingTree(t, func(s *State) { s.WasJoined = true })
		service := newBounded(isDown)
		service.hook = func(*hooked, string) error { // no file can replace a folder
			return os.MkdirAll(filepath.Join(m.Root, StateDir, ".state.json.amsagent-tmp/x"), 0o755)
		}
		service.stopped = true
		m.Service = service
		var err error
		if command == "leave" {
			_, err = m.Leave(t.Context(), LeaveRequest{Now: true})
		} else {
			j := joinerOf(t, m, isDown)
			j.locked = &conf.Lock{}
			must.OK(t, service.hook(nil, ""))
			err = j.change(t.Context(), true)
			j.startAfterRefusal(t.Context())
		}
		if err == nil || !slices.Contains(service.did, "start") {
			t.Errorf("%s: %v: %v", command, err, service.did)
		}
	}
}
