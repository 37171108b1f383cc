// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Fault spoils the answers to some requests of a metadata service or an API. Delay may be combined with any other kind; of
// the others one is set.
type Fault struct {
	// Path selects requests: the path of a request, the same below the service's root (meta-data/instance-id), or the
	// action of an API. A * at its end matches anything, an empty path everything.
	Path string `json:"path"`
	Held bool   `json:"held,omitempty"` // long polls only
	// Delay holds the answer back.
	Delay time.Duration `json:"delay_ns,omitempty"`
	// Status is answered, with Body, instead of everything.
	Status int    `json:"status,omitempty"`
	Body   string `json:"body,omitempty"`
	// Code is the error that an API answers, with Status (default 400) and Message. Empty is an answer without a body.
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	Empty   bool   `json:"empty,omitempty"`
	// Truncate announces the whole answer and sends half of it.
	Truncate bool `json:"truncate,omitempty"`
	// Hang never answers. On the path of a token that is a hop limit of 1, seen from inside a container. Reset resets the
	// connection. Deaf does what the API is asked, and then resets it.
	Hang  bool `json:"hang,omitempty"`
	Reset bool `json:"reset,omitempty"`
	Deaf  bool `json:"deaf,omitempty"`
	// Instant answers a long poll at once, NoFlavor omits the header of Google's answers.
	Instant  bool `json:"instant,omitempty"`
	NoFlavor bool `json:"no_flavor,omitempty"`
	// Times ends it after so many requests; 0: never.
	Times int `json:"times,omitempty"`
}

// FaultList are the faults in force in one service. The zero value is a healthy metadata service.
type FaultList struct {
	api, polls bool // which kinds the service has

	mu     sync.Mutex
	armed  []Fault       // Times is the number of requests left
	healed chan struct{} // closed and replaced when the faults are cleared
}

// validate refuses a fault that does nothing, or more than one thing: a test with it would test something else than it says.
func (l *FaultList) validate(f Fault) error {
	kinds := 0
	for _, set := range []bool{
		f.Code != "" || f.Status != 0, f.Body != "" && f.Status == 0, f.Empty, f.Truncate, f.Hang, f.Reset, f.Deaf,
		f.Instant, f.NoFlavor,
	} {
		if set {
			kinds++
		}
	}
	onlyAPI := f.Code != "" || f.Message != "" || f.Empty || f.Deaf || f.Body != "" && f.Status == 0
	switch {
	case onlyAPI && !l.api, l.api && f.Truncate, !l.polls && (f.Held || f.Instant || f.NoFlavor):
		return errors.New("the service has no such fault")
	case kinds > 1:
		return errors.New("a fault is of one kind")
	case kinds == 0 && f.Delay <= 0:
		return errors.New("a fault that does nothing")
	case f.Delay < 0 || f.Times < 0:
		return errors.New("negative number in a fault")
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return fmt.Errorf("status %d is invalid", f.Status)
	}
	return nil
}

// AddFault puts a fault in force beside the others; the first that matches a request counts.
func (l *FaultList) AddFault(f Fault) error {
	if err := l.validate(f); err != nil {
		return fmt.Errorf("adding a fault: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = append(l.armed, f)
	return nil
}

// ClearFaults heals the service. Requests that hang are released.
func (l *FaultList) ClearFaults() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = nil
	if l.healed != nil {
		close(l.healed)
		l.healed = nil
	}
}

// Faults lists the faults in force.
func (l *FaultList) Faults() []Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Fault{}, l.armed...)
}

// strike returns the first fault that matches one of the names, or the zero fault. If it is one without an answer, it is done:
// note is called before that with what happens.
func (l *FaultList) strike(w http.ResponseWriter, r *http.Request, note func(string), names ...string) (f Fault, done bool) {
	f, healed := l.match(r, names)
	if f.Delay > 0 {
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-healed:
		case <-r.Context().Done():
			return f, true
		}
	}
	switch {
	case f.Hang: // until the service is healed or the client leaves; the connection is closed then
		note("(hangs)")
		select {
		case <-healed:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case f.Reset:
		note("(reset)")
		reset(w)
	}
	return f, f.Reset
}

// match finds a fault, and counts. The channel is closed when the service is healed.
func (l *FaultList) match(r *http.Request, names []string) (Fault, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.healed == nil {
		l.healed = make(chan struct{})
	}
	for i, f := range l.armed {
		if f.Held && !held(r) || !slices.ContainsFunc(names, f.covers) {
			continue
		}
		switch f.Times {
		case 0:
		case 1:
			l.armed = slices.Delete(l.armed, i, i+1)
		default:
			l.armed[i].Times--
		}
		return f, l.healed
	}
	return Fault{}, l.healed
}

func (f Fault) covers(name string) bool {
	prefix, ok := strings.CutSuffix(f.Path, "*")
	return f.Path == "" || name == f.Path || ok && strings.HasPrefix(name, prefix)
}

// reset resets the connection.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if c, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0)
	}
	_ = conn.Close()
}

// write sends a status and a body at once, so that half a body is on its way before the connection is closed.
func write(w http.ResponseWriter, status int, body string) {
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // an error is a client that left
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
}
