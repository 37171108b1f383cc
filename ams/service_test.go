// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"github.com/amsagent/amsagent/internal/must"
)

// service is the common interface of all kinds of service.
type service interface {
	Name() string
	State(ctx context.Context) (State, error)
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
	Reload(ctx context.Context) error
}

var (
	_ service = (*Systemd)(nil)
	_ service = (*Command)(nil)
	_ service = None{}
)

// script is a service with scripted states: each from its time on.
type script struct {
	began  time.Time
	states []scripted
}

type scripted struct {
	from  time.Duration
	state State
	err   error
}

func (s *script) Name() string { return "antmedia.service" }

func (s *script) State(context.Context) (State, error) {
	var now scripted
	for _, st := range s.states {
		if time.Since(s.began) >= st.from {
			now = st
		}
	}
	return now.state, now.err
}

func TestWaitStable(t *testing.T) {
	up := State{Activity: ActivityActive, Sub: "running", MainPID: 100, Invocation: "a"}
	replaced := up
	replaced.MainPID, replaced.Invocation = 200, "b"
	counted := up
	counted.Restarts = 1
	failed := State{Activity: ActivityFailed, Sub: "failed", Result: "exit-code", Exit: "exit status 1"}
	crashing := State{Activity: ActivityActivating, Sub: "auto-restart", Result: "signal", Exit: "SIGKILL"}
	starting := State{Activity: ActivityActivating, Sub: "start"}
	busy := errors.New("no reply")
	died := errors.New("an UnstableError")

	for _, c := range []struct {
		name   string
		states []scripted
		limit  time.Duration
		after  time.Duration // the expected duration of the wait
		want   error
		text   string
	}{
		{"stays up", []scripted{{0, up, nil}}, time.Minute, 5 * time.Second, nil, ""},
		{"comes up late", []scripted{{0, starting, nil}, {3 * time.Second, up, nil}}, time.Minute, 8 * time.Second, nil, ""},
		{"a hiccup of systemd", []scripted{{0, up, nil}, {time.Second, State{}, busy}, {2 * time.Second, up, nil}}, time.Minute, 5 * time.Second, nil, ""},
		{"died after three seconds", []scripted{{0, up, nil}, {3 * time.Second, failed, nil}}, time.Minute, 3 * time.Second, died, "failed (exit-code, exit status 1) after 3s"},
		{"waits for its restart", []scripted{{0, up, nil}, {3 * time.Second, crashing, nil}}, time.Minute, 3 * time.Second, died, "activating (auto-restart, signal, SIGKILL)"},
		{"crashed before the first look", []scripted{{0, crashing, nil}}, time.Minute, 0, died, "auto-restart"},
		{"restarted between two looks", []scripted{{0, up, nil}, {3 * time.Second, replaced, nil}}, time.Minute, 3 * time.Second, died, "did not stay up: active (running) after 3s"},
		{"restarted with the same number", []scripted{{0, up, nil}, {3 * time.Second, counted, nil}}, time.Minute, 3 * time.Second, died, "restarted 1 time by itself"},
		{"started again by its unit", []scripted{{0, up, nil}, {time.Second, starting, nil}}, time.Minute, time.Second, died, "activating (start)"},
		{"stopped by an operator", []scripted{{0, up, nil}, {time.Second, State{Activity: ActivityInactive, Sub: "dead"}, nil}}, time.Minute, time.Second, died, "inactive (dead)"},
		{"never comes", []scripted{{0, starting, nil}}, 10 * time.Second, 10 * time.Second, context.DeadlineExceeded, "watching antmedia.service"},
		{"systemd stays away", []scripted{{0, up, nil}, {time.Second, State{}, busy}}, time.Minute, 2500 * time.Millisecond, busy, ""},
		{"nothing known", []scripted{{0, State{Activity: ActivityUnknown}, nil}}, time.Minute, 0, ErrNotManaged, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), c.limit)
				defer cancel()
				begin := time.Now()
				_, err := WaitStable(ctx, &script{begin, c.states}, 5*time.Second)
				unstable, is := errors.AsType[*UnstableError](err)
				if is != errors.Is(c.want, died) || !is && !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.text) {
					t.Errorf("got %v", err)
				}
				must.Equal(t, "took", time.Since(begin), c.after)
				if unstable != nil && !strings.Contains(Hint(err), "journalctl -u antmedia.service") {
					t.Errorf("hint %q", Hint(err))
				}
			})
		})
	}
}

func TestStartable(t *testing.T) {
	for load, want := range map[string]error{
		"": nil, "loaded": nil, "masked": ErrUnitMasked, "not-found": ErrNoUnit, "bad-setting": ErrUnitBroken, "error": ErrUnitBroken,
	} {
		err := State{Load: load}.Startable()
		if !errors.Is(err, want) || (err != nil && Hint(err) == "") {
			t.Errorf("%q: %v, hint %q", load, err, Hint(err))
		}
	}
}

func TestStateString(t *testing.T) {
	for want, st := range map[string]State{
		"unknown":                  {},
		"active (running)":         {Activity: ActivityActive, Sub: "running", Result: "success"},
		"active":                   {Activity: ActivityActive},
		"failed (start-limit-hit)": {Activity: ActivityFailed, Sub: "failed", Result: "start-limit-hit"},
		"inactive (dead)":          {Activity: ActivityInactive, Sub: "dead", Result: "success"},
		"active (running, restarted 4 times by itself)": {Activity: ActivityActive, Sub: "running", Restarts: 4, Exit: "exit status 1"},
	} {
		must.Equal(t, fmt.Sprintf("%+v", st), st.String(), want)
	}
}

func TestStartCommand(t *testing.T) {
	for name, want := range map[string]string{DefaultUnit: "systemctl start antmedia.service", "/opt/ctl.sh": "/opt/ctl.sh start"} {
		must.Equal(t, name, StartCommand(name), want)
	}
}

func TestNone(t *testing.T) {
	var s service = None{}
	st, err := s.State(t.Context())
	if err != nil || st.Known() || st.Running() || st.String() != "unknown" {
		t.Errorf("State = %+v, %v", st, err)
	}
	for verb, do := range map[string]func(context.Context) error{"start": s.Start, "stop": s.Stop} {
		if err := do(t.Context()); !errors.Is(err, ErrNotManaged) || !strings.Contains(err.Error(), verb) || Hint(err) == "" {
			t.Errorf("%s: %v", verb, err)
		}
	}
	must.OK(t, s.Reload(t.Context()))
}

// fakeBus is systemd with one unit.
type fakeBus struct {
	props    map[string]any
	propsErr error
	jobErr   error
	result   func(done chan<- string) // ends the job
	calls    []string
	dead     bool
	closed   int
}

func (b *fakeBus) GetAllPropertiesContext(context.Context, string) (map[string]any, error) {
	return b.props, b.propsErr
}

func (b *fakeBus) job(verb, unit string, done chan<- string) (int, error) {
	b.calls = append(b.calls, verb+" "+unit)
	if b.jobErr == nil && b.result != nil {
		b.result(done)
	}
	return 0, b.jobErr
}

func (b *fakeBus) StartUnitContext(_ context.Context, unit, _ string, done chan<- string) (int, error) {
	return b.job("start", unit, done)
}

func (b *fakeBus) StopUnitContext(_ context.Context, unit, _ string, done chan<- string) (int, error) {
	return b.job("stop", unit, done)
}

func (b *fakeBus) ResetFailedUnitContext(_ context.Context, unit string) error {
	b.calls = append(b.calls, "reset "+unit)
	return ErrNoUnit // must not matter
}

func (b *fakeBus) EnableUnitFilesContext(_ context.Context, units []string, _, _ bool) (bool, []dbus.EnableUnitFileChange, error) {
	b.calls = append(b.calls, "enable "+strings.Join(units, " "))
	return true, nil, b.jobErr
}

func (b *fakeBus) DisableUnitFilesContext(_ context.Context, units []string, _ bool) ([]dbus.DisableUnitFileChange, error) {
	b.calls = append(b.calls, "disable "+strings.Join(units, " "))
	return nil, b.jobErr
}

func (b *fakeBus) ReloadContext(context.Context) error {
	b.calls = append(b.calls, "reload")
	return b.jobErr
}
func (b *fakeBus) Connected() bool { return !b.dead }
func (b *fakeBus) Close()          { b.closed++ }

func fakeSystemd(b *fakeBus) (*Systemd, *int) {
	dials := 0
	return &Systemd{unit: "antmedia.service", dial: func(context.Context) (bus, error) { dials++; return b, nil }}, &dials
}

func ends(result string) func(chan<- string) { return func(done chan<- string) { done <- result } }

func TestSystemdJobs(t *testing.T) {
	loaded := map[string]any{"ActiveState": "failed", "SubState": "failed", "LoadState": "loaded", "Result": "exit-code", "ExecMainCode": int32(1), "ExecMainStatus": int32(1)}
	for _, result := range []string{"done", "failed", "canceled", "timeout", "dependency", "skipped", "invalid"} {
		for _, verb := range []string{"start", "stop"} {
			t.Run(verb+" "+result, func(t *testing.T) {
				b := &fakeBus{props: loaded, result: ends(result)}
				s, dials := fakeSystemd(b)
				err := map[string]func(context.Context) error{"start": s.Start, "stop": s.Stop}[verb](t.Context())
				wantCalls := []string{"reset antmedia.service", verb + " antmedia.service"}
				if verb == "stop" {
					wantCalls = wantCalls[1:]
				}
				must.NoDiff(t, "calls", b.calls, wantCalls)
				must.Equal(t, "connections closed", b.closed, *dials)
				var job *JobError
				switch {
				case result == "done" && err != nil:
					t.Error(err)
				case result == "done":
				case !errors.As(err, &job) || job.Result != result || job.Verb != verb || job.Pending() || job.State.Exit != "exit status 1":
					t.Errorf("got %#v", err)
				case !strings.Contains(err.Error(), result) || Hint(err) == "":
					t.Errorf("got %q, hint %q", err, Hint(err))
				}
			})
		}
	}
}

// The connection of a canceled caller is closed, and its error is only that it was closed.
func TestSystemdCallerGoesAway(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	closed := errors.New("use of closed network connection")
	s, _ := fakeSystemd(&fakeBus{props: map[string]any{}, jobErr: closed})
	if err := s.Reload(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestSystemdJobNeverEnds(t *testing.T) {
	activating := map[string]any{"ActiveState": "activating", "SubState": "start", "LoadState": "loaded"}
	for name, c := range map[string]struct {
		bus         fakeBus
		limit, took time.Duration
		want        error
	}{
		"it takes too long":            {fakeBus{}, 7 * time.Second, 7 * time.Second, context.DeadlineExceeded},
		"nor does the caller end it":   {fakeBus{}, time.Hour, systemdJobLimit, context.DeadlineExceeded},
		"connection lost":              {fakeBus{dead: true}, time.Hour, systemdAlivePoll, errLostSystemd},
		"the call itself hangs":        {fakeBus{jobErr: context.Canceled}, 0, 0, context.DeadlineExceeded},
		"connection lost while asking": {fakeBus{jobErr: errors.New("connection closed"), dead: true}, time.Hour, systemdAlivePoll, errLostSystemd},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.bus.props = activating
				s, _ := fakeSystemd(&c.bus)
				ctx, cancel := context.WithTimeout(t.Context(), c.limit)
				defer cancel()
				begin := time.Now()
				err := s.Start(ctx)
				var job *JobError
				if !errors.As(err, &job) || !job.Pending() || !errors.Is(err, c.want) || job.State.Activity != ActivityActivating {
					t.Errorf("got %v", err)
				}
				must.Equal(t, "took", time.Since(begin), c.took)
			})
		})
	}
}

func TestSystemdErrors(t *testing.T) {
	for _, want := range []error{ErrNoUnit, ErrUnitMasked} {
		s, _ := fakeSystemd(&fakeBus{jobErr: want})
		if err := s.Start(t.Context()); !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "start of antmedia.service: ") || Hint(err) == "" {
			t.Errorf("%v: %v", want, err)
		}
		if err := s.Reload(t.Context()); !errors.Is(err, want) {
			t.Errorf("reload: %v", err)
		}
	}
	s := NewSystemd("")
	s.dial = func(context.Context) (bus, error) { return nil, ErrNoSystemd }
	if s.Name() != DefaultUnit || NewSystemd("ams").Name() != "ams.service" || NewSystemd("ams@1.service").Name() != "ams@1.service" {
		t.Error("names of units")
	}
	if st, err := s.State(t.Context()); !errors.Is(err, ErrNoSystemd) || st.Known() {
		t.Errorf("State = %+v, %v", st, err)
	}
	for _, do := range []func(context.Context) error{s.Start, s.Stop, s.Reload} {
		if err := do(t.Context()); !errors.Is(err, ErrNoSystemd) || !strings.Contains(Hint(err), "--service") {
			t.Errorf("got %v, hint %q", err, Hint(err))
		}
	}
}

func TestSystemdState(t *testing.T) {
	full := map[string]any{
		"ActiveState": "active", "SubState": "running", "LoadState": "loaded", "UnitFileState": "enabled", "Result": "success",
		"FragmentPath": "/etc/systemd/system/antmedia.service", "ActiveEnterTimestamp": uint64(1700000000123456), "ExecMainStartTimestamp": uint64(1700000000000001),
		"MainPID": uint32(4242), "NRestarts": uint32(2), "TimeoutStopUSec": uint64(180_000_000), "NeedDaemonReload": true, "DropInPaths": []string{DropInPath},
		"InvocationID": []byte{0xab, 0x01}, "Environment": []string{"MONGO=secret", "AMS_HOST_ADDRESS=10.0.0.1", "AMS_HOST_ADDRESS=10.0.0.5"},
		"WorkingDirectory": "-/opt/b/",
	}
	want := State{
		Activity: ActivityActive, Sub: "running", Load: "loaded", UnitFile: "enabled", Result: "success", Fragment: "/etc/systemd/system/antmedia.service",
		Since: time.UnixMicro(1700000000123456), Started: time.UnixMicro(1700000000000001), MainPID: 4242, Restarts: 2, StopTimeout: 3 * time.Minute,
		NeedReload: true, DropIns: []string{DropInPath}, Invocation: "ab01", HostAddress: "10.0.0.5",
		WorkingDirectory: "/opt/b",
	}
	s, _ := fakeSystemd(&fakeBus{props: full})
	got, err := s.State(t.Context())
	must.OK(t, err)
	must.NoDiff(t, "units", got, want)
	if !got.Running() || !got.Known() || got.Crashing() {
		t.Errorf("%+v", got)
	}

	// Each case changes one property.
	for name, c := range map[string]struct {
		change map[string]any
		check  func(State, error) bool
	}{
		"gone while it runs": {map[string]any{"LoadState": "not-found"}, func(s State, err error) bool { return err == nil && s.Running() }},
		"not there": {
			map[string]any{"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead"},
			func(s State, err error) bool { return errors.Is(err, ErrNoUnit) && !s.Known() },
		},
		"killed":         {map[string]any{"ExecMainCode": int32(2), "ExecMainStatus": int32(9)}, func(s State, _ error) bool { return s.Exit == "SIGKILL" }},
		"strange signal": {map[string]any{"ExecMainCode": int32(3), "ExecMainStatus": int32(99)}, func(s State, _ error) bool { return s.Exit == "signal 99" }},
		"ended well":     {map[string]any{"ExecMainCode": int32(1), "ExecMainStatus": int32(0)}, func(s State, _ error) bool { return s.Exit == "" }},
		"no folder":      {map[string]any{"WorkingDirectory": "~"}, func(s State, _ error) bool { return s.WorkingDirectory == "" }},
		"endless":        {map[string]any{"TimeoutStopUSec": ^uint64(0)}, func(s State, _ error) bool { return s.StopTimeout == 0 }},
		"never active":   {map[string]any{"ActiveEnterTimestamp": uint64(0)}, func(s State, _ error) bool { return s.Since.IsZero() }},
		"crashing":       {map[string]any{"ActiveState": "activating", "SubState": "auto-restart"}, func(s State, _ error) bool { return s.Crashing() && !s.Running() }},
		"crashing, as systemd 254 says": {
			map[string]any{"ActiveState": "activating", "SubState": "auto-restart-queued"},
			func(s State, _ error) bool { return s.Crashing() },
		},
		"wrong types": {
			map[string]any{"MainPID": "x", "DropInPaths": 1, "InvocationID": "x", "NeedDaemonReload": "yes", "Environment": 3, "Result": 7},
			func(s State, err error) bool { return err == nil && s.MainPID == 0 && s.Running() },
		},
	} {
		props := maps.Clone(full)
		maps.Copy(props, c.change)
		s, _ := fakeSystemd(&fakeBus{props: props})
		if st, err := s.State(t.Context()); !c.check(st, err) {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
	}
	s, _ = fakeSystemd(&fakeBus{propsErr: errors.New("no reply")})
	if st, err := s.State(t.Context()); err == nil || st.Known() {
		t.Errorf("%+v, %v", st, err)
	}
	s, _ = fakeSystemd(&fakeBus{props: map[string]any{}})
	if st, err := s.State(t.Context()); err != nil || st.Known() {
		t.Errorf("an empty answer: %+v, %v", st, err)
	}
}

func TestSystemStopping(t *testing.T) {
	none, waits := []any{uint32(0), "/"}, []any{uint32(87), "/org/freedesktop/systemd1/job/87"}
	for _, c := range []struct {
		state           string
		job             []any
		want, beforeSys bool
	}{
		{"inactive", none, false, false},
		{"inactive", waits, true, true},
		{"active", none, true, false},
		{"active", waits, true, false},
		{"", nil, false, false},
	} {
		b := &fakeBus{props: map[string]any{"ActiveState": c.state, "Job": c.job}}
		s := &Systemd{unit: "x.service", dial: func(context.Context) (bus, error) { return b, nil }}
		if got, err := s.SystemStopping(t.Context()); got != c.want || err != nil || b.closed != 1 {
			t.Errorf("%+v: %v, %v, closed %d times", c, got, err, b.closed)
		}
		if got, err := s.SystemStarting(t.Context()); got != c.beforeSys || err != nil {
			t.Errorf("%+v of sysinit.target: %v, %v", c, got, err)
		}
	}
	b := &fakeBus{propsErr: errors.New("no reply")}
	s := &Systemd{unit: "x.service", dial: func(context.Context) (bus, error) { return b, nil }}
	if got, err := s.SystemStopping(t.Context()); got || err == nil {
		t.Errorf("without an answer: %v, %v", got, err)
	}
	s = &Systemd{unit: "x.service", dial: func(context.Context) (bus, error) { return nil, ErrNoSystemd }}
	if got, err := s.SystemStopping(t.Context()); got || !errors.Is(err, ErrNoSystemd) {
		t.Errorf("without systemd: %v, %v", got, err)
	}
}
