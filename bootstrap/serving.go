// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
)

const (
	// servingLimit bounds asking all applications once.
	servingLimit = 2 * time.Second
	// serviceEvery is how often the service manager is asked for the server's start while an application does not serve, and
	// serviceLimit bounds that call.
	serviceEvery = time.Second
	serviceLimit = 500 * time.Millisecond
	// dialLimit bounds the check whether a process listens.
	dialLimit = 500 * time.Millisecond
	// servedFor is how long an application that served is known not to be starting if no connection was lost. After a pause of
	// the whole machine, the loss is noticed a moment later.
	servedFor = 3 * time.Second
	// seenPath is the file of seen.
	seenPath = StateDir + "/seen.json"
)

// AppServed is when an application first served.
type AppServed struct {
	Name string `json:"name"`
	// After is the time since AMS's start, or 0 if it was not restarted.
	After time.Duration `json:"after_ns"`
}

// NotServingError says which applications do not serve.
type NotServingError struct {
	Apps []ams.AppAnswer
	Err  error // why the waiting ended
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

// serve waits until viewers are served. It fails at once if the server dies.
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

// awaitServing waits until viewers are served, and reports progress. It ends with ctx, and then returns a
// [NotServingError].
func (j *joiner) awaitServing(ctx context.Context, server Asker) error {
	reported := time.Now()
	var last Served
	served := map[string]bool{}
	Watch(ctx, server, func(is Served) bool {
		last = is
		for _, a := range is.Answers {
			if !a.Serves() || served[a.Name] {
				continue
			}
			served[a.Name] = true
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

// notServing are the answers of applications that do not serve.
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

// ask calls one application of a server. For startingTime, it does not call an application that has not completed its context
// according to [ams.Installation.Initialized]. After that it does: the server may be unable to write those files, and a killed
// server leaves marks that do not show its next start in standalone mode.
func ask(ctx context.Context, client *http.Client, in *ams.Installation, started start, app string) ams.AppAnswer {
	starts := ams.AppAnswer{Name: app, State: ams.AppStarting}
	switch now := time.Now(); {
	case now.Sub(started.at) >= startingTime:
		if in.MadeSince(app, now.Add(-startingTime)) && !in.Initialized(app, time.Time{}) {
			if started.known {
				starts.State = ams.AppWaits // it was added while the server runs
			}
			return starts
		}
	case !started.known, now.Before(started.at): // the clock was set back: no time of a file is comparable
		if !in.Initialized(app, time.Time{}) {
			return starts
		}
	case !in.Initialized(app, started.at):
		return starts
	}
	return check(ctx, client, in, started, app)
}

// check calls an application whose context is complete.
func check(ctx context.Context, client *http.Client, in *ams.Installation, started start, app string) ams.AppAnswer {
	a := ams.CheckServing(ctx, client, in.BaseURL(), app)
	if a.State == ams.AppMissing && (!started.known || in.MadeSince(app, started.at)) {
		a.State = ams.AppWaits
	}
	return a
}

// Server calls the applications of the server on this machine. It detects a restart of the server, and another release. Its
// methods are safe for concurrent use.
type Server struct {
	m      *Machine
	client *http.Client
	conns  ams.ConnCount // of client
	// refuses reports whether no process listens at the server's port.
	refuses func(context.Context, *ams.Installation) bool
	first   time.Time // the time of the first look

	mu      sync.Mutex
	install *ams.Installation
	served  map[string]lastServed

	// Held while the service manager is asked: many applications may be called at the same time.
	startMu sync.Mutex
	started start     // of the server, as it was at the time of looked
	looked  time.Time // when the service manager was asked
	down    time.Time // when no process listened: the server starts later
}

// lastServed is when an application served, and [ams.ConnCount.Lost] before that call.
type lastServed struct {
	at   time.Time
	lost int
}

// Server returns the server for repeated calls.
func (m *Machine) Server() *Server {
	s := &Server{m: m, client: m.HTTP, first: time.Now(), served: map[string]lastServed{}}
	if s.client == nil {
		s.client = ams.NewPollingClient(&s.conns)
	}
	s.refuses = func(ctx context.Context, in *ams.Installation) bool {
		return m.HTTP == nil && ams.Refused(ctx, in.BaseURL()) // else something answers in the place of the server
	}
	return s
}

// Applications lists those that must serve, as they are on disk now.
func (s *Server) Applications() ([]string, error) {
	return ams.Applications(s.m.Root, s.m.AMSDir, s.m.Serving)
}

// look returns the first answer of each application. One that gives none within servingLimit is silent.
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
	if a.State == ams.AppServes { // not AppWaits: it will be initialized, and must not be called before
		s.served[app] = lastServed{time.Now(), lost}
	}
	s.mu.Unlock()
	if a.State == ams.AppRefused {
		s.startMu.Lock()
		if began.After(s.down) {
			s.down = began // not the time now: since then it may have started
		}
		s.startMu.Unlock()
	}
	return a
}

func (s *Server) ask(ctx context.Context, app string) ams.AppAnswer {
	serves := s.servesYet(app)
	in, err := s.installation(serves)
	if err != nil {
		return ams.AppAnswer{Name: app, State: ams.AppFailing, Detail: err.Error()}
	}
	if serves {
		return check(ctx, s.client, in, start{}, app)
	}
	dialed, stop := context.WithTimeout(ctx, dialLimit)
	refused := s.refuses(dialed, in)
	if stop(); refused {
		return ams.AppAnswer{Name: app, State: ams.AppRefused}
	}
	started := s.serverStarted(ctx)
	// Open it last: the server may have been replaced until then.
	if in, err = s.installation(false); err != nil {
		return ams.AppAnswer{Name: app, State: ams.AppFailing, Detail: err.Error()}
	}
	return ask(ctx, s.client, in, started, app)
}

// servesYet reports whether the server was not restarted since an application served.
func (s *Server) servesYet(app string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.served[app]
	return ok && last.lost == s.conns.Lost() && time.Since(last.at) < servedFor
}

// serverStarted is when the server was started according to [Machine.serverStarted], but not before the last time when no
// process listened: the service manager's time may be wrong after a change of the clock.
func (s *Server) serverStarted(ctx context.Context) start {
	reported := s.askService(ctx)
	s.startMu.Lock()
	defer s.startMu.Unlock()
	if !s.down.IsZero() && (!reported.known || s.down.After(reported.at)) {
		return start{s.down, true}
	}
	return reported.or(s.first)
}

// askService returns [Machine.serverStarted]. It asks the service manager at most once a second.
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

// Connections is the number of open connections of [Server.Ask], which are not viewers.
func (s *Server) Connections() int { return s.conns.Open() }

// Port is the port at which an application served a moment ago, or 0.
func (s *Server) Port() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, last := range s.served {
		if s.install != nil && time.Since(last.at) < servedFor {
			return s.install.HTTPPort
		}
	}
	return 0
}

// installation is the last result of [ams.Open] if that is enough or nothing has changed since.
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

// Standalone reports whether an operator made this machine standalone by hand after it joined, according to its files. An
// error means that this is unknown.
func (s *Server) Standalone() (bool, error) {
	state, err := s.m.StateFile()
	if err != nil || state == nil || state.Phase != PhaseJoined {
		return false, err
	}
	in, err := s.m.open()
	return err == nil && madeStandalone(s.m.store(), in, state.Release), err
}

// Stopped reports whether the server was stopped and did not fail, according to the service manager. A service command does
// not know that.
func (s *Server) Stopped(ctx context.Context) bool {
	st, err := s.m.Service.State(ctx)
	return err == nil && st.Stopped() && st.Result == "success"
}

// seen is what a daemon knows about the time before its start.
type seen struct {
	// Life is the instance as which this machine was last seen in the cluster (see [cluster.Node.Instance]): a daemon that is
	// restarted while MongoDB is away stays ready.
	Life string `json:"life,omitempty"`
	// Release is the last one that served viewers here. One that never did is not a fault of this machine.
	Release string `json:"release,omitempty"`
}

func (m *Machine) seen() (s seen) {
	if f, err := m.store().Read(seenPath); err == nil && f.Exists() {
		_ = json.Unmarshal(f.Bytes, &s) // an unreadable file is as a missing one
	}
	return s
}

// seenMu serializes changes of the file.
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

// EnteredBefore reports whether this machine was seen in the cluster since its boot, with this address.
func (m *Machine) EnteredBefore(instance string) bool { return m.seen().Life == instance }

// Entered notes that this machine was seen in the cluster.
func (m *Machine) Entered(instance string) error {
	if err := m.see(func(s *seen) { s.Life = instance }); err != nil {
		return fmt.Errorf("noting that this machine is in the cluster: %w", err)
	}
	return nil
}

// ServedBefore reports whether the release that is installed has ever served viewers on this machine.
func (s *Server) ServedBefore() bool {
	in, err := s.m.open()
	return err == nil && s.m.seen().Release == in.Release.String()
}

// Served notes that the release that is installed serves viewers.
func (s *Server) Served() error {
	in, err := s.m.open()
	if err != nil {
		return err
	}
	if err := s.m.see(func(seen *seen) { seen.Release = in.Release.String() }); err != nil {
		return fmt.Errorf("noting which release serves: %w", err)
	}
	return nil
}
