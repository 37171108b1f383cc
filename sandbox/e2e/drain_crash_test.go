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
	"slices"
	"strings"
	"sync"
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
	var mu sync.Mutex
	var done int
	var figures drainFigures
	next := func() (n int, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if done == total {
			return 0, false
		}
		done++
		return done, true
	}
	var all sync.WaitGroup
	for m := range machines {
		h := newScaled(t, db, fmt.Sprintf("10.0.9.%d", m+1), fakeaws.AutoScalingOptions{ScalingOptions: fakes.ScalingOptions{ActionDelay: 300 * time.Millisecond}}, endHook(20*time.Second))
		all.Go(func() {
			for {
				n, ok := next()
				if !ok {
					return
				}
				r := &scaleIn{h: h, rand: rand.New(rand.NewPCG(seed, uint64(n))), number: n}
				if !r.play() {
					return
				}
				mu.Lock()
				figures.add(r)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	db.Faults().Clear()
	if done != total || figures.rounds != total {
		t.Errorf("%d of %d scale-ins were played to their end", figures.rounds, total)
	}
	nodes, err := rig.Connect(t, db).Nodes(t.Context())
	must.OK(t, err)
	left := 0
	for _, n := range nodes {
		if n.State == cluster.StateLeft {
			left++
		} else {
			t.Errorf("a row is left behind: %s %s (%s)", n.ID, n.State, n.Reason)
		}
	}
	if left != total {
		t.Errorf("%d rows say left, of %d", left, total)
	}
	docs, err := rig.Connect(t, db).AMSNodes(t.Context())
	must.OK(t, err)
	for _, d := range docs {
		t.Errorf("a document of Ant Media Server is left behind: %+v", d)
	}
	t.Logf("%d scale-ins on %d machines in %s\n%s", total, machines, time.Since(began).Round(time.Second), figures.text())
}

// scaleIn is one of the hundred.
type scaleIn struct {
	h      *onAWS
	rand   *rand.Rand
	number int

	faults []string
	// noticed and recorded are the times from the change of the target state until readiness is off and until the record is
	// draining; after is the time from the end of the last session to the hook's completion.
	noticed, recorded, after time.Duration
	cut                      bool
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
	began := time.Now()
	h.terminate()
	if r.rand.IntN(4) == 0 {
		if out, code := h.Event(hookEvent(h.ID, "drain", false), "--detach"); code != 0 {
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
	r.noticed = time.Since(began)
	if viewers > 0 {
		until(t, fmt.Sprintf("%d: the registry knows", r.number), func() string {
			if v, body, err := p.Ask(t.Context()); err != nil || v.State != cluster.StateDraining {
				return fmt.Sprint(body, err)
			}
			return ""
		})
		r.recorded = time.Since(began)
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
	gone := time.Now()
	e := h.completed("drain")
	r.after = e.Time.Sub(gone)
	if viewers == 0 || r.cut {
		r.after = 0
	}
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

// drainFigures are the times of all that were played.
type drainFigures struct {
	rounds                   int
	noticed, recorded, after []time.Duration
	calm                     []time.Duration // after, of rounds without faults
}

func (f *drainFigures) add(r *scaleIn) {
	f.rounds++
	f.noticed = append(f.noticed, r.noticed)
	if r.recorded > 0 {
		f.recorded = append(f.recorded, r.recorded)
	}
	if r.after > 0 {
		f.after = append(f.after, r.after)
		if len(r.faults) == 0 {
			f.calm = append(f.calm, r.after)
		}
	}
}

func (f *drainFigures) text() string {
	var b strings.Builder
	for _, line := range []struct {
		name string
		list []time.Duration
	}{
		{"notice → readiness off", f.noticed},
		{"notice → registry draining", f.recorded},
		{"last session gone → hook completed", f.after},
		{"the same, without faults", f.calm},
	} {
		if len(line.list) == 0 {
			continue
		}
		slices.Sort(line.list)
		at := func(p float64) time.Duration {
			return line.list[min(int(p*float64(len(line.list))), len(line.list)-1)].Round(time.Millisecond)
		}
		fmt.Fprintf(&b, "%-36s n=%-3d median %s, p99 %s, max %s\n", line.name, len(line.list), at(0.5), at(0.99), at(1))
	}
	return b.String()
}
