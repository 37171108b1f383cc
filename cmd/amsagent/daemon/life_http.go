// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/amsagent/amsagent/lifecycle"
)

// maxRequest bounds what the command line may send; a notice has a few hundred
// bytes.
const maxRequest = 64 << 10

// handle adds what the command line asks about this node's going.
func (l *life) handle(mux *http.ServeMux) {
	mux.HandleFunc("GET "+PathDrain, l.serveView)
	mux.HandleFunc("POST "+PathDrain, func(w http.ResponseWriter, r *http.Request) {
		var q DrainRequest
		if !readRequest(w, r, &q) {
			return
		}
		l.answer(w, l.manager.Drain(lifecycle.DrainRequest{
			Deadline: q.Deadline, Now: q.Now, Reason: q.Reason, Who: q.Who, RepairStreams: q.RepairStreams,
		}))
	})
	mux.HandleFunc("POST "+PathUndrain, func(w http.ResponseWriter, r *http.Request) {
		var q UndrainRequest
		if readRequest(w, r, &q) {
			l.answer(w, l.manager.Undrain(q.Who))
		}
	})
	mux.HandleFunc("POST "+PathNotice, func(w http.ResponseWriter, r *http.Request) {
		var n lifecycle.Notice
		if readRequest(w, r, &n) {
			l.manager.Notice(n)
			l.answer(w, nil)
		}
	})
}

func readRequest(w http.ResponseWriter, r *http.Request, to any) bool {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(body, to)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, &Refusal{Code: RefusedInvalid, Message: "the request cannot be read: " + err.Error()})
	}
	return err == nil
}

func refuse(w http.ResponseWriter, code int, r *Refusal) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(r) // the reader going away is all that can fail
}

// drainView is the story as it is now: the manager may have gone on since it was
// last looked at.
func (l *life) drainView() DrainView {
	v := l.manager.View()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.track.see(v)
	d := l.track.view
	if d.State == "" {
		d.State = l.d.view.get().State
	}
	return d
}

func (l *life) answer(w http.ResponseWriter, err error) {
	v := l.drainView()
	if err == nil {
		writeJSON(w, v)
		return
	}
	r := &Refusal{Code: RefusedFailed, Message: err.Error(), View: &v}
	switch {
	case errors.Is(err, lifecycle.ErrNotJoined), errors.Is(err, lifecycle.ErrLeft):
		r.Code = RefusedNotMember
	case errors.Is(err, lifecycle.ErrNotDraining):
		r.Code = RefusedNotDraining
	case errors.Is(err, lifecycle.ErrTooLate):
		r.Code = RefusedTooLate
	}
	refuse(w, http.StatusConflict, r)
}

// serveView answers once, or with ?follow=1 again and again until the reader goes.
func (l *life) serveView(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get(QueryFollow) == "" {
		writeJSON(w, l.drainView())
		return
	}
	// The server's own bound is for answers that end.
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	views := l.manager.Subscribe(r.Context())
	again := time.NewTicker(FollowEvery)
	defer again.Stop()
	for {
		select {
		case _, open := <-views:
			if !open {
				return
			}
		case <-again.C:
		}
		if err := control.SetWriteDeadline(time.Now().Add(requestTime)); err != nil {
			return
		}
		if out.Encode(l.drainView()) != nil || control.Flush() != nil {
			return
		}
	}
}
