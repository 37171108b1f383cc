// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
)

// A stop waits until the streams end.
const (
	commandLimit       = 5 * time.Minute
	commandStatusLimit = 15 * time.Second
	// commandGrace is the time from SIGTERM to SIGKILL.
	commandGrace = 5 * time.Second
	// commandKeep bounds an error's output, in bytes.
	commandKeep = 2 << 10
)

// commandPath is fixed: a command must behave the same from a terminal, cloud-init and a unit.
const commandPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Command is a service run by a program: CMD start|stop|status. It gets only PATH, LANG and AMS_HOST_ADDRESS, no
// secret. The agent does not wait for a background server.
//
// status exits as systemctl is-active: 0 running, 3 not running. Its output may begin with an [Activity] and the main
// process.
type Command struct {
	argv        []string
	hostAddress atomic.Pointer[netip.Addr]
}

// NewCommand parses an absolute path and arguments without a shell. As root it returns [files.ErrForeign] if another user
// can change the program.
func NewCommand(line string) (*Command, error) {
	argv := strings.Fields(line)
	if len(argv) == 0 {
		return nil, errors.New("the service command is empty")
	}
	if !strings.HasPrefix(argv[0], "/") {
		return nil, fmt.Errorf("the service command %q is not an absolute path", argv[0])
	}
	for _, arg := range argv {
		// All users can read the process list.
		if strings.Contains(arg, "mongodb://") || strings.Contains(arg, "mongodb+srv://") {
			return nil, errors.New("the service command has a connection string as an argument: every user of the machine could read it")
		}
	}
	if _, err := exec.LookPath(argv[0]); err != nil {
		return nil, fmt.Errorf("the service command: %w", err)
	}
	if os.Geteuid() == 0 {
		if err := (files.Root{}).RootsAlone(argv[0]); err != nil {
			return nil, fmt.Errorf("the service command %s: %w", argv[0], err)
		}
	}
	return &Command{argv: argv}, nil
}

// Name returns the command line.
func (c *Command) Name() string { return strings.Join(c.argv, " ") }

// Start runs CMD start.
func (c *Command) Start(ctx context.Context) error { return c.do(ctx, "start") }

// Stop runs CMD stop.
func (c *Command) Stop(ctx context.Context) error { return c.do(ctx, "stop") }

// Reload does nothing.
func (c *Command) Reload(context.Context) error { return nil }

func (c *Command) do(ctx context.Context, verb string) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	if _, said, err := c.run(ctx, verb); err != nil {
		return &JobError{Service: c.Name(), Verb: verb, Result: "failed", Output: said, Err: err}
	}
	return nil
}

// SetHostAddress sets AMS_HOST_ADDRESS for the next runs.
func (c *Command) SetHostAddress(a netip.Addr) { c.hostAddress.Store(&a) }

// State runs CMD status.
func (c *Command) State(ctx context.Context) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, commandStatusLimit)
	defer cancel()
	stdout, said, err := c.run(ctx, "status")
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() && ctx.Err() == nil {
		code, err = exit.ExitCode(), nil
	}
	var st State
	if err == nil {
		st, err = commandState(code, stdout)
	}
	if err == nil {
		return st, nil
	}
	err = fmt.Errorf("asking %s for its status: %w", c.Name(), err)
	if said != "" {
		err = fmt.Errorf("%w: it said %q", err, said)
	}
	return State{Activity: ActivityUnknown}, err
}

func commandState(code int, stdout []byte) (State, error) {
	allowed := map[int][]Activity{
		0: {ActivityActive, activityReloading},
		3: {ActivityInactive, ActivityFailed, ActivityActivating, ActivityDeactivating},
	}
	plausible := allowed[code]
	if plausible == nil {
		return State{}, fmt.Errorf("exit status %d; 0 means running, 3 not running", code)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(stdout)), "\n")
	st := State{Activity: plausible[0], Detail: strings.ToValidUTF8(line[:min(len(line), 200)], "\uFFFD")}
	words := append(strings.Fields(st.Detail), "", "")
	word := Activity(strings.ToLower(strings.TrimRight(words[0], ":,.")))
	if slices.Contains(allowed[3-code], word) {
		return State{}, fmt.Errorf("it said %q with exit status %d", word, code)
	}
	if slices.Contains(plausible, word) {
		st.Activity = word
	}
	if pid, err := strconv.Atoi(words[1]); err == nil && pid > 0 && st.Running() {
		st.MainPID = pid
	}
	return st, nil
}

// said is the end of all output.
func (c *Command) run(ctx context.Context, verb string) (stdout []byte, said string, err error) {
	cmd := exec.CommandContext(ctx, c.argv[0], append(slices.Clone(c.argv[1:]), verb)...)
	var sinks [2]*os.File
	for i := range sinks {
		if sinks[i], err = newSink(); err != nil {
			return nil, "", err
		}
		defer sinks[i].Close()
	}
	cmd.Stdout, cmd.Stderr = sinks[0], sinks[1] // nil Stdin is /dev/null
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + commandPath, "LANG=C.UTF-8"}
	if a := c.hostAddress.Load(); a != nil && a.IsValid() {
		cmd.Env = append(cmd.Env, HostAddressVariable+"="+a.String())
	}
	// Ctrl-C must not interrupt a start; children must end with a hanging program.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = commandGrace

	err = cmd.Run()
	if err != nil && ctx.Err() != nil && cmd.Process != nil {
		// Processes may ignore SIGTERM. The group's number is not reused while one lives.
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		err = errors.Join(ctx.Err(), err)
	}
	stdout = drain(sinks[0])
	return stdout, tail(append(drain(sinks[1]), stdout...)), err
}

// newSink returns a file in memory. The server keeps the output open: with a pipe, the agent would wait for it, or its end
// would kill the server by SIGPIPE.
func newSink() (*os.File, error) {
	fd, err := unix.MemfdCreate("amsagent-output", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("making room for the output of the service command: %w", err)
	}
	return os.NewFile(uintptr(fd), "output"), nil
}

// drain seals the output: later writes must not fill the memory. A script that opens /dev/stderr by name starts at offset
// 0, which leaves zero bytes.
func drain(sink *os.File) []byte {
	_, _ = unix.FcntlInt(sink.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_WRITE)
	st, err := sink.Stat()
	if err != nil {
		return nil
	}
	rest := max(commandKeep, st.Size()-commandKeep)
	b, _ := io.ReadAll(io.MultiReader(io.NewSectionReader(sink, 0, commandKeep), io.NewSectionReader(sink, rest, commandKeep)))
	return bytes.ReplaceAll(b, []byte{0}, nil)
}

func tail(b []byte) string {
	b = bytes.TrimSpace(b)
	if len(b) > commandKeep {
		b = append([]byte("…"), b[len(b)-commandKeep:]...)
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}
