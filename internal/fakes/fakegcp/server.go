// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakegcp is a fake of the metadata server of a machine on Google Cloud, and of the end of that machine: it is
// preempted, stopped, and then it is off.
//
// Documented: Metadata-Flavor on each request and answer, recursive=true with JSON, the long poll by wait_for_change, last_etag
// and timeout_sec, 503 while the host is worked on, the 30 and the 120 seconds from the soft power-off to the hard one.
//
// Guessed: the form of an ETag, that a poll without last_etag waits for the next change, that max-duration is a number of
// seconds, 403 for a request with X-Forwarded-For or without the header.
package fakegcp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// Options configure a metadata server. The zero value serves [Sample] on a free port of loopback.
type Options struct {
	fakes.Listen
	// Instance is what is served; nil means Sample.
	Instance *Instance
}

// Server is the metadata server of one machine.
type Server struct {
	fakes.Service
	fakes.Served[Instance]
	*fakes.EventLog[Entry]

	mu   sync.Mutex
	next *time.Timer // the next step to the end of the machine; nil: none
}

const (
	base   = "/computeMetadata/v1/"
	flavor = "Google"
)

// New makes a service that does not listen.
func New(o Options) *Server {
	s := &Server{}
	s.Serving(o.Instance, Sample())
	s.EventLog = fakes.NewEventLog[Entry](s.Get().Name, &s.mu, o.Log)
	s.Metadata(o.Logger(), base, map[string]string{fakes.Flavor: flavor, "Server": "Metadata Server for VM"}, nil)
	return s
}

// Start serves until Close or until ctx is done.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := New(o)
	return s, s.Service.Start(ctx, o.Listen, s, func() http.Handler { return s.Verbs().Handler() })
}

// Close ends the service. The machine has no further steps.
func (s *Server) Close() error {
	s.mu.Lock()
	s.arm(0, nil)
	s.mu.Unlock()
	return s.Service.Close()
}

// ServeHTTP answers a request for metadata.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Serve(w, r, func(f fakes.Fault) (int, string) {
		status, body := s.answer(r, f.Instant)
		if status == http.StatusOK {
			w.Header().Set("ETag", tagOf(body))
		}
		return status, body
	})
}

// tagOf is the ETag of an answer.
func tagOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:8])
}

// answer waits for a change if the request says so. Status 0: the client has left.
func (s *Server) answer(r *http.Request, instant bool) (status int, body string) {
	q := r.URL.Query()
	path, ok := strings.CutPrefix(r.URL.Path, base)
	switch {
	case r.Method != http.MethodGet:
		return http.StatusMethodNotAllowed, "method not allowed"
	case r.Header.Get("X-Forwarded-For") != "", r.Header.Get(fakes.Flavor) != flavor:
		return http.StatusForbidden, "<title>403 Forbidden</title>"
	case !ok:
		return http.StatusNotFound, "<title>404 Not Found</title>"
	}
	hold := time.Duration(0)
	if q.Get("wait_for_change") == "true" && !instant {
		hold = time.Hour
		if n, err := strconv.Atoi(q.Get("timeout_sec")); err == nil {
			hold = time.Duration(n) * time.Second
		}
	}
	timer := time.NewTimer(hold)
	defer timer.Stop()
	last := q.Get("last_etag")
	for {
		instance, changed := s.Follow()
		items := instance.items()
		body, ok := items[path]
		switch {
		case ok && strings.HasSuffix(path, "/") && (q.Get("recursive") != "true" || q.Get("alt") != "json"):
			return http.StatusNotImplemented, "this fake lists folders in their recursive form alone"
		case !ok:
			return http.StatusNotFound, "<title>404 Not Found</title>"
		}
		if last == "" {
			last = tagOf(body)
		}
		if hold == 0 || last != tagOf(body) {
			return http.StatusOK, body
		}
		select {
		case <-changed:
		case <-timer.C:
			return http.StatusOK, body
		case <-r.Context().Done():
			return 0, ""
		}
	}
}

// Verbs are those of the metadata server: see the tables of sandbox/README.md.
func (s *Server) Verbs() fakes.Verbs {
	window := func(do func(time.Duration)) func(time.Duration) error {
		return func(d time.Duration) error {
			do(d)
			return nil
		}
	}
	v := s.WithFaults(s.Served.Verbs("/instance",
		fakes.With("POST /vanish", "ms", 0, s.Vanish),
		fakes.With("POST /preempt", "ms", 0, window(s.Preempt)),
		fakes.With("POST /scale-in", "ms", 0, window(s.powerDown)),
		fakes.Verb{Name: "POST /stop", Bind: func() (fakes.Params, func() error) {
			longest, target := 10*time.Minute, "STOPPED"
			return fakes.Params{"ms": &longest, "target": &target}, func() error {
				s.Stop(longest, target)
				return nil
			}
		}},
		fakes.Do("DELETE /stop", s.Unstop),
		fakes.Do("POST /off", s.Off),
	))
	v.Views["/books"] = func() any { return s.Books() }
	return v
}
