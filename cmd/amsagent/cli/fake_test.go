// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
)

// fakeMachine is what the commands of a test find: a root folder, a daemon at the control socket, and the cluster's MongoDB.
type fakeMachine struct {
	t    *testing.T
	root string
	vars map[string]string // of the environment, beside AMSAGENT_ROOT
	// registry is MongoDB, if the test has one.
	registry *fakemongo.Memory

	mu      sync.Mutex
	view    lifecycle.View
	status  daemon.View
	count   daemon.SessionsView
	hangs   bool // when the daemon is asked for the view
	refuse  *daemon.Refusal
	posted  int // requests
	follows int
	// begin is what a drain or a notice makes of the view.
	begin func(*lifecycle.View)
	srv   *http.Server
}

// newMachine returns a machine with files and no daemon.
func newMachine(t *testing.T, files map[string]string) *fakeMachine {
	t.Helper()
	// Short: the path of a socket has at most 107 bytes.
	root, err := os.MkdirTemp("", "cli") //nolint:usetesting // t.TempDir has the test's name in it
	must.OK(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	plant(t, root, files)
	return &fakeMachine{t: t, root: root, vars: map[string]string{"AMSAGENT_PROVIDER": "generic", "USER": "alice"}}
}

// withDaemon returns a machine whose daemon is up.
func withDaemon(t *testing.T) *fakeMachine {
	t.Helper()
	m := newMachine(t, nil)
	m.view, m.begin = activeView(), becomes(drainOf(2, 31))
	must.OK(t, os.MkdirAll(filepath.Dir(m.socket()), 0o755))
	m.start()
	t.Cleanup(m.kill)
	return m
}

// withMongo returns a machine that knows an empty MongoDB.
func withMongo(t *testing.T) *fakeMachine {
	t.Helper()
	m := newMachine(t, nil)
	m.registry = fakemongo.NewMemory()
	m.vars["AMSAGENT_MONGO"] = m.registry.Listen(t)
	return m
}

// The collections that the tests read and write.
const (
	nodeRecords = "amsagent.nodes"
	pastEvents  = "amsagent.events"
	documents   = "clusterdb.clusternode" // Ant Media Server's
)

// node writes the record of an origin that is active; its last heartbeat was some time ago.
func (m *fakeMachine) node(id, ip string, ago time.Duration, change ...func(*cluster.Node)) {
	n := cluster.Node{
		ID: id, IP: ip, Role: "origin", State: cluster.StateActive, Interval: seconds.Duration(5 * time.Second),
		Heartbeat: cluster.Heartbeat{Seq: time.Now().UnixNano()}, UpdatedAt: time.Now().Add(-ago),
	}
	for _, f := range change {
		f(&n)
	}
	m.registry.Put(nodeRecords, n)
}

// live writes the record of an edge whose last heartbeat is never old.
func (m *fakeMachine) live() {
	m.node("live", "10.0.0.99", -time.Hour, func(n *cluster.Node) { n.Role = "edge" })
}

// document writes what a server has last written some time ago.
func (m *fakeMachine) document(id, ip string, ago time.Duration) {
	m.registry.Put(documents, map[string]any{"_id": id, "ip": ip, "lastUpdateTime": time.Now().Add(-ago).UnixMilli()})
}

func inState(s cluster.State) func(*cluster.Node) { return func(n *cluster.Node) { n.State = s } }

// drainOf is a drain under way.
func drainOf(publishers, viewers int) lifecycle.View {
	s := sessionsOf(publishers, viewers)
	return lifecycle.View{
		State: lifecycle.StateDraining, Step: lifecycle.StepDraining, Kind: lifecycle.Terminate, Reason: "scale-in", Who: "Auto Scaling",
		Begun: time.Now(), Deadline: fixedNow().Add(11*time.Minute + 20*time.Second), DeadlineBy: "hook drain, unless a heartbeat gets through",
		Sessions: &s, Registry: cluster.StateDraining, RegistryTold: true,
	}
}

func activeView() lifecycle.View {
	return lifecycle.View{State: lifecycle.StateActive, Ready: true, Registry: cluster.StateActive, RegistryTold: true}
}

func sessionsOf(publishers, viewers int) cluster.Sessions {
	return cluster.Sessions{Publishers: &publishers, Viewers: &viewers, By: cluster.CountedByAMS}
}

func (m *fakeMachine) socket() string { return m.root + "/run/amsagent/control.sock" }

// listen replaces the socket.
func (m *fakeMachine) listen() net.Listener {
	m.t.Helper()
	_ = os.Remove(m.socket())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.socket(), Net: "unix"})
	must.OK(m.t, err)
	l.SetUnlinkOnClose(false)
	m.t.Cleanup(func() { _ = l.Close() })
	return l
}

// start listens, as the one that was killed did.
func (m *fakeMachine) start() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+daemon.PathStatus, func(w http.ResponseWriter, _ *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		answer(w, http.StatusOK, m.status)
	})
	mux.HandleFunc("GET "+daemon.PathSessions, func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, m.count) })
	mux.HandleFunc("GET "+daemon.PathDrain, func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		m.follows++
		hangs, v := m.hangs, m.view
		m.mu.Unlock()
		if hangs {
			<-r.Context().Done()
			return
		}
		answer(w, http.StatusOK, v)
	})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, _ *http.Request) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.posted++
		if m.refuse != nil {
			answer(w, http.StatusConflict, m.refuse)
			return
		}
		if m.view.State != lifecycle.StateDraining {
			m.begin(&m.view)
		}
		answer(w, http.StatusOK, m.view)
	})
	l, srv := m.listen(), &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	m.mu.Lock()
	m.srv = srv
	m.mu.Unlock()
	go func() { _ = srv.Serve(l) }()
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

// kill ends it as kill -9 does: connections are cut, the socket stays.
func (m *fakeMachine) kill() {
	m.mu.Lock()
	srv := m.srv
	m.mu.Unlock()
	_ = srv.Close()
}

// set changes the view; those who follow see it.
func (m *fakeMachine) set(change func(*lifecycle.View)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.view)
}

// command is one command line that runs beside the test.
type command struct {
	*testEnv
	t    *testing.T
	sig  chan os.Signal
	done chan int
}

func (m *fakeMachine) run(args ...string) *command { return m.runWith(&testEnv{}, args...) }

// runWith starts a command with more of an environment.
func (m *fakeMachine) runWith(e *testEnv, args ...string) *command {
	m.t.Helper()
	vars := map[string]string{"AMSAGENT_ROOT": m.root}
	maps.Copy(vars, m.vars)
	maps.Copy(vars, e.vars)
	e.vars = vars
	c := &command{t: m.t, testEnv: e, sig: make(chan os.Signal, 2), done: make(chan int, 1)}
	env := c.env()
	env.Signals = fakeSignals{c.sig}.source
	m.t.Cleanup(func() {
		if m.t.Failed() {
			m.t.Logf("%v printed %s", args, c.all())
		}
	})
	go func() { c.done <- Main(args, env) }()
	return c
}

// ends waits for the exit code.
func (c *command) ends(want int) {
	c.t.Helper()
	select {
	case code := <-c.done:
		must.Equal(c.t, "exit with "+c.all(), code, want)
	case <-time.After(time.Minute):
		c.t.Fatal("it does not end")
	}
}

// all is what it printed.
func (c *command) all() string {
	return fmt.Sprintf("stdout:\n%s\nstderr:\n%s", c.stdout.String(), c.stderr.String())
}

// says waits until it has printed a text.
func (c *command) says(want string) {
	c.t.Helper()
	must.Until(c.t, want, func() bool { return strings.Contains(c.all(), want) })
}

func (c *command) said(wants ...string) {
	c.t.Helper()
	must.Contain(c.t, "stderr", c.stderr.String(), wants...)
}
