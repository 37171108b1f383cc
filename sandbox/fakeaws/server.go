// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"context"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// Options configure a metadata service. The zero value serves [Sample] on a free port of loopback.
type Options struct {
	cloud.Listen
	// Instance is what is served; nil means Sample.
	Instance *Instance
	// AutoScaling is driven by this control port too, below /asg/; nil: none. It is
	// not attached and not closed by this.
	AutoScaling *AutoScaling
	// AllowV1 answers without a token too (HttpTokens=optional).
	AllowV1 bool
}

// Server is the metadata service of one instance.
type Server struct {
	cloud.Service
	cloud.Served[Instance]
	cloud.Tokens
	allowV1 bool
	former  []string // keys that were in force, guarded by Served
}

// Fault spoils answers of the metadata service, or of the API.
type Fault = cloud.Fault

// New makes a service that does not listen.
func New(o Options) *Server {
	s := &Server{allowV1: o.AllowV1, Tokens: cloud.Tokens{Header: "X-Aws-Ec2-Metadata-Token", TTLHeader: ttlHeader}}
	s.Metadata(o.Logger(), "", map[string]string{"Content-Type": "text/plain", "Server": "EC2ws"}, &s.Tokens)
	i := Sample()
	if o.Instance != nil {
		i = *o.Instance
	}
	if i.Credentials.AccessKeyID == "" || i.Credentials == sampleCredentials() {
		// Each instance of a group has its own, so that the books can say which one called.
		i.Credentials = sampleCredentials()
		i.Credentials.Token += "-" + i.ID
	}
	s.Update(func(to *Instance) { *to = i })
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

// Instance returns a copy of what is served now.
func (s *Server) Instance() Instance { return s.Get() }

const ttlHeader = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"

// ServeHTTP answers a request for metadata.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Serve(w, r, func(Fault) (int, string) {
		status, body := s.answer(w, r)
		if status != http.StatusOK && body == "" {
			body = page(status)
		}
		return status, body
	})
}

// dated is a version of the service that is a date.
var dated = regexp.MustCompile(`^(1\.0|20\d\d-\d\d-\d\d)$`)

func (s *Server) answer(w http.ResponseWriter, r *http.Request) (status int, body string) {
	version, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case path == "api/token":
		token, status := s.Give(r)
		if status == http.StatusOK {
			w.Header().Set(ttlHeader, r.Header.Get(ttlHeader))
		}
		return status, token
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return http.StatusMethodNotAllowed, ""
	case !s.Admits(r, s.allowV1):
		return http.StatusUnauthorized, ""
	case version != "latest" && !dated.MatchString(version):
		return http.StatusNotFound, ""
	}
	if v, ok := lookup(s.Get().items(time.Now()), path); ok {
		return http.StatusOK, v
	}
	return http.StatusNotFound, ""
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
