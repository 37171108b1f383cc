// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// fakeStreams is the cluster's memory of streams and nodes.
type fakeStreams struct {
	live      map[string][]string // by database
	nodes     []string            // addresses
	age       time.Duration       // of the nodes' documents
	err       error
	asked     int
	databases []string
}

func (f *fakeStreams) LocalStreams(_ context.Context, databases []string, _ string, _ time.Time) ([]cluster.DatabaseStreams, error) {
	f.asked++
	f.databases = databases
	var out []cluster.DatabaseStreams
	for _, d := range databases {
		out = append(out, cluster.DatabaseStreams{Database: d, IDs: f.live[d]})
	}
	return out, f.err
}

func (f *fakeStreams) AMSNodes(ctx context.Context) ([]cluster.AMSNode, error) {
	if end, ok := ctx.Deadline(); !ok || time.Until(end) > time.Second {
		return nil, errors.New("asked for longer than a node that shuts down can wait")
	}
	var out []cluster.AMSNode
	for _, a := range f.nodes {
		out = append(out, cluster.AMSNode{ID: a, IP: a, LastUpdate: time.Now().Add(-f.age)})
	}
	return out, f.err
}

// counted is a machine whose sessions are counted.
type counted struct {
	t       *testing.T
	root    string
	streams *fakeStreams // nil: no node
	address string
	answer  func(http.ResponseWriter, *http.Request)
	asked   int // AMS's statistics
	port    int
	from    map[int][]string // connections by local port; nil: they cannot be counted
	idle    int              // connections without traffic
	outside error            // of the check whether they are the server's
	process int              // that was checked
	checks  int
	server  *httptest.Server
	*sessionCounter
}

func (c *counted) clients(visit func(ams.Connection)) error {
	if c.from == nil {
		return errors.New("the connections cannot be counted")
	}
	for port, from := range c.from {
		for _, from := range from {
			a := netip.MustParseAddr(from)
			visit(ams.Connection{Port: port, From: a, Local: a.IsLoopback() || from == c.address, Silent: silentAfter - time.Second})
		}
	}
	for range c.idle {
		visit(ams.Connection{Port: c.port, From: netip.MustParseAddr("10.0.0.77"), Silent: silentAfter})
	}
	visit(ams.Connection{Port: c.port, From: netip.IPv6Loopback(), Local: true, Silent: silentAfter}) // neither idle nor a viewer
	visit(ams.Connection{Port: 22, From: netip.MustParseAddr("10.0.0.77")})
	return nil
}

func (c *counted) check(pid, port int) error {
	if c.process, c.checks = pid, c.checks+1; port != c.port {
		c.t.Errorf("the server's port is %d, not %d", c.port, port)
	}
	return c.outside
}

func newCounted(t *testing.T, settings string) *counted {
	t.Helper()
	c := &counted{t: t, root: t.TempDir(), streams: &fakeStreams{}, address: "10.0.0.3"}
	must.OK(t, os.CopyFS(filepath.Join(c.root, ams.DefaultDir), os.DirFS("../testdata/trees/3.0")))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.asked++
		if c.answer == nil {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		c.answer(w, r)
	}))
	t.Cleanup(srv.Close)
	c.server = srv
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	must.OK(t, err)
	c.port, err = strconv.Atoi(port)
	must.OK(t, err)
	c.settings(settings)
	c.connections()
	c.sessionCounter = &sessionCounter{Connections: c.clients, Network: c.check, SamplerOptions: SamplerOptions{
		Open: func() (*ams.Installation, error) { return ams.Open(c.root, "") },
		Streams: func() (Streams, string) {
			if c.streams == nil {
				return nil, ""
			}
			return c.streams, c.address
		},
		Own: func() int { return 0 }, Edge: func() bool { return false },
		State: func(context.Context) (ams.State, error) { return ams.State{}, errors.New("the bus is away") },
	}}
	return c
}

func (c *counted) settings(lines string) {
	c.t.Helper()
	text := fmt.Sprintf("http.host=127.0.0.1\nhttp.port=%d\n%s", c.port, lines)
	must.OK(c.t, os.WriteFile(filepath.Join(c.root, ams.DefaultDir, "conf/red5.properties"), []byte(text), 0o644))
}

// connections are established ones from these addresses to the server's port.
func (c *counted) connections(from ...string) {
	c.from = map[int][]string{c.port: from}
}

// is counts, and compares the counts; -1 is unknown.
func (c *counted) is(when string, publishers, viewers int, by cluster.CountedBy) map[string]error {
	c.t.Helper()
	s, missing := c.count(c.t.Context(), openEvery, askEvery)
	value := func(n *int) int {
		if n == nil {
			return -1
		}
		return *n
	}
	if p, v := value(s.Publishers), value(s.Viewers); p != publishers || v != viewers || s.By != by {
		c.t.Errorf("%s: %d publishers, %d viewers by %q, want %d, %d, %q; missing %v", when, p, v, s.By, publishers, viewers, by, missing)
	}
	for what, unknown := range map[string]bool{"publishers": publishers < 0, "viewers": viewers < 0} {
		must.Equal(c.t, when+": it is named as missing: "+what, missing[what] != nil, unknown)
	}
	return missing
}

// later makes all that was read so much older.
func (c *counted) later(d time.Duration) {
	c.looked, c.published.at, c.checked = c.looked.Add(-d), c.published.at.Add(-d), c.checked.Add(-d)
}

// mongoEvery is the interval of queries to MongoDB.
const mongoEvery = 30 * time.Second

const serverKey = "server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=a-secret-of-the-server\n"

func figures(webrtc, hls, dash int) func(http.ResponseWriter, *http.Request) {
	return statistics(0, webrtc, hls, dash)
}

func statistics(streams, webrtc, hls, dash int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("ProxyAuthorization") == "" {
			http.Error(w, "no token", http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, `{"localWebRTCViewers":%d,"localHLSViewers":%d,"localDASHViewers":%d,"localLiveStreams":%d}`, webrtc, hls, dash, streams)
	}
}

func TestPublishers(t *testing.T) {
	c := newCounted(t, "")
	c.is("no clients", 0, 0, cluster.CountedByConnections)
	if len(c.streams.databases) == 0 {
		t.Fatal("no database of an application was asked for")
	}
	database := c.streams.databases[0]
	c.streams.live = map[string][]string{database: {"a", "b"}}
	c.later(mongoEvery)
	c.is("two", 2, 0, cluster.CountedByConnections)
	c.streams.live = nil
	c.later(mongoEvery)
	c.is("none", 0, 0, cluster.CountedByConnections)

	// A failure is no count.
	c.streams.err = errors.New("away")
	c.from = nil
	c.later(mongoEvery)
	c.is("MongoDB is away, and connections are not known", -1, -1, "")
	c.streams.err = nil
	c.later(mongoTime)
	c.is("MongoDB is back", 0, -1, "")
	c.connections()

	// Counts of one cluster do not apply to another.
	c.streams = &fakeStreams{live: map[string][]string{database: {"x"}}}
	c.is("another MongoDB", 1, 0, cluster.CountedByConnections)
	c.address = "10.0.0.4"
	c.streams.live = nil
	c.is("another address", 0, 0, cluster.CountedByConnections)
	c.streams = nil
	c.is("no node: by the RTMP port", 0, 0, cluster.CountedByConnections)
	c.from = nil
	missing := c.is("no node, and connections are not known", -1, -1, "")
	must.Contain(t, "the reason", missing["publishers"].Error(), "not a cluster node")
}

func TestViewers(t *testing.T) {
	c := newCounted(t, serverKey)
	c.connections("10.0.0.50", "10.0.0.51", "10.0.0.9", "127.0.0.1")
	c.streams.nodes = []string{"10.0.0.9", "10.0.0.3", "not an address"}
	c.answer = figures(3, 2, 1)
	c.is("AMS reports", 0, 6, cluster.CountedByAMS)

	c.answer = nil
	c.is("AMS refuses", 0, 2, cluster.CountedByConnections)
	c.answer = figures(0, 0, 0)
	c.is("asked again", 0, 0, cluster.CountedByAMS)

	// If a response lacks a kind, as all of 2.4.3, the larger of it and the connections counts.
	c.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"localWebRTCViewers":1}`)) }
	c.is("not all kinds", 0, 2, cluster.CountedByConnections)
	c.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"localHLSViewers":3}`)) }
	c.is("not all kinds, but more", 0, 3, cluster.CountedByAMS)

	from := c.from
	c.from = nil
	c.is("not all kinds, and no connections", 0, -1, "")
	c.from = from

	// Other failures are retried at the next heartbeat: the server may start.
	c.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }
	c.is("no answer of AMS", 0, 2, cluster.CountedByConnections)
	c.answer = figures(1, 0, 0)
	c.is("an answer of AMS", 0, 1, cluster.CountedByAMS)

	// Unknown is not zero.
	c.answer = nil
	c.from = nil
	missing := c.is("no source", 0, -1, "")
	if text := missing["viewers"].Error(); !strings.Contains(text, "403") || strings.Contains(text, "a-secret-of-the-server") {
		t.Errorf("the reason: %s", text)
	}
}

// Without a key the server is not queried.
func TestViewersWithoutKey(t *testing.T) {
	c := newCounted(t, "")
	c.from = map[int][]string{5443: {"10.0.0.50"}}
	c.answer = figures(5, 0, 0)
	c.is("no key", 0, 1, cluster.CountedByConnections)
	must.Equal(t, "the server was asked (times)", c.asked, 0)
	c.settings(serverKey)
	c.is("a key", 0, 5, cluster.CountedByAMS)
}

// The other nodes fetch streams as viewers do.
func TestPeers(t *testing.T) {
	c := newCounted(t, "")
	c.connections("10.0.0.50", "10.0.0.9")
	c.streams.err = errors.New("away")
	c.is("MongoDB is away", 0, 2, cluster.CountedByConnections)
	c.streams.err, c.streams.nodes = nil, []string{"::ffff:10.0.0.9"}
	c.later(mongoTime)
	c.is("MongoDB is back", 0, 1, cluster.CountedByConnections)
	// The known ones stay meanwhile.
	c.streams.err = errors.New("away")
	c.is("away again", 0, 1, cluster.CountedByConnections)
}

// AMS keeps the document of a machine that crashed, and a load balancer may get its address (review night-shift A1).
func TestDeadPeers(t *testing.T) {
	for name, tt := range map[string]struct {
		age     time.Duration
		viewers int
	}{
		"alive":                         {0, 0},
		"alive, its clock is ahead":     {-5 * time.Second, 0},
		"died a week ago":               {7 * 24 * time.Hour, 5},
		"died, its clock was far ahead": {-7 * 24 * time.Hour, 5},
	} {
		c := newCounted(t, "")
		c.connections(slices.Repeat([]string{"10.0.0.50"}, 5)...)
		c.streams.nodes, c.streams.age = []string{"10.0.0.50", c.address}, tt.age
		c.is(name, 0, tt.viewers, cluster.CountedByConnections)
	}
}

// While MongoDB is away, a node may die, and its address become another machine's.
func TestPeersBeforeAnOutage(t *testing.T) {
	c := newCounted(t, "")
	c.connections(slices.Repeat([]string{"10.0.0.50"}, 5)...)
	c.streams.nodes = []string{"10.0.0.50", c.address}
	c.is("peers", 0, 0, cluster.CountedByConnections)
	c.streams.err = errors.New("MongoDB is away")
	for age, viewers := range map[time.Duration]int{askEvery: 0, 3 * askEvery: 5} {
		c.peersSeen = time.Now().Add(-age)
		if s, _ := c.count(t.Context(), openEvery, askEvery); s.Viewers == nil || *s.Viewers != viewers {
			t.Errorf("after %s: %s, want %d viewers", age, s.Left(), viewers)
		}
	}
}

// They may be viewers behind a proxy, so they are counted apart.
func TestPeersAreCounted(t *testing.T) {
	for name, tt := range map[string]struct {
		settings string
		network  error
		want     *int
	}{
		"no statistics":     {"", nil, new(3)},
		"statistics":        {serverKey, nil, new(1)}, // without RTMP viewers
		"connections apart": {"", errors.New("a network of its own"), nil},
	} {
		c := newCounted(t, tt.settings)
		c.answer, c.outside, c.idle = figures(0, 0, 0), tt.network, 2
		c.streams.nodes = []string{"10.0.0.9", c.address}
		c.from = map[int][]string{c.port: {"10.0.0.9", "10.0.0.9"}, 1935: {"10.0.0.9"}}
		s, _ := c.count(t.Context(), openEvery, askEvery)
		must.NoDiff(t, name, s.Peers, tt.want)
		must.Equal(t, name+": nothing is here: "+s.Left(), s.IsEmpty(), false)
	}
}

// The connections of a server with a network of its own are not seen: unknown, and not zero (review night-shift A2).
func TestServerWithItsOwnNetwork(t *testing.T) {
	c := newCounted(t, "")
	state, err := ams.State{Activity: ams.ActivityActive, MainPID: 7}, error(nil)
	c.State = func(context.Context) (ams.State, error) { return state, err }
	c.outside = errors.New("a network of its own")
	missing := c.is("a bridge", 0, -1, "")
	must.Contain(t, "the reason", missing["viewers"].Error(), "a network of its own")
	c.outside = nil
	c.later(askEvery)
	c.is("it listens", 0, 0, cluster.CountedByConnections)
	for range 60 {
		c.later(time.Second)
		c.is("later", 0, 0, cluster.CountedByConnections)
	}
	if c.checks != 2 || c.process != 7 {
		t.Errorf("checked %d times, last process %d", c.checks, c.process)
	}
	// The last known process is checked while the service manager does not answer.
	state, err = ams.State{}, errors.New("no bus")
	c.later(openEvery)
	c.is("the manager does not answer", 0, 0, cluster.CountedByConnections)
	if c.checks != 3 || c.process != 7 {
		t.Errorf("checked %d times, last process %d", c.checks, c.process)
	}
	c.outside = errors.New("a network of its own")
	c.later(openEvery)
	c.is("the server has moved", 0, -1, "")
	c.settings(serverKey)
	c.answer = figures(1, 0, 0)
	c.is("statistics", 0, 1, cluster.CountedByAMS)
}

// Without a readable installation counts are unknown, and it is read again.
func TestSessionsWithoutServer(t *testing.T) {
	c := newCounted(t, "")
	file := filepath.Join(c.root, ams.DefaultDir, "conf/red5.properties")
	must.OK(t, os.Rename(file, file+".away"))
	c.is("no file", -1, -1, "")
	must.OK(t, os.Rename(file+".away", file))
	c.later(time.Second)
	c.is("the file is back", 0, 0, cluster.CountedByConnections)
}

// Publishers are counted without MongoDB: a shutdown must not wait for a local count (review real-server S6, 167 s).
func TestPublishersWithoutMongo(t *testing.T) {
	c := newCounted(t, serverKey)
	c.answer = statistics(7, 1, 0, 0)
	c.streams.err = errors.New("MongoDB is away")
	c.is("AMS reports", 7, 1, cluster.CountedByAMS)

	// A machine that is no node uses its server's statistics.
	c.streams = nil
	c.is("no node", 7, 1, cluster.CountedByAMS)

	c = newCounted(t, "")
	c.streams.err = errors.New("MongoDB is away")
	c.from = map[int][]string{1935: {"10.0.0.60", "10.0.0.61", "127.0.0.1"}, c.port: {"10.0.0.50"}}
	c.is("no key: by the RTMP port", 3, 1, cluster.CountedByConnections)
	s, _ := c.count(t.Context(), openEvery, askEvery)
	must.Equal(t, "publishers by", s.PublishersBy, cluster.CountedByConnections)
	c.connections()
	c.is("no connections", 0, 0, cluster.CountedByConnections)
}

// The larger of both counts is used.
func TestLargerCount(t *testing.T) {
	c := newCounted(t, serverKey)
	c.answer = statistics(1, 0, 3, 0)
	c.is("the server knows of more", 1, 3, cluster.CountedByAMS)
	c.streams.live = map[string][]string{c.streams.databases[0]: {"a", "b"}}
	c.later(mongoEvery)
	c.is("MongoDB knows of more", 2, 3, cluster.CountedByAMS)
	c.streams.live = map[string][]string{c.streams.databases[0]: {"a"}}
	c.later(mongoEvery)
	c.is("both agree", 1, 3, cluster.CountedByAMS)
}

// The query scans a collection of each application: it is rare, and more frequent during a drain.
func TestMongoIsAskedRarely(t *testing.T) {
	asked := func(settings string, open, ask time.Duration) int {
		c := newCounted(t, settings)
		c.answer = figures(0, 0, 0)
		for range 45 { // besides, the time passes that the counts take
			c.count(t.Context(), open, ask)
			c.later(time.Second)
		}
		return c.streams.asked
	}
	must.Equal(t, "the server reports: asked (times)", asked(serverKey, openEvery, askEvery), 2)
	must.Equal(t, "connections: asked (times)", asked("", openEvery, askEvery), 2)
	if n := asked(serverKey, drainEvery, drainEvery); n < 9 || n > 15 {
		t.Errorf("it reports, and the node drains: asked %d times in 45 s", n)
	}
}

// A failure is not repeated at once: a count of a shutdown may have waited for that of a heartbeat.
func TestMongoIsNotAskedAgainAtOnce(t *testing.T) {
	c := newCounted(t, "")
	c.streams.err = errors.New("MongoDB is away")
	cutOff, cancel := context.WithCancel(t.Context())
	cancel()
	c.count(cutOff, openEvery, askEvery)
	for _, tt := range []struct {
		later time.Duration
		asked int
	}{{0, 2}, {0, 2}, {mongoTime, 3}} {
		c.later(tt.later)
		c.is("away", 0, 0, cluster.CountedByConnections)
		must.Equal(t, "asked (times)", c.streams.asked, tt.asked)
	}
	c.streams.err = nil
	c.later(mongoTime)
	s, _ := c.count(t.Context(), openEvery, askEvery)
	must.Equal(t, "back: publishers by", s.PublishersBy, cluster.CountedByMongoDB)
}

// A server that the service manager knows to be dead has no sessions, even if MongoDB still has some (C9).
func TestDeadServerHasNoSessions(t *testing.T) {
	c := newCounted(t, "")
	c.streams.live = map[string][]string{"liveapp": {"a"}}
	state := ams.State{Activity: ams.ActivityFailed}
	var err error
	c.State = func(context.Context) (ams.State, error) { return state, err }
	c.is("it is there, beside its unit", 1, 0, cluster.CountedByConnections)
	c.server.Close()
	c.is("failed", 0, 0, cluster.CountedByService)
	// A server whose port was edited still uses the old one: no count, and no session is cut.
	for name, s := range map[string]ams.State{
		"about to be started again": {Activity: ams.ActivityActivating, Sub: "auto-restart"},
		"stops":                     {Activity: ams.ActivityDeactivating, MainPID: 7},
		"runs":                      {Activity: ams.ActivityActive, MainPID: 7},
		"unknown":                   {Activity: ams.ActivityUnknown},
	} {
		state = s
		c.is(name, 1, -1, "")
		c.from = map[int][]string{1935: {"10.0.0.60"}} // an encoder, whose port is still the server's
		c.is(name+", an encoder", 1, -1, "")
		c.connections()
	}
	state = ams.State{Activity: ams.ActivityFailed}
	c.from = map[int][]string{1935: {"10.0.0.60"}}
	c.is("failed, an encoder: it runs in another way", 1, -1, "")
	c.connections()
	state, err = ams.State{Activity: ams.ActivityInactive}, errors.New("no bus")
	c.streams.err = errors.New("MongoDB is away")
	c.later(mongoEvery)
	c.is("the manager does not answer", -1, -1, "")
	c.connections("10.0.0.50")
	c.is("a connection", 0, 1, cluster.CountedByConnections)
}

// The answer of a real Community Edition has negative counts: not counted.
func TestRealStatistics(t *testing.T) {
	answer, err := os.ReadFile("testdata/system-resources-2.17.1.json")
	must.OK(t, err)
	c := newCounted(t, serverKey)
	c.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(answer) }
	c.streams.err = errors.New("MongoDB is away")
	c.is("1 publisher, 3 viewers", 1, 3, cluster.CountedByAMS)
}

// Behind a proxy on the machine there are no remote connections, but a drain must count the viewers.
func TestViewersBehindAProxyOfTheMachine(t *testing.T) {
	c := newCounted(t, "")
	c.connections("127.0.0.1", "127.0.0.1", "127.0.0.1")
	c.is("all come through the proxy", 0, 3, cluster.CountedByConnections)
	c.connections("127.0.0.1", "10.0.0.50")
	c.is("one does not", 0, 1, cluster.CountedByConnections)
	c.streams.nodes = []string{c.address}
	c.connections(c.address, c.address)
	c.later(mongoEvery)
	c.is("it uses this node's address", 0, 2, cluster.CountedByConnections)
	c.connections()
	c.is("no clients", 0, 0, cluster.CountedByConnections)

	// The agent's own serving checks stay open while the server hangs.
	c.Own = func() int { return 2 }
	c.connections("127.0.0.1", "127.0.0.1", "127.0.0.1")
	c.is("two of them are the agent", 0, 1, cluster.CountedByConnections)
	c.connections("127.0.0.1", "127.0.0.1")
	c.is("all of them are the agent", 0, 0, cluster.CountedByConnections)
}

// Idle connections are said where they are left out of a count.
func TestIdleConnections(t *testing.T) {
	c := newCounted(t, serverKey)
	c.idle = 4
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		text   string
	}{
		"connections": {nil, "no publishers and no viewers left, 4 idle connections not counted"},
		"AMS":         {figures(0, 0, 0), "no publishers and no viewers left"},
	} {
		c.answer = tt.answer
		s, _ := c.count(t.Context(), openEvery, askEvery)
		must.Equal(t, "counted by "+name, s.Left(), tt.text)
		c.later(mongoEvery)
	}
}

// The server's figures do not include RTMP viewers.
func TestRTMPViewers(t *testing.T) {
	for _, tt := range []struct {
		name                string
		edge, token         bool
		streams, rtmp       int
		publishers, viewers int
		by                  cluster.CountedBy
	}{
		{"no clients", false, true, 0, 0, 0, 0, cluster.CountedByAMS},
		{"a viewer", false, true, 0, 1, 0, 1, cluster.CountedByAMS},
		{"an encoder", false, true, 1, 1, 1, 0, cluster.CountedByAMS},
		{"an encoder and a viewer", false, true, 1, 2, 1, 1, cluster.CountedByAMS},
		{"an encoder by another way", false, true, 1, 0, 1, 0, cluster.CountedByAMS},
		{"an edge, which fetched the stream", true, true, 1, 1, 1, 1, cluster.CountedByAMS},
		{"without statistics", false, false, 0, 2, 2, 0, cluster.CountedByConnections},
		{"an edge without statistics", true, false, 0, 2, 0, 2, cluster.CountedByConnections},
		{"published to an edge", true, true, -1, 2, 1, 1, cluster.CountedByAMS},
		{"published to an edge without statistics", true, false, -1, 2, 1, 1, cluster.CountedByConnections},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lines := "rtmp.port=1935\nrtmps.enabled=true\nrtmps.port=1936\n"
			if tt.token {
				lines += serverKey
			}
			c := newCounted(t, lines)
			c.Edge = func() bool { return tt.edge }
			if tt.streams < 0 { // which MongoDB also has
				tt.streams = -tt.streams
				c.streams.live = map[string][]string{"liveapp": make([]string, tt.streams)}
			}
			if tt.token {
				c.answer = statistics(tt.streams, 0, 0, 0)
			}
			// Half of them by TLS.
			c.from = map[int][]string{
				1935: slices.Repeat([]string{"192.0.2.7"}, tt.rtmp/2), 1936: slices.Repeat([]string{"192.0.2.7"}, tt.rtmp-tt.rtmp/2),
			}
			c.is("counted", tt.publishers, tt.viewers, tt.by)
		})
	}
}
