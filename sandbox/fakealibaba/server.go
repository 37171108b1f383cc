// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakealibaba is a fake of what an ECS instance of Alibaba Cloud sees: the
// metadata service with the session tokens of hardened mode, the credentials of its
// RAM role, and, see [Cloud], the APIs of Auto Scaling (ESS) and ECS with the groups
// behind them, and of KMS with its secrets. Faults can be switched on and off while
// it runs, and books are kept of who said what when.
//
// The API computes signature V3 again and refuses a wrong one, an old one, a nonce
// that it has seen, credentials that have ended and permissions that are not there.
//
// Documented, and so here: the paths and headers of the metadata, 401 for a token
// that has ended, 403 for a service that is switched off, 404 for what is not set;
// the names of the API's actions, parameters and errors; a hook's own time, the 20
// heartbeats and the 6 hours of a wait; that one token may be that of several
// instances; both shapes of lists (of the API of 2014, wrapped, and of 2022, plain).
//
// Guessed: the form of the list of IPv6 addresses and that of active system events
// (both can be given as text), that a heartbeat begins a new time instead of adding
// to the old one, that one scale-in of several instances gives them one action for
// each hook, the texts of errors, and how soon the states follow each other.
//
// All answer on loopback unless told otherwise. The API is not stable.
package fakealibaba

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// Options configure a metadata service. The zero value serves [Sample] on a free port of loopback.
type Options struct {
	cloud.Listen
	// Instance is what is served; nil means Sample.
	Instance *Instance
	// Cloud is driven by this control port too, below /cloud/, and knows the
	// credentials of this instance; nil: none. It is not closed by this.
	Cloud *Cloud
	// Plain answers without a token too (HttpTokens=optional).
	Plain bool
}

// Server is the metadata service of one instance.
type Server struct {
	cloud.Service
	cloud.Served[Instance]
	cloud.Tokens
	cloud.Keys
}

// New makes a service that does not listen.
func New(o Options) *Server {
	s := &Server{Keys: cloud.Keys{Prefix: "STS."}, Tokens: cloud.Tokens{
		Header: "X-Aliyun-Ecs-Metadata-Token", TTLHeader: "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds", Optional: o.Plain,
	}}
	s.Metadata(o.Logger(), "", map[string]string{"Content-Type": "text/plain"}, &s.Tokens)
	s.Serving(o.Instance, Sample())
	if c := o.Cloud; c != nil {
		c.Mu.Lock()
		defer c.Mu.Unlock()
		c.owners = append(c.owners, s)
	}
	return s
}

// Start serves until Close or until ctx is done.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := New(o)
	return s, s.Service.Start(ctx, o.Listen, s, func() http.Handler {
		if o.Cloud != nil {
			return s.Verbs().Sub("/cloud", o.Cloud.Verbs())
		}
		return s.Verbs().Handler()
	})
}

// Interrupt tells that the spot instance is taken back; a zero time takes that back.
func (s *Server) Interrupt(at time.Time) { s.Update(func(i *Instance) { i.TerminationTime = at }) }

// Announce tells of active system events, as text; "" takes them back.
func (s *Server) Announce(events string) { s.Update(func(i *Instance) { i.Events = events }) }

// ServeHTTP answers a request for metadata.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Serve(w, r, func(cloud.Fault) (int, string) {
		status, body := s.Answer(r, s.item)
		if status != http.StatusOK && body == "" {
			body = strings.ToLower(http.StatusText(status))
		}
		return status, body
	})
}

func (s *Server) item(version, path string) (string, bool) {
	v, ok := s.Get().items(s.Key())[path]
	return v, ok && version == "latest"
}

// Verbs are those of the metadata service:
//
//	GET, PATCH /instance       what is served, signals among them; JSON: the fields in it are replaced
//	POST   /expire-tokens
//	POST   /spot               ?in=5m
//	POST   /fault              see [cloud.Fault]; GET, DELETE /fault
//	GET    /requests
//
// With a cloud also those of [Cloud.Verbs], below /cloud/.
func (s *Server) Verbs() cloud.Verbs {
	return s.WithFaults(s.Served.Verbs("/instance",
		cloud.Do("POST /expire-tokens", s.ExpireTokens),
		cloud.With("POST /spot", "in", 5*time.Minute, func(in time.Duration) error {
			s.Interrupt(time.Now().Add(in))
			return nil
		}),
	))
}
