// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// TestRealSystemd uses a real systemd. It writes units, so it needs a disposable machine:
//
//	CGO_ENABLED=0 go test -c -o DIR/ams.test ./ams
//	sandbox/nspawn/boot.sh --share DIR -- env AMSAGENT_TEST_SYSTEMD=yes /share/ams.test -test.run RealSystemd -test.v
func TestRealSystemd(t *testing.T) {
	if os.Getenv("AMSAGENT_TEST_SYSTEMD") != "yes" {
		t.Skip("AMSAGENT_TEST_SYSTEMD=yes is not set: not a machine made for this")
	}
	if _, err := os.Stat(systemdRunning); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	// unit writes and returns a service with this [Service] section.
	unit := func(t *testing.T, service string) *Systemd {
		t.Helper()
		name := "amsagent-test-" + strings.ToLower(strings.ReplaceAll(filepath.Base(t.Name()), "_", "-")) + ".service"
		file := filepath.Join("/run/systemd/system", name)
		must.OK(t, os.WriteFile(file, []byte("[Service]\n"+service), 0o644))
		s := NewSystemd(name)
		must.OK(t, s.Reload(ctx))
		t.Cleanup(func() {
			_ = s.Stop(context.WithoutCancel(ctx))
			_ = os.RemoveAll(file + ".d")
			_ = os.Remove(file)
			_ = s.Reload(context.WithoutCancel(ctx))
		})
		return s
	}
	look := func(t *testing.T, s *Systemd) State {
		t.Helper()
		st, err := s.State(ctx)
		must.OK(t, err)
		t.Logf("%s: %s, pid %d", s.Name(), st, st.MainPID)
		return st
	}

	t.Run("restart", func(t *testing.T) {
		s := unit(t, "ExecStart=/bin/sleep infinity\n")
		if st := look(t, s); st.Activity != ActivityInactive || st.Running() {
			t.Errorf("before the start: %+v", st)
		}
		begin := time.Now()
		must.OK(t, s.Start(ctx))
		first := look(t, s)
		if !first.Running() || first.MainPID == 0 || first.Invocation == "" || first.Result != "success" || first.StopTimeout != 90*time.Second {
			t.Errorf("after the start: %+v", first)
		}
		for what, at := range map[string]time.Time{"Since": first.Since, "Started": first.Started} {
			if at.Before(begin.Add(-time.Second)) || at.After(time.Now()) {
				t.Errorf("%s = %s, started at %s", what, at, begin)
			}
		}
		p, err := ReadProcess("", first.MainPID)
		if err != nil || p.Started.Sub(first.Started).Abs() > 2*time.Second {
			t.Errorf("ReadProcess = %+v, %v; systemd started it at %s", p, err, first.Started)
		}
		must.OK(t, s.Restart(ctx))
		if down, err := s.SystemStopping(ctx); down || err != nil {
			t.Errorf("the machine shuts down: %v, %v", down, err)
		}
		second, err := WaitStable(ctx, s, time.Second)
		if err != nil || second.MainPID == first.MainPID || second.Invocation == first.Invocation {
			t.Errorf("after the restart: %+v, %v", second, err)
		}
		must.OK(t, s.Stop(ctx))
		if err := s.Stop(ctx); err != nil {
			t.Errorf("second stop: %v", err)
		}
		if st := look(t, s); st.Activity != ActivityInactive || st.Running() {
			t.Errorf("after the stop: %+v", st)
		}
	})

	t.Run("drop-in", func(t *testing.T) {
		s := unit(t, "ExecStart=/bin/sleep infinity\nEnvironment=AMS_HOST_ADDRESS=10.9.9.9 SECRET=hush\nTimeoutStopSec=10\n")
		must.OK(t, s.Start(ctx))
		// The zone contains a specifier and quotes.
		address, err := netip.ParseAddr(`fe80::1%e"t\h%n0`)
		must.OK(t, err)
		dir := filepath.Join("/run/systemd/system", s.Name()+".d")
		must.OK(t, os.Mkdir(dir, 0o755))
		must.OK(t, os.WriteFile(filepath.Join(dir, "50-amsagent.conf"), DropIn(address, 80500*time.Millisecond, ""), 0o644))
		// systemd 252 does not notice the drop-in, as the folder is new. So a caller always reloads after writing.
		t.Logf("a new drop-in, in a new folder: NeedReload = %v", look(t, s).NeedReload)
		must.OK(t, s.Reload(ctx))
		must.OK(t, s.Restart(ctx))
		st := look(t, s)
		if st.NeedReload || st.HostAddress != address.String() || st.StopTimeout != 81*time.Second || len(st.DropIns) != 1 {
			t.Errorf("with the drop-in: %+v", st)
		}
		later := time.Now().Add(time.Minute)
		must.OK(t, os.Chtimes(filepath.Join(dir, "50-amsagent.conf"), later, later))
		if changed := look(t, s); !changed.NeedReload {
			t.Errorf("with a drop-in that was written since: %+v", changed)
		}
		if strings.Contains(fmt.Sprintf("%+v", st), "hush") {
			t.Errorf("the state shows the environment: %+v", st)
		}
		p, err := ReadProcess("", st.MainPID)
		if err != nil || p.HostAddress != address.String() {
			t.Errorf("the process has %q, %v", p.HostAddress, err)
		}
	})

	t.Run("exec-fails", func(t *testing.T) {
		s := unit(t, "Type=oneshot\nExecStart=/bin/sh -c 'exit 3'\n")
		err := s.Start(ctx)
		t.Log(err)
		var job *JobError
		if !errors.As(err, &job) || job.Result != "failed" || job.State.Activity != ActivityFailed || job.State.Exit != "exit status 3" {
			t.Errorf("Start = %#v", err)
		}
	})

	t.Run("start-timeout", func(t *testing.T) {
		s := unit(t, "Type=notify\nTimeoutStartSec=1\nExecStart=/bin/sleep infinity\n")
		err := s.Start(ctx)
		t.Log(err)
		var job *JobError
		if !errors.As(err, &job) || job.Result != "failed" || job.State.Result != "timeout" {
			t.Errorf("Start = %#v", err)
		}
	})

	t.Run("our-time-runs-out", func(t *testing.T) {
		s := unit(t, "Type=notify\nTimeoutStartSec=60\nExecStart=/bin/sleep infinity\n")
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := s.Start(short)
		t.Log(err)
		var job *JobError
		if !errors.As(err, &job) || !job.Pending() || !errors.Is(err, context.DeadlineExceeded) || job.State.Activity != ActivityActivating {
			t.Errorf("Start = %#v", err)
		}
		// The job continues; a stop replaces it.
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})

	t.Run("canceled", func(t *testing.T) {
		s := unit(t, "Type=notify\nTimeoutStartSec=60\nExecStart=/bin/sleep infinity\n")
		result := make(chan error, 1)
		go func() { result <- s.Start(ctx) }()
		for st := look(t, s); st.Activity != ActivityActivating; st = look(t, s) {
			select {
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			case <-time.After(50 * time.Millisecond):
			}
		}
		must.OK(t, s.Stop(ctx))
		err := <-result
		t.Log(err)
		var job *JobError
		if !errors.As(err, &job) || job.Result != "canceled" {
			t.Errorf("Start = %#v", err)
		}
	})

	t.Run("dependency", func(t *testing.T) {
		needed := unit(t, "Type=oneshot\nExecStart=/bin/false\n")
		t.Run("needs", func(t *testing.T) {
			s := unit(t, "ExecStart=/bin/sleep infinity\n[Unit]\nRequires="+needed.Name()+"\nAfter="+needed.Name()+"\n")
			err := s.Start(ctx)
			t.Log(err)
			var job *JobError
			if !errors.As(err, &job) || job.Result != "dependency" {
				t.Errorf("Start = %#v", err)
			}
		})
	})

	t.Run("no-such-unit", func(t *testing.T) {
		s := NewSystemd("amsagent-test-absent")
		st, err := s.State(ctx)
		t.Log(err)
		if !errors.Is(err, ErrNoUnit) || st.Known() {
			t.Errorf("State = %+v, %v", st, err)
		}
		for verb, do := range map[string]func(context.Context) error{"start": s.Start, "stop": s.Stop, "restart": s.Restart} {
			if err := do(ctx); !errors.Is(err, ErrNoUnit) {
				t.Errorf("%s = %v", verb, err)
			}
		}
	})

	t.Run("masked", func(t *testing.T) {
		name := "amsagent-test-masked.service"
		link := filepath.Join("/run/systemd/system", name)
		must.OK(t, os.Symlink("/dev/null", link))
		defer func() { _ = os.Remove(link) }()
		s := NewSystemd(name)
		must.OK(t, s.Reload(ctx))
		if err := s.Start(ctx); !errors.Is(err, ErrUnitMasked) {
			t.Errorf("Start = %v", err)
		}
		if st := look(t, s); st.Load != "masked" || st.Running() {
			t.Errorf("State = %+v", st)
		}
	})

	t.Run("units", func(t *testing.T) {
		name := func(kind string) string { return "amsagent-test-" + kind + ".service" }
		write := func(kind, install string) {
			file := filepath.Join("/etc/systemd/system", name(kind))
			must.OK(t, os.WriteFile(file, []byte("[Service]\nExecStart=/bin/sleep infinity\n"+install), 0o644))
			t.Cleanup(func() { _ = os.Remove(file) })
		}
		write("static", "")
		write("placed", "[Install]\nWantedBy=multi-user.target\n")
		units := NewUnits(name("gone"), name("static"), name("placed"))
		must.OK(t, NewSystemd(name("static")).Reload(ctx))
		for _, step := range []struct {
			do   func(context.Context) error
			want UnitsState
		}{
			{units.Enable, UnitsState{true, true, true}},
			{units.Enable, UnitsState{true, true, true}},
			{units.Disable, UnitsState{}},
			{units.Disable, UnitsState{}},
		} {
			must.OK(t, step.do(ctx))
			if got, err := units.State(ctx); err != nil || got != step.want {
				t.Errorf("State = %+v, %v; want %+v", got, err, step.want)
			}
		}
		must.OK(t, os.Symlink("/dev/null", filepath.Join("/etc/systemd/system", name("gone"))))
		t.Cleanup(func() { _ = os.Remove(filepath.Join("/etc/systemd/system", name("gone"))) })
		must.OK(t, NewSystemd(name("static")).Reload(ctx))
		if err := units.Enable(ctx); !errors.Is(err, ErrUnitMasked) {
			t.Errorf("Enable of a masked unit: %v", err)
		}
		must.OK(t, units.Disable(ctx))
	})

	t.Run("dies-after-the-start", func(t *testing.T) {
		s := unit(t, "ExecStart=/bin/sh -c 'sleep 1; exit 7'\nRestart=on-failure\nRestartSec=5\n")
		if err := s.Start(ctx); err != nil {
			t.Fatalf("the job itself: %v", err)
		}
		_, err := WaitStable(ctx, s, 5*time.Second)
		t.Log(err)
		var unstable *UnstableError
		if !errors.As(err, &unstable) || !unstable.State.Crashing() || unstable.State.Exit != "exit status 7" {
			t.Errorf("WaitStable = %#v", err)
		}
	})

	t.Run("replaced-between-two-looks", func(t *testing.T) {
		s := unit(t, "ExecStart=/bin/sh -c 'sleep 0.7; exit 1'\nRestart=always\nRestartSec=10ms\nStartLimitBurst=1000\n[Unit]\nStartLimitIntervalSec=0\n")
		must.OK(t, s.Start(ctx))
		_, err := WaitStable(ctx, s, 5*time.Second)
		t.Log(err)
		if _, ok := errors.AsType[*UnstableError](err); !ok {
			t.Errorf("WaitStable = %v", err)
		}
	})

	t.Run("start-limit", func(t *testing.T) {
		s := unit(t, "ExecStart=/bin/false\nRestart=on-failure\nRestartSec=10ms\n[Unit]\nStartLimitIntervalSec=600\nStartLimitBurst=2\n")
		_ = s.Start(ctx)
		for st := look(t, s); st.Activity != ActivityFailed; st = look(t, s) {
			select {
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			case <-time.After(50 * time.Millisecond):
			}
		}
		// systemctl would now fail for ten minutes.
		if out, err := exec.CommandContext(ctx, "systemctl", "start", s.Name()).CombinedOutput(); err == nil {
			t.Errorf("the start limit was not reached: %s", out)
		}
		must.OK(t, os.WriteFile(filepath.Join("/run/systemd/system", s.Name()), []byte("[Service]\nExecStart=/bin/sleep infinity\n"), 0o644))
		must.OK(t, s.Reload(ctx))
		if err := s.Start(ctx); err != nil {
			t.Errorf("after the limit: %v", err)
		}
		if _, err := WaitStable(ctx, s, time.Second); err != nil {
			t.Error(err)
		}
	})

	t.Run("systemd-re-executes", func(t *testing.T) {
		s := unit(t, "ExecStart=/bin/sleep infinity\nExecStartPre=/bin/sleep 3\n")
		result := make(chan error, 1)
		go func() { result <- s.Start(ctx) }()
		for st := look(t, s); st.Activity != ActivityActivating; st = look(t, s) {
			select {
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			case <-time.After(50 * time.Millisecond):
			}
		}
		if out, err := exec.CommandContext(ctx, "systemctl", "daemon-reexec").CombinedOutput(); err != nil {
			t.Fatalf("daemon-reexec: %v: %s", err, out)
		}
		err := <-result
		t.Log(err)
		if err != nil {
			t.Errorf("Start = %v", err)
		}
		if _, err := WaitStable(ctx, s, time.Second); err != nil {
			t.Errorf("after it: %v", err)
		}
	})

	// Last, because it ends the bus: root then connects to systemd itself.
	t.Run("no-message-bus", func(t *testing.T) {
		s := unit(t, "ExecStart=/bin/sleep infinity\n")
		if out, err := exec.CommandContext(ctx, "systemctl", "stop", "dbus.socket", "dbus.service").CombinedOutput(); err != nil {
			t.Fatalf("stopping dbus: %v: %s", err, out)
		}
		if err := s.Restart(ctx); err != nil {
			t.Errorf("Restart = %v", err)
		}
		look(t, s)
		result := make(chan error, 1)
		go func() { result <- s.Restart(ctx) }()
		if out, err := exec.CommandContext(ctx, "systemctl", "daemon-reexec").CombinedOutput(); err != nil {
			t.Fatalf("daemon-reexec: %v: %s", err, out)
		}
		// This connection ends with the old systemd: the outcome may be open, but not failed.
		err := <-result
		t.Log(err)
		var job *JobError
		// Before or during it, systemd may not respond.
		if err != nil && (!errors.As(err, &job) || !job.Pending()) && !errors.Is(err, ErrNoSystemd) {
			t.Errorf("Restart = %v", err)
		}
	})
}

// TestRealSystemdNotRoot is the same for a user without privileges: run it with "setpriv --reuid 65534 --clear-groups"
// before ams.test.
func TestRealSystemdNotRoot(t *testing.T) {
	if os.Getenv("AMSAGENT_TEST_SYSTEMD") != "yes" || os.Geteuid() == 0 {
		t.Skip("AMSAGENT_TEST_SYSTEMD=yes is not set, or this is root")
	}
	s := NewSystemd("dbus.service")
	if st, err := s.State(t.Context()); err != nil || !st.Running() {
		t.Errorf("State = %+v, %v", st, err)
	}
	for verb, do := range map[string]func(context.Context) error{"start": s.Start, "restart": s.Restart, "reload": s.Reload} {
		err := do(t.Context())
		t.Log(err)
		if !errors.Is(err, fs.ErrPermission) || Hint(err) != "run as root" {
			t.Errorf("%s = %v, hint %q", verb, err, Hint(err))
		}
	}
}
