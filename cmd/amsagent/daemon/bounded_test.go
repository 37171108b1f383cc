// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/bounded"
	"github.com/amsagent/amsagent/internal/must"
)

// TestFlood opens thousands of connections that never finish their request, and asks for health among them. TestDaemonCrowd
// (sandbox/e2e, in heavy) does so with 20,000 clients, and measures the memory of the program as the kernel counts it.
func TestFlood(t *testing.T) {
	path := freshSocket(t)
	l := &notified{}
	d := newTestDaemon(&fakeMachine{}, l, func(o *Options) {
		o.Mongo = func(context.Context) (Named, error) { return Named{}, ErrNoMongo }
		o.Settings = func() Settings { return Settings{Interval: 10 * time.Millisecond} }
		o.Control, o.Lock, o.Metrics = path, path+".lock", "127.0.0.1:0"
	})
	stop := runs(t, d)
	v := listens(t, path)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	const flood, batch = 2000, 100
	header := "GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", maxHeader/2)
	healthy := 0
	var mine []net.Conn
	for i := range flood {
		c, err := net.Dial("tcp", v.Metrics)
		must.OK(t, err)
		mine = append(mine, c)
		_, _ = io.WriteString(c, header) // fails where the daemon has closed it already
		if i%batch != batch-1 {
			continue
		}
		resp, err := http.Get("http://" + v.Metrics + "/healthz")
		if err != nil {
			t.Errorf("no health after %d connections: %v", i+1, err)
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			healthy++
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	must.Equal(t, "health answered (times)", healthy, flood/batch)
	if used := int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse); used > 8<<20 {
		t.Errorf("%d connections take %d kB", flood, used>>10)
	}
	must.Until(t, "beats go on while they are open", func() bool { return len(l.rounds()) > 0 })
	// All but the last are closed.
	for i, c := range mine {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if i < flood-bounded.MaxConns {
			_, err := c.Read(make([]byte, 1))
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Fatalf("connection %d of %d is open", i, flood)
			}
		}
		_ = c.Close()
	}
	stop()
}

func TestRequestBounds(t *testing.T) {
	d := newTestDaemon(&fakeMachine{}, &notified{}, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	srv := d.httpServer("", d.metricsHandler(), requestTime)
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	for name, tt := range map[string]struct {
		request string
		want    int
	}{
		"plain":       {"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", http.StatusOK},
		"body":        {"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", http.StatusOK},
		"chunks":      {"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", http.StatusOK},
		"long header": {"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 9<<10) + "\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
	} {
		c, err := net.Dial("tcp", l.Addr().String())
		must.OK(t, err)
		_, _ = io.WriteString(c, tt.request)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else {
			_ = resp.Body.Close()
			must.Equal(t, name, resp.StatusCode, tt.want)
		}
		_ = c.Close()
	}
	for _, limit := range []time.Duration{srv.ReadHeaderTimeout, srv.ReadTimeout, srv.WriteTimeout, srv.IdleTimeout} {
		if limit <= 0 || limit > 5*time.Second {
			t.Errorf("a limit is %s", limit)
		}
	}
}

// The port that another program has is taken over when that one ends; systemd hears first that the daemon is up.
func TestPortTaken(t *testing.T) {
	// An address of its own: no other test gets its port meanwhile.
	other, err := net.Listen("tcp", "127.0.93.2:0")
	must.OK(t, err)
	defer other.Close()
	path := freshSocket(t)
	l := &notified{}
	d := newTestDaemon(&fakeMachine{}, l, func(o *Options) {
		o.Mongo = func(context.Context) (Named, error) { return Named{}, ErrNoMongo }
		o.Control, o.Lock, o.Metrics = path, path+".lock", other.Addr().String()
	})
	stop := runs(t, d)
	want := "another program listens on " + other.Addr().String()
	must.Until(t, "the error", func() bool { return d.view.get().MetricsError == want })
	must.Equal(t, "the port", d.view.get().Metrics, "")
	must.Contain(t, "the service manager's line", d.view.line(), want)
	must.OK(t, other.Close())
	must.Equal(t, "the error with a port", listens(t, path).MetricsError, "")
	resp, err := http.Get("http://" + other.Addr().String() + "/healthz")
	must.OK(t, err)
	_ = resp.Body.Close()
	stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sent) == 0 || !strings.HasPrefix(l.sent[0], "READY=1") {
		t.Errorf("the service manager was notified first: %q", l.sent)
	}
}
