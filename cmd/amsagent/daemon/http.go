// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const (
	// healthLimit is after how many intervals without a round the loop is taken
	// for stuck.
	healthLimit = 4
	// leastHealth is what a busy machine gets in any case.
	leastHealth = 30 * time.Second
	// requestTime bounds reading a request and writing its answer.
	requestTime = 10 * time.Second
	// closeTime is what an answer under way gets at the end.
	closeTime = 200 * time.Millisecond
)

// servers are the two sockets that answer questions.
type servers struct {
	http   []*http.Server
	socket string // its path; "" where there is none
}

func (s *servers) close(ctx context.Context) {
	if s.socket != "" {
		_ = os.Remove(s.socket) // one that is left is replaced by the next daemon
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	for _, srv := range s.http {
		if err := srv.Shutdown(ctx); err != nil {
			_ = srv.Close()
		}
	}
}

// listen opens the control socket and, where asked for, the metrics. A name or a
// port that is taken is worth a line in the log, and no more: beats are what the
// daemon is for.
func (d *Daemon) listen(ctx context.Context) *servers {
	s := new(servers)
	if control, err := listenUnix(ctx, d.o.Control); err != nil {
		d.log.Error("no control socket: `amsagent status` cannot ask this daemon", "error", err)
	} else {
		s.socket = d.o.Control
		s.http = append(s.http, d.serveHTTP(control, d.controlHandler()))
	}
	if d.o.Metrics == "" {
		return s
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", d.o.Metrics)
	if err != nil {
		d.log.Error("no metrics and no health are served", "address", d.o.Metrics, "error", err)
		return s
	}
	d.view.change(func(v *View) { v.Metrics = l.Addr().String() })
	s.http = append(s.http, d.serveHTTP(l, d.metricsHandler()))
	return s
}

// listenUnix replaces the socket of a daemon that was killed; the lock says that
// there is no other one.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is there and no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// Under another name until its mode is right: nobody may connect before.
	staged := path + ".new"
	if err := os.Remove(staged); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", staged)
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	if err := errors.Join(os.Chmod(staged, 0o660), os.Rename(staged, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (d *Daemon) serveHTTP(l net.Listener, h http.Handler) *http.Server {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: requestTime, ReadTimeout: requestTime, WriteTimeout: requestTime,
		IdleTimeout: requestTime, MaxHeaderBytes: 8 << 10,
	}
	srv.SetKeepAlivesEnabled(false)
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("a socket does not answer any more", "address", l.Addr().String(), "error", err)
		}
	}()
	return srv
}

// controlHandler answers the command line, which talks to us as root.
func (d *Daemon) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathStatus, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, d.view.get()) })
	if d.life != nil {
		d.life.handle(mux)
	}
	return mux
}

func (d *Daemon) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		d.metrics.write(w, d.view.get(), d.view.lastSample())
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		// For a load balancer: red as soon as this node drains.
		v := d.view.get()
		if !v.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		writeJSON(w, map[string]any{"ready": v.Ready, "state": v.State})
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		h := d.health(time.Now())
		if !h.Healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		writeJSON(w, h)
	})
	return mux
}

// Health is the answer of /healthz: whether the agent itself is well. MongoDB and
// AMS have no part in it.
type Health struct {
	Healthy bool   `json:"healthy"`
	Why     string `json:"why,omitempty"`
}

func (d *Daemon) health(now time.Time) Health {
	v := d.view.get()
	last := v.Beat.Round
	if last.IsZero() {
		last = v.Started
	}
	limit := max(healthLimit*time.Duration(d.interval.Load()), leastHealth)
	if since := now.Sub(last); since > limit {
		return Health{Why: fmt.Sprintf("the loop has not gone round for %s", since.Round(time.Second))}
	}
	return Health{Healthy: true}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// The reader going away is all that can fail.
	_ = json.NewEncoder(w).Encode(v)
}
