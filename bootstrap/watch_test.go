// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

func running() serviceThat {
	return serviceThat{state: ams.State{Activity: ams.ActivityActive, StopTimeout: time.Second, Started: time.Now().Add(-time.Hour)}}
}

func watchRequest(t *testing.T) ConvergeRequest {
	req := convergeRequest(t, joinedAs(), nil)
	req.Mode = ConvergeWatch
	return req
}

// While the server runs the daemon writes none of its files: it says what differs.
func TestWatchWritesNothing(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.Service = running()
	edit(t, m, "webapps/LiveApp/WEB-INF/red5-web.properties", "db.type=mongodb", "db.type=mapdb")
	before := snapshot(t, m)
	c := converge(t, m, watchRequest(t))
	for name, now := range snapshot(t, m) {
		if before[name] != now {
			t.Errorf("%s was written", name)
		}
	}
	if len(c.Repairs) > 0 || !c.RestartNeeded {
		t.Errorf("got %+v", c)
	}
	const want = "/usr/local/antmedia/webapps/LiveApp/WEB-INF/red5-web.properties: db.type is mapdb, must be mongodb"
	if len(c.Differences) != 1 || c.Differences[0].String() != want {
		t.Errorf("differences %v", c.Differences)
	}
	if c.Node.Drift != "LiveApp: db.type is mapdb, joined with mongodb" {
		t.Errorf("the row says %q", c.Node.Drift)
	}
	// It saves its settings until it has stopped.
	m.Service = serviceThat{state: ams.State{Activity: ams.ActivityDeactivating, MainPID: 1, StopTimeout: time.Second}}
	if c := converge(t, m, watchRequest(t)); len(c.Repairs) > 0 || len(c.Differences) != 1 {
		t.Errorf("stopping: %+v", c)
	}
	// It does not run, so nothing else writes to the files: they are repaired.
	m.Service = serviceThat{state: ams.State{Activity: ams.ActivityInactive}}
	if c := converge(t, m, watchRequest(t)); ids(c.Repairs) != IDDrift || c.RestartNeeded || len(c.Differences) > 0 {
		t.Errorf("stopped: %+v", c)
	}
}

// What concerns systemd and the resolver alone is put right at once, and restarts
// nothing: a stop timeout for one application more, the agent's line in /etc/hosts
// (review real-server S2, S3).
func TestWatchWritesTheAgentsOwn(t *testing.T) {
	t.Parallel()
	named := func(m *Machine, line string) {
		put(t, m, "etc/hostname", "edge-1\n")
		put(t, m, "etc/hosts", "127.0.0.1 localhost\n"+line)
	}
	for name, tt := range map[string]struct {
		disturb func(*Machine)
		path    string
	}{
		"drop-in of an earlier agent": {func(m *Machine) { m.Program = "/usr/bin/amsagent" }, ams.DropInPath},
		"an application more": {func(m *Machine) {
			dir := filepath.Join(m.Root, ams.DefaultDir, "webapps")
			must.OK(t, os.CopyFS(filepath.Join(dir, "panel"), os.DirFS(filepath.Join(dir, "LiveApp"))))
			must.OK(t, os.Chmod(filepath.Join(dir, "panel/WEB-INF/red5-web.properties"), 0o640)) // the copy has more
		}, ams.DropInPath},
		"a name that does not resolve": {func(m *Machine) { named(m, "") }, hostsPath},
		"cloud-init wrote /etc/hosts again": {func(m *Machine) {
			named(m, "")
			converge(t, m, watchRequest(t))
			named(m, "")
		}, hostsPath},
		"our line has another address": {func(m *Machine) {
			named(m, "")
			converge(t, m, watchRequest(t))
			named(m, "10.0.1.70\tedge-1\t# added by amsagent\n")
		}, hostsPath},
	} {
		t.Run(name, func(t *testing.T) {
			m := joinedTree(t)
			m.Service = running()
			tt.disturb(m)
			c := converge(t, m, watchRequest(t))
			if ids(c.Repairs) != IDDrift || !strings.HasSuffix(c.Repairs[0].Text, ": "+tt.path) {
				t.Errorf("repairs %v", c.Repairs)
			}
			if c.RestartNeeded || len(c.Differences) > 0 {
				t.Errorf("got %+v", c)
			}
			if c := converge(t, m, watchRequest(t)); len(c.Repairs) > 0 {
				t.Errorf("again: %v", c.Repairs)
			}
		})
	}
}

// A new address is recorded, also in the drop-in; the running server is not restarted.
func TestWatchMoved(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.Service = running()
	moved := joinedAs()
	moved.Address = netip.MustParseAddr("10.0.1.9")
	req := convergeRequest(t, moved, nil)
	req.Mode = ConvergeWatch
	c := converge(t, m, req)
	if got := ids(c.Repairs); got != "AGENT-MOVED AMS-DRIFT" || !c.RestartNeeded {
		t.Errorf("repairs %q, %+v", got, c)
	}
	if c := converge(t, m, req); len(c.Repairs) > 0 || !c.RestartNeeded {
		t.Errorf("again: %+v", c)
	}
	// A start of the server, by whom ever, ends it.
	s := running()
	s.state.Started = time.Now().Add(time.Minute)
	m.Service = s
	if c := converge(t, m, req); c.RestartNeeded {
		t.Errorf("after a restart: %+v", c)
	}
}

// Before a start the metadata service is not asked, and a server that is about to start needs no restart.
func TestBeforeStart(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActivating, StopTimeout: time.Second}}
	edit(t, m, "webapps/LiveApp/WEB-INF/red5-web.properties", "db.type=mongodb", "db.type=mapdb")
	change(t, m, func(s *State) { s.RestartPending = true })
	req := convergeRequest(t, joinedAs(), nil)
	req.Mode, req.Address = ConvergeBeforeStart, ""
	req.Identify = func(context.Context) (metadata.Instance, error) {
		t.Error("it asked who this machine is")
		return metadata.Instance{}, nil
	}
	c := converge(t, m, req)
	if ids(c.Repairs) != IDDrift || len(c.Warnings) > 0 || c.RestartNeeded {
		t.Errorf("got %+v", c)
	}
	s, err := loadState(m.store())
	if err != nil || s.RestartPending || s.Address != "10.0.1.7" || s.InstanceID != "i-1" {
		t.Errorf("state %+v, %v", s, err)
	}
	if c := converge(t, m, req); len(c.Repairs) > 0 {
		t.Errorf("again: %v", c.Repairs)
	}
	// A join or a leave starts the server with the lock held.
	change(t, m, func(s *State) { s.Phase = PhaseJoining })
	lock, err := m.lock(t.Context())
	must.OK(t, err)
	defer func() { _ = lock.Unlock() }()
	if c := converge(t, m, req); c.Phase != PhaseJoining {
		t.Errorf("got %+v", c)
	}
}

// An operator's own stop timeout holds as long as it is there: the drop-in has none beside it, and the agent's own after it.
func TestStopTimeoutStays(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	in, err := m.open()
	must.OK(t, err)
	own := ams.StopTimeout(len(in.Apps))
	after := func(effective time.Duration, err error) time.Duration {
		t.Helper()
		m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, StopTimeout: effective}, err: err}
		converge(t, m, watchRequest(t))
		is, rerr := ams.ReadDropIn(m.Root)
		if rerr != nil || !is.Ours || is.HostAddress == "" {
			t.Fatalf("%+v, %v", is, rerr)
		}
		return is.StopTimeout
	}
	for _, step := range []struct {
		name      string
		effective time.Duration
		want      time.Duration
	}{
		{"the vendor's unit", 10 * time.Second, own},
		{"the agent's alone", own, own},
		{"an operator's, longer", 10 * time.Minute, 0},
		{"the same, the agent's is gone", 10 * time.Minute, 0},
		{"removed again", 10 * time.Second, own},
		{"an operator's, shorter and later", 5 * time.Second, own},
		{"endless", 0, 0},
	} {
		if got := after(step.effective, nil); got != step.want {
			t.Errorf("%s: %s, want %s", step.name, got, step.want)
		}
	}
	// A copy of an operator's value in the drop-in does not outlive the operator's.
	must.OK(t, m.store().WriteFile(ams.DropInPath, ams.DropIn(netip.MustParseAddr("10.0.1.7"), 10*time.Minute, ""), 0o644, 0o755))
	if got := after(10*time.Minute, nil); got != own {
		t.Errorf("a copied value: %s, want %s", got, own)
	}
}

// The drop-in stays as it is while the service manager does not answer.
func TestStopTimeoutUnknown(t *testing.T) {
	t.Parallel()
	for _, effective := range []time.Duration{10 * time.Second, 10 * time.Minute, 0} {
		m := joinedTree(t)
		m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, StopTimeout: effective}}
		converge(t, m, watchRequest(t))
		before, err := ams.ReadDropIn(m.Root)
		must.OK(t, err)
		m.Service = serviceThat{err: errors.New("the bus is away")}
		for _, mode := range []ConvergeMode{ConvergeWatch, convergeByCommand, ConvergeBeforeStart} {
			req := watchRequest(t)
			req.Mode = mode
			c := converge(t, m, req)
			if after, err := ams.ReadDropIn(m.Root); err != nil || after != before || ids(c.Repairs) != "" {
				t.Errorf("%s, %s: %+v became %+v: %v, %v", effective, mode, before, after, c.Repairs, err)
			}
		}
	}
}

// A person made it standalone with the vendor's script. That is left so, before a
// start as well; with another release it is what an upgrade looks like.
func TestMadeStandaloneByHand(t *testing.T) {
	t.Parallel()
	standalone := func(m *Machine) {
		fresh := ownTree(t, "3.0", "3.0.3")
		for name, text := range treeFiles(t, fresh) {
			_, content, _ := strings.Cut(text, "\n")
			must.OK(t, os.WriteFile(filepath.Join(m.Root, ams.DefaultDir, name), []byte(content), 0o644))
		}
	}
	for _, mode := range []ConvergeMode{ConvergeWatch, ConvergeBeforeStart, convergeByCommand} {
		m := joinedTree(t)
		standalone(m)
		before := treeFiles(t, m)
		req := watchRequest(t)
		req.Mode = mode
		m.Service = running()
		c := converge(t, m, req)
		if !c.Standalone || len(c.Repairs)+len(c.Differences) > 0 || c.RestartNeeded {
			t.Errorf("%s: %+v", mode, c)
		}
		for name, was := range before {
			if treeFiles(t, m)[name] != was {
				t.Errorf("%s: %s was written", mode, name)
			}
		}
	}
	m := joinedTree(t)
	standalone(m)
	change(t, m, func(s *State) { s.Release = "2.17.1" })
	req := watchRequest(t)
	req.Mode = ConvergeBeforeStart
	if c := converge(t, m, req); c.Standalone || ids(c.Repairs) != IDDrift {
		t.Errorf("an upgrade: %+v", c)
	}
	if s, err := loadState(m.store()); err != nil || s.Release != "3.0.3" {
		t.Errorf("state %+v, %v", s, err)
	}
	// One file that is a node's is no consistent standalone server.
	m = joinedTree(t)
	edit(t, m, "webapps/LiveApp/WEB-INF/red5-web.properties", "db.type=mongodb", "db.type=mapdb")
	if c := converge(t, m, req); c.Standalone {
		t.Errorf("one application: %+v", c)
	}
}

// calledService calls a function for each action.
type calledService struct {
	serviceThat
	reload, stop, start func()
}

func (s calledService) Reload(context.Context) error { s.reload(); return nil }
func (s calledService) Stop(context.Context) error   { s.stop(); return nil }
func (s calledService) Start(context.Context) error  { s.start(); return nil }

// A convergence that is killed before it has put an upgrade's files right leaves a state
// that does not name the new release yet: else the files would be a person's.
func TestReleaseIsNotedLast(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	change(t, m, func(s *State) { s.Release = "2.17.1" })
	must.OK(t, os.Remove(filepath.Join(m.Root, ams.DropInPath)))
	release := func() string {
		s, err := loadState(m.store())
		must.OK(t, err)
		return s.Release
	}
	during := ""
	m.Service = calledService{serviceThat: serviceThat{state: ams.State{Activity: ams.ActivityInactive, StopTimeout: time.Second}}, reload: func() { during = release() }}
	req := watchRequest(t)
	req.Mode = ConvergeBeforeStart
	if c := converge(t, m, req); ids(c.Repairs) != IDDrift {
		t.Fatalf("%+v", c)
	}
	if after := release(); during != "2.17.1" || after != "3.0.3" {
		t.Errorf("the state said %q while the files were written, and %q after that", during, after)
	}
}

// A server that is stopping is waited for, and one that is starting is stopped, too: otherwise a node would be marked left while
// its server runs. A server that is no longer a node's is not stopped.
func TestStopServer(t *testing.T) {
	t.Parallel()
	is := func(all ...ams.Activity) []ams.Activity { return all }
	for _, tt := range []struct {
		states []ams.Activity
		left   bool
		stops  int
		want   error
	}{
		{is(ams.ActivityActive, ams.ActivityInactive), false, 1, nil},
		{is(ams.ActivityActivating, ams.ActivityInactive), false, 1, nil},
		{is(ams.ActivityDeactivating, ams.ActivityInactive), false, 1, nil},
		{is(ams.ActivityInactive), false, 0, nil},
		{is(ams.ActivityFailed), false, 0, nil},
		{is(ams.ActivityActive), true, 0, nil},
		// A command that returns before the server has ended, or although it does not.
		{is(ams.ActivityActive, ams.ActivityActive, ams.ActivityDeactivating, ams.ActivityFailed), false, 1, nil},
		{is(ams.ActivityActive), false, 1, ErrServing},
		{is(ams.ActivityActive, ams.ActivityUnknown), false, 1, nil},
		{is(ams.ActivityActive, ams.ActivityUnknown, ams.ActivityUnknown, ams.ActivityActive), false, 1, ErrServing},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := joinedTree(t)
			if tt.left {
				must.OK(t, os.Remove(filepath.Join(m.Root, statePath)))
			}
			s := &ending{states: tt.states}
			m.Service = s
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := m.StopServer(ctx); !errors.Is(err, tt.want) || s.stops != tt.stops || len(s.states) > 1 {
				t.Errorf("%v, left %t: stopped %d times, %v", tt.states, tt.left, s.stops, err)
			}
		})
	}
}

// ending is a service that goes from one state to the next each time it is asked.
type ending struct {
	ams.None
	states []ams.Activity
	stops  int
}

func (s *ending) Stop(context.Context) error { s.stops++; return nil }

func (s *ending) State(context.Context) (ams.State, error) {
	is := s.states[0]
	if len(s.states) > 1 {
		s.states = s.states[1:]
	}
	return ams.State{Activity: is}, nil
}

// A file that the server left half written is reported, and repaired before the next start.
func TestTornBeforeStart(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.Service = running()
	app := filepath.Join(m.Root, ams.DefaultDir, "webapps/LiveApp/WEB-INF/red5-web.properties")
	whole, err := os.ReadFile(app)
	must.OK(t, err)
	must.OK(t, os.WriteFile(app, []byte("#Sat Nov 21 00:34:56 UTC 2026\nsettings.hls"), 0o640))
	c := converge(t, m, watchRequest(t))
	if len(c.Torn) != 1 || len(c.Differences) != 1 || c.Differences[0].Old != "half written or empty" || !strings.Contains(ids(c.Warnings), IDTorn) {
		t.Errorf("got %+v", c)
	}
	req := watchRequest(t)
	req.Mode = ConvergeBeforeStart
	converge(t, m, req)
	if now, err := os.ReadFile(app); err != nil || string(now) != string(whole) {
		t.Errorf("not whole again: %v\n%s", err, now)
	}
	// It may have been a person's edit, without a newline at its end.
	if kept, err := os.ReadFile(conf.SavedName(app)); err != nil || !strings.HasSuffix(string(kept), "settings.hls") {
		t.Errorf("what was there is not kept: %v\n%s", err, kept)
	}
	must.OK(t, errors.Join(os.Remove(conf.SavedName(app)), os.WriteFile(app, []byte("#Sat Nov 21 00:34:56 UTC 2026\nsettings.x=1"), 0o640)))
	if res := leaveOffline(t, m); !strings.Contains(ids(res.Warnings), IDTorn) {
		t.Errorf("a leave says %+v", res)
	}
	if kept, err := os.ReadFile(conf.SavedName(app)); err != nil || !strings.HasSuffix(string(kept), "settings.x=1") {
		t.Errorf("what was there is not kept by a leave: %v\n%s", err, kept)
	}
}

// The panel makes an application whose file all users can read. Its settings are as joined and the next start corrects the mode:
// status reports no drift.
func TestPermissionsAreNoDrift(t *testing.T) {
	t.Parallel()
	const mongo = "mongodb://u:hunter22@10.0.2.4/"
	m := ownTree(t, "3.0", "3.0.3")
	joinOffline(t, m, mongo, "10.0.1.7")
	app := filepath.Join(m.Root, ams.DefaultDir, "webapps/LiveApp/WEB-INF/red5-web.properties")
	drift := func() []string {
		var s Status
		m.viewFiles(m.store(), StatusRequest{Mongo: mustTarget(t, mongo), Valve: ValveKeep}, &State{Phase: PhaseJoined, Address: "10.0.1.7"}, ams.State{}, &s)
		return s.Files.Drift
	}
	must.OK(t, os.Chmod(app, 0o644))
	if got := drift(); len(got) > 0 {
		t.Errorf("permissions: %v", got)
	}
	edit(t, m, "webapps/LiveApp/WEB-INF/red5-web.properties", "db.type=mongodb", "db.type=mapdb")
	if got := drift(); len(got) != 1 {
		t.Errorf("a value: %v", got)
	}
}

// The file with MongoDB's address loses its world-readable mode once it holds a password.
func TestMongoFileBecomesPrivate(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the file has to be root's")
	}
	m := ownTree(t, "3.0", "3.0.3")
	put(t, m, MongoPath, "10.0.2.4\n")
	name := filepath.Join(m.Root, MongoPath)
	must.OK(t, os.Chmod(name, 0o644))
	joinOffline(t, m, "mongodb://u:hunter22@10.0.2.4/", "10.0.1.7")
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// The service manager calls the agent before it starts the server.
func TestStartServer(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	edit(t, m, "webapps/LiveApp/WEB-INF/red5-web.properties", "db.type=mongodb", "db.type=mapdb")
	var c *Convergence
	m.Service = calledService{serviceThat: serviceThat{state: ams.State{Activity: ams.ActivityInactive, StopTimeout: time.Second}}, start: func() {
		req := watchRequest(t)
		req.Mode = ConvergeBeforeStart
		c = converge(t, m, req)
	}}
	if err := m.StartServer(t.Context()); err != nil || c == nil || ids(c.Repairs) != IDDrift {
		t.Errorf("%+v, %v", c, err)
	}
	m.Service = calledService{serviceThat: running(), start: func() { t.Error("a server that runs was started") }}
	if err := m.StartServer(t.Context()); err != nil {
		t.Error(err)
	}
	m.Service = calledService{serviceThat: serviceThat{err: errors.New("the bus is away")}, start: func() { t.Error("started blindly") }}
	if err := m.StartServer(t.Context()); err == nil {
		t.Error("no error")
	}
}

// A server that is stopped is waited for without a question to MongoDB, which on many
// machines would be searches without end.
func TestStoppedServerIsAwaited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := &Machine{Service: serviceThat{state: ams.State{Activity: ams.ActivityInactive}}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := m.awaitAlive(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not run") {
			t.Errorf("%v", err)
		}
		for _, st := range []ams.State{{}, {Activity: ams.ActivityActivating}, {Activity: ams.ActivityActive}, {Activity: ams.ActivityFailed}} {
			m.Service = serviceThat{state: st}
			began := time.Now()
			if got, err := m.awaitAlive(t.Context()); err != nil || got.Activity != st.Activity || time.Since(began) > 0 {
				t.Errorf("%s: %v, %v", st.Activity, got, err)
			}
		}
	})
}
