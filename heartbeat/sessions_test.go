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

func (f *fakeStreams) AMSNodes(ctx context.Context) ([]cluster.AMSNode, error) {
	f.askedPeer++
	if end, ok := ctx.Deadline(); !ok || time.Until(end) > besideTime {
		return nil, errors.New("asked for longer than a node that shuts down can wait")
	}
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
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	must.OK(t, err)
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
	must.OK(c.t, os.WriteFile(filepath.Join(c.root, ams.DefaultDir, "conf/red5.properties"), []byte(text), 0o644))
}

// connections are established ones from these addresses to the server's port.
func (c *counted) connections(from ...string) {
	c.t.Helper()
	c.established(map[int][]string{c.port: from})
}

// established are connections by our port.
func (c *counted) established(from map[int][]string) {
	c.t.Helper()
	var b strings.Builder
	b.WriteString("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n")
	i := 0
	for port, addresses := range from {
		for _, a := range addresses {
			ip := net.ParseIP(a).To4()
			fmt.Fprintf(&b, "%4d: 0300000A:%04X %02X%02X%02X%02X:C001 01 00000000:00000000 00:00000000 00000000 0 0 1\n", i, port, ip[3], ip[2], ip[1], ip[0])
			i++
		}
	}
	dir := filepath.Join(c.root, "proc/net")
	must.OK(c.t, os.MkdirAll(dir, 0o755))
	must.OK(c.t, os.WriteFile(filepath.Join(dir, "tcp"), []byte(b.String()), 0o644))
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

	// A failure is no count, and is not kept where nothing else counts.
	asked := c.streams.asked
	c.streams.err = errors.New("away")
	c.later(11 * time.Second)
	tcp := filepath.Join(c.root, "proc/net/tcp")
	must.OK(t, os.Rename(tcp, tcp+".away"))
	c.is("MongoDB is away, and connections are not known", -1, -1, "")
	c.is("MongoDB is still away", -1, -1, "")
	c.streams.err = nil
	c.is("MongoDB is back", 0, -1, "")
	if n := c.streams.asked - asked; n != 3 {
		t.Errorf("asked %d times", n)
	}
	must.OK(t, os.Rename(tcp+".away", tcp))

	// What was counted in one cluster says nothing of another.
	c.streams = &fakeStreams{live: map[string][]string{database: {"x"}}}
	c.is("another MongoDB", 1, 0, cluster.CountedByConnections)
	c.address = "10.0.0.4"
	c.streams.live = nil
	c.is("another address", 0, 0, cluster.CountedByConnections)
	c.streams = nil
	c.is("no node: the RTMP port tells", 0, 0, cluster.CountedByConnections)
	must.OK(t, os.Rename(tcp, tcp+".away"))
	for _, m := range c.is("no node, and connections are not known", -1, -1, "") {
		if m.What == whatPublishers && !errors.Is(m.Err, errNotMember) {
			t.Errorf("%v", m)
		}
	}
	must.OK(t, os.Rename(tcp+".away", tcp))
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

	// Of an answer that leaves a kind out, as all of 2.4.3, and the connections the larger counts.
	c.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"localWebRTCViewers":1}`)) }
	c.is("not all kinds", 0, 2, cluster.CountedByConnections)
	c.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"localHLSViewers":3}`)) }
	c.is("not all kinds, but more", 0, 3, cluster.CountedByAMS)
	c.later(time.Minute)

	// What is no refusal is asked again at the next beat: a server that starts.
	c.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }
	c.is("no answer of AMS", 0, 2, cluster.CountedByConnections)
	c.answer = figures(1, 0, 0)
	c.is("an answer of AMS", 0, 1, cluster.CountedByAMS)

	// Nobody can tell: that is not zero.
	c.answer = nil
	must.OK(t, os.Remove(filepath.Join(c.root, "proc/net/tcp")))
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
	c.later(installEvery - time.Second)
	c.is("not looked at yet", 0, 1, cluster.CountedByConnections)
	c.later(2 * time.Second)
	c.is("a key", 0, 5, cluster.CountedByAMS)

	// Who drains does not wait for that.
	c.settings("")
	c.later(drainInstall)
	if s, _ := c.CountNow(t.Context()); s.By != cluster.CountedByConnections {
		t.Errorf("while it drains: %+v", s)
	}
}

// The other nodes fetch streams as viewers do. Who does not tell them is asked
// again, and not at every beat.
func TestPeers(t *testing.T) {
	c := newCounted(t, "")
	c.connections("10.0.0.50", "10.0.0.9")
	c.streams.err = errors.New("away")
	for range 5 {
		c.is("MongoDB is away", 0, 2, cluster.CountedByConnections)
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
	c.is("away again", 0, 0, cluster.CountedByConnections)
}

// An installation that cannot be read tells nothing, and is looked at again.
func TestSessionsWithoutServer(t *testing.T) {
	c := newCounted(t, "")
	file := filepath.Join(c.root, ams.DefaultDir, "conf/red5.properties")
	must.OK(t, os.Rename(file, file+".away"))
	c.is("no file", -1, -1, "")
	must.OK(t, os.Rename(file+".away", file))
	c.later(time.Second)
	c.is("the file is back", 0, 0, cluster.CountedByConnections)
}

// Publishers are told without MongoDB: a machine that goes down must not wait for
// what can be counted here (review real-server S6, 167 s).
func TestPublishersWithoutMongo(t *testing.T) {
	c := newCounted(t, serverKey)
	c.answer = statistics(7, 1, 0, 0)
	c.streams.err = errors.New("MongoDB is away")
	c.is("AMS tells", 7, 1, cluster.CountedByAMS)
	asked := c.streams.asked
	c.later(mongoRetry - time.Second)
	c.is("a MongoDB that is away is left alone", 7, 1, cluster.CountedByAMS)
	if c.streams.asked != asked {
		t.Error("a MongoDB that is away was asked at the next beat")
	}

	// A machine that is no node has its own server's word.
	c.streams = nil
	c.is("no node", 7, 1, cluster.CountedByAMS)

	c = newCounted(t, "")
	c.streams.err = errors.New("MongoDB is away")
	c.established(map[int][]string{1935: {"10.0.0.60", "10.0.0.61", "127.0.0.1"}, c.port: {"10.0.0.50"}})
	c.is("AMS lets nobody ask, so the RTMP port tells", 3, 1, cluster.CountedByConnections)
	s, _ := c.Count(t.Context())
	if s.PublishersBy != cluster.CountedByConnections {
		t.Errorf("publishers by %q", s.PublishersBy)
	}
	c.connections()
	c.is("nobody is connected", 0, 0, cluster.CountedByConnections)
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

// The query of all streams is rare where the server itself reports its own (review
// real-mongodb 3), more often while a node drains, and as often as before where
// only connections are known.
func TestMongoIsAskedRarely(t *testing.T) {
	asked := func(settings string, count func(*counted) func(context.Context) (cluster.Sessions, []Missing)) int {
		c := newCounted(t, settings)
		c.answer = figures(0, 0, 0)
		for range 60 {
			count(c)(t.Context())
			c.later(time.Second)
		}
		return c.streams.asked
	}
	often := func(c *counted) func(context.Context) (cluster.Sessions, []Missing) { return c.Count }
	drain := func(c *counted) func(context.Context) (cluster.Sessions, []Missing) { return c.CountNow }
	for name, got := range map[string][2]int{
		"the server reports": {asked(serverKey, often), 2}, "it reports, and the node drains": {asked(serverKey, drain), 12},
		"connections": {asked("", often), 6}, "connections, and the node drains": {asked("", drain), 60},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: asked %d times in a minute, want %d", name, got[0], got[1])
		}
	}
}

// A server that its service manager knows to be dead has no sessions, whatever
// MongoDB still says (C9). A manager that does not know, or a server that runs
// beside its unit, proves nothing.
func TestDeadServerHasNoSessions(t *testing.T) {
	c := newCounted(t, "")
	must.OK(t, os.Remove(filepath.Join(c.root, "proc/net/tcp")))
	c.streams.err = errors.New("MongoDB is away")
	state := ams.State{Activity: ams.ActivityFailed}
	var err error
	c.State = func(context.Context) (ams.State, error) { return state, err }
	c.is("failed", 0, 0, cluster.CountedByService)
	for name, s := range map[string]ams.State{
		"about to be started again": {Activity: ams.ActivityActivating, Sub: "auto-restart"},
		"stops":                     {Activity: ams.ActivityDeactivating, MainPID: 7},
		"runs":                      {Activity: ams.ActivityActive, MainPID: 7},
		"unknown":                   {Activity: ams.ActivityUnknown},
	} {
		c.later(time.Minute)
		state = s
		c.is(name, -1, -1, "")
	}
	c.later(time.Minute)
	state, err = ams.State{Activity: ams.ActivityInactive}, errors.New("no bus")
	c.is("the manager does not answer", -1, -1, "")

	// Who drains does not go by a crashed server's last documents.
	c = newCounted(t, "")
	c.is("alive", 0, 0, cluster.CountedByConnections)
	c.streams.live = map[string][]string{c.streams.databases[0]: {"a"}}
	c.State = func(context.Context) (ams.State, error) { return ams.State{Activity: ams.ActivityFailed}, nil }
	if s, _ := c.CountNow(t.Context()); s.By != cluster.CountedByService || *s.Publishers != 0 {
		t.Errorf("dead: %+v", s)
	}
	c.connections("10.0.0.50")
	if s, _ := c.CountNow(t.Context()); s.By != cluster.CountedByConnections || *s.Viewers != 1 || *s.Publishers != 1 {
		t.Errorf("started by hand, beside its unit: %+v", s)
	}
}

// listenAt listens at a port; 0 is one that is free.
func listenAt(t *testing.T, port int) (net.Listener, int) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
	must.OK(t, err)
	return l, l.Addr().(*net.TCPAddr).Port
}

// Who edits the port of a server that runs cuts nobody: it listens where it did until its next start.
func TestPortEditedWhileTheServerRuns(t *testing.T) {
	c := newCounted(t, serverKey)
	c.is("the server refuses", 0, 0, cluster.CountedByConnections)
	l, free := listenAt(t, 0)
	must.OK(t, l.Close())
	old := c.port
	c.port = free
	c.settings(serverKey)
	c.established(map[int][]string{old: {"10.0.0.50", "10.0.0.51"}, 1935: {"10.0.0.60"}})
	c.later(installEvery)
	c.is("the port was edited", 1, 2, cluster.CountedByConnections)
	c.answer = figures(3, 0, 0)
	c.later(refusedFor)
	c.is("and the server tells", 0, 3+1, cluster.CountedByAMS) // who watches by RTMP is not told
	c.answer = nil

	l, _ = listenAt(t, free)
	defer l.Close()
	c.later(installEvery)
	c.established(map[int][]string{old: {"10.0.0.50"}, free: {"10.0.0.52", "10.0.0.53"}})
	c.is("it listens at the new port", 0, 2, cluster.CountedByConnections)
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

	// The agent asks whether the applications serve, and a server that hangs keeps it waiting.
	c.Own = func() int { return 2 }
	c.connections("127.0.0.1", "127.0.0.1", "127.0.0.1")
	c.is("two of them are the agent", 0, 1, cluster.CountedByConnections)
	c.connections("127.0.0.1", "127.0.0.1")
	c.is("all of them are the agent", 0, 0, cluster.CountedByConnections)
}

// Who watches by RTMP is in none of the server's figures.
func TestRTMPViewers(t *testing.T) {
	for _, tt := range []struct {
		name                string
		edge, token         bool
		streams, rtmp       int
		publishers, viewers int
		by                  cluster.CountedBy
	}{
		{"nobody", false, true, 0, 0, 0, 0, cluster.CountedByAMS},
		{"a viewer", false, true, 0, 1, 0, 1, cluster.CountedByAMS},
		{"an encoder", false, true, 1, 1, 1, 0, cluster.CountedByAMS},
		{"an encoder and a viewer", false, true, 1, 2, 1, 1, cluster.CountedByAMS},
		{"an encoder by another way", false, true, 1, 0, 1, 0, cluster.CountedByAMS},
		{"an edge, which fetched the stream", true, true, 1, 1, 1, 1, cluster.CountedByAMS},
		{"without the server's word", false, false, 0, 2, 2, 0, cluster.CountedByConnections},
		{"an edge without the server's word", true, false, 0, 2, 0, 2, cluster.CountedByConnections},
		{"published to an edge", true, true, -1, 2, 1, 1, cluster.CountedByAMS},
		{"published to an edge without the server's word", true, false, -1, 2, 1, 1, cluster.CountedByConnections},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lines := "rtmp.port=1935\n"
			if tt.token {
				lines += serverKey
			}
			c := newCounted(t, lines)
			c.Edge = func() bool { return tt.edge }
			if tt.streams < 0 { // of which MongoDB knows, too
				tt.streams = -tt.streams
				c.streams.live = map[string][]string{"liveapp": make([]string, tt.streams)}
			}
			if tt.token {
				c.answer = statistics(tt.streams, 0, 0, 0)
			}
			c.established(map[int][]string{1935: slices.Repeat([]string{"192.0.2.7"}, tt.rtmp)})
			c.is("counted", tt.publishers, tt.viewers, tt.by)
		})
	}
	// The kernel walks its whole table for it: rarely, but where somebody waits for the answer.
	c := newCounted(t, "rtmp.port=1935\n"+serverKey)
	c.answer = statistics(0, 0, 0, 0)
	viewers := func(when string, count func(context.Context) (cluster.Sessions, []Missing), want int) {
		t.Helper()
		if s, missing := count(t.Context()); s.Viewers == nil || *s.Viewers != want {
			t.Errorf("%s: %v, %v; want %d", when, s.Viewers, missing, want)
		}
	}
	viewers("before", c.Count, 0)
	c.established(map[int][]string{1935: {"192.0.2.7"}})
	c.later(rtmpEvery - time.Second)
	viewers("a minute is not over", c.Count, 0)
	viewers("who waits", c.CountNow, 1)
	c.established(nil)
	c.later(rtmpEvery)
	viewers("a minute later", c.Count, 0)
}
