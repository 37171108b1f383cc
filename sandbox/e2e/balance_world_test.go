// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lb"
)

// fleet are simulated nodes at addresses of the loopback: servers of the test, whose records and documents it writes as an agent and
// a server would.
type fleet struct {
	t        *testing.T
	registry *cluster.Client
	mongo    *mongo.Client

	mu    sync.Mutex
	all   []*fleetNode // in the order of their start
	names int
}

// fleetNode is one of them. Its ports are the usual ones: HTTP 5080, RTMP 1935, /readyz 9771, agent check 9772.
type fleetNode struct {
	cluster.Node
	fleet *fleet
	work  sync.WaitGroup
	end   context.CancelFunc // of heartbeats and listeners

	leaves atomic.Bool // it drains, or has left
	down   atomic.Bool // its applications do not answer
	full   atomic.Bool

	mu     sync.Mutex
	killed time.Time
	conns  map[net.Conn]bool
	last   map[string]time.Time // when the last new session came, by way
	count  map[string]int       // of new sessions
	held   map[string]int       // open WebSockets and RTMP connections
	cut    map[string]int       // those that the node ended
}

// newFleet has no node yet.
func newFleet(t *testing.T, uri string) *fleet {
	t.Helper()
	target, err := cluster.ParseTarget(uri)
	must.OK(t, err)
	f := &fleet{t: t}
	f.registry, err = cluster.Connect(t.Context(), target, cluster.Options{AppName: "fleet"})
	must.OK(t, err)
	f.mongo, err = mongo.Connect(options.Client().ApplyURI(uri))
	must.OK(t, err)
	t.Cleanup(func() {
		for _, n := range f.nodes("", true) {
			n.stop(false)
		}
		_ = f.registry.Close(context.Background())
		_ = f.mongo.Disconnect(context.Background())
	})
	return f
}

// nodes returns those of a role ("" is any) that are active, or all that run.
func (f *fleet) nodes(role string, all bool) []*fleetNode {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*fleetNode
	for _, n := range f.all {
		if n.runs() && (role == "" || n.Role == role) && (all || !n.leaves.Load()) {
			list = append(list, n)
		}
	}
	return list
}

// start starts a node at the first address that no running one has.
func (f *fleet) start(role string) *fleetNode {
	f.t.Helper()
	running := f.nodes("", true)
	ip := ""
	for i := 1; ip == ""; i++ {
		if a := fmt.Sprintf("127.0.1.%d", i); !slices.ContainsFunc(running, func(n *fleetNode) bool { return n.IP == a }) {
			ip = a
		}
	}
	f.mu.Lock()
	f.names++
	id := fmt.Sprintf("%s-%d", role, f.names)
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(f.t.Context())
	n := &fleetNode{
		fleet: f, end: cancel, conns: map[net.Conn]bool{}, last: map[string]time.Time{}, count: map[string]int{}, held: map[string]int{},
		cut: map[string]int{},
		Node: cluster.Node{
			ID: id, IP: ip, BootID: id, Role: role, Port: 5080, Interval: seconds.Duration(5 * time.Second), State: cluster.StateActive,
		},
	}
	_, err := f.registry.Register(ctx, n.Node, cluster.RegisterOptions{})
	must.OK(f.t, err)
	n.listen(ctx, "5080", n.serveHTTP)
	n.listen(ctx, "1935", n.serveRTMP)
	n.listen(ctx, "9771", func(l net.Listener) {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { //nolint:gosec // of the test
			if n.leaves.Load() || n.down.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}))
	})
	check := &lb.AgentCheck{Now: time.Now, Log: slog.New(slog.DiscardHandler), State: func() lb.NodeState {
		score := n.score()
		s := lb.NodeState{Role: n.Role, Leaves: n.leaves.Load(), Score: &score}
		if n.down.Load() {
			s.Down = "MongoDB is away"
		}
		return s
	}}
	n.listen(ctx, "9772", func(l net.Listener) { check.Serve(ctx, l) })
	n.beat(ctx, 1)
	n.work.Go(func() {
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for seq := int64(2); ; seq++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				n.beat(ctx, seq)
			}
		}
	})
	f.mu.Lock()
	f.all = append(f.all, n)
	f.mu.Unlock()
	return n
}

func (n *fleetNode) score() int {
	if n.full.Load() {
		return 130
	}
	return 20
}

// beat writes what an agent and a server write every five seconds. MongoDB may be away.
func (n *fleetNode) beat(ctx context.Context, seq int64) {
	score := n.score()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_ = n.fleet.registry.Heartbeat(ctx, n.Node, cluster.Heartbeat{Seq: seq, Load: &cluster.Load{Score: &score}, Serving: &cluster.Serving{Up: !n.down.Load()}})
	_, _ = n.fleet.mongo.Database("clusterdb").Collection("clusternode").UpdateOne(ctx, bson.D{{Key: "_id", Value: n.ID}},
		bson.D{{Key: "$set", Value: bson.D{{Key: "ip", Value: n.IP}, {Key: "lastUpdateTime", Value: time.Now().UnixMilli()}}}}, options.UpdateOne().SetUpsert(true))
}

func (n *fleetNode) listen(ctx context.Context, port string, serve func(net.Listener)) {
	n.fleet.t.Helper()
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp", net.JoinHostPort(n.IP, port))
	must.OK(n.fleet.t, err)
	context.AfterFunc(ctx, func() { _ = l.Close() })
	n.work.Go(func() { serve(fleetListener{l, n}) })
}

// fleetListener knows the open connections.
type fleetListener struct {
	net.Listener
	n *fleetNode
}

func (l fleetListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if l.n.conns == nil { // it was stopped just now
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	l.n.conns[c] = true
	return fleetConn{c, l.n}, nil
}

type fleetConn struct {
	net.Conn
	n *fleetNode
}

func (c fleetConn) Close() error {
	c.n.mu.Lock()
	delete(c.n.conns, c.Conn)
	c.n.mu.Unlock()
	return c.Conn.Close()
}

func (n *fleetNode) runs() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.conns != nil
}

// session notes a new session of a way.
func (n *fleetNode) session(way string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last[way] = time.Now()
	n.count[way]++
}

// serveHTTP answers /WAY at once, /WAY/ws with what comes in, and /hang never.
func (n *fleetNode) serveHTTP(l net.Listener) {
	_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // of the test
		if r.URL.Path == "/hang" {
			<-r.Context().Done()
			return
		}
		way, long := strings.CutSuffix(strings.Trim(r.URL.Path, "/"), "/ws")
		n.session(way)
		w.Header().Set("X-Node", n.ID)
		if !long {
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-Node: %s\r\n\r\n", n.ID)
		n.echo(way, c, rw.Reader)
	}))
}

// serveRTMP expects the way in a line, and sends its own name.
func (n *fleetNode) serveRTMP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		n.work.Go(func() {
			r := bufio.NewReader(c)
			way, err := r.ReadString('\n')
			if err != nil {
				_ = c.Close()
				return
			}
			way = strings.TrimSpace(way)
			n.session(way)
			_, _ = fmt.Fprintln(c, n.ID)
			n.echo(way, c, r)
		})
	}
}

func (n *fleetNode) echo(way string, c net.Conn, r io.Reader) {
	n.hold(way, 1)
	defer n.hold(way, -1)
	defer c.Close()
	_, _ = io.Copy(struct{ io.Writer }{c}, r)
}

func (n *fleetNode) hold(way string, add int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held[way] += add
}

// drain takes the node out: of its agent check at began, and of the registry at wrote.
func (n *fleetNode) drain(ctx context.Context) (began, wrote time.Time, err error) {
	began = time.Now()
	n.leaves.Store(true)
	err = n.fleet.registry.SetOwnState(ctx, n.Node, cluster.StateDraining, "scale-in", cluster.Details{})
	return began, time.Now(), err
}

// back ends a drain.
func (n *fleetNode) back(ctx context.Context) error {
	n.leaves.Store(false)
	return n.fleet.registry.SetOwnState(ctx, n.Node, cluster.StateActive, "canceled", cluster.Details{})
}

// leave ends a node that has drained.
func (n *fleetNode) leave(ctx context.Context) error {
	n.stop(false)
	_, err := n.fleet.mongo.Database("clusterdb").Collection("clusternode").DeleteOne(ctx, bson.D{{Key: "_id", Value: n.ID}})
	return errors.Join(err, n.fleet.registry.SetOwnState(ctx, n.Node, cluster.StateLeft, "drained", cluster.Details{}))
}

// stop ends all connections; a kill resets them.
func (n *fleetNode) stop(kill bool) {
	n.mu.Lock()
	conns := n.conns
	n.conns = nil
	if kill {
		n.killed = time.Now()
	} else {
		for way, open := range n.held {
			n.cut[way] = open
		}
	}
	n.mu.Unlock()
	n.end()
	for c := range conns {
		if tcp, ok := c.(*net.TCPConn); ok && kill {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
	n.work.Wait()
}

// taken returns how long after a time the last new session of a way came.
func (n *fleetNode) taken(way string, since time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return max(0, n.last[way].Sub(since))
}

// clients are the viewers and encoders of one load balancer.
type clients struct {
	way, front string // an address
	fleet      *fleet

	requests, sessions atomic.Int64
	mu                 sync.Mutex
	failed             []failure
}

// failure is a request that was not answered, or a session that did not begin or was cut.
type failure struct {
	at   time.Time
	node string // of the session; "" if none answered
	what string
}

func (f failure) String() string { return f.at.Format("15:04:05.000 ") + f.what + " " + f.node }

func (c *clients) fails(node, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = append(c.failed, failure{time.Now(), node, fmt.Sprintf(format, args...)})
}

// unexplained returns the failures that no killed node explains, since a time. What a killed node was about to answer fails at once.
func (c *clients) unexplained(since time.Time) (left []failure, explained int) {
	c.fleet.mu.Lock()
	defer c.fleet.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.failed {
		switch {
		case f.at.Before(since):
		case slices.ContainsFunc(c.fleet.all, func(n *fleetNode) bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			after := f.at.Sub(n.killed)
			return !n.killed.IsZero() && (f.node == n.ID || f.node == "" && after >= 0 && after < time.Second)
		}):
			explained++
		default:
			left = append(left, f)
		}
	}
	return left, explained
}

// run sends requests a second, and holds WebSockets and RTMP connections, each for 10 to 30 s, until ctx ends.
func (c *clients) run(ctx context.Context, work *sync.WaitGroup, requests, webSockets, rtmp int) {
	const perWorker = 20
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: requests}}
	for i := range requests / perWorker {
		work.Go(func() {
			sleep(ctx, time.Duration(i)*time.Second/requestWorkers)
			tick := time.NewTicker(time.Second / perWorker)
			defer tick.Stop()
			for ctx.Err() == nil {
				c.request(ctx, client)
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		})
	}
	for i := range webSockets + rtmp {
		work.Go(func() {
			sleep(ctx, time.Duration(i)*20*time.Millisecond)
			for life := time.Duration(10+i%21) * time.Second; ctx.Err() == nil; life = time.Duration(10+i%21) * time.Second {
				c.session(ctx, i >= webSockets, life)
			}
		})
	}
}

// requestWorkers spreads their beginnings.
const requestWorkers = 50

func (c *clients) request(ctx context.Context, client *http.Client) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.front+":5080/"+c.way, nil)
	must.OK(c.fleet.t, err)
	resp, err := client.Do(req)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		c.fails("", "request: %v", err)
		return
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	c.requests.Add(1)
	if resp.StatusCode != http.StatusOK {
		c.fails("", "request: %s", resp.Status)
	}
}

// session holds a WebSocket, or an RTMP connection.
func (c *clients) session(ctx context.Context, rtmp bool, life time.Duration) {
	var dialer net.Dialer
	port, kind := ":5080", "WebSocket"
	if rtmp {
		port, kind = ":1935", "RTMP"
	}
	conn, err := dialer.DialContext(ctx, "tcp", c.front+port)
	if err != nil {
		if ctx.Err() == nil {
			c.fails("", "%s: %v", kind, err)
			sleep(ctx, time.Second)
		}
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(life + 20*time.Second))
	r, node := bufio.NewReader(conn), ""
	if rtmp {
		_, _ = fmt.Fprintln(conn, c.way)
		node, err = r.ReadString('\n')
		node = strings.TrimSpace(node)
	} else {
		_, _ = fmt.Fprintf(conn, "GET /%s/ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", c.way, c.front)
		var resp *http.Response
		if resp, err = http.ReadResponse(r, nil); err == nil {
			_ = resp.Body.Close()
			node = resp.Header.Get("X-Node")
			if resp.StatusCode != http.StatusSwitchingProtocols {
				err = errors.New(resp.Status)
			}
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			c.fails("", "%s did not begin: %v", kind, err)
			sleep(ctx, time.Second)
		}
		return
	}
	c.sessions.Add(1)
	for end := time.Now().Add(life); time.Now().Before(end); sleep(ctx, 2*time.Second) {
		_, _ = fmt.Fprintln(conn, "ping")
		if _, err := r.ReadString('\n'); err != nil {
			if ctx.Err() == nil {
				c.fails(node, "%s was cut: %v", kind, err)
			}
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
