// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/internal/locked"
)

// Program is a program that this process has started, and that may have ended.
type Program struct {
	cmd  *exec.Cmd
	text locked.Buffer
	done chan struct{}
	err  error // how it ended; read it after done
}

// Start starts a program, which ends with this process at the latest. A Ctrl-C is for this process alone. Output returns
// what the program writes, unless cmd has another place for it.
func Start(cmd *exec.Cmd) (*Program, error) {
	p := &Program{cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.text
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.text
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	started := make(chan error)
	go func() {
		// Pdeathsig means the end of the thread: this one waits.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		if started <- err; err == nil {
			p.err = cmd.Wait()
		}
	}()
	return p, <-started
}

// Output is what it has written so far.
func (p *Program) Output() string { return p.text.String() }

// entered reports whether the program was started by nsenter, which has it as its child and hands no signal on.
func (p *Program) entered() bool { return filepath.Base(p.cmd.Path) == "nsenter" }

// PID is the program's own process, as this machine counts.
func (p *Program) PID() (int, error) {
	if p.entered() {
		return Child(p.cmd.Process.Pid)
	}
	return p.cmd.Process.Pid, nil
}

// Signal sends a signal, and after a SIGKILL waits for the end. A program that has ended gets none: its number may be
// another's by now, as a test of some minutes starts thousands.
func (p *Program) Signal(sig syscall.Signal) {
	if p.Ended() {
		return
	}
	pid, err := p.PID()
	if err != nil {
		if sig != syscall.SIGKILL {
			return
		}
		pid = -p.cmd.Process.Pid // nsenter, and what it is about to start
	}
	_ = syscall.Kill(pid, sig)
	if sig == syscall.SIGKILL {
		<-p.done
	}
}

// Stop ends it with SIGTERM, as a service manager does, and returns its exit status.
func (p *Program) Stop(limit time.Duration) (int, error) {
	p.Signal(syscall.SIGTERM)
	return p.Wait(limit)
}

// Wait waits for its end and returns its exit status.
func (p *Program) Wait(limit time.Duration) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(limit):
		return 0, fmt.Errorf("%s does not end within %s", strings.Join(p.cmd.Args, " "), limit)
	}
}

// Done is closed when it has ended.
func (p *Program) Done() <-chan struct{} { return p.done }

// Ended reports whether it has ended.
func (p *Program) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Usage is what its process holds and has used.
func (p *Program) Usage() (Usage, error) {
	pid, err := p.PID()
	if err != nil {
		return Usage{}, err
	}
	return ReadUsage(pid)
}

// Err is the error of its end, to be read after that.
func (p *Program) Err() error { return p.err }
