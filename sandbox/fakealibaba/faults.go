// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"slices"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/faults"
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

// HTTP implements [faults.Fault].
func (f Fault) HTTP() faults.HTTP {
	return faults.HTTP{
		Delay: f.Delay, Status: f.Status, Body: f.Body, Truncate: f.Truncate, Huge: f.Huge, Hang: f.Hang, Reset: f.Reset, Times: f.Times,
	}
}

// Validate implements [faults.Fault].
func (f Fault) Validate() error {
	// A code and its status are one kind.
	return f.HTTP().Validate("a fault has one kind: status or code, truncate, huge, hang, reset or deaf", f.Code != "" && f.Status == 0, f.Deaf)
}

// matches tells whether a fault is about one of the names of what was asked for.
func (f Fault) matches(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return faults.Covers(f.Path, name) })
}
