// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
)

// session converges the machine and serves, joins or idles until the state file changes. An error means a retry.
func (d *Daemon) session(ctx context.Context) error {
	var m *member
	var err error
	d.beside(ctx, func() { m, err = d.prepare(ctx) })
	if m != nil {
		m.serve(ctx)
	}
	return err
}

// prepare returns the member that a joined machine is. Another machine joins or idles.
func (d *Daemon) prepare(ctx context.Context) (*member, error) {
	mongo, unnamed := d.o.Mongo(ctx)
	if unnamed != nil && !errors.Is(unnamed, ErrNoMongo) {
		return nil, unnamed
	}
	s := d.o.Settings() // after Mongo, which may read the instance's tags
	c, err := d.converge(ctx, mongo, askTime)
	if c == nil {
		return nil, err
	}
	d.follows(c.Phase)
	why := d.idleReason(c.Phase, unnamed == nil, s)
	switch {
	case c.Phase != bootstrap.PhaseLeaving && d.life.isGone(): // nor does a machine join that the cloud takes
		d.idle("this node has left the cluster")
		sleep.For(ctx, idlePause)
	case c.Unidentified != "":
		d.self.Store(nil)
		d.view.change(func(v *View) { v.State, v.entered = "", false })
		return nil, errors.New(c.Unidentified)
	case c.Phase == bootstrap.PhaseJoined:
		entered := d.o.Machine.EnteredBefore(c.Node.Instance())
		d.view.change(func(v *View) { v.entered = entered })
		if unnamed != nil {
			return nil, unnamed
		}
		return d.newMember(ctx, mongo, c, err)
	case why == "":
		return nil, d.join(ctx, mongo.Target, c.Phase == "")
	default:
		d.idle(why)
		sleep.For(ctx, idlePause) // a tag may name MongoDB later
	}
	return nil, nil
}

// idleReason returns why a machine that is no node does not join by itself, or "".
func (d *Daemon) idleReason(p bootstrap.Phase, named bool, s Settings) string {
	switch {
	case p == bootstrap.PhaseLeaving:
		return "a leave was begun and not finished: run amsagent leave again"
	case p == bootstrap.PhaseJoining && !named:
		return "a join was begun and not proved: run the same amsagent join again"
	case p == bootstrap.PhaseJoining:
		return ""
	case !named:
		return "not a member; waiting for amsagent join"
	case d.left:
		return "this machine left by hand: amsagent join brings it back"
	case !s.AutoJoin:
		return "not a member; auto_join is off"
	case s.Wrong != "":
		return "not a member; no join with settings that are wrong"
	}
	return ""
}

// follows records the phase. A machine that was made to leave must not join by itself.
func (d *Daemon) follows(p bootstrap.Phase) {
	was := d.view.get().Phase
	switch {
	case p == bootstrap.PhaseJoined:
		d.left = false
	case p == "" && (was == bootstrap.PhaseJoined || was == bootstrap.PhaseLeaving):
		d.left = true
	}
	d.view.setPhase(p)
	if p != was {
		poke(d.phaseChanged) // a successful join means that viewers are served already
	}
}

// converge restores the machine as it joined. With an error it returns nil, or a node whose files could not be repaired,
// which serves all the same. ask bounds the identity request.
func (d *Daemon) converge(ctx context.Context, mongo Named, ask time.Duration) (*bootstrap.Convergence, error) {
	bound, cancel := context.WithTimeout(ctx, convergeTime)
	defer cancel()
	// A tag may have changed, and a join may be in progress.
	known, err := d.o.Machine.StateFile()
	if err != nil {
		known = nil // the convergence reports it
	}
	identify := func(ctx context.Context) (metadata.Instance, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, ask, fmt.Errorf("the metadata service has not answered for %s, and is asked again", ask))
		defer cancel()
		return d.o.Identify(ctx)
	}
	if known != nil && known.Phase == bootstrap.PhaseJoined {
		inst, err := identify(bound) // before Settings: it reads the tags
		identify = func(context.Context) (metadata.Instance, error) { return inst, err }
	}
	s := d.o.Settings()
	m := d.member.Load()
	var c *bootstrap.Convergence
	err = d.step(false, func() error {
		var err error
		c, err = d.o.Machine.Converge(bound, bootstrap.ConvergeRequest{
			Mode: bootstrap.ConvergeWatch, Mongo: mongo.Target, MongoStored: mongo.Stored, Role: s.Role, Group: s.Group,
			Address: s.Address, ForceAddress: s.ForceAddress, AddressKept: s.AddressKept, Valve: s.Valve, Interval: s.Interval,
			Known: known, Identify: identify, Registered: m != nil && m.enrolled.Load(),
		})
		return err
	})
	if c != nil {
		d.view.change(func(v *View) { v.digest = c.Digest })
	}
	if c != nil && c.Unidentified == "" && c.Node.ID != "" { // else it was cut off
		d.self.Store(new(c.Node))
	}
	if err != nil && (c == nil || c.Phase != bootstrap.PhaseJoined || c.Node.ID == "") {
		return nil, err
	}
	if err != nil {
		return c, err // not repaired
	}
	for _, f := range c.Repairs {
		d.log.Warn("repaired", "id", f.ID, "detail", f.Text)
	}
	logged := d.view.get().Warnings
	for _, f := range findings(c.Warnings) {
		// once, not every minute
		if !slices.ContainsFunc(logged, func(l bootstrap.Finding) bool { return l.String() == f.String() }) {
			d.log.Warn("a check or a repair failed", "id", f.ID, "detail", f.Text)
		}
	}
	d.view.setConvergence(c)
	return c, nil
}

func (d *Daemon) reportRepair(err error) {
	if d.trouble(err) && err != nil {
		d.log.Error("comparing or repairing the files failed, trying again", "error", err)
	}
}

// idle shows that nothing hinders a machine that does nothing.
func (d *Daemon) idle(why string) {
	if d.view.get().Activity != why {
		d.log.Info("idle", "reason", why)
	}
	d.view.setActivity(why)
	d.trouble(nil)
	d.status()
}

// join joins until a drain ends the session. by: only the settings request it.
func (d *Daemon) join(ctx context.Context, mongo cluster.Target, by bool) error {
	d.view.setActivity("joining")
	d.status()
	inst, err := d.o.Identify(ctx)
	if err != nil {
		return fmt.Errorf("joining: %w", err)
	}
	if by {
		left, err := d.leftBefore(ctx, mongo, inst.ID)
		if left || err != nil {
			d.left = left
			return err
		}
	}
	// settings again: Identify has read the tags
	if err = d.joinAs(ctx, d.o.Settings(), mongo); d.life.isGone() {
		return nil // a drain stopped the server
	}
	return err
}

// leftBefore reports whether the registry shows a leave by hand before the daemon's start.
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
	return n.State == cluster.StateLeft && n.LeftBy == cluster.LeftByLeave, err
}

func (d *Daemon) joinAs(ctx context.Context, s Settings, mongo cluster.Target) error {
	err := d.step(true, func() error {
		bound, stop := context.WithTimeout(ctx, s.JoinTimeout)
		defer stop()
		req := s.JoinRequest
		req.Unattended = true
		req.Mongo, req.Interval, req.Identify = mongo, s.Interval, d.o.Identify
		res, err := d.o.Machine.Join(bound, req)
		if res != nil {
			d.restarted = err != nil && res.Restarted && res.Outcome != bootstrap.OutcomeJoined
			for _, w := range res.Warnings {
				d.log.Warn("join", "id", w.ID, "detail", w.Text)
			}
		}
		return err
	})
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

// member is a session as a node of the cluster.
type member struct {
	d      *Daemon
	mongo  Named
	client *cluster.Client
	node   cluster.Node
	// proved: AMS was seen in the cluster in this session.
	proved atomic.Bool
	// gone: a drain has stopped the server in this session. A node that was parked serves again only in a new session.
	gone atomic.Bool
	// enrolled: the record is this instance's.
	enrolled atomic.Bool
	// ousted: another machine uses the record.
	ousted atomic.Bool
	// enrolling allows one registration at a time, and guards silence, found, and the two after it for it. Only drift changes these.
	enrolling *semaphore.Weighted
	silence   cluster.Silence // of the record's other writer
	// found are events of a registration that has no answer yet.
	found []cluster.Event
	// now has the latest facts. incomplete: some of the cloud are missing, and stay as in the record.
	now        cluster.Node
	incomplete bool
	// unwritten: the record may lack facts of now.
	unwritten bool
	// pending are events that the registry does not have yet.
	pending []cluster.Event
	events  sync.Mutex // guards pending
	// beatAt is when the loop last wrote a heartbeat.
	beatAt time.Time
	// spareAsked is when notAlone was last asked.
	spareAsked time.Time
	rolesRead  time.Time
	// taking is a drain request whose acceptance is unknown, or nil. A restart forgets it: the requester gets an error.
	taking *cluster.DrainRequest
}

// newMember connects. unrepaired is the error of repairing the files.
func (d *Daemon) newMember(ctx context.Context, mongo Named, c *bootstrap.Convergence, unrepaired error) (*member, error) {
	client, err := d.o.Connect(ctx, mongo.Target)
	if err != nil {
		return nil, err
	}
	m := &member{d: d, mongo: mongo, client: client, node: c.Node, enrolling: semaphore.NewWeighted(1)}
	m.node.Port = d.portOf(m.node)
	m.now, m.incomplete = m.node, c.Incomplete
	if c.OtherHardware {
		m.happened(cluster.Event{
			ID: cluster.NewEventID(), Node: m.node.ID, Kind: "hardware", Who: "amsagent", Why: "the node runs on other hardware",
			Details: map[string]string{"address": m.node.IP},
		})
	}
	d.member.Store(m)
	d.view.change(func(v *View) {
		v.ID, v.Address, v.Role, v.Group, v.node = m.node.ID, m.node.IP, m.node.Role, m.node.Group, m.node
		v.OtherMachine, v.Proved, v.Activity = "", false, "serving"
	})
	if d.reportRepair(unrepaired); unrepaired == nil {
		m.follow(c)
	}
	return m, nil
}

// serve sends heartbeats and follows AMS until the session ends: no heartbeat or registration may follow a departure.
func (m *member) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { m.d.loop(m).Run(ctx) })
	work.Go(func() { m.enter(ctx) })
	work.Go(func() { m.watchDocument(ctx) })
	m.drift(ctx)
	cancel()
	work.Wait()
	m.d.member.Store(nil)
	_ = m.client.Close(ctx) // bounded; the server may be unreachable
}

func (d *Daemon) loop(m *member) *heartbeat.Loop {
	l := &heartbeat.Loop{
		Interval: d.interval, Sample: d.sampler.Sample, Report: d.report, Log: d.log, Wake: d.beatNow,
	}
	if m != nil {
		l.Sender = m
	}
	return l
}

// Heartbeat registers again if the record was removed: the node is alive.
func (m *member) Heartbeat(ctx context.Context, h cluster.Heartbeat) error {
	v := m.d.view.get()
	h.Serving, h.Checks, h.Digest = v.serving(), m.d.check.Balancers(), v.digest
	h.Drain = drainLimit(v.Lifecycle, h.Clock)
	err := m.beat(ctx, h)
	if errors.Is(err, cluster.ErrNoNode) {
		if err = m.enroll(ctx); err == nil {
			m.d.log.Warn("registered again: the record was missing", "node", m.node.ID)
			err = m.beat(ctx, h)
		}
	}
	if err == nil {
		m.endSilence(ctx)
	}
	return err
}

// drainLimit is a drain's deadline by MongoDB's clock, of which this machine's is ahead by skew, if that is known.
func drainLimit(v *lifecycle.View, skew *seconds.Duration) *cluster.DrainLimit {
	if v == nil || v.State != lifecycle.StateDraining || v.Step == lifecycle.StepDone || v.Deadline.IsZero() {
		return nil
	}
	l := &cluster.DrainLimit{Until: v.Deadline, By: v.DeadlineBy}
	if skew != nil {
		l.Until = l.Until.Add(-time.Duration(*skew))
	}
	return l
}

// endSilence follows each heartbeat.
func (m *member) endSilence(ctx context.Context) {
	at := time.Now()
	if silent := at.Sub(m.beatAt); !m.beatAt.IsZero() && silent > 2*m.d.interval {
		now, err := m.client.ServerTime(ctx)
		if err != nil {
			return // with the next heartbeat
		}
		was := m.node
		was.UpdatedAt = now.Add(-silent)
		m.happened(cluster.History(was, m.node, now)...)
	}
	m.beatAt = at
}

// maxEvents bounds the events that wait for MongoDB.
const maxEvents = 16

func (m *member) happened(events ...cluster.Event) {
	m.events.Lock()
	defer m.events.Unlock()
	m.pending = append(m.pending, events...)
	m.pending = m.pending[max(0, len(m.pending)-maxEvents):]
}

// writeEvents is not for the heartbeats' goroutine: events wait for a majority.
func (m *member) writeEvents(ctx context.Context) {
	if !m.enrolled.Load() {
		return
	}
	m.events.Lock()
	events := m.pending
	m.pending = nil
	m.events.Unlock()
	m.happened(slices.DeleteFunc(events, func(e cluster.Event) bool { return m.client.AddEvent(ctx, e) == nil })...)
}

// beat registers first: a record of an earlier boot must not look alive.
func (m *member) beat(ctx context.Context, h cluster.Heartbeat) error {
	if m.isGone() {
		return heartbeat.ErrLeft
	}
	if !m.enrolled.Load() {
		if err := m.enroll(ctx); err != nil && !m.enrolled.Load() {
			return err
		}
	}
	return m.checkOwner(m.client.Heartbeat(ctx, m.node, h))
}

// checkOwner detects from a write's error whether another machine uses the record.
func (m *member) checkOwner(err error) error {
	var other *cluster.OtherMachineError
	switch {
	case err == nil:
		m.ousted.Store(false)
		if m.d.view.setOther("") {
			m.d.log.Info("this node's record is its own again", "node", m.node.ID)
		}
	case errors.As(err, &other):
		m.ousted.Store(true)
		m.enrolled.Store(false)
		who := other.Node.IP
		if other.Boot {
			who = "another boot"
		}
		switch changed := m.d.view.setOther(who); {
		case !changed:
		case other.Boot, other.Silent:
			m.d.log.Info("the record is of another boot or machine and taken once it is silent", "node", m.node.ID, "in", other.Free().String())
			time.AfterFunc(other.Free(), func() { poke(m.d.beatNow) })
		case other.Node.BootID == m.node.BootID:
			// A join by hand with another --address; the next session follows it.
			m.d.log.Warn("this node's record was registered under another address and is not changed",
				"node", m.node.ID, "address", m.node.IP, "other_address", other.Node.IP)
		default:
			m.d.log.Error("another machine uses this node's id and its record is not changed: cloned machine-id?",
				"node", m.node.ID, "address", m.node.IP, "other_address", other.Node.IP, "other_hostname", other.Node.Hostname,
				"other_boot", other.Node.BootID)
		}
	}
	return err
}

// isGone reports whether the node has left since the session's start.
func (m *member) isGone() bool { return m.gone.Load() || m.d.life.isGone() }

// ClockSkew implements the Sender of [heartbeat.Loop].
func (m *member) ClockSkew(ctx context.Context) (skew, accuracy time.Duration, err error) {
	return m.client.ClockSkew(ctx)
}

// enroll writes the record, as joining until AMS was seen. It does not end a drain.
func (m *member) enroll(ctx context.Context) error {
	if err := m.enrolling.Acquire(ctx, 1); err != nil {
		return err
	}
	defer m.enrolling.Release(1)
	drain := m.d.life.manager
	drains := func() bool { return drain.View().Step != lifecycle.StepNone }
	for {
		if m.isGone() {
			return heartbeat.ErrLeft
		}
		proved, again, n := m.proved.Load(), m.enrolled.Load(), m.now
		n.State, n.Reason = cluster.StateJoining, cluster.ReasonRun
		if proved {
			n.State = cluster.StateActive
		}
		over := drain.Forgotten() && !drains() // the registry may still show it
		r, err := m.client.Register(ctx, n, cluster.RegisterOptions{
			GiveWay: m.ousted.Load(), Waits: true, Silence: &m.silence, Incomplete: m.incomplete, DrainOver: over,
			Found: func(was cluster.Node, now time.Time) {
				if again {
					was.UpdatedAt = now // the heartbeats end a silence
				}
				if events := cluster.History(was, n, now); len(events) > 0 {
					m.found = events
				}
			},
		})
		if cluster.KindOf(err) == cluster.KindTimeout {
			m.applied(ctx, n)
		}
		switch {
		case drains() && (err != nil && again || err == nil && r.State != cluster.StateDraining):
			drain.Unsaid() // the record was removed; after a lost answer, a new one may exist
		case err == nil && over && proved && !drains():
			drain.Settled()
		}
		if m.checkOwner(err) != nil {
			if _, is := errors.AsType[*cluster.OtherMachineError](err); is {
				m.found = nil // about another machine's record
			}
			return err
		}
		m.enrolled.Store(true)
		m.d.view.setState(r.State, r.StateSince)
		m.happened(m.found...)
		m.found = nil
		if over || drains() || !drain.Forgotten() {
			return nil
		}
		// A drain ended meanwhile.
	}
}

// applied looks for a registration on the primary without a majority: heartbeats need none. The registration is retried
// until a majority has it.
func (m *member) applied(ctx context.Context, n cluster.Node) {
	row, err := m.client.Node(ctx, n.ID)
	if err != nil || !row.SameInstance(n) || row.State != n.State && row.State != cluster.StateDraining {
		return
	}
	m.enrolled.Store(true)
	m.d.view.setState(row.State, row.StateSince)
}

// enter waits until the cluster has AMS, then updates the record. Unlike a heartbeat, a state is retried until MongoDB has it.
func (m *member) enter(ctx context.Context) {
	var log throttle
	repeat := func(failed string, most time.Duration, do func() error) bool {
		for retry := m.d.o.Periods.Retry; ; retry = min(2*retry, most) {
			err := do()
			if err == nil {
				return true
			}
			if ctx.Err() == nil && log.allows(failed+err.Error(), time.Now()) {
				m.d.log.Warn(failed, "error", err) //nolint:sloglint // one of the two sentences below
			}
			if !sleep.For(ctx, retry) {
				return false
			}
		}
	}
	most := m.d.o.Periods.MostRetry
	prove := func() error {
		bound, cancel := context.WithTimeout(ctx, proveTime)
		defer cancel()
		ev, err := m.d.o.Machine.Prove(bound, m.client, m.node.IP)
		if err == nil {
			m.d.log.Info("Ant Media Server is in the cluster", "document", ev.ID, "address", ev.Address)
		}
		return err
	}
	if !repeat("Ant Media Server is not seen in the cluster yet", most/2, prove) {
		return
	}
	m.proved.Store(true)
	m.d.view.change(func(v *View) { v.Proved = true })
	if !repeat("updating the registry failed", most/4, func() error { return m.enroll(ctx) }) {
		return
	}
	if err := m.d.o.Machine.Entered(m.node.Instance()); err != nil {
		m.d.log.Warn("a restart of the agent while MongoDB is away will make this node not ready", "error", err)
	}
	m.indexes(ctx)
}

// throttle logs a changed text at most once a minute.
type throttle struct {
	text string
	at   time.Time
}

func (t *throttle) allows(text string, now time.Time) bool {
	if text == t.text || !t.at.IsZero() && now.Sub(t.at) < time.Minute {
		return false
	}
	t.text, t.at = text, now
	return true
}

func (m *member) indexes(ctx context.Context) {
	err := m.client.EnsureIndexes(ctx)
	switch {
	case err == nil || ctx.Err() != nil:
	case cluster.KindOf(err) == cluster.KindUnsupported || cluster.KindOf(err) == cluster.KindForbidden:
		m.d.once.Do(func() {
			m.d.log.Info("this MongoDB forgets no old rows by itself; `amsagent nodes prune` removes them")
		})
	case cluster.KindOf(err) == cluster.KindOther:
		// An index with another expiry removes records earlier or later.
		m.d.log.Warn("creating the index that removes old records failed, one with another expiry may exist", "error", err)
	default:
		m.d.log.Debug("the indexes were not made", "error", err)
	}
}

// watchDocument reads the age of AMS's document, by which other nodes consider this one dead, and the node record, which
// others may change.
func (m *member) watchDocument(ctx context.Context) {
	silent := false
	for sleep.For(ctx, m.d.o.Periods.Document) {
		m.readRow(ctx)
		m.writeEvents(ctx)
		m.askToKeep(ctx)
		m.readRoles(ctx)
		age, err := m.serverAge(ctx)
		if ctx.Err() != nil {
			return
		}
		m.d.view.change(func(v *View) { v.AMSAge = (*seconds.Duration)(age) })
		if err != nil || !m.proved.Load() {
			continue
		}
		was := silent
		switch silent = age == nil || *age > amsSilent; {
		case silent && !was:
			m.d.log.Warn("Ant Media Server does not write its document any more, other nodes consider it dead", "address", m.node.IP)
		case was && !silent:
			m.d.log.Info("Ant Media Server writes its document again", "address", m.node.IP)
		}
	}
}

func (m *member) readRow(ctx context.Context) {
	if !m.enrolled.Load() {
		return
	}
	n, err := m.client.Node(ctx, m.node.ID)
	if bad, ok := errors.AsType[*cluster.BadRecordError](err); ok {
		m.d.log.Warn("unreadable record of this node is registered again", "error", bad.Err)
		m.enrolled.Store(false)
	}
	if err != nil || !n.SameInstance(m.node) {
		return
	}
	m.d.view.setState(n.State, n.StateSince)
	if r := cmp.Or(n.DrainRequest, m.taking); r != nil {
		m.asked(ctx, *r)
	}
}

// readRoles makes the cluster's roles known to the agent check, if one of its clients sent a word that may be a role.
func (m *member) readRoles(ctx context.Context) {
	if !m.d.check.HasUnknownWords() || time.Since(m.rolesRead) < rolesEvery {
		return
	}
	nodes, err := m.client.Nodes(ctx)
	if err != nil {
		return
	}
	m.rolesRead = time.Now()
	var roles []string
	for _, n := range nodes {
		roles = append(roles, n.Role)
	}
	m.d.check.AddRoles(roles)
}

// askToKeep determines why to keep a machine whose server does not serve.
func (m *member) askToKeep(ctx context.Context) {
	v := m.d.view.get()
	why := ""
	switch {
	case v.brokenSince.IsZero():
	case m.d.o.Server.Stopped(ctx):
		why = serverStopped
	case !m.asksOthers(v, time.Now()):
		return
	default:
		var err error
		if why, err = m.notAlone(ctx); err != nil {
			return // keep the last result
		}
		m.spareAsked = time.Now()
	}
	if why == v.spared {
		return
	}
	m.d.view.change(func(v *View) { v.spared = why })
	if why != "" {
		m.d.log.Info("this machine should be kept although its server does not serve", "reason", why)
	} else if !v.brokenSince.IsZero() {
		m.d.log.Info("no reason is left to keep this machine while its server does not serve")
	}
}

// asksOthers reports whether to read all node records: once the server stops serving, after a manual stop, and else once a
// minute.
func (m *member) asksOthers(v View, now time.Time) bool {
	return !m.spareAsked.After(v.brokenSince) || v.spared == serverStopped || now.Sub(m.spareAsked) >= spareEvery*m.d.o.Periods.Document
}

// rolesEvery bounds the reads of all node records for a word that is no role.
const rolesEvery = time.Minute

// spareEvery is in Periods.Document: with a bad release, all nodes read all records.
const spareEvery = 4

// peerFresh is the maximum age of a peer's record.
const peerFresh = time.Minute

const serverStopped = "the server was stopped by hand"

// notAlone returns a reason if half of the group's other nodes do not serve either.
func (m *member) notAlone(ctx context.Context) (string, error) {
	nodes, err := m.client.Nodes(ctx)
	if err != nil {
		return "", err
	}
	now, err := m.client.ServerTime(ctx)
	if err != nil {
		return "", err
	}
	if others, down := peersDown(m.node, nodes, now); others > 0 && 2*down >= others {
		return fmt.Sprintf("of the other nodes of its group %d of %d do not serve either", down, others), nil
	}
	return "", nil
}

// peersDown counts the group's nodes that should serve, and those that do not. A restarted one is joining until its server
// is seen.
func peersDown(self cluster.Node, nodes []cluster.Node, now time.Time) (others, down int) {
	for _, n := range nodes {
		age, known := n.Age(now)
		ought := n.State == cluster.StateActive || n.State == cluster.StateJoining
		if n.ID == self.ID || n.Group != self.Group || !ought || n.Serving == nil || !known || age > peerFresh {
			continue
		}
		if others++; !n.Serving.Up {
			down++
		}
	}
	return others, down
}

// requestFresh is the maximum age of a drain request: older ones have timed out for the requester.
const requestFresh = time.Minute

// longestDeadline bounds a deadline in a record.
const longestDeadline = 7 * 24 * time.Hour

// asked accepts a drain request and removes it from the record.
func (m *member) asked(ctx context.Context, r cluster.DrainRequest) {
	now, err := m.client.ServerTime(ctx)
	if err != nil {
		return // retried with the next read
	}
	var taken bool
	refuses := m.d.o.Settings().NoRemoteDrain
	if refuses {
		taken, err = m.client.RefuseDrainRequest(ctx, m.node.ID, r.ID, m.node.Instance(), cluster.RefusedRemoteDrain)
	} else {
		taken, err = m.client.TakeDrainRequest(ctx, m.node.ID, r.ID, m.node.Instance())
	}
	m.taking = nil
	if err != nil {
		m.taking = &r
		m.d.log.Warn("a drain request could not be accepted", "who", r.Who, "error", err)
	}
	if !taken {
		return
	}
	why := ""
	switch age := now.Sub(r.At); {
	case refuses:
		why = "remote_drain is false"
	case r.At.IsZero() || age > requestFresh:
		why = "the request is " + age.Round(time.Second).String() + " old"
	default:
		err := m.d.life.manager.Drain(lifecycle.DrainRequest{
			Deadline: min(r.Deadline, seconds.Duration(longestDeadline)), Now: r.Now, Reason: r.Reason, Who: r.Who, RepairStreams: r.RepairStreams,
		})
		if err != nil {
			why = err.Error()
		}
	}
	if why == "" {
		m.d.log.Info("another machine requests a drain of this node", "who", r.Who, "reason", r.Reason)
		return
	}
	m.d.log.Warn("a request to drain was refused", "who", r.Who, "reason", why)
	if err := m.client.AddEvent(ctx, cluster.Event{Node: m.node.ID, Kind: "refused", Who: r.Who, Why: why}); err != nil {
		m.d.log.Debug("the refusal is not in the history", "error", err)
	}
}

// serverAge returns the age of AMS's document; nil without one.
func (m *member) serverAge(ctx context.Context) (*time.Duration, error) {
	docs, err := m.client.AMSNodesByAddress(ctx, m.node.IP)
	if err != nil {
		return nil, err
	}
	var last time.Time
	for _, doc := range docs {
		if doc.LastUpdate.After(last) {
			last = doc.LastUpdate
		}
	}
	if last.IsZero() {
		return nil, nil
	}
	return new(max(0, time.Since(last))), nil
}

// amsSilent is AMS's own limit.
const amsSilent = 20 * time.Second

// drift regularly compares the files with the join, until the session must end.
func (m *member) drift(ctx context.Context) {
	for sleep.For(ctx, m.d.o.Periods.Drift) {
		m.compareRelease(ctx)
		// MongoDB may have moved, or have a new password. If the old one answers, the node stays in its server's cluster, and only
		// the files are compared.
		named, err := m.d.o.Mongo(ctx)
		switch {
		case errors.Is(err, ErrNoMongo):
			named = m.mongo
		case err != nil: // half written or invalid: it is not overwritten
			m.d.reportRepair(err)
			continue
		case !named.Equal(m.mongo.Target) && (m.d.view.get().Beat.Error != "" || slices.Equal(named.Hosts(), m.mongo.Hosts())):
			m.d.log.Info("another MongoDB is named now", "mongodb", named.Target)
			return // the next session uses it
		}
		c, err := m.d.converge(ctx, named, convergeTime)
		if ctx.Err() == nil {
			m.d.reportRepair(err)
		}
		switch {
		case c == nil:
			continue
		case c.Phase != bootstrap.PhaseJoined:
			return
		case err == nil:
			m.follow(c)
		default:
			c.Node.Drift = m.now.Drift // unknown is not none
		}
		if c.Unidentified != "" || !c.Node.SameInstance(m.node) || c.Node.Role != m.node.Role || c.Node.Group != m.node.Group {
			return // the next session registers it
		}
		m.refresh(ctx, c)
	}
}

// refresh updates the record with changed facts: identity, name, public address, server release. It has the missing ones.
func (m *member) refresh(ctx context.Context, c *bootstrap.Convergence) {
	n, missing := c.Node, c.Incomplete
	n.Port = m.d.portOf(n)
	if missing {
		n = n.WithCloudFactsOf(m.now)
		n.Hostname = cmp.Or(m.now.Hostname, n.Hostname) // the cloud's name for it
	}
	if !m.unwritten && missing == m.incomplete && reflect.DeepEqual(n, m.now) {
		return
	}
	if m.enrolling.Acquire(ctx, 1) != nil {
		return
	}
	m.now, m.incomplete = n, missing
	m.enrolling.Release(1)
	m.d.view.change(func(v *View) { v.node = n })
	err := m.enroll(ctx)
	if m.unwritten = err != nil; m.unwritten {
		m.d.log.Debug("the row was not written again, and will be", "error", err)
	}
}

// portOf returns the port in use, or else that of the files.
func (d *Daemon) portOf(n cluster.Node) int {
	return cmp.Or(d.o.Server.Port(), n.Port)
}
