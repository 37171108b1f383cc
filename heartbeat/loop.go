// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

const (
	// jitter spreads the heartbeats of nodes booted together: the maximum deviation, as a share of the interval.
	jitter = 0.05
	// sendTimeout bounds the write of one heartbeat. A newer one follows a slow one.
	sendTimeout = 5 * time.Second
	// warnEvery limits warnings about failed heartbeats.
	warnEvery = time.Minute
	// clockEvery is the interval of comparing this machine's clock with MongoDB's: either may be set, and another
	// primary has another clock.
	clockEvery = time.Minute
)

// ErrLeft means that this node has left the cluster and sends no more heartbeats: none is lost or reported.
var ErrLeft = errors.New("this node has left the cluster")

// Sender writes heartbeats.
type Sender interface {
	Heartbeat(ctx context.Context, h cluster.Heartbeat) error
	// ClockSkew returns how far the local clock is ahead of MongoDB's.
	ClockSkew(ctx context.Context) (skew, accuracy time.Duration, err error)
}

// Loop samples the machine and sends heartbeats at a constant rate. It drops failed heartbeats and never queues them.
// Without a reachable server the MongoDB driver waits, not the loop.
type Loop struct {
	// ID is the node's.
	ID string
	// Interval is the time between heartbeats.
	Interval time.Duration
	// Sample measures the machine. It must not block for long.
	Sample func(context.Context) Sample
	// Sender is nil without a registry: then the loop only samples.
	Sender Sender
	// Serving returns the server's part of a heartbeat, if not nil. Wake triggers an immediate heartbeat when it
	// changes, if not nil.
	Serving func() *cluster.Serving
	// Checks returns the agent checks' part, if not nil.
	Checks func() map[string]bool
	Wake   <-chan struct{}
	// Register writes the node's record again after it was removed.
	Register func(context.Context) error
	// Report, if not nil, is called at the end of each round, on the loop's goroutine: a loop that reports makes
	// progress.
	Report func(Report)
	Log    *slog.Logger
	// Rand returns a number from 0 to 1; nil means a random one.
	Rand func() float64
}

// Report is one round of the loop.
type Report struct {
	Sample Sample
	// Tried means that a heartbeat was sent, with Err.
	Tried   bool
	Err     error
	Latency time.Duration // of the write
	Seq     int64         // of the last written heartbeat, or 0
	// Dropped counts the heartbeats that failed since the last written one.
	Dropped int
}

// run is the state of one run.
type run struct {
	*Loop
	seq          int64
	sample       *Sample // of the last round, or nil
	dropped      int
	lastWarning  time.Time
	outageLogged bool
	clock        *cluster.Millis
	clockReadAt  time.Time
}

// Run sends heartbeats until ctx ends. The first comes at a random time within one interval, so that nodes booted
// together do not send together.
func (l *Loop) Run(ctx context.Context) {
	r := &run{Loop: l}
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	if r.Rand == nil {
		r.Rand = rand.Float64
	}
	if r.Interval <= 0 {
		r.Interval = cluster.DefaultInterval
	}
	due := time.Now().Add(time.Duration(r.Rand() * float64(r.Interval)))
	for {
		timer := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-r.Wake:
			timer.Stop()
			r.round(ctx, r.sample != nil) // load over a short moment is meaningless
		case <-timer.C:
			r.round(ctx, false)
			due = r.next(due, time.Now())
		}
	}
}

// next keeps the pace: a late round does not delay the following ones, and missed rounds are not repeated.
func (r *run) next(due, now time.Time) time.Time {
	due = due.Add(r.Interval)
	if due.Before(now) {
		due = now
	}
	return due.Add(time.Duration((2*r.Rand() - 1) * jitter * float64(r.Interval)))
}

// round sends a heartbeat, if again is true with the last round's load, and reports it.
func (r *run) round(ctx context.Context, again bool) {
	if !again {
		s := r.Sample(ctx)
		r.sample = &s
	}
	rep := Report{Sample: *r.sample}
	if r.Sender != nil && ctx.Err() == nil {
		start := time.Now()
		if err := r.send(ctx); !errors.Is(err, ErrLeft) {
			rep.Tried, rep.Err, rep.Latency = true, err, time.Since(start)
			r.outcome(err)
		}
	}
	if ctx.Err() != nil {
		return // an interrupted round has no result
	}
	rep.Seq, rep.Dropped = r.seq, r.dropped
	if r.Report != nil {
		r.Report(rep)
	}
}

// send writes one heartbeat. If the record is missing, it registers the node again: the node is alive.
func (r *run) send(ctx context.Context) error {
	r.readClock(ctx)
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	load, sessions := r.sample.Load, r.sample.Session
	h := cluster.Heartbeat{Seq: r.seq + 1, Load: &load, Sessions: &sessions, ClockMS: r.clock}
	if r.Serving != nil {
		h.Serving = r.Serving()
	}
	if r.Checks != nil {
		h.Checks = r.Checks()
	}
	err := r.Sender.Heartbeat(ctx, h)
	if errors.Is(err, cluster.ErrNoNode) && r.Register != nil {
		if err = r.Register(ctx); err == nil {
			r.Log.Warn("registered again: the record was missing", "node", r.ID)
			err = r.Sender.Heartbeat(ctx, h)
		}
	}
	if err == nil {
		r.seq++
	}
	return err
}

// readClock compares the clocks from time to time, and keeps the old value on failure. It has its own timeout, so that
// the heartbeat reaches a slow MongoDB.
func (r *run) readClock(ctx context.Context) {
	if r.clock != nil && time.Since(r.clockReadAt) < clockEvery {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout/2)
	defer cancel()
	r.clockReadAt = time.Now()
	if skew, accuracy, err := r.Sender.ClockSkew(ctx); err == nil && accuracy <= time.Second {
		ms := cluster.MillisOf(skew)
		r.clock = &ms
	}
}

// outcome logs the first failure of an outage and its end.
func (r *run) outcome(err error) {
	if err == nil {
		if r.outageLogged {
			r.Log.Info("heartbeats are written again", "dropped", r.dropped)
		}
		r.dropped, r.outageLogged = 0, false
		return
	}
	r.dropped++
	if _, other := errors.AsType[*cluster.OtherMachineError](err); other || r.outageLogged || time.Since(r.lastWarning) < warnEvery {
		return // the sender logs the other machine
	}
	r.outageLogged, r.lastWarning = true, time.Now()
	r.Log.Warn("heartbeats are dropped until MongoDB is back", "error", err)
}
