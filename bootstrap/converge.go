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
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata"
)

// IDs of findings.
const (
	IDCloned = "AGENT-CLONED"       // this disk is a copy of another machine's
	idMoved  = "AGENT-MOVED"        // the address has changed
	idRole   = "AGENT-ROLE-CHANGED" // the role or the group has changed
	IDConfig = "AGENT-CONFIG"       // a setting is malformed
)

// ConvergeMode decides when the server's files may be written: never while it runs.
type ConvergeMode string

const (
	// convergeByCommand writes them while the server is down.
	convergeByCommand ConvergeMode = ""
	// ConvergeBeforeStart writes them without waiting, just before the server's start.
	ConvergeBeforeStart ConvergeMode = "before-start"
	// ConvergeWatch is the daemon's. The agent's own files are always written.
	ConvergeWatch ConvergeMode = "watch"
)

// ConvergeRequest is the desired state of a machine that has joined.
type ConvergeRequest struct {
	Mode ConvergeMode
	// Mongo is zero if unknown. The files are then not compared.
	Mongo cluster.Target
	// MongoStored reports that Mongo was read from [MongoPath].
	MongoStored bool
	// Role and Group, if set, replace the joined ones if the state is still Known; nil matches any.
	Known        *State
	Role, Group  string
	Address      string
	ForceAddress bool
	// AddressKept reports that Address was given to a join on this disk: a copy of the disk must not use it.
	AddressKept bool
	Valve       Valve
	Interval    time.Duration // of heartbeats
	Registered  bool          // this machine has written the node's record
	// Identify returns this machine's instance. Errors other than [ErrTags] are only warnings: an unavailable
	// metadata service must not prevent a boot.
	Identify func(context.Context) (metadata.Instance, error)
}

// ErrTags reports a malformed instance tag of the agent. The instance is valid.
var ErrTags = errors.New("an instance tag is malformed")

// Difference is a value that differs, with secrets masked.
type Difference = conf.Difference

// Convergence is the result of [Machine.Converge].
type Convergence struct {
	// Phase is "" if this machine never joined. The other fields need PhaseJoined.
	Phase   Phase     `json:"phase,omitempty"`
	Repairs []Finding `json:"repairs"` // differences that were repaired
	// Differences are values that are not repaired while the server runs. Its next start applies the joined values.
	Differences []conf.Difference `json:"differences"`
	// Torn are half-written or empty settings files.
	Torn []string `json:"torn,omitempty"`
	// Standalone reports that an operator made all files standalone since the join. They are not changed.
	Standalone bool `json:"standalone"`
	// Warnings are failed checks and repairs.
	Warnings []Finding    `json:"warnings"`
	Files    []FileResult `json:"files"`
	// RestartNeeded reports that the running server's settings differ from its files.
	RestartNeeded bool `json:"restart_needed"`
	// Node is the node record without a state.
	Node cluster.Node `json:"node"`
	// Unidentified is why it is not known whether this machine is Node, or "".
	Unidentified string `json:"-"`
	// OtherHardware: the machine id of Node is on other hardware. It is a copy, or was moved: then the record is silent.
	OtherHardware bool `json:"-"`
	// Digest is that of the server's settings, for the daemon; "" if unknown.
	Digest string `json:"-"`
	// Incomplete reports that the metadata lacks usual values, or did not answer.
	Incomplete bool `json:"-"`
}

// Converge restores the settings of the join, for example after an upgrade or a copy of the disk. It does not use
// MongoDB: at boot it runs before the server. It starts only a server that an interrupted join or leave stopped. It
// returns a [PreflightError] or a [FailedError].
func (m *Machine) Converge(ctx context.Context, req ConvergeRequest) (*Convergence, error) {
	store := m.store()
	if req.Mode != ConvergeBeforeStart {
		m.identifyFirst(ctx, store, &req)
		if errors.Is(ctx.Err(), context.Canceled) { // not if the metadata service is slow
			return nil, &FailedError{Step: "asking who this machine is", Err: context.Cause(ctx), State: untouched}
		}
	}
	c := &Convergence{Repairs: []Finding{}, Warnings: []Finding{}, Differences: []conf.Difference{}}
	if req.Mode == ConvergeBeforeStart {
		// A join or a leave starts the server, with the lock held. It must not start between two files.
		if s, err := loadState(store); err == nil && (s == nil || s.Phase != PhaseJoined) && !store.Interrupted() {
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
		return c, nil // the holder of the lock has written the files
	}
	if err != nil {
		return c, &FailedError{Step: "waiting for the lock", Err: err, State: untouched, Unknown: isTimeout(err)}
	}
	defer func() { _ = lock.Unlock() }()
	now, found, unfinished := m.recover(ctx, store)
	if unfinished != nil {
		unfinished = notRecovered(unfinished, leaveFirst, untouched)
	}
	c.Repairs = append(c.Repairs, now...)
	state, err := loadState(store)
	switch {
	case unfinished != nil && (err != nil || state == nil || state.Phase != PhaseJoined):
		return nil, unfinished
	case err != nil:
		if n, ok := recordFinding(err, "run amsagent join, or amsagent leave"); ok {
			return nil, &PreflightError{Findings: []Finding{n}, State: found}
		}
		return nil, &FailedError{Step: "reading the state", Err: err, State: found}
	}
	if state == nil {
		return c, nil
	}
	c.Phase = state.Phase
	if state.Phase != PhaseJoined {
		c.Node = m.self(state.InstanceID, state.Address)
		if req.Mode == ConvergeBeforeStart {
			return c, nil
		}
		owed, err := m.startOwed(ctx, store)
		switch {
		case err != nil:
			c.Warnings = append(c.Warnings, warningOf(IDService, ams.Hint(err), "%v", err))
		case owed != nil:
			c.Repairs = append(c.Repairs, *owed)
		}
		return c, nil
	}
	k := &converger{Machine: m, store: store, req: req, state: *state, result: c, found: found}
	return c, k.run(ctx, unfinished)
}

// identifyFirst runs without the lock: a drain must not wait for the metadata service.
func (m *Machine) identifyFirst(ctx context.Context, store *conf.Store, req *ConvergeRequest) {
	if s, err := loadState(store); err != nil || s == nil || s.Phase != PhaseJoined {
		return
	}
	req.Identify = m.AskNow(ctx, req.Identify)
}

// beforeStartLock bounds the wait of a server's start. A command that restarts the server holds the lock and has
// already written the files.
const beforeStartLock = 2 * time.Second

type converger struct {
	*Machine
	store  *conf.Store
	req    ConvergeRequest
	state  State // the desired state
	result *Convergence
	// found is the State of an error before the first change.
	found    string
	facts    facts
	stateErr error
	writes   bool // the server's files
	exposed  []conf.PlannedFile
}

// run builds the node record even if err prevents repairs: the node serves.
func (k *converger) run(ctx context.Context, err error) error {
	f := &k.facts
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
	// After that, which may ask a name server: the server may be started meanwhile.
	if f.service, k.stateErr = k.Service.State(ctx); k.stateErr != nil {
		k.warn(IDService, "the service does not say its state: %v", k.stateErr)
	}
	if err == nil {
		err = k.mend(ctx)
	}
	k.node()
	return err
}

func (k *converger) take(what string, is *string, said string) {
	if said == "" || said == *is {
		return
	}
	k.repaired(idRole, "the %s was %s and is %s", what, cmp.Or(*is, "not known"), said)
	*is = said
}

func (k *converger) read() (err error) {
	f := &k.facts
	f.own = k.state.Own
	f.record, err = k.store.Record()
	if n, ok := recordFinding(err, leaveFirst); ok {
		err = &PreflightError{Findings: []Finding{n}, State: k.found}
	} else if err != nil {
		err = &FailedError{Step: "reading the undo record", Err: err, State: k.found}
	}
	install, ierr := k.open()
	if ierr != nil {
		return cmp.Or[error](err, &PreflightError{Findings: []Finding{failure(IDInstall, ierr, ams.Hint(ierr))}, State: k.found})
	}
	f.install = install
	return err
}

func (k *converger) warn(id, format string, args ...any) {
	k.result.Warnings = append(k.result.Warnings, warningOf(id, "", format, args...))
}

func (k *converger) repaired(id, format string, args ...any) {
	k.result.Repairs = append(k.result.Repairs, warningOf(id, "", format, args...))
}

func (k *converger) identify(ctx context.Context) {
	f := &k.facts
	known := previousAddress(&k.state)
	if k.req.Mode == ConvergeBeforeStart {
		// The server waits. The last known identity must do.
		f.inst = metadata.Instance{ID: k.state.InstanceID, Address: known, Provider: k.state.Provider}
		f.address = ams.Address{Addr: known, Reason: "as joined"}
		return
	}
	inst, err := k.req.Identify(ctx)
	if errors.Is(err, ErrTags) {
		k.warn(IDConfig, "%v; what this node joined with holds", err)
		err = nil
	}
	doubt := k.doubt(inst, err)
	if err != nil || doubt != "" {
		inst = metadata.Instance{ID: k.state.InstanceID, Address: cmp.Or(inst.Address, known)}
		k.result.Incomplete = true
	}
	if doubt != "" {
		k.warn(IDIdentity, "%s", doubt)
		// Within a boot, the disk of a node is its own.
		if !k.EnteredBefore(k.self(k.state.InstanceID, k.state.Address).Instance()) {
			k.result.Unidentified = doubt
		}
	}
	k.compareIdentity(inst, known, doubt != "")
	if f.hostname, err = ams.LookupHostname(ctx, k.Root); err != nil {
		k.warn(IDHostname, "this machine's own name could not be looked up: %v", err)
	}
}

// doubt returns why this machine may not be the instance, or the one that joined, or "".
func (k *converger) doubt(inst metadata.Instance, err error) string {
	joined, hardware := k.state.InstanceID, metadata.Hardware(k.Root)
	other := hardware != "" && k.state.Hardware != "" && hardware != k.state.Hardware
	if err == nil && k.named != inst.ID {
		k.named, k.namedSince = inst.ID, time.Now()
	}
	switch {
	case err != nil && other:
		return fmt.Sprintf("%v; this machine has other hardware than %s, which joined with this disk", err, joined)
	case err != nil:
		k.warn(IDIdentity, "%v; taken for %s, which joined", err, joined)
	case !other && inst.ID != joined && time.Since(k.namedSince) < confirmTime:
		return fmt.Sprintf("the metadata name %s, and %s joined with this disk: one answer is no proof", inst.ID, joined)
	case other && inst.ID == joined && inst.Provider == metadata.Generic && !k.req.Registered:
		k.result.OtherHardware = true
		k.warn(IDIdentity, "this machine has other hardware than %s, which joined with this disk: it takes the record once that is silent", joined)
	case inst.ID != joined:
		k.state.Hardware = hardware
	default:
		k.state.Hardware = cmp.Or(hardware, k.state.Hardware)
	}
	return ""
}

// confirmTime is longer than a metadata service gives a wrong answer.
const confirmTime = time.Minute

func (k *converger) compareIdentity(inst metadata.Instance, known netip.Addr, doubt bool) {
	f := &k.facts
	f.inst = inst
	unsure := k.result.Incomplete || slices.Contains(inst.Missing, "public_address") || slices.Contains(inst.Missing, "ipv6")
	k.result.Incomplete = unsure || len(inst.Missing) > 0
	if f.inst.ID != k.state.InstanceID {
		k.repaired(IDCloned, "this is a copy of %s's disk: it is %s now", k.state.InstanceID, f.inst.ID)
		k.state.InstanceID = f.inst.ID
		if k.req.AddressKept {
			k.req.Address, k.req.ForceAddress, k.state.Given = "", false, k.state.Given.withoutAddress().orNil()
		}
	}
	var err error
	if f.address, err = k.address(k.req.Address, k.req.ForceAddress, inst); err != nil {
		// The network may not be up yet. A later run checks again.
		if !unsure || !errors.Is(err, ams.ErrAddressNotHere) {
			k.warn(IDAddress, "%v; %s, as joined, is kept", err, known)
		}
		f.address = ams.Address{Addr: known, Reason: "as joined"}
	}
	if f.address.Addr != known && !k.moves(f.address, known, doubt) {
		k.warn(IDAddress, "the metadata name %s; %s, as joined, is kept", f.address.Addr, known)
		f.address = ams.Address{Addr: known, Reason: "as joined"}
	}
	if f.address.Addr != known {
		k.repaired(idMoved, "the address was %s and is %s", known, f.address.Addr)
		k.state.Address = f.address.Addr.String()
	}
}

// moves reports whether to take another address: the interfaces weigh more than the metadata, an operator more than both.
func (k *converger) moves(to ams.Address, known netip.Addr, doubt bool) bool {
	interfaces, err := k.interfaces()
	has := err == nil && slices.ContainsFunc(interfaces, func(i ams.Interface) bool { return i.Addr == known })
	return k.req.Address != "" || !doubt && !has || to.Interface != "" && !(doubt && has)
}

// isDown reports whether the server's files may be written. By a command, the port decides if nothing controls the
// server; below another root none runs.
func (k *converger) isDown(ctx context.Context) bool {
	unmanaged := k.stateErr == nil && !k.facts.service.Known() || errors.Is(k.stateErr, ams.ErrNoUnit)
	return k.stopped() || k.req.Mode == convergeByCommand && unmanaged && (k.isTree() || ams.Refused(ctx, k.facts.install.BaseURL()))
}

// stopped reports whether the server's next start reads the files as they are then.
func (k *converger) stopped() bool {
	s := k.facts.service
	return k.req.Mode == ConvergeBeforeStart || s.Dead()
}

// up reports whether the server may already have read its files.
func (k *converger) up() bool { return k.facts.service.Running() || k.facts.service.Starting() }

func (k *converger) mend(ctx context.Context) error {
	f := &k.facts
	if k.req.Mongo.IsZero() {
		k.warn(IDMongo, "no MongoDB address is known; the files were not looked at")
	} else {
		k.writes = k.isDown(ctx)
		k.checkPlan(k.store, JoinRequest{Mongo: k.req.Mongo, Valve: k.req.Valve, DryRun: !k.writes}, f)
		failed, warnings := Failed(f.findings)
		if len(failed) > 0 {
			return &PreflightError{Findings: failed, State: k.found}
		}
		k.result.Warnings = append(k.result.Warnings, warnings...)
		k.result.Torn = f.plan.Torn
	}
	k.state.Provider = cmp.Or(f.provider(), k.state.Provider)
	if f.plan != nil && madeStandalone(k.store, f.install, k.state.Release) {
		k.result.Standalone = true
		f.plan = f.plan.Only(func(string) bool { return false })
	}
	if f.plan != nil && k.req.Mode == ConvergeBeforeStart && !f.service.Known() {
		// The drop-in must not shorten the effective stop timeout, which is unknown.
		f.plan = f.plan.Only(func(path string) bool { return path != ams.DropInPath })
	}
	if f.plan != nil && k.req.MongoStored && k.renamed() {
		f.plan = f.plan.Only(func(path string) bool { return path != MongoPath })
	}
	k.limit()
	k.result.Files = fileResults(f.plan)
	changed := f.plan != nil && len(f.plan.Changed()) > 0
	if changed {
		k.state.Own = f.plan.Own()
	}
	k.noteRestart()
	if changed || !k.state.Equal(f.state) || len(k.exposed) > 0 {
		if err := k.begin(ctx, k.found); err != nil {
			return err
		}
	}
	paths, err := protect(k.store, k.exposed)
	if err != nil {
		k.warn(IDFile, "a file with a password stays readable for other users: %v", err)
	}
	if len(paths) > 0 {
		k.repaired(IDDrift, "readable for other users, and protected again: %s", joinPaths(paths))
	}
	release := k.state.Release
	if changed && k.writes {
		// After the write: standalone files of the state's release count as made by hand.
		k.state.Release = f.state.Release
	}
	// First: after a crash the next run plans again.
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
	return nil
}

func (k *converger) save(before State) error {
	if k.state.Equal(&before) {
		return nil
	}
	if err := saveState(k.store, k.state); err != nil {
		return &FailedError{Step: "writing " + statePath, Err: err, State: k.found}
	}
	return nil
}

// madeStandalone reports whether an operator ran the vendor's script. After an upgrade all files are standalone,
// too, but the release differs.
func madeStandalone(store *conf.Store, in *ams.Installation, joined string) bool {
	return in.Release.Known() && in.Release.String() == joined && standaloneFiles(store, in)
}

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

// renamed reports whether another program changed [MongoPath] since it was read. It must not be overwritten.
func (k *converger) renamed() bool {
	return slices.ContainsFunc(k.facts.plan.Changed(), func(p conf.PlannedFile) bool {
		if p.Before.Path != MongoPath || !p.Before.Exists() {
			return false
		}
		now, err := cluster.ParseTarget(strings.TrimRight(string(p.Before.Bytes), "\r\n"))
		return err != nil || !now.Equal(k.req.Mongo)
	})
}

// limit replaces changes that must not be written now by differences.
func (k *converger) limit() {
	f := &k.facts
	if f.plan == nil {
		return
	}
	if k.writes {
		if f.install.Release.Known() && !k.result.Standalone {
			k.state.Release = f.install.Release.String()
		}
		return
	}
	left := f.plan.Only(isServers)
	k.exposed = exposed(left)
	for _, file := range left.Changed() {
		if !changesServer(file) {
			continue // only permissions
		}
		k.result.Differences = append(k.result.Differences, k.differences(file)...)
	}
	if len(k.result.Differences) == 0 && f.install.Release.Known() && !k.result.Standalone {
		k.state.Release = f.install.Release.String()
	}
	f.plan = f.plan.Only(agentsOwn)
}

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

// noteRestart records whether the running server has another address than its drop-in.
func (k *converger) noteRestart() {
	f := &k.facts
	started := k.serverStarted(f.service)
	if k.stopped() || k.state.RestartPending && !started.IsZero() && !ams.EditedAfter(k.Root, ams.DropInPath, started) {
		k.state.RestartPending = false
	}
	if k.up() && !k.stopped() && f.plan != nil && needsRestart(f.plan) {
		k.state.RestartPending = true
	}
	k.result.RestartNeeded = k.state.RestartPending || len(k.result.Differences) > 0
}

func (k *converger) write(ctx context.Context) error {
	f := &k.facts
	paths := f.plan.ChangedPaths()
	err := f.plan.WriteOwn()
	if err == nil {
		err = f.plan.Commit("join")
	}
	if err != nil {
		state, hint := leftBy(err, k.found, "the files are those of a cluster node")
		return &FailedError{Step: stepWrite, Err: err, State: state, Hint: cmp.Or(deniedHint(err), hint)}
	}
	k.repaired(IDDrift, "not as joined, and written again: %s", joinPaths(paths))
	if slices.Contains(paths, ams.DropInPath) {
		ctx, cancel := context.WithTimeout(ctx, reloadTime)
		defer cancel()
		if err := k.Service.Reload(ctx); err != nil {
			k.warn(IDService, "reloading the service manager failed: %v", err)
		}
	}
	return nil
}

func (k *converger) node() {
	f := &k.facts
	k.result.Node = k.nodeOf(f, k.state.Role, cmp.Or(k.state.Group, f.inst.Group))
	k.result.Node.Interval, k.result.Node.Drift = seconds.Duration(k.req.Interval), driftText(k.result.Differences)
	if k.facts.install == nil {
		k.result.Node.AMS = k.state.Release
	} else if k.req.Mode == ConvergeWatch {
		k.result.Digest, _, _ = k.digest(k.facts.install, &k.last)
	}
	if k.result.Node.BootID == "" {
		k.result.Unidentified = cmp.Or(k.result.Unidentified, "the boot id of this machine cannot be read")
	}
}

// maxDrift is in bytes: the server's user controls the length.
const maxDrift = 256

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

func (m *Machine) nodeOf(f *facts, role, group string) cluster.Node {
	n := cluster.Node{
		ID: f.inst.ID, IP: f.address.Addr.String(), Hostname: cmp.Or(f.inst.Hostname, f.hostname.Name),
		Name: f.inst.Name, Role: role, Group: group,
		Provider: f.inst.Provider, Region: f.inst.Region, Zone: f.inst.Zone, Type: f.inst.Type,
		Agent: m.Version, BootID: m.bootID(),
	}
	if in := f.install; in != nil {
		n.AMS, n.Port = in.Release.String(), in.Ports.HTTP
	}
	if f.inst.PublicAddress.IsValid() {
		n.PublicIP = f.inst.PublicAddress.String()
	}
	return n
}

// StateFile returns the agent's state, or nil. It changes with each command that writes.
func (m *Machine) StateFile() (*State, error) { return loadState(m.store()) }

// Prove waits until the running server has written its document with this address. It ends with ctx, or if the
// service dies. It writes nothing.
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
	// usualStart is a generous bound up to the server's first document.
	usualStart = time.Minute
	alivePoll  = time.Second
)

// awaitAlive waits for the start of a stopped server. It does not poll MongoDB: on a hundred machines, each poll
// would scan the documents of all.
func (m *Machine) awaitAlive(ctx context.Context) (ams.State, error) {
	for {
		st, err := m.Service.State(ctx)
		if err != nil || !st.Stopped() {
			return st, err // the caller reports a failure
		}
		if !sleep.For(ctx, alivePoll) {
			return st, fmt.Errorf("%s does not run: %w", m.Service.Name(), context.Cause(ctx))
		}
	}
}
