// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"encoding/json"
	"io"
	"net/http"

	"github.com/amsagent/amsagent/lifecycle"
)

// maxRequest bounds a request body; a notice has a few hundred bytes.
const maxRequest = 64 << 10

func (l *life) handle(mux *http.ServeMux) {
	mux.HandleFunc("GET "+PathDrain, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, l.manager.View()) })
	mux.HandleFunc("POST "+PathDrain, answering(l, l.manager.Drain))
	mux.HandleFunc("POST "+PathUndrain, answering(l, func(q UndrainRequest) error {
		return l.manager.Undrain(q.Who, l.d.view.get().State)
	}))
	mux.HandleFunc("POST "+PathNotice, answering(l, func(n lifecycle.Notice) error {
		l.manager.Notice(n)
		return nil
	}))
}

// answering answers a request with the view after do.
func answering[T any](l *life, do func(T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q T
		if !readRequest(w, r, &q) {
			return
		}
		err := do(q)
		v := l.manager.View()
		if err != nil {
			refuse(w, Refuse(err, v))
			return
		}
		writeJSON(w, v)
	}
}

func readRequest(w http.ResponseWriter, r *http.Request, to any) bool {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(body, to)
	}
	if err != nil {
		refuse(w, &Refusal{Code: RefusedInvalid, Message: "the request cannot be read: " + err.Error()})
	}
	return err == nil
}

func refuse(w http.ResponseWriter, r *Refusal) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(r.HTTPStatus())
	_ = json.NewEncoder(w).Encode(r) // only a client that disconnects causes an error
}
