// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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

// Seen is a request that reached the fake.
type Seen struct {
	Method, Path, Query string
	Header              http.Header
}

// Fault is a faulty answer.
type Fault = http.HandlerFunc

// Fake is a metadata service with injectable faults. It fails the test if the User-Agent is wrong.
type Fake struct {
	tb     testing.TB
	svc    Service
	server *httptest.Server

	bodies map[string]string

	mu        sync.Mutex
	faults    map[string][]Fault // the next answers by path
	always    map[string]Fault   // all answers after those
	seen      []Seen
	issued    int
	valid     map[string]bool
	onRequest func(Seen)
}

// NewFake starts a fake that serves bodies by path.
func NewFake(tb testing.TB, svc Service, bodies map[string]string) *Fake {
	tb.Helper()
	f := &Fake{tb: tb, svc: svc, bodies: bodies, faults: map[string][]Fault{}, always: map[string]Fault{}, valid: map[string]bool{}}
	f.server = httptest.NewServer(f)
	tb.Cleanup(func() {
		// Close would wait for slow answers.
		f.server.CloseClientConnections()
		f.server.Close()
	})
	return f
}

// URL returns the origin of the fake.
func (f *Fake) URL() string { return f.server.URL }

// Addr returns host and port.
func (f *Fake) Addr() string { return strings.TrimPrefix(f.server.URL, "http://") }

// Break makes the next n answers of a path fail, or all if n is negative. Faults queue up. "*" matches all paths but the
// token's.
func (f *Fake) Break(path string, n int, fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n < 0 {
		f.always[path] = fault
	}
	for range n {
		f.faults[path] = append(f.faults[path], fault)
	}
}

// Expire invalidates all session tokens.
func (f *Fake) Expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.valid)
}

// OnRequest sets a callback before each answer.
func (f *Fake) OnRequest(fn func(Seen)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onRequest = fn
}

// Seen returns the requests so far.
func (f *Fake) Seen() []Seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Seen(nil), f.seen...)
}

// Count returns the number of requests for a path.
func (f *Fake) Count(path string) int {
	n := 0
	for _, s := range f.Seen() {
		if s.Path == path {
			n++
		}
	}
	return n
}

// AskedOnce fails the test after a repeated request.
func (f *Fake) AskedOnce(context string) {
	f.tb.Helper()
	asked := map[string]int{}
	for _, r := range f.Seen() {
		what := r.Method + " " + r.Path + "?" + r.Query
		if asked[what]++; asked[what] == 2 {
			f.tb.Errorf("%s: %s asked again", context, what)
		}
	}
}

// ServeHTTP implements http.Handler.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := f.svc.Answer; h[0] != "" {
		w.Header().Set(h[0], h[1])
	}
	f.mu.Lock()
	if !strings.HasPrefix(r.UserAgent(), cloud.UserAgent) {
		f.tb.Errorf("%s %s: its User-Agent is %q", r.Method, r.URL.Path, r.UserAgent())
	}
	for _, h := range []string{"X-Forwarded-For", "Forwarded", "Via", "Authorization", "Cookie"} {
		if r.Header.Get(h) != "" {
			f.tb.Errorf("%s %s carries %s", r.Method, r.URL.Path, h)
		}
	}
	seen := Seen{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Clone()}
	f.seen = append(f.seen, seen)
	hook := f.onRequest
	f.mu.Unlock()
	if hook != nil {
		hook(seen) // it may call Break
	}
	f.mu.Lock()
	fault := f.nextFault(r.URL.Path)
	f.mu.Unlock()
	if fault != nil {
		fault(w, r)
		return
	}
	f.serve(w, r)
}

func (f *Fake) nextFault(path string) Fault {
	keys := []string{path}
	if f.svc.Token == nil || path != f.svc.Token.Path {
		keys = append(keys, "*")
	}
	for _, key := range keys {
		if next := f.faults[key]; len(next) > 0 {
			f.faults[key] = next[1:]
			return next[0]
		}
		if fault := f.always[key]; fault != nil {
			return fault
		}
	}
	return nil
}

func (f *Fake) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.svc.Token; t != nil {
		if r.URL.Path == t.Path {
			if r.Method != http.MethodPut || r.Header.Get(t.TTL) == "" {
				http.Error(w, "bad token request", http.StatusBadRequest)
				return
			}
			f.issued++
			token := fmt.Sprintf("token-%d", f.issued)
			f.valid[token] = true
			w.Header().Set(t.TTL, r.Header.Get(t.TTL))
			say(w, token)
			return
		}
		if got := r.Header.Values(t.Header); len(got) != 1 || !f.valid[got[0]] {
			http.Error(w, "no valid token", http.StatusUnauthorized)
			return
		}
	}
	if h := f.svc.Header; h[0] != "" && r.Header.Get(h[0]) != h[1] {
		http.Error(w, "missing header", http.StatusBadRequest)
		return
	}
	if r.Method != http.MethodGet {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	// The full URI first: one path may have several answers.
	body, ok := f.bodies[r.URL.RequestURI()]
	if !ok {
		body, ok = f.bodies[r.URL.Path]
	}
	if !ok {
		// HTML, as on EC2.
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusNotFound)
		say(w, "<!DOCTYPE html><html><head><title>404 - Not Found</title></head><body><h1>404 - Not Found</h1></body></html>")
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	say(w, body)
}

// say ignores closed connections.
func say(w io.Writer, s string) { _, _ = io.WriteString(w, s) }

// Status answers with a status and HTML.
func Status(code int) Fault {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(code)
		say(w, fmt.Sprintf("<html><body><h1>%d</h1></body></html>", code))
	}
}

// Body answers 200 with a body.
func Body(body string) Fault {
	return func(w http.ResponseWriter, _ *http.Request) { say(w, body) }
}

const page = "<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"

// HTML answers like a captive portal.
func HTML() Fault { return Body(page) }

// Slow never answers.
func Slow() Fault {
	return func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
}

// Closed closes the connection without an answer.
func Closed() Fault {
	return func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) } // aborts the answer in net/http
}

// Truncated sends part of a body and closes the connection.
func Truncated() Fault {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		say(w, "{")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}
