// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package web_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/web"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
)

var update = flag.Bool("update", false, "rewrite testdata")

// world is a cluster in memory, its page, and a browser of it.
type world struct {
	t *testing.T
	*http.Client
	dial chan net.Conn

	mu     sync.Mutex
	nodes  []cluster.Node
	events []cluster.PastEvent
	away   bool // MongoDB does not answer
	silent map[string]bool
}

// begin serves a cluster from now on; all of it runs in a bubble.
func begin(t *testing.T, nodes ...cluster.Node) *world {
	w := &world{t: t, nodes: nodes, silent: map[string]bool{}}
	w.begin()
	return w
}

func (w *world) begin() {
	w.dial = make(chan net.Conn)
	w.Client = &http.Client{Transport: &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		client, server := net.Pipe()
		select {
		case w.dial <- server:
			return client, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error)
	go func() {
		done <- web.Serve(ctx, w, web.Options{Reader: w, Hosts: []string{"cluster.example"}, MetricsPort: 9771, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	}()
	w.t.Cleanup(func() {
		w.CloseIdleConnections()
		cancel()
		must.OK(w.t, <-done)
	})
	sleep.For(w.t.Context(), lookEvery/2) // between two looks
}

const lookEvery = time.Second

func (w *world) Accept() (net.Conn, error) {
	c, ok := <-w.dial
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (w *world) Close() error   { close(w.dial); return nil }
func (w *world) Addr() net.Addr { return &net.TCPAddr{} }

// Look is MongoDB's answer: each node that is not silent has just written.
func (w *world) Look(ctx context.Context) (cluster.Look, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		return cluster.Look{}, errors.New("no primary <b>")
	}
	now := time.Now()
	l := cluster.Look{At: now, ServerTime: now}
	for i := range w.nodes {
		n := &w.nodes[i]
		if !w.silent[n.ID] {
			n.UpdatedAt, n.Seq = now, n.Seq+1
		}
		l.Nodes = append(l.Nodes, *n)
		if n.Load != nil {
			l.Nodes[i].Load = new(*n.Load)
		}
		l.AMS = append(l.AMS, cluster.AMSNode{ID: "ams-" + n.IP, IP: n.IP, LastUpdate: n.UpdatedAt})
	}
	return l, nil
}

func (w *world) Events(ctx context.Context, q cluster.EventQuery) ([]cluster.PastEvent, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		return nil, errors.New("no primary")
	}
	var list []cluster.PastEvent
	for _, e := range w.events {
		if len(q.Nodes) == 0 || q.Nodes[0] == e.Node {
			list = append(list, e)
		}
	}
	return list, nil
}

// set changes the cluster, and waits until that was read.
func (w *world) set(change func()) {
	w.mu.Lock()
	change()
	w.mu.Unlock()
	sleep.For(w.t.Context(), lookEvery)
}

func (w *world) ask(url, accept string) *http.Response {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://127.0.0.1:9774"+url, nil)
	must.OK(w.t, err)
	r.Header.Set("Accept", accept)
	resp, err := w.Do(r)
	must.OK(w.t, err)
	return resp
}

// get returns what a client of a kind reads.
func (w *world) get(url, accept string) string {
	w.t.Helper()
	resp := w.ask(url, accept)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must.OK(w.t, err)
	if resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return string(b)
}

const (
	browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	program = "application/json"
	curl    = "*/*"
)

func node(i int, change ...func(*cluster.Node)) cluster.Node {
	cpu, viewers := 10*i, 7*i
	n := cluster.Node{
		ID: fmt.Sprintf("i-%d", i), IP: fmt.Sprintf("10.0.0.%d", i), BootID: "b", Role: "edge", Group: "edges", Zone: "eu-1a", Agent: "0.9.0", AMS: "3.0.3",
		State: cluster.StateActive, StateSince: time.Date(2026, 11, 30, 10, 0, 0, 0, time.UTC), Interval: seconds.Duration(5 * time.Second),
		Heartbeat: cluster.Heartbeat{
			Load:     &cluster.Load{CPU: &cpu, Mem: &cpu, Score: &cpu},
			Sessions: &cluster.Sessions{Publishers: new(0), Viewers: &viewers, By: cluster.CountedByAMS}, Serving: &cluster.Serving{Up: true},
		},
	}
	for _, f := range change {
		f(&n)
	}
	return n
}

// hostile is a cluster in which some rows are written by an attacker.
func hostile() []cluster.Node {
	return []cluster.Node{
		node(1, func(n *cluster.Node) { n.Role, n.Group, n.Zone = "origin", `"><img src=x onerror=alert(1)>`, "eu-1b" }),
		node(2, func(n *cluster.Node) { n.Serving = &cluster.Serving{Why: "LiveApp: 503 <script>alert(1)</script>"} }),
		node(3, func(n *cluster.Node) {
			n.State, n.Reason = cluster.StateDraining, "scale-in \x1b[31m<b>"
			n.Drain = &cluster.DrainLimit{Until: time.Now().Add(11 * time.Minute), By: "hook <i>"}
			n.Balancers = map[string]cluster.Balancer{"lb-1": {Uses: true, At: time.Now()}}
		}),
		node(4, func(n *cluster.Node) { n.Heartbeat = cluster.Heartbeat{} }),
		node(5, func(n *cluster.Node) { n.State, n.Role = cluster.StateLeft, "" }),
		node(6, func(n *cluster.Node) { n.ID, n.Role = `x"><script>`, "" }),
	}
}

// TestPages: what a browser, a program and curl read of each page. Rows of an attacker are text.
func TestPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := begin(t, hostile()...)
		w.set(func() {
			w.events = []cluster.PastEvent{
				{At: time.Now(), Event: cluster.Event{Node: "i-3", Kind: "drain", Who: "ann", Why: "kernel <b>update</b>"}},
				{At: time.Now(), Event: cluster.Event{Node: "i-1", Kind: "join", Who: "amsagent"}},
			}
		})
		tags := regexp.MustCompile(`<(script|img|i|b)\b[^>]*>`)
		for name, url := range map[string]string{"nodes": "/", "node": "/node/i-3", "events": "/events", "filtered": "/?role=edge&sort=-cpu"} {
			html := w.get(url, browser)
			for _, tag := range tags.FindAllString(html, -1) {
				if tag != "<b>" && tag != `<script src="/page.js" defer="">` {
					t.Errorf("%s has %s", name, tag)
				}
			}
			must.Golden(t, *update, name+".html", strings.ReplaceAll(html, "><", ">\n<"))
			must.Golden(t, *update, name+".txt", w.get(url, curl))
			var is struct {
				Version int    `json:"schema_version"`
				Kind    string `json:"kind"`
			}
			if must.OK(t, json.Unmarshal([]byte(w.get(url, program)), &is)); is.Version == 0 || is.Kind != map[bool]string{true: "events", false: "nodes"}[name == "events"] {
				t.Errorf("%s: %+v", name, is)
			}
		}
		for _, form := range []string{browser, program, curl} {
			must.Equal(t, "no such node, as "+form, w.get("/node/i-0", form), "404 Not Found")
		}
	})
}

// TestHosts: a name that another site pointed at this address reads nothing.
func TestHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := begin(t)
		for host, want := range map[string]int{
			"127.0.0.1:9774": 200, "[::1]:9774": 200, "10.0.0.7": 200, "localhost:9774": 200, "Cluster.Example": 200, "cluster.example:443": 200,
			"evil.example": 421, "localhost.evil.example:9774": 421, "127.0.0.1.evil.example": 421,
		} {
			for _, path := range []string{"/", "/metrics", "/live?page=/"} {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1"+path, nil)
				must.OK(t, err)
				r.Host = host
				resp, err := w.Do(r)
				must.OK(t, err)
				_ = resp.Body.Close()
				head := resp.Header
				if resp.StatusCode != want || !strings.HasPrefix(head.Get("Content-Security-Policy"), "default-src 'none'") || head.Get("Set-Cookie") != "" {
					t.Errorf("%s%s: %d, %v", host, path, resp.StatusCode, head)
				}
			}
		}
	})
}

// stream follows a page as its script does.
func (w *world) stream(page string) (next func() (tag, asOf string), status int) {
	resp := w.ask("/live?page="+page, "text/event-stream")
	w.t.Cleanup(func() { _ = resp.Body.Close() })
	lines := bufio.NewReader(resp.Body)
	return func() (tag, asOf string) {
		w.t.Helper()
		for {
			line, err := lines.ReadString('\n')
			must.OK(w.t, err)
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				tag, asOf, _ = strings.Cut(strings.TrimSpace(data), " ")
				return tag, asOf
			}
		}
	}, resp.StatusCode
}

// TestLive: an open page follows each look, and of a change within a second; the tag is that of the page.
func TestLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := begin(t, node(1), node(2))
		next, _ := w.stream("/")
		first, asOf := next()
		must.Contain(t, "the page", w.get("/", browser), `data-tag="`+first+`"`)
		again, later := next()
		if again != first || later == asOf {
			t.Errorf("nothing happened: %s %s, then %s %s", first, asOf, again, later)
		}
		changed := time.Now()
		w.mu.Lock()
		w.nodes[0].State = cluster.StateDraining
		w.mu.Unlock()
		for is := first; is == first; {
			is, _ = next()
		}
		if d := time.Since(changed); d > 2*time.Second {
			t.Errorf("the page has it after %s", d)
		}
	})
}

// TestStreamsAreBounded: the thousandth page still follows, one more does not, and has its page all the same.
func TestStreamsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := begin(t, node(1))
		for i := range 1001 {
			if _, status := w.stream("/"); (status == http.StatusOK) != (i < 1000) {
				t.Fatalf("stream %d: %d", i, status)
			}
		}
		if !strings.HasPrefix(w.get("/", browser), "<!doctype html>") {
			t.Error("no page")
		}
	})
}

// TestSlowReader: who reads nothing holds a stream for ten seconds.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := begin(t, node(1))
		client, server := net.Pipe()
		defer client.Close()
		w.dial <- server
		_, err := io.WriteString(client, "GET /live?page=/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
		must.OK(t, err)
		sleep.For(w.t.Context(), 15*time.Second)
		if _, err := server.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the connection is open: %v", err)
		}
	})
}

// TestMongoDBAway: the page says within 3 s that MongoDB is away, is grey and never red by that, keeps what it knew, and goes on.
func TestMongoDBAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := begin(t, node(1), node(2))
		well := w.get("/", browser)
		w.mu.Lock()
		w.away = true
		w.mu.Unlock()
		sleep.For(w.t.Context(), 3*time.Second)
		for _, wait := range []time.Duration{0, time.Minute} {
			sleep.For(w.t.Context(), wait)
			page := w.get("/", browser)
			must.Contain(t, fmt.Sprintf("the page after %s", wait), page, `id="page" class="unknown"`, `<p id="failed" role="status">MongoDB cannot be read; this is the last look. no primary &lt;b&gt;</p>`, ">i-2</a>")
			if got := w.get("/metrics", curl); strings.Contains(got, "amsagent_cluster_nodes") || !strings.Contains(got, "amsagent_cluster_last_look_timestamp_seconds ") {
				t.Errorf("figures of the past are given as those of now:\n%s", got)
			}
		}
		w.mu.Lock()
		w.away = false
		w.mu.Unlock()
		sleep.For(w.t.Context(), 5*time.Second)
		if page := w.get("/", browser); !strings.Contains(page, `id="page" class="ok"`) || !strings.Contains(well, `id="page" class="ok"`) {
			t.Errorf("MongoDB is back:\n%s", page)
		}
	})
}

// TestBeforeTheFirstLook: an empty list would make Prometheus forget its targets.
func TestBeforeTheFirstLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, away: true}
		w.begin()
		for _, path := range []string{"/targets", "/", "/events"} {
			must.Equal(t, path, w.get(path, program), "503 Service Unavailable")
		}
		for _, path := range []string{"/", "/node/i-1", "/events"} {
			resp := w.ask(path, browser)
			b, err := io.ReadAll(resp.Body)
			must.OK(t, err)
			_ = resp.Body.Close()
			if page := string(b); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(page, "The cluster was not read yet") || strings.Contains(page, "0 nodes") {
				t.Errorf("%s: %d\n%s", path, resp.StatusCode, page)
			}
		}
	})
}

// TestTargets: every node that has not left is a target, however ill: a target that disappears fires no alert.
func TestTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := append(hostile(), node(7, func(n *cluster.Node) { n.IP = "::ffff:10.0.0.7" }), node(8, func(n *cluster.Node) { n.IP = "metadata.example" }))
		w := begin(t, nodes...)
		w.set(func() { w.silent["i-1"] = true })
		sleep.For(w.t.Context(), time.Hour)
		var got []struct {
			Targets []string          `json:"targets"`
			Labels  map[string]string `json:"labels"`
		}
		must.OK(t, json.Unmarshal([]byte(w.get("/targets", curl)), &got))
		var list []string
		for _, g := range got {
			list = append(list, fmt.Sprintf("%s %s %s %s", g.Targets[0], g.Labels["node"], g.Labels["role"], g.Labels["zone"]))
		}
		want := "10.0.0.1:9771 i-1 origin eu-1b|10.0.0.2:9771 i-2 edge eu-1a|10.0.0.3:9771 i-3 edge eu-1a|10.0.0.4:9771 i-4 edge eu-1a|10.0.0.6:9771 x\"><script>  eu-1a|10.0.0.7:9771 i-7 edge eu-1a"
		must.Equal(t, "list", strings.Join(list, "|"), want)
	})
}

// TestMetrics: the cluster's figures. A figure that is not known has no line; cut sessions are counted once.
func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := begin(t, append(hostile()[:4], node(7), node(9, func(n *cluster.Node) { n.Load.Score = nil }), node(0, func(n *cluster.Node) { n.IP = "10.0.0.9" }))...)
		w.set(func() {
			w.silent["i-0"] = true // a former machine at the address of another
			for i := range w.nodes {
				if w.nodes[i].ID == "i-7" {
					w.nodes[i].State, w.nodes[i].StateSince, w.nodes[i].Cut = cluster.StateLeft, time.Now(), new(3)
				}
			}
		})
		sleep.For(w.t.Context(), time.Minute)
		got := w.get("/metrics", curl)
		for _, line := range []string{
			`amsagent_cluster_nodes{role="edge",state="active",health="healthy"} 2`, `amsagent_cluster_nodes{role="edge",state="active",health="not-serving"} 1`,
			`amsagent_cluster_nodes{role="edge",state="draining",health="healthy"} 1`, `amsagent_cluster_nodes{role="edge",state="left",health="left"} 1`,
			`amsagent_cluster_score_ratio{role="origin"} 0.1`, `amsagent_cluster_free_nodes{role="origin"} 0.9`,
			`amsagent_cluster_sessions{role="edge",kind="viewers"} 98`, `amsagent_cluster_cut_sessions_total{role="edge"} 3`, `amsagent_cluster_cut_sessions_total{role="origin"} 0`,
		} {
			if !strings.Contains(got, "\n"+line+"\n") {
				t.Errorf("lacks %s", line)
			}
		}
		if strings.Contains(got, `score_ratio{role="edge"}`) || strings.Contains(got, `health="gone"`) {
			t.Errorf("no serving edge has a known score, and no machine is gone:\n%s", got)
		}
	})
}

// TestHeadroom: a span without a known score is a gap in the line, never zero.
func TestHeadroom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := begin(t, node(1), node(2, func(n *cluster.Node) { n.Zone = "eu-1b" }))
		sleep.For(w.t.Context(), 30*time.Second)
		w.set(func() { w.nodes[0].Load.Score, w.nodes[1].Load.Score = nil, nil })
		sleep.For(w.t.Context(), 30*time.Second)
		w.set(func() { w.nodes[0].Load.Score = new(40) })
		sleep.For(w.t.Context(), 30*time.Second)
		page := w.get("/", browser)
		must.Equal(t, "lines of\n"+page, strings.Count(page, "<polyline"), 5) // two of the role and of the first zone, one of the second
		must.Contain(t, "page", page, "<h2>role edge</h2><b>60%</b><span> free of 2 serving nodes, 1 unknown</span>", "<h2>zone eu-1b</h2><b>?</b>")
	})
}
