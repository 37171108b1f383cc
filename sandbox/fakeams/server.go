// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/amsagent/amsagent/internal/fakes/control"
)

// State is where a server is in its life.
type State string

// The states, in their order; crashed and stopped are both an end.
const (
	Starting State = "starting"
	Up       State = "up"
	Stopping State = "stopping"
	Stopped  State = "stopped"
	Crashed  State = "crashed"
)

// ErrCrashed is how a server ends that was made to crash.
var ErrCrashed = errors.New("the stand-in crashed on request")

// Server is a running stand-in.
type Server struct {
	o       Options
	in      *installation
	log     *slog.Logger
	address string
	nodeID  string
	cluster *mongo.Client // nil in standalone mode
	http    *control.Server
	control *control.Server

	ready   chan struct{} // closed when up
	serving chan struct{} // closed when every application serves, or never will
	done    chan struct{} // closed at the end
	cancel  context.CancelFunc
	loops   sync.WaitGroup
	end     sync.Once
	saving  sync.Mutex // of an application's settings

	mu      sync.Mutex
	state   State
	b       Behaviour
	apps    map[string]*appRuntime
	clients map[string]*mongo.Client // by connection string
	streams map[[2]string]Stream
	beats   int
	err     error // how it ended

	started  time.Time
	viewers  map[audience]int      // without a connection
	watching map[*watcher]struct{} // with one
	stats    Stats                 // of what is over
	cut      bool                  // all sessions were

	statsFile sync.Mutex // taken before mu
}

type appRuntime struct {
	app
	state     AppState
	disturbed bool          // while its context was made
	client    *mongo.Client // nil: local database
	err       error         // why it did not start
}

func (a appRuntime) broadcasts() *mongo.Collection {
	return a.client.Database(a.db.name).Collection("broadcast")
}

// Start begins the life of a server. It returns when the files were read, in
// cluster mode MongoDB was reached, and the HTTP port answers, though only with 403
// until Ready. An error means what it means for the server: the process ends. It
// runs until Stop, until it crashes, or until ctx is done, which is a crash too.
func Start(ctx context.Context, o Options) (_ *Server, err error) {
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	o.HTTPHost = cmp.Or(o.HTTPHost, "127.0.0.1")
	o.Period = cmp.Or(o.Period, 5*time.Second)
	o.MongoTimeout = cmp.Or(o.MongoTimeout, 30*time.Second)
	o.RequestTimeout = cmp.Or(o.RequestTimeout, o.MongoTimeout)
	o.StreamWait = cmp.Or(o.StreamWait, 5500*time.Millisecond)
	o.AppStart = cmp.Or(o.AppStart, defaultAppStart)
	switch o.Behaviour.OnlyIn {
	case "", "cluster", "standalone":
	default:
		return nil, fmt.Errorf("mode %q to misbehave in is neither cluster nor standalone", o.Behaviour.OnlyIn)
	}

	in, err := readInstallation(o.Root, o.Release)
	if err != nil {
		return nil, err
	}
	s := &Server{
		o: o, in: in, log: o.Log,
		ready: make(chan struct{}), serving: make(chan struct{}), done: make(chan struct{}),
		state: Starting, b: o.Behaviour,
		apps: map[string]*appRuntime{}, clients: map[string]*mongo.Client{}, streams: map[[2]string]Stream{},
		started: time.Now(), viewers: map[audience]int{}, watching: map[*watcher]struct{}{},
	}
	s.writeStats()
	for _, a := range in.apps {
		s.apps[a.name] = &appRuntime{app: a, state: AppWaiting}
	}
	if only := o.Behaviour.OnlyIn; only != "" && only != s.Mode() {
		s.b = Behaviour{}
	}
	s.log.Info("files read", "release", in.version, "mode", s.Mode(), "applications", len(in.apps))
	defer func() {
		if err != nil {
			s.finish(Crashed, err)
			_ = s.control.Close()
		}
	}()
	if s.b.FailStart {
		return nil, errors.New("the stand-in is set to fail at its start")
	}
	if s.address, err = o.address(in); err != nil {
		return nil, err
	}
	s.address = cmp.Or(s.b.RegisterAddress, s.address)
	id, err := o.instanceID(in)
	if err != nil {
		return nil, err
	}
	s.nodeID = id + s.address

	if o.Control != "" {
		if s.control, err = control.Serve(ctx, o.Control, s.controlHandler()); err != nil {
			return nil, err
		}
	}
	if in.cluster {
		if s.cluster, err = s.open(ctx, in.store, true); err != nil {
			return nil, err
		}
		s.log.Info("cluster store connected", "address", s.address)
	}

	host, port := o.HTTPHost, in.httpPort
	if host == "file" {
		host = in.httpHost
	}
	switch {
	case o.HTTPPort < 0:
		port = 0
	case o.HTTPPort > 0:
		port = o.HTTPPort
	}
	if s.http, err = control.Serve(ctx, net.JoinHostPort(host, strconv.Itoa(port)), s.httpHandler()); err != nil {
		return nil, err
	}

	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.loops.Go(func() { s.run(run) })
	context.AfterFunc(ctx, func() { _ = s.Close() })
	return s, nil
}

// run brings the server up and keeps it registered.
func (s *Server) run(ctx context.Context) {
	b := s.behaviour()
	if b.CrashAfter > 0 {
		s.loops.Go(func() {
			if wait(ctx, b.CrashAfter) {
				go s.Crash() // it waits for this goroutine
			}
		})
	}
	s.startApps(ctx)
	if b.NeverUp || !wait(ctx, s.o.Opening) || !wait(ctx, b.SlowStart) {
		<-ctx.Done()
		return
	}
	s.mu.Lock()
	if s.state != Starting {
		s.mu.Unlock()
		return
	}
	if c := s.apps[console]; c != nil && c.err != nil {
		// The filter before liveness refuses all requests without the console.
		s.mu.Unlock()
		s.log.Error("the console did not start", "error", c.err)
		<-ctx.Done()
		return
	}
	s.state = Up
	s.mu.Unlock()
	s.log.Info("up", "http", s.HTTPAddr())

	failing := false
	first := true
	for {
		err := s.tick(ctx)
		if ctx.Err() != nil {
			return
		}
		if failing != (err != nil) {
			failing = err != nil
			if failing {
				s.log.Error("heartbeat lost", "error", err)
			} else {
				s.log.Info("heartbeat back")
			}
		}
		if first {
			first = false
			close(s.ready)
			s.loops.Go(func() { s.serveApps(ctx) })
		}
		if !wait(ctx, s.o.Period) {
			return
		}
	}
}

func (s *Server) tick(ctx context.Context) error {
	if s.behaviour().Hang {
		return nil
	}
	if s.cluster != nil && !s.behaviour().Silent {
		if err := s.beat(ctx); err != nil {
			return err
		}
		s.mu.Lock()
		s.beats++
		s.mu.Unlock()
	}
	return s.refresh(ctx)
}

// wait returns false when ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// app returns a copy: the original changes while applications start.
func (s *Server) app(name string) (appRuntime, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rt, ok := s.apps[name]
	if !ok {
		return appRuntime{}, false
	}
	return *rt, true
}

func (s *Server) startApps(ctx context.Context) {
	for _, a := range s.in.apps {
		client, err := s.startApp(ctx, a)
		if err != nil {
			s.log.Error("an application did not start", "app", a.name, "error", err)
		}
		s.mu.Lock()
		s.apps[a.name].client, s.apps[a.name].err = client, err
		s.mu.Unlock()
	}
}

func (s *Server) startApp(ctx context.Context, a app) (*mongo.Client, error) {
	switch a.db.kind {
	case "mapdb":
		return nil, nil
	case "mongodb":
		uri := mongoURI(s.in.release, false, a.db.host, a.db.user, a.db.password)
		s.mu.Lock()
		c := s.clients[uri]
		s.mu.Unlock()
		if c == nil {
			var err error
			if c, err = s.open(ctx, a.db, false); err != nil {
				return nil, err
			}
			s.mu.Lock()
			s.clients[uri] = c
			s.mu.Unlock()
		}
		// The console's collection is another one and its database is made by the
		// first login.
		if a.name == "root" {
			return c, nil
		}
		err := prepare(ctx, c, a.db.name)
		if mongo.IsNetworkError(err) {
			// One connection that was cut. A database that is away fails again, and leaves
			// the application broken until the next start.
			err = prepare(ctx, c, a.db.name)
		}
		if err != nil {
			return nil, err
		}
		return c, nil
	case "redisdb":
		return nil, fmt.Errorf("db.type is redisdb, and no Redis answers at %q", passwordless(a.db.host))
	}
	return nil, fmt.Errorf("db.type %q is not known", a.db.kind)
}

func passwordless(host string) string {
	if p := passwordOf(host); p != "" {
		return "(address with a password)"
	}
	return host
}

// mark leaves the marks of a start.
func (s *Server) mark(a app) error {
	dir := filepath.Join(s.o.Root, "webapps", a.name)
	if err := os.Remove(filepath.Join(dir, ".closed")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, ".initialized"), nil, 0o644); err != nil {
		return err
	}
	if s.o.Litter && a.db.kind == "mapdb" {
		return os.WriteFile(filepath.Join(s.o.Root, a.db.name+".db"), []byte("local database\n"), 0o644)
	}
	return nil
}

func (s *Server) markClosed(a app) error {
	if a.name == console {
		return nil
	}
	return os.WriteFile(filepath.Join(s.o.Root, "webapps", a.name, ".closed"), nil, 0o644)
}

// Stop is SIGTERM: streams are waited for and then abandoned, one application
// after the other. The node's document stays, as the server's does.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	begun := s.state == Starting || s.state == Up
	if begun {
		s.state = Stopping
	}
	slow := s.b.SlowStop
	s.mu.Unlock()
	if !begun {
		<-s.done
		return nil
	}
	s.log.Info("stopping")
	var errs []error
	if !wait(ctx, slow) {
		errs = append(errs, ctx.Err())
	}
	s.cutAll()
	s.cancel()
	for _, a := range s.in.apps {
		deadline := time.Now().Add(s.o.StreamWait)
		live := s.liveIn(a.name)
		for live > 0 && time.Now().Before(deadline) && wait(ctx, 20*time.Millisecond) {
			live = s.liveIn(a.name)
		}
		if live > 0 {
			if err := s.abandon(ctx, a.name); err != nil {
				errs = append(errs, err)
			}
		}
		if err := s.markClosed(a); err != nil {
			errs = append(errs, err)
		}
	}
	s.finish(Stopped, nil)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stopping the stand-in: %w", err)
	}
	return nil
}

// Crash ends the server at once; whatever it had written stays.
func (s *Server) Crash() { s.finish(Crashed, ErrCrashed) }

// Close ends the server at once if it still runs, and its control port, which
// answers until then.
func (s *Server) Close() error {
	s.finish(Crashed, errors.New("closed without a stop"))
	if err := s.control.Close(); err != nil {
		return fmt.Errorf("closing the control port: %w", err)
	}
	return nil
}

// finish releases everything. Only the first call counts; the others wait for it.
func (s *Server) finish(state State, err error) {
	s.end.Do(func() {
		if s.cancel != nil {
			s.cancel()
		}
		s.cutAll()
		_ = s.http.Close()
		s.loops.Wait()
		// A client that lost its server would wait for it to say good-bye.
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		s.mu.Lock()
		clients := slices.Collect(maps.Values(s.clients))
		s.mu.Unlock()
		if s.cluster != nil {
			clients = append(clients, s.cluster)
		}
		for _, c := range clients {
			_ = c.Disconnect(ctx)
		}
		s.mu.Lock()
		s.state, s.err = state, err
		s.mu.Unlock()
		s.writeStats()
		s.log.Info("ended", "state", string(state), "error", err)
		close(s.done)
	})
	<-s.done
}

func (s *Server) liveIn(app string) int {
	n := 0
	for _, st := range s.Streams() {
		if st.App == app {
			n++
		}
	}
	return n
}

func (s *Server) behaviour() Behaviour {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b
}

// SetBehaviour changes what can change while it runs: Silent, Liveness, Statistics,
// SlowStop, ClockSkew, and what is said of applications.
func (s *Server) SetBehaviour(change func(*Behaviour)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.b)
}

func (s *Server) now() time.Time { return time.Now().Add(s.behaviour().ClockSkew) }

// Ready is closed when liveness answers 200 and, in cluster mode, the first
// heartbeat was tried. No application serves then; see [Server.Serving].
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Done is closed when the server has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is nil while the server runs and after a Stop.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// State is where the server is in its life.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Mode is cluster or standalone.
func (s *Server) Mode() string {
	if s.in.cluster {
		return "cluster"
	}
	return "standalone"
}

// Address is what it registers itself under.
func (s *Server) Address() string { return s.address }

// NodeID is the _id of its document.
func (s *Server) NodeID() string { return s.nodeID }

// HTTPAddr is host:port of the server's HTTP port.
func (s *Server) HTTPAddr() string { return s.http.Addr() }

// ControlAddr is host:port of the control port, or empty.
func (s *Server) ControlAddr() string {
	if s.control == nil {
		return ""
	}
	return s.control.Addr()
}

// Streams lists the live streams, sorted.
func (s *Server) Streams() []Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.streams), func(a, b Stream) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.ID, b.ID))
	})
}

// httpHandler is the little of the server's HTTP that is needed.
func (s *Server) httpHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /rest/v2/liveness", s.liveness)
	mux.HandleFunc("GET /rest/v2/", s.panel)
	s.appRoutes(mux)
	return s.hanging(mux)
}

func (s *Server) liveness(w http.ResponseWriter, r *http.Request) {
	if !s.in.release.atLeast(release{2, 5, 1}) {
		http.NotFound(w, r)
		return
	}
	if status := s.behaviour().Liveness; status != 0 {
		http.Error(w, http.StatusText(status), status)
		return
	}
	if opening := s.started.Add(s.o.Opening); time.Now().Before(opening) {
		tomcat(w, http.StatusInternalServerError, "") // the console's context is being made
		return
	}
	if s.State() != Up {
		http.Error(w, "Not allowed IP", http.StatusForbidden)
		return
	}
	// A wrong token is refused where none is needed, too.
	if s.tokenGiven(r) && !s.tokenAccepted(w, r) {
		return
	}
	name, err := os.Hostname()
	if err != nil || s.o.HostsFile != "" && !named(s.o.HostsFile, name) {
		http.Error(w, "java.net.UnknownHostException: "+name, http.StatusInternalServerError)
		return
	}
	control.JSON(w, map[string]string{"host": name, "status": "ok"})
}
