// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func park() Notice { n := terminate(); n.ID, n.Kind, n.Reason = "pool", Park, "warm pool"; return n }

func launchHook() *Hook {
	return &Hook{Provider: "aws", Group: "edge", Name: "up", Launching: true, Timeout: seconds.Duration(2 * time.Minute)}
}

func TestParkAndResume(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		for round := range 3 {
			l.Notice(park())
			tick(time.Minute)
			if v := l.View(); v.State != StateDraining || v.Ready {
				t.Fatalf("round %d: %s", round, v.State)
			}
			w.set(func(w *world) { w.viewers = p(0) })
			l.until("parked", time.Minute, func(v View) bool { return v.State == StateParked && isDone(v) })
			if w.running || w.record != cluster.StateLeft || len(w.completed) != round*2+1 {
				t.Fatalf("round %d: running %v, record %s, completed %v", round, w.running, w.record, w.completed)
			}
			l.Notice(park()) // the source still reports it
			l.kill()
			tick(time.Minute)
			l = w.live()
			if v := l.View(); v.State != StateParked || v.Ready {
				t.Fatalf("round %d: after a restart of the agent %s", round, v.State)
			}
			w.set(func(w *world) {
				w.gone, w.viewers, w.hook = false, p(1), launchHook()
				w.proveErr = errors.New("no document yet")
			})
			l.Notice(Notice{ID: "pool", Source: "aws-lifecycle", Kind: withdrawn})
			tick(3 * time.Minute)
			if v := l.View(); v.State != StateResuming || v.Ready || !w.running || len(w.beats) == 0 {
				t.Fatalf("round %d: resuming: %s running %v, %d heartbeats", round, v.State, w.running, len(w.beats))
			}
			w.set(func(w *world) { w.proveErr = nil; w.record = cluster.StateActive })
			l.until("active", 20*time.Second, func(v View) bool { return v.State == StateActive && v.Ready && v.Start == "" })
			must.Equal(t, fmt.Sprintf("round %d: the last of %v", round, w.completed), w.completed[len(w.completed)-1], "up CONTINUE")
			l.Settled()
			tick(time.Second)
			must.Equal(t, fmt.Sprintf("round %d: idle with %s", round, w.file), w.isIdle(), true)
			w.set(func(w *world) { w.gone, w.hook = false, nil })
			tick(time.Minute)
			must.Equal(t, fmt.Sprintf("round %d: record", round), w.record, cluster.StateActive)
		}
	})
}

// A termination after a parking may have a hook even if the parking had none.
func TestHookOfTheEndAfterAParking(t *testing.T) {
	living(t, 0, func(t *testing.T, w *world, l *life) {
		for _, n := range []Notice{park(), terminate()} {
			n.Hook = nil
			l.Notice(n)
			l.until("done", 11*time.Minute, isDone)
			w.set(func(w *world) { w.hook = terminate().Hook })
		}
		l.until("completed", time.Minute, func(View) bool { return len(w.completed) == 1 })
	})
}

func TestParkWithoutAHook(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.hook, w.waitsFrom = park().Hook, time.Now().Add(1000*time.Hour) // detached: the group's hook never waits
		l := w.live()
		l.Notice(unhooked(park()))
		l.until("parked", 5*time.Second, func(v View) bool { return v.State == StateParked })
		l.until("done", 11*time.Minute, isDone)
		took := l.until("given up", 2*time.Hour, func(v View) bool { return v.Hooks[0].End != "" })
		if v := l.View(); v.Hooks[0].End != "left to its timeout" || len(v.Trouble) != 0 {
			t.Errorf("%+v, %v after %s", v.Hooks, v.Trouble, took)
		}
	})
}

// The wait of the move into a pool begins when the load balancer has released the machine, or the cloud does not answer until
// then.
func TestPoolThatWaitsLate(t *testing.T) {
	for _, away := range []bool{false, true} {
		bubble(t, 0, func(t *testing.T, w *world) {
			w.hook, w.waitsFrom = park().Hook, time.Now().Add(40*time.Minute)
			if away {
				w.waitsFrom = time.Time{}
				w.cloudErr = failing(errors.New("no route to host"), opContinue)
			}
			l := w.live()
			l.Notice(park())
			l.until("done", 11*time.Minute, isDone)
			tick(29 * time.Minute)
			w.set(func(w *world) { w.cloudErr = nil })
			l.until("completed", 5*time.Minute, func(v View) bool { return v.Hooks[0].End == "completed" })
			if v := l.View(); v.State != StateParked || len(v.Trouble) != 0 {
				t.Errorf("%s, %v", v.State, v.Trouble)
			}
		})
	}
}

// A reboot that is announced for another day stays in force when the machine is back.
func TestAnnouncedOverAParking(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		l.Notice(Notice{ID: "event-1", Source: "aws-events", Kind: Reboot, Deadline: time.Now().Add(72 * time.Hour)})
		next := l.View().NextDrain
		w.set(func(w *world) { w.viewers = p(0) })
		l.Notice(unhooked(park()))
		l.until("parked", time.Hour, isDone)
		l.Notice(Notice{ID: "back", Source: "aws-lifecycle", Kind: Resume})
		l.until("active", time.Minute, func(v View) bool { return v.State == StateActive })
		if v := l.View(); next.IsZero() || !v.NextDrain.Equal(next) {
			t.Errorf("the next drain is at %s, want %s", v.NextDrain, next)
		}
		w.set(func(w *world) { w.record, w.viewers = cluster.StateActive, p(1) })
		tick(time.Until(next) + time.Minute)
		must.Equal(t, "at the time of the reboot", l.View().State, StateDraining)
	})
}

// A launch hook is completed by the boot that serves.
func TestProvedBeforeAReboot(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.hook = launchHook()
		w.cloudErr = failing(errors.New("no route to host"), opContinue)
		l := w.live()
		l.Notice(Notice{ID: "launch", Source: "aws-lifecycle", Kind: Launch})
		tick(time.Minute)
		l.kill()
		w.set(func(w *world) { w.boot, w.cloudErr, w.proveErr = "boot-2", nil, errors.New("no document yet") })
		l = w.live()
		l.Notice(Notice{ID: "launch", Source: "aws-lifecycle", Kind: Launch})
		tick(5 * time.Minute)
		if len(w.completed) != 0 || len(w.beats) == 0 {
			t.Errorf("completed %v, %d heartbeats", w.completed, len(w.beats))
		}
		w.set(func(w *world) { w.proveErr = nil })
		l.until("done", time.Minute, func(v View) bool { return v.Start == "" })
		must.Equal(t, fmt.Sprintf("completed %v", w.completed), len(w.completed), 1)
	})
}

// A machine of a pool may be terminated before its parking is done.
func TestTerminateBeforeItIsParked(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.stopTime = 100 * time.Hour // so that the hook is completed while the stop continues
		l := w.live()
		l.Notice(park())
		l.until("hook completed", time.Hour, func(v View) bool { return len(v.Hooks) == 1 && v.Hooks[0].End == "completed" })
		must.Equal(t, "step", l.View().Step, StepStopping)
		w.set(func(w *world) { w.gone = false })
		l.Notice(unhooked(terminate()))
		l.until("termination hook completed", time.Hour, func(View) bool { return len(w.completed) == 2 })
	})
}

func TestResumeBeforeItIsParked(t *testing.T) {
	for _, step := range []Step{StepDraining, StepStopping, StepDeregistering, StepCompleting} {
		t.Run(string(step), inBubble(1, func(t *testing.T, w *world) {
			w.stopTime, w.mongoTime, w.cloudTime = 2*time.Second, 100*time.Millisecond, 2*time.Second
			l := w.live()
			l.Notice(park())
			tick(10 * time.Second)
			if step != StepDraining {
				w.set(func(w *world) { w.viewers = p(0) })
			}
			l.until("there", time.Minute, func(v View) bool { return v.Step == step })
			l.Notice(Notice{ID: "back", Source: "aws-lifecycle", Kind: Resume})
			l.until("active", time.Minute, func(v View) bool { return v.State == StateActive })
			must.Equal(t, "AMS runs", w.running, true)
			must.Equal(t, "AMS was started", len(w.times("start")) > 0, step != StepDraining)
		}))
	}
}

func TestTerminateWhileParkedAndWhileResuming(t *testing.T) {
	for _, resuming := range []bool{false, true} {
		living(t, 0, func(t *testing.T, w *world, l *life) {
			l.Notice(park())
			l.until("parked", time.Minute, isDone)
			w.set(func(w *world) { w.gone, w.proveHang = false, true })
			if resuming {
				l.Notice(Notice{ID: "back", Source: "aws-lifecycle", Kind: Resume})
				l.until("resuming", time.Second, func(v View) bool { return v.State == StateResuming })
			}
			l.Notice(terminate())
			must.Equal(t, "ready", l.View().Ready, false)
			l.until("left", time.Minute, func(v View) bool { return v.State == StateLeft && isDone(v) })
			must.Equal(t, fmt.Sprintf("resuming %v: completed %v", resuming, w.completed), len(w.completed), 2)
		})
	}
}

func TestLaunchHook(t *testing.T) {
	launch := Notice{ID: "launch", Source: "aws-lifecycle", Kind: Launch}
	t.Run("evidence", inBubble(0, func(t *testing.T, w *world) {
		w.hook, w.proveErr = launchHook(), errors.New("no document yet")
		l := w.live()
		for range 5 {
			l.Notice(launch)
			tick(time.Minute)
		}
		if len(w.completed) != 0 || len(w.beats) < 5 {
			t.Errorf("completed %v, %d heartbeats", w.completed, len(w.beats))
		}
		w.set(func(w *world) { w.proveErr = nil })
		l.until("done", time.Minute, func(v View) bool { return v.Start == "" })
		l.Notice(launch)
		tick(time.Minute)
		if len(w.completed) != 1 || w.completed[0] != "up CONTINUE" || !w.isIdle() {
			t.Errorf("completed %v", w.completed)
		}
	}))
	t.Run("failure", inBubble(0, func(t *testing.T, w *world) {
		w.hook, w.proveHang = launchHook(), true
		l := w.live()
		l.Notice(launch)
		l.until("failed", 11*time.Minute, func(v View) bool { return v.Start == "failed" })
		tick(time.Second)
		beats := len(w.beats)
		tick(5 * time.Minute)
		if len(w.beats) != beats || len(w.completed) != 0 {
			t.Errorf("a start that failed: %d heartbeats more, completed %v", len(w.beats)-beats, w.completed)
		}
		// It comes late, but it comes.
		w.set(func(w *world) { w.proveHang = false })
		l.until("done", 20*time.Minute, func(v View) bool { return v.Start == "" })
		must.NoDiff(t, "completed", w.completed, []string{"up CONTINUE"})
	}))
	t.Run("killed", inBubble(0, func(t *testing.T, w *world) {
		w.hook, w.proveHang = launchHook(), true
		l := w.live()
		l.Notice(launch)
		tick(time.Minute)
		l.kill()
		w.set(func(w *world) { w.proveHang = false })
		l = w.live()
		l.until("done", time.Minute, func(v View) bool { return v.Start == "" })
		must.Equal(t, fmt.Sprintf("completed %v", w.completed), len(w.completed), 1)
	}))
	t.Run("terminated meanwhile", inBubble(0, func(t *testing.T, w *world) {
		w.hook, w.proveHang, w.joined = launchHook(), true, false
		l := w.live()
		l.Notice(launch)
		tick(time.Minute)
		l.Notice(terminate())
		l.Notice(launch)
		l.until("left", time.Minute, func(v View) bool { return v.State == StateLeft && isDone(v) })
		must.NoDiff(t, "completed", w.completed, []string{"drain CONTINUE"})
	}))
	// The permission is granted minutes after the start, as with a new role: the node serves by then.
	for _, denied := range []op{opDiscover, opContinue} {
		t.Run("denied at first: "+string(denied), inBubble(0, func(t *testing.T, w *world) {
			w.hook = launchHook()
			w.cloudErr = failing(&cloud.DeniedError{Permission: "autoscaling:" + string(denied)}, denied)
			l := w.live()
			l.Notice(launch)
			tick(9 * time.Minute)
			if v := l.View(); !v.Ready || v.Start == "" || len(v.Trouble) == 0 {
				t.Fatalf("ready %v, start %q, trouble %v", v.Ready, v.Start, v.Trouble)
			}
			w.set(func(w *world) { w.cloudErr = nil })
			l.until("done", 61*time.Second, func(v View) bool { return v.Start == "" })
			must.NoDiff(t, "completed", w.completed, []string{"up CONTINUE"})
		}))
	}
	// The agent asks an API that never answers less often, and not for ever.
	for _, err := range []error{errThrottled, &cloud.DeniedError{Permission: "autoscaling:DescribeLifecycleHooks"}} {
		t.Run(fmt.Sprintf("never: %v", err), inBubble(0, func(t *testing.T, w *world) {
			asked := 0
			w.cloudErr = func(op) error { asked++; return err }
			l := w.live()
			l.Notice(launch)
			tick(time.Hour)
			w.set(func(*world) { asked = 0 })
			tick(time.Hour)
			if w.set(func(*world) {}); asked < 10 || asked > 26 {
				t.Errorf("asked %d times in an hour", asked)
			}
			tick(6 * time.Hour)
			if v := l.View(); v.Start != "" || !w.isIdle() {
				t.Errorf("start %q, %s", v.Start, w.file)
			}
		}))
	}
}

// TestForgottenOverARestart: a drain that is forgotten before the registry has its end stays forgotten after a restart of the
// daemon: otherwise the record would be draining for ever.
func TestForgottenOverARestart(t *testing.T) {
	living(t, 0, func(t *testing.T, w *world, l *life) {
		l.Notice(park())
		l.until("parked", time.Minute, func(v View) bool { return v.State == StateParked && isDone(v) })
		l.Notice(Notice{ID: "back", Source: "aws-lifecycle", Kind: Resume})
		l.until("it serves", time.Minute, func(v View) bool { return v.State == StateActive })
		for range 2 {
			must.Equal(t, "it is forgotten", l.Forgotten(), true)
			l.kill()
			l = w.live()
		}
		l.Settled()
		tick(time.Second)
		l.kill()
		l = w.live()
		if l.Forgotten() || !w.isIdle() {
			t.Errorf("forgotten %v, %s", l.Forgotten(), w.file)
		}
	})
}

// TestIntoThePool: a machine that never served moves into the pool by its launch hook, one that served by its termination hook.
func TestIntoThePool(t *testing.T) {
	for _, joined := range []bool{false, true} {
		bubble(t, 0, func(t *testing.T, w *world) {
			w.joined, w.hook = joined, launchHook()
			l := w.live()
			l.Notice(unhooked(park()))
			l.until("parked", 5*time.Second, func(v View) bool { return v.State == StateParked && isDone(v) })
			must.NoDiff(t, "completed", w.completed, []string{"up CONTINUE"})
		})
	}
}

// twoHooks is a cloud that may have a hook for either transition.
type twoHooks struct {
	*world
	asked []string
}

func (c *twoHooks) Pending(_ context.Context, launching bool) ([]Hook, error) {
	if launching {
		return []Hook{*launchHook()}, nil
	}
	return []Hook{*terminate().Hook}, nil
}

func (c *twoHooks) Extend(_ context.Context, h Hook) (time.Duration, error) {
	return time.Duration(h.Timeout), nil
}

func (c *twoHooks) Complete(_ context.Context, h Hook) error {
	c.set(func(*world) { c.asked = append(c.asked, h.Name) })
	if h.Launching {
		return cloud.ErrNotWaiting
	}
	return nil
}

// A machine may be taken out of the pool as soon as it is in it, and its launch hook waits for a node that serves.
func TestNoWordForTheLaunchHookFromThePool(t *testing.T) {
	for range 20 {
		bubble(t, 0, func(t *testing.T, w *world) {
			c := &twoHooks{world: w}
			l := w.live(func(o *Options) { o.Hooks = c })
			l.Notice(unhooked(park()))
			l.until("parked", time.Minute, func(v View) bool { return v.State == StateParked && isDone(v) })
			tick(20 * time.Minute)
			c.set(func(*world) {
				if i := slices.Index(c.asked, "drain"); i < 0 || len(c.asked) != i+1 {
					t.Errorf("the completed hooks are %v, want drain at last", c.asked)
				}
			})
		})
	}
}
