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
	"net/http"
	"net/http/httptest"
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
	"github.com/amsagent/amsagent/heartbeat"
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
		c.set(func() { c.slow = time.Second })
		for _, n := range c.nodes {
			n.f.slow(time.Second)
			defer n.f.slow(answerTime)
		}
		c.watch(2 * time.Minute)
		c.set(func() { c.slow = 0 })
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
		n.start(true)
	},
	"agent upgraded": func(c *eventCluster, n *eventNode) {
		n.kill()
		c.watch(2 * time.Second)
		n.start(true)
		c.watch(time.Minute)
	},
	"machine dead": func(c *eventCluster, n *eventNode) {
		n.end(ams.AppSilent, context.DeadlineExceeded)
		n.kill()
		c.watch(2 * time.Minute)
		n.begin()
		n.start(true)
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
			c.set(func() { n.viewers = 0 })
		}
		must.OK(c.t, eventLife{n.d.life, n}.StopServer(c.t.Context()))
		c.watch(5 * time.Second)
		n.write(func(r *cluster.Node) { r.State = cluster.StateLeft })
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
	t     *testing.T
	ctx   context.Context
	stop  func()
	nodes []*eventNode
	feed  *lb.Feed
	seen  [][]string // the cells of each look at the first node

	mu       sync.Mutex
	isAway   bool // for balance
	slow     time.Duration
	records  map[string]cluster.Node
	docs     map[string]time.Time
	observer cluster.Observer
}

func newEventCluster(t *testing.T) *eventCluster {
	c := &eventCluster{t: t, records: map[string]cluster.Node{}, docs: map[string]time.Time{}}
	ctx, cancel := context.WithCancel(t.Context())
	c.ctx = ctx
	var work sync.WaitGroup
	c.stop = func() {
		for _, n := range c.nodes {
			n.kill()
		}
		cancel()
		work.Wait()
	}
	for i := range 3 {
		n := &eventNode{c: c, id: fmt.Sprint("i-", i+1), ip: fmt.Sprint("10.0.0.", i+1), f: &fakeServer{apps: []string{"LiveApp"}, takes: answerTime}, viewers: 3}
		n.machine = &fakeMachine{state: &bootstrap.State{Phase: bootstrap.PhaseJoined, Since: time.Now()}, entered: n.self().Instance()}
		n.machine.converge = func(context.Context) (*bootstrap.Convergence, error) {
			return &bootstrap.Convergence{Phase: bootstrap.PhaseJoined, Node: n.self()}, nil
		}
		c.nodes = append(c.nodes, n)
		n.write(func(r *cluster.Node) { *r = n.self() })
		n.start(false)
		work.Go(func() { n.writeDocuments(ctx) })
	}
	c.feed = lb.NewFeed(lb.Options{Looker: c, Store: &eventStore{}, Log: slog.New(slog.DiscardHandler), Now: time.Now, Dial: c.dial})
	work.Go(func() { c.feed.Run(ctx) })
	return c
}

func (c *eventCluster) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// answer waits for MongoDB: a client that finds no server gives up.
func (c *eventCluster) answer(ctx context.Context, away bool) error {
	c.mu.Lock()
	slow := c.slow
	c.mu.Unlock()
	if away {
		sleep.For(ctx, 2*time.Second)
		return &cluster.Error{Kind: cluster.KindUnreachable}
	}
	sleep.For(ctx, slow)
	return ctx.Err()
}

func (c *eventCluster) look() cluster.Look {
	l := cluster.Look{ServerTime: time.Now(), At: time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		l.Nodes = append(l.Nodes, c.records[n.id])
		if at, ok := c.docs[n.ip]; ok {
			l.AMS = append(l.AMS, cluster.AMSNode{ID: n.ip, IP: n.ip, LastUpdate: at})
		}
	}
	return l
}

// Look is balance's.
func (c *eventCluster) Look(ctx context.Context) (cluster.Look, error) {
	c.mu.Lock()
	away := c.isAway
	c.mu.Unlock()
	if err := c.answer(ctx, away); err != nil {
		return cluster.Look{}, err
	}
	return c.look(), nil
}

func (c *eventCluster) dial(_ context.Context, to netip.AddrPort) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.ip == to.Addr().String() {
			return n.closed
		}
	}
	return errors.New("no such node")
}

// away cuts nodes from MongoDB, and balance if it is all of them. A server without MongoDB does not answer.
func (c *eventCluster) away(during time.Duration, nodes ...*eventNode) {
	all := len(nodes) == len(c.nodes)
	for _, n := range nodes {
		n.f.set(ams.AppSilent, "LiveApp")
	}
	c.set(func() {
		c.isAway = all
		for _, n := range nodes {
			n.cut = true
		}
	})
	c.watch(during)
	for _, n := range nodes {
		n.f.set("")
	}
	c.set(func() {
		c.isAway = false
		for _, n := range nodes {
			n.cut = false
		}
	})
}

func (c *eventCluster) full(nodes ...*eventNode) {
	for _, score := range []int{100, 0} {
		c.set(func() {
			for _, n := range nodes {
				n.score = score
			}
		})
		if score > 0 {
			c.watch(time.Minute)
		}
	}
}

// settle is longer than a server that returns needs to have its whole weight.
func (c *eventCluster) settle() { c.watch(3 * time.Minute) }

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
	c.mu.Lock()
	away := c.isAway
	c.mu.Unlock()
	if away {
		c.observer.Failed()
		return "not readable"
	}
	members := c.observer.Observe(c.look())
	m := members[slices.IndexFunc(members, func(m cluster.Member) bool { return m.ID() == n.id })]
	if m.State() == cluster.StateActive && !m.Agent.Fresh {
		return "silent"
	}
	return string(m.State())
}

// list is the node's place in balance's list.
func (c *eventCluster) list(n *eventNode) string {
	list, _ := c.feed.List()
	isNode := func(s lb.Server) bool { return s.ID == n.id }
	i := slices.IndexFunc(list.Servers, isNode)
	if slices.ContainsFunc(list.Gone, func(a netip.Addr) bool { return a.String() == n.ip }) {
		c.set(func() { n.endedBy = "all, by balance" })
	}
	switch {
	case i < 0:
		return "out"
	case list.Failed != "", slices.ContainsFunc(list.Held, func(h lb.Held) bool { return slices.Contains(h.IDs, n.id) }):
		return "held"
	case list.Servers[i].Full:
		return fmt.Sprint("in, weight ", list.Servers[i].Weight)
	}
	return "in"
}

// eventNode is an edge: a machine with a server and a daemon.
type eventNode struct {
	c       *eventCluster
	id, ip  string
	machine *fakeMachine
	f       *fakeServer
	kept    eventStore // of the agent check, over a restart of the daemon
	d       *Daemon
	kill    func()
	asks    chan net.Conn // agent checks

	// The cluster's lock guards these.
	cut     bool  // from MongoDB
	down    bool  // the server does not write its document
	closed  error // what an attempt to connect to the server ends with
	dead    bool  // the daemon does not run
	score   int
	viewers int
	endedBy string
}

func (n *eventNode) self() cluster.Node {
	return cluster.Node{ID: n.id, IP: n.ip, BootID: "b", Role: "edge", State: cluster.StateActive, Port: 5080}
}

func (n *eventNode) write(change func(*cluster.Node)) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	r := n.c.records[n.id]
	change(&r)
	n.c.records[n.id] = r
}

// start runs a daemon. One that starts again knows of the node by its session, which reads the state file.
func (n *eventNode) start(again bool) {
	n.d = newTestDaemon(n.machine, &notified{}, func(o *Options) {
		o.Server, o.AgentCheckKept = n.f, &n.kept
		o.Sampler = func(func() *cluster.Client, func() cluster.Node) Sampler { return eventSampler{n: n} }
	})
	n.d.life.manager = lifecycle.NewRunner(lifecycle.Options{
		Node: eventLife{n.d.life, n}, Files: noFiles{}, Log: n.d.log, Uptime: n.d.o.Lifecycle.Uptime, Filter: n.d.o.Lifecycle.Filter,
		Deadline: func() (time.Duration, bool) { return drainDeadline, true }, StopTime: n.d.o.Lifecycle.StopTime,
		Balancers: n.d.life.balancers, Prove: n.d.life.prove, Role: func() string { return "edge" },
		Before: func() (s cluster.Sessions, at time.Time) { return s, at },
		Event:  func(context.Context, cluster.Event) error { return nil },
	})
	n.d.view.setLife(n.d.life.manager.View, n.d.life.isDrainOver)
	n.d.follows(bootstrap.PhaseJoined)
	ctx, cancel := context.WithCancel(n.c.ctx)
	if again {
		if err := n.d.session(ctx); err == nil {
			n.c.t.Error("a session without a client")
		}
	}
	n.d.view.change(func(v *View) { v.ID, v.Address, v.Role = n.id, n.ip, "edge" })
	if !again {
		n.d.view.change(func(v *View) { v.State, v.Proved = cluster.StateActive, true })
	}
	n.asks = make(chan net.Conn)
	var work sync.WaitGroup
	loop := n.d.loop(nil)
	loop.Sender = n
	listener := &eventListener{asks: n.asks, ended: make(chan struct{})}
	work.Go(func() { n.d.followServer(ctx) })
	work.Go(func() { loop.Run(ctx) })
	work.Go(func() { n.d.life.run(ctx) })
	work.Go(func() { n.d.check.Serve(ctx, listener) })
	n.c.set(func() { n.dead = false })
	n.kill = func() {
		cancel()
		work.Wait()
		n.c.set(func() { n.dead = true })
	}
}

// rejoin is what a join after a drain or a leave does.
func (n *eventNode) rejoin() {
	n.kill()
	n.begin()
	n.c.set(func() { n.viewers = 3 })
	n.machine.set(&bootstrap.State{Phase: bootstrap.PhaseJoined, Since: time.Now()})
	n.write(func(r *cluster.Node) { r.State = cluster.StateActive })
	n.start(false)
}

// end ends or stops the server's process, begin is its next start.
func (n *eventNode) end(answers ams.AppServing, connects error) {
	n.f.set(answers, "LiveApp")
	n.c.set(func() { n.down, n.closed = true, connects })
}

func (n *eventNode) begin() {
	n.f.set("")
	n.c.set(func() { n.down, n.closed = false, nil })
}

// writeDocuments is what the server does while it runs and reaches MongoDB.
func (n *eventNode) writeDocuments(ctx context.Context) {
	for {
		n.c.set(func() {
			if !n.down && !n.cut {
				n.c.docs[n.ip] = time.Now()
			}
		})
		if !sleep.For(ctx, 5*time.Second) {
			return
		}
	}
}

// Heartbeat writes as a member does.
func (n *eventNode) Heartbeat(ctx context.Context, h cluster.Heartbeat) error {
	if n.d.life.isGone() {
		return heartbeat.ErrLeft
	}
	v := n.d.view.get()
	h.Serving = v.serving()
	n.c.mu.Lock()
	cut := n.cut
	n.c.mu.Unlock()
	if err := n.c.answer(ctx, cut); err != nil {
		return err
	}
	n.write(func(r *cluster.Node) {
		r.Seq, r.UpdatedAt, r.Interval, r.Load, r.Serving = r.Seq+1, time.Now(), seconds.Duration(5*time.Second), h.Load, h.Serving
	})
	return nil
}

func (n *eventNode) ClockSkew(context.Context) (skew, accuracy time.Duration, err error) {
	return 0, time.Millisecond, nil
}

func (n *eventNode) readyz() string {
	if n.dead {
		return "none"
	}
	rec := httptest.NewRecorder()
	n.d.metricsHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, PathReady, nil))
	return fmt.Sprint(rec.Code)
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
	rec := httptest.NewRecorder()
	n.d.controlHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, PathSessions, nil))
	var v SessionsView
	must.OK(n.c.t, json.Unmarshal(rec.Body.Bytes(), &v))
	if v.Sessions.Viewers == nil {
		n.c.t.Fatalf("no count: %s", rec.Body)
	}
	return *v.Sessions.Viewers
}

// eventLife is the daemon's drain, with writes into the cluster of the test.
type eventLife struct {
	*life
	n *eventNode
}

func (l eventLife) SetState(_ context.Context, s cluster.State, _ string, _ bool) error {
	l.n.write(func(r *cluster.Node) { r.State = s })
	l.d.view.setState(s, time.Now())
	return nil
}

// StopServer ends the sessions that are left.
func (l eventLife) StopServer(ctx context.Context) error {
	if err := l.life.StopServer(ctx); err != nil {
		return err
	}
	l.n.end(ams.AppRefused, syscall.ECONNREFUSED)
	v := l.manager.View()
	l.n.c.set(func() {
		switch {
		case l.n.viewers == 0:
		case v.Deadline.IsZero() || time.Now().Before(v.Deadline):
			l.n.endedBy = "all, by the agent"
		default:
			l.n.endedBy = "all, by the agent at the deadline"
		}
	})
	return nil
}

func (l eventLife) Deregister(ctx context.Context, _ lifecycle.Departure) error {
	return l.SetState(ctx, cluster.StateLeft, "", false)
}

// eventSampler sees a node's load and sessions.
type eventSampler struct {
	still
	n *eventNode
}

func (s eventSampler) Sample(ctx context.Context) heartbeat.Sample {
	sessions, _ := s.Sessions(ctx)
	s.n.c.mu.Lock()
	defer s.n.c.mu.Unlock()
	return heartbeat.Sample{At: time.Now(), Load: cluster.Load{Score: new(s.n.score)}, Session: sessions}
}

func (s eventSampler) Sessions(context.Context) (cluster.Sessions, error) {
	s.n.c.mu.Lock()
	defer s.n.c.mu.Unlock()
	return cluster.Sessions{Publishers: new(0), Viewers: new(s.n.viewers)}, nil
}

// eventStore keeps in memory.
type eventStore struct{ b []byte }

func (s *eventStore) Load() ([]byte, error) { return s.b, nil }
func (s *eventStore) Save(b []byte) error   { s.b = b; return nil }

// eventListener accepts the connections of a test.
type eventListener struct {
	asks  chan net.Conn
	once  sync.Once
	ended chan struct{}
}

func (l *eventListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.asks:
		return conn, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

func (l *eventListener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return nil
}

func (l *eventListener) Addr() net.Addr { return &net.TCPAddr{} }
