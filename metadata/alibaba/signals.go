// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// The intervals of Watch where the caller gives none.
const (
	// DefaultInterval is for the end of a spot instance, of which the metadata tell some five minutes ahead.
	DefaultInterval = 5 * time.Second
	// DefaultEventInterval: system events are announced a day or more ahead.
	DefaultEventInterval = time.Minute
	// DefaultScalingInterval bounds how long a scale-in goes unseen. It costs a call to an API whose calls are counted
	// for the whole account.
	DefaultScalingInterval = 10 * time.Second
	// DefaultIdleInterval is for an instance that is in no scaling group.
	DefaultIdleInterval = 5 * time.Minute
	// DefaultDeniedInterval is for one whose RAM role may not ask, or that has none.
	DefaultDeniedInterval = 10 * time.Minute
)

const (
	// maxScalingInterval bounds how slowly the groups are asked while the API takes no more calls.
	maxScalingInterval = time.Minute
	// goneAfter is how often in a row an item has to be missing before it is believed to be taken back. A service that
	// says 404 once by mistake must not put a node back into service that goes in minutes.
	goneAfter = 3
	// spotLead is about what comes between the notice of a release and the release.
	spotLead = 5 * time.Minute
)

const (
	spotPath   = "meta-data/instance/spot/termination-time"
	eventsPath = "maintenance/active-system-events"
)

// SignalKind is what a signal is about.
type SignalKind string

// The kinds.
const (
	SignalSpot    SignalKind = "spot/termination-time"
	SignalEvent   SignalKind = "maintenance/active-system-events"
	SignalScaling SignalKind = "scaling/lifecycle-state"
)

// Signal is a change of what is known about the future of this instance. What was there already when the watching began
// is a change too.
type Signal struct {
	Kind SignalKind
	// Value is the type of a system event, or the state in the scaling group: "" is that it is in none any more.
	Value string
	// Before is the state before, "" where none was seen yet.
	Before string
	// ID is the cloud's id of a system event, State how far it is.
	ID, State string
	// At is when it happens; zero is not told.
	At time.Time
	// Text is what the cloud says about it, for people.
	Text string
	// Gone says that what was signalled is taken back, or over.
	Gone bool
	// Seen is when the answer came.
	Seen time.Time
}

// WatchOptions are the settings of Watch; the zero value works, and looks at the metadata alone.
type WatchOptions struct {
	// Scaling is asked for the state in the scaling group; nil asks nobody.
	Scaling *ESS
	// Interval is the time between two looks at the end of a spot instance, EventInterval at system events,
	// ScalingInterval at the state in the scaling group, IdleInterval at that of an instance that is in none, and
	// DeniedInterval where nobody may ask.
	Interval, EventInterval, ScalingInterval, IdleInterval, DeniedInterval time.Duration
}

// Watch calls fn with every signal until ctx ends, one call at a time. It survives whatever the services do: what cannot
// be read is asked for again after a pause that grows, and has no influence on the rest.
//
// fn must not block for long: the next look waits for it.
func (p *Provider) Watch(ctx context.Context, o WatchOptions, fn func(Signal)) {
	defaultTo := func(d *time.Duration, usual time.Duration) {
		if *d <= 0 {
			*d = usual
		}
	}
	defaultTo(&o.Interval, DefaultInterval)
	defaultTo(&o.EventInterval, max(DefaultEventInterval, o.Interval))
	defaultTo(&o.ScalingInterval, DefaultScalingInterval)
	defaultTo(&o.IdleInterval, DefaultIdleInterval)
	defaultTo(&o.DeniedInterval, DefaultDeniedInterval)
	w := &watch{p: p, o: o, fn: fn, Watching: cloud.Watching{Provider: Name, Log: p.opts.Log}, pace: o.ScalingInterval, spotEnd: cloud.SpotEnd{Lead: spotLead, Log: p.opts.Log}}
	var wg sync.WaitGroup
	wg.Go(func() { w.Every(ctx, "spot termination time", o.Interval, w.spot) })
	wg.Go(func() { w.Every(ctx, "system events", o.EventInterval, w.systemEvents) })
	if o.Scaling != nil {
		wg.Go(func() { w.scaling(ctx) })
	}
	wg.Wait()
}

// watch is one run of Watch. The fields without a lock belong to one loop each.
type watch struct {
	cloud.Watching
	p *Provider
	o WatchOptions

	emitting sync.Mutex
	fn       func(Signal)

	ends        time.Time // of the spot instance
	spotEnd     cloud.SpotEnd
	spotMissing int

	listed        string                 // the last answer that was understood
	events        map[string]SystemEvent // what was signalled and not taken back
	eventsMissing map[string]int

	state, group string // "" for none seen
	scaleMissing int
	refused      string        // what was said about not being allowed
	pace         time.Duration // between two looks at the state
}

func (w *watch) emit(s Signal) {
	s.Seen = time.Now()
	w.emitting.Lock()
	defer w.emitting.Unlock()
	w.fn(s)
}

func (w *watch) spot(ctx context.Context) error {
	at, found, err := cloud.LookAt(ctx, w.p.items, "spot termination time", spotPath, ParseTerminationTime)
	if err != nil {
		return err
	}
	if !found {
		at = time.Time{}
	}
	if at = w.spotEnd.Look(at, w.ends); at.IsZero() {
		if w.ends.IsZero() {
			return nil
		}
		if w.spotMissing++; w.spotMissing < goneAfter {
			return nil
		}
		gone := w.ends
		w.ends, w.spotMissing = time.Time{}, 0
		w.emit(Signal{Kind: SignalSpot, At: gone, Gone: true})
		return nil
	}
	w.spotMissing = 0
	if !w.ends.IsZero() && !at.Before(w.ends) {
		// Of two times the earlier one counts.
		return nil
	}
	w.ends = at
	w.emit(Signal{Kind: SignalSpot, At: at})
	return nil
}

func (w *watch) systemEvents(ctx context.Context) error {
	body, found, err := cloud.LookAt(ctx, w.p.items, "system events", eventsPath, func(b []byte) (string, error) { return string(b), nil })
	if err != nil {
		return err
	}
	if !found {
		body = ""
	}
	if body == w.listed && len(w.eventsMissing) == 0 {
		return nil
	}
	events, err := ParseSystemEvents([]byte(body))
	if err != nil {
		// What can be read counts, and the rest is told.
		err = &cloud.Error{Provider: Name, Item: "system events", Kind: cloud.ErrBadAnswer, Status: http.StatusOK, Cause: err}
	} else {
		w.listed = body
	}
	w.take(events, err == nil)
	return err
}

// take compares the events with those known. whole tells that there are no others.
func (w *watch) take(events []SystemEvent, whole bool) {
	if w.events == nil {
		w.events, w.eventsMissing = map[string]SystemEvent{}, map[string]int{}
	}
	gone := func(e SystemEvent) {
		delete(w.events, e.ID)
		delete(w.eventsMissing, e.ID)
		w.emit(Signal{Kind: SignalEvent, Value: e.Type, ID: e.ID, State: e.State, At: e.NotBefore, Text: e.Reason, Gone: true})
	}
	listed := map[string]bool{}
	for _, e := range events {
		listed[e.ID] = true
		delete(w.eventsMissing, e.ID)
		known, have := w.events[e.ID]
		if e.Over() || e.Waits() {
			if have {
				gone(known)
			}
			continue
		}
		if have && known.Type == e.Type && known.NotBefore.Equal(e.NotBefore) {
			continue
		}
		if have {
			// Another date is another event to whoever plans by it.
			gone(known)
		}
		w.events[e.ID] = e
		w.emit(Signal{Kind: SignalEvent, Value: e.Type, ID: e.ID, State: e.State, At: e.NotBefore, Text: e.Reason})
	}
	if !whole {
		return
	}
	for id, e := range w.events {
		if listed[id] {
			continue
		}
		if w.eventsMissing[id]++; w.eventsMissing[id] >= goneAfter {
			gone(e)
		}
	}
}

// scaling looks at the state in the scaling group: nothing in the metadata tells of an ordinary scale-in.
func (w *watch) scaling(ctx context.Context) {
	failures := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		m, err := w.o.Scaling.membership(ctx, 1)
		if ctx.Err() != nil {
			return
		}
		var pause time.Duration
		denied, isDenied := errors.AsType[*DeniedError](err)
		switch {
		case isDenied:
			w.mayNot(denied)
			pause = w.o.DeniedInterval
		case err != nil:
			failures++
			w.Trouble("state in the scaling group", err)
			if errors.Is(err, ErrThrottled) {
				// All who ask for this account have one budget: it is not the next look alone that has to wait.
				w.pace = min(2*w.pace, max(maxScalingInterval, w.o.ScalingInterval))
			}
			pause = max(w.BackOff(w.o.ScalingInterval, failures, err), w.pace)
		default:
			failures = 0
			w.Well("state in the scaling group")
			w.allowed()
			w.pace = max(w.pace*9/10, w.o.ScalingInterval)
			pause = w.pace
			if w.member(m) {
				pause = w.o.IdleInterval
			}
		}
		timer.Reset(pause - pause/10 + rand.N(pause/5+1))
	}
}

// member takes the state, and reports whether the instance is in no group.
func (w *watch) member(m *Membership) (idle bool) {
	if m == nil {
		if w.state == "" {
			return true
		}
		if w.scaleMissing++; w.scaleMissing < goneAfter {
			return false
		}
		before := w.state
		w.state, w.group, w.scaleMissing = "", "", 0
		w.emit(Signal{Kind: SignalScaling, Before: before})
		return true
	}
	w.scaleMissing = 0
	if m.State == w.state && m.Group == w.group {
		return false
	}
	before := w.state
	w.state, w.group = m.State, m.Group
	w.emit(Signal{Kind: SignalScaling, Value: m.State, Before: before})
	return false
}

// mayNot says once that nobody may ask for the state. It is what a machine looks like that is drained by OOS, or is in no
// group at all.
func (w *watch) mayNot(d *DeniedError) {
	if w.refused == d.Error() {
		return
	}
	w.refused = d.Error()
	if d.NoRole {
		w.Log.Info("a scale-in cannot be seen from here, since the instance has no RAM role; an OOS template that runs `amsagent drain` needs none",
			"provider", Name, "policy", d.Policy)
		return
	}
	w.Log.Warn("a scale-in cannot be seen from here; an OOS template that runs `amsagent drain` needs no permission",
		"provider", Name, "err", d, "policy", d.Policy)
}

func (w *watch) allowed() {
	if w.refused != "" {
		w.refused = ""
		w.Log.Info("a scale-in can be seen from here", "provider", Name)
	}
}
