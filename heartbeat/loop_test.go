// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// fakeRegistry takes beats, or does not, as the test says.
type fakeRegistry struct {
	mu    sync.Mutex
	beats []sent
	fail  error
	hang  bool
	gone  bool
	// elected is told of in the next beat that is no full one.
	elected bool
	skew    time.Duration
	clocks  int
	slow    time.Duration // of each call
}

// wait is as long as a call takes.
func (f *fakeRegistry) wait(ctx context.Context) error {
	f.mu.Lock()
	slow := f.slow
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
	beat cluster.Beat
	full bool
}

func (f *fakeRegistry) set(change func(*fakeRegistry)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeRegistry) Beat(ctx context.Context, b cluster.Beat, last *cluster.Beat) error {
	if err := f.wait(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	hang := f.hang
	f.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	if f.gone {
		return fmt.Errorf("writing a beat: %w", cluster.ErrNoNode)
	}
	f.beats = append(f.beats, sent{time.Now(), b, last == nil})
	if f.elected && last != nil {
		f.elected = false
		return cluster.ErrNewPrimary
	}
	return nil
}

func (f *fakeRegistry) ClockSkew(ctx context.Context) (time.Duration, time.Duration, error) {
	if err := f.wait(ctx); err != nil {
		return 0, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clocks++
	return f.skew, time.Millisecond, f.fail
}

func (f *fakeRegistry) taken() []sent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]sent(nil), f.beats...)
}

// run starts a loop in a bubble of its own clock.
func run(t *testing.T, f *fakeRegistry, change func(*Loop)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &Loop{
		ID: "i-1", Interval: 5 * time.Second, Sender: f,
		Sample: func(context.Context) Sample { return Sample{At: time.Now()} },
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
		start := time.Now()
		stop := run(t, f, nil)
		elapse(11 * time.Minute)
		stop()
		beats := f.taken()
		if n := len(beats); n < 129 || n > 134 {
			t.Fatalf("%d beats in 11 minutes at 5 s", n)
		}
		if first := beats[0].at.Sub(start); first > 5*time.Second {
			t.Errorf("the first beat came after %s", first)
		}
		for i := 1; i < len(beats); i++ {
			if gap := beats[i].at.Sub(beats[i-1].at); gap < 4500*time.Millisecond || gap > 5500*time.Millisecond {
				t.Errorf("beat %d came %s after the one before", i, gap)
			}
			if beats[i].beat.Seq != beats[i-1].beat.Seq+1 {
				t.Errorf("seq %d after %d", beats[i].beat.Seq, beats[i-1].beat.Seq)
			}
		}
		if !beats[0].full || beats[1].full {
			t.Error("the first beat writes all, the second does not")
		}
		if !beats[fullEvery].full {
			t.Errorf("beat %d does not write all", fullEvery)
		}
		if f.clocks > 4 {
			t.Errorf("the clock was read %d times in 11 minutes", f.clocks)
		}
	})
}

// A thousand loops started at one moment spread over the interval.
func TestLoopsSpreadOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buckets [5]int
		start := time.Now()
		var stops []func()
		var all []*fakeRegistry
		for range 1000 {
			f := &fakeRegistry{}
			all = append(all, f)
			stops = append(stops, run(t, f, nil))
		}
		elapse(5 * time.Second)
		for _, stop := range stops {
			stop()
		}
		for _, f := range all {
			if beats := f.taken(); len(beats) > 0 {
				buckets[min(int(beats[0].at.Sub(start)/time.Second), 4)]++
			}
		}
		for second, n := range buckets {
			if n < 100 || n > 300 {
				t.Errorf("%d of 1000 first beats in second %d: %v", n, second, buckets)
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
		stop := run(t, f, func(l *Loop) {
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
			t.Errorf("%d beats were written meanwhile", got-before)
		}
		back := time.Now()
		f.set(func(f *fakeRegistry) { f.fail = nil })
		elapse(time.Minute)
		stop()
		after := f.taken()[before:]
		if len(after) == 0 {
			t.Fatal("no beat after MongoDB came back")
		}
		if late := after[0].at.Sub(back); late > mostBackOff+6*time.Second {
			t.Errorf("the first beat came %s after MongoDB", late)
		}
		if !after[0].full || after[0].beat.Seq != int64(before)+1 {
			t.Errorf("the first beat after an outage: full %v, seq %d", after[0].full, after[0].beat.Seq)
		}
		if len(after) > 13 {
			t.Errorf("%d beats in the first minute: some were queued", len(after))
		}
	})
}

// While no server takes writes, a beat is tried every second, so that the first one
// comes within two seconds of a new primary, at an interval of five; the pace stays,
// and the log has one line.
func TestLoopElection(t *testing.T) {
	for _, kind := range []cluster.Kind{cluster.KindNotPrimary, cluster.KindRefused, cluster.KindLost, cluster.KindTimeout} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeRegistry{}
			var log strings.Builder
			var last Report
			var mu sync.Mutex
			stop := run(t, f, func(l *Loop) {
				l.Log = slog.New(slog.NewTextHandler(&log, nil))
				l.Report = func(r Report) { mu.Lock(); last = r; mu.Unlock() }
			})
			elapse(time.Minute)
			for outage := range 4 {
				before := len(f.taken())
				f.set(func(f *fakeRegistry) {
					f.fail = &cluster.Error{Kind: kind, Op: "writing a beat", Err: errors.New("away")}
				})
				elapse(32 * time.Second)
				mu.Lock()
				if last.Dropped > 8 {
					t.Errorf("%s: %d beats dropped in 32 s: attempts in between are none", kind, last.Dropped)
				}
				mu.Unlock()
				f.set(func(f *fakeRegistry) { f.fail = nil })
				back := time.Now()
				elapse(10 * time.Second)
				after := f.taken()[before:]
				if len(after) == 0 {
					t.Fatalf("%s: no beat after outage %d", kind, outage)
				}
				if late := after[0].at.Sub(back); late > 2*time.Second || !after[0].full {
					t.Errorf("%s: the first beat came %s after MongoDB; full %v", kind, late, after[0].full)
				}
				if len(after) > 4 {
					t.Errorf("%s: %d beats in the first 10 s", kind, len(after))
				}
			}
			stop()
			if n := strings.Count(log.String(), "level=WARN"); n < 2 || n > 4 {
				t.Errorf("%s: %d warnings in four outages of 168 s in all:\n%s", kind, n, log.String())
			}
		})
	}
}

// A write that hangs costs the beats it covers, and no more.
func TestLoopMongoHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{hang: true}
		rounds := 0
		var mu sync.Mutex
		stop := run(t, f, func(l *Loop) { l.Report = func(Report) { mu.Lock(); rounds++; mu.Unlock() } })
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
			t.Error("no beat after it came back")
		}
	})
}

func TestLoopRegistersAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		enrolled := 0
		stop := run(t, f, func(l *Loop) {
			l.Enroll = func(context.Context) error { enrolled++; f.set(func(f *fakeRegistry) { f.gone = false }); return nil }
		})
		elapse(20 * time.Second)
		f.set(func(f *fakeRegistry) { f.gone = true })
		elapse(20 * time.Second)
		stop()
		if enrolled != 1 {
			t.Fatalf("registered %d times", enrolled)
		}
		full := 0
		for _, b := range f.taken() {
			if b.full {
				full++
			}
		}
		if full != 2 {
			t.Errorf("%d full beats; the first after registering has to be one", full)
		}
	})
}

func TestLoopTellsTheClockInSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{skew: 10 * time.Minute}
		stop := run(t, f, nil)
		elapse(time.Minute)
		f.set(func(f *fakeRegistry) { f.skew += 100 * time.Millisecond })
		elapse(2 * clockEvery)
		stop()
		beats := f.taken()
		for _, b := range beats {
			if b.beat.Clock == nil || *b.beat.Clock < 10*time.Minute {
				t.Fatalf("clock %v", b.beat.Clock)
			}
		}
	})
}

// A machine whose clock is set while it beats says so in the next beat. Until then its
// server looks silent to the others, or, where the clock was set forward, a dead one alive.
func TestLoopClockIsSet(t *testing.T) {
	for _, step := range []time.Duration{-2 * time.Hour, 25 * time.Second, -600 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeRegistry{skew: 2 * time.Hour}
			var off atomic.Int64
			stop := run(t, f, func(l *Loop) {
				l.wall = func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
			})
			elapse(time.Minute)
			set := func(step time.Duration) {
				off.Add(int64(step))
				f.set(func(f *fakeRegistry) { f.skew += step })
			}
			set(step)
			elapse(6 * time.Second)
			beats := f.taken()
			if got, want := *beats[len(beats)-1].beat.Clock, 2*time.Hour+step; got != want {
				t.Errorf("set by %s: the beat after that says %s, want %s", step, got, want)
			}
			if f.clocks != 2 {
				t.Errorf("set by %s: the clock was read %d times", step, f.clocks)
			}
			// What is less than a beat tells costs no call.
			set(100 * time.Millisecond)
			elapse(time.Minute)
			stop()
			if f.clocks != 2 {
				t.Errorf("the clock was read %d times", f.clocks)
			}
		})
	}
}

// A new primary is given everything, with the difference to its own clock.
func TestLoopNewPrimary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		stop := run(t, f, nil)
		elapse(time.Minute)
		f.set(func(f *fakeRegistry) { f.elected, f.skew = true, 25*time.Second })
		elapse(6 * time.Second)
		stop()
		full := 0
		for _, b := range f.taken()[1:] {
			if !b.full {
				continue
			}
			if full++; *b.beat.Clock != 25*time.Second {
				t.Errorf("the beat after the election says %s", b.beat.Clock)
			}
		}
		if full != 1 {
			t.Errorf("%d full beats after an election", full)
		}
	})
}

// A MongoDB that takes 0.6 s for each call gets beats, also of a node that beats each second and
// has not been able to compare the clocks.
func TestLoopSlowMongo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{slow: 600 * time.Millisecond}
		stop := run(t, f, func(l *Loop) { l.Interval = time.Second })
		elapse(time.Minute)
		stop()
		if n := len(f.taken()); n < 20 {
			t.Errorf("%d beats in a minute", n)
		}
	})
}

// A beat that is a full one by its turn is not told of a new primary.
func TestLoopFullBeatReadsTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		stop := run(t, f, func(l *Loop) { l.Interval = 3 * time.Second })
		elapse(clockEvery + 30*time.Second) // the clock was read by its own turn
		f.set(func(f *fakeRegistry) { f.skew = 25 * time.Second })
		elapse(time.Minute)
		stop()
		if b := f.taken()[fullEvery]; !b.full || *b.beat.Clock != 25*time.Second {
			t.Errorf("full %v, clock %s", b.full, b.beat.Clock)
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
					t.Errorf("a beat without a registry: %+v", r)
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

// elapse lets time pass by the bubble's own clock.
func elapse(d time.Duration) { <-time.After(d) }

// A node that has left is no outage: no line speaks of MongoDB, and nothing counts
// as dropped (review real-server R10).
func TestLoopOfANodeThatLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		var out bytes.Buffer
		var last Report
		stop := run(t, f, func(l *Loop) {
			l.Log = slog.New(slog.NewTextHandler(&out, nil))
			l.Report = func(r Report) { last = r }
		})
		elapse(time.Minute)
		f.set(func(f *fakeRegistry) { f.fail = fmt.Errorf("beating: %w", ErrLeft) })
		elapse(time.Minute)
		stop()
		if out.Len() > 0 || last.Tried || last.Err != nil || last.Dropped != 0 {
			t.Errorf("%+v\n%s", last, out.String())
		}
	})
}

// The node leaves in the moment after a beat that no server took: nobody goes on looking for one.
func TestLoopOfANodeThatLeavesInAnElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		reports := 0
		stop := run(t, f, func(l *Loop) {
			l.Report = func(Report) {
				if reports++; reports > 1000 {
					panic("it reports without a pause")
				}
			}
		})
		elapse(time.Minute)
		f.set(func(f *fakeRegistry) {
			f.fail = &cluster.Error{Kind: cluster.KindNotPrimary, Op: "writing a beat", Err: errors.New("election")}
		})
		elapse(5500 * time.Millisecond)
		f.set(func(f *fakeRegistry) { f.fail = fmt.Errorf("beating: %w", ErrLeft) })
		elapse(time.Minute)
		stop()
		if reports > 60 {
			t.Errorf("%d reports in two minutes", reports)
		}
	})
}

// A change of what viewers get is written at once, with the load of the last round, and
// the pace of the beats stays.
func TestWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		wake := make(chan struct{}, 1)
		var serving atomic.Pointer[cluster.Serving]
		serving.Store(&cluster.Serving{Up: true})
		var samples, reported atomic.Int64
		stop := run(t, f, func(l *Loop) {
			l.Serving, l.Wake = serving.Load, wake
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
			t.Fatalf("%d beats, want one more than %d", len(beats), len(before))
		}
		last := beats[len(beats)-1]
		if !last.at.Equal(at) || last.beat.Serving.Up || last.beat.Serving.Why != "LiveApp fails" || last.full ||
			samples.Load() != looks || int64(*last.beat.CPU) != looks || reported.Load() != last.beat.Seq {
			t.Errorf("%+v, %d looks at the machine after %d", last, samples.Load(), looks)
		}
		elapse(10 * time.Second)
		next := f.taken()[len(beats)]
		if gap := next.at.Sub(before[len(before)-1].at); gap < 4500*time.Millisecond || gap > 5500*time.Millisecond {
			t.Errorf("the next beat that was due came %s after the one before", gap)
		}

		// MongoDB is away: one that is asked for then is not tried, and the first one after
		// that says what is true by then.
		f.set(func(f *fakeRegistry) { f.fail = errors.New("away") })
		elapse(time.Minute)
		change(&cluster.Serving{Up: true})
		f.set(func(f *fakeRegistry) { f.fail = nil })
		away := len(f.taken())
		elapse(30 * time.Second)
		stop()
		if b := f.taken()[away]; !b.full || !b.beat.Serving.Up {
			t.Errorf("%+v", b)
		}
	})
}

// Where nothing was sampled yet, the first beat comes when the service is known.
func TestWakeBeforeTheFirstBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRegistry{}
		wake := make(chan struct{}, 1)
		stop := run(t, f, func(l *Loop) {
			l.Wake, l.Rand = wake, func() float64 { return 0.9 }
			l.Serving = func() *cluster.Serving { return &cluster.Serving{Up: true} }
		})
		defer stop()
		elapse(time.Second)
		wake <- struct{}{}
		synctest.Wait()
		if b := f.taken(); len(b) != 1 || !b[0].full || !b[0].beat.Serving.Up {
			t.Errorf("%+v", b)
		}
	})
}
