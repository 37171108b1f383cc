// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package amsctl is the agent's service command without systemd: it starts and stops the stand-in AMS and reports its state.
//
// It keeps one process for each state folder. Unlike systemd it does not restart a failed
// server. Linux only; the API is not stable.
package amsctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// Config is one service.
type Config struct {
	// State is the folder of the service's own files: pid, log, info.json, stats.json,
	// failed.
	State string `json:"state"`
	// Sandbox is the binary that has the subcommand ams.
	Sandbox string `json:"sandbox"`
	// Args are the arguments of that subcommand.
	Args []string `json:"args"`
	// StartWait bounds how long a start waits for the server to be up. A server
	// that is neither up nor dead by then counts as started, as with a systemd
	// unit of type simple.
	StartWait time.Duration `json:"start_wait_ns"`
	// StopWait is how long a stop waits before it kills (TimeoutStopSec).
	StopWait time.Duration `json:"stop_wait_ns"`
	// User is the uid of the server if root starts it; 0: that of the caller. This user must be able to
	// reach the binary and State.
	User int `json:"user,omitempty"`
	// Asked is the file to which the wrapper adds a line for each call: what it was asked for.
	// It may be empty.
	Asked string `json:"-"`
}

// Status is the state in systemctl's words.
type Status string

// The states.
const (
	Active   Status = "active"
	Inactive Status = "inactive"
	Failed   Status = "failed"
)

func (c Config) path(name string) string { return filepath.Join(c.State, name) }

// lock lets one action at a time happen.
func (c Config) lock() (release func(), err error) {
	if err := os.MkdirAll(c.State, 0o755); err != nil {
		return nil, fmt.Errorf("making the state folder: %w", err)
	}
	if c.User != 0 {
		if err := os.Chown(c.State, c.User, c.User); err != nil {
			return nil, fmt.Errorf("giving the state folder to the server: %w", err)
		}
	}
	f, err := os.OpenFile(c.path("lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking the state folder: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// running opens the server's process; nil if it does not run.
func (c Config) running() (*proc.Process, error) {
	b, err := os.ReadFile(c.path("pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the pid: %w", err)
	}
	number, birth, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	pid, err := strconv.Atoi(number)
	if err != nil {
		return nil, fmt.Errorf("reading the pid: %w", err)
	}
	p, err := proc.Open(pid)
	if errors.Is(err, proc.ErrGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// Looked at after it was taken hold of: the number cannot change hands now.
	if got, err := proc.Birth(pid); err == nil && got == birth && !p.Ended() {
		return p, nil
	}
	return nil, p.Close() // it has ended, or the number is another's
}

// Status asks after the server.
func (c Config) Status() (Status, error) {
	p, err := c.running()
	if err != nil {
		return "", err
	}
	if p != nil {
		return Active, p.Close()
	}
	// A stop takes the pid away; what is left of one is of a server that ended by
	// itself.
	for _, name := range []string{"failed", "pid"} {
		if _, err := os.Stat(c.path(name)); err == nil {
			return Failed, nil
		}
	}
	return Inactive, nil
}

// PID is the server's process, as it was noted at the start; "" without one.
func (c Config) PID() string {
	b, _ := os.ReadFile(c.path("pid"))
	pid, _, _ := strings.Cut(string(b), " ")
	return pid
}

// Start starts the server, with the environment env, and waits until it is up. To
// start a running server is nothing.
func (c Config) Start(ctx context.Context, env []string) error {
	release, err := c.lock()
	if err != nil {
		return err
	}
	defer release()
	return c.start(ctx, env)
}

func (c Config) start(ctx context.Context, env []string) error {
	p, err := c.running()
	if err != nil {
		return err
	}
	if p != nil {
		return p.Close()
	}
	if err := removeAll(c.path("failed"), c.path("pid"), c.path("info.json"), c.path("stats.json")); err != nil {
		return err
	}
	log, err := os.OpenFile(c.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	defer log.Close()
	begin, err := log.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	ready, child, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	defer ready.Close()

	// Not CommandContext: the server outlives us.
	// Of a flag that is given twice the last one counts, and that is the caller's.
	cmd := exec.Command(c.Sandbox, append([]string{
		"ams", "--ready-fd", "3", "--info", c.path("info.json"), "--control", "127.0.0.1:0", "--stats", c.path("stats.json"),
	}, c.Args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{child}
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if c.User != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.User), Gid: uint32(c.User)}
	}
	err = c.startAndNote(cmd)
	_ = child.Close()
	if err != nil {
		return err
	}

	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	up := make(chan struct{})
	go func() {
		// One byte: it is up. End of file: it has ended, and died will say so.
		if n, _ := ready.Read(make([]byte, 1)); n == 1 {
			close(up)
		}
	}()
	select {
	case <-up:
		return nil
	case <-time.After(c.StartWait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case err := <-died:
		_ = os.WriteFile(c.path("failed"), fmt.Appendf(nil, "%v\n", err), 0o644)
		return fmt.Errorf("the server ended: %w\n%s", errors.Join(err, errNotUp), c.tail(begin))
	}
}

// startAndNote starts the server and writes its pid. It holds back signals until then: coreutils' timeout signals this process
// together with the agent, and a server without a pid file would keep running.
func (c Config) startAndNote(cmd *exec.Cmd) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer func() {
		signal.Stop(signals)
		if len(signals) > 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
		}
	}()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	birth, err := proc.Birth(cmd.Process.Pid)
	if err == nil {
		err = os.WriteFile(c.path("pid"), fmt.Appendf(nil, "%d %s\n", cmd.Process.Pid, birth), 0o644)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("noting the pid: %w", err)
	}
	return nil
}

var errNotUp = errors.New("it was not up yet")

func (c Config) tail(from int64) string {
	b, err := os.ReadFile(c.path("log"))
	if err != nil || int64(len(b)) < from {
		return ""
	}
	b = b[from:]
	return strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

// Stop stops the server with SIGTERM, and kills it when that takes too long. To
// stop what does not run is nothing.
func (c Config) Stop(ctx context.Context) error {
	release, err := c.lock()
	if err != nil {
		return err
	}
	defer release()
	return c.stop(ctx)
}

func (c Config) stop(ctx context.Context) error {
	p, err := c.running()
	if err != nil {
		return err
	}
	if p == nil {
		return removeAll(c.path("pid"), c.path("failed"))
	}
	defer func() { _ = p.Close() }()
	if err := p.Signal(unix.SIGTERM); err != nil && !p.Ended() {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, c.StopWait)
	defer cancel()
	if p.Wait(bounded) {
		return removeAll(c.path("pid"), c.path("failed"))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.Signal(unix.SIGKILL); err != nil && !p.Ended() {
		return err
	}
	p.Wait(ctx)
	// As with systemd the stop has succeeded, and the unit has failed.
	if err := os.WriteFile(c.path("failed"), []byte("killed: it did not stop in time\n"), 0o644); err != nil {
		return fmt.Errorf("noting the failure: %w", err)
	}
	return removeAll(c.path("pid"))
}

// Restart is a stop and a start.
func (c Config) Restart(ctx context.Context, env []string) error {
	release, err := c.lock()
	if err != nil {
		return err
	}
	defer release()
	if err := c.stop(ctx); err != nil {
		return err
	}
	return c.start(ctx, env)
}

// Info is what the running server said of itself: addresses and pid, as JSON.
func (c Config) Info() ([]byte, error) {
	b, err := os.ReadFile(c.path("info.json"))
	if err != nil {
		return nil, fmt.Errorf("reading what the server said of itself: %w", err)
	}
	return b, nil
}

// StatsFile is where a server keeps its count of sessions, also after its end.
func (c Config) StatsFile() string {
	file := c.path("stats.json")
	for _, arg := range c.Args {
		if own, ok := strings.CutPrefix(arg, "--stats="); ok {
			file = own
		}
	}
	return file
}

// ErrNotRunning means that there is no server to talk to.
var ErrNotRunning = errors.New("the server does not run")

// Control sends a request to the running server's control port and returns the
// answer.
func (c Config) Control(ctx context.Context, method, path string, query url.Values) ([]byte, error) {
	if st, err := c.Status(); err != nil {
		return nil, err
	} else if st != Active {
		return nil, ErrNotRunning
	}
	b, err := c.Info()
	if err != nil {
		return nil, err
	}
	var said struct{ Control string }
	if err := json.Unmarshal(b, &said); err != nil {
		return nil, fmt.Errorf("reading what the server said of itself: %w", err)
	}
	if said.Control == "" {
		return nil, errors.New("the server runs without a control port")
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+said.Control+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("asking the server: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the server: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("asking the server: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server says: %s", strings.TrimSpace(string(answer)))
	}
	return answer, nil
}

// Load reads a configuration that WriteWrapper wrote.
func Load(file string) (Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("reading the service: %w", err)
	}
	var c Config
	if err := json.Unmarshal(b, &c); err != nil {
		return Config{}, fmt.Errorf("reading the service from %s: %w", file, err)
	}
	return c, nil
}

// WriteWrapper keeps the configuration in the state folder and writes a shell
// script that needs nothing but start, stop, restart or status.
func (c Config) WriteWrapper(file string) error {
	if err := os.MkdirAll(c.State, 0o755); err != nil {
		return fmt.Errorf("making the state folder: %w", err)
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the service: %w", err)
	}
	config := c.path("config.json")
	if err := os.WriteFile(config, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the service: %w", err)
	}
	script := "#!/bin/sh\n"
	if c.Asked != "" {
		script += "echo \"$1\" >>" + quote(c.Asked) + "\n"
	}
	script += "exec " + quote(c.Sandbox) + " amsctl --config " + quote(config) + " \"$@\"\n"
	// No fork while the file is open for writing: the child would hold it open until its exec, and the script could not be run
	// (ETXTBSY).
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
		return fmt.Errorf("writing the wrapper: %w", err)
	}
	if err := os.Chmod(file, 0o755); err != nil { // whatever the umask is
		return fmt.Errorf("writing the wrapper: %w", err)
	}
	return nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func removeAll(files ...string) error {
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("clearing the state: %w", err)
		}
	}
	return nil
}
