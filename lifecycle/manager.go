// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// What a person is answered.
var (
	// ErrNotJoined: this machine has not joined, or has not finished that: there is nothing to drain.
	ErrNotJoined = errors.New("this machine is not a cluster node")
	// ErrNotDraining: there is nothing to take back.
	ErrNotDraining = errors.New("this node is not draining")
	// ErrTooLate: Ant Media Server is being stopped already, or the machine shuts down.
	ErrTooLate = errors.New("it is too late to take the drain back")
	// ErrLeft: the node has left, or is parked.
	ErrLeft = errors.New("this node has left already")
	// ErrBusy: a drain is under way.
	ErrBusy = errors.New("a drain is under way")
)

// Options make a Manager. Node and Files are needed, the rest may be left out.
type Options struct {
	Node  Node
	Files Files
	// Role tells the node's role, which it may learn when it joins; nil is none. It
	// must neither block nor call the manager.
	Role func() string
	// Hooks are nil where the cloud has none. Filter says which of them are ours; it is asked each time, for a setting may
	// change, and nil is no names.
	Hooks  cloud.Hooks
	Filter func() cloud.Filter
	// Peers tells who else waits behind the same word of ours. With nil such a word
	// is said only when the cloud waits no longer.
	Peers Peers
	// Watcher is nil where the cloud announces nothing.
	Watcher cloud.Watcher

	// Deadline is how long sessions are waited for. It may change; a drain keeps the first
	// that is final. An instance tag that was not read yet may still say another one. Nil is
	// DefaultDeadline.
	Deadline func() (d time.Duration, final bool)
	// StopTime bounds a stop of AMS, or a start: it is asked before each, as applications come
	// and go. 0 is the usual time, as is nil.
	StopTime func() time.Duration
	// SampleInterval is the time from one count of the sessions to the next.
	SampleInterval time.Duration
	// Before is the last count that was made before a drain; nil is none. It must
	// neither block nor call the manager.
	Before func() (s cluster.Sessions, at time.Time)

	// Prove returns when this machine is seen in the cluster: the evidence that a
	// launch hook is completed by. nil proves nothing, and such hooks are left
	// alone.
	Prove func(ctx context.Context) error

	// Event writes an event of the cluster's history; it knows the node.
	Event func(ctx context.Context, e cluster.Event) error
	// Uptime is [BootClock], or nil: then the wall clock has to do.
	Uptime func() (boot string, up time.Duration)
	// Hardware is [Hardware], or "".
	Hardware string
	Log      *slog.Logger
	// Rand is a number from 0 to 1; nil is a random one.
	Rand func() float64
}

const (
	// DefaultDeadline is how long sessions are waited for.
	DefaultDeadline = time.Hour
	defaultStopTime = 90 * time.Second
	// reserveTime is kept of the cloud's time for stopping, deregistering and
	// completing: AMS takes some 17 s to end with streams on it, the rest a second each.
	reserveTime = 30 * time.Second
	// deregisterTime bounds the waiting for the registry.
	deregisterTime = 10 * time.Second
	// proveTime is after what a start has failed.
	proveTime = 10 * time.Minute
	// blindTime is how long a machine that goes down waits for sessions that nobody
	// can count. Their number is as likely nought, and whoever told the machine to
	// go down waits, too.
	blindTime = 2 * time.Minute
	// announceTime is how long observing waits for the registry to know.
	announceTime = 2 * time.Second
	// announceNobodyTime is the same for a machine that goes down with nobody on it:
	// whoever is sent here in that time loses no more than a try.
	announceNobodyTime = 500 * time.Millisecond
	// callTime bounds one call to the cloud or to the registry.
	callTime = 10 * time.Second
	// sampleTime bounds one count of the sessions.
	sampleTime = 5 * time.Second
	// progressEvery is how often people hear of a drain in which nothing changes.
	progressEvery = 30 * time.Second
	// quietTime is how long they hear of no change after they heard of one.
	quietTime = 5 * time.Second
	// noActionEvery is how often a hook that does not wait yet is asked again.
	noActionEvery = 5 * time.Second
	// noActionTime is after what it is said that a hook does not wait for this machine.
	noActionTime = 30 * time.Second
	// deniedEvery is how often a call that was denied is tried again: somebody may
	// grant it meanwhile.
	deniedEvery = time.Minute
	// startEvery is how often the hook of a start is asked for after idleHookTime, where nobody lets
	// us know: most groups have none.
	startEvery = 5 * time.Minute
	// unknownTimeout is the shortest that a cloud allows a hook.
	unknownTimeout = 30 * time.Second
	// parkedHookTime is longer than a load balancer takes to let a machine go, which the
	// wait on the way into a pool comes after.
	parkedHookTime = 2 * time.Hour
	// longestTimeout is the longest time that a cloud lets a hook wait of which it hears nothing:
	// AWS 2 h, Alibaba Cloud 6 h.
	longestTimeout = 6 * time.Hour
	// idleHookTime is how long a hook that may not exist for what happens (detach,
	// standby, a start that the cloud does not wait for) is asked for.
	idleHookTime = 10 * time.Minute
	// usualStopTime is systemd's, for a shutdown of which nothing is known.
	usualStopTime = 90 * time.Second
	maxNotes      = 20
	maxMemory     = 32
)

// Manager has the word over how this node goes.
type Manager struct {
	o   Options
	log *slog.Logger
	ran atomic.Bool

	mu      sync.Mutex
	r       *record
	gen     int           // counts drains and undrains
	changed chan struct{} // closed, and made anew, at each change
	joined  bool          // at the last look
	over    bool          // the drain of a shutdown has ended

	sessions *cluster.Sessions
	counted  time.Time
	zeros    int
	blind    time.Time // since when nobody can count them; zero: somebody can
	trouble  map[string]string
	// launchHooks is what people are told of those that are not ours.
	launchHooks string
	// reread is when the settings were read again, by which hooks are ours or not; zero: never.
	reread  time.Time
	logged  map[string]loggedTrouble
	notes   []Note
	noticed time.Time // when a notice was noted last
	// cancelledBy is who cancelled the last drain.
	cancelledBy string
	// withdrawn and handled are ids that this life has seen.
	withdrawn map[string]time.Time
	handled   map[string]bool
	inService time.Time // when the cloud last reported it
	// missing counts, by the ID of a notice, the reports in a row in which it was not in force.
	missing  map[string]int
	launched bool // the launch hook is looked for
	// verified are the hooks of which it is known that they are ours.
	verified  map[string]bool
	tries     map[string]*try
	view      atomic.Pointer[View]
	wish      atomic.Pointer[wish]
	events    chan cluster.Event
	unwritten atomic.Int32  // events
	forgotten atomic.Bool   // see Forgotten
	unsaid    chan struct{} // see Unsaid; it has room for one
	told      chan struct{} // see Settled; it has room for one
}

// NewManager makes a manager and takes up what a former life of the daemon was
// about. A record that cannot be read is said, and is no drain.
func NewManager(o Options) (*Manager, error) {
	var missing []error
	if o.Node == nil {
		missing = append(missing, errors.New("no node"))
	}
	if o.Files == nil {
		missing = append(missing, errors.New("no place for its record"))
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("making a lifecycle manager: %w", errors.Join(missing...))
	}
	if o.SampleInterval <= 0 {
		o.SampleInterval = time.Second
	}
	if o.Deadline == nil {
		o.Deadline = func() (time.Duration, bool) { return DefaultDeadline, true }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Role == nil {
		o.Role = func() string { return "" }
	}
	if o.Before == nil {
		o.Before = func() (cluster.Sessions, time.Time) { return cluster.Sessions{}, time.Time{} }
	}
	if o.Filter == nil {
		o.Filter = func() cloud.Filter { return nil }
	}
	if o.Uptime == nil {
		o.Uptime = func() (string, time.Duration) { return "", 0 }
	}
	m := &Manager{
		o: o, log: o.Log, changed: make(chan struct{}), r: &record{}, gen: 1,
		trouble: map[string]string{}, logged: map[string]loggedTrouble{}, withdrawn: map[string]time.Time{}, handled: map[string]bool{},
		missing: map[string]int{}, verified: map[string]bool{},
		tries: map[string]*try{}, events: make(chan cluster.Event, maxMemory), unsaid: make(chan struct{}, 1), told: make(chan struct{}, 1),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := load(o.Files)
	if err != nil {
		m.noteLocked("the record of a drain cannot be used, so there is none: " + err.Error())
	}
	if r != nil {
		m.r = r
		m.takeUp()
	}
	m.commit()
	return m, nil
}

// takeUp goes on with what was read.
func (m *Manager) takeUp() {
	r := m.r
	if r.Hardware != "" && m.o.Hardware != "" && r.Hardware != m.o.Hardware {
		m.noteLocked("the record of a drain is that of another machine, of whose disk this is a copy, so there is none")
		m.r = &record{}
		return
	}
	boot, up := m.o.Uptime()
	now := time.Now()
	same := r.wake(now, boot, up)
	m.forgotten.Store(same && r.Forgotten)
	r.bound()
	// There may be other settings now, by which a hook is ours.
	r.NoHook, r.NoLaunchHook = false, false
	// A shutdown that this process survives, or follows, is over. What is not due yet is
	// told again by its source, if it still holds.
	r.drop(func(n Notice) bool { return n.Kind == Shutdown || !m.o.isDue(r, n, now) })
	if r.Step.observing() {
		r.Tomb = nil // of that one
	}
	if !same {
		m.takeUpAfterBoot()
		return
	}
	if r.Step != StepNone && len(r.Notices) == 0 {
		m.noteLocked("the machine did not go down: this node serves again")
		m.serveAgain()
		return
	}
	if r.Wait <= 0 {
		m.settleWait()
	}
	if r.Step != StepNone && r.Step != StepDone {
		m.noteLocked("going on with the drain that was begun at " + r.Begun.Format(time.RFC3339) + ", step " + string(r.Step))
	}
}

// takeUpAfterBoot keeps that the cloud takes the machine and nothing else: the machine
// that a person drained, parked or restarted comes back by being started. So does the one
// whose host went: where the cloud still interrupts it, the source tells so again.
func (m *Manager) takeUpAfterBoot() {
	r := m.r
	observing := r.Step.observing()
	if r.Step != StepNone && !observing {
		m.noteLocked("the machine was started again: the drain before that is over")
		m.r = &record{Rejoined: r.Rejoined}
		return
	}
	r.drop(func(n Notice) bool { return n.Kind != Terminate })
	r.Dismissed, r.Standing, r.Say, r.Said, r.HookFirst = nil, nil, "", "", false
	if r.Start != nil {
		r.Start.Server, r.Start.Proved, r.Start.Failed = false, false, false
	}
	if !observing {
		return
	}
	if len(r.Notices) == 0 {
		m.noteLocked("the machine was started again: the drain before that is over")
		m.r = &record{Start: r.Start, Rejoined: r.Rejoined}
		return
	}
	m.noteLocked("the machine was started again, and is to go all the same: draining")
	r.Step, r.Say = StepAnnouncing, cluster.StateDraining
}

// commit makes a change of the record durable, and known. The lock is held.
func (m *Manager) commit() {
	now := time.Now()
	switch {
	case m.r.Step == StepNone:
		m.r.Deadline = time.Time{}
	case m.r.Step.observing():
		m.r.Deadline = deadline(m.o.timeline(m.r))
	default:
		// What it was when AMS was stopped.
	}
	// Nobody waits for a disk to learn that nobody is to be sent here: to tell it
	// before it is kept does no harm, since each step may be begun again.
	m.publish(now)
	boot, up := m.o.Uptime()
	m.r.Forgotten = m.forgotten.Load()
	text := ""
	m.r.Hardware = m.o.Hardware
	if err := m.r.save(m.o.Files, now, boot, up); err != nil {
		// What was decided is decided: a full disk keeps nobody on a machine that
		// goes.
		text = "a restart of the agent would forget this drain: " + err.Error()
	}
	if m.troubleLocked("record", text) {
		m.publish(now)
	}
}

// publish tells of a change that needs not be kept. The lock is held.
func (m *Manager) publish(now time.Time) {
	changed := m.changed
	m.changed = make(chan struct{})
	v := m.viewOf(now)
	m.view.Store(&v)
	m.wish.Store(&wish{
		say: m.r.Say, owed: m.r.Say != m.r.Said, observing: m.r.Step.observing() || m.r.StopFailed, reason: m.reason(),
		stopFailed: m.r.StopFailed, tomb: m.r.Tomb, changed: m.changed,
	})
	close(changed)
}

// noteLocked says something to whoever looks at the log or at the view.
func (m *Manager) noteLocked(text string) {
	m.log.Info("lifecycle", "what", text)
	m.notes = append(m.notes, Note{At: time.Now().Round(0), Text: text})
	if len(m.notes) > maxNotes {
		m.notes = slices.Delete(m.notes, 0, len(m.notes)-maxNotes)
	}
}

// loggedTrouble is what the log has heard of one kind of trouble.
type loggedTrouble struct {
	at   time.Time // of the last warning
	open bool      // its end is still to be told
}

// troubleEvery is from one warning about a kind of trouble to the next: what a
// server that is away answers changes with each try.
const troubleEvery = time.Minute

// troubleLocked keeps what goes wrong for the view; "" is that it goes well. The
// log hears of it once a minute at most, and of the end of what it heard of.
func (m *Manager) troubleLocked(what, text string) (changed bool) {
	now, was := time.Now(), m.trouble[what]
	said := m.logged[what]
	if text != "" {
		m.trouble[what] = text
		if (!said.open || text != was) && (said.at.IsZero() || now.Sub(said.at) >= troubleEvery) {
			m.logged[what] = loggedTrouble{at: now, open: true}
			m.log.Warn("a step of the drain fails; it is tried again", "step", what, "error", text)
		}
		return was != text
	}
	delete(m.trouble, what)
	if said.open {
		said.open = false
		m.logged[what] = said
		m.log.Info("a step of the drain works again", "step", what)
	}
	return was != ""
}

// event puts an event into the queue; the lock is held.
func (m *Manager) event(e cluster.Event) {
	if m.o.Event == nil {
		return
	}
	select {
	case m.events <- e:
		m.unwritten.Add(1)
	default:
		m.log.Warn("an event was dropped, too many wait to be written", "kind", e.Kind)
	}
}

// Notice takes a notice. It may come twice, late, or contradict another.
func (m *Manager) Notice(n Notice) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.take(n); err != nil {
		m.log.Info("a notice has no effect", "id", n.ID, "kind", string(n.Kind), "reason", err.Error())
	}
}

// Drain drains this node because a person wants it. A second request is the
// same drain: its deadline, if it says one, takes the place of the first one's.
func (m *Manager) Drain(req DrainRequest) error {
	now := time.Now()
	n := Notice{ID: askID, Source: "drain", Kind: Ask, Reason: req.Reason, Who: req.Who, Received: now}
	switch {
	case req.Now:
		n.Deadline = now
	case req.Deadline > 0:
		n.Deadline = now.Add(req.Deadline)
	case req.Deadline < 0:
		return fmt.Errorf("a deadline of %s is none", req.Deadline)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if req.RepairStreams && !m.r.Repair {
		defer func(was *record) {
			// Only where the request was taken.
			if m.r == was && m.r.Step != StepNone && m.r.Tomb == nil {
				m.r.Repair = true
				m.commit()
			}
		}(m.r)
	}
	return m.take(n)
}

// askID is the same for all requests of people, so that the last one counts.
const askID = "drain"

// take handles a notice. The lock is held.
func (m *Manager) take(n Notice) error {
	now := time.Now()
	n = copyNotice(n)
	if n.ID == "" {
		n.ID = n.Source + ":" + string(n.Kind)
	}
	n = bounded(n)
	if n.Received = anchor(n.Received, now); n.Received.IsZero() || n.Received.After(now) {
		n.Received = now
	}
	n.Deadline = anchor(n.Deadline, now)
	if n.Hook != nil {
		n.Hook.Limit = anchor(n.Hook.Limit, now)
	}
	switch n.Kind {
	case Withdrawn:
		return m.withdraw(n)
	case Resume, Launch:
		if n.Kind == Resume && m.r.Step != StepNone && n.Received.Before(m.r.Begun) {
			return errors.New("it came late: this machine is to go since")
		}
		if n.Kind == Resume && n.Received.After(m.inService) {
			m.inService = n.Received
		}
		return m.takeStart(n)
	case Shutdown:
		if n.Deadline.IsZero() {
			n.Deadline = now.Add(usualStopTime)
		}
	case Terminate, Interrupt, Reboot, Park, Ask:
	default:
		return fmt.Errorf("%q is no kind of notice", string(n.Kind))
	}
	if slices.Contains(m.r.Dismissed, n.ID) || slices.Contains(m.r.Rejoined, n.ID) {
		return nil // a person has overruled it
	}
	if at, ok := m.withdrawn[n.ID]; ok && !n.Received.After(at) {
		return errors.New("it came late: it was withdrawn already")
	}
	for i := range m.r.Notices {
		if m.r.Notices[i].ID == n.ID {
			return m.again(&m.r.Notices[i], n)
		}
	}
	if m.past(n, now) {
		return errors.New("it came late: this machine has come back since")
	}
	return m.fresh(n, now)
}

// past reports whether the machine has come back from what is announced. EC2 may stop it
// before the consumer of a queue deletes the message about that.
func (m *Manager) past(n Notice, now time.Time) bool {
	at := n.Received
	if n.Kind != Park {
		return false
	}
	_, up := m.o.Uptime()
	return up > 0 && at.Before(now.Add(-up)) || at.Before(m.inService)
}

// again takes what is new in a notice that is known.
func (m *Manager) again(was *Notice, n Notice) error {
	if n.Kind == Ask && m.r.Step == StepDone {
		return ErrLeft
	}
	changed, before := false, m.o.goal(m.r)
	if n.Kind != was.Kind {
		// The drain goes on, for what the cloud does now.
		was.Kind, was.Reason, was.Who, changed = n.Kind, n.Reason, n.Who, true
		m.noteLocked(noticeWord(*was) + " is now of kind " + string(n.Kind))
	}
	switch {
	case n.Deadline.IsZero():
	case n.Kind == Ask && was.Deadline.Equal(n.Deadline):
	case n.Kind == Ask:
		was.Deadline, was.Received, was.Who, changed = n.Deadline, n.Received, n.Who, true
		m.noteLocked("the deadline is now " + n.Deadline.Format(time.RFC3339) + ", by --deadline of " + cmp.Or(n.Who, "nobody named"))
	case n.Moved && was.Deadline.Sub(n.Deadline).Abs() > time.Second:
		was.Deadline, changed = n.Deadline, true
		m.moveLimit(n.Hook)
		m.noteLocked("the deadline of " + noticeWord(n) + " was moved to " + n.Deadline.Format(time.RFC3339))
		m.putOff(*was)
	case was.Deadline.IsZero() || was.Deadline.Sub(n.Deadline) > time.Second:
		was.Deadline, changed = n.Deadline, true
		m.noteLocked("the deadline of " + noticeWord(n) + " is earlier now: " + n.Deadline.Format(time.RFC3339))
	}
	if n.Hook != nil {
		known := len(m.r.Hooks)
		if m.r.learn(*n.Hook, was.Received) {
			changed = true
			if m.r.Step == StepDone && (len(m.r.Hooks) > known || m.r.open(false) != nil) {
				m.r.Step = StepCompleting
			}
		}
	}
	// One that was kept before a restart may be due by now.
	step := m.r.Step
	switch {
	case step == StepNone:
		m.joined = m.o.Node.Joined()
		m.advance(time.Now())
	case step == StepDone && before <= goalPause && m.o.goal(m.r) > goalPause:
		m.joined = m.o.Node.Joined()
		m.begin(time.Now())
	}
	if changed || m.r.Step != step {
		m.commit()
	}
	return nil
}

// putOffTime is how long before its time a drain is not kept going: a restart that is
// moved by minutes is no reason to serve in between.
const putOffTime = time.Hour

// putOff lets the node serve again whose restart was moved to a time far ahead, if that is
// all it drains for.
func (m *Manager) putOff(n Notice) {
	if m.r.Step == StepNone || m.irreversible() || m.anyDue(time.Now()) || time.Until(m.o.due(m.r, n)) < putOffTime {
		return
	}
	m.undrain(cmp.Or(n.Who, n.Source), "put off")
}

// moveLimit takes the limit of a hook as the cloud says it now.
func (m *Manager) moveLimit(h *Hook) {
	for i := range m.r.Hooks {
		if a := &m.r.Hooks[i]; h != nil && a.same(*h) && a.End == "" {
			a.Hook.Limit = h.Limit
		}
	}
	for i := range m.r.Notices {
		if in := m.r.Notices[i].Hook; h != nil && in != nil && same(*in, *h) {
			in.Limit = h.Limit
		}
	}
}

// fresh takes a notice that is not known yet.
func (m *Manager) fresh(n Notice, now time.Time) error {
	r := m.r
	before := m.o.goal(r)
	m.joined = m.o.Node.Joined()
	switch {
	case n.Kind == Ask && r.Step == StepDone && before >= goalPark:
		return ErrLeft
	case n.Kind == Ask && r.Step == StepNone && !m.joined:
		return ErrNotJoined
	}
	n.Moved = false // it is the first that is heard of it
	r.Notices = append(r.Notices, n)
	if r.bound() {
		m.troubleLocked("notices", fmt.Sprintf("more than %d notices are in force, or they are too long: those whose deadlines come last are left out", maxNotices))
		if !slices.ContainsFunc(r.Notices, func(in Notice) bool { return in.ID == n.ID }) {
			m.publish(now)
			return nil
		}
	} else {
		m.troubleLocked("notices", "")
	}
	if n.Hook != nil {
		r.learn(*n.Hook, n.Received)
	}
	m.noteNotice(n, now)
	if n.Kind == Terminate || n.Kind == Park {
		// What nothing waited for before is no word about this.
		r.NoHook = false
		delete(m.tries, discovery(false))
	}
	switch {
	case r.Step == StepNone:
		m.advance(now)
	case r.Step == StepDone && before >= goalPark:
		if n.Kind == Terminate || n.Kind == Park {
			// Nothing is left to drain, but the cloud may wait again.
			m.waitAgain(n.Received)
			r.Step, r.Start = StepCompleting, nil
		}
	case before == goalPark && n.Kind == Terminate:
		m.waitAgain(n.Received)
	case r.Step == StepDone && goalOf(n.Kind) > goalPause && m.o.isDue(r, n, now):
		m.begin(now)
	}
	m.commit()
	return nil
}

// waitAgain begins anew with the hooks of the end, which were told of a parking.
func (m *Manager) waitAgain(since time.Time) {
	for i := range m.r.Hooks {
		if a := &m.r.Hooks[i]; !a.Hook.Launching && (a.End != "" || m.r.Step == StepDone) {
			*a = waiter{Hook: a.Hook, Since: since}
			a.Hook.Limit = time.Time{}
		}
	}
	m.tries = map[string]*try{}
}

// advance begins a drain that is due.
func (m *Manager) advance(now time.Time) {
	if m.r.Step != StepNone {
		return
	}
	for _, n := range m.r.Notices {
		if goalOf(n.Kind) != goalNone && m.o.isDue(m.r, n, now) {
			m.begin(now)
			return
		}
	}
}

// nextDue is when a drain begins that is announced; zero where none is.
func (m *Manager) nextDue(now time.Time) time.Time {
	var next time.Time
	for _, n := range m.r.Notices {
		at := m.o.due(m.r, n)
		if !at.After(now) {
			at = now.Add(m.o.SampleInterval) // it waits for the join
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

// begin begins a drain.
func (m *Manager) begin(now time.Time) {
	r := m.r
	if !m.joined && m.o.goal(r) == goalPause {
		return // nothing to pause
	}
	m.gen++
	m.tries = map[string]*try{}
	clear(m.handled) // who goes may be told to come back once more
	m.zeros, m.sessions, m.counted, m.blind, m.cancelledBy = 0, nil, time.Time{}, time.Time{}, ""
	r.Begun, r.Stopped, r.Tomb, r.HookFirst = now, time.Time{}, nil, false
	delete(m.trouble, troubleHooks)
	m.settle()
	if r.Start != nil {
		m.noteLocked("the start is given up: this machine is to go")
		if m.o.goal(r) == goalPark {
			r.Start = nil // its hook may be what waits for the parking
		} else {
			m.dropStart()
		}
	}
	c := m.o.cause(r)
	e := cluster.Event{Kind: "drain", Who: cmp.Or(c.Who, c.Source), Why: c.Reason, Details: map[string]string{"kind": string(c.Kind)}}
	if m.joined {
		r.Step, r.Say, r.Said = StepAnnouncing, cluster.StateDraining, ""
		e.Details["deadline"] = deadline(m.o.timeline(r)).UTC().Format(time.RFC3339)
	} else {
		m.noteLocked("this machine never finished joining: nobody waits for it, so the cloud is told at once")
		r.Step, r.HookFirst = StepCompleting, true
		e.Details["joined"] = "never"
	}
	m.event(e)
}

// withdraw takes back a notice.
func (m *Manager) withdraw(n Notice) error {
	r := m.r
	remember(m.withdrawn, n.ID, n.Received)
	delete(m.handled, n.ID)
	for _, overruled := range []*[]string{&r.Dismissed, &r.Rejoined} {
		if i := slices.Index(*overruled, n.ID); i >= 0 {
			*overruled = slices.Delete(*overruled, i, i+1)
			m.commit()
			return nil
		}
	}
	if r.Start != nil && r.Start.Notice.ID == n.ID && !r.Start.Server {
		m.dropStart()
		m.commit()
		return nil
	}
	i := slices.IndexFunc(r.Notices, func(in Notice) bool { return in.ID == n.ID })
	if i < 0 {
		return nil
	}
	was := r.Notices[i]
	if m.irreversible() {
		if was.Kind == Park && m.o.goal(r) == goalPark {
			return m.takeStart(Notice{
				ID: n.ID + ":back", Source: n.Source, Kind: Resume, Reason: n.Reason, Who: n.Who, Received: n.Received, Hook: n.Hook,
			})
		}
		return fmt.Errorf("%w: it is at step %s", ErrTooLate, r.Step)
	}
	r.Notices = slices.Delete(r.Notices, i, i+1)
	m.noteLocked("withdrawn: " + noticeWord(was))
	if !r.hooked() {
		m.dropHooks(false)
	}
	if r.Step != StepNone && !m.anyDue(time.Now()) {
		m.undrain(cmp.Or(n.Who, n.Source), "withdrawn")
	}
	m.commit()
	return nil
}

func (m *Manager) anyDue(now time.Time) bool {
	return slices.ContainsFunc(m.r.Notices, func(n Notice) bool { return m.o.isDue(m.r, n, now) })
}

// irreversible tells that AMS is being stopped, or more.
func (m *Manager) irreversible() bool {
	switch m.r.Step {
	case StepNone, StepAnnouncing, StepDraining:
		return false
	case StepDone:
		return m.o.goal(m.r) != goalPause
	case StepStopping, StepDeregistering, StepCompleting:
	}
	return true
}

// Undrain takes a drain back. It is [ErrTooLate] from the moment on in which AMS
// is being stopped. What a cloud said is overruled by it until the cloud takes it
// back or says something else. Where row, the state that the registry holds, drains although
// nothing here does, as after a drain that could not be kept, the registry hears that this
// node serves.
func (m *Manager) Undrain(who string, row cluster.State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.r
	switch {
	case r.Step == StepNone && !m.o.Node.Joined():
		return ErrNotJoined
	case r.Step == StepNone && row != cluster.StateDraining:
		return ErrNotDraining
	case r.Step == StepNone:
		m.undrain(who, "undrain")
		m.commit()
		return nil
	case m.irreversible():
		return fmt.Errorf("%w (step %s)", ErrTooLate, r.Step)
	case r.has(Shutdown) != nil:
		return fmt.Errorf("%w: the machine is shutting down", ErrTooLate)
	}
	now := time.Now()
	for _, n := range r.Notices {
		if n.Kind != Ask && m.o.isDue(m.r, n, now) {
			r.Dismissed = append(r.Dismissed, n.ID)
			if n.Kind != Park && n.Kind != Terminate {
				r.Standing = append(r.Standing, n.ID)
			}
			m.noteLocked(cmp.Or(who, "somebody") + " overruled " + noticeWord(n) + ": the cloud may take this machine all the same")
		}
	}
	if n := len(r.Dismissed); n > maxMemory {
		r.Dismissed = slices.Delete(r.Dismissed, 0, n-maxMemory)
	}
	r.Standing = slices.DeleteFunc(r.Standing, func(id string) bool { return !slices.Contains(r.Dismissed, id) })
	r.drop(func(n Notice) bool { return m.o.isDue(m.r, n, now) })
	m.undrain(who, "undrain")
	m.commit()
	return nil
}

// undrain makes the node serve again.
func (m *Manager) undrain(who, why string) {
	who = cmp.Or(who, "somebody")
	m.noteLocked("this node serves again: " + why + " by " + who)
	m.serveAgain()
	m.cancelledBy = who
	m.event(cluster.Event{Kind: "undrain", Who: who, Why: why})
}

func (m *Manager) serveAgain() {
	r := m.r
	m.gen++
	m.zeros, m.sessions = 0, nil
	r.Step, r.Begun, r.Tomb, r.Repair, r.HookFirst, r.NoHook, r.StopFailed = StepNone, time.Time{}, nil, false, false, false, false
	r.Say, r.Said = cluster.StateActive, ""
	m.cancelledBy = ""
	delete(m.trouble, troubleHooks)
	m.dropHooks(false)
}

// Forget ends the memory of a drain that is done, because this machine joins anew:
// joining, or that is over. While a drain is under way it is [ErrBusy]; its end looks whether
// this machine was joined after the server had been stopped. What the cloud said to a
// machine that was no node yet, as while it joined, stays, and so does what it said since
// that drain began, or announced for later: who joins knew what the drain was for and no
// more, and a machine that ends does so whoever joins. It drains as soon as it has joined.
func (m *Manager) Forget(joining bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.r.Step {
	case StepNone:
	case StepDone:
		m.forget(joining)
	case StepAnnouncing, StepDraining, StepStopping, StepDeregistering, StepCompleting:
		return ErrBusy
	}
	return nil
}

// forget is [Manager.Forget] of a drain that is done. The lock is held.
func (m *Manager) forget(joining bool) {
	now := time.Now()
	m.joined = m.o.Node.Joined()
	next := &record{Start: m.r.Start, Rejoined: m.r.Rejoined}
	never, due := m.r.HookFirst && m.o.goal(m.r) != goalNone, false
	for _, n := range m.r.Notices {
		isDue := m.o.isDue(m.r, n, now)
		ends := n.Kind == Shutdown ||
			(n.Kind == Terminate || n.Kind == Interrupt || n.Kind == Reboot) && m.o.due(m.r, n).After(m.r.Begun)
		switch {
		case !n.Received.After(m.withdrawn[n.ID]):
		case never, m.joined && (ends || !isDue):
			next.Notices, due = append(next.Notices, n), due || isDue
		case n.Kind == Park && !slices.Contains(next.Rejoined, n.ID) && len(next.Rejoined) < maxMemory:
			// The cloud says it again to the next life of the daemon.
			next.Rejoined = append(next.Rejoined, n.ID)
		}
	}
	if due && (joining || !m.joined) {
		return
	}
	if next.hooked() {
		// The cloud has been told; it is not asked again.
		next.Hooks, next.NoHook = m.r.Hooks, m.r.NoHook
	}
	if due {
		m.noteLocked("this machine has joined, and is to go all the same: it drains")
	}
	m.gen++
	delete(m.trouble, troubleHooks)
	m.r, m.tries = next, map[string]*try{}
	m.forgotten.Store(true)
	m.advance(now)
	m.commit()
}

// Forgotten reports whether a drain was forgotten, because this machine joins anew or is
// to serve again, until Settled: the registry may know of its begin alone.
func (m *Manager) Forgotten() bool { return m.forgotten.Load() }

// Unsaid tells that the registry may not hold any more what it was told, as where somebody
// removed the row. Run sees to it: no beat waits for a disk.
func (m *Manager) Unsaid() {
	select {
	case m.unsaid <- struct{}{}:
	default:
	}
}

func (m *Manager) sayAgain(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.unsaid:
			m.mu.Lock()
			if m.r.Said != "" {
				m.r.Said = ""
				m.commit()
			}
			m.mu.Unlock()
		case <-m.told:
			m.mu.Lock()
			if m.r.Forgotten != m.forgotten.Load() {
				m.commit()
			}
			m.mu.Unlock()
		}
	}
}

// Settled tells that the registry knows what this node does now.
func (m *Manager) Settled() {
	m.forgotten.Store(false)
	select {
	case m.told <- struct{}{}:
	default:
	}
}

// settle keeps what is configured now for the drain that begins.
func (m *Manager) settle() {
	m.r.Role, m.r.Wait = m.o.Role(), 0
	m.settleWait()
}

// settleWait keeps the configured deadline for this drain once it is final.
func (m *Manager) settleWait() (settled bool) {
	if m.r.Wait > 0 {
		return false
	}
	d, final := m.o.Deadline()
	if !final {
		return false
	}
	m.r.Wait = d
	return true
}

func (m *Manager) dropHooks(launching bool) {
	m.r.Hooks = slices.DeleteFunc(m.r.Hooks, func(a waiter) bool { return a.Hook.Launching == launching })
}

func (m *Manager) dropStart() {
	m.r.Start, m.r.NoLaunchHook = nil, false
	m.dropHooks(true)
}

// Run does what notices ask for until ctx ends, or until a shutdown is drained
// for: then it returns nil while the machine goes down. It runs once.
func (m *Manager) Run(ctx context.Context) error {
	if m.ran.Swap(true) {
		return errors.New("this lifecycle manager has run already")
	}
	events, stopEvents := context.WithCancel(context.WithoutCancel(ctx))
	defer stopEvents()
	var last sync.WaitGroup
	last.Go(func() { m.writeEvents(events) })

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var work sync.WaitGroup
	work.Go(func() { m.register(ctx) })
	work.Go(func() { m.sayAgain(ctx) })
	work.Go(func() { m.hooks(ctx) })
	work.Go(func() { m.starts(ctx) })
	work.Go(func() { m.tell(ctx) })
	if m.o.Watcher != nil {
		work.Go(func() { m.o.Watcher.Watch(ctx, m.report) })
	}
	m.drive(ctx)
	cancel()
	work.Wait()
	m.flush(ctx, stopEvents)
	last.Wait()
	return nil
}

// pause waits, with some jitter.
func (m *Manager) pause(ctx context.Context, d time.Duration) bool {
	return sleep(ctx, time.Duration((0.8+0.4*m.o.Rand())*float64(d)), nil)
}

// sleep waits for d, ctx or wake; false is that ctx ended.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

// during gives a context that ends as soon as valid says no; it is asked under
// the lock, at each change.
func (m *Manager) during(ctx context.Context, valid func() bool) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			m.mu.Lock()
			ok, changed := valid(), m.changed
			m.mu.Unlock()
			if !ok {
				cancel()
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	return ctx, cancel
}

// remember keeps an id, and not too many.
func remember[T any](in map[string]T, id string, v T) {
	if len(in) >= maxMemory {
		for k := range in {
			delete(in, k)
			break
		}
	}
	in[id] = v
}
