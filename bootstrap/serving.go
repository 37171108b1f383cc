// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
)

const (
	servingLimit = 2 * time.Second
	// serviceEvery is the period of calls to the service manager while an application does not serve.
	serviceEvery = time.Second
	serviceLimit = 500 * time.Millisecond
	dialLimit    = 500 * time.Millisecond
	// servedFor is how long an application that served counts as not restarted, if no connection was lost. After a
	// pause of the machine, a loss is noticed a moment later.
	servedFor = 3 * time.Second
	seenPath  = StateDir + "/seen.json"
)

// AppServed is when an application first served.
type AppServed struct {
	Name string `json:"name"`
	// After is the time since the server's start, or 0 without a restart.
	After time.Duration `json:"after_ns"`
}

// NotServingError lists the applications that do not serve.
type NotServingError struct {
	Apps []ams.AppAnswer
	Err  error // why the wait ended
}

func (e *NotServingError) Error() string {
	return "Ant Media Server is in the cluster, but does not serve: " + answerList(e.Apps)
}

func answerList(answers []ams.AppAnswer) string {
	parts := make([]string, 0, len(answers))
	for _, a := range answers {
		parts = append(parts, a.String())
	}
	return strings.Join(parts, "; ")
}

func (e *NotServingError) Unwrap() error { return e.Err }

func (j *joiner) serve(ctx context.Context) error {
	watched, died := context.WithCancelCause(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { j.watch(watched, died, false) })
	server := j.Server()
	if j.result.Restarted {
		server.down = j.startedAt
	} else {
		server.started, server.looked = j.serverStarted(j.facts.service), j.facts.serviceAt
	}
	err := j.awaitServing(watched, server)
	died(nil)
	watcher.Wait()
	var unstable *ams.UnstableError
	if errors.As(context.Cause(watched), &unstable) {
		return unstable
	}
	return err
}

// awaitServing returns a [NotServingError] when ctx ends.
func (j *joiner) awaitServing(ctx context.Context, server Asker) error {
	reported := time.Now()
	var last Served
	Watch(ctx, server, func(is Served) bool {
		last = is
		for _, a := range is.Answers {
			served := slices.ContainsFunc(j.result.Applications, func(s AppServed) bool { return s.Name == a.Name })
			if served || !a.Serves() {
				continue
			}
			s := AppServed{Name: a.Name}
			if j.result.Restarted {
				s.After = time.Since(j.startedAt).Round(time.Millisecond)
				j.say("%s serves after %s", a.Name, s.After.Round(100*time.Millisecond))
			}
			j.result.Applications = append(j.result.Applications, s)
		}
		if !is.Up && time.Since(reported) >= progressEvery {
			reported = time.Now()
			j.say("waiting for the applications: %s", answerList(notServing(is.Answers)))
		}
		return !is.Up
	})
	if last.Up {
		return nil
	}
	return &NotServingError{Apps: notServing(last.Answers), Err: ctx.Err()}
}

func notServing(answers []ams.AppAnswer) []ams.AppAnswer {
	var out []ams.AppAnswer
	for _, a := range answers {
		if a.State == "" {
			a.State = ams.AppSilent
		}
		if !a.Serves() {
			out = append(out, a)
		}
	}
	return out
}

// Server calls the applications of this machine's server, across restarts and upgrades. It is safe for concurrent
// use.
type Server struct {
	m       *Machine
	client  *http.Client
	conns   ams.ConnCount
	refuses func(context.Context, *ams.Installation) bool
	first   time.Time // the first call

	mu      sync.Mutex
	install *ams.Installation
	served  map[string]lastServed

	// Held during a call: many applications may be called at once.
	startMu sync.Mutex
	started start     // as of looked
	looked  time.Time // when the service manager was asked
	down    time.Time // when no process listened: it started later
}

// lastServed has the value of [ams.ConnCount.Lost] before the call.
type lastServed struct {
	at   time.Time
	lost int
}

// Server prepares repeated calls.
func (m *Machine) Server() *Server {
	s := &Server{m: m, client: m.HTTP, first: time.Now(), served: map[string]lastServed{}}
	if s.client == nil {
		s.client = ams.NewHTTPClient(&s.conns)
	}
	s.refuses = func(ctx context.Context, in *ams.Installation) bool {
		return m.HTTP == nil && ams.Refused(ctx, in.BaseURL()) // with another client, the port proves nothing
	}
	return s
}

// Applications lists those that must serve, as on disk now.
func (s *Server) Applications() ([]string, error) {
	return ams.Applications(s.m.Root, s.m.AMSDir, s.m.Serving)
}

func (s *Server) look(ctx context.Context) (answers []ams.AppAnswer) {
	ctx, cancel := context.WithTimeout(ctx, servingLimit)
	defer cancel()
	Watch(ctx, s, func(is Served) bool {
		answers = is.Answers
		return slices.ContainsFunc(answers, func(a ams.AppAnswer) bool { return a.State == "" })
	})
	for i := range answers {
		answers[i].State = cmp.Or(answers[i].State, ams.AppSilent)
	}
	return answers
}

// Ask calls one application. ctx bounds the call.
func (s *Server) Ask(ctx context.Context, app string) ams.AppAnswer {
	began, lost := time.Now(), s.conns.Lost()
	a := s.ask(ctx, app)
	s.mu.Lock()
	delete(s.served, app)
	if a.State == ams.AppServes { // not AppWaits: it must not be called before its initialization
		s.served[app] = lastServed{time.Now(), lost}
	}
	s.mu.Unlock()
	if a.State == ams.AppRefused {
		s.startMu.Lock()
		if began.After(s.down) {
			s.down = began // not now: it may have started since
		}
		s.startMu.Unlock()
	}
	return a
}

func (s *Server) ask(ctx context.Context, app string) ams.AppAnswer {
	var started start
	serves := s.servesYet(app)
	in, err := s.installation(serves)
	if err == nil && !serves {
		dialed, stop := context.WithTimeout(ctx, dialLimit)
		refused := s.refuses(dialed, in)
		if stop(); refused {
			return ams.AppAnswer{Name: app, State: ams.AppRefused}
		}
		started = s.serverStarted(ctx)
		in, err = s.installation(false) // open last: the server may have been replaced
	}
	if err != nil {
		return ams.AppAnswer{Name: app, State: ams.AppFailing, Detail: err.Error()}
	}
	if !serves {
		if state := started.unfinished(in, app); state != "" {
			return ams.AppAnswer{Name: app, State: state}
		}
	}
	a := ams.CheckServing(ctx, s.client, in.BaseURL(), app)
	if a.State == ams.AppMissing && (!started.known || in.MadeSince(app, started.at)) {
		a.State = ams.AppWaits
	}
	return a
}

// unfinished returns the state of an application whose context may be incomplete, or "": it must not be called then
// ([ams.Installation.Initialized]). After startingTime it is called in any case: the server may be unable to write
// those files, and a killed one leaves old ones.
func (s start) unfinished(in *ams.Installation, app string) ams.AppServing {
	now := time.Now()
	state, since := ams.AppStarting, s.at
	switch {
	case now.Sub(s.at) >= startingTime:
		if !in.MadeSince(app, now.Add(-startingTime)) {
			return ""
		}
		since = time.Time{}
		if s.known {
			state = ams.AppWaits // it was added while the server runs
		}
	case !s.known, now.Before(s.at): // the clock was set back: file times are not comparable
		since = time.Time{}
	}
	if in.Initialized(app, since) {
		return ""
	}
	return state
}

// servesYet reports whether the server cannot have restarted since.
func (s *Server) servesYet(app string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.served[app]
	return ok && last.lost == s.conns.Lost() && time.Since(last.at) < servedFor
}

// serverStarted is not before the last time when no process listened: the service manager is wrong after a clock
// change.
func (s *Server) serverStarted(ctx context.Context) start {
	reported := s.askService(ctx)
	s.startMu.Lock()
	defer s.startMu.Unlock()
	if !s.down.IsZero() && (!reported.known || s.down.After(reported.at)) {
		return start{s.down, true}
	}
	return reported.or(s.first)
}

// askService calls at most once per serviceEvery.
func (s *Server) askService(ctx context.Context) start {
	s.startMu.Lock()
	defer s.startMu.Unlock()
	if time.Since(s.looked) >= serviceEvery {
		ctx, cancel := context.WithTimeout(ctx, serviceLimit)
		defer cancel()
		s.looked, s.started = time.Now(), start{}
		if st, err := s.m.Service.State(ctx); err == nil {
			s.started = s.m.serverStarted(st)
		}
	}
	return s.started
}

// Connections returns the number of open connections of [Server.Ask], which are not viewers.
func (s *Server) Connections() int { return s.conns.Open() }

// Port returns the port of an application that served a moment ago, or 0.
func (s *Server) Port() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, last := range s.served {
		if s.install != nil && time.Since(last.at) < servedFor {
			return s.install.Ports.HTTP
		}
	}
	return 0
}

// installation keeps the last one if enough, or if no file has changed.
func (s *Server) installation(enough bool) (*ams.Installation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.install != nil && (enough || !s.install.Outdated()) {
		return s.install, nil
	}
	in, err := s.m.open()
	s.install = in
	return in, err
}

// Standalone reports whether an operator made this machine standalone by hand since its join.
func (s *Server) Standalone() (bool, error) {
	state, err := s.m.StateFile()
	if err != nil || state == nil || state.Phase != PhaseJoined {
		return false, err
	}
	in, err := s.m.open()
	return err == nil && madeStandalone(s.m.store(), in, state.Release), err
}

// Stopped reports a stop without a failure. It is false for a service command.
func (s *Server) Stopped(ctx context.Context) bool {
	st, err := s.m.Service.State(ctx)
	return err == nil && st.Stopped() && st.Result == "success"
}

// seen is what the daemon knows from before its start.
type seen struct {
	// Life is the last instance in the cluster ([cluster.Node.Instance]). A daemon that restarts without MongoDB
	// stays ready.
	Life string `json:"life,omitempty"`
	// Release is the last one that served here. One that never served is no fault of this machine.
	Release string `json:"release,omitempty"`
}

func (m *Machine) seen() (s seen) {
	if f, err := m.store().Read(seenPath); err == nil && f.Exists() {
		_ = json.Unmarshal(f.Bytes, &s) // unreadable is as missing
	}
	return s
}

var seenMu sync.Mutex

func (m *Machine) see(change func(*seen)) error {
	seenMu.Lock()
	defer seenMu.Unlock()
	s := m.seen()
	was := s
	if change(&s); s == was {
		return nil
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return m.store().WriteFile(seenPath, append(b, '\n'), 0o600, 0o700)
}

// EnteredBefore reports whether the cluster had this machine since its boot, with this address.
func (m *Machine) EnteredBefore(instance string) bool { return m.seen().Life == instance }

// Entered records that the cluster has this machine.
func (m *Machine) Entered(instance string) error {
	return m.see(func(s *seen) { s.Life = instance })
}

// ServedBefore reports whether the installed release has ever served viewers here.
func (s *Server) ServedBefore() bool {
	in, err := s.m.open()
	return err == nil && s.m.seen().Release == in.Release.String()
}

// Served records that the installed release serves.
func (s *Server) Served() error {
	in, err := s.m.open()
	if err != nil {
		return err
	}
	return s.m.see(func(seen *seen) { seen.Release = in.Release.String() })
}
