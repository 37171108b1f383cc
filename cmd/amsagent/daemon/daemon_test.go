// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// fakeMachine is a machine without files.
type fakeMachine struct {
	mu        sync.Mutex
	state     *bootstrap.State
	converged int
	joins     []time.Time
	converge  func(context.Context) (*bootstrap.Convergence, error)
	join      func(context.Context) error
	restarts  bool // what a join does to the server
	entered   string
	asked     bootstrap.ConvergeRequest // the last one
	proved    bool
	node      cluster.Node
	stops     func() // the server, if not nil
}

func (p *fakeMachine) Converge(ctx context.Context, req bootstrap.ConvergeRequest) (*bootstrap.Convergence, error) {
	p.mu.Lock()
	p.converged++
	p.asked = req
	f, c := p.converge, &bootstrap.Convergence{}
	if p.state != nil {
		c.Phase, c.Node = p.state.Phase, p.node
	}
	p.mu.Unlock()
	if f != nil {
		return f(ctx)
	}
	return c, nil
}

func (p *fakeMachine) Join(ctx context.Context, _ bootstrap.JoinRequest) (*bootstrap.JoinResult, error) {
	p.mu.Lock()
	p.joins = append(p.joins, time.Now())
	p.mu.Unlock()
	return &bootstrap.JoinResult{Restarted: p.restarts}, p.join(ctx)
}

func (p *fakeMachine) Prove(ctx context.Context, _ *cluster.Client, _ string) (*bootstrap.Evidence, error) {
	if p.proved {
		return &bootstrap.Evidence{}, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (p *fakeMachine) StateFile() (*bootstrap.State, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, nil
}

func (p *fakeMachine) EnteredBefore(instance string) bool { return p.entered == instance }

func (p *fakeMachine) Entered(instance string) error {
	p.entered = instance
	return nil
}

func (p *fakeMachine) StopServer(context.Context) (time.Time, error) {
	if p.stops != nil {
		p.stops()
	}
	return time.Now(), nil
}

func (p *fakeMachine) StartServer(context.Context) error { return nil }

func (p *fakeMachine) Depart(ctx context.Context, client *cluster.Client, d bootstrap.Departure) (bootstrap.Departed, error) {
	return bootstrap.Departed{}, client.SetOwnState(ctx, p.node, cluster.StateLeft, d.Reason, cluster.Details{LeftBy: d.LeftBy, Cut: d.Cut})
}

func (p *fakeMachine) set(s *bootstrap.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = s
}

func (p *fakeMachine) looks() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.converged
}

// joined are the times of the joins that began.
func (p *fakeMachine) joined() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.joins)
}

// still is a sampler that sees nothing.
type still struct{ hang chan struct{} }

func (s still) Run(ctx context.Context) { <-ctx.Done() }
func (s still) Sessions(context.Context) (cluster.Sessions, error) {
	return cluster.Sessions{}, errors.New("it sees nothing")
}

func (s still) Sample(context.Context) heartbeat.Sample {
	if s.hang != nil {
		<-s.hang // the first one reports its start
		<-s.hang
	}
	return heartbeat.Sample{At: time.Now()}
}

// drains returns the options of drains without a cloud.
func drains(files lifecycle.Files) lifecycle.Options {
	began := time.Now()
	return lifecycle.Options{
		Files:    files,
		Deadline: func() (time.Duration, bool) { return lifecycle.DefaultDeadline, true },
		StopTime: func() time.Duration { return 0 },
		Filter:   func() cloud.Filter { return nil },
		Uptime:   func() (string, time.Duration) { return "", time.Since(began) + 1 },
	}
}

// noFiles keeps nothing.
type noFiles struct{}

func (noFiles) Read(string) (conf.File, error)                           { return conf.File{}, nil }
func (noFiles) WriteFile(string, []byte, fs.FileMode, fs.FileMode) error { return nil }
func (noFiles) RemoveFile(string) error                                  { return nil }

// notified keeps the notifications of a daemon.
type notified struct {
	mu    sync.Mutex
	log   bytes.Buffer
	sent  []string
	round []time.Time
}

func (l *notified) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(b)
}

func (l *notified) notify(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent = append(l.sent, s)
	if s == "WATCHDOG=1" {
		l.round = append(l.round, time.Now())
	}
}

func (l *notified) rounds() []time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.round
}

func (l *notified) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.String()
}

// longest is the longest time without a round, up to now.
func (l *notified) longest(since time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var most time.Duration
	for _, at := range append(l.round, time.Now()) {
		most = max(most, at.Sub(since))
		since = at
	}
	return most
}

func testOptions(p *fakeMachine, l *notified) Options {
	return Options{
		Machine: p, Notify: l.notify, Log: slog.New(slog.NewTextHandler(l, nil)), Version: "test",
		Settings: func() Settings {
			return Settings{Interval: 5 * time.Second, AutoJoin: true, JoinTimeout: 5 * time.Minute}
		},
		Reread: func() error { return nil },
		Redact: func(s string) string { return strings.ReplaceAll(s, "hunter2", "***") },
		Mongo: func(context.Context) (Named, error) {
			target, err := cluster.ParseTarget("127.0.0.1:1")
			return Named{Target: target}, err
		},
		Identify: func(context.Context) (metadata.Instance, error) { return metadata.Instance{ID: "i-1"}, nil },
		Connect:  func(context.Context, cluster.Target) (*cluster.Client, error) { return nil, errors.New("no network") },
		Sampler:  func(func() *cluster.Client, func() cluster.Node) Sampler { return still{} },

		Lifecycle: drains(noFiles{}),
	}
}

func newTestDaemon(p *fakeMachine, l *notified, change func(*Options)) *Daemon {
	o := testOptions(p, l)
	if change != nil {
		change(&o)
	}
	serves := o.Server == nil
	if serves {
		o.Server = &fakeServer{apps: []string{"LiveApp"}}
	}
	d := New(o)
	d.life = newLife(d)
	d.view.setLife(nil, nil) // the test says what the lifecycle is
	d.view.change(func(v *View) { v.Server.Up, v.Lifecycle = serves, nil })
	return d
}

// follows runs the daemon's sessions until the test ends.
func follows(t *testing.T, d *Daemon) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.follow(t.Context())
	}()
	t.Cleanup(func() { <-ended })
}

// runs runs the daemon until stop.
func runs(t *testing.T, d *Daemon) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		must.OK(t, <-ended)
	}
}

// get asks a handler of the daemon.
func get(h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

// listens waits until a daemon that runs has its socket and its port.
func listens(t *testing.T, socket string) (v View) {
	t.Helper()
	must.Until(t, "the daemon listens", func() (ok bool) {
		var err error
		v, err = NewClient(socket, nil).Status(t.Context())
		return err == nil && v.Metrics != ""
	})
	return v
}

// A convergence by hand writes the state file, and is no join after a drain.
func TestOnlyAJoinForgetsADrain(t *testing.T) {
	since := time.Now()
	p := &fakeMachine{state: &bootstrap.State{Phase: bootstrap.PhaseJoined, Since: since}}
	l := &notified{}
	d := newTestDaemon(p, l, nil)
	d.begin()
	d.life.manager.Notice(lifecycle.Notice{ID: "aws-lifecycle/terminate", Kind: lifecycle.Terminate})
	const asked = "the present drain continues"
	p.set(&bootstrap.State{Phase: bootstrap.PhaseJoined, Since: since, RestartPending: true})
	if d.begin(); strings.Contains(l.text(), asked) {
		t.Errorf("a convergence forgets a drain:\n%s", l.text())
	}
	p.set(&bootstrap.State{Phase: bootstrap.PhaseJoined, Since: since.Add(time.Minute)})
	if d.begin(); !strings.Contains(l.text(), asked) {
		t.Errorf("a join does not:\n%s", l.text())
	}
}

// A join that fails restarts AMS twice: it is tried again once, and then every hour. Whatever
// is waited for, the watchdog sees a loop that goes round.
func TestJoinThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeMachine{state: &bootstrap.State{Phase: bootstrap.PhaseJoining}, restarts: true}
		p.join = func(ctx context.Context) error {
			sleep.For(t.Context(), 3*time.Minute)
			return &bootstrap.FailedError{Step: "starting", Err: errors.New("it died"), State: "undone"}
		}
		l := &notified{}
		d := newTestDaemon(p, l, nil)
		begin := time.Now()
		follows(t, d)
		sleep.For(t.Context(), 150*time.Minute)
		synctest.Wait()
		if gap := l.longest(begin); gap > 11*time.Second {
			t.Errorf("no round for %s", gap)
		}
		if h := d.health(time.Now()); !h.Healthy {
			t.Errorf("%+v", h)
		}
		var pauses []time.Duration
		joins := p.joined()
		for i, at := range joins[1:] {
			pauses = append(pauses, (at.Sub(joins[i]) - 3*time.Minute).Round(time.Second))
		}
		must.NoDiff(t, "pauses", pauses, []time.Duration{15 * time.Second, time.Hour, time.Hour})
		if n := strings.Count(l.text(), "in=1h0m0s"); n != 3 || !strings.Contains(l.text(), "systemctl reload amsagent") {
			t.Errorf("said %d times:\n%s", n, l.text())
		}
		v := d.view.get()
		if v.Activity != "joining" || !strings.Contains(v.Trouble, "it died (undone)") || !strings.Contains(d.view.line(), "it died") {
			t.Errorf("%+v", v)
		}
		// A join by hand does not wait for the next attempt.
		p.set(nil)
		sleep.For(t.Context(), d.o.Periods.State)
		synctest.Wait()
		if !strings.Contains(l.text(), "it is tried again") || d.view.get().Phase != "" {
			t.Errorf("the state file is not followed: %+v", d.view.get())
		}
	})
}

// A join that fails before it restarts AMS cuts no session.
func TestJoinThatFailsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeMachine{state: &bootstrap.State{Phase: bootstrap.PhaseJoining}}
		p.join = func(context.Context) error {
			return &bootstrap.FailedError{Step: "waiting for the lock", Err: errors.New("busy")}
		}
		d := newTestDaemon(p, &notified{}, nil)
		follows(t, d)
		sleep.For(t.Context(), 20*time.Minute)
		if n := len(p.joined()); n < 20 || n > 30 {
			t.Errorf("%d joins", n)
		}
	})
}

// A machine that was made to leave while the daemon runs stays so, whatever the registry has: it has nothing of a leave without
// MongoDB. Any other machine without a state joins by itself, once the registry shows that it has not left before.
func TestLeaveByHandLasts(t *testing.T) {
	joined, joining, leaving := bootstrap.PhaseJoined, bootstrap.PhaseJoining, bootstrap.PhaseLeaving
	for name, tt := range map[string]struct {
		phases []bootstrap.Phase // one after the other; "" is no state
		joins  bool
	}{
		"never joined":                        {[]bootstrap.Phase{""}, true},
		"left":                                {[]bootstrap.Phase{joined, ""}, false},
		"left in two steps":                   {[]bootstrap.Phase{joined, leaving, ""}, false},
		"began to leave before the daemon":    {[]bootstrap.Phase{leaving, ""}, false},
		"begins to leave":                     {[]bootstrap.Phase{joined, leaving}, false},
		"left, and a join by hand was undone": {[]bootstrap.Phase{joined, "", joining, ""}, false},
		"left twice":                          {[]bootstrap.Phase{joined, "", joined, ""}, false},
		"a first join was undone":             {[]bootstrap.Phase{joining, ""}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &fakeMachine{join: func(context.Context) error { return errors.New("undone") }}
				var asked atomic.Int64
				d := newTestDaemon(p, &notified{}, func(o *Options) {
					o.Connect = func(context.Context, cluster.Target) (*cluster.Client, error) {
						asked.Add(1)
						return nil, errors.New("no network")
					}
				})
				before := 0
				for i, phase := range tt.phases {
					if p.set(nil); phase != "" {
						p.set(&bootstrap.State{Phase: phase, Since: time.Now()})
					}
					if i == 0 {
						follows(t, d)
					}
					sleep.For(t.Context(), 5*time.Minute)
					asked.Store(0)
					before = len(p.joined())
					sleep.For(t.Context(), 5*time.Minute)
				}
				// Without a state, the daemon asks MongoDB only before a join.
				if n := asked.Load(); n > 0 != tt.joins || len(p.joined()) > before {
					t.Errorf("it asked the registry %d times and joined %d times", n, len(p.joined())-before)
				}
			})
		})
	}
}

// New settings that come while a step is under way are not forgotten with its end.
func TestReloadDuringStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, l := &fakeMachine{}, &notified{}
		p.converge = func(ctx context.Context) (*bootstrap.Convergence, error) {
			sleep.For(t.Context(), 30*time.Second)
			return &bootstrap.Convergence{}, ctx.Err()
		}
		reload := make(chan struct{})
		d := newTestDaemon(p, l, func(o *Options) {
			o.Mongo = func(context.Context) (Named, error) { return Named{}, ErrNoMongo }
			o.Reload = reload
		})
		follows(t, d)
		sleep.For(t.Context(), 10*time.Second)
		reload <- struct{}{}
		sleep.For(t.Context(), 25*time.Second) // the first look ended at 30 s, and the settings are looked at within two
		must.Equal(t, "it looked (times)", p.looks(), 2)
	})
}

// Wrong settings are shown at once and as long as they are wrong, and with them no machine joins by itself.
func TestWrongSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeMachine{}
		var wrong, unread atomic.Value
		wrong.Store("config.yaml:1: unknown key")
		unread.Store("")
		reload := make(chan struct{})
		d := newTestDaemon(p, &notified{}, func(o *Options) {
			o.Reload = reload
			o.Settings = func() Settings {
				return Settings{Interval: 5 * time.Second, AutoJoin: true, JoinTimeout: time.Minute, Wrong: wrong.Load().(string)}
			}
			o.Reread = func() error {
				if text := unread.Load().(string); text != "" {
					return errors.New(text)
				}
				return nil
			}
		})
		shows := func(when, text string) {
			t.Helper()
			var metrics bytes.Buffer
			v := d.view.get()
			writeMetrics(&metrics, v)
			degraded := strings.Contains(metrics.String(), "\namsagent_degraded{reason=\"settings\"} 1\n")
			if !strings.Contains(v.SettingsError, text) || (v.SettingsError == "") != (text == "") || !degraded && text != "" || !strings.Contains(d.view.line(), text) {
				t.Errorf("%s: settings error %q, degraded: %v, %q", when, v.SettingsError, degraded, d.view.line())
			}
		}
		shows("at the start", "unknown key")
		follows(t, d)
		sleep.For(t.Context(), time.Minute)
		synctest.Wait()
		if shows("idle", "unknown key"); !strings.Contains(d.view.get().Activity, "not a member") {
			t.Errorf("it does not wait: %q", d.view.get().Activity)
		}
		wrong.Store("")
		reload <- struct{}{}
		sleep.For(t.Context(), time.Minute)
		synctest.Wait()
		if shows("corrected", ""); d.view.get().Activity != "joining" {
			t.Errorf("it does not join: %q", d.view.get().Activity)
		}
		unread.Store("config.yaml:1: not YAML")
		reload <- struct{}{}
		synctest.Wait()
		shows("unread", "not YAML")
	})
}

// While we wait for another amsagent, what it does to the state file is followed.
func TestStateChangedByOthers(t *testing.T) {
	joined := &bootstrap.State{Phase: bootstrap.PhaseJoined, Since: time.Unix(1000, 0)}
	elsewhere := *joined
	elsewhere.Since = joined.Since.In(time.FixedZone("", 7200))
	for _, tt := range []struct {
		name    string
		own, is *bootstrap.State
		step    string // in progress
		want    bool
	}{
		{"the same", joined, joined, "", false},
		{"the same in another zone", joined, &elsewhere, "", false},
		{"none at all", nil, nil, "", false},
		{"another", joined, &bootstrap.State{Phase: bootstrap.PhaseJoined, Address: "10.0.0.2"}, "", true},
		{"gone", joined, nil, "", true},
		{"of our own making", joined, &bootstrap.State{Phase: bootstrap.PhaseJoined, RestartPending: true, Since: joined.Since}, "convergence", false},
		{"a join while we wait", joined, &bootstrap.State{Phase: bootstrap.PhaseJoined, Since: joined.Since.Add(time.Minute)}, "convergence", true},
		{"a join of a new machine during the wait", nil, joined, "convergence", true},
		{"a leave while we wait", joined, &bootstrap.State{Phase: bootstrap.PhaseLeaving}, "convergence", true},
		{"gone while we wait", joined, nil, "convergence", true},
		{"our own join", nil, &bootstrap.State{Phase: bootstrap.PhaseJoining}, "join", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newTestDaemon(&fakeMachine{state: tt.is}, &notified{}, nil)
			d.own = tt.own
			look := func() error {
				must.Equal(t, "changed", d.changed(false), tt.want)
				return nil
			}
			if tt.step != "" {
				must.OK(t, d.step(tt.step == "join", look))
			}
			must.OK(t, look()) // what others wrote is not taken for the step's own
		})
	}
}

// A drain may stop AMS while the files are compared: the end of one step is not
// that of the other.
func TestStepsTogether(t *testing.T) {
	p := &fakeMachine{state: &bootstrap.State{Phase: bootstrap.PhaseJoined}}
	d := newTestDaemon(p, &notified{}, nil)
	d.begin()
	go1, go2, begun := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var work sync.WaitGroup
	for _, wait := range []chan struct{}{go1, go2} {
		work.Go(func() {
			err := d.step(false, func() error {
				begun <- struct{}{}
				<-wait
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	<-begun
	<-begun
	close(go1)
	must.Until(t, "one step has ended", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.steps == 1
	})
	p.set(&bootstrap.State{Phase: bootstrap.PhaseJoined, RestartPending: true})
	if !d.stepping() || d.changed(false) {
		t.Error("the step that is still under way is forgotten")
	}
	close(go2)
	work.Wait()
	if d.stepping() || d.changed(false) {
		t.Error("a step that has ended is remembered")
	}
}

// A reload that needs a new daemon waits for the join that is under way.
func TestOutdatedWaitsForTheJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeMachine{state: &bootstrap.State{Phase: bootstrap.PhaseJoining}}
		var cut error
		p.join = func(ctx context.Context) error {
			sleep.For(ctx, 3*time.Minute)
			cut = ctx.Err()
			p.set(&bootstrap.State{Phase: bootstrap.PhaseJoined})
			return nil
		}
		var other atomic.Bool
		reload := make(chan struct{})
		d := newTestDaemon(p, &notified{}, func(o *Options) {
			o.Reload, o.Reread = reload, func() error { other.Store(true); return nil }
			o.Outdated = other.Load
		})
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		var ended time.Duration
		work.Go(func() {
			began := time.Now()
			if !d.follow(ctx) {
				t.Error("it does not ask for a new daemon")
			}
			ended = time.Since(began)
		})
		sleep.For(ctx, time.Minute)
		reload <- struct{}{}
		sleep.For(ctx, 5*time.Minute)
		synctest.Wait()
		if cut != nil || ended < 3*time.Minute || ended > 3*time.Minute+10*time.Second {
			t.Errorf("the join ended with %v, the daemon after %s", cut, ended)
		}
		cancel()
		work.Wait()
	})
}

// Warnings that stay are said once, and again after they were gone.
func TestWarningsSaidOnce(t *testing.T) {
	p, l := &fakeMachine{}, &notified{}
	warn := true
	p.converge = func(context.Context) (*bootstrap.Convergence, error) {
		c := &bootstrap.Convergence{}
		if warn {
			c.Warnings = []bootstrap.Finding{{ID: "AGENT-IDENTITY", Text: "no answer"}}
		}
		return c, nil
	}
	d := newTestDaemon(p, l, nil)
	for _, now := range []bool{true, true, false, true, true} {
		warn = now
		_, err := d.converge(t.Context(), Named{}, askTime)
		must.OK(t, err)
	}
	must.Equal(t, "failures in\n"+l.text(), strings.Count(l.text(), "no answer"), 2)
}

// A malformed tag says nothing against who this machine is, whose end is an event.
func TestEventOfAMalformedTag(t *testing.T) {
	l := &life{d: newTestDaemon(&fakeMachine{}, &notified{}, func(o *Options) {
		o.Identify = func(context.Context) (metadata.Instance, error) {
			return metadata.Instance{ID: "i-1"}, bootstrap.ErrTags
		}
		o.Mongo = func(context.Context) (Named, error) { return Named{}, ErrNoMongo }
	})}
	must.OK(t, l.event(t.Context(), cluster.Event{}))
}

// freshSocket keeps paths short: a socket's has 107 bytes at most.
func freshSocket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "d") //nolint:usetesting // see above
	must.OK(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "c.sock")
}

// The former daemon's socket stays until the new one takes its name, so that a command never finds none.
func TestControlSocketStays(t *testing.T) {
	path := freshSocket(t)
	l, err := listenUnix(t.Context(), path, nil)
	must.OK(t, err)
	// A folder in the place of the staged socket: the next daemon cannot listen.
	must.OK(t, errors.Join(l.Close(), os.MkdirAll(path+".new/x", 0o755)))
	if _, err := listenUnix(t.Context(), path, nil); err == nil {
		t.Fatal("a folder was replaced")
	}
	if _, err := net.Dial("unix", path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connecting: %v", err)
	}
}

// What hangs is not waited for, and neither answers nor keeps others from it.
func TestHang(t *testing.T) {
	hang := make(chan struct{})
	path := freshSocket(t)
	l := &notified{}
	d := newTestDaemon(&fakeMachine{}, l, func(o *Options) {
		o.Mongo = func(context.Context) (Named, error) { return Named{}, ErrNoMongo }
		o.Settings = func() Settings { return Settings{Interval: 10 * time.Millisecond} }
		o.Sampler = func(func() *cluster.Client, func() cluster.Node) Sampler { return still{hang} }
		o.Control, o.Lock, o.Metrics = path, path+".lock", "127.0.0.1:0"
		o.Periods.Stop = 50 * time.Millisecond
	})
	stop := runs(t, d)
	v := listens(t, path)
	get := func() int {
		resp, err := http.Get("http://" + v.Metrics + "/healthz")
		must.OK(t, err)
		defer resp.Body.Close()
		return resp.StatusCode
	}
	hang <- struct{}{}
	must.Equal(t, "health at first", get(), http.StatusOK)
	d.view.change(func(v *View) { v.Started = v.Started.Add(-time.Minute) })
	must.Equal(t, "health after a minute", get(), http.StatusServiceUnavailable)
	must.Equal(t, "the watchdog was fed (times) by a loop that hangs", len(l.rounds()), 0)
	stop()
	must.Contain(t, "log", l.text(), "something hangs")
	close(hang)
	// The socket stays: a command waits for the next daemon, as it does after a kill.
	if _, err := net.Dial("unix", path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connecting after the end: %v", err)
	}
}

// A secret that an error quotes comes neither to the public port nor into the status of the unit.
func TestPublicTextsAreRedacted(t *testing.T) {
	l := &notified{}
	d := newTestDaemon(&fakeMachine{}, l, nil)
	d.view.change(func(v *View) {
		v.Trouble, v.Server.Applications = "bad hunter2", map[string]string{"LiveApp": "hunter2 fails"}
	})
	d.status()
	said := strings.Join(l.sent, "\n")
	for _, path := range []string{"/readyz", "/healthz", "/application-health"} {
		said += get(d.metricsHandler(), path).Body.String()
	}
	if strings.Contains(said, "hunter2") || strings.Count(said, "***") != 2 {
		t.Errorf("%s", said)
	}
}

// The name of an application is its owner's choice, and comes to a person's terminal by curl.
func TestAnswersAreSafe(t *testing.T) {
	w := httptest.NewRecorder()
	answerJSON(w, false, Readiness{Why: "\x1b]0;x\a\u009b31m\u202e does not answer", Applications: map[string]string{"\u2066x": ""}})
	if got := w.Body.String(); strings.ContainsAny(got, "\x1b\a\u009b\u202e\u2066") || !strings.Contains(got, `\u001b]0;x\u0007\u009b31m\u202e does`) {
		t.Errorf("%q", got)
	}
	var back Readiness
	if err := json.Unmarshal(w.Body.Bytes(), &back); err != nil || back.Why != "\x1b]0;x\a\u009b31m\u202e does not answer" {
		t.Errorf("%v: %q", err, back.Why)
	}
}
