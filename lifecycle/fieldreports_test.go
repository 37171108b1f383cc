// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Field reports about the termination of a machine, each replayed as reported. The others are beside the metadata of their
// cloud; internal/house counts all of them.

// errNoActive is the answer of the EC2 Auto Scaling API while, or because, no hook waits.
var errNoActive = fmt.Errorf("ValidationError: No active Lifecycle Action found with instance ID i-1: %w", cloud.ErrNotWaiting)

// asg is a scaling group as the hooks and the metadata of a real machine show it. Its hook may begin to wait later than the
// target state.
type asg struct {
	mu       sync.Mutex
	state    string
	target   string    // the target state in the metadata; "" if the item is missing
	accepts  time.Time // from when on a call about the hook is accepted
	said     []string
	saidWhen []time.Time
	done     []string
}

func (g *asg) Pending(_ context.Context, launching bool) ([]Hook, error) {
	touch()
	h := Hook{Provider: "aws", Group: "edge-asg", Name: "drain", Timeout: seconds.Duration(10 * time.Minute), Limit: time.Now().Add(48 * time.Hour)}
	if launching {
		h.Name, h.Launching = "up", true
	}
	return []Hook{h}, nil
}

func (g *asg) call(what string, h Hook) error {
	touch()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.said, g.saidWhen = append(g.said, what), append(g.saidWhen, time.Now())
	switch {
	case !time.Now().Before(g.accepts):
	case h.Launching && (g.state == "InService" || strings.HasPrefix(g.state, "Terminating")),
		h.Parking && strings.HasPrefix(g.state, "Warmed:") && !strings.HasPrefix(g.state, "Warmed:Pending"):
		return fmt.Errorf("%w: the instance is %s", cloud.ErrGone, g.state)
	default:
		return errNoActive
	}
	if what == "complete" {
		g.done = append(g.done, h.Group+" "+h.Name+" "+h.Token)
		g.accepts = time.Now().Add(100 * time.Hour) // an action is completed once
	}
	return nil
}

func (g *asg) Extend(_ context.Context, h Hook) (time.Duration, error) {
	return time.Duration(h.Timeout), g.call("beat", h)
}

func (g *asg) Complete(_ context.Context, h Hook) error { return g.call("complete", h) }

// Watch looks at the target state every two seconds, as a real machine does.
func (g *asg) Watch(ctx context.Context, report cloud.Report) {
	for {
		g.look(report)
		if !sleep.For(ctx, 2*time.Second) {
			return
		}
	}
}

// look reports the target state, if there is one.
func (g *asg) look(report cloud.Report) {
	g.mu.Lock()
	target := g.target
	g.mu.Unlock()
	pool, warmed := strings.CutPrefix(target, "Warmed:")
	switch {
	case target == "":
	case target == "InService":
		report(cloud.GroupTopic("aws"), nil)
	case target == "Terminated":
		report(cloud.GroupTopic("aws"), []cloud.Notice{{ID: cloud.GroupNotice("aws", Terminate), Kind: Terminate, Who: "Auto Scaling", Reason: "scale-in"}})
	case warmed:
		report(cloud.GroupTopic("aws"), []cloud.Notice{
			{ID: cloud.GroupNotice("aws", Park), Kind: Park, Who: "Auto Scaling", Reason: "return to the warm pool (" + pool + ")"},
		})
	default:
		panic("target state " + target)
	}
}

func (g *asg) set(change func(*asg)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(g)
}

func (g *asg) completed() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.done)
}

// completes returns when completing was attempted.
func (g *asg) completes() []time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []time.Time
	for i, what := range g.said {
		if what == "complete" {
			out = append(out, g.saidWhen[i])
		}
	}
	return out
}

func newASG() *asg { return &asg{state: "InService"} }

// through connects the runner to the group and its metadata.
func (g *asg) through(o *Options) { o.Hooks, o.Watcher = g, g }

// signal sets the target state in the metadata, and makes the agent read it.
func signal(l *life, g *asg, target string) {
	g.set(func(g *asg) { g.target = target })
	g.look(l.report)
}

// PrairieLearn/PrairieLearn#15586: right after Terminating:Wait the API still reported no active lifecycle action. The process
// took that for the end and exited, and the machine was stuck until its hook timed out.
func TestFieldReport01_NoActiveActionRightAfterTheWaitBegan(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		g := newASG()
		g.state, g.accepts = "Terminating:Wait", time.Now().Add(23*time.Second)
		l := w.live(g.through)
		signal(l, g, "Terminated")
		l.until("left", 5*time.Second, func(v View) bool { return v.State == StateLeft })
		l.until("done", time.Minute, isDone)
		must.NoDiff(t, "completed", g.completed(), []string{"edge-asg drain "})
		tries := g.completes()
		if len(tries) < 4 {
			t.Errorf("tried %d times in 23 s", len(tries))
		}
		for i := 1; i < len(tries); i++ {
			must.Equal(t, "tried again after", tries[i].Sub(tries[i-1]), 5*time.Second)
		}
		select {
		case <-l.ended:
			t.Error("the process ended")
		default:
		}
	})
}

// PrairieLearn/PrairieLearn#15522: the metadata report Terminated before the group reaches Terminating:Wait, because the load
// balancer releases the machine first. Draining begins at once, completing waits; a SIGTERM in between, a restart of the agent,
// does not end the drain.
func TestFieldReport02_TerminatedComesBeforeTheWait(t *testing.T) {
	bubble(t, 2, func(t *testing.T, w *world) {
		g := newASG()
		g.state, g.accepts = "Terminating", time.Now().Add(5*time.Minute)
		l := w.live(g.through)
		began := time.Now()
		signal(l, g, "Terminated")
		must.Equal(t, "ready after the word", l.View().Ready, false)
		tick(time.Second)
		if v := l.View(); v.Step != StepDraining || w.record != cluster.StateDraining {
			t.Errorf("step %s, record %s: draining does not wait for the group", v.Step, w.record)
		}
		deadline := l.View().Deadline
		tick(90 * time.Second)
		l.kill() // SIGTERM of the agent alone
		l = w.live(g.through)
		tick(time.Second)
		if v := l.View(); v.Step != StepDraining || v.Ready || !v.Deadline.Equal(deadline) {
			t.Errorf("after the restart: step %s, ready %v, deadline %s, before %s", v.Step, v.Ready, v.Deadline, deadline)
		}
		if w.stops != 0 || len(g.completed()) != 0 {
			t.Errorf("%d stops, completed %v with viewers there", w.stops, g.completed())
		}
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("left", 20*time.Second, func(v View) bool { return v.State == StateLeft })
		tick(time.Minute)
		must.Equal(t, "completed before the group waited", len(g.completed()), 0)
		g.set(func(g *asg) { g.state = "Terminating:Wait" })
		l.until("done", 10*time.Minute, isDone)
		if took := time.Since(began); took < 5*time.Minute || took > 5*time.Minute+6*time.Second || len(g.completed()) != 1 {
			t.Errorf("completed %v after %s, the group waits after 5m", g.completed(), took)
		}
		must.Equal(t, "sessions were cut", w.cut, 0)
	})
}

// aws/aws-node-termination-handler#1075, #1112: a program that reads the notice from the metadata has no token of the hook. It
// drained and never completed, and the machine stayed until the hook's timeout. The names are found by the API, and are enough.
func TestFieldReport04_MetadataAloneCompletesToo(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		g := newASG()
		g.state = "Terminating:Wait"
		l := w.live(g.through)
		signal(l, g, "Terminated")
		tick(20 * time.Minute) // two timeouts of the hook: it needs heartbeats
		if beats := strings.Count(strings.Join(g.said, " "), "beat"); beats < 4 {
			t.Errorf("%d heartbeats in two of the hook's timeouts", beats)
		}
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("done", 10*time.Second, isDone)
		must.NoDiff(t, "completed", g.completed(), []string{"edge-asg drain "})
		must.Equal(t, "order", w.sinceStop(), "stop deregister? record:left")
	})
}

// aws-samples/amazon-ec2-auto-scaling-group-examples#5: a launch was completed from user data before its hook was active. The
// call failed, was not repeated, and the group gave the machine up.
func TestFieldReport05_LaunchCompletedBeforeItsHookWaits(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		g := newASG()
		g.state, g.accepts = "Pending", time.Now().Add(2*time.Minute)
		l := w.live(g.through)
		l.Notice(Notice{ID: "launch", Source: "aws-lifecycle", Kind: Launch})
		tick(time.Minute)
		if len(g.completed()) != 0 || len(g.completes()) == 0 {
			t.Errorf("completed %v in %d tries", g.completed(), len(g.completes()))
		}
		if v := l.View(); !v.Ready || v.State != StateActive {
			t.Errorf("ready %v, state %s: the node serves, whatever the hook says", v.Ready, v.State)
		}
		g.set(func(g *asg) { g.state = "Pending:Wait" })
		l.until("completed", 5*time.Minute, func(v View) bool { return v.Start == "" })
		must.NoDiff(t, "completed", g.completed(), []string{"edge-asg up "})
	})
}

// aws/aws-codedeploy-agent#390: a machine of a warm pool waits twice, when it goes into the pool and when it comes out. The
// script of its first boot does not run again, and the second wait timed out.
func TestFieldReport06_SecondWaitOutOfTheWarmPool(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		g := newASG()
		g.state = "Warmed:Pending:Wait"
		l := w.live(g.through)
		l.Notice(Notice{ID: "launch", Source: "aws-lifecycle", Kind: Launch})
		l.until("first", time.Minute, func(v View) bool { return v.Start == "" && len(g.completed()) == 1 })

		// Into the pool: the target state reports it, and the machine is stopped there.
		g.set(func(g *asg) { g.state, g.accepts = "Warmed:Stopped", time.Now().Add(100*time.Hour) })
		signal(l, g, "Warmed:Stopped")
		l.until("parked", 5*time.Minute, func(v View) bool { return v.State == StateParked })
		if w.running || w.record != cluster.StateLeft {
			t.Errorf("in the pool: running %v, record %s", w.running, w.record)
		}
		l.kill()
		tick(48 * time.Hour)

		// Out of it: no user data, only the daemon of a new boot.
		w.set(func(w *world) { w.boot, w.born, w.running = "boot-2", time.Now(), true }) // a boot starts the server, not the agent
		g.set(func(g *asg) { g.state, g.target, g.accepts = "Pending:Wait", "InService", time.Now() })
		l = w.live(g.through)
		signal(l, g, "InService")
		l.until("second", 5*time.Minute, func(v View) bool { return v.State == StateActive && v.Ready && v.Start == "" })
		must.NoDiff(t, "completed", g.completed(), []string{"edge-asg up ", "edge-asg up "})
		must.Equal(t, "the server was started again under those who are on it", len(w.times("start")), 0)
	})
}

// A pool may hibernate its machines: the same process continues an hour later, and the launch hook waits from then on.
func TestHibernatedInThePool(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		g := newASG()
		g.state, g.accepts = "Warmed:Hibernated", time.Now().Add(100*time.Hour)
		l := w.live(g.through)
		signal(l, g, "Warmed:Hibernated")
		l.until("parked", 5*time.Minute, func(v View) bool { return v.State == StateParked })
		tick(time.Hour)

		// The hook begins to wait a moment after the target state changes.
		g.set(func(g *asg) { g.state, g.accepts = "Pending:Wait", time.Now().Add(time.Minute) })
		signal(l, g, "InService")
		l.until("active", 10*time.Minute, func(v View) bool { return v.State == StateActive && v.Ready && v.Start == "" })
		must.NoDiff(t, "completed", g.completed(), []string{"edge-asg up "})
	})
}
