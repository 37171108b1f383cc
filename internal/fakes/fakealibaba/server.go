// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakealibaba is a fake of what an ECS instance of Alibaba Cloud sees: the metadata service with the session tokens of
// hardened mode and the credentials of its RAM role, and, see [Cloud], the APIs of Auto Scaling (ESS), ECS and KMS. The API
// computes signature V3 again.
//
// Documented: paths, headers and statuses of the metadata; actions, parameters and errors of the API; a hook's own time, the 20
// heartbeats and the 6 hours of a wait; one token for several instances; lists wrapped as in 2014 or plain as in 2022.
//
// Guessed: the form of the lists of IPv6 addresses and of active system events (both are given as text), that a heartbeat
// begins a new time instead of adding to the old one, one action for each hook of a scale-in of several instances.
package fakealibaba

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// Options configure a metadata service. The zero value serves [Sample] on a free port of loopback.
type Options struct {
	fakes.Listen
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
	fakes.Service
	fakes.Served[Instance]
	fakes.Tokens
	fakes.Keys
}

// New makes a service that does not listen.
func New(o Options) *Server {
	s := &Server{Keys: fakes.Keys{Prefix: "STS."}, Tokens: fakes.Tokens{
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

// Interrupt announces that the spot instance is reclaimed; a zero time cancels the notice.
func (s *Server) Interrupt(at time.Time) { s.Update(func(i *Instance) { i.TerminationTime = at }) }

// Announce sets the active system events, as text; "" cancels them.
func (s *Server) Announce(events string) { s.Update(func(i *Instance) { i.Events = events }) }

// ServeHTTP answers a request for metadata.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Serve(w, r, func(fakes.Fault) (int, string) {
		status, body := s.Answer(r, func() fakes.Items { return s.Get().items(s.Key()) })
		if status != http.StatusOK && body == "" {
			body = strings.ToLower(http.StatusText(status))
		}
		return status, body
	})
}

// Verbs are those of the metadata service, with a cloud also those of [Cloud.Verbs], below /cloud/: see the tables of sandbox/README.md.
func (s *Server) Verbs() fakes.Verbs {
	return s.WithFaults(s.Served.Verbs("/instance",
		fakes.Do("POST /expire-tokens", s.ExpireTokens),
		fakes.With("POST /spot", "in", 5*time.Minute, func(in time.Duration) error {
			s.Interrupt(time.Now().Add(in))
			return nil
		}),
	))
}
