// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// Fault spoils the answers to some requests. Delay may go with any other field; of
// the others one is to be set.
type Fault struct {
	// Path is the path it is about, as in a request (/latest/api/token) or below
	// the version (meta-data/instance-id). A * at its end stands for anything, and
	// an empty path for every path.
	Path string `json:"path"`
	// Method restricts it to GET or PUT; empty: any.
	Method string `json:"method,omitempty"`
	// Delay holds the answer back.
	Delay time.Duration `json:"delay_ns,omitempty"`
	// Status is answered, with Body, in place of everything.
	Status int    `json:"status,omitempty"`
	Body   string `json:"body,omitempty"`
	// Truncate announces the whole answer and sends half of it.
	Truncate bool `json:"truncate,omitempty"`
	// Hang never answers. On the token's path that is what a hop limit of 1 looks
	// like from inside a container: TCP connects, the answer does not come.
	Hang bool `json:"hang,omitempty"`
	// Reset resets the connection.
	Reset bool `json:"reset,omitempty"`
	// Times ends it after so many requests; 0 means never.
	Times int `json:"times,omitempty"`
}

// HTTP implements [faults.Fault].
func (f Fault) HTTP() faults.HTTP {
	return faults.HTTP{Delay: f.Delay, Status: f.Status, Body: f.Body, Truncate: f.Truncate, Hang: f.Hang, Reset: f.Reset, Times: f.Times}
}

// Validate implements [faults.Fault].
func (f Fault) Validate() error {
	if err := f.HTTP().Validate("a fault has one kind: status, truncate, hang or reset"); err != nil {
		return err
	}
	if f.Method != "" && f.Method != http.MethodGet && f.Method != http.MethodPut {
		return fmt.Errorf("method %q is neither GET nor PUT", f.Method)
	}
	return nil
}

func (f Fault) matches(r *http.Request) bool {
	if f.Method != "" && f.Method != r.Method {
		return false
	}
	path := r.URL.Path
	if !strings.HasPrefix(f.Path, "/") {
		// Below the version, whichever it is.
		_, path, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
	}
	return faults.Covers(f.Path, path)
}
