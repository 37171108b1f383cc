// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
)

// says reports whether err has this text.
func says(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

// program writes a shell script and returns its command.
func program(t *testing.T, body string) (*Command, string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "ctl")
	must.OK(t, os.WriteFile(path, []byte("#!/bin/sh\ncd "+dir+"\n"+body), 0o755))
	c, err := NewCommand(path)
	must.OK(t, err)
	return c, dir
}

func TestNewCommand(t *testing.T) {
	c, err := NewCommand("  /bin/echo   -n\tone $HOME;x ")
	if err != nil || c.Name() != "/bin/echo -n one $HOME;x" {
		t.Errorf("%+v, %v", c, err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	must.OK(t, os.WriteFile(plain, nil, 0o644))
	for _, line := range []string{"", "  ", "echo", "./ctl", "/does/not/exist", "/tmp", plain, "/bin/echo mongodb://u:p@h/", "/bin/echo --x=mongodb+srv://u:p@h/"} {
		if _, err := NewCommand(line); err == nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("NewCommand(%q): %v", line, err)
		}
	}
}

// A user that can change the program would become root.
func TestForeignCommand(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a file away")
	}
	_, dir := program(t, "")
	for name, spoil := range map[string]func() error{
		"program": func() error { return os.Chown(filepath.Join(dir, "ctl"), 4711, 0) },
		"folder":  func() error { return errors.Join(os.Chown(filepath.Join(dir, "ctl"), 0, 0), os.Chown(dir, 4711, 0)) },
	} {
		must.OK(t, spoil())
		if _, err := NewCommand(filepath.Join(dir, "ctl") + " now"); !errors.Is(err, files.ErrForeign) || Hint(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCommandVerbs(t *testing.T) {
	t.Setenv("AMSAGENT_MONGO", "mongodb://u:hush@h/")
	c, dir := program(t, `{ echo "$@"; env; readlink /proc/$$/fd/0; pwd; } >>said.$1; echo "pgid $(cut -d' ' -f5 /proc/$$/stat) $$" >>said.$1`)
	c.SetHostAddress(netip.MustParseAddr("10.0.0.5"))
	for verb, do := range map[string]func(context.Context) error{"start": c.Start, "stop": c.Stop} {
		must.OK(t, do(t.Context()))
		b, err := os.ReadFile(filepath.Join(dir, "said."+verb))
		must.OK(t, err)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		said := "\n" + string(b)
		must.Contain(t, verb, said, "\n"+verb+"\n", "\nAMS_HOST_ADDRESS=10.0.0.5\n", "\n/dev/null\n", "\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n")
		for _, bad := range []string{"hush", "AMSAGENT", "HOME="} {
			if strings.Contains(said, bad) {
				t.Errorf("%s: %q is in:\n%s", verb, bad, b)
			}
		}
		group := strings.Fields(lines[len(lines)-1])
		if len(group) != 3 || group[1] != group[2] {
			t.Errorf("%s: not a process group of its own: %v", verb, group)
		}
	}
	must.OK(t, c.Reload(t.Context()))
	if exists(filepath.Join(dir, "said.reload")) {
		t.Error("Reload ran the program")
	}
	c.SetHostAddress(netip.Addr{})
	must.OK(t, c.Start(t.Context()))
	b, _ := os.ReadFile(filepath.Join(dir, "said.start"))
	must.Equal(t, fmt.Sprintf("addresses given, one of them not known, in\n%s", b), strings.Count(string(b), "AMS_HOST_ADDRESS"), 1)
}

func TestCommandFails(t *testing.T) {
	c, _ := program(t, `echo out; echo "no license, $1" >&2; exit 4`)
	err := c.Start(t.Context())
	var job *JobError
	if !errors.As(err, &job) || job.Result != "failed" || job.Verb != "start" || job.Output != "no license, start\nout" {
		t.Fatalf("got %#v", err)
	}
	if !strings.Contains(err.Error(), `exit status 4: it said "no license, start\nout"`) || !strings.Contains(Hint(err), "/ctl start") {
		t.Errorf("got %q, hint %q", err, Hint(err))
	}

	c, _ = program(t, `i=0; while [ $i -lt 3000 ]; do echo "line $i of a talkative program" >&2; i=$((i+1)); done; printf 'the end \377'; exit 1`)
	err = c.Start(t.Context())
	if !errors.As(err, &job) || len(job.Output) > 2<<10+10 || !strings.HasSuffix(job.Output, "line 2999 of a talkative program\nthe end \uFFFD") {
		t.Errorf("%d bytes of output: …%q", len(job.Output), job.Output[max(0, len(job.Output)-80):])
	}

	// Opening the output by name starts at offset 0.
	c, _ = program(t, `echo one >&2; echo two >/dev/stderr; echo three >&2; exit 1`)
	if err := c.Start(t.Context()); !errors.As(err, &job) || strings.ContainsRune(job.Output, 0) || !strings.Contains(job.Output, "two") {
		t.Errorf("got %v", err)
	}

	c, dir := program(t, "exit 0\n")
	must.OK(t, os.Remove(filepath.Join(dir, "ctl")))
	if err := c.Start(t.Context()); !errors.As(err, &job) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestCommandLeavesServer: start ends while the server keeps the output open and writes to it. The server ends with its
// folder, so that a start that waits for it never ends.
func TestCommandLeavesServer(t *testing.T) {
	c, dir := program(t, `if [ "$1" = start ]; then (trap '' HUP; while [ -e ctl ]; do echo noise || echo refused >refused; sleep 0.05; done) & echo $! >pid; fi; echo "$1 done"`)
	must.OK(t, c.Start(t.Context()))
	b, err := os.ReadFile(filepath.Join(dir, "pid"))
	must.OK(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	must.OK(t, err)
	defer func() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		must.Until(t, "its end", func() bool { return hasEnded(pid) }) // it writes into the folder that is removed next
	}()
	// It writes after the agent is gone, fails, and continues.
	must.Until(t, "a refused write", func() bool { return exists(filepath.Join(dir, "refused")) })
	must.Equal(t, "the server is gone", syscall.Kill(pid, 0), nil)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// hasEnded: process 1, the parent, may not reap it.
func hasEnded(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// TestCommandHangs: at the deadline the program and its children end, though both ignore SIGTERM.
func TestCommandHangs(t *testing.T) {
	c, dir := program(t, `trap 'echo asked >asked; exit 0' TERM; (trap '' TERM; echo $$ >started; exec sleep 60) & echo $! >pid; wait`)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Start(ctx) }()
	must.Until(t, "the program and its child", func() bool {
		pid, _ := os.ReadFile(filepath.Join(dir, "pid"))
		return len(pid) > 0 && exists(filepath.Join(dir, "started"))
	})
	cancel()
	err := <-ended
	var job *JobError
	if !errors.As(err, &job) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if !exists(filepath.Join(dir, "asked")) {
		t.Error("the program was not asked to end first")
	}
	b, _ := os.ReadFile(filepath.Join(dir, "pid"))
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	must.OK(t, err)
	must.Until(t, "its end", func() bool { return hasEnded(pid) })

	c, _ = program(t, `exec sleep 60`)
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Stop(ctx); !errors.As(err, &job) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if st, err := c.State(ctx); err == nil || st.Known() {
		t.Errorf("State = %+v, %v", st, err)
	}
}

func TestCommandState(t *testing.T) {
	for _, c := range []struct {
		code int
		out  string
		want State
		err  string
	}{
		{0, "", State{Activity: ActivityActive}, ""},
		{0, "active\n", State{Activity: ActivityActive, Detail: "active"}, ""},
		{0, "ACTIVE: 4242 since noon\nmore\n", State{Activity: ActivityActive, MainPID: 4242, Detail: "ACTIVE: 4242 since noon"}, ""},
		{0, "reloading", State{Activity: "reloading", Detail: "reloading"}, ""},
		{0, "Ant Media Server is running", State{Activity: ActivityActive, Detail: "Ant Media Server is running"}, ""},
		{0, "active -1", State{Activity: ActivityActive, Detail: "active -1"}, ""},
		{3, "", State{Activity: ActivityInactive}, ""},
		{3, "failed", State{Activity: ActivityFailed, Detail: "failed"}, ""},
		{3, "activating", State{Activity: ActivityActivating, Detail: "activating"}, ""},
		{3, "inactive 4242", State{Activity: ActivityInactive, Detail: "inactive 4242"}, ""},
		{0, "inactive", State{Activity: ActivityUnknown}, `"inactive" with exit status 0`},
		{0, "failed", State{Activity: ActivityUnknown}, `"failed" with exit status 0`},
		{3, "active", State{Activity: ActivityUnknown}, `"active" with exit status 3`},
		{1, "active", State{Activity: ActivityUnknown}, "exit status 1"},
		{4, "", State{Activity: ActivityUnknown}, "exit status 4"},
		{127, "", State{Activity: ActivityUnknown}, "exit status 127"},
	} {
		ctl, _ := program(t, fmt.Sprintf("printf '%s'; exit %d", c.out, c.code))
		got, err := ctl.State(t.Context())
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%d %q: %v", c.code, c.out, err)
		}
		must.NoDiff(t, fmt.Sprintf("%d %q", c.code, c.out), got, c.want)
	}
	c, _ := program(t, `echo "failed $1"; echo broken >&2; exit 3`)
	if st, err := c.State(t.Context()); err != nil || st.Activity != ActivityFailed || st.Detail != "failed status" {
		t.Errorf("State = %+v, %v", st, err)
	}
	c, _ = program(t, `echo broken >&2; exit 9`)
	if st, err := c.State(t.Context()); err == nil || st.Known() || !strings.Contains(err.Error(), "broken") {
		t.Errorf("State = %+v, %v", st, err)
	}
	c, _ = program(t, `kill -9 $$`)
	if st, err := c.State(t.Context()); err == nil || st.Known() {
		t.Errorf("State = %+v, %v", st, err)
	}
}

func TestGetent(t *testing.T) {
	if _, err := exec.LookPath(getent); err != nil {
		t.Skip("no getent here")
	}
	// A minimal system does not know even this name.
	addrs, err := systemResolve(t.Context(), "localhost")
	if err != nil || len(addrs) > 0 && !addrs[0].IsLoopback() {
		t.Errorf("localhost = %v, %v", addrs, err)
	}
	if known, err := etcHosts("", "localhost"); err == nil && len(known) > 0 && len(addrs) == 0 {
		t.Errorf("/etc/hosts knows localhost, getent does not")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := systemResolve(ctx, "localhost"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
