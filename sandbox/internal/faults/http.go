// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/control"
)

// HTTP is what can be done to the answers of any service that speaks HTTP. A service
// makes one of its own fault, which also says what it is about, and may do more.
type HTTP struct {
	// Delay holds the answer back. It may go with any other field.
	Delay time.Duration
	// Status is answered, with Body (default the status's text), in place of everything.
	Status int
	Body   string
	// Truncate announces the whole answer and sends half of it, Huge sends it with two
	// mebibytes of blanks after it.
	Truncate, Huge bool
	// Hang never answers, Reset resets the connection.
	Hang, Reset bool
	// Times ends the fault after so many requests; 0 means never.
	Times int
}

// Validate refuses what would do nothing or more than one thing: a test with such a
// fault would see something else than it thinks. own tells which of the service's own
// kinds are set; oneKind is what is said when there are several.
func (f HTTP) Validate(oneKind string, own ...bool) error {
	kinds := 0
	for _, set := range append([]bool{f.Status != 0, f.Truncate, f.Huge, f.Hang, f.Reset}, own...) {
		if set {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return errors.New(oneKind)
	case kinds == 0 && f.Delay <= 0:
		return errors.New("a fault that does nothing")
	case f.Delay < 0 || f.Times < 0:
		return errors.New("negative number in a fault")
	}
	return ValidStatus(f.Status)
}

// ValidStatus refuses a number that is no final status; 0 is that none is given.
func ValidStatus(status int) error {
	if status != 0 && (status < 200 || status > 599) {
		return fmt.Errorf("status %d is none", status)
	}
	return nil
}

// Covers tells whether a pattern is about a name: a * at its end stands for anything,
// and an empty one is about every name.
func Covers(pattern, name string) bool {
	prefix, ok := strings.CutSuffix(pattern, "*")
	return pattern == "" || name == pattern || ok && strings.HasPrefix(name, prefix)
}

// Wait holds an answer back until the service is healed, and reports whether somebody
// still wants it.
func (f HTTP) Wait(r *http.Request, healed <-chan struct{}) bool {
	if f.Delay <= 0 {
		return true
	}
	timer := time.NewTimer(f.Delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-healed:
	case <-r.Context().Done():
		return false
	}
	return true
}

// Instead does what comes before an answer or in place of one: it waits, hangs, resets
// the connection or replies with a status. It reports whether the request is done with.
func (f HTTP) Instead(w http.ResponseWriter, r *http.Request, healed <-chan struct{}, reply func(status int, body string)) bool {
	switch {
	case !f.Wait(r, healed):
	case f.Hang:
		Hang(r, healed)
	case f.Reset:
		Reset(w)
	case f.Status != 0:
		reply(f.Status, cmp.Or(f.Body, http.StatusText(f.Status)))
	default:
		return false
	}
	return true
}

// Answer replies with an answer, of which half is missing or which is huge where the
// fault is that.
func (f HTTP) Answer(w http.ResponseWriter, status int, body string, reply func(status int, body string)) {
	switch {
	case f.Truncate && len(body) > 1:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		reply(status, body[:len(body)/2])
		panic(http.ErrAbortHandler)
	case f.Huge:
		body += strings.Repeat(" ", 2<<20)
	}
	reply(status, body)
}

// Hang lasts until somebody heals or goes. The connection is closed then.
func Hang(r *http.Request, healed <-chan struct{}) {
	select {
	case <-healed:
	case <-r.Context().Done():
	}
	panic(http.ErrAbortHandler)
}

// Reset resets the connection.
func Reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if c, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0)
	}
	_ = conn.Close()
}

// Write sends a status and a body at once, so that half a body is on its way before the
// connection is closed.
func Write(w http.ResponseWriter, status int, body string) {
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // the reader went away: nothing to be done
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
}

// Service is what can be made to fail.
type Service[F any] interface {
	Faults() []F
	AddFault(f F) error
	ClearFaults()
}

// Handle lists, adds and clears the faults of a service on a control port: GET, POST and
// DELETE /fault.
func Handle[F any](mux *http.ServeMux, s Service[F], parse func(url.Values) (F, error)) {
	mux.HandleFunc("GET /fault", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, s.Faults()) })
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		f, err := parse(r.URL.Query())
		if err == nil {
			err = s.AddFault(f)
		}
		if err != nil {
			control.Fail(w, http.StatusBadRequest, err)
			return
		}
		control.JSON(w, s.Faults())
	})
	mux.HandleFunc("DELETE /fault", func(w http.ResponseWriter, _ *http.Request) {
		s.ClearFaults()
		control.JSON(w, s.Faults())
	})
}
