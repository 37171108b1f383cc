// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
)

// The rule of readiness: see docs/ARCHITECTURE.md.
const (
	askPeriod = time.Second
	askAgain  = 300 * time.Millisecond
	silence   = 4 * time.Second
	askLimit  = 10 * time.Second
	listEvery = 30 * time.Second
	maxAsks   = 64
)

// fakeServer is a server with applications, as the watch asks it.
type fakeServer struct {
	mu     sync.Mutex
	apps   []string
	answer map[string]ams.AppServing // default: serves
	asks   int
	// now and most are the asks under way, and the most that there were.
	now, most int
	served    bool
	byHand    bool
	takes     time.Duration        // each answer
	takesSome func() time.Duration // the same, another time for each; nil is takes
	detail    string
	stopped   bool
	release   bootstrap.RunningRelease
}

func (f *fakeServer) slow(takes time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.takes = takes
}

func (f *fakeServer) set(state ams.AppServing, apps ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = map[string]ams.AppServing{}
	for _, a := range apps {
		f.answer[a] = state
	}
}

func (f *fakeServer) have(apps ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.apps = apps
}

func (f *fakeServer) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asks
}

func (f *fakeServer) Applications() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.apps == nil {
		return nil, errors.New("no such folder")
	}
	return slices.Clone(f.apps), nil
}

func (f *fakeServer) state(app string) ams.AppServing {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s, ok := f.answer[app]; ok {
		return s
	}
	return ams.AppServes
}

// Ask answers at once; a server that is silent answers as soon as it is not.
func (f *fakeServer) Ask(ctx context.Context, app string) ams.AppAnswer {
	f.mu.Lock()
	f.asks++
	f.now++
	f.most = max(f.most, f.now)
	takes := f.takes
	if f.takesSome != nil {
		takes = f.takesSome()
	}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.now--
	}()
	if takes > 0 {
		sleep.For(ctx, takes)
	}
	for f.state(app) == ams.AppSilent {
		if !sleep.For(ctx, 10*time.Millisecond) {
			break
		}
	}
	return ams.AppAnswer{Name: app, State: f.state(app), Detail: f.detail}
}

func (f *fakeServer) ServedBefore() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.served
}

func (f *fakeServer) Port() int { return 0 }

func (f *fakeServer) Release(context.Context) bootstrap.RunningRelease {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.release
}

func (f *fakeServer) Standalone() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byHand, nil
}

func (f *fakeServer) Stopped(context.Context) bool {
	return f.stopped
}

func (f *fakeServer) Served() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.served = true
	return nil
}

// watched is a node whose row is active, with its server.
type watched struct {
	t    *testing.T
	d    *Daemon
	f    *fakeServer
	said *notified
}

// watchServer runs do in a bubble, with a watch that has had no answer yet.
func watchServer(t *testing.T, do func(w *watched)) {
	t.Helper()
	watchFake(t, &fakeServer{apps: []string{"LiveApp", "live"}}, do)
}

// watchFake is watchServer with a server that is prepared: the watch looks at it at once.
func watchFake(t *testing.T, f *fakeServer, do func(w *watched)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, f: f, said: &notified{}}
		w.d = newTestDaemon(&fakeMachine{}, w.said, func(o *Options) {
			o.Server = w.f
			settings := o.Settings()
			settings.UnhealthyAfter = 5 * time.Minute
			o.Settings = func() Settings { return settings }
		})
		w.d.follows(bootstrap.PhaseJoined)
		w.d.view.change(func(v *View) {
			v.State, v.Proved = cluster.StateActive, true
			v.Lifecycle = &lifecycle.View{Ready: true}
		})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			w.d.followServer(t.Context())
		}()
		t.Cleanup(func() { <-ended })
		do(w)
	})
}

// ready asks /readyz.
func (w *watched) ready() (bool, Readiness) {
	w.t.Helper()
	synctest.Wait()
	rec := get(w.d.metricsHandler(), "/readyz")
	var r Readiness
	if err := json.Unmarshal(rec.Body.Bytes(), &r); err != nil {
		w.t.Fatalf("%v: %s", err, rec.Body)
	}
	if (rec.Code == 200) != r.Ready || r.Ready != (r.Why == "") || rec.Header().Get("Content-Type") != "application/json" {
		w.t.Errorf("%d %v %s", rec.Code, rec.Header(), rec.Body)
	}
	return r.Ready, r
}

// becomes waits until /readyz is what is wanted, and fails if that takes longer
// than it may.
func (w *watched) becomes(want bool, within time.Duration) Readiness {
	w.t.Helper()
	began := time.Now()
	for {
		is, r := w.ready()
		if is == want {
			return r
		}
		if time.Since(began) > within {
			w.t.Fatalf("ready is %v for %s: %+v", is, time.Since(began), r)
		}
		sleep.For(w.t.Context(), 50*time.Millisecond)
	}
}

// stays fails where /readyz changes within a time.
func (w *watched) stays(want bool, during time.Duration) {
	w.t.Helper()
	for began := time.Now(); time.Since(began) < during; sleep.For(w.t.Context(), 50*time.Millisecond) {
		if is, r := w.ready(); is != want {
			w.t.Fatalf("ready is %v after %s: %+v", is, time.Since(began), r)
		}
	}
}

func TestReadyWhileServed(t *testing.T) {
	f := &fakeServer{apps: []string{"LiveApp", "live"}}
	f.set(ams.AppStarting, "LiveApp")
	watchFake(t, f, func(w *watched) {
		w.stays(false, 10*time.Second)
		if _, r := w.ready(); r.Why != "LiveApp is getting initialized" || r.Row != cluster.StateActive || r.Server ||
			r.Applications["live"] != "serves" || r.Applications["LiveApp"] != "is getting initialized" {
			t.Errorf("%+v", r)
		}
		w.f.set("")
		w.becomes(true, time.Second)
		w.stays(true, time.Minute)

		// What viewers get is followed within two seconds, both ways; silence within six.
		for _, state := range []ams.AppServing{ams.AppRefused, ams.AppSilent, ams.AppFailing, ams.AppStarting} {
			sleep.For(w.t.Context(), 330*time.Millisecond) // not in step with the asks
			w.f.set(state, "LiveApp", "live")
			within := 2 * time.Second
			if state == ams.AppSilent {
				within = 6 * time.Second
			}
			r := w.becomes(false, within)
			must.Contain(t, string(state), r.Why, string(state))
			w.stays(false, 20*time.Second)
			w.f.set("")
			w.becomes(true, 2*time.Second)
			w.stays(true, 10*time.Second)
		}
		// One of them is enough.
		w.f.set(ams.AppFailing, "live")
		w.becomes(false, 2*time.Second)
		w.f.set("")
		w.becomes(true, 2*time.Second)
		// And no later with many.
		apps := []string{"LiveApp", "live"}
		for i := range 18 {
			apps = append(apps, fmt.Sprintf("app-%d", i))
		}
		w.f.have(apps...)
		w.stays(true, time.Minute)
		w.f.set(ams.AppFailing, "app-17")
		w.becomes(false, 2*time.Second)
	})
}

// An application that has not served yet, or waits for the server's restart, is up with its first answer after a silence.
func TestReadyAfterASilentStart(t *testing.T) {
	for _, before := range []ams.AppServing{ams.AppSilent, ams.AppWaits} {
		f := &fakeServer{apps: []string{"live"}}
		f.set(before, "live")
		watchFake(t, f, func(w *watched) {
			w.stays(before == ams.AppWaits, 100*time.Millisecond)
			w.f.set(ams.AppSilent, "live")
			w.becomes(false, 6*time.Second)
			w.stays(false, 6*time.Second)
			w.f.set("")
			w.becomes(true, 500*time.Millisecond)
		})
	}
}

// One error answer takes no node out, nor do three seconds of silence.
func TestReadyThroughBlips(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		for range 20 {
			for state, blip := range map[ams.AppServing]time.Duration{
				ams.AppSilent: 3 * time.Second, ams.AppFailing: askAgain - 50*time.Millisecond, ams.AppStarting: askAgain - 50*time.Millisecond,
			} {
				sleep.For(w.t.Context(), 770*time.Millisecond)
				w.f.set(state, "LiveApp", "live")
				w.stays(true, blip)
				w.f.set("")
				w.stays(true, 3*time.Second)
			}
		}
	})
}

// A person makes the server standalone, or a node again: its first answer counts.
func TestNotReadyMadeStandalone(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		for _, byHand := range []bool{true, false, true} {
			w.f.set(ams.AppRefused, "LiveApp", "live")
			w.becomes(false, time.Second)
			sleep.For(w.t.Context(), 2*time.Second)
			w.f.mu.Lock()
			w.f.byHand = byHand
			w.f.mu.Unlock()
			w.f.set("")
			if byHand {
				w.stays(false, 10*time.Second)
			} else {
				w.becomes(true, time.Second)
			}
		}
		if _, r := w.ready(); r.Why != "this machine was made standalone by hand" || !r.Server {
			t.Errorf("%+v", r)
		}
	})
}

// A server that answers slowly is taken out once, or not at all.
func TestReadyWhileSlow(t *testing.T) {
	for takes, ready := range map[time.Duration]bool{
		900 * time.Millisecond: true, 1100 * time.Millisecond: true, 1500 * time.Millisecond: true, 3 * time.Second: true,
		5 * time.Second: false, 9 * time.Second: false,
	} {
		t.Run(takes.String(), func(t *testing.T) {
			watchServer(t, func(w *watched) {
				w.becomes(true, 5*time.Second)
				w.f.slow(takes)
				flips, is := 0, true
				for began := time.Now(); time.Since(began) < time.Minute; sleep.For(w.t.Context(), 50*time.Millisecond) {
					now, _ := w.ready()
					if now != is {
						flips++
					}
					is = now
				}
				if is != ready || flips > 2 {
					t.Errorf("ready is %v after %d changes", is, flips)
				}
				w.f.set(ams.AppSilent, "LiveApp", "live")
				w.becomes(false, silence+askPeriod+takes)
				w.f.slow(0)
				w.f.set(ams.AppServes)
				w.becomes(true, askLimit+4*time.Second)
				w.stays(true, 30*time.Second)
				w.f.set(ams.AppSilent, "LiveApp", "live")
				w.becomes(false, 6*time.Second)
			})
		})
	}
}

// All nodes share one MongoDB, which the server asks for each answer: if it is slow for all, no node is taken out.
func TestNoFlipsWithSlowMongoDB(t *testing.T) {
	for _, apps := range []int{3, 30} {
		for node := range uint64(3) {
			t.Run(fmt.Sprintf("%d applications, node %d", apps, node), func(t *testing.T) {
				random := rand.New(rand.NewPCG(node, 7))           //nolint:gosec // the same times in each run
				f := &fakeServer{takesSome: func() time.Duration { // log-normal, median 0.9 s
					return min(time.Duration(0.9*math.Exp(0.5*random.NormFloat64())*float64(time.Second)), 3*time.Second)
				}}
				for i := range apps {
					f.apps = append(f.apps, fmt.Sprint("app", i))
				}
				watchFake(t, f, func(w *watched) {
					w.becomes(true, 5*time.Second)
					w.stays(true, must.Sample(3*time.Minute, 10*time.Minute))
				})
			})
		}
	}
}

// The server's user decides how many applications there are, and how they are called.
func TestAnswerOfManyApplications(t *testing.T) {
	const many, served = 1024, 501
	f := &fakeServer{answer: map[string]ams.AppServing{}, detail: strings.Repeat("\x02", 256)}
	for i := range many {
		name := fmt.Sprintf("%04d%s", i, strings.Repeat("\x01", 200))
		f.apps = append(f.apps, name)
		if i >= served {
			f.answer[name] = ams.AppFailing
		}
	}
	watchFake(t, f, func(w *watched) {
		w.stays(false, 20*time.Second)
		_, r := w.ready()
		b, err := json.Marshal(w.d.view.get())
		if err != nil || len(b) > 128<<10 {
			t.Errorf("the view has %d bytes, %v", len(b), err)
		}
		if b, err = json.Marshal(r); err != nil || len(b) > 80<<10 {
			t.Errorf("the answer has %d bytes, %v", len(b), err)
		}
		if line := w.d.view.line(); len(line) > 8<<10 {
			t.Errorf("the service manager reads %d bytes", len(line))
		}
		if len(r.Applications) < 10 || len(r.Applications)+r.Omitted != len(f.apps) || !strings.HasSuffix(r.Why, fmt.Sprintf("; and %d more", many-served-8)) {
			t.Errorf("%d applications and %d more: %.40q…%q", len(r.Applications), r.Omitted, r.Why, r.Why[max(0, len(r.Why)-40):])
		}
		for name, word := range r.Applications {
			if !strings.HasPrefix(word, "fails") {
				t.Errorf("%.8q %.20q comes before those that do not serve", name, word)
			}
		}
	})
}

// A server that starts is silent for long. That is no sign of a slow MongoDB: its first answer counts.
func TestSilentInItsStart(t *testing.T) {
	f := &fakeServer{apps: []string{"LiveApp", "live"}}
	f.set(ams.AppSilent, "LiveApp", "live")
	watchFake(t, f, func(w *watched) {
		w.stays(false, 20*time.Second)
		w.f.set("")
		w.becomes(true, 500*time.Millisecond)
	})
}

func TestApplicationsComeAndGo(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		// The panel makes one: its folder is there before it serves.
		w.f.set(ams.AppWaits, "shop")
		w.f.have("LiveApp", "live", "shop")
		w.stays(true, time.Minute)
		w.f.set(ams.AppFailing, "shop")
		w.stays(true, time.Minute)
		if _, r := w.ready(); r.Applications["shop"] != "fails" {
			t.Errorf("%+v", r)
		}
		w.f.set("")
		w.stays(true, 2*time.Second)
		w.stays(true, listEvery)
		w.f.set(ams.AppFailing, "shop")
		w.becomes(false, 3500*time.Millisecond)
		// And removes it.
		w.f.have("LiveApp", "live")
		w.becomes(true, time.Second)
		if _, r := w.ready(); len(r.Applications) != 2 {
			t.Errorf("%+v", r)
		}
		// One that serves until it is removed takes no node out.
		w.f.set(ams.AppMissing, "live")
		w.f.have("LiveApp")
		w.stays(true, time.Minute)
	})
}

// The server works on calls whose caller has gone: it gets few while it hangs.
func TestFewAsksOfAServerThatHangs(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		w.f.set(ams.AppSilent, "LiveApp", "live")
		w.becomes(false, 6*time.Second)
		before := w.f.count()
		w.stays(false, time.Minute)
		if n := w.f.count() - before; n > 2*7 {
			t.Errorf("%d asks of two applications in a minute", n)
		}
	})
}

// The server's user decides how many applications there are: few of them are asked at
// a time, and all of them before the node is ready.
func TestFewAsksAtATime(t *testing.T) {
	var apps []string
	for i := range 500 {
		apps = append(apps, fmt.Sprintf("app-%03d", i))
	}
	f := &fakeServer{apps: apps}
	f.set(ams.AppSilent, apps...)
	watchFake(t, f, func(w *watched) {
		w.stays(false, 5*time.Second)
		w.f.set(ams.AppFailing, "app-250")
		w.stays(false, 5*time.Second)
		if _, r := w.ready(); r.Why != "app-250 fails" || len(r.Applications) != len(apps) {
			t.Errorf("%d applications: %s", len(r.Applications), r.Why)
		}
		w.f.set("")
		w.becomes(true, 5*time.Second)
		must.Equal(t, "asks at a time", w.f.most, maxAsks)
	})
}

// Applications that take no node out delay the asks of none that does.
func TestLateApplicationsDelayNone(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		apps := []string{"LiveApp", "live"}
		for i := range 50 {
			apps = append(apps, fmt.Sprintf("new-%02d", i))
		}
		w.f.set(ams.AppSilent, apps[2:]...)
		w.f.have(apps...)
		w.stays(true, time.Minute)
		for range 10 {
			w.f.set(ams.AppSilent, append(slices.Clone(apps[2:]), "live")...)
			w.becomes(false, 6*time.Second)
			w.f.set(ams.AppSilent, apps[2:]...)
			w.becomes(true, 5*time.Second)
			w.stays(true, 10*time.Second)
			sleep.For(w.t.Context(), 330*time.Millisecond) // not in step with the asks
		}
	})
}

func TestNotReadyReasons(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		for _, c := range []struct {
			change func(*View)
			why    string
		}{
			{func(v *View) { v.Lifecycle = &lifecycle.View{} }, "this node drains"},
			{func(v *View) { v.Lifecycle = &lifecycle.View{State: lifecycle.StateLeft} }, "this node has left the cluster"},
			{func(v *View) { v.Lifecycle = &lifecycle.View{State: lifecycle.StateParked} }, "this node is parked"},
			{func(v *View) { v.State = cluster.StateJoining }, "the registry has this node as joining"},
			{func(v *View) { v.Proved = false }, "not seen in the cluster"},
		} {
			before := w.d.view.get()
			w.d.view.change(c.change)
			must.Contain(t, "why", w.becomes(false, 0).Why, c.why)
			w.d.view.change(func(v *View) { *v = before })
			w.becomes(true, 0)
		}
		w.d.view.setPhase("")
		must.Contain(t, "why", w.becomes(false, 0).Why, "not a cluster node")
		asks := w.f.count()
		w.stays(false, time.Minute)
		if n := w.f.count() - asks; n > 2 {
			t.Errorf("a machine that is no node asks its server %d times", n)
		}
	})
}

// TestReadyKeepsUpWithDrain: a client that has read in the registry that this node drains does
// not find it ready, however late the daemon's loops are.
func TestReadyKeepsUpWithDrain(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		var drains atomic.Bool
		w.d.view.setLife(func() lifecycle.View { return lifecycle.View{Ready: !drains.Load()} }, nil)
		w.becomes(true, 0)
		drains.Store(true)
		must.Contain(t, "why", w.becomes(false, 0).Why, "drains")
		drains.Store(false)
		w.becomes(true, 0)
	})
}

// joinedLife is the lifecycle of a joined machine, with a record of its own.
func (w *watched) joinedLife() *life {
	w.t.Helper()
	w.d.o.Machine = &fakeMachine{state: &bootstrap.State{Phase: bootstrap.PhaseJoined}}
	w.d.o.Lifecycle = drains(&conf.Store{Root: w.t.TempDir(), Dir: bootstrap.StateDir})
	w.d.o.Lifecycle.Uptime = func() (string, time.Duration) { return "boot", time.Hour }
	return newLife(w.d)
}

// TestReadyAfterRestart: a daemon that was killed in a drain is not ready when it is
// asked for the first time, before the drain has gone on.
func TestReadyAfterRestart(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		l := w.joinedLife()
		w.becomes(true, 0)
		l.manager.Notice(lifecycle.Notice{ID: "1", Source: "event", Kind: lifecycle.Terminate})
		w.becomes(false, 0)

		w.d.view.setLife(nil, nil)
		w.d.view.change(func(v *View) { v.Lifecycle = nil })
		w.becomes(true, 0)
		newLife(w.d)
		must.Contain(w.t, "why", w.becomes(false, 0).Why, "drains")
	})
}

// A record that is draining or left is trouble if no drain is under way here, and no command is at work.
func TestRecordDrainsWithoutDrain(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		l := w.joinedLife()
		hasTrouble := func(want bool) {
			t.Helper()
			if v := w.d.view.get(); (v.Trouble != "") != want {
				t.Errorf("state %s, trouble %q", v.State, v.Trouble)
			}
		}
		hasTrouble(false)
		w.d.view.setState(cluster.StateLeft, time.Now())
		hasTrouble(true)
		w.d.view.change(func(v *View) { v.departed = true })
		hasTrouble(false)
		w.d.view.change(func(v *View) { v.departed = false })
		w.d.view.setState(cluster.StateDraining, time.Now())
		hasTrouble(true)
		release := w.d.hold("leave")
		hasTrouble(false)
		release()
		hasTrouble(true)
		must.OK(t, l.manager.Undrain("root", cluster.StateDraining)) // not written yet
		hasTrouble(false)
		l.manager.Notice(lifecycle.Notice{ID: "1", Source: "event", Kind: lifecycle.Terminate})
		hasTrouble(false)
	})
}

// A node that joins a second time is a node meanwhile, with people on it.
func TestJoinedWhileItJoins(t *testing.T) {
	for _, tt := range []struct {
		state  bootstrap.State
		joined bool
	}{
		{bootstrap.State{Phase: bootstrap.PhaseJoined}, true},
		{bootstrap.State{Phase: bootstrap.PhaseJoining}, false},
		{bootstrap.State{Phase: bootstrap.PhaseJoining, WasJoined: true}, true},
		{bootstrap.State{Phase: bootstrap.PhaseLeaving}, false},
	} {
		l := &life{d: newTestDaemon(&fakeMachine{state: &tt.state}, &notified{}, nil)}
		must.Equal(t, fmt.Sprintf("%s: joined", tt.state.Phase), l.Joined(), tt.joined)
	}
}

// beats makes the loop go round for a time, with or without MongoDB.
func (w *watched) beats(during time.Duration, err error) {
	for began := time.Now(); time.Since(began) < during; sleep.For(w.t.Context(), 5*time.Second) {
		w.d.view.change(func(v *View) {
			now := time.Now()
			v.Beat.Round, v.Beat.Error = now, ""
			if err != nil {
				v.Beat.Error = err.Error()
				return
			}
			v.Beat.Last = now
		})
	}
}

func (w *watched) healthy(want bool) {
	w.t.Helper()
	synctest.Wait()
	if h := w.d.health(time.Now()); h.Healthy != want || (!want || w.d.view.get().spared != "") != (h.Why != "") {
		w.t.Errorf("%+v, want %v", h, want)
	}
}

// What replaces machines asks /healthz: no cause that all nodes share replaces one.
func TestHealthOfServer(t *testing.T) {
	away := errors.New("no primary")
	for name, tt := range map[string]struct {
		play func(w *watched)
		want bool
	}{
		"serving": {func(w *watched) { w.beats(time.Hour, nil) }, true},
		"dead for as long as a restart takes": {func(w *watched) {
			w.f.set(ams.AppRefused, "LiveApp", "live")
			w.beats(4*time.Minute, nil)
		}, true},
		"dead for good": {func(w *watched) {
			w.f.set(ams.AppRefused, "LiveApp", "live")
			w.beats(6*time.Minute, nil)
		}, false},
		"hanging for good": {func(w *watched) {
			w.f.set(ams.AppSilent, "LiveApp", "live")
			w.beats(6*time.Minute, nil)
		}, false},
		"dead, and MongoDB away": {func(w *watched) {
			w.f.set(ams.AppRefused, "LiveApp", "live")
			w.beats(20*time.Minute, away)
		}, true},
		"MongoDB away, which silences the server": {func(w *watched) {
			w.f.set(ams.AppSilent, "LiveApp", "live")
			w.beats(10*time.Minute, away)
		}, true},
		"dead, and MongoDB away before that is for good": {func(w *watched) {
			w.f.set(ams.AppRefused, "LiveApp", "live")
			w.beats(4*time.Minute+50*time.Second, nil)
			w.beats(20*time.Second, away)
		}, true},
		"the minutes after that": {func(w *watched) {
			w.f.set(ams.AppSilent, "LiveApp", "live")
			w.beats(10*time.Minute, away)
			w.beats(4*time.Minute, nil)
		}, true},
		"a release that never served": {func(w *watched) {
			w.f.mu.Lock()
			w.f.served = false
			w.f.mu.Unlock()
			w.f.set(ams.AppFailing, "LiveApp")
			w.beats(time.Hour, nil)
		}, true},
		"dead, and others, too": {func(w *watched) {
			w.f.set(ams.AppRefused, "LiveApp", "live")
			w.d.view.change(func(v *View) { v.spared = "1 of 2 others does not serve either" })
			w.beats(time.Hour, nil)
		}, true},
		"draining": {func(w *watched) {
			w.d.view.change(func(v *View) { v.Lifecycle = &lifecycle.View{} })
			w.f.set(ams.AppRefused, "LiveApp", "live")
			w.beats(time.Hour, nil)
		}, true},
		"stopped by the agent": {func(w *watched) {
			w.d.view.setState(cluster.StateLeft, time.Now())
			w.f.set(ams.AppRefused, "LiveApp", "live")
			w.beats(time.Hour, nil)
		}, true},
		"no node": {func(w *watched) {
			w.d.view.setPhase("")
			w.f.set(ams.AppRefused, "LiveApp", "live")
			w.beats(time.Hour, nil)
		}, true},
		"back again": {func(w *watched) {
			w.f.set(ams.AppRefused, "LiveApp", "live")
			w.beats(10*time.Minute, nil)
			w.f.set("")
			w.beats(10*time.Second, nil)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			watchServer(t, func(w *watched) {
				w.beats(10*time.Second, nil)
				w.becomes(true, time.Second)
				tt.play(w)
				w.healthy(tt.want)
			})
		})
	}
}

// Azure may upgrade a machine that is known to have no session. Whatever its health is, the answer is 200.
func TestApplicationHealth(t *testing.T) {
	p := func(n int) *int { return &n }
	for name, tt := range map[string]struct {
		sessions cluster.Sessions
		age      time.Duration
		change   func(*View)
		idle     bool
	}{
		"no sessions":              {cluster.Sessions{Publishers: p(0), Viewers: p(0)}, time.Second, nil, true},
		"a viewer":                 {cluster.Sessions{Publishers: p(0), Viewers: p(1)}, time.Second, nil, false},
		"unknown viewers":          {cluster.Sessions{Publishers: p(0)}, time.Second, nil, false},
		"other nodes":              {cluster.Sessions{Publishers: p(0), Viewers: p(0), Peers: p(3)}, time.Second, nil, false},
		"unknown streams":          {cluster.Sessions{Publishers: p(0), Viewers: p(0), PublishersBy: cluster.CountedByConnections}, time.Second, nil, false},
		"a count of long ago":      {cluster.Sessions{Publishers: p(0), Viewers: p(0)}, time.Hour, nil, false},
		"has left":                 {cluster.Sessions{}, 0, func(v *View) { v.State = cluster.StateLeft }, true},
		"no node":                  {cluster.Sessions{}, 0, func(v *View) { v.Phase = "" }, true},
		"dead, and a viewer is on": {cluster.Sessions{Publishers: p(0), Viewers: p(1)}, time.Second, func(v *View) { v.Started, v.Beat.Round = time.Time{}.Add(1), time.Time{} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			watchServer(t, func(w *watched) {
				w.d.view.change(func(v *View) {
					v.counted, v.countedAt = tt.sessions, time.Now().Add(-tt.age)
					if tt.change != nil {
						tt.change(v)
					}
				})
				rec := get(w.d.metricsHandler(), "/application-health")
				skips := strings.Contains(rec.Body.String(), `\"SkipUpgrade\":true`)
				healthy := strings.Contains(rec.Body.String(), `"ApplicationHealthState":"Healthy"`)
				if rec.Code != http.StatusOK || skips == tt.idle || healthy == strings.HasPrefix(name, "dead") {
					t.Errorf("%d %s", rec.Code, rec.Body)
				}
			})
		})
	}
}

// A server that is silent says nothing of this machine before MongoDB has taken a beat since: what takes the one away takes
// the other.
func TestBrokenSinceABeat(t *testing.T) {
	down := time.Date(2026, 11, 26, 2, 0, 0, 0, time.UTC)
	for beat, want := range map[time.Duration]bool{-time.Second: false, time.Second: true} {
		v := View{
			Phase: bootstrap.PhaseJoined, State: cluster.StateActive, Lifecycle: &lifecycle.View{Ready: true},
			Server: ServerView{Since: down}, Beat: BeatView{Last: down.Add(beat)},
		}
		must.Equal(t, fmt.Sprintf("a beat %s after: broken", beat), v.broken(down.Add(4*time.Second), 5*time.Second), want)
	}
}

// TestSpareStopped: whether the server was stopped by hand is known at once, each time.
func TestSpareStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{stopped: true}
		d := newTestDaemon(&fakeMachine{}, &notified{}, func(o *Options) { o.Server = f })
		m := &member{d: d}
		for range 2 {
			d.view.change(func(v *View) { v.brokenSince = time.Now() })
			m.spareAsked = time.Now().Add(time.Second) // the others were asked before it was stopped
			m.askToKeep(t.Context())
			if d.view.get().spared == "" {
				t.Error("not spared")
			}
			d.view.change(func(v *View) { v.brokenSince = time.Time{} })
			m.askToKeep(t.Context())
			must.Equal(t, "spared, and nothing is broken", d.view.get().spared, "")
		}
	})
}

// TestAsksOthersSeldom: a node that is broken asks at once why it should be kept, and then
// once a minute, for all of its cluster may be broken.
func TestAsksOthersSeldom(t *testing.T) {
	now := time.Now()
	m := &member{d: newTestDaemon(&fakeMachine{}, &notified{}, nil)}
	for name, tt := range map[string]struct {
		broken, asked time.Time
		spared        string
		want          bool
	}{
		"never asked":              {now.Add(-time.Minute), time.Time{}, "", true},
		"asked when it last broke": {now.Add(-time.Second), now.Add(-2 * time.Second), "", true},
		"asked a moment ago":       {now.Add(-time.Hour), now.Add(-15 * time.Second), "half of them", false},
		"asked a minute ago":       {now.Add(-time.Hour), now.Add(-time.Minute), "half of them", true},
		"was stopped before":       {now.Add(-time.Hour), now.Add(-15 * time.Second), serverStopped, true},
	} {
		m.spareAsked = tt.asked
		must.Equal(t, name, m.asksOthers(View{brokenSince: tt.broken, spared: tt.spared}, now), tt.want)
	}
}

// TestPeersDown: who counts among the other nodes.
func TestPeersDown(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	self := cluster.Node{ID: "self", Group: "g"}
	peer := func(change func(n *cluster.Node)) cluster.Node {
		n := cluster.Node{ID: "peer", Group: "g", State: cluster.StateActive, Heartbeat: cluster.Heartbeat{Serving: &cluster.Serving{}}, UpdatedAt: now.Add(-5 * time.Second)}
		change(&n)
		return n
	}
	for name, tt := range map[string]struct {
		change       func(n *cluster.Node)
		others, down int
	}{
		"does not serve":                {func(*cluster.Node) {}, 1, 1},
		"serves":                        {func(n *cluster.Node) { n.Serving.Up = true }, 1, 0},
		"was started again":             {func(n *cluster.Node) { n.State = cluster.StateJoining }, 1, 1},
		"drains":                        {func(n *cluster.Node) { n.State = cluster.StateDraining }, 0, 0},
		"left":                          {func(n *cluster.Node) { n.State = cluster.StateLeft }, 0, 0},
		"failed to join":                {func(n *cluster.Node) { n.State = cluster.StateFailed }, 0, 0},
		"of another group":              {func(n *cluster.Node) { n.Group = "h" }, 0, 0},
		"this node":                     {func(n *cluster.Node) { n.ID = "self" }, 0, 0},
		"does not say":                  {func(n *cluster.Node) { n.Serving = nil }, 0, 0},
		"heartbeat a minute ago":        {func(n *cluster.Node) { n.UpdatedAt = now.Add(-time.Minute) }, 1, 1},
		"older heartbeat":               {func(n *cluster.Node) { n.UpdatedAt = now.Add(-61 * time.Second) }, 0, 0},
		"does not say when it was seen": {func(n *cluster.Node) { n.UpdatedAt = time.Time{} }, 0, 0},
	} {
		if others, down := peersDown(self, []cluster.Node{peer(tt.change)}, now); others != tt.others || down != tt.down {
			t.Errorf("one that %s: %d, %d down", name, others, down)
		}
	}
}

// The readings of the gauges are those of the two answers.
func TestServingMetrics(t *testing.T) {
	watchServer(t, func(w *watched) {
		page := func() string {
			synctest.Wait()
			return get(w.d.metricsHandler(), "/metrics").Body.String()
		}
		w.becomes(true, time.Second)
		if p := page(); !strings.Contains(p, "\namsagent_ready 1\n") || !strings.Contains(p, "\namsagent_server_up 1\n") {
			t.Error(p)
		}
		w.d.view.change(func(v *View) { v.State = cluster.StateDraining })
		if p := page(); !strings.Contains(p, "\namsagent_ready 0\n") || !strings.Contains(p, "\namsagent_server_up 1\n") {
			t.Error(p)
		}
		w.f.set(ams.AppRefused, "live")
		sleep.For(w.t.Context(), 2*time.Second)
		must.Contain(t, "page", page(), "\namsagent_server_up 0\n")
	})
}

// TestMetricsOfADrain: what does not apply, or is not known, has no line.
func TestMetricsOfADrain(t *testing.T) {
	begun := time.Unix(1_900_000_000, 0)
	draining := &lifecycle.View{State: lifecycle.StateDraining, Begun: begun, Deadline: begun.Add(time.Hour)}
	beat := BeatView{Round: begun}
	for name, tt := range map[string]struct {
		view View
		want []string
	}{
		"a drain":                          {View{Lifecycle: draining}, []string{"drain_started_timestamp_seconds 1900000000", "drain_deadline_timestamp_seconds 1900003600"}},
		"a drain without end":              {View{Lifecycle: &lifecycle.View{State: lifecycle.StateDraining, Begun: begun}}, []string{"drain_started_timestamp_seconds 1900000000"}},
		"no drain any more":                {View{Lifecycle: &lifecycle.View{State: lifecycle.StateActive, Begun: begun, Deadline: begun}}, nil},
		"MongoDB takes it":                 {View{Phase: bootstrap.PhaseJoined, Beat: BeatView{Last: begun}}, []string{"mongodb_reachable 1"}},
		"MongoDB is away":                  {View{Phase: bootstrap.PhaseJoined, Beat: BeatView{Round: begun, Error: "no primary"}}, []string{"mongodb_reachable 0"}},
		"no heartbeat tried":               {View{Phase: bootstrap.PhaseJoined, Beat: beat}, nil},
		"a drain that waits for a restart": {View{Lifecycle: &lifecycle.View{State: lifecycle.StateDraining, Step: lifecycle.StepDone, Begun: begun, Deadline: begun}}, []string{"drain_started_timestamp_seconds 1900000000"}},
		"no heartbeat yet":                 {View{Phase: bootstrap.PhaseJoined}, nil},
		"a machine that left":              {View{Beat: beat, node: cluster.Node{ID: "i-1"}}, nil},
		"a node":                           {View{Phase: bootstrap.PhaseJoined, node: cluster.Node{ID: "i-1", Zone: "b"}}, []string{`node_info{node="i-1",role="",group="",zone="b",provider="",ams_version=""} 1`}},
		"the clocks are known":             {View{clock: new(seconds.Duration(-time.Second))}, []string{"clock_offset_seconds -1"}},
	} {
		var page bytes.Buffer
		writeMetrics(&page, tt.view)
		var got []string
		for line := range strings.Lines(page.String()) {
			name, ok := strings.CutPrefix(strings.TrimSpace(line), "amsagent_")
			for _, of := range []string{"drain_", "mongodb_", "node_info", "clock_"} {
				if ok && strings.HasPrefix(name, of) {
					got = append(got, name)
				}
			}
		}
		must.NoDiff(t, name, got, tt.want)
	}
}

// TestServingAfterJoin: who joins has waited until viewers are served, and waits no
// more than for the answers.
func TestServingAfterJoin(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.d.follows("")
		sleep.For(w.t.Context(), 10*time.Second)
		w.d.follows(bootstrap.PhaseJoined)
		sleep.For(w.t.Context(), askPeriod)
		if _, r := w.ready(); !r.Server {
			t.Errorf("%s after the join: %+v", askPeriod, r)
		}
	})
}

// An agent that is started again while MongoDB is away, or its password is wrong, goes by what was
// known of this boot and address.
func TestReadyWithoutMongo(t *testing.T) {
	for name, entered := range map[string]string{"the same life": "boot-1 " + own, "before a boot": "boot-0 " + own, "never": ""} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, c *clustered) {
				ready := name == "the same life"
				c.machine.entered = entered
				c.link.Cut.Store(true)
				c.begin()
				sleep.For(t.Context(), time.Minute)
				if c.becomes(ready, 0); !ready {
					return
				}
				c.f.set(ams.AppRefused, "LiveApp")
				c.becomes(false, 2*time.Second)
				c.f.set("")
				c.becomes(true, 2*time.Second)
				must.Equal(t, "/healthz", c.health(), http.StatusOK)
				c.link.Cut.Store(false)
				c.serves()
				c.becomes(true, 0)
			})
		})
	}
}

// The applications of a server that is down are unpacked again: they disappear and return, and count only
// after they have served.
func TestApplicationsUnpackedAnew(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		w.f.set(ams.AppRefused, "LiveApp", "live", "root")
		w.becomes(false, 2*time.Second)
		for _, apps := range [][]string{{}, {"root"}, {"root", "live"}, {"LiveApp", "live"}} {
			w.f.have(apps...)
			w.stays(false, 20*time.Second)
		}
		w.f.set(ams.AppRefused, "LiveApp")
		w.stays(false, 20*time.Second)
		w.f.set("")
		w.becomes(true, 2*time.Second)

		// Under a server that runs, and is not stopped for it.
		w.f.set(ams.AppRefused, "new")
		w.f.have("new")
		w.becomes(false, 2*listEvery)
		w.f.set("")
		w.becomes(true, 2*time.Second)
	})
}

// TestOwnStopIsNoWarning: an alert on WARN must not ring when the agent itself has stopped the server.
func TestOwnStopIsNoWarning(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		step lifecycle.Step
		held int
		want string
	}{
		{"by itself", lifecycle.StepNone, 0, "WARN"},
		{"in the wait for sessions", lifecycle.StepDraining, 0, "WARN"},
		{"the drain stops it", lifecycle.StepStopping, 0, "INFO"},
		{"the drain has stopped it", lifecycle.StepDone, 0, "INFO"},
		{"a command is at work", lifecycle.StepNone, 1, "INFO"},
	} {
		l := new(notified)
		d := newTestDaemon(&fakeMachine{}, l, nil)
		d.view.setPhase(bootstrap.PhaseJoined)
		d.reportServer(bootstrap.Served{Up: true})
		d.view.life = func() lifecycle.View { return lifecycle.View{Step: tt.step} }
		d.view.change(func(v *View) { v.held = tt.held })
		d.reportServer(bootstrap.Served{Why: []string{"LiveApp is not reachable"}})
		must.Contain(t, tt.name, l.text(), "level="+tt.want+` msg="Ant Media Server does not serve viewers"`)
	}
}
