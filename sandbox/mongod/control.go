// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/control"
)

// handler is the control port:
//
//	GET    /fault      the fault in force
//	POST   /fault      ?mode=delay&ms=500  also after=N times=N commands=a,b code=N name=S message=S then=MODE
//	DELETE /fault      healthy again
//	GET    /stats      counters
//	GET    /commands   the last requests; ?name=update only those
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /fault", func(w http.ResponseWriter, _ *http.Request) {
		control.JSON(w, s.faults.Current())
	})
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		fault, err := parseFault(r.URL.Query())
		if err == nil {
			err = s.faults.Set(fault)
		}
		if err != nil {
			control.Fail(w, http.StatusBadRequest, err)
			return
		}
		control.JSON(w, s.faults.Current())
	})
	mux.HandleFunc("DELETE /fault", func(w http.ResponseWriter, _ *http.Request) {
		s.faults.Clear()
		control.JSON(w, s.faults.Current())
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		control.JSON(w, s.Stats())
	})
	mux.HandleFunc("GET /commands", func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("name")
		out := []Command{}
		for _, c := range s.Commands() {
			if name == "" || c.Name == name {
				out = append(out, c)
			}
		}
		control.JSON(w, out)
	})
	return mux
}

// parseFault refuses what it does not know: a test with a misspelt parameter
// would otherwise pass against a healthy server.
func parseFault(q url.Values) (Fault, error) {
	f := Fault{}
	var errs []error
	number := func(key, s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("parameter %s: %w", key, err))
		}
		return n
	}
	for key := range q {
		v := q.Get(key)
		switch key {
		case "mode":
			f.Mode = Mode(v)
		case "ms":
			f.Delay = time.Duration(number(key, v)) * time.Millisecond
		case "after":
			f.After = number(key, v)
		case "times":
			f.Times = number(key, v)
		case "commands":
			f.Commands = strings.Split(v, ",")
		case "code":
			f.Code = int32(number(key, v))
		case "name":
			f.Name = v
		case "message":
			f.Message = v
		case "then":
			f.Then = Mode(v)
		default:
			errs = append(errs, fmt.Errorf("unknown parameter %q", key))
		}
	}
	return f, errors.Join(errs...)
}
