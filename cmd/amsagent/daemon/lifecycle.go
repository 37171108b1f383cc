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

// Leaver is bootstrap's machine, as far as a node that goes uses it.
type Leaver interface {
	StopServer(context.Context) (stoppedAt time.Time, err error)
	StartServer(context.Context) error
	Depart(ctx context.Context, client *cluster.Client, d bootstrap.Departure) (bootstrap.Departed, error)
}

// Counter counts the sessions of this node, now.
type Counter interface {
	Sessions(context.Context) (cluster.Sessions, error)
}

// Lifecycle is how this node goes, and comes back.
type Lifecycle struct {
	// Options are those that the daemon does not fill in: record, hooks, deadlines.
	Options lifecycle.Options
	Leaver  Leaver
	// Stopping reports whether the machine is going down, until when we may take,
	// and by whose word.
	Stopping func(context.Context) (deadline time.Time, by string, down bool)
}

// life is the part of the daemon that goes.
type life struct {
	d       *Daemon
	leaver  Leaver
	manager *lifecycle.Runner

	departures atomic.Int64
	peers      cluster.Peers

	mu        sync.Mutex
	stoppedAt time.Time

	late chan bootstrap.Departure // for removeLate

	lending sync.Mutex // for own; it may wait for the instance's tags
	own     *lent      // our own connection; nil: none
}

func newLife(d *Daemon, o Lifecycle) *life {
	l := &life{d: d, leaver: o.Leaver, late: make(chan bootstrap.Departure, 1)}
	opts := o.Options
	opts.Peers = l
	opts.Node, opts.Prove, opts.Event, opts.Log = l, l.prove, l.event, d.log
	opts.Balancers = l.balancers
	opts.Before = func() (cluster.Sessions, time.Time) { v := d.view.get(); return v.counted, v.countedAt }
	// Until the first session says it, the node has the role that it joined with.
	joined := ""
	if s, err := d.o.Machine.StateFile(); err == nil && s != nil {
		joined = s.Role
	}
	opts.Role = func() string { return cmp.Or(d.view.get().Role, joined) }
	l.manager = lifecycle.NewRunner(opts)
	// Before anything can ask: a drain that goes on after a restart must not look like none.
	d.view.setLife(l.manager.View)
	return l
}

// Run drains when it has to, until ctx ends.
func (l *life) run(ctx context.Context) {
	var work sync.WaitGroup
	work.Go(func() { l.manager.Run(ctx) })
	work.Go(func() { l.removeLate(ctx) })
	work.Go(func() {
		for sleep.For(ctx, unusedTime) {
			l.closeUnused(ctx, unusedTime)
		}
	})
	for range l.manager.Subscribe(ctx) {
		l.d.status()
	}
	work.Wait()
	l.closeUnused(context.WithoutCancel(ctx), 0)
}

// gone reports whether this node is, or is about to be, out of the cluster: then
// no beat makes it look alive.
func (l *life) gone() bool {
	if l == nil {
		return false
	}
	switch v := l.manager.View(); v.State {
	case lifecycle.StateLeft, lifecycle.StateParked:
		return true
	case lifecycle.StateDraining:
		return v.Step != lifecycle.StepAnnouncing && v.Step != lifecycle.StepDraining
	case lifecycle.StateActive, lifecycle.StateResuming:
	}
	return false
}

// goneSince is gone for who may have slept through it: a node that was parked for a
// moment serves again by a session that begins anew.
func (l *life) goneSince(departures int64) bool {
	return l != nil && (l.departures.Load() != departures || l.gone())
}

// departed counts how often this node began to go for good.
func (l *life) departed() int64 {
	if l == nil {
		return 0
	}
	return l.departures.Load()
}

// joinedAnew ends the memory of a drain that is done: somebody joins, has joined, or made
// this machine leave, by hand.
func (l *life) joinedAnew(s *bootstrap.State) {
	if l == nil {
		return
	}
	if err := l.manager.Forget(s != nil && s.Phase == bootstrap.PhaseJoining); err != nil {
		l.d.log.Info("the drain under way goes on", "why", err)
	}
}

// reread notes that there may be other settings.
func (l *life) reread() {
	if l != nil {
		l.manager.Reconsider()
	}
}

// drains reports whether a drain is under way, or done and not forgotten; over, whether
// one was forgotten of whose end the registry may not know.
func (l *life) drains() (is, over bool) {
	if l == nil {
		return false, false
	}
	return l.manager.View().Step != lifecycle.StepNone, l.manager.Forgotten()
}

// with lends a connection to do: that of the session, or our own. A node that goes
// has no session soon, and what it owes must not be cut short by the end of that.
func (l *life) with(ctx context.Context, do func(*cluster.Client) error) error {
	if c := l.d.sessionClient(); c != nil && !l.gone() {
		return do(c)
	}
	c, err := l.lend(ctx)
	if err != nil {
		return err
	}
	err = do(c.client)
	l.giveBack(ctx, c, err != nil)
	return err
}

// lent is a connection of our own and how many use it.
type lent struct {
	client *cluster.Client
	users  int
	used   time.Time
}

// lend connects where nobody has, to where MongoDB is by now.
func (l *life) lend(ctx context.Context) (*lent, error) {
	l.lending.Lock()
	defer l.lending.Unlock()
	if l.own == nil {
		mongo, err := l.d.o.Mongo(ctx)
		if err != nil {
			return nil, err
		}
		c, err := l.d.o.Connect(ctx, mongo.Target)
		if err != nil {
			return nil, err
		}
		l.own = &lent{client: c}
	}
	l.own.users++
	return l.own, nil
}

// giveBack closes a connection that failed, or that is the last of its kind: the
// next call looks anew where MongoDB is.
func (l *life) giveBack(ctx context.Context, c *lent, failed bool) {
	l.lending.Lock()
	c.users--
	c.used = time.Now()
	if failed && l.own == c {
		l.own = nil
	}
	unused := c.users == 0 && l.own != c
	l.lending.Unlock()
	if unused {
		_ = c.client.Close(ctx)
	}
}

// closeUnused closes our own connection once nobody has needed it for a while.
func (l *life) closeUnused(ctx context.Context, age time.Duration) {
	l.lending.Lock()
	c := l.own
	if c != nil && (c.users > 0 || time.Since(c.used) < age) {
		c = nil
	}
	if c != nil {
		l.own = nil
	}
	l.lending.Unlock()
	if c != nil {
		_ = c.client.Close(ctx)
	}
}

// unusedTime is that while.
const unusedTime = 30 * time.Second

// who is the node as it joined.
func (l *life) who() (id, address string, err error) {
	s, err := l.d.o.Machine.StateFile()
	if err == nil && s == nil {
		err = bootstrap.ErrNotMember
	}
	if err != nil {
		return "", "", err
	}
	return s.InstanceID, s.Address, nil
}

// Joined implements lifecycle.Node. The state file tells: who was started a moment
// ago, cannot mend the files, or is made to join once more, is a node all the same, with
// people on it.
func (l *life) Joined() bool {
	s, err := l.d.o.Machine.StateFile()
	if err != nil {
		return l.d.view.get().Phase == bootstrap.PhaseJoined
	}
	return s != nil && (s.Phase == bootstrap.PhaseJoined || s.Phase == bootstrap.PhaseJoining && s.WasJoined)
}

// JoinedAt implements lifecycle.Node. The state file has whole seconds.
func (l *life) JoinedAt() time.Time {
	s, err := l.d.o.Machine.StateFile()
	if err != nil || s == nil || s.Phase != bootstrap.PhaseJoined {
		return time.Time{}
	}
	return s.Since
}

// SetState implements lifecycle.Node.
func (l *life) SetState(ctx context.Context, s cluster.State, reason string, stopFailed bool) error {
	id, address, err := l.who()
	if err != nil {
		return err
	}
	self := cluster.Node{ID: id, IP: address, BootID: l.d.view.bootID()}
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

// balancers names the load balancers that send new sessions here: those that the record names, and those whose agent checks do.
func (l *life) balancers(ctx context.Context) (using []string) {
	var n cluster.Node
	if id, _, err := l.who(); err == nil {
		// A registry that cannot be read names none, and its readers do not know of the drain, either.
		_ = l.with(ctx, func(c *cluster.Client) error {
			n, err = c.Node(ctx, id)
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
func (l *life) Sessions(ctx context.Context) (cluster.Sessions, error) { return l.d.sessionsNow(ctx) }

// sessionsNow counts the sessions of this node, for who waits for the answer.
func (d *Daemon) sessionsNow(ctx context.Context) (cluster.Sessions, error) {
	c, ok := d.sampler.(Counter)
	if !ok {
		return cluster.Sessions{}, errors.New("nobody counts sessions here")
	}
	return c.Sessions(ctx)
}

// StopServer implements lifecycle.Node.
func (l *life) StopServer(ctx context.Context) error {
	l.departures.Add(1)
	var at time.Time
	err := l.d.step(keepsJoined, func() error {
		var err error
		at, err = l.leaver.StopServer(ctx)
		return err
	})
	if errors.Is(err, ams.ErrNotManaged) {
		return fmt.Errorf("%w: %w", lifecycle.ErrNotManaged, err)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stoppedAt = at
	return nil
}

// StartServer implements lifecycle.Node.
func (l *life) StartServer(ctx context.Context) error {
	return l.d.step(keepsJoined, func() error { return l.leaver.StartServer(ctx) })
}

// Deregister implements lifecycle.Node.
func (l *life) Deregister(ctx context.Context, t lifecycle.Departure) error {
	id, address, err := l.who()
	switch {
	case errors.Is(err, bootstrap.ErrNotMember):
		return nil // it never began to join: nobody knows it
	case err != nil:
		return err
	}
	l.mu.Lock()
	d := bootstrap.Departure{
		ID: id, Address: address, StoppedAt: l.stoppedAt,
		Reason: t.Reason, LeftBy: cmp.Or(t.LeftBy, cluster.LeftByDrain), Cut: t.Cut, RepairStreams: t.RepairStreams,
	}
	l.mu.Unlock()
	if d.Reason == "" {
		d.Reason = "drained"
	}
	if d.StoppedAt.IsZero() {
		d.StoppedAt = time.Now() // the daemon was started again since
	}
	err = l.with(ctx, func(c *cluster.Client) error {
		_, err := l.leaver.Depart(ctx, c, d)
		return err
	})
	if err != nil {
		return err
	}
	l.d.view.setState(cluster.StateLeft, time.Now())
	if d.Address == "" {
		return nil // no document is known to be this node's
	}
	select {
	case l.late <- d:
	default: // since the departure before, within lateTime, AMS has not come up to write anything
	}
	return nil
}

// removeLate looks once more for AMS's documents after each departure: what AMS wrote as it
// ended may come to MongoDB after they were removed.
func (l *life) removeLate(ctx context.Context) {
	for {
		var d bootstrap.Departure
		select {
		case <-ctx.Done():
			return
		case d = <-l.late:
		}
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
}

// lateTime is longer than a write takes, and shorter than a cloud needs to end a machine.
const lateTime = 2 * time.Second

// prove returns when this node is seen in the cluster and serves viewers.
func (l *life) prove(ctx context.Context) error {
	for {
		v := l.d.view.get()
		if v.State == cluster.StateActive && v.Proved && v.Server.Up {
			return nil
		}
		if !sleep.For(ctx, min(l.d.o.Periods.State, proveTime)) {
			why := "to be seen in the cluster"
			if v.Proved {
				why = "to serve viewers: " + v.Server.whyDown()
			}
			return fmt.Errorf("waiting for this node %s: %w", why, context.Cause(ctx))
		}
	}
}

// proveTime is how often that is looked at: a hook's group waits for it.
const proveTime = 500 * time.Millisecond

// event writes an event, of whoever this machine is: one that never joined goes as
// well. Where there is no MongoDB to write it to, it is for the log alone.
func (l *life) event(ctx context.Context, e cluster.Event) error {
	id, _, err := l.who()
	if errors.Is(err, bootstrap.ErrNotMember) {
		inst, ierr := l.d.o.Identify(ctx)
		if id, err = inst.ID, ierr; errors.Is(ierr, bootstrap.ErrTags) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	e.Node = id
	err = l.with(ctx, func(c *cluster.Client) error { return c.AddEvent(ctx, e) })
	if errors.Is(err, ErrNoMongo) {
		return nil
	}
	return err
}

// shutdown drains while AMS still serves, where the machine is going down. It
// returns when there is nothing more to wait for.
func (l *life) shutdown(ctx context.Context, stopping func(context.Context) (time.Time, string, bool)) {
	if l == nil || stopping == nil || !l.Joined() {
		return
	}
	deadline, by, down := stopping(ctx)
	if !down {
		return // a restart of the agent is not a leave
	}
	l.d.log.Info("the machine goes down: draining while Ant Media Server serves", "deadline", deadline, "by", by)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	l.manager.Notice(lifecycle.Notice{
		ID: "shutdown", Source: "systemd", Kind: lifecycle.Shutdown, Reason: "the machine goes down", Received: time.Now(), Deadline: deadline, By: by,
	})
	for v := range l.manager.Subscribe(ctx) {
		// A machine that has time wants to be told that we use it.
		l.d.o.Notify(fmt.Sprintf("STATUS=%s\nWATCHDOG=1", l.d.view.line()))
		if v.Finished() {
			return
		}
	}
}
