// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakeazure is a fake of the metadata service that a virtual machine of Azure sees at 169.254.169.254, and of Scheduled
// Events. A [Server] is the service of one machine. A [Set] is what machines share: one document of events, which any of them
// may acknowledge for all.
//
// Documented: the header, the versions, 410 after a boot, five requests in a second and 429, the
// documents, the slow first call and the delay of the events after it, an empty NotBefore once an event has begun, and that of
// deletes with one NotBefore none goes before all were acknowledged or their time is over.
//
// Guessed: a 400 for X-Forwarded-For, that the incarnation grows by one, and the times from an acknowledgement to the begin of
// the event and to its end. Azure's shortest notice of five minutes is not kept to.
package fakeazure

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// Options configure a metadata service. The zero value serves [Sample] in a set of its own on a free port of loopback.
type Options struct {
	fakes.Listen
	// VM is what is served; nil means Sample.
	VM *VM
	// Set is what the machine shares with others; nil: a set of its own. It is not closed by this if it was given.
	Set *Set
	// Versions are those of the instance metadata that are served; nil: 2021-12-13 and later.
	Versions []string
	// BootTime is for how long everything is 410 after the start, DropCalls how many calls are dropped before anything else.
	BootTime  time.Duration
	DropCalls int
	// FirstCall is how long the first call for events takes.
	FirstCall time.Duration
}

// Server is the metadata service of one machine.
type Server struct {
	fakes.Service
	fakes.Served[VM]
	o       Options
	set     *Set
	started time.Time

	mu     sync.Mutex
	asked  bool // for events
	recent []time.Time
}

// limit is how many requests a machine may make in a second.
const limit = 5

// versions are those that Azure documents, as far as they have all that is served here.
var versions = map[string][]string{
	"/metadata/instance":        {"2021-12-13", "2023-07-01", "2023-11-15", "2025-04-07"},
	"/metadata/scheduledevents": {"2020-07-01"},
}

// New makes a service that does not listen.
func New(o Options) *Server {
	s := &Server{o: o, set: o.Set, started: time.Now()}
	s.Serving(o.VM, Sample())
	if s.set == nil {
		vm := s.Get()
		s.set = NewSet(cmp.Or(vm.ScaleSet, vm.Name), SetOptions{Log: o.Log})
	}
	s.Metadata(o.Logger(), "/metadata/", map[string]string{"Content-Type": "application/json; charset=utf-8", "Server": "IMDS/150.870.65.1854"}, nil)
	if o.DropCalls > 0 {
		_ = s.AddFault(fakes.Fault{Reset: true, Times: o.DropCalls}) // it is valid
	}
	return s
}

// Start serves until Close or until ctx is done.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := New(o)
	return s, s.Service.Start(ctx, o.Listen, s, func() http.Handler { return s.Verbs().Handler() })
}

// Set is what the machine shares with others.
func (s *Server) Set() *Set { return s.set }

// Close ends the service.
func (s *Server) Close() error {
	if s.o.Set == nil {
		_ = s.set.Close() // it never fails
	}
	return s.Service.Close()
}

// tooMany reports whether a call is one too many in this second.
func (s *Server) tooMany() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.recent = slices.DeleteFunc(s.recent, func(t time.Time) bool { return now.Sub(t) >= time.Second })
	if len(s.recent) >= limit {
		return true
	}
	s.recent = append(s.recent, now)
	return false
}

// ServeHTTP answers a request for metadata.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tooMany := s.tooMany()
	s.Serve(w, r, func(fakes.Fault) (int, string) {
		if tooMany {
			s.set.throttled(s.Get().Name)
			return http.StatusTooManyRequests, problem("Too many requests")
		}
		return s.answer(r)
	})
}

// problem is the body of an error.
func problem(text string) string { return fakes.JSON(map[string]any{"error": text}) }

func (s *Server) answer(r *http.Request) (status int, body string) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	events := path == "/metadata/scheduledevents"
	switch {
	case time.Since(s.started) < s.o.BootTime:
		return http.StatusGone, problem("The service is not there for the moment")
	case r.Header.Get("Metadata") != "true":
		return http.StatusBadRequest, problem("Bad request. Required metadata header not specified")
	case r.Header.Get("X-Forwarded-For") != "":
		return http.StatusBadRequest, problem("Bad request. Requests that were forwarded are not answered")
	case versions[path] == nil:
		return http.StatusNotFound, problem("Not found")
	case r.Method != http.MethodGet && (!events || r.Method != http.MethodPost):
		return http.StatusMethodNotAllowed, problem("Method not allowed")
	}
	known := versions[path]
	if !events && s.o.Versions != nil {
		known = s.o.Versions
	}
	if !slices.Contains(known, r.URL.Query().Get("api-version")) {
		return http.StatusBadRequest, problem("Bad request. api-version is invalid or was not specified in the request")
	}
	switch {
	case events && r.Method == http.MethodPost:
		return s.approve(r)
	case events:
		return s.listEvents(r)
	}
	return http.StatusOK, fakes.JSON(s.Get().instance())
}

// listEvents returns the document of events.
func (s *Server) listEvents(r *http.Request) (int, string) {
	s.mu.Lock()
	first := !s.asked
	s.asked = true
	s.mu.Unlock()
	if first && s.o.FirstCall > 0 {
		select {
		case <-time.After(s.o.FirstCall):
		case <-r.Context().Done():
			return http.StatusGone, problem("the client has disconnected")
		}
	}
	vm := s.Get()
	return http.StatusOK, fakes.JSON(s.set.document(vm.Name, vm.Zone))
}

// approve acknowledges events.
func (s *Server) approve(r *http.Request) (int, string) {
	var in struct {
		StartRequests []struct {
			EventID string `json:"EventId"`
		} `json:"StartRequests"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in.StartRequests) == 0 {
		return http.StatusBadRequest, problem("Bad request. The body is malformed")
	}
	name := s.Get().Name
	for _, e := range in.StartRequests {
		if !s.set.ack(name, e.EventID) {
			return http.StatusBadRequest, problem("Bad request. The event is not known")
		}
	}
	return http.StatusOK, ""
}

// Verbs are those of the metadata service, and of the set: see the tables of sandbox/README.md.
func (s *Server) Verbs() fakes.Verbs {
	v := s.WithFaults(s.Served.Verbs("/vm",
		fakes.Verb{Name: "POST /event", Bind: func() (fakes.Params, func() error) {
			e := Event{Type: Terminate, Lead: time.Minute, VMs: []string{s.Get().Name}}
			params := fakes.Params{
				"type": &e.Type, "lead": &e.Lead, "vms": &e.VMs, "id": &e.ID, "source": &e.Source, "description": &e.Description, "duration": &e.Duration,
			}
			return params, func() error {
				_, err := s.set.Announce(e)
				return err
			}
		}},
		fakes.With("DELETE /event", "id", "", s.set.Cancel),
		fakes.With("POST /begin", "id", "", s.set.Begin),
	))
	v.Shown = "/events"
	v.Views["/events"] = func() any { return s.set.Events() }
	v.Views["/books"] = func() any { return s.set.Books() }
	return v
}
