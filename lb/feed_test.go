// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lb"
)

// world is a cluster, as a look finds it.
type world struct {
	mu    sync.Mutex
	nodes []cluster.Node
	err   error
	seq   int64
	began time.Time // the first look
	// silent is how long a node had sent nothing at the first look, by id.
	silent map[string]time.Duration
	// agentsOnly: their servers write documents all the same.
	agentsOnly bool
	// documents are of servers without an agent.
	documents []cluster.AMSNode
	// closed has what an attempt to connect to an address ends with; the others have an open port.
	closed map[netip.Addr]error
	dialed []netip.Addr
}

func (w *world) dial(_ context.Context, to netip.AddrPort) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dialed = append(w.dialed, to.Addr())
	return w.closed[to.Addr()]
}

// local puts a member at 127.0.0.N.
func local(m *cluster.Member) {
	var n int
	_, _ = fmt.Sscanf(m.Node.ID[1:], "%d", &n)
	m.Node.IP = fmt.Sprintf("127.0.0.%d", n)
}

func (w *world) set(members ...cluster.Member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes, w.err = nil, nil
	for _, m := range members {
		w.nodes = append(w.nodes, *m.Node)
	}
}

func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

// Look finds each node with a fresh heartbeat and a fresh document of its server.
func (w *world) Look(context.Context) (cluster.Look, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return cluster.Look{}, w.err
	}
	w.seq++
	at := time.Now()
	if w.began.IsZero() {
		w.began = at
	}
	l := cluster.Look{ServerTime: at, At: at, Nodes: slices.Clone(w.nodes), AMS: slices.Clone(w.documents)}
	for i := range l.Nodes {
		n := &l.Nodes[i]
		last := at
		n.Seq, n.Interval = w.seq, seconds.Duration(5*time.Second)
		if silent := w.silent[n.ID]; silent > 0 {
			n.Seq, last = 1, w.began.Add(-silent)
		}
		n.UpdatedAt = last
		if w.agentsOnly {
			last = at
		}
		l.AMS = append(l.AMS, cluster.AMSNode{ID: n.IP, IP: n.IP, LastUpdate: last})
	}
	return l, nil
}

// stored is a state directory.
type stored struct {
	b   []byte
	err error
}

func (s *stored) Load() ([]byte, error) { return s.b, s.err }

func (s *stored) Save(b []byte) error {
	if s.err == nil {
		s.b = b
	}
	return s.err
}

func newFeed(t *testing.T, w *world, s *stored, change ...func(*lb.Options)) *lb.Feed {
	t.Helper()
	if s == nil {
		s = &stored{}
	}
	o := lb.Options{Looker: w, Store: s, Log: slog.New(slog.DiscardHandler), Now: time.Now, Dial: w.dial}
	for _, c := range change {
		c(&o)
	}
	return lb.NewFeed(o)
}

func listed(f *lb.Feed) lb.List {
	list, _ := f.List()
	return list
}

func servers(f *lb.Feed) []string { return ids(listed(f).Servers) }

// A balance that starts while MongoDB is away adds no node that ended before that, and keeps the others of its list.
func TestFeedStartsWithoutMongoDB(t *testing.T) {
	w, s := &world{}, &stored{}
	w.set(member("e1", "edge", 0), member("e2", "edge", 0))
	must.OK(t, newFeed(t, w, s).Look(t.Context()))
	w.fail(errors.New("away"))
	f := newFeed(t, w, s)
	_ = f.Look(t.Context())
	w.set(member("e1", "edge", 0), member("e2", "edge", 0), member("e3", "edge", 0))
	w.silent = map[string]time.Duration{"e2": 20 * time.Second, "e3": 10 * time.Minute}
	must.OK(t, f.Look(t.Context()))
	must.NoDiff(t, "servers", servers(f), []string{"e1", "e2"})
}

// The sessions on an address end only if nothing serves there, which three refused connections or a silence of 11 s show, and
// while no other machine has it.
func TestFeedGone(t *testing.T) {
	w := &world{silent: map[string]time.Duration{"e1": time.Hour, "e2": time.Hour, "e4": time.Hour, "e5": time.Hour}}
	w.closed = map[netip.Addr]error{
		address("e1"): syscall.ECONNREFUSED, address("e2"): syscall.ECONNREFUSED, address("e5"): context.DeadlineExceeded,
	}
	w.set(member("e1", "edge", 0), member("e2", "edge", 0), member("e3", "edge", 0, func(m *cluster.Member) { m.Node.IP = "10.0.0.1" }),
		member("e4", "edge", 0), member("e5", "edge", 0))
	clock := time.Now()
	f := newFeed(t, w, nil, func(o *lb.Options) { o.Now = func() time.Time { return clock } })
	for after, want := range [][]netip.Addr{nil, nil, {address("e2")}, {address("e2"), address("e5")}} {
		if after == 3 {
			clock = clock.Add(11 * time.Second)
		}
		must.OK(t, f.Look(t.Context()))
		must.NoDiff(t, fmt.Sprintf("look %d: gone", after), listed(f).Gone, want, cmpopts.EquateComparable(netip.Addr{}))
	}
	// A server that answers once in between is not dead.
	w.closed[address("e2")] = nil
	f = newFeed(t, w, nil)
	for _, answer := range []error{syscall.ECONNREFUSED, syscall.ECONNREFUSED, nil, syscall.ECONNREFUSED, syscall.ECONNREFUSED} {
		w.closed[address("e2")] = answer
		must.OK(t, f.Look(t.Context()))
	}
	must.Equal(t, "number of those that are gone", len(listed(f).Gone), 0)
}

// A server is tried by its port as soon as one of its signals is late: a server that is gone is then known to be dead at once.
func TestFeedProbesLateServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{silent: map[string]time.Duration{"e1": time.Second}, agentsOnly: true}
		w.set(member("e1", "edge", 0), member("e2", "edge", 0))
		f := newFeed(t, w, nil)
		for range 30 {
			must.OK(t, f.Look(t.Context()))
			sleep.For(t.Context(), time.Second)
		}
		w.dialed = slices.Compact(w.dialed)
		if list := listed(f); !slices.Equal(w.dialed, []netip.Addr{address("e1")}) || len(list.Gone) > 0 || len(list.Servers) != 2 {
			t.Errorf("tried %v; %+v", w.dialed, list)
		}
	})
}

// A server without an agent that ended long ago, or a document that a node left behind: nothing is known of its port.
func TestFeedGoneWithoutAgent(t *testing.T) {
	w := &world{documents: []cluster.AMSNode{{ID: "d", IP: "10.0.0.9", LastUpdate: time.Now().Add(-time.Hour)}}}
	w.set(member("e1", "edge", 0))
	f := newFeed(t, w, nil)
	must.OK(t, f.Look(t.Context()))
	if list := listed(f); len(list.Gone) > 0 || len(list.Servers) != 1 {
		t.Errorf("%+v", list)
	}
}

// Nodes that are lost one after the other, as their heartbeats end, stay in the list while their ports answer.
func TestFeedLosesSlowly(t *testing.T) {
	w, members := &world{}, []cluster.Member{}
	for n := range 10 {
		members = append(members, member(fmt.Sprint("e", n+1), "edge", 0))
	}
	w.set(members...)
	f := newFeed(t, w, nil)
	must.OK(t, f.Look(t.Context()))
	w.closed = map[netip.Addr]error{address("e10"): syscall.ECONNREFUSED}
	for n := range 10 {
		w.set(members[:n]...)
		must.OK(t, f.Look(t.Context()))
	}
	for range 3 {
		must.OK(t, f.Look(t.Context()))
	}
	if got := servers(f); len(got) != 9 || slices.Contains(got, "e10") {
		t.Errorf("%v", got)
	}
	// Its own record takes a node out, whatever its port does.
	members[0].Node.State = cluster.StateDraining
	members[1].Node.Serving = &cluster.Serving{}
	members[2].Node.Role = "origin"
	w.set(members[:9]...)
	must.OK(t, f.Look(t.Context()))
	must.NoDiff(t, "servers", servers(f), []string{"e4", "e5", "e6", "e7", "e8", "e9", "e3"})
}

// A node that moves to a group which the list does not select leaves it.
func TestFeedOfAGroup(t *testing.T) {
	grouped := func(m *cluster.Member) { m.Node.Group = "a" }
	w, moves, stays := &world{}, member("e1", "edge", 0, grouped), member("e2", "edge", 0, grouped)
	w.set(moves, stays)
	f := newFeed(t, w, nil, func(o *lb.Options) { o.Filter = lb.Filter{Groups: []string{"a"}} })
	must.OK(t, f.Look(t.Context()))
	moves.Node.Group = "b"
	w.set(moves, stays)
	must.OK(t, f.Look(t.Context()))
	must.NoDiff(t, "servers", servers(f), []string{"e2"})
}

// A role that was drained on purpose leaves the list, its last node, too, once nothing serves at the ports.
func TestFeedRoleDrained(t *testing.T) {
	w := &world{}
	edges, origin := []cluster.Member{member("e1", "edge", 0), member("e2", "edge", 0)}, member("o3", "origin", 0)
	w.set(append(edges, origin)...)
	f := newFeed(t, w, nil)
	must.OK(t, f.Look(t.Context()))
	for _, state := range []cluster.State{cluster.StateDraining, cluster.StateLeft} {
		edges[0].Node.State, edges[1].Node.State = state, state
		w.set(append(edges, origin)...)
		must.OK(t, f.Look(t.Context()))
		if list := listed(f); len(list.Held) != 1 || len(list.Servers) != 3 {
			t.Errorf("%s, the servers run: %+v", state, list)
		}
	}
	w.closed = map[netip.Addr]error{address("e1"): syscall.ECONNREFUSED, address("e2"): syscall.ECONNREFUSED}
	for range 3 {
		must.OK(t, f.Look(t.Context()))
	}
	if list := listed(f); len(list.Held) > 0 || !slices.Equal(servers(f), []string{"o3"}) {
		t.Errorf("they have left: %+v", list)
	}
}

// MongoDB that is away, and a registry that is empty, take no server out, also over a restart.
func TestFeedIsStatic(t *testing.T) {
	w, s := &world{}, &stored{}
	w.set(member("e1", "edge", 0), member("e2", "edge", 0), member("e3", "edge", 0))
	f := newFeed(t, w, s)
	must.Equal(t, "servers before the first look", len(servers(f)), 0)
	must.OK(t, f.Look(t.Context()))
	_, changed := f.List()
	w.fail(errors.New("away"))
	if err := f.Look(t.Context()); err == nil || len(servers(f)) != 3 {
		t.Errorf("MongoDB is away: %v, %v", servers(f), err)
	}
	f = newFeed(t, w, s)
	if err := f.Look(t.Context()); err == nil || len(servers(f)) != 3 {
		t.Errorf("after a restart: %v, %v", servers(f), err)
	}
	w.set()
	must.OK(t, f.Look(t.Context()))
	if list := listed(f); len(list.Servers) != 3 || len(list.Held) != 1 {
		t.Errorf("an empty registry: %+v", list)
	}
	select {
	case <-changed:
		t.Error("the list was reported as changed")
	default:
	}
	w.set()
	forced := newFeed(t, w, s, func(o *lb.Options) { o.Force = true })
	must.OK(t, forced.Look(t.Context()))
	must.Equal(t, fmt.Sprintf("servers with force: %v", servers(forced)), len(servers(forced)), 0)
}

// A stored list that cannot be read is as none, and one that cannot be written is an error that is logged once.
func TestFeedWithoutState(t *testing.T) {
	for _, text := range []string{"", "[", "garbage", "{}", `[{"address":"x"}]`} {
		w, s := &world{}, &stored{b: []byte(text)}
		w.set(member("e1", "edge", 0))
		f := newFeed(t, w, s)
		if err := f.Look(t.Context()); err != nil || len(servers(f)) != 1 || !strings.Contains(string(s.b), "e1") {
			t.Errorf("%q: %v, %v, stored %s", text, servers(f), err, s.b)
		}
	}
	var log locked.Buffer
	w, s := &world{}, &stored{err: errors.New("no permission")}
	w.set(member("e1", "edge", 0))
	f := newFeed(t, w, s, func(o *lb.Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for range 3 {
		if err := f.Look(t.Context()); err == nil || len(servers(f)) != 1 {
			t.Errorf("%v, %v", servers(f), err)
		}
	}
	must.Equal(t, "lines in\n"+log.String(), strings.Count(log.String(), "no permission"), 2) // one for reading
}

// A cluster without servers has an empty list, which changes no load balancer.
func TestEmptyList(t *testing.T) {
	w := &world{}
	var log locked.Buffer
	f := newFeed(t, w, nil, func(o *lb.Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	must.OK(t, f.Look(t.Context()))
	must.OK(t, f.Look(t.Context()))
	must.Equal(t, "lines in\n"+log.String(), strings.Count(log.String(), "\n"), 1)
	for path, want := range map[string]string{"/nodes": `200 {"servers":[],"read":`, "/traefik": "503 no servers"} {
		rec := httptest.NewRecorder()
		lb.Handler(f).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		if got := fmt.Sprint(rec.Code, " ", rec.Body); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s", path, got)
		}
	}
}

func TestHandler(t *testing.T) {
	w := &world{}
	f := newFeed(t, w, nil)
	h := lb.Handler(f)
	get := func(path, tag string) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("If-None-Match", tag)
		h.ServeHTTP(rec, r)
		return rec
	}
	must.Equal(t, "before the first list", get("/nodes", "").Code, http.StatusServiceUnavailable)
	w.set(member("e1", "edge", 40, func(m *cluster.Member) { m.Node.Group = "asg" }), member("e2", "edge", 100), member("o3", "origin", 100))
	must.OK(t, f.Look(t.Context()))
	for path, want := range map[string]string{
		"/traefik": `{"http":{"services":{"ams-edge":{"loadBalancer":{"servers":[{"url":"http://10.0.0.1:5080","weight":60},{"url":"http://10.0.0.2:5080","weight":10}]}},` +
			`"ams-origin":{"loadBalancer":{"servers":[{"url":"http://10.0.0.3:5080","weight":10}]}}}}}`,
		"/healthz": "ok",
	} {
		rec := get(path, "")
		if got := strings.TrimSpace(rec.Body.String()); rec.Code != http.StatusOK || got != want {
			t.Errorf("%s: %d %s", path, rec.Code, got)
		}
		if tag := rec.Header().Get("ETag"); path != "/healthz" && (tag == "" || get(path, tag).Code != http.StatusNotModified) {
			t.Errorf("%s: no 304 for %s", path, tag)
		}
	}
	tag := get("/nodes", "").Header().Get("ETag")
	must.OK(t, f.Look(t.Context()))
	if rec := get("/nodes", tag); tag == "" || rec.Code != http.StatusNotModified {
		t.Errorf("a look without a change: %d for %s, %s", rec.Code, tag, rec.Body)
	}
	w.set(member("e1", "edge", 40), member("e2", "edge", 100, state(cluster.StateDraining)), member("o3", "origin", 100))
	must.OK(t, f.Look(t.Context()))
	must.Equal(t, "one node less", get("/nodes", tag).Code, http.StatusOK)
	page := get("/metrics", "").Body.String()
	for _, line := range []string{`amsagent_balance_servers{role="edge"} 1`, `amsagent_balance_servers{role="origin"} 1`, `amsagent_balance_held_servers{role="edge"} 0`} {
		must.Contain(t, "page", page, "\n"+line+"\n")
	}
	must.Equal(t, "an unknown path", get("/nothing", "").Code, http.StatusNotFound)
}
