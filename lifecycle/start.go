// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// takeStart handles a notice that this machine is to serve.
func (m *Manager) takeStart(n Notice) error {
	r := m.r
	if r.Start != nil && r.Start.Notice.ID == n.ID {
		if n.Hook != nil && r.learn(startHook(*n.Hook), r.Start.Notice.Received) {
			m.commit()
		}
		return nil
	}
	if m.handled[n.ID] {
		return nil
	}
	if n.Kind == Resume {
		// No parking and no end that a person overruled before is meant any more.
		r.Dismissed = slices.DeleteFunc(r.Dismissed, func(id string) bool { return !slices.Contains(r.Standing, id) })
		r.Rejoined = nil
	}
	g := m.o.goal(r)
	switch {
	case r.Step.observing() && n.Kind == Resume && g >= goalPark:
		remember(m.handled, n.ID, true)
		return m.backInService(n)
	case r.Step != StepNone && g == goalLeave:
		return errors.New("this machine is to leave, which weighs more")
	case r.Step != StepNone && g == goalPark && n.Kind == Launch:
		return errors.New("this machine is being parked, which weighs more")
	case r.Step != StepNone && g == goalPause:
		return errors.New("this machine is about to be started again")
	}
	server := r.Step != StepNone // it is parked, or about to be
	if !server && (m.o.Prove == nil || m.o.Hooks == nil) {
		return nil // nothing waits
	}
	remember(m.handled, n.ID, true)
	if n.Hook != nil {
		r.learn(startHook(*n.Hook), n.Received)
		n.Hook.Launching = true
	}
	r.Start = &start{Notice: n, Server: server}
	m.tries = map[string]*try{}
	m.noteLocked("notice: " + noticeWord(n))
	if server {
		m.event(cluster.Event{Kind: "resume", Who: cmp.Or(n.Who, n.Source), Why: n.Reason})
	}
	m.commit()
	return nil
}

// backInService takes back what is in force of the source that says so now, and
// all that parks: the machine was never away.
func (m *Manager) backInService(n Notice) error {
	r := m.r
	over := func(in Notice) bool {
		return in.Kind == Park || in.Kind == Terminate && in.Source == n.Source
	}
	for _, in := range r.Notices {
		if over(in) {
			remember(m.withdrawn, in.ID, n.Received)
			m.noteLocked(noticeWord(in) + " is taken back: " + noticeWord(n))
		}
	}
	r.drop(over)
	if !r.hooked() {
		m.dropHooks(false)
	}
	var err error
	if m.anyDue(time.Now()) {
		err = errors.New("this machine is to leave for another reason")
	} else {
		m.undrain(cmp.Or(n.Who, n.Source), "resumed")
	}
	m.commit()
	return err
}

func startHook(h Hook) Hook {
	h.Launching = true
	return h
}

// starts makes a parked machine serve again, and proves to the cloud that this
// one does.
func (m *Manager) starts(ctx context.Context) {
	for ctx.Err() == nil {
		m.mu.Lock()
		r, changed := m.r, m.changed
		ready := r.Start != nil && (r.Step == StepNone || r.Step == StepDone && m.o.goal(r) == goalPark)
		if ready && r.Step == StepDone {
			m.unpark()
		}
		var id string
		var server, proved bool
		if ready {
			id, server, proved = r.Start.Notice.ID, r.Start.Server, r.Start.Proved
		}
		if ready && proved && m.startSettled(time.Now()) {
			m.dropStart()
			m.commit()
			m.mu.Unlock()
			continue
		}
		m.mu.Unlock()
		if !ready || proved {
			sleep(ctx, time.Hour, changed)
			continue
		}
		m.prove(ctx, id, server)
	}
}

// unpark forgets the drain that parked this machine; what was owed to the
// registry about it is no longer true. The lock is held.
func (m *Manager) unpark() {
	r, now := m.r, time.Now()
	m.gen++
	m.forgotten.Store(true)
	// What is announced for later is meant still.
	r.drop(func(n Notice) bool {
		return n.Kind == Park || goalOf(n.Kind) == goalPause && (n.Kind == Shutdown || m.o.isDue(r, n, now))
	})
	r.Step, r.Begun, r.Tomb, r.NoHook, r.HookFirst, r.Repair = StepNone, time.Time{}, nil, false, false, false
	r.Say, r.Said = "", ""
	delete(m.trouble, troubleHooks)
	// Whatever waited has been told, or waits no more; who starts is asked for anew.
	r.Hooks = slices.DeleteFunc(r.Hooks, func(a waiter) bool { return !a.Hook.Launching || a.End != "" })
	r.NoLaunchHook = false
	m.tries = map[string]*try{}
	m.commit()
}

// startSettled tells that the cloud has been told that this machine serves, or
// does not want to know. A permission that is missing may come, as while a role is new,
// and an API may be reached again: that is tried on for as long as a hook can wait.
func (m *Manager) startSettled(now time.Time) bool {
	if m.o.Hooks == nil || m.o.Prove == nil {
		return true
	}
	late := func(t *try) bool { return !t.since.IsZero() && now.Sub(t.since) > longestTimeout }
	if m.wantsDiscovery(true) {
		return late(m.tryAt(discovery(true)))
	}
	return !slices.ContainsFunc(m.r.Hooks, func(a waiter) bool {
		return a.Hook.Launching && a.End == "" && !late(m.tryOf(&a, opContinue))
	})
}

// prove starts the server where it has to, and waits for the evidence that it
// serves. Time that runs out is told; the evidence counts even when it comes after
// that.
func (m *Manager) prove(ctx context.Context, id string, server bool) {
	ctx, cancel := m.during(ctx, func() bool {
		return m.r.Start != nil && m.r.Start.Notice.ID == id && m.r.Step == StepNone
	})
	defer cancel()
	fails := time.AfterFunc(proveTime, func() { m.startFailed(id) })
	defer fails.Stop()
	for retry := time.Second; ; retry = min(2*retry, 15*time.Second) {
		err := m.startOnce(ctx, server)
		if ctx.Err() != nil {
			return
		}
		m.mu.Lock()
		if err == nil {
			m.troubleLocked("start", "")
			if m.r.Start != nil && m.r.Start.Notice.ID == id {
				m.r.Start.Proved, m.r.Start.Failed = true, false
				m.noteLocked("this machine is seen in the cluster")
				m.commit()
			}
			m.mu.Unlock()
			return
		}
		if m.troubleLocked("start", "this machine does not serve yet: "+err.Error()) {
			m.publish(time.Now())
		}
		m.mu.Unlock()
		if !m.pause(ctx, retry) {
			return
		}
	}
}

func (m *Manager) startOnce(ctx context.Context, server bool) error {
	if server {
		bound, cancel := context.WithTimeout(ctx, m.stopTime())
		err := m.o.Node.StartServer(bound)
		cancel()
		if err != nil {
			return fmt.Errorf("starting Ant Media Server: %w", err)
		}
	}
	if m.o.Prove == nil {
		return nil
	}
	bound, cancel := context.WithTimeout(ctx, proveTime)
	defer cancel()
	return m.o.Prove(bound)
}

// startFailed gives up on a start, as far as the cloud is concerned.
func (m *Manager) startFailed(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.r.Start
	if s == nil || s.Notice.ID != id || s.Proved || s.Failed {
		return
	}
	s.Failed = true
	m.noteLocked("this machine was not seen in the cluster within " + proveTime.String() + ": its hook is left to its timeout, unless it serves before that")
	m.commit()
}
