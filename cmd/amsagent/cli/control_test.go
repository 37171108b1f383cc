// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// fakeDaemon answers on a control socket as the daemon does. It can be killed and started again.
type fakeDaemon struct {
	t    *testing.T
	root string

	mu      sync.Mutex
	view    lifecycle.View
	status  daemon.View
	count   daemon.SessionsView
	hangs   bool // when it is asked for the view
	refuse  *daemon.Refusal
	posted  int // requests
	follows int
	// begin is what a drain or a notice makes of the view.
	begin func(*lifecycle.View)
	srv   *http.Server
}

func newFakeDaemon(t *testing.T) *fakeDaemon {
	t.Helper()
	// Short: the path of a socket has at most 107 bytes.
	root, err := os.MkdirTemp("", "cli") //nolint:usetesting // t.TempDir has the test's name in it
	must.OK(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	d := &fakeDaemon{t: t, root: root, view: activeView(), begin: becomes(drainOf(2, 31))}
	must.OK(t, os.MkdirAll(filepath.Dir(d.socket()), 0o755))
	d.start()
	t.Cleanup(d.kill)
	return d
}

// drainOf is a drain under way.
func drainOf(publishers, viewers int) lifecycle.View {
	s := sessionsOf(publishers, viewers)
	return lifecycle.View{
		State: lifecycle.StateDraining, Step: lifecycle.StepDraining, Kind: lifecycle.Terminate, Reason: "scale-in", Who: "Auto Scaling",
		Begun: time.Now(), Deadline: fixedNow().Add(11*time.Minute + 20*time.Second), DeadlineBy: "hook drain, unless a heartbeat gets through",
		Sessions: &s, Registry: cluster.StateDraining, RegistryTold: true,
	}
}

func activeView() lifecycle.View {
	return lifecycle.View{State: lifecycle.StateActive, Ready: true, Registry: cluster.StateActive, RegistryTold: true}
}

func sessionsOf(publishers, viewers int) cluster.Sessions {
	return cluster.Sessions{Publishers: &publishers, Viewers: &viewers, By: cluster.CountedByAMS}
}

func (d *fakeDaemon) socket() string { return d.root + controlSocket }

// listen replaces the socket.
func (d *fakeDaemon) listen() net.Listener {
	d.t.Helper()
	_ = os.Remove(d.socket())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.socket(), Net: "unix"})
	must.OK(d.t, err)
	l.SetUnlinkOnClose(false)
	d.t.Cleanup(func() { _ = l.Close() })
	return l
}

// start listens, as the one that was killed did.
func (d *fakeDaemon) start() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+daemon.PathStatus, func(w http.ResponseWriter, _ *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		answer(w, http.StatusOK, d.status)
	})
	mux.HandleFunc("GET "+daemon.PathSessions, func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, d.count) })
	mux.HandleFunc("GET "+daemon.PathDrain, func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		d.follows++
		hangs, v := d.hangs, d.view
		d.mu.Unlock()
		if hangs {
			<-r.Context().Done()
			return
		}
		answer(w, http.StatusOK, v)
	})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, _ *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.posted++
		if d.refuse != nil {
			answer(w, http.StatusConflict, d.refuse)
			return
		}
		if d.view.State != lifecycle.StateDraining {
			d.begin(&d.view)
		}
		answer(w, http.StatusOK, d.view)
	})
	l, srv := d.listen(), &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	d.mu.Lock()
	d.srv = srv
	d.mu.Unlock()
	go func() { _ = srv.Serve(l) }()
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

// kill ends it as kill -9 does: connections are cut, the socket stays.
func (d *fakeDaemon) kill() {
	d.mu.Lock()
	srv := d.srv
	d.mu.Unlock()
	_ = srv.Close()
}

// set changes the view; those who follow see it.
func (d *fakeDaemon) set(change func(*lifecycle.View)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.view)
}

// command is one command line that runs beside the test.
type command struct {
	*testEnv
	t    *testing.T
	sig  chan os.Signal
	done chan int
	code int
}

func (d *fakeDaemon) run(args ...string) *command { return d.runWith("", args...) }

func (d *fakeDaemon) runWith(stdin string, args ...string) *command {
	d.t.Helper()
	c := &command{
		t: d.t, testEnv: &testEnv{vars: map[string]string{"AMSAGENT_ROOT": d.root, "USER": "alice"}},
		sig: make(chan os.Signal, 2), done: make(chan int, 1),
	}
	env := c.env()
	env.Stdin = strings.NewReader(stdin)
	env.Signals = fakeSignals{c.sig}.source
	go func() { c.done <- Main(args, env) }()
	return c
}

// ends waits for the exit code.
func (c *command) ends(want int) {
	c.t.Helper()
	select {
	case c.code = <-c.done:
	case <-time.After(time.Minute):
		c.t.Fatalf("does not end; stderr:\n%s", c.stderr.String())
	}
	must.Equal(c.t, fmt.Sprintf("exit with stdout:\n%s\nstderr:\n%s", c.stdout.String(), c.stderr.String()), c.code, want)
}

// says waits until stderr has a text.
func (c *command) says(want string) {
	c.t.Helper()
	eventually(c.t, func() bool { return strings.Contains(c.stderr.String(), want) }, func() string {
		return fmt.Sprintf("stderr lacks %q:\n%s", want, c.stderr.String())
	})
}

func (c *command) said(wants ...string) {
	c.t.Helper()
	must.Contain(c.t, "stderr", c.stderr.String(), wants...)
}

func eventually(t *testing.T, ok func() bool, why func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !ok() {
		if !sleep.For(ctx, 2*time.Millisecond) {
			t.Fatal(why())
		}
	}
}

// impatient is a client that soon gives up a daemon that is away. One that runs may take its time.
func (d *fakeDaemon) impatient(g *globals) *daemon.Client {
	g.settings.Root = d.root
	c := g.daemon()
	c.Patience, c.Timeout = 300*time.Millisecond, time.Minute
	return c
}

func plainGlobals(e *testEnv) *globals {
	g := globalsOf(e.env())
	g.out.SetForm("text", "never", 0)
	return g
}

func TestControlNoDaemon(t *testing.T) {
	d := newFakeDaemon(t)
	d.kill()
	e := &testEnv{}
	c := d.impatient(plainGlobals(e))

	// The socket is there and no process listens: the daemon may come back, and the command waits for it.
	begin := time.Now()
	_, err := c.Status(t.Context())
	if !errors.Is(err, daemon.ErrDown) || time.Since(begin) < c.Patience || !strings.Contains(e.stderr.String(), "waiting") {
		t.Errorf("after %s: %v\n%s", time.Since(begin), err, e.stderr.String())
	}
	c.Patience = time.Minute
	go func() {
		sleep.For(t.Context(), 100*time.Millisecond)
		d.start()
	}()
	_, err = c.Status(t.Context())
	must.OK(t, err)
	// Without a socket it fails at once.
	d.kill()
	must.OK(t, os.Remove(d.socket()))
	c.Patience = 24 * time.Hour
	if _, err = c.Status(t.Context()); !errors.Is(err, daemon.ErrDown) {
		t.Error(err)
	}
}

// A leave and a join get the daemon's count, with the reason of unknown ones. Without a daemon nothing is known, at once.
func TestDaemonCountsSessions(t *testing.T) {
	d := newFakeDaemon(t)
	g := plainGlobals(&testEnv{})
	g.settings.Root = d.root
	d.count.Sessions = cluster.Sessions{Publishers: new(0), Viewers: new(5), Peers: new(3), By: cluster.CountedByConnections}
	if n, err := g.daemon().Sessions(t.Context()); err != nil || n.Left() != "0 publishers, about 5 viewers left, 3 connections of other nodes" {
		t.Errorf("%s, %v", n.Left(), err)
	}
	d.count = daemon.SessionsView{Sessions: cluster.Sessions{Publishers: new(0)}, Missing: "a network of its own"}
	if n, err := g.daemon().Sessions(t.Context()); err == nil || n.Publishers == nil || n.Viewers != nil || !strings.Contains(err.Error(), d.count.Missing) {
		t.Errorf("%+v, %v", n, err)
	}
	d.kill()
	if n, err := g.daemon().Sessions(t.Context()); !errors.Is(err, daemon.ErrDown) || n.Publishers != nil || n.Viewers != nil {
		t.Errorf("%+v, %v", n, err)
	}
}

// Any program may listen there.
func TestControlOddAnswers(t *testing.T) {
	serve := func(t *testing.T, handle func(net.Conn)) *daemon.Client {
		d := newFakeDaemon(t)
		d.kill()
		l := d.listen()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer func() { _ = conn.Close() }()
					_, _ = conn.Read(make([]byte, 4096))
					handle(conn)
				}()
			}
		}()
		return d.impatient(plainGlobals(&testEnv{}))
	}
	say := func(text string) func(net.Conn) {
		return func(c net.Conn) { _, _ = io.WriteString(c, text) }
	}
	const ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	for _, tt := range []struct {
		name   string
		handle func(net.Conn)
		want   func(error) bool
		text   string
	}{
		{"garbage", say("SSH-2.0-OpenSSH_9.2\r\n"), is(daemon.ErrVersion), "malformed HTTP"},
		{"web page", say("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p>x"), is(daemon.ErrVersion), "answers 200 OK"},
		{"wrong types", say(ok + "Content-Length: 11\r\n\r\n{\"state\":5}"), is(daemon.ErrVersion), "the answer of"},
		{"404 of an older daemon", say("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\n404"), is(daemon.ErrVersion), "answers 40"},
		{"redirect", say("HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"), is(daemon.ErrVersion), "answers 302 Found"},
		{"hangs up", func(net.Conn) {}, is(daemon.ErrLost), "gave no answer"},
		{"cut off", say(ok + "Content-Length: 500\r\n\r\n{\"id\":\"d1\""), is(daemon.ErrLost), "gave no answer"},
		{"silent", func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }, is(daemon.ErrLost), "no answer in 0.3 s"},
		{"slow to the end", func(c net.Conn) {
			_, _ = io.WriteString(c, ok+"Content-Length: 500\r\n\r\n{")
			_, _ = c.Read(make([]byte, 1))
		}, is(daemon.ErrLost), "no answer in 0.3 s"},
		{"endless", func(c net.Conn) {
			if _, err := io.WriteString(c, ok+"\r\n"); err != nil {
				return
			}
			for {
				if _, err := c.Write([]byte(strings.Repeat(" ", 4096))); err != nil {
					return
				}
			}
		}, is(daemon.ErrVersion), "has no end"},
		{"refusal", say("HTTP/1.1 409 Conflict\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n{\"code\":\"too-late\",\"message\":\"it stops\"}"), as[*daemon.Refusal], "it stops"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, tt.handle)
			if strings.Contains(tt.text, "0.3 s") { // only these must be given up
				c.Timeout = 300 * time.Millisecond
			}
			_, err := c.Life(t.Context(), daemon.PathDrain, nil)
			if err == nil || tt.want != nil && !tt.want(err) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%T %v", err, err)
			}
			if strings.Contains(err.Error(), "http://") {
				t.Errorf("names an address: %v", err)
			}
		})
	}
}

// That no viewers may be sent here is named in status, and makes it strict.
func TestStatusNamesWhatTheDaemonFinds(t *testing.T) {
	d := newFakeDaemon(t)
	d.status = daemon.View{State: cluster.StateActive, Proved: true, NotReady: "no application is known", MetricsError: "127.0.0.1:9771 is taken", Drift: &daemon.DriftView{Means: "a restart is pending"}}
	g := globalsOf((&testEnv{}).env())
	g.settings.Root = d.root
	v := &statusView{Status: &bootstrap.Status{}}
	v.askDaemon(t.Context(), g)
	w := &output.Text{Now: fixedNow()}
	statusText(w, v)
	must.Contain(t, "output", w.String(),
		"AMS-NOT-SERVING: the node is not ready for new sessions: no application is known",
		"STATUS-PORT: the daemon does not serve /metrics, /healthz and /readyz: 127.0.0.1:9771 is taken",
		"\nServer settings\n",
	)
	// In the first second of a daemon nothing is wrong yet.
	d.status.NotReady, d.status.MetricsError = daemon.NotAsked, ""
	v = &statusView{Status: &bootstrap.Status{}}
	if v.askDaemon(t.Context(), g); len(v.Disagree) > 0 {
		t.Errorf("before the applications were asked: %+v", v.Disagree)
	}
}

// A daemon that does not answer has its id and its hint, for status and for drain.
func TestDaemonThatHangs(t *testing.T) {
	d := newFakeDaemon(t)
	d.kill()
	d.listen() // and never accept
	g := plainGlobals(&testEnv{})
	c := d.impatient(g)
	c.Timeout = 100 * time.Millisecond
	_, err := c.Status(t.Context())
	if u := g.explain(err); u.ID != idLostDaemon || u.Exit != exitUnknown || len(u.Hints) == 0 || strings.Contains(u.Msg, "context") {
		t.Errorf("%+v", u)
	}
	v := &statusView{Status: &bootstrap.Status{}}
	v.askDaemon(t.Context(), g)
	if len(v.Disagree) != 1 || v.Disagree[0].ID != idLostDaemon || v.Disagree[0].Hint == "" || strings.Contains(v.DaemonErr, "context") {
		t.Errorf("%+v, %q", v.Disagree, v.DaemonErr)
	}
}

// Which launch hooks are not this agent's is no disagreement. A time has its zone: the operator's terminal may have another.
func TestStatusLife(t *testing.T) {
	text := func(life lifecycle.View) string {
		w := &output.Text{Now: fixedNow()}
		statusText(w, &statusView{Status: &bootstrap.Status{Member: true}, Daemon: &daemon.View{Lifecycle: &life}})
		return w.String()
	}
	hooks := (&cloud.OthersHooksError{Group: "edge", Hooks: []string{"up", "install"}}).Error()
	if got := text(lifecycle.View{State: lifecycle.StateActive, LaunchHooks: hooks}); !strings.Contains(got, "up, install") || strings.Contains(got, "degraded") || strings.Contains(got, "Shutdown") {
		t.Errorf("got:\n%s", got)
	}
	at := fixedNow()
	zone, _ := at.Local().Zone()
	drain := lifecycle.View{State: lifecycle.StateDraining, NextDrain: at, Timeline: []lifecycle.Moment{{At: at, By: "--deadline", Decides: true}}}
	if got := text(drain); strings.Count(got, at.Local().Format(time.DateTime)+" "+zone+" ") != 2 {
		t.Errorf("no zone %q:\n%s", zone, got)
	}
}
