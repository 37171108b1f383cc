// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realams

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// Process is a program that runs in a box.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	text locked.Buffer
}

func startProcess(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.text, &p.text
	must.OK(t, cmd.Start())
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() { p.Signal(syscall.SIGKILL) })
	return p
}

// Output is what it has written so far.
func (p *Process) Output() string { return p.text.String() }

// PID is the program's own, as this machine counts: nsenter, which we started, has it
// as its child.
func (p *Process) PID() (int, error) { return proc.Child(p.cmd.Process.Pid) }

// Signal reaches the program itself: nsenter hands no signal on. One that has ended
// gets none: its number may be another's by now, as a test of some minutes starts
// thousands.
func (p *Process) Signal(sig syscall.Signal) {
	select {
	case <-p.done:
		return
	default:
	}
	if child, err := p.PID(); err == nil {
		_ = syscall.Kill(child, sig)
	}
	if sig == syscall.SIGKILL {
		_ = syscall.Kill(-p.cmd.Process.Pid, sig)
		<-p.done
	}
}

// End asks it to end with SIGTERM and waits; its exit status is the result.
func (p *Process) End(limit time.Duration) (int, error) {
	p.Signal(syscall.SIGTERM)
	return p.Wait(limit)
}

// Wait waits for its end.
func (p *Process) Wait(limit time.Duration) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(limit):
		return 0, fmt.Errorf("%s does not end within %s", strings.Join(p.cmd.Args, " "), limit)
	}
}

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.done }
