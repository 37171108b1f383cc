// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegcp

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// controlHandler is the control port:
//
//	GET    /instance      what is told
//	PATCH  /instance      JSON: the fields in it are replaced
//	PUT    /item?path=P   the body becomes computeMetadata/v1/P, 404 when it is empty
//	PUT    /attribute?key=K[&project=true]  the body becomes the attribute's value
//	GET    /fault
//	POST   /fault         ?path=P and one of status=N (body=S), truncate, huge, hang, reset, instant, no-tag, no-flavor; held=true ms=N times=N
//	DELETE /fault         all of them
//	POST   /vanish?ms=N   nobody is there for so long
//	POST   /preempt       ?ms=N: preempted, the power button, and off after so long (default: the machine's own time)
//	POST   /announce      ?preempted=true|false: that word alone
//	POST   /scale-in      ?ms=N: the power button without a word
//	PUT    /maintenance   the body becomes maintenance-event
//	PUT    /upcoming      the body becomes upcoming-maintenance, 404 when it is empty
//	POST   /stop          ?ms=N&target=DELETED: a graceful shutdown of so long at most; DELETE /stop takes it back
//	POST   /off           the machine has switched itself off
//	GET    /books
//	GET    /requests
func (s *Server) controlHandler() http.Handler {
	mux := http.NewServeMux()
	instance := func(w http.ResponseWriter) { control.JSON(w, s.Instance()) }
	mux.HandleFunc("GET /instance", func(w http.ResponseWriter, _ *http.Request) { instance(w) })
	mux.HandleFunc("PATCH /instance", control.Patch("the instance", s.Instance, s.Update))
	text := func(use func(q url.Values, text string) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err == nil {
				err = use(r.URL.Query(), strings.TrimSpace(string(b)))
			}
			if err != nil {
				control.Fail(w, http.StatusBadRequest, err)
				return
			}
			instance(w)
		}
	}
	mux.HandleFunc("PUT /item", text(func(q url.Values, v string) error {
		path := q.Get("path")
		if path == "" {
			return errors.New("parameter path is needed")
		}
		s.Update(func(i *Instance) { i.Extra = set(i.Extra, path, v) })
		return nil
	}))
	mux.HandleFunc("PUT /attribute", text(func(q url.Values, v string) error {
		key, project := "", false
		if err := control.Decode(q, map[string]any{"key": &key, "project": &project}); err != nil {
			return err
		}
		if key == "" {
			return errors.New("parameter key is needed")
		}
		s.Update(func(i *Instance) {
			if project {
				i.ProjectAttributes = set(i.ProjectAttributes, key, v)
				return
			}
			i.Attributes = set(i.Attributes, key, v)
		})
		return nil
	}))
	faults.Handle(mux, s, parseFault)
	timed := func(more map[string]any, do func(time.Duration) error) http.HandlerFunc {
		return text(func(q url.Values, _ string) error {
			var d time.Duration
			fields := map[string]any{"ms": &d}
			for k, v := range more {
				fields[k] = v
			}
			if err := control.Decode(q, fields); err != nil {
				return err
			}
			return do(d)
		})
	}
	mux.HandleFunc("POST /vanish", timed(nil, s.Vanish))
	mux.HandleFunc("POST /preempt", timed(nil, func(d time.Duration) error { s.Preempt(d); return nil }))
	mux.HandleFunc("POST /scale-in", timed(nil, func(d time.Duration) error { s.ScaleIn(d); return nil }))
	mux.HandleFunc("POST /announce", text(func(q url.Values, _ string) error {
		preempted := true
		if err := control.Decode(q, map[string]any{"preempted": &preempted}); err != nil {
			return err
		}
		s.Announce(preempted)
		return nil
	}))
	mux.HandleFunc("PUT /maintenance", text(func(_ url.Values, v string) error { s.Maintain(v); return nil }))
	mux.HandleFunc("PUT /upcoming", text(func(_ url.Values, v string) error { s.Plan(v); return nil }))
	mux.HandleFunc("POST /stop", text(func(q url.Values, _ string) error {
		d, target := 10*time.Minute, "STOPPED"
		if err := control.Decode(q, map[string]any{"ms": &d, "target": &target}); err != nil {
			return err
		}
		s.Stop(d, target)
		return nil
	}))
	mux.HandleFunc("DELETE /stop", func(w http.ResponseWriter, _ *http.Request) {
		s.Unstop()
		instance(w)
	})
	mux.HandleFunc("POST /off", func(w http.ResponseWriter, _ *http.Request) {
		s.Off()
		control.JSON(w, s.Books())
	})
	mux.HandleFunc("GET /books", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, s.Books()) })
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, s.Requests()) })
	return mux
}

func parseFault(q url.Values) (Fault, error) {
	var f Fault
	err := control.Decode(q, map[string]any{
		"path": &f.Path, "body": &f.Body, "status": &f.Status, "times": &f.Times, "ms": &f.Delay, "held": &f.Held,
		"truncate": &f.Truncate, "huge": &f.Huge, "hang": &f.Hang, "reset": &f.Reset, "instant": &f.Instant,
		"no-tag": &f.NoTag, "no-flavor": &f.NoFlavor,
	})
	return f, err
}

// set changes one value of a map that may not be there yet.
func set(m map[string]string, key, v string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[key] = v
	return m
}
