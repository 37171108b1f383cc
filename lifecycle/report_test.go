// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// sky is a cloud whose metadata is read once a second.
type sky struct {
	mu      sync.Mutex
	current map[string][]cloud.Notice // by topic
	ended   bool
}

// Watch implements cloud.Watcher.
func (s *sky) Watch(ctx context.Context, report cloud.Report) {
	for {
		touch()
		s.mu.Lock()
		for topic, current := range s.current {
			report(topic, slices.Clone(current))
		}
		s.mu.Unlock()
		if !sleep.For(ctx, time.Second) {
			s.mu.Lock()
			s.ended = true
			s.mu.Unlock()
			return
		}
	}
}

// say sets the notices that are in force for a topic.
func (s *sky) say(topic string, current ...cloud.Notice) {
	touch()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		s.current = map[string][]cloud.Notice{}
	}
	s.current[topic] = current
}

// The topics of the tests are those of the clouds.
const (
	topicGroup = "aws-lifecycle"
	topicSpot  = "aws-spot"
	topicAzure = "azure-events"
	topicGCP   = "gcp-maintenance"
)

// ofGroup is a notice of the group's topic.
func ofGroup(kind Kind) cloud.Notice {
	return cloud.Notice{ID: cloud.GroupNotice("aws", kind), Kind: kind, Reason: string(kind), Who: "Auto Scaling"}
}

// interruption is a notice that can be withdrawn.
func interruption(in time.Duration) cloud.Notice {
	return cloud.Notice{ID: topicSpot + "/interrupt", Kind: Interrupt, Reason: "spot", At: time.Now().Add(in)}
}

// The result of consecutive reports on a machine with viewers, one a second.
func TestReport(t *testing.T) {
	type looks = []func(*life)
	look := func(topic string, current ...cloud.Notice) func(*life) {
		return func(l *life) { l.report(topic, current) }
	}
	times := func(n int, one func(*life)) (all looks) {
		for range n {
			all = append(all, one)
		}
		return all
	}
	is := func(want State) func(*life) {
		return func(l *life) {
			l.t.Helper()
			if v := l.View(); v.State != want || v.Ready != (want == StateActive) {
				l.t.Errorf("state %s, ready %v, want %s; notices %+v", v.State, v.Ready, want, v.Notices)
			}
		}
	}
	drains, serves := is(StateDraining), is(StateActive)
	spot := func(in time.Duration) func(*life) {
		return func(l *life) { l.report(topicSpot, []cloud.Notice{interruption(in)}) }
	}
	none := look(topicSpot)
	undrain := func(l *life) { l.t.Helper(); must.OK(l.t, l.Undrain("root", "")) }
	rejoin := func(l *life) {
		l.t.Helper()
		l.w.set(func(w *world) { w.viewers = p(0) })
		l.until("left", time.Minute, isDone)
		l.w.rejoin()
		must.OK(l.t, l.Forget(false))
		l.w.set(func(w *world) { w.viewers = p(1) })
	}
	event := func(kind Kind) func(*life) {
		return func(l *life) { l.event(kind, time.Time{}) }
	}
	reimaged := func(age time.Duration) func(*life) {
		return func(l *life) { l.event(Reimage, time.Now().Add(-age)) }
	}
	ends, parks, inService := look(topicGroup, ofGroup(Terminate)), look(topicGroup, ofGroup(Park)), look(topicGroup)
	odd := look(topicGroup, cloud.Notice{ID: topicGroup + "/unknown/Frozen", Kind: cloud.Unknown, Reason: "target state Frozen"})
	for _, tt := range []struct {
		name  string
		looks looks
	}{
		{"nothing", looks{none, none, none, none, serves}},
		{"appears", looks{none, spot(2 * time.Minute), drains, spot(2 * time.Minute), drains}},
		{"vanishes once", looks{spot(time.Minute), none, drains, spot(time.Minute), none, none, drains, spot(time.Minute), drains}},
		{"vanishes", looks{spot(time.Minute), none, none, drains, none, serves, none, serves}},
		{"vanishes and appears again", looks{spot(time.Minute), none, none, none, serves, spot(time.Minute), drains, none, none, drains, none, serves}},
		{"another topic says nothing of it", slices.Concat(looks{spot(time.Hour), spot(time.Minute)}, times(5, inService), times(5, look("aws-scheduled")), looks{drains})},
		{"a topic is no part of another", slices.Concat(looks{ends}, times(5, look("aws")), looks{drains})},
		{"past", looks{look(topicAzure, cloud.Notice{ID: topicAzure + "/1", Kind: Reboot, Past: true}), serves}},
		{"past while it drains for it", slices.Concat(
			looks{look(topicAzure, cloud.Notice{ID: topicAzure + "/1", Kind: Reboot}), drains},
			times(5, look(topicAzure, cloud.Notice{ID: topicAzure + "/1", Kind: Reboot, Past: true})),
			looks{drains}, times(3, look(topicAzure)), looks{serves},
		)},
		{"an event of a new root volume, and a cloud that does not report it", slices.Concat(
			looks{event(Reimage), drains}, times(5, inService), looks{drains},
		)},
		{"an event of a new root volume from before the boot", looks{inService, reimaged(3 * time.Hour), serves}},
		{"it is delivered again after an undrain", slices.Concat(
			looks{event(Reimage), drains, undrain, serves}, times(5, inService), looks{reimaged(time.Minute), serves, reimaged(0), drains},
		)},
		{"it is delivered again after a join", looks{event(Reimage), drains, rejoin, serves, reimaged(time.Minute), serves, reimaged(0), drains}},
		{"a standby's event comes again after a join", slices.Concat(looks{event(Park), drains, rejoin, serves, event(Park), serves}, times(3, inService), looks{serves})},
		{"postponed after an undrain", looks{
			spot(time.Minute), undrain, serves, spot(30 * time.Minute), serves, spot(2 * time.Hour), serves, spot(time.Minute), drains,
		}},
		{"unknown", slices.Concat(times(5, odd), looks{serves})},
		{"unknown in place of an end", slices.Concat(looks{ends}, times(5, odd), looks{drains}, times(2, inService), looks{drains, inService, serves})},
		{"unknown beside another", slices.Concat(looks{
			look(topicAzure, cloud.Notice{ID: topicAzure + "/1", Kind: Terminate}, cloud.Notice{ID: topicAzure + "/2", Kind: cloud.Unknown}), drains,
		}, times(3, look(topicAzure, cloud.Notice{ID: topicAzure + "/2", Kind: cloud.Unknown})), looks{serves})},
		{"unknown now", slices.Concat(
			looks{look(topicAzure, cloud.Notice{ID: topicAzure + "/1", Kind: Terminate})},
			times(5, look(topicAzure, cloud.Notice{ID: topicAzure + "/1", Kind: cloud.Unknown})), looks{drains},
		)},
		{"one of two vanishes", slices.Concat(looks{
			look(topicAzure, cloud.Notice{ID: topicAzure + "/1", Kind: Terminate}, cloud.Notice{ID: topicAzure + "/2", Kind: Interrupt}),
		}, times(5, look(topicAzure, cloud.Notice{ID: topicAzure + "/2", Kind: Interrupt})), looks{drains}, times(3, look(topicAzure)), looks{serves})},
		{"overruled", slices.Concat(looks{ends, drains, undrain, serves}, times(5, ends), looks{serves}, times(3, inService), looks{serves, ends, drains})},
		{"overruled, and missing once", slices.Concat(looks{ends, undrain, inService, inService, ends, serves, inService, inService, ends, serves})},
		{"an end in place of a standby", slices.Concat(looks{parks, drains}, times(5, ends), looks{drains}, times(3, inService), looks{serves})},
		{"a standby in place of an end", slices.Concat(looks{ends, drains}, times(5, parks), looks{drains}, times(3, inService), looks{serves})},
		{"an event, and then the metadata", slices.Concat(
			looks{inService, event(Terminate), drains, inService, inService, drains}, times(5, ends), looks{drains}, times(3, inService), looks{serves},
		)},
		{"the metadata, and then an event", slices.Concat(looks{ends, event(Terminate), ends, drains}, times(3, inService), looks{serves})},
		{"an event that the metadata never confirm", looks{inService, event(Terminate), inService, inService, drains, inService, serves}},
		{"an event without metadata", slices.Concat(looks{event(Terminate)}, times(5, none), looks{drains})},
		{"an event that comes twice after it was over", slices.Concat(looks{event(Terminate)}, times(3, inService), looks{serves, event(Terminate), drains})},
	} {
		t.Run(tt.name, alive(1, func(t *testing.T, w *world, l *life) {
			for _, do := range tt.looks {
				do(l)
				tick(time.Second)
			}
		}))
	}
}

// The node does not serve between two reports of the same notice.
func TestReportedKindChanges(t *testing.T) {
	first := func(kind Kind, h *Hook) cloud.Notice {
		return cloud.Notice{ID: topicAzure + "/1", Kind: kind, Reason: "first", Hook: h}
	}
	t.Run("while it drains", alive(1, func(t *testing.T, w *world, l *life) {
		hook := &Hook{Provider: "azure", Name: "Terminate 1", Token: "1", Fixed: true, Limit: time.Now().Add(time.Hour)}
		l.report(topicAzure, []cloud.Notice{first(Terminate, hook)})
		tick(time.Second)
		begun := l.View()
		for _, kind := range []Kind{Interrupt, Park, Terminate, Reboot, Interrupt} {
			for range 3 {
				l.report(topicAzure, []cloud.Notice{{ID: topicAzure + "/1", Kind: kind, Reason: "second"}})
				if v := l.View(); v.Step != StepDraining || v.Ready || v.Kind != kind || v.Reason != "second" || !v.Begun.Equal(begun.Begun) || !v.Deadline.Equal(begun.Deadline) {
					t.Errorf("%s: %+v", kind, v)
				}
				tick(time.Second)
			}
		}
		must.Equal(t, "the record was active (times)", len(w.times("record:active")), 0)
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("done", time.Minute, isDone)
		if len(w.completed) != 1 || w.stops != 1 {
			t.Errorf("completed %v, %d stops", w.completed, w.stops)
		}
	}))
	t.Run("when it has left", alive(0, func(t *testing.T, w *world, l *life) {
		l.report(topicAzure, []cloud.Notice{first(Terminate, nil)})
		l.until("done", time.Minute, isDone)
		l.report(topicAzure, []cloud.Notice{first(Interrupt, nil)})
		tick(time.Minute)
		if v := l.View(); v.Step != StepDone || v.State != StateLeft || w.stops != 1 {
			t.Errorf("step %s, state %s, %d stops", v.Step, v.State, w.stops)
		}
	}))
	t.Run("when it has drained for a reboot", alive(0, func(t *testing.T, w *world, l *life) {
		l.report(topicAzure, []cloud.Notice{first(Reboot, nil)})
		l.until("drained", time.Minute, isDone)
		must.Equal(t, "AMS was stopped for a reboot", w.stops, 0)
		l.report(topicAzure, []cloud.Notice{first(Interrupt, nil)})
		l.until("left", time.Minute, func(v View) bool { return isDone(v) && v.State == StateLeft })
		if w.stops != 1 || w.record != cluster.StateLeft {
			t.Errorf("%d stops, record %s", w.stops, w.record)
		}
	}))
	t.Run("from what is announced for later", alive(1, func(t *testing.T, w *world, l *life) {
		n := first(Reboot, nil)
		n.At = time.Now().Add(72 * time.Hour)
		l.report(topicAzure, []cloud.Notice{n})
		tick(time.Second)
		if v := l.View(); !v.Ready || v.NextDrain.IsZero() {
			t.Errorf("%+v", v)
		}
		n.Kind = Terminate
		l.report(topicAzure, []cloud.Notice{n})
		tick(time.Second)
		if v := l.View(); v.Step != StepDraining || v.Kind != Terminate {
			t.Errorf("%+v", v)
		}
	}))
}

// A signal that this version does not know is one event and one line of the log, however often it is reported.
func TestUnknownIsLoggedOnce(t *testing.T) {
	living(t, 0, func(t *testing.T, w *world, l *life) {
		odd := func(id, reason string) cloud.Notice {
			return cloud.Notice{ID: topicAzure + "/" + id, Kind: cloud.Unknown, Reason: reason}
		}
		for i := range 100 {
			current := []cloud.Notice{odd("1", "a Party")}
			if i%10 == 9 {
				current = append(current, odd("2", "a Parade"))
			}
			l.report(topicAzure, current)
			tick(time.Second)
		}
		must.Equal(t, "lines of the first", w.logged("a Party"), 1)
		must.Equal(t, "lines of the second", w.logged("a Parade"), 1)
		must.NoDiff(t, "events", w.events, []cluster.Event{
			{Kind: "unknown-signal", Who: topicAzure, Why: "a Party"}, {Kind: "unknown-signal", Who: topicAzure, Why: "a Parade"},
		}, cmpopts.IgnoreFields(cluster.Event{}, "ID"))
		if v := l.View(); v.UnknownSignals != 2 || len(v.Notes) != 2 || !v.Ready || len(v.Notices) != 0 || w.file != nil {
			t.Errorf("%+v", v)
		}
	})
}

// A machine of a pool serves again when three consecutive reports show it in service, each time, even if it was parked before
// this process began.
func TestParkedMachineIsInServiceAgain(t *testing.T) {
	living(t, 0, func(t *testing.T, w *world, l *life) {
		for round := range 4 {
			w.sky.say(topicGroup, ofGroup(Park))
			l.until("parked", time.Minute, func(v View) bool { return v.State == StateParked && isDone(v) })
			if w.running || w.record != cluster.StateLeft {
				t.Fatalf("round %d: running %v, record %s", round, w.running, w.record)
			}
			if round%2 == 1 {
				l.kill()
				tick(time.Minute)
				l = w.live()
				tick(5 * time.Second)
				must.Equal(t, fmt.Sprintf("round %d: state after a restart of the agent", round), l.View().State, StateParked)
			}
			// One wrong report starts nothing.
			w.sky.say(topicGroup)
			tick(1500 * time.Millisecond)
			w.sky.say(topicGroup, ofGroup(Park))
			tick(10 * time.Second)
			if v := l.View(); v.State != StateParked || v.Start != "" {
				t.Fatalf("round %d: %s, start %q", round, v.State, v.Start)
			}
			w.set(func(w *world) { w.record = cluster.StateActive })
			w.sky.say(topicGroup)
			l.until("active", time.Minute, func(v View) bool { return v.State == StateActive && v.Ready && v.Start == "" })
			if n := len(w.times("start")); n != round+1 || !w.running {
				t.Fatalf("round %d: %d starts", round, n)
			}
		}
	})
}

// A parking that the operator ended by a join stays overruled, over restarts and boots, until the group has the machine in
// service.
func TestRejoinedUntilItIsInService(t *testing.T) {
	living(t, 0, func(t *testing.T, w *world, l *life) {
		w.sky.say(topicGroup, ofGroup(Park))
		l.until("parked", time.Minute, isDone)
		w.set(func(w *world) { w.record, w.running = cluster.StateActive, true })
		must.OK(t, l.Forget(false))
		for _, boot := range []string{"boot-1", "boot-2", "boot-3"} {
			l.kill()
			w.boot = boot
			l = w.live()
			tick(time.Minute)
			if v := l.View(); !v.Ready || w.stops != 1 {
				t.Fatalf("%s: step %s, %d stops, %v", boot, v.Step, w.stops, v.Notes)
			}
		}
		w.sky.say(topicGroup)
		tick(3 * time.Second)
		w.sky.say(topicGroup, ofGroup(Park))
		l.until("parked", time.Minute, func(v View) bool { return v.State == StateParked && isDone(v) })
	})
}

// A join after a drain overrules the notices that caused it: the cloud still reports them. A new notice counts.
func TestJoinedWhileTheCloudStillSaysIt(t *testing.T) {
	for _, kind := range []Kind{Terminate, Interrupt, Reboot} {
		t.Run(string(kind), alive(0, func(t *testing.T, w *world, l *life) {
			w.sky.say(topicGroup, ofGroup(kind))
			l.until("done", time.Minute, isDone)
			w.rejoin()
			must.OK(t, l.Forget(false))
			tick(time.Minute)
			if v := l.View(); !v.Ready || len(v.Dismissed) != 1 {
				t.Errorf("ready %v, step %s, dismissed %v, %v", v.Ready, v.Step, v.Dismissed, v.Notes)
			}
			w.sky.say(topicSpot, interruption(time.Minute))
			l.until("done again", time.Minute, isDone)
		}))
	}
}

// A report that the machine is in service starts the search for a launch hook, once.
func TestLaunchHookIsLookedForOnce(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.hook, w.proveErr = launchHook(), errors.New("no document yet")
		l := w.live()
		w.sky.say(topicSpot)
		tick(time.Minute)
		must.Equal(t, "start without a word of the group", l.View().Start, "")
		w.sky.say(topicGroup)
		tick(5 * time.Minute)
		if v := l.View(); v.Start != "starting" || len(w.completed) != 0 || len(w.beats) < 5 {
			t.Errorf("start %q, completed %v, %d heartbeats", v.Start, w.completed, len(w.beats))
		}
		// An event names the same hook with its token.
		h := *launchHook()
		h.Token = "t-1"
		e := cloud.Event{InstanceID: "i-1", Kind: Launch, Hook: h}
		l.Notice(EventNotice(e, time.Now()))
		tick(time.Second)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Token != "t-1" {
			t.Errorf("hooks %+v", v.Hooks)
		}
		w.set(func(w *world) { w.proveErr = nil })
		l.until("completed", time.Minute, func(v View) bool { return v.Start == "" })
		tick(time.Hour)
		if len(w.completed) != 1 || w.completed[0] != "up CONTINUE" || len(w.times("complete?")) != 1 {
			t.Errorf("completed %v in %d tries", w.completed, len(w.times("complete?")))
		}
	})
}

// Run waits for the end of the watcher.
func TestRunWaitsForTheWatcher(t *testing.T) {
	living(t, 0, func(t *testing.T, w *world, l *life) {
		tick(time.Minute)
		l.kill()
		must.Equal(t, "the watcher has ended", w.sky.ended, true)
	})
}

// An event may name an ESS hook by its id alone; it is the hook that the API lists by name.
func TestHookNamedByItsID(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.hook = &Hook{Provider: "alibaba", Group: "asg-1", Name: "amsagent-drain", ID: "ash-1", Token: "t-1", Timeout: seconds.Duration(40 * time.Minute)}
		w.foreign = &Hook{Provider: "alibaba", Group: "asg-1", Name: "logs", ID: "ash-2", Token: "t-2"}
		asked := 0
		w.cloudErr = func(o op) error {
			if o == opDiscover {
				asked++
			}
			return nil
		}
		l := w.live()
		e := cloud.Event{
			InstanceID: "i-1", Kind: Terminate, HookWait: 6 * time.Hour,
			Hook: Hook{Provider: "alibaba", Name: "ash-1", ID: "ash-1", Token: "t-1", Others: []string{"i-2"}},
		}
		l.Runner.Notice(EventNotice(e, time.Now()))
		tick(time.Second)
		v := l.View()
		if len(v.Hooks) != 1 || v.Hooks[0].Name != "amsagent-drain" || v.Hooks[0].Group != "asg-1" || v.Hooks[0].Beats != 1 || len(v.Hooks[0].Others) != 1 || asked != 1 {
			t.Errorf("hooks %+v, asked %d times", v.Hooks, asked)
		}
		// The same event again, and an event of the other program's hook.
		l.Runner.Notice(EventNotice(e, time.Now()))
		e.Hook.Name, e.Hook.ID = "ash-2", "ash-2"
		l.Runner.Notice(EventNotice(e, time.Now()))
		tick(time.Minute)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Beats != 1 {
			t.Errorf("hooks %+v", v.Hooks)
		}
	})
}

// A hook of another program that was created after the hooks were read is not treated as this agent's.
func TestHookMadeLater(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.hook = &Hook{Provider: "aws", Group: "g", Name: "amsagent-end", Timeout: seconds.Duration(10 * time.Minute)}
		l := w.live()
		l.report(topicGroup, []cloud.Notice{ofGroup(Terminate)})
		tick(10 * time.Second)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Beats != 1 {
			t.Fatalf("hooks %+v", v.Hooks)
		}
		w.set(func(w *world) { w.foreign = &Hook{Provider: "aws", Group: "g", Name: "logs"} })
		e := cloud.Event{InstanceID: "i-1", Group: "g", Kind: Terminate, Hook: *w.foreign}
		l.Notice(EventNotice(e, time.Now()))
		tick(10 * time.Second)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Name != "amsagent-end" || len(v.Trouble) != 1 || v.Trouble["hooks"] == "" {
			t.Errorf("hooks %+v, trouble %v", v.Hooks, v.Trouble)
		}
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("done", time.Minute, isDone)
		must.NoDiff(t, "completed", w.completed, []string{"amsagent-end CONTINUE"})
	})
}

// A hook that is created after the daemon looked for a launch hook at its start counts at the next scale-in. If the API fails
// then, the query is repeated.
func TestAWSHookMadeAfterStart(t *testing.T) {
	living(t, 3, func(t *testing.T, w *world, l *life) {
		w.sky.say(topicGroup)
		tick(5 * time.Minute)
		w.set(func(w *world) {
			w.hook = &Hook{Provider: "aws", Group: "g", Name: "amsagent-terminate", Timeout: seconds.Duration(5 * time.Minute), Limit: time.Now().Add(8 * time.Hour)}
			w.cloudErr = func(op) error { return errThrottled }
		})
		w.sky.say(topicGroup, ofGroup(Terminate))
		tick(30 * time.Second)
		w.set(func(w *world) { w.cloudErr = nil })
		tick(20 * time.Minute)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Beats < 5 {
			t.Errorf("hooks %+v, trouble %v", v.Hooks, v.Trouble)
		}
	})
}

// movedHooks are the hooks of two groups. The machine is in the group that it is moved to, and waits there.
type movedHooks struct {
	mu    sync.Mutex
	group string // "" if the API does not return the group
	said  []string
}

func (f *movedHooks) Pending(_ context.Context, launching bool) ([]Hook, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.group == "":
		return nil, errThrottled
	case launching:
		return nil, nil
	}
	return []Hook{{Provider: "aws", Group: f.group, Name: "drain", Timeout: seconds.Duration(5 * time.Minute), Limit: time.Now().Add(8 * time.Hour)}}, nil
}

func (f *movedHooks) call(what string, h Hook) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.said = append(f.said, what+" "+h.Group+" "+h.Name)
	if h.Group == f.group {
		return nil
	}
	if f.group == "" {
		return cloud.ErrNotWaiting
	}
	return fmt.Errorf("%w: the instance is in group %s now", cloud.ErrMoved, f.group)
}

func (f *movedHooks) Extend(_ context.Context, h Hook) (time.Duration, error) {
	return time.Duration(h.Timeout), f.call("extend", h)
}

func (f *movedHooks) Complete(_ context.Context, h Hook) error { return f.call("complete", h) }

func (f *movedHooks) to(group string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.group = group
}

// The hook of the current group of the machine is completed, whatever a late event names.
func TestAWSMovedGroup(t *testing.T) {
	for name, event := range map[string]*Hook{
		"found":                           nil,
		"named by an event of the former": {Provider: "aws", Group: "a", Name: "drain"},
		"named by an event":               {Provider: "aws", Group: "b", Name: "drain"},
	} {
		for _, failing := range []bool{false, true} {
			t.Run(fmt.Sprint(name, failing), inBubble(0, func(t *testing.T, w *world) {
				f := &movedHooks{group: "b"}
				if failing {
					f.group = ""
				}
				w.viewers = p(3)
				l := w.live(func(o *Options) { o.Hooks = f })
				l.Notice(Notice{ID: cloud.GroupNotice("aws", Terminate), Source: topicGroup, Kind: Terminate, Received: time.Now(), Hook: event})
				tick(30 * time.Second)
				f.to("b")
				tick(20 * time.Minute)
				if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Group != "b" || v.Hooks[0].Beats < 5 {
					t.Errorf("hooks %+v, trouble %v", v.Hooks, v.Trouble)
				}
				w.set(func(w *world) { w.viewers = p(0) })
				l.until("done", time.Minute, isDone)
				if said := strings.Join(f.said, "\n"); !strings.Contains(said, "complete b drain") || strings.Contains(said, " a ") {
					t.Error(said)
				}
			}))
		}
	}
}

// The completed hook of a machine that is moved to another group while it drains is that of the new group.
func TestMovedWhileItDrains(t *testing.T) {
	bubble(t, 3, func(t *testing.T, w *world) {
		f := &movedHooks{group: "a"}
		l := w.live(func(o *Options) { o.Hooks = f })
		l.report(topicGroup, []cloud.Notice{ofGroup(Terminate)})
		tick(9 * time.Minute)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Group != "a" || v.Hooks[0].Beats < 3 {
			t.Fatalf("hooks %+v", v.Hooks)
		}
		f.to("b")
		tick(10 * time.Minute)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Group != "b" || v.Hooks[0].Beats < 3 || len(v.Trouble) != 0 {
			t.Errorf("hooks %+v, trouble %v", v.Hooks, v.Trouble)
		}
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("done", time.Minute, isDone)
		must.Equal(t, "the last call", f.said[len(f.said)-1], "complete b drain")
	})
}

// EC2 resumes a hibernated Spot machine in the same boot, and the process continues.
func TestAWSSpotHibernates(t *testing.T) {
	for name, withHook := range map[string]bool{"alone": false, "in a group with a hook": true} {
		t.Run(name, inBubble(0, func(t *testing.T, w *world) {
			if withHook {
				// It does not wait for a machine that is in service.
				w.hook, w.waitsFrom = &Hook{Provider: "aws", Group: "edge", Name: "drain", Timeout: seconds.Duration(time.Hour)}, time.Now().Add(1000*time.Hour)
			}
			l := w.live()
			hibernate := func() cloud.Notice {
				return cloud.Notice{ID: topicSpot + "/interrupt", Kind: Park, Who: "EC2 Spot", Reason: "spot interruption (hibernate)", At: time.Now()}
			}
			w.sky.say(topicSpot, hibernate())
			tick(5 * time.Minute)
			if v := l.View(); v.State != StateParked || w.record != cluster.StateLeft || w.running {
				t.Errorf("asleep: state %s, record %s, server runs %t", v.State, w.record, w.running)
			}
			w.sky.say(topicSpot)
			tick(time.Minute)
			if v := l.View(); v.State != StateActive || !w.running || len(v.Trouble) != 0 {
				t.Errorf("back: state %s, step %s, record %s, server runs %t, trouble %v", v.State, v.Step, w.record, w.running, v.Trouble)
			}
			// The same again.
			w.sky.say(topicSpot, hibernate())
			tick(time.Hour)
			if v := l.View(); v.State != StateParked || w.running {
				t.Errorf("asleep again: state %s, server runs %t", v.State, w.running)
			}
		}))
	}
}

// azureEvent is a scheduled event of this machine that waits for a completion.
func azureEvent(kind Kind, at time.Time) cloud.Notice {
	return cloud.Notice{
		ID: topicAzure + "/602d", Kind: kind, Who: "Azure (User)", Reason: "scheduled event", At: at,
		Hook: &Hook{Provider: "azure", Group: "edge", Name: string(kind) + " 602d", Token: "602d", Fixed: true, Limit: at},
	}
}

// azureMoved is the same event at another time.
func azureMoved(n cloud.Notice, at time.Time) cloud.Notice { return azureEvent(n.Kind, at) }

// azureBegun is the same event once it has begun: a termination is an interruption then, and nothing waits.
func azureBegun(n cloud.Notice) cloud.Notice {
	if n.Kind == Terminate {
		n.Kind = Interrupt
	}
	n.At, n.Hook = time.Time{}, nil
	return n
}

// TestAzureRestart: a restarted daemon reads the same document again.
func TestAzureRestart(t *testing.T) {
	t.Run("after it is done, whatever the time", alive(0, func(t *testing.T, w *world, l *life) {
		e := azureEvent(Terminate, time.Now().Add(5*time.Minute))
		w.sky.say(topicAzure, e)
		l.until("done", time.Minute, isDone)
		l.kill()
		for _, after := range []time.Duration{time.Second, 10 * time.Minute} {
			tick(after)
			w.sky.say(topicAzure, e)
			l = w.live()
			tick(20 * time.Second)
			w.sky.say(topicAzure, azureBegun(e))
			tick(20 * time.Second)
			must.Equal(t, "step", l.View().Step, StepDone)
			l.kill()
		}
		if w.stops != 1 || len(w.completed) != 1 || len(w.tombs) != 1 {
			t.Errorf("stopped %d times, completed %v, left %d times", w.stops, w.completed, len(w.tombs))
		}
	}))
	t.Run("while it drains, and the event was cancelled meanwhile", alive(1, func(t *testing.T, w *world, l *life) {
		w.sky.say(topicAzure, azureEvent(Terminate, time.Now().Add(15*time.Minute)))
		l.until("draining", time.Minute, func(v View) bool { return v.Step == StepDraining })
		l.kill()
		w.sky.current = nil // the metadata cannot be read yet
		l = w.live()
		tick(10 * time.Second)
		w.sky.say(topicAzure)
		l.until("it serves", 10*time.Second, func(v View) bool { return v.Step == StepNone })
		tick(10 * time.Second)
		if w.record != cluster.StateActive || w.stops != 0 {
			t.Errorf("record %s, stopped %d times", w.record, w.stops)
		}
	}))
	t.Run("into the boot that the event was", alive(0, func(t *testing.T, w *world, l *life) {
		e := azureEvent(Reboot, time.Now().Add(15*time.Minute))
		w.sky.say(topicAzure, e)
		l.until("done", time.Minute, isDone)
		tick(5 * time.Second)
		l.kill()
		w.set(func(w *world) {
			if len(w.completed) != 1 || w.stops != 0 {
				t.Errorf("completed %v, stopped %d times", w.completed, w.stops)
			}
			w.boot, w.gone = "boot-2", false
		})
		e = azureBegun(e)
		e.Past = true
		w.sky.say(topicAzure, e)
		l = w.live()
		tick(time.Minute)
		if v := l.View(); v.Step != StepNone || !v.Ready {
			t.Errorf("after the boot: step %s, notes %v", v.Step, v.Notes)
		}
	}))
}

// TestAzureMoves: an event whose time is changed, to either side, keeps the node draining.
func TestAzureMoves(t *testing.T) {
	for _, by := range []time.Duration{10 * time.Minute, -2 * time.Minute} {
		living(t, 1, func(t *testing.T, w *world, l *life) {
			at := time.Now().Add(15 * time.Minute)
			e := azureEvent(Terminate, at)
			w.sky.say(topicAzure, e)
			l.until("draining", time.Minute, func(v View) bool { return v.Step == StepDraining })
			moved := azureMoved(e, at.Add(by))
			w.sky.say(topicAzure, moved)
			for range 60 {
				tick(100 * time.Millisecond)
				if v := l.View(); v.Step != StepDraining || v.Ready {
					t.Fatalf("moved by %s: step %s, ready %v", by, v.Step, v.Ready)
				}
			}
			if v := l.View(); v.Deadline.After(moved.At) || v.Deadline.Before(moved.At.Add(-time.Minute)) {
				t.Errorf("moved by %s: the deadline is %s, of an event at %s", by, v.Deadline, moved.At)
			}
			// The next daemon notices a change while no daemon runs.
			l.kill()
			moved = azureMoved(moved, moved.At.Add(by))
			w.sky.say(topicAzure, moved)
			l = w.live()
			tick(time.Second)
			if v := l.View(); v.Step != StepDraining || v.Deadline.After(moved.At) || v.Deadline.Before(moved.At.Add(-time.Minute)) {
				t.Errorf("after a restart: step %s, deadline %s", v.Step, v.Deadline)
			}
		})
	}
}

// TestAzurePutOffFar: a node whose reboot is postponed by hours serves until then; a node whose termination is postponed does
// not.
func TestAzurePutOffFar(t *testing.T) {
	for kind, serves := range map[Kind]bool{Reboot: true, Terminate: false} {
		living(t, 1, func(t *testing.T, w *world, l *life) {
			e := azureEvent(kind, time.Now().Add(10*time.Minute))
			w.sky.say(topicAzure, e)
			l.until("draining", time.Minute, func(v View) bool { return v.Step == StepDraining })
			w.sky.say(topicAzure, azureMoved(e, e.At.Add(6*time.Hour)))
			tick(time.Minute)
			must.Equal(t, fmt.Sprint(kind, ": ready"), l.View().Ready, serves)
			tick(6 * time.Hour)
			must.Equal(t, fmt.Sprint(kind, ": ready when its time has come"), l.View().Ready, false)
		})
	}
}

// withoutHooks is a cloud without hooks.
func withoutHooks(o *Options) { o.Hooks = nil }

// A machine on Google Cloud is preempted, and its power button reports that, too; both notices share the 30 s, and the viewers
// are cut before the end.
func TestGCPPreemption(t *testing.T) {
	const topic = "gcp-preempted"
	bubble(t, 1, func(t *testing.T, w *world) {
		l := w.live(withoutHooks)
		preempted := func() cloud.Notice {
			return cloud.Notice{ID: topic + "/interrupt", Kind: Interrupt, Who: "Google Cloud", Reason: "preemption of a Spot VM", At: time.Now().Add(30 * time.Second)}
		}
		w.sky.say(topic)
		tick(time.Second)
		must.Equal(t, "step of a quiet machine", l.View().Step, StepNone)
		// Withdrawn in time.
		w.sky.say(topic, preempted())
		tick(3 * time.Second)
		must.Equal(t, "step", l.View().Step, StepDraining)
		w.sky.say(topic)
		tick(3 * time.Second)
		if v := l.View(); v.Step != StepNone || w.record != cluster.StateActive {
			t.Fatalf("withdrawn: step %s, record %s", v.Step, w.record)
		}
		begun := time.Now()
		w.sky.say(topic, preempted())
		tick(2 * time.Second)
		n := goesDown(10 * time.Second)
		n.By = "the 30 s that Google Cloud gives a Spot VM"
		l.Notice(n)
		tick(time.Second)
		v := l.View()
		if len(v.Timeline) < 2 || v.Timeline[0].By != "the stop of the machine (the 30 s that Google Cloud gives a Spot VM)" || !v.Timeline[0].Decides {
			t.Errorf("%+v", v.Timeline)
		}
		<-l.ended
		between(t, "it waited for", time.Since(begun), 10*time.Second, 12*time.Second)
		tomb, err := LoadDeparture(w, "boot-1")
		if err != nil || tomb == nil || tomb.Cut == nil || *tomb.Cut != 1 || tomb.Reason != "preemption of a Spot VM" {
			t.Errorf("%+v, %v", tomb, err)
		}
	})
}

// maintenance is a notice of host maintenance.
func maintenance(at time.Time) cloud.Notice {
	return cloud.Notice{ID: topicGCP + "/reboot", Kind: Reboot, Who: "Google Cloud", Reason: "host maintenance", At: at}
}

// A node that drains for a maintenance serves again if the maintenance is postponed by a long time, but not if it is postponed
// by minutes.
func TestGCPMaintenancePutOff(t *testing.T) {
	for by, again := range map[time.Duration]bool{7 * 24 * time.Hour: true, 10 * time.Minute: false} {
		for sessions, step := range map[int]Step{1: StepDraining, 0: StepDone} {
			t.Run(by.String()+", "+string(step), inBubble(0, func(t *testing.T, w *world) {
				w.publishers, w.viewers = &sessions, &sessions
				l := w.live(withoutHooks)
				at := time.Now().Add(2 * time.Minute)
				w.sky.say(topicGCP, maintenance(at))
				tick(5 * time.Second)
				must.Equal(t, "step for a maintenance that is near", l.View().Step, step)
				at = at.Add(by)
				w.sky.say(topicGCP, maintenance(at))
				tick(5 * time.Second)
				v := l.View()
				if again != (v.Step == StepNone && v.Ready) || again && v.NextDrain.Before(at.Add(-4*time.Hour)) {
					t.Errorf("step %s, ready %v, next drain %s", v.Step, v.Ready, v.NextDrain)
				}
			}))
		}
	}
}

// A maintenance whose date changes, to either side, begins at the new date, even if no agent ran at the change.
func TestGCPMaintenanceMoves(t *testing.T) {
	for name, restarted := range map[string]bool{"at once": false, "while the agent was away": true} {
		for _, by := range []time.Duration{time.Hour, -time.Hour} {
			t.Run(name+", by "+by.String(), inBubble(0, func(t *testing.T, w *world) {
				l := w.live(withoutHooks)
				at := time.Now().Add(5 * time.Hour)
				w.sky.say(topicGCP, maintenance(at))
				tick(time.Second)
				before := l.View().NextDrain
				if before.IsZero() || before.After(at) {
					t.Fatalf("a drain at %s for a maintenance at %s", before, at)
				}
				if restarted {
					l.kill()
					w.sky.say(topicGCP, maintenance(at.Add(by)))
					l = w.live(withoutHooks)
				}
				w.sky.say(topicGCP, maintenance(at.Add(by)))
				tick(time.Second)
				if after := l.View().NextDrain; after.Sub(before).Round(time.Second) != by {
					t.Errorf("the drain was at %s and is at %s", before, after)
				}
				w.sky.say(topicGCP)
				tick(3 * time.Second)
				if v := l.View(); !v.NextDrain.IsZero() || v.Step != StepNone {
					t.Errorf("withdrawn: %+v", v)
				}
			}))
		}
	}
}

// TestCountedDeadline: a process that began later counts a window again, and the deadline stays.
func TestCountedDeadline(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		begin := time.Now()
		for _, tt := range []struct {
			at      time.Duration // from the beginning
			counted bool
			want    time.Duration
		}{{60 * time.Second, true, 60 * time.Second}, {75 * time.Second, true, 60 * time.Second}, {50 * time.Second, true, 60 * time.Second}, {90 * time.Second, false, 90 * time.Second}} {
			n := interruption(0)
			n.At, n.Counted = begin.Add(tt.at), tt.counted
			l.report(topicSpot, []cloud.Notice{n})
			tick(time.Second)
			if v := l.View(); len(v.Notices) != 1 || !v.Notices[0].Deadline.Equal(begin.Add(tt.want)) {
				t.Errorf("at %s: %+v, want %s", tt.at, v.Notices, tt.want)
			}
		}
	})
}
