// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegcp

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

func (f Fault) validate() error {
	kinds := 0
	for _, set := range []bool{f.Status != 0, f.Truncate, f.Hang, f.Reset, f.Huge, f.Instant, f.NoTag, f.NoFlavor} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return errors.New("a fault has one kind: status, truncate, huge, hang, reset, instant, no-tag or no-flavor")
	case kinds == 0 && f.Delay <= 0:
		return errors.New("a fault that does nothing")
	case f.Delay < 0 || f.Times < 0:
		return errors.New("negative number in a fault")
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return fmt.Errorf("status %d is none", f.Status)
	}
	return nil
}

func (f Fault) matches(r *http.Request) bool {
	if f.Held && r.URL.Query().Get("wait_for_change") != "true" {
		return false
	}
	pattern, path := f.Path, r.URL.Path
	if !strings.HasPrefix(pattern, "/") {
		path = strings.TrimPrefix(path, base)
	}
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(path, prefix)
	}
	return pattern == "" || path == pattern
}
