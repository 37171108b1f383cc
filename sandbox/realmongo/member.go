// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realmongo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Member is one mongod. Its methods may be called from any goroutine.
type Member struct {
	set  *Set
	dir  string
	port int

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

// startLimit is generous: a member that comes back reads its journal first, and a machine
// may be emulated.
const startLimit = 3 * time.Minute

// Start starts the program on its data and waits until it answers. It does nothing for a running member.
func (m *Member) Start(ctx context.Context) error {
	m.mu.Lock()
	if m.running() {
		m.mu.Unlock()
		return nil
	}
	err := m.launch()
	m.mu.Unlock()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return m.waitAnswer(ctx)
}

func (m *Member) launch() error {
	args := m.args()
	log, err := os.OpenFile(m.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log of mongod: %w", err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// A process group of its own, so that SIGKILL reaches it behind a prefix, too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		_ = log.Close()
		return fmt.Errorf("starting mongod: %w", err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		_ = log.Close()
		close(done)
	}()
	m.cmd, m.done = cmd, done
	return nil
}

func (m *Member) args() []string {
	o := m.set.o
	args := append(slices.Clone(o.Prefix), o.Binary, "--quiet", "--dbpath", m.dir,
		"--wiredTigerCacheSizeGB", "0.25",
		// Each server takes 4 MB of disk, not 300: a run of the tests has dozens at once.
		"--wiredTigerEngineConfigString", "log=(file_max=4MB,prealloc=false)",
		// The proxy of package mongod has to parse the messages.
		"--networkMessageCompressors", "disabled",
		"--setParameter", "diagnosticDataCollectionEnabled=false",
		// Documents with a TTL go within a second, not within a minute.
		"--setParameter", "ttlMonitorSleepSecs=1",
		// A container may not lock pages in memory, as mongod does for a password.
		"--setParameter", "disabledSecureAllocatorDomains=*",
		// The least that drivers accept: every connection with a password pays for it.
		"--setParameter", "scramIterationCount=5000", "--setParameter", "scramSHA256IterationCount=5000")
	if o.Socket != "" {
		// It makes one named by its port, too: without a folder of its own that is the
		// same file for all, and two that start at once fail.
		args = append(args, "--bind_ip", o.Socket, "--unixSocketPrefix", filepath.Dir(o.Socket))
	} else {
		args = append(args, "--bind_ip", o.Host+",127.0.0.1", "--port", strconv.Itoa(m.port), "--nounixsocket")
	}
	if o.Members > 0 {
		args = append(args, "--replSet", o.Name, "--oplogSize", "64")
	}
	switch {
	case o.Users != nil && o.Members > 0:
		args = append(args, "--keyFile", m.set.keyFile())
	case o.Users != nil:
		args = append(args, "--auth")
	}
	return append(args, o.Args...)
}

// waitAnswer waits until the member answers hello.
func (m *Member) waitAnswer(ctx context.Context) error {
	// A driver that was refused once waits for half a second.
	m.waitPort(ctx)
	c, err := m.Client()
	if err != nil {
		return err
	}
	defer disconnect(c)
	m.mu.Lock()
	done := m.done
	m.mu.Unlock()
	for {
		one, cancel := context.WithTimeout(ctx, time.Second)
		err := c.Database("admin").RunCommand(one, bson.D{{Key: "hello", Value: 1}}).Err()
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-done:
			return errors.New(m.Story())
		case <-ctx.Done():
			return fmt.Errorf("mongod does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// waitPort waits until the member takes connections, ends, or ctx is done.
func (m *Member) waitPort(ctx context.Context) {
	m.mu.Lock()
	done := m.done
	m.mu.Unlock()
	for {
		c, err := m.dial(ctx)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-done:
			return
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (m *Member) dial(ctx context.Context) (net.Conn, error) {
	if m.set.o.Socket != "" {
		return (&net.Dialer{}).DialContext(ctx, "unix", m.set.o.Socket)
	}
	dial := m.set.o.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return dial(ctx, "tcp", net.JoinHostPort(m.set.o.Host, strconv.Itoa(m.port)))
}

// Addr is host:port by which clients and the other members know it.
func (m *Member) Addr() string {
	if m.set.o.Socket != "" {
		return cmp.Or(m.set.o.Advertise, m.set.o.Socket)
	}
	return net.JoinHostPort(m.set.o.Host, strconv.Itoa(m.port))
}

// Story returns whether it runs, or how it ended, and the end of its log, for the message of a failed test.
func (m *Member) Story() string {
	m.mu.Lock()
	how := "was never started"
	switch {
	case m.running():
		how = "runs"
	case m.cmd != nil:
		how = "ended: " + m.cmd.ProcessState.String()
	}
	m.mu.Unlock()
	text, err := os.ReadFile(m.Log())
	if err != nil {
		return fmt.Sprintf("mongod %s %s; %v", m.Addr(), how, err)
	}
	return fmt.Sprintf("mongod %s %s; its log ends with:\n%s", m.Addr(), how, text[max(0, len(text)-storyBytes):])
}

const storyBytes = 2000

// Log is the path of its log.
func (m *Member) Log() string { return filepath.Join(filepath.Dir(m.dir), filepath.Base(m.dir)+".log") }

// Client returns a client of this member alone, as the first user once there is one; who
// asks disconnects it.
func (m *Member) Client() (*mongo.Client, error) {
	o := options.Client().SetAppName(appName).SetDirect(true).SetHosts([]string{m.Addr()}).SetServerSelectionTimeout(5 * time.Second)
	if name, password, ok := m.set.credential(); ok {
		o.SetAuth(options.Credential{Username: name, Password: password, AuthSource: "admin"})
	} else if m.set.o.Socket == "" {
		// Only by loopback mongod lets the first user be made.
		o.SetHosts([]string{net.JoinHostPort("127.0.0.1", strconv.Itoa(m.port))})
	}
	if m.set.o.Socket != "" {
		o.SetHosts([]string{"localhost"}).SetDialer(dialer(func(ctx context.Context, _, _ string) (net.Conn, error) {
			return m.dial(ctx)
		}))
		c, err := mongo.Connect(o)
		if err != nil {
			return nil, fmt.Errorf("connecting to mongod: %w", err)
		}
		return c, nil
	}
	return m.set.open(o)
}

// IsPrimary reports whether it accepts writes.
func (m *Member) IsPrimary(ctx context.Context) (bool, error) {
	c, err := m.Client()
	if err != nil {
		return false, err
	}
	defer disconnect(c)
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var hello struct {
		IsWritablePrimary bool `bson:"isWritablePrimary"`
	}
	if err := c.Database("admin").RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Decode(&hello); err != nil {
		return false, fmt.Errorf("asking %s for its role: %w", m.Addr(), err)
	}
	return hello.IsWritablePrimary, nil
}

// Running reports whether its process runs.
func (m *Member) Running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running()
}

// running needs m.mu held.
func (m *Member) running() bool {
	if m.cmd == nil {
		return false
	}
	select {
	case <-m.done:
		return false
	default:
		return true
	}
}

// Kill ends it with SIGKILL and waits. It does nothing if the member does not run.
func (m *Member) Kill() error {
	if err := m.signal(syscall.SIGKILL); err != nil {
		return err
	}
	return m.wait()
}

// Stop ends it in order, with SIGTERM, and waits.
func (m *Member) Stop() error {
	if err := m.signal(syscall.SIGTERM); err != nil {
		return err
	}
	return m.wait()
}

// Pause stops it with SIGSTOP: connections stay open and nothing answers.
func (m *Member) Pause() error { return m.signal(syscall.SIGSTOP) }

// Resume is the end of Pause.
func (m *Member) Resume() error { return m.signal(syscall.SIGCONT) }

func (m *Member) signal(sig syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running() {
		return nil
	}
	// The group: behind a prefix the program is a child of what we started.
	if err := syscall.Kill(-m.cmd.Process.Pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("sending %s to mongod: %w", sig, err)
	}
	return nil
}

func (m *Member) wait() error {
	m.mu.Lock()
	done := m.done
	m.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-time.After(startLimit):
		return errors.New("mongod does not end")
	}
}
