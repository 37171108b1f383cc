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
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

// fakeStreams is the cluster's memory of streams and nodes.
type fakeStreams struct {
	live      map[string][]string // by database
	nodes     []string            // addresses
	err       error
	asked     int
	askedPeer int
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

func (f *fakeStreams) AMSNodes(context.Context) ([]cluster.AMSNode, error) {
	f.askedPeer++
	var out []cluster.AMSNode
	for _, a := range f.nodes {
		out = append(out, cluster.AMSNode{ID: a, IP: a})
	}
	return out, f.err
}

// counted is a machine whose sessions are counted.
type counted struct {
	t       *testing.T
	root    string
	now     time.Time
	streams *fakeStreams // nil: no node
	address string
	answer  func(http.ResponseWriter, *http.Request)
	asked   int // AMS's statistics
	port    int
	*SessionCounter
}

func newCounted(t *testing.T, settings string) *counted {
	t.Helper()
	c := &counted{t: t, root: t.TempDir(), now: time.Unix(1_800_000_000, 0), streams: &fakeStreams{}, address: "10.0.0.3"}
	if err := os.CopyFS(filepath.Join(c.root, ams.DefaultDir), os.DirFS("../testdata/trees/3.0")); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.asked++
		if c.answer == nil {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		c.answer(w, r)
	}))
	t.Cleanup(srv.Close)
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if c.port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	c.settings(settings)
	c.connections()
	c.SessionCounter = &SessionCounter{
		Open: func() (*ams.Installation, error) { return ams.Open(c.root, "") },
		Streams: func() (Streams, string) {
			if c.streams == nil {
				return nil, ""
			}
			return c.streams, c.address
		},
		Root: c.root, Now: func() time.Time { return c.now },
	}
	return c
}

func (c *counted) settings(lines string) {
	c.t.Helper()
	text := fmt.Sprintf("http.host=127.0.0.1\nhttp.port=%d\n%s", c.port, lines)
	if err := os.WriteFile(filepath.Join(c.root, ams.DefaultDir, "conf/red5.properties"), []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// connections are established ones from these addresses to the server's port.
func (c *counted) connections(from ...string) {
	c.t.Helper()
	var b strings.Builder
	b.WriteString("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n")
	for i, a := range from {
		ip := net.ParseIP(a).To4()
		fmt.Fprintf(&b, "%4d: 0300000A:%04X %02X%02X%02X%02X:C001 01 00000000:00000000 00:00000000 00000000 0 0 1\n", i, c.port, ip[3], ip[2], ip[1], ip[0])
	}
	dir := filepath.Join(c.root, "proc/net")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tcp"), []byte(b.String()), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// is counts, and fails where the figures are others; -1 is not known.
func (c *counted) is(when string, publishers, viewers int, by cluster.CountedBy) []Missing {
	c.t.Helper()
	c.connectedAt = time.Time{} // how long a count of connections holds has a test of its own
	s, missing := c.Count(c.t.Context())
	value := func(n *int) int {
		if n == nil {
			return -1
		}
		return *n
	}
	if p, v := value(s.Publishers), value(s.Viewers); p != publishers || v != viewers || s.By != by {
		c.t.Errorf("%s: %d publishers, %d viewers by %q, want %d, %d, %q; missing %v", when, p, v, s.By, publishers, viewers, by, missing)
	}
	for what, unknown := range map[string]bool{whatPublishers: publishers < 0, whatViewers: viewers < 0} {
		named := false
		for _, m := range missing {
			named = named || m.What == what
		}
		if named != unknown {
			c.t.Errorf("%s: %s is named as missing: %v", when, what, named)
		}
	}
	return missing
}

func (c *counted) later(d time.Duration) { c.now = c.now.Add(d) }

const serverKey = "server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=a-secret-of-the-server\n"

func figures(webrtc, hls, dash int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("ProxyAuthorization") == "" {
			http.Error(w, "no token", http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, `{"localWebRTCViewers":%d,"localHLSViewers":%d,"localDASHViewers":%d,"localLiveStreams":7}`, webrtc, hls, dash)
	}
}

func TestPublishers(t *testing.T) {
	c := newCounted(t, "")
	c.is("nobody", 0, 0, cluster.CountedByConnections)
	if len(c.streams.databases) == 0 {
		t.Fatal("no database of an application was asked for")
	}
	database := c.streams.databases[0]
	c.streams.live = map[string][]string{database: {"a", "b"}}
	c.later(9 * time.Second)
	c.is("still that count", 0, 0, cluster.CountedByConnections)
	if s, _ := c.CountNow(t.Context()); *s.Publishers != 2 {
		t.Errorf("who drains was told %d publishers", *s.Publishers)
	}
	c.streams.live = nil
	c.later(11 * time.Second)
	c.is("too old", 0, 0, cluster.CountedByConnections)

	// A failure is not kept, and is no count.
	asked := c.streams.asked
	c.streams.err = errors.New("away")
	c.later(11 * time.Second)
	c.is("MongoDB is away", -1, 0, cluster.CountedByConnections)
	c.is("MongoDB is still away", -1, 0, cluster.CountedByConnections)
	c.streams.err = nil
	c.is("MongoDB is back", 0, 0, cluster.CountedByConnections)
	if n := c.streams.asked - asked; n != 3 {
		t.Errorf("asked %d times", n)
	}

	// What was counted in one cluster says nothing of another.
	c.streams = &fakeStreams{live: map[string][]string{database: {"x"}}}
	c.is("another MongoDB", 1, 0, cluster.CountedByConnections)
	c.address = "10.0.0.4"
	c.streams.live = nil
	c.is("another address", 0, 0, cluster.CountedByConnections)
	c.streams = nil
	for _, m := range c.is("no node", -1, 0, cluster.CountedByConnections) {
		if !errors.Is(m.Err, errNotMember) {
			t.Errorf("%v", m)
		}
	}
	// The clock is set back: an old count is not good for ever.
	c.streams = &fakeStreams{}
	c.is("again", 0, 0, cluster.CountedByConnections)
	c.streams.live = map[string][]string{database: {"y"}}
	c.later(-time.Hour)
	c.is("in the past", 1, 0, cluster.CountedByConnections)
}

func TestViewers(t *testing.T) {
	c := newCounted(t, serverKey)
	c.connections("10.0.0.50", "10.0.0.51", "10.0.0.9", "127.0.0.1")
	c.streams.nodes = []string{"10.0.0.9", "10.0.0.3", "not an address"}
	c.answer = figures(3, 2, 1)
	c.is("AMS tells", 0, 6, cluster.CountedByAMS)

	// It refuses: then it is left alone for a minute, and asked again.
	c.answer = nil
	c.is("AMS refuses", 0, 2, cluster.CountedByConnections)
	asked := c.asked
	c.answer = figures(0, 0, 0)
	c.later(59 * time.Second)
	c.is("a refusal is kept", 0, 2, cluster.CountedByConnections)
	if c.asked != asked {
		t.Error("a server that refused was asked at once")
	}
	c.later(2 * time.Second)
	c.is("asked again", 0, 0, cluster.CountedByAMS)

	// An answer that leaves a kind out is no count.
	c.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"localWebRTCViewers":3}`)) }
	c.is("not all kinds", 0, 2, cluster.CountedByConnections)
	c.later(time.Minute)

	// What is no refusal is asked again at the next beat: a server that starts.
	c.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }
	c.is("no answer of AMS", 0, 2, cluster.CountedByConnections)
	c.answer = figures(1, 0, 0)
	c.is("an answer of AMS", 0, 1, cluster.CountedByAMS)

	// Nobody can tell: that is not zero.
	c.answer = nil
	if err := os.Remove(filepath.Join(c.root, "proc/net/tcp")); err != nil {
		t.Fatal(err)
	}
	missing := c.is("nobody can tell", 0, -1, "")
	if len(missing) != 1 || !errors.Is(missing[0].Err, ams.ErrForbidden) {
		t.Errorf("the reasons: %v", missing)
	}
	for _, m := range missing {
		if strings.Contains(m.Err.Error(), "a-secret-of-the-server") {
			t.Errorf("the secret is in %v", m.Err)
		}
	}
}

// Without a key AMS is not even asked, until its settings have one.
func TestViewersWithoutKey(t *testing.T) {
	c := newCounted(t, "")
	c.connections("10.0.0.50")
	c.answer = figures(5, 0, 0)
	c.is("no key", 0, 1, cluster.CountedByConnections)
	if c.asked != 0 {
		t.Errorf("asked %d times", c.asked)
	}
	c.settings(serverKey)
	c.later(30 * time.Second)
	c.is("not looked at yet", 0, 1, cluster.CountedByConnections)
	c.later(31 * time.Second)
	c.is("a key", 0, 5, cluster.CountedByAMS)
}

// The other nodes fetch streams as viewers do. Who does not tell them is asked
// again, and not at every beat.
func TestPeers(t *testing.T) {
	c := newCounted(t, "")
	c.connections("10.0.0.50", "10.0.0.9")
	c.streams.err = errors.New("away")
	for range 5 {
		c.is("MongoDB is away", -1, 2, cluster.CountedByConnections)
		c.later(time.Second)
	}
	if c.streams.askedPeer != 1 {
		t.Errorf("asked %d times in five seconds", c.streams.askedPeer)
	}
	c.streams.err, c.streams.nodes = nil, []string{"::ffff:10.0.0.9"}
	c.later(10 * time.Second)
	c.is("MongoDB is back", 0, 1, cluster.CountedByConnections)
	c.streams.nodes = nil
	c.later(59 * time.Second)
	c.is("known", 0, 1, cluster.CountedByConnections)
	c.later(2 * time.Second)
	c.is("another look", 0, 2, cluster.CountedByConnections)
	// Another cluster has other nodes.
	c.streams = &fakeStreams{nodes: []string{"10.0.0.50", "10.0.0.9"}}
	c.is("another MongoDB", 0, 0, cluster.CountedByConnections)
	// While it is away those that are known stay.
	c.streams.err = errors.New("away")
	c.later(2 * time.Minute)
	c.is("away again", -1, 0, cluster.CountedByConnections)
}

// An installation that cannot be read tells nothing, and is looked at again.
func TestSessionsWithoutServer(t *testing.T) {
	c := newCounted(t, "")
	file := filepath.Join(c.root, ams.DefaultDir, "conf/red5.properties")
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	c.is("no file", -1, -1, "")
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	c.later(time.Second)
	c.is("the file is back", 0, 0, cluster.CountedByConnections)
}

// While MongoDB is away, AMS itself tells what it takes in: a machine that goes
// down then must not wait for what nobody can count.
func TestPublishersWithoutMongo(t *testing.T) {
	c := newCounted(t, serverKey)
	c.answer = figures(1, 0, 0)
	c.streams.err = errors.New("MongoDB is away")
	c.is("AMS tells", 7, 1, cluster.CountedByAMS)
	c.streams.err = nil
	c.is("MongoDB is back", 0, 1, cluster.CountedByAMS)

	// A machine that is no node has no publishers to tell of.
	c.streams = nil
	c.is("no node", -1, 1, cluster.CountedByAMS)

	c = newCounted(t, "")
	c.streams.err = errors.New("MongoDB is away")
	c.is("AMS lets nobody ask", -1, 0, cluster.CountedByConnections)
}

// The kernel walks its whole table for a count of connections: a beat every
// second must not make it do so. Who drains wants to know, and is told.
func TestConnectionsAreCountedNowAndThen(t *testing.T) {
	c := newCounted(t, "")
	viewers := func(count func(context.Context) (cluster.Sessions, []Missing)) int {
		t.Helper()
		s, missing := count(t.Context())
		if s.Viewers == nil {
			t.Fatalf("not counted: %v", missing)
		}
		return *s.Viewers
	}
	c.connections("10.0.0.50", "10.0.0.51")
	if n := viewers(c.Count); n != 2 {
		t.Errorf("%d viewers", n)
	}
	c.connections()
	if n := viewers(c.Count); n != 2 {
		t.Errorf("%d viewers, counted again at once", n)
	}
	if n := viewers(c.CountNow); n != 0 {
		t.Errorf("%d viewers for who drains", n)
	}
	c.connections("10.0.0.50")
	c.later(connectionsEvery)
	if n := viewers(c.Count); n != 1 {
		t.Errorf("%d viewers after a while", n)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if s, missing := c.CountNow(ended); s.Viewers != nil || len(missing) == 0 {
		t.Errorf("a count that was cut short: %+v", s)
	}
}

// A server that starts refuses what it answers a moment later: a drain must not go
// by its connections for a minute.
func TestCountNowAsksAgain(t *testing.T) {
	c := newCounted(t, serverKey)
	c.is("AMS starts, and refuses", 0, 0, cluster.CountedByConnections)
	c.answer = figures(1, 0, 0)
	c.is("a refusal is kept", 0, 0, cluster.CountedByConnections)
	s, _ := c.CountNow(t.Context())
	if s.Viewers == nil || *s.Viewers != 1 || s.By != cluster.CountedByAMS {
		t.Errorf("for who drains: %+v", s)
	}
}

// Where a proxy on the machine itself stands before AMS, nobody is connected from
// elsewhere, and a drain must not take that for nobody.
func TestViewersBehindAProxyOfTheMachine(t *testing.T) {
	c := newCounted(t, "")
	c.connections("127.0.0.1", "127.0.0.1", "127.0.0.1")
	c.is("all come through the proxy", 0, 3, cluster.CountedByConnections)
	c.connections("127.0.0.1", "10.0.0.50")
	c.is("one does not", 0, 1, cluster.CountedByConnections)
	c.connections()
	c.is("nobody", 0, 0, cluster.CountedByConnections)
}
