// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
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

const (
	// replans bounds the plans after a conflict with the server's writes.
	replans = 8
	// replanPause is between them: the server saves several settings in a row.
	replanPause = 100 * time.Millisecond
	// saveTime generously bounds one save by the server, which rewrites the whole file.
	saveTime = 50 * time.Millisecond
)

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
		return nil, &PreflightError{Findings: []Finding{{
			ID: IDRoot, Text: "only root may change this machine's configuration", Hint: RootHint,
		}}}
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
		if f.warnings, found, err = m.recover(ctx, store); err != nil {
			return nil, notRecovered(err, leaveFirst, untouched)
		}
	}
	if err := m.preflight(ctx, store, req, f); err != nil {
		return nil, &FailedError{Step: "looking at this machine", Err: err, State: found}
	}
	f.client = reached.client
	f.failed = append(f.failed, reached.failed...)
	f.warnings = append(f.warnings, reached.warnings...)
	if len(f.failed) > 0 {
		if !req.DryRun || !f.planned || !f.address.Addr.IsValid() {
			return nil, &PreflightError{Findings: f.failed, State: found}
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
	j := &joiner{Machine: m, store: store, req: req, facts: f, found: found, untilServed: true, locked: lock}
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
			f.warnings = append(f.warnings, n)
		}
	}
	j.result.Warnings = f.warnings
	if len(f.failed) > 0 {
		if pre, ok := errors.AsType[*PreflightError](err); ok {
			f.failed = append(f.failed, pre.Findings...)
		}
		err = &PreflightError{Findings: f.failed, State: found}
	}
	return j.result, err
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

const untouched = "nothing was changed on this machine"

type joiner struct {
	*Machine
	store  *conf.Store
	req    JoinRequest
	facts  *facts
	result *JoinResult

	// found is the State of an error before the first change.
	found string
	done  []*conf.Plan
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
	// unstopped is why a rollback could not stop the server.
	unstopped error
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
	// An interrupted join may have stopped it.
	j.wasRunning = running || (f.state != nil && f.state.WasRunning)
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
	if err := j.restart(ctx, restart); err != nil {
		return j.failed(ctx, "starting Ant Media Server", err)
	}
	if j.result.Restarted {
		if err := j.save(PhaseJoining, false); err != nil {
			j.log().Warn("the state file could not be written", "error", err)
		}
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
	owed := f.state != nil && (f.state.RestartPending || j.olderThanFiles(f.state, f.service) || f.state.Address != f.address.Addr.String())
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
	if err := j.commit(ctx); err != nil {
		state, hint := leftBy(err, j.before(), "the files are those of a cluster node")
		return &FailedError{Step: "writing the configuration", Err: err, State: state, Hint: cmp.Or(deniedHint(err), hint)}
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
	j.dropMongo() // if an earlier join failed to
	kept, err := j.keepGiven()
	if err = errors.Join(err, keepConfig(j.store, j.req.Config)); err != nil {
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
	kept = kept || j.facts.state.Hardware != metadata.Hardware(j.Root)
	if j.forgetDrain() || stopped || kept || len(j.result.Changes) > 0 {
		// A running daemon, and the end of a drain, look at the state file for a join.
		if err := j.save(PhaseJoined, false); err != nil {
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

// apply writes the state first: a leave after a crash must know of the node record.
func (j *joiner) apply(ctx context.Context, restart bool) error {
	f := j.facts
	err := j.save(PhaseJoining, restart)
	if err == nil {
		_, err = j.keepGiven()
	}
	if err == nil {
		err = keepMongo(j.store, f.plan, j.req.Mongo)
	}
	if err != nil {
		return &FailedError{Step: "writing " + statePath, Err: err, State: j.asFound()}
	}
	if err := j.enter(ctx); err != nil {
		return &FailedError{Step: "writing the registry", Err: err, State: j.asFound()}
	}
	if len(f.plan.Changed()) == 0 {
		return nil
	}
	if err := j.commit(ctx); err != nil {
		const step = "writing the configuration"
		bound, cancel := after(ctx, mongoTime)
		defer cancel()
		j.failedRow(bound, step+": "+err.Error())
		e := &FailedError{Step: step, Err: err, Hint: deniedHint(err)}
		_, unfinished := errors.AsType[*conf.UnfinishedError](err)
		switch {
		case unfinished:
		case len(j.done) > 0:
			return j.failed(ctx, step, err) // an earlier round wrote files
		default:
			e.State = j.asFound()
			return e
		}
		// The state stays for the next run.
		e.State, e.Hint = leftBy(err, j.before(), "the files are those of a cluster node, Ant Media Server was not restarted")
		return e
	}
	j.say("wrote %s", plural(len(f.plan.Changed()), "file"))
	return nil
}

// writtenOver returns files that changed soon after the commit.
func (m *Machine) writtenOver(ctx context.Context, plan *conf.Plan) []string {
	changed := plan.Changed()
	if len(changed) == 0 || !sleep.For(ctx, saveTime) {
		return nil
	}
	var paths []string
	for _, f := range changed {
		if now, err := m.store().Read(f.Before.Path); err == nil && !bytes.Equal(now.Bytes, f.After) {
			paths = append(paths, f.Before.Path)
		}
	}
	return paths
}

// asFound restores the state file and returns an error's State.
func (j *joiner) asFound() string {
	if err := j.restoreState(); err != nil {
		return fmt.Sprintf("%s but the agent's own %s, which could not be put back: %v", j.found, statePath, err)
	}
	return j.found
}

// before is the State if the last commit changed nothing.
func (j *joiner) before() string {
	if len(j.done) > 0 {
		return "the files were written, and some of them have been changed since; the next run of the same command writes those again"
	}
	return j.found
}

// commit plans again if the server wrote a file meanwhile, or saves older values over it.
func (j *joiner) commit(ctx context.Context) error {
	f := j.facts
	for try := 1; ; try++ {
		err := f.plan.Commit("join")
		if err == nil {
			j.done = append(j.done, f.plan)
			paths := j.writtenOver(ctx, f.plan)
			if len(paths) == 0 || try == replans {
				return nil
			}
			err = fmt.Errorf("%s: %w", joinPaths(paths), conf.ErrChanged)
		} else if !mayReplan(err) || try == replans || !pauseAbout(ctx, replanPause) {
			return err
		}
		j.say("%v: planning again", err)
		plan, perr := j.replan(j.req)
		if perr != nil {
			return errors.Join(err, perr)
		}
		f.plan, j.result.Files = plan, fileResults(plan)
	}
}

// mayReplan reports whether a commit lost a race without a trace.
func mayReplan(err error) bool {
	_, unfinished := errors.AsType[*conf.UnfinishedError](err)
	return errors.Is(err, conf.ErrChanged) && !unfinished
}

func (j *joiner) save(phase Phase, restart bool) error {
	f := j.facts
	s := State{
		Phase: phase, InstanceID: f.inst.ID, Address: f.address.Addr.String(), Hardware: metadata.Hardware(j.Root), Role: j.req.Role, Group: j.req.Group,
		RestartPending: restart, WasRunning: phase == PhaseJoining && j.wasRunning, WasJoined: phase == PhaseJoining && j.wasJoined(),
		Provider: f.provider(), Release: f.install.Release.String(),
		Since: time.Now().UTC().Truncate(time.Second),
	}
	if f.state != nil {
		s.Standalone = f.state.Standalone
	}
	return saveState(j.store, s)
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

// runsNew reports whether the server may run with the join's files. A rollback must then restart it.
func (j *joiner) runsNew() bool { return j.result.Restarted || j.unproved() }

// saveUndoing records that the next command, after a kill, must restart the server.
func (j *joiner) saveUndoing() error {
	if s := j.facts.state; j.wasJoined() {
		back := *s
		back.RestartPending, back.WasRunning = j.runsNew(), j.wasRunning
		return saveState(j.store, back)
	}
	f := j.facts
	return saveState(j.store, State{
		Phase: PhaseLeaving, InstanceID: f.inst.ID, Address: f.address.Addr.String(), Role: j.req.Role, Group: j.req.Group,
		RestartPending: j.runsNew(), WasRunning: j.wasRunning, Since: time.Now().UTC().Truncate(time.Second),
		Standalone: f.state != nil && f.state.Standalone,
	})
}

func (j *joiner) restoreState() error {
	s := j.facts.state
	if s == nil {
		return j.forget()
	}
	if err := errors.Join(dropMongo(j.store, s), j.restoreGiven()); err != nil {
		return err
	}
	return saveState(j.store, *s)
}

func (j *joiner) restart(ctx context.Context, restart bool) error {
	f := j.facts
	if j.SetAddress != nil {
		j.SetAddress(f.address.Addr)
	}
	if !f.service.Known() {
		if restart {
			j.say("%s is not managed here: start it, or restart it, now", "Ant Media Server")
		}
		return nil
	}
	if !restart && f.service.Running() {
		if j.DropIn {
			// For the running server's stop timeout.
			return j.Service.Reload(ctx)
		}
		return nil
	}
	if err := j.Service.Reload(ctx); err != nil {
		return err
	}
	j.startedAt = time.Now()
	j.result.Restarted = true
	// A starting server may have read its old files.
	if !f.service.Running() && (!restart || !f.service.Starting()) {
		j.say("starting %s", j.Service.Name())
		return j.Service.Start(ctx)
	}
	j.say("restarting %s", j.Service.Name())
	if err := j.Service.Restart(ctx); err != nil {
		return err
	}
	return j.writeAgain(ctx)
}

// writeAgain repeats the commit if the former server saved old settings at its end, as a starting application
// does. The new server has read them and may save them, so it is stopped for that.
func (j *joiner) writeAgain(ctx context.Context) error {
	plan, err := j.changed()
	if err != nil || !needsRestart(plan) {
		return nil //nolint:nilerr // warnDrift reports it
	}
	j.say("%s saved its settings over the join's: writing them again while it is stopped", "Ant Media Server")
	return j.whileStopped(ctx, func(unstopped error) error {
		if unstopped != nil {
			return unstopped // the rollback restores all files
		}
		plan, err := j.changed()
		if err != nil {
			return err
		}
		j.facts.plan = plan
		err = j.commit(ctx)
		j.startedAt = time.Now()
		return err
	})
}

const finishTime = electionTime + 15*time.Second

func (j *joiner) dropMongo() {
	if err := dropMongo(j.store, nil); err != nil {
		j.log().Warn("a file that is not needed any more could not be removed", "path", LeftMongoPath, "error", err)
	}
}

// finish ignores the end of ctx: the node serves, and must not stay in the state joining.
func (j *joiner) finish(ctx context.Context) error {
	ctx, cancel := after(ctx, finishTime)
	defer cancel()
	f := j.facts
	j.dropMongo()
	err := keepConfig(j.store, j.req.Config)
	if err == nil {
		err = j.save(PhaseJoined, false)
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
		j.facts.warn(IDDrift, "run the same command again", "written by somebody else since: %s", joinPaths(plan.ChangedPaths()))
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
	g := &facts{install: f.install, inst: f.inst, address: f.address, hostname: f.hostname, service: f.service, record: record, state: f.state, skipApps: f.skipApps}
	if n := len(j.done); n > 0 {
		g.former = j.done[n-1]
	}
	j.checkPlan(j.store, req, g)
	if len(g.failed) > 0 {
		return nil, &PreflightError{Findings: g.failed}
	}
	return g.plan, nil
}

func (j *joiner) failed(ctx context.Context, step string, cause error) error {
	e := &FailedError{Step: step, Err: cause, Hint: j.elsewhereHint(cause)}
	bound, cancel := after(ctx, rollbackTime)
	defer cancel()
	if j.req.OnFailure == Keep || !j.facts.service.Known() {
		e.Unknown = isTimeout(cause)
		// With this reason, the next join does not treat this one as interrupted.
		j.setRow(bound, cluster.StateJoining, step+": "+cause.Error())
		e.State = "the files are those of a cluster node; whether Ant Media Server joins is not known"
		if e.Hint == "" {
			e.Hint = "look with 'amsagent status', or undo it with 'amsagent leave'"
		}
		return e
	}
	why := cause.Error()
	if ctx.Err() != nil && context.Cause(ctx) != nil {
		why = context.Cause(ctx).Error() // not the error that a call made of it
	}
	j.say("rolling back: %s", why)
	e.State = j.rollBack(bound, step+": "+cause.Error())
	j.failedRow(bound, step+": "+cause.Error())
	return e
}

// rollBack describes its result in a sentence.
func (j *joiner) rollBack(ctx context.Context, reason string) string {
	if err := j.saveUndoing(); err != nil {
		j.log().Warn("the state file could not be written", "error", err)
	}
	start, done := j.Service.Start, slices.Clone(j.done)
	record, _ := j.store.Record() // revert reports the error
	if j.runsNew() {
		j.result.Restarted = j.result.Restarted || j.wasRunning // it is started below
		// First: a starting application saves its settings as it ends, over restored files.
		if j.unstopped = j.end(ctx); j.unstopped != nil {
			start = j.Service.Restart
		}
	}
	conflicts, err := j.revert(ctx)
	put := j.contents(record)
	ctx, cancel := after(ctx, rollbackTime) // never leave the server stopped
	defer cancel()
	if err != nil {
		if j.runsNew() && j.wasRunning {
			err = errors.Join(err, start(ctx))
		}
		state, hint := leftBy(err, "they are still those of a cluster node", "they are as before")
		return fmt.Sprintf("the files could not be put back (%v); %s: %s", err, state, cmp.Or(hint, "run 'amsagent leave'"))
	}
	for _, c := range conflicts {
		j.facts.warn(IDConflict, "", "%s", c)
	}
	back := "the files were put back"
	if len(conflicts) > 0 {
		back = "the files were put back, but for " + joinPaths(conflictPaths(conflicts))
	}
	if j.runsNew() || j.DropIn {
		if err := j.Service.Reload(ctx); err != nil {
			j.log().Warn("the service manager could not be told to read its files again", "error", err)
		}
	}
	if !j.runsNew() {
		return back + noteOf(j.restoreAfter(ctx, reason)) + "; Ant Media Server was not touched"
	}
	if !j.wasRunning {
		if j.unstopped != nil {
			return fmt.Sprintf("%s; Ant Media Server, which was not running before, could not be stopped: %v", back, j.unstopped)
		}
		j.dropDocuments(ctx)
		return back + noteOf(j.restoreAfter(ctx, reason)) + " and Ant Media Server is stopped, as before"
	}
	if j.SetAddress != nil {
		j.SetAddress(previousAddress(j.facts.state))
	}
	if err := start(ctx); err != nil {
		return fmt.Sprintf("%s, but Ant Media Server does not start with them either (%v): %s", back, err, j.serverNow(ctx))
	}
	if _, err := ams.WaitStable(ctx, j.Service, stableTime); err != nil && !errors.Is(err, ams.ErrNotManaged) {
		return fmt.Sprintf("%s, but Ant Media Server does not stay up with them either: %v", back, err)
	}
	if j.unstopped != nil {
		if err := j.revertAgain(ctx, done, !slices.EqualFunc(put, j.contents(record), bytes.Equal)); err != nil {
			return fmt.Sprintf("%s, but Ant Media Server may have saved the join's settings over them, and could not be stopped for that: %v", back, err)
		}
	}
	j.dropDocuments(ctx)
	mode, err := j.modeNow()
	if err != nil {
		mode = j.facts.mode
	}
	return fmt.Sprintf("%s%s and Ant Media Server runs again as before (%s)", back, noteOf(j.restoreAfter(ctx, reason)), mode)
}

func (j *joiner) contents(record *conf.Record) (all [][]byte) {
	if record == nil {
		return nil
	}
	for _, f := range record.Files {
		now, _ := j.store.Read(f.Path) // nil if it is unreadable
		all = append(all, now.Bytes)
	}
	return all
}

// revertAgain completes a rollback that could only restart the server. If the files differ now, the old server
// saved the join's settings and the new one read them.
func (j *joiner) revertAgain(ctx context.Context, done []*conf.Plan, differ bool) error {
	again := func(unstopped error) error {
		j.done, j.unstopped = done, unstopped
		_, err := j.revert(ctx)
		return err
	}
	if !differ {
		return again(nil)
	}
	j.say("Ant Media Server saved its settings over what was put back: putting it back while it is stopped")
	return j.whileStopped(ctx, again)
}

func (j *joiner) revert(ctx context.Context) ([]conf.Conflict, error) {
	for try := 1; ; try++ {
		conflicts, err := j.revertOnce()
		if err == nil || !mayReplan(err) || try == replans || !pauseAbout(ctx, replanPause) {
			return conflicts, err
		}
	}
}

func (j *joiner) revertOnce() ([]conf.Conflict, error) {
	const purpose = "rollback"
	if j.facts.record != nil && !j.unproved() {
		var conflicts []conf.Conflict
		for len(j.done) > 0 {
			last := len(j.done) - 1
			cs, err := j.done[last].Revert(purpose)
			if err != nil {
				return nil, err
			}
			conflicts = append(conflicts, cs...)
			j.done = j.done[:last]
		}
		return conflicts, nil
	}
	// Remove all changes of the agent, whatever others wrote.
	record, err := j.store.Record()
	if err != nil {
		return nil, err
	}
	plan, err := j.store.PlanUndo(record)
	if err != nil {
		return nil, err
	}
	if j.unstopped == nil {
		record = nil // no server saves over the files now
	}
	return plan.Conflicts, plan.CommitUndoKeeping(purpose, record)
}

// restoreAfter writes the node record first: without the state, no command finds it.
func (j *joiner) restoreAfter(ctx context.Context, reason string) error {
	j.failedRow(ctx, reason)
	return j.restoreFound()
}

// restoreFound keeps the state file if an unfinished leave depends on it.
func (j *joiner) restoreFound() error {
	if s := j.facts.state; j.unproved() && !s.Standalone {
		return j.forget()
	}
	return j.restoreState()
}

// forget removes what failed joins left. The state file, which refers to the rest, is last.
func (j *joiner) forget() error {
	if err := errors.Join(dropMongo(j.store, nil), saveGiven(j.store, nil), j.store.RemoveFile(GoodConfigPath)); err != nil {
		return err
	}
	return j.store.RemoveFile(statePath)
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
