// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata"
)

// LeaveRequest is the input of [Machine.Leave].
type LeaveRequest struct {
	// Mongo is zero if unknown.
	Mongo cluster.Target
	// Now cuts live streams.
	Now bool
	// Offline only restores the files.
	Offline bool
	// DryRun only plans.
	DryRun  bool
	Address string
	// Identify is called if the state file lacks the instance.
	Identify func(context.Context) (metadata.Instance, error)
}

// LeaveResult is the result of [Machine.Leave].
type LeaveResult struct {
	Outcome   Outcome      `json:"outcome"`
	Files     []FileResult `json:"files"`
	Restarted bool         `json:"restarted"`
	// Stopped reports a stopped server, for example after a drain. A leave starts only one that ran before.
	Stopped bool `json:"stopped"`
	// RestartNeeded reports, for a dry run, that a restart would follow.
	RestartNeeded bool `json:"restart_needed"`
	// Refused reports, for a dry run, that the command would be refused. The error has the causes.
	Refused bool `json:"refused,omitempty"`
	// Live lists the sessions that the restart cuts, or is nil.
	Live *Live `json:"sessions,omitempty"`
	// Exact reports that every file has its bytes from before the join.
	Exact bool `json:"exact"`
	// Deregistered are the ids of removed documents in clusterdb.clusternode.
	Deregistered []string      `json:"deregistered"`
	Daemon       DaemonOutcome `json:"daemon,omitempty"` // the result for the unit of the daemon
	Warnings     []Finding     `json:"warnings"`
}

type leaver struct {
	*Machine
	store   *conf.Store
	req     LeaveRequest
	install *ams.Installation
	record  *conf.Record
	own     []*conf.FileRecord
	state   *State
	plan    *conf.Plan
	service ams.State // before the first change
	client  *cluster.Client
	result  *LeaveResult

	// found is the State of an error before the first change.
	found string
	// bare reports a damaged record.
	bare      bool
	conflicts []Finding
	// recordAlone reports that the plan restores exactly the record.
	recordAlone bool
	// standalone reports that the plan makes the server standalone, whatever made it a node.
	standalone bool
	// later are the settings files of applications created on the node.
	later []string
	// drained reports that this run set the state draining.
	drained        bool
	asked, reached bool
	// lookedFor is the address of seen.
	lookedFor string
	// ownErr is why the agent's own files could not be restored. The server starts without that.
	ownErr error
	// daemonBack reports that nothing was changed and the stopped daemon must start again.
	daemonStopped, daemonBack bool
	// changing: the checks are over.
	changing bool

	id      string
	address string
	// seen are the AMS documents of this address from before.
	seen      []cluster.AMSNode
	stoppedAt time.Time
}

// Leave restores the machine from before the join. Files without later writes get their former bytes ([Restored]).
// It returns a [PreflightError] or a [FailedError].
//
// The AMS document is removed last, when no server writes it.
func (m *Machine) Leave(ctx context.Context, req LeaveRequest) (*LeaveResult, error) {
	l := &leaver{Machine: m, store: m.store(), req: req, found: untouched, result: &LeaveResult{Deregistered: []string{}}}
	res, err := l.leave(ctx)
	if l.daemonBack {
		// Not before the unlock: the daemon takes the lock.
		if err := m.enableDaemon(ctx); err != nil {
			l.warn(IDDaemon, daemonHint(err, "systemctl enable --now amsagent-node amsagent"), "the daemon was stopped and could not be started again: %v", err)
		}
	}
	return res, err
}

func (l *leaver) leave(ctx context.Context) (*LeaveResult, error) {
	defer func() { closeClient(ctx, l.client) }()
	if !l.req.DryRun {
		if l.Euid != 0 && l.Root == "" {
			return nil, l.refused(notRoot())
		}
		l.reachFirst(ctx)
		lock, err := l.lock(ctx)
		if err != nil {
			return nil, &FailedError{Step: "waiting for the lock", Err: err, State: untouched, Unknown: isTimeout(err)}
		}
		defer func() { _ = lock.Unlock() }()
		if err := l.recover(ctx); err != nil {
			return l.result, err // with the warnings
		}
	}
	err := l.run(ctx)
	if !l.changing && !l.req.DryRun && !l.req.Offline {
		l.startAfterRefusal(ctx, l.store)
	}
	if st, serr := l.Service.State(ctx); serr == nil && !l.req.Offline {
		l.result.Stopped = st.Dead()
	}
	l.result.Warnings = append(l.result.Warnings, l.conflicts...)
	// Also with an error: the warnings may explain it.
	return l.result, err
}

func (l *leaver) refused(fs ...Finding) error {
	return &PreflightError{Findings: fs, State: l.found}
}

// recover sets an unusable journal aside: a leave must always be possible.
func (l *leaver) recover(ctx context.Context) error {
	warnings, found, err := l.Machine.recover(ctx, l.store)
	var damaged *conf.DamagedError
	if errors.As(err, &damaged) {
		if err := l.begins(ctx); err != nil {
			return err
		}
		if err = l.setAside(damaged); err == nil {
			warnings, _, err = l.Machine.recover(ctx, l.store)
			found = l.found
		}
	}
	if err != nil {
		return notRecovered(err, "", l.found)
	}
	l.found = found
	l.result.Warnings = append(l.result.Warnings, warnings...)
	return nil
}

func (l *leaver) begins(ctx context.Context) error {
	if l.req.DryRun {
		return nil
	}
	return l.begin(ctx, l.found)
}

func (l *leaver) setAside(damaged *conf.DamagedError) error {
	name, err := l.store.SetAside(damaged.Path)
	if err != nil {
		return fmt.Errorf("putting it out of the way: %w", errors.Join(err, damaged))
	}
	l.bare = true
	l.found = "a damaged file was kept as " + name + "; beyond that nothing was changed on this machine"
	l.warn(IDRecord, "", "%v; it is kept as %s, and this machine is made standalone without it", damaged, name)
	return nil
}

// warn drops duplicates from repeated steps.
func (l *leaver) warn(id, hint, format string, args ...any) {
	f := warningOf(id, hint, format, args...)
	if !slices.Contains(l.result.Warnings, f) {
		l.result.Warnings = append(l.result.Warnings, f)
	}
}

func (l *leaver) run(ctx context.Context) error {
	if err := l.prepare(ctx); err != nil {
		return err
	}
	l.fillResult()
	if l.nothingToDo() {
		// A running daemon would join again.
		if err := l.begins(ctx); err != nil {
			return err
		}
		if !l.req.Offline {
			l.stopDaemon(ctx)
		}
		l.result.Outcome, l.result.Exact = OutcomeUnchanged, true
		if !l.req.DryRun {
			return l.store.RemoveFile(statePath) // of a join with --offline that was killed before it wrote a file
		}
		return nil
	}
	if l.req.DryRun {
		if !l.req.Offline {
			l.stopDaemon(ctx)
		}
		l.result.Outcome = OutcomePlanned
		if l.req.Offline {
			return nil
		}
		if st, err := l.Service.State(ctx); err == nil {
			l.result.RestartNeeded = st.Running() && (needsRestart(l.plan) || l.restartPending())
		}
		return l.refuseSessions(ctx)
	}
	if l.req.Offline {
		if err := l.mayBegin(ctx); err != nil {
			return err
		}
		if err := l.commit(); err != nil {
			return l.notGivenBack(err)
		}
		l.result.Outcome = OutcomeLeft
		if l.ownErr != nil {
			return l.ownErr
		}
		return l.forget()
	}
	if err := l.refuseSessions(ctx); err != nil {
		return err
	}
	if err := l.mayBegin(ctx); err != nil {
		return err
	}
	l.changing = true
	defer l.hold(ctx)()
	l.stopDaemon(ctx)
	l.announce(ctx)
	if err := l.giveBack(ctx); err != nil {
		return err
	}
	l.checkName(ctx)
	return l.deregister(ctx)
}

// mayBegin makes the last checks. A server that runs must be startable again.
func (l *leaver) mayBegin(ctx context.Context) error {
	f := &facts{}
	if !l.req.Offline {
		var err error
		l.service, err = l.Service.State(ctx)
		if err == nil && l.up() {
			if err = l.service.Startable(); err != nil {
				err = fmt.Errorf("%s: %w", l.Service.Name(), err)
			}
		}
		if err != nil {
			f.fail(IDService, err, ams.Hint(err))
		}
	}
	checkWritable(l.store, l.plan.Changed(), f)
	if failed := f.failed(); len(failed) > 0 {
		return l.refused(failed...)
	}
	return l.begins(ctx)
}

// checkName warns of a fault that the join had repaired.
func (l *leaver) checkName(ctx context.Context) {
	if h, err := ams.LookupHostname(ctx, l.Root); err == nil && !h.Resolvable() {
		l.warn(IDHostname, "give it an address in /etc/hosts",
			"this machine's own name %s does not resolve, as before the join: Ant Media Server may answer 500", h.Name)
	}
}

func (l *leaver) prepare(ctx context.Context) error {
	var err error
	if err = l.read(ctx); err != nil {
		return err
	}
	if l.install, err = l.open(); err != nil && l.isHindered() {
		l.warn(IDInstall, ams.Hint(err), "%v; what the join wrote is given back without it", err)
	} else if err != nil {
		return l.refused(failure(IDInstall, err, ams.Hint(err)))
	}
	if err := l.planFiles(); err != nil {
		return err
	}
	if l.nothingToDo() || l.req.Offline {
		return nil
	}
	l.identify(ctx)
	if !l.asked {
		l.connect(ctx)
	}
	if l.address != l.lookedFor {
		l.look(ctx)
	}
	return nil
}

// reachFirst runs without the lock: a drain must not wait for the metadata service or MongoDB.
func (l *leaver) reachFirst(ctx context.Context) {
	if l.req.Offline {
		return
	}
	install, err := l.open()
	if err != nil {
		install = nil // the files may be restored without it
	}
	if node, err := l.joined(l.store, install); err == nil && !node {
		return
	}
	s, err := loadState(l.store)
	if l.req.Identify != nil && (err != nil || s == nil || s.InstanceID == "") {
		l.req.Identify = l.AskNow(ctx, l.req.Identify)
	}
	l.connect(ctx)
	if err == nil && s != nil {
		l.address = s.Address
		l.look(ctx)
	}
}

// isHindered reports whether the files can be restored without a readable installation: its owner must not be able
// to block a leave. Without the container file the disk may not be mounted.
func (l *leaver) isHindered() bool {
	return l.record != nil && slices.ContainsFunc(l.record.Files, func(f *conf.FileRecord) bool {
		now, err := l.store.ReadSettings(f.Path)
		return files.Refused(err) || err == nil && now.Exists() && filepath.Base(f.Path) == "jee-container.xml"
	})
}

// read tolerates damaged files: they must not block a leave.
func (l *leaver) read(ctx context.Context) error {
	var err error
	var damaged *conf.DamagedError
	if l.record, err = l.store.Record(); errors.As(err, &damaged) {
		l.bare = true
		if l.req.DryRun {
			l.warn(IDRecord, "", "%v; this machine is made standalone without it", err)
			err = nil
		} else {
			if err := l.begins(ctx); err != nil {
				return err
			}
			if err = l.setAside(damaged); err == nil {
				l.record, err = l.store.Record()
			}
		}
	}
	if err != nil {
		if n, ok := recordFinding(err, ""); ok {
			return l.refused(n)
		}
		if n, ok := l.needsRoot(err); ok {
			return l.refused(n)
		}
		return &FailedError{Step: "reading the undo record", Err: err, State: l.found}
	}
	if l.state, err = loadState(l.store); errors.As(err, &damaged) {
		// All of it can be found again.
		l.warn(IDRecord, "", "%v; it is not needed", err)
		l.state, err = &State{Phase: PhaseLeaving, forgotten: true}, nil
	}
	if err != nil {
		if n, ok := recordFinding(err, ""); ok {
			return l.refused(n)
		}
		return &FailedError{Step: "reading the state", Err: err, State: l.found}
	}
	if l.own, err = loadOwn(l.store, l.record); err != nil {
		return &FailedError{Step: "reading the agent's own files", Err: err, State: l.found}
	}
	return nil
}

// planFiles restores the files from before the join. If another tool had made them a node's, it adds the
// standalone form.
func (l *leaver) planFiles() error {
	var err error
	if l.plan, err = l.store.PlanUndo(l.record, l.own...); err != nil {
		id, hint := l.classifyFile(err)
		return l.refused(failure(id, err, hint))
	}
	l.conflicts = nil
	for _, c := range l.plan.Conflicts {
		l.conflicts = append(l.conflicts, warningOf(IDConflict, "", "%s", c))
	}
	if len(l.plan.Torn) > 0 {
		l.conflicts = append(l.conflicts, warningOf(IDTorn, "", tornText, joinPaths(l.plan.Torn)))
	}
	l.recordAlone = len(l.plan.Conflicts) == 0
	if l.install == nil {
		return nil
	}
	container := l.install.Container.Path
	planned := l.plan.Planned(container)
	if planned == nil {
		f, err := l.store.Read(container)
		if err != nil || !f.Exists() {
			return l.refused(failure(IDInstall, fmt.Errorf("%s cannot be read: %w", container, err), ""))
		}
		planned = f.Bytes
	}
	c, err := conf.ParseContainer(planned)
	syntax, noXML := errors.AsType[*conf.SyntaxError](err)
	switch {
	case noXML && l.record != nil:
		// The server cannot start with it. Its owner can do that at any time.
		l.conflicts = append(l.conflicts, warningOf(IDConflict, "", "%s is left as it is: it is no XML: %v", container, syntax))
	case err != nil && l.record != nil && conf.IsStandalone(planned):
		return l.onTop() // the plan reports it
	case err != nil:
		id, hint := l.classifyFile(err)
		return l.refused(failure(id, fmt.Errorf("%s: %w", container, err), hint))
	}
	if isLost := l.state != nil && l.state.Phase == PhaseJoined && c.Mode() == conf.ModeCluster; isLost && l.record == nil && !l.bare {
		l.warn(IDRecord, "", "%s is missing: this machine is made standalone without it", undoPath)
	}
	// An interrupted leave may have changed only the container, or the server saved over the rest.
	if noXML || c.Mode() == conf.ModeCluster || l.state != nil && l.state.Standalone {
		l.recordAlone, l.standalone = false, true
	}
	return l.onTop()
}

func (l *leaver) onTop() error {
	if findings := l.planOnTop(l.plan, &l.conflicts); len(findings) > 0 {
		return l.refused(findings...)
	}
	return nil
}

func (l *leaver) planOnTop(plan *conf.Plan, left *[]Finding) []Finding {
	if l.standalone {
		return l.planStandalone(plan, left)
	}
	return l.planLater(plan, left)
}

// planStandalone adds unusable files to left.
func (l *leaver) planStandalone(plan *conf.Plan, left *[]Finding) (findings []Finding) {
	container := l.install.Container.Path
	then := func(path string, kind conf.Kind, edit func([]byte) ([]conf.Span, error)) {
		if f := l.then(plan, left, path, kind, edit); f != nil {
			findings = append(findings, *f)
		}
	}
	then(l.install.Server.Path, conf.KindProperties, propertySpans(serverSettings(""), conf.ModeStandalone))
	for _, w := range l.install.Warnings {
		if w.ID == ams.WarnAppEncoding {
			*left = append(*left, warningOf(w.ID, "", "%s", w.Text))
		}
	}
	for _, app := range distinct(l.install.Apps, l.record) {
		then(app.File.Path, conf.KindProperties, propertySpans(appSettings(""), conf.ModeStandalone))
	}
	then(container, conf.KindContainer, func(src []byte) ([]conf.Span, error) {
		return containerSpans(l.store, container, src, conf.ModeStandalone, false)
	})
	return findings
}

// then calls [conf.Plan.Then]. A file that its owner made uneditable is added to left. A missing file is no
// finding.
func (l *leaver) then(plan *conf.Plan, left *[]Finding, path string, kind conf.Kind, edit func([]byte) ([]conf.Span, error)) *Finding {
	err := plan.Then(path, kind, edit)
	_, malformed := errors.AsType[*conf.SyntaxError](err)
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist), malformed && kind == conf.KindContainer: // planFiles reports that
		return nil
	case files.Refused(err) && slices.Contains(conflictPaths(plan.Conflicts), path): // reported, too
		return nil
	case files.Refused(err), kind == conf.KindProperties && spoiled(err):
		// It must not block the leave.
		*left = append(*left, warningOf(IDConflict, "", "%s is not made standalone: %v", path, err))
		return nil
	}
	id, hint := l.classifyFile(err)
	return new(failure(id, err, hint))
}

// planLater makes applications standalone that were created on the node and use MongoDB. The record has, at most,
// an older state of the node for them.
func (l *leaver) planLater(plan *conf.Plan, left *[]Finding) (findings []Finding) {
	if l.record == nil {
		return nil
	}
	for _, app := range distinct(l.install.Apps, l.record) {
		path := app.File.Path
		uses, err := l.usesMongo(plan, path)
		if err == nil && !uses || slices.Contains(l.record.Known, path) {
			continue
		}
		if f := l.then(plan, left, path, conf.KindProperties, propertySpans(appSettings(""), conf.ModeStandalone)); f != nil {
			findings = append(findings, *f)
		}
		l.later = append(l.later, path)
		l.recordAlone = false
	}
	return findings
}

func (l *leaver) usesMongo(plan *conf.Plan, path string) (bool, error) {
	planned := plan.Planned(path)
	if planned == nil {
		f, err := l.store.ReadSettings(path)
		if err != nil {
			return false, err
		}
		planned = f.Bytes
	}
	p, err := conf.ParseProperties(planned)
	if err != nil {
		return false, err
	}
	kind, _ := p.Get("db.type")
	return kind == "mongodb", nil
}

// fillResult fills in the result for each file.
func (l *leaver) fillResult() {
	l.result.Files = fileResults(l.plan)
	l.result.Exact = l.recordAlone
	for i, f := range l.plan.Files() {
		how := l.restored(f)
		l.result.Files[i].Restored = how
		if how != restoredBytes && how != restoredRemoved {
			l.result.Exact = false
		}
	}
}

func (l *leaver) restored(f conf.PlannedFile) Restored {
	rec := cmp.Or(l.record.File(f.Before.Path), (&conf.Record{Files: l.own}).File(f.Before.Path))
	switch {
	case f.After == nil:
		return restoredRemoved
	case slices.Contains(l.later, f.Before.Path):
		return RestoredStandalone
	case rec != nil && bytes.Equal(f.After, rec.Original):
		return restoredBytes
	case rec == nil || !l.recordAlone && slices.Contains(conflictPaths(l.plan.Conflicts), f.Before.Path):
		return RestoredStandalone
	}
	return RestoredKeys
}

func (l *leaver) notGivenBack(err error) error {
	e := &FailedError{Step: "giving the files back", Err: err}
	after := "the files were given back"
	if l.ownErr != nil {
		e.Err, after = errors.Join(err, l.ownErr), ownNotBack
	}
	e.State, e.Hint = leftBy(err, "the files are still those of a cluster node", after)
	e.Hint = cmp.Or(deniedHint(err), e.Hint)
	if l.found != untouched {
		e.State += " (" + l.found + ")"
	}
	return e
}

func (l *leaver) nothingToDo() bool {
	return l.record == nil && l.state == nil && len(l.own) == 0 && !l.bare && len(l.plan.Changed()) == 0
}

func (l *leaver) identify(ctx context.Context) {
	if l.state != nil {
		l.id, l.address = l.state.InstanceID, l.state.Address
	}
	if l.id == "" && l.req.Identify != nil {
		inst, err := l.req.Identify(ctx)
		if err != nil {
			l.warn(IDIdentity, "", "this machine's row in the registry cannot be found: %v", err)
			return
		}
		l.id = inst.ID
		if a, err := l.Machine.address(l.req.Address, l.req.Address != "", inst); err == nil && l.address == "" {
			l.address = a.Addr.String()
		}
	}
	if v, err := ams.ReadDropIn(l.Root); err == nil && l.address == "" && v.HostAddress != "" {
		l.address = v.HostAddress
	}
}

// connect may fail: a leave does not need MongoDB.
func (l *leaver) connect(ctx context.Context) {
	l.asked = true
	if l.req.Mongo.IsZero() {
		l.warn(idDeregister, "give --mongo to deregister this node", "no MongoDB address is known: the cluster's lists keep this node until it is pruned")
		return
	}
	var err error
	if l.client, err = l.Connect(ctx, l.req.Mongo); err == nil {
		err = l.outlast(ctx, func(ctx context.Context) error {
			err := l.client.Ping(ctx)
			l.reached = err == nil
			return err
		})
	}
	if err != nil {
		l.warn(IDMongo, "", "%v", err)
	}
}

func (l *leaver) look(ctx context.Context) {
	if !l.reached || l.address == "" {
		return
	}
	l.lookedFor = l.address
	err := l.outlast(ctx, func(ctx context.Context) error {
		var err error
		l.seen, err = l.client.AMSNodesByAddress(ctx, l.address)
		return err
	})
	if err != nil {
		l.warn(IDMongo, "", "%v", err)
	}
}

// outlast waits for an unreachable MongoDB only if it answered before or the address names the set.
func (l *leaver) outlast(ctx context.Context, do func(context.Context) error) error {
	return l.Machine.outlast(ctx, func(err error) bool {
		return l.reached || l.req.Mongo.NamesSet() || cluster.KindOf(err) == cluster.KindNotPrimary
	}, do)
}

// refuseSessions returns an error if the restart would cut sessions. If no AMS document was seen of a machine that is no node,
// and they cannot be counted, the leave continues.
func (l *leaver) refuseSessions(ctx context.Context) error {
	if l.req.Now && !l.req.DryRun {
		return nil
	}
	if st, err := l.Service.State(ctx); err == nil && st.Dead() {
		return nil
	}
	client, registered := l.client, l.reached && l.address != "" && len(l.seen) > 0
	if !registered {
		client = nil
	}
	node := l.state != nil && (l.state.Phase == PhaseJoined || l.state.WasJoined || l.state.forgotten)
	counts := node || l.state != nil && (needsRestart(l.plan) || l.restartPending())
	live, f, refuse := l.checkSessions(ctx, "leave", node, counts, l.install, client, l.address)
	l.result.Live = live
	switch {
	case f.ID == "":
	case !refuse, f.Err != nil && !registered && !node:
		l.warn(f.ID, f.Hint, "%s", f.Text)
	case !l.req.Now:
		if live != nil && registered {
			f.Hint = "`amsagent drain` waits until they end; leave with --now cuts them"
		}
		return l.refused(f)
	}
	return nil
}

// announce sets the state draining before the first change.
func (l *leaver) announce(ctx context.Context) {
	if !l.reached || l.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, mongoTime)
	defer cancel()
	own, stop := outlasting(ctx, mongoFirst) // a write that was cut off may still happen
	defer stop()
	var refused *cluster.TransitionError
	before, err := l.client.Node(ctx, l.id)
	if err == nil {
		err = l.client.SetOwnState(own, l.self(l.id, l.address), cluster.StateDraining, cluster.LeftByLeave, cluster.Details{LeftBy: cluster.LeftByLeave})
	}
	var other *cluster.OtherMachineError
	switch {
	case errors.As(err, &other) && other.Boot: // it leaves once it is silent
	case other != nil:
		l.warn(IDDuplicate, DuplicateHint, "the row of %s stays as it is: %v", l.id, other)
	case errors.Is(err, cluster.ErrNoNode), errors.As(err, &refused):
	default:
		l.drained = before.State == cluster.StateActive // also if the answer was lost
		if err != nil {
			l.warn(IDUnverified, "", "writing to the registry that this node leaves failed: %v", err)
		}
	}
}

// takeBack reverts announce and the state file: the node serves on.
func (l *leaver) takeBack(ctx context.Context) {
	l.daemonBack = l.daemonStopped
	ctx, cancel := after(ctx, mongoTime)
	defer cancel()
	if l.drained {
		if err := l.client.SetOwnState(ctx, l.self(l.id, l.address), cluster.StateActive, "leaving failed", cluster.Details{}); err != nil {
			l.log().Warn("writing the state to the registry failed", "state", string(cluster.StateActive), "error", err)
		}
	}
	var err error
	switch {
	case l.state == nil:
		err = forgetState(l.store, l.own)
	case !l.state.forgotten:
		err = saveState(l.store, *l.state)
	}
	if err != nil {
		l.log().Warn("the state file could not be put back", "error", err)
	}
}

// up also reports a server that starts, possibly again after a crash.
func (l *leaver) up() bool {
	return l.service.Running() || l.service.Activity == ams.ActivityActivating
}

// giveBack restores the files while the server is down. It starts a server that ran. Only a stop or a commit that failed before
// a file changed is undone.
func (l *leaver) giveBack(ctx context.Context) error {
	st, up := l.service, l.up()
	changed := l.restartPending() || slices.ContainsFunc(l.plan.Changed(), func(f conf.PlannedFile) bool {
		return changesServer(f) || !agentsOwn(f.Before.Path)
	})
	// An interrupted run may have stopped it.
	start := up || l.owesStart(l.state, st)
	stop := st.Known() && (changed || !up)
	wrote := false
	step, err := l.change(ctx, serverChange{
		managed: stop, ran: start, start: start, former: previousAddress(l.state),
		save: func(start bool) error {
			return l.save(State{Phase: PhaseLeaving, RestartPending: changed && !wrote, Start: start, Standalone: l.standalone})
		},
		write: func() error {
			l.stoppedAt = time.Now() // the former server may have written its document until now
			if stop {
				// It saved its settings as it ended.
				former := l.plan
				if err := l.planFiles(); err != nil {
					l.plan = former
					return err
				}
				l.fillResult()
			}
			if err := l.commit(); err != nil {
				return err
			}
			if n := CountChanged(l.result.Files); n > 0 {
				l.say("gave back %s", plural(n, "file"))
			}
			if wrote = stop; stop {
				l.reload(ctx)
			}
			return nil
		},
	})
	l.result.Restarted = stop && start
	switch {
	case err == nil:
	case step == stepStart:
		return l.notStarted(ctx, err)
	case isHalfChanged(err):
		return l.notGivenBack(err)
	default:
		if !errors.Is(err, errDown) {
			l.changing = step != stepState
			if l.state != nil && l.changing {
				l.state.Start = false // it runs again
			}
			l.takeBack(ctx)
		}
		if step == stepWrite {
			return l.notGivenBack(err)
		}
		return &FailedError{Step: step, Err: err, State: "the files are still those of a cluster node; of Ant Media Server: " + l.serverNow(ctx)}
	}
	if l.ownErr != nil {
		return l.ownErr
	}
	if changed && !st.Known() {
		l.warn(IDService, "restart Ant Media Server now", "Ant Media Server is not managed here: until it is restarted it stays in the cluster")
	}
	if l.result.Restarted {
		if _, err := ams.WaitStable(ctx, l.Service, stableTime); err != nil && !errors.Is(err, ams.ErrNotManaged) {
			return l.notStarted(ctx, err)
		}
	}
	if err := l.save(State{Phase: PhaseLeaving}); err != nil {
		return &FailedError{Step: "writing " + StateDir, Err: err, State: "this machine is standalone; its rows in MongoDB remain: run the same command again"}
	}
	return nil
}

func (l *leaver) notStarted(ctx context.Context, err error) error {
	bound, cancel := after(ctx, mongoTime)
	defer cancel()
	return &FailedError{
		Step: "starting Ant Media Server standalone", Err: err, Hint: ams.Hint(err),
		State: "the files were given back; of Ant Media Server: " + l.serverNow(bound) + ". Look at " + serverLog + ", then run the same command again: it starts it, and deregisters",
	}
}

// restartPending reports whether the server has not read an earlier run's files. A killed join does not count: it
// may not have written any.
func (l *leaver) restartPending() bool {
	switch {
	case l.state == nil:
		return false
	case l.state.forgotten:
		now := time.Now()
		return slices.ContainsFunc(l.seen, func(n cluster.AMSNode) bool { return n.Fresh(now) })
	}
	return l.state.RestartPending && l.state.Phase != PhaseJoining
}

func (l *leaver) deregister(ctx context.Context) error {
	l.result.Outcome = OutcomeLeft
	if l.req.Mongo.IsZero() {
		return l.forget()
	}
	listed := func(err error, hint string) error {
		return &FailedError{
			Step: "deregistering", Err: err, Hint: hint,
			Title: "this machine left, but the cluster still lists it",
			State: "this machine is standalone; its rows in MongoDB remain",
		}
	}
	if l.client == nil {
		return listed(errors.New("MongoDB cannot be reached"), "run the same command again when MongoDB is back")
	}
	e := cluster.Event{ID: cluster.NewEventID(), Node: l.id, Kind: "leave", Who: "amsagent", Details: map[string]string{"address": l.address}}
	depart := func() error {
		ctx, cancel := after(ctx, electionTime+mongoTime)
		defer cancel()
		return l.outlast(ctx, func(ctx context.Context) error { return l.departed(ctx, e) })
	}
	err := depart()
	if other, is := errors.AsType[*cluster.OtherMachineError](err); is {
		l.say("%v: waiting %s until it is silent", other, other.Free().Round(time.Second))
		if sleep.For(ctx, other.Free()) {
			err = depart()
		}
	}
	if err != nil {
		return listed(err, "run the same command again")
	}
	l.say("deregistered %s", l.id)
	return l.forget()
}

// departed may be repeated. It returns a [cluster.OtherMachineError] if the record is of another boot.
func (l *leaver) departed(ctx context.Context, e cluster.Event) error {
	var errs []error
	if l.address != "" {
		errs = append(errs, l.removeDocuments(ctx))
	}
	if l.id != "" {
		err := l.client.SetOwnState(ctx, l.self(l.id, l.address), cluster.StateLeft, cluster.LeftByLeave, cluster.Details{LeftBy: cluster.LeftByLeave})
		other, is := errors.AsType[*cluster.OtherMachineError](err)
		if !errors.Is(err, cluster.ErrNoNode) && (!is || other.Boot) {
			errs = append(errs, err)
		}
		if err == nil {
			errs = append(errs, l.client.AddEvent(ctx, e))
		}
	}
	return errors.Join(errs...)
}

// removeDocuments keeps documents that a running server still writes.
func (l *leaver) removeDocuments(ctx context.Context) error {
	gone, stay, err := l.client.DeleteAMSNodes(ctx, l.address, "", l.stoppedAt)
	for _, n := range gone {
		l.result.Deregistered = append(l.result.Deregistered, n.ID)
	}
	for _, n := range stay {
		l.warn(idDeregister, "restart Ant Media Server, then run the same command again",
			"AMS's document %s of %s stays: an Ant Media Server with this address still writes it, or it has no readable time", n.ID, n.IP)
	}
	return err
}

// commit restores the server's files, and then the agent's own. The secret stays until the node is deregistered: a repeated
// leave needs it.
func (l *leaver) commit() error {
	err := l.plan.CommitUndo("leave")
	if err == nil || onlyEndMissing(err) {
		l.ownErr = l.writeOwn(func(path string) bool { return l.req.Offline || !isSecret(path) })
	}
	return err
}

func (l *leaver) writeOwn(which func(path string) bool) error {
	if err := l.plan.Only(which).WriteOwn(); err != nil {
		return &FailedError{
			Step: "giving the agent's own files back", Err: err, Hint: cmp.Or(deniedHint(err), "run the same command again"),
			State: ownNotBack,
		}
	}
	return nil
}

func (l *leaver) forget() error {
	if err := l.writeOwn(isSecret); err != nil {
		return err
	}
	// The state is last: it marks an unfinished leave.
	for _, path := range []string{drainPath, GoodConfigPath, seenPath, statePath} {
		if err := l.store.RemoveFile(path); err != nil {
			return &FailedError{Step: "removing " + path, Err: err, State: "this machine left the cluster"}
		}
	}
	return nil
}

func (l *leaver) save(s State) error {
	s.InstanceID, s.Address = l.id, l.address
	l.stamp(&s)
	if l.state != nil {
		s.Role, s.Group, s.Given = l.state.Role, l.state.Group, l.state.Given
	}
	s.Own = l.own
	return saveState(l.store, s)
}

// CountChanged returns the number of changed files.
func CountChanged(files []FileResult) int {
	n := 0
	for _, f := range files {
		if f.Changed {
			n++
		}
	}
	return n
}
