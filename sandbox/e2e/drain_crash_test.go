// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// TestCrashKillDrain kills the daemon at each step of a drain. The next daemon continues the same drain with the same deadline,
// and no session is cut.
func TestCrashKillDrain(t *testing.T) {
	for i, c := range []struct {
		step  lifecycle.Step
		how   syscall.Signal
		delay time.Duration // of the hook's wait
		stage func(h *onAWS)
		goOn  func(h *onAWS)
	}{
		{step: lifecycle.StepAnnouncing, how: syscall.SIGKILL, stage: func(h *onAWS) {
			h.Fault(mongod.Fault{Mode: mongod.Delay, Delay: 5 * time.Second, Commands: []string{"update", "findAndModify"}})
		}, goOn: func(h *onAWS) { h.Mongo.Faults().Clear() }},
		{step: lifecycle.StepDraining, how: syscall.SIGKILL},
		{step: lifecycle.StepDraining, how: syscall.SIGTERM},
		{step: lifecycle.StepStopping, how: syscall.SIGKILL, stage: func(h *onAWS) {
			h.People(http.MethodPost, "/behaviour", "slow_stop_ms", "3000")
			h.ViewersGo()
		}},
		{step: lifecycle.StepDeregistering, how: syscall.SIGKILL, stage: func(h *onAWS) {
			h.Fault(mongod.Fault{Mode: mongod.Refuse})
			h.ViewersGo()
		}, goOn: func(h *onAWS) { h.Mongo.Faults().Clear() }},
		{step: lifecycle.StepCompleting, how: syscall.SIGKILL, delay: 15 * time.Second, stage: func(h *onAWS) { h.ViewersGo() }},
		{step: lifecycle.StepCompleting, how: syscall.SIGTERM, delay: 15 * time.Second, stage: func(h *onAWS) { h.ViewersGo() }},
	} {
		t.Run(fmt.Sprintf("%s %s", c.step, c.how), func(t *testing.T) {
			t.Parallel()
			h := newScaled(t, newDatabase(t), fmt.Sprintf("10.0.8.%d", 50+i), fakeaws.AutoScalingOptions{ScalingOptions: fakes.ScalingOptions{WaitDelay: c.delay}}, endHook(time.Minute))
			p := h.Serving()
			h.Viewers(1)
			if c.step != lifecycle.StepAnnouncing {
				h.terminate()
				p.Counted(1)
			}
			if c.stage != nil {
				c.stage(h)
			}
			if c.step == lifecycle.StepAnnouncing {
				h.terminate()
			}
			before := p.Step(c.step)
			h.kept(func(step lifecycle.Step) bool { return step == c.step || c.step == lifecycle.StepStopping })
			p.End(c.how)
			if kept := h.record(); kept.Step != c.step && c.step != lifecycle.StepStopping || kept.Begun.Sub(before.Begun).Abs() > time.Second {
				t.Errorf("what is kept: %+v\nwas: %+v", kept, before)
			}
			served := c.step == lifecycle.StepAnnouncing || c.step == lifecycle.StepDraining
			wait(time.Second)
			if served && h.Live().Live.Viewers != 1 {
				t.Errorf("the sessions: %+v", h.Live())
			}
			p = h.Daemon()
			p.Says("continuing the drain")
			after := *p.View().Lifecycle
			if !after.Begun.Equal(before.Begun) || after.Deadline.Sub(before.Deadline).Abs() > time.Second {
				t.Errorf("another drain: %+v\nbefore: %+v", after, before)
			}
			if c.goOn != nil {
				c.goOn(h)
			}
			if served {
				h.RecordIs(cluster.StateDraining)
				p.Counted(1)
				if h.Live().Live.Viewers != 1 || p.Ready() {
					t.Errorf("the sessions: %+v", h.Live())
				}
				h.ViewersGo()
			}
			h.completed("drain")
			n := h.HasLeft()
			if st := h.Sessions(); st.Cut.Viewers != 0 || st.Left.Viewers != 1 || n.Cut == nil || *n.Cut != 0 {
				t.Errorf("the sessions: %+v, the record: %+v", st, n)
			}
			p.Step(lifecycle.StepDone)
		})
	}
}

// TestDrain100: a hundred scale-ins in a row, on some machines at a time, while
// whatever can fail fails at random.
func TestDrain100(t *testing.T) {
	total, machines := 100, 6
	if testing.Short() {
		total, machines = 12, 4
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("AMSAGENT_E2E_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("AMSAGENT_E2E_SEED=%d", seed)
	db := newDatabase(t)
	began := time.Now()
	var next, played atomic.Int64
	var all sync.WaitGroup
	for m := range machines {
		h := newScaled(t, db, fmt.Sprintf("10.0.9.%d", m+1), fakeaws.AutoScalingOptions{ScalingOptions: fakes.ScalingOptions{ActionDelay: 300 * time.Millisecond}}, endHook(20*time.Second))
		all.Go(func() {
			for n := int(next.Add(1)); n <= total; n = int(next.Add(1)) {
				r := &scaleIn{h: h, rand: rand.New(rand.NewPCG(seed, uint64(n))), number: n}
				if !r.play() {
					return
				}
				played.Add(1)
			}
		})
	}
	all.Wait()
	db.Faults().Clear()
	must.Equal(t, "scale-ins that were played to their end", int(played.Load()), total)
	client := rig.Connect(t, db)
	nodes, err := client.Nodes(t.Context())
	must.OK(t, err)
	left := 0
	for _, n := range nodes {
		if n.State == cluster.StateLeft {
			left++
		} else {
			t.Errorf("a row is left behind: %s %s (%s)", n.ID, n.State, n.Reason)
		}
	}
	must.Equal(t, "rows that say left", left, total)
	docs, err := client.AMSNodes(t.Context())
	must.OK(t, err)
	for _, d := range docs {
		t.Errorf("a document of Ant Media Server is left behind: %+v", d)
	}
	t.Logf("%d scale-ins on %d machines in %s", total, machines, time.Since(began).Round(time.Second))
}

// scaleIn is one of the hundred.
type scaleIn struct {
	h      *onAWS
	rand   *rand.Rand
	number int

	faults []string
	cut    bool
}

// play returns false if no other scale-in can be played on this machine.
func (r *scaleIn) play() bool {
	h := r.h
	t := h.T
	id := fmt.Sprintf("i-0ddd%013d", r.number)
	if h.row0() {
		if !r.reborn(id) {
			return false
		}
	} else {
		if err := h.asg.Detach(h.ID); err != nil { // the instance signs with its own key only
			t.Error(err)
			return false
		}
		h.ID = id
		h.hardware(r.number)
		h.aws.Update(func(i *fakeaws.Instance) { i.ID = id })
		if err := h.asg.Attach(scalingGroup, h.aws); err != nil {
			t.Error(err)
			return false
		}
	}
	r.cut = r.rand.IntN(8) == 0
	deadline := "1h"
	if r.cut {
		deadline = "5s"
	}
	h.Config("drain_deadline: " + deadline + "\n")
	p := h.Serving()
	viewers := r.rand.IntN(4)
	if r.cut {
		viewers++
	}
	if viewers > 0 {
		h.Viewers(viewers)
	}
	r.trouble("before", p)
	h.terminate()
	if r.rand.IntN(4) == 0 {
		if out, code := h.Event(hookEvent(h.ID), "--detach"); code != 0 {
			t.Errorf("%d: the event: exit %d: %s", r.number, code, out)
		}
		r.faults = append(r.faults, "event")
	}
	until(t, fmt.Sprintf("%d: readiness is off", r.number), func() string {
		v, body, err := p.Ask(t.Context())
		if err != nil || v.Lifecycle == nil || v.Lifecycle.Step == "" {
			return fmt.Sprint(body, err)
		}
		return ""
	})
	if viewers > 0 {
		until(t, fmt.Sprintf("%d: the registry knows", r.number), func() string {
			if v, body, err := p.Ask(t.Context()); err != nil || v.State != cluster.StateDraining {
				return fmt.Sprint(body, err)
			}
			return ""
		})
	}
	h.kept(func(step lifecycle.Step) bool { return step != lifecycle.StepNone })
	if v, _, err := p.Ask(t.Context()); err == nil {
		if next := r.trouble("draining", p); next != nil {
			p = next
			// A hook that was not on the disk yet is asked for again, and its time counts from then.
			p.Life(fmt.Sprintf("%d: the drain of before goes on: %+v", r.number, v.Lifecycle), func(w lifecycle.View) bool {
				return w.Step != "" && w.Begun.Equal(v.Lifecycle.Begun) && w.Deadline.Sub(v.Lifecycle.Deadline) < time.Minute
			})
		}
		r.watch(v.Lifecycle.Deadline, viewers)
	}
	h.completed("drain")
	h.HasLeft()
	st := h.Sessions()
	switch {
	case r.cut && st.Cut.Viewers != viewers, !r.cut && st.Cut.Viewers != 0, st.Served.Viewers != viewers:
		t.Errorf("%d (%s): %d viewers: %+v", r.number, strings.Join(r.faults, ", "), viewers, st)
	}
	if n := h.Record(); n.Cut == nil || *n.Cut != st.Cut.Viewers {
		t.Errorf("%d: the record: %+v, AMS: %+v", r.number, n, st)
	}
	if timedOut := h.entries(func(e fakes.Entry) bool { return e.What == fakes.TimedOut }); len(timedOut) > 0 {
		t.Errorf("%d: a hook timed out: %+v", r.number, timedOut)
	}
	p.Step(lifecycle.StepDone)
	p.End(syscall.SIGKILL) // the machine is gone
	h.aws.ClearFaults()
	h.asg.ClearFaults()
	return !t.Failed()
}

// watch checks that no viewer is cut early, and disconnects them.
func (r *scaleIn) watch(deadline time.Time, viewers int) {
	h := r.h
	if viewers == 0 {
		return
	}
	end := time.Now().Add(time.Duration(r.rand.IntN(2500)) * time.Millisecond)
	if r.cut {
		end = deadline.Add(-300 * time.Millisecond)
	}
	for time.Now().Before(end) {
		asked := time.Now()
		if st, err := h.TryLive(); err != nil && time.Now().Before(deadline) || err == nil && st.Live.Viewers != viewers {
			h.T.Errorf("%d (%s): cut %s before the deadline: %+v, %v", r.number, strings.Join(r.faults, ", "), deadline.Sub(asked), st, err)
			return
		}
		wait(100 * time.Millisecond)
	}
	if !r.cut {
		h.ViewersGo()
	}
}

// trouble lets something fail, or nothing. It returns the daemon that came after one
// that was killed.
func (r *scaleIn) trouble(when string, p *rig.Daemon) *rig.Daemon {
	h := r.h
	note := func(what string, errs ...error) {
		r.faults = append(r.faults, when+": "+what)
		if err := errors.Join(errs...); err != nil {
			h.T.Error(err)
		}
	}
	api := func(f fakes.Fault) error { return h.asg.AddFault(f) }
	switch r.rand.IntN(20) {
	case 0:
		note("throttled", api(fakes.Fault{Code: "Throttling", Message: "Rate exceeded", Times: 1 + r.rand.IntN(3)}))
	case 1:
		note("500", api(fakes.Fault{Code: "InternalFailure", Status: 500, Times: 1 + r.rand.IntN(2)}))
	case 2:
		note("nothing", api(fakes.Fault{Empty: true, Times: 1}), api(fakes.Fault{Reset: true, Times: 1}))
	case 3:
		note("deaf", api(fakes.Fault{Path: "CompleteLifecycleAction", Deaf: true, Times: 1}))
	case 4:
		note("slow API", api(fakes.Fault{Delay: time.Second, Times: 4}))
	case 5:
		h.aws.ExpireTokens()
		note("401", h.aws.AddFault(fakes.Fault{Path: "meta-data/autoscaling/*", Status: 401, Times: 1}))
	case 6:
		note("metadata 503", h.aws.AddFault(fakes.Fault{Status: 503, Times: 2}))
	case 7:
		h.aws.ExpireKeys()
		note("new credentials")
	case 8:
		note("MongoDB cut", h.Mongo.Faults().Set(mongod.Fault{Mode: mongod.Cut}))
	case 9:
		note("MongoDB silent for a moment", h.Mongo.Faults().Set(mongod.Fault{Mode: mongod.CutReply, Commands: []string{"update", "findAndModify"}, Times: 2}))
	case 10:
		note("slow AMS", h.TryPeople(http.MethodPost, "/behaviour", "slow_stop_ms", "700"))
	case 11, 12:
		if when == "before" {
			return nil
		}
		note("kill -9")
		p.End(syscall.SIGKILL)
		return h.Daemon()
	default:
	}
	return nil
}

// row0 reports whether this machine has been another one before.
func (h *onAWS) row0() bool { return strings.HasPrefix(h.ID, "i-0ddd") }

// hardware writes the firmware's id: each machine of the group has its own.
func (h *onAWS) hardware(number int) {
	h.Write("sys/class/dmi/id/product_uuid", fmt.Sprintf("ec20ddd0-0000-4000-8000-%012d\n", number))
}

// reborn makes the next machine of the group: a copy of the disk, with an AMS that
// was started by the boot.
func (r *scaleIn) reborn(id string) bool {
	h := r.h
	h.ID = id
	h.hardware(r.number)
	h.aws.Update(func(i *fakeaws.Instance) { i.ID = id })
	err := errors.Join(os.RemoveAll(h.Path("run/amsagent")), h.forgetDrain())
	if err == nil {
		h.aws.SetTarget("InService")
		err = h.asg.Attach(scalingGroup, h.aws)
	}
	if err != nil {
		h.T.Error(err)
		return false
	}
	// As systemd does with a server that found MongoDB cut off: again.
	for range 10 {
		if err = h.StartServer(); err == nil {
			return true
		}
		wait(time.Second)
	}
	h.T.Errorf("%d: %v", r.number, err)
	return false
}

func (h *onAWS) forgetDrain() error {
	err := os.Remove(h.Path(lifecycle.RecordPath))
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
