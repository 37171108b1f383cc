// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestEachNoticeAloneAndTwice(t *testing.T) {
	for _, c := range []struct {
		n     Notice
		state State
		stops int
	}{
		{Notice{Kind: Terminate}, StateLeft, 1},
		{Notice{Kind: Interrupt}, StateLeft, 1},
		{Notice{Kind: Ask}, StateLeft, 1},
		{Notice{Kind: Park}, StateParked, 1},
		{Notice{Kind: Reboot}, StateDraining, 0},
		{Notice{Kind: Resume}, StateActive, 0},
		{Notice{Kind: Launch}, StateActive, 0},
		{Notice{Kind: withdrawn}, StateActive, 0},
		{Notice{Kind: "what"}, StateActive, 0},
		{Notice{}, StateActive, 0},
	} {
		for _, times := range []int{1, 2, 20} {
			living(t, 0, func(t *testing.T, w *world, l *life) {
				for range times {
					l.Notice(c.n)
					tick(10 * time.Second)
				}
				if v := l.View(); v.State != c.state || w.stops != c.stops || !v.Finished() {
					t.Errorf("%q %d times: state %s, step %s, %d stops", c.n.Kind, times, v.State, v.Step, w.stops)
				}
				others := slices.DeleteFunc(slices.Clone(w.events), func(e cluster.Event) bool { return e.Kind == "drain" })
				if drains := len(w.events) - len(others); drains > 1 {
					t.Errorf("%q %d times: %d drains", c.n.Kind, times, drains)
				}
			})
		}
	}
}

func TestWithdrawn(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		l.Notice(terminate())
		l.Drain(DrainRequest{Deadline: seconds.Duration(30 * time.Minute)})
		tick(time.Minute)
		l.Notice(Notice{ID: terminate().ID, Kind: withdrawn, Source: "aws-lifecycle"})
		tick(time.Second)
		if v := l.View(); v.State != StateDraining || len(v.Hooks) != 0 {
			t.Errorf("a person wants it still: %s, hooks %v", v.State, v.Hooks)
		}
		beats := len(w.beats)
		must.OK(t, l.Undrain("root", ""))
		tick(20 * time.Minute)
		if v := l.View(); v.State != StateActive || v.CancelledBy != "root" || len(w.beats) != beats || !w.isIdle() {
			t.Errorf("%s, %d heartbeats more, file %s", v.State, len(w.beats)-beats, w.file)
		}
		// Too late.
		w.set(func(w *world) { w.viewers, w.stopTime = p(0), 10*time.Second })
		l.Notice(terminate())
		tick(3 * time.Second)
		must.Equal(t, "step", l.View().Step, StepStopping)
		l.Notice(Notice{ID: terminate().ID, Kind: withdrawn})
		l.until("done", time.Minute, isDone)
		must.Equal(t, fmt.Sprintf("completed %v", w.completed), len(w.completed), 1)
	})
}

func TestUndrainOverrulesTheCloudUntilItSaysSomethingElse(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		if err := l.Undrain("root", ""); !errors.Is(err, ErrNotDraining) {
			t.Error(err)
		}
		l.Notice(terminate())
		tick(time.Second)
		must.OK(t, l.Undrain("root", ""))
		for range 5 {
			l.Notice(terminate()) // the source still reports it
			tick(2 * time.Second)
		}
		if v := l.View(); v.State != StateActive || len(v.Dismissed) != 1 {
			t.Errorf("%s, dismissed %v", v.State, v.Dismissed)
		}
		l.kill()
		l = w.live()
		l.Notice(terminate())
		must.Equal(t, "state after a restart of the agent", l.View().State, StateActive)
		l.Notice(Notice{ID: terminate().ID, Kind: withdrawn})
		tick(time.Second)
		l.Notice(terminate())
		must.Equal(t, "state after a new notice", l.View().State, StateDraining)
		l.Undrain("root", "")
		l.Notice(spot(2 * time.Minute))
		must.Equal(t, "state after another notice", l.View().State, StateDraining)
	})
}

// A machine in service does not restore a notice of an interruption that the operator overruled.
func TestOverruledStaysSo(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		interrupt := Notice{ID: "interrupt", Source: "aws-spot", Kind: Interrupt, Deadline: time.Now().Add(time.Hour)}
		for range 2 {
			l.Notice(interrupt)
			l.Notice(park())
			must.Equal(t, "state", l.View().State, StateDraining)
			must.OK(t, l.Undrain("root", ""))
			for range 2 {
				l.kill()
				l = w.live()
				l.Notice(Notice{ID: "in-service", Source: "aws-lifecycle", Kind: Resume})
				l.Notice(interrupt)
				tick(time.Minute)
				must.Equal(t, "state after a restart of the agent", l.View().State, StateActive)
			}
			l.Notice(Notice{ID: interrupt.ID, Source: "aws-spot", Kind: withdrawn})
			tick(time.Second)
		}
		l.Notice(park())
		must.Equal(t, "state; a parking is overruled for ever", l.View().State, StateDraining)
	})
}

// TestUndrainOfARowThatDrains: the record is draining, and this node is not.
func TestUndrainOfARowThatDrains(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		tick(time.Second)
		w.record = cluster.StateDraining // by another process
		must.OK(t, l.Undrain("root", w.record))
		tick(time.Second)
		if w.record != cluster.StateActive || l.View().State != StateActive {
			t.Errorf("the record says %s; %s", w.record, l.View().State)
		}
		// A drain that began after the record was read is cancelled like any other.
		l.Notice(terminate())
		must.OK(t, l.Undrain("root", cluster.StateDraining))
		if v := l.View(); v.State != StateActive || len(v.Dismissed) != 1 {
			t.Errorf("%s, dismissed %v", v.State, v.Dismissed)
		}
	})
}

func TestOneOwnerOfTheDeadline(t *testing.T) {
	const start = instant(time.Hour)
	at := func(d time.Duration) instant { return start.Add(d) }
	ask := func(d time.Duration) notice {
		return notice{Notice: Notice{ID: requestID, Source: "drain", Kind: Ask, Who: "root"}, Received: start, Deadline: at(d)}
	}
	end := func(id string, d time.Duration) notice {
		return notice{Notice: Notice{ID: id, Source: "aws", Kind: Interrupt}, Received: start, Deadline: at(d)}
	}
	waits := func(timeout time.Duration) hook {
		return hook{Hook: Hook{Name: "h", Timeout: seconds.Duration(timeout)}, Since: start, Failing: true}
	}
	beaten := func(a hook, d time.Duration) hook { a.Extended = at(d); return a }
	heard := func(a hook) hook { a.Failing = false; return a }
	limited := func(a hook, d time.Duration) hook { a.Limit = at(d); return a }
	term := notice{Notice: Notice{ID: "t", Source: "aws-lifecycle", Kind: Terminate}, Received: start}
	for _, c := range []struct {
		name    string
		notices []notice
		hooks   []hook
		want    time.Duration
		by      string
	}{
		{"configured", []notice{term}, nil, time.Hour, "the configured deadline"},
		{"a person shortens", []notice{term, ask(10 * time.Minute)}, nil, 10 * time.Minute, "--deadline of root"},
		{"a person lengthens what is configured", []notice{ask(3 * time.Hour)}, nil, 3 * time.Hour, "--deadline of root"},
		{"the cloud shortens a person's", []notice{ask(3 * time.Hour), end("s", 2*time.Minute)}, nil, 90 * time.Second, "aws (interrupt)"},
		{"a person does not lengthen the cloud's", []notice{end("s", 2*time.Minute), ask(3 * time.Hour)}, nil, 90 * time.Second, "aws (interrupt)"},
		{"the earlier of two", []notice{end("a", 20*time.Minute), end("b", 10*time.Minute)}, nil, 9*time.Minute + 30*time.Second, "aws (interrupt)"},
		{"little time is shared", []notice{end("a", 20*time.Second)}, nil, 10 * time.Second, "aws (interrupt)"},
		{"none at all", []notice{end("a", -time.Minute)}, nil, -time.Minute, "aws (interrupt)"},
		{"a hook that lapses", []notice{term}, []hook{waits(10 * time.Minute)}, 9*time.Minute + 30*time.Second, "hook h, unless a heartbeat gets through"},
		{"a hook that is extended", []notice{term}, []hook{heard(waits(10 * time.Minute))}, time.Hour, "the configured deadline"},
		{"a short one", []notice{term}, []hook{waits(40 * time.Second)}, 30 * time.Second, "hook h, unless a heartbeat gets through"},
		{
			"a heartbeat moves it",
			[]notice{term, ask(3 * time.Hour)},
			[]hook{beaten(waits(10*time.Minute), time.Hour)},
			time.Hour + 9*time.Minute + 30*time.Second, "hook h, unless a heartbeat gets through",
		},
		{
			"not beyond a hundred timeouts",
			[]notice{term, ask(100 * time.Hour)},
			[]hook{beaten(waits(time.Minute), 99*time.Minute)},
			99*time.Minute + 30*time.Second, "hook h, which waits no longer than that",
		},
		{
			"not beyond two days",
			[]notice{term, ask(100 * time.Hour)},
			[]hook{beaten(waits(2*time.Hour), 47*time.Hour)},
			48*time.Hour - 30*time.Second, "hook h, which waits no longer than that",
		},
		{"a timeout that cannot be", []notice{term, ask(100 * time.Hour)}, []hook{heard(waits(1 << 62))}, 48*time.Hour - 30*time.Second, "hook h, which waits no longer than that"},
		{"what the cloud says itself", []notice{term}, []hook{limited(waits(time.Hour), 20*time.Minute)}, 19*time.Minute + 30*time.Second, "hook h, which waits no longer than that"},
		{
			"systemd's time",
			[]notice{ask(time.Hour), {Notice: Notice{ID: "x", Source: "systemd", Kind: Shutdown}, Received: start, Deadline: at(15 * time.Minute)}},
			nil, 15*time.Minute - time.Second, "the stop of the machine",
		},
		{
			"a cloud's time for it",
			[]notice{ask(time.Hour), {Notice: Notice{ID: "x", Source: "systemd", Kind: Shutdown, By: "the 30 s of the cloud"}, Received: start, Deadline: at(10 * time.Second)}},
			nil, 9 * time.Second, "the stop of the machine (the 30 s of the cloud)",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := state{Phase: StepDraining, Began: start, Budget: time.Hour, Notices: c.notices, Hooks: c.hooks}
			list := situation{state: &s, c: &config{Hooks: true}}.timeline()
			if got := list[0].at.Sub(start); got != c.want || list[0].by != c.by {
				t.Errorf("%s by %s, want %s by %s; %+v", got, list[0].by, c.want, c.by, list)
			}
		})
	}
}

// A second notice of any kind continues the drain: neither its start nor its deadline moves, in no step and over no restart,
// and settings that have changed since do not count.
func TestSecondNoticeMovesNoDeadline(t *testing.T) {
	kinds := []Kind{Reboot, Park, Terminate, Interrupt, Reimage, Ask, Shutdown}
	for _, first := range kinds[:len(kinds)-1] {
		for _, second := range kinds {
			for step, after := range map[Step]time.Duration{StepAnnouncing: 3 * time.Second, StepDraining: time.Minute} {
				if first != second {
					t.Run(fmt.Sprintf("%s then %s while %s", first, second, step), inBubble(0, func(t *testing.T, w *world) {
						secondNotice(t, w, first, second, step, after)
					}))
				}
			}
		}
	}
}

func secondNotice(t *testing.T, w *world, first, second Kind, step Step, after time.Duration) {
	t.Helper()
	const wait = 4 * time.Minute
	w.publishers = p(1)
	var changed atomic.Bool
	live := func() *life {
		return w.live(func(o *Options) {
			o.Balancers = func(context.Context) []string { return []string{"lb-1"} }
			o.Deadline = func() (time.Duration, bool) {
				return map[bool]time.Duration{false: wait, true: 3 * wait}[changed.Load()], true
			}
			o.Role = func() string { return map[bool]string{false: "origin", true: "edge"}[changed.Load()] }
		})
	}
	began, l := time.Now(), live()
	l.Notice(Notice{Kind: first})
	tick(after)
	want := l.View()
	changed.Store(true)
	l.Notice(Notice{Kind: second, Deadline: began.Add(100 * wait)})
	stays := func(when string) {
		t.Helper()
		if v := l.View(); !v.Begun.Equal(began) || !v.Deadline.Equal(began.Add(wait)) || v.DeadlineBy != want.DeadlineBy {
			t.Errorf("%s: begun after %s, deadline after %s by %s", when, v.Begun.Sub(began), v.Deadline.Sub(began), v.DeadlineBy)
		}
	}
	stays("the second notice")
	if v := l.View(); want.Step != step || v.Step != step || !v.Until.Equal(want.Until) {
		t.Errorf("step %s until %s, then %s until %s", want.Step, want.Until, v.Step, v.Until)
	}
	l.kill()
	tick(30 * time.Second)
	l = live()
	stays("a restart")
	tick(time.Until(began.Add(wait - time.Second)))
	must.Equal(t, "step before the deadline", l.View().Step, StepDraining)
	l.until("the deadline ends the wait for a publisher", 3*time.Second, func(v View) bool { return v.Step != StepDraining })
}

func TestLaterCopiesOfANotice(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		s := spot(10 * time.Minute)
		l.Notice(s)
		first := l.View().Deadline
		s.Deadline = s.Deadline.Add(time.Hour)
		l.Notice(s)
		if got := l.View().Deadline; got.Sub(first) != 50*time.Minute+30*time.Second { // the configured one
			t.Errorf("a later time moves the deadline from %s to %s", first, got)
		}
		s.Deadline = s.Deadline.Add(-time.Hour - 5*time.Minute)
		l.Notice(s)
		must.Equal(t, "an earlier one moves it by", first.Sub(l.View().Deadline), 5*time.Minute)
		l.Drain(DrainRequest{Deadline: seconds.Duration(time.Minute), Who: "a"})
		tick(time.Second)
		l.Drain(DrainRequest{}) // without a deadline
		must.Equal(t, "time to the deadline", time.Until(l.View().Deadline), 59*time.Second)
		l.Drain(DrainRequest{Deadline: seconds.Duration(2 * time.Minute), Who: "b"})
		must.Equal(t, "a person's second word", time.Until(l.View().Deadline), 2*time.Minute)
		// Metadata with a fraction of a second, read by a clock that is adjusted.
		s.Deadline = s.Deadline.Add(500 * time.Millisecond)
		notes := len(l.View().Notes)
		l.Notice(s)
		must.Equal(t, "notes after the same again", len(l.View().Notes), notes)
		// Another source reports a hook later.
		l.Notice(unhooked(terminate()))
		tick(time.Second)
		must.Equal(t, "hooks", len(l.View().Hooks), 0)
		l.Notice(terminate())
		l.Notice(terminate())
		tick(time.Second)
		if hooks := l.View().Hooks; len(hooks) != 1 || hooks[0].Beats != 1 {
			t.Errorf("%+v", hooks)
		}
	})
}

func TestNeverJoinedCompletesAtOnce(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.joined, w.viewers, w.record = false, p(3), cluster.StateJoining
		l := w.live()
		if err := l.Drain(DrainRequest{}); !errors.Is(err, ErrNotJoined) {
			t.Errorf("drain: %v", err)
		}
		l.Notice(terminate())
		tick(0)
		must.Equal(t, fmt.Sprintf("completed %v", w.completed), len(w.completed), 1)
		l.until("done", time.Second, isDone)
		if w.stops != 0 || w.record != cluster.StateLeft {
			t.Errorf("%d stops, record %s", w.stops, w.record)
		}
	})
}

func TestNoticeDuringTheJoin(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.joined, w.viewers, w.waitsFrom = false, p(3), time.Now().Add(time.Minute)
		l := w.live()
		l.Notice(terminate())
		l.Notice(Notice{Kind: Reboot, ID: "r", Deadline: time.Now().Add(time.Hour)})
		tick(30 * time.Second)
		if len(w.completed) != 0 || l.View().Ready {
			t.Errorf("completed %v", w.completed)
		}
		w.set(func(w *world) { w.joined = true }) // the join has ended
		l.until("draining", 2*time.Second, func(v View) bool { return v.Step == StepDraining })
		tick(40 * time.Second)
		if len(w.completed) != 0 || w.record != cluster.StateDraining {
			t.Errorf("completed %v with viewers there, record %s", w.completed, w.record)
		}
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("done", time.Minute, isDone)
		if w.cut != 0 || len(w.completed) != 1 {
			t.Errorf("cut %d, completed %v", w.cut, w.completed)
		}
	})
}

// The group terminates the machine while it joins: its hook is completed at once, because it has no sessions; the join
// succeeds, and the node drains.
func TestTakenWhileItJoins(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.joined, w.viewers = false, p(1)
		l := w.live()
		l.Notice(terminate())
		l.until("done", time.Minute, isDone)
		// The join writes the state file before it has joined.
		if err := l.Forget(true); err != nil || !isDone(l.View()) {
			t.Errorf("%v, step %s", err, l.View().Step)
		}
		w.set(func(w *world) { w.joined, w.running = true, true })
		if err := l.Forget(false); err != nil || l.View().Ready {
			t.Errorf("%v: %+v", err, l.View())
		}
		tick(20 * time.Second)
		if v := l.View(); v.Step != StepDraining || v.Notices[0].Kind != Terminate {
			t.Errorf("step %s, notices %v", v.Step, v.Notices)
		}
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("done", time.Minute, isDone)
		if len(w.completed) != 1 || w.stops != 1 || w.record != cluster.StateLeft {
			t.Errorf("completed %v, %d stops, record %s", w.completed, w.stops, w.record)
		}
	})
}

func TestNoticesAfterTheEnd(t *testing.T) {
	living(t, 0, func(t *testing.T, w *world, l *life) {
		l.Drain(DrainRequest{})
		l.until("done", time.Minute, isDone)
		if err := l.Drain(DrainRequest{}); !errors.Is(err, ErrLeft) {
			t.Error(err)
		}
		if err := l.Undrain("root", ""); !errors.Is(err, ErrTooLate) {
			t.Error(err)
		}
		// The cloud terminates the machine that the operator drained.
		for range 3 {
			l.Notice(terminate())
			tick(10 * time.Second)
		}
		if !isDone(l.View()) || len(w.completed) != 1 || w.stops != 1 {
			t.Errorf("%s, completed %v, %d stops", l.View().Step, w.completed, w.stops)
		}
		// A join does not change that, but a join after the drain for it does.
		w.set(func(w *world) { w.running = true })
		for _, joining := range []bool{true, false} {
			if err := l.Forget(joining); err != nil || l.View().Ready || isDone(l.View()) != joining {
				t.Errorf("%v: %+v", err, l.View())
			}
		}
		l.until("done", time.Minute, isDone)
		if len(w.completed) != 1 || w.stops != 2 {
			t.Errorf("completed %v, %d stops", w.completed, w.stops)
		}
		err := l.Forget(false)
		l.Settled()
		for range reportsUntilGone {
			l.report(topicGroup, nil)
		}
		if tick(time.Second); err != nil || !l.View().Ready || !w.isIdle() {
			t.Errorf("%v, file %s", err, w.file)
		}
	})
}

// Joins while the hook is being completed: the drain is forgotten only if a join has succeeded, and then when the hook is
// completed, also after a restart of the agent. Notices of a termination that came since stay in force.
func TestJoinWhileTheCloudIsTold(t *testing.T) {
	shutdown := Notice{ID: "shutdown", Source: "systemd", Kind: Shutdown}
	succeeds := func(w *world, l *life) {
		w.rejoin()
		if err := l.Forget(false); !errors.Is(err, ErrBusy) || l.View().Ready {
			w.t.Errorf("%v: %+v", err, l.View())
		}
	}
	for _, tt := range []struct {
		name    string
		join    func(*world, *life) // while the hook is being completed
		restart bool
		end     func(*world, *life) // after that
		ready   bool
		step    Step
		stops   int
	}{
		{name: "nothing", step: StepDone, stops: 1},
		{name: "a join that succeeds", ready: true, stops: 1, join: succeeds},
		{name: "a join that succeeds, and a restart of the agent", ready: true, stops: 1, join: succeeds, restart: true},
		{name: "a join that is rolled back", step: StepDone, stops: 1, join: func(_ *world, l *life) {
			_ = l.Forget(true)
			tick(time.Second)
			_ = l.Forget(false) // the state file is as before
		}},
		{name: "a join that goes on", step: StepDone, stops: 1, join: func(w *world, l *life) {
			w.set(func(w *world) { w.running, w.joinedAt = true, time.Time{} })
			_ = l.Forget(true)
		}},
		{name: "a join that ends later", ready: true, stops: 1, join: func(w *world, l *life) {
			w.set(func(w *world) { w.running, w.joinedAt = true, time.Time{} })
			_ = l.Forget(true)
		}, end: func(w *world, l *life) {
			w.rejoin()
			_ = l.Forget(false)
		}},
		{name: "a join before which the clock was set back", ready: true, stops: 1, restart: true, join: func(w *world, l *life) {
			w.set(func(w *world) { w.running, w.joinedAt = true, w.joinedAt.Add(-time.Hour) })
			_ = l.Forget(false)
		}},
		{name: "a join, and a termination", step: StepDone, stops: 2, join: func(w *world, l *life) {
			w.rejoin()
			l.Notice(Notice{ID: "spot", Source: "spot", Kind: Interrupt})
		}},
		{name: "a join, and a restart of the machine", step: StepDone, stops: 1, join: func(w *world, l *life) {
			w.rejoin()
			l.Notice(Notice{ID: "reboot", Source: "cloud", Kind: Reboot})
		}},
		{name: "a join, and a shutdown", step: StepDraining, stops: 1, join: func(w *world, l *life) {
			w.rejoin()
			w.set(func(w *world) { w.viewers = p(1) })
			shutdown.Deadline = time.Now().Add(time.Hour)
			l.Notice(shutdown)
		}},
	} {
		t.Run(tt.name, inBubble(0, func(t *testing.T, w *world) {
			w.joinedAt = time.Now().Add(-time.Hour)
			w.cloudErr = failing(errors.New("503"), opContinue)
			l := w.live()
			l.Notice(terminate())
			l.until("completing", time.Minute, func(v View) bool { return v.Step == StepCompleting })
			tick(3 * time.Second)
			if tt.join != nil {
				tt.join(w, l)
			}
			if tt.restart {
				l.kill()
				l = w.live()
			}
			tick(10 * time.Second)
			w.set(func(w *world) { w.cloudErr = nil })
			tick(20 * time.Second)
			if tt.end != nil {
				tt.end(w, l)
			}
			tick(20 * time.Second)
			if v := l.View(); v.Ready != tt.ready || v.Step != tt.step || w.stops != tt.stops {
				t.Errorf("ready %v, step %q, %d stops\n%+v", v.Ready, v.Step, w.stops, v)
			}
		}))
	}
}

// A notice that is announced for later stays in force after a drain by the operator and a join, even if it becomes due in
// between.
func TestJoinedAfterTheTimeOfAStopToCome(t *testing.T) {
	living(t, 0, func(t *testing.T, w *world, l *life) {
		l.Notice(Notice{ID: "stop", Source: "cloud", Kind: Interrupt, Deadline: time.Now().Add(2 * time.Hour)})
		tick(time.Minute)
		l.Drain(DrainRequest{})
		l.until("done", time.Minute, isDone)
		tick(time.Hour) // it has become due
		w.rejoin()
		must.OK(t, l.Forget(false))
		l.until("done", time.Minute, isDone)
		if v := l.View(); w.stops != 2 || v.Ready || !slices.ContainsFunc(v.Notices, func(n Notice) bool { return n.ID == "cloud/stop" }) {
			t.Errorf("%d stops, %+v", w.stops, v)
		}
	})
}

// The notices of the cloud that stay in force after a drain by the operator and a join.
func TestJoinedAfterADrain(t *testing.T) {
	later := Notice{ID: "stop", Kind: Interrupt, Deadline: time.Date(2000, 1, 4, 0, 0, 0, 0, time.UTC)} // a bubble begins in 2000
	for _, tt := range []struct {
		name          string
		before, since []Notice
		kept          Kind
		ready         bool
	}{
		{"nothing", nil, nil, "", true},
		{"the drain was for its end", []Notice{terminate()}, nil, "", true},
		{"its end", nil, []Notice{terminate()}, Terminate, false},
		{"its end that was withdrawn", nil, []Notice{terminate(), {ID: terminate().ID, Kind: withdrawn}}, "", true},
		{"a spot machine's end", nil, []Notice{{ID: "spot", Kind: Interrupt}}, Interrupt, false},
		{"a stop to come", []Notice{later}, nil, Interrupt, true},
		{"a parking", nil, []Notice{park()}, "", true},
		{"a restart of the machine", nil, []Notice{{ID: "reboot", Kind: Reboot}}, Reboot, false},
	} {
		t.Run(tt.name, alive(0, func(t *testing.T, w *world, l *life) {
			for _, n := range tt.before {
				l.Notice(n)
			}
			l.Drain(DrainRequest{})
			l.until("done", time.Minute, isDone)
			for _, n := range tt.since {
				l.Notice(n)
				l.until("done", time.Minute, isDone)
			}
			must.OK(t, l.Forget(false))
			v := l.View()
			kept := ""
			for _, n := range v.Notices {
				kept += string(n.Kind)
			}
			if kept != string(tt.kept) || v.Ready != tt.ready {
				t.Errorf("kept %q, ready %v, %+v", kept, v.Ready, v)
			}
		}))
	}
}

// TestUndrainRaces runs undrains at the moment at which the drain stops the server: an undrain that reports success has
// succeeded.
func TestUndrainRaces(t *testing.T) {
	won, lost := 0, 0
	for round := range 200 {
		living(t, 0, func(t *testing.T, w *world, l *life) {
			l.Notice(terminate())
			// The drain stops the server after the second count, one second after the first.
			tick(999*time.Millisecond + time.Duration(round%3)*time.Millisecond/2)
			var wg sync.WaitGroup
			var mu sync.Mutex
			undone := 0
			<-time.After(time.Second - time.Duration(999+(round%3)/2)*time.Millisecond)
			for i := range 8 {
				wg.Go(func() {
					if i%2 == 0 {
						l.Notice(terminate())
						l.View()
						return
					}
					if err := l.Undrain(fmt.Sprint("person ", i), ""); err == nil {
						mu.Lock()
						undone++
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			tick(time.Minute)
			v := l.View()
			switch {
			case undone == 1 && v.State == StateActive && w.stops == 0 && w.record == cluster.StateActive && len(w.completed) == 0:
				won++
			case undone == 0 && v.State == StateLeft && w.stops == 1 && len(w.completed) == 1:
				lost++
			default:
				t.Errorf("%d undrains succeeded; state %s, %d stops, record %s, completed %v", undone, v.State, w.stops, w.record, w.completed)
			}
		})
	}
	t.Logf("undrain won %d times, the stop %d times", won, lost)
	if won == 0 || lost == 0 {
		t.Errorf("no race: undrain won %d, lost %d", won, lost)
	}
}

func TestSubscribe(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		// Steps that take no time may be missed.
		w.viewers, w.mongoTime = p(2), time.Second
		l := w.live()
		var steps []Step
		done := make(chan struct{})
		go func() {
			defer close(done)
			for v := range l.Subscribe(t.Context()) {
				if len(steps) == 0 || steps[len(steps)-1] != v.Step {
					steps = append(steps, v.Step)
				}
				if v.Step == StepDone {
					return
				}
			}
		}()
		synctest.Wait()
		l.Notice(terminate())
		tick(time.Minute)
		w.set(func(w *world) {
			w.viewers, w.stopTime, w.mongoTime, w.cloudTime = p(0), time.Second, time.Second, time.Second
		})
		<-done
		want := []Step{StepNone, StepAnnouncing, StepDraining, StepStopping, StepDeregistering, StepCompleting, StepDone}
		must.Equal(t, "steps", fmt.Sprint(steps), fmt.Sprint(want))
	})
}

func TestNoticeWord(t *testing.T) {
	for want, n := range map[string]notice{
		"drain requested by root":              {Notice: Notice{Source: "drain", Kind: Ask, Who: "root, amsagent drain"}},
		"drain requested by root (new kernel)": {Notice: Notice{Source: "drain", Kind: Ask, Who: "root, amsagent drain", Reason: "new kernel"}},
		"drain requested":                      {Notice: Notice{Source: "drain", Kind: Ask}},
		"aws (terminate)":                      {Notice: Notice{Source: "aws", Kind: Terminate}},
		"the stop of the machine (systemd)":    {Notice: Notice{Source: "systemd", Kind: Shutdown, By: "systemd"}},
	} {
		must.Equal(t, "text", n.String(), want)
	}
}

// SQS delivers the event of a return to the pool again: EC2 stopped, or hibernated, the machine before the consumer deleted the
// message.
func TestParkEventComesLate(t *testing.T) {
	for name, tt := range map[string]struct {
		age       time.Duration // the machine was started an hour ago
		inService bool          // 20 minutes ago
		want      State
	}{
		"before this boot":            {3 * time.Hour, false, StateActive},
		"before it came into service": {30 * time.Minute, true, StateActive},
		"after that":                  {10 * time.Minute, true, StateParked},
		"no source says so":           {30 * time.Minute, false, StateParked},
		"by a clock that is ahead":    {-48 * time.Hour, false, StateParked},
	} {
		t.Run(name, alive(0, func(t *testing.T, w *world, l *life) {
			if tt.inService {
				l.report("aws-lifecycle", nil)
			}
			tick(20 * time.Minute)
			w.set(func(w *world) { w.viewers = p(0) })
			l.event(Park, time.Now().Add(-tt.age))
			tick(24 * time.Hour)
			if v := l.View(); v.State != tt.want || w.running != (tt.want == StateActive) {
				t.Errorf("state %s, record %s, server runs %t", v.State, w.record, w.running)
			}
		}))
	}
}

// Another notice of the same hook does not restart the hook's time, and the last token and machines count.
func TestHookNamedAgain(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		const granted = 5 * time.Minute // less than the timeout of the notice
		w.set(func(w *world) { w.extends = granted })
		n := terminate()
		n.Hook.Token = "first"
		l.Notice(n)
		tick(time.Second)
		w.set(func(w *world) { w.cloudErr = failing(errThrottled, opBeat) })
		tick(3 * time.Minute)
		want := l.View()
		again := *n.Hook
		again.Token, again.Others = "second", []string{"i-2"}
		l.Notice(Notice{ID: "event/terminate", Source: "event", Kind: Terminate, Hook: &again})
		v := l.View()
		if len(v.Notices) != 2 || len(v.Hooks) != 1 || v.Hooks[0].Token != "second" || len(v.Hooks[0].Others) != 1 {
			t.Errorf("%+v", v.Hooks)
		}
		if !v.Deadline.Equal(want.Deadline) || v.Deadline.Sub(want.Begun) > granted || !v.Hooks[0].Ends.Equal(want.Hooks[0].Ends) {
			t.Errorf("deadline %s, then %s by %s; the hook ends at %s, then %s", want.Deadline, v.Deadline, v.DeadlineBy, want.Hooks[0].Ends, v.Hooks[0].Ends)
		}
	})
}

// A queue delivers the event of a return from the pool again, after the machine was terminated or went into the pool again.
func TestResumeEventComesLate(t *testing.T) {
	for name, goes := range map[string]Notice{
		"it ends": {ID: cloud.GroupNotice("aws", Terminate), Source: "event", Kind: Terminate}, "it is parked": park(),
	} {
		t.Run(name, alive(1, func(t *testing.T, w *world, l *life) {
			sent := time.Now()
			tick(time.Minute)
			l.Notice(goes)
			tick(time.Minute)
			l.event(Resume, sent)
			tick(time.Minute)
			if v := l.View(); v.State != StateDraining || v.Start != "" {
				t.Errorf("%+v", v)
			}
		}))
	}
	// It does not affect later notices.
	living(t, 0, func(t *testing.T, w *world, l *life) {
		sent := time.Now()
		tick(time.Minute)
		parks := time.Now()
		tick(time.Second)
		l.event(Resume, sent)
		l.event(Park, parks)
		l.until("parked", time.Hour, func(v View) bool { return v.State == StateParked })
	})
}

// A spot machine gets no new sessions in its last minutes, even with a short deadline.
func TestSpotIsDueAtOnce(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		l := w.live(func(o *Options) { o.Deadline = fixed(10 * time.Second) })
		l.Notice(spot(2 * time.Minute))
		if v := l.View(); v.State != StateDraining || v.Ready {
			t.Errorf("state %s, ready %t", v.State, v.Ready)
		}
	})
}

// A cloud lists a reboot for a while after it, and reports which reboots a boot of the machine completes.
func TestRebootIsOver(t *testing.T) {
	for name, tt := range map[string]struct {
		at   time.Duration
		past bool
		hook *Hook
		want State
	}{
		"before this boot": {-2 * time.Hour, true, nil, StateActive},
		// A boot of the machine completes neither.
		"of the host, before this boot": {-2 * time.Hour, false, nil, StateDraining},
		"in this boot":                  {-30 * time.Minute, false, nil, StateDraining},
		"to come":                       {30 * time.Minute, false, nil, StateDraining},
		"a hook waits":                  {-2 * time.Hour, false, &Hook{Provider: "azure", Name: "Reboot e", Token: "e", Fixed: true}, StateDraining},
	} {
		t.Run(name, alive(0, func(t *testing.T, w *world, l *life) {
			l.report("aws-scheduled", []cloud.Notice{
				{ID: "aws-scheduled/e", Kind: Reboot, At: time.Now().Add(tt.at), Past: tt.past, Hook: tt.hook},
			})
			must.Equal(t, "state", l.View().State, tt.want)
		}))
	}
}
