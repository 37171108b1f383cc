// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Options make a Runner. Node, Files, Role, Before and Log are needed.
type Options struct {
	Node  Node
	Files Files
	// Role returns the node's role, which may change when it joins. Like Filter, Deadline, StopTime and Before, it must
	// neither block nor call the runner.
	Role func() string
	// Hooks are nil if the cloud has none. Filter says which of them are ours; nil is no names.
	Hooks  cloud.Hooks
	Filter func() cloud.Filter
	// Peers reports the other machines of a completion. With nil such a completion is sent only when the cloud waits no longer.
	Peers Peers
	// Watcher is nil if the cloud announces nothing.
	Watcher cloud.Watcher

	// Deadline is how long sessions are waited for; a drain keeps the first that is final. Nil is DefaultDeadline.
	Deadline func() (d time.Duration, final bool)
	// StopTime bounds a stop, or a start, of the server; nil or 0 is the usual time.
	StopTime func() time.Duration
	// SampleInterval is the time from one count of the sessions to the next; 0 is a second.
	SampleInterval time.Duration
	// Balancers returns the names of the load balancers that send new sessions to this node, as far as they confirm what they do;
	// with nil, a drain does not wait for them. It returns when ctx ends.
	Balancers func(ctx context.Context) []string
	// Before returns the last count before a drain.
	Before func() (s cluster.Sessions, at time.Time)
	// Prove returns when this machine is seen in the cluster. With nil launch hooks are ignored.
	Prove func(ctx context.Context) error

	// Event writes an event of the cluster's history; it knows the node.
	Event func(ctx context.Context, e cluster.Event) error
	// Uptime is [BootClock]; nil is a clock of this process, by which no drain outlasts it.
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
	// sampleTime bounds one count of the sessions.
	sampleTime = 5 * time.Second
	// countReserve is what a count ends before the deadline.
	countReserve   = 50 * time.Millisecond
	balancersEvery = 500 * time.Millisecond
	// beforeTime is how old the last count before a shutdown may be.
	beforeTime = 15 * time.Second
	// troubleEvery is from one warning about a kind of trouble to the next.
	troubleEvery = time.Minute
	// unsavedEvery is how often a record is written again that could not be.
	unsavedEvery = 5 * time.Second
	maxNotes     = 20
	maxEvents    = 32
)

// Runner drains this node, and completes its lifecycle hooks. It owns the state: each event is applied, written to the disk, and
// then the work under way is made that of the plan.
type Runner struct {
	o   Options
	log *slog.Logger
	ran atomic.Bool

	mu         sync.Mutex
	state      state
	clock      wallClock
	boot       string
	saved      []byte // what the file holds
	unsaved    bool
	changed    chan struct{} // closed, and replaced, at each change
	notes      []Note
	warned     map[string]warned
	ctx        context.Context // of Run; nil: it does not run
	end        context.CancelFunc
	work       map[string]context.CancelFunc
	workers    sync.WaitGroup
	completing sync.Mutex // one completion at a time
	timer      *time.Timer

	view      atomic.Pointer[View]
	record    atomic.Pointer[record]
	events    chan cluster.Event
	unwritten atomic.Int32
}

// warned is the last warning about one kind of trouble; its text is "" if its end is logged.
type warned struct {
	text string
	at   time.Time
}

// NewRunner makes a runner that continues with the drain of a former run of the daemon. A record that cannot be read is noted, and
// is no drain.
func NewRunner(o Options) (*Runner, error) {
	if o.Node == nil || o.Files == nil {
		return nil, errors.New("making a lifecycle runner: no node, or no place for its record")
	}
	began := time.Now()
	o.SampleInterval = cmp.Or(max(0, o.SampleInterval), time.Second)
	if o.Deadline == nil {
		o.Deadline = func() (time.Duration, bool) { return DefaultDeadline, true }
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Filter == nil {
		o.Filter = func() cloud.Filter { return nil }
	}
	if o.Uptime == nil {
		o.Uptime = func() (string, time.Duration) { return "", time.Since(began) + 1 }
	}
	r := &Runner{
		o: o, log: o.Log, state: state{}.clone(), changed: make(chan struct{}), warned: map[string]warned{},
		work: map[string]context.CancelFunc{}, events: make(chan cluster.Event, maxEvents),
	}
	r.boot, _ = o.Uptime()
	r.mu.Lock()
	defer r.mu.Unlock()
	d, err := load(o.Files)
	if err != nil {
		r.state.note("recorded drain ignored", "error", err)
		r.saved = []byte{}
	}
	if d != nil {
		r.clock = d.wall()
		if d.Boot != r.boot {
			r.clock = wallClock{}
		}
		now := r.now()
		c := r.config(now)
		r.state, r.saved = d.restore(r.boot, o.Hardware, now, &c), []byte{}
		r.state.confirm(o.Filter())
	}
	r.tell()
	_ = r.step(passed)
	return r, nil
}

func (r *Runner) now() instant {
	_, up := r.o.Uptime()
	return max(1, instant(up))
}

// config is what the next step depends on. The lock is held.
func (r *Runner) config(now instant) config {
	r.clock = r.clock.updated(now, time.Now())
	c := config{
		Joined: r.o.Node.Joined, JoinedAt: r.o.Node.JoinedAt, Role: r.o.Role(),
		Hooks: r.o.Hooks != nil, Proves: r.o.Prove != nil, Sample: r.o.SampleInterval, Wall: r.clock,
		Balancers: r.o.Balancers != nil,
		NoneBefore: func(left func(cluster.Sessions) (int, bool)) bool {
			s, at := r.o.Before()
			n, known := left(s)
			return known && n == 0 && !at.After(time.Now()) && time.Since(at) <= beforeTime
		},
	}
	c.Budget, c.Final = r.o.Deadline()
	return c
}

func (r *Runner) observe(e event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.step(e)
}

// step applies an event, tells of the result, keeps it, and makes the work that of the plan. The lock is held.
func (r *Runner) step(e event) error {
	now := r.now()
	c := r.config(now)
	next, err := step(r.state, e, now, &c)
	same := r.state
	same.inService = next.inService
	r.state = next
	if _, look := e.(reported); look && reflect.DeepEqual(same, next) {
		return err // as nearly all looks
	}
	r.tell()
	plan := next.plan(now, &c)
	// Readiness and the node record do not wait for a disk: each step may be begun again.
	r.publish(now, &c, plan)
	was := r.unsaved
	if r.save(); r.unsaved != was {
		r.publish(now, &c, plan)
	}
	r.tellTrouble()
	r.follow(plan, now)
	return err
}

// tell logs what a step noted, and queues its events.
func (r *Runner) tell() {
	for _, n := range r.state.notes {
		text := n.String()
		r.log.Info(n.text, n.attrs...) //nolint:sloglint // a constant at each call of state.note
		r.notes = append(r.notes, Note{At: time.Now().Round(0), Text: text})
	}
	r.notes = r.notes[max(0, len(r.notes)-maxNotes):]
	for _, e := range r.state.history {
		if r.o.Event == nil {
			continue
		}
		select {
		case r.events <- e:
			r.unwritten.Add(1)
		default:
			r.log.Warn("event dropped: too many are pending", "kind", e.Kind)
		}
	}
	r.state.notes, r.state.history = nil, nil
}

// tellTrouble logs what does not go well, once a minute for each kind, and the end of that.
func (r *Runner) tellTrouble() {
	for about, text := range r.state.trouble {
		if w := r.warned[about]; w.text != text && time.Since(w.at) >= troubleEvery {
			r.warned[about] = warned{text, time.Now()}
			r.log.Warn("drain step failed, retrying", "step", about, "error", text)
		}
	}
	for about, w := range r.warned {
		if w.text != "" && r.state.trouble[about] == "" {
			r.warned[about] = warned{at: w.at}
			r.log.Info("drain step works again", "step", about)
		}
	}
}

func (r *Runner) publish(now instant, c *config, p plan) {
	changed := r.changed
	r.changed = make(chan struct{})
	v := r.viewOf(now, c, p)
	r.view.Store(&v)
	w := r.state.record(now, c)
	w.changed = r.changed
	r.record.Store(&w)
	close(changed)
}

func (r *Runner) save() {
	d := document{Boot: r.boot, Start: time.Time(r.clock), Hardware: r.o.Hardware, state: r.state}
	data, err := d.encode()
	if err == nil && (!bytes.Equal(data, r.saved) || (data == nil) != (r.saved == nil)) {
		if data == nil {
			err = r.o.Files.RemoveFile(RecordPath)
		} else {
			err = r.o.Files.WriteFile(RecordPath, data, 0o600, 0o700)
		}
		if err == nil {
			r.saved = data
		}
	}
	text := ""
	if err != nil {
		text = "a restart of the agent would forget this drain: " + err.Error()
	}
	r.unsaved = err != nil
	r.state.setTrouble(troubleRecord, text)
}

// follow starts the work of the plan, and ends all other. The lock is held.
func (r *Runner) follow(p plan, now instant) {
	if r.ctx == nil {
		return
	}
	wanted := map[string]func(context.Context){}
	if p.Balancers {
		wanted["balancers"] = r.askBalancers
	}
	if p.Count {
		wanted[map[bool]string{false: "count", true: "last count"}[p.LastCount]] = func(ctx context.Context) { r.count(ctx, p.LastCount) }
	}
	if p.Stop {
		wanted["stop"] = r.stop
	}
	if p.Prove {
		wanted["prove "+r.state.Start.ID] = func(ctx context.Context) { r.prove(ctx, p.Start) }
	}
	for launching, find := range p.FindHooks {
		if find {
			settings, notBefore := r.state.settings, r.state.askNotBefore
			wanted[fmt.Sprint("find ", launching, settings)] = func(ctx context.Context) { r.discover(ctx, launching, settings, notBefore) }
		}
	}
	for _, w := range p.Hooks {
		wanted[string(w.op)+" "+hookKey(w.Hook)] = func(ctx context.Context) { r.callHook(ctx, w.Hook, w.op) }
	}
	for key, cancel := range r.work {
		if wanted[key] == nil {
			cancel()
			delete(r.work, key)
		}
	}
	for key, do := range wanted {
		if r.work[key] == nil {
			ctx, cancel := context.WithCancel(r.ctx)
			r.work[key] = cancel
			r.workers.Go(func() { do(ctx) })
		}
	}
	wake := p.WakeAt
	if retry := now.Add(unsavedEvery); r.unsaved && (wake == 0 || retry < wake) {
		wake = retry
	}
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	if wake != 0 {
		r.timer = time.AfterFunc(wake.Sub(now), func() { _ = r.observe(passed) })
	}
	if p.Exit {
		r.end()
	}
}

// Run does what notices ask for until ctx ends, or until the node is drained for a shutdown: then it returns nil while the
// machine shuts down. It runs once.
func (r *Runner) Run(ctx context.Context) error {
	if r.ran.Swap(true) {
		return errors.New("this lifecycle runner has run already")
	}
	events, stopEvents := context.WithCancel(context.WithoutCancel(ctx))
	var last sync.WaitGroup
	last.Go(func() { r.writeEvents(events) })

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.workers.Go(func() { r.writeRecord(ctx) }) // before the lock, which may wait for a disk
	r.mu.Lock()
	r.ctx, r.end = ctx, cancel
	_ = r.step(passed) //nolint:contextcheck // it starts the workers with r.ctx
	r.mu.Unlock()
	if r.o.Watcher != nil {
		r.workers.Go(func() { r.o.Watcher.Watch(ctx, r.report) })
	}
	<-ctx.Done()
	r.mu.Lock()
	r.ctx = nil // nothing more is started
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
	r.workers.Wait()
	r.flush(ctx)
	stopEvents()
	last.Wait()
	return nil
}

func (r *Runner) report(topic string, current []cloud.Notice) {
	r.logIgnored(r.observe(reported{topic, current}), topic)
}

func (r *Runner) logIgnored(err error, id string) {
	if err != nil {
		r.log.Info("notice ignored", "notice", id, "error", err)
	}
}

// Notice takes the notice of an event, or of a shutdown. It may come twice, late, or contradict another.
func (r *Runner) Notice(n Notice) { r.logIgnored(r.observe(noticed{n}), n.ID) }

// Drain drains this node for the operator. A second request is the same drain; its deadline, if it has one, replaces the first. It
// fails with [ErrNotJoined] or [ErrLeft].
func (r *Runner) Drain(req DrainRequest) error { return r.observe(drainRequested{req}) }

// Undrain cancels a drain, until the server is being stopped: then it is [ErrTooLate]. It overrules the cloud's notices until the
// cloud withdraws them. If the node record drains and this node does not, the record is corrected. It fails with [ErrNotJoined] or
// [ErrNotDraining], too.
func (r *Runner) Undrain(who string, row cluster.State) error {
	return r.observe(drainCancelled{who, row})
}

// Forget ends a drain that is over, because this machine joins, or has joined, again. While a drain is under way it is [ErrBusy];
// its end finds out whether the machine was joined after the stop.
func (r *Runner) Forget(joining bool) error { return r.observe(joinSeen{joining}) }

// Forgotten reports whether a drain was forgotten whose end the node record may not show, until Settled.
func (r *Runner) Forgotten() bool { return r.record.Load().forgotten }

// Settled reports that the node record shows what this node does. It does not wait for a disk.
func (r *Runner) Settled() {
	go func() { _ = r.observe(change(func(s *state) { s.Forgotten = false })) }()
}

// Unsaid reports that the node record may have lost what was written, for example if it was removed. It does not wait for a disk.
func (r *Runner) Unsaid() { go func() { _ = r.observe(change(func(s *state) { s.Have = "" })) }() }

// Reconsider asks again for the hooks: the settings were read again.
func (r *Runner) Reconsider() { _ = r.observe(settingsRead{}) }

// pendingHook returns a hook as it is called now; false if the call is not wanted any more.
func (r *Runner) pendingHook(h Hook, op hookOp) (call Hook, wanted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	c := r.config(now)
	a := r.state.hook(h)
	if a == nil || r.state.hookOp(a, now, &c) != op {
		return Hook{}, false
	}
	call = a.Hook
	call.Limit, call.Parking = c.Wall.time(a.Limit), r.state.leaving() && r.state.goal(now, &c) == goalPark
	return call, true
}

// askBalancers asks which load balancers send sessions here, at once and then in intervals.
func (r *Runner) askBalancers(ctx context.Context) {
	for {
		bound, cancel := context.WithTimeout(ctx, announceTime)
		using := r.o.Balancers(bound)
		cancel()
		if ctx.Err() != nil {
			return
		}
		_ = r.observe(change(func(s *state) { s.balancers, s.balancersAsked = using, true }))
		if !sleep.For(ctx, balancersEvery) {
			return
		}
	}
}

// count counts the sessions, at once and then in intervals; the last count is made once.
func (r *Runner) count(ctx context.Context, last bool) {
	var logged time.Time
	for {
		limit := max(sampleTime, r.o.SampleInterval)
		if left := time.Until(r.View().Deadline) - countReserve; left > 0 {
			limit = min(limit, left) // what it has found by then counts
		}
		if last {
			limit = lastCountTime
		}
		next := time.Now().Add(r.o.SampleInterval)
		bound, cancel := context.WithTimeout(ctx, limit)
		sessions, err := r.o.Node.Sessions(bound)
		cancel()
		if ctx.Err() != nil {
			return
		}
		_ = r.observe(counted{sessions, err})
		if v := r.View(); v.Step == StepDraining && time.Since(logged) >= progressEvery {
			r.log.Info("draining", "progress", v.Progress)
			logged = time.Now()
		}
		if last || !sleep.For(ctx, time.Until(next)) {
			return
		}
	}
}

func (r *Runner) stopTime() time.Duration {
	if r.o.StopTime == nil {
		return defaultStopTime
	}
	return cmp.Or(max(0, r.o.StopTime()), defaultStopTime)
}

// maxStopPause is the longest pause between two tries to stop a server that does not end.
const maxStopPause = time.Minute

// stop stops the server, and retries that for ever. After its time the cloud is not kept waiting.
func (r *Runner) stop(ctx context.Context) {
	r.mu.Lock()
	now := r.now()
	c := r.config(now)
	limit := r.state.stepTime(r.stopTime(), 2*time.Second, now, &c)
	failed := r.state.Phase == phaseStopFailed
	r.mu.Unlock()
	end := time.Now().Add(limit)
	for pause := time.Second; ; {
		bound, cancel := context.WithTimeout(ctx, limit)
		err := r.o.Node.StopServer(bound)
		cancel()
		if err != nil && ctx.Err() != nil {
			return
		}
		failed = failed || !time.Now().Before(end)
		_ = r.observe(stopTried{err, failed})
		if err == nil || errors.Is(err, ErrNotManaged) || !sleep.For(ctx, pause) {
			return
		}
		limit = max(time.Until(end), time.Second)
		if failed {
			limit, pause = r.stopTime(), min(2*pause, maxStopPause)
		}
	}
}

func (r *Runner) jitter(d time.Duration) time.Duration {
	return time.Duration((0.5 + r.o.Rand()/2) * float64(d))
}
