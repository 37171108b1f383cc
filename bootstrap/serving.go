// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/internal/sleep"
)

const (
	servingLimit = 2 * time.Second
	// serviceEvery is the period of calls to the service manager while an application does not serve.
	serviceEvery = time.Second
	serviceLimit = 500 * time.Millisecond
	dialLimit    = 500 * time.Millisecond
	// settleTime is how long a restarted server must live: one that dies at once has not joined.
	settleTime = 2 * time.Second
	// startingTime bounds a start. On a loaded machine the last application serves after a minute.
	startingTime = 2 * time.Minute
	// servedFor is how long an application that served counts as not restarted, if no connection was lost. After a
	// pause of the machine, a loss is noticed a moment later.
	servedFor = 3 * time.Second
	seenPath  = StateDir + "/seen.json"
)

// AppServed is when an application first served.
type AppServed struct {
	Name string `json:"name"`
	// After is the time since the server's start, or 0 without a restart.
	After seconds.Duration `json:"after_seconds"`
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
	server := j.Server()
	if j.result.Restarted {
		server.down = j.startedAt
	} else {
		server.started, server.looked = j.serverStarted(j.facts.service), j.facts.serviceAt
	}
	return j.whileAlive(ctx, false, func(ctx context.Context) error {
		if err := j.awaitServing(ctx, server); err != nil || !j.result.Restarted {
			return err
		}
		if !sleep.For(ctx, settleTime-time.Since(j.startedAt)) && !isTimeout(ctx.Err()) {
			return context.Cause(ctx)
		}
		return nil
	})
}

// awaitServing returns a [NotServingError] when ctx ends.
func (j *joiner) awaitServing(ctx context.Context, server Asker) error {
	reported := time.Now()
	var last Served
	Watch(ctx, server, func(is Served) bool {
		last = is
		for _, a := range is.Answers {
			if !a.Serves() || slices.ContainsFunc(j.result.Applications, func(s AppServed) bool { return s.Name == a.Name }) {
				continue
			}
			s := AppServed{Name: a.Name}
			if j.result.Restarted {
				after := time.Since(j.startedAt).Round(time.Millisecond)
				j.say("%s serves after %s", a.Name, after.Round(100*time.Millisecond))
				s.After = seconds.Duration(after)
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
	return slices.DeleteFunc(slices.Clone(answers), ams.AppAnswer.Serves)
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
	down    time.Time // when no process listened: it started later

	// Held while the service manager is asked. An application that serves does not need it.
	startMu sync.Mutex
	started time.Time // as of looked; zero if unknown
	looked  time.Time // when the service manager was asked
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
	defer s.mu.Unlock()
	delete(s.served, app)
	switch {
	case a.State == ams.AppServes: // not AppWaits: it must not be called before its initialization
		s.served[app] = lastServed{time.Now(), lost}
	case a.State == ams.AppRefused && began.After(s.down):
		s.down = began // not now: it may have started since
	}
	return a
}

func (s *Server) ask(ctx context.Context, app string) ams.AppAnswer {
	var started time.Time
	in, serves, err := s.installation(app)
	if err == nil && !serves {
		dialed, stop := context.WithTimeout(ctx, dialLimit)
		refused := s.refuses(dialed, in)
		if stop(); refused {
			return ams.AppAnswer{Name: app, State: ams.AppRefused}
		}
		started = s.serverStarted(ctx)
		in, _, err = s.installation(app) // open last: the server may have been replaced
	}
	if err != nil {
		return ams.AppAnswer{Name: app, State: ams.AppFailing, Detail: err.Error()}
	}
	if !serves {
		if state := s.unfinished(in, app, started); state != "" {
			return ams.AppAnswer{Name: app, State: state}
		}
	}
	a := ams.CheckServing(ctx, s.client, in.BaseURL(), app)
	if a.State == ams.AppMissing && (started.IsZero() || in.MadeSince(app, started)) {
		a.State = ams.AppWaits
	}
	return a
}

// unfinished returns the state of an application whose context may be incomplete, or "": it must not be called then
// ([ams.Installation.Initialized]). After startingTime it is called in any case: the server may be unable to write
// those files, and a killed one leaves old ones.
func (s *Server) unfinished(in *ams.Installation, app string, started time.Time) ams.AppServing {
	now, state := time.Now(), ams.AppStarting
	switch {
	case now.Sub(cmp.Or(started, s.first)) >= startingTime:
		if !in.MadeSince(app, now.Add(-startingTime)) {
			return ""
		}
		if !started.IsZero() {
			state = ams.AppWaits // it was added while the server runs
		}
		started = time.Time{}
	case now.Before(started): // the clock was set back: file times are not comparable
		started = time.Time{}
	}
	if in.Initialized(app, started) {
		return ""
	}
	return state
}

// serverStarted is not before the last time when no process listened: the service manager is wrong after a clock
// change. It is zero if unknown.
func (s *Server) serverStarted(ctx context.Context) time.Time {
	started := s.askService(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down.After(started) {
		return s.down
	}
	return started
}

// askService calls at most once per serviceEvery. Others wait: many applications may be called at once.
func (s *Server) askService(ctx context.Context) time.Time {
	s.startMu.Lock()
	defer s.startMu.Unlock()
	if time.Since(s.looked) >= serviceEvery {
		ctx, cancel := context.WithTimeout(ctx, serviceLimit)
		defer cancel()
		s.looked, s.started = time.Now(), time.Time{}
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

// installation keeps the last one if no file has changed. It also does if the application serves: the server cannot
// have restarted since.
func (s *Server) installation(app string) (in *ams.Installation, serves bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.served[app]
	serves = last.lost == s.conns.Lost() && time.Since(last.at) < servedFor
	if s.install == nil || !serves && s.install.Outdated() {
		s.install, err = s.m.open()
	}
	return s.install, serves, err
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

// see keeps what now does not have.
func (m *Machine) see(now seen) error {
	seenMu.Lock()
	defer seenMu.Unlock()
	was := m.seen()
	now.Life, now.Release = cmp.Or(now.Life, was.Life), cmp.Or(now.Release, was.Release)
	if now == was {
		return nil
	}
	b, err := json.Marshal(now)
	if err != nil {
		return err
	}
	return m.store().WriteFile(seenPath, append(b, '\n'), 0o600, 0o700)
}

// EnteredBefore reports whether the cluster had this machine since its boot, with this address.
func (m *Machine) EnteredBefore(instance string) bool { return m.seen().Life == instance }

// Entered records that the cluster has this machine.
func (m *Machine) Entered(instance string) error {
	return m.see(seen{Life: instance})
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
	return s.m.see(seen{Release: in.Release.String()})
}
