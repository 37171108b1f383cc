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

// Departure is what a node that goes leaves in the cluster. The files on its disk
// stay those of a node: the machine goes, or comes back as one.
type Departure struct {
	// ID is the row's, Address the node's.
	ID, Address string
	// StoppedAt is when AMS had stopped, by this machine's clock.
	StoppedAt time.Time
	Reason    string
	LeftBy    string // see [cluster.Node]
	// Cut is how many sessions were cut; nil is not known.
	Cut *int
	// RepairStreams ends the streams that this address leaves "broadcasting".
	RepairStreams bool
}

// Departed is what was done of it.
type Departed struct {
	Documents []string `json:"documents"` // of AMS, removed
}

// Depart takes this node out of the cluster's lists, after AMS has stopped. It may
// be repeated until it succeeds.
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
	switch err := client.SetOwnState(ctx, m.self(d.ID, d.Address), cluster.StateLeft, d.Reason, cluster.Details{LeftBy: d.LeftBy, Cut: d.Cut}); {
	case errors.Is(err, cluster.ErrNoNode): // then there is nothing to deregister
	case errors.As(err, &other):
		m.log().Warn("the row of this node's id is left alone: another machine registered it", "node", d.ID, "other", other.Node.IP)
	default:
		errs = append(errs, err)
	}
	return done, errors.Join(errs...)
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

// StopServer stops AMS and waits until it has stopped; it returns when that was.
// A server that does not run has stopped already.
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
	switch s, err := loadState(m.store()); {
	case st.Dead():
	case err == nil && s == nil:
		// Somebody made this machine leave while we waited: the server is no node's.
	default:
		// One that is stopping already is waited for, and one that is being restarted stays
		// stopped.
		if err := m.end(ctx); err != nil {
			return time.Time{}, err
		}
	}
	return time.Now(), nil
}

// unknownTime is how long a server that was told to stop is asked for whose state is not
// known: one call that fails is no answer, and a command of an operator's that knows nothing
// of a stopped server does not keep its node from leaving.
const unknownTime = 10 * time.Second

// awaitDead waits for the end of a server that was told to stop: an operator's command may
// return before. One whose state is not known for unknownTime is taken for stopped.
func (m *Machine) awaitDead(ctx context.Context) error {
	last := time.Now() // that its state was known
	for {
		st, _ := m.Service.State(ctx) // with an error it is unknown
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

// StartServer starts AMS where it does not run.
func (m *Machine) StartServer(ctx context.Context) error {
	lock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	st, err := m.Service.State(ctx)
	if err == nil && !st.Running() && m.SetAddress != nil {
		// A command is told the address by its caller, as systemd is by the drop-in.
		if s, err := loadState(m.store()); err == nil {
			m.SetAddress(previousAddress(s))
		}
	}
	if err = errors.Join(err, lock.Unlock()); err != nil || st.Running() {
		return err
	}
	// Without the lock: the service manager calls the agent before it starts the server.
	return m.Service.Start(ctx)
}
