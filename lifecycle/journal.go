// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/sleep"
)

const (
	// troubleEvery is the minimum time between warnings about one kind of trouble.
	troubleEvery = time.Minute
	maxNotes     = 20
	// maxEvents bounds the events that wait for MongoDB; later ones are dropped.
	maxEvents     = 32
	maxEventRetry = 15 * time.Second
	// flushTime bounds the wait for pending events when the daemon ends.
	flushTime = time.Second
)

// warned is the last warning; text is "" once the end of the trouble is logged.
type warned struct {
	text string
	at   time.Time
}

func (r *Runner) addEvents(events []cluster.Event) {
	for _, e := range events {
		select {
		case r.events <- e:
		default:
			r.log.Warn("event dropped: too many are pending")
		}
	}
}

func (r *Runner) addNotes(notes []note) {
	for _, n := range notes {
		write := r.log.Info
		if n.warns {
			write = r.log.Warn
		}
		write(n.text, n.attrs...)
		r.notes = append(r.notes, Note{At: time.Now().Round(0), Text: n.String()})
	}
	r.notes = r.notes[max(0, len(r.notes)-maxNotes):]
}

func (r *Runner) logTrouble() {
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

// writeEvents writes the events of the cluster's history one after another. Those that are pending at the end of Run get
// flushTime more if MongoDB answers.
func (r *Runner) writeEvents(ctx context.Context) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if r.View().RegistryTold {
			sleep.For(late, flushTime)
		}
		cancel()
	})()
	for ctx.Err() == nil || len(r.events) > 0 {
		select {
		case e := <-r.events:
			r.writeEvent(late, e)
		case <-ctx.Done():
		}
	}
}

// writeEvent retries until ctx ends.
func (r *Runner) writeEvent(ctx context.Context, e cluster.Event) {
	e.ID = cluster.NewEventID()
	for retry := time.Second; ; retry = min(2*retry, maxEventRetry) {
		bound, cancel := context.WithTimeout(ctx, callTime)
		err := r.o.Event(bound, e)
		cancel()
		if err == nil {
			return
		}
		if !sleep.For(ctx, jitter(retry)) {
			r.log.Warn("event not written", "kind", e.Kind, "reason", e.Why, "error", err)
			return
		}
	}
}

// jitter returns a random time from d/2 to d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
