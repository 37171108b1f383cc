// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package replay is a metadata service that knows no cloud: it answers what a test gives it, by path, or a fault.
package replay

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/amsagent/amsagent/internal/fakes"
)

// Protocol is what a cloud's service asks for and adds. Each may be empty.
type Protocol struct {
	// Token are the headers of a session token and of its lifetime. Such a service is below /latest/.
	Token [2]string
	// Header is required in every request, Answer is in every answer, also of a fault.
	Header, Answer [2]string
}

// Service is for [fakes.Transport]. It fails the test after a request that looks forwarded, or without the agent's User-Agent.
type Service struct {
	fakes.Tokens
	tb       testing.TB
	protocol Protocol
	bodies   map[string]string

	mu     sync.Mutex
	faults []broken
	seen   []*http.Request
}

type broken struct {
	path  string
	left  int // negative: for good
	fault http.HandlerFunc
}

// New returns a service that answers bodies by path.
func New(tb testing.TB, p Protocol, bodies map[string]string) *Service {
	return &Service{Tokens: fakes.Tokens{Header: p.Token[0], TTLHeader: p.Token[1]}, tb: tb, protocol: p, bodies: bodies}
}

// Break makes the next n answers of a path fail, or all if n is negative. Faults queue up.
func (s *Service) Break(path string, n int, fault http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, broken{path, n, fault})
}

// Seen returns the requests so far.
func (s *Service) Seen() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// Count returns the number of requests for a path.
func (s *Service) Count(path string) (n int) {
	for _, r := range s.Seen() {
		if r.URL.Path == path {
			n++
		}
	}
	return n
}

// AskedOnce fails the test after a repeated request.
func (s *Service) AskedOnce() {
	s.tb.Helper()
	asked := map[string]bool{}
	for _, r := range s.Seen() {
		what := r.Method + " " + r.URL.RequestURI()
		if asked[what] {
			s.tb.Errorf("%s asked again", what)
		}
		asked[what] = true
	}
}

// ServeHTTP implements http.Handler.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.UserAgent(), "amsagent") {
		s.tb.Errorf("%s %s: its User-Agent is %q", r.Method, r.URL.Path, r.UserAgent())
	}
	for _, h := range []string{"X-Forwarded-For", "Forwarded", "Via", "Authorization", "Cookie"} {
		if r.Header.Get(h) != "" {
			s.tb.Errorf("%s %s carries %s", r.Method, r.URL.Path, h)
		}
	}
	if h := s.protocol.Answer; h[0] != "" {
		w.Header().Set(h[0], h[1])
	}
	s.next(r)(w, r)
}

// next returns the next answer to a request.
func (s *Service) next(r *http.Request) http.HandlerFunc {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, r)
	for i, b := range s.faults {
		if b.left != 0 && b.path == r.URL.Path {
			s.faults[i].left--
			return b.fault
		}
	}
	h := s.protocol.Header
	switch {
	case h[0] != "" && r.Header.Get(h[0]) != h[1]:
		return Status(http.StatusBadRequest)
	case s.Header != "":
		status, body := s.Answer(r, func() fakes.Items {
			items := fakes.Items{}
			for path, body := range s.bodies {
				items[strings.TrimPrefix(path, "/latest/")] = body
			}
			return items
		})
		if status != http.StatusOK {
			return Status(status)
		}
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(s.TTLHeader, r.Header.Get(s.TTLHeader))
			say(w, body)
		}
	case r.Method != http.MethodGet:
		return Status(http.StatusMethodNotAllowed)
	}
	// The full URI first: one path may have several answers.
	for _, key := range []string{r.URL.RequestURI(), r.URL.Path} {
		if body, ok := s.bodies[key]; ok {
			return Body(body)
		}
	}
	return Status(http.StatusNotFound)
}

// say ignores a client that left.
func say(w io.Writer, s string) { _, _ = io.WriteString(w, s) }

// Status answers with a status and HTML, as EC2 does.
func Status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		say(w, fmt.Sprintf("<html><body><h1>%d</h1></body></html>", code))
	}
}

// Body answers 200 with a body.
func Body(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { say(w, body) }
}

// Page is that of a captive portal.
const Page = "<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"

// HTML answers like a captive portal.
func HTML(w http.ResponseWriter, _ *http.Request) { say(w, Page) }

// Slow never answers.
func Slow(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// Closed closes the connection without an answer.
func Closed(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) } // aborts the answer in net/http
