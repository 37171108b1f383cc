// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeazure

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Fault spoils the answers to some requests. Delay may go with any other field; of
// the others one is to be set.
type Fault struct {
	// Path is the path it is about, as in a request (/metadata/instance) or below
	// /metadata/ (scheduledevents). A * at its end stands for anything, and an empty
	// path for every path.
	Path string `json:"path"`
	// Method restricts it to GET or POST; empty: any.
	Method string `json:"method,omitempty"`
	// Delay holds the answer back.
	Delay time.Duration `json:"delay_ns,omitempty"`
	// Status is answered, with Body, in place of everything.
	Status int    `json:"status,omitempty"`
	Body   string `json:"body,omitempty"`
	// Truncate announces the whole answer and sends half of it, Huge sends it with
	// two megabytes of blanks.
	Truncate bool `json:"truncate,omitempty"`
	Huge     bool `json:"huge,omitempty"`
	// Hang never answers, Reset resets the connection.
	Hang  bool `json:"hang,omitempty"`
	Reset bool `json:"reset,omitempty"`
	// Times ends it after so many requests; 0 means never.
	Times int `json:"times,omitempty"`
}

func (f Fault) validate() error {
	kinds := 0
	for _, set := range []bool{f.Status != 0, f.Truncate, f.Huge, f.Hang, f.Reset} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return errors.New("a fault has one kind: status, truncate, huge, hang or reset")
	case kinds == 0 && f.Delay <= 0:
		return errors.New("a fault that does nothing")
	case f.Delay < 0 || f.Times < 0:
		return errors.New("negative number in a fault")
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return fmt.Errorf("status %d is none", f.Status)
	case f.Method != "" && f.Method != http.MethodGet && f.Method != http.MethodPost:
		return fmt.Errorf("method %q is neither GET nor POST", f.Method)
	}
	return nil
}

func (f Fault) matches(r *http.Request) bool {
	if f.Method != "" && f.Method != r.Method {
		return false
	}
	pattern, path := f.Path, r.URL.Path
	if pattern == "" {
		return true
	}
	if !strings.HasPrefix(pattern, "/") {
		path = strings.TrimPrefix(path, "/metadata/")
	}
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(path, prefix)
	}
	return path == pattern
}
