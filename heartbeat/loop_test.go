// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
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
	"github.com/amsagent/amsagent/internal/seconds"
)

// fakeRegistry accepts or refuses heartbeats.
type fakeRegistry struct {
	mu     sync.Mutex
	beats  []sent
	fail   error
	hang   bool
	adds   func() *cluster.Serving // as the daemon does
	skew   time.Duration
	rough  time.Duration // the accuracy of the clock
	noTime error         // reading the clock fails
	clocks int
	slow   time.Duration // of each call
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
	return append([]sent(nil), f.beats...)
}

// start starts a loop in a synctest bubble.
func start(t *testing.T, f *fakeRegistry, change func(*Loop)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &Loop{
		Interval: 5 * time.Second, Sender: f,
		Sample: func(context.Context) Sample { return Sample{At: time.Now()} },
		Report: func(Report) {}, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(l)
	}
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	return func() { cancel(); <-done }
}

func TestLoopKeepsThePace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		begin := time.Now()
		stop := start(t, f, nil)
		elapse(11 * time.Minute)
		stop()
		beats := f.taken()
		if n := len(beats); n < 129 || n > 134 {
			t.Fatalf("%d heartbeats in 11 minutes at 5 s", n)
		}
		if first := beats[0].at.Sub(begin); first > 5*time.Second {
			t.Errorf("the first heartbeat came after %s", first)
		}
		for i := 1; i < len(beats); i++ {
			if gap := beats[i].at.Sub(beats[i-1].at); gap < 4500*time.Millisecond || gap > 5500*time.Millisecond {
				t.Errorf("heartbeat %d came %s after the one before", i, gap)
			}
			if beats[i].beat.Seq != beats[i-1].beat.Seq+1 {
				t.Errorf("seq %d after %d", beats[i].beat.Seq, beats[i-1].beat.Seq)
			}
		}
		if f.clocks > 13 {
			t.Errorf("the clock was read %d times in 11 minutes", f.clocks)
		}
	})
}

// A thousand loops started at one moment spread over the interval.
func TestLoopsSpreadOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buckets [5]int
		begin := time.Now()
		var stops []func()
		var all []*fakeRegistry
		for range 1000 {
			f := &fakeRegistry{}
			all = append(all, f)
			stops = append(stops, start(t, f, nil))
		}
		elapse(5 * time.Second)
		for _, stop := range stops {
			stop()
		}
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
		var last Report
		var mu sync.Mutex
		rounds := 0
		stop := start(t, f, func(l *Loop) {
			l.Report = func(r Report) { mu.Lock(); last, rounds = r, rounds+1; mu.Unlock() }
		})
		elapse(time.Minute)
		before := len(f.taken())
		f.set(func(f *fakeRegistry) { f.fail = errors.New("away") })
		elapse(10 * time.Minute)
		mu.Lock()
		if last.Dropped < 110 || last.Seq != int64(before) {
			t.Errorf("after ten minutes: %+v", last)
		}
		if rounds < 125 {
			t.Errorf("only %d rounds: sampling stopped while MongoDB is away", rounds)
		}
		mu.Unlock()
		if got := len(f.taken()); got != before {
			t.Errorf("%d heartbeats were written meanwhile", got-before)
		}
		back := time.Now()
		f.set(func(f *fakeRegistry) { f.fail = nil })
		elapse(time.Minute)
		stop()
		if last.Dropped != 0 {
			t.Errorf("%d are dropped since the last one that was written", last.Dropped)
		}
		after := f.taken()[before:]
		if len(after) == 0 {
			t.Fatal("no heartbeat after MongoDB came back")
		}
		if late := after[0].at.Sub(back); late > 6*time.Second {
			t.Errorf("the first heartbeat came %s after MongoDB", late)
		}
		if after[0].beat.Seq != int64(before)+1 {
			t.Errorf("the first heartbeat after an outage: seq %d", after[0].beat.Seq)
		}
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
			var log strings.Builder
			stop := start(t, f, func(l *Loop) { l.Log = slog.New(slog.NewTextHandler(&log, nil)) })
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
			stop()
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
		rounds := 0
		var mu sync.Mutex
		stop := start(t, f, func(l *Loop) { l.Report = func(Report) { mu.Lock(); rounds++; mu.Unlock() } })
		elapse(5 * time.Minute)
		mu.Lock()
		if rounds < 30 {
			t.Errorf("%d rounds in 5 minutes: the loop hangs with MongoDB", rounds)
		}
		mu.Unlock()
		f.set(func(f *fakeRegistry) { f.hang = false })
		elapse(30 * time.Second)
		stop()
		if len(f.taken()) == 0 {
			t.Error("no heartbeat after it came back")
		}
	})
}

// A changed clock, here or of MongoDB, is in the heartbeats within a minute, unless it cannot be read well.
func TestLoopClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{skew: 2 * time.Hour}
		stop := start(t, f, nil)
		elapse(6 * time.Second)
		f.set(func(f *fakeRegistry) { f.skew = -25 * time.Second })
		elapse(time.Minute + 6*time.Second)
		f.set(func(f *fakeRegistry) { f.noTime = errors.New("not authorized") })
		elapse(2 * time.Minute)
		f.set(func(f *fakeRegistry) { f.skew, f.rough, f.noTime = time.Minute, 3*time.Second, nil })
		elapse(2 * time.Minute)
		stop()
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
		stop := start(t, f, func(l *Loop) { l.Interval = time.Second })
		elapse(time.Minute)
		stop()
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
			defer start(t, f, func(l *Loop) {
				l.Sample = func(context.Context) Sample {
					if left := time.Until(resumes); left < pause {
						elapse(left)
					}
					return Sample{At: time.Now()}
				}
			})()
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
				if gap := beats[i].at.Sub(beats[i-1].at); gap < 4500*time.Millisecond || gap > 5500*time.Millisecond {
					t.Fatalf("%s after the pause a heartbeat came %s after the one before", beats[i].at.Sub(resumes), gap)
				}
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
		rounds := 0
		var mu sync.Mutex
		ctx, cancel := context.WithCancel(t.Context())
		l := &Loop{
			Interval: time.Second, Sample: func(context.Context) Sample { return Sample{} },
			Report: func(r Report) {
				mu.Lock()
				defer mu.Unlock()
				if rounds++; r.Tried || r.Err != nil {
					t.Errorf("a heartbeat without a registry: %+v", r)
				}
			},
		}
		done := make(chan struct{})
		go func() { defer close(done); l.Run(ctx) }()
		elapse(time.Minute)
		cancel()
		<-done
		if rounds < 55 {
			t.Errorf("%d rounds in a minute", rounds)
		}
	})
}

// elapse lets time pass in the bubble.
func elapse(d time.Duration) { <-time.After(d) }

// A node that has left is no outage: no log line, no dropped heartbeat (review real-server R10).
func TestLoopOfANodeThatLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		var out bytes.Buffer
		var last Report
		stop := start(t, f, func(l *Loop) {
			l.Log = slog.New(slog.NewTextHandler(&out, nil))
			l.Report = func(r Report) { last = r }
		})
		elapse(time.Minute)
		f.set(func(f *fakeRegistry) { f.fail = fmt.Errorf("heartbeat: %w", ErrLeft) })
		elapse(time.Minute)
		stop()
		if out.Len() > 0 || last.Tried || last.Err != nil || last.Dropped != 0 {
			t.Errorf("%+v\n%s", last, out.String())
		}
	})
}

// The node leaves right after a failed heartbeat: the loop does not retry.
func TestLoopOfANodeThatLeavesInAnElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		reports := 0
		stop := start(t, f, func(l *Loop) {
			l.Report = func(Report) {
				if reports++; reports > 1000 {
					panic("it reports without a pause")
				}
			}
		})
		elapse(time.Minute)
		f.set(func(f *fakeRegistry) {
			f.fail = &cluster.Error{Kind: cluster.KindNotPrimary, Op: "writing a heartbeat", Err: errors.New("election")}
		})
		elapse(5500 * time.Millisecond)
		f.set(func(f *fakeRegistry) { f.fail = fmt.Errorf("heartbeat: %w", ErrLeft) })
		elapse(time.Minute)
		stop()
		if reports > 60 {
			t.Errorf("%d reports in two minutes", reports)
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
		var samples, reported atomic.Int64
		stop := start(t, f, func(l *Loop) {
			f.adds, l.Wake = serving.Load, wake
			l.Sample = func(context.Context) Sample {
				cpu := int(samples.Add(1))
				return Sample{At: time.Now(), Load: cluster.Load{CPU: &cpu}}
			}
			l.Report = func(r Report) { reported.Store(r.Seq) }
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
		beats := f.taken()
		if len(beats) != len(before)+1 {
			t.Fatalf("%d heartbeats, want one more than %d", len(beats), len(before))
		}
		last := beats[len(beats)-1]
		if !last.at.Equal(at) || last.beat.Serving.Up || last.beat.Serving.Why != "LiveApp fails" ||
			samples.Load() != looks || int64(*last.beat.Load.CPU) != looks || reported.Load() != last.beat.Seq {
			t.Errorf("%+v, %d looks at the machine after %d", last, samples.Load(), looks)
		}
		elapse(10 * time.Second)
		next := f.taken()[len(beats)]
		if gap := next.at.Sub(before[len(before)-1].at); gap < 4500*time.Millisecond || gap > 5500*time.Millisecond {
			t.Errorf("the next heartbeat that was due came %s after the one before", gap)
		}

		// MongoDB is away: a triggered heartbeat is not sent, and the next one has the state of its time.
		f.set(func(f *fakeRegistry) { f.fail = errors.New("away") })
		elapse(time.Minute)
		change(&cluster.Serving{Up: true})
		f.set(func(f *fakeRegistry) { f.fail = nil })
		away := len(f.taken())
		elapse(30 * time.Second)
		stop()
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
		stop := start(t, f, func(l *Loop) {
			l.Wake, l.Interval = wake, 1000*time.Hour // the first is not due within a second
			f.adds = func() *cluster.Serving { return &cluster.Serving{Up: true} }
		})
		defer stop()
		elapse(time.Second)
		wake <- struct{}{}
		synctest.Wait()
		if b := f.taken(); len(b) != 1 || !b[0].beat.Serving.Up {
			t.Errorf("%+v", b)
		}
	})
}
