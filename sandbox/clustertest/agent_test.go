// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// service starts and stops a fake AMS in this process.
type service struct {
	dir     string
	mu      sync.Mutex
	address string
	server  *fakeams.Server
	started time.Time
	starts  int
	mute    bool // the next server writes no document
}

func (s *service) Name() string                 { return "the stand-in" }
func (s *service) Reload(context.Context) error { return nil }

func (s *service) State(context.Context) (ams.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil || s.server.State() == fakeams.Crashed {
		return ams.State{Activity: ams.ActivityInactive}, nil
	}
	return ams.State{Activity: ams.ActivityActive, Started: s.started}, nil
}

func (s *service) Start(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	started := time.Now()
	server, err := fakeams.Start(context.Background(), fakeams.Options{
		Root: s.dir, HostAddress: s.address, Period: 50 * time.Millisecond,
		MongoTimeout: 5 * time.Second, StreamWait: 50 * time.Millisecond, LocalAddress: "10.0.0.99", SaveAtStart: true,
		Behaviour: fakeams.Behaviour{Silent: s.mute},
	})
	if err != nil {
		return err
	}
	s.server, s.started = server, started
	s.starts++
	return nil
}

func (s *service) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return nil
	}
	err := s.server.Stop(ctx)
	s.server = nil
	return err
}

func (s *service) Restart(ctx context.Context) error {
	return errors.Join(s.Stop(ctx), s.Start(ctx))
}

func (s *service) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starts
}

func (s *service) silent(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server.SetBehaviour(func(b *fakeams.Behaviour) { b.Silent = on })
}

// unwatched is a sampler of a node without sessions.
type unwatched struct{}

func (unwatched) Run(ctx context.Context) { <-ctx.Done() }

func (u unwatched) Sample(ctx context.Context) heartbeat.Sample {
	sessions, _ := u.Sessions(ctx)
	return heartbeat.Sample{At: time.Now(), Session: sessions}
}

func (unwatched) Sessions(context.Context) (cluster.Sessions, error) {
	return cluster.Sessions{Publishers: new(int), Viewers: new(int)}, nil
}

// agent is a daemon in this process.
type agent struct {
	t       *testing.T
	root    string
	mongo   *mongod.Server
	client  *cluster.Client
	door    backdoor
	svc     *service
	machine *bootstrap.Machine
	o       daemon.Options

	log locked.Buffer

	mu         sync.Mutex
	watchdog   int
	lastStatus string
	stop       context.CancelFunc
	ended      chan struct{}
}

const nodeID = "i-0123456789abcdef0"

// newAgent returns a machine that has joined, without a daemon.
func newAgent(t *testing.T) *agent {
	t.Helper()
	s := startServer(t, mongod.Options{})
	a := newAgentAt(t, s.URI(), s.URI())
	a.mongo = s
	return a
}

// newAgentAt is newAgent with a running MongoDB. The agent uses uri; all names all members.
func newAgentAt(t *testing.T, uri, all string) *agent {
	t.Helper()
	a := &agent{t: t, root: t.TempDir()}
	a.client, a.door = connect(t, uri, cluster.Options{}), openURI(t, all)
	number, err := port.Free()
	must.OK(t, err)
	tr, err := tree.Write(a.root, tree.Options{NoUnit: true, Host: "node", HostResolves: true, HTTPPort: number})
	must.OK(t, err)
	a.svc = &service{dir: tr.Dir}
	t.Cleanup(func() {
		must.OK(t, a.svc.Stop(context.Background()))
	})
	target := a.client.Target()
	log := slog.New(slog.NewTextHandler(&a.log, nil))
	open := func(ctx context.Context, to cluster.Target) (*cluster.Client, error) {
		return cluster.Connect(ctx, to, cluster.Options{Timeout: 2 * time.Second, MaxPool: 2})
	}
	a.machine = &bootstrap.Machine{
		Root: a.root, Service: a.svc, Connect: open, Version: "test", Log: log,
		SetAddress: func(to netip.Addr) {
			a.svc.mu.Lock()
			defer a.svc.mu.Unlock()
			if a.svc.address = ""; to.IsValid() {
				a.svc.address = to.String()
			}
		},
	}
	identify := func(context.Context) (metadata.Instance, error) {
		return metadata.Instance{ID: nodeID, Provider: "generic", Address: netip.MustParseAddr(own)}, nil
	}
	began := time.Now()
	a.o = daemon.Options{
		Machine: a.machine, Server: a.machine.Server(), Identify: identify, Connect: open, Log: log, Version: "test",
		Mongo: func(context.Context) (daemon.Named, error) { return daemon.Named{Target: a.client.Target()}, nil },
		Settings: func() daemon.Settings {
			return daemon.Settings{Interval: 50 * time.Millisecond, JoinTimeout: 2 * time.Minute}
		},
		Reread: func() error { return nil },
		Redact: func(s string) string { return s },
		Notify: func(s string) {
			a.mu.Lock()
			defer a.mu.Unlock()
			switch text, status := strings.CutPrefix(s, "STATUS="); {
			case status:
				a.lastStatus = text
			case s == "WATCHDOG=1":
				a.watchdog++
			}
		},
		Sampler: func(func() *cluster.Client, func() cluster.Node) daemon.Sampler { return unwatched{} },
		Lifecycle: lifecycle.Options{
			Files:    &conf.Store{Root: a.root, Dir: bootstrap.StateDir},
			Deadline: func() (time.Duration, bool) { return lifecycle.DefaultDeadline, true },
			StopTime: func() time.Duration { return 0 },
			Filter:   func() cloud.Filter { return nil },
			Uptime:   func() (string, time.Duration) { return "", time.Since(began) + 1 },
		},
		Control: filepath.Join(a.root, "c"), Lock: filepath.Join(a.root, "l"),
		Periods: daemon.Periods{
			State: 10 * time.Millisecond, Retry: 20 * time.Millisecond, MostRetry: 100 * time.Millisecond,
			Drift:    100 * time.Millisecond,
			Document: 50 * time.Millisecond, Stop: 2 * time.Second,
		},
	}
	boot(t, a.root, "boot-1")
	a.hardware("8eb3085c-1b4d-0a4f-9e6c-3b2a1c0d0001")
	must.OK(t, a.svc.Start(t.Context()))
	_, err = a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: target, Role: "edge", Identify: identify})
	must.OK(t, err)
	return a
}

func (a *agent) text() string { return a.log.String() }

func (a *agent) status() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lastStatus
}

func (a *agent) rounds() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.watchdog
}

func (a *agent) start() {
	a.begin()
	a.serves()
}

// begin starts a daemon that may not serve.
func (a *agent) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	a.stop, a.ended = cancel, make(chan struct{})
	a.mu.Lock()
	a.lastStatus = ""
	a.mu.Unlock()
	d := daemon.New(a.o)
	go func() {
		defer close(a.ended)
		must.Equal(a.t, "run", d.Run(ctx), nil)
	}()
	a.t.Cleanup(func() {
		a.end()
		if a.t.Failed() {
			a.t.Logf("log:\n%s", a.text())
		}
	})
	must.Until(a.t, "the control socket answers", func() bool {
		c, err := new(net.Dialer).DialContext(a.t.Context(), "unix", a.o.Control)
		return err == nil && c.Close() == nil
	})
}

// serves waits until the node is active and has written a heartbeat.
func (a *agent) serves() {
	a.t.Helper()
	must.Until(a.t, "the node is active and writes heartbeats", func() bool {
		return strings.HasPrefix(a.status(), "active; ") && strings.Contains(a.status(), lastHeartbeat)
	})
}

// lastHeartbeat begins the part of the daemon's status with the time of the last heartbeat.
const lastHeartbeat = "; last "

func (a *agent) end() {
	a.stop()
	<-a.ended
}

// roundsGoOn waits for n more rounds of the loop.
func (a *agent) roundsGoOn(n int) {
	a.t.Helper()
	to := a.rounds() + n
	must.Until(a.t, "the loop continues", func() bool { return a.rounds() >= to })
}
