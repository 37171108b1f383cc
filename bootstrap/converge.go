// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata"
)

// The ids of what a convergence found and repaired.
const (
	IDCloned = "AMS-CLONED" // the state is that of another machine: this is a copy of its disk
	IDMoved  = "AMS-MOVED"  // the address is another one than joined with
	IDRole   = "AMS-ROLE"   // the role or the group is another one than joined with
	IDConfig = "AMS-CONFIG" // a setting is malformed, as in an instance tag
)

// ConvergeMode says when the server's files may be written.
type ConvergeMode string

const (
	// ConvergeByCommand writes them unless the server is starting, or the service manager fails
	// to say whether it is.
	ConvergeByCommand ConvergeMode = ""
	// ConvergeBeforeStart writes them: the service manager is about to start the
	// server. Nothing is waited for.
	ConvergeBeforeStart ConvergeMode = "before-start"
	// ConvergeWatch writes them only where the server is known not to run, and
	// otherwise compares: the server writes them itself, in place. The agent's own
	// files are written in any case.
	ConvergeWatch ConvergeMode = "watch"
)

// ConvergeRequest is what a machine that has joined is to be kept at.
type ConvergeRequest struct {
	Mode ConvergeMode
	// Mongo is where the cluster's memory is; zero where nobody knows. Then the
	// files are left alone.
	Mongo cluster.Target
	// MongoStored tells that it was read from [MongoPath].
	MongoStored bool
	// Role and Group replace those of the join where they are not empty, and where
	// no join wrote others since Known, the state when they were looked up; nil is
	// any.
	Known        *State
	Role, Group  string
	Address      string
	ForceAddress bool
	// AddressKept tells that a join on this disk was given the address: a copy of
	// the disk has one of its own.
	AddressKept bool
	Valve       Valve
	Interval    time.Duration // from beat to beat, for the row
	// Identify asks who this machine is. Where it fails, but with [ErrTags], the
	// machine is taken for the one that joined: a cloud's metadata that is away must
	// not keep a node from booting.
	Identify func(context.Context) (metadata.Instance, error)
}

// ErrTags is that of who this machine is no more than a tag of the agent's is malformed.
// The instance comes with it.
var ErrTags = errors.New("an instance tag is malformed")

// Difference is one value that differs, with secrets masked.
type Difference = conf.Difference

// Convergence is what was found and what was repaired.
type Convergence struct {
	// Phase is what the state file says; "" where this machine never joined.
	// Only a machine in PhaseJoined was looked at further.
	Phase Phase `json:"phase,omitempty"`
	// Repairs are the differences that were found and are no more.
	Repairs []Finding `json:"repairs"`
	// Differences are values that differ from what this machine joined with, and
	// were left so because the server runs. The next start takes up the new ones.
	Differences []conf.Difference `json:"differences"`
	// Torn are settings files that are half written or empty.
	Torn []string `json:"torn,omitempty"`
	// Standalone tells that a person made this machine standalone by hand: all of its
	// files agree on it, and the release is the one that joined. They are left alone.
	Standalone bool `json:"standalone"`
	// Warnings are what could not be looked at or mended.
	Warnings []Finding    `json:"warnings"`
	Files    []FileResult `json:"files"`
	// RestartNeeded reports that the server runs with other settings than it will start
	// with: files differ, or were written after the server was started.
	RestartNeeded bool `json:"restart_needed"`
	// Node is the row of this machine with all facts, but without a state.
	Node cluster.Node `json:"node"`
	// Unidentified reports that the metadata did not answer: Node lacks what they say.
	Unidentified bool `json:"-"`
	// Incomplete reports that they left something out that they usually say.
	Incomplete bool `json:"-"`
}

// Converge brings a machine that has joined back to what it joined as: files that
// an upgrade restored, a lost drop-in, a new address, a copy of another machine's
// disk. It does not start, stop or restart AMS, and asks MongoDB nothing: at boot
// it runs before AMS does. A machine that is as it should be is not written to.
func (m *Machine) Converge(ctx context.Context, req ConvergeRequest) (*Convergence, error) {
	store := m.store()
	if req.Mode != ConvergeBeforeStart {
		m.identifyFirst(ctx, store, &req)
		if errors.Is(ctx.Err(), context.Canceled) { // unlike a metadata service that is slow
			return nil, &FailedError{Step: "asking who this machine is", Err: context.Cause(ctx), State: untouched}
		}
	}
	c, err := m.convergeOnce(ctx, store, req, pass{found: untouched, asks: m.Server()})
	if starting, ok := errors.AsType[*startingError](err); ok {
		// Without the lock: a drain that comes meanwhile stops the server at its time.
		m.awaitStarted(ctx, starting.asks)
		if ctx.Err() == nil {
			c, err = m.convergeOnce(ctx, store, req, starting.pass)
		}
	}
	if starting, ok := errors.AsType[*startingError](err); ok {
		failed := &FailedError{Step: "writing the configuration", Err: err, State: starting.found, Hint: "run the same command again when it serves, or restart it: its files are put right just before it starts"}
		if ctx.Err() != nil {
			failed.Step, failed.Err, failed.Unknown = "waiting for Ant Media Server, which is starting", context.Cause(ctx), isTimeout(ctx.Err())
		}
		err = failed
	}
	return c, err
}

// startingError is that the server's files are not to be written now: an application saves
// its settings in the middle of its start, from what it read at the beginning.
type startingError struct{ pass }

// pass is what a pass of a convergence knows of the one before it.
type pass struct {
	found     string    // the state that is left
	recovered []Finding // what was done about an interrupted command
	asks      *Server   // since the first pass
}

func (*startingError) Error() string {
	return "Ant Media Server is starting, and would write over its files what it has read before"
}

// convergeOnce is [Machine.Converge]; where files are to be written while the server starts,
// it writes nothing and returns a [startingError].
func (m *Machine) convergeOnce(ctx context.Context, store *conf.Store, req ConvergeRequest, p pass) (*Convergence, error) {
	c := &Convergence{Repairs: append([]Finding{}, p.recovered...), Warnings: []Finding{}, Differences: []conf.Difference{}}
	if req.Mode == ConvergeBeforeStart {
		// A join or a leave starts the server itself, and holds the lock meanwhile.
		if s, err := loadState(store); err == nil && (s == nil || s.Phase != PhaseJoined) {
			if s != nil {
				c.Phase = s.Phase
			}
			return c, nil
		}
	}
	wait := ctx
	if req.Mode == ConvergeBeforeStart {
		bound, cancel := context.WithTimeout(ctx, beforeStartLock)
		defer cancel()
		wait = bound
	}
	lock, err := m.lock(wait)
	if errors.Is(err, conf.ErrLocked) && req.Mode == ConvergeBeforeStart {
		return c, nil // it starts the server, and has written the files
	}
	if err != nil {
		return c, &FailedError{Step: "waiting for the lock", Err: err, State: p.found, Unknown: isTimeout(err)}
	}
	defer func() { _ = lock.Unlock() }()
	now, left, unfinished := m.recover(ctx, store)
	if unfinished != nil {
		unfinished = notRecovered(unfinished, leaveFirst, untouched)
	}
	if len(now) > 0 {
		p.found, p.recovered = left, append(p.recovered, now...)
	}
	c.Repairs = append(c.Repairs, now...)
	state, err := loadState(store)
	switch {
	case unfinished != nil && (err != nil || state == nil || state.Phase != PhaseJoined):
		return nil, unfinished
	case err != nil:
		if n, ok := recordFinding(err, "run amsagent join, or amsagent leave"); ok {
			return nil, &PreflightError{Findings: []Finding{n}, State: p.found}
		}
		return nil, &FailedError{Step: "reading the state", Err: err, State: p.found}
	}
	if state == nil {
		return c, nil
	}
	c.Phase = state.Phase
	if state.Phase != PhaseJoined {
		return c, nil
	}
	k := &converger{Machine: m, store: store, req: req, state: *state, result: c, pass: p}
	return c, k.run(ctx, unfinished)
}

// identifyFirst asks who this machine is before the machine is locked: a drain must
// not wait for a metadata service that hangs. A machine that is no node is not
// asked about.
func (m *Machine) identifyFirst(ctx context.Context, store *conf.Store, req *ConvergeRequest) {
	if s, err := loadState(store); err != nil || s == nil || s.Phase != PhaseJoined {
		return
	}
	req.Identify = m.AskNow(ctx, req.Identify)
}

// beforeStartLock is how long the start of the server waits for another command of
// the agent. One that restarts the server holds the lock and has written the files.
const beforeStartLock = 2 * time.Second

// converger is one convergence under way.
type converger struct {
	*Machine
	store  *conf.Store
	req    ConvergeRequest
	state  State // as it is to be
	result *Convergence
	pass
	facts facts
	// stateErr is why the state of the service is not known.
	stateErr error
}

// run converges where err is nil. Whatever keeps the files from being mended: the node
// serves, and is to be seen.
func (k *converger) run(ctx context.Context, err error) error {
	f := &k.facts
	if f.service, k.stateErr = k.Service.State(ctx); k.stateErr != nil {
		k.warn(IDService, "the service does not say its state: %v", k.stateErr)
	}
	if rerr := k.read(); err == nil {
		err = rerr
	}
	before := k.state
	f.state, f.skipApps = &before, true
	if p := k.req.Known; p == nil || (p.Role == k.state.Role && p.Group == k.state.Group && p.Since.Equal(k.state.Since)) {
		k.take("role", &k.state.Role, k.req.Role)
		k.take("group", &k.state.Group, k.req.Group)
	}
	k.identify(ctx)
	if err == nil {
		err = k.mend(ctx)
	}
	k.node()
	return err
}

// take takes what is said of this machine now, where anything is.
func (k *converger) take(what string, is *string, said string) {
	if said == "" || said == *is {
		return
	}
	k.repaired(IDRole, "the %s was %s and is %s", what, cmp.Or(*is, "not known"), said)
	*is = said
}

// read reads what a plan is made of.
func (k *converger) read() (err error) {
	f := &k.facts
	f.record, err = k.store.Record()
	if n, ok := recordFinding(err, leaveFirst); ok {
		err = &PreflightError{Findings: []Finding{n}, State: k.found}
	} else if err != nil {
		err = &FailedError{Step: "reading the undo record", Err: err, State: k.found}
	}
	install, ierr := k.open()
	if ierr != nil {
		return cmp.Or[error](err, &PreflightError{Findings: []Finding{{ID: IDInstall, Text: ierr.Error(), Hint: ams.Hint(ierr), Err: ierr}}, State: k.found})
	}
	f.install = install
	return err
}

func (k *converger) warn(id, format string, args ...any) {
	k.result.Warnings = append(k.result.Warnings, Finding{ID: id, Text: fmt.Sprintf(format, args...)})
}

func (k *converger) repaired(id, format string, args ...any) {
	k.result.Repairs = append(k.result.Repairs, Finding{ID: id, Text: fmt.Sprintf(format, args...)})
}

// identify finds out who this machine is today.
func (k *converger) identify(ctx context.Context) {
	f := &k.facts
	known := previousAddress(&k.state)
	var inst metadata.Instance
	var err error
	if k.req.Mode == ConvergeBeforeStart {
		// The server waits: what the daemon, or the boot, found out last is good enough.
		f.inst = metadata.Instance{ID: k.state.InstanceID, Address: known, Provider: k.state.Provider}
		f.address = ams.Address{Addr: known, Reason: "as joined"}
	} else if inst, err = k.req.Identify(ctx); errors.Is(err, ErrTags) {
		k.warn(IDConfig, "%v; what this node joined with holds", err)
	} else if err != nil {
		k.warn(IDIdentity, "%v; taken for %s, which joined", err, k.state.InstanceID)
		inst = metadata.Instance{ID: k.state.InstanceID, Address: known}
		k.result.Unidentified = true
	}
	if k.req.Mode == ConvergeBeforeStart {
		return
	}
	k.compareIdentity(ctx, inst, known)
	if f.hostname, err = ams.LookupHostname(ctx, k.Root); err != nil {
		k.warn(IDHostname, "this machine's own name could not be looked up: %v", err)
	}
}

// compareIdentity notes where the machine is another one than joined.
func (k *converger) compareIdentity(ctx context.Context, inst metadata.Instance, known netip.Addr) {
	f := &k.facts
	f.inst = inst
	k.result.Incomplete = len(inst.Missing) > 0
	if f.inst.ID != k.state.InstanceID {
		k.repaired(IDCloned, "this is a copy of %s's disk: it is %s now", k.state.InstanceID, f.inst.ID)
		k.state.InstanceID = f.inst.ID
		if k.req.AddressKept && k.begin(ctx, k.found) == nil { // else mend says it
			k.forgetAddress()
		}
	}
	var err error
	if f.address, err = k.address(k.req.Address, k.req.ForceAddress, inst); err != nil {
		// The network may not be up yet, and the answer may lack this address: it is looked at again later.
		unsure := k.result.Unidentified || slices.Contains(inst.Missing, "public_address") || slices.Contains(inst.Missing, "ipv6")
		if !unsure || !errors.Is(err, ams.ErrAddressNotHere) {
			k.warn(IDAddress, "%v; %s, as joined, is kept", err, known)
		}
		f.address = ams.Address{Addr: known, Reason: "as joined"}
	}
	if f.address.Addr != known {
		k.repaired(IDMoved, "the address was %s and is %s", known, f.address.Addr)
		k.state.Address = f.address.Addr.String()
	}
}

// forgetAddress drops the address that was given to the machine whose disk this
// was.
func (k *converger) forgetAddress() {
	k.req.Address, k.req.ForceAddress = "", false
	given, err := loadGiven(k.store)
	if err == nil {
		err = saveGiven(k.store, given.withoutAddress())
	}
	if err != nil {
		k.warn(IDRecord, "the address of the machine whose disk this was is still kept: %v", err)
	}
}

// writes reports whether the server's files may be written now.
func (k *converger) writes() bool {
	// Without the state it is not known whether the server is starting. A unit that is not there starts none.
	known := k.stateErr == nil || errors.Is(k.stateErr, ams.ErrNoUnit)
	return k.req.Mode == ConvergeByCommand && known || k.stopped()
}

// stopped reports whether no server runs, which is about to start with the files
// as they are then.
func (k *converger) stopped() bool {
	s := k.facts.service
	return k.req.Mode == ConvergeBeforeStart || s.Dead()
}

// up reports whether a server runs that may have read its files already.
func (k *converger) up() bool { return k.facts.service.Running() || k.facts.service.Starting() }

// mend plans what a join would write, and writes of what differs what it may.
func (k *converger) mend(ctx context.Context) error {
	f := &k.facts
	if k.req.Mongo.IsZero() {
		k.warn(IDMongo, "no MongoDB address is configured; the files were not looked at")
	} else {
		k.checkPlan(k.store, JoinRequest{Mongo: k.req.Mongo, Valve: k.req.Valve, DryRun: !k.writes()}, f)
		if len(f.failed) > 0 {
			return &PreflightError{Findings: f.failed, State: k.found}
		}
		k.result.Warnings = append(k.result.Warnings, f.warnings...)
		k.result.Torn = f.plan.Torn
	}
	k.state.Provider = cmp.Or(f.provider(), k.state.Provider)
	if f.plan != nil && madeStandalone(k.store, f.install, k.state.Release) {
		k.result.Standalone = true
		f.plan = f.plan.Only(func(string) bool { return false })
	}
	if f.plan != nil && k.req.Mode == ConvergeBeforeStart && !f.service.Known() {
		// What stop timeout is in effect is not known, and the drop-in never shortens it.
		f.plan = f.plan.Only(func(path string) bool { return path != ams.DropInPath })
	}
	if f.plan != nil && k.req.MongoStored && k.renamed() {
		f.plan = f.plan.Only(func(path string) bool { return path != MongoPath })
	}
	k.limit()
	k.result.Files = fileResults(f.plan)
	changed := f.plan != nil && len(f.plan.Changed()) > 0
	// After ctx ended no application was asked.
	if changed && k.req.Mode == ConvergeByCommand && k.up() && (k.asks.starts(ctx, k.asks.look(ctx)) || ctx.Err() != nil) {
		return &startingError{k.pass}
	}
	k.noteWritten(changed)
	if changed || k.state != *f.state {
		if err := k.begin(ctx, k.found); err != nil {
			return err
		}
	}
	release := k.state.Release
	if changed && k.writes() {
		// Only once they are written: standalone files of a release that the state names are
		// those that a person made so.
		k.state.Release = f.state.Release
	}
	// First: a crash behind it is mended by the next run, which plans anew.
	if err := k.save(*f.state); err != nil {
		return err
	}
	if changed {
		if err := k.write(ctx); err != nil {
			return err
		}
		before := k.state
		k.state.Release = release
		if err := k.save(before); err != nil {
			return err
		}
	}
	if k.req.Mode == ConvergeByCommand && !k.writes() && len(k.result.Differences) > 0 {
		return k.unwritten(ctx, changed || k.state != *f.state)
	}
	return nil
}

// unwritten is the error of a command that wrote none of the server's files, as the state of
// the service is not known.
func (k *converger) unwritten(ctx context.Context, own bool) error {
	err := cmp.Or(context.Cause(ctx), k.stateErr)
	state := k.found
	if own {
		state = "the agent's own files were written, those of Ant Media Server were not"
	}
	return &FailedError{
		Step: "asking for the state of the service", Err: err, State: state, Unknown: isTimeout(err),
		Hint: cmp.Or(ams.Hint(err), "run the same command again; the files are put right just before the server starts, too"),
	}
}

// save writes the state where it is another one than before.
func (k *converger) save(before State) error {
	if k.state == before {
		return nil
	}
	if err := saveState(k.store, k.state); err != nil {
		return &FailedError{Step: "writing " + statePath, Err: err, State: k.found}
	}
	return nil
}

// madeStandalone reports whether a person switched this machine with the vendor's
// script: the release is the one that joined, and every file is a standalone
// server's. Files that an upgrade restored look like that, too, with another
// release.
func madeStandalone(store *conf.Store, in *ams.Installation, joined string) bool {
	return in.Release.Known() && in.Release.String() == joined && standaloneFiles(store, in)
}

// standaloneFiles reports whether all files agree that the server is standalone.
func standaloneFiles(store *conf.Store, in *ams.Installation) bool {
	if mode, err := in.Mode(); err != nil || mode != conf.ModeStandalone {
		return false
	}
	for _, app := range in.Apps {
		file, err := store.ReadSettings(app.File.Path)
		if err != nil {
			return false
		}
		p, err := conf.ParseProperties(file.Bytes)
		if err != nil {
			return false
		}
		if kind, ok := p.Get("db.type"); ok && kind == "mongodb" {
			return false
		}
	}
	return true
}

// renamed reports whether the file that named MongoDB names another one by now, or nothing whole:
// somebody has written it since it was read, and it is not written over.
func (k *converger) renamed() bool {
	return slices.ContainsFunc(k.facts.plan.Changed(), func(p conf.PlannedFile) bool {
		if p.Before.Path != MongoPath || !p.Before.Exists() {
			return false
		}
		now, err := cluster.ParseTarget(strings.TrimRight(string(p.Before.Bytes), "\r\n"))
		return err != nil || !now.Equal(k.req.Mongo)
	})
}

// limit takes out of the plan what is not to be written while the server runs, and
// notes it as a difference.
func (k *converger) limit() {
	f := &k.facts
	if f.plan == nil {
		return
	}
	if k.writes() {
		if f.install.Release.Known() && !k.result.Standalone {
			k.state.Release = f.install.Release.String()
		}
		return
	}
	left := f.plan.Only(func(path string) bool { return !agentsOwn(path) })
	for _, file := range left.Changed() {
		if !changesServer(file) {
			continue // its permissions alone: the next start sees to them
		}
		k.result.Differences = append(k.result.Differences, k.differences(file)...)
	}
	if len(k.result.Differences) == 0 && f.install.Release.Known() && !k.result.Standalone {
		k.state.Release = f.install.Release.String()
	}
	f.plan = f.plan.Only(agentsOwn)
}

// differences are those of a file, told as a person looks at it.
func (k *converger) differences(file conf.PlannedFile) []conf.Difference {
	d := conf.Difference{Path: file.Before.Path}
	switch {
	case slices.Contains(k.facts.plan.Torn, d.Path):
		d.Key, d.Old, d.New = "file", "half written or empty", "as joined"
	case d.Path == ams.DropInPath:
		was := ams.ParseDropIn(file.Before.Bytes)
		is := ams.ParseDropIn(file.After)
		d.Key, d.Old, d.New = ams.HostAddressVariable, cmp.Or(was.HostAddress, "(missing)"), is.HostAddress
	default:
		return file.Differences()
	}
	return []conf.Difference{d}
}

// agentsOwn reports whether a file is none that the server writes.
func agentsOwn(path string) bool {
	return path == ams.DropInPath || path == MongoPath || path == hostsPath
}

// noteWritten notes whether the server that runs has to be started again to take up what
// is written.
func (k *converger) noteWritten(changed bool) {
	f := &k.facts
	if k.stopped() || !k.state.FilesWritten.IsZero() && !k.olderThanFiles(&k.state, f.service) {
		k.state.RestartPending, k.state.FilesWritten = false, time.Time{}
	}
	if k.up() && !k.stopped() && changed && needsRestart(f.plan) {
		k.state.FilesWritten = time.Now().UTC().Truncate(time.Second)
	}
	k.result.RestartNeeded = k.state.RestartPending || !k.state.FilesWritten.IsZero() || len(k.result.Differences) > 0
}

// olderThanFiles reports whether files that the server reads were written after it was started.
func (m *Machine) olderThanFiles(s *State, service ams.State) bool {
	return s != nil && !s.FilesWritten.IsZero() && !m.serverStarted(service).at.After(s.FilesWritten.Add(time.Second))
}

// write commits what is left in the plan.
func (k *converger) write(ctx context.Context) error {
	f := &k.facts
	paths := f.plan.ChangedPaths()
	if before, err := k.commit(ctx); err != nil {
		state, hint := leftBy(err, before, "the files are those of a cluster node")
		return &FailedError{Step: "writing the configuration", Err: err, State: state, Hint: cmp.Or(deniedHint(err), hint)}
	}
	k.repaired(IDDrift, "not as joined, and written again: %s", joinPaths(paths))
	if k.req.Mode == ConvergeWatch {
		k.startedMeanwhile(ctx)
	}
	if slices.Contains(paths, ams.DropInPath) {
		ctx, cancel := context.WithTimeout(ctx, reloadTime)
		defer cancel()
		if err := k.Service.Reload(ctx); err != nil {
			k.warn(IDService, "the service manager could not be told to read its files again: %v", err)
		}
	}
	return nil
}

// startingTime is how long a server may take for its start, about: on a loaded machine
// the last application serves after a minute.
const startingTime = 2 * time.Minute

// awaitStarted waits while the server starts. A join and a leave need not wait, because they
// restart it.
func (m *Machine) awaitStarted(ctx context.Context, server *Server) {
	ctx, cancel := context.WithTimeout(ctx, startingTime)
	defer cancel()
	m.say("waiting for Ant Media Server, which is starting")
	Watch(ctx, server, func(is Served) bool { return server.starts(ctx, is.Answers) })
}

// starts reports whether an application may be starting. In the middle of its start it answers 500, as a broken one does:
// it is broken only in a server that is not young. Without a known age, the server started when this was first asked.
func (s *Server) starts(ctx context.Context, answers []ams.AppAnswer) bool {
	young := time.Since(s.askService(ctx).or(s.first).at) < startingTime
	return len(answers) == 0 || slices.ContainsFunc(answers, func(a ams.AppAnswer) bool {
		return a.State == "" || a.State == ams.AppStarting || young && !a.Serves()
	})
}

// startedMeanwhile notes a restart for a server that did not run before the files were
// written, and runs now: it may have read them as they were. Under systemd the drop-in
// looks at the files just before each start.
func (k *converger) startedMeanwhile(ctx context.Context) {
	written := time.Now()
	if !k.stopped() || k.DropIn {
		return
	}
	now, err := k.Service.State(ctx)
	if err != nil || now.Dead() || !now.Known() || now.Started.After(written) {
		return
	}
	if !needsRestart(k.facts.plan) {
		return
	}
	k.state.FilesWritten = written.UTC().Truncate(time.Second)
	k.result.RestartNeeded = true
	if err := saveState(k.store, k.state); err != nil {
		k.warn(IDRecord, "the server was started while its files were written, which could not be noted: %v", err)
	}
}

// commit writes the plan. One that holds some of the files only is not made again
// where a file changed meanwhile: the next convergence does that. before is the state that
// a failure leaves where all files are as before the last commit.
func (k *converger) commit(ctx context.Context) (before string, err error) {
	f := &k.facts
	if !k.writes() {
		return k.found, f.plan.Commit("join")
	}
	j := &joiner{
		Machine: k.Machine, store: k.store, facts: f, found: k.found, result: &JoinResult{},
		req: JoinRequest{Mongo: k.req.Mongo, Valve: k.req.Valve},
	}
	err = j.commit(ctx)
	return j.before(), err
}

// node collects what the registry is to know of this machine.
func (k *converger) node() {
	f := &k.facts
	k.result.Node = k.nodeOf(f, k.state.Role, cmp.Or(k.state.Group, f.inst.Group))
	k.result.Node.IntervalMS, k.result.Node.Drift = cluster.MillisOf(k.req.Interval), driftText(k.result.Differences)
	if k.facts.install == nil {
		k.result.Node.AMS = k.state.Release
	}
}

// maxDrift bounds the text of a drift in the row: the server's user decides how long it is.
const maxDrift = 256

// driftText names values that differ, for the row.
func driftText(values []conf.Difference) string {
	var texts []string
	for _, d := range values[:min(len(values), maxShown)] {
		name := path.Base(d.Path)
		if dir := path.Dir(d.Path); path.Base(dir) == "WEB-INF" {
			name = path.Base(path.Dir(dir))
		}
		texts = append(texts, fmt.Sprintf("%s: %s is %s, joined with %s", name, d.Key, d.Old, d.New))
	}
	return plain.Truncate(strings.ToValidUTF8(strings.Join(texts, "; "), "?"), maxDrift)
}

// nodeOf makes the row of this machine, without a state.
func (m *Machine) nodeOf(f *facts, role, group string) cluster.Node {
	n := cluster.Node{
		ID: f.inst.ID, IP: f.address.Addr.String(), Hostname: cmp.Or(f.inst.Hostname, f.hostname.Name),
		Name: f.inst.Name, Role: role, Group: group,
		Provider: f.inst.Provider, Region: f.inst.Region, Zone: f.inst.Zone, Type: f.inst.Type,
		Agent: m.Version, BootID: m.bootID(),
	}
	if in := f.install; in != nil {
		n.AMS, n.Port = in.Release.String(), in.HTTPPort
	}
	if f.inst.PublicAddress.IsValid() {
		n.PublicIP = f.inst.PublicAddress.String()
	}
	return n
}

// StateFile is what tells whether a join, a leave or a convergence has written
// since somebody looked.
func (m *Machine) StateFile() (*State, error) { return loadState(m.store()) }

// Prove waits until AMS's own document of this address is seen, written by the
// AMS that runs now, and returns it. It ends with ctx, or when the service dies.
// Nothing is written.
func (m *Machine) Prove(ctx context.Context, client *cluster.Client, address string) (*Evidence, error) {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return nil, err
	}
	install, err := m.open()
	if err != nil {
		return nil, err
	}
	service, err := m.awaitAlive(ctx)
	if err != nil {
		return nil, err
	}
	j := &joiner{
		Machine: m, store: m.store(), result: &JoinResult{}, patient: !service.Started.IsZero() && time.Since(service.Started) > usualStart,
		facts: &facts{install: install, service: service, client: client, address: ams.Address{Addr: addr}},
	}
	if j.seen, err = client.AMSNodes(ctx); err != nil {
		return nil, err
	}
	ev, err := j.verify(ctx)
	if hint := j.elsewhereHint(err); hint != "" {
		err = fmt.Errorf("%w; %s", err, hint)
	}
	return ev, err
}

const (
	// usualStart is what the server takes from its start to its document, well counted.
	usualStart = time.Minute
	// alivePoll is how often the service manager is asked whether the server was started.
	alivePoll = time.Second
)

// awaitAlive waits for a server that is stopped to be started, and asks MongoDB nothing:
// on a hundred machines each question would be a search of all of their documents.
func (m *Machine) awaitAlive(ctx context.Context) (ams.State, error) {
	for {
		st, err := m.Service.State(ctx)
		if err != nil || !st.Stopped() {
			return st, err // why it failed is told by who watches it
		}
		if !sleep.For(ctx, alivePoll) {
			return st, fmt.Errorf("%s does not run: %w", m.Service.Name(), context.Cause(ctx))
		}
	}
}
