// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/books"
	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// Options says how to start. The zero value serves [Sample] on a free port of
// loopback.
type Options struct {
	// Listen is the address to serve; default 127.0.0.1:0.
	Listen string
	// Control is the address of the HTTP control port; empty: none.
	Control string
	// Instance is what is told; nil means Sample.
	Instance *Instance
	// AutoScaling is driven by this control port too, below /asg/; nil: none. It is
	// not attached and not closed by this.
	AutoScaling *AutoScaling
	// AllowV1 answers without a token too (HttpTokens=optional).
	AllowV1 bool
	// Log gets a line for each request; default none.
	Log *slog.Logger
}

// Server is a running metadata service.
type Server struct {
	log      *slog.Logger
	allowV1  bool
	http     *control.Server
	control  *control.Server
	faults   faults.List[Fault]
	requests books.Record[Request]

	mu       sync.Mutex
	instance Instance
	tokens   map[string]time.Time // when they expire
	rotated  int                  // how often the credentials were
	former   []string             // keys that were in force
}

// Request is one line of the record.
type Request struct {
	Seq    int       `json:"seq"`
	Time   time.Time `json:"time"`
	Method string    `json:"method"`
	Path   string    `json:"path"`
	Token  string    `json:"token"`         // good, bad, none
	TTL    string    `json:"ttl,omitempty"` // asked for
	Status int       `json:"status"`        // 0: no answer
}

// Start serves until Close or until ctx is done.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{
		log:     cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		allowV1: o.AllowV1,
		tokens:  map[string]time.Time{},
	}
	if o.Instance != nil {
		s.instance = o.Instance.clone()
	} else {
		s.instance = Sample()
	}
	if s.instance.Credentials == sampleCredentials() {
		// Each instance of a group has its own, so that the books can tell who spoke.
		s.instance.Credentials.Token += "-" + s.instance.ID
	}
	var err error
	s.http, s.control, err = control.ServeBoth(ctx, o.Listen, http.HandlerFunc(s.serve), o.Control, s.controlHandler(o.AutoScaling))
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return s, nil
}

// Addr is host:port of the service.
func (s *Server) Addr() string { return s.http.Addr() }

// Endpoint is the origin of the service, without a path.
func (s *Server) Endpoint() string { return "http://" + s.Addr() }

// ControlAddr is host:port of the control port, or empty.
func (s *Server) ControlAddr() string { return s.control.Addr() }

// Close ends the service.
func (s *Server) Close() error {
	s.ClearFaults() // lets go of what hangs
	if err := errors.Join(s.http.Close(), s.control.Close()); err != nil {
		return fmt.Errorf("closing the metadata service: %w", err)
	}
	return nil
}

// Instance returns a copy of what is told now.
func (s *Server) Instance() Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.instance.clone()
}

// Update changes what is told, from the next request on.
func (s *Server) Update(change func(*Instance)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.instance)
}

// AddFault puts a fault in force beside those that are; the first that matches a
// request counts.
func (s *Server) AddFault(f Fault) error { return s.faults.Add(f, f.Times, f.validate) }

// ClearFaults heals the service. Connections that hang are closed.
func (s *Server) ClearFaults() { s.faults.Clear() }

// Faults lists what is in force.
func (s *Server) Faults() []Fault { return s.faults.All() }

// ExpireTokens makes every token that was given out invalid.
func (s *Server) ExpireTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// Requests is the record of the last few thousand requests, oldest first.
func (s *Server) Requests() []Request { return s.requests.All() }

const (
	ttlHeader   = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	tokenHeader = "X-Aws-Ec2-Metadata-Token"
	maxTTL      = 21600
)

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	seq := s.record(r)
	struck, healed := s.faults.Strike(func(f Fault) bool { return f.matches(r) })
	fault := struck.http()
	reply := func(status int, body string) { s.reply(w, seq, status, body) }
	if fault.Instead(w, r, healed, reply) {
		return
	}
	status, body, header := s.answer(r)
	maps.Copy(w.Header(), header)
	fault.Answer(w, status, body, reply)
}

func (s *Server) reply(w http.ResponseWriter, seq, status int, body string) {
	s.requests.Change(seq, func(r *Request) { r.Status = status })
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Server", "EC2ws")
	faults.Write(w, status, body)
}

func (s *Server) record(r *http.Request) int {
	token := "none"
	if t := r.Header.Get(tokenHeader); t != "" {
		token = "bad"
		if s.good(t) {
			token = "good"
		}
	}
	s.log.Info("request", "method", r.Method, "path", r.URL.Path, "token", token)
	return s.requests.Add(func(seq int) Request {
		return Request{Seq: seq, Time: time.Now(), Method: r.Method, Path: r.URL.Path, Token: token, TTL: r.Header.Get(ttlHeader)}
	})
}

func (s *Server) good(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.tokens[token])
}

// dated is a version of the service that is a date.
var dated = regexp.MustCompile(`^(1\.0|20\d\d-\d\d-\d\d)$`)

// versions are listed at the root.
const versions = "1.0\n2021-03-23\n2022-09-24\n2024-04-11\nlatest"

func (s *Server) answer(r *http.Request) (status int, body string, header http.Header) {
	version, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if path == "api/token" {
		return s.giveToken(r, version)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return http.StatusMethodNotAllowed, page(http.StatusMethodNotAllowed), nil
	}
	switch token := r.Header.Get(tokenHeader); {
	case token == "" && s.allowV1:
	case token == "" || !s.good(token):
		return http.StatusUnauthorized, page(http.StatusUnauthorized), nil
	}
	if version == "" {
		return http.StatusOK, versions, nil
	}
	if version != "latest" && !dated.MatchString(version) {
		return http.StatusNotFound, page(http.StatusNotFound), nil
	}
	s.mu.Lock()
	items, err := s.instance.items(time.Now())
	s.mu.Unlock()
	if err != nil {
		return http.StatusInternalServerError, err.Error(), nil
	}
	if v, ok := lookup(items, path); ok {
		return http.StatusOK, v, nil
	}
	return http.StatusNotFound, page(http.StatusNotFound), nil
}

func (s *Server) giveToken(r *http.Request, version string) (int, string, http.Header) {
	if r.Method != http.MethodPut {
		return http.StatusMethodNotAllowed, page(http.StatusMethodNotAllowed), nil
	}
	// A dated path gives none, and neither does a request that came over a proxy.
	if version != "latest" || r.Header.Get("X-Forwarded-For") != "" {
		return http.StatusForbidden, page(http.StatusForbidden), nil
	}
	ttl, err := strconv.Atoi(r.Header.Get(ttlHeader))
	if err != nil || ttl < 1 || ttl > maxTTL {
		return http.StatusBadRequest, page(http.StatusBadRequest), nil
	}
	token := "AQAEA" + rand.Text() + rand.Text() + "=="
	s.mu.Lock()
	s.tokens[token] = time.Now().Add(time.Duration(ttl) * time.Second)
	s.mu.Unlock()
	return http.StatusOK, token, http.Header{ttlHeader: {strconv.Itoa(ttl)}}
}

// page is the body of an error: the service sends HTML.
func page(status int) string {
	text := strconv.Itoa(status) + " - " + http.StatusText(status)
	return `<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>` + text + `</title>
 </head>
 <body>
  <h1>` + text + `</h1>
 </body>
</html>
`
}
