// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/faults"
	"github.com/amsagent/amsagent/sandbox/internal/imds"
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
	o Options
	control.Ports
	faults.List[Fault]
	imds.Sessions

	mu       sync.Mutex
	instance Instance
	keys     []credentials // all that were given out, the last is the one in force
}

// credentials are those of the role for a while.
type credentials struct {
	id, secret, token string
	since, until      time.Time
}

// Request is one line of the record.
type Request = imds.Request

const rolesDir = "meta-data/ram/security-credentials/"

// Start serves until Close or until ctx is done.
func Start(ctx context.Context, o Options) (*Server, error) {
	o.CredentialsLife = cmp.Or(o.CredentialsLife, 6*time.Hour)
	s := &Server{o: o, Sessions: imds.Sessions{
		Log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), Header: "X-Aliyun-Ecs-Metadata-Token", TTLHeader: "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds",
	}}
	if o.Instance != nil {
		s.instance = o.Instance.clone()
	} else {
		s.instance = Sample()
	}
	var err error
	s.Ports, err = control.ServeBoth(ctx, o.Listen, http.HandlerFunc(s.serve), o.Control, s.controlHandler())
	if err != nil {
		return nil, err
	}
	if o.Cloud != nil {
		o.Cloud.know(s)
	}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return s, nil
}

// Close ends the service.
func (s *Server) Close() error {
	s.ClearFaults() // lets go of what hangs
	return s.Ports.Close()
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
	if f.Code != "" || f.Deaf {
		return errors.New("code and deaf are faults of the API")
	}
	return s.List.AddFault(f)
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

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	seq := s.Record(r)
	_, below, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	struck, healed := s.Strike(func(f Fault) bool { return f.matches(r.URL.Path, below) })
	fault := struck.HTTP()
	reply := func(status int, body string) { s.reply(w, seq, status, body) }
	if fault.Instead(w, r, healed, reply) {
		return
	}
	status, body := s.answer(r)
	fault.Answer(w, status, body, reply)
}

func (s *Server) reply(w http.ResponseWriter, seq, status int, body string) {
	s.Answered(seq, status)
	w.Header().Set("Content-Type", "text/plain")
	faults.Write(w, status, body)
}

func (s *Server) answer(r *http.Request) (status int, body string) {
	version, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if path == "api/token" {
		token, status := s.Give(r)
		return status, cmp.Or(token, strings.ToLower(http.StatusText(status)))
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return http.StatusMethodNotAllowed, "method not allowed"
	}
	if !s.Admits(r, s.o.Plain) {
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
