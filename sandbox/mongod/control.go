// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"net/http"
	"net/url"

	"github.com/amsagent/amsagent/internal/fakes/control"
)

// handler is the control port:
//
//	GET    /fault      the fault in force
//	POST   /fault      ?mode=delay&ms=500  also after=N times=N commands=a,b database=S code=N name=S message=S then=MODE
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

func parseFault(q url.Values) (Fault, error) {
	var f Fault
	err := control.Decode(q, map[string]any{
		"mode": (*string)(&f.Mode), "then": (*string)(&f.Then), "ms": &f.Delay, "after": &f.After, "times": &f.Times,
		"commands": &f.Commands, "database": &f.Database, "code": &f.Code, "name": &f.Name, "message": &f.Message,
	})
	return f, err
}
