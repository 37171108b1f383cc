// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// fakeDaemon notes what is asked of it, and whether the machine is locked then.
type fakeDaemon struct {
	t        *testing.T
	m        *Machine
	state    ams.UnitsState
	stateErr error
	err      error // of Enable and Disable
	calls    []string
}

func (d *fakeDaemon) State(context.Context) (ams.UnitsState, error) { return d.state, d.stateErr }

func (d *fakeDaemon) Enable(context.Context) error {
	lock, ok := locked(d.t, d.m)
	if !ok {
		d.t.Fatal("the daemon is started while the machine is locked")
	}
	_ = lock.Unlock()
	d.calls = append(d.calls, "enable")
	return d.err
}

func (d *fakeDaemon) Disable(context.Context) error {
	d.calls = append(d.calls, "disable")
	return d.err
}

var (
	daemonOff  = ams.UnitsState{}
	daemonOn   = ams.UnitsState{Enabled: true, Active: true, Any: true}
	daemonHalf = ams.UnitsState{Enabled: true, Any: true}
)

func TestStartDaemon(t *testing.T) {
	t.Parallel()
	refused := errors.New("read-only file system")
	pending := &ams.JobError{Service: "amsagent.service", Verb: "start", Result: "pending", Err: context.DeadlineExceeded}
	masked := ams.ErrUnitMasked
	for _, tt := range []struct {
		name  string
		state ams.UnitsState
		look  error
		err   error
		dry   bool
		want  DaemonOutcome
		calls string
		none  bool   // no service manager starts it
		alone bool   // none answers
		warns string // in the warning and its hint
		says  string
	}{
		{name: "fresh", state: daemonOff, want: DaemonEnabled, calls: "enable"},
		{name: "stopped", state: daemonHalf, want: DaemonEnabled, calls: "enable"},
		{name: "enabled", state: daemonOn, want: "unchanged"},
		{name: "dry", state: daemonOff, dry: true, want: DaemonEnabled},
		{name: "dry, enabled", state: daemonOn, dry: true, want: "unchanged"},
		{name: "not installed", look: ams.ErrNoUnit, alone: true, want: "not-installed", warns: "no agent runs"},
		{name: "dry, not installed", look: ams.ErrNoUnit, alone: true, dry: true, want: "not-installed", warns: "no agent runs"},
		{name: "not installed, and one of another unit answers", look: ams.ErrNoUnit, want: "not-installed"},
		{name: "no systemd", none: true, alone: true, warns: "no agent runs"},
		{name: "no systemd, and it answers", none: true},
		{name: "systemd does not answer", look: ams.ErrNoSystemd, want: "failed", warns: "journalctl -u amsagent"},
		{name: "refused", err: refused, want: "failed", calls: "enable", warns: "read-only file system"},
		{name: "masked", err: masked, want: "failed", calls: "enable", warns: "unmask"},
		{name: "slow", err: pending, want: DaemonEnabled, calls: "enable", says: "is being started"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &Machine{Root: t.TempDir()}
			d := &fakeDaemon{t: t, m: m, state: tt.state, stateErr: tt.look, err: tt.err}
			var said []string
			m.Daemon, m.Progress = d, func(s string) { said = append(said, s) }
			m.Alone = func(context.Context) bool { return tt.alone }
			if tt.none {
				m.Daemon = nil
			}
			res := &JoinResult{}
			m.startDaemon(t.Context(), res, tt.dry)
			must.Equal(t, "the outcome", res.Daemon, tt.want)
			must.Equal(t, "calls", strings.Join(d.calls, " "), tt.calls)
			if got := strings.Join(said, "\n"); (tt.says == "") != (got == "") || !strings.Contains(got, tt.says) {
				t.Errorf("it said %q, want %q", got, tt.says)
			}
			switch {
			case tt.warns == "" && len(res.Warnings) == 0:
			case len(res.Warnings) != 1 || res.Warnings[0].ID != IDDaemon || !strings.Contains(res.Warnings[0].Text+res.Warnings[0].Hint, tt.warns):
				t.Errorf("warnings %v, want %q", res.Warnings, tt.warns)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		m, res := &Machine{}, &JoinResult{}
		m.startDaemon(t.Context(), res, false)
		if res.Daemon != "" || len(res.Warnings) > 0 {
			t.Errorf("got %+v", res)
		}
	})
}

func TestLeaveStopsDaemon(t *testing.T) {
	t.Parallel()
	refused := errors.New("no such thing")
	for _, tt := range []struct {
		name    string
		tree    []step
		req     LeaveRequest
		state   ams.UnitsState
		look    error
		service Service
		err     error // of Disable
		want    DaemonOutcome
		calls   string
		failed  bool // the leave
	}{
		{name: "runs", tree: []step{joined}, state: daemonOn, want: DaemonDisabled, calls: "disable"},
		{name: "does not run", tree: []step{joined}, state: daemonOff, want: "unchanged"},
		{name: "not installed", tree: []step{joined}, look: ams.ErrNoUnit, want: "not-installed"},
		{name: "cannot be stopped", tree: []step{joined}, state: daemonOn, err: refused, want: "failed", calls: "disable"},
		{name: "dry", tree: []step{joined}, req: LeaveRequest{DryRun: true}, state: daemonOn, want: DaemonDisabled},
		{name: "offline", tree: []step{joined}, req: LeaveRequest{Offline: true}, state: daemonOn},
		{name: "never joined", state: daemonOn, want: DaemonDisabled, calls: "disable"},
		// The leave fails and the server still serves: the daemon must run as before.
		{name: "cancelled", tree: []step{joined}, state: daemonOn, service: &fakeService{state: isUp, fails: map[string]error{"stop": refused}}, want: DaemonDisabled, calls: "disable enable", failed: true},
		{name: "cancelled, did not run", tree: []step{joined}, state: daemonOff, service: &fakeService{state: isUp, fails: map[string]error{"stop": refused}}, want: "unchanged", failed: true},
		{name: "no answer of the service", tree: []step{joined}, state: daemonOn, service: &fakeService{fails: map[string]error{"state": refused}}, failed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newTree(t, tt.tree...)
			d := &fakeDaemon{t: t, m: m, state: tt.state, stateErr: tt.look, err: tt.err}
			m.Daemon = d
			if tt.service != nil {
				m.Service = tt.service
			}
			m.Sessions = func(context.Context) (cluster.Sessions, error) {
				return cluster.Sessions{Publishers: new(int), Viewers: new(int)}, nil
			}
			res, err := m.Leave(t.Context(), tt.req)
			if (err != nil) != tt.failed {
				t.Fatal(err)
			}
			must.Equal(t, "the outcome", res.Daemon, tt.want)
			must.Equal(t, "calls", strings.Join(d.calls, " "), tt.calls)
			must.Equal(t, "a warning of the daemon", strings.Contains(ids(res.Warnings), IDDaemon), tt.want == "failed")
		})
	}
}
