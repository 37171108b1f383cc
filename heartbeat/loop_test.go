// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

// fakeRegistry accepts or refuses heartbeats, and keeps the reports of the loop.
type fakeRegistry struct {
	mu      sync.Mutex
	beats   []sent
	reports []Report
	fail    error
	hang    bool
	adds    func() *cluster.Serving // as the daemon does
	skew    time.Duration
	rough   time.Duration // the accuracy of the clock
	noTime  error         // reading the clock fails
	clocks  int
	slow    time.Duration // of each call
}

// wait takes the time of a call.
func (f *fakeRegistry) wait(ctx context.Context) error {
	f.mu.Lock()
	slow := f.slow
	if f.hang {
		slow = 1000 * time.Hour
	}
	f.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(slow):
		return nil
	}
}

type sent struct {
	at   time.Time
	beat cluster.Heartbeat
}

func (f *fakeRegistry) set(change func(*fakeRegistry)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeRegistry) Heartbeat(ctx context.Context, h cluster.Heartbeat) error {
	if err := f.wait(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	if f.adds != nil {
		h.Serving = f.adds()
	}
	f.beats = append(f.beats, sent{time.Now(), h})
	return nil
}

func (f *fakeRegistry) ClockSkew(ctx context.Context) (time.Duration, time.Duration, error) {
	if err := f.wait(ctx); err != nil {
		return 0, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clocks++
	if err := cmp.Or(f.noTime, f.fail); err != nil {
		return 0, 0, err
	}
	return f.skew, f.rough, nil
}

func (f *fakeRegistry) taken() []sent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.beats)
}

func (f *fakeRegistry) reported() []Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.reports)
}

// inPace reports heartbeats that are not an interval apart.
func inPace(t *testing.T, before, after sent) {
	t.Helper()
	if gap := after.at.Sub(before.at); gap < 4500*time.Millisecond || gap > 5500*time.Millisecond {
		t.Errorf("heartbeat %d came %s after the one before", after.beat.Seq, gap)
	}
}

// start starts a loop in a synctest bubble. It ends with the test.
func start(t *testing.T, f *fakeRegistry, change func(*Loop)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &Loop{
		Interval: 5 * time.Second, Sender: f,
		Sample: func(context.Context) Sample { return Sample{At: time.Now()} },
		Report: func(r Report) { f.set(func(f *fakeRegistry) { f.reports = append(f.reports, r) }) },
		Log:    slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(l)
	}
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func TestLoopKeepsThePace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		begin := time.Now()
		start(t, f, nil)
		elapse(11 * time.Minute)
		beats := f.taken()
		if n := len(beats); n < 129 || n > 134 {
			t.Fatalf("%d heartbeats in 11 minutes at 5 s", n)
		}
		if first := beats[0].at.Sub(begin); first > 5*time.Second {
			t.Errorf("the first heartbeat came after %s", first)
		}
		for i := 1; i < len(beats); i++ {
			inPace(t, beats[i-1], beats[i])
			must.Equal(t, "seq", beats[i].beat.Seq, beats[i-1].beat.Seq+1)
		}
		f.set(func(f *fakeRegistry) {
			if f.clocks > 13 {
				t.Errorf("the clock was read %d times in 11 minutes", f.clocks)
			}
		})
	})
}

// A thousand loops started at one moment spread over the interval.
func TestLoopsSpreadOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buckets [5]int
		begin := time.Now()
		var all []*fakeRegistry
		for range 1000 {
			f := &fakeRegistry{}
			all = append(all, f)
			start(t, f, nil)
		}
		elapse(5 * time.Second)
		for _, f := range all {
			if beats := f.taken(); len(beats) > 0 {
				buckets[min(int(beats[0].at.Sub(begin)/time.Second), 4)]++
			}
		}
		for second, n := range buckets {
			if n < 100 || n > 300 {
				t.Errorf("%d of 1000 first heartbeats in second %d: %v", n, second, buckets)
			}
		}
	})
}

func TestLoopMongoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		start(t, f, nil)
		elapse(time.Minute)
		before := len(f.taken())
		f.set(func(f *fakeRegistry) { f.fail = errors.New("away") })
		elapse(10 * time.Minute)
		rounds := f.reported()
		if last := rounds[len(rounds)-1]; last.Dropped < 110 || last.Seq != int64(before) {
			t.Errorf("after ten minutes: %+v", last)
		}
		if len(rounds) < 125 {
			t.Errorf("only %d rounds: sampling stopped while MongoDB is away", len(rounds))
		}
		must.Equal(t, "heartbeats written", len(f.taken()), before)
		back := time.Now()
		f.set(func(f *fakeRegistry) { f.fail = nil })
		elapse(time.Minute)
		rounds = f.reported()
		must.Equal(t, "dropped since the last one that was written", rounds[len(rounds)-1].Dropped, 0)
		after := f.taken()[before:]
		if len(after) == 0 {
			t.Fatal("no heartbeat after MongoDB came back")
		}
		if late := after[0].at.Sub(back); late > 6*time.Second {
			t.Errorf("the first heartbeat came %s after MongoDB", late)
		}
		must.Equal(t, "seq of the first one after an outage", after[0].beat.Seq, int64(before)+1)
		if len(after) > 13 {
			t.Errorf("%d heartbeats in the first minute: some were queued", len(after))
		}
	})
}

// The first heartbeat comes within seven seconds of a new primary, and the log has one line for a minute.
func TestLoopElection(t *testing.T) {
	for _, kind := range []cluster.Kind{cluster.KindNotPrimary, cluster.KindRefused, cluster.KindLost, cluster.KindTimeout} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeRegistry{}
			var log locked.Buffer
			start(t, f, func(l *Loop) { l.Log = slog.New(slog.NewTextHandler(&log, nil)) })
			elapse(time.Minute)
			for outage := range 4 {
				before := len(f.taken())
				f.set(func(f *fakeRegistry) {
					f.fail = &cluster.Error{Kind: kind, Op: "writing a heartbeat", Err: errors.New("away")}
				})
				elapse(32 * time.Second)
				f.set(func(f *fakeRegistry) { f.fail = nil })
				back := time.Now()
				elapse(10 * time.Second)
				after := f.taken()[before:]
				if len(after) == 0 {
					t.Fatalf("%s: no heartbeat after outage %d", kind, outage)
				}
				if late := after[0].at.Sub(back); late > 7*time.Second {
					t.Errorf("%s: the first heartbeat came %s after MongoDB", kind, late)
				}
				if len(after) > 4 {
					t.Errorf("%s: %d heartbeats in the first 10 s", kind, len(after))
				}
			}
			if n := strings.Count(log.String(), "level=WARN"); n < 2 || n > 3 {
				t.Errorf("%s: %d warnings in four outages of 168 s in all:\n%s", kind, n, log.String())
			}
		})
	}
}

// A write that hangs costs only the heartbeats it overlaps.
func TestLoopMongoHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{hang: true}
		start(t, f, nil)
		elapse(5 * time.Minute)
		if rounds := len(f.reported()); rounds < 30 {
			t.Errorf("%d rounds in 5 minutes: the loop hangs with MongoDB", rounds)
		}
		f.set(func(f *fakeRegistry) { f.hang = false })
		elapse(30 * time.Second)
		if len(f.taken()) == 0 {
			t.Error("no heartbeat after it came back")
		}
	})
}

// A changed clock, here or of MongoDB, is in the heartbeats within a minute, unless it cannot be read well.
func TestLoopClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{skew: 2 * time.Hour}
		start(t, f, nil)
		elapse(6 * time.Second)
		f.set(func(f *fakeRegistry) { f.skew = -25 * time.Second })
		elapse(time.Minute + 6*time.Second)
		f.set(func(f *fakeRegistry) { f.noTime = errors.New("not authorized") })
		elapse(2 * time.Minute)
		f.set(func(f *fakeRegistry) { f.skew, f.rough, f.noTime = time.Minute, 3*time.Second, nil })
		elapse(2 * time.Minute)
		beats := f.taken()
		first, last := beats[0].beat.Clock, beats[len(beats)-1].beat.Clock
		if *first != seconds.Duration(2*time.Hour) || *last != seconds.Duration(-25*time.Second) {
			t.Errorf("first %s, last %s", *first, *last)
		}
	})
}

// A MongoDB that takes 0.6 s for each call gets heartbeats, also at an interval of a second before the clocks are
// compared.
func TestLoopSlowMongo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{slow: 600 * time.Millisecond}
		start(t, f, func(l *Loop) { l.Interval = time.Second })
		elapse(time.Minute)
		if n := len(f.taken()); n < 20 {
			t.Errorf("%d heartbeats in a minute", n)
		}
	})
}

// Rounds that a paused machine missed are not made up for: there is no burst, and the nodes of a host that was paused do not
// stay in step.
func TestLoopAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pause = 10 * time.Minute
		resumes := time.Now().Add(time.Minute + pause)
		var nodes []*fakeRegistry
		for range 20 {
			f := &fakeRegistry{}
			nodes = append(nodes, f)
			start(t, f, func(l *Loop) {
				l.Sample = func(context.Context) Sample {
					if left := time.Until(resumes); left < pause {
						elapse(left)
					}
					return Sample{At: time.Now()}
				}
			})
		}
		elapse(time.Until(resumes) + 5*time.Minute)
		last := map[time.Time]bool{}
		for _, f := range nodes {
			beats := f.taken()
			i := slices.IndexFunc(beats, func(b sent) bool { return !b.at.Before(resumes) })
			if i < 8 || !beats[i].at.Equal(resumes) || len(beats) < i+55 {
				t.Fatalf("heartbeat %d of %d came %s after the pause", i, len(beats), beats[i].at.Sub(resumes))
			}
			for i += 2; i < len(beats); i++ { // one may be due at once
				inPace(t, beats[i-1], beats[i])
			}
			last[beats[len(beats)-1].at] = true
		}
		if len(last) < len(nodes)/2 {
			t.Errorf("five minutes later, %d nodes write at %d moments", len(nodes), len(last))
		}
	})
}

func TestLoopWithoutRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		start(t, f, func(l *Loop) { l.Sender, l.Interval = nil, time.Second })
		elapse(time.Minute)
		rounds := f.reported()
		if len(rounds) < 55 {
			t.Errorf("%d rounds in a minute", len(rounds))
		}
		for _, r := range rounds {
			if r.Tried || r.Err != nil {
				t.Errorf("a heartbeat without a registry: %+v", r)
			}
		}
	})
}

// elapse lets time pass in the bubble.
func elapse(d time.Duration) { <-time.After(d) }

// A node that has left is no outage: no log line, no dropped heartbeat (review real-server R10).
func TestLoopOfANodeThatLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		var log locked.Buffer
		start(t, f, func(l *Loop) { l.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		elapse(time.Minute)
		f.set(func(f *fakeRegistry) { f.fail = fmt.Errorf("heartbeat: %w", ErrLeft) })
		elapse(time.Minute)
		must.Equal(t, "log", log.String(), "")
		rounds := f.reported()
		if last := rounds[len(rounds)-1]; last.Tried || last.Err != nil || last.Dropped != 0 {
			t.Errorf("%+v", last)
		}
	})
}

// A change of the serving state is written at once, with the last round's load, and does not change the pace.
func TestWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		wake := make(chan struct{}, 1)
		var serving atomic.Pointer[cluster.Serving]
		serving.Store(&cluster.Serving{Up: true})
		var samples atomic.Int64
		start(t, f, func(l *Loop) {
			f.adds, l.Wake = serving.Load, wake
			l.Sample = func(context.Context) Sample {
				cpu := int(samples.Add(1))
				return Sample{At: time.Now(), Load: cluster.Load{CPU: &cpu}}
			}
		})
		change := func(s *cluster.Serving) time.Time {
			serving.Store(s)
			wake <- struct{}{}
			synctest.Wait()
			return time.Now()
		}
		elapse(30 * time.Second)
		before, looks := f.taken(), samples.Load()
		at := change(&cluster.Serving{Why: "LiveApp fails"})
		beats, rounds := f.taken(), f.reported()
		if len(beats) != len(before)+1 {
			t.Fatalf("%d heartbeats, want one more than %d", len(beats), len(before))
		}
		last := beats[len(beats)-1]
		if !last.at.Equal(at) || last.beat.Serving.Up || last.beat.Serving.Why != "LiveApp fails" ||
			samples.Load() != looks || int64(*last.beat.Load.CPU) != looks || rounds[len(rounds)-1].Seq != last.beat.Seq {
			t.Errorf("%+v, %d looks at the machine after %d", last, samples.Load(), looks)
		}
		elapse(10 * time.Second)
		inPace(t, before[len(before)-1], f.taken()[len(beats)]) // the next that was due

		// MongoDB is away: a triggered heartbeat is not sent, and the next one has the state of its time.
		f.set(func(f *fakeRegistry) { f.fail = errors.New("away") })
		elapse(time.Minute)
		change(&cluster.Serving{Up: true})
		f.set(func(f *fakeRegistry) { f.fail = nil })
		away := len(f.taken())
		elapse(30 * time.Second)
		if b := f.taken()[away]; !b.beat.Serving.Up {
			t.Errorf("%+v", b)
		}
	})
}

// Before the first sample, the first heartbeat comes when the service is known.
func TestWakeBeforeTheFirstHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		wake := make(chan struct{}, 1)
		start(t, f, func(l *Loop) {
			l.Wake, l.Interval = wake, 1000*time.Hour // the first is not due within a second
			f.adds = func() *cluster.Serving { return &cluster.Serving{Up: true} }
		})
		elapse(time.Second)
		wake <- struct{}{}
		synctest.Wait()
		if b := f.taken(); len(b) != 1 || !b[0].beat.Serving.Up {
			t.Errorf("%+v", b)
		}
	})
}
