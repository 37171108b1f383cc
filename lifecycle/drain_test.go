// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestTerminateDrainsAndCompletesLast(t *testing.T) {
	bubble(t, 2, func(t *testing.T, w *world) {
		w.stopTime = 3 * time.Second
		l := w.live()
		if v := l.View(); v.State != StateActive || !v.Ready {
			t.Fatalf("before: %s, ready %v", v.State, v.Ready)
		}
		l.Notice(terminate())
		if v := l.View(); v.Ready || v.State != StateDraining {
			t.Fatalf("right after the notice: %s, ready %v", v.State, v.Ready)
		}
		synctest.Wait()
		must.Equal(t, "the record", w.record, cluster.StateDraining)
		tick(20 * time.Minute)
		must.Equal(t, "AMS was stopped with viewers on it", w.stops, 0)
		must.Equal(t, "heartbeats in 20 minutes", len(w.beats), 5) // at once, and each 5 minutes
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("the hook is completed", 2*time.Second+w.stopTime+100*time.Millisecond, isDone)
		must.Equal(t, "order", w.sinceStop(), "stop deregister? record:left complete? complete")
		if v := l.View(); v.State != StateLeft || v.Ready || !v.Finished() || v.Cut == nil || *v.Cut != 0 {
			t.Errorf("after: %+v", v)
		}
		if len(w.completed) != 1 || w.completed[0] != "drain CONTINUE" || w.record != cluster.StateLeft {
			t.Errorf("completed %v, record %s", w.completed, w.record)
		}
		synctest.Wait()
		if len(w.events) != 2 || w.events[0].Kind != "drain" || w.events[1].Kind != "drained" {
			t.Errorf("events: %+v", w.events)
		}
	})
}

// A machine whose root volume is replaced leaves like any other, and its record has the reason. If the group terminates it
// after all, the termination hook is completed again.
func TestReimage(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		n := terminate()
		n.ID, n.Kind, n.Reason = "aws-lifecycle/reimage", Reimage, "root volume replaced"
		l.Notice(n)
		tick(time.Minute)
		must.Equal(t, "the server was stopped with a viewer on it", w.stops, 0)
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("done", time.Minute, isDone)
		if len(w.completed) != 1 || len(w.tombs) != 1 || w.tombs[0].LeftBy != cluster.LeftByReimage || w.tombs[0].Reason != "root volume replaced" {
			t.Errorf("completed %v, departures %+v", w.completed, w.tombs)
		}
		l.Notice(terminate())
		l.until("tried again", time.Minute, func(v View) bool { return isDone(v) && len(w.times("complete?")) == 2 })
	})
}

// The count begins when the load balancers that confirm their state send no new sessions to this node, or after a bounded time.
func TestDrainWaitsForBalancers(t *testing.T) {
	away := errors.New("no primary")
	for name, tt := range map[string]struct {
		acts    time.Duration // when the load balancer takes the node out
		request DrainRequest
		mongo   error
		least   time.Duration
		most    time.Duration
		late    bool
	}{
		"acts in time":                 {acts: 3 * time.Second, least: 3 * time.Second, most: 4 * time.Second},
		"has acted before":             {most: 100 * time.Millisecond},
		"has acted, MongoDB away":      {mongo: away, least: 2 * time.Second, most: 2100 * time.Millisecond},
		"acts in time, MongoDB away":   {mongo: away, acts: 3 * time.Second, least: 3 * time.Second, most: 4 * time.Second},
		"does not act":                 {acts: time.Hour, least: 10 * time.Second, most: 10100 * time.Millisecond, late: true},
		"does not act, no time at all": {acts: time.Hour, request: DrainRequest{Now: true}, most: 100 * time.Millisecond},
		"does not act, little time":    {acts: time.Hour, request: DrainRequest{Deadline: seconds.Duration(4300 * time.Millisecond)}, least: 4300 * time.Millisecond, most: 4400 * time.Millisecond, late: true},
	} {
		t.Run(name, inBubble(0, func(t *testing.T, w *world) {
			w.mongoErr = tt.mongo
			began := time.Now()
			l := w.live(func(o *Options) {
				o.Balancers = func(context.Context) []string {
					if time.Since(began) < tt.acts {
						return []string{"lb-1", "lb-2"}
					}
					return nil
				}
			})
			must.OK(t, l.Drain(tt.request))
			synctest.Wait()
			if tt.least > 2*time.Second {
				limit, v := min(10*time.Second, cmp.Or(time.Duration(tt.request.Deadline), time.Hour)), l.View()
				if v.Ready || v.Step != StepAnnouncing || (time.Until(v.Until)-limit).Abs() > time.Second || !strings.HasPrefix(v.Progress, "waiting for load balancers: lb-1, lb-2, until ") {
					t.Errorf("ready %v, step %s until %s, %q", v.Ready, v.Step, v.Until, v.Progress)
				}
			}
			took := l.until("counted", time.Minute, func(v View) bool { return v.Step != StepAnnouncing })
			between(t, "counted after", took, tt.least, tt.most)
			l.until("left", time.Minute, func(v View) bool { return v.State == StateLeft })
			must.Equal(t, fmt.Sprintf("noted in %v", l.View().Notes), strings.Contains(fmt.Sprint(l.View().Notes), "load balancers still send sessions to this node: lb-1, lb-2"), tt.late)
		}))
	}
}

// An HLS player has no connection at some moments: if viewers are counted by connections, two counts of zero prove nothing.
func TestConnectionsHaveToStayAway(t *testing.T) {
	bubble(t, 2, func(t *testing.T, w *world) {
		w.countedBy = cluster.CountedByConnections
		l := w.live()
		l.Notice(terminate())
		tick(10 * time.Second)
		for range 5 { // between two segments, again and again
			w.set(func(w *world) { w.viewers = p(0) })
			tick(6 * time.Second)
			w.set(func(w *world) { w.viewers = p(2) })
			tick(2 * time.Second)
		}
		must.Equal(t, "AMS was stopped while players were between two segments", w.stops, 0)
		w.set(func(w *world) { w.viewers = p(0) })
		between(t, "done after", l.until("done", time.Minute, isDone), 8*time.Second, 12*time.Second)
	})
}

// Connections of other nodes may be those of viewers behind a proxy. The drain waits for them for five minutes after the last
// other session (review night-shift A1).
func TestConnectionsOfOtherNodes(t *testing.T) {
	draining := func(w *world) *life {
		w.viewers, w.peers, w.countedBy = p(1), p(3), cluster.CountedByConnections
		l := w.live()
		l.Notice(terminate())
		tick(20 * time.Minute)
		w.set(func(w *world) { w.viewers = p(0) })
		return l
	}
	bubble(t, 0, func(t *testing.T, w *world) {
		l := draining(w)
		tick(2 * time.Second)
		if v := l.View(); v.Step != StepDraining || v.Sessions.Left() != "0 publishers, about 0 viewers left, 3 connections of other nodes" {
			t.Errorf("step %s, %s", v.Step, v.Sessions.Left())
		}
		w.set(func(w *world) { w.peers = p(0) }) // between two segments
		tick(5 * time.Second)
		w.set(func(w *world) { w.peers = p(3) })
		between(t, "done after", l.until("done", time.Hour, isDone), 5*time.Minute, 5*time.Minute+10*time.Second)
		must.Contain(t, "notes", fmt.Sprint(l.View().Notes), "only connections of other nodes are left, sessions 0 publishers, about 0 viewers left, 3 connections of other nodes")
		if len(w.tombs) != 1 || w.tombs[0].Cut != nil {
			t.Errorf("it is not known what was cut: %+v", w.tombs)
		}
	})
	bubble(t, 0, func(t *testing.T, w *world) {
		l := draining(w)
		tick(time.Minute)
		w.set(func(w *world) { w.peers = p(0) })
		between(t, "done after", l.until("done", time.Minute, isDone), 8*time.Second, 12*time.Second)
		if len(w.tombs) != 1 || w.tombs[0].Cut == nil || *w.tombs[0].Cut != 0 {
			t.Errorf("nothing was cut: %+v", w.tombs)
		}
	})
	// A shutdown waits, too, also if nothing else was here before.
	bubble(t, 0, func(t *testing.T, w *world) {
		w.peers, w.countedBy = p(3), cluster.CountedByConnections
		at := time.Now()
		l := w.live(func(o *Options) {
			o.Before = func() (cluster.Sessions, time.Time) {
				return cluster.Sessions{Publishers: p(0), Viewers: p(0), By: w.countedBy, Peers: p(3)}, at
			}
		})
		l.Notice(goesDown(15 * time.Minute))
		<-l.ended
		between(t, "ended after", time.Since(at), 5*time.Minute, 5*time.Minute+15*time.Second)
	})
}

func TestDeadlineCutsAndCounts(t *testing.T) {
	for _, role := range []string{"origin", "edge"} {
		t.Run(role, inBubble(0, func(t *testing.T, w *world) {
			w.publishers, w.viewers = p(2), p(31)
			l := w.live(func(o *Options) { o.Role = func() string { return role } })
			began := time.Now()
			must.OK(t, l.Drain(DrainRequest{Deadline: seconds.Duration(10 * time.Minute), Who: "ann", RepairStreams: true}))
			must.OK(t, l.Drain(DrainRequest{Deadline: seconds.Duration(11 * time.Minute), Who: "root"}))
			tick(3 * time.Second)
			must.Equal(t, "progress", l.View().Progress, "2 publishers, 31 viewers left, 10m to the deadline (--deadline of root)")
			l.until("done", 12*time.Minute, isDone)
			if at := w.cutAt.Sub(began); at < 11*time.Minute || at > 11*time.Minute+time.Second {
				t.Errorf("cut after %s", at)
			}
			if len(w.tombs) != 1 || w.tombs[0].Cut == nil || *w.tombs[0].Cut != 33 || !w.tombs[0].RepairStreams || l.View().Who != "root" {
				t.Errorf("tombstones: %+v", w.tombs)
			}
			must.Equal(t, fmt.Sprintf("number of hooks that a person's drain completed: %v", w.completed), len(w.completed), 0)
		}))
	}
}

func TestRoles(t *testing.T) {
	for _, c := range []struct {
		role                string
		publishers, viewers *int
		ends                bool
	}{
		{"origin", p(0), p(0), true},
		{"origin", p(1), p(0), false},
		{"origin", p(0), p(1), false},
		{"origin", nil, p(0), false},
		{"edge", p(1), p(0), true},
		{"edge", nil, p(0), true},
		{"edge", p(0), nil, false},
		{"edge", p(0), p(1), false},
		{"transcoder", p(0), p(1), false},
		{"", p(0), nil, false},
	} {
		bubble(t, 0, func(t *testing.T, w *world) {
			w.publishers, w.viewers = c.publishers, c.viewers
			l := w.live(func(o *Options) {
				o.Role = func() string { return c.role }
			})
			l.Drain(DrainRequest{})
			tick(9 * time.Minute)
			must.Equal(t, fmt.Sprintf("%s with %s: ended", c.role, cluster.Sessions{Publishers: c.publishers, Viewers: c.viewers}.Left()), isDone(l.View()), c.ends)
			tick(time.Hour)
			must.Equal(t, c.role+": step after the deadline", l.View().Step, StepDone)
		})
	}
}

// A drain that begins before the deadline is final accepts the final one, and keeps it.
func TestDeadlineOfALateTag(t *testing.T) {
	bubble(t, 1, func(t *testing.T, w *world) {
		var mu sync.Mutex
		wait, final := time.Hour, false
		set := func(d time.Duration, f bool) {
			mu.Lock()
			defer mu.Unlock()
			wait, final = d, f
		}
		l := w.live(func(o *Options) {
			o.Deadline = func() (time.Duration, bool) {
				mu.Lock()
				defer mu.Unlock()
				return wait, final
			}
		})
		begun := time.Now()
		l.Drain(DrainRequest{})
		deadline := func(when string, want time.Duration) {
			t.Helper()
			tick(5 * time.Second)
			must.Equal(t, when+": the deadline is after", l.View().Deadline.Sub(begun).Round(time.Minute), want)
		}
		deadline("not final", time.Hour)
		set(20*time.Minute, true)
		deadline("the tags are read", 20*time.Minute)
		set(3*time.Hour, true)
		deadline("changed later", 20*time.Minute)
		tick(20 * time.Minute)
		must.Equal(t, "step after the deadline", l.View().Step, StepDone)
	})
}

func TestUnknownIsNotZero(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*world)
		why    string
	}{
		"error":   {func(w *world) { w.countErr = errMongo }, errMongo.Error()},
		"hanging": {func(w *world) { w.countHang = true }, "deadline exceeded"},
		"partly":  {func(w *world) { w.publishers = nil }, "not all of them are known"},
	} {
		t.Run(name, inBubble(0, func(t *testing.T, w *world) {
			tt.change(w)
			l := w.live()
			l.Drain(DrainRequest{Deadline: seconds.Duration(5 * time.Minute)})
			tick(4*time.Minute + 50*time.Second)
			v := l.View()
			must.Equal(t, "step", v.Step, StepDraining)
			must.Contain(t, "trouble", v.Trouble["sessions"], "the drain waits until the deadline: ")
			must.Contain(t, "trouble", v.Trouble["sessions"], tt.why)
			l.until("done", 11*time.Second, isDone)
			must.Equal(t, "cut of sessions that were not counted", w.tombs[0].Cut, nil)
		}))
	}
}

// TestNowDuringASlowCount: a count that takes too long for a deadline that has moved up is started again.
func TestNowDuringASlowCount(t *testing.T) {
	living(t, 3, func(t *testing.T, w *world, l *life) {
		w.set(func(w *world) { w.countTime = 4900 * time.Millisecond })
		must.OK(t, l.Drain(DrainRequest{}))
		tick(8 * time.Second) // within the second count
		w.set(func(w *world) { w.countTime = 800 * time.Millisecond })
		must.OK(t, l.Drain(DrainRequest{Now: true}))
		l.until("done", 4*time.Second, isDone)
		if v := l.View(); v.Cut == nil || *v.Cut != 3 {
			t.Errorf("cut %v", v.Cut)
		}
	})
}

func TestMongoAwayHoldsNothing(t *testing.T) {
	for name, change := range map[string]func(*world){
		"refusing": func(w *world) { w.mongoErr = errMongo },
		"hanging":  func(w *world) { w.mongoHang = true },
	} {
		t.Run(name, inBubble(1, func(t *testing.T, w *world) {
			change(w)
			l := w.live()
			l.Notice(terminate())
			must.Equal(t, "ready", l.View().Ready, false)
			tick(30 * time.Second)
			if v := l.View(); v.Step != StepDraining || v.Trouble["registry"] == "" || v.RegistryTold {
				t.Errorf("%s %v", v.Step, v.Trouble)
			}
			w.set(func(w *world) { w.viewers = p(0) })
			l.until("done", 12100*time.Millisecond, isDone)
			must.Equal(t, "order", w.sinceStop(), "stop deregister? complete? complete")
			l.kill()
			// After a restart of the agent, the pending writes follow when MongoDB is back.
			l = w.live()
			tick(time.Minute)
			must.Equal(t, "the record without MongoDB", w.record, cluster.StateActive)
			w.set(func(w *world) { w.mongoErr, w.mongoHang = nil, false })
			l.until("record written", 30*time.Second, func(v View) bool { return v.RegistryTold })
			if w.record != cluster.StateLeft || w.stops != 1 || len(w.completed) != 1 {
				t.Errorf("record %s, %d stops, completed %v", w.record, w.stops, w.completed)
			}
		}))
	}
}

// slowDisk writes the file of the drain for hours, once it is slow.
type slowDisk struct {
	*world
	slow, end chan struct{}
}

func (d slowDisk) WriteFile(path string, data []byte, mode, dirMode fs.FileMode) error {
	select {
	case <-d.slow:
		<-d.end
	default:
	}
	return d.world.WriteFile(path, data, mode, dirMode)
}

// TestDiskHangsDuringAWrite: an earlier state is being written when the drain begins. The record drains all the same.
func TestDiskHangsDuringAWrite(t *testing.T) {
	w := newWorld(t)
	w.viewers, w.record, w.mongoHang = p(1), cluster.StateDraining, true
	disk := slowDisk{w, make(chan struct{}), make(chan struct{})}
	l := w.live(func(o *Options) { o.Files = disk })
	defer close(disk.end)
	must.OK(t, l.Undrain("a test", cluster.StateDraining)) // the state active hangs
	<-time.After(200 * time.Millisecond)                   // it is being written
	w.set(func(w *world) { w.mongoHang = false })
	close(disk.slow)
	go func() { _ = l.Drain(DrainRequest{}) }()
	must.Until(t, "the view drains", func() bool { return l.View().Registry == cluster.StateDraining })
	must.Until(t, "the record drains", func() bool { return len(w.times("record:draining")) > 0 })
}

// TestDiskHangs: the runner's lock waits for the disk. The view, its subscribers and the node record do not.
func TestDiskHangs(t *testing.T) {
	w := newWorld(t)
	disk := slowDisk{w, make(chan struct{}), make(chan struct{})}
	close(disk.slow)
	l := w.live(func(o *Options) { o.Files = disk })
	views, asked := l.Subscribe(t.Context()), make(chan error, 1)
	go func() { asked <- l.Drain(DrainRequest{Who: "a test"}) }()
	defer func() {
		close(disk.end)
		must.OK(t, <-asked)
	}()
	must.Until(t, "a subscriber sees the drain", func() bool {
		select {
		case v := <-views:
			return v.State == StateDraining && !v.Ready
		default:
			return false
		}
	})
	must.Until(t, "the record drains", func() bool { return len(w.times("record:draining")) > 0 })
}

// The view says until when a step with a limit of its own lasts, and neither a second notice nor a restart of the daemon moves
// that.
func TestStepsSayTheirEnds(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.mongoErr, w.stopTime = errMongo, time.Hour
		l := w.live()
		expect := func(step Step, limit time.Duration, progress string) (until time.Time) {
			t.Helper()
			l.until(string(step), 5*time.Minute, func(v View) bool { return v.Step == step && !v.Until.IsZero() })
			v := l.View()
			if left := time.Until(v.Until); (left-limit).Abs() > time.Second || v.Progress != progress+", until "+v.Until.Local().Format("15:04:05")+" at the latest" {
				t.Errorf("%s: %s left, %q", step, left, v.Progress)
			}
			return v.Until
		}
		l.Notice(terminate())
		expect(StepAnnouncing, 2*time.Second, "telling the registry that this node drains")
		until := expect(StepStopping, 90*time.Second, "stopping Ant Media Server")
		tick(time.Minute)
		l.Notice(spot(time.Hour))
		l.kill()
		l = w.live()
		if again := expect(StepStopping, 30*time.Second, "stopping Ant Media Server"); again.Sub(until).Abs() > time.Second {
			t.Errorf("the limit moved from %s to %s", until, again)
		}
		l.until("stop failed", time.Minute, func(v View) bool { return v.StopFailed })
		if late := time.Since(until); late > 5*time.Second || !l.View().Until.IsZero() {
			t.Errorf("the stop failed %s after its limit, %+v", late, l.View())
		}
		w.set(func(w *world) { w.stopTime = 0 })
		expect(StepDeregistering, 10*time.Second, "telling the registry that this node has left")
		l.until("done", time.Minute, isDone)
	})
}

func TestServerThatDoesNotStop(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.stopErr = errMongo
		l := w.live()
		l.Notice(terminate())
		took := l.until("the cloud may go on", 3*time.Minute, func(v View) bool { return len(v.Hooks) == 1 && v.Hooks[0].End == "completed" })
		if took < 90*time.Second || len(w.completed) != 1 || w.record != cluster.StateDraining {
			t.Errorf("after %s: completed %v, record %s", took, w.completed, w.record)
		}
		// After a kill the daemon continues.
		l.kill()
		l = w.live()
		tries := len(w.times("stop"))
		tick(10 * time.Minute)
		if v := l.View(); v.State != StateDraining || v.Ready || !v.StopFailed || w.record != cluster.StateDraining {
			t.Errorf("%+v, record %s", v, w.record)
		}
		must.Equal(t, "the record has the failed stop", w.stopFailed, true)
		if n := len(w.times("stop")) - tries; n < 5 || n > 60 {
			t.Errorf("%d tries in 10 minutes", n)
		}
		w.set(func(w *world) { w.stopErr = nil })
		l.until("left", 2*time.Minute, isDone)
		if len(w.completed) != 1 || w.record != cluster.StateLeft || l.View().StopFailed {
			t.Errorf("completed %v, record %s, %+v", w.completed, w.record, l.View())
		}
	})
}

// A machine that shuts down does not wait for a server that does not end: systemd kills it.
func TestShutdownOfAServerThatDoesNotStop(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.stopErr = errMongo
		l := w.live()
		l.Notice(terminate())
		l.until("stop failed", 3*time.Minute, func(v View) bool { return v.StopFailed })
		began := time.Now()
		l.Notice(goesDown(15 * time.Minute))
		l.until("the daemon may end", time.Minute, View.Finished)
		if took := time.Since(began); took > 40*time.Second || w.record != cluster.StateDraining {
			t.Errorf("after %s, record %s", took, w.record)
		}
	})
}

// If nothing on this machine can stop the server, the drain ends all the same, and reports that.
func TestServerThatIsNotManaged(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.stopErr = ErrNotManaged
		l := w.live()
		l.Notice(terminate())
		l.until("done", time.Minute, isDone)
		must.Contain(t, "notes", fmt.Sprint(l.View().Notes), "stop it by hand")
		if len(w.completed) != 1 || w.record != cluster.StateLeft {
			t.Errorf("completed %v, record %s", w.completed, w.record)
		}
	})
}

func TestShutdownDrainsAndReturns(t *testing.T) {
	for _, c := range []struct {
		name  string
		limit time.Duration // 0 is unknown
		leave time.Duration // when the viewer leaves
		least time.Duration
		most  time.Duration
	}{
		{"no session", time.Minute, 0, 0, 1200 * time.Millisecond},
		{"viewer leaves", time.Minute, 20 * time.Second, 20 * time.Second, 23 * time.Second},
		{"deadline", time.Minute, time.Hour, 58 * time.Second, 60 * time.Second},
		{"unknown deadline", 0, time.Hour, 88 * time.Second, 90 * time.Second},
	} {
		t.Run(c.name, inBubble(0, func(t *testing.T, w *world) {
			if c.leave > 0 {
				w.viewers = p(1)
				time.AfterFunc(c.leave, func() { w.set(func(w *world) { w.viewers = p(0) }) })
			}
			l := w.live()
			began, n := time.Now(), Notice{ID: "shutdown", Source: "systemd", Kind: Shutdown}
			if c.limit > 0 {
				n.Deadline = began.Add(c.limit)
			}
			l.Notice(n)
			select {
			case <-l.ended:
			case <-time.After(2 * time.Hour):
				l.kill()
			}
			must.Equal(t, "the view reports the end", l.View().Finished(), true)
			between(t, "returned after", time.Since(began), c.least, c.most)
			if w.stops != 0 || len(w.tombs) != 0 || w.record != cluster.StateDraining {
				t.Errorf("%d stops, %d tombstones, record %s", w.stops, len(w.tombs), w.record)
			}
			// The shutdown is cancelled.
			l = w.live()
			l.until("active", time.Second, func(v View) bool { return v.State == StateActive && v.Ready && v.RegistryTold })
			if w.record != cluster.StateActive || w.file != nil {
				t.Errorf("record %s, file %q", w.record, w.file)
			}
		}))
	}
}

func TestShutdownInTheMiddleOfADrain(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		l.Notice(terminate())
		tick(time.Minute)
		l.Notice(goesDown(30 * time.Second))
		must.Equal(t, "step", l.View().Step, StepDraining)
		if err := l.Undrain("root", ""); err == nil {
			t.Error("an undrain of a machine that shuts down")
		}
		began := time.Now()
		<-l.ended
		between(t, "returned after", time.Since(began), 28*time.Second, 30*time.Second)
		if w.stops != 0 || len(w.completed) != 0 {
			t.Errorf("%d stops, completed %v", w.stops, w.completed)
		}
		// The process that deregisters after AMS has stopped completes the hook.
		if err := CompletePending(t.Context(), w, w, nil, nil, w.options().Log); err != nil || len(w.completed) != 1 {
			t.Errorf("completed %v, %v", w.completed, err)
		}
		// A new boot drains again if the machine is still terminated.
		w.boot, w.gone, w.record = "boot-2", false, cluster.StateActive
		l = w.live()
		if v := l.View(); v.Ready || v.Kind != Terminate {
			t.Errorf("%+v", v)
		}
	})
}

func TestShutdownOfOneThatNeverJoinedOrHasLeft(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.joined = false
		l := w.live()
		l.Notice(goesDown(30 * time.Second))
		began := time.Now()
		<-l.ended
		must.Equal(t, "it waited for", time.Since(began), 0)
		w = newWorld(t)
		l = w.live()
		l.Drain(DrainRequest{})
		l.until("done", time.Minute, isDone)
		l.Notice(goesDown(30 * time.Second))
		began = time.Now()
		<-l.ended
		if time.Since(began) > 0 || w.record != cluster.StateLeft {
			t.Error("it waited")
		}
	})
}

func TestReboot(t *testing.T) {
	living(t, 1, func(t *testing.T, w *world, l *life) {
		at := time.Now().Add(72 * time.Hour)
		l.Notice(Notice{ID: "event-1", Source: "aws-events", Kind: Reboot, Reason: "system-reboot", Deadline: at})
		tick(70*time.Hour + 59*time.Minute)
		if v := l.View(); !v.Ready || v.NextDrain.IsZero() {
			t.Fatalf("drains days before: %+v", v)
		}
		tick(2 * time.Minute)
		if v := l.View(); v.Ready || v.Step != StepDraining {
			t.Fatalf("does not drain: %+v", v)
		}
		l.until("done", 2*time.Hour, isDone)
		if !time.Now().Before(at) || w.stops != 0 || len(w.tombs) != 0 || w.record != cluster.StateDraining {
			t.Errorf("at %s: %d stops, record %s", time.Until(at), w.stops, w.record)
		}
		l.kill()
		// The boot is the same, so the drain is the same.
		l = w.live()
		if v := l.View(); v.Ready || v.Step != StepDone {
			t.Errorf("%+v", v)
		}
		// The cloud withdraws the notice.
		l.Notice(Notice{ID: "event-1", Source: "aws-events", Kind: withdrawn})
		l.until("active", time.Second, func(v View) bool { return v.Ready && v.RegistryTold })
		l.Notice(Notice{ID: "event-2", Source: "aws-events", Kind: Reboot, Deadline: time.Now().Add(time.Minute)})
		l.until("done", time.Minute, isDone)
		l.kill()
		w.boot = "boot-2"
		l = w.live()
		if v := l.View(); !v.Ready || w.file != nil {
			t.Errorf("after the reboot: %+v", v)
		}
	})
}

// A termination that follows the drain for a reboot counts the sessions again.
func TestTerminateAfterTheDrainForAReboot(t *testing.T) {
	living(t, 0, func(t *testing.T, w *world, l *life) {
		l.Notice(Notice{ID: "event-1", Source: "aws-events", Kind: Reboot, Deadline: time.Now().Add(50 * time.Minute)})
		l.until("drained", time.Minute, isDone)
		w.set(func(w *world) { w.viewers = p(1) }) // who knew the address
		l.Notice(terminate())
		tick(10 * time.Minute)
		if v := l.View(); v.Step != StepDraining || w.stops != 0 {
			t.Errorf("step %s, %d stops with a viewer", v.Step, w.stops)
		}
		w.set(func(w *world) { w.viewers = p(0) })
		l.until("left", time.Minute, isDone)
	})
}

// A notice that is announced for weeks ahead does not change the goal of a reboot or standby of today, and is forgotten if the
// cloud withdraws it.
func TestAnnouncedForLater(t *testing.T) {
	retirement := func() Notice {
		return Notice{ID: "event-1", Source: "aws-scheduled", Kind: Interrupt, Reason: "instance-retirement", Deadline: time.Now().Add(14 * 24 * time.Hour)}
	}
	serves := func(t *testing.T, w *world, l *life) {
		t.Helper()
		tick(time.Minute)
		if v := l.View(); !v.Ready || v.Step != StepNone || w.stops != 0 {
			t.Errorf("step %s, %d stops, %v", v.Step, w.stops, v.Notes)
		}
	}
	for name, during := range map[string]func(t *testing.T, w *world, l *life){
		"a shutdown and another boot": func(t *testing.T, w *world, l *life) {
			l.Notice(goesDown(time.Minute))
			tick(5 * time.Second)
			l.kill()
			w.boot, w.record = "boot-2", cluster.StateActive
			l = w.live()
			l.Notice(retirement())
			serves(t, w, l)
		},
		"a shutdown that the machine outlasts": func(t *testing.T, w *world, l *life) {
			l.Notice(goesDown(time.Minute))
			tick(5 * time.Second)
			l.kill()
			serves(t, w, w.live())
		},
		"a drain that was under way at another boot": func(t *testing.T, w *world, l *life) {
			tick(13*24*time.Hour + 23*time.Hour)
			must.Equal(t, "ready, a day before", l.View().Ready, false)
			l.kill()
			w.boot, w.record = "boot-2", cluster.StateActive
			serves(t, w, w.live()) // on another host: the cloud has stopped and started it
		},
		"a restart of the agent, and the cloud has changed its mind": func(t *testing.T, w *world, l *life) {
			l.kill()
			l = w.live()
			tick(14 * 24 * time.Hour)
			serves(t, w, l)
		},
		"a reboot": func(t *testing.T, w *world, l *life) {
			w.set(func(w *world) { w.viewers = p(0) })
			l.Notice(Notice{ID: "reboot", Source: "aws-scheduled", Kind: Reboot, Deadline: time.Now().Add(time.Minute)})
			l.until("done", time.Minute, isDone)
			if w.stops != 0 || w.record != cluster.StateDraining {
				t.Errorf("%d stops, record %s", w.stops, w.record)
			}
		},
		"a standby": func(t *testing.T, w *world, l *life) {
			w.set(func(w *world) { w.viewers = p(0) })
			l.Notice(park())
			l.until("parked", time.Minute, func(v View) bool { return v.State == StateParked && v.Step == StepDone })
			l.Notice(Notice{ID: "back", Source: "aws-lifecycle", Kind: Resume})
			l.until("active", time.Minute, func(v View) bool { return v.State == StateActive })
		},
	} {
		t.Run(name, alive(1, func(t *testing.T, w *world, l *life) {
			l.Notice(retirement())
			if v := l.View(); !v.Ready || v.NextDrain.IsZero() {
				t.Fatalf("drains weeks before: %+v", v)
			}
			during(t, w, l)
		}))
	}
}

// A client that follows the termination of a machine that never joined does not wait for a cloud that does not answer.
func TestCloudAwayAndNeverJoined(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.joined = false
		w.cloudErr = failing(errThrottled)
		l := w.live()
		l.Notice(unhooked(terminate()))
		l.until("only the cloud is left", time.Minute, func(v View) bool { return v.OnlyCloud() && v.NeverJoined })
		hook := *terminate().Hook
		w.set(func(w *world) { w.cloudErr, w.hook = nil, &hook })
		l.until("done", 10*time.Minute, isDone)
		if len(w.completed) != 1 || l.View().OnlyCloud() {
			t.Errorf("completed %v, %+v", w.completed, l.View())
		}
	})
}

// A client that follows the drain does not wait for a hook that never waits.
func TestHookThatNeverWaits(t *testing.T) {
	bubble(t, 0, func(t *testing.T, w *world) {
		w.cloudErr = failing(cloud.ErrNotWaiting, opContinue)
		l := w.live()
		l.Notice(terminate())
		l.until("only the cloud is left", 10*time.Minute, View.OnlyCloud)
		w.set(func(w *world) { w.cloudErr = nil })
		l.until("done", 10*time.Minute, isDone)
		if len(w.completed) != 1 || l.View().Trouble[string(opContinue)] != "" {
			t.Errorf("completed %v, %+v", w.completed, l.View())
		}
	})
}
