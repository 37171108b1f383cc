// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeazure

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/books"
	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// Options says how to start. The zero value serves [Sample] in a set of its own on a
// free port of loopback.
type Options struct {
	// Listen is the address to serve; default 127.0.0.1:0.
	Listen string
	// Control is the address of the HTTP control port; empty: none.
	Control string
	// VM is what is told; nil means Sample.
	VM *VM
	// Set is what the machine shares with others; nil: a set of its own. It is not
	// closed by this where it was given.
	Set *Set
	// Versions are those of the instance metadata that are served; nil: those that
	// Azure documented in 2026.
	Versions []string
	// BootTime is for how long everything is 410 after the start, DropCalls how many
	// calls are dropped before anything else.
	BootTime  time.Duration
	DropCalls int
	// FirstCall is how long the first call for events takes.
	FirstCall time.Duration
	// Unlimited lets a machine ask more than five times in a second.
	Unlimited bool
	// Log gets a line for each request; default none.
	Log *slog.Logger
}

// Server is the metadata service of one machine.
type Server struct {
	o Options
	control.Ports
	faults.List[Fault]
	log      *slog.Logger
	set      *Set
	own      bool            // the set is ours
	life     context.Context // until Close
	end      context.CancelFunc
	started  time.Time
	requests books.Record[Request]

	mu      sync.Mutex
	vm      VM
	dropped int
	asked   bool // for events
	recent  []time.Time
}

// Request is one line of the record.
type Request struct {
	Seq    int       `json:"seq"`
	Time   time.Time `json:"time"`
	Method string    `json:"method"`
	Path   string    `json:"path"`
	Query  string    `json:"query"`
	Status int       `json:"status"` // 0: no answer
}

// limit is how many requests a machine may make in a second.
const limit = 5

// Versions are those of the instance metadata that are served where nothing else is
// said, the oldest first.
func Versions() []string {
	return []string{
		"2017-04-02", "2017-08-01", "2017-12-01", "2018-02-01", "2018-04-02", "2018-10-01", "2019-02-01", "2019-03-11", "2019-04-30",
		"2019-06-01", "2019-06-04", "2019-08-01", "2019-08-15", "2019-11-01", "2020-06-01", "2020-07-15", "2020-09-01", "2020-10-01",
		"2020-12-01", "2021-01-01", "2021-02-01", "2021-03-01", "2021-05-01", "2021-10-01", "2021-11-01", "2021-11-15", "2021-12-13",
		"2023-07-01", "2023-11-15", "2025-04-07",
	}
}

// eventVersions are those of Scheduled Events.
func eventVersions() []string {
	return []string{"2017-08-01", "2017-11-01", "2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01"}
}

// Start serves until Close or until ctx is done.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{o: o, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), set: o.Set, vm: Sample(), started: time.Now()}
	if o.VM != nil {
		s.vm = o.VM.clone()
	}
	if s.set == nil {
		s.set, s.own = NewSet(cmp.Or(s.vm.ScaleSet, s.vm.Name), SetOptions{Log: o.Log}), true
	}
	if s.o.Versions == nil {
		s.o.Versions = Versions()
	}
	s.life, s.end = context.WithCancel(ctx)
	var err error
	s.Ports, err = control.ServeBoth(ctx, o.Listen, http.HandlerFunc(s.serve), o.Control, s.controlHandler())
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return s, nil
}

// Set is what the machine shares with others.
func (s *Server) Set() *Set { return s.set }

// Close ends the service.
func (s *Server) Close() error {
	s.end()
	s.ClearFaults() // lets go of what hangs
	if s.own {
		_ = s.set.Close() // it never fails
	}
	return s.Ports.Close()
}

// VM returns a copy of what is told now.
func (s *Server) VM() VM {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vm.clone()
}

// Update changes what is told, from the next request on.
func (s *Server) Update(change func(*VM)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.vm)
}

// Requests is the record of the last few thousand requests, oldest first.
func (s *Server) Requests() []Request {
	if all := s.requests.All(); len(all) > 0 {
		return all
	}
	return nil // null on the control port
}

// record notes a request, and tells whether it is one too many in this second.
func (s *Server) record(r *http.Request) (seq int, tooMany, drop bool) {
	s.log.Info("request", "method", r.Method, "path", r.URL.Path, "query", r.URL.RawQuery)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.recent = slices.DeleteFunc(s.recent, func(t time.Time) bool { return now.Sub(t) >= time.Second })
	if tooMany = len(s.recent) >= limit && !s.o.Unlimited; !tooMany {
		s.recent = append(s.recent, now)
	}
	if drop = s.dropped < s.o.DropCalls; drop {
		s.dropped++
	}
	seq = s.requests.Add(func(seq int) Request {
		return Request{Seq: seq, Time: now, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery}
	})
	return seq, tooMany, drop
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	seq, tooMany, drop := s.record(r)
	if drop {
		faults.Reset(w)
		return
	}
	struck, healed := s.Strike(func(f Fault) bool { return f.matches(r) })
	fault := struck.HTTP()
	reply := func(status int, body string) { s.reply(w, seq, status, body) }
	if fault.Instead(w, r, healed, reply) {
		return
	}
	if tooMany {
		s.set.mu.Lock()
		s.set.write(Entry{What: Throttled, VM: s.VM().Name})
		s.set.mu.Unlock()
		reply(http.StatusTooManyRequests, problem("Too many requests"))
		return
	}
	status, body := s.answer(r)
	fault.Answer(w, status, body, reply)
}

func (s *Server) reply(w http.ResponseWriter, seq, status int, body string) {
	s.requests.Change(seq, func(r *Request) { r.Status = status })
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Server", "IMDS/150.870.65.1854")
	faults.Write(w, status, body)
}

// problem is the body of an error.
func problem(text string) string { return asJSON(map[string]any{"error": text}) }

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

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
	case path == "/metadata/versions":
		return http.StatusOK, asJSON(map[string]any{"apiVersions": s.o.Versions})
	case !events && path != "/metadata/instance" && path != "/metadata/loadbalancer":
		return http.StatusNotFound, problem("Not found")
	case r.Method != http.MethodGet && (!events || r.Method != http.MethodPost):
		return http.StatusMethodNotAllowed, problem("Method not allowed")
	}
	version, known := r.URL.Query().Get("api-version"), s.o.Versions
	if events {
		known = eventVersions()
	}
	if !slices.Contains(known, version) || path == "/metadata/loadbalancer" && version < "2020-10-01" {
		newest := slices.Clone(known[max(0, len(known)-3):])
		slices.Reverse(newest)
		return http.StatusBadRequest, asJSON(map[string]any{
			"error":           "Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds",
			"newest-versions": newest,
		})
	}
	switch {
	case events && r.Method == http.MethodPost:
		return s.approve(r)
	case events:
		return s.tell(r)
	case path == "/metadata/loadbalancer":
		vm := s.VM()
		if len(vm.Balancer) == 0 {
			return http.StatusNotFound, problem("No load balancer metadata is found. Please check if your VM is using any non-basic SKU load balancer and retry later.")
		}
		return http.StatusOK, asJSON(vm.balancer())
	}
	if r.URL.Query().Get("extended") != "" && version < sinceExtended {
		return http.StatusBadRequest, problem("Bad request. Query parameter extended is not known")
	}
	return http.StatusOK, asJSON(s.VM().instance(version))
}

// tell gives the document of events.
func (s *Server) tell(r *http.Request) (int, string) {
	s.mu.Lock()
	first := !s.asked
	s.asked = true
	vm := s.vm
	s.mu.Unlock()
	if first && s.o.FirstCall > 0 {
		select {
		case <-time.After(s.o.FirstCall):
		case <-r.Context().Done():
			return http.StatusGone, problem("nobody waits")
		}
	}
	return http.StatusOK, asJSON(s.set.document(vm.Name, vm.Zone))
}

// approve takes the word that events may begin.
func (s *Server) approve(r *http.Request) (int, string) {
	var in struct {
		StartRequests []struct {
			EventID string `json:"EventId"`
		} `json:"StartRequests"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in.StartRequests) == 0 {
		return http.StatusBadRequest, problem("Bad request. The body is malformed")
	}
	name := s.VM().Name
	for _, e := range in.StartRequests {
		if !s.set.ack(name, e.EventID) {
			return http.StatusBadRequest, problem("Bad request. The event is not known")
		}
	}
	return http.StatusOK, ""
}
