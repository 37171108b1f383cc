// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"cmp"
	"errors"
	"fmt"
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
//	GET    /instance       what is told
//	PATCH  /instance       JSON: the fields in it are replaced
//	PUT    /item?path=P    the body becomes meta-data/P, 404 when it is empty
//	PUT    /tag?key=K      the body becomes the tag's value
//	DELETE /tag?key=K
//	GET    /fault
//	POST   /fault          ?path=P and one of status=N (body=S), truncate=true, hang=true, reset=true; ms=N times=N method=M
//	DELETE /fault          all of them
//	POST   /expire-tokens
//	POST   /rotate-credentials
//	PUT    /target         the body becomes the target lifecycle state, not there when it is empty
//	POST   /spot           ?action=terminate&in=120s; action=termination-time: the older item alone
//	POST   /rebalance
//	POST   /scheduled      JSON: one maintenance event
//	DELETE /signals        all of them but the target
//	GET    /requests
//
// With an Auto Scaling API also what [AutoScaling.Handler] has, below /asg/.
func (s *Server) controlHandler(asg *AutoScaling) http.Handler {
	mux := http.NewServeMux()
	instance := func(w http.ResponseWriter) { control.JSON(w, s.Instance()) }
	mux.HandleFunc("GET /instance", func(w http.ResponseWriter, _ *http.Request) { instance(w) })
	mux.HandleFunc("PATCH /instance", control.Patch("the instance", s.Instance, s.Update))
	body := func(w http.ResponseWriter, r *http.Request, key string, use func(i *Instance, key, value string)) {
		name := r.URL.Query().Get(key)
		b, err := io.ReadAll(r.Body)
		if err == nil && name == "" {
			err = fmt.Errorf("parameter %s is needed", key)
		}
		if err != nil {
			control.Fail(w, http.StatusBadRequest, err)
			return
		}
		s.Update(func(i *Instance) { use(i, name, string(b)) })
		instance(w)
	}
	mux.HandleFunc("PUT /item", func(w http.ResponseWriter, r *http.Request) {
		body(w, r, "path", func(i *Instance, key, value string) {
			if i.Extra == nil {
				i.Extra = map[string]string{}
			}
			i.Extra[key] = value
		})
	})
	mux.HandleFunc("PUT /tag", func(w http.ResponseWriter, r *http.Request) {
		body(w, r, "key", func(i *Instance, key, value string) {
			if i.Tags == nil {
				i.Tags = map[string]string{}
			}
			i.Tags[key] = value
		})
	})
	mux.HandleFunc("DELETE /tag", func(w http.ResponseWriter, r *http.Request) {
		body(w, r, "key", func(i *Instance, key, _ string) { delete(i.Tags, key) })
	})
	faults.Handle(mux, s, parseFault)
	mux.HandleFunc("POST /expire-tokens", func(w http.ResponseWriter, _ *http.Request) {
		s.ExpireTokens()
		instance(w)
	})
	mux.HandleFunc("POST /rotate-credentials", func(w http.ResponseWriter, _ *http.Request) {
		s.RotateCredentials()
		instance(w)
	})
	s.signalHandlers(mux, instance)
	if asg != nil {
		mux.Handle("/asg/", http.StripPrefix("/asg", asg.Handler()))
	}
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, s.Requests()) })
	return mux
}

func (s *Server) signalHandlers(mux *http.ServeMux, instance func(http.ResponseWriter)) {
	mux.HandleFunc("PUT /target", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			control.Fail(w, http.StatusBadRequest, err)
			return
		}
		s.SetTarget(strings.TrimSpace(string(b)))
		instance(w)
	})
	mux.HandleFunc("POST /spot", func(w http.ResponseWriter, r *http.Request) {
		in, err := time.ParseDuration(cmp.Or(r.URL.Query().Get("in"), "120s"))
		if err != nil {
			control.Fail(w, http.StatusBadRequest, err)
			return
		}
		action := cmp.Or(r.URL.Query().Get("action"), "terminate")
		if action == "termination-time" {
			action = ""
		}
		s.Interrupt(action, time.Now().Add(in))
		instance(w)
	})
	mux.HandleFunc("POST /rebalance", func(w http.ResponseWriter, _ *http.Request) {
		s.Recommend(time.Now())
		instance(w)
	})
	mux.HandleFunc("POST /scheduled", func(w http.ResponseWriter, r *http.Request) {
		e := Scheduled{ID: "instance-event-0d59937288b749b32", Code: "instance-reboot", State: "active", NotBefore: time.Now().Add(time.Hour)}
		if err := control.Read(r, &e); err != nil && !errors.Is(err, io.EOF) {
			control.Fail(w, http.StatusBadRequest, fmt.Errorf("reading the event: %w", err))
			return
		}
		s.Schedule(e)
		instance(w)
	})
	mux.HandleFunc("DELETE /signals", func(w http.ResponseWriter, _ *http.Request) {
		s.ClearSignals()
		instance(w)
	})
}

func parseFault(q url.Values) (Fault, error) {
	var f Fault
	err := control.Decode(q, map[string]any{
		"path": &f.Path, "method": &f.Method, "body": &f.Body,
		"status": &f.Status, "times": &f.Times, "ms": &f.Delay,
		"truncate": &f.Truncate, "hang": &f.Hang, "reset": &f.Reset,
	})
	return f, err
}
