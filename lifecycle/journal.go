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
	maxEvents = 32
	// flushTime bounds the wait for pending events when the daemon ends.
	flushTime = time.Second
)

// warned is the last warning; text is "" once the end of the trouble is logged.
type warned struct {
	text string
	at   time.Time
}

func (r *Runner) addNotes(notes []note) {
	for _, n := range notes {
		r.log.Info(n.text, n.attrs...) //nolint:sloglint // a constant at each call of state.note
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

// writeEvent writes an event to the cluster's history, and retries until it succeeds. At the end of Run it gets flushTime more
// if MongoDB answers.
func (r *Runner) writeEvent(ctx context.Context, e cluster.Event) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if r.View().RegistryTold {
			sleep.For(late, flushTime)
		}
		cancel()
	})()
	for retry := minRetry; ; retry = min(2*retry, maxRetry) {
		bound, cancel := context.WithTimeout(late, callTime)
		err := r.o.Event(bound, e)
		cancel()
		if err == nil {
			var rest []cluster.Event
			_ = r.observe(change(func(s situation) {
				s.history, s.written = s.history[1:], s.written+1
				if r.ctx == nil { // no new work begins
					rest = s.history
				}
			}))
			if len(rest) == 0 {
				return
			}
			e = rest[0]
			continue
		}
		if !sleep.For(late, jitter(retry)) {
			r.log.Warn("event not written", "kind", e.Kind, "reason", e.Why, "error", err)
			return
		}
	}
}

// jitter returns a random time from d/2 to d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
