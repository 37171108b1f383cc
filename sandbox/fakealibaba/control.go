// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// controlHandler is the control port:
//
//	GET    /instance       what is told
//	PATCH  /instance       JSON: the fields in it are replaced
//	PUT    /item?path=P    the body becomes the item below the version, 404 when it is empty
//	GET    /fault
//	POST   /fault          ?path=P and one of status=N (body=S), truncate=true, huge=true, hang=true, reset=true; ms=N times=N
//	DELETE /fault          all of them
//	POST   /expire-tokens
//	POST   /expire-credentials
//	POST   /spot           ?in=5m
//	PUT    /events         the body becomes the list of active system events
//	DELETE /signals        both
//	GET    /requests
//
// With a cloud also what [Cloud.Handler] has, below /cloud/.
func (s *Server) controlHandler() http.Handler {
	mux := http.NewServeMux()
	instance := func(w http.ResponseWriter) { control.JSON(w, s.Instance()) }
	mux.HandleFunc("GET /instance", func(w http.ResponseWriter, _ *http.Request) { instance(w) })
	mux.HandleFunc("PATCH /instance", control.Patch("the instance", s.Instance, s.Update))
	mux.HandleFunc("PUT /item", func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Query().Get("path")
		b, err := io.ReadAll(r.Body)
		if err == nil && path == "" {
			err = errors.New("parameter path is needed")
		}
		if err != nil {
			control.Fail(w, http.StatusBadRequest, err)
			return
		}
		s.Update(func(i *Instance) {
			if i.Extra == nil {
				i.Extra = map[string]string{}
			}
			i.Extra[path] = string(b)
		})
		instance(w)
	})
	faults.Handle(mux, s, parseFault)
	for path, do := range map[string]func(){
		"POST /expire-tokens": s.ExpireTokens, "POST /expire-credentials": s.ExpireCredentials,
		"DELETE /signals": func() {
			s.Interrupt(time.Time{})
			s.Announce("")
		},
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			do()
			instance(w)
		})
	}
	mux.HandleFunc("POST /spot", func(w http.ResponseWriter, r *http.Request) {
		in, err := time.ParseDuration(cmp.Or(r.URL.Query().Get("in"), "5m"))
		if err != nil {
			control.Fail(w, http.StatusBadRequest, err)
			return
		}
		s.Interrupt(time.Now().Add(in))
		instance(w)
	})
	mux.HandleFunc("PUT /events", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			control.Fail(w, http.StatusBadRequest, err)
			return
		}
		s.Announce(string(b))
		instance(w)
	})
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, s.Requests()) })
	if s.o.Cloud != nil {
		mux.Handle("/cloud/", http.StripPrefix("/cloud", s.o.Cloud.Handler()))
	}
	return mux
}

func parseFault(q url.Values) (Fault, error) {
	var f Fault
	err := control.Decode(q, map[string]any{
		"path": &f.Path, "action": &f.Path, "status": &f.Status, "body": &f.Body, "code": &f.Code, "times": &f.Times, "ms": &f.Delay,
		"truncate": &f.Truncate, "huge": &f.Huge, "hang": &f.Hang, "reset": &f.Reset, "deaf": &f.Deaf,
	})
	return f, err
}

// Handler drives the groups over HTTP:
//
//	GET    /members
//	GET    /books
//	PUT    /group?id=G     JSON: its hooks, [{"id":"ash-1","timeout_ns":30000000000}]
//	POST   /scale-in       ?instance=I, which may be repeated: by one activity
//	POST   /scale-out      the same
//	POST   /move           ?instance=I&state=Standby
//	POST   /complete       ?token=HOOK=TOKEN&result=CONTINUE, as OOS does
//	POST   /deny           ?action=A, which may be repeated; * is all
//	DELETE /deny
//	POST   /wrap           ?wrapped=true: lists as those of the API of 2014
//	POST   /skew           ?by=1h: the API's clock
//	GET    /fault
//	POST   /fault          ?action=A (none: all) and one of code=Throttling (status=400), status=N (body=S), hang=true, reset=true, deaf=true; ms=N times=N
//	DELETE /fault
func (c *Cloud) Handler() http.Handler {
	mux := http.NewServeMux()
	members := func(w http.ResponseWriter) { control.JSON(w, c.Members()) }
	mux.HandleFunc("GET /members", func(w http.ResponseWriter, _ *http.Request) { members(w) })
	mux.HandleFunc("GET /books", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, c.Books()) })
	mux.HandleFunc("PUT /group", func(w http.ResponseWriter, r *http.Request) {
		id := r.URL.Query().Get("id")
		var hooks []Hook
		err := control.Read(r, &hooks)
		if err == nil && id == "" {
			err = errors.New("parameter id is needed")
		}
		if err != nil {
			control.Fail(w, http.StatusBadRequest, fmt.Errorf("reading the hooks: %w", err))
			return
		}
		c.Group(id, hooks...)
		members(w)
	})
	for path, do := range map[string]func(q url.Values) error{
		"POST /scale-in":  func(q url.Values) error { return c.ScaleIn(q["instance"]...) },
		"POST /scale-out": func(q url.Values) error { return c.ScaleOut(q["instance"]...) },
		"POST /move":      func(q url.Values) error { return c.Move(q.Get("instance"), q.Get("state")) },
		"POST /complete":  func(q url.Values) error { return c.Complete(q.Get("token"), cmp.Or(q.Get("result"), "CONTINUE")) },
		"POST /deny": func(q url.Values) error {
			c.Deny(q["action"]...)
			return nil
		},
		"DELETE /deny": func(url.Values) error {
			c.Allow()
			return nil
		},
		"POST /wrap": func(q url.Values) error {
			c.Wrap(q.Get("wrapped") == "true")
			return nil
		},
		"POST /skew": func(q url.Values) error {
			d, err := time.ParseDuration(q.Get("by"))
			c.SetSkew(d)
			return err
		},
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if err := do(r.URL.Query()); err != nil {
				control.Fail(w, http.StatusBadRequest, err)
				return
			}
			members(w)
		})
	}
	faults.Handle(mux, c, parseFault)
	return mux
}
