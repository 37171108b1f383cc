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
	// jitter spreads the heartbeats of nodes that were booted together; each is
	// early or late by no more than this share of the interval.
	jitter = 0.05
	// sendTimeout bounds the writing of one heartbeat. What takes longer is followed by a newer one.
	sendTimeout = 5 * time.Second
	// warnEvery is how often at most the log says that heartbeats are not written.
	warnEvery = time.Minute
	// clockEvery is how often this machine's clock is compared with MongoDB's: either may be set, and another
	// primary has another one.
	clockEvery = time.Minute
)

// ErrLeft says that this node has left the cluster and sends no more heartbeats: nothing is lost, and nothing is to be
// told.
var ErrLeft = errors.New("this node has left the cluster")

// Sender writes heartbeats.
type Sender interface {
	Heartbeat(ctx context.Context, h cluster.Heartbeat) error
	// ClockSkew tells how far the local clock is ahead of MongoDB's.
	ClockSkew(ctx context.Context) (skew, accuracy time.Duration, err error)
}

// Loop samples the machine at an even pace and sends heartbeats. Those
// that cannot be written are dropped, never queued. While no server can be reached, the MongoDB driver
// waits for one: the loop has no waits of its own.
type Loop struct {
	// ID is the node's.
	ID string
	// Interval is the time between heartbeats.
	Interval time.Duration
	// Sample looks at the machine. It must not block for long.
	Sample func(context.Context) Sample
	// Sender is nil where there is no registry: then the loop only samples.
	Sender Sender
	// Serving is what a heartbeat says of the server; nil says nothing. Wake makes a heartbeat due
	// at once, for a change of it; nil never does.
	Serving func() *cluster.Serving
	Wake    <-chan struct{}
	// Register writes the node's record again after somebody removed it.
	Register func(context.Context) error
	// Report, if not nil, is told of each round when it ends. It runs on the
	// loop's goroutine: a loop that reports is a loop that makes progress.
	Report func(Report)
	Log    *slog.Logger
	// Rand is a number from 0 to 1; nil is a random one.
	Rand func() float64
}

// Report is one round of the loop.
type Report struct {
	Sample Sample
	// Tried tells that a heartbeat was sent; Err is what came of it.
	Tried   bool
	Err     error
	Latency time.Duration // of the write
	Seq     int64         // of the last heartbeat that was written; 0: none yet
	// Dropped counts the heartbeats that were not written since the last one that
	// was.
	Dropped int
}

// run is the loop's memory of one run.
type run struct {
	*Loop
	seq         int64
	sample      *Sample // of the last round; nil before it
	dropped     int
	lastWarning time.Time
	outageTold  bool
	clock       *cluster.Millis
	clockReadAt time.Time
}

// Run sends heartbeats until ctx ends. The first one comes within one interval, at a
// moment of its own, so that nodes booted together do not send together.
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
			r.round(ctx, r.sample != nil) // a load that is measured over a moment says nothing
		case <-timer.C:
			r.round(ctx, false)
			due = r.next(due, time.Now())
		}
	}
}

// next keeps the pace: a round that was late does not move all that follow, and
// rounds that were missed are not made up for.
func (r *run) next(due, now time.Time) time.Time {
	due = due.Add(r.Interval)
	if due.Before(now) {
		due = now
	}
	return due.Add(time.Duration((2*r.Rand() - 1) * jitter * float64(r.Interval)))
}

// round sends a heartbeat, with the load of the round before where again says so, and reports it.
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
		return // what was cut short tells nothing
	}
	rep.Seq, rep.Dropped = r.seq, r.dropped
	if r.Report != nil {
		r.Report(rep)
	}
}

// send writes one heartbeat. Where the record is gone, it is registered again: the node is alive,
// whoever removed it.
func (r *run) send(ctx context.Context) error {
	r.readClock(ctx)
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	load, sessions := r.sample.Load, r.sample.Session
	h := cluster.Heartbeat{Seq: r.seq + 1, Load: &load, Sessions: &sessions, ClockMS: r.clock}
	if r.Serving != nil {
		h.Serving = r.Serving()
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

// readClock compares the clocks now and then. Where it cannot, what was known stays. It has a time of its own, so that a
// slow MongoDB gets a heartbeat all the same.
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
		if r.outageTold {
			r.Log.Info("heartbeats are written again", "dropped", r.dropped)
		}
		r.dropped, r.outageTold = 0, false
		return
	}
	r.dropped++
	if _, other := errors.AsType[*cluster.OtherMachineError](err); other || r.outageTold || time.Since(r.lastWarning) < warnEvery {
		return // the sender logs the other machine
	}
	r.outageTold, r.lastWarning = true, time.Now()
	r.Log.Warn("heartbeat failed; heartbeats are dropped until MongoDB is back", "error", err)
}
