// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

func TestCheckLiveness(t *testing.T) {
	for name, c := range map[string]struct {
		code int
		body string
		want Liveness
	}{
		"live":            {200, `{"host":"node-1","status":"ok"}`, Liveness{State: Live, Code: 200, Host: "node-1", Status: "ok"}},
		"other fields":    {200, `{"host":7,"x":[]}`, Liveness{State: Live, Code: 200}},
		"another server":  {200, "<html>welcome to nginx</html>", Liveness{State: LiveUnknown, Code: 200, Detail: "it answers 200, but not as Ant Media Server does"}},
		"endless":         {200, `{"host":"` + strings.Repeat("x", 64<<10) + `"}`, Liveness{State: LiveUnknown, Code: 200, Detail: "it answers 200, but not as Ant Media Server does"}},
		"console not up":  {403, "", Liveness{State: LiveStarting, Code: 403, Detail: "it answers 403 Forbidden"}},
		"unavailable":     {503, "", Liveness{State: LiveStarting, Code: 503, Detail: "it answers 503 Service Unavailable"}},
		"no own hostname": {500, "", Liveness{State: LiveBroken, Code: 500, Detail: "it answers 500 Internal Server Error: its own hostname does not resolve"}},
		"old release":     {404, "", Liveness{State: "no-endpoint", Code: 404, Detail: "it answers, without a liveness call"}},
		"redirect":        {302, "", Liveness{State: LiveUnknown, Code: 302, Detail: "it answers 302 Found"}},
		"login":           {401, "", Liveness{State: LiveUnknown, Code: 401, Detail: "it answers 401 Unauthorized"}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || r.URL.Path != "/rest/v2/liveness" || r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Via") != "" {
					t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
				}
				if c.code == 302 {
					w.Header().Set("Location", "https://elsewhere/")
				}
				w.WriteHeader(c.code)
				_, _ = io.WriteString(w, c.body)
			}))
			defer srv.Close()
			// The environment's proxies are ignored.
			t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
			must.NoDiff(t, "check liveness", CheckLiveness(t.Context(), nil, srv.URL), c.want)
		})
	}
}

func TestCheckLivenessNoAnswer(t *testing.T) {
	l, err := net.Listen("tcp", ownPort)
	must.OK(t, err)
	base := "http://" + l.Addr().String()
	_ = l.Close()
	if got := CheckLiveness(t.Context(), nil, base); got.State != LiveStarting || got.Detail != "no process listens yet" {
		t.Errorf("refused: %+v", got)
	}

	hangup := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = c.Close()
		}
	}))
	defer hangup.Close()
	if got := CheckLiveness(t.Context(), nil, hangup.URL); got.State != LiveStarting {
		t.Errorf("hung up: %+v", got)
	}

	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, `{"host":`)
	}))
	defer cut.Close()
	if got := CheckLiveness(t.Context(), nil, cut.URL); got.State != LiveStarting {
		t.Errorf("cut: %+v", got)
	}

	for _, bad := range []string{"", "://", "127.0.0.1:5080", "http://127.0.0.1:99999"} {
		if got := CheckLiveness(t.Context(), nil, bad); got.State != LiveUnknown || got.Detail == "" {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

// ownPort is on a loopback address that no other test listens on: a test's server reuses its port after a restart.
const ownPort = "127.0.93.1:0"

// A polling client reuses one connection and counts its connections. It reaches a restarted server by a new one.
func TestPollingClient(t *testing.T) {
	var made atomic.Int64
	serve := func(l net.Listener) *http.Server {
		srv := &http.Server{
			Handler: http.HandlerFunc(http.NotFound),
			ConnState: func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					made.Add(1)
				}
			},
			ReadHeaderTimeout: time.Minute,
		}
		go func() { _ = srv.Serve(l) }()
		return srv
	}
	l, err := net.Listen("tcp", ownPort)
	must.OK(t, err)
	address := l.Addr().String()
	srv := serve(l)
	var conns ConnCount
	client := NewHTTPClient(&conns)
	ask := func(want AppServing) {
		t.Helper()
		if a := CheckServing(t.Context(), client, "http://"+address, "LiveApp"); a.State != want {
			t.Errorf("%+v, want %s", a, want)
		}
	}
	// Go drops a connection if the end of a write is reported 50 ms late, as on a busy machine.
	const calls = 20
	for range calls {
		ask(AppServes)
	}
	if made.Load() > calls/2 {
		t.Errorf("%d calls made %d connections", calls, made.Load())
	}
	// All applications are polled at the same time, repeatedly.
	const applications, rounds = 8, 10
	made.Store(0)
	for range rounds {
		var asks sync.WaitGroup
		for range applications {
			asks.Go(func() { ask(AppServes) })
		}
		asks.Wait()
	}
	if made.Load() > applications*rounds/2 {
		t.Errorf("%d applications asked %d times made %d connections", applications, rounds, made.Load())
	}
	client.CloseIdleConnections()
	ask(AppServes)
	opens := func(n int) {
		t.Helper()
		must.Until(t, fmt.Sprintf("%d open connections", n), func() bool { return conns.Open() == n }) // they are closed in the background
	}
	opens(1)
	lost := conns.Lost()
	must.OK(t, srv.Close())
	ask(AppRefused)
	opens(0)
	must.Equal(t, "connections lost after the server closed", conns.Lost(), lost+1)
	l, err = net.Listen("tcp", address)
	must.OK(t, err)
	srv = serve(l)
	defer func() { _ = srv.Close() }()
	ask(AppServes)
	opens(1)

	// Single calls share no connection.
	client = NewHTTPClient(nil)
	made.Store(0)
	ask(AppServes)
	ask(AppServes)
	must.Equal(t, "connections of two calls", made.Load(), 2)
}
