// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Service describes the protocol of a metadata service.
type Service struct {
	// Origin is the cloud's own: http://169.254.169.254.
	Origin string
	// Token is nil without session tokens.
	Token *cloud.Token
	// Header is required in every request but the token's, or empty.
	Header [2]string
	// Answer is in every answer, also of a fault, or empty.
	Answer   [2]string
	Required string
	// Optional is the path of an item that may be absent, Field its JSON name. Both may be empty.
	Optional, Field string
	// WrongTypes are well-formed, but undocumented answers to Required.
	WrongTypes []string
}

// Fake is a metadata service with injectable faults, for fakes.Transport. It fails the test after a request that looks forwarded, or
// without the agent's User-Agent.
type Fake struct {
	tb     testing.TB
	svc    Service
	bodies map[string]string

	mu     sync.Mutex
	faults []broken
	seen   []*http.Request
	issued int
	valid  map[string]bool // session tokens
}

type broken struct {
	path  string
	left  int // negative: for good
	fault http.HandlerFunc
}

// NewFake returns a fake that serves bodies by path.
func NewFake(tb testing.TB, svc Service, bodies map[string]string) *Fake {
	return &Fake{tb: tb, svc: svc, bodies: bodies, valid: map[string]bool{}}
}

// Break makes the next n answers of a path fail, or all if n is negative. Faults queue up. "*" matches all paths but the
// token's.
func (f *Fake) Break(path string, n int, fault http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, broken{path, n, fault})
}

// Expire invalidates all session tokens.
func (f *Fake) Expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.valid)
}

// Seen returns the requests so far.
func (f *Fake) Seen() []*http.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen)
}

// Count returns the number of requests for a path.
func (f *Fake) Count(path string) (n int) {
	for _, r := range f.Seen() {
		if r.URL.Path == path {
			n++
		}
	}
	return n
}

// AskedOnce fails the test after a repeated request.
func (f *Fake) AskedOnce() {
	f.tb.Helper()
	asked := map[string]bool{}
	for _, r := range f.Seen() {
		what := r.Method + " " + r.URL.RequestURI()
		if asked[what] {
			f.tb.Errorf("%s asked again", what)
		}
		asked[what] = true
	}
}

// ServeHTTP implements http.Handler.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.UserAgent(), cloud.UserAgent) {
		f.tb.Errorf("%s %s: its User-Agent is %q", r.Method, r.URL.Path, r.UserAgent())
	}
	for _, h := range []string{"X-Forwarded-For", "Forwarded", "Via", "Authorization", "Cookie"} {
		if r.Header.Get(h) != "" {
			f.tb.Errorf("%s %s carries %s", r.Method, r.URL.Path, h)
		}
	}
	if h := f.svc.Answer; h[0] != "" {
		w.Header().Set(h[0], h[1])
	}
	f.next(r)(w, r)
}

// next returns the next answer to a request.
func (f *Fake) next(r *http.Request) http.HandlerFunc {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, r)
	t := f.svc.Token
	forToken := t != nil && r.URL.Path == t.Path
	for i, b := range f.faults {
		if b.left != 0 && (b.path == r.URL.Path || b.path == "*" && !forToken) {
			f.faults[i].left--
			return b.fault
		}
	}
	h := f.svc.Header
	switch {
	case forToken && (r.Method != http.MethodPut || r.Header.Get(t.TTL) == ""):
		return Status(http.StatusBadRequest)
	case forToken:
		f.issued++
		token := fmt.Sprintf("token-%d", f.issued)
		f.valid[token] = true
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(t.TTL, r.Header.Get(t.TTL))
			say(w, token)
		}
	case t != nil && !f.valid[r.Header.Get(t.Header)]:
		return Status(http.StatusUnauthorized)
	case h[0] != "" && r.Header.Get(h[0]) != h[1]:
		return Status(http.StatusBadRequest)
	case r.Method != http.MethodGet:
		return Status(http.StatusMethodNotAllowed)
	}
	// The full URI first: one path may have several answers.
	for _, key := range []string{r.URL.RequestURI(), r.URL.Path} {
		if body, ok := f.bodies[key]; ok {
			return Body(body)
		}
	}
	return Status(http.StatusNotFound)
}

// say ignores closed connections.
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

const page = "<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"

// HTML answers like a captive portal.
func HTML(w http.ResponseWriter, _ *http.Request) { say(w, page) }

// Slow never answers.
func Slow(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// Closed closes the connection without an answer.
func Closed(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) } // aborts the answer in net/http
