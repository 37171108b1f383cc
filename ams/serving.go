// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

	"github.com/amsagent/amsagent/files"
)

// noStream is the stream that applications are asked for. There is none of that name.
const noStream = "amsagent-readiness"

const (
	// servingPath is a stream that is not there. It is the cheapest call of an
	// application that needs what a viewer needs: the application's context, and an
	// answer of its data store. Neither /rest/v2/version nor liveness needs the
	// latter, and they are answered while every player waits in vain. The filters of
	// an application (JWT, addresses) refuse it with a reason of their own; from
	// 2.10.0 on only once the application is initialized.
	servingPath = "/rest/v2/broadcasts/" + noStream
	// playingPath is a playlist that is not there. 2.4.3 says here alone for how long
	// an application is not initialized: its JWT filter, which is in force although
	// its settings have no JWT, refuses servingPath until then. And from 2.16.2 on it fails where
	// an application was not deployed, as one whose web.xml is broken.
	playingPath = "/streams/" + noStream + ".m3u8"
	// servingBody is how much of an answer is read: a page of Tomcat's is 700 bytes.
	servingBody = 8 << 10
)

// AppServing is what one call tells of an application.
type AppServing string

// The states.
const (
	// AppServes: its answer is that of an application that is initialized,
	// whatever that answer is.
	AppServes AppServing = "serves"
	// AppStarting: 403, "Application is getting initialized". A stopping server
	// says so, too.
	AppStarting AppServing = "is getting initialized"
	// AppFailing: 500 and above. The context of an application is being made, or
	// is broken.
	AppFailing AppServing = "fails"
	// AppMissing: the server has no such application, and its players get an error.
	AppMissing AppServing = "is not deployed"
	// AppWaits: it was put there while the server runs, which has not taken it up. Who asks
	// decides that.
	AppWaits AppServing = "is not deployed yet"
	// AppSilent: no answer in time. The server hangs, or its MongoDB is away.
	AppSilent AppServing = "does not answer"
	// AppRefused: nothing listens.
	AppRefused AppServing = "is not reachable"
	// AppNotAsked: others took all the time there was.
	AppNotAsked AppServing = "was not asked in time"
)

// AppAnswer is the answer of one application.
type AppAnswer struct {
	Name   string     `json:"name"`
	State  AppServing `json:"state"`
	Code   int        `json:"code,omitempty"` // of HTTP; 0 = no answer
	Detail string     `json:"detail,omitempty"`
}

// Serves reports whether all viewers of this application are served: one that is not deployed
// yet has none.
func (a AppAnswer) Serves() bool { return a.State == AppServes || a.State == AppWaits }

// String is the answer as a sentence without a full stop.
func (a AppAnswer) String() string {
	text := a.Name + " " + string(a.State)
	if a.Detail != "" {
		text += ": " + a.Detail
	}
	return text
}

// CheckServing asks an application of the server at base, as
// [Installation.BaseURL] gives it, once. ctx bounds the call. Of the console it
// asks liveness. A nil client is [NewHTTPClient]'s.
func CheckServing(ctx context.Context, client *http.Client, base, app string) AppAnswer {
	folder := strings.TrimSuffix(base, "/") + "/" + url.PathEscape(app)
	asked := folder + servingPath
	if app == consoleApp {
		asked = strings.TrimSuffix(base, "/") + livenessPath
	}
	r, err := get(ctx, client, asked)
	refused := r.code == http.StatusForbidden && !initializing(r.body)
	unclaimed := r.code == http.StatusNotFound && namesStream(r.body)
	if err == nil && app != consoleApp && (refused || unclaimed) {
		played, perr := get(ctx, client, folder+playingPath)
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
		a.State, a.Detail = AppFailing, fmt.Sprintf("it answers %d %s", r.code, http.StatusText(r.code))
	case r.code == http.StatusForbidden && (app == consoleApp || initializing(r.body)):
		a.State = AppStarting
	}
	return a
}

// The marks that an application of the server leaves in its folder: it makes the first
// at its first start and keeps it; it makes the second when it stops, and removes it in its
// next start, once its context is complete (createInitializationProcess of 2.17.1).
const (
	InitializedName = ".initialized"
	ClosedName      = ".closed"
)

// Initialized reports whether an application has completed its context since its server was
// started, as far as its files tell. Before that, nobody should ask it anything: from 2.16.2
// on its first filter, when a request comes, makes beans of a context that is half made, with
// the server's defaults in place of the application's settings, and the server then saves
// those. An application of 2.10 or before may be asked at any time; in between nobody looked.
//
// A server that was killed left the marks of one that runs. Where started is not zero, the
// start has to have left a sign of its own, too: a mark that was made or removed, or in
// cluster mode the settings, which the server saves at the end. The next start of one that
// was killed leaves no sign in standalone mode.
//
// The answer is true where the files cannot be looked at.
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

// MadeSince reports whether an application was put there after a time, as the panel and
// create_app.sh do while the server runs, by when its web.xml was last changed in any way.
func (in *Installation) MadeSince(app string, t time.Time) bool {
	info, err := statBelow(in.Root, filepath.Join(in.Dir, webappsName, app, "WEB-INF/web.xml"))
	return err == nil && info.Changed.After(t)
}

// get reads the beginning of an answer.
func get(ctx context.Context, client *http.Client, url string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return reply{}, err
	}
	return call(client, req, servingBody)
}

// namesStream recognizes a page of Tomcat's own, which names what was asked for: no
// application took the request. An application's own has no such name in it.
func namesStream(body []byte) bool { return bytes.Contains(body, []byte(noStream)) }

// initializing recognizes the two reasons of the server's filters: "Application is
// getting initialized" and "Server is getting initialized.".
func initializing(body []byte) bool { return bytes.Contains(body, []byte("getting initialized")) }

func noAppAnswer(app string, err error) AppAnswer {
	a := AppAnswer{Name: app, State: AppFailing, Detail: err.Error()}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		a.State, a.Detail = AppRefused, ""
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		a.State, a.Detail = AppSilent, ""
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		a.Detail = "it hung up"
	}
	return a
}

// Applications lists the applications of the installation in dir, below root, as
// they are on disk now, without the console. It reads no file, so that it can be
// called every second.
func Applications(root, dir string) ([]string, error) {
	root, err := cleanRoot(root)
	if err != nil {
		return nil, err
	}
	if dir == "" {
		dir = DefaultDir
	}
	folder := filepath.Join(dir, webappsName)
	d, err := files.Root{Path: root}.Folder(folder)
	if err != nil {
		return nil, fmt.Errorf("listing applications: %w", err)
	}
	defer d.Close()
	entries, err := d.Entries(maxApps)
	if err != nil {
		return nil, fmt.Errorf("listing applications: %w", err)
	}
	var apps []string
	for _, e := range entries {
		if e.Name() == consoleApp || !e.IsDir() && e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		p, err := files.Root{Path: root}.Locate(filepath.Join(folder, e.Name(), appFileName))
		valid := utf8.ValidString(e.Name())
		if err == nil {
			valid = valid && utf8.ValidString(p.Path())
			if err = fs.ErrNotExist; len(p.Missing) == 0 {
				_, err = p.Folder.Stat(p.Name)
			}
			p.Close()
		}
		if valid && (err == nil || errors.Is(err, fs.ErrPermission)) {
			apps = append(apps, e.Name())
		}
	}
	return apps, nil
}

// ServingApps are the applications that are to serve: those that match one of the
// patterns, as of path.Match; without patterns all. Where none is to serve, it is
// the console.
func ServingApps(apps, patterns []string) []string {
	out := slices.DeleteFunc(slices.Clone(apps), func(app string) bool {
		return len(patterns) > 0 && !slices.ContainsFunc(patterns, func(p string) bool {
			ok, err := path.Match(p, app)
			return ok && err == nil
		})
	})
	if len(out) == 0 {
		return []string{consoleApp}
	}
	return out
}
