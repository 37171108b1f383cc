// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// TestRandomFaults drains a hundred machines while everything around them fails at random, and checks the invariants.
func TestRandomFaults(t *testing.T) {
	sum := map[string]int{}
	for seed := range must.Sample(uint64(25), 100) {
		t.Run(fmt.Sprint("seed ", seed), inBubble(0, func(t *testing.T, w *world) { chaos(t, w, seed, sum) }))
	}
	t.Log(sum)
	for _, what := range []string{"killed", "cut", "undrained", "completed", "gone"} {
		if sum[what] == 0 {
			t.Errorf("never %s: the faults are too tame", what)
		}
	}
}

func chaos(t *testing.T, w *world, seed uint64, sum map[string]int) {
	rng := rand.New(rand.NewPCG(seed, 4))
	chance := func(percent int) bool { return rng.IntN(100) < percent }
	between := func(a, b time.Duration) time.Duration { return a + time.Duration(rng.Int64N(int64(b-a))) }

	w.publishers, w.viewers = p(rng.IntN(3)), p(rng.IntN(30))
	w.stopTime, w.mongoTime, w.cloudTime = between(0, 20*time.Second), between(0, 300*time.Millisecond), between(0, time.Second)
	w.countTime = between(0, 200*time.Millisecond)
	hook := terminate().Hook
	hook.Timeout = seconds.Duration(between(30*time.Second, 20*time.Minute))
	if chance(50) {
		w.hook = hook
	}
	w.waitsFrom = time.Now().Add(between(0, 3*time.Minute))
	configured := between(10*time.Minute, 40*time.Minute)
	options := func(o *Options) { o.Deadline = fixed(configured) }

	l := w.live(options)
	now, undrains := false, 0
	noticed := false // a notice is in force
	check := func() {
		v := l.View()
		if noticed && v.Ready {
			t.Errorf("ready while it drains: %+v", v)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.record == cluster.StateLeft && w.running {
			t.Errorf("the record is left, and AMS runs; trouble %v, %+v", v.Trouble, v.Notes)
		}
		if w.cut > 0 && !now && w.cutAt.Before(v.Deadline) && v.Step != StepNone {
			t.Errorf("%d sessions were cut %s before the deadline", w.cut, v.Deadline.Sub(w.cutAt))
		}
	}

	until := time.Now().Add(between(5*time.Minute, 50*time.Minute))
	for time.Now().Before(until) && !t.Failed() {
		tick(between(time.Millisecond, 20*time.Second))
		check()
		n := terminate()
		n.Hook = nil
		if chance(50) {
			h := *hook
			n.Hook = &h
		}
		switch rng.IntN(24) {
		case 0, 1:
			l.Notice(n)
			noticed = noticed || !slices.Contains(l.View().Dismissed, n.ID)
		case 2:
			if chance(20) {
				n := spot(between(time.Minute, 10*time.Minute))
				l.Notice(n)
				noticed = noticed || !slices.Contains(l.View().Dismissed, n.ID)
			}
		case 3:
			if l.Drain(DrainRequest{Deadline: seconds.Duration(between(time.Minute, time.Hour)), Who: "root"}) == nil {
				noticed = true
			}
		case 4:
			if chance(5) && l.Drain(DrainRequest{Now: true}) == nil {
				now, noticed = true, true
			}
		case 5:
			if chance(30) && l.Undrain("root", "") == nil {
				undrains++
				noticed = false
				sum["undrained"]++
			}
		case 6:
			if chance(30) && !l.View().Finished() {
				l.Notice(Notice{ID: n.ID, Kind: withdrawn})
				noticed = !l.View().Ready
			}
		case 7, 8:
			w.set(func(w *world) { w.mongoErr = errMongo })
		case 9:
			w.set(func(w *world) { w.mongoHang = true })
		case 10, 11:
			w.set(func(w *world) { w.mongoErr, w.mongoHang = nil, false })
		case 12:
			w.set(func(w *world) { w.cloudErr = failing(errThrottled) })
		case 13:
			w.set(func(w *world) { w.cloudErr = failing(&cloud.DeniedError{Permission: "p"}) })
		case 14:
			w.set(func(w *world) { w.cloudHang = true })
		case 15, 16:
			w.set(func(w *world) { w.cloudErr, w.cloudHang = nil, false })
		case 17:
			w.set(func(w *world) { w.countErr = errors.New("403") })
		case 18:
			w.set(func(w *world) { w.countErr = nil })
		case 19:
			w.set(func(w *world) { w.diskErr = errors.New("no space left on device") })
		case 20:
			w.set(func(w *world) { w.diskErr = nil })
		case 21, 22:
			// A kill loses what is not on the disk; this test does not cover that.
			if l.View().Trouble["record"] == "" {
				l.kill()
				tick(between(0, 10*time.Second))
				l = w.live(options)
				sum["killed"]++
			}
		case 23:
			w.set(func(w *world) {
				if w.running {
					w.viewers, w.publishers = p(rng.IntN(*w.viewers+1)), p(rng.IntN(*w.publishers+1))
				}
				if chance(3) {
					w.gone = true
				}
			})
		}
	}
	// All faults end, all viewers leave, and the cloud terminates the machine.
	w.set(func(w *world) {
		w.mongoErr, w.mongoHang, w.cloudErr, w.cloudHang, w.countErr, w.diskErr = nil, false, nil, false, nil, nil
		w.publishers, w.viewers = p(0), p(0)
	})
	last := terminate()
	last.ID = "the end"
	l.Notice(last)
	noticed = true
	l.until("done", 10*time.Minute, func(v View) bool { return isDone(v) && v.RegistryTold && hooksEnded(v) })
	check()
	v := l.View()
	if w.record != cluster.StateLeft || v.State != StateLeft || w.running {
		t.Errorf("record %s, state %s, AMS runs: %t", w.record, v.State, w.running)
	}
	if len(w.completed) > 1 || len(w.completed) == 0 && !w.gone {
		t.Errorf("completed %v, gone %v", w.completed, w.gone)
	}
	if len(w.completed) == 1 {
		sum["completed"]++
		if at, stop := w.times("complete"), w.times("deregister?"); len(stop) == 0 || at[0].Before(stop[0]) {
			t.Error("the hook was completed before the attempt to deregister")
		}
	} else {
		sum["gone"]++
	}
	if w.cut > 0 {
		sum["cut"]++
	}
	// The results are the same after another restart.
	l.kill()
	l = w.live(options)
	tick(time.Minute)
	if v := l.View(); v.State != StateLeft || !isDone(v) {
		t.Errorf("after a restart: %s %s", v.State, v.Step)
	}
}

func hooksEnded(v View) bool {
	for _, h := range v.Hooks {
		if h.End == "" {
			return false
		}
	}
	return true
}
