// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lb"
	"github.com/amsagent/amsagent/lifecycle"
)

// The cells of the table: what the first of three edges does. Each driver returns when its event has lasted long enough.
//
// The daemon, the drain, the agent check and balance's feed are the product's. MongoDB and the servers are models: what a real
// server answers without its MongoDB, and when, is judged by TestRealReady, and elections by TestRealSet. That HAProxy and
// nginx do what the list says is judged by TestBalance and TestRealBalance.
var eventDrivers = map[string]func(*eventCluster, *eventNode){
	"MongoDB away for all": func(c *eventCluster, _ *eventNode) {
		c.away(time.Minute, c.nodes...)
	},
	"MongoDB away for one node": func(c *eventCluster, n *eventNode) {
		c.away(time.Minute, n)
	},
	"MongoDB slow, 1 s for each answer": func(c *eventCluster, _ *eventNode) {
		c.registry.SetFault(func(string, string) fakemongo.Fate {
			sleep.For(c.t.Context(), time.Second)
			return fakemongo.Done
		})
		for _, n := range c.nodes {
			n.f.slow(time.Second)
			defer n.f.slow(answerTime)
		}
		c.watch(2 * time.Minute)
		c.registry.SetFault(nil)
	},
	"an election of 12 s": func(c *eventCluster, _ *eventNode) {
		c.away(12*time.Second, c.nodes...)
	},
	"server dead": func(c *eventCluster, n *eventNode) {
		n.end(ams.AppRefused, syscall.ECONNREFUSED)
		c.watch(2 * time.Minute)
		n.begin()
	},
	"server hung": func(c *eventCluster, n *eventNode) {
		n.end(ams.AppSilent, nil) // the kernel accepts connections for a process that hangs
		c.watch(2 * time.Minute)
		n.begin()
	},
	"agent dead": func(c *eventCluster, n *eventNode) {
		n.kill()
		c.watch(2 * time.Minute)
		n.start()
	},
	"agent upgraded": func(c *eventCluster, n *eventNode) {
		n.kill()
		c.watch(2 * time.Second)
		n.start()
		c.watch(time.Minute)
	},
	"machine dead": func(c *eventCluster, n *eventNode) {
		n.end(ams.AppSilent, context.DeadlineExceeded)
		n.kill()
		c.watch(2 * time.Minute)
		n.begin()
		n.start()
	},
	"one node full": func(c *eventCluster, n *eventNode) {
		c.full(n)
	},
	"all nodes full": func(c *eventCluster, _ *eventNode) {
		c.full(c.nodes...)
	},
	"drain, and a viewer who stays": func(c *eventCluster, n *eventNode) {
		must.OK(c.t, n.d.life.manager.Drain(lifecycle.DrainRequest{Who: "test"}))
		c.watch(2 * drainDeadline)
		n.rejoin()
	},
	// The command refuses while the daemon counts sessions: TestLeaveAsksForSessions. It stops the server, deregisters the node
	// and removes the state file.
	"leave": func(c *eventCluster, n *eventNode) {
		release := n.d.hold("leave")
		c.watch(5 * time.Second)
		for n.asksForSessions() > 0 {
			n.sees(0)
		}
		n.stopped()
		c.watch(5 * time.Second)
		must.OK(c.t, n.client.SetOwnState(c.t.Context(), n.machine.node, cluster.StateLeft, "leave", cluster.Details{LeftBy: cluster.LeftByLeave}))
		n.machine.set(nil)
		release()
		c.watch(time.Minute)
		n.rejoin()
	},
}

const (
	drainDeadline = 5 * time.Minute
	answerTime    = 100 * time.Millisecond // of a server
)

// TestEventTable takes its rows from docs/drain.md.
func TestEventTable(t *testing.T) {
	const begin, end = "<!-- events -->\n", "<!-- end -->"
	data, err := os.ReadFile("../../../docs/drain.md")
	must.OK(t, err)
	_, rest, ok := strings.Cut(string(data), begin)
	table, _, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("docs/drain.md has no table of events")
	}
	seen := map[string]bool{}
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(strings.ReplaceAll(cells[i], "`", ""))
		}
		event := cells[0]
		if event == "event" || strings.HasPrefix(event, "---") {
			continue
		}
		drive := eventDrivers[event]
		if drive == nil || seen[event] {
			t.Errorf("the row %q has no driver of its own", event)
			continue
		}
		seen[event] = true
		t.Run(event, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newEventCluster(t)
				defer c.stop()
				c.settle()
				began := c.cells()
				c.seen = nil
				c.watch(0)
				drive(c, c.nodes[0])
				must.NoDiff(t, "the table says - and the code does +", c.row(), cells[1:])
				c.settle()
				sessions := len(began) - 1 // they stay ended
				must.NoDiff(t, "three minutes after the event", c.cells()[:sessions], began[:sessions])
			})
		})
	}
	for event := range eventDrivers {
		if !seen[event] {
			t.Errorf("docs/drain.md has no row %q", event)
		}
	}
}

// eventCluster is MongoDB, three edges, and what a balance reads of them.
type eventCluster struct {
	t        *testing.T
	ctx      context.Context
	stop     func()
	registry *fakemongo.Memory
	link     *fakemongo.Link // balance's
	client   *cluster.Client // with that
	nodes    []*eventNode
	feed     *lb.Feed
	seen     [][]string // the cells of each look at the first node
	observer cluster.Observer
}

func newEventCluster(t *testing.T) *eventCluster {
	c := &eventCluster{t: t, registry: fakemongo.NewMemory()}
	ctx, cancel := context.WithCancel(t.Context())
	c.ctx, c.link = ctx, &fakemongo.Link{Server: c.registry.Server}
	var work sync.WaitGroup
	for i := range 3 {
		id := fmt.Sprint("i-", i+1)
		n := &eventNode{c: c, clustered: newClustered(t, c.registry, cluster.Node{
			ID: id, IP: fmt.Sprint("10.0.0.", i+1), BootID: "b", Role: "edge", Port: 5080, Interval: seconds.Duration(5 * time.Second),
		})}
		n.machine.stops = n.stopped
		n.f.slow(answerTime)
		n.sees(3)
		n.o.Lifecycle = drains(noFiles{})
		n.o.Lifecycle.Deadline = func() (time.Duration, bool) { return drainDeadline, true }
		n.o.AgentCheckKept = &n.kept
		c.nodes = append(c.nodes, n)
		n.start()
		work.Go(func() { n.writeDocuments(ctx) })
	}
	c.client = c.nodes[0].connect(c.link)
	c.feed = lb.NewFeed(lb.Options{Looker: c.client, Store: &eventStore{}, Log: slog.New(slog.DiscardHandler), Now: time.Now, Dial: c.dial})
	work.Go(func() { c.feed.Run(ctx) })
	c.stop = func() {
		for _, n := range c.nodes {
			n.kill()
			n.close()
		}
		cancel()
		work.Wait()
		_ = c.client.Close(t.Context())
		c.registry.Close()
	}
	return c
}

func (c *eventCluster) dial(_ context.Context, to netip.AddrPort) error {
	for _, n := range c.nodes {
		if n.machine.node.IP == to.Addr().String() {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.closed
		}
	}
	return errors.New("no such node")
}

// away cuts nodes from MongoDB, and balance if it is all of them. A server without MongoDB does not answer.
func (c *eventCluster) away(during time.Duration, nodes ...*eventNode) {
	cut := func(is bool, answers ...string) {
		c.link.Cut.Store(is && len(nodes) == len(c.nodes))
		for _, n := range nodes {
			n.f.set(ams.AppSilent, answers...)
			n.link.Cut.Store(is)
		}
	}
	cut(true, "LiveApp")
	c.watch(during)
	cut(false)
}

func (c *eventCluster) full(nodes ...*eventNode) {
	for _, score := range []int{100, 0} {
		for _, n := range nodes {
			n.mu.Lock()
			n.load.Score = &score
			n.mu.Unlock()
		}
		if score > 0 {
			c.watch(time.Minute)
		}
	}
}

// settle is longer than a server that returns needs to have its whole weight. The first agent checks after that say ready.
func (c *eventCluster) settle() {
	sleep.For(c.ctx, 3*time.Minute)
	c.watch(5 * time.Second)
}

// watch looks at the first node four times a second.
func (c *eventCluster) watch(during time.Duration) {
	for began := time.Now(); ; sleep.For(c.ctx, 250*time.Millisecond) {
		c.seen = append(c.seen, c.cells())
		if time.Since(began) >= during {
			return
		}
	}
}

// row joins the values of each column.
func (c *eventCluster) row() []string {
	columns := make([][]string, len(c.seen[0]))
	for _, cells := range c.seen {
		for i, cell := range cells {
			columns[i] = append(columns[i], cell)
		}
	}
	var row []string
	for _, column := range columns {
		row = append(row, strings.Join(slices.Compact(column), " → "))
	}
	// Sessions are a sum: it is the last one.
	last := len(row) - 1
	row[last] = c.seen[len(c.seen)-1][last]
	return row
}

func (c *eventCluster) cells() []string {
	synctest.Wait()
	n := c.nodes[0]
	return []string{c.record(n), n.readyz(), n.agentCheck(), c.list(n), n.ended()}
}

// record is the node's, as another machine reads it.
func (c *eventCluster) record(n *eventNode) string {
	look, err := cluster.Look{}, error(nil)
	if !c.link.Cut.Load() { // it would wait
		look, err = c.client.Look(c.ctx)
	}
	if c.link.Cut.Load() || err != nil {
		c.observer.Failed()
		return "not readable"
	}
	members := c.observer.Observe(look)
	m := members[slices.IndexFunc(members, func(m cluster.Member) bool { return m.ID() == n.machine.node.ID })]
	if m.State() == cluster.StateActive && !m.Agent.Fresh {
		return "silent"
	}
	return string(m.State())
}

// list is the node's place in balance's list.
func (c *eventCluster) list(n *eventNode) string {
	list, _ := c.feed.List()
	isNode := func(s lb.Server) bool { return s.ID == n.machine.node.ID }
	i := slices.IndexFunc(list.Servers, isNode)
	if slices.ContainsFunc(list.Gone, func(a netip.Addr) bool { return a.String() == n.machine.node.IP }) {
		n.endedBy = "all, by balance"
	}
	switch {
	case i < 0:
		return "out"
	case list.Failed != "", slices.ContainsFunc(list.Held, func(h lb.Held) bool { return slices.Contains(h.IDs, n.machine.node.ID) }):
		return "held"
	case list.Servers[i].Full:
		return fmt.Sprint("in, weight ", list.Servers[i].Weight)
	}
	return "in"
}

// eventNode is an edge: a machine with a server and a daemon.
type eventNode struct {
	*clustered
	c       *eventCluster
	kept    eventStore // of the agent check, over a restart of the daemon
	kill    func()
	asks    chan net.Conn // agent checks
	dead    bool          // the daemon does not run
	endedBy string

	// The lock of clustered guards these.
	down   bool  // the server does not write its document
	closed error // what an attempt to connect to the server ends with
}

// start runs a daemon, and what answers its agent checks.
func (n *eventNode) start() {
	n.clustered.begin()
	ctx, cancel := context.WithCancel(n.c.ctx)
	n.asks = make(chan net.Conn)
	var work sync.WaitGroup
	work.Go(func() { n.d.check.Serve(ctx, eventListener(n.asks)) })
	n.dead = false
	n.kill = func() {
		cancel()
		work.Wait()
		n.stop()
		n.dead = true
	}
}

// rejoin is what a join after a drain or a leave does.
func (n *eventNode) rejoin() {
	n.kill()
	n.begin()
	n.sees(3)
	n.machine.set(&bootstrap.State{Phase: bootstrap.PhaseJoined, Since: time.Now()})
	joined := n.machine.node
	joined.State, joined.Reason = cluster.StateActive, cluster.ReasonJoin
	_, err := n.client.Register(n.t.Context(), joined, cluster.RegisterOptions{})
	must.OK(n.t, err)
	n.start()
}

// end ends or stops the server's process, begin is its next start.
func (n *eventNode) end(answers ams.AppServing, connects error) {
	n.f.set(answers, "LiveApp")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down, n.closed = true, connects
}

func (n *eventNode) begin() {
	n.f.set("")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down, n.closed = false, nil
}

// stopped ends the sessions that are left.
func (n *eventNode) stopped() {
	n.end(ams.AppRefused, syscall.ECONNREFUSED)
	sessions, _ := n.Sessions(n.c.ctx)
	switch v := n.d.life.manager.View(); {
	case *sessions.Viewers == 0:
	case v.Deadline.IsZero() || time.Now().Before(v.Deadline):
		n.endedBy = "all, by the agent"
	default:
		n.endedBy = "all, by the agent at the deadline"
	}
}

// writeDocuments is what the server does while it runs and reaches MongoDB.
func (n *eventNode) writeDocuments(ctx context.Context) {
	const documents = "clusterdb.clusternode"
	ip := n.machine.node.IP
	n.registry.Put(documents, map[string]any{"_id": ip, "ip": ip})
	for ok := true; ok; ok = sleep.For(ctx, 5*time.Second) {
		n.mu.Lock()
		if !n.down && !n.link.Cut.Load() {
			n.registry.Edit(documents, ip, func(doc map[string]any) { doc["lastUpdateTime"] = time.Now().UnixMilli() })
		}
		n.mu.Unlock()
	}
}

func (n *eventNode) readyz() string {
	if n.dead {
		return "none"
	}
	return fmt.Sprint(get(n.d.metricsHandler(), PathReady).Code)
}

// agentCheck asks as HAProxy does, and leaves out the reason.
func (n *eventNode) agentCheck() string {
	if n.dead {
		return "none"
	}
	conn, daemon := net.Pipe()
	defer conn.Close()
	n.asks <- daemon
	_, err := conn.Write([]byte("role=edge\n"))
	must.OK(n.c.t, err)
	buf := make([]byte, 1<<10)
	size, err := conn.Read(buf)
	must.OK(n.c.t, err)
	line, _, _ := strings.Cut(strings.TrimSpace(string(buf[:size])), " #")
	return line
}

func (n *eventNode) ended() string {
	if n.endedBy == "" {
		return "none"
	}
	return n.endedBy
}

// asksForSessions is the daemon's count, which `amsagent leave` asks for.
func (n *eventNode) asksForSessions() int {
	rec := get(n.d.controlHandler(), PathSessions)
	var v SessionsView
	must.OK(n.c.t, json.Unmarshal(rec.Body.Bytes(), &v))
	if v.Sessions.Viewers == nil {
		n.c.t.Fatalf("no count: %s", rec.Body)
	}
	return *v.Sessions.Viewers
}

// eventStore keeps in memory.
type eventStore struct{ b []byte }

func (s *eventStore) Load() ([]byte, error) { return s.b, nil }
func (s *eventStore) Save(b []byte) error   { s.b = b; return nil }

// eventListener accepts the connections of a test.
type eventListener chan net.Conn

func (l eventListener) Accept() (net.Conn, error) {
	conn, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (l eventListener) Close() error {
	close(l)
	return nil
}

func (l eventListener) Addr() net.Addr { return &net.TCPAddr{} }
