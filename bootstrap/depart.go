// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/sleep"
)

// Departure describes a node that leaves but may rejoin: its files stay a node's.
type Departure struct {
	ID, Address string
	// StoppedAt is the server's end, by this machine's clock.
	StoppedAt time.Time
	Reason    string
	LeftBy    string // see [cluster.Node]
	// Cut is the number of cut sessions, or nil if unknown.
	Cut *int
	// RepairStreams ends the streams that stay "broadcasting".
	RepairStreams bool
}

// Departed is the result of [Machine.Depart].
type Departed struct {
	Documents []string `json:"documents"` // ids of removed AMS documents
}

// Depart removes this node from the cluster after the server's stop. It may be repeated.
func (m *Machine) Depart(ctx context.Context, client *cluster.Client, d Departure) (Departed, error) {
	var done Departed
	var errs []error
	if d.Address != "" {
		gone, stay, err := client.DeleteAMSNodes(ctx, d.Address, "", d.StoppedAt)
		for _, n := range gone {
			done.Documents = append(done.Documents, n.ID)
		}
		for _, n := range stay {
			m.log().Warn("a document of Ant Media Server stays: another server with this address writes it, or it has no readable time", "document", n.ID, "address", n.IP)
		}
		errs = append(errs, err)
	}
	if d.RepairStreams && d.Address != "" {
		errs = append(errs, m.repairStreams(ctx, client, d))
	}
	var other *cluster.OtherMachineError
	switch err := setLeft(ctx, client, m.self(d.ID, d.Address), d.Reason, cluster.Details{LeftBy: d.LeftBy, Cut: d.Cut}); {
	case errors.Is(err, cluster.ErrNoNode): // nothing to deregister
	case errors.As(err, &other):
		m.log().Warn("not changing the record of this node's id: another machine registered it", "node", d.ID, "other", other.Node.IP)
	default:
		errs = append(errs, err)
	}
	return done, errors.Join(errs...)
}

// setLeft waits until the record of the boot before is silent: it is this machine's then.
func setLeft(ctx context.Context, client *cluster.Client, self cluster.Node, reason string, d cluster.Details) error {
	err := client.SetOwnState(ctx, self, cluster.StateLeft, reason, d)
	other, is := errors.AsType[*cluster.OtherMachineError](err)
	switch {
	case !is || !other.Boot:
		return err
	case !sleep.For(ctx, other.Free()):
		return fmt.Errorf("waiting until the former boot's record of %s is silent: %w", self.ID, context.Cause(ctx))
	}
	return client.SetOwnState(ctx, self, cluster.StateLeft, reason, d)
}

func (m *Machine) repairStreams(ctx context.Context, client *cluster.Client, d Departure) error {
	in, err := m.open()
	if err != nil {
		return err
	}
	databases, err := in.Databases()
	if err != nil && len(databases) == 0 {
		return err
	}
	return errors.Join(err, client.RepairStreams(ctx, databases, d.Address, time.Now()))
}

// StopServer stops the server and returns when it ended. A server that is dead, or of a machine that left, is not stopped.
// It returns [ams.ErrNotManaged] if its state is unknown before the stop, and [ErrServing] if it runs when ctx ends.
func (m *Machine) StopServer(ctx context.Context) (time.Time, error) {
	lock, err := m.lock(ctx)
	if err != nil {
		return time.Time{}, err
	}
	defer func() { _ = lock.Unlock() }()
	st, err := m.Service.State(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if !st.Known() {
		return time.Time{}, fmt.Errorf("stopping Ant Media Server: %w", ams.ErrNotManaged)
	}
	s, err := loadState(m.store())
	if err == nil && s != nil && s.Start {
		s.Start = false // a drain's stop is meant
		if err := saveState(m.store(), *s); err != nil {
			return time.Time{}, err
		}
	}
	switch {
	case st.Dead():
	case err == nil && s == nil:
		// The machine has left meanwhile.
	default:
		// Also if it is stopping or restarting.
		if err := m.end(ctx); err != nil {
			return time.Time{}, err
		}
	}
	return time.Now(), nil
}

// unknownTime bounds an unknown state. A failed call proves nothing, but a service command without a state must
// not block a leave.
const unknownTime = 10 * time.Second

// awaitDead is needed because a stop command may return early. A state unknown for unknownTime counts as stopped.
func (m *Machine) awaitDead(ctx context.Context) error {
	last := time.Now() // of a known state
	for {
		st, _ := m.Service.State(ctx) // unknown after an error
		if st.Known() {
			last = time.Now()
		}
		if ctx.Err() == nil && (st.Dead() || time.Since(last) >= unknownTime) {
			return nil
		}
		if !sleep.For(ctx, alivePoll) {
			return fmt.Errorf("%w after its stop: %s is %s", ErrServing, m.Service.Name(), st)
		}
	}
}

// StartServer starts the server unless it runs.
func (m *Machine) StartServer(ctx context.Context) error {
	lock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	st, err := m.Service.State(ctx)
	if err == nil && !st.Running() && m.SetAddress != nil {
		// systemd gets the address from the drop-in.
		if s, err := loadState(m.store()); err == nil {
			m.SetAddress(previousAddress(s))
		}
	}
	if err = errors.Join(err, lock.Unlock()); err != nil || st.Running() {
		return err
	}
	// Without the lock: the service manager first runs the agent.
	return m.Service.Start(ctx)
}
