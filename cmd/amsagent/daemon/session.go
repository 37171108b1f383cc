// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
)

// session converges the machine and then does what it is for, until the state
// file is another one. It returns an error for what is worth another try.
func (d *Daemon) session(ctx context.Context) error {
	mongo, merr := d.o.Mongo(ctx)
	if merr != nil && !errors.Is(merr, ErrNoMongo) {
		return merr
	}
	s := d.o.Settings() // after MongoDB was looked for: that reads the instance's tags
	c, err := d.converge(ctx, s, mongo)
	if err != nil {
		return err
	}
	d.view.setPhase(c.Phase)
	switch c.Phase {
	case bootstrap.PhaseJoined:
		if merr != nil {
			return merr
		}
		return d.serve(ctx, s, mongo, c)
	case bootstrap.PhaseLeaving:
		return d.idle(ctx, s, "a leave was begun and not finished: run amsagent leave again")
	case bootstrap.PhaseJoining:
		if merr == nil {
			return d.join(ctx, s, mongo)
		}
		return d.idle(ctx, s, "a join was begun and not proved: run the same amsagent join again")
	}
	switch {
	case merr == nil && s.AutoJoin:
		return d.join(ctx, s, mongo)
	case merr == nil:
		return d.idle(ctx, s, "not a member; auto_join is off")
	}
	return d.idle(ctx, s, "not a member; waiting for amsagent join")
}

// converge brings the machine back to what it joined as.
func (d *Daemon) converge(ctx context.Context, s Settings, mongo cluster.Target) (*bootstrap.Convergence, error) {
	bound, cancel := context.WithTimeout(ctx, convergeTime)
	defer cancel()
	var c *bootstrap.Convergence
	err := d.step(func() error {
		var err error
		c, err = d.o.Machine.Converge(bound, bootstrap.ConvergeRequest{
			Mongo: mongo, Role: s.Role, Group: s.Group, Address: s.Address, Valve: s.Valve, Interval: s.Interval,
			Identify: d.o.Identify,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, f := range c.Repairs {
		d.log.Warn("repaired", "id", f.ID, "what", f.Text)
	}
	for _, f := range c.Warnings {
		d.log.Warn("not as it should be", "id", f.ID, "what", f.Text)
	}
	d.metrics.repaired(len(c.Repairs))
	d.view.setConvergence(c)
	return c, nil
}

// idle samples without a registry: metrics and health are there also on a machine
// that is no node.
func (d *Daemon) idle(ctx context.Context, s Settings, why string) error {
	d.view.setActivity(why)
	d.trouble(nil)
	d.log.Info("idle", "why", why)
	// A tag may name MongoDB later: look again every now and then.
	ctx, cancel := context.WithTimeout(ctx, idleTime)
	defer cancel()
	d.loop(s, nil, nil).Run(ctx)
	return nil
}

// idleTime is after what a machine that is no node looks again whether it is to
// join.
const idleTime = time.Minute

// join makes this machine a node, with the loop running beside it.
func (d *Daemon) join(ctx context.Context, s Settings, mongo cluster.Target) error {
	d.view.setActivity("joining")
	d.status()
	// Its tags may say the role. The join itself says what keeps them from being
	// read.
	inst, err := d.o.Identify(ctx)
	if err == nil {
		s = d.o.Settings()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var beside sync.WaitGroup
	loop := d.loop(s, nil, nil)
	if client, cerr := d.o.Connect(ctx, mongo); cerr == nil && err == nil {
		// The join writes the row; a node that takes minutes to come up is heard
		// meanwhile.
		loop.ID, loop.Sender = inst.ID, newcomer{client}
		defer func() { _ = client.Close(ctx) }()
	}
	beside.Go(func() { loop.Run(ctx) })
	defer beside.Wait()
	defer cancel()

	err = d.step(func() error {
		bound, stop := context.WithTimeout(ctx, s.JoinTimeout)
		defer stop()
		res, err := d.o.Machine.Join(bound, bootstrap.JoinRequest{
			Mongo: mongo, Role: s.Role, Group: s.Group, Address: s.Address, Valve: s.Valve, OnFailure: s.OnFailure,
			Interval: s.Interval, Identify: d.o.Identify,
		})
		if res != nil {
			for _, w := range res.Warnings {
				d.log.Warn("join", "id", w.ID, "what", w.Text)
			}
		}
		return err
	})
	d.metrics.joined(err)
	if err == nil {
		d.log.Info("joined")
		return nil
	}
	var failed *bootstrap.FailedError
	if errors.As(err, &failed) {
		return fmt.Errorf("joining: %w (%s)", err, failed.State)
	}
	return fmt.Errorf("joining: %w", err)
}

// newcomer beats for a node whose row may not be there yet.
type newcomer struct{ *cluster.Client }

// Beat writes a beat, if there is a row.
func (n newcomer) Beat(ctx context.Context, b cluster.Beat, last *cluster.Beat) error {
	if err := n.Client.Beat(ctx, b, last); !errors.Is(err, cluster.ErrNoNode) {
		return err
	}
	return nil
}

// member is one session as a node of the cluster.
type member struct {
	d      *Daemon
	client *cluster.Client
	node   cluster.Node
	// proved tells that AMS was seen in this session.
	proved atomic.Bool
	// enrolled tells that our row is that of this life.
	enrolled atomic.Bool
}

// serve beats and follows AMS until the session ends.
func (d *Daemon) serve(ctx context.Context, s Settings, mongo cluster.Target, c *bootstrap.Convergence) error {
	client, err := d.o.Connect(ctx, mongo)
	if err != nil {
		return err
	}
	m := &member{d: d, client: client, node: c.Node}
	d.mu.Lock()
	d.client = client
	d.mu.Unlock()
	d.view.setNode(c.Node)
	d.view.setActivity("serving")
	d.trouble(nil)
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { d.loop(s, m, &m.node).Run(ctx) })
	work.Go(func() { m.enter(ctx) })
	work.Go(func() { m.witness(ctx) })
	err = m.drift(ctx, s, mongo, c.RestartNeeded)
	cancel()
	work.Wait()
	d.mu.Lock()
	d.client = nil
	d.mu.Unlock()
	_ = client.Close(ctx) // bounded by itself; a server that is gone is none of our concern
	return err
}

func (d *Daemon) loop(s Settings, m *member, node *cluster.Node) *heartbeat.Loop {
	l := &heartbeat.Loop{Interval: s.Interval, Sample: d.sampler.Sample, Report: d.report, Log: d.log}
	if m != nil {
		l.ID, l.Sender, l.Enroll = node.ID, m, m.enroll
	}
	return l
}

// Beat writes a beat once our row is there: one of an earlier life must not look
// alive.
func (m *member) Beat(ctx context.Context, b cluster.Beat, last *cluster.Beat) error {
	if !m.enrolled.Load() {
		if err := m.enroll(ctx); err != nil {
			return err
		}
		last = nil
	}
	return m.client.Beat(ctx, b, last)
}

// ClockSkew compares the clocks.
func (m *member) ClockSkew(ctx context.Context) (skew, accuracy time.Duration, err error) {
	return m.client.ClockSkew(ctx)
}

// enroll writes our row: joining until AMS was seen. Within one life that takes
// nothing back: a node that drains goes on draining.
func (m *member) enroll(ctx context.Context) error {
	n := m.node
	n.State, n.Reason = cluster.StateJoining, "run"
	if m.proved.Load() {
		n.State = cluster.StateActive
	}
	r, err := m.client.Register(ctx, n)
	if err != nil {
		return err
	}
	m.enrolled.Store(true)
	m.d.view.setState(r.Node.State, r.Node.StateSince)
	return nil
}

// enter proves that AMS is in the cluster and makes the row say so, for as long
// as it takes.
func (m *member) enter(ctx context.Context) {
	told := ""
	complain := func(what string, err error) {
		if text := err.Error(); text != told && ctx.Err() == nil {
			told = text
			m.d.log.Warn(what, "error", err) //nolint:sloglint // one of the two sentences below
		}
	}
	for retry := leastRetry; ; retry = min(2*retry, mostRetry/2) {
		bound, cancel := context.WithTimeout(ctx, proveTime)
		ev, err := m.d.o.Machine.Prove(bound, m.client, m.node.IP)
		cancel()
		if err == nil {
			m.d.log.Info("Ant Media Server is in the cluster", "document", ev.ID, "address", ev.Address)
			break
		}
		complain("Ant Media Server is not seen in the cluster yet", err)
		if !pause(ctx, retry) {
			return
		}
	}
	m.proved.Store(true)
	// A state is not a beat: it is kept until MongoDB has taken it.
	for retry := leastRetry; ; retry = min(2*retry, mostRetry/4) {
		err := m.enroll(ctx)
		if err == nil {
			break
		}
		complain("the registry could not be told yet", err)
		if !pause(ctx, retry) {
			return
		}
	}
	m.indexes(ctx)
	debug.FreeOSMemory() // starting took more than all that follows
}

// proveTime is after how long the waiting for AMS is told, and begun anew with a
// fresh look at the service.
const proveTime = time.Minute

// indexes asks once for the indexes by which the server forgets.
func (m *member) indexes(ctx context.Context) {
	err := m.client.EnsureIndexes(ctx)
	switch {
	case err == nil || ctx.Err() != nil:
	case cluster.KindOf(err) == cluster.KindUnsupported || cluster.KindOf(err) == cluster.KindForbidden:
		m.d.once.Do(func() {
			m.d.log.Info("this MongoDB forgets no old rows by itself; `amsagent nodes prune` removes them")
		})
	default:
		m.d.log.Debug("the indexes were not made", "error", err)
	}
}

// witness looks every now and then how old AMS's own word is: other nodes take
// this one for dead by it, whatever it does.
func (m *member) witness(ctx context.Context) {
	silent := false
	for pause(ctx, witnessEvery) {
		docs, err := m.client.AMSNodesByAddress(ctx, m.node.IP)
		if err != nil {
			m.d.view.setWitness(nil)
			continue
		}
		now := time.Now()
		var age *time.Duration
		for _, doc := range docs {
			if doc.LastUpdate.IsZero() {
				continue
			}
			if a := max(0, now.Sub(doc.LastUpdate)); age == nil || a < *age {
				age = &a
			}
		}
		m.d.view.setWitness(age)
		if was := silent; m.proved.Load() {
			if silent = age == nil || *age > amsSilent; silent != was && silent {
				m.d.log.Warn("Ant Media Server does not write its document any more; other nodes take this one for dead", "address", m.node.IP)
			} else if silent != was {
				m.d.log.Info("Ant Media Server writes its document again", "address", m.node.IP)
			}
		}
	}
}

const (
	// witnessEvery is a compromise: it is one more query for each node.
	witnessEvery = 15 * time.Second
	// amsSilent is AMS's own limit.
	amsSilent = 20 * time.Second
)

// drift compares the files with what was joined with every now and then, and
// restarts AMS where it runs with others, as soon as that cuts nobody.
func (m *member) drift(ctx context.Context, s Settings, mongo cluster.Target, restart bool) error {
	m.d.view.setRestart(restart)
	next := time.Now().Add(driftEvery)
	for {
		if restart && m.mayRestart(ctx) {
			m.d.log.Info("restarting Ant Media Server: it runs with other settings than its files have, and nobody is on it")
			err := m.d.step(func() error { return m.d.o.Machine.Restart(ctx) })
			m.d.metrics.restarted(err)
			if err != nil {
				return err
			}
			return nil // the next session proves it
		}
		if !pause(ctx, driftPoll) {
			return nil
		}
		if time.Now().Before(next) {
			continue
		}
		next = time.Now().Add(driftEvery)
		c, err := m.d.converge(ctx, s, mongo)
		switch {
		case err != nil && ctx.Err() == nil:
			m.d.trouble(err)
			m.d.log.Warn("the files could not be compared", "error", err)
		case err == nil && c.Phase != bootstrap.PhaseJoined:
			return nil
		case err == nil:
			m.d.trouble(nil)
			restart = c.RestartNeeded
			m.d.view.setRestart(restart)
			if !c.Node.SameLife(m.node) {
				return nil // another address: the next session registers it
			}
		}
	}
}

// driftPoll is how often somebody who waits for a restart looks whether the last
// session has ended.
const driftPoll = 5 * time.Second

// mayRestart reports whether a restart cuts no session. What is not known counts
// as a session.
func (m *member) mayRestart(context.Context) bool {
	n, known := m.d.view.sessions().Total()
	return known && n == 0
}
