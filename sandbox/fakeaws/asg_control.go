// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/control"
	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// Handler drives the groups over HTTP:
//
//	GET    /members
//	GET    /books
//	PUT    /group?name=G   JSON: its hooks, [{"name":"drain","heartbeat_timeout_ns":30000000000}]
//	POST   /terminate      ?instance=I (not needed where there is one)
//	POST   /launch         into service, from the start or out of the warm pool
//	POST   /pool           ?state=Stopped; started=true: not from service but from its start
//	POST   /standby
//	POST   /detach
//	POST   /restore        back into service without a hook
//	POST   /deny           ?action=A, which may be repeated
//	DELETE /deny
//	GET    /fault
//	POST   /fault          ?action=A (none: all) and one of code=Throttling (status=400 message=M), body=B, empty=true, hang=true, reset=true, deaf=true; ms=N times=N
//	DELETE /fault
func (a *AutoScaling) Handler() http.Handler {
	mux := http.NewServeMux()
	members := func(w http.ResponseWriter) { control.JSON(w, a.Members()) }
	mux.HandleFunc("GET /members", func(w http.ResponseWriter, _ *http.Request) { members(w) })
	mux.HandleFunc("GET /books", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, a.Books()) })
	mux.HandleFunc("PUT /group", func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("name")
		var hooks []Hook
		err := control.Read(r, &hooks)
		if err == nil && name == "" {
			err = errors.New("parameter name is needed")
		}
		if err != nil {
			control.Fail(w, http.StatusBadRequest, fmt.Errorf("reading the hooks: %w", err))
			return
		}
		a.Group(name, hooks...)
		members(w)
	})
	for path, do := range map[string]func(id string, r *http.Request) error{
		"/terminate": func(id string, _ *http.Request) error { return a.Terminate(id) },
		"/launch":    func(id string, _ *http.Request) error { return a.Launch(id) },
		"/pool": func(id string, r *http.Request) error {
			switch kept := r.URL.Query().Get("state"); kept {
			case "Stopped", "Running", "Hibernated":
				return a.Pool(id, kept, r.URL.Query().Get("started") == "true")
			default:
				return fmt.Errorf("state %q is none of Stopped, Running, Hibernated", kept)
			}
		},
		"/standby": func(id string, _ *http.Request) error { return a.Standby(id) },
		"/detach":  func(id string, _ *http.Request) error { return a.Detach(id) },
		"/restore": func(id string, _ *http.Request) error { return a.Restore(id) },
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			id := r.URL.Query().Get("instance")
			if all := a.Members(); id == "" && len(all) == 1 {
				id = all[0].Instance
			}
			if err := do(id, r); err != nil {
				control.Fail(w, http.StatusBadRequest, err)
				return
			}
			members(w)
		})
	}
	mux.HandleFunc("POST /deny", func(w http.ResponseWriter, r *http.Request) {
		a.Deny(r.URL.Query()["action"]...)
		members(w)
	})
	mux.HandleFunc("DELETE /deny", func(w http.ResponseWriter, _ *http.Request) {
		a.Allow()
		members(w)
	})
	faults.Handle(mux, a, parseAPIFault)
	return mux
}

// waitLimit bounds how long a caller of the command line may set a timeout to.
const waitLimit = 48 * time.Hour

// ParseHook reads a hook as the command line takes it: NAME:terminating or
// NAME:launching, and then HEARTBEAT and GLOBAL timeouts, as durations.
func ParseHook(s string) (Hook, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 4 || parts[0] == "" || (parts[1] != "terminating" && parts[1] != "launching") {
		return Hook{}, fmt.Errorf("%q is not NAME:terminating|launching[:HEARTBEAT[:GLOBAL]]", s)
	}
	h := Hook{Name: parts[0], Launching: parts[1] == "launching"}
	for i, to := range []*time.Duration{&h.HeartbeatTimeout, &h.GlobalTimeout} {
		if len(parts) <= 2+i {
			break
		}
		d, err := time.ParseDuration(parts[2+i])
		if err != nil || d <= 0 || d > waitLimit {
			return Hook{}, fmt.Errorf("%q is no timeout of a hook", parts[2+i])
		}
		*to = d
	}
	return h, nil
}
