// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

func goesDown(in time.Duration) Notice {
	return Notice{ID: "shutdown", Source: "systemd", Kind: Shutdown, Reason: "the machine shuts down", Deadline: time.Now().Add(in)}
}

// For a machine that shuts down without sessions, the last count before the shutdown is enough.
func TestShutdownBelievesTheCountBefore(t *testing.T) {
	for _, c := range []struct {
		name        string
		before      cluster.Sessions
		age         time.Duration
		viewers     *int
		kind        Kind
		least, most time.Duration
	}{
		{"none before", cluster.Sessions{Publishers: p(0), Viewers: p(0)}, 4 * time.Second, p(0), Shutdown, 0, 50 * time.Millisecond},
		{"a session before", cluster.Sessions{Publishers: p(0), Viewers: p(1)}, 4 * time.Second, p(0), Shutdown, time.Second, 1100 * time.Millisecond},
		{"unknown before", cluster.Sessions{Publishers: p(0)}, 4 * time.Second, p(0), Shutdown, time.Second, 1100 * time.Millisecond},
		{"long before", cluster.Sessions{Publishers: p(0), Viewers: p(0)}, time.Minute, p(0), Shutdown, time.Second, 1100 * time.Millisecond},
		{"a session now", cluster.Sessions{Publishers: p(0), Viewers: p(0)}, 4 * time.Second, p(1), Shutdown, 11 * time.Second, 13 * time.Second},
		{"a person's drain", cluster.Sessions{Publishers: p(0), Viewers: p(0)}, 4 * time.Second, p(0), Ask, time.Second, 1100 * time.Millisecond},
	} {
		t.Run(c.name, inBubble(0, func(t *testing.T, w *world) {
			w.viewers = c.viewers
			time.AfterFunc(10*time.Second, func() { w.set(func(w *world) { w.viewers = p(0) }) })
			at := time.Now().Add(-c.age)
			l := w.live(func(o *Options) { o.Before = func() (cluster.Sessions, time.Time) { return c.before, at } })
			n := goesDown(time.Hour)
			n.Kind = c.kind
			l.Notice(n)
			between(t, "drained after", l.until("drained", time.Minute, View.Finished), c.least, c.most)
		}))
	}
}

// A shutdown does not wait long for sessions that cannot be counted.
func TestShutdownThatCannotCount(t *testing.T) {
	uncountable := func(w *world) *life {
		w.countErr = errors.New("connection refused")
		return w.live()
	}
	took := func(l *life) time.Duration {
		began := time.Now()
		<-l.ended
		return time.Since(began)
	}
	bubble(t, 0, func(t *testing.T, w *world) {
		l := uncountable(w)
		l.Notice(goesDown(15 * time.Minute))
		tick(3 * time.Second)
		must.Contain(t, "trouble", l.View().Trouble["sessions"], "2m0s at most: connection refused")
		between(t, "it waited for", took(l), 115*time.Second, 2*time.Minute)
		if v := l.View(); !v.Finished() || v.Cut != nil || !strings.Contains(v.Notes[len(v.Notes)-1].Text, "sessions could not be counted for 2m0s") {
			t.Errorf("%+v", v)
		}
	})
	// A count that hangs counts as a failed one.
	bubble(t, 0, func(t *testing.T, w *world) {
		w.countHang = true
		l := w.live()
		l.Notice(goesDown(15 * time.Minute))
		between(t, "it waited for", took(l), 2*time.Minute, 2*time.Minute+10*time.Second)
	})
	// MongoDB is away, so the publishers are unknown; there are viewers until they all leave.
	bubble(t, 3, func(t *testing.T, w *world) {
		w.publishers, w.mongoHang = nil, true
		time.AfterFunc(5*time.Minute, func() { w.set(func(w *world) { w.viewers = p(0) }) })
		l := w.live()
		l.Notice(goesDown(15 * time.Minute))
		between(t, "it waited for", took(l), 7*time.Minute, 7*time.Minute+5*time.Second)
	})
	// The deadline is earlier.
	bubble(t, 0, func(t *testing.T, w *world) {
		l := uncountable(w)
		l.Notice(goesDown(30 * time.Second))
		between(t, "it waited for", took(l), 28*time.Second, 30*time.Second)
	})
	// This does not apply to a drain: it waits for its deadline.
	bubble(t, 0, func(t *testing.T, w *world) {
		l := uncountable(w)
		must.OK(t, l.Drain(DrainRequest{Deadline: seconds.Duration(time.Hour)}))
		tick(10 * time.Minute)
		must.Equal(t, "step", l.View().Step, StepDraining)
		// The time during which sessions were unknown before the shutdown does not count.
		l.Notice(goesDown(15 * time.Minute))
		between(t, "it waited for", took(l), 2*time.Minute-time.Second, 2*time.Minute+2*time.Second)
	})
	// The count works again in time.
	bubble(t, 0, func(t *testing.T, w *world) {
		l := uncountable(w)
		l.Notice(goesDown(15 * time.Minute))
		tick(time.Minute)
		w.set(func(w *world) { w.countErr, w.viewers = nil, p(2) })
		tick(5 * time.Minute)
		if v := l.View(); v.Step != StepDraining || v.Over {
			t.Fatalf("step %s with two viewers", v.Step)
		}
		w.set(func(w *world) { w.viewers = p(0) })
		between(t, "it waited for", took(l), 0, 3*time.Second)
	})
}

// With MongoDB away and no session on the node, a shutdown takes no longer than the wait for the registry. A count of
// connections is enough for that, and not for a drain: streams by SRT have no connections.
func TestShutdownWithoutMongo(t *testing.T) {
	without := func(w *world) {
		w.mongoHang, w.countedBy, w.publishersBy = true, cluster.CountedByConnections, cluster.CountedByConnections
	}
	bubble(t, 0, func(t *testing.T, w *world) {
		without(w)
		at := time.Now()
		l := w.live(func(o *Options) {
			o.Before = func() (cluster.Sessions, time.Time) {
				return cluster.Sessions{Publishers: p(0), Viewers: p(0), By: w.countedBy, PublishersBy: w.publishersBy}, at
			}
		})
		l.Notice(goesDown(15 * time.Minute))
		<-l.ended
		between(t, "the machine waited for", time.Since(at), 0, 500*time.Millisecond)
		must.Equal(t, "the view reports the end", l.View().Finished(), true)
	})
	bubble(t, 0, func(t *testing.T, w *world) {
		without(w)
		l := w.live()
		must.OK(t, l.Drain(DrainRequest{Deadline: seconds.Duration(time.Hour)}))
		tick(10 * time.Minute)
		if v := l.View(); v.Step != StepDraining || !strings.Contains(v.Trouble["sessions"], "RTMP port") {
			t.Errorf("step %s, trouble %s", v.Step, v.Trouble["sessions"])
		}
		// MongoDB is back, and has no sessions either.
		w.set(func(w *world) { w.mongoHang, w.publishersBy = false, cluster.CountedByMongoDB })
		l.until("left", time.Minute, isDone)
	})
}

// A machine that never joined is not drained for a shutdown, and a killed daemon receives no notice of it: the hook is
// completed all the same.
func TestFinishStopWithoutShutdown(t *testing.T) {
	for name, joined := range map[string]bool{"killed": true, "never joined": false} {
		t.Run(name, inBubble(0, func(t *testing.T, w *world) {
			w.joined, w.waitsFrom = joined, time.Now().Add(5*time.Second)
			l := w.live()
			l.Notice(terminate())
			tick(time.Second)
			l.kill()
			if err := CompletePending(t.Context(), w, w, nil, nil, w.options().Log); err != nil || len(w.completed) != 0 {
				t.Errorf("before it waits: completed %v, %v", w.completed, err)
			}
			tick(5 * time.Second)
			if err := CompletePending(t.Context(), w, w, nil, nil, w.options().Log); err != nil || len(w.completed) != 1 {
				t.Errorf("completed %v, %v", w.completed, err)
			}
		}))
	}
	// The operator's drain has no hook, and the cloud is not asked for one.
	bubble(t, 0, func(t *testing.T, w *world) {
		w.cloudErr = failing(errors.New("the cloud was asked"))
		l := w.live()
		must.OK(t, l.Drain(DrainRequest{}))
		tick(500 * time.Millisecond)
		l.kill()
		must.OK(t, CompletePending(t.Context(), w, w, nil, nil, w.options().Log))
	})
}

// A cloud that does not answer does not delay a machine that has left already.
func TestShutdownWhileTheCloudIsAway(t *testing.T) {
	for name, before := range map[string]bool{"long before": true, "in the drain": false} {
		t.Run(name, inBubble(0, func(t *testing.T, w *world) {
			w.cloudErr = failing(errors.New("connection refused"))
			l := w.live()
			l.Notice(terminate())
			if before {
				tick(time.Hour)
				if v := l.View(); v.Step != StepCompleting || w.record != cluster.StateLeft {
					t.Fatalf("step %s, record %s", v.Step, w.record)
				}
			}
			began := time.Now()
			l.Notice(goesDown(15 * time.Minute))
			<-l.ended
			between(t, "the machine waited for", time.Since(began), 0, 31*time.Second)
			must.Equal(t, "the view reports the end", l.View().Finished(), true)
			w.cloudErr = nil
			if err := CompletePending(t.Context(), w, w, nil, nil, w.options().Log); err != nil || len(w.completed) != 1 {
				t.Errorf("completed %v, %v", w.completed, err)
			}
		}))
	}
}

func TestLastWord(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		word := func() *Departure {
			t.Helper()
			tomb, err := LoadDeparture(w, "boot-1")
			must.OK(t, err)
			return tomb
		}
		must.Equal(t, "without a drain", word(), nil)
		w.viewers = p(2)
		l := w.live()
		must.OK(t, l.Drain(DrainRequest{Deadline: seconds.Duration(time.Hour), Reason: "maintenance", Who: "root", RepairStreams: true}))
		l.Notice(goesDown(30 * time.Second))
		tick(5 * time.Second)
		// After a kill now, the cut sessions were not counted.
		if tomb := word(); tomb == nil || tomb.Cut != nil || tomb.Reason != "maintenance" || !tomb.RepairStreams {
			t.Errorf("in the middle: %+v", tomb)
		}
		<-l.ended
		if tomb := word(); tomb == nil || tomb.Cut == nil || *tomb.Cut != 2 || tomb.Reason != "maintenance" || !tomb.RepairStreams {
			t.Errorf("at the end: %+v", tomb)
		}
		if e := w.events[len(w.events)-1]; e.Kind != "drained" || e.Details["result"] != "the machine shuts down" || e.Cut == nil || *e.Cut != 2 {
			t.Errorf("the event: %+v", e)
		}
		if tomb, err := LoadDeparture(w, "boot-2"); err != nil || tomb != nil {
			t.Errorf("of another boot: %+v, %v", tomb, err)
		}
		// The machine did not shut down: the requested drain continues, and counts again.
		l = w.live()
		if v := l.View(); v.Step != StepDraining || v.Cut != nil {
			t.Errorf("%+v", v)
		}
	})
}
