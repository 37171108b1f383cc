// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
)

// life is the drain part of the daemon.
type life struct {
	d       *Daemon
	manager *lifecycle.Runner

	peers cluster.Peers

	stopped atomic.Pointer[time.Time] // when the server was; nil if an earlier daemon stopped it

	ctx  context.Context // of run
	work sync.WaitGroup
}

// newLife requires the lock of this machine: it may write the file of the drain.
func newLife(d *Daemon) *life {
	l := &life{d: d}
	opts := d.o.Lifecycle
	opts.Peers = l
	opts.Node, opts.Prove, opts.Event, opts.Log = l, l.prove, l.event, d.log
	opts.Balancers = l.balancers
	opts.Before = func() (cluster.Sessions, time.Time) { v := d.view.get(); return v.counted, v.countedAt }
	opts.Role = func() string { return d.view.get().Role }
	l.manager = lifecycle.NewRunner(opts)
	// Before any request: a continued drain must show.
	d.view.setLife(l.manager.View, l.isDrainOver)
	return l
}

func (l *life) isDrainOver() bool {
	v := l.manager.View()
	return v.State == lifecycle.StateActive && v.RegistryTold && !l.manager.Forgotten()
}

func (l *life) run(ctx context.Context) {
	l.ctx = ctx
	l.work.Go(func() { l.manager.Run(ctx) })
	gone := l.isGone()
	for range l.manager.Subscribe(ctx) {
		l.d.status()
		if now := l.isGone(); now != gone {
			gone = now
			poke(l.d.again) // it ends the session, and a join
		}
	}
	l.work.Wait()
}

// isGone reports whether this node is out of the cluster, or almost: no heartbeat must make it look alive.
func (l *life) isGone() bool {
	switch v := l.manager.View(); v.State {
	case lifecycle.StateLeft, lifecycle.StateParked:
		return true
	case lifecycle.StateDraining:
		return v.Step != lifecycle.StepAnnouncing && v.Step != lifecycle.StepDraining
	case lifecycle.StateActive, lifecycle.StateResuming:
	}
	return false
}

// with uses the session's client. During a departure it opens its own: the session ends too early.
func (l *life) with(ctx context.Context, do func(*cluster.Client) error) error {
	if m := l.d.member.Load(); m != nil && !m.isGone() {
		return do(m.client)
	}
	mongo, err := l.d.o.Mongo(ctx)
	if err != nil {
		return err
	}
	c, err := l.d.o.Connect(ctx, mongo.Target)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	return do(c)
}

var errUnidentified = errors.New("it is not known yet which node this machine is")

// who returns this node. The state file alone may be a copy.
func (l *life) who() (cluster.Node, error) {
	s, err := l.d.o.Machine.StateFile()
	switch self := l.d.self.Load(); {
	case err != nil:
		return cluster.Node{}, err
	case s == nil:
		return cluster.Node{}, bootstrap.ErrNotMember
	case self == nil || self.BootID == "" || self.IP == "":
		return cluster.Node{}, errUnidentified
	default:
		return *self, nil
	}
}

// Joined implements lifecycle.Node. With damaged settings or during a rejoin, the machine is still a node with sessions.
func (l *life) Joined() bool {
	s, err := l.d.o.Machine.StateFile()
	if err != nil {
		return l.d.view.get().Phase == bootstrap.PhaseJoined
	}
	return s != nil && (s.Phase == bootstrap.PhaseJoined || s.Phase == bootstrap.PhaseJoining && s.WasJoined)
}

// JoinedAt implements lifecycle.Node.
func (l *life) JoinedAt() time.Time {
	s, err := l.d.o.Machine.StateFile()
	if err != nil || s == nil || s.Phase != bootstrap.PhaseJoined {
		return time.Time{}
	}
	return s.Since
}

// SetState implements lifecycle.Node.
func (l *life) SetState(ctx context.Context, s cluster.State, reason string, stopFailed bool) error {
	self, err := l.who()
	if err != nil {
		return err
	}
	details := cluster.Details{StopFailed: stopFailed}
	if s == cluster.StateDraining {
		details.LeftBy = cluster.LeftByDrain
	}
	if err := l.with(ctx, func(c *cluster.Client) error {
		return c.SetOwnState(ctx, self, s, reason, details)
	}); err != nil {
		return err
	}
	l.d.view.setState(s, time.Now())
	return nil
}

// Serving implements lifecycle.Peers.
func (l *life) Serving(ctx context.Context, machines []string) (serving []string, err error) {
	err = l.with(ctx, func(c *cluster.Client) error {
		serving, err = l.peers.Serving(ctx, c, machines)
		return err
	})
	return serving, err
}

// balancers returns those that send new sessions here, by the node record or by their agent checks.
func (l *life) balancers(ctx context.Context) (using []string) {
	var n cluster.Node
	if self, err := l.who(); err == nil {
		// If the registry is unreachable, its readers do not know of the drain, either.
		_ = l.with(ctx, func(c *cluster.Client) error {
			n, err = c.Node(ctx, self.ID)
			return err
		})
	}
	n.Checks = l.d.check.Balancers()
	for name, b := range n.BalancersAt(n.UpdatedAt) {
		if b.Uses {
			using = append(using, name)
		}
	}
	slices.Sort(using)
	return using
}

// Sessions implements lifecycle.Node.
func (l *life) Sessions(ctx context.Context) (cluster.Sessions, error) {
	return l.d.sampler.Sessions(ctx)
}

// StopServer implements lifecycle.Node.
func (l *life) StopServer(ctx context.Context) error {
	if m := l.d.member.Load(); m != nil {
		m.gone.Store(true)
	}
	var at time.Time
	err := l.d.step(false, func() error {
		var err error
		at, err = l.d.o.Machine.StopServer(ctx)
		return err
	})
	if errors.Is(err, ams.ErrNotManaged) {
		return fmt.Errorf("%w: %w", lifecycle.ErrNotManaged, err)
	}
	if err != nil {
		return err
	}
	l.stopped.Store(&at)
	return nil
}

// StartServer implements lifecycle.Node.
func (l *life) StartServer(ctx context.Context) error {
	return l.d.step(false, func() error { return l.d.o.Machine.StartServer(ctx) })
}

// Deregister implements lifecycle.Node.
func (l *life) Deregister(ctx context.Context, t lifecycle.Departure) error {
	self, err := l.who()
	switch {
	case errors.Is(err, bootstrap.ErrNotMember):
		return nil // no record exists
	case err != nil:
		return err
	}
	d := bootstrap.Departure{
		ID: self.ID, Address: self.IP, StoppedAt: time.Now(),
		Reason: cmp.Or(t.Reason, "drained"), LeftBy: cmp.Or(t.LeftBy, cluster.LeftByDrain), Cut: t.Cut, RepairStreams: t.RepairStreams,
	}
	if at := l.stopped.Load(); at != nil && !at.IsZero() {
		d.StoppedAt = *at
	}
	err = l.with(ctx, func(c *cluster.Client) error {
		_, err := l.d.o.Machine.Depart(ctx, c, d)
		return err
	})
	if err != nil {
		return err
	}
	l.d.view.setState(cluster.StateLeft, time.Now())
	l.work.Go(func() { l.removeLate(l.ctx, d) })
	return nil
}

// removeLate removes AMS's documents again after a departure: AMS's last write may arrive late.
func (l *life) removeLate(ctx context.Context, d bootstrap.Departure) {
	if !sleep.For(ctx, lateTime) {
		return
	}
	err := l.with(ctx, func(c *cluster.Client) error {
		gone, _, err := c.DeleteAMSNodes(ctx, d.Address, "", d.StoppedAt)
		for _, n := range gone {
			l.d.log.Info("removed what Ant Media Server wrote as it ended", "document", n.ID)
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		l.d.log.Warn("what Ant Media Server wrote as it ended could not be looked for", "error", err)
	}
}

// lateTime is longer than a write takes, and shorter than a cloud needs to end a machine.
const lateTime = 2 * time.Second

func (l *life) prove(ctx context.Context) error {
	for {
		v := l.d.view.get()
		if v.State == cluster.StateActive && v.Proved && v.Server.Up {
			return nil
		}
		if !sleep.For(ctx, min(l.d.o.Periods.State, provedEvery)) {
			why := "to be seen in the cluster"
			if v.Proved {
				why = "to serve viewers: " + v.Server.whyDown()
			}
			return fmt.Errorf("waiting for this node %s: %w", why, context.Cause(ctx))
		}
	}
}

const provedEvery = 500 * time.Millisecond

// event writes an event of this machine, even if it never joined. Without MongoDB, only the log has it.
func (l *life) event(ctx context.Context, e cluster.Event) error {
	self, err := l.who()
	if errors.Is(err, bootstrap.ErrNotMember) {
		inst, ierr := l.d.o.Identify(ctx)
		if self.ID, err = inst.ID, ierr; errors.Is(ierr, bootstrap.ErrTags) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	e.Node = self.ID
	err = l.with(ctx, func(c *cluster.Client) error { return c.AddEvent(ctx, e) })
	if errors.Is(err, ErrNoMongo) {
		return nil
	}
	return err
}

// shutdown drains while AMS still serves, if the machine shuts down.
func (l *life) shutdown(ctx context.Context) {
	if l.d.o.Stopping == nil || !l.Joined() {
		return
	}
	deadline, by, down := l.d.o.Stopping(ctx)
	if !down {
		return // only the agent restarts
	}
	l.d.log.Info("the machine shuts down: draining while Ant Media Server serves", "deadline", deadline, "by", by)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	l.manager.Notice(lifecycle.Notice{
		ID: "shutdown", Source: "systemd", Kind: lifecycle.Shutdown, Reason: "the machine shuts down", Received: time.Now(), Deadline: deadline, By: by,
	})
	for v := range l.manager.Subscribe(ctx) {
		// Report that the shutdown's time is in use.
		l.d.o.Notify(fmt.Sprintf("STATUS=%s\nWATCHDOG=1", l.d.o.Redact(l.d.view.line())))
		if v.Finished() {
			sleep.For(ctx, lastLook)
			return
		}
	}
}

// lastLook lets a command that follows the drain see its end: it asks twice a second.
const lastLook = 600 * time.Millisecond
