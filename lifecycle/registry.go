// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/plain"
)

const (
	leastRegistryRetry = 500 * time.Millisecond
	mostRegistryRetry  = 15 * time.Second
)

// wish is what the registry is to hold, as of one change. It is read without the
// lock, which may wait for a disk.
type wish struct {
	say        cluster.State
	owed       bool
	observing  bool
	reason     string
	stopFailed bool
	tomb       *Tombstone
	changed    <-chan struct{} // closed at the next one
}

// register makes the registry hold what the record wants it to, one call after
// the other, for as long as it takes: a state is not a beat, it is owed until
// MongoDB has taken it. Nothing else waits for it.
func (m *Manager) register(ctx context.Context) {
	var (
		retry  time.Duration
		notTil time.Time
		tried  cluster.State
		said   string    // the reason that the row has, while draining
		saidAt time.Time // and since when
	)
	for ctx.Err() == nil {
		now := time.Now()
		w := m.wish.Load()
		wait := time.Hour
		if w.say != tried {
			retry, notTil, tried = 0, time.Time{}, w.say
		}
		switch {
		case w.say == "":
		case w.owed:
			wait = notTil.Sub(now)
		case w.say == cluster.StateDraining && w.observing && w.reason != said:
			// How it goes, for whoever looks from elsewhere; the beats tell the
			// numbers more often.
			wait = max(saidAt.Add(progressEvery).Sub(now), notTil.Sub(now))
		}
		if wait > 0 {
			sleep(ctx, wait, w.changed)
			continue
		}
		err := m.say(ctx, w)
		if err == nil {
			retry, notTil, said, saidAt = 0, time.Time{}, w.reason, time.Now()
			continue
		}
		// A call that a change has cut short is no failure.
		if !errors.Is(err, errChanged) {
			retry = min(max(2*retry, leastRegistryRetry), mostRegistryRetry)
			notTil = time.Now().Add(time.Duration((0.5 + m.o.Rand()/2) * float64(retry)))
		}
	}
}

// errChanged says that something else is wanted meanwhile.
var errChanged = errors.New("something else is wanted meanwhile")

// say tells the registry once.
func (m *Manager) say(ctx context.Context, w *wish) error {
	say := w.say
	wanted, cancel := m.during(ctx, func() bool { return m.r.Say == say })
	defer cancel()
	bound, stop := context.WithTimeout(wanted, callTime)
	defer stop()
	var err error
	if say == cluster.StateLeft {
		t := Tombstone{}
		if w.tomb != nil {
			t = *w.tomb
		}
		err = m.o.Node.Deregister(bound, t)
	} else {
		err = m.o.Node.SetState(bound, say, w.reason, w.stopFailed)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.r.Say != say || ctx.Err() != nil {
		return errChanged
	}
	if err != nil && say != cluster.StateLeft && refused(err) {
		m.noteLocked("the registry does not take the state " + string(say) + ", and is left as it is: " + err.Error())
		err = nil
	}
	if err != nil {
		if m.troubleLocked("registry", "the registry cannot be told "+string(say)+" yet: "+err.Error()) {
			m.publish(time.Now())
		}
		return err
	}
	m.troubleLocked("registry", "")
	if m.r.Said != say {
		m.r.Said = say
		if say == cluster.StateLeft && m.r.Step == StepDeregistering {
			m.deregistered()
		}
		m.commit()
	}
	return nil
}

// refused tells that asking again would change nothing: the row is at its end
// already. One that says joining is about to say active.
func refused(err error) bool {
	var te *cluster.TransitionError
	return errors.As(err, &te) && te.From != cluster.StateJoining
}

// reason is what the row says, while this node drains and after. The lock is
// held.
func (m *Manager) reason() string {
	if m.r.Step == StepNone {
		return "serving again"
	}
	c := m.o.cause(m.r)
	text := cmp.Or(c.Reason, string(c.Kind))
	if m.r.StopFailed {
		text = "Ant Media Server does not end: " + text
	}
	if m.r.Step.observing() && m.sessions != nil {
		text += ": " + m.sessions.Left()
	}
	return plain.Truncate(text, mostReason)
}

// mostReason keeps rows short: everybody reads all of them.
const mostReason = 160

// writeEvents writes the events as they come, each until it is written.
func (m *Manager) writeEvents(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-m.events:
			m.writeEvent(ctx, e)
			m.unwritten.Add(-1)
		}
	}
}

func (m *Manager) writeEvent(ctx context.Context, e cluster.Event) {
	for retry := leastRegistryRetry; ; retry = min(2*retry, mostRegistryRetry) {
		bound, cancel := context.WithTimeout(ctx, callTime)
		err := m.o.Event(bound, e)
		cancel()
		if err == nil {
			return
		}
		m.log.Debug("an event is not written yet", "kind", e.Kind, "error", err)
		if !m.pause(ctx, retry) {
			m.log.Warn("an event was not written", "kind", e.Kind, "why", e.Why, "error", err)
			return
		}
	}
}

// flush gives the events that wait a moment, and no more: who stops us waits. Where the row
// could not be written either, MongoDB is away.
func (m *Manager) flush(ctx context.Context, stop context.CancelFunc) {
	defer stop()
	ctx = context.WithoutCancel(ctx)
	if m.o.Event == nil || !m.View().RegistryTold {
		return
	}
	until := time.Now().Add(flushTime)
	for m.unwritten.Load() > 0 && time.Now().Before(until) {
		if !sleep(ctx, flushTime/100, nil) {
			return
		}
	}
}

// flushTime is how long the end of the daemon waits for events.
const flushTime = time.Second
