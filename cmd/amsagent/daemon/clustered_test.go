// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
)

// clustered is a node whose daemon runs in a bubble, with a registry in memory.
type clustered struct {
	watched
	registry *fakemongo.Memory
	link     *fakemongo.Link // the daemon's, to MongoDB
	client   *cluster.Client // of another machine
	machine  *fakeMachine
	o        Options
	stop     func()

	mu       sync.Mutex
	sessions cluster.Sessions
	load     cluster.Load
}

const (
	rows   = "amsagent.nodes"
	nodeID = "i-1"
	own    = "10.0.0.3"
)

// inCluster runs do with a machine that has joined, in a bubble.
func inCluster(t *testing.T, do func(t *testing.T, c *clustered)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		registry := fakemongo.NewMemory()
		defer registry.Close()
		c := newClustered(t, registry, cluster.Node{
			ID: nodeID, IP: own, BootID: "boot-1", Role: "edge", Group: "edges", Interval: seconds.Duration(5 * time.Second),
		})
		defer c.close()
		do(t, c)
	})
}

// newClustered returns a machine that has joined as n, without a daemon.
func newClustered(t *testing.T, registry *fakemongo.Memory, n cluster.Node) *clustered {
	t.Helper()
	c := &clustered{
		watched:  watched{t: t, said: &notified{}, f: &fakeServer{apps: []string{"LiveApp"}, served: true}},
		registry: registry, link: &fakemongo.Link{Server: registry.Server}, stop: func() {},
		machine: &fakeMachine{proved: true, node: n, entered: n.Instance(), state: &bootstrap.State{Phase: bootstrap.PhaseJoined, Since: time.Now()}},
	}
	c.client = c.connect(registry)
	c.sees(0)
	root := t.TempDir()
	c.o = testOptions(c.machine, c.said)
	settings := c.o.Settings()
	settings.UnhealthyAfter = 5 * time.Minute
	c.o.Settings = func() Settings { return settings }
	c.o.Server, c.o.Lifecycle = c.f, drains(&conf.Store{Root: root, Dir: bootstrap.StateDir})
	c.o.Lock = filepath.Join(root, "lock")
	c.o.Control = filepath.Join(root, strings.Repeat("x", 108)) // too long: a socket keeps the time of a bubble from passing
	c.o.Mongo = func(context.Context) (Named, error) { return Named{Target: c.client.Target()}, nil }
	c.o.Connect = func(context.Context, cluster.Target) (*cluster.Client, error) { return c.connect(c.link), nil }
	c.o.Sampler = func(func() *cluster.Client, func() cluster.Node) Sampler { return c }
	n.State, n.Reason = cluster.StateActive, cluster.ReasonJoin
	_, err := c.client.Register(t.Context(), n, cluster.RegisterOptions{})
	must.OK(t, err)
	return c
}

func (c *clustered) close() {
	c.stop()
	_ = c.client.Close(c.t.Context())
	if c.t.Failed() {
		c.t.Logf("log of %s:\n%s", c.machine.node.ID, c.said.text())
	}
}

func (c *clustered) connect(dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
},
) *cluster.Client {
	target, err := cluster.ParseTarget("mongodb://memory")
	must.OK(c.t, err)
	client, err := cluster.Connect(c.t.Context(), target, cluster.Options{Dialer: dialer, Timeout: 5 * time.Second})
	must.OK(c.t, err)
	return client
}

// Run, Sample and Sessions implement Sampler.
func (c *clustered) Run(ctx context.Context) { <-ctx.Done() }

func (c *clustered) Sample(context.Context) heartbeat.Sample {
	c.mu.Lock()
	defer c.mu.Unlock()
	return heartbeat.Sample{At: time.Now(), Load: c.load, Session: c.sessions}
}

func (c *clustered) Sessions(context.Context) (cluster.Sessions, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sessions, nil
}

// sees sets the viewers.
func (c *clustered) sees(viewers int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions = cluster.Sessions{Publishers: new(int), Viewers: &viewers}
}

// begin starts a daemon that may not serve. stop ends it.
func (c *clustered) begin() {
	ctx, cancel := context.WithCancel(c.t.Context())
	c.d = New(c.o)
	ended := make(chan error, 1)
	go func() { ended <- c.d.Run(ctx) }()
	c.stop = func() {
		cancel()
		must.OK(c.t, <-ended)
		c.stop = func() {}
	}
	synctest.Wait() // its lifecycle is there
}

// start starts a daemon, and waits until the node is active and has written a heartbeat.
func (c *clustered) start() {
	c.t.Helper()
	c.begin()
	c.serves()
}

func (c *clustered) serves() {
	c.t.Helper()
	must.Until(c.t, "the node is active and writes heartbeats", func() bool {
		return strings.HasPrefix(c.d.view.line(), "active; ") && strings.Contains(c.d.view.line(), "; last heartbeat at ") && c.d.view.get().Beat.Dropped == 0
	})
}

// says waits until the log has a text that many times.
func (c *clustered) says(text string, times int) {
	c.t.Helper()
	must.Until(c.t, "the log has "+text, func() bool { return strings.Count(c.said.text(), text) >= times })
}

// post sends a request to the control socket.
func (c *clustered) post(path, body string) {
	c.t.Helper()
	w := httptest.NewRecorder()
	c.d.controlHandler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
	must.Equal(c.t, path+": "+w.Body.String(), w.Code, http.StatusOK)
}

// step is that of the drain.
func (c *clustered) step() lifecycle.Step { return c.d.life.manager.View().Step }

func (c *clustered) row() map[string]any { return c.registry.Get(rows, c.machine.node.ID) }

func (c *clustered) node() cluster.Node {
	c.t.Helper()
	n, err := c.client.Node(c.t.Context(), c.machine.node.ID)
	must.OK(c.t, err)
	return n
}

// turns waits for a state of the row.
func (c *clustered) turns(state cluster.State) {
	c.t.Helper()
	must.Until(c.t, "the row is "+string(state), func() bool { return c.node().State == state })
}

func (c *clustered) edit(key string, value any) {
	c.registry.Edit(rows, nodeID, func(row map[string]any) { row[key] = value })
}

// silent makes the row as old as if its machine had been silent for so long, and that machine's interval short.
func (c *clustered) silent(d time.Duration) {
	c.registry.Edit(rows, nodeID, func(row map[string]any) {
		row["updated_at"], row["interval_ns"] = time.Now().Add(-d), int64(1)
	})
}

// other is another machine with this node's id.
func (c *clustered) other() cluster.Node {
	n := c.machine.node
	n.IP, n.BootID, n.Hostname = "10.0.0.77", "boot-of-the-copy", "copy"
	return n
}

// alive makes the row one that a machine writes: for minutes, it is not silent.
func (c *clustered) alive(n cluster.Node) map[string]any {
	c.t.Helper()
	n.State, n.Interval = cluster.StateActive, seconds.Duration(5*time.Minute)
	_, err := c.client.Register(c.t.Context(), n, cluster.RegisterOptions{Replace: true})
	must.OK(c.t, err)
	must.OK(c.t, c.client.Heartbeat(c.t.Context(), n, cluster.Heartbeat{Seq: 7}))
	return c.row()
}

func (c *clustered) events() []cluster.PastEvent {
	c.t.Helper()
	events, err := c.client.Events(c.t.Context(), cluster.EventQuery{Nodes: []string{nodeID}, Limit: 100})
	must.OK(c.t, err)
	return events
}

// kinds are those of the events, in order.
func (c *clustered) kinds() string {
	c.t.Helper()
	var kinds []string
	for _, e := range c.events() {
		kinds = append(kinds, e.Kind)
	}
	return strings.Join(kinds, " ")
}

func (c *clustered) happens(kinds string) {
	c.t.Helper()
	must.Until(c.t, "the events "+kinds, func() bool { return len(c.kinds()) >= len(kinds) })
	must.Equal(c.t, "events", c.kinds(), kinds)
}

// health asks /healthz, as a cloud does that replaces machines.
func (c *clustered) health() int {
	return get(c.d.metricsHandler(), "/healthz").Code
}
