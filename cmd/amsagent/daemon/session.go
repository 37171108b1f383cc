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

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// session converges the machine and then does what it is for, until the state
// file is another one. It returns an error for what is worth another try.
func (d *Daemon) session(ctx context.Context) error {
	var mongo Named
	var s Settings
	var c *bootstrap.Convergence
	var merr, err error
	d.beside(ctx, func() {
		if mongo, merr = d.o.Mongo(ctx); merr != nil && !errors.Is(merr, ErrNoMongo) {
			err = merr
			return
		}
		s = d.settings() // after MongoDB was looked for: that may read the instance's tags
		c, err = d.converge(ctx, s, mongo, askTime)
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
		entered := d.o.Machine.EnteredBefore(c.Node.Instance())
		d.view.change(func(v *View) { v.entered = entered })
		if merr != nil {
			return merr
		}
		return d.serve(ctx, s, mongo, c, departures, err)
	case bootstrap.PhaseLeaving:
		return d.idle(ctx, "a leave was begun and not finished: run amsagent leave again")
	case bootstrap.PhaseJoining:
		if merr == nil {
			return d.join(ctx, mongo.Target, false)
		}
		return d.idle(ctx, "a join was begun and not proved: run the same amsagent join again")
	}
	switch {
	case merr == nil && d.left:
		return d.idle(ctx, hasLeft)
	case merr == nil && s.AutoJoin:
		return d.join(ctx, mongo.Target, true)
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
	news := p != d.phase
	d.phase = p
	d.view.setPhase(p)
	if news {
		select { // viewers are served already when a join succeeds
		case d.phaseChanged <- struct{}{}:
		default:
		}
	}
}

// converge brings the machine back to what it joined as. With an error, what it
// returns is nil, or a node whose files could not be mended: that one serves all
// the same, and is to be seen. ask bounds the question who this machine is.
func (d *Daemon) converge(ctx context.Context, s Settings, mongo Named, ask time.Duration) (*bootstrap.Convergence, error) {
	bound, cancel := context.WithTimeout(ctx, convergeTime)
	defer cancel()
	// A tag may have changed since the session began, and a join may be at work.
	known, err := d.o.Machine.StateFile()
	if err != nil {
		known = nil // the convergence says it
	}
	identify := within(ask, d.o.Identify)
	if known != nil && known.Phase == bootstrap.PhaseJoined {
		inst, err := identify(bound) // first: it is what reads the tags
		identify = func(context.Context) (metadata.Instance, error) { return inst, err }
	}
	now := d.o.Settings()
	s.Role, s.Group = now.Role, now.Group
	var c *bootstrap.Convergence
	err = d.step(keepsJoined, func() error {
		var err error
		req := d.converging(s, mongo)
		req.Known, req.Identify = known, identify
		c, err = d.o.Machine.Converge(bound, req)
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

// within asks for so long.
func within(t time.Duration, identify bootstrap.Identifier) bootstrap.Identifier {
	return func(ctx context.Context) (metadata.Instance, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, t, fmt.Errorf("the metadata service has not answered for %s, and is asked again", t))
		defer cancel()
		return identify(ctx)
	}
}

func (d *Daemon) converging(s Settings, mongo Named) bootstrap.ConvergeRequest {
	return bootstrap.ConvergeRequest{
		Mode: bootstrap.ConvergeWatch, Mongo: mongo.Target, MongoStored: mongo.Stored, Role: s.Role, Group: s.Group, Address: s.Address,
		ForceAddress: s.ForceAddress, AddressKept: s.AddressKept, Valve: s.Valve, Interval: s.Interval, Identify: d.o.Identify,
	}
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
	d.beside(ctx, func() { sleep.For(ctx, d.o.Periods.Idle) })
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
		if !sleep.For(ctx, cloud.UntilTick(d.o.Periods.State)) {
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
			for sleep.For(ended, cloud.UntilTick(d.o.Periods.State)) {
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
	return n.State == cluster.StateLeft && n.LeftBy == cluster.LeftByLeave, err
}

func (d *Daemon) joinAs(ctx context.Context, s Settings, mongo cluster.Target) error {
	err := d.step(joins, func() error {
		bound, stop := context.WithTimeout(ctx, s.JoinTimeout)
		defer stop()
		res, err := d.o.Machine.Join(bound, bootstrap.JoinRequest{
			Mongo: mongo, Role: s.Role, Group: s.Group, Address: s.Address, ForceAddress: s.ForceAddress, AddressKept: s.AddressKept,
			Valve: s.Valve, OnFailure: s.OnFailure,
			Interval: s.Interval, Identify: d.o.Identify,
		})
		if res != nil {
			d.restarted = err != nil && res.Restarted && res.Outcome != bootstrap.OutcomeJoined
			for _, w := range res.Warnings {
				d.log.Warn("join", "id", w.ID, "what", w.Text)
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
	// ousted tells that another machine uses the row.
	ousted atomic.Bool
	// unidentified reports that the cloud had not said all at the beginning that node lacks. now is
	// the node as it was found since, with other facts; nil before.
	unidentified bool
	now          atomic.Pointer[cluster.Node]
	told         cluster.Node // the facts that the row has; zero where they are not known
	// spareAsked is when it was last asked whether this machine is to be kept.
	spareAsked time.Time
	// taking is a drain request whose acceptance is unknown, or nil. A restart forgets it: the requester gets an error.
	taking *cluster.DrainRequest
}

// serve beats and follows AMS until the session ends. unmended is why the files
// could not be mended; nil where they are well.
func (d *Daemon) serve(
	ctx context.Context, s Settings, mongo Named, c *bootstrap.Convergence, departures int64, unmended error,
) error {
	client, err := d.o.Connect(ctx, mongo.Target)
	if err != nil {
		return err
	}
	d.idling = ""
	m := &member{d: d, client: client, node: c.Node, departures: departures, unidentified: c.Unidentified || c.Incomplete}
	m.node.Port = d.portOf(m.node)
	if !m.unidentified {
		m.told = m.node
	}
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
	err = m.drift(ctx, s, mongo, c, unmended)
	cancel()
	work.Wait()
	d.mu.Lock()
	d.client = nil
	d.mu.Unlock()
	_ = client.Close(ctx) // bounded by itself; a server that is gone is none of our concern
	return err
}

func (d *Daemon) loop(m *member) *heartbeat.Loop {
	l := &heartbeat.Loop{
		Interval: time.Duration(d.interval.Load()), Sample: d.sampler.Sample, Report: d.report, Log: d.log,
		Serving: d.servingNow, Checks: d.check.Balancers, Wake: d.beatNow,
	}
	if m != nil {
		l.ID, l.Sender, l.Register = m.node.ID, m, m.enroll
	}
	return l
}

// Heartbeat writes one once our record is there: that of an earlier boot must not look
// alive.
func (m *member) Heartbeat(ctx context.Context, h cluster.Heartbeat) error {
	if m.gone() {
		return heartbeat.ErrLeft
	}
	if !m.enrolled.Load() {
		if err := m.enroll(ctx); err != nil && !m.enrolled.Load() {
			return err
		}
	}
	return m.own(m.client.Heartbeat(ctx, m.node, h))
}

// own notes whether the row is this machine's, by what became of a write to it.
func (m *member) own(err error) error {
	var other *cluster.OtherMachineError
	switch {
	case err == nil:
		m.ousted.Store(false)
		if m.d.view.setOther("") {
			m.d.log.Info("this node's row is its own again", "node", m.node.ID)
		}
	case errors.As(err, &other):
		m.ousted.Store(true)
		m.enrolled.Store(false)
		switch changed := m.d.view.setOther(other.Node.IP); {
		case !changed:
		case other.Node.BootID == m.node.BootID:
			// A join by hand, with another --address: the next session follows it.
			m.d.log.Warn("this node's row was registered under another address, and is left alone",
				"node", m.node.ID, "address", m.node.IP, "other_address", other.Node.IP)
		default:
			m.d.log.Error("another machine uses this node's id, and its row is left alone: cloned machine-id?",
				"node", m.node.ID, "address", m.node.IP, "other_address", other.Node.IP, "other_hostname", other.Node.Hostname,
				"other_boot", other.Node.BootID)
		}
	}
	return err
}

// gone reports whether this session's node has left, whatever came after that.
func (m *member) gone() bool { return m.d.life.goneSince(m.departures) }

// ClockSkew compares the clocks.
func (m *member) ClockSkew(ctx context.Context) (skew, accuracy time.Duration, err error) {
	return m.client.ClockSkew(ctx)
}

// enroll writes our row: joining until AMS was seen. Within one life that takes
// nothing back: a node that drains goes on draining.
func (m *member) enroll(ctx context.Context) error {
	for {
		if m.gone() {
			return heartbeat.ErrLeft
		}
		proved, again, now := m.proved.Load(), m.enrolled.Load(), m.now.Load()
		n, err := m.facts(ctx)
		if err != nil {
			return err
		}
		n.State, n.Reason = cluster.StateJoining, "run"
		if proved {
			n.State = cluster.StateActive
		}
		r, err := m.client.Register(ctx, n, cluster.RegisterOptions{GiveWay: m.ousted.Load()})
		if cluster.KindOf(err) == cluster.KindTimeout {
			m.applied(ctx, n)
		}
		switch drains, over := m.d.life.drains(); {
		case drains && (err != nil && again || err == nil && r.Node.State != cluster.StateDraining):
			m.d.life.manager.Unsaid() // the row was removed; where the answer is lost, the new one may be there
		case err == nil && !drains:
			if err = bootstrap.Stay(ctx, m.client, n, &r, over); err == nil && over && proved {
				m.d.life.manager.Settled()
			}
		}
		if m.own(err) != nil {
			return err
		}
		m.enrolled.Store(true)
		m.d.view.setState(r.Node.State, r.Node.StateSince)
		if proved == m.proved.Load() && now == m.now.Load() {
			return nil
		}
		// AMS was seen meanwhile, or the node has other facts, and who wrote that may have
		// been first: a row that somebody had removed would stay as it is.
	}
}

// applied looks whether the primary has a registration that no majority has acknowledged
// in time. Beats need none, so they flow as soon as it has; the registration is repeated
// until a majority has it, too.
func (m *member) applied(ctx context.Context, n cluster.Node) {
	row, err := m.client.Node(ctx, n.ID)
	if err != nil || !row.SameInstance(n) || row.State != n.State && row.State != cluster.StateDraining {
		return
	}
	m.enrolled.Store(true)
	m.d.view.setState(row.State, row.StateSince)
}

// facts is this node's row, without a state. What the cloud does not say at the moment
// stays as it is in the row.
func (m *member) facts(ctx context.Context) (cluster.Node, error) {
	if m.now.Load() != nil || !m.unidentified {
		return m.latest(), nil
	}
	row, err := m.client.Node(ctx, m.node.ID)
	_, bad := errors.AsType[*cluster.BadRecordError](err)
	switch {
	case bad, errors.Is(err, cluster.ErrNoNode):
		return m.node, nil
	case err != nil:
		return cluster.Node{}, err
	default:
		return m.node.WithCloudFactsOf(row), nil
	}
}

// enter proves that AMS is in the cluster and makes the row say so, for as long
// as it takes.
func (m *member) enter(ctx context.Context) {
	var log throttle
	complain := func(what string, err error) {
		if ctx.Err() == nil && log.allows(what+err.Error(), time.Now()) {
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
		if !sleep.For(ctx, retry) {
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
		if !sleep.For(ctx, retry) {
			return
		}
	}
	if err := m.d.o.Machine.Entered(m.node.Instance()); err != nil {
		m.d.log.Warn("a restart of the agent while MongoDB is away will make this node not ready", "error", err)
	}
	m.indexes(ctx)
}

// throttle keeps one subject of the log to a line a minute, and to one line for
// each wording: what a server that is away answers changes with each try.
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

// indexes asks once for the indexes by which the server forgets.
func (m *member) indexes(ctx context.Context) {
	err := m.client.EnsureIndexes(ctx)
	switch {
	case err == nil || ctx.Err() != nil:
	case cluster.KindOf(err) == cluster.KindUnsupported || cluster.KindOf(err) == cluster.KindForbidden:
		m.d.once.Do(func() {
			m.d.log.Info("this MongoDB forgets no old rows by itself; `amsagent nodes prune` removes them")
		})
	case cluster.KindOf(err) == cluster.KindOther:
		// As where one of another expiry is there: rows then go earlier, or later.
		m.d.log.Warn("an index that removes old rows could not be made; one with another expiry may be there", "error", err)
	default:
		m.d.log.Debug("the indexes were not made", "error", err)
	}
}

// witness looks every now and then how old AMS's own word is: other nodes take
// this one for dead by it, whatever it does. It reads our row, too, which others
// may change.
func (m *member) witness(ctx context.Context) {
	silent := false
	for sleep.For(ctx, m.d.o.Periods.Witness) {
		m.readRow(ctx)
		m.spare(ctx)
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

// readRow shows what others made of our row.
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

// spare looks why a machine whose server does not serve is to be kept all the same.
func (m *member) spare(ctx context.Context) {
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
			return // what was known holds, and the next look asks again
		}
		m.spareAsked = time.Now()
	}
	if why == v.spared {
		return
	}
	m.d.view.change(func(v *View) { v.spared = why })
	if why != "" {
		m.d.log.Info("this machine is to be kept although its server does not serve", "why", why)
	} else if !v.brokenSince.IsZero() {
		m.d.log.Info("nothing says any more that this machine is to be kept while its server does not serve")
	}
}

// asksOthers reports whether the rows of all nodes are to be read now: when the server ceases
// to serve, when it was started again by somebody and does not serve, and else once a minute.
func (m *member) asksOthers(v View, now time.Time) bool {
	return !m.spareAsked.After(v.brokenSince) || v.spared == serverStopped || now.Sub(m.spareAsked) >= spareEvery*m.d.o.Periods.Witness
}

// spareEvery is how many looks at AMS's own word lie between two at the rows of all nodes:
// where a bad release breaks all of them, all ask.
const spareEvery = 4

// peerFresh is how long ago another node may have beaten that counts.
const peerFresh = time.Minute

// serverStopped is what the service manager says of this machine alone.
const serverStopped = "somebody stopped the server"

// notAlone tells that this machine is not at fault, since half of the other nodes of its
// group do not serve either; "" where that is not so.
func (m *member) notAlone(ctx context.Context) (string, error) {
	nodes, err := m.client.Nodes(ctx)
	if err != nil {
		return "", err
	}
	now, err := m.client.ServerTime(ctx)
	if err != nil {
		return "", err
	}
	if others, down := peersDown(m.latest(), nodes, now); others > 0 && 2*down >= others {
		return fmt.Sprintf("of the other nodes of its group %d of %d do not serve either", down, others), nil
	}
	return "", nil
}

// peersDown counts the other nodes of the group that ought to serve, as far as that is known,
// and those of them that do not. One that was started again is joining until its server is seen.
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

// requestFresh is how old a request to drain may be that is taken up: who asked has given
// up by then, and has been told so.
const requestFresh = time.Minute

// longestDeadline bounds what a record may say.
const longestDeadline = 7 * 24 * time.Hour

// asked takes up a request of somebody elsewhere, and removes it from the row.
func (m *member) asked(ctx context.Context, r cluster.DrainRequest) {
	now, err := m.client.ServerTime(ctx)
	if err != nil {
		return // the next look has it
	}
	taken, err := m.client.TakeDrainRequest(ctx, m.node.ID, r.ID, m.node.Instance())
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
	case r.At.IsZero() || age > requestFresh:
		why = "the request is " + age.Round(time.Second).String() + " old"
	case m.d.life == nil:
		why = "this agent drains no node"
	default:
		err := m.d.life.manager.Drain(lifecycle.DrainRequest{
			Deadline: min(r.DeadlineMS.Duration(), longestDeadline), Now: r.Now, Reason: r.Reason, Who: r.Who, RepairStreams: r.RepairStreams,
		})
		if err != nil {
			why = err.Error()
		}
	}
	if why == "" {
		m.d.log.Info("somebody elsewhere asks this node to drain", "who", r.Who, "reason", r.Reason)
		return
	}
	m.d.log.Warn("a request to drain was refused", "who", r.Who, "why", why)
	if err := m.client.AddEvent(ctx, cluster.Event{Node: m.node.ID, Kind: "refused", Who: r.Who, Why: why}); err != nil {
		m.d.log.Debug("the refusal is not in the history", "error", err)
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

// drift compares the files regularly with those of the join.
func (m *member) drift(ctx context.Context, s Settings, mongo Named, c *bootstrap.Convergence, unmended error) error {
	p := m.d.o.Periods
	if unmended == nil {
		m.follow(c)
	}
	for sleep.For(ctx, p.Drift) {
		// It may be somewhere else by now, or have another password. Where it answers, a node
		// stays in the cluster that its server is in, and only its files are compared with what is named.
		named, err := m.d.o.Mongo(ctx)
		switch {
		case errors.Is(err, ErrNoMongo):
			named = mongo
		case err != nil: // half written, or wrong: nobody writes over it
			m.d.mended(err)
			continue
		case !named.Equal(mongo.Target) && (m.d.view.get().Beat.Error != "" || slices.Equal(named.Hosts(), mongo.Hosts())):
			m.d.log.Info("another MongoDB is named now", "mongodb", named.Target)
			return nil // the next session has it
		}
		c, err := m.d.converge(ctx, s, named, convergeTime)
		if ctx.Err() == nil {
			m.d.mended(err)
		}
		switch {
		case c == nil:
		case c.Phase != bootstrap.PhaseJoined:
			return nil
		default:
			if err == nil {
				m.follow(c)
			} else {
				c.Node.Drift = m.latest().Drift // not known is not none
			}
			if !c.Node.SameInstance(m.node) || c.Node.Role != m.node.Role || c.Node.Group != m.node.Group {
				return nil // the next session registers it
			}
			m.refresh(ctx, c)
		}
	}
	return nil
}

// latest is the node as it was found last.
func (m *member) latest() cluster.Node {
	if n := m.now.Load(); n != nil {
		return *n
	}
	return m.node
}

// refresh writes the row again where it says something else of this machine by now: the cloud
// said for the first time what the machine is, it has another name or public address, the server
// was upgraded. Beats go on meanwhile. What the cloud does not say this time stays as it was.
func (m *member) refresh(ctx context.Context, c *bootstrap.Convergence) {
	n, first := c.Node, m.unidentified && m.now.Load() == nil
	if c.Unidentified || c.Incomplete {
		if c.Unidentified && first {
			return // the row alone has what it said
		}
		was, err := m.facts(ctx)
		if err != nil {
			return // the next comparison tries again
		}
		n = n.WithCloudFactsOf(was)
		if !first {
			n.Hostname = cmp.Or(was.Hostname, n.Hostname)
		}
	}
	n.Port = m.d.portOf(n)
	if reflect.DeepEqual(n, m.told) {
		return
	}
	m.now.Store(&n)
	m.told = cluster.Node{} // what the row has after an error is not known
	if err := m.enroll(ctx); err != nil {
		m.d.log.Debug("the row was not written again, and will be", "error", err)
		return
	}
	m.told = n
}

// portOf is where the server of a node serves, which may be another port than its files name by
// now, or else where they say.
func (d *Daemon) portOf(n cluster.Node) int {
	return cmp.Or(d.o.Server.Port(), n.Port)
}
