// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/metadata"
)

// The ids of what a convergence found and repaired.
const (
	IDCloned  = "AMS-CLONED"  // the state is that of another machine: this is a copy of its disk
	IDMoved   = "AMS-MOVED"   // the address is another one than joined with
	IDRestart = "AMS-RESTART" // AMS runs with files that are no more
)

// ConvergeRequest is what a machine that has joined is to be kept at.
type ConvergeRequest struct {
	// Mongo is where the cluster's memory is; zero where nobody knows. Then the
	// files are left alone.
	Mongo cluster.Target
	// Role and Group are for a machine that joined without any.
	Role, Group  string
	Address      string
	ForceAddress bool
	Valve        Valve
	Interval     time.Duration // from beat to beat, for the row
	// Identify asks who this machine is. Where it fails, the machine is taken
	// for the one that joined: a cloud's metadata that is away must not keep a
	// node from booting.
	Identify func(context.Context) (metadata.Instance, error)
}

// Convergence is what was found and what was repaired.
type Convergence struct {
	// Phase is what the state file says; "" where this machine never joined.
	// Only a machine in PhaseJoined was looked at further.
	Phase Phase `json:"phase,omitempty"`
	// Repairs are the differences that were found, all of them mended.
	Repairs []Finding `json:"repairs"`
	// Warnings are what could not be looked at or mended.
	Warnings []Finding    `json:"warnings"`
	Files    []FileResult `json:"files"`
	// RestartNeeded tells that AMS runs with what the files said before.
	RestartNeeded bool `json:"restart_needed"`
	// Node is the row of this machine with all facts, but without a state.
	Node cluster.Node `json:"node"`
	// Unread tells that nobody wrote to the files since a [Keeper] read them, which
	// was not done again.
	Unread bool `json:"-"`
}

// Converge brings a machine that has joined back to what it joined as: files that
// an upgrade restored, a lost drop-in, a new address, a copy of another machine's
// disk. It does not start, stop or restart AMS, and asks MongoDB nothing: at boot
// it runs before AMS does. A machine that is as it should be is not written to.
func (m *Machine) Converge(ctx context.Context, req ConvergeRequest) (*Convergence, error) {
	store := m.store()
	c := &Convergence{Repairs: []Finding{}, Warnings: []Finding{}}
	lock, err := m.lock(ctx)
	if err != nil {
		return nil, &FailedError{Step: "waiting for the lock", Err: err, State: untouched, Unknown: isTimeout(err)}
	}
	defer func() { _ = lock.Unlock() }()
	recovered, found, err := m.recover(store)
	if err != nil {
		return nil, notRecovered(err, leaveFirst)
	}
	c.Repairs = append(c.Repairs, recovered...)
	state, err := loadState(store)
	if err != nil {
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
		return c, nil
	}
	k := &converger{Machine: m, store: store, req: req, state: *state, result: c, found: found}
	return c, k.run(ctx)
}

// converger is one convergence under way.
type converger struct {
	*Machine
	store  *conf.Store
	req    ConvergeRequest
	state  State // as it is to be
	result *Convergence
	found  string
	facts  facts
}

func (k *converger) run(ctx context.Context) error {
	f := &k.facts
	var err error
	if f.record, err = k.store.Record(); err != nil {
		if n, ok := recordFinding(err, leaveFirst); ok {
			return &PreflightError{Findings: []Finding{n}, State: k.found}
		}
		return &FailedError{Step: "reading the undo record", Err: err, State: k.found}
	}
	if f.install, err = k.open(); err != nil {
		return &PreflightError{Findings: []Finding{{ID: IDInstall, Text: err.Error(), Hint: ams.Hint(err), Err: err}}, State: k.found}
	}
	if f.service, err = k.Service.State(ctx); err != nil {
		k.warn(IDService, "the service does not say its state: %v", err)
	}
	before := k.state
	f.state = &before
	k.identify(ctx)
	err = k.mend(ctx)
	k.node() // also where the files cannot be mended: the node serves, and is to be seen
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
	inst, err := k.req.Identify(ctx)
	if err != nil {
		k.warn(IDIdentity, "%v; taken for %s, which joined", err, k.state.InstanceID)
		inst = metadata.Instance{ID: k.state.InstanceID, Address: known}
	}
	f.inst = inst
	if f.inst.ID != k.state.InstanceID {
		k.repaired(IDCloned, "this is a copy of %s's disk: it is %s now", k.state.InstanceID, f.inst.ID)
		k.state.InstanceID = f.inst.ID
	}
	f.address, err = k.address(k.req.Address, k.req.ForceAddress, inst)
	if err != nil {
		// The network may not be up yet; the address is looked at again later.
		k.warn(IDAddress, "%v; %s, as joined, is kept", err, known)
		f.address = ams.Address{Addr: known, Reason: "as joined"}
	}
	if f.address.Addr != known {
		k.repaired(IDMoved, "the address was %s and is %s", known, f.address.Addr)
		k.state.Address = f.address.Addr.String()
	}
	if f.hostname, err = ams.LookupHostname(ctx, ams.HostnameOptions{Root: k.Root}); err != nil {
		k.warn(IDHostname, "this machine's own name could not be looked up: %v", err)
	}
}

// mend plans what a join would write, and writes what differs.
func (k *converger) mend(ctx context.Context) error {
	f := &k.facts
	if k.req.Mongo.IsZero() {
		k.warn(IDMongo, "nobody told where MongoDB is; the files were not looked at")
	} else {
		k.checkPlan(k.store, JoinRequest{Mongo: k.req.Mongo, Valve: k.req.Valve}, f)
		if len(f.failed) > 0 {
			return &PreflightError{Findings: f.failed, State: k.found}
		}
		k.result.Warnings = append(k.result.Warnings, f.warnings...)
		k.result.Files = fileResults(f.plan)
	}
	k.result.RestartNeeded = k.state.RestartPending
	changed := f.plan != nil && len(f.plan.Changed()) > 0
	if changed && needsRestart(f.plan) && f.service.Running() {
		k.state.RestartPending, k.result.RestartNeeded = true, true
	}
	if k.state.RestartPending && f.service.Known() && !f.service.Running() {
		// It starts with what the files say now.
		k.state.RestartPending, k.result.RestartNeeded = false, false
	}
	if k.state != *f.state {
		// First: a crash behind it is mended by the next run, which plans anew.
		if err := saveState(k.store, k.state); err != nil {
			return &FailedError{Step: "writing " + statePath, Err: err, State: k.found}
		}
	}
	if !changed {
		return nil
	}
	var paths []string
	for _, file := range f.plan.Changed() {
		paths = append(paths, file.Before.Path)
	}
	j := &joiner{
		Machine: k.Machine, store: k.store, facts: f, found: k.found, result: &JoinResult{},
		req: JoinRequest{Mongo: k.req.Mongo, Valve: k.req.Valve},
	}
	if err := j.commit(ctx); err != nil {
		state, hint := leftBy(err, k.found, "the files are those of a cluster node")
		return &FailedError{Step: "writing the configuration", Err: err, State: state, Hint: firstOf(protectedHint(k.store, f.plan, err), hint)}
	}
	k.repaired(IDDrift, "not as joined, and written again: %s", joinPaths(paths))
	if slices.Contains(paths, ams.DropInPath) {
		ctx, cancel := context.WithTimeout(ctx, reloadTime)
		defer cancel()
		if err := k.Service.Reload(ctx); err != nil {
			k.warn(IDService, "the service manager could not be told to read its files again: %v", err)
		}
	}
	return nil
}

// node collects what the registry is to know of this machine.
func (k *converger) node() {
	f := &k.facts
	k.result.Node = k.nodeOf(f, firstOf(k.state.Role, k.req.Role), firstOf(k.state.Group, k.req.Group, f.inst.Group))
	k.result.Node.IntervalMS = k.req.Interval.Milliseconds()
}

// nodeOf makes the row of this machine, without a state.
func (m *Machine) nodeOf(f *facts, role, group string) cluster.Node {
	n := cluster.Node{
		ID: f.inst.ID, IP: f.address.Addr.String(), Hostname: firstOf(f.inst.Hostname, f.hostname.Name),
		Name: f.inst.Name, Role: role, Group: group,
		Provider: f.inst.Provider, Region: f.inst.Region, Zone: f.inst.Zone, Type: f.inst.Type,
		Agent: m.Version, AMS: f.install.Release.String(), BootID: m.bootID(), Port: f.install.HTTPPort,
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
	service, err := m.Service.State(ctx)
	if err != nil {
		return nil, err
	}
	j := &joiner{
		Machine: m, store: m.store(), result: &JoinResult{},
		facts: &facts{install: install, service: service, client: client, address: ams.Address{Addr: addr}},
	}
	if j.seen, err = client.AMSNodes(ctx); err != nil {
		return nil, err
	}
	return j.verify(ctx)
}

// Restart makes AMS take up what the files say, and notes that it did.
func (m *Machine) Restart(ctx context.Context) error {
	store := m.store()
	lock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Unlock() }()
	s, err := loadState(store)
	if err != nil {
		return err
	}
	if s == nil || s.Phase != PhaseJoined {
		return fmt.Errorf("restarting %s: %w", m.Service.Name(), ErrNotMember)
	}
	if m.SetAddress != nil {
		m.SetAddress(previousAddress(s))
	}
	if err := errors.Join(m.Service.Reload(ctx), m.Service.Restart(ctx)); err != nil {
		return err
	}
	s.RestartPending = false
	return saveState(store, *s)
}
