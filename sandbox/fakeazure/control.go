// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeazure

import (
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// controlHandler is the control port:
//
//	GET    /vm             what is told
//	PATCH  /vm             JSON: the fields in it are replaced
//	GET    /events         those that are listed
//	POST   /event          ?type=Terminate&lead=60000 (ms), vms=a,b (default: this machine), id, source, description, duration (ms)
//	POST   /begin          ?id=ID: it begins at once
//	DELETE /event          ?id=ID: it is cancelled
//	POST   /worst-day      ?step=1000 (ms), others=a,b: returns when it has begun
//	GET    /books
//	GET    /fault
//	POST   /fault          ?path=P and one of status=N (body=S), truncate=true, huge=true, hang=true, reset=true; ms=N times=N method=M
//	DELETE /fault          all of them
//	GET    /requests
func (s *Server) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /vm", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, s.VM()) })
	mux.HandleFunc("PATCH /vm", control.Patch("the machine", s.VM, s.Update))
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, s.set.Events()) })
	mux.HandleFunc("GET /books", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, s.set.Books()) })
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, s.Requests()) })
	does := func(pattern string, do func(url.Values) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := do(r.URL.Query()); err != nil {
				control.Fail(w, http.StatusBadRequest, err)
				return
			}
			control.JSON(w, s.set.Events())
		})
	}
	does("POST /event", func(q url.Values) error {
		e := Event{Type: Terminate, Lead: time.Minute, VMs: []string{s.VM().Name}, Duration: -1}
		err := control.Decode(q, map[string]any{
			"type": &e.Type, "lead": &e.Lead, "vms": &e.VMs, "id": &e.ID, "source": &e.Source, "description": &e.Description, "duration": &e.Duration,
		})
		if err == nil {
			_, err = s.set.Announce(e)
		}
		return err
	})
	byID := func(do func(string) error) func(url.Values) error {
		return func(q url.Values) error {
			var id string
			err := control.Decode(q, map[string]any{"id": &id})
			if err == nil && id == "" {
				err = errors.New("parameter id is needed")
			}
			if err != nil {
				return err
			}
			return do(id)
		}
	}
	does("POST /begin", byID(s.set.Begin))
	does("DELETE /event", byID(s.set.Cancel))
	mux.HandleFunc("POST /worst-day", func(w http.ResponseWriter, r *http.Request) {
		step, others := time.Second, []string(nil)
		if err := control.Decode(r.URL.Query(), map[string]any{"step": &step, "others": &others}); err != nil {
			control.Fail(w, http.StatusBadRequest, err)
			return
		}
		go func() {
			// It ends with the set.
			if err := s.set.WorstDay(s.life, s.VM().Name, step, others...); err != nil {
				s.log.Warn("the worst day was cut short", "err", err)
			}
		}()
		control.JSON(w, s.set.Events())
	})
	faults.Handle(mux, s, parseFault)
	return mux
}

func parseFault(q url.Values) (Fault, error) {
	var f Fault
	err := control.Decode(q, map[string]any{
		"path": &f.Path, "method": &f.Method, "body": &f.Body, "status": &f.Status, "times": &f.Times, "ms": &f.Delay,
		"truncate": &f.Truncate, "huge": &f.Huge, "hang": &f.Hang, "reset": &f.Reset,
	})
	return f, err
}
