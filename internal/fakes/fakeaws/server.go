// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakeaws is a fake of the metadata service that an EC2 instance sees at 169.254.169.254: session tokens with the
// semantics of IMDSv2, the items that an agent asks for, tags, and faults. [AutoScaling] is a fake of the Auto Scaling API with
// its groups and hooks, which sets the target states in the metadata of its instances.
package fakeaws

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// Options configure a metadata service. The zero value serves [Sample] on a free port of loopback.
type Options struct {
	fakes.Listen
	// Instance is what is served; nil means Sample.
	Instance *Instance
	// AutoScaling is driven by this control port too, below /asg/; nil: none. It is not attached and not closed by this.
	AutoScaling *AutoScaling
	// AllowV1 answers without a token too (HttpTokens=optional).
	AllowV1 bool
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
	s := &Server{Keys: fakes.Keys{Prefix: "ASIA"}, Tokens: fakes.Tokens{Header: "X-Aws-Ec2-Metadata-Token", TTLHeader: ttlHeader, Optional: o.AllowV1}}
	s.Metadata(o.Logger(), "", map[string]string{"Content-Type": "text/plain", "Server": "EC2ws"}, &s.Tokens)
	s.Serving(o.Instance, Sample())
	return s
}

// Start serves until Close or until ctx is done.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := New(o)
	return s, s.Service.Start(ctx, o.Listen, s, func() http.Handler {
		if o.AutoScaling != nil {
			return s.Verbs().Sub("/asg", o.AutoScaling.Verbs())
		}
		return s.Verbs().Handler()
	})
}

const ttlHeader = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"

// ServeHTTP answers a request for metadata.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Serve(w, r, func(fakes.Fault) (int, string) {
		status, body := s.Answer(r, func() fakes.Items { return s.Get().items(s.Key()) })
		if status == http.StatusOK && r.Method == http.MethodPut {
			w.Header().Set(ttlHeader, r.Header.Get(ttlHeader))
		}
		if status != http.StatusOK && body == "" {
			body = page(status)
		}
		return status, body
	})
}

// page is the body of an error: the service sends HTML.
func page(status int) string {
	text := strconv.Itoa(status) + " - " + http.StatusText(status)
	return "<html><head><title>" + text + "</title></head><body><h1>" + text + "</h1></body></html>\n"
}

// Verbs are those of the metadata service, with an Auto Scaling API also those of [AutoScaling.Verbs], below /asg/: see the tables of sandbox/README.md.
func (s *Server) Verbs() fakes.Verbs {
	return s.WithFaults(s.Served.Verbs("/instance",
		fakes.Do("POST /expire-tokens", s.ExpireTokens),
		fakes.Do("POST /rotate-credentials", s.ExpireKeys),
		fakes.Verb{Name: "POST /spot", Bind: func() (fakes.Params, func() error) {
			action, in := "terminate", 2*time.Minute
			return fakes.Params{"action": &action, "in": &in}, func() error {
				s.Interrupt(action, time.Now().Add(in))
				return nil
			}
		}},
	))
}
