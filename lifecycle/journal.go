// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/sleep"
)

const (
	// troubleEvery is the minimum time between warnings about one kind of trouble.
	troubleEvery = time.Minute
	maxNotes     = 20
	maxEvents    = 32
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

// eventQueue writes events to the cluster's history in order, and retries each until it succeeds.
type eventQueue struct {
	write     func(context.Context, cluster.Event) error
	log       *slog.Logger
	pending   chan cluster.Event
	unwritten atomic.Int32
}

func (q *eventQueue) add(events []cluster.Event) {
	for _, e := range events {
		select {
		case q.pending <- e:
			q.unwritten.Add(1)
		default:
			q.log.Warn("event dropped: too many are pending", "kind", e.Kind)
		}
	}
}

func (q *eventQueue) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-q.pending:
			q.writeOne(ctx, e)
			q.unwritten.Add(-1)
		}
	}
}

func (q *eventQueue) writeOne(ctx context.Context, e cluster.Event) {
	for retry := minRetry; ; retry = min(2*retry, maxRetry) {
		bound, cancel := context.WithTimeout(ctx, callTime)
		err := q.write(bound, e)
		cancel()
		if err == nil {
			return
		}
		if !sleep.For(ctx, jitter(retry)) {
			q.log.Warn("event not written", "kind", e.Kind, "reason", e.Why, "error", err)
			return
		}
	}
}

// flush gives up when MongoDB does not answer.
func (q *eventQueue) flush(ctx context.Context, answers func() bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	for q.unwritten.Load() > 0 && answers() {
		if !sleep.For(ctx, flushTime/100) {
			return
		}
	}
}

// jitter returns a random time from d/2 to d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
