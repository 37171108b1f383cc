// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/plain"
)

const (
	minRetry = 500 * time.Millisecond
	maxRetry = 15 * time.Second
	// progressEvery is the interval for logging progress and updating the record's reason.
	progressEvery = 30 * time.Second
	// maxReason keeps records short: every agent reads all of them.
	maxReason = 160
)

// record is the desired node record. Readers skip the lock, whose holder may wait for a disk.
type record struct {
	state      cluster.State
	pending    bool
	refresh    bool // the reason changes during the drain
	reason     string
	stopFailed bool
	forgotten  bool // see state.Forgotten
	departure  *Departure
	changed    <-chan struct{} // closed at the next change
}

func (s situation) record() record {
	w := record{
		state: s.Want, pending: s.Want != s.Have, stopFailed: s.Phase == phaseStopFailed, departure: s.Departure, forgotten: s.Forgotten,
		refresh: s.Phase == phaseAnnouncing || s.Phase == phaseDraining || s.Phase == phaseStopFailed, reason: "serving again",
	}
	if s.leaving() {
		cause := s.cause()
		w.reason = cmp.Or(cause.Reason, string(cause.Kind))
		if w.stopFailed {
			w.reason = "Ant Media Server does not end: " + w.reason
		}
		if s.sessions != nil && s.Phase == phaseDraining {
			w.reason += ": " + s.sessions.Left()
		}
		w.reason = plain.Truncate(w.reason, maxReason)
	}
	return w
}

// writeRecord writes the node record until MongoDB accepts it. No other work waits for that.
func (r *Runner) writeRecord(ctx context.Context) {
	var (
		retry     time.Duration
		notBefore time.Time
		state     cluster.State // of the last attempt
		reason    string        // in the record
		written   time.Time
	)
	for ctx.Err() == nil {
		w := r.record.Load()
		if w.state != state {
			retry, notBefore, state = 0, time.Time{}, w.state
		}
		wait := time.Hour
		switch {
		case w.state == "":
		case w.pending:
			wait = time.Until(notBefore)
		case w.refresh && w.reason != reason:
			wait = max(time.Until(written.Add(progressEvery)), time.Until(notBefore))
		}
		if wait > 0 {
			select {
			case <-ctx.Done():
			case <-w.changed:
			case <-time.After(wait):
			}
			continue
		}
		current, err := r.writeOnce(ctx, w)
		switch {
		case !current:
		case err == nil || w.state != cluster.StateLeft && refused(err):
			retry, notBefore, reason, written = 0, time.Time{}, w.reason, time.Now()
		default:
			retry = min(max(2*retry, minRetry), maxRetry)
			notBefore = time.Now().Add(jitter(retry))
		}
	}
}

// writeOnce returns current false if another state is wanted by then.
func (r *Runner) writeOnce(ctx context.Context, w *record) (current bool, err error) {
	bound, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	go func() {
		for now := w; now.state == w.state; now = r.record.Load() {
			select {
			case <-bound.Done():
				return
			case <-now.changed:
			}
		}
		cancel()
	}()
	if w.state == cluster.StateLeft {
		d := Departure{}
		if w.departure != nil {
			d = *w.departure
		}
		err = r.o.Node.Deregister(bound, d)
	} else {
		err = r.o.Node.SetState(bound, w.state, w.reason, w.stopFailed)
	}
	if ctx.Err() != nil || r.record.Load().state != w.state {
		return false, err
	}
	_ = r.observe(recordWritten{w.state, err})
	return true, err
}
