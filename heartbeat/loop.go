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
	// jitter spreads the beats of nodes that were booted together; a beat is
	// early or late by no more than this share of the interval.
	jitter = 0.05
	// leastSendTime and mostSendTime bound the writing of one beat, which
	// otherwise gets its interval: what takes longer is followed by a newer one.
	leastSendTime = time.Second
	mostSendTime  = 5 * time.Second
	// mostBackOff is how long at most no beat is tried while MongoDB is away.
	// Longer, and a node stays silent for too long after it is back.
	mostBackOff = 15 * time.Second
	// minRetry and maxRetry bound the pause after a beat for which no server was
	// found, or none that takes writes: the search for one is itself a wait, so this
	// load is small, and a new primary is to hear from all nodes within two seconds.
	minRetry = 250 * time.Millisecond
	maxRetry = time.Second
	// warnEvery is how often at most the log says that beats are not written.
	warnEvery = time.Minute
	// clockEvery is how often this machine's clock is compared with the
	// server's, unless it was set. A clock that drifts by a second in this time is
	// broken.
	clockEvery = 5 * time.Minute
	// fullEvery is after how many beats everything is written again: what a row
	// lost by another hand comes back.
	fullEvery = 120
)

// ErrLeft says that this node has left the cluster and beats no more. A [Sender]
// that returns it is at rest: nothing is lost, and nothing is to be told.
var ErrLeft = errors.New("this node has left the cluster")

// Sender writes beats. [cluster.Client] is one.
type Sender interface {
	Beat(ctx context.Context, b cluster.Beat, last *cluster.Beat) error
	// ClockSkew tells how far the local clock is ahead of the server's.
	ClockSkew(ctx context.Context) (skew, accuracy time.Duration, err error)
}

// Loop samples the machine at an even pace and beats into the registry. Beats
// that cannot be written are dropped, never queued.
type Loop struct {
	// ID is the row's.
	ID string
	// Interval is the time from beat to beat.
	Interval time.Duration
	// Sample looks at the machine. It must not block for long.
	Sample func(context.Context) Sample
	// Sender is nil where there is nothing to beat into: then the loop only
	// samples.
	Sender Sender
	// Serving is what a beat says of the server; nil says nothing. Wake makes a beat due
	// at once, for a change of it; nil never does.
	Serving func() *cluster.Serving
	Wake    <-chan struct{}
	// Enroll writes the node's row again after somebody removed it.
	Enroll func(context.Context) error
	// Report, if not nil, is told of each round when it ends. It runs on the
	// loop's goroutine: a loop that reports is a loop that makes progress.
	Report func(Report)
	Log    *slog.Logger
	// Rand is a number from 0 to 1; nil is a random one.
	Rand func() float64
	wall func() time.Time // this machine's clock; nil is time.Now
}

// Report is one round of the loop.
type Report struct {
	Sample Sample
	// Tried tells that a beat was sent; Err is what came of it.
	Tried   bool
	Err     error
	Latency time.Duration // of the write
	Seq     int64         // of the last beat that was written; 0: none yet
	// Dropped counts the beats that were not written since the last one that
	// was.
	Dropped int
}

// beats is the loop's memory of one run.
type beats struct {
	*Loop
	seq     int64
	sample  *Sample       // of the last round; nil before it
	last    *cluster.Beat // that the row holds; nil: not known
	sinceAt int           // beats since everything was written
	dropped int
	backOff time.Duration
	notTill time.Time
	// searching says that no server takes writes: a beat is tried before the next
	// one is due.
	searching bool
	retrying  bool      // this round is such an attempt
	warned    time.Time // when the log said last that beats are not written
	told      bool      // of this outage
	clock     *time.Duration
	clocked   time.Time // when the clocks were compared; zero: they have to be
	wallThen  time.Time // what this machine's clock said then
}

// Run beats until ctx ends. The first beat comes within one interval, at a
// moment of its own, so that nodes booted together do not beat together.
func (l *Loop) Run(ctx context.Context) {
	b := &beats{Loop: l}
	if b.Log == nil {
		b.Log = slog.New(slog.DiscardHandler)
	}
	if b.Rand == nil {
		b.Rand = rand.Float64
	}
	if b.wall == nil {
		b.wall = time.Now
	}
	if b.Interval <= 0 {
		b.Interval = cluster.DefaultInterval
	}
	due := time.Now().Add(time.Duration(b.Rand() * float64(b.Interval)))
	for {
		if !b.sleepUntil(ctx, due) {
			return
		}
		b.round(ctx)
		if ctx.Err() != nil {
			return
		}
		due = b.next(due, time.Now())
		for b.searching && b.notTill.Before(due) {
			if !b.sleepUntil(ctx, b.notTill) {
				return
			}
			b.retrying = true
			b.early(ctx) // with what the last round saw: a count that is under way goes on
			b.retrying = false
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// sleepUntil returns at t, and sends a beat on the way for each change of the server's
// service. It returns false when ctx ends.
func (b *beats) sleepUntil(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return ctx.Err() == nil
		case <-b.Wake:
			b.early(ctx)
		}
	}
}

// early sends a beat before the next one is due. The load in it is that of the last
// round: one that is measured over a moment says nothing. Where beats are not written
// now, the first one after that says everything.
func (b *beats) early(ctx context.Context) {
	if b.Sender == nil || time.Now().Before(b.notTill) {
		return
	}
	if b.sample == nil {
		b.round(ctx)
		return
	}
	b.write(ctx, *b.sample)
}

// next keeps the pace: a round that was late does not move all that follow, and
// rounds that were missed are not made up for.
func (b *beats) next(due, now time.Time) time.Time {
	due = due.Add(b.Interval)
	if due.Before(now) {
		due = now.Add(b.Interval / 2)
	}
	return due.Add(time.Duration((2*b.Rand() - 1) * jitter * float64(b.Interval)))
}

func (b *beats) round(ctx context.Context) {
	s := b.Sample(ctx)
	if ctx.Err() != nil {
		return // what was cut short tells nothing
	}
	b.sample = &s
	b.write(ctx, s)
}

// write sends a beat where one may be sent now, and reports the round.
func (b *beats) write(ctx context.Context, s Sample) {
	r := Report{Sample: s}
	now := time.Now()
	switch {
	case b.Sender == nil:
	case now.Before(b.notTill):
		b.dropped++
	default:
		r.Tried = true
		r.Err = b.send(ctx, s)
		r.Latency = time.Since(now)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(r.Err, ErrLeft) {
			r.Tried, r.Err, r.Latency = false, nil, 0
			b.searching = false // for nobody
			break
		}
		b.outcome(r.Err)
	}
	r.Seq, r.Dropped = b.seq, b.dropped
	if b.Report != nil {
		b.Report(r)
	}
}

// send writes one beat. The row being gone is mended at once: the node is alive,
// whoever removed it.
func (b *beats) send(ctx context.Context, s Sample) error {
	budget := min(max(b.Interval, leastSendTime), mostSendTime)
	last := b.last
	if b.sinceAt >= fullEvery {
		// Such a beat is not told of a new primary, whose clock may differ.
		last, b.clocked = nil, time.Time{}
	}
	b.readClock(ctx, budget/2)
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	beat := cluster.Beat{
		ID: b.ID, Seq: b.seq + 1, Load: s.Load, Sessions: s.Session,
		Interval: b.Interval, Clock: b.clock, Devices: deviceNames(s.GPUs),
	}
	if b.Serving != nil {
		beat.Serving = b.Serving()
	}
	err := b.Sender.Beat(ctx, beat, last)
	if errors.Is(err, cluster.ErrNewPrimary) {
		b.clocked = time.Time{}
		b.readClock(ctx, budget/2)
		beat.Clock, last = b.clock, nil
		err = b.Sender.Beat(ctx, beat, nil)
	}
	if errors.Is(err, cluster.ErrNoNode) && b.Enroll != nil {
		if err = b.Enroll(ctx); err == nil {
			b.Log.Warn("the registry had no row of this node any more; it registered again", "node", b.ID)
			last = nil
			err = b.Sender.Beat(ctx, beat, nil)
		}
	}
	if err != nil {
		// It may have been written or not.
		b.last = nil
		return err
	}
	if b.sinceAt++; last == nil {
		b.sinceAt = 1
	}
	b.seq++
	// What the row holds of what changes rarely: the clock only moves there in
	// steps.
	if last != nil && !cluster.ClockMoved(last.Clock, beat.Clock) {
		beat.Clock = last.Clock
	}
	b.last = &beat
	return nil
}

// readClock compares the clocks now and then, and after this machine's was set: until
// that is in the row, the server's document looks old, or a dead server's looks new.
// Where it cannot, what was known stays. It has a time of its own, so that a slow MongoDB
// gets a beat all the same.
func (b *beats) readClock(ctx context.Context, most time.Duration) {
	now, wall := time.Now(), b.wall().Round(0) // without the monotonic clock
	since, wallSince := now.Sub(b.clocked), wall.Sub(b.wallThen)
	if !b.clocked.IsZero() && since < clockEvery && !cluster.ClockMoved(&since, &wallSince) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	skew, accuracy, err := b.Sender.ClockSkew(ctx)
	if err != nil || accuracy > time.Second {
		return // a beat that follows tells what is wrong
	}
	b.clock, b.clocked, b.wallThen = &skew, now, wall
}

// outcome notes how a beat went and when to try the next one.
func (b *beats) outcome(err error) {
	if err == nil {
		if b.told {
			b.Log.Info("beats are written again", "dropped", b.dropped)
		}
		b.dropped, b.backOff, b.notTill, b.searching, b.told = 0, 0, time.Time{}, false, false
		return
	}
	if !b.retrying {
		b.dropped++
	}
	var other *cluster.OtherMachineError
	if !b.told && !errors.As(err, &other) && (b.warned.IsZero() || time.Since(b.warned) >= warnEvery) { // the sender reports that one
		b.told, b.warned = true, time.Now()
		b.Log.Warn("a beat could not be written; those that follow are dropped until MongoDB is back", "error", err)
	}
	// After a broken connection the clock may be another server's.
	b.clocked = time.Time{}
	if b.searching = mayPass(err); b.searching {
		b.backOff = min(max(2*b.backOff, minRetry), maxRetry)
	} else {
		b.backOff = min(max(2*b.backOff, b.Interval/2), mostBackOff)
	}
	// A thousand nodes see MongoDB come back at the same moment.
	b.notTill = time.Now().Add(time.Duration((0.5 + b.Rand()/2) * float64(b.backOff)))
}

// mayPass reports failures that end with an election, a restart or a lost packet:
// no server was found that takes writes. What a server refuses, it refuses longer.
func mayPass(err error) bool {
	switch cluster.KindOf(err) {
	case cluster.KindNotPrimary, cluster.KindRefused, cluster.KindUnreachable, cluster.KindLost, cluster.KindTimeout, cluster.KindDNS:
		return true
	default:
		return false
	}
}

func deviceNames(r GPUReading) []string {
	var names []string
	for _, d := range r.Devices {
		names = append(names, d.Name)
	}
	return names
}
