// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

// joinerOf is a join before its first change. MongoDB is away.
func joinerOf(t *testing.T, m *Machine, mongo, address string) *joiner {
	t.Helper()
	f := &facts{mode: conf.ModeCluster, address: ams.Address{Addr: netip.MustParseAddr(address)}}
	var err error
	f.install, err = m.open()
	must.OK(t, err)
	f.service, err = m.Service.State(t.Context())
	must.OK(t, err)
	must.OK(t, checkRecord(m.store(), f))
	f.client, err = cluster.Connect(t.Context(), mustTarget(t, "mongodb://127.0.0.1:1"), cluster.Options{Timeout: time.Millisecond})
	must.OK(t, err)
	req := JoinRequest{Mongo: mustTarget(t, mongo), Valve: ValveKeep}
	j := &joiner{Machine: m, store: m.store(), result: &JoinResult{}, req: req, own: f.own, found: untouched, locked: &conf.Lock{}, facts: f}
	f.plan, err = j.replan(req)
	must.OK(t, err)
	return j
}

// begin writes what a join writes before the server's files.
func begin(t *testing.T, m *Machine, mongo, address string) *joiner {
	t.Helper()
	j := joinerOf(t, m, mongo, address)
	j.own, j.wasRunning = j.facts.plan.Own(), true
	must.OK(t, j.save(State{Phase: PhaseJoining}))
	must.OK(t, j.writeOwn())
	return j
}

// A join writes after the server has saved its settings at its end, and before its start. If it fails, a server that ran runs
// again, with its former drop-in and files, and no start is pending.
func TestJoinOfAServer(t *testing.T) {
	t.Parallel()
	const former, now = testMongo, "10.0.2.9"
	starting, crashed := ams.State{Activity: ams.ActivityActivating, Sub: "start-pre"}, ams.State{Activity: ams.ActivityActivating, Sub: "auto-restart"}
	wasJoined := func(t testing.TB, m *Machine) { change(t, m, func(s *State) { s.WasJoined = true }) }
	pending := []step{joined, interrupted(PhaseJoining), wasJoined}
	for name, tt := range map[string]struct {
		tree      []step // joined, if empty
		server    ams.State
		since     []step // after the join's plan
		keep      bool   // there is no reason for a restart
		on        func(j *joiner, s *fakeService, cancel func(), call string) error
		did       string
		fails     string
		noState   bool // it cannot be read
		pending   bool // in the state
		restarted bool
		host      string // db.host in the end
	}{
		"it runs":    {server: isUp, did: "stop start", restarted: true, host: now},
		"it is down": {server: isDown, did: "start", restarted: true, host: now},
		"it starts":  {server: starting, did: "stop start", restarted: true, host: now},
		"it starts, nothing to do": {server: starting, keep: true, host: former, on: func(_ *joiner, s *fakeService, _ func(), _ string) error {
			if s.did() == "" {
				s.state = isUp // by the second question
			}
			return nil
		}},
		"canceled in its stop": {server: isUp, did: "stop reload start reload", fails: "context canceled", restarted: true, host: former, on: func(_ *joiner, _ *fakeService, cancel func(), call string) error {
			if call != "stop" {
				return nil
			}
			cancel()
			return context.Canceled
		}},
		"it starts, a file cannot be written":             {server: starting, since: []step{pipe(liveFile)}, did: "stop reload start reload", fails: "not a regular file", restarted: true},
		"it crashes, a file cannot be written":            {server: crashed, since: []step{pipe(liveFile)}, did: "stop reload start reload", fails: "not a regular file", restarted: true},
		"after an interruption, a file cannot be written": {tree: pending, server: isDown, since: []step{pipe(liveFile)}, did: "reload start reload", fails: "not a regular file", restarted: true},
		"the stop cannot be noted":                        {server: isUp, since: []step{without(stateFile), with(stateFile+"/x", "")}, did: "reload", fails: stateFile, noState: true, host: former},
		"after an interruption, no state can be written":  {tree: pending, server: isDown, since: []step{with(StateDir+"/.state.json.amsagent-tmp/x", "")}, did: "reload reload start", fails: stateFile, pending: true, host: former},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if len(tt.tree) == 0 {
				tt.tree = []step{joined}
			}
			m := newTree(t, tt.tree...)
			service := &fakeService{state: tt.server}
			m.Service = service
			settings := content(t, m, liveFile)
			if tt.since == nil {
				service.save = func() { put(t, m, liveFile, settings+"settings.saved=1\n") }
			}
			j := joinerOf(t, m, now, "10.0.1.7")
			do(t, m, tt.since...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.on != nil {
				service.on = func(call string) error { return tt.on(j, service, cancel, call) }
			}
			err := j.change(ctx, !tt.keep)
			j.startAfterRefusal(ctx)
			if (err != nil) != (tt.fails != "") {
				t.Errorf("%v", err)
			}
			must.Contain(t, "the error", fmt.Sprint(err), tt.fails)
			must.Equal(t, "calls", service.did(), tt.did)
			must.Equal(t, "restarted", j.result.Restarted, tt.restarted)
			if tt.host != "" {
				must.Equal(t, "db.host", property(t, m, liveFile, "db.host"), tt.host)
			}
			if !tt.noState {
				must.Equal(t, "a start is pending", stateOf(t, m).Start, tt.pending)
			}
		})
	}
}

// A join that fails before the change keeps the state that has to start the server.
func TestFailedJoinKeepsTheOwedStart(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined, interrupted(PhaseJoining), serving(&fakeService{state: isDown}))
	_ = joinerOf(t, m, testMongo, "10.0.1.7").failed(t.Context(), stepWrite, errCut)
	must.Equal(t, "a start is pending", stateOf(t, m).Start, true)
}

// A join that gave up the lock leaves a server alone that another command may have stopped.
func TestJoinWithoutTheLockStartsNothing(t *testing.T) {
	t.Parallel()
	service := running()
	m := newTree(t, joined, interrupted(PhaseJoining), serving(service))
	j := joinerOf(t, m, testMongo, "10.0.1.7")
	service.state = isDown
	var err error
	j.locked, err = m.lock(t.Context())
	must.OK(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := j.proveUnlocked(ctx); err == nil {
		t.Fatal("it proved something")
	}
	j.startAfterRefusal(ctx)
	must.Equal(t, "calls", service.did(), "")
}

// The plan after the stop keeps the drop-in's stop timeout: the service's state is from before the drop-in.
func TestSecondPlanKeepsTheStopTimeout(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined)
	before, err := ams.ReadDropIn(m.Root)
	must.OK(t, err)
	longer := before.StopTimeout + time.Minute
	put(t, m, ams.DropInPath, string(ams.DropIn(joinedAs().Address, longer, "")))
	m.Service = &fakeService{state: ams.State{Activity: ams.ActivityActive, StopTimeout: longer}}
	j := joinerOf(t, m, testMongo, "10.0.1.7")
	must.OK(t, j.facts.plan.WriteOwn())
	must.OK(t, j.change(t.Context(), true))
	after, err := ams.ReadDropIn(m.Root)
	must.OK(t, err)
	must.Equal(t, "the stop timeout", after.StopTimeout, before.StopTimeout)
}

// A file with a password that other users may read is protected while the server runs: its contents stay.
func TestPasswordIsProtectedWhileTheServerRuns(t *testing.T) {
	t.Parallel()
	const mongo = "mongodb://u:hush@10.0.2.4/"
	for name, act := range map[string]func(*testing.T, *Machine){
		"the daemon": func(t *testing.T, m *Machine) {
			req := watchRequest(t)
			req.Mongo = mustTarget(t, mongo)
			c := converge(t, m, req)
			must.Equal(t, "repairs", ids(c.Repairs), IDDrift)
			must.Equal(t, "differences", len(c.Differences), 0)
			must.Equal(t, "it must restart", c.RestartNeeded, false)
		},
		"a join": func(t *testing.T, m *Machine) {
			must.OK(t, joinerOf(t, m, mongo, "10.0.1.7").change(t.Context(), false))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newTree(t, joined, joinedTo(mongo, "10.0.1.7"), serving(running()))
			must.OK(t, os.Chmod(at(m, liveFile), 0o644))
			was, err := os.Stat(at(m, liveFile))
			must.OK(t, err)
			act(t, m)
			is, err := os.Stat(at(m, liveFile))
			must.OK(t, err)
			if is.Mode().Perm() != 0o640 || !os.SameFile(was, is) {
				t.Errorf("mode %o, the same file: %v", is.Mode(), os.SameFile(was, is))
			}
		})
	}
}

// The server saves its settings when it stops: a join that is rolled back restores the files after that. A restart, or the
// attempt, is reported, also if the join made none: the daemon limits restarts by it, because each cuts viewers.
func TestRollback(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		tree      []step
		ran       bool // before the join
		stuck     bool // it cannot be stopped
		says, did string
		restarted bool
	}{
		"it has written":      {tree: []step{remembered}, ran: true, says: "runs again as before", did: "stop start", restarted: true},
		"it does not stop":    {tree: []step{interrupted(PhaseJoining)}, ran: true, stuck: true, says: "still those of a cluster node", did: "stop start", restarted: true},
		"it did not run then": {tree: []step{interrupted(PhaseJoining)}, stuck: true, says: "still those of a cluster node", did: "stop"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			service := &fakeService{state: isUp}
			m := newTree(t, append([]step{joinedTo("10.0.2.9", "10.0.1.7"), serving(service)}, tt.tree...)...)
			j := joinerOf(t, m, "10.0.3.3", "10.0.1.7")
			must.OK(t, j.commit(j.facts.plan.Only(isServers)))
			j.wrote, j.changing, j.wasRunning = true, true, tt.ran
			settings := content(t, m, liveFile)
			service.save = func() { put(t, m, liveFile, settings) }
			if tt.stuck {
				service.fails = map[string]error{"stop": errCut}
			}
			said := j.rollBack(t.Context(), "a reason")
			must.Contain(t, "the result", said, tt.says)
			must.Equal(t, "calls", service.did(), tt.did)
			must.Equal(t, "restarted", j.result.Restarted, tt.restarted)
			must.Equal(t, "db.host", property(t, m, liveFile, "db.host"), map[bool]string{false: "10.0.2.9", true: "10.0.3.3"}[tt.stuck])
		})
	}
}

// A join that comes before the next leave, and its rollback, do not forget that an application's settings may be a node's still.
func TestInterruptedLeaveIsRemembered(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined)
	change(t, m, func(s *State) { s.Phase, s.Standalone = PhaseLeaving, true })
	j := joinerOf(t, m, testMongo, "10.0.1.7")
	for what, save := range map[string]func() error{
		"a join":     func() error { return j.save(State{Phase: PhaseJoined}) },
		"a rollback": func() error { return j.saveUndoing(true) },
		"its end":    j.restoreFound,
	} {
		must.OK(t, save())
		must.Equal(t, what, stateOf(t, m).Standalone, true)
	}
}

// A join that fails before it changes a server's file leaves all as it was: an edit of the operator's without a copy, and a secret
// of the operator's through the leave that follows.
func TestFailedJoinRestoresOwnFiles(t *testing.T) {
	t.Parallel()
	m := newTree(t, with(MongoPath, testMongo+"\n"))
	must.OK(t, os.Chmod(at(m, MongoPath), 0o600))
	joinOffline(t, m, testMongo, "10.0.1.7") // without a drop-in it changes no own file
	must.Equal(t, "the state", begin(t, m, testMongo, "10.0.1.7").asFound(), untouched)
	leaveOffline(t, m)
	must.Equal(t, "the secret", content(t, m, MongoPath), testMongo+"\n")

	do(t, m, joinedTo("10.0.2.9", "10.0.1.7"), remembered, with(MongoPath, "10.7.7.7\n"))
	before, state := contents(t, m), stateOf(t, m)
	must.Equal(t, "the state", begin(t, m, "10.3.3.3", "10.0.1.7").asFound(), untouched)
	after := contents(t, m)
	must.NoDiff(t, "the state", new(stateOf(t, m)), &state)
	after[stateFile] = before[stateFile]
	must.NoDiff(t, "the files", after, before)
}

// A server whose files another tool had made a node's has no undo record. A failed second join restores the first one's own files.
func TestRollbackWithoutARecord(t *testing.T) {
	t.Parallel()
	m := newTree(t, scripted, withDropIn, joinedTo("10.0.9.9", "10.0.1.7"), remembered)
	must.Equal(t, "the record", content(t, m, undoFile), "none")
	before, state := contents(t, m), stateOf(t, m)
	j := begin(t, m, "10.0.9.9", "10.0.1.8")
	_, err := j.revert(t.Context(), true)
	must.OK(t, errors.Join(err, j.ownErr, j.secretBack(), j.restoreState()))
	after := contents(t, m)
	must.NoDiff(t, "the state", new(stateOf(t, m)), &state)
	after[stateFile] = before[stateFile]
	must.NoDiff(t, "the files", after, before)
}

// A join warns of a file that is not as it wrote it, and of one that cannot be compared.
func TestJoinWarnsOfDrift(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		since []step
		want  []string // in the warning
	}{
		"as joined": {},
		"edited":    {[]step{appended(liveFile, "\ndb.host=10.0.2.77\n")}, []string{"written by another program since", liveFile}},
		"refused":   {[]step{pipe(liveFile)}, []string{"not a regular file", liveFile}},
	} {
		m := newTree(t, joined)
		j := joinerOf(t, m, testMongo, "10.0.1.7")
		do(t, m, tt.since...)
		j.warnDrift()
		got := warningsOf(j.facts.findings)
		if len(tt.want) == 0 && len(got) > 0 || len(tt.want) > 0 && ids(got) != IDDrift {
			t.Fatalf("%s: %v", name, got)
		}
		must.Contain(t, name, fmt.Sprint(got), tt.want...)
	}
}

// A drop-in with a later name leaves the server less time to stop than the join's: the join says it.
func TestJoinWarnsOfItsStopTimeout(t *testing.T) {
	t.Parallel()
	for timeout, want := range map[time.Duration]string{10 * time.Second: IDTimeline, 10 * time.Minute: "", 0: ""} {
		m := newTree(t, withDropIn, serving(&fakeService{state: ams.State{Activity: ams.ActivityActive, StopTimeout: timeout}}))
		j := joinerOf(t, m, testMongo, "10.0.1.7")
		j.warnStopTimeout(t.Context())
		must.Equal(t, timeout.String(), ids(warningsOf(j.facts.findings)), want)
	}
}

// A join removes the record of a finished drain, so that a daemon started later runs as a node. It does not cancel a drain in
// progress.
func TestJoinForgetsDrain(t *testing.T) {
	t.Parallel()
	for text, gone := range map[string]bool{
		`{"version":2,"step":"done"}`:     true,
		`{"version":2,"step":"draining"}`: false,
		`{"version":2}`:                   false, // a notice without a drain
		`{`:                               false,
	} {
		m := newTree(t, with(StateDir+"/drain.json", text))
		j := &joiner{Machine: m, store: m.store()}
		must.Equal(t, text+" is forgotten", j.forgetDrain(), gone)
		must.Equal(t, text+" is removed", content(t, m, StateDir+"/drain.json") == "none", gone)
		must.Equal(t, text+" is forgotten again", j.forgetDrain(), false)
	}
}

// A server that runs under another address of this machine, or from another folder, is restarted by a join whose files need no
// change.
func TestRunsElsewhere(t *testing.T) {
	t.Parallel()
	const own, docker = "10.0.1.7", "172.17.0.1"
	now := time.Now()
	doc := func(ip string, age time.Duration) cluster.AMSNode {
		return cluster.AMSNode{ID: "x" + ip, IP: ip, LastUpdate: now.Add(-age)}
	}
	under := []cluster.AMSNode{doc(docker, time.Second)}
	up := ams.State{Activity: ams.ActivityActive, MainPID: 42, Started: now.Add(-time.Minute), StopTimeout: time.Second}
	young, down := up, isDown
	young.Started = now
	for name, tt := range map[string]struct {
		state   ams.State
		environ string // of the process; "-": unreadable
		folder  string
		seen    []cluster.AMSNode
		want    string // the reason for a restart
	}{
		"under docker's":                       {up, "-", "", under, "runs as " + docker},
		"started without its address":          {up, "HOME=/\x00", "", under, "runs as " + docker},
		"the process has this address":         {up, "AMS_HOST_ADDRESS=" + own + "\x00", "", under, ""},
		"started with one of no interface":     {up, "AMS_HOST_ADDRESS=203.0.113.9\x00", "", nil, "runs as 203.0.113.9"},
		"under both":                           {up, "-", "", append(under, doc(own, time.Second)), ""},
		"of a machine elsewhere":               {up, "-", "", []cluster.AMSNode{doc("10.0.1.8", time.Second)}, ""},
		"an old document":                      {up, "-", "", []cluster.AMSNode{doc(docker, 40*time.Second)}, ""},
		"of the process before":                {young, "-", "", under, ""},
		"it does not run":                      {down, "-", "", under, ""},
		"in its folder":                        {up, "", ams.DefaultDir, []cluster.AMSNode{doc(own, time.Second)}, ""},
		"in a folder that it was given before": {up, "", "/opt/ams2", []cluster.AMSNode{doc(own, time.Second)}, "runs from /opt/ams2"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTree(t, joined)
			must.OK(t, os.CopyFS(at(m, "/opt/ams2"), os.DirFS(treesDir+"/3.0")))
			if tt.environ != "-" {
				process(t, m, time.Hour)
				put(t, m, "/proc/42/environ", tt.environ)
			}
			if tt.folder != "" {
				do(t, m, linked("/proc/42/cwd", tt.folder))
			}
			m.Interfaces = interfaces("127.0.0.1 " + own + " " + docker)
			said := ""
			m.Progress = func(text string) { said = text }
			m.Service = &fakeService{state: tt.state}
			j := joinerOf(t, m, testMongo, own)
			j.seen = tt.seen
			must.Equal(t, "it must restart", j.mustRestart(), tt.want != "")
			must.Contain(t, "the reason", said, tt.want)
		})
	}
}

// process writes the entries in /proc of a process 42 of that age.
func process(t testing.TB, m *Machine, age time.Duration) {
	t.Helper()
	put(t, m, "/proc/stat", fmt.Sprintf("btime %d\n", time.Now().Add(-age).Unix()))
	put(t, m, "/proc/42/stat", "42 (java) S"+strings.Repeat(" 0", 30)+"\n")
}

// A join that was interrupted is repeated by the daemon: unknown sessions warn then, and do not stop it for ever.
func TestInterruptedJoinIsNotRefused(t *testing.T) {
	t.Parallel()
	for phase, refused := range map[Phase]bool{PhaseJoined: true, PhaseJoining: false} {
		m := newTree(t, joined, serving(&fakeService{state: isUp}))
		change(t, m, func(s *State) { s.Phase, s.WasJoined, s.RestartPending = phase, true, true })
		m.Sessions = func(context.Context) (cluster.Sessions, error) {
			return cluster.Sessions{Publishers: new(0), Viewers: new(0), By: cluster.CountedByConnections, PublishersBy: cluster.CountedByConnections}, nil
		}
		err := joinerOf(t, m, testMongo, "10.0.1.7").refuseSessions(t.Context())
		refusal, is := errors.AsType[*PreflightError](err)
		if found := is && slices.ContainsFunc(refusal.Findings, func(f Finding) bool { return f.ID == idSessions }); found != refused {
			t.Errorf("%s: %v", phase, err)
		}
	}
}
