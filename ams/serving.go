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
	"syscall"
	"time"
	"unicode/utf8"
)

const noStream = "amsagent-readiness"

const (
	// servingPath needs the data store, as viewers do; version and liveness do not. The application's filters may refuse it,
	// from 2.10.0 on only after initialization.
	servingPath = "/rest/v2/broadcasts/" + noStream
	// playingPath: in 2.4.3 the JWT filter refuses servingPath until initialization, even without JWT settings. From 2.16.2
	// on playingPath fails if the application was not deployed, as with a broken web.xml.
	playingPath = "/streams/" + noStream + ".m3u8"
)

// AppServing is the result of a call to an application.
type AppServing string

const (
	// AppServes is any response of an initialized application.
	AppServes AppServing = "serves"
	// AppStarting is 403, "Application is getting initialized". A stopping server sends it, too.
	AppStarting AppServing = "is getting initialized"
	// AppFailing is 500 and above. The context is incomplete or broken.
	AppFailing AppServing = "fails"
	// AppMissing means that the server has no such application.
	AppMissing AppServing = "is not deployed"
	// AppWaits means added while the server runs, not deployed yet. Only the caller sets it.
	AppWaits AppServing = "is not deployed yet"
	// AppSilent means no response in time. The server hangs, or its MongoDB is away.
	AppSilent AppServing = "does not answer"
	// AppRefused means that no process listens.
	AppRefused AppServing = "is not reachable"
)

// AppAnswer is one application's response.
type AppAnswer struct {
	Name   string     `json:"name"`
	State  AppServing `json:"state"`
	Code   int        `json:"code,omitempty"` // of HTTP; 0 = no response
	Detail string     `json:"detail,omitempty"`
}

// Serves reports whether all viewers are served. A new application has none.
func (a AppAnswer) Serves() bool { return a.State == AppServes || a.State == AppWaits }

// String returns a sentence without a full stop. No state is no answer.
func (a AppAnswer) String() string {
	text := a.Name + " " + string(cmp.Or(a.State, AppSilent))
	if a.Detail != "" {
		text += ": " + a.Detail
	}
	return text
}

// CheckServing calls an application once.
func CheckServing(ctx context.Context, client *http.Client, base, app string) AppAnswer {
	folder := "/" + url.PathEscape(app)
	asked := folder + servingPath
	if app == consoleApp {
		asked = livenessPath
	}
	r, err := get(ctx, client, base, asked, "")
	refused := r.code == http.StatusForbidden && !initializing(r.body)
	unclaimed := r.code == http.StatusNotFound && namesStream(r.body)
	if app != consoleApp && (refused || unclaimed) {
		played, perr := get(ctx, client, base, folder+playingPath, "")
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

// InitializedName exists from the first start on, ClosedName from a stop until the context is complete
// (createInitializationProcess of 2.17.1).
const (
	InitializedName = ".initialized"
	ClosedName      = ".closed"
)

// Initialized reports whether an application completed its context since started; true if its files are unreadable. From
// 2.16.2 on, an earlier request makes the server save default settings. Up to 2.10 any time is safe; releases in between are
// untested.
//
// A killed server keeps its marks: if started is set, a mark or, in cluster mode, the settings must be newer. In standalone
// mode a start after a kill leaves no sign.
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

// MadeSince reports whether an application was added after t, by the change time of web.xml.
func (in *Installation) MadeSince(app string, t time.Time) bool {
	info, err := statBelow(in.Root, filepath.Join(in.Dir, webappsName, app, "WEB-INF/web.xml"))
	return err == nil && info.Changed.After(t)
}

// namesStream recognizes Tomcat's page: no application handled the request.
func namesStream(body []byte) bool { return bytes.Contains(body, []byte(noStream)) }

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

// Applications lists those that match a path.Match pattern, or all without patterns; the console if none matches. It reads
// no file: cheap every second.
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
		// Java finds no other folder.
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
