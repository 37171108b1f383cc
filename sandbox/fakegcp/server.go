// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegcp

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	// SoftOff is called when the power button is pressed, HardOff when the power is
	// taken from a machine that has not switched itself off.
	SoftOff, HardOff func()
	// Log gets a line for each request and each line of the books; default none.
	Log *slog.Logger
}

// Server is a running metadata server.
type Server struct {
	faults.List[Fault]
	log              *slog.Logger
	softOff, hardOff func()
	control          *control.Server
	addr             string
	requests         books.Record[Request]

	mu       sync.Mutex
	http     *control.Server // nil while it has vanished
	instance Instance
	changed  chan struct{} // closed and replaced when what is told changes
	books    *books.Books[Entry]
	under    *time.Timer // what is under way with the machine
	back     *time.Timer // when the service comes back
	closed   bool
}

// Request is one line of the record.
type Request struct {
	Seq  int       `json:"seq"`
	Time time.Time `json:"time"`
	// Path is with its query.
	Path string `json:"path"`
	// Held is a poll that waits for a change.
	Held   bool          `json:"held,omitempty"`
	Status int           `json:"status"` // 0: no answer
	Took   time.Duration `json:"took_ns,omitempty"`
}

const (
	base         = "/computeMetadata/v1/"
	flavorHeader = "Metadata-Flavor"
	flavor       = "Google"
)

// Start serves until Close or until ctx is done.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{
		log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), softOff: o.SoftOff, hardOff: o.HardOff,
		changed: make(chan struct{}),
	}
	s.books = books.New[Entry](&s.mu)
	if o.Instance != nil {
		s.instance = o.Instance.clone()
	} else {
		s.instance = Sample()
	}
	var err error
	if s.http, err = control.Serve(ctx, cmp.Or(o.Listen, "127.0.0.1:0"), http.HandlerFunc(s.serve)); err != nil {
		return nil, err
	}
	s.addr = s.http.Addr()
	if o.Control != "" {
		if s.control, err = control.Serve(ctx, o.Control, s.controlHandler()); err != nil {
			_ = s.http.Close()
			return nil, err
		}
	}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return s, nil
}

// Addr is host:port of the service.
func (s *Server) Addr() string { return s.addr }

// Endpoint is the origin of the service, without a path.
func (s *Server) Endpoint() string { return "http://" + s.addr }

// ControlAddr is host:port of the control port, or empty.
func (s *Server) ControlAddr() string { return s.control.Addr() }

// Close ends the service, and what was under way with the machine.
func (s *Server) Close() error {
	s.ClearFaults() // lets go of what hangs
	s.mu.Lock()
	s.closed = true
	s.arm(0, nil)
	if s.back != nil {
		s.back.Stop()
	}
	h := s.http
	s.http = nil
	s.touch()
	s.mu.Unlock()
	if err := errors.Join(h.Close(), s.control.Close()); err != nil {
		return fmt.Errorf("closing the metadata server: %w", err)
	}
	return nil
}

// Vanish takes the service away for a while, as a network interface does that is
// set up once more: connections are cut, and new ones refused.
func (s *Server) Vanish(d time.Duration) error {
	s.mu.Lock()
	h := s.http
	if h == nil || s.closed {
		s.mu.Unlock()
		return errors.New("it is away already")
	}
	s.http = nil
	s.back = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed {
			return
		}
		h, err := control.Serve(context.Background(), s.addr, http.HandlerFunc(s.serve))
		if err != nil {
			s.log.Error("the metadata server does not come back", "err", err)
			return
		}
		s.http = h
	})
	s.mu.Unlock()
	return h.Close()
}

// Instance returns a copy of what is told now.
func (s *Server) Instance() Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.instance.clone()
}

// Update changes what is told. Polls that wait for it are answered.
func (s *Server) Update(change func(*Instance)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.instance)
	s.touch()
}

// touch wakes the polls. The lock is held.
func (s *Server) touch() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Requests is the record of the last few thousand requests, oldest first.
func (s *Server) Requests() []Request { return s.requests.All() }

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	seq := s.record(r)
	struck, healed := s.Strike(func(f Fault) bool { return f.matches(r) })
	fault := struck.HTTP()
	reply := func(status int, body string) { s.reply(w, seq, began, status, body) }
	if !struck.NoFlavor {
		w.Header().Set(flavorHeader, flavor)
	}
	if fault.Instead(w, r, healed, reply) {
		return
	}
	status, body := s.answer(r, struck.Instant)
	if status == 0 {
		return // whoever asked has gone
	}
	if status == http.StatusOK && !struck.NoTag {
		w.Header().Set("ETag", tagOf(body))
	}
	if r.URL.Query().Get("alt") == "json" {
		w.Header().Set("Content-Type", "application/json")
	} else {
		w.Header().Set("Content-Type", "application/text")
	}
	fault.Answer(w, status, body, reply)
}

func (s *Server) reply(w http.ResponseWriter, seq int, began time.Time, status int, body string) {
	s.requests.Change(seq, func(r *Request) { r.Status, r.Took = status, time.Since(began) })
	w.Header().Set("Server", "Metadata Server for VM")
	faults.Write(w, status, body)
}

func (s *Server) record(r *http.Request) int {
	s.log.Info("request", "path", r.URL.RequestURI())
	return s.requests.Add(func(seq int) Request {
		return Request{Seq: seq, Time: time.Now(), Path: r.URL.RequestURI(), Held: r.URL.Query().Get("wait_for_change") == "true"}
	})
}

// tagOf is the ETag of an answer.
func tagOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:8])
}

// answer waits, where it is asked to, and gives the answer; 0 is that nobody
// listens any more.
func (s *Server) answer(r *http.Request, instant bool) (status int, body string) {
	q := r.URL.Query()
	path, ok := strings.CutPrefix(r.URL.Path, base)
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return http.StatusMethodNotAllowed, "method not allowed"
	case r.Header.Get("X-Forwarded-For") != "", r.Header.Get(flavorHeader) != flavor:
		return http.StatusForbidden, "<title>403 Forbidden</title>"
	case !ok:
		return http.StatusNotFound, "<title>404 Not Found</title>"
	}
	hold := time.Duration(0)
	if q.Get("wait_for_change") == "true" && !instant {
		hold = time.Hour
		if n, err := strconv.Atoi(q.Get("timeout_sec")); err == nil {
			hold = time.Duration(n) * time.Second
		}
	}
	timer := time.NewTimer(hold)
	defer timer.Stop()
	last, asked := q.Get("last_etag"), q.Has("last_etag")
	for first := true; ; first = false {
		s.mu.Lock()
		items, err := s.instance.items()
		changed, closed := s.changed, s.closed
		s.mu.Unlock()
		switch {
		case closed:
			return 0, ""
		case err != nil:
			return http.StatusInternalServerError, err.Error()
		}
		body, ok := items[path]
		switch {
		case ok && strings.HasSuffix(path, "/") && (q.Get("recursive") != "true" || q.Get("alt") != "json"):
			return http.StatusNotImplemented, "this fake lists folders in their recursive form alone"
		case !ok && items[path+"/"] != "":
			return http.StatusMovedPermanently, "" // without a Location nobody follows it
		case !ok:
			return http.StatusNotFound, "<title>404 Not Found</title>"
		}
		if first && !asked {
			last = tagOf(body)
		}
		if hold == 0 || last != tagOf(body) {
			return http.StatusOK, body
		}
		select {
		case <-changed:
		case <-timer.C:
			return http.StatusOK, body
		case <-r.Context().Done():
			return 0, ""
		}
	}
}
