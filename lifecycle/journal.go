// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"log/slog"
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

type journal struct {
	log    *slog.Logger
	notes  []Note
	warned map[string]warned
}

// warned is the last warning; text is "" once the end of the trouble is logged.
type warned struct {
	text string
	at   time.Time
}

func (j *journal) add(notes []note) {
	for _, n := range notes {
		text := n.String()
		j.log.Info(n.text, n.attrs...) //nolint:sloglint // a constant at each call of state.note
		j.notes = append(j.notes, Note{At: time.Now().Round(0), Text: text})
	}
	j.notes = j.notes[max(0, len(j.notes)-maxNotes):]
}

func (j *journal) trouble(current map[string]string) {
	for about, text := range current {
		if w := j.warned[about]; w.text != text && time.Since(w.at) >= troubleEvery {
			j.warned[about] = warned{text, time.Now()}
			j.log.Warn("drain step failed, retrying", "step", about, "error", text)
		}
	}
	for about, w := range j.warned {
		if w.text != "" && current[about] == "" {
			j.warned[about] = warned{at: w.at}
			j.log.Info("drain step works again", "step", about)
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
			_ = r.observe(change(func(s *state) { s.history, s.written = s.history[1:], s.written+1 }))
			return
		}
		if !sleep.For(late, jitter(retry)) {
			r.log.Warn("event not written", "kind", e.Kind, "reason", e.Why, "error", err)
			return
		}
	}
}

// jitter returns a random time from d/2 to d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
