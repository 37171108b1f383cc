// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// The intervals of Watch where the caller gives none. Together they are less than one request in a second, on a service
// that shares its packets with DNS and NTP.
const (
	// DefaultStateInterval bounds how long a scale-in goes unseen.
	DefaultStateInterval = 2 * time.Second
	// DefaultInterval is what AWS advises for the two minutes that a Spot instance is given.
	DefaultInterval = 5 * time.Second
	// DefaultScheduledInterval: scheduled events are announced days ahead.
	DefaultScheduledInterval = time.Minute
)

const (
	// oldFormEvery: the older item of an interruption has come together with the newer one for years. It is asked for
	// once in so many rounds that the newer one is not there.
	oldFormEvery = 6
	// goneAfter is how often in a row an item has to be missing before it is believed to be taken back. A service that
	// says 404 once by mistake must not put a node back into service that goes in two minutes.
	goneAfter = 3
	// spotLead is from the notice of an interruption to the interruption. One that hibernates has none.
	spotLead = 2 * time.Minute
)

// SignalKind is what a signal is about.
type SignalKind string

// The kinds, named as the items they are read from.
const (
	SignalTarget    SignalKind = "autoscaling/target-lifecycle-state"
	SignalSpot      SignalKind = "spot/instance-action"
	SignalScheduled SignalKind = "events/maintenance/scheduled"
)

// Signal is a change of what the metadata says about the future of this instance. What was there already when the
// watching began is a change too.
type Signal struct {
	Kind SignalKind
	// Value is the target state, the action of an interruption, the code of a scheduled event.
	Value string
	// Before is the target state before, "" where none was seen yet.
	Before string
	// ID is the cloud's id of a scheduled event.
	ID string
	// At is when it happens; zero is not told.
	At time.Time
	// Text is what the cloud says about it, for people.
	Text string
	// Gone says that what was signalled is taken back, or over.
	Gone bool
	// Seen is when the answer came.
	Seen time.Time
}

// WatchOptions are the settings of Watch; the zero value works.
type WatchOptions struct {
	// StateInterval is the time between two looks at the target state, Interval at the signals of Spot instances,
	// ScheduledInterval at scheduled events.
	StateInterval, Interval, ScheduledInterval time.Duration
}

// Watch calls fn with every signal until ctx ends, one call at a time. It survives whatever the service does: an item
// that cannot be read is asked for again after a pause that grows, and has no influence on the others.
//
// fn must not block for long: the next look waits for it.
func (p *Provider) Watch(ctx context.Context, o WatchOptions, fn func(Signal)) {
	if o.StateInterval <= 0 {
		o.StateInterval = DefaultStateInterval
	}
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	if o.ScheduledInterval <= 0 {
		o.ScheduledInterval = max(DefaultScheduledInterval, o.Interval)
	}
	w := &watch{p: p, fn: fn, Watching: cloud.Watching{Provider: Name, Log: p.opts.Log}, spotEnd: cloud.SpotEnd{Lead: spotLead, Log: p.opts.Log}}
	var wg sync.WaitGroup
	for _, l := range []struct {
		name  string
		every time.Duration
		look  func(context.Context) error
	}{
		{"target lifecycle state", o.StateInterval, w.target},
		{"spot interruption", o.Interval, w.spot},
		{"scheduled events", o.ScheduledInterval, w.scheduled},
	} {
		wg.Go(func() { w.Every(ctx, l.name, l.every, l.look) })
	}
	wg.Wait()
}

// watch is one run of Watch. The fields without a lock belong to one loop each.
type watch struct {
	cloud.Watching
	p *Provider

	emitting sync.Mutex
	fn       func(Signal)

	state string // the last target state, "" for none seen

	spotRound, spotMissing int
	interruption           Interruption
	spotEnd                cloud.SpotEnd

	events        map[string]ScheduledEvent // what was signalled and not taken back
	eventsOver    map[string]bool           // what was told to be over
	eventsMissing map[string]int
}

func (w *watch) emit(s Signal) {
	s.Seen = time.Now()
	w.emitting.Lock()
	defer w.emitting.Unlock()
	w.fn(s)
}

// target looks at where the group wants the instance. A missing item says nothing: it is missing before the first
// transition, outside of a group, and after leaving one.
func (w *watch) target(ctx context.Context) error {
	state, found, err := cloud.LookAt(ctx, w.p.items, "target lifecycle state", "meta-data/"+string(SignalTarget), ParseTargetState)
	if err != nil || !found || state == w.state {
		return err
	}
	before := w.state
	w.state = state
	w.emit(Signal{Kind: SignalTarget, Value: state, Before: before})
	return nil
}

func (w *watch) spot(ctx context.Context) error {
	at, found, err := cloud.LookAt(ctx, w.p.items, "spot interruption", "meta-data/"+string(SignalSpot), ParseInstanceAction)
	if err != nil {
		return err
	}
	if !found && (w.interruption.Action != "" || w.spotRound%oldFormEvery == 0) {
		at, _, err = cloud.LookAt(ctx, w.p.items, "spot termination time", "meta-data/spot/termination-time", ParseTerminationTime)
		if err != nil {
			return err
		}
	}
	if at.Time = w.spotEnd.Look(at.Time, w.interruption.Time); at.Time.IsZero() {
		w.spotRound++
		if w.interruption.Action == "" {
			return nil
		}
		if w.spotMissing++; w.spotMissing < goneAfter {
			return nil
		}
		gone := w.interruption
		w.interruption, w.spotMissing = Interruption{}, 0
		w.emit(Signal{Kind: SignalSpot, Value: gone.Action, At: gone.Time, Gone: true})
		return nil
	}
	w.spotRound, w.spotMissing = 0, 0
	if at.Action == w.interruption.Action && !at.Time.Before(w.interruption.Time) {
		// Of two times the earlier one counts. (There is a stand-in that tells another with every answer.)
		return nil
	}
	w.interruption = at
	w.emit(Signal{Kind: SignalSpot, Value: at.Action, At: at.Time})
	return nil
}

func (w *watch) scheduled(ctx context.Context) error {
	var unreadable error
	events, found, err := cloud.LookAt(ctx, w.p.items, "scheduled events", "meta-data/"+string(SignalScheduled),
		func(body []byte) ([]ScheduledEvent, error) {
			events, err := ParseScheduled(body)
			if len(events) > 0 {
				// What can be read counts, and the rest is told.
				unreadable, err = err, nil
			}
			return events, err
		})
	if err != nil {
		return err
	}
	if !found {
		events = nil
	}
	if w.events == nil {
		w.events, w.eventsOver, w.eventsMissing = map[string]ScheduledEvent{}, map[string]bool{}, map[string]int{}
	}
	listed := map[string]bool{}
	for _, e := range events {
		listed[e.ID] = true
		delete(w.eventsMissing, e.ID)
		known, have := w.events[e.ID]
		s := Signal{Kind: SignalScheduled, Value: e.Code, ID: e.ID, At: e.NotBefore, Text: e.Description}
		switch {
		case e.State == EventActive:
			delete(w.eventsOver, e.ID)
			if have && known.Code == e.Code && known.NotBefore.Equal(e.NotBefore) {
				continue
			}
			if have {
				// Another date is another event to whoever plans by it.
				w.emit(Signal{Kind: SignalScheduled, Value: known.Code, ID: e.ID, At: known.NotBefore, Text: known.Description, Gone: true})
			}
			w.events[e.ID] = e
			w.emit(s)
		case !w.eventsOver[e.ID]:
			// One that was over at the first look is told as well: it may have been taken back while nobody looked.
			w.eventsOver[e.ID] = true
			delete(w.events, e.ID)
			s.Gone = true
			w.emit(s)
		}
	}
	for id := range w.eventsOver {
		if !listed[id] {
			delete(w.eventsOver, id)
		}
	}
	if unreadable == nil {
		for id, e := range w.events {
			if listed[id] {
				continue
			}
			if w.eventsMissing[id]++; w.eventsMissing[id] < goneAfter {
				continue
			}
			delete(w.events, id)
			delete(w.eventsMissing, id)
			w.emit(Signal{Kind: SignalScheduled, Value: e.Code, ID: id, At: e.NotBefore, Text: e.Description, Gone: true})
		}
	}
	if unreadable != nil {
		return &cloud.Error{Provider: Name, Item: "scheduled events", Kind: cloud.ErrBadAnswer, Status: http.StatusOK, Cause: unreadable}
	}
	return nil
}
