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
	"github.com/amsagent/amsagent/internal/seconds"
)

const (
	// jitter is a share of the interval. It spreads nodes booted together.
	jitter      = 0.05
	sendTimeout = 5 * time.Second
	warnEvery   = time.Minute
	// clockEvery: both clocks may be set, and each primary has its own.
	clockEvery = time.Minute
)

// ErrLeft means that this node has left and sends no heartbeats.
var ErrLeft = errors.New("this node has left the cluster")

type sender interface {
	// Heartbeat adds what is not of the machine.
	Heartbeat(ctx context.Context, h cluster.Heartbeat) error
	// ClockSkew returns how far the local clock is ahead of MongoDB's.
	ClockSkew(ctx context.Context) (skew, accuracy time.Duration, err error)
}

// Loop samples the machine and sends heartbeats at a constant rate. It drops failed ones: the driver waits for MongoDB, not
// the loop.
type Loop struct {
	Interval time.Duration
	// Sample must not block for long.
	Sample func(context.Context) Sample
	// Without a Sender (no registry), the loop only samples.
	Sender sender
	// Wake triggers an immediate heartbeat.
	Wake <-chan struct{}
	// Report is called after each round, on the loop's goroutine: it proves progress.
	Report func(Report)
	Log    *slog.Logger

	seq          int64
	sample       *Sample
	dropped      int
	lastWarning  time.Time
	outageLogged bool
	clock        *seconds.Duration
	clockReadAt  time.Time
}

// Report is one round.
type Report struct {
	Sample Sample
	// Tried: a heartbeat was sent, with Err.
	Tried   bool
	Err     error
	Latency time.Duration // of the write
	Seq     int64         // last written, or 0
	// Clock is how far the machine's clock is ahead of MongoDB's; nil if unknown.
	Clock *seconds.Duration
	// Dropped counts failures since the last written one.
	Dropped int
}

// Run sends heartbeats until ctx ends, the first at a random time within one interval. A loop runs once.
func (l *Loop) Run(ctx context.Context) {
	due := time.Now().Add(time.Duration(rand.Float64() * float64(l.Interval)))
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.Wake:
			l.round(ctx, l.sample != nil) // load over a short moment is meaningless
		case <-time.After(time.Until(due)):
			l.round(ctx, false)
			due = l.next(due, time.Now())
		}
	}
}

// next keeps the pace: a late round delays no other; missed rounds are skipped.
func (l *Loop) next(due, now time.Time) time.Time {
	due = due.Add(l.Interval)
	if due.Before(now) {
		due = now
	}
	return due.Add(time.Duration((2*rand.Float64() - 1) * jitter * float64(l.Interval)))
}

func (l *Loop) round(ctx context.Context, again bool) {
	if !again {
		s := l.Sample(ctx)
		l.sample = &s
	}
	rep := Report{Sample: *l.sample}
	if l.Sender != nil && ctx.Err() == nil {
		start := time.Now()
		if err := l.send(ctx); !errors.Is(err, ErrLeft) {
			rep.Tried, rep.Err, rep.Latency = true, err, time.Since(start)
			l.outcome(err)
		}
	}
	if ctx.Err() == nil { // an interrupted round has no result
		rep.Seq, rep.Dropped, rep.Clock = l.seq, l.dropped, l.clock
		l.Report(rep)
	}
}

func (l *Loop) send(ctx context.Context) error {
	l.readClock(ctx)
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	load, sessions := l.sample.Load, l.sample.Session
	err := l.Sender.Heartbeat(ctx, cluster.Heartbeat{Seq: l.seq + 1, Load: &load, Sessions: &sessions, Clock: l.clock})
	if err == nil {
		l.seq++
	}
	return err
}

// readClock keeps the old value on failure. Its shorter timeout leaves time for the heartbeat.
func (l *Loop) readClock(ctx context.Context) {
	if l.clock != nil && time.Since(l.clockReadAt) < clockEvery {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout/2)
	defer cancel()
	l.clockReadAt = time.Now()
	if skew, accuracy, err := l.Sender.ClockSkew(ctx); err == nil && accuracy <= time.Second {
		l.clock = new(seconds.Duration(skew))
	}
}

func (l *Loop) outcome(err error) {
	if err == nil {
		if l.outageLogged {
			l.Log.Info("heartbeats are written again", "dropped", l.dropped)
		}
		l.dropped, l.outageLogged = 0, false
		return
	}
	l.dropped++
	if _, other := errors.AsType[*cluster.OtherMachineError](err); other || l.outageLogged || time.Since(l.lastWarning) < warnEvery {
		return // the sender logs the other machine
	}
	l.outageLogged, l.lastWarning = true, time.Now()
	l.Log.Warn("heartbeats are dropped until MongoDB is back", "error", err)
}
