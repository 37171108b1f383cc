// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata"
)

// OnFailure decides about an unverified join.
type OnFailure string

const (
	// Rollback restores files, drop-in and service.
	Rollback OnFailure = "rollback"
	// Keep leaves everything as it is.
	Keep OnFailure = "keep"
)

// JoinRequest is the input of [Machine.Join].
type JoinRequest struct {
	Mongo       cluster.Target
	Role, Group string
	// Address is the operator's; "" means from the metadata or the default route.
	Address      string
	ForceAddress bool
	// AddressKept is as in [ConvergeRequest].
	AddressKept bool
	// Given is for the daemon and later commands; nil keeps an earlier join's.
	Given *Given
	// Config is the settings file, for [GoodConfigPath]; nil keeps an earlier one.
	Config []byte
	// Forget names settings whose joined value is dropped.
	Forget []string
	Valve  Valve
	// Interval is the heartbeat's; 0 leaves it to the daemon.
	Interval  time.Duration
	OnFailure OnFailure
	// Unattended: no person runs it, so that another machine's old record must be seen silent.
	Unattended bool
	// Replace takes over the node record of another machine with the same id.
	Replace bool
	// Now restarts the server despite streams or viewers.
	Now bool
	// Offline edits the files, without MongoDB, service or cloud.
	Offline bool
	// DryRun only plans.
	DryRun bool
	// Identify is not called if Offline.
	Identify func(context.Context) (metadata.Instance, error)
}

// Outcome is the result of a successful command.
type Outcome string

// The outcomes.
const (
	OutcomeJoined    Outcome = "joined"
	OutcomeUnchanged Outcome = "unchanged" // it already was so
	OutcomeUpdated   Outcome = "updated"   // only the node record changed
	OutcomePlanned   Outcome = "planned"
	OutcomeEdited    Outcome = "edited" // offline
	OutcomeLeft      Outcome = "left"
	OutcomeSealed    Outcome = "sealed" // ready to be cloned
)

// Evidence proves that the server is in the cluster.
type Evidence struct {
	// ID and Address are from the document in clusterdb.clusternode.
	ID      string `json:"id"`
	Address string `json:"address"`
	// Updated is its lastUpdateTime, by this machine's clock.
	Updated time.Time `json:"updated"`
	// Seen is when the agent read it.
	Seen time.Time `json:"seen"`
	// After is the time since the server's start, or 0 without a restart.
	After seconds.Duration `json:"after_seconds"`
}

// JoinResult is the result of [Machine.Join].
type JoinResult struct {
	Outcome   Outcome           `json:"outcome"`
	Release   string            `json:"release"`
	Instance  metadata.Instance `json:"instance"`
	Role      string            `json:"role"`
	Group     string            `json:"group"`
	Address   ams.Address       `json:"address"`
	Mongo     string            `json:"mongo"` // redacted
	Files     []FileResult      `json:"files"`
	Restarted bool              `json:"restarted"`
	// Changes describe the node record, as in "role: edge → origin".
	Changes []string `json:"changes,omitempty"`
	// RestartNeeded reports, for a dry run, that a restart would follow.
	RestartNeeded bool `json:"restart_needed"`
	// Refused reports, for a dry run, that the command would be refused. The error has the causes.
	Refused bool `json:"refused,omitempty"`
	// Live lists the sessions that a restart cuts, or is nil.
	Live     *Live     `json:"sessions,omitempty"`
	Evidence *Evidence `json:"evidence,omitempty"`
	// Applications are those that serve, in order of time.
	Applications []AppServed   `json:"applications,omitempty"`
	Daemon       DaemonOutcome `json:"daemon,omitempty"` // the result for the unit of the daemon
	Warnings     []Finding     `json:"warnings"`
	Notes        []string      `json:"notes,omitempty"` // on this machine's cloud and tags
}

// Join makes this machine a node, verifies that and starts the daemon. It returns a [PreflightError] or a
// [FailedError].
func (m *Machine) Join(ctx context.Context, req JoinRequest) (*JoinResult, error) {
	res, err := m.join(ctx, req)
	if !req.Offline && (err == nil || res != nil && res.Outcome == OutcomeJoined) {
		// Also without a node record: the daemon writes it.
		m.startDaemon(ctx, res, req.DryRun)
	}
	return res, err
}

func (m *Machine) join(ctx context.Context, req JoinRequest) (*JoinResult, error) {
	store := m.store()
	f := &facts{}
	found := untouched
	if !req.DryRun && m.Euid != 0 && m.Root == "" {
		return nil, &PreflightError{Findings: []Finding{notRoot()}}
	}
	reached := &facts{}
	if !req.Offline {
		reached = m.reachFirst(ctx, store, &req)
		defer closeClient(ctx, reached.client)
	}
	var lock *conf.Lock
	if !req.DryRun {
		var err error
		if lock, err = m.lock(ctx); err != nil {
			return nil, &FailedError{Step: "waiting for the lock", Err: err, State: untouched, Unknown: isTimeout(err)}
		}
		defer func() { _ = lock.Unlock() }()
		if f.findings, found, err = m.recover(ctx, store); err != nil {
			return nil, notRecovered(err, leaveFirst, untouched)
		}
	}
	j := &joiner{Machine: m, store: store, facts: f, found: found, untilServed: true, locked: lock}
	defer func() {
		if !req.DryRun && !req.Offline {
			j.startAfterRefusal(ctx)
		}
	}()
	if err := m.preflight(ctx, store, req, f); err != nil {
		return nil, &FailedError{Step: "looking at this machine", Err: err, State: found}
	}
	f.client = reached.client
	f.findings = append(f.findings, reached.findings...)
	if failed := f.failed(); len(failed) > 0 {
		if !req.DryRun || !f.planned || !f.address.Addr.IsValid() {
			return nil, &PreflightError{Findings: failed, State: found}
		}
		f.client = nil // the plan does not need it
	}
	if f.state != nil {
		// A rejoin keeps role and group.
		if !slices.Contains(req.Forget, "role") {
			req.Role = cmp.Or(req.Role, f.state.Role)
		}
		if !slices.Contains(req.Forget, "group") {
			req.Group = cmp.Or(req.Group, f.state.Group)
		}
	}
	if req.AddressKept && isCopy(f.state, f.inst.ID) {
		req.Given = req.Given.withoutAddress()
	}
	j.req, j.own = req, f.own
	j.result = &JoinResult{
		Release: f.install.Release.String(), Instance: f.inst, Address: f.address,
		Role: req.Role, Group: req.Group, Mongo: req.Mongo.Redacted(), Files: fileResults(f.plan),
	}
	err := j.run(ctx)
	if err != nil && j.registered {
		j.event(context.WithoutCancel(ctx), cluster.Event{Node: f.inst.ID, Kind: "join-failed", Who: "amsagent", Why: plain.Truncate(err.Error(), mostWhy)})
	}
	if err == nil && m.Root == "" && !req.Offline {
		st, _ := m.Service.State(ctx) // unknown after an error
		if n, found := CheckCount(st, f.install); found {
			f.findings = append(f.findings, n)
		}
	}
	failed, warnings := Failed(f.findings)
	j.result.Warnings = warnings
	if len(failed) > 0 {
		if pre, ok := errors.AsType[*PreflightError](err); ok {
			failed = append(failed, pre.Findings...)
		}
		err = &PreflightError{Findings: failed, State: found}
	}
	return j.result, err
}

// startAfterRefusal is for a join that changed nothing.
func (j *joiner) startAfterRefusal(ctx context.Context) {
	// Without the lock, another command may be between its stop and its start.
	if j.locked != nil && !j.changing {
		j.Machine.startAfterRefusal(ctx, j.store)
	}
}

// notRecovered is the error if an interrupted command stays unfinished.
func notRecovered(err error, way, state string) error {
	if n, ok := recordFinding(err, way); ok {
		return &PreflightError{Findings: []Finding{n}, State: state}
	}
	if failed, ok := errors.AsType[*FailedError](err); ok {
		return failed
	}
	e := &FailedError{Step: "looking for an interrupted run", Err: err, State: state}
	var interrupted *conf.InterruptedError
	if errors.As(err, &interrupted) {
		e.Step, e.State = "recovering from an interrupted run", "the interrupted "+interrupted.Purpose+" is still unfinished; the next run tries again"
	}
	return e
}

// mostWhy bounds an event's reason: the output of a command may be long.
const mostWhy = 1000

// States of errors.
const (
	untouched      = "nothing was changed on this machine"
	serverAsBefore = "the files of Ant Media Server are as before, the agent's own may be new"
	ownNotBack     = "the files of Ant Media Server were given back, and those of the agent were not"
)

type joiner struct {
	*Machine
	store  *conf.Store
	req    JoinRequest
	facts  *facts
	result *JoinResult

	// found is the State of an error before the first change.
	found string
	// own are the records of the agent's own files now. wroteOwn wrote them, and committed the server's; nil after a revert.
	own                 []*conf.FileRecord
	wroteOwn, committed *conf.Plan
	// ownErr is why a rollback could not restore the agent's own files. secretBack is its step after the node record.
	ownErr     error
	secretBack func() error
	// wasRunning reports whether a rollback must start the server.
	wasRunning bool
	// seen are all AMS documents before the first change.
	seen        []cluster.AMSNode
	startedAt   time.Time
	untilServed bool
	patient     bool
	locked      *conf.Lock
	// registered: this join wrote the record. former is the one before, if any, and history has the events of that.
	registered bool
	former     cluster.Node
	history    []cluster.Event
	// changing: the server may be stopped. wrote: its files may be this join's. down: the server ran, and could not be
	// started again.
	changing, wrote, down bool
}

func (j *joiner) run(ctx context.Context) error {
	f := j.facts
	switch {
	case j.req.Offline && j.req.DryRun:
		j.result.Outcome = OutcomePlanned
		return nil
	case j.req.Offline:
		return j.offline(ctx)
	}
	if f.client != nil {
		var err error
		if j.seen, err = f.client.AMSNodes(ctx); err != nil && !j.req.DryRun {
			return &FailedError{Step: "reading the cluster's nodes", Err: err, State: j.found}
		}
	}
	running, restart := f.service.Running(), j.mustRestart()
	j.result.RestartNeeded = (restart || !running) && f.service.Known()
	if restart && running {
		if err := j.refuseSessions(ctx); err != nil {
			if j.req.DryRun {
				j.result.Outcome = OutcomePlanned // with the finding that would block it
			}
			return err
		}
	}
	if j.req.DryRun {
		j.result.Outcome = OutcomePlanned
		return nil
	}
	unchanged := len(f.plan.Changed()) == 0
	if unchanged && !j.result.RestartNeeded && f.state != nil && f.state.Phase == PhaseJoined {
		return j.confirm(ctx)
	}
	if err := j.begin(ctx, j.found); err != nil {
		return err
	}
	if restart && running {
		defer j.hold(ctx)()
	}
	if err := j.apply(ctx, restart); err != nil {
		return err
	}
	if err := j.change(ctx, restart); err != nil {
		return err
	}
	ev, err := j.verify(ctx)
	if _, ok := errors.AsType[*NotServingError](err); ok {
		return j.failed(ctx, "waiting for the applications", err)
	}
	if err != nil {
		return j.failed(ctx, "waiting for Ant Media Server to appear in the cluster", err)
	}
	j.result.Evidence = ev
	return j.finish(ctx)
}

func (j *joiner) mustRestart() bool {
	f := j.facts
	// A service command gets the address at the start. No file shows it.
	owed := f.state != nil && (f.state.RestartPending || f.state.Address != f.address.Addr.String())
	restart := owed || needsRestart(f.plan)
	if _, in := j.alreadySeen(); in && !owed && j.dropInAlone() {
		// Another tool made this server a node with this address. The drop-in only repeats it.
		restart = false
	}
	if restart || !f.service.Running() {
		return restart
	}
	if (f.state == nil || f.state.Phase == PhaseLeaving) && !j.seenFresh() {
		// Another tool edited the files, perhaps after the server's start.
		return true
	}
	if at := j.runsElsewhere(); at != "" {
		// Right files, but started without the address.
		j.say("Ant Media Server runs as %s and not as %s: only a restart changes that", at, f.address.Addr)
		return true
	}
	if dir := f.install.OtherTree(ams.State{MainPID: f.service.MainPID}); dir != "" {
		// The service got this tree after the server's start.
		j.say("Ant Media Server runs from %s and not from %s: only a restart changes that", dir, f.install.Dir)
		return true
	}
	return false
}

func (j *joiner) dropInAlone() bool {
	return !slices.ContainsFunc(j.facts.plan.Changed(), func(f conf.PlannedFile) bool {
		return f.Before.Path != ams.DropInPath && changesServer(f)
	})
}

// refuseSessions returns an error if a restart would cut sessions.
func (j *joiner) refuseSessions(ctx context.Context) error {
	f := j.facts
	if j.req.Now && !j.req.DryRun {
		return nil
	}
	client := f.client
	if !j.seenFresh() {
		client = nil // a server outside the cluster has no streams there
	}
	// The daemon repeats an interrupted join: what is unknown must not stop it for ever.
	node := f.state != nil && f.state.Phase == PhaseJoined
	live, finding, refuse := j.checkSessions(ctx, "join", node, node, f.install, client, f.address.Addr.String())
	j.result.Live = live
	switch {
	case finding.ID == "":
	case !refuse:
		f.warn(finding.ID, finding.Hint, "%s", finding.Text)
	case !j.req.Now:
		return &PreflightError{Findings: []Finding{finding}, State: j.found}
	}
	return nil
}

func (j *joiner) offline(ctx context.Context) error {
	f := j.facts
	j.result.Outcome = OutcomeEdited
	if len(f.plan.Changed()) == 0 {
		j.result.Outcome = OutcomeUnchanged
		return nil
	}
	if err := j.begin(ctx, j.found); err != nil {
		return err
	}
	j.own = f.plan.Own()
	state := *cmp.Or(f.state, &State{})
	state.Own = j.own
	err := saveState(j.store, state)
	if err == nil {
		err = j.writeOwn()
	}
	if err == nil {
		err = j.commit(f.plan)
	}
	if err != nil {
		left := serverAsBefore
		if _, unfinished := errors.AsType[*conf.UnfinishedError](err); !unfinished {
			left = j.asFound()
		}
		left, hint := leftBy(err, left, "the files are those of a cluster node")
		return &FailedError{Step: stepWrite, Err: err, State: left, Hint: cmp.Or(deniedHint(err), hint)}
	}
	j.say("edited %s; nothing else was touched", plural(len(f.plan.Changed()), "file"))
	return nil
}

// confirm verifies a node whose files need no change.
func (j *joiner) confirm(ctx context.Context) error {
	ev, ok := j.provedAtOnce(ctx)
	if !ok {
		lock, later, err := j.proveUnlocked(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = lock.Unlock() }()
		ev = later
	}
	if err := j.begin(ctx, j.found); err != nil {
		return err
	}
	j.result.Evidence = ev
	j.result.Outcome = OutcomeUnchanged
	if err := keepConfig(j.store, j.req.Config); err != nil {
		return &FailedError{Step: "writing " + StateDir, Err: err, State: "this machine is a cluster node; run the same command again"}
	}
	if err := j.registerActive(ctx, j.drainDone()); err != nil {
		return &FailedError{Step: "writing the registry", Err: err, State: "this machine is a cluster node; its row in the registry is not up to date"}
	}
	j.result.Changes = j.changes()
	if len(j.result.Changes) > 0 {
		j.result.Outcome = OutcomeUpdated
	}
	stopped := j.drainStopped() // first: forgetDrain then sees a drain that just finished
	now := j.complete(State{Phase: PhaseJoined})
	was := j.facts.state
	kept := now.Hardware != was.Hardware || !reflect.DeepEqual(now.Given, was.Given)
	if j.forgetDrain() || stopped || kept || len(j.result.Changes) > 0 {
		// A running daemon, and the end of a drain, look at the state file for a join.
		if err := saveState(j.store, now); err != nil {
			return &FailedError{Step: "writing " + statePath, Err: err, State: "this machine is a cluster node; run the same command again"}
		}
	}
	return nil
}

// provedAtOnce verifies a serving node so quickly that it keeps the lock.
func (j *joiner) provedAtOnce(ctx context.Context) (*Evidence, bool) {
	if _, seen := j.alreadySeen(); !seen {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	ev, err := j.verify(ctx)
	return ev, err == nil
}

// proveUnlocked lets a drain stop the server meanwhile. It returns with the lock held, or with an error if the
// machine has changed.
func (j *joiner) proveUnlocked(ctx context.Context) (*conf.Lock, *Evidence, error) {
	_ = j.locked.Unlock()
	j.locked = nil
	ev, err := j.verify(ctx)
	if _, ok := errors.AsType[*NotServingError](err); ok {
		return nil, nil, &FailedError{Step: "waiting for the applications", Err: err, State: j.found, Unknown: isTimeout(err)}
	}
	if err != nil {
		return nil, nil, &FailedError{
			Step: "looking for Ant Media Server in the cluster", Err: err, State: j.found, Unknown: isTimeout(err),
			Hint: cmp.Or(j.elsewhereHint(err), "its files are those of a cluster node; look at "+serverLog+", and at 'amsagent status'"),
		}
	}
	lock, err := j.lock(ctx)
	if err != nil {
		return nil, nil, &FailedError{Step: "waiting for the lock", Err: err, State: j.found, Unknown: isTimeout(err)}
	}
	if err := j.asBefore(ctx); err != nil {
		_ = lock.Unlock()
		return nil, nil, &FailedError{Step: "looking at this machine again", Err: err, State: j.found, Hint: "look with 'amsagent status', and run the same command again"}
	}
	return lock, ev, nil
}

// asBefore returns an error if the server or the state changed while the machine was unlocked.
func (j *joiner) asBefore(ctx context.Context) error {
	f := j.facts
	now, err := loadState(j.store)
	if err != nil {
		return err
	}
	if now != nil { // written by the daemon at any time
		f.state.Release, f.state.Provider, f.state.Hardware = now.Release, now.Provider, now.Hardware
	}
	if !f.state.Equal(now) {
		return errors.New("another command, or the daemon, changed this machine meanwhile")
	}
	st, err := j.Service.State(ctx)
	if err != nil {
		return err
	}
	if f.service.Known() && (!st.Running() || st.MainPID != f.service.MainPID || !st.Started.Equal(f.service.Started)) {
		return fmt.Errorf("%s was stopped, or started again, meanwhile", j.Service.Name())
	}
	return nil
}

func (j *joiner) changes() []string {
	var changes []string
	note := func(what, was, is string) {
		if was != is {
			changes = append(changes, fmt.Sprintf("%s: %s → %s", what, cmp.Or(was, "none"), cmp.Or(is, "none")))
		}
	}
	note("role", j.facts.state.Role, j.req.Role)
	note("group", j.facts.state.Group, j.req.Group)
	return changes
}

// forgetDrain removes the record of a finished drain: a daemon that starts later must see a node. An unfinished
// one belongs to the daemon.
func (j *joiner) forgetDrain() (was bool) {
	if !j.drainDone() {
		return false
	}
	if err := j.store.RemoveFile(drainPath); err != nil {
		j.log().Warn("what the daemon remembers of the drain before could not be removed", "path", drainPath, "error", err)
	}
	return true
}

func (j *joiner) drainDone() bool { return j.drainStep() == "done" }

func (j *joiner) drainStopped() bool {
	step := j.drainStep()
	return step == "deregistering" || step == "completing"
}

// drainStep returns "" if there is no drain.
func (j *joiner) drainStep() string {
	f, err := j.store.Read(drainPath)
	if err != nil || !f.Exists() {
		return ""
	}
	var drain struct {
		Step string `json:"step"`
	}
	if json.Unmarshal(f.Bytes, &drain) != nil {
		return ""
	}
	return drain.Step
}

// apply writes the state first: a leave after a crash must know of the node record, and of the agent's own files. These come
// before the stop, whose time is in the drop-in.
func (j *joiner) apply(ctx context.Context, restart bool) error {
	f := j.facts
	j.own = f.plan.Own()
	err := j.save(State{Phase: PhaseJoining, RestartPending: restart, Start: j.owesStart(f.state, f.service)})
	if err != nil {
		return &FailedError{Step: "writing " + statePath, Err: err, State: j.asFound()}
	}
	if err := j.writeOwn(); err != nil {
		return &FailedError{Step: stepWrite, Err: err, State: j.asFound(), Hint: deniedHint(err)}
	}
	if err := j.enter(ctx); err != nil {
		return &FailedError{Step: "writing the registry", Err: err, State: j.asFound()}
	}
	if !f.service.Known() {
		return nil
	}
	if err := j.Service.Reload(ctx); err != nil {
		return j.failed(ctx, stepWrite, err)
	}
	return nil
}

// change writes the server's files and starts it, unless it runs, or starts, and needs no restart. Of its files only
// permissions change then.
func (j *joiner) change(ctx context.Context, restart bool) error {
	f := j.facts
	managed := f.service.Known()
	j.changing = true
	// An interrupted join may have stopped it. A server that starts, perhaps again after a crash, must run, too.
	j.wasRunning = f.service.Running() || f.service.Activity == ams.ActivityActivating || j.owesStart(f.state, f.service)
	if !restart && f.service.Starting() {
		st, err := ams.WaitStable(ctx, j.Service, stableTime)
		if err != nil {
			return j.failed(ctx, stepStart, err)
		}
		f.service, f.serviceAt = st, time.Now()
	}
	if !restart && f.service.Running() {
		protected, err := protect(j.store, exposed(f.plan))
		if err != nil {
			f.warn(IDFile, "", "a file with a password stays readable for other users: %v", err)
		}
		j.result.Files = fileResults(f.plan.Only(func(path string) bool { return agentsOwn(path) || slices.Contains(protected, path) }))
		return nil
	}
	if !managed && restart {
		j.say("%s is not managed here: start it, or restart it, now", "Ant Media Server")
	}
	step, err := j.Machine.change(ctx, serverChange{
		managed: managed, ran: j.wasRunning, start: true, former: previousAddress(f.state), address: f.address.Addr,
		save: func(start bool) error {
			return j.save(State{Phase: PhaseJoining, RestartPending: restart && !j.wrote, Start: start})
		},
		write: func() error {
			// It saved its settings as it ended, and the own files are in the record now.
			plan, err := j.replan(j.req)
			if err != nil {
				return err
			}
			j.result.Files = mergeResults(j.result.Files, fileResults(plan))
			// The own files are written. The service's state is from before the drop-in.
			f.plan = plan.Only(isServers)
			if err = j.commit(f.plan); err == nil || isHalfChanged(err) {
				j.wrote, j.startedAt = true, time.Now()
			}
			return err
		},
		back: func() error {
			_, err := j.revert(ctx, false)
			return err
		},
	})
	j.changing = step != stepState
	j.result.Restarted = managed && j.changing
	if err != nil {
		j.down = errors.Is(err, errDown)
		return j.failed(ctx, step, err)
	}
	return nil
}

// mergeResults keeps the agent's own files, which were written before the second plan.
func mergeResults(was, is []FileResult) []FileResult {
	for i := range is {
		for _, w := range was {
			if w.Path == is[i].Path && agentsOwn(w.Path) {
				is[i] = w
			}
		}
	}
	return is
}

// asFound restores the agent's own files and the state file. It returns an error's State.
func (j *joiner) asFound() string {
	_, err := j.revertOwn(agentsOwn)
	if err == nil {
		err = j.restoreState()
	}
	if err != nil {
		return fmt.Sprintf("%s but the agent's own files, which could not be put back: %v", j.found, err)
	}
	return j.found
}

// writeOwn expects that the records are saved.
func (j *joiner) writeOwn() error {
	j.wroteOwn = j.facts.plan
	return j.wroteOwn.WriteOwn()
}

// revertOwn may be repeated.
func (j *joiner) revertOwn(which func(path string) bool) ([]conf.Conflict, error) {
	if j.wroteOwn == nil {
		return nil, nil
	}
	return j.wroteOwn.Only(which).RevertOwn()
}

func (j *joiner) commit(plan *conf.Plan) error {
	n := len(plan.Changed())
	if n == 0 {
		return nil
	}
	if err := plan.Commit("join"); err != nil {
		return err
	}
	j.committed = plan
	if !j.req.Offline {
		j.say("wrote %s", plural(n, "file"))
	}
	return nil
}

func (j *joiner) save(s State) error { return saveState(j.store, j.complete(s)) }

func (j *joiner) complete(s State) State {
	f := j.facts
	s.InstanceID, s.Address, s.Hardware = f.inst.ID, f.address.Addr.String(), metadata.Hardware(j.Root)
	s.Role, s.Group, s.Provider, s.Release = j.req.Role, j.req.Group, f.provider(), f.install.Release.String()
	s.WasJoined = s.Phase == PhaseJoining && j.wasJoined()
	s.Own, s.Given = j.own, j.req.Given.orNil()
	j.stamp(&s)
	if f.state != nil {
		s.Standalone = f.state.Standalone
		if j.req.Given == nil {
			s.Given = f.state.Given
		}
	}
	return s
}

// wasJoined reports whether a verified node existed before this join and those that it continues.
func (j *joiner) wasJoined() bool {
	s := j.facts.state
	return s != nil && (s.Phase == PhaseJoined || s.WasJoined)
}

// unproved reports whether this join follows an unfinished or unverified command, whose files are no state to
// restore.
func (j *joiner) unproved() bool {
	s := j.facts.state
	return s != nil && s.Phase != PhaseJoined && !s.WasJoined
}

// saveUndoing lets the next command, after a kill, finish: a join of a machine that was a node, else a leave.
func (j *joiner) saveUndoing(start bool) error {
	f := j.facts
	s := State{
		Phase: PhaseLeaving, InstanceID: f.inst.ID, Address: f.address.Addr.String(), Role: j.req.Role, Group: j.req.Group,
		Standalone: f.state != nil && f.state.Standalone, Given: j.req.Given.orNil(),
	}
	if j.wasJoined() {
		s = *f.state
		s.Phase, s.WasJoined = PhaseJoining, true
	}
	s.Start, s.Own = start, j.own
	j.stamp(&s)
	return saveState(j.store, s)
}

func (j *joiner) restoreState() error {
	s := j.facts.state
	if s == nil {
		return j.forget(j.facts.own)
	}
	back := *s
	back.Start = s.Start && !j.changing // after a change the server runs, or must not
	return saveState(j.store, back)
}

const finishTime = electionTime + 15*time.Second

// finish ignores the end of ctx: the node serves, and must not stay in the state joining.
func (j *joiner) finish(ctx context.Context) error {
	ctx, cancel := after(ctx, finishTime)
	defer cancel()
	f := j.facts
	err := keepConfig(j.store, j.req.Config)
	if err == nil {
		err = j.save(State{Phase: PhaseJoined})
	}
	if err != nil {
		return &FailedError{Step: "writing " + statePath, Err: err, State: "this machine is a cluster node; run the same command again"}
	}
	j.result.Outcome = OutcomeJoined
	over := j.forgetDrain() // first: the daemon then writes the node record
	if err := j.registerActive(ctx, over); err != nil {
		return &FailedError{
			Step: "writing the registry", Err: err,
			State: "this machine is a cluster node; its row in the registry still says joining: run the same command again",
		}
	}
	j.dropFormer(ctx)
	j.event(ctx, cluster.Event{Node: f.inst.ID, Kind: "join", Who: "amsagent", Details: map[string]string{"address": f.address.Addr.String()}})
	j.warnDrift()
	j.warnStopTimeout(ctx)
	return nil
}

// warnDrift warns of files changed since. The server writes them in place when an operator saves settings in its
// panel.
func (j *joiner) warnDrift() {
	plan, err := j.changed()
	switch {
	case err != nil:
		j.facts.warn(IDDrift, "run the same command again", "whether the files are still as joined is not known: %v", err)
	case len(plan.Changed()) > 0:
		j.facts.warn(IDDrift, "run the same command again", "written by another program since: %s", joinPaths(plan.ChangedPaths()))
	}
}

// warnStopTimeout: a drop-in with a later name may stand over the join's.
func (j *joiner) warnStopTimeout(ctx context.Context) {
	need := ams.StopTimeout(len(j.facts.install.Apps))
	st, err := j.Service.State(ctx)
	if err == nil && j.DropIn && st.StopTimeout > 0 && st.StopTimeout < need {
		j.facts.warn(IDTimeline, "remove TimeoutStopSec= from the drop-in with a later name: systemctl cat "+j.Service.Name(),
			"systemd kills the server %s after a stop begins, and not %s: streams stay \"broadcasting\"", st.StopTimeout, need)
	}
}

// registerActive outlasts a hanging primary: MongoDB answered before. over: a drain of this node has ended.
func (j *joiner) registerActive(ctx context.Context, over bool) error {
	return j.outlast(ctx, func(error) bool { return true }, func(ctx context.Context) error {
		return j.register(ctx, cluster.StateActive, cluster.ReasonJoin, over)
	})
}

// changed plans the files that differ from the join's.
func (j *joiner) changed() (*conf.Plan, error) {
	return j.replan(JoinRequest{Mongo: j.req.Mongo, Valve: j.req.Valve, DryRun: true})
}

func (j *joiner) replan(req JoinRequest) (*conf.Plan, error) {
	record, err := j.store.Record()
	if err != nil {
		return nil, err
	}
	f := j.facts
	g := &facts{install: f.install, inst: f.inst, address: f.address, hostname: f.hostname, service: f.service, record: record, own: j.own, state: f.state, skipApps: f.skipApps}
	j.checkPlan(j.store, req, g)
	if failed := g.failed(); len(failed) > 0 {
		return nil, &PreflightError{Findings: failed}
	}
	return g.plan, nil
}

func (j *joiner) failed(ctx context.Context, step string, cause error) error {
	e := &FailedError{Step: step, Err: cause, Hint: j.elsewhereHint(cause)}
	bound, cancel := after(ctx, rollbackTime+max(j.facts.service.StopTimeout, ams.StopTimeout(len(j.facts.install.Apps))))
	defer cancel()
	row := step + ": " + cause.Error()
	if _, unfinished := errors.AsType[*conf.UnfinishedError](cause); unfinished {
		// The state stays for the next run.
		j.failedRow(bound, row)
		e.State, e.Hint = leftBy(cause, serverAsBefore, "the files are those of a cluster node")
		e.State += "; of Ant Media Server: " + j.serverNow(bound)
		return e
	}
	isWritten := !slices.Contains([]string{stepState, stepStop, stepWrite}, step)
	if isWritten && (j.req.OnFailure == Keep || !j.facts.service.Known()) {
		e.Unknown = isTimeout(cause)
		// With this reason, the next join does not treat this one as interrupted.
		j.setRow(bound, cluster.StateJoining, row)
		e.State = "the files are those of a cluster node; whether Ant Media Server joins is not known"
		if e.Hint == "" {
			e.Hint = "look with 'amsagent status', or undo it with 'amsagent leave'"
		}
		return e
	}
	e.Hint = cmp.Or(e.Hint, deniedHint(cause))
	why := cause.Error()
	if ctx.Err() != nil && context.Cause(ctx) != nil {
		why = context.Cause(ctx).Error() // not the error that a call made of it
	}
	j.say("rolling back: %s", why)
	e.State = j.rollBack(bound, row)
	j.failedRow(bound, row)
	return e
}

// rollBack describes its result in a sentence.
func (j *joiner) rollBack(ctx context.Context, reason string) string {
	f := j.facts
	// The files of an unproved join are no state to restore.
	touched := j.wrote || j.changing && j.unproved()
	var conflicts []conf.Conflict
	revert := func() (err error) {
		conflicts, err = j.revert(ctx, touched)
		return err
	}
	step, err := stepWrite, error(nil)
	if touched {
		j.result.Restarted = j.result.Restarted || j.wasRunning // it is started below
		step, err = j.Machine.change(ctx, serverChange{
			managed: f.service.Known(), ran: j.wasRunning, start: j.wasRunning, former: f.address.Addr, address: previousAddress(f.state),
			save: j.saveUndoing, write: revert,
		})
	} else {
		err = revert()
	}
	if err != nil && step != stepStart {
		if step != stepStop {
			step = "the files could not be put back"
		}
		state, hint := leftBy(err, "they are still those of a cluster node", "they are as before")
		return fmt.Sprintf("%s (%v); %s: %s", step, err, state, cmp.Or(hint, "run 'amsagent leave'"))
	}
	for _, c := range conflicts {
		f.warn(IDConflict, "", "%s", c)
	}
	back := "the files were put back"
	if len(conflicts) > 0 {
		back = "the files were put back, but for " + joinPaths(conflictPaths(conflicts))
	}
	if j.ownErr != nil {
		return fmt.Sprintf("the files were put back, but for the agent's own (%v): run 'amsagent leave'", j.ownErr) // the state stays
	}
	switch {
	case err != nil:
		return fmt.Sprintf("%s, but Ant Media Server does not start with them either (%v): %s", back, err, j.serverNow(ctx))
	case j.down:
		return fmt.Sprintf("%s; of Ant Media Server: %s", back, j.serverNow(ctx)) // with [State.Start] for the next command
	case !touched && !j.result.Restarted:
		return back + noteOf(j.restoreAfter(ctx, reason)) + "; Ant Media Server was not touched"
	case !j.wasRunning:
		j.dropDocuments(ctx)
		return back + noteOf(j.restoreAfter(ctx, reason)) + " and Ant Media Server is stopped, as before"
	}
	if _, err := ams.WaitStable(ctx, j.Service, stableTime); err != nil && !errors.Is(err, ams.ErrNotManaged) {
		return fmt.Sprintf("%s, but Ant Media Server does not stay up with them either: %v", back, err)
	}
	j.dropDocuments(ctx)
	mode, err := j.modeNow()
	if err != nil {
		mode = f.mode
	}
	return fmt.Sprintf("%s%s and Ant Media Server runs again as before (%s)", back, noteOf(j.restoreAfter(ctx, reason)), mode)
}

// revert restores what this join wrote. all: this is the only join, or follows an unproved one.
func (j *joiner) revert(ctx context.Context, all bool) (conflicts []conf.Conflict, err error) {
	const purpose = "rollback"
	defer func() {
		if err == nil && j.DropIn {
			j.reload(ctx)
		}
	}()
	// The next command, after a kill, needs the secret until the node record is removed.
	later := func(path string) bool { return isSecret(path) && !j.wasJoined() }
	now := func(path string) bool { return !later(path) }
	if former := j.facts.record != nil || len(j.facts.own) > 0; !all || former && !j.unproved() {
		if j.committed != nil {
			if conflicts, err = j.committed.Revert(purpose); err != nil {
				return nil, err
			}
			j.committed = nil
		}
		var own []conf.Conflict
		own, j.ownErr = j.revertOwn(now)
		j.secretBack = func() error { _, err := j.revertOwn(later); return err }
		return append(conflicts, own...), nil
	}
	// Remove all changes of the agent, whatever others wrote.
	record, err := j.store.Record()
	if err != nil {
		return nil, err
	}
	plan, err := j.store.PlanUndo(record, j.own...)
	if err != nil {
		return nil, err
	}
	if err := plan.CommitUndo(purpose); err != nil {
		return nil, err
	}
	j.ownErr = plan.Only(now).WriteOwn()
	j.secretBack = plan.Only(later).WriteOwn
	return plan.Conflicts, nil
}

// restoreAfter writes the node record first: without the state, no command finds it.
func (j *joiner) restoreAfter(ctx context.Context, reason string) error {
	j.failedRow(ctx, reason)
	if err := j.secretBack(); err != nil {
		return err
	}
	return j.restoreFound()
}

// restoreFound keeps the state file if an unfinished leave, or a server that was not started, depends on it.
func (j *joiner) restoreFound() error {
	if s := j.facts.state; j.changing && j.unproved() && !s.Standalone {
		return j.forget(nil)
	}
	return j.restoreState()
}

// forget removes what failed joins left. The state file, which refers to the rest, is last. own are of a join with --offline.
func (j *joiner) forget(own []*conf.FileRecord) error {
	if err := j.store.RemoveFile(GoodConfigPath); err != nil {
		return err
	}
	return forgetState(j.store, own)
}

func noteOf(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf(" (but %s, which could not be put back: %v)", statePath, err)
}

func conflictPaths(conflicts []conf.Conflict) []string {
	var paths []string
	for _, c := range conflicts {
		if !slices.Contains(paths, c.Path) {
			paths = append(paths, c.Path)
		}
	}
	return paths
}

func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded)
}
