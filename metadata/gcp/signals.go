// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

const (
	// holdTime is for how long the service is asked to hold back an answer that says nothing new.
	holdTime = time.Minute
	// pace is the least time between two requests for one item: whoever answers at once, and always, does not make us ask
	// all the time.
	pace = time.Second
	// absentPause is when an item that is not there is looked for again.
	absentPause = time.Minute
	// upcomingPause is for what is announced hours before.
	upcomingPause = 5 * time.Minute
	// holdMargin is after what a poll that was to be answered is given up.
	holdMargin = 10 * time.Second
	// maxHurry bounds the pause to a service that does not hold its answers back: of 30 seconds not much may be lost.
	maxHurry = 5 * time.Second
	// brokenHolds is how many held polls in a row may break off before the service is taken to be bad at that; one that
	// never answers is enough. After plainTime it is tried again.
	brokenHolds = 3
	plainTime   = 10 * time.Minute
	// idleAfter is how often in a row a signal has to be gone before it is believed to be taken back: a service that
	// says so once by mistake must not put a node back into service that is off in 30 seconds.
	idleAfter = 2

	// maintenanceNotice is the time that a machine is told of maintenance before it is stopped for that, and
	// maintenanceNoticeGPU of one with a graphics processor (docs: Handle GPU host maintenance events).
	maintenanceNotice    = time.Minute
	maintenanceNoticeGPU = time.Hour
	// usualShutdown is how long a graceful shutdown waits where it does not say.
	usualShutdown = 10 * time.Minute
)

// SignalKind is what a signal is about.
type SignalKind string

// The kinds, named as the items they are read from.
const (
	SignalPreempted   SignalKind = "instance/preempted"
	SignalMaintenance SignalKind = "instance/maintenance-event"
	SignalStopState   SignalKind = "instance/shutdown-details/stop-state"
	SignalUpcoming    SignalKind = "instance/upcoming-maintenance"
)

// Signal is a change of what the metadata says about the future of this machine. What was there already when the
// watching began is a change too, also that there is nothing: what was announced before is over then.
type Signal struct {
	Kind SignalKind
	// Value is the word of the item.
	Value string
	// At is when it happens; zero is not known. A maintenance that was announced may
	// be signalled again, with another time.
	At time.Time
	// Text says for people what belongs to it.
	Text string
	// Gone says that what was signalled is taken back, or that nothing is signalled.
	Gone bool
	// Seen is when the answer came.
	Seen time.Time
}

// Watch calls fn with every signal until ctx ends, one call at a time. It survives whatever the service does: an item
// that cannot be read is asked for again after a pause that grows, and has no influence on the others.
//
// Each item is one poll that the service holds for a minute, over connections that stay; so a machine of which nobody
// wants anything costs three small requests a minute.
//
// fn must not block for long: the next look waits for it.
func (p *Provider) Watch(ctx context.Context, fn func(Signal)) {
	held := p.opts
	held.AttemptTimeout = holdTime + holdMargin
	w := &watch{p: p, held: held, client: held.HTTPClient(), fn: fn, Watching: cloud.Watching{Provider: Name, Log: p.opts.Log}}
	defer w.client.CloseIdleConnections()
	var wg sync.WaitGroup
	for _, it := range []*polled{
		{kind: SignalPreempted, idle: []string{"FALSE", "", "NONE"}, active: []string{Preempted}},
		{kind: SignalMaintenance, idle: []string{"NONE", ""}, active: []string{MaintenanceMigrate, MaintenanceTerminate}},
		{kind: SignalStopState, idle: []string{"", "NONE", "UNSPECIFIED", "STOP_STATE_UNSPECIFIED", "UNKNOWN_STOP_STATE"}, active: []string{PendingStop}},
	} {
		wg.Go(func() { w.poll(ctx, it) })
	}
	wg.Go(func() { w.upcoming(ctx) })
	wg.Wait()
}

// watch is one run of Watch.
type watch struct {
	cloud.Watching
	p      *Provider
	held   cloud.Options // those of a poll that the service holds
	client *http.Client

	emitting sync.Mutex
	fn       func(Signal)
}

// polled is one item that is polled. It belongs to one loop.
type polled struct {
	kind         SignalKind
	idle, active []string

	now     string // the word in force; "" where nothing is, or nothing is known yet
	settled bool   // something was told already
	gone    int    // how often in a row nothing was signalled
	strange string // a word that nobody knows, and that was told
}

func (w *watch) emit(s Signal) {
	w.emitting.Lock()
	defer w.emitting.Unlock()
	w.fn(s)
}

// answer is one answer to a poll.
type answer struct {
	word, etag string
}

// poll follows one item.
func (w *watch) poll(ctx context.Context, it *polled) {
	etag, failures, hurry, broken := "", 0, 0, 0
	var plain time.Time // until when nothing is to be held back
	for {
		began := time.Now()
		held := etag != ""
		a, err := w.read(ctx, string(it.kind), etag)
		if ctx.Err() != nil {
			return
		}
		seen := time.Now()
		pause := pace
		switch {
		case errors.Is(err, cloud.ErrNotFound):
			w.Well(string(it.kind))
			etag, failures, hurry = "", 0, 0
			if w.see(ctx, it, "", seen) {
				pause = jitter(absentPause)
			}
		case err != nil && held:
			// What has changed meanwhile is asked for outright; only when that fails as well is it a trouble.
			etag = ""
			e, ok := errors.AsType[*cloud.Error](err)
			if broken++; ok && cloud.Unanswered(e) || broken >= brokenHolds {
				w.Log.Info("the metadata server does not hold its answers back as it was asked to: it is asked every few seconds for a while",
					"provider", Name, "item", it.kind, "every", maxHurry, "err", err)
				plain, broken = seen.Add(plainTime), 0
			}
		case err != nil:
			failures++
			w.Trouble(string(it.kind), err)
			etag, pause = "", w.BackOff(pace, failures, err)
		default:
			w.Well(string(it.kind))
			failures = 0
			quick := held && a.etag == etag && seen.Sub(began) < pace
			etag = a.etag
			if !w.see(ctx, it, a.word, seen) {
				etag = "" // once more, without being held back
			}
			switch {
			case quick:
				hurry++
			case held:
				hurry, broken = 0, 0
			}
			switch {
			case it.gone > 0:
				// To be confirmed soon.
			case seen.Before(plain):
				etag, pause = "", maxHurry
			case hurry > 0 || a.etag == "":
				// Who does not hold his answers back is asked now and then.
				pause = min(pace<<min(max(hurry, 1), 8), maxHurry)
			}
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// read asks for one item: at once, or with the tag of what is known already, so that the service answers when there is
// something else.
func (w *watch) read(ctx context.Context, path, etag string) (answer, error) {
	o, query := w.p.opts, ""
	if etag != "" {
		o = w.held
		query = fmt.Sprintf("?wait_for_change=true&last_etag=%s&timeout_sec=%d", etag, int(jitter(holdTime).Seconds()))
	}
	return ask(ctx, w, o, path, base+path+query, func(h http.Header, body []byte) (answer, error) {
		word, err := ParseWord(body)
		tag := h.Get("ETag")
		if !plainTag(tag) {
			tag = ""
		}
		return answer{word, tag}, err
	})
}

// ask makes one request, once.
func ask[T any](ctx context.Context, w *watch, o cloud.Options, name, path string, parse func(http.Header, []byte) (T, error)) (T, error) {
	return cloud.Do(ctx, o, cloud.Call{Provider: Name, Item: name, Attempts: 1, Judge: judge}, func(ctx context.Context) (T, error) {
		h, body, err := w.p.get(ctx, w.client, path)
		if err != nil {
			var zero T
			return zero, err
		}
		v, err := parse(h, body)
		if err != nil {
			return v, cloud.BadAnswer(err)
		}
		return v, nil
	})
}

// plainTag tells whether a tag can be asked with: it is a few hexadecimal digits.
func plainTag(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_'
	})
}

// see tells of a change. It reports false where the answer has to be confirmed by another one.
func (w *watch) see(ctx context.Context, it *polled, word string, seen time.Time) bool {
	switch {
	case slices.Contains(it.active, word):
		it.gone, it.strange = 0, ""
		if it.now == word {
			return true
		}
		before, settled := it.now, it.settled
		it.now, it.settled = word, true
		if before != "" {
			// One thing in place of another.
			w.emit(Signal{Kind: it.kind, Value: before, Gone: true, Seen: seen})
		}
		w.emit(w.signal(ctx, it.kind, word, seen, settled))
	case slices.Contains(it.idle, word):
		it.strange = ""
		if it.settled && it.now == "" {
			return true
		}
		if it.gone++; it.gone < idleAfter {
			return false
		}
		before := it.now
		it.now, it.settled, it.gone = "", true, 0
		w.emit(Signal{Kind: it.kind, Value: before, Gone: true, Seen: seen})
	case it.strange != word:
		// A word of tomorrow: what was in force stays so.
		it.strange = word
		w.emit(Signal{Kind: it.kind, Value: word, Seen: seen})
	}
	return true
}

// signal finds out when what begins now will be. settled: nothing was signalled right before.
func (w *watch) signal(ctx context.Context, kind SignalKind, word string, seen time.Time, settled bool) Signal {
	s := Signal{Kind: kind, Value: word, Seen: seen}
	switch {
	case kind == SignalPreempted:
		s.At = seen.Add(StopWindowSpot)
	case word == MaintenanceTerminate:
		notice := maintenanceNotice
		if settled && hasGPU(w.p.opts) {
			notice = maintenanceNoticeGPU
		}
		s.At = seen.Add(notice)
		if m, err := w.readUpcoming(ctx); err == nil && m.Start.After(s.At) && m.Start.Before(seen.Add(maintenanceNoticeGPU+maxHurry)) {
			s.At = m.Start
		}
	case kind == SignalStopState:
		d, err := ask(ctx, w, w.p.opts, "shutdown details", pathInstance+"shutdown-details/"+recursive,
			func(_ http.Header, b []byte) (Shutdown, error) { return ParseShutdown(b) })
		if err != nil {
			w.Log.Warn("how long the shutdown waits cannot be read, so the usual time is taken", "provider", Name, "usual", usualShutdown, "err", err)
		}
		if len(d.Unknown) > 0 {
			w.Log.Info("the shutdown's details have fields that this version does not know", "fields", strings.Join(d.Unknown, ","))
		}
		if s.At = d.Ends(seen); s.At.IsZero() {
			s.At = seen.Add(usualShutdown)
		}
		s.Text = strings.ToLower(d.Target)
	}
	return s
}

func (w *watch) readUpcoming(ctx context.Context) (Maintenance, error) {
	m, err := ask(ctx, w, w.p.opts, "upcoming maintenance", base+string(SignalUpcoming)+"?alt=json",
		func(_ http.Header, b []byte) (Maintenance, error) { return ParseUpcoming(b) })
	if errors.Is(err, cloud.ErrNotFound) {
		// Most kinds of machines are told of none.
		return Maintenance{}, nil
	}
	return m, err
}

// upcoming looks now and then for maintenance that is announced hours before. Machines that are migrated instead are not
// sent away for it.
func (w *watch) upcoming(ctx context.Context) {
	const name = string(SignalUpcoming)
	var now Maintenance
	gone, failures, settled := 0, 0, false
	for {
		m, err := w.readUpcoming(ctx)
		if err == nil && !m.Start.Equal(now.Start) && !m.Start.IsZero() {
			var policy string
			policy, err = ask(ctx, w, w.p.opts, "maintenance policy", pathInstance+"scheduling/on-host-maintenance",
				func(_ http.Header, b []byte) (string, error) { return ParseWord(b) })
			if policy == "MIGRATE" {
				m = Maintenance{}
			}
		}
		if ctx.Err() != nil {
			return
		}
		pause := jitter(upcomingPause)
		switch seen := time.Now(); {
		case err != nil:
			failures++
			w.Trouble(name, err)
			pause = min(pause, w.BackOff(pace, failures+2, err))
		case m.Start.IsZero():
			w.Well(name)
			failures = 0
			if settled && now.Start.IsZero() {
				break
			}
			if gone++; gone < idleAfter {
				pause = pace
				break
			}
			w.emit(Signal{Kind: SignalUpcoming, Value: now.Status, Gone: true, Seen: seen})
			now, gone, settled = Maintenance{}, 0, true
		default:
			w.Well(name)
			gone, failures, settled = 0, 0, true
			if m.Start.Equal(now.Start) {
				break
			}
			now = m
			w.emit(Signal{Kind: SignalUpcoming, Value: m.Status, At: m.Start, Text: strings.ToLower(m.Type), Seen: seen})
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// jitter shortens a time at random, so that a fleet that boots together does not ask together.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/10+1) }

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
