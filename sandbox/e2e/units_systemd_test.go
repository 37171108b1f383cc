// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/programs"
)

// inMachine is set where TestSystemdUnits runs inside of a machine that was made for it.
const inMachine = "AMSAGENT_TEST_IN_MACHINE"

// TestSystemdUnits is what package ams makes of units that fail, and of a systemd that restarts itself. This binary runs a second
// and a third time inside of a booted machine, as an ordinary user and as root; each case there is a step here.
func TestSystemdUnits(t *testing.T) {
	if os.Getenv(inMachine) != "" {
		unitCases(t)
		return
	}
	m := newDisk(t, diskOptions{tree: `root_make ""`, boot: "--private-network"})
	self, err := os.Executable()
	must.OK(t, err)
	nodeCopy(t, self, m.disk+"/usr/local/bin/e2e.test")
	m.boot(t)
	result := regexp.MustCompile(`(?m)^    --- (PASS|FAIL|SKIP): ` + t.Name() + `/(\S+) `)
	for _, user := range []string{"65534", "0"} {
		out, err := m.Command("setpriv", "--reuid="+user, "--clear-groups", "env", inMachine+"=yes",
			// It starts neither of them, and there is no Go to build them.
			programs.AgentVariable+"=/bin/true", programs.SandboxVariable+"=/bin/true",
			"e2e.test", "-test.v", "-test.timeout=10m", "-test.run=^"+t.Name()+"$").CombinedOutput()
		cases := result.FindAllStringSubmatch(string(out), -1)
		if err != nil || len(cases) == 0 {
			t.Errorf("as user %s: %d cases, %v\n%s", user, len(cases), err, out)
		}
		for _, c := range cases {
			t.Run(c[2], func(t *testing.T) {
				switch c[1] {
				case "FAIL":
					t.Fail()
				case "SKIP":
					t.SkipNow()
				}
			})
		}
	}
}

// unitCases run inside of the machine.
func unitCases(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Run("NotRoot", unitsNotRoot)
		return
	}
	t.Run("DropIn", dropInOfUnit)
	t.Run("ExecFails", func(t *testing.T) {
		job := failedJob(t, newUnit(t, "Type=oneshot\nExecStart=/bin/sh -c 'exit 3'\n").Start(t.Context()), "failed")
		if job.State.Activity != ams.ActivityFailed || job.State.Exit != "exit status 3" {
			t.Errorf("the service is %+v", job.State)
		}
	})
	t.Run("StartTimeout", func(t *testing.T) {
		job := failedJob(t, newUnit(t, "Type=notify\nTimeoutStartSec=1\nExecStart=/bin/sleep infinity\n").Start(t.Context()), "failed")
		if job.State.Result != "timeout" {
			t.Errorf("the service is %+v", job.State)
		}
	})
	t.Run("Canceled", func(t *testing.T) {
		s := newUnit(t, "Type=notify\nTimeoutStartSec=10min\nExecStart=/bin/sleep infinity\n")
		failedJob(t, startDuring(t, s, func() { must.OK(t, s.Stop(t.Context())) }), "canceled")
	})
	t.Run("Dependency", func(t *testing.T) {
		writeUnit(t, "needed.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n")
		s := newUnit(t, "ExecStart=/bin/sleep infinity\n[Unit]\nRequires=needed.service\nAfter=needed.service\n")
		failedJob(t, s.Start(t.Context()), "dependency")
	})
	t.Run("StartLimit", func(t *testing.T) {
		s := newUnit(t, "ExecStart=/bin/false\nRestart=on-failure\nRestartSec=10ms\n[Unit]\nStartLimitIntervalSec=600\nStartLimitBurst=2\n")
		_ = s.Start(t.Context())
		untilUnit(t, s, ams.ActivityFailed)
		// systemctl fails for ten minutes now.
		if out, err := exec.CommandContext(t.Context(), "systemctl", "start", s.Name()).CombinedOutput(); err == nil {
			t.Errorf("the start limit was not reached: %s", out)
		}
		writeUnit(t, s.Name(), "[Service]\nExecStart=/bin/sleep infinity\n")
		must.OK(t, s.Start(t.Context()))
		staysUp(t, s)
	})
	t.Run("SystemdReexecutes", func(t *testing.T) {
		s := newUnit(t, "ExecStart=/bin/sleep infinity\nExecStartPre=/bin/sleep 3\n")
		must.OK(t, startDuring(t, s, func() { systemctl(t, "daemon-reexec") }))
		staysUp(t, s)
	})
	// The last one, because it ends the bus: root then connects to systemd itself.
	t.Run("NoMessageBus", withoutBus)
}

// unitsNotRoot: an ordinary user reads states, and changes nothing.
func unitsNotRoot(t *testing.T) {
	s := ams.NewSystemd("dbus.service")
	if !unitState(t, s).Running() {
		t.Error("dbus does not run")
	}
	for verb, do := range map[string]func(context.Context) error{"start": s.Start, "stop": s.Stop, "reload": s.Reload} {
		if err := do(t.Context()); !errors.Is(err, fs.ErrPermission) || ams.Hint(err) != "run it with sudo" {
			t.Errorf("%s = %v, hint %q", verb, err, ams.Hint(err))
		}
	}
}

// dropInOfUnit: systemd reads the drop-in as the agent means it, and reports one that was written after that.
func dropInOfUnit(t *testing.T) {
	s := newUnit(t, "ExecStart=/bin/sleep infinity\nEnvironment=AMS_HOST_ADDRESS=10.9.9.9 SECRET=hush\nTimeoutStopSec=10\n")
	must.OK(t, s.Start(t.Context()))
	address, err := netip.ParseAddr(`fe80::1%e"t\h%n0`) // its zone has a specifier and quotes
	must.OK(t, err)
	file := filepath.Join(unitFolder, s.Name()+".d", "50-amsagent.conf")
	must.OK(t, os.Mkdir(filepath.Dir(file), 0o755))
	must.OK(t, os.WriteFile(file, ams.DropIn(address, 80500*time.Millisecond, ""), 0o644))
	// systemd 252 does not notice a drop-in in a new folder, so the agent reloads after each write.
	must.OK(t, s.Reload(t.Context()))
	must.OK(t, s.Stop(t.Context()))
	must.OK(t, s.Start(t.Context()))
	st := unitState(t, s)
	if strings.Contains(fmt.Sprintf("%+v", st), "hush") {
		t.Error("the state has the rest of the environment")
	}
	if st.NeedReload || st.HostAddress != address.String() || st.StopTimeout != 81*time.Second || len(st.DropIns) != 1 {
		t.Errorf("with the drop-in: %+v", st)
	}
	p, err := ams.ReadProcess("", st.MainPID)
	if err != nil || p.HostAddress != address.String() {
		t.Errorf("the process has %q, %v", p.HostAddress, err)
	}
	later := time.Now().Add(time.Minute)
	must.OK(t, os.Chtimes(file, later, later))
	if !unitState(t, s).NeedReload {
		t.Error("a drop-in that was written since is not noticed")
	}
}

func withoutBus(t *testing.T) {
	s := newUnit(t, "ExecStart=/bin/sleep infinity\n")
	systemctl(t, "stop", "dbus.socket", "dbus.service")
	must.OK(t, s.Start(t.Context()))
	result := make(chan error, 1)
	go func() { result <- s.Stop(t.Context()) }()
	systemctl(t, "daemon-reexec")
	// This connection ends with the old systemd: the result may be open, but not failed. Before or during that, systemd may
	// not answer at all.
	err := <-result
	t.Log(err)
	job, ok := errors.AsType[*ams.JobError](err)
	if err != nil && !(ok && job.Pending()) && !errors.Is(err, ams.ErrNoSystemd) {
		t.Errorf("Stop = %v", err)
	}
}

// failedJob is the error of a job with this result.
func failedJob(t *testing.T, err error, result string) *ams.JobError {
	t.Helper()
	t.Log(err)
	job, ok := errors.AsType[*ams.JobError](err)
	if !ok || job.Result != result {
		t.Fatalf("%#v, want a job that is %s", err, result)
	}
	return job
}

// startDuring starts a service and does something else before the start has ended.
func startDuring(t *testing.T, s *ams.Systemd, do func()) error {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- s.Start(t.Context()) }()
	untilUnit(t, s, ams.ActivityActivating)
	do()
	return <-result
}

func untilUnit(t *testing.T, s *ams.Systemd, want ams.Activity) {
	t.Helper()
	must.Until(t, s.Name()+" is "+string(want), func() bool { return unitState(t, s).Activity == want })
}

func unitState(t *testing.T, s *ams.Systemd) ams.State {
	t.Helper()
	st, err := s.State(t.Context())
	must.OK(t, err)
	return st
}

func staysUp(t *testing.T, s *ams.Systemd) {
	t.Helper()
	_, err := ams.WaitStable(t.Context(), s, time.Second)
	must.OK(t, err)
}

func systemctl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "systemctl", args...).CombinedOutput(); err != nil {
		t.Fatalf("systemctl %v: %v: %s", args, err, out)
	}
}

const unitFolder = "/run/systemd/system"

func writeUnit(t *testing.T, name, text string) {
	t.Helper()
	must.OK(t, os.WriteFile(filepath.Join(unitFolder, name), []byte(text), 0o644))
	systemctl(t, "daemon-reload")
}

// newUnit writes a service of its own for a case, with this [Service] section.
func newUnit(t *testing.T, service string) *ams.Systemd {
	t.Helper()
	name := strings.ToLower(filepath.Base(t.Name())) + ".service"
	writeUnit(t, name, "[Service]\n"+service)
	return ams.NewSystemd(name)
}
