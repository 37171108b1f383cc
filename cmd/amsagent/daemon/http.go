// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/internal/bounded"
	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata/azure"
)

const (
	// healthLimit is how many intervals a round may take before the loop counts as hanging.
	healthLimit = 4
	// leastHealth is its minimum, for a busy machine.
	leastHealth = 30 * time.Second
	// requestTime bounds reading a request and each write of a response.
	requestTime = 5 * time.Second
	// commandTime bounds a command's response, which may wait for a disk.
	commandTime = 10 * time.Second
	// maxHeader bounds a request's header. net/http adds 4 kB.
	maxHeader = 4 << 10
	// closeTime bounds pending responses at the end.
	closeTime = 200 * time.Millisecond
)

// listenTCP waits until the port is free; it returns nil when ctx ends. failed is called with the error of each failed attempt to
// listen or to accept, and with nil after the next good one.
func listenTCP(ctx context.Context, address string, failed func(error)) net.Listener {
	for again := false; ; again = true {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err == nil {
			if again {
				failed(nil)
			}
			return bounded.New(l, failed)
		}
		if ctx.Err() == nil {
			failed(err)
		}
		if !sleep.For(ctx, portPause) {
			return nil
		}
	}
}

// serveMetrics names another program's port in the status line, for that program answers there meanwhile. It calls
// tried after the first attempt to listen.
func (d *Daemon) serveMetrics(ctx context.Context, tried func()) {
	defer tried()
	if d.o.Metrics == "" {
		return
	}
	l := listenTCP(ctx, d.o.Metrics, func(err error) {
		text := ""
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			text = "another program listens on " + d.o.Metrics
		case err != nil:
			text = err.Error()
		}
		before := d.view.get().MetricsError
		d.view.change(func(v *View) { v.MetricsError = text })
		switch {
		case err == nil:
			d.log.Info("metrics and health are served again", "address", d.o.Metrics)
			d.status()
		case before == "":
			d.log.Error("metrics and health are not served", "address", d.o.Metrics, "error", err)
			tried()
		}
	})
	if l == nil {
		return
	}
	d.view.change(func(v *View) { v.Metrics = l.Addr().String() })
	tried()
	d.serveHTTP(ctx, l, d.metricsHandler(), requestTime)
}

// listenUnix replaces an earlier daemon's socket; the lock excludes a second daemon.
func listenUnix(ctx context.Context, path string, failed func(error)) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket == 0 {
		return nil, fmt.Errorf("%s is there and no socket", path)
	}
	// Under another name until its mode is set: no client may connect before. The rename leaves no moment without a socket.
	staged := path + ".new"
	if err := os.Remove(staged); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", staged)
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	if err := errors.Join(os.Chmod(staged, 0o600), os.Rename(staged, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return bounded.New(l, failed), nil
}

// serveHTTP answers until ctx ends. It leaves the control socket's file for the next daemon to replace: to a command, a file
// without a listener means that the daemon is restarting.
func (d *Daemon) serveHTTP(ctx context.Context, l net.Listener, h http.Handler, answerTime time.Duration) {
	srv := d.httpServer(l.Addr().String(), h, answerTime)
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
		defer cancel()
		if err := srv.Shutdown(bound); err != nil {
			_ = srv.Close()
		}
	})
	_ = srv.Serve(l) // until the listener is closed
	if !stop() {
		<-closed
	}
}

// httpServer bounds everything that a client can consume.
func (d *Daemon) httpServer(address string, h http.Handler, answerTime time.Duration) *http.Server {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: requestTime, ReadTimeout: requestTime, WriteTimeout: answerTime, IdleTimeout: requestTime,
		MaxHeaderBytes: maxHeader,
		// A client can cause any number of these. Errors of the listener itself are reported by listenTCP's failed.
		ErrorLog: slog.NewLogLogger(d.log.With("address", address).Handler(), slog.LevelDebug),
	}
	srv.SetKeepAlivesEnabled(false)
	return srv
}

// controlHandler serves only root.
func (d *Daemon) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathStatus, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, d.view.get()) })
	mux.HandleFunc("GET "+PathSessions, func(w http.ResponseWriter, r *http.Request) {
		n, err := d.sampler.Sessions(r.Context())
		v := SessionsView{Sessions: n}
		if err != nil {
			v.Missing = err.Error()
		}
		writeJSON(w, v)
	})
	mux.HandleFunc("POST "+PathHold, d.serveHold)
	d.life.handle(mux)
	return mux
}

// serveHold holds while the connection is open, so that a killed command releases it.
func (d *Daemon) serveHold(w http.ResponseWriter, r *http.Request) {
	var q HoldRequest
	if !readRequest(w, r, &q) {
		return
	}
	defer d.hold(q.Command)()
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	if json.NewEncoder(w).Encode(q) == nil && control.Flush() == nil {
		<-r.Context().Done()
	}
}

func (d *Daemon) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		writeMetrics(w, d.view.get())
	})
	mux.HandleFunc("GET "+PathReady, func(w http.ResponseWriter, _ *http.Request) {
		v := d.view.get()
		answerJSON(w, v.Ready, v.readiness(d.o.Redact))
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		h := d.health(time.Now())
		h.Why = d.o.Redact(h.Why)
		answerJSON(w, h.Healthy, h)
	})
	mux.HandleFunc("GET /application-health", func(w http.ResponseWriter, _ *http.Request) {
		now := time.Now()
		v := d.view.get()
		writeJSON(w, azure.HealthOf(d.health(now).Healthy, v.idle(now)))
	})
	return mux
}

// answerJSON answers 200 or 503.
func answerJSON(w http.ResponseWriter, good bool, v any) {
	w.Header().Set("Content-Type", "application/json")
	if !good {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	writeJSON(w, v)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// Only a client that disconnects causes an error.
	_ = json.NewEncoder(plain.Writer{To: w}).Encode(v)
}
