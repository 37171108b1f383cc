// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lb"
)

// balancer is a real HAProxy before web servers of the test.
type balancer struct {
	*lb.HAProxy
	t     *testing.T
	front string // host:port
	port  int    // of the web servers
	state bytes.Buffer
}

// slots are for three edges.
const slots = `server-template edge 1-3 unused.invalid:%d init-addr last,0.0.0.0 disabled weight 100`

// startHAProxy takes the servers of its backend, with a verb for the port of the web servers.
func startHAProxy(t *testing.T, servers string) *balancer {
	t.Helper()
	binary, err := exec.LookPath("haproxy")
	if err != nil {
		if binary = "/usr/sbin/haproxy"; !exists(binary) {
			t.Skip("there is no haproxy")
		}
	}
	dir := t.TempDir()
	b := &balancer{t: t, front: free(t)}
	// All web servers have one port, each at its own address of the loopback.
	_, port, _ := net.SplitHostPort(free(t))
	_, _ = fmt.Sscan(port, &b.port)
	b.HAProxy = &lb.HAProxy{
		Socket: filepath.Join(dir, "s"), Log: slog.New(slog.DiscardHandler),
		SaveState: func(state []byte) error { b.state.Reset(); b.state.Write(state); return nil },
	}
	conf := fmt.Sprintf(`
global
  stats socket %s level admin
defaults
  mode http
  timeout connect 1s
  timeout client 1m
  timeout server 1m
frontend f
  bind %s
  default_backend edges
backend edges
  balance roundrobin
  %s
`, b.Socket, b.front, fmt.Sprintf(servers, b.port))
	must.OK(t, os.WriteFile(filepath.Join(dir, "haproxy.cfg"), []byte(conf), 0o600))
	cmd := exec.CommandContext(t.Context(), binary, "-db", "-f", filepath.Join(dir, "haproxy.cfg"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must.OK(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// Its socket has a name before it listens.
	must.Until(t, "HAProxy answers", func() bool {
		conn, err := new(net.Dialer).DialContext(t.Context(), "unix", b.Socket)
		return err == nil && conn.Close() == nil
	})
	return b
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// free returns an address of the loopback without a listener.
func free(t *testing.T) string {
	t.Helper()
	var listen net.ListenConfig
	l, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must.OK(t, err)
	defer l.Close()
	return l.Addr().String()
}

// serve starts the web server of 127.0.0.N, which answers with its id. /hold answers when the test ends it.
func (b *balancer) serve(n byte) (held chan struct{}) {
	b.t.Helper()
	held = make(chan struct{})
	var listen net.ListenConfig
	l, err := listen.Listen(b.t.Context(), "tcp", fmt.Sprintf("127.0.0.%d:%d", n, b.port))
	must.OK(b.t, err)
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-held
		}
		_, _ = fmt.Fprintf(w, "e%d", n)
	})}
	go func() { _ = s.Serve(l) }()
	b.t.Cleanup(func() { _ = s.Close() })
	return held
}

func (b *balancer) get(path string) (*http.Response, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, "http://"+b.front+path, nil)
	must.OK(b.t, err)
	return client.Do(req)
}

// shares counts who answers 100 requests.
func (b *balancer) shares() map[string]int {
	b.t.Helper()
	n := map[string]int{}
	for range 100 {
		resp, err := b.get("/")
		must.OK(b.t, err)
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			body = []byte(resp.Status)
		}
		n[string(body)]++
	}
	return n
}

func (b *balancer) apply(gone []string, servers ...lb.Server) error {
	list := lb.List{Servers: servers}
	for _, a := range gone {
		list.Gone = append(list.Gone, netip.MustParseAddr(a))
	}
	return b.Apply(b.t.Context(), list)
}

func edge(n, weight int) lb.Server {
	return lb.Server{ID: fmt.Sprintf("e%d", n), Role: "edge", Addr: netip.AddrFrom4([4]byte{127, 0, 0, byte(n)}), Port: 5080, Weight: weight}
}

func TestHAProxy(t *testing.T) {
	b := startHAProxy(t, slots)
	var held []chan struct{}
	for n := byte(1); n <= 4; n++ {
		held = append(held, b.serve(n))
	}
	must.OK(t, b.apply(nil, edge(1, 25), edge(2, 75)))
	if n := b.shares(); n["e1"] < 20 || n["e1"] > 30 || n["e1"]+n["e2"] != 100 {
		t.Errorf("weights 25 and 75: %v", n)
	}
	must.Contain(t, "the state", b.state.String(), "127.0.0.2")
	if c, err := b.Commands(t.Context(), lb.List{Servers: []lb.Server{edge(1, 25), edge(2, 75)}}); err != nil || len(c) > 0 {
		t.Errorf("a list without a change sends %q, %v", c, err)
	}

	// A session on a server that is taken out goes on, and the slot is not given to another server.
	resp, err := b.get("/hold") // from one of both
	must.OK(t, err)
	defer resp.Body.Close()
	must.OK(t, b.apply(nil, edge(3, 50)))
	must.Equal(t, "both are taken out: share of e3", b.shares()["e3"], 100)
	must.OK(t, b.apply(nil, edge(3, 50), edge(4, 50)))
	if n := b.shares(); n["e3"]+n["e4"] != 100 || n["e4"] == 0 {
		t.Errorf("the slot without sessions is taken: %v", n)
	}
	if err := b.apply(nil, edge(3, 50), edge(4, 50), edge(5, 50)); !errors.Is(err, lb.ErrSlotsFull) {
		t.Errorf("three servers for two free slots: %v", err)
	}
	if n := b.shares(); n["e3"]+n["e4"] != 100 {
		t.Errorf("the others are served: %v", n)
	}
	for _, h := range held {
		close(h)
	}
	body, err := io.ReadAll(resp.Body)
	if id := string(body); err != nil || id != "e1" && id != "e2" {
		t.Errorf("the session was cut: %q, %v", body, err)
	}
}

// Sessions on a machine that is gone are ended. Its web server still runs here, so only HAProxy can end them.
func TestHAProxyGone(t *testing.T) {
	b := startHAProxy(t, slots)
	b.serve(1)
	b.serve(2)
	must.OK(t, b.apply(nil, edge(1, 50)))
	resp, err := b.get("/hold")
	must.OK(t, err)
	defer resp.Body.Close()
	body, cut := resp.Body, make(chan error, 1)
	go func() { _, err := io.ReadAll(body); cut <- err }()
	must.OK(t, b.apply(nil, edge(2, 50)))
	select {
	case err := <-cut:
		t.Fatalf("a session was cut, although its machine is not gone: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	must.OK(t, b.apply([]string{"127.0.0.1"}, edge(2, 50)))
	select {
	case err := <-cut:
		if err == nil {
			t.Error("it ended well")
		}
	case <-time.After(time.Minute):
		t.Error("the session of a machine that is gone goes on")
	}
}

// A socket that takes connections and answers nothing holds up nothing else, and is tried again.
func TestHAProxyHangs(t *testing.T) {
	t.Parallel()
	var listen net.ListenConfig
	l, err := listen.Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	must.OK(t, err)
	defer l.Close()
	world := &world{}
	world.set(member("e1", "edge", 0))
	f := newFeed(t, world, nil)
	must.OK(t, f.Look(t.Context()))
	h := &lb.HAProxy{Socket: l.Addr().String(), Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); h.Run(ctx, f) }()
	conn, err := l.Accept()
	must.OK(t, err)
	defer conn.Close()
	world.set(member("e1", "edge", 0), member("e2", "edge", 0))
	must.OK(t, f.Look(t.Context()))
	must.NoDiff(t, "servers", servers(f), []string{"e1", "e2"})
	must.OK(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(5*time.Minute)))
	again, err := l.Accept()
	must.OK(t, err)
	defer again.Close()
	cancel()
	<-done
}

// Servers that are no slots are not touched, whatever their names.
func TestHAProxyOtherServers(t *testing.T) {
	b := startHAProxy(t, slots+`
backend api
  server-template edge 2 127.0.0.9:1
  server web1 127.0.0.9:1
  server-template loc 2 localhost:1 init-addr libc,none
  server-template dn 2 edge.example.com:1 init-addr none`)
	list := lb.List{Servers: []lb.Server{edge(1, 25)}}
	want := []string{"set server edges/edge1 addr 127.0.0.1", "set server edges/edge1 weight 25", "set server edges/edge1 state ready"}
	if c, err := b.Commands(t.Context(), list); err != nil || !slices.Equal(c, want) {
		t.Errorf("it sends %q, %v", c, err)
	}
	list.Servers[0].Role = "origin"
	if c, err := b.Commands(t.Context(), list); !errors.Is(err, lb.ErrSlotsFull) || len(c) > 0 {
		t.Errorf("without a slot for any role it sends %q, %v", c, err)
	}
}

// A feed's changes reach HAProxy, and a socket that is away is tried again.
func TestHAProxyRun(t *testing.T) {
	b := startHAProxy(t, slots)
	b.serve(1)
	b.serve(2)
	world := &world{}
	world.set(member("e1", "edge", 0, local), member("e2", "edge", 0, local))
	f := newFeed(t, world, nil)
	must.OK(t, f.Look(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	socket := b.Socket
	b.Socket += ".away"
	go func() { defer close(done); b.Run(ctx, f) }()
	must.OK(t, os.Symlink(socket, b.Socket))
	must.Until(t, "both serve", func() bool { n := b.shares(); return n["e1"] > 0 && n["e2"] > 0 })
	world.set(member("e1", "edge", 0, local, state("draining")), member("e2", "edge", 0, local))
	must.OK(t, f.Look(t.Context()))
	must.Until(t, "one serves", func() bool { return b.shares()["e2"] == 100 })
	cancel()
	<-done
}

// An agent check alone takes a server of a fixed list out and back, and leaves to the operator what the operator said.
func TestAgentCheckHAProxy(t *testing.T) {
	var leaves atomic.Bool
	var polls atomic.Int64
	check := &lb.AgentCheck{Now: time.Now, Log: slog.New(slog.DiscardHandler), State: func() lb.NodeState {
		polls.Add(1)
		return lb.NodeState{Role: "edge", Leaves: leaves.Load()}
	}}
	var listen net.ListenConfig
	l, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must.OK(t, err)
	go check.Serve(t.Context(), l)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	b := startHAProxy(t, `server edge1 127.0.0.1:%d weight 100 agent-check agent-port `+port+` agent-inter 50ms agent-send "edge\n"`)
	b.serve(1)
	b.serves(true)
	leaves.Store(true)
	b.serves(false)
	leaves.Store(false)
	b.serves(true)

	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "unix", b.Socket)
	must.OK(t, err)
	defer conn.Close()
	after := polls.Load() + 5
	must.Until(t, "the agent says ready no more", func() bool { return polls.Load() > after })
	_, err = io.WriteString(conn, "set server edges/edge1 state maint\n")
	must.OK(t, err)
	b.serves(false)
	after = polls.Load() + 5
	must.Until(t, "five polls", func() bool { return polls.Load() > after })
	b.serves(false)
}

// serves waits until all requests are answered by the server, or none.
func (b *balancer) serves(want bool) {
	b.t.Helper()
	must.Until(b.t, fmt.Sprintf("served: %v", want), func() bool { return (b.shares()["e1"] == 100) == want })
}

// A balance that cannot read MongoDB undoes nothing that another one sets, and sets the slots of a HAProxy that has none.
func TestHAProxyBlind(t *testing.T) {
	b := startHAProxy(t, slots)
	b.serve(1)
	b.serve(2)
	both := lb.List{Servers: []lb.Server{edge(1, 50), edge(2, 50)}}
	must.OK(t, b.Apply(t.Context(), both))
	blind := &lb.HAProxy{Socket: b.Socket, Log: b.Log}
	must.OK(t, blind.Apply(t.Context(), both))
	both.Failed = "MongoDB is away"
	must.OK(t, b.apply(nil, edge(1, 50)))
	for range 3 {
		must.OK(t, blind.Apply(t.Context(), both))
	}
	must.Equal(t, "the node that drains gets sessions: share of e1", b.shares()["e1"], 100)
	must.OK(t, b.apply(nil, edge(1, 50), edge(3, 50)))
	if c, err := blind.Commands(t.Context(), both); err != nil || len(c) > 0 {
		t.Errorf("it sends %q, %v", c, err)
	}

	b = startHAProxy(t, slots) // a new process, without a state
	b.serve(1)
	b.serve(2)
	blind.Socket = b.Socket
	must.OK(t, blind.Apply(t.Context(), both))
	if n := b.shares(); n["e1"]+n["e2"] != 100 {
		t.Errorf("%v", n)
	}
}

// HAProxy makes edge21 of the template edge2: the number of a slot must not be a part of its role.
func TestHAProxyRolesWithDigits(t *testing.T) {
	two := edge(2, 100)
	two.Role = "edge2"
	list := lb.List{Servers: []lb.Server{edge(1, 100), two}}
	const template = "server-template %s unused.invalid:%%d init-addr last,0.0.0.0 disabled weight 100"
	for templates, want := range map[string]int{"edge2 2": 0, "edge 20\nedge2 2": 1, "edge 20\nedge2- 2": 2} {
		var lines []string
		for _, name := range strings.Split(templates, "\n") {
			lines = append(lines, strings.ReplaceAll(fmt.Sprintf(template, name), "%d", "1"))
		}
		b := startHAProxy(t, strings.Join(lines, "\n")+"\nserver other%d 127.0.0.1:1 disabled")
		c, err := b.Commands(t.Context(), list)
		if n := len(slices.DeleteFunc(c, func(c string) bool { return !strings.HasSuffix(c, "ready") })); n != want || (err == nil) != (want == 2) ||
			err != nil && (!errors.Is(err, lb.ErrSlotsFull) || !strings.Contains(err.Error(), "server-template edge2- 1-N")) {
			t.Errorf("%q: %q, %v", templates, c, err)
		}
	}
}

// A command that HAProxy refuses does not keep the others from their slots.
func TestHAProxyRefusesOne(t *testing.T) {
	b := startHAProxy(t, slots)
	b.serve(1)
	b.serve(2)
	if err := b.apply(nil, edge(1, 300), edge(2, 50)); !errors.Is(err, lb.ErrHAProxy) {
		t.Errorf("%v", err)
	}
	must.Until(t, "the other one serves", func() bool { return b.shares()["e2"] > 0 })
}
