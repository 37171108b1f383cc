// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/http"
	"regexp"
	"strconv"
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
	control.Ports
	faults.List[Fault]
	imds.Sessions
	allowV1 bool

	mu       sync.Mutex
	instance Instance
	rotated  int      // how often the credentials were
	former   []string // keys that were in force
}

// Request is one line of the record.
type Request = imds.Request

// Start serves until Close or until ctx is done.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{
		allowV1:  o.AllowV1,
		Sessions: imds.Sessions{Log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), Header: "X-Aws-Ec2-Metadata-Token", TTLHeader: ttlHeader},
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
	s.Ports, err = control.ServeBoth(ctx, o.Listen, http.HandlerFunc(s.serve), o.Control, s.controlHandler(o.AutoScaling))
	if err != nil {
		return nil, err
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

const ttlHeader = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	seq := s.Record(r)
	struck, healed := s.Strike(func(f Fault) bool { return f.matches(r) })
	fault := struck.HTTP()
	reply := func(status int, body string) { s.reply(w, seq, status, body) }
	if fault.Instead(w, r, healed, reply) {
		return
	}
	status, body, header := s.answer(r)
	maps.Copy(w.Header(), header)
	fault.Answer(w, status, body, reply)
}

func (s *Server) reply(w http.ResponseWriter, seq, status int, body string) {
	s.Answered(seq, status)
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Server", "EC2ws")
	faults.Write(w, status, body)
}

// dated is a version of the service that is a date.
var dated = regexp.MustCompile(`^(1\.0|20\d\d-\d\d-\d\d)$`)

// versions are listed at the root.
const versions = "1.0\n2021-03-23\n2022-09-24\n2024-04-11\nlatest"

func (s *Server) answer(r *http.Request) (status int, body string, header http.Header) {
	version, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if path == "api/token" {
		token, status := s.Give(r)
		if status != http.StatusOK {
			return status, page(status), nil
		}
		return status, token, http.Header{ttlHeader: {r.Header.Get(ttlHeader)}}
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return http.StatusMethodNotAllowed, page(http.StatusMethodNotAllowed), nil
	}
	if !s.Admits(r, s.allowV1) {
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
