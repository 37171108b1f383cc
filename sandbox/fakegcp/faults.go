// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegcp

import (
	"net/http"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

// Fault spoils the answers to some requests. Delay may go with any other field; of
// the others one is to be set.
type Fault struct {
	// Path is the path it is about, as in a request or below computeMetadata/v1/. A *
	// at its end stands for anything, and an empty path for every path.
	Path string `json:"path"`
	// Held restricts it to polls that wait for a change.
	Held bool `json:"held,omitempty"`
	// Delay holds the answer back.
	Delay time.Duration `json:"delay_ns,omitempty"`
	// Status is answered, with Body, in place of everything.
	Status int    `json:"status,omitempty"`
	Body   string `json:"body,omitempty"`
	// Truncate announces the whole answer and sends half of it.
	Truncate bool `json:"truncate,omitempty"`
	// Huge sends the answer with two mebibytes of blanks after it.
	Huge bool `json:"huge,omitempty"`
	// Hang never answers, whatever timeout_sec says.
	Hang bool `json:"hang,omitempty"`
	// Reset resets the connection.
	Reset bool `json:"reset,omitempty"`
	// Instant answers a poll at once although nothing has changed, as something in
	// between does that does not know of waiting.
	Instant bool `json:"instant,omitempty"`
	// NoTag leaves the ETag out, NoFlavor the header that marks Google's answers.
	NoTag    bool `json:"no_tag,omitempty"`
	NoFlavor bool `json:"no_flavor,omitempty"`
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
	return f.HTTP().Validate("a fault has one kind: status, truncate, huge, hang, reset, instant, no-tag or no-flavor", f.Instant, f.NoTag, f.NoFlavor)
}

func (f Fault) matches(r *http.Request) bool {
	if f.Held && r.URL.Query().Get("wait_for_change") != "true" {
		return false
	}
	path := r.URL.Path
	if !strings.HasPrefix(f.Path, "/") {
		path = strings.TrimPrefix(path, base)
	}
	return faults.Covers(f.Path, path)
}
