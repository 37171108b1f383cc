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
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Options configure a Runner.
type Options struct {
	Node  Node
	Files Files
	// Role may change at a join. Like Filter, Deadline, StopTime and Before, it must not block or call the runner.
	Role func() string
	// Hooks is nil if the cloud has none. Filter returns the names of this agent's hooks; nil means no names.
	Hooks  cloud.Hooks
	Filter func() cloud.Filter
	// Peers reports which other machines of a completion still serve.
	Peers Peers
	// Watcher is nil if the cloud announces nothing.
	Watcher cloud.Watcher

	// Deadline returns how long a drain waits for sessions; a drain keeps the first final value.
	Deadline func() (d time.Duration, final bool)
	// StopTime bounds a stop or start of the server; 0 means the default.
	StopTime func() time.Duration
	// Balancers returns the load balancers that confirm their state and still send new sessions here. It returns when ctx ends.
	Balancers func(ctx context.Context) []string
	Before    func() (s cluster.Sessions, at time.Time)
	// Prove returns when the cluster sees this machine.
	Prove func(ctx context.Context) error

	Event func(ctx context.Context, e cluster.Event) error
	// Uptime is [BootClock].
	Uptime func() (boot string, up time.Duration)
	// Hardware is metadata.Hardware: "" is unknown.
	Hardware string
	Log      *slog.Logger
}

const (
	// DefaultDeadline limits the wait for sessions if no setting does.
	DefaultDeadline = time.Hour
	defaultStopTime = 90 * time.Second
	// sampleEvery is the time between counts, sampleTime bounds one.
	sampleEvery = time.Second
	sampleTime  = 5 * time.Second
	// countReserve separates the end of a count from the deadline.
	countReserve   = 50 * time.Millisecond
	balancersEvery = 500 * time.Millisecond
	// beforeTime is the maximum age of the last count before a shutdown.
	beforeTime = 15 * time.Second
	pollEvery  = 500 * time.Millisecond
	// slowPollEvery applies while a notice, a launch hook or a machine's end is awaited.
	slowPollEvery = 10 * time.Second
)

// Runner drains this node and completes its hooks. It applies an event, saves the state, then starts and cancels work.
type Runner struct {
	o   Options
	log *slog.Logger

	mu         sync.Mutex
	state      state
	clock      wallClock
	boot       string
	saved      []byte // of the file
	unread     error  // why the file could not be read yet: it is kept
	notes      []Note
	events     chan cluster.Event
	warned     map[string]warned
	ctx        context.Context // of Run; nil if it does not run
	end        context.CancelFunc
	work       map[string]context.CancelFunc
	workers    sync.WaitGroup
	completing sync.Mutex // one at a time

	view atomic.Pointer[View] // readers skip the lock
}

// NewRunner returns a runner that continues the drain of an earlier run. It reads an unreadable record again later.
func NewRunner(o Options) *Runner {
	r := &Runner{
		o: o, log: o.Log, state: state{}.clone(), work: map[string]context.CancelFunc{},
		warned: map[string]warned{}, events: make(chan cluster.Event, maxEvents),
	}
	r.boot, _ = o.Uptime()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read()
	_ = r.step(passed)
	return r
}

// read continues the recorded drain, and repeats what came before it could be read. It requires the lock.
func (r *Runner) read() {
	d, data, err := load(r.o.Files)
	_, damaged := errors.AsType[*conf.DamagedError](err)
	_, newer := errors.AsType[*conf.VersionError](err)
	if cause := err; damaged || newer && r.boot != "" && d.Boot != r.boot {
		if err = r.o.Files.WriteFile(RecordPath+".damaged", data, 0o600, 0o700); err == nil {
			r.addNotes([]note{{true, "record of a drain set aside: it cannot be used", []any{"error", cause}}})
		}
	}
	if r.unread, r.saved = err, data; d == nil || newer {
		return
	}
	if d.Boot == r.boot {
		r.clock = d.wall()
	}
	before := r.state
	r.state = d.restore(r.boot, r.o.Hardware, r.situation())
	r.state.Hooks.confirm(r.o.Filter())
	s := r.situation()
	s.Overruled, s.Used = append(s.Overruled, before.Overruled...), append(s.Used, before.Used...)
	if before.cancelledBy != "" {
		_ = s.drainCancelled(before.cancelledBy, cluster.StateDraining)
	}
	for _, n := range before.Notices {
		s.take(n, nil, false, false)
	}
	r.addNotes(r.state.notes)
	r.addEvents(r.state.history)
}

func (r *Runner) now() instant {
	_, up := r.o.Uptime()
	return max(1, instant(up))
}

// situation requires the lock.
func (r *Runner) situation() situation {
	now := r.now()
	r.clock = r.clock.updated(now, time.Now())
	c := &config{
		Joined: r.o.Node.Joined, JoinedAt: r.o.Node.JoinedAt, Role: r.o.Role(),
		Hooks: r.o.Hooks != nil, Wall: r.clock,
	}
	if before, at := r.o.Before(); !at.After(time.Now()) && time.Since(at) <= beforeTime {
		c.Before = before
	}
	c.Budget, c.Final = r.o.Deadline()
	return situation{&r.state, now, c}
}

func (r *Runner) observe(e event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.step(e)
}

// accept applies the result of work that is still wanted.
func (r *Runner) accept(ctx context.Context, do func(situation)) {
	_ = r.observe(func(s situation) error {
		if ctx.Err() == nil {
			do(s)
		}
		return nil
	})
}

// step requires the lock.
func (r *Runner) step(e event) error {
	clock, same := r.clock, r.state
	if r.unread != nil {
		r.read()
	}
	s := r.situation()
	next, err := step(s, e)
	same.inService = next.inService
	r.state = next
	// Most reports change nothing.
	v, unsaved := r.view.Load(), next.trouble[troubleRecord]
	if v == nil || v.Over != s.isOver() || unsaved != "" || clock != r.clock || !reflect.DeepEqual(same, next) {
		r.addNotes(next.notes)
		r.addEvents(next.history)
		r.state.notes, r.state.history = nil, nil
		// Readiness and the node record do not wait for a disk: every step can be repeated.
		r.publish(s)
		if r.save(); r.state.trouble[troubleRecord] != unsaved {
			r.publish(s)
		}
	}
	r.logTrouble()
	r.follow(s)
	return err
}

func (r *Runner) publish(s situation) {
	v := s.view()
	v.Notes, v.changed = slices.Clone(r.notes), make(chan struct{})
	if before := r.view.Swap(&v); before != nil {
		close(before.changed)
	}
}

func (r *Runner) save() {
	d := document{Boot: r.boot, Start: time.Time(r.clock), Hardware: r.o.Hardware, state: r.state}
	data, err := d.encode()
	if err = cmp.Or(r.unread, err); err == nil && (!bytes.Equal(data, r.saved) || (data == nil) != (r.saved == nil)) {
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
		text = "a drain does not continue over a restart of the agent: " + err.Error()
	}
	r.state.setTrouble(troubleRecord, text)
}

// follow requires the lock.
func (r *Runner) follow(s situation) {
	if r.ctx == nil {
		return
	}
	wanted := r.plan(s)
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
	if s.isOver() {
		r.end()
	}
}

// plan is the work that the state requires: a daemon that was killed derives the same from drain.json. A key stays as long
// as its work may continue.
func (r *Runner) plan(s situation) map[string]func(context.Context) {
	wanted := map[string]func(context.Context){}
	if !s.empty() || s.trouble[troubleRecord] != "" {
		every := pollEvery
		if s.Phase == StepNone && len(s.due()) == 0 || s.Phase == StepDone {
			every = slowPollEvery
		}
		wanted[fmt.Sprint("poll each ", every)] = func(ctx context.Context) { r.poll(ctx, every) }
	}
	switch s.Phase {
	case StepAnnouncing:
		wanted["balancers"] = r.askBalancers
	case StepDraining:
		wanted[fmt.Sprint("count late:", s.isLate())] = r.count // a deadline that moved up cuts a count off
	case StepStopping, stepStopFailed:
		wanted["stop"] = r.stop
	case StepNone, stepDown, StepDeregistering, StepCompleting, StepDone, stepResuming:
	}
	r.addHookWork(s, wanted)
	return wanted
}

func (r *Runner) addHookWork(s situation, wanted map[string]func(context.Context)) {
	if st := s.Start; st != nil && st.Proved == 0 && !s.leaving() {
		server := st.Server
		wanted["prove "+st.ID] = func(ctx context.Context) { r.prove(ctx, server) }
	}
	for _, launching := range []bool{false, true} {
		if s.wantsHooks(launching) {
			settings, notBefore := s.settings, s.askNotBefore
			wanted[fmt.Sprint("find ", launching, settings)] = func(ctx context.Context) { r.discover(ctx, launching, notBefore) }
		}
	}
	for i := range s.Hooks {
		h := s.Hooks[i].Hook
		if op := s.hookOp(&s.Hooks[i]); op != opNone {
			wanted[string(op)+" "+hookKey(h)] = func(ctx context.Context) { r.callHook(ctx, h, op) }
		}
	}
}

// poll repeats the step, since time alone may change the phase. It meets the deadline and the next drain exactly.
func (r *Runner) poll(ctx context.Context, every time.Duration) {
	for {
		v, wait := r.View(), every
		for _, at := range []time.Time{v.Deadline, v.NextDrain} {
			if left := time.Until(at); left > 0 {
				wait = min(wait, left)
			}
		}
		if !sleep.For(ctx, wait) {
			return
		}
		r.accept(ctx, func(situation) {})
	}
}

// Run acts on notices until ctx ends, or the node is drained for a shutdown. Call it once.
func (r *Runner) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.workers.Go(func() { r.writeEvents(ctx) })
	r.workers.Go(func() { r.writeRecord(ctx) }) // before the lock, which may wait for a disk
	r.mu.Lock()
	r.ctx, r.end = ctx, cancel
	_ = r.step(passed)
	r.mu.Unlock()
	if r.o.Watcher != nil {
		r.workers.Go(func() {
			r.o.Watcher.Watch(ctx, func(topic string, current []cloud.Notice) {
				r.logIgnored(r.observe(func(s situation) error { return s.reported(topic, current) }), topic)
			})
		})
	}
	<-ctx.Done()
	r.mu.Lock()
	r.ctx = nil // no new work
	r.mu.Unlock()
	r.workers.Wait()
}

func (r *Runner) logIgnored(err error, id string) {
	if err != nil {
		r.log.Info("notice ignored", "notice", id, "error", err)
	}
}

// Notice accepts the notice of an event or a shutdown. It may be repeated, late, or contradict another.
func (r *Runner) Notice(n Notice) {
	r.logIgnored(r.observe(func(s situation) error { return s.noticed(n) }), n.ID)
}

// Drain drains this node for the operator. A second request continues the drain; its deadline, if set, replaces the first.
// It returns [ErrNotJoined] or [ErrLeft].
func (r *Runner) Drain(req DrainRequest) error {
	return r.observe(func(s situation) error { return s.drainRequested(req) })
}

// Undrain cancels a drain. It overrules the cloud's notices until the cloud withdraws them. If only the node record is
// draining, it corrects the record. It returns [ErrTooLate], [ErrNotJoined] or [ErrNotDraining].
func (r *Runner) Undrain(who string, recorded cluster.State) error {
	return r.observe(func(s situation) error { return s.drainCancelled(who, recorded) })
}

// Forget deletes a finished drain because this machine joins again. During a drain it returns [ErrBusy]; the end of that
// drain detects a join after the stop.
func (r *Runner) Forget(joining bool) error {
	return r.observe(func(s situation) error { return s.joinSeen(joining) })
}

// Forgotten reports whether the node record may still show a forgotten drain.
func (r *Runner) Forgotten() bool { return r.view.Load().forgotten }

// Settled resets Forgotten. It does not wait for a disk.
func (r *Runner) Settled() {
	go func() { _ = r.observe(change(func(s situation) { s.Forgotten = false })) }()
}

// Unsaid means that the node record may lack the state, for example after a removal. It does not wait for a disk.
func (r *Runner) Unsaid() { go func() { _ = r.observe(change(func(s situation) { s.Have = "" })) }() }

// Reconsider repeats the query for hooks with new settings.
func (r *Runner) Reconsider() { _ = r.observe(change(situation.settingsRead)) }

// pendingHook returns a hook's current data; false if the call is no longer wanted.
func (r *Runner) pendingHook(h Hook, op hookOp) (call Hook, wanted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.situation()
	a := s.Hooks.find(h)
	if a == nil || s.hookOp(a) != op {
		return Hook{}, false
	}
	call = a.Hook
	call.Limit, call.Parking = s.c.Wall.time(a.Limit), s.leaving() && s.goal() == goalPark
	return call, true
}

func (r *Runner) askBalancers(ctx context.Context) {
	for {
		bound, cancel := context.WithTimeout(ctx, announceTime)
		using := r.o.Balancers(bound)
		cancel()
		r.accept(ctx, func(s situation) { s.balancers, s.balancersAsked = using, true })
		if !sleep.For(ctx, balancersEvery) {
			return
		}
	}
}

func (r *Runner) count(ctx context.Context) {
	var logged time.Time
	for {
		left := time.Until(r.View().Deadline)
		if left <= countReserve {
			left = lastCountTime
		}
		next := time.Now().Add(sampleEvery)
		// A count that is cut off returns its partial result.
		bound, cancel := context.WithTimeout(ctx, min(sampleTime, left-countReserve))
		sessions, err := r.o.Node.Sessions(bound)
		cancel()
		r.accept(ctx, func(s situation) { s.sessionsCounted(sessions, err) })
		if v := r.View(); v.Step == StepDraining && time.Since(logged) >= progressEvery {
			r.log.Info("draining", "progress", v.Progress)
			logged = time.Now()
		}
		if !sleep.For(ctx, time.Until(next)) {
			return
		}
	}
}

func (o *Options) stopTime() time.Duration {
	return cmp.Or(max(0, o.StopTime()), defaultStopTime)
}

// maxStopPause bounds the pause between attempts to stop the server.
const maxStopPause = time.Minute

// stop retries until the server ends. After the time limit, the hooks are completed all the same. A restart of the daemon
// does not move the limit.
func (r *Runner) stop(ctx context.Context) {
	ends, limit, failed := instant(0), r.o.stopTime(), r.View().StopFailed
	r.accept(ctx, func(s situation) {
		s.StopBy = cmp.Or(s.StopBy, s.now.Add(limit))
		ends = s.StopBy
	})
	for pause := time.Second; ; {
		left := limit
		if !failed {
			left = max(ends.Sub(r.now()), time.Second)
		}
		bound, cancel := context.WithTimeout(ctx, left)
		err := r.o.Node.StopServer(bound)
		cancel()
		if err != nil && ctx.Err() != nil {
			return
		}
		failed = failed || ends.reached(r.now())
		_ = r.observe(change(func(s situation) { s.stopTried(err, failed) }))
		if err == nil || errors.Is(err, ErrNotManaged) || !sleep.For(ctx, pause) {
			return
		}
		if failed {
			pause = min(2*pause, maxStopPause)
		}
	}
}
