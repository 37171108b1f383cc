// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// The number of a program that has ended may be that of another one: a test ends all
// that it started, minutes later.
func TestSignalAfterTheEnd(t *testing.T) {
	t.Parallel()
	other := exec.Command("sleep", "60")
	running, err := Start(other)
	must.OK(t, err)
	t.Cleanup(func() { running.Signal(syscall.SIGKILL) })
	ended := &Program{cmd: other, done: make(chan struct{})}
	close(ended.done)
	ended.Signal(syscall.SIGKILL)
	ended.Signal(syscall.SIGTERM)
	if code, err := running.Wait(200 * time.Millisecond); err == nil {
		t.Errorf("a signal for what has ended reached another program: it ended with %d", code)
	}
	running.Signal(syscall.SIGKILL)
	_, err = running.Wait(time.Minute)
	must.OK(t, err)
}
