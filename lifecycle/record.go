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
	// maxRecordRetry bounds the pause between attempts to write the node record.
	maxRecordRetry = 15 * time.Second
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

// writeRecord writes the node record until MongoDB accepts it. No other work waits for that. It takes no lock: its holder may
// wait for a disk.
func (r *Runner) writeRecord(ctx context.Context) {
	var state cluster.State // of the last attempt
	var reason string       // in the record
	var tried time.Time
	var retry, pause time.Duration
	for ctx.Err() == nil {
		v, wait := r.view.Load(), time.Hour
		if v.Registry != state {
			state, reason, tried, retry = v.Registry, "", time.Time{}, 0
		}
		switch {
		case v.Registry == "":
		case !v.RegistryTold:
			wait = time.Until(tried.Add(retry))
		case v.reason != reason && v.progresses():
			wait = time.Until(tried.Add(pause))
		}
		if wait > 0 {
			select {
			case <-ctx.Done():
			case <-v.changed:
			case <-time.After(wait):
			}
			continue
		}
		err := r.writeOnce(ctx, v)
		tried = time.Now()
		if err == nil || v.Registry != cluster.StateLeft && refused(err) {
			reason, retry, pause = v.reason, 0, progressEvery
		} else {
			retry = jitter(min(2*retry+time.Second, maxRecordRetry))
			pause = retry
		}
		if r.view.Load().Registry == v.Registry {
			r.accept(ctx, func(s situation) { s.recordWritten(v.Registry, err) })
		}
	}
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
