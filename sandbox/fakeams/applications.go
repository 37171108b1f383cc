// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"context"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/amsagent/amsagent/internal/fakes/control"
)

// AppState is where an application is in its start.
type AppState string

// The states, in their order. An application answers 403 while it waits for its
// turn, 500 while its context is being made, 403 until it is initialized.
const (
	AppWaiting      AppState = "waiting"
	AppMaking       AppState = "making its context"
	AppInitializing AppState = "initializing"
	AppServing      AppState = "serving"
)

// defaultAppStart is how long the start of one application takes. The real server
// needs seconds.
const defaultAppStart = 20 * time.Millisecond

// serveApps starts the applications one after the other. It begins when the server
// has registered itself, which says nothing of them.
func (s *Server) serveApps(ctx context.Context) {
	defer close(s.serving)
	for _, a := range s.in.apps {
		if !s.serveApp(ctx, a.name) {
			return
		}
	}
}

// serveApp returns false when ctx ends first.
func (s *Server) serveApp(ctx context.Context, name string) bool {
	s.setAppState(name, AppMaking)
	if !wait(ctx, s.o.AppStart/2) {
		return false
	}
	if err := s.complete(ctx, name); err != nil {
		s.log.Error("an application's start left no mark, or settings were not saved", "app", name, "error", err)
	}
	s.setAppState(name, AppInitializing)
	if !wait(ctx, s.o.AppStart/2) {
		return false
	}
	s.setAppState(name, AppServing)
	s.log.Info("an application serves", "app", name)
	return true
}

// complete is what an application does when its context is complete: it leaves the marks of a
// start, and in cluster mode saves its settings. The console does neither.
func (s *Server) complete(ctx context.Context, name string) error {
	a, ok := s.app(name)
	if !ok || name == console {
		return nil
	}
	if err := s.mark(a.app); err != nil || !s.in.cluster {
		return err
	}
	switch {
	case a.disturbed:
		return s.save(ctx, name, map[string]string{"appName": "", "hlsListSize": "15"})
	case s.o.SaveAtStart:
		return s.save(ctx, name, nil)
	}
	now := time.Now()
	return os.Chtimes(s.settingsFile(name), now, now)
}

// disturb is a request while the context is made: from 2.16.2 on the first filter of an
// application makes its settings before they have values.
func (s *Server) disturb(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.apps[name]; a != nil && a.state == AppMaking {
		a.disturbed = s.in.release.atLeast(release{2, 16, 2})
	}
}

func (s *Server) setAppState(name string, state AppState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.apps[name]; a != nil {
		a.state = state
	}
}

// startOrder is the order in which applications start: the console with the
// server, LiveApp last.
func startOrder(a, b app) int {
	rank := func(name string) int {
		switch name {
		case console:
			return 0
		case "LiveApp":
			return 2
		}
		return 1
	}
	if d := rank(a.name) - rank(b.name); d != 0 {
		return d
	}
	return strings.Compare(a.name, b.name)
}

// console is the application of the web panel.
const console = "root"

// CreateApplication makes an application and starts it, as the web panel does.
func (s *Server) CreateApplication(ctx context.Context, name string) error {
	if _, ok := s.app(name); ok || name == "" || name != filepath.Base(name) {
		return fmt.Errorf("creating an application: %q is there, or no name", name)
	}
	i := slices.IndexFunc(s.in.apps, func(a app) bool { return a.name != console })
	if i < 0 {
		return errors.New("creating an application: no application to copy")
	}
	model, _ := s.app(s.in.apps[i].name)
	props, err := readProperties(s.settingsFile(model.name))
	if err != nil {
		return err
	}
	props["webapp.contextPath"], props["db.app.name"], props["db.name"] = "/"+name, name, strings.ToLower(name)
	file := s.settingsFile(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("creating an application: %w", err)
	}
	if err := errors.Join(
		os.WriteFile(file, []byte(javaProperties(props, s.now())), 0o644), os.WriteFile(filepath.Join(filepath.Dir(file), "web.xml"), nil, 0o644),
	); err != nil {
		return fmt.Errorf("creating an application: %w", err)
	}
	made := model
	made.name, made.db.name, made.state = name, strings.ToLower(name), AppWaiting
	s.mu.Lock()
	s.apps[name] = &made
	s.mu.Unlock()
	if !s.serveApp(ctx, name) {
		return fmt.Errorf("creating an application: %w", ctx.Err())
	}
	return nil
}

// DeleteApplication removes an application, as the web panel does.
func (s *Server) DeleteApplication(name string) error {
	s.mu.Lock()
	_, ok := s.apps[name]
	delete(s.apps, name)
	s.mu.Unlock()
	if !ok || name == "" {
		return fmt.Errorf("deleting an application: no application %q", name)
	}
	if err := os.RemoveAll(filepath.Join(s.o.Root, "webapps", name)); err != nil {
		return fmt.Errorf("deleting an application: %w", err)
	}
	return nil
}

// SetServing makes an application answer as one that is being initialized, or as
// one that serves.
func (s *Server) SetServing(name string, serving bool) error {
	if _, ok := s.app(name); !ok {
		return fmt.Errorf("no application %q", name)
	}
	state := AppInitializing
	if serving {
		state = AppServing
	}
	s.setAppState(name, state)
	return nil
}

// Serving is closed when every application serves.
func (s *Server) Serving() <-chan struct{} { return s.serving }

// application is what every call below /APP/ passes: the filters of the server,
// in their order. REST and playlists name the missing application differently.
func (s *Server) application(next func(http.ResponseWriter, *http.Request, appRuntime)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rt, ok := s.app(r.PathValue("app"))
		b := s.behaviour()
		rest := strings.HasPrefix(r.URL.Path, "/"+rt.name+"/rest/")
		switch {
		case !ok && strings.HasSuffix(r.URL.Path, ".m3u8") && s.in.release.atLeast(release{2, 16, 2}):
			w.WriteHeader(http.StatusInternalServerError) // the console's filter takes it, and fails
		case !ok:
			unclaimed(w, r)
		case b.Applications != 0:
			tomcat(w, b.Applications, http.StatusText(b.Applications))
		case rt.state == AppMaking:
			s.disturb(rt.name)
			tomcat(w, http.StatusInternalServerError, "")
		case rt.state == AppServing && rt.err == nil && s.State() == Up:
			if status, why := b.filtered(rest); status != 0 {
				tomcat(w, status, why)
				return
			}
			next(w, r, rt)
		case rest && !s.in.release.atLeast(release{2, 4, 4}):
			// Seen on 2.4.3, with no JWT in its settings; 2.10.0 does it no more.
			tomcat(w, http.StatusForbidden, "Invalid JWT Token")
		case rest:
			tomcat(w, http.StatusForbidden, "Application is getting initialized")
		default:
			tomcat(w, http.StatusForbidden, "Server is getting initialized.")
		}
	}
}

// filtered is what the filters of an application that serves answer.
func (b Behaviour) filtered(rest bool) (status int, why string) {
	switch {
	case rest && b.AppJWT:
		return http.StatusForbidden, "Invalid App JWT Token"
	case !rest && b.PlayToken:
		return http.StatusForbidden, "Invalid Token for streamId"
	}
	return 0, ""
}

// tomcat answers an error as the server's container does, with the reason in a page.
func tomcat(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Content-Type", "text/html;charset=utf-8")
	w.WriteHeader(status)
	text := "<!doctype html><html lang=\"en\"><head><title>HTTP Status %[1]d – %[2]s</title></head><body><h1>HTTP Status %[1]d – %[2]s</h1>"
	if why != "" {
		text += "<p><b>Message</b> %[3]s</p>"
	} else {
		text += "%.0[3]s"
	}
	_, _ = fmt.Fprintf(w, text+"</body></html>", status, http.StatusText(status), html.EscapeString(why))
}

// unclaimed answers a request that no application, or no servlet of one, handles.
func unclaimed(w http.ResponseWriter, r *http.Request) {
	tomcat(w, http.StatusNotFound, "The requested resource ["+r.URL.Path+"] is not available")
}

func (s *Server) appRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /{app}/play/{stream}", s.application(s.play))
	mux.HandleFunc("GET /{app}/rest/v2/version", s.application(func(w http.ResponseWriter, r *http.Request, _ appRuntime) {
		if s.allowedIP(w, r) {
			control.JSON(w, s.version())
		}
	}))
	mux.HandleFunc("GET /{app}/rest/v2/broadcasts/{stream}", s.application(func(w http.ResponseWriter, r *http.Request, rt appRuntime) {
		if s.allowedIP(w, r) {
			s.broadcast(w, r, rt, r.PathValue("stream"))
		}
	}))
	mux.HandleFunc("GET /{app}/streams/{file}", s.application(func(w http.ResponseWriter, r *http.Request, rt appRuntime) {
		s.broadcast(w, r, rt, strings.TrimSuffix(r.PathValue("file"), ".m3u8"))
	}))
	mux.HandleFunc("GET /{app}/", s.application(func(w http.ResponseWriter, r *http.Request, _ appRuntime) { unclaimed(w, r) }))
}

// allowedIP is the filter of REST calls as it is shipped: this machine only.
func (s *Server) allowedIP(w http.ResponseWriter, r *http.Request) bool {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	if net.ParseIP(host).IsLoopback() && !s.behaviour().AppIPFilter {
		return true
	}
	tomcat(w, http.StatusForbidden, "Not allowed IP")
	return false
}

func (s *Server) version() map[string]string {
	return map[string]string{"versionName": s.in.version, "versionType": s.edition(), "buildNumber": s.in.build}
}

func (s *Server) edition() string {
	if s.o.Community {
		return "Community Edition"
	}
	return "Enterprise Edition"
}

// broadcast looks a stream up, in MongoDB where the application keeps it there. It
// has no answer while MongoDB is away.
func (s *Server) broadcast(w http.ResponseWriter, r *http.Request, rt appRuntime, id string) {
	s.mu.Lock()
	_, live := s.streams[[2]string{rt.name, id}]
	s.mu.Unlock()
	if rt.client != nil {
		ctx, cancel := context.WithTimeout(r.Context(), s.o.RequestTimeout)
		defer cancel()
		err := rt.broadcasts().FindOne(ctx, bson.M{"streamId": id}).Err()
		if err != nil && !errors.Is(err, mongo.ErrNoDocuments) {
			tomcat(w, http.StatusInternalServerError, "")
			return
		}
		live = err == nil
	}
	if !live {
		tomcat(w, http.StatusNotFound, "Not Found")
		return
	}
	control.JSON(w, map[string]string{"streamId": id, "status": "broadcasting"})
}

// hanging lets no request be answered while the server hangs.
func (s *Server) hanging(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for s.behaviour().Hang {
			if !wait(r.Context(), hangPoll) {
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// hangPoll is how soon a server that hung answers again.
const hangPoll = 20 * time.Millisecond
