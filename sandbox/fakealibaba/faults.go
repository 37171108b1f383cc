// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Fault spoils the answers to some requests, of the metadata service or of the API.
// Delay may go with any other field; of the others one is to be set.
type Fault struct {
	// Path is the path it is about, as in a request (/latest/api/token) or below the
	// version (meta-data/instance-id); of the API the action. A * at its end stands
	// for anything, and an empty path for every one.
	Path string `json:"path"`
	// Delay holds the answer back.
	Delay time.Duration `json:"delay_ns,omitempty"`
	// Status is answered, with Body, in place of everything.
	Status int    `json:"status,omitempty"`
	Body   string `json:"body,omitempty"`
	// Code is the error that the API answers, with Status (default 400).
	Code string `json:"code,omitempty"`
	// Truncate announces the whole answer and sends half of it.
	Truncate bool `json:"truncate,omitempty"`
	// Huge sends the answer with two mebibytes of blanks after it.
	Huge bool `json:"huge,omitempty"`
	// Hang never answers, Reset resets the connection.
	Hang  bool `json:"hang,omitempty"`
	Reset bool `json:"reset,omitempty"`
	// Deaf does what the API is asked and then resets the connection.
	Deaf bool `json:"deaf,omitempty"`
	// Times ends it after so many requests; 0 means never.
	Times int `json:"times,omitempty"`
}

func (f Fault) validate() error {
	kinds := 0
	for _, set := range []bool{f.Status != 0 || f.Code != "", f.Truncate, f.Huge, f.Hang, f.Reset, f.Deaf} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return errors.New("a fault has one kind: status or code, truncate, huge, hang, reset or deaf")
	case kinds == 0 && f.Delay <= 0:
		return errors.New("a fault that does nothing")
	case f.Delay < 0 || f.Times < 0:
		return errors.New("negative number in a fault")
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return fmt.Errorf("status %d is none", f.Status)
	}
	return nil
}

// matches tells whether a fault is about one of the names of what was asked for.
func (f Fault) matches(names ...string) bool {
	for _, n := range names {
		if prefix, ok := strings.CutSuffix(f.Path, "*"); f.Path == "" || n == f.Path || ok && strings.HasPrefix(n, prefix) {
			return true
		}
	}
	return false
}

// wait holds an answer back, and reports whether somebody still wants it.
func (f Fault) wait(r *http.Request, healed <-chan struct{}) bool {
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

// hang lasts until somebody heals or goes.
func hang(r *http.Request, healed <-chan struct{}) {
	select {
	case <-healed:
	case <-r.Context().Done():
	}
	panic(http.ErrAbortHandler)
}

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
