// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
)

const (
	// servingPoll is how often a convergence asks the applications of a server that starts.
	servingPoll = 250 * time.Millisecond
	// servingLimit bounds asking all applications once.
	servingLimit = 2 * time.Second
	// serviceEvery is how often the service manager is asked when the server was started, as
	// long as an application does not serve, and serviceLimit bounds that.
	serviceEvery = time.Second
	serviceLimit = 500 * time.Millisecond
	// dialLimit bounds looking whether anybody listens.
	dialLimit = 500 * time.Millisecond
	// servedFor is how long an application that served is taken to be in no start, where no
	// connection was lost: after a machine stood still the loss is seen a moment later.
	servedFor = 3 * time.Second
	// seenPath is the file of seen.
	seenPath = StateDir + "/seen.json"
)

// AppServed tells when an application was first seen to serve.
type AppServed struct {
	Name string `json:"name"`
	// After is how long it took from AMS's start, or 0 where it was not restarted.
	After time.Duration `json:"after_ns"`
}

// NotServingError says which applications do not serve.
type NotServingError struct {
	Apps []ams.AppAnswer
	Err  error // why the waiting ended
}

func (e *NotServingError) Error() string {
	parts := make([]string, 0, len(e.Apps))
	for _, a := range e.Apps {
		parts = append(parts, a.String())
	}
	return "Ant Media Server is in the cluster, but does not serve: " + strings.Join(parts, "; ")
}

func (e *NotServingError) Unwrap() error { return e.Err }

// serve waits until viewers are served. A server that dies meanwhile is reported at
// once.
func (j *joiner) serve(ctx context.Context) error {
	watched, died := context.WithCancelCause(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { j.watch(watched, died, false) })
	server := j.server(j.http())
	server.install = j.facts.install // as long as it is not outdated
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
	began, reported := time.Now(), time.Now()
	if j.result.Restarted {
		began = j.startedAt
	}
	var last Served
	served := map[string]bool{}
	NewServerWatch(server, nil).Run(ctx, func(is Served) bool {
		last = is
		for _, a := range is.Answers {
			if !a.Serves() || served[a.Name] {
				continue
			}
			served[a.Name] = true
			s := AppServed{Name: a.Name}
			if j.result.Restarted {
				s.After = time.Since(began).Round(time.Millisecond)
				j.say("%s serves after %s", a.Name, time.Since(began).Round(100*time.Millisecond))
			}
			j.result.Applications = append(j.result.Applications, s)
		}
		if !is.Up && time.Since(reported) >= progressEvery {
			reported = time.Now()
			j.say("waiting for the applications: %s", (&NotServingError{Apps: notServing(is.Answers)}).list())
		}
		return !is.Up
	})
	if last.Up {
		return nil
	}
	return &NotServingError{Apps: notServing(last.Answers), Err: ctx.Err()}
}

// servingApps are the applications of an installation that are to serve.
func (m *Machine) servingApps(in *ams.Installation) []string {
	names := make([]string, 0, len(in.Apps))
	for _, a := range in.Apps {
		if !a.Console() {
			names = append(names, a.Name)
		}
	}
	return ams.ServingApps(names, m.Serving)
}

func (e *NotServingError) list() string {
	_, list, _ := strings.Cut(e.Error(), "serve: ")
	return list
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

// ask asks one application of a server. It does not before the application has completed its
// context, as far as [ams.Installation.Initialized] tells, for a time: the files that tell may
// be ones that the server cannot write, and one that was killed leaves marks that tell nothing
// of its next start in standalone mode.
func ask(ctx context.Context, client *http.Client, in *ams.Installation, started start, app string) ams.AppAnswer {
	starts := ams.AppAnswer{Name: app, State: ams.AppStarting}
	switch now := time.Now(); {
	case now.Sub(started.at) >= startingTime:
		if in.MadeSince(app, now.Add(-startingTime)) && !in.Initialized(app, time.Time{}) {
			if started.known {
				starts.State = ams.AppWaits // it was made while the server runs
			}
			return starts
		}
	case !started.known, now.Before(started.at): // by a clock that was set back: no file's time is compared with it
		if !in.Initialized(app, time.Time{}) {
			return starts
		}
	case !in.Initialized(app, started.at):
		return starts
	}
	return check(ctx, client, in, started, app)
}

// check asks an application whose context is complete.
func check(ctx context.Context, client *http.Client, in *ams.Installation, started start, app string) ams.AppAnswer {
	a := ams.CheckServing(ctx, client, in.BaseURL(), app)
	if a.State == ams.AppMissing && (!started.known || in.MadeSince(app, started.at)) {
		a.State = ams.AppWaits
	}
	return a
}

// Server asks the server on this machine whether viewers are served. It follows a server that
// is started anew, and one that is replaced by another release. Its methods may be called at
// the same time.
type Server struct {
	m      *Machine
	client *http.Client
	conns  ams.ConnCount // of client
	// refuses reports whether nobody listens at the server's port.
	refuses func(context.Context, *ams.Installation) bool
	first   time.Time // the time of the first look

	mu      sync.Mutex
	install *ams.Installation
	served  map[string]lastServed

	// Held while the service manager is asked, as many applications may be asked at a time.
	startMu sync.Mutex
	started start     // of the server, as it was at the time of looked
	looked  time.Time // when the service manager was asked
	down    time.Time // when nobody listened; the server was started, or is, after that
}

// lastServed is when an application served, and [ams.ConnCount.Lost] before it was asked.
type lastServed struct {
	at   time.Time
	lost int
}

// Server prepares asking again and again.
func (m *Machine) Server() *Server {
	s := m.server(m.HTTP)
	if s.client == nil {
		s.client = ams.NewPollingClient(&s.conns)
	}
	return s
}

func (m *Machine) server(client *http.Client) *Server {
	s := &Server{m: m, client: client, first: time.Now(), served: map[string]lastServed{}}
	s.refuses = func(ctx context.Context, in *ams.Installation) bool {
		return m.HTTP == nil && ams.Refused(ctx, in.BaseURL()) // else something answers in the place of the server
	}
	return s
}

// Applications lists those that are to serve, as they are on disk now.
func (s *Server) Applications() ([]string, error) {
	apps, err := ams.Applications(s.m.Root, s.m.AMSDir)
	if err != nil {
		return nil, err
	}
	return ams.ServingApps(apps, s.m.Serving), nil
}

// askAll is Ask for several applications, within servingLimit.
func (s *Server) askAll(ctx context.Context, apps []string) []ams.AppAnswer {
	ctx, cancel := context.WithTimeout(ctx, servingLimit)
	defer cancel()
	answers := make([]ams.AppAnswer, len(apps))
	slots := make(chan struct{}, maxAsks)
	var asks sync.WaitGroup
	for i, app := range apps {
		slots <- struct{}{}
		asks.Go(func() {
			answers[i] = s.Ask(ctx, app)
			<-slots
		})
	}
	asks.Wait()
	return answers
}

// Ask asks one application. ctx bounds the call.
func (s *Server) Ask(ctx context.Context, app string) ams.AppAnswer {
	a, lost, at := s.ask(ctx, app)
	s.mu.Lock()
	delete(s.served, app)
	if a.State == ams.AppServes { // one that waits is about to be made, and is looked at before it is asked
		s.served[app] = lastServed{time.Now(), lost}
	}
	s.mu.Unlock()
	if a.State == ams.AppRefused {
		s.startMu.Lock()
		if at.After(s.down) {
			s.down = at // and not now: by now it may listen, and have left its marks
		}
		s.startMu.Unlock()
	}
	return a
}

// ask also returns [ams.ConnCount.Lost] before the question, and when it was asked.
func (s *Server) ask(ctx context.Context, app string) (_ ams.AppAnswer, lost int, at time.Time) {
	serves := s.servesYet(app)
	lost, at = s.conns.Lost(), time.Now()
	in, err := s.installation(serves)
	if err != nil {
		return ams.AppAnswer{Name: app, State: ams.AppFailing, Detail: err.Error()}, lost, at
	}
	if serves {
		return check(ctx, s.client, in, start{}, app), lost, at
	}
	dialed, stop := context.WithTimeout(ctx, dialLimit)
	refused := s.refuses(dialed, in)
	if stop(); refused {
		return ams.AppAnswer{Name: app, State: ams.AppRefused}, lost, at
	}
	started := s.serverStarted(ctx)
	// Last: until then the server may have been replaced.
	if in, err = s.installation(false); err != nil {
		return ams.AppAnswer{Name: app, State: ams.AppFailing, Detail: err.Error()}, lost, at
	}
	return ask(ctx, s.client, in, started, app), lost, at
}

// servesYet reports whether the server was not restarted since an application served.
func (s *Server) servesYet(app string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.served[app]
	return ok && last.lost == s.conns.Lost() && time.Since(last.at) < servedFor
}

// serverStarted is when the server was started: as [Machine.serverStarted] tells, but not
// before nobody listened. A clock that is set, or a process id that is another one's, makes
// what the service manager tells wrong.
func (s *Server) serverStarted(ctx context.Context) start {
	told := s.told(ctx)
	s.startMu.Lock()
	defer s.startMu.Unlock()
	if !s.down.IsZero() && (!told.known || s.down.After(told.at)) {
		return start{s.down, true}
	}
	return told.or(s.first)
}

// told is [Machine.serverStarted], asked once a second at most.
func (s *Server) told(ctx context.Context) start {
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

// Connections is how many connections [Server.Ask] has to the server: they are no
// viewers'.
func (s *Server) Connections() int { return s.conns.Open() }

// Port is where an application was served a moment ago; 0 where none was.
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

// installation is the server as it was looked at last, where that is enough or nothing has
// changed since.
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

// Standalone reports whether a person made this machine, which joined, standalone by
// hand, as the files on disk tell. An error means that they do not.
func (s *Server) Standalone() (bool, error) {
	state, err := s.m.StateFile()
	if err != nil || state == nil || state.Phase != PhaseJoined {
		return false, err
	}
	in, err := s.m.open()
	return err == nil && madeStandalone(s.m.store(), in, state.Release), err
}

// Stopped reports whether the service manager knows that somebody stopped the server, and that
// it did not fail. A service command does not know that.
func (s *Server) Stopped(ctx context.Context) bool {
	st, err := s.m.Service.State(ctx)
	return err == nil && st.Stopped() && st.Result == "success"
}

// seen is what a daemon knows of the time before it was started.
type seen struct {
	// Life is the instance as which this machine was seen in the cluster (see [cluster.Node.Instance]): after a restart of the
	// daemon it is ready although MongoDB does not answer.
	Life string `json:"life,omitempty"`
	// Release is the one that served viewers here: one that never did is not this machine's fault.
	Release string `json:"release,omitempty"`
}

func (m *Machine) seen() (s seen) {
	if f, err := m.store().Read(seenPath); err == nil && f.Exists() {
		_ = json.Unmarshal(f.Bytes, &s) // what cannot be read was not seen
	}
	return s
}

// see writes what changes. It is for one caller at a time.
func (m *Machine) see(change func(*seen)) error {
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

// EnteredBefore reports whether this machine was seen in the cluster since it booted with this address.
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
