// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

// noStream is the stream in readiness calls. No stream has that name.
const noStream = "amsagent-readiness"

const (
	// servingPath is a stream that does not exist. It is the cheapest call that needs what a viewer needs: the
	// application's context and its data store. /rest/v2/version and liveness do not need the latter, and succeed while
	// every player waits. An application's filters (JWT, addresses) refuse it with their own reason; from 2.10.0 on only
	// once the application is initialized.
	servingPath = "/rest/v2/broadcasts/" + noStream
	// playingPath is a playlist that does not exist. Only this path shows in 2.4.3 whether an application is
	// initialized: until then its JWT filter, active even without JWT settings, refuses servingPath. From 2.16.2 on it
	// fails if an application was not deployed, for example because its web.xml is broken.
	playingPath = "/streams/" + noStream + ".m3u8"
)

// AppServing is the result of one call to an application.
type AppServing string

// The states.
const (
	// AppServes: any response of an initialized application.
	AppServes AppServing = "serves"
	// AppStarting: 403, "Application is getting initialized". A stopping server sends it, too.
	AppStarting AppServing = "is getting initialized"
	// AppFailing: 500 and above. The application's context is not complete, or broken.
	AppFailing AppServing = "fails"
	// AppMissing: the server has no such application, and its players get an error.
	AppMissing AppServing = "is not deployed"
	// AppWaits: it was added while the server runs, and is not deployed yet. The caller decides that.
	AppWaits AppServing = "is not deployed yet"
	// AppSilent: no response in time. The server hangs, or its MongoDB is away.
	AppSilent AppServing = "does not answer"
	// AppRefused: no process listens.
	AppRefused AppServing = "is not reachable"
)

// AppAnswer is the response of one application.
type AppAnswer struct {
	Name   string     `json:"name"`
	State  AppServing `json:"state"`
	Code   int        `json:"code,omitempty"` // of HTTP; 0 = no response
	Detail string     `json:"detail,omitempty"`
}

// Serves reports whether all viewers of this application are served: one that is not deployed yet has none.
func (a AppAnswer) Serves() bool { return a.State == AppServes || a.State == AppWaits }

// String returns a sentence without a full stop.
func (a AppAnswer) String() string {
	text := a.Name + " " + string(a.State)
	if a.Detail != "" {
		text += ": " + a.Detail
	}
	return text
}

// CheckServing calls an application of the server at base, an [Installation.BaseURL], once. ctx bounds the call. For the
// console it calls liveness. A nil client means [NewHTTPClient].
func CheckServing(ctx context.Context, client *http.Client, base, app string) AppAnswer {
	folder := strings.TrimSuffix(base, "/") + "/" + url.PathEscape(app)
	asked := folder + servingPath
	if app == consoleApp {
		asked = strings.TrimSuffix(base, "/") + livenessPath
	}
	r, err := get(ctx, client, asked, "")
	refused := r.code == http.StatusForbidden && !initializing(r.body)
	unclaimed := r.code == http.StatusNotFound && namesStream(r.body)
	if err == nil && app != consoleApp && (refused || unclaimed) {
		played, perr := get(ctx, client, folder+playingPath, "")
		if perr != nil || initializing(played.body) || unclaimed && played.code >= http.StatusInternalServerError {
			r, err = played, perr
		}
	}
	if err != nil {
		return noAppAnswer(app, err)
	}
	a := AppAnswer{Name: app, State: AppServes, Code: r.code}
	switch {
	case unclaimed && r.code >= http.StatusInternalServerError:
		a.State = AppMissing
	case r.code >= http.StatusInternalServerError:
		a.State, a.Detail = AppFailing, "it answers "+r.status()
	case r.code == http.StatusForbidden && (app == consoleApp || initializing(r.body)):
		a.State = AppStarting
	}
	return a
}

// The marks of an application in its folder: the server creates the first at the first start and keeps it; it creates
// the second at a stop, and removes it in the next start, once the context is complete (createInitializationProcess of
// 2.17.1).
const (
	InitializedName = ".initialized"
	ClosedName      = ".closed"
)

// Initialized reports whether an application has completed its context since the server started, according to its files.
// No request may reach it earlier: from 2.16.2 on, the first filter then creates beans of an incomplete context, with
// the server's defaults instead of the application's settings, and the server saves those. 2.10 and before accept
// requests at any time; releases in between are untested.
//
// A killed server leaves the marks of a running one. If started is not zero, the start must have left its own sign, too:
// a mark created or removed, or in cluster mode the settings, which the server saves at the end. In standalone mode the
// start after a kill leaves no sign.
//
// The result is true if the files cannot be read.
func (in *Installation) Initialized(app string, started time.Time) bool {
	if app == consoleApp || in.Release.Known() && !in.Release.AtLeast(2, 11) {
		return true
	}
	folder := filepath.Join(in.Dir, webappsName, app)
	if _, err := statBelow(in.Root, filepath.Join(folder, ClosedName)); err == nil {
		return false
	}
	switch _, err := statBelow(in.Root, filepath.Join(folder, InitializedName)); {
	case errors.Is(err, fs.ErrNotExist):
		return false
	case err != nil || started.IsZero():
		return true
	}
	for _, sign := range []string{folder, filepath.Join(folder, appFileName)} {
		if info, err := statBelow(in.Root, sign); err != nil || !info.Modified.Before(started) {
			return true
		}
	}
	return false
}

// MadeSince reports whether an application was added after t, as the panel and create_app.sh do while the server runs.
// It uses the change time of web.xml.
func (in *Installation) MadeSince(app string, t time.Time) bool {
	info, err := statBelow(in.Root, filepath.Join(in.Dir, webappsName, app, "WEB-INF/web.xml"))
	return err == nil && info.Changed.After(t)
}

// namesStream recognizes Tomcat's own page, which contains the path: no application handled the request. An
// application's own page does not.
func namesStream(body []byte) bool { return bytes.Contains(body, []byte(noStream)) }

// initializing recognizes "Application is getting initialized" and "Server is getting initialized.".
func initializing(body []byte) bool { return bytes.Contains(body, []byte("getting initialized")) }

func noAppAnswer(app string, err error) AppAnswer {
	a := AppAnswer{Name: app, State: AppFailing, Detail: err.Error()}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		a.State, a.Detail = AppRefused, ""
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		a.State, a.Detail = AppSilent, ""
	case hungUp(err):
		a.Detail = "it hung up"
	}
	return a
}

// Applications lists the applications of the installation in dir, below root, that are on disk now and must serve: those
// that match one of the path.Match patterns, or all without patterns. Without any, it returns the console. It reads no
// file, so that it can be called every second.
func Applications(root, dir string, patterns []string) ([]string, error) {
	dir = cmp.Or(dir, DefaultDir)
	entries, err := webapps(root, dir)
	if err != nil {
		return nil, fmt.Errorf("listing applications: %w", err)
	}
	var apps []string
	for _, e := range entries {
		matches := func(pattern string) bool {
			ok, err := path.Match(pattern, e.Name())
			return ok && err == nil
		}
		// Java finds no folder whose name is not valid UTF-8.
		isFolder := e.IsDir() || e.Type()&fs.ModeSymlink != 0
		if e.Name() == consoleApp || !isFolder || !utf8.ValidString(e.Name()) || len(patterns) > 0 && !slices.ContainsFunc(patterns, matches) {
			continue
		}
		_, err := statBelow(root, filepath.Join(dir, webappsName, e.Name(), appFileName))
		if err == nil || errors.Is(err, fs.ErrPermission) {
			apps = append(apps, e.Name())
		}
	}
	if len(apps) == 0 {
		apps = []string{consoleApp}
	}
	return apps, nil
}
