// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"io"
	"os/exec"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// held is a command that takes its orders from standard input and cleans up at its end, also if this process dies. A session of
// its own keeps this process's signals from it.
type held struct {
	*exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	said *bytes.Buffer // on its standard error; whole when it has ended
}

// hold starts one. The error is that of the start.
func hold(t *testing.T, cmd *exec.Cmd) (*held, error) {
	t.Helper()
	h := &held{Cmd: cmd, said: &bytes.Buffer{}}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	cmd.Stderr = h.said
	out, err := cmd.StdoutPipe()
	must.OK(t, err)
	if h.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	return h, cmd.Start()
}

// line returns the next line of its output, "" after its end.
func (h *held) line() string {
	text, _ := h.out.ReadString('\n')
	return text
}

// end lets go of it and waits.
func (h *held) end() error {
	_ = h.in.Close()
	return h.Wait()
}
