// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	var mongo cluster.Target
	var s Settings
	var c *bootstrap.Convergence
	var merr, err error
	d.beside(ctx, func() {
		if mongo, merr = d.o.Mongo(ctx); merr != nil && !errors.Is(merr, ErrNoMongo) {
			err = merr
			return
		}
		s = d.settings() // after MongoDB was looked for: that may read the instance's tags
		c, err = d.converge(ctx, s, mongo)
	})
	if c == nil {
		return err
	}
	d.follows(c.Phase)
	departures := d.life.departed()
	if c.Phase != bootstrap.PhaseLeaving && d.life.gone() {
		return d.away(ctx) // nor does a machine join that the cloud takes
	}
	switch c.Phase {
	case bootstrap.PhaseJoined:
		if merr != nil {
			return merr
		}
		return d.serve(ctx, s, mongo, c, departures, err)
	case bootstrap.PhaseLeaving:
		return d.idle(ctx, "a leave was begun and not finished: run amsagent leave again")
	case bootstrap.PhaseJoining:
		if merr == nil {
			return d.join(ctx, mongo, false)
		}
		return d.idle(ctx, "a join was begun and not proved: run the same amsagent join again")
	}
	switch {
	case merr == nil && d.left:
		return d.idle(ctx, hasLeft)
	case merr == nil && s.AutoJoin:
		return d.join(ctx, mongo, true)
	case merr == nil:
		return d.idle(ctx, "not a member; auto_join is off")
	}
	return d.idle(ctx, "not a member; waiting for amsagent join")
}

const hasLeft = "this machine left by hand: amsagent join brings it back"

// settings are the effective ones, which the loop goes by from now on.
func (d *Daemon) settings() Settings {
	s := d.o.Settings()
	d.interval.Store(int64(s.Interval))
	return s
}

// follows notes the phase. Who made a node leave does not want it back: a machine
// that joins by itself is one that never joined.
func (d *Daemon) follows(p bootstrap.Phase) {
	switch {
	case p == bootstrap.PhaseJoined:
		d.left = false
	case p == "" && (d.phase == bootstrap.PhaseJoined || d.phase == bootstrap.PhaseLeaving):
		d.left = true
	}
	d.phase = p
	d.view.setPhase(p)
}

// converge brings the machine back to what it joined as. With an error, what it
// returns is nil, or a node whose files could not be mended: that one serves all
// the same, and is to be seen.
func (d *Daemon) converge(ctx context.Context, s Settings, mongo cluster.Target) (*bootstrap.Convergence, error) {
	bound, cancel := context.WithTimeout(ctx, convergeTime)
	defer cancel()
	var c *bootstrap.Convergence
	err := d.step(memberState, func() error {
		var err error
		c, err = d.o.Machine.Converge(bound, bootstrap.ConvergeRequest{
			Mongo: mongo, Role: s.Role, Group: s.Group, Address: s.Address, Valve: s.Valve, Interval: s.Interval,
			Identify: d.o.Identify,
		})
		return err
	})
	if err != nil && (c == nil || c.Phase != bootstrap.PhaseJoined || c.Node.ID == "") {
		return nil, err
	}
	if err != nil {
		return c, err // what was found is not mended
	}
	for _, f := range c.Repairs {
		d.log.Warn("repaired", "id", f.ID, "what", f.Text)
	}
	var warned []string
	for _, f := range c.Warnings {
		warned = append(warned, f.String())
		if !slices.Contains(d.warned, f.String()) { // said once, not every minute
			d.log.Warn("not as it should be", "id", f.ID, "what", f.Text)
		}
	}
	d.warned = warned
	d.metrics.repaired(len(c.Repairs))
	d.view.setConvergence(c)
	return c, nil
}

// mended notes whether the files of a node are as they should be.
func (d *Daemon) mended(err error) {
	d.trouble(err)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != d.failed {
		d.log.Error("the files could not be compared or mended; it is tried again every now and then", "error", err)
	}
	d.failed = text
}

// idle samples without a registry: metrics and health are there also on a machine
// that is no node.
func (d *Daemon) idle(ctx context.Context, why string) error {
	d.view.setActivity(why)
	d.trouble(nil)
	if why != d.idling {
		d.log.Info("idle", "why", why)
	}
	d.idling = why
	d.status()
	// A tag may name MongoDB later: look again every now and then.
	d.beside(ctx, func() { pause(ctx, d.o.Periods.Idle) })
	return nil
}

// away samples while this node is out of the cluster, after a drain, until it is to
// come back.
func (d *Daemon) away(ctx context.Context) error {
	d.view.setActivity("this node has left the cluster")
	d.trouble(nil)
	d.status()
	d.beside(ctx, func() { d.while(ctx, d.life.gone) })
	return nil
}

// while looks as often as at the state file whether something still holds, and
// returns when it does not, or when ctx ends.
func (d *Daemon) while(ctx context.Context, holds func() bool) {
	for holds() {
		if !pause(ctx, untilTick(d.o.Periods.State)) {
			return
		}
	}
}

// join makes this machine a node, with the loop running beside it. by is true
// where nobody but the settings asked for it.
func (d *Daemon) join(ctx context.Context, mongo cluster.Target, by bool) error {
	d.view.setActivity("joining")
	d.idling = ""
	d.status()
	var gone bool
	var err error
	// What is to go joins no more.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.beside(ctx, func() {
		var watcher sync.WaitGroup
		defer watcher.Wait()
		ended, end := context.WithCancel(ctx)
		defer end()
		watcher.Go(func() {
			for pause(ended, untilTick(d.o.Periods.State)) {
				if d.life.gone() {
					cancel()
				}
			}
		})
		inst, ierr := d.o.Identify(ctx)
		if ierr != nil {
			err = fmt.Errorf("joining: %w", ierr)
			return
		}
		if by {
			if gone, err = d.leftBefore(ctx, mongo, inst.ID); gone || err != nil {
				return
			}
		}
		// The instance's tags say role and group.
		err = d.joinAs(ctx, d.settings(), mongo)
	})
	if gone {
		d.left = true
		return nil
	}
	if d.life.gone() {
		return nil
	}
	return err
}

// leftBefore reports whether the registry remembers that somebody made this
// machine leave, before this daemon was started.
func (d *Daemon) leftBefore(ctx context.Context, mongo cluster.Target, id string) (bool, error) {
	client, err := d.o.Connect(ctx, mongo)
	if err != nil {
		return false, err
	}
	defer func() { _ = client.Close(ctx) }()
	n, err := client.Node(ctx, id)
	if errors.Is(err, cluster.ErrNoNode) {
		return false, nil
	}
	return n.State == cluster.StateLeft && n.Reason == reasonLeave, err
}

// reasonLeave is what a leave by hand writes into the row.
const reasonLeave = "leave"

func (d *Daemon) joinAs(ctx context.Context, s Settings, mongo cluster.Target) error {
	err := d.step(anyState, func() error {
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

// member is one session as a node of the cluster.
type member struct {
	d      *Daemon
	client *cluster.Client
	node   cluster.Node
	// proved tells that AMS was seen in this session.
	proved atomic.Bool
	// departures are those that were counted when the session began.
	departures int64
	// enrolled tells that our row is that of this life.
	enrolled atomic.Bool
}

// serve beats and follows AMS until the session ends. unmended is why the files
// could not be mended; nil where they are well.
func (d *Daemon) serve(
	ctx context.Context, s Settings, mongo cluster.Target, c *bootstrap.Convergence, departures int64, unmended error,
) error {
	client, err := d.o.Connect(ctx, mongo)
	if err != nil {
		return err
	}
	d.idling = ""
	m := &member{d: d, client: client, node: c.Node, departures: departures}
	d.view.change(func(v *View) { v.Proved = false })
	d.mu.Lock()
	d.client = client
	d.mu.Unlock()
	d.view.setNode(c.Node)
	d.view.setActivity("serving")
	d.mended(unmended)
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { d.loop(m).Run(ctx) })
	work.Go(func() { m.enter(ctx) })
	work.Go(func() { m.witness(ctx) })
	work.Go(func() {
		// No beat and no registration may follow the word that we have left.
		d.while(ctx, func() bool { return !m.gone() })
		cancel()
	})
	err = m.drift(ctx, s, mongo, unmended == nil && c.RestartNeeded)
	cancel()
	work.Wait()
	d.mu.Lock()
	d.client = nil
	d.mu.Unlock()
	_ = client.Close(ctx) // bounded by itself; a server that is gone is none of our concern
	return err
}

func (d *Daemon) loop(m *member) *heartbeat.Loop {
	l := &heartbeat.Loop{Interval: time.Duration(d.interval.Load()), Sample: d.sampler.Sample, Report: d.report, Log: d.log}
	if m != nil {
		l.ID, l.Sender, l.Enroll = m.node.ID, m, m.enroll
	}
	return l
}

// Beat writes a beat once our row is there: one of an earlier life must not look
// alive.
func (m *member) Beat(ctx context.Context, b cluster.Beat, last *cluster.Beat) error {
	if m.gone() {
		return errGone
	}
	if !m.enrolled.Load() {
		if err := m.enroll(ctx); err != nil {
			return err
		}
		last = nil
	}
	return m.client.Beat(ctx, b, last)
}

// gone reports whether this session's node has left, whatever came after that.
func (m *member) gone() bool { return m.d.life.goneSince(m.departures) }

// errGone says that this node has said good-bye, and is not to be heard any more.
var errGone = errors.New("this node has left the cluster")

// ClockSkew compares the clocks.
func (m *member) ClockSkew(ctx context.Context) (skew, accuracy time.Duration, err error) {
	return m.client.ClockSkew(ctx)
}

// enroll writes our row: joining until AMS was seen. Within one life that takes
// nothing back: a node that drains goes on draining.
func (m *member) enroll(ctx context.Context) error {
	for {
		if m.gone() {
			return errGone
		}
		proved := m.proved.Load()
		n := m.node
		n.State, n.Reason = cluster.StateJoining, "run"
		if proved {
			n.State = cluster.StateActive
		}
		r, err := m.client.Register(ctx, n)
		if err != nil {
			return err
		}
		m.enrolled.Store(true)
		m.d.view.setState(r.Node.State, r.Node.StateSince)
		if proved == m.proved.Load() {
			return nil
		}
		// AMS was seen meanwhile, and who saw it may have been first: a row that
		// somebody had removed would stay as it is.
	}
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
	p := m.d.o.Periods
	for retry := p.Retry; ; retry = min(2*retry, p.MostRetry/2) {
		bound, cancel := context.WithTimeout(ctx, p.Prove)
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
	m.d.view.change(func(v *View) { v.Proved = true })
	// A state is not a beat: it is kept until MongoDB has taken it.
	for retry := p.Retry; ; retry = min(2*retry, p.MostRetry/4) {
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
	m.d.program.rest() // starting took more than all that follows
}

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
// this one for dead by it, whatever it does. It reads our row, too, which others
// may change.
func (m *member) witness(ctx context.Context) {
	silent := false
	for pause(ctx, m.d.o.Periods.Witness) {
		m.own(ctx)
		age, err := m.serverAge(ctx)
		if ctx.Err() != nil {
			return
		}
		m.d.view.setWitness(age)
		if err != nil || !m.proved.Load() {
			continue
		}
		was := silent
		switch silent = age == nil || *age > amsSilent; {
		case silent && !was:
			m.d.log.Warn("Ant Media Server does not write its document any more; other nodes take this one for dead", "address", m.node.IP)
		case was && !silent:
			m.d.log.Info("Ant Media Server writes its document again", "address", m.node.IP)
		}
	}
}

// own tells what others made of our row.
func (m *member) own(ctx context.Context) {
	if !m.enrolled.Load() {
		return
	}
	n, err := m.client.Node(ctx, m.node.ID)
	if err == nil && n.SameLife(m.node) {
		m.d.view.setState(n.State, n.StateSince)
	}
}

// serverAge is how old AMS's own document is; nil where there is none.
func (m *member) serverAge(ctx context.Context) (*time.Duration, error) {
	docs, err := m.client.AMSNodesByAddress(ctx, m.node.IP)
	if err != nil {
		return nil, err
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
	return age, nil
}

// amsSilent is AMS's own limit.
const amsSilent = 20 * time.Second

// drift compares the files with what was joined with every now and then, and
// restarts AMS where it runs with others, as soon as that cuts nobody.
func (m *member) drift(ctx context.Context, s Settings, mongo cluster.Target, restart bool) error {
	p := m.d.o.Periods
	nobody := quiet{least: p.Quiet, after: time.Now()}
	next, rested := time.Now().Add(p.Drift), time.Now()
	for {
		m.d.view.setRestart(restart)
		if restart && m.d.life.ready() && nobody.look(time.Now(), m.d.view.get()) && m.restartCutsNobody(ctx) {
			return m.restart(ctx)
		}
		wait := time.Until(next)
		if restart {
			wait = min(wait, p.Sessions)
		}
		if !pause(ctx, wait) {
			return nil
		}
		if time.Now().Before(next) {
			continue
		}
		next = time.Now().Add(p.Drift)
		if m.d.view.get().Beat.Error != "" {
			// It may be somewhere else by now, or have another password.
			if t, err := m.d.o.Mongo(ctx); err == nil && !t.Equal(mongo) {
				m.d.log.Info("another MongoDB is named now", "mongodb", t)
				return nil // the next session has it
			}
		}
		c, err := m.d.converge(ctx, s, mongo)
		if ctx.Err() == nil {
			m.d.mended(err)
		}
		if c != nil && c.Unread && time.Since(rested) < restEvery {
			collect()
		} else {
			m.d.program.rest()
			rested = time.Now()
		}
		switch {
		case c == nil:
		case c.Phase != bootstrap.PhaseJoined:
			return nil
		default:
			restart = err == nil && c.RestartNeeded
			if !c.Node.SameLife(m.node) {
				return nil // another address: the next session registers it
			}
		}
	}
}

// restart lets AMS take up what its files say. It is not cut in the middle, which
// might leave AMS stopped.
func (m *member) restart(ctx context.Context) error {
	m.d.log.Info("restarting Ant Media Server: it runs with other settings than its files have, and nobody is on it")
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), restartTime)
	defer cancel()
	err := m.d.step(memberState, func() error { return m.d.o.Machine.Restart(whole) })
	m.d.metrics.restarted(err)
	return err // the next session proves it
}

// quiet tells when there has been no session for a while. What is not known
// counts as one.
type quiet struct {
	least time.Duration
	after time.Time // rounds before that are of another session
	since time.Time
}

func (q *quiet) look(now time.Time, v View) bool {
	n, known := v.Sessions.Total()
	switch {
	case !known || n > 0 || !v.Beat.Round.After(q.after):
		q.since = time.Time{}
		return false
	case q.since.IsZero():
		q.since = now
	}
	return now.Sub(q.since) >= q.least
}

// restartCutsNobody takes a second look, with other eyes. Publishers are counted
// in the cluster's memory, and an AMS that runs with other files may keep its
// streams elsewhere. Where it was not seen in the cluster just now, nothing may
// be connected to any of its ports.
func (m *member) restartCutsNobody(ctx context.Context) bool {
	age, err := m.serverAge(ctx)
	if err != nil {
		return false
	}
	if age != nil && *age <= m.d.o.Periods.Quiet {
		return true
	}
	n, err := m.d.sampler.Connections()
	return err == nil && n == 0
}
