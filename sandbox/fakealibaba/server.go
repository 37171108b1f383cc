// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
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
	// Cloud is driven by this control port too, below /cloud/, and knows the
	// credentials of this instance; nil: none. It is not closed by this.
	Cloud *Cloud
	// Plain answers without a token too (HttpTokens=optional).
	Plain bool
	// CredentialsLife is how long credentials are good for; default 6h.
	CredentialsLife time.Duration
	// Log gets a line for each request; default none.
	Log *slog.Logger
}

// Server is a running metadata service.
type Server struct {
	o        Options
	log      *slog.Logger
	http     *control.Server
	control  *control.Server
	faults   faults.List[Fault]
	requests books.Record[Request]

	mu       sync.Mutex
	instance Instance
	tokens   map[string]time.Time // when they end
	keys     []credentials        // all that were given out, the last is the one in force
}

// credentials are those of the role for a while.
type credentials struct {
	id, secret, token string
	since, until      time.Time
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

const (
	ttlHeader   = "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds"
	tokenHeader = "X-Aliyun-Ecs-Metadata-Token"
	maxTTL      = 21600
	rolesDir    = "meta-data/ram/security-credentials/"
)

// Start serves until Close or until ctx is done.
func Start(ctx context.Context, o Options) (*Server, error) {
	o.CredentialsLife = cmp.Or(o.CredentialsLife, 6*time.Hour)
	s := &Server{o: o, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), tokens: map[string]time.Time{}}
	if o.Instance != nil {
		s.instance = o.Instance.clone()
	} else {
		s.instance = Sample()
	}
	var err error
	s.http, s.control, err = control.ServeBoth(ctx, o.Listen, http.HandlerFunc(s.serve), o.Control, s.controlHandler())
	if err != nil {
		return nil, err
	}
	if o.Cloud != nil {
		o.Cloud.know(s)
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
func (s *Server) AddFault(f Fault) error {
	return s.faults.Add(f, f.Times, func() error {
		if err := f.validate(); err != nil {
			return err
		}
		if f.Code != "" || f.Deaf {
			return errors.New("code and deaf are faults of the API")
		}
		return nil
	})
}

// ClearFaults heals the service. Connections that hang are closed.
func (s *Server) ClearFaults() { s.faults.Clear() }

// Faults lists what is in force.
func (s *Server) Faults() []Fault { return s.faults.All() }

// ExpireTokens makes every session token that was given out invalid.
func (s *Server) ExpireTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// ExpireCredentials makes those in force invalid for the API; the next who asks gets
// new ones.
func (s *Server) ExpireCredentials() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.keys {
		s.keys[i].until = time.Time{}
	}
}

// Interrupt tells that the spot instance is taken back; a zero time takes that back.
func (s *Server) Interrupt(at time.Time) { s.Update(func(i *Instance) { i.TerminationTime = at }) }

// Announce tells of active system events, as text; "" takes them back.
func (s *Server) Announce(events string) { s.Update(func(i *Instance) { i.Events = events }) }

// Requests is the record of the last few thousand requests, oldest first.
func (s *Server) Requests() []Request { return s.requests.All() }

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	seq := s.record(r)
	_, below, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	struck, healed := s.faults.Strike(func(f Fault) bool { return f.matches(r.URL.Path, below) })
	fault := struck.http()
	reply := func(status int, body string) { s.reply(w, seq, status, body) }
	if fault.Instead(w, r, healed, reply) {
		return
	}
	status, body := s.answer(r)
	fault.Answer(w, status, body, reply)
}

func (s *Server) reply(w http.ResponseWriter, seq, status int, body string) {
	s.requests.Change(seq, func(r *Request) { r.Status = status })
	w.Header().Set("Content-Type", "text/plain")
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

func (s *Server) answer(r *http.Request) (status int, body string) {
	version, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if path == "api/token" {
		return s.giveToken(r, version)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return http.StatusMethodNotAllowed, "method not allowed"
	}
	switch token := r.Header.Get(tokenHeader); {
	case token == "" && s.o.Plain:
	case token == "" || !s.good(token):
		return http.StatusUnauthorized, "unauthorized"
	}
	if version != "latest" && version != "2016-01-01" {
		return http.StatusNotFound, "not found"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if role, ok := strings.CutPrefix(path, rolesDir); ok && role != "" {
		if role != s.instance.Role {
			return http.StatusNotFound, "not found"
		}
		return http.StatusOK, s.credentials(time.Now())
	}
	items, err := s.instance.items()
	if err != nil {
		return http.StatusInternalServerError, err.Error()
	}
	if v, ok := items[path]; ok {
		return http.StatusOK, v
	}
	return http.StatusNotFound, "not found"
}

func (s *Server) giveToken(r *http.Request, version string) (status int, body string) {
	ttl, err := strconv.Atoi(r.Header.Get(ttlHeader))
	switch {
	case r.Method != http.MethodPut || version != "latest":
		return http.StatusMethodNotAllowed, "method not allowed"
	case r.Header.Get("X-Forwarded-For") != "":
		return http.StatusForbidden, "forbidden"
	case err != nil || ttl < 1 || ttl > maxTTL:
		return http.StatusBadRequest, "bad request"
	}
	token := rand.Text() + rand.Text() + "=="
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = time.Now().Add(time.Duration(ttl) * time.Second)
	return http.StatusOK, token
}

// credentials are those in force; new ones where those have less than half of their
// life left, or none. The lock is held.
func (s *Server) credentials(now time.Time) string {
	if n := len(s.keys); n == 0 || s.keys[n-1].until.Sub(now) < s.o.CredentialsLife/2 {
		s.keys = append(s.keys, credentials{
			id: "STS." + rand.Text()[:16], secret: rand.Text() + rand.Text(), token: "CAIS" + rand.Text() + rand.Text(),
			since: now, until: now.Add(s.o.CredentialsLife),
		})
	}
	k := s.keys[len(s.keys)-1]
	b, err := json.Marshal(map[string]string{
		"Code": "Success", "AccessKeyId": k.id, "AccessKeySecret": k.secret, "SecurityToken": k.token,
		"LastUpdated": k.since.UTC().Format(time.RFC3339), "Expiration": k.until.UTC().Format(time.RFC3339),
	})
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// key finds the credentials with an id that this instance was given.
func (s *Server) key(id string) (credentials, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		if k.id == id {
			return k, true
		}
	}
	return credentials{}, false
}
