// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

var errThrottled = errors.New("rate exceeded")

// errNoneOurs is the answer of a cloud where all waiting hooks belong to other programs.
var errNoneOurs = &cloud.OthersHooksError{Group: "edge", Hooks: []string{"drain", "ship-logs"}}

func TestHookIsDiscovered(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.hook = terminate().Hook
		w.cloudErr = failing(errThrottled, opDiscover)
		l := w.live()
		l.Notice(unhooked(terminate()))
		tick(20 * time.Second)
		if v := l.View(); len(v.Hooks) != 0 || v.Trouble["discover"] == "" {
			t.Errorf("%+v", v)
		}
		w.set(func(w *world) { w.cloudErr = nil })
		tick(15 * time.Second)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Beats != 1 || len(v.Trouble) != 0 {
			t.Errorf("%+v", v)
		}
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("done", time.Minute, isDone)
		must.Equal(t, fmt.Sprintf("completed %v", w.completed), len(w.completed), 1)
	})
}

// A hook that the cloud names late waits since the notice: without heartbeats the node leaves before it ends.
func TestHookIsDiscoveredLate(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.hook, w.cloudErr = terminate().Hook, failing(errThrottled)
		l := w.live()
		l.Notice(unhooked(terminate()))
		began := time.Now()
		tick(6 * time.Minute)
		w.set(func(w *world) {
			w.cloudErr = failing(&cloud.DeniedError{Permission: "autoscaling:RecordLifecycleActionHeartbeat"}, opBeat)
		})
		l.until("left", time.Hour, func(v View) bool { return v.State == StateLeft })
		between(t, "left after", time.Since(began), 9*time.Minute, 10*time.Minute)
	})
}

// The agent neither extends nor completes the hooks of other programs, even if an event names them; the drain continues without
// them, and reports that.
func TestHooksOfOthers(t *testing.T) {
	for name, named := range map[string]*Hook{"found": nil, "named by an event": terminate().Hook} {
		t.Run(name, inBubble(1, func(t *testing.T, w *world) {
			w.cloudErr = failing(errNoneOurs)
			l := w.live()
			n := terminate()
			n.Hook = named
			l.Notice(n)
			tick(10 * time.Minute)
			if v := l.View(); len(v.Hooks) != 0 || v.Trouble["hooks"] != errNoneOurs.Error() || v.Step != StepDraining {
				t.Errorf("%+v", v)
			}
			w.set(func(w *world) { w.viewers = p(0) })
			l.until("done", time.Minute, isDone)
			must.Equal(t, fmt.Sprintf("calls, completed %v, beats %v", w.completed, w.beats), len(w.completed)+len(w.beats)+len(w.times("complete?")), 0)
		}))
	}
}

// A hook that was the only one stays this agent's, also after a restart or a reload, if a hook of another program is added; until
// the settings name another.
func TestSecondHookInTheDrain(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second Hook
	}{
		{"aws", Hook{Provider: "aws", Group: "g", Name: "drain", Timeout: seconds.Duration(5 * time.Minute)}, Hook{Provider: "aws", Group: "g", Name: "ship-logs", Timeout: seconds.Duration(time.Hour)}},
		{
			"alibaba",
			Hook{Provider: "alibaba", Group: "asg-1", Name: "drain", ID: "ash-1", Token: "t-1", Timeout: seconds.Duration(40 * time.Minute)},
			Hook{Provider: "alibaba", Group: "asg-1", Name: "ship-logs", ID: "ash-2"},
		},
	} {
		t.Run(tt.name, inBubble(3, func(t *testing.T, w *world) {
			w.hook = &tt.first
			l := w.live()
			l.Notice(unhooked(terminate()))
			tick(9 * time.Minute)
			w.set(func(w *world) { w.foreign = &tt.second })
			tick(20 * time.Minute)
			l.kill()
			var names cloud.Filter
			l = w.live(func(o *Options) { o.Filter = func() cloud.Filter { return names } })
			tick(21 * time.Minute)
			if v := l.View(); len(v.Hooks) != 1 || time.Since(v.Hooks[0].Beaten) > 21*time.Minute || len(v.Trouble) > 0 {
				t.Errorf("hooks %+v, trouble %v", v.Hooks, v.Trouble)
			}
			l.Reconsider()
			tick(3 * time.Minute)
			if v := l.View(); len(v.Hooks) != 1 || time.Since(v.Hooks[0].Beaten) > 21*time.Minute || v.Trouble["hooks"] == "" {
				t.Errorf("after a reload: hooks %+v, trouble %v", v.Hooks, v.Trouble)
			}
			names = cloud.Filter{"amsagent"}
			l.Reconsider()
			tick(3 * time.Minute)
			if v := l.View(); len(v.Hooks) != 0 || v.Trouble["hooks"] == "" {
				t.Errorf("after a reload: hooks %+v, trouble %v", v.Hooks, v.Trouble)
			}
		}))
	}
}

// Without a hook of its own the agent knows when other programs' hooks end the machine, since only those programs extend them: at
// the first timeout that abandons, else at the last one. Beside a hook of its own, it warns.
func TestDeadlineOfOthersHooks(t *testing.T) {
	hook := func(name string, timeout time.Duration, abandons bool) Hook {
		return Hook{Provider: "aws", Group: "edge", Name: name, Timeout: seconds.Duration(timeout), Abandons: abandons}
	}
	for _, tt := range []struct {
		name  string
		hooks []Hook
		kind  Kind
		left  time.Duration // to the deadline
		warns bool
	}{
		{"the first that abandons", []Hook{hook("a", time.Minute, true), hook("b", 2*time.Minute, true), hook("c", 30*time.Second, false)}, Terminate, 45 * time.Second, true},
		{"else the last", []Hook{hook("a", time.Minute, false), hook("b", 4*time.Minute, false)}, Terminate, 210 * time.Second, true},
		{"unknown", []Hook{hook("a", 0, true), hook("b", 0, false)}, Terminate, time.Hour, true},
		{"unknown beside a known one", []Hook{hook("a", 0, true), hook("b", time.Minute, false)}, Terminate, 45 * time.Second, true},
		{"the machine does not end", []Hook{hook("a", time.Minute, true), hook("b", time.Minute, true)}, Park, time.Hour, true},
		{"beside ours", []Hook{hook("a", time.Minute, true), hook("amsagent", 10*time.Minute, false)}, Terminate, time.Hour, true},
		{"ours alone", []Hook{hook("amsagent", 10*time.Minute, false), hook("amsagent-too", time.Minute, true)}, Terminate, time.Hour, false},
	} {
		t.Run(tt.name, inBubble(3, func(t *testing.T, w *world) {
			w.named = tt.hooks
			l := w.live()
			n := unhooked(terminate())
			n.Kind = tt.kind
			l.Notice(n)
			tick(5 * time.Second)
			v := l.View()
			must.Equal(t, "time to the deadline by "+v.DeadlineBy, time.Until(v.Deadline)+5*time.Second, tt.left)
			must.Equal(t, "it is a trouble: "+v.Trouble["hooks"], v.Trouble["hooks"] != "", tt.warns)
			must.Equal(t, "it is warned of", w.logged("level=WARN") > 0, tt.warns)
			if tt.name == "beside ours" {
				at := time.Now().Add(55 * time.Second).Format("15:04")
				must.Contain(t, "trouble", v.Trouble["hooks"], "may end at "+at)
			}
			if tt.name == "the first that abandons" {
				l.until("left", time.Minute, func(v View) bool { return v.State == StateLeft })
			}
		}))
	}
}

// A hook that the agent extended or completed stays its own, over restarts of the agent and of the machine, if a second one is
// added. The record may be unreadable meanwhile.
func TestHookUsedBefore(t *testing.T) {
	first, second := *terminate().Hook, *terminate().Hook
	second.Name = "ecs-managed-draining-termination-hook"
	other := second
	other.Name = "another"
	const unreadable = " while the record is unreadable"
	stored, err := (&document{Boot: "boot-1", state: state{Used: hookKeys{hookKey(other)}}}).encode()
	must.OK(t, err)
	for name, use := range map[string]func(t *testing.T, w *world, l *life){
		"extended": func(t *testing.T, _ *world, l *life) { must.OK(t, l.Undrain("root", "")) },
		"completed": func(_ *testing.T, w *world, l *life) {
			w.set(func(w *world) { w.viewers = p(0) })
			l.until("done", time.Minute, isDone)
			w.rejoin()
			must.OK(t, l.Forget(false))
		},
	} {
		for boot, again := range map[string]string{"": "", " and a restart": "boot-1", " and a boot": "boot-2", unreadable: ""} {
			t.Run(name+boot, inBubble(1, func(t *testing.T, w *world) {
				w.hook = &first
				if boot == unreadable {
					w.file, w.readErr = stored, errors.New("input/output error")
				}
				l := w.live()
				l.Notice(unhooked(terminate()))
				tick(time.Minute)
				use(t, w, l)
				w.set(func(w *world) { w.readErr = nil })
				l.Notice(Notice{ID: "aws-lifecycle/terminate", Kind: withdrawn})
				w.set(func(w *world) {
					w.viewers, w.foreign, w.gone, w.record, w.beats = p(1), &second, false, cluster.StateActive, nil
				})
				if tick(time.Minute); again != "" {
					l.kill()
					w.boot = again
					l = w.live()
					tick(time.Second)
				}
				if v := l.View(); !v.Ready {
					t.Fatalf("not ready: %+v", v)
				}
				l.Notice(unhooked(terminate()))
				tick(time.Minute)
				if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Name != first.Name || len(w.beats) == 0 {
					t.Errorf("hooks %+v, trouble %v", v.Hooks, v.Trouble)
				}
			}))
		}
	}
}

// No log line of a drain has an empty attribute.
func TestLogHasNoEmptyAttributes(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		l.Notice(spot(time.Hour))
		tick(time.Minute)
		l.Notice(Notice{ID: "aws-spot/interrupt", Kind: withdrawn})
		tick(time.Minute)
		l.Notice(terminate())
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("done", time.Minute, isDone)
		if w.logged("<nil>") > 0 || w.logged(`=""`) > 0 || w.logged("notice withdrawn") == 0 {
			t.Error(w.lines.String())
		}
	})
}

// A launch hook of another program is not reported as trouble while the node serves.
func TestLaunchHookOfOthers(t *testing.T) {
	others := &cloud.OthersHooksError{Group: "edge", Hooks: []string{"install-codedeploy"}}
	bubble(t, 0, func(t *testing.T, w *world) {
		w.cloudErr = failing(others)
		l := w.live()
		l.Notice(Notice{ID: "aws-lifecycle/resume", Source: "aws-lifecycle", Kind: Resume})
		tick(10 * time.Minute)
		v := l.View()
		if len(v.Trouble) > 0 || v.Step != StepNone || !v.Ready {
			t.Errorf("%+v", v)
		}
		must.Contain(t, "notes", fmt.Sprint(v.Notes), "install-codedeploy")
		must.Equal(t, "launch hooks", v.LaunchHooks, others.Error())
		// The setting names a hook that still keeps the machine waiting.
		w.set(func(w *world) {
			w.cloudErr, w.hook = nil, &Hook{Provider: "aws", Group: "edge", Name: "install-codedeploy", Launching: true, Timeout: seconds.Duration(time.Hour)}
		})
		l.Reconsider()
		tick(10 * time.Second)
		if v := l.View(); v.LaunchHooks != "" || len(v.Trouble) != 0 || !slices.Equal(w.completed, []string{"install-codedeploy CONTINUE"}) {
			t.Errorf("after one was named, completed %v: %+v", w.completed, v)
		}
		// No hook waits any more, so no start begins.
		l.Reconsider()
		tick(10 * time.Second)
		if v := l.View(); v.Start != "" || len(w.completed) != 1 {
			t.Errorf("completed %v: %+v", w.completed, v)
		}
	})
}

// A hook that the operator names while it keeps the machine waiting is completed after a reload, or a restart of the agent.
func TestHooksNamedLater(t *testing.T) {
	for name, restart := range map[string]bool{"a reload": false, "a restart": true} {
		t.Run(name, inBubble(0, func(t *testing.T, w *world) {
			w.hook = terminate().Hook
			w.cloudErr = failing(errNoneOurs)
			l := w.live()
			l.Notice(unhooked(terminate()))
			l.until("done", time.Minute, isDone)
			tick(10 * time.Minute)
			w.set(func(w *world) { w.cloudErr = nil })
			must.Equal(t, fmt.Sprintf("number of completed %v", w.completed), len(w.completed), 0)
			if restart {
				l.kill()
				l = w.live()
			} else {
				l.Reconsider()
			}
			tick(10 * time.Second)
			if v := l.View(); len(w.completed) != 1 || len(v.Trouble) != 0 {
				t.Errorf("completed %v, %+v", w.completed, v)
			}
		}))
	}
}

// An answer to a query with the former settings does not count for the new ones.
func TestHooksNamedDuringTheQuestion(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.hook, w.cloudTime = terminate().Hook, 5*time.Second
		w.cloudErr = failing(errNoneOurs)
		l := w.live()
		l.Notice(unhooked(terminate()))
		tick(4 * time.Second)
		l.Reconsider()
		tick(1500 * time.Millisecond) // the query has ended
		w.set(func(w *world) { w.cloudErr = nil })
		tick(30 * time.Second)
		must.Equal(t, fmt.Sprintf("completed %v: %+v", w.completed, l.View()), len(w.completed), 1)
	})
}

// A hook that is named when the machine is parked already does not wait for that: the agent stops asking for it.
func TestHookNamedWhileParked(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.hook = terminate().Hook
		w.cloudErr = failing(errNoneOurs)
		l := w.live()
		l.Notice(unhooked(park()))
		l.until("parked", time.Hour, func(v View) bool { return v.State == StateParked })
		w.set(func(w *world) { w.cloudErr, w.waitsFrom = nil, time.Now().Add(100*time.Hour) })
		l.Reconsider()
		tick(2*time.Hour + time.Minute)
		asked := len(w.times("complete?"))
		tick(time.Hour)
		if n := len(w.times("complete?")) - asked; asked == 0 || asked > 300 || n != 0 || len(l.View().Trouble) != 0 {
			t.Errorf("asked %d times, in the last hour %d: %+v", asked, n, l.View())
		}
	})
}

// answeredLate answers first one question for hooks, then the other. The group has two launch hooks and no other.
type answeredLate struct {
	*world
	launchingFirst bool
	completed      *[]string
}

func (h answeredLate) Pending(_ context.Context, launching bool) ([]Hook, error) {
	if launching != h.launchingFirst {
		<-time.After(100 * time.Millisecond)
	}
	if !launching {
		return nil, nil
	}
	of := Hook{Provider: "aws", Group: "edge", Launching: true, Timeout: seconds.Duration(time.Hour)}
	a, b := of, of
	a.Name, b.Name = "a", "b"
	return []Hook{a, b}, nil
}

func (h answeredLate) Complete(_ context.Context, hook Hook) error {
	*h.completed = append(*h.completed, hook.Name)
	return nil
}

// A hook that is named while the machine is being parked is completed, in whatever order the cloud has answered before.
func TestHookNamedDuringTheParking(t *testing.T) {
	for _, first := range []bool{true, false} {
		bubble(t, 1, func(t *testing.T, w *world) {
			var completed []string
			var named cloud.Filter
			l := w.live(func(o *Options) {
				o.Hooks, o.Filter = answeredLate{w, first, &completed}, func() cloud.Filter { return named }
			})
			l.Notice(unhooked(park()))
			tick(time.Minute)
			named = cloud.Filter{"a"}
			l.Reconsider()
			tick(time.Minute)
			w.set(func(w *world) { w.viewers = p(0) })
			l.until("parked", time.Hour, func(v View) bool { return v.State == StateParked })
			tick(time.Minute)
			must.NoDiff(t, fmt.Sprintf("the launch hooks first: %t: completed", first), completed, []string{"a"})
		})
	}
}

// Hooks of others are no trouble of a node that serves again.
func TestHooksOfOthersAfterAnUndrain(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.cloudErr = failing(errNoneOurs)
		l := w.live()
		l.Notice(unhooked(terminate()))
		l.until("others' hooks", time.Minute, func(v View) bool { return v.Trouble["hooks"] != "" })
		must.OK(t, l.Undrain("operator", ""))
		tick(time.Hour)
		if v := l.View(); !v.Ready || len(v.Trouble) != 0 {
			t.Errorf("%+v", v)
		}
	})
}

func TestHookThatTimedOutMeanwhile(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		l.Notice(terminate())
		tick(time.Minute)
		w.set(func(w *world) { w.gone = true })
		tick(10 * time.Minute)
		v := l.View()
		if v.Hooks[0].End != "gone" || v.Step != StepDraining {
			t.Errorf("%+v", v.Hooks)
		}
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("done", 4*time.Second, isDone)
		if len(w.completed) != 0 || w.record != cluster.StateLeft {
			t.Errorf("completed %v, record %s", w.completed, w.record)
		}
	})
}

func TestDeniedIsToldOnceAndHoldsNothing(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.cloudErr = failing(&cloud.DeniedError{
			Permission: "autoscaling:CompleteLifecycleAction", Policy: `{"Version":"2012-10-17"}`, Reason: "AccessDenied",
		}, opBeat, opContinue)
		l := w.live(func(o *Options) { o.Deadline = fixed(3 * time.Minute) })
		n := terminate()
		l.Notice(n)
		tick(2 * time.Minute)
		v := l.View()
		if v.Hooks[0].Denied == "" || !strings.Contains(v.Trouble["heartbeat"], "autoscaling:CompleteLifecycleAction") {
			t.Errorf("%+v %v", v.Hooks, v.Trouble)
		}
		l.until("done", 2*time.Minute, isDone)
		v = l.View()
		if w.record != cluster.StateLeft || v.State != StateLeft || !v.Finished() {
			t.Errorf("record %s", w.record)
		}
		warnings := 0
		for _, n := range v.Notes {
			if strings.Contains(n.Text, "2012-10-17") {
				warnings++
			}
		}
		must.Equal(t, fmt.Sprintf("warnings in %v", v.Notes), warnings, 2) // once for heartbeats, once for the completion
		// The operator grants it.
		w.set(func(w *world) { w.cloudErr = nil })
		tick(61 * time.Second)
		if len(w.completed) != 1 || l.View().Hooks[0].End != "completed" {
			t.Errorf("completed %v", w.completed)
		}
	})
}

func TestHeartbeats(t *testing.T) {
	for _, c := range []struct {
		name    string
		timeout time.Duration
		every   time.Duration
	}{
		{"an hour", time.Hour, 30 * time.Minute},
		{"the least", 30 * time.Second, 15 * time.Second},
		{"not known", 0, 15 * time.Second},
	} {
		t.Run(c.name, inBubble(1, func(t *testing.T, w *world) {
			w.cloudTime = 100 * time.Millisecond
			l := w.live(func(o *Options) { o.Deadline = fixed(3 * time.Hour) })
			n := terminate()
			n.Hook.Timeout = seconds.Duration(c.timeout)
			l.Notice(n)
			tick(4 * c.every)
			must.Equal(t, "heartbeats", len(w.beats), 4)
		}))
	}
}

// TestHeartbeatsThatFail: a failed heartbeat is retried before the hook lapses; if all fail, the node leaves in order before
// the cloud terminates it.
func TestHeartbeatsThatFail(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		l.Notice(terminate())
		tick(time.Second)
		began := time.Now()
		w.set(func(w *world) { w.cloudErr = failing(errThrottled) })
		tick(6 * time.Minute)
		must.Contain(t, "deadline by", l.View().DeadlineBy, "unless a heartbeat gets through")
		w.set(func(w *world) { w.cloudErr = nil })
		tick(11 * time.Second)
		if v := l.View(); v.DeadlineBy != "the configured deadline" || v.Hooks[0].Beats != 2 {
			t.Errorf("deadline by %s, %d heartbeats", v.DeadlineBy, v.Hooks[0].Beats)
		}
		between(t, "from heartbeat to heartbeat", w.beats[1].Sub(w.beats[0]), 0, 10*time.Minute)
		last := w.beats[1]
		w.set(func(w *world) { w.cloudHang = true })
		l.until("left", time.Hour, func(v View) bool { return v.State == StateLeft })
		between(t, "left after the last heartbeat", time.Since(last), 9*time.Minute, 10*time.Minute)
		w.set(func(w *world) { w.cloudHang = false })
		l.until("done", 21*time.Second, isDone)
		t.Logf("left %s after the notice", time.Since(began))
	})
}

func TestCapIsAnnounced(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		l := w.live(func(o *Options) { o.Deadline = fixed(100 * time.Hour) })
		n := terminate()
		n.Hook.Timeout = seconds.Duration(30 * time.Second) // at most 50 minutes
		l.Notice(n)
		tick(44 * time.Minute)
		near := func() (noted int) {
			for _, n := range l.View().Notes {
				if strings.Contains(n.Text, "can be kept waiting for") {
					noted++
				}
			}
			return noted
		}
		must.Equal(t, "noted too early", near(), 0)
		tick(4 * time.Minute)
		must.Equal(t, fmt.Sprintf("warnings in %v", l.View().Notes), near(), 1)
		began := l.View().Begun
		l.until("done", 3*time.Minute, isDone)
		between(t, "done after", time.Since(began), 49*time.Minute, 50*time.Minute)
	})
}

func TestCloudThatFailsAtTheEnd(t *testing.T) {
	for name, change := range map[string]func(*world){
		"throttled": func(w *world) { w.cloudErr = failing(errThrottled) },
		"hanging":   func(w *world) { w.cloudHang = true },
	} {
		t.Run(name, alive(0, func(t *testing.T, w *world, l *life) {
			l.Notice(terminate())
			tick(0) // the hook is found
			w.set(change)
			tick(10 * time.Minute)
			if v := l.View(); v.State != StateLeft || v.Step != StepCompleting || v.Trouble["continue"] == "" {
				t.Errorf("%s %s %v", v.State, v.Step, v.Trouble)
			}
			w.set(func(w *world) { w.cloudErr, w.cloudHang = nil, false })
			l.until("done", 21*time.Second, isDone)
			must.Equal(t, fmt.Sprintf("completed %v", w.completed), len(w.completed), 1)
		}))
	}
}

// TestAHeartbeatThatHangsDelaysNoCompletion: the call is cancelled.
func TestAHeartbeatThatHangsDelaysNoCompletion(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		l.Notice(terminate())
		tick(5*time.Minute - 100*time.Millisecond)
		w.set(func(w *world) { w.cloudTime = 9 * time.Second })
		tick(500 * time.Millisecond)
		w.set(func(w *world) { w.viewers, w.cloudTime = p(0), 0 })
		l.until("done", 2100*time.Millisecond, isDone)
	})
}

// groupHooks are termination hooks of the machine's group.
func groupHooks(names ...string) (hooks []Hook) {
	for _, name := range names {
		hooks = append(hooks, Hook{Provider: "aws", Group: "edge", Name: name, Timeout: seconds.Duration(10 * time.Minute)})
	}
	return hooks
}

// Each of several hooks of this agent is extended and completed by itself.
func TestSeveralHooksOfOurs(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.named = groupHooks("amsagent-a", "amsagent-b", "ship-logs")
		w.named[1].Timeout = seconds.Duration(2 * time.Minute)
		w.foreign = &w.named[2]
		l := w.live()
		l.Notice(unhooked(terminate()))
		tick(10*time.Minute + time.Second)
		v := l.View()
		if len(v.Hooks) != 2 || v.Hooks[0].Beats != 3 || v.Hooks[1].Beats != 11 {
			t.Errorf("hooks %+v", v.Hooks)
		}
		tries := 0
		w.set(func(w *world) {
			w.viewers = p(0)
			w.cloudErr = func(op) error {
				w.gone = false // it is the other hook
				if tries++; len(w.completed) == 1 && tries < 5 {
					return errThrottled
				}
				return nil
			}
		})
		l.until("done", time.Minute, isDone)
		must.NoDiff(t, "completed", slices.Sorted(slices.Values(w.completed)), []string{"amsagent-a CONTINUE", "amsagent-b CONTINUE"})
	})
}

// A hook that an event named gets heartbeats only after the cloud has confirmed it. As long as the cloud does not answer, the
// node leaves in order before the hook lapses.
func TestNamedHookOfACloudThatIsAway(t *testing.T) {
	for trouble, restart := range map[string]bool{"discover": false, "heartbeat": true} {
		t.Run(trouble, inBubble(1, func(t *testing.T, w *world) {
			away := func(w *world) { w.cloudErr = failing(errThrottled) }
			if !restart {
				away(w)
			}
			l := w.live()
			l.Notice(terminate())
			began := time.Now()
			tick(time.Minute)
			if restart {
				l.kill()
				w.set(away)
				l = w.live()
				tick(time.Second)
			}
			if v := l.View(); !strings.Contains(v.DeadlineBy, "unless a heartbeat gets through") || v.Trouble[trouble] == "" {
				t.Errorf("deadline by %s, trouble %v", v.DeadlineBy, v.Trouble)
			}
			l.until("left", time.Hour, func(v View) bool { return v.State == StateLeft })
			between(t, "left after the notice", time.Since(began), 9*time.Minute, 10*time.Minute)
			w.set(func(w *world) { w.cloudErr = nil })
			l.until("done", 21*time.Second, isDone)
			must.Equal(t, fmt.Sprintf("completed %v", w.completed), len(w.completed), 1)
		}))
	}
	// A hook that does not wait yet has its whole timeout.
	bubble(t, 1, func(t *testing.T, w *world) {
		w.cloudErr = failing(cloud.ErrNotWaiting, opDiscover)
		l := w.live()
		l.Notice(terminate())
		tick(20 * time.Minute)
		if v := l.View(); v.Step != StepDraining || v.DeadlineBy != "the configured deadline" || len(w.beats) != 0 {
			t.Errorf("step %s, deadline by %s, %d heartbeats", v.Step, v.DeadlineBy, len(w.beats))
		}
	})
}

// If the role may not list the hooks of the group, a hook that an event named is this agent's by its name, or without names
// because the operator sent the event here. A hook of another program delays nothing.
func TestNamedHookThatCannotBeVerified(t *testing.T) {
	for _, tt := range []struct {
		name   string
		hook   string
		filter cloud.Filter
		ours   bool
	}{
		{"no names", "drain", nil, true},
		{"its name", "drain", cloud.Filter{"drain"}, true},
		{"a pattern", "drain", cloud.Filter{"dr*"}, true},
		{"another name", "drain", cloud.Filter{"amsagent"}, false},
		{"another pattern", "drain", cloud.Filter{"amsagent*"}, false},
		{"CodeDeploy's", "CodeDeploy-managed-automatic-launch-deployment-hook-amsagent", nil, false},
	} {
		t.Run(tt.name, inBubble(1, func(t *testing.T, w *world) {
			w.cloudErr = failing(&cloud.DeniedError{Permission: "autoscaling:DescribeLifecycleHooks"}, opDiscover)
			l := w.live(func(o *Options) { o.Filter = func() cloud.Filter { return tt.filter } })
			n := terminate()
			n.Hook.Name = tt.hook
			l.Notice(n)
			tick(time.Minute)
			v := l.View()
			if (len(v.Hooks) == 1 && v.Hooks[0].Beats > 0) != tt.ours || (v.Trouble["discover"] == "") != tt.ours {
				t.Errorf("hooks %+v, trouble %v", v.Hooks, v.Trouble)
			}
			w.set(func(w *world) { w.viewers = p(0) })
			l.until("done", time.Minute, isDone)
			if v := l.View(); (len(w.completed) == 1) != tt.ours || (len(v.Trouble) == 0) != tt.ours {
				t.Errorf("completed %v, trouble %v", w.completed, v.Trouble)
			}
		}))
	}
}

// If the settings have names, the names decide, also for a hook that was extended before a restart.
func TestHookKeptBeforeOtherSettings(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.named = groupHooks("drain", "amsagent-drain")
		names := cloud.Filter{"drain"}
		o := func(o *Options) { o.Filter = func() cloud.Filter { return names } }
		l := w.live(o)
		l.Notice(unhooked(terminate()))
		tick(time.Minute)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Name != "drain" || v.Hooks[0].Beats != 1 {
			t.Fatalf("hooks %+v", v.Hooks)
		}
		l.kill()
		names = cloud.Filter{"amsagent-*"}
		w.set(func(w *world) { w.foreign = &w.named[0] })
		l = w.live(o)
		tick(time.Minute)
		if v := l.View(); len(v.Hooks) != 1 || v.Hooks[0].Name != "amsagent-drain" || v.Hooks[0].Beats != 1 {
			t.Errorf("hooks %+v", v.Hooks)
		}
		l.kill()
		names = cloud.Filter{"end"}
		w.set(func(w *world) { w.foreign = &w.named[1] })
		l = w.live(o)
		tick(time.Minute)
		if v := l.View(); len(v.Hooks) != 0 || v.Trouble["hooks"] == "" {
			t.Errorf("hooks %+v, trouble %v", v.Hooks, v.Trouble)
		}
	})
}

// A heartbeat returns how long the hook waits from then on, which may differ from the known timeout.
func TestHeartbeatsByWhatTheCloudGrants(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		w.extends = 40 * time.Minute
		l := w.live(func(o *Options) { o.Deadline = fixed(10 * time.Hour) })
		n := terminate()
		n.Hook.Timeout = 0
		l.Notice(n)
		tick(time.Hour + time.Second)
		if v := l.View(); len(w.beats) != 4 || v.Hooks[0].Timeout != seconds.Duration(40*time.Minute) {
			t.Errorf("%d heartbeats, hooks %+v", len(w.beats), v.Hooks)
		}
		// Less time remains.
		w.set(func(w *world) { w.extends = 4 * time.Minute })
		tick(30 * time.Minute)
		must.Equal(t, "heartbeats", len(w.beats), 10)
	})
}

// CompletePending completes no hook of another program, even if an event named one before the drain was killed.
func TestFinishStopCompletesOursAlone(t *testing.T) {
	denied := &cloud.DeniedError{Permission: "autoscaling:DescribeLifecycleHooks"}
	for _, tt := range []struct {
		name      string
		hooks     []string // of the group, besides drain that the event names
		filter    cloud.Filter
		err       error // of the question for the hooks
		beaten    bool  // before the drain was killed
		completed []string
		fails     bool
	}{
		{name: "the only one", completed: []string{"drain CONTINUE"}},
		{name: "another's", hooks: []string{"logs"}, fails: true},
		{name: "another's beside ours", hooks: []string{"amsagent"}, completed: []string{"amsagent CONTINUE"}},
		{name: "by its name", hooks: []string{"amsagent"}, filter: cloud.Filter{"drain"}, completed: []string{"drain CONTINUE"}},
		{name: "kept waiting before", hooks: []string{"amsagent"}, beaten: true, completed: []string{"drain CONTINUE"}},
		{name: "kept waiting before other settings", hooks: []string{"amsagent"}, filter: cloud.Filter{"amsagent"}, beaten: true, completed: []string{"amsagent CONTINUE"}},
		{name: "the list is denied", err: denied, completed: []string{"drain CONTINUE"}},
		{name: "the list is denied, and it has another name", err: denied, filter: cloud.Filter{"amsagent*"}, fails: true},
		{name: "the list does not answer", err: errThrottled, fails: true},
	} {
		t.Run(tt.name, inBubble(1, func(t *testing.T, w *world) {
			if !tt.beaten {
				w.cloudErr = failing(errThrottled)
			}
			l := w.live()
			l.Notice(terminate())
			tick(time.Second)
			l.kill()
			must.Equal(t, "heartbeats", len(w.beats) > 0, tt.beaten)
			for _, name := range tt.hooks {
				w.named = append(w.named, Hook{Provider: "aws", Group: "edge", Name: name})
			}
			w.cloudErr = failing(tt.err, opDiscover)
			err := CompletePending(t.Context(), w, w, tt.filter, nil, w.options().Log)
			if !slices.Equal(w.completed, tt.completed) || (err != nil) != tt.fails {
				t.Errorf("completed %v, want %v; %v", w.completed, tt.completed, err)
			}
		}))
	}
}
