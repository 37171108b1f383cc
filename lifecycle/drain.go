// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// drive takes the drain from step to step. Each step is written down before it
// is begun, so whoever comes after a kill begins it once more.
func (m *Manager) drive(ctx context.Context) {
	for ctx.Err() == nil {
		now := time.Now()
		m.mu.Lock()
		if m.r.Step == StepNone && len(m.r.Notices) > 0 {
			m.joined = m.o.Node.Joined()
			if m.advance(now); m.r.Step != StepNone {
				m.commit()
			}
		}
		step, gen, changed, next := m.r.Step, m.gen, m.changed, m.nextDue(now)
		last, over := m.lastMoment(now)
		m.mu.Unlock()
		if over {
			m.mu.Lock()
			m.over = true
			m.publish(time.Now())
			m.mu.Unlock()
			return
		}
		switch step {
		case StepNone, StepDone:
			wait := time.Hour
			if step == StepNone && !next.IsZero() {
				wait = next.Sub(now)
			}
			sleep(ctx, wait, changed)
		case StepAnnouncing:
			m.announce(ctx, gen)
		case StepDraining:
			m.observe(ctx, gen)
		case StepStopping:
			m.stop(ctx, last)
		case StepDeregistering:
			m.deregister(ctx, last)
		case StepCompleting:
			m.complete(ctx, last)
		}
	}
}

// lastMoment is when a shutdown waits for us no longer; over tells that there is
// nothing more to do for it.
func (m *Manager) lastMoment(now time.Time) (last time.Time, over bool) {
	n := m.r.has(Shutdown)
	if n == nil {
		return time.Time{}, false
	}
	switch {
	case m.over || m.r.Step == StepNone || m.r.Step == StepDone:
		return n.Deadline, true
	}
	last = m.shutdownEnds(*n)
	return last, !last.IsZero() && !now.Before(last)
}

// shutdownEnds is until when a machine that goes down waits for us. A cloud that
// does not answer is not waited for longer than it usually takes to tell it: no
// session is served by that, and whoever deregisters tries once more. Nor is a server that
// does not end: the machine's own end is what ends it.
func (m *Manager) shutdownEnds(n Notice) time.Time {
	last := n.Deadline
	if m.r.Step == StepCompleting || m.r.StopFailed {
		if at := n.Received.Add(reserveTime); last.IsZero() || at.Before(last) {
			last = at
		}
	}
	return last
}

// announce gives the registry a moment to know before sessions are counted: the
// others send nobody here any more then.
func (m *Manager) announce(ctx context.Context, gen int) {
	until := time.Now().Add(announceTime)
	m.mu.Lock()
	if m.noneBefore(time.Now()) {
		until = time.Now().Add(announceNobodyTime)
	}
	m.mu.Unlock()
	for {
		m.mu.Lock()
		if m.gen != gen || m.r.Step != StepAnnouncing {
			m.mu.Unlock()
			return
		}
		now := time.Now()
		if m.r.Said == cluster.StateDraining || !now.Before(until) || m.late(now) {
			m.r.Step = StepDraining
			m.commit()
			m.mu.Unlock()
			return
		}
		wait, changed := min(until.Sub(now), m.r.Deadline.Sub(now)), m.changed
		m.mu.Unlock()
		if !sleep(ctx, wait, changed) {
			return
		}
	}
}

// late tells that the deadline has come. The lock is held.
func (m *Manager) late(now time.Time) bool {
	return !m.r.Deadline.IsZero() && !now.Before(m.r.Deadline)
}

// How many counts in a row have to know of nobody. A player of HLS may be between
// two connections at one moment: where viewers are counted by these, it takes
// longer than that lasts until nobody is there.
const (
	zerosNeeded        = 2
	zerosByConnections = 10
)

// none tells that the sessions have been seen to be none. The lock is held.
func (m *Manager) none() bool {
	if m.sessions != nil && m.sessions.By == cluster.CountedByConnections {
		return m.zeros >= zerosByConnections
	}
	return m.zeros >= zerosNeeded
}

// observe counts the sessions until counts in a row know of none, or until the
// deadline.
func (m *Manager) observe(ctx context.Context, gen int) {
	var next time.Time
	last := false
	for {
		m.mu.Lock()
		now := time.Now()
		if !last && m.gen == gen && m.r.Step == StepDraining && m.late(now) && !m.freshCount(now) {
			// Whom the stop cuts is to be known.
			last = true
			m.mu.Unlock()
			m.sample(ctx, gen, now.Add(lastCountTime), true)
			continue
		}
		if m.gen != gen || m.r.Step != StepDraining || m.late(now) || m.inVain(now) || m.none() {
			m.verdict(gen, now)
			m.mu.Unlock()
			return
		}
		if _, known := m.trouble["record"]; known && !now.Before(next) || m.settleWait() {
			m.commit() // the disk may have room again, or the deadline is final now
		}
		at, changed := m.r.Deadline, m.changed
		m.mu.Unlock()
		if now.Before(next) {
			if !sleep(ctx, min(next.Sub(now), at.Sub(now)), changed) {
				return
			}
			continue
		}
		next = now.Add(m.o.SampleInterval)
		m.sample(ctx, gen, at, false)
		if ctx.Err() != nil {
			return
		}
	}
}

// lastCountTime is how long the stop waits for a count where there is none.
const lastCountTime = time.Second

// freshCount tells that the last count says who is there now. The lock is held.
func (m *Manager) freshCount(now time.Time) bool {
	return m.sessions != nil && now.Sub(m.counted) <= 2*m.o.SampleInterval+time.Second
}

// sample counts once, until at. A count that an earlier deadline cuts short is
// none; the last one is made after the deadline.
func (m *Manager) sample(ctx context.Context, gen int, at time.Time, last bool) {
	ctx, cancel := m.during(ctx, func() bool {
		return m.gen == gen && m.r.Step == StepDraining && (last || !m.r.Deadline.Before(at))
	})
	defer cancel()
	bound, stop := context.WithTimeout(ctx, min(max(sampleTime, m.o.SampleInterval), time.Until(at)))
	defer stop()
	s, err := m.o.Node.Sessions(bound)
	if ctx.Err() != nil {
		return // it was cut short, and half a count is none
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gen != gen || m.r.Step != StepDraining {
		return
	}
	now := time.Now()
	if err != nil {
		s = cluster.Sessions{}
	}
	first := m.sessions == nil
	m.sessions, m.counted = &s, now
	n, known := m.left(s)
	switch {
	case known || somebody(s):
		m.blind = time.Time{}
	case m.blind.IsZero():
		m.blind = now
	}
	switch {
	case !known:
		m.zeros = 0
		why := "not all of them are known"
		if s.PublishersBy == cluster.CountedByConnections && s.Viewers != nil {
			why = errNoPublishers
		}
		if err != nil {
			why = err.Error()
		}
		until := "so the deadline is waited for: "
		if m.r.has(Shutdown) != nil && !m.blind.IsZero() {
			until = "and a machine that goes down waits for that " + blindTime.String() + " at most: "
		}
		m.troubleLocked("sessions", "the sessions cannot be counted, "+until+why)
	case n > 0:
		m.zeros = 0
		m.troubleLocked("sessions", "")
	default:
		m.zeros++
		if first && m.noneBefore(now) {
			m.zeros = zerosByConnections
		}
		m.troubleLocked("sessions", "")
	}
	m.publish(now)
}

// noneBefore tells that the count before this drain knew of nobody either: a
// machine that goes down with nobody on it is not to wait for a second count. The
// lock is held.
func (m *Manager) noneBefore(now time.Time) bool {
	if m.r.has(Shutdown) == nil {
		return false
	}
	s, at := m.o.Before()
	n, known := m.left(s)
	return known && n == 0 && !at.After(now) && now.Sub(at) <= beforeTime
}

// beforeTime is how old that count may be.
const beforeTime = 15 * time.Second

// inVain tells that a machine that goes down has waited long enough for sessions
// that nobody can count. The lock is held.
func (m *Manager) inVain(now time.Time) bool {
	n := m.r.has(Shutdown)
	return n != nil && !m.blind.IsZero() && now.Sub(later(m.blind, n.Received)) >= blindTime
}

// somebody tells that there are sessions, whatever else is not known.
func somebody(s cluster.Sessions) bool {
	return s.Publishers != nil && *s.Publishers > 0 || s.Viewers != nil && *s.Viewers > 0
}

// left is how many sessions this node waits for, by its role: an edge for its
// viewers, all others for publishers, too. Unknown is not zero.
func (m *Manager) left(s cluster.Sessions) (n int, known bool) {
	if m.role() == "edge" {
		if s.Viewers == nil {
			return 0, false
		}
		return *s.Viewers, true
	}
	n, known = s.Total()
	if known && *s.Publishers == 0 && s.PublishersBy == cluster.CountedByConnections && m.r.has(Shutdown) == nil {
		return 0, false // see errNoPublishers
	}
	return n, known
}

// errNoPublishers: SRT and pulled streams use no connection to the RTMP port, so
// that none there is no proof. It is enough for a machine that shuts down anyway.
const errNoPublishers = "nothing is connected to the RTMP port, but streams that come another way are not known without MongoDB or the server's statistics"

// role is the one that the drain began with, where it was known.
func (m *Manager) role() string { return cmp.Or(m.r.Role, m.o.Role()) }

// verdict ends the observing, if it is still what this drain is about: an undrain
// that came first has won. The lock is held.
func (m *Manager) verdict(gen int, now time.Time) {
	r := m.r
	if m.gen != gen || r.Step != StepDraining || (!m.none() && !m.late(now) && !m.inVain(now)) {
		return
	}
	none := m.none()
	word := "no session is left"
	switch {
	case none:
	case !m.late(now):
		word = "nobody could count the sessions for " + blindTime.String() + ", and the machine goes down"
	default:
		word = "the deadline is reached"
		if list := m.o.timeline(r); len(list) > 0 {
			word += " (" + list[0].By + ")"
		}
		if m.sessions != nil {
			word += "; " + m.sessions.Left()
		}
	}
	m.noteLocked(word)
	switch {
	case r.has(Shutdown) != nil:
		// systemd stops AMS, and another unit deregisters after that.
		m.over = true
		r.Tomb = m.tombstone(now)
		m.endEvent("the machine goes down", r.Tomb.Cut)
	case m.o.goal(r) == goalPause:
		r.Step = StepDone
		m.endEvent("drained", nil)
	default:
		r.Tomb = m.tombstone(now)
		r.Step = StepStopping
	}
	m.commit()
}

// tombstone is what is said of a node that goes for this reason, before anybody counted.
func (n Notice) tombstone(repair bool) *Tombstone {
	return &Tombstone{Reason: cmp.Or(n.Reason, string(n.Kind)), Who: cmp.Or(n.Who, n.Source), RepairStreams: repair}
}

// tombstone says who is there right before AMS is stopped. The lock is held.
func (m *Manager) tombstone(now time.Time) *Tombstone {
	t := m.o.cause(m.r).tombstone(m.r.Repair)
	if !m.freshCount(now) {
		return t
	}
	s := *m.sessions
	t.Sessions = &s
	if n, known := m.left(s); known {
		if m.role() == "edge" && s.Publishers != nil {
			n += *s.Publishers
		}
		t.Cut = &n
	}
	return t
}

func (m *Manager) endEvent(what string, cut *int) {
	c := m.o.cause(m.r)
	e := cluster.Event{Kind: "drained", Who: cmp.Or(c.Who, c.Source), Why: c.Reason, Details: map[string]string{"result": what}}
	if cut != nil {
		n := int64(*cut)
		e.Cut = &n
	}
	m.event(e)
}

// bound is how long a step may take: its own time, less where the machine ends
// before, and something in any case.
func (m *Manager) bound(own, keep time.Duration, last time.Time) time.Duration {
	m.mu.Lock()
	ends := end(m.o.timeline(m.r))
	m.mu.Unlock()
	if ends.IsZero() || !last.IsZero() && last.Before(ends) {
		ends = last
	}
	left := time.Until(ends)
	if ends.IsZero() || left < -outlived {
		return own
	}
	return min(own, max(left-keep, leastStep))
}

// outlived is after what nobody believes in an end any more that did not come.
const outlived = 10 * time.Second

// leastStep is what each step gets even where there is no time: trying costs
// little.
const leastStep = time.Second

// mostStopPause is the longest pause between two tries to stop a server that does not end.
const mostStopPause = time.Minute

// stopTime is what [Options.StopTime] says.
func (m *Manager) stopTime() time.Duration {
	if m.o.StopTime == nil {
		return defaultStopTime
	}
	return cmp.Or(max(0, m.o.StopTime()), defaultStopTime)
}

// stop stops AMS and waits for its end. A server that cannot be stopped does not
// keep the machine: the cloud may go on. Its row does not say left while it runs.
func (m *Manager) stop(ctx context.Context, last time.Time) {
	own := m.bound(m.stopTime(), 2*leastStep, last)
	bound, cancel := context.WithTimeout(ctx, own)
	defer cancel()
	m.mu.Lock()
	again, down := m.r.StopFailed, m.r.has(Shutdown) != nil
	m.mu.Unlock()
	if again && !down {
		// A machine that goes down then does not wait for this.
		var stop context.CancelFunc
		bound, stop = m.during(bound, func() bool { return m.r.has(Shutdown) == nil })
		defer stop()
	}
	pause := time.Second
	var err error
	for {
		if err = m.o.Node.StopServer(bound); err == nil || errors.Is(err, ErrNotManaged) || ctx.Err() != nil {
			break
		}
		m.mu.Lock()
		if m.troubleLocked("stop", "Ant Media Server cannot be stopped: "+err.Error()) {
			m.publish(time.Now())
		}
		m.mu.Unlock()
		if !sleep(bound, pause, nil) {
			break
		}
		if again {
			pause = min(2*pause, mostStopPause)
		}
	}
	if ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case errors.Is(err, ErrNotManaged):
		m.noteLocked("nobody here can stop Ant Media Server, or knows whether it runs: stop it by hand")
	case err != nil && !m.r.StopFailed:
		m.r.StopFailed = true
		m.noteLocked(fmt.Sprintf("Ant Media Server did not end within %s: the stop is tried again, the registry keeps this node as draining, and the cloud may go on: %v",
			own.Round(time.Second), err))
		m.commit()
		return
	case err != nil:
		return
	}
	m.troubleLocked("stop", "")
	m.r.StopFailed = false
	m.r.Step, m.r.Say, m.r.Stopped, m.r.JoinedAs = StepDeregistering, cluster.StateLeft, time.Now(), m.o.Node.JoinedAt()
	m.commit()
}

// deregister waits until the registry knows, but not for long: what could not be
// written stays owed, and the machine goes.
func (m *Manager) deregister(ctx context.Context, last time.Time) {
	until := time.Now().Add(m.bound(deregisterTime, leastStep, last))
	for {
		m.mu.Lock()
		now := time.Now()
		if m.r.Step != StepDeregistering {
			m.mu.Unlock()
			return
		}
		if told := m.r.Said == cluster.StateLeft; told || !now.Before(until) {
			if !told {
				m.noteLocked("the registry could not be told that this node has left: that stays owed, and is done as soon as MongoDB is back")
			}
			m.deregistered()
			m.commit()
			m.mu.Unlock()
			return
		}
		changed := m.changed
		m.mu.Unlock()
		if !sleep(ctx, until.Sub(now), changed) {
			return
		}
	}
}

// deregistered goes on to the cloud. The lock is held.
func (m *Manager) deregistered() {
	m.r.Step = StepCompleting
	if m.settled() {
		m.done()
	}
}

// done ends a drain. The lock is held.
func (m *Manager) done() {
	r := m.r
	r.Step = StepDone
	what := "left"
	if m.o.goal(r) == goalPark {
		what = "parked"
	}
	var cut *int
	if r.Tomb != nil {
		cut = r.Tomb.Cut
	}
	m.noteLocked("done: this node has " + map[bool]string{true: "been parked", false: "left"}[m.o.goal(r) == goalPark])
	m.endEvent(what, cut)
	at := m.o.Node.JoinedAt()
	again := !at.IsZero() && !at.Equal(r.JoinedAs)
	if r.JoinedAs.IsZero() { // it could not be read then
		again = anchor(at, time.Now()).After(r.Stopped)
	}
	if !r.Stopped.IsZero() && again {
		m.noteLocked("this machine was joined again after its server had been stopped: it serves again")
		m.forget(false)
	}
}

// complete waits until the cloud has been told, or does not want to know.
func (m *Manager) complete(ctx context.Context, last time.Time) {
	began := time.Now()
	for {
		m.mu.Lock()
		now := time.Now()
		r := m.r
		switch {
		case r.Step != StepCompleting:
			m.mu.Unlock()
			return
		case !last.IsZero() && !now.Before(last):
			m.mu.Unlock()
			return // the machine does not wait
		case r.HookFirst && m.o.Node.Joined():
			m.joined, r.HookFirst = true, false
			m.noteLocked("this machine has joined after all: it drains first")
			m.gen++
			r.Step, r.Say, r.Said, r.Begun = StepAnnouncing, cluster.StateDraining, "", now
			m.settle()
			m.commit()
			m.mu.Unlock()
			return
		case m.settled(), m.o.goal(r) == goalPark && (now.Sub(began) >= idleHookTime || r.Start != nil):
			// One that does not answer, or does not wait yet, is asked further.
			over := r.HookFirst || r.Start != nil || m.pooled()
			for i := range r.Hooks {
				if a := &r.Hooks[i]; a.End == "" && (over || a.Hook.Launching) && m.parking() && m.tryOf(a, opContinue).denied == "" {
					a.End, a.EndedAt = EndLeft, now
					m.noteLocked("hook " + a.Hook.Name + " does not wait for this machine")
					m.troubleLocked(string(opContinue), "")
				}
			}
			if r.HookFirst {
				r.Step, r.Say = StepDeregistering, cluster.StateLeft
				r.Tomb = m.o.cause(r).tombstone(false)
			} else {
				m.done()
			}
			m.commit()
			m.mu.Unlock()
			return
		}
		wait, changed := time.Minute, m.changed
		if r.HookFirst {
			wait = m.o.SampleInterval
		}
		if m.o.goal(r) == goalPark {
			wait = min(wait, idleHookTime-now.Sub(began))
		}
		if n := r.has(Shutdown); n != nil {
			last = m.shutdownEnds(*n)
			wait = min(wait, last.Sub(now))
		}
		m.mu.Unlock()
		if !sleep(ctx, wait, changed) {
			return
		}
	}
}
