// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakes is what the emulated clouds have in common: a service with its ports, faults, record of requests and control
// port ([Service], [Verbs]), the state that it serves ([Served]), an event log ([EventLog]), and scaling groups with hooks ([Scaling]).
//
// A personality (fakeaws, fakeazure, fakealibaba, fakegcp) is an [http.Handler] that answers for one cloud. It starts no
// goroutines and reads no clock but time.Now, so it works in memory and in a bubble of testing/synctest as well as on a port.
package fakes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/internal/fakes/control"
)

// Listen are the addresses of a service. The zero value is a free port of loopback without a control port.
type Listen struct {
	// Listen is the address to serve; default 127.0.0.1:0.
	Listen string
	// Control is the address of the HTTP control port; empty: none.
	Control string
	// Log gets a line for each request and each line of the books; default none.
	Log *slog.Logger
}

// Logger is Log, never nil.
func (l Listen) Logger() *slog.Logger { return cmp.Or(l.Log, slog.New(slog.DiscardHandler)) }

// Service is the shell of one emulated service: it listens, keeps a record of the requests, and applies faults.
type Service struct {
	FaultList
	log    *slog.Logger
	root   string            // the root of the paths of faults; empty: below the first segment
	header map[string]string // of every answer
	tokens *Tokens           // nil: none
	answer http.Handler

	mu            sync.Mutex
	http, control *control.Server // http is nil while it has vanished
	addr          string
	back          *time.Timer // ends Vanish
	closed        bool
	last          []*Request
}

// Request is one line of the record.
type Request struct {
	Time   time.Time `json:"time"`
	Method string    `json:"method"`
	Path   string    `json:"path"`
	Query  string    `json:"query,omitempty"`
	Token  string    `json:"token,omitempty"` // good, bad, none
	Status int       `json:"status"`          // 0: no answer
}

// Metadata sets up a metadata service. Its faults select paths below root; header goes into every answer.
func (s *Service) Metadata(log *slog.Logger, root string, header map[string]string, tokens *Tokens) {
	s.log, s.root, s.header, s.tokens = log, root, header, tokens
	_, s.polls = header[Flavor]
}

// Start answers requests until Close or until ctx is done.
func (s *Service) Start(ctx context.Context, l Listen, answer http.Handler, verbs func() http.Handler) error {
	var err error
	s.answer = answer
	if s.http, err = control.Serve(ctx, cmp.Or(l.Listen, "127.0.0.1:0"), answer); err != nil {
		return err
	}
	s.addr = s.http.Addr()
	if l.Control != "" {
		if s.control, err = control.Serve(ctx, l.Control, verbs()); err != nil {
			_ = s.http.Close()
			return err
		}
	}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return nil
}

// Addr is host:port of the service.
func (s *Service) Addr() string { return s.addr }

// Endpoint is the origin of the service, without a path.
func (s *Service) Endpoint() string { return "http://" + s.addr }

// ControlAddr is host:port of the control port, or empty.
func (s *Service) ControlAddr() string { return s.control.Addr() }

// Close ends the service. Requests that hang are released.
func (s *Service) Close() error {
	s.ClearFaults()
	s.mu.Lock()
	s.closed = true
	if s.back != nil {
		s.back.Stop()
	}
	h := s.http
	s.http = nil
	s.mu.Unlock()
	if err := errors.Join(h.Close(), s.control.Close()); err != nil {
		return fmt.Errorf("closing the service: %w", err)
	}
	return nil
}

// Vanish takes the service away for a while, like a network interface that is set up again: connections are cut, new ones
// refused.
func (s *Service) Vanish(d time.Duration) error {
	s.mu.Lock()
	h := s.http
	if h == nil {
		s.mu.Unlock()
		return errors.New("the service has vanished already")
	}
	s.http = nil
	s.back = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed {
			return
		}
		var err error
		if s.http, err = control.Serve(context.Background(), s.addr, s.answer); err != nil {
			s.log.Error("the service does not come back", "error", err)
		}
	})
	s.mu.Unlock()
	return h.Close()
}

// Requests is the record of the last few thousand requests, oldest first.
func (s *Service) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Request, len(s.last))
	for i, r := range s.last {
		out[i] = *r
	}
	return out
}

// Asked counts the requests for a path since then.
func (s *Service) Asked(path string, since time.Time) (n int) {
	for _, r := range s.Requests() {
		if r.Path == path && !r.Time.Before(since) {
			n++
		}
	}
	return n
}

func (s *Service) record(r *http.Request) *Request {
	one := &Request{Time: time.Now(), Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery}
	if s.tokens != nil {
		one.Token = s.tokens.worth(r)
	}
	s.log.Info("request", "method", r.Method, "path", r.URL.Path, "query", r.URL.RawQuery, "token", one.Token)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = keepSome(s.last, one)
	return one
}

// Serve answers one request of a metadata service: what the fault in force says, or else what answer returns. Status 0 is
// no answer.
func (s *Service) Serve(w http.ResponseWriter, r *http.Request, answer func(Fault) (status int, body string)) {
	record := s.record(r)
	below := strings.TrimPrefix(r.URL.Path, s.root)
	if s.root == "" {
		_, below, _ = strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	}
	fault, done := s.strike(w, r, func(string) {}, r.URL.Path, below)
	for key, value := range s.header {
		w.Header().Set(key, value)
	}
	if fault.NoFlavor {
		w.Header().Del(Flavor)
	}
	reply := func(status int, body string) {
		s.mu.Lock()
		record.Status = status
		s.mu.Unlock()
		write(w, status, body)
	}
	switch {
	case done:
	case fault.Status != 0:
		reply(fault.Status, cmp.Or(fault.Body, http.StatusText(fault.Status)))
	default:
		status, body := answer(fault)
		switch {
		case status == 0:
		case fault.Truncate && len(body) > 1:
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			reply(status, body[:len(body)/2])
			panic(http.ErrAbortHandler)
		default:
			reply(status, body)
		}
	}
}

// Flavor is the header that marks requests to and answers of Google's metadata server.
const Flavor = "Metadata-Flavor"

// held reports whether a request is one of Google's long polls.
func held(r *http.Request) bool { return r.URL.Query().Get("wait_for_change") == "true" }

// Served is the state that a service serves, and that tests change. Values are copied on the way in and out.
type Served[T any] struct {
	mu      sync.Mutex
	value   T
	changed chan struct{} // closed and replaced at each change
}

// Get returns a copy.
func (t *Served[T]) Get() T {
	value, _ := t.Follow()
	return value
}

// Follow returns a copy, and a channel that is closed at the next change.
func (t *Served[T]) Follow() (T, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return clone(t.value), t.changed
}

// Serving sets what is served from the start: given, or else the sample.
func (t *Served[T]) Serving(given *T, sample T) { t.value = clone(*cmp.Or(given, &sample)) }

// Update changes the state. Long polls see it at once.
func (t *Served[T]) Update(change func(*T)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.value)
	t.value = clone(t.value)
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// clone copies a state with all that it refers to. States are plain data, so JSON holds all of them.
func clone[T any](v T) (out T) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		panic(err)
	}
	return out
}

// Items are the answers of a metadata service by their path. An item without a value is not there.
type Items map[string]string

// Set adds an item if it has a value.
func (i Items) Set(path, value string) {
	if value != "" {
		i[path] = value
	}
}

// Meta is Set below meta-data.
func (i Items) Meta(path, value string) { i.Set("meta-data/"+path, value) }

// First is the first of a list, or zero.
func First[T any](list []T) (one T) {
	if len(list) > 0 {
		one = list[0]
	}
	return one
}

// JSON is a document of a service.
func JSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // as in clone
	}
	return string(b)
}
