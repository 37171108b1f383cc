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

// recordReason is the reason in the node record.
func (s situation) recordReason() string {
	if !s.leaving() {
		return "serving again"
	}
	cause := s.cause()
	reason := cmp.Or(cause.Reason, string(cause.Kind))
	if s.Phase == stepStopFailed {
		reason = "Ant Media Server does not end: " + reason
	}
	if s.sessions != nil && s.Phase == StepDraining {
		reason += ": " + s.sessions.Left()
	}
	return plain.Truncate(reason, maxReason)
}

// recordWriter is what the writer of the node record remembers.
type recordWriter struct {
	state     cluster.State // of the last attempt
	retry     time.Duration
	notBefore time.Time
	reason    string // in the record
	written   time.Time
}

// writeRecord writes the node record until MongoDB accepts it. No other work waits for that. It takes no lock: its holder may
// wait for a disk.
func (r *Runner) writeRecord(ctx context.Context) {
	var w recordWriter
	for ctx.Err() == nil {
		v := r.view.Load()
		if wait := w.wait(v); wait > 0 {
			select {
			case <-ctx.Done():
			case <-v.changed:
			case <-time.After(wait):
			}
			continue
		}
		err := r.writeOnce(ctx, v)
		if ctx.Err() != nil {
			return
		}
		if r.view.Load().Registry == w.state {
			_ = r.observe(change(func(s situation) { s.recordWritten(w.state, err) }))
			w.tried(v, err == nil || w.state != cluster.StateLeft && refused(err))
		}
	}
}

// wait returns how long the record stays as it is.
func (w *recordWriter) wait(v *View) time.Duration {
	if v.Registry != w.state {
		w.retry, w.notBefore, w.state = 0, time.Time{}, v.Registry
	}
	switch {
	case v.Registry == "":
	case !v.RegistryTold:
		return time.Until(w.notBefore)
	case v.reason != w.reason && v.progresses():
		return max(time.Until(w.written.Add(progressEvery)), time.Until(w.notBefore))
	}
	return time.Hour
}

func (w *recordWriter) tried(v *View, done bool) {
	if done {
		w.retry, w.notBefore, w.reason, w.written = 0, time.Time{}, v.reason, time.Now()
		return
	}
	w.retry = min(max(2*w.retry, minRetry), maxRetry)
	w.notBefore = time.Now().Add(jitter(w.retry))
}

// progresses reports whether the record's reason is kept up to date.
func (v *View) progresses() bool {
	return v.Step == StepAnnouncing || v.Step == StepDraining || v.StopFailed
}

// writeOnce gives up when another state is wanted.
func (r *Runner) writeOnce(ctx context.Context, v *View) error {
	bound, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	go func() {
		for now := v; now.Registry == v.Registry; now = r.view.Load() {
			select {
			case <-bound.Done():
				return
			case <-now.changed:
			}
		}
		cancel()
	}()
	if v.Registry == cluster.StateLeft {
		return r.o.Node.Deregister(bound, v.departure)
	}
	return r.o.Node.SetState(bound, v.Registry, v.reason, v.StopFailed)
}
