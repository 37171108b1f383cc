// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// The bounds of Watch where the caller gives none.
const (
	// DefaultInterval is what Azure advises.
	DefaultInterval = time.Second
	// firstTimeout: the first call switches the events on, and may take two minutes.
	firstTimeout = 150 * time.Second
	// eventTimeout bounds all others. One second is known to be too short.
	eventTimeout = 5 * time.Second
)

const (
	// maxPause bounds the back-off: of the half minute that a Spot machine gets not much may be lost.
	maxPause = 5 * time.Second
	// goneAfter is how often in a row an event has to be missing before it is believed to be over: a node must not be put
	// back into service by one document that somebody mixed up.
	goneAfter = 2
	// switchedOff: a machine that has not asked for a day has to wait like one that never did.
	switchedOff = 23 * time.Hour
	// maxNamePause is between two tries to learn the name of this machine.
	maxNamePause = 30 * time.Second
)

// Signal is a change in what is scheduled for this machine. What was there already when the watching began is a change
// too.
type Signal struct {
	Event Event
	// Gone says that the event is in the document no longer: it is over, or was taken back. Nobody tells which.
	Gone bool
	// First says that it was in the first document of this Watch: of an event that has started it may be the end, after
	// a boot.
	First bool
	// Before is the event as it was last signalled, and zero where it was not.
	Before Event
	// Machine is this one.
	Machine Machine
	Seen    time.Time
}

// WatchOptions are the settings of Watch; the zero value works.
type WatchOptions struct {
	Interval time.Duration
	// Known are the ids of events that an earlier life of this process was told of: one that is in the document no longer
	// is signalled as gone.
	Known []string
}

// Watch calls fn with every signal until ctx ends, one call at a time. It survives whatever the service does.
//
// The events are asked for from the first moment on, since that is what switches them on, for all machines of the set in
// this zone; which of them are about this machine can be told as soon as its metadata could be read.
//
// fn must not block for long: the next look waits for it.
func (p *Provider) Watch(ctx context.Context, o WatchOptions, fn func(Signal)) {
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	w := &watch{p: p, interval: o.Interval, fn: fn, Watching: cloud.Watching{Provider: Name, Log: p.opts.Log, MaxPause: maxPause}, events: map[string]Event{}, missing: map[string]int{}, named: make(chan Machine, 1)}
	for _, id := range o.Known {
		w.events[id] = Event{ID: id}
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	wg.Go(func() { w.name(ctx) })
	w.loop(ctx)
	cancel()
	wg.Wait()
}

// watch is one run of Watch. Its fields belong to the loop.
type watch struct {
	cloud.Watching
	p        *Provider
	interval time.Duration
	fn       func(Signal)

	named   chan Machine
	machine Machine

	last   []byte // the body of the last document
	doc    Document
	broken bool   // not all of it can be read
	odd    string // what was said about that
	looked bool   // a document was gone through
	good   time.Time

	events  map[string]Event // what was signalled and is not gone; those of another life with their id alone
	missing map[string]int
}

// name finds out how the events call this machine, however long that takes.
func (w *watch) name(ctx context.Context) {
	told := map[string]bool{}
	for pause := time.Second; ; pause = min(2*pause, maxNamePause) {
		m, err := w.p.machine(ctx, w.p.polls, 1)
		switch {
		case err == nil && m.Name == "":
			w.Log.Warn("the metadata tell no name of this machine, so no scheduled event can be known to be about it", "provider", Name)
			return
		case err == nil:
			w.named <- m
			return
		case ctx.Err() != nil:
			return
		}
		if key := cloud.TroubleKey(itemEvents, err); !told[key] {
			told[key] = true
			w.Log.Warn("scheduled events wait for the name of this machine", "provider", Name, "err", err, "hint", cloud.HintOf(err))
		}
		timer := time.NewTimer(pause - rand.N(pause/4+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

func (w *watch) loop(ctx context.Context) {
	failures := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-w.named:
			w.machine = m
			if w.last != nil {
				w.compare()
			}
			continue
		case <-timer.C:
		}
		err := w.look(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := cloud.UntilTick(w.interval)
		if err == nil {
			failures = 0
			w.Well(itemEvents)
		} else {
			failures++
			w.Trouble(itemEvents, err)
			pause = w.BackOff(w.interval, failures, err)
		}
		timer.Reset(pause)
	}
}

// look asks once.
func (w *watch) look(ctx context.Context) error {
	timeout := eventTimeout
	if time.Since(w.good) > switchedOff {
		timeout = firstTimeout
	}
	body, err := w.p.fetchEvents(ctx, timeout)
	if err != nil {
		return err
	}
	w.good = time.Now()
	if bytes.Equal(body, w.last) && w.last != nil {
		// Nothing has changed, the incarnation among it. Of an event that is missing a second look is wanted.
		if len(w.missing) > 0 {
			w.compare()
		}
		return nil
	}
	doc, err := ParseDocument(body)
	if err != nil && len(doc.Events) == 0 {
		return badDocument(err)
	}
	w.last, w.doc, w.broken = body, doc, err != nil
	if err != nil && err.Error() != w.odd {
		// The rest of it can be read, so that there is no reason to ask less often.
		w.odd = err.Error()
		w.Log.Warn("a part of the scheduled events cannot be read", "provider", Name, "err", err)
	}
	if w.machine.Name != "" {
		w.compare()
	}
	return nil
}

func badDocument(err error) error {
	return &cloud.Error{Provider: Name, Item: itemEvents, Kind: cloud.ErrBadAnswer, Status: http.StatusOK, Cause: err}
}

const itemEvents = "scheduled events"

// compare tells what is new in the document.
func (w *watch) compare() {
	now := time.Now()
	listed := map[string]bool{}
	for _, e := range w.doc.Events {
		if !e.About(w.machine.Name) {
			continue
		}
		listed[e.ID] = true
		delete(w.missing, e.ID)
		before, have := w.events[e.ID]
		if have && before.equal(e) {
			continue
		}
		w.events[e.ID] = e
		w.fn(Signal{Event: e, Before: before, First: !w.looked, Machine: w.machine, Seen: now})
	}
	if !w.broken {
		// Where not all could be read, one that is missing may be among those that could not.
		for id, e := range w.events {
			if listed[id] {
				continue
			}
			if w.missing[id]++; w.missing[id] < goneAfter {
				continue
			}
			delete(w.events, id)
			delete(w.missing, id)
			w.fn(Signal{Event: e, Before: e, Gone: true, Machine: w.machine, Seen: now})
		}
	}
	w.looked = true
}

// Events reads the document once.
func (p *Provider) Events(ctx context.Context) (Document, error) {
	body, err := p.fetchEvents(ctx, eventTimeout)
	if err != nil {
		return Document{}, err
	}
	doc, err := ParseDocument(body)
	if err != nil {
		return doc, badDocument(err)
	}
	return doc, nil
}

func (p *Provider) fetchEvents(ctx context.Context, timeout time.Duration) ([]byte, error) {
	return p.once(ctx, itemEvents, timeout, func(ctx context.Context) ([]byte, error) {
		return p.get(ctx, p.events, pathEvents)
	})
}

const pathEvents = "/metadata/scheduledevents?api-version=2020-07-01"

// Start tells Azure that it need not wait with an event any longer, for none of the machines that it names. The error is
// a *cloud.Error; with Status 400 Azure does not know the event, or not any more.
func (p *Provider) Start(ctx context.Context, eventID string) error {
	type request struct {
		EventID string `json:"EventId"`
	}
	body, err := json.Marshal(map[string][]request{"StartRequests": {{eventID}}})
	if err != nil {
		return err
	}
	_, err = p.once(ctx, "acknowledgement of a scheduled event", eventTimeout, func(ctx context.Context) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.origin+pathEvents, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Metadata", "true")
		req.Header.Set("Content-Type", "application/json")
		_, answer, err := cloud.Fetch(p.events, req)
		return answer, err
	})
	return err
}

// once makes one request about events, in its turn.
func (p *Provider) once(ctx context.Context, name string, timeout time.Duration, fetch func(context.Context) ([]byte, error)) ([]byte, error) {
	if err := p.polls.wait(ctx); err != nil {
		return nil, &cloud.Error{Provider: Name, Item: name, Kind: cloud.ErrNotReady, Cause: err, Context: err}
	}
	opts := p.opts
	opts.AttemptTimeout = timeout
	body, err := cloud.Do(ctx, opts, cloud.Call{Provider: Name, Item: name, Attempts: 1, Judge: p.judge}, fetch)
	if e, ok := errors.AsType[*cloud.Error](err); ok && e.Status == http.StatusNotFound {
		// Not there yet, or for the moment: every machine has them.
		e.Kind = cloud.ErrNotReady
	}
	return body, err
}
