// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/amsagent/amsagent/lifecycle"
)

// Paths of the control socket. An answer that is no success has a [Refusal] as its
// body; every answer is application/json, a stream application/x-ndjson.
const (
	PathStatus = "/v1/status" // GET: a View
	// PathDrain takes a lifecycle.DrainRequest by POST, and answers with the
	// lifecycle.View as it is then. GET is that view alone; with ?follow=1 it is a
	// stream of views, one in a line, at each change and at least every FollowEvery.
	PathDrain   = "/v1/drain"
	PathUndrain = "/v1/undrain" // POST an UndrainRequest: a lifecycle.View
	PathNotice  = "/v1/notice"  // POST a lifecycle.Notice: a lifecycle.View
	QueryFollow = "follow"
	// PathHold takes a HoldRequest by POST. Its answer is one line, sent when this node is not ready; it stays so
	// until that connection ends.
	PathHold = "/v1/hold"
)

// FollowEvery is the longest silence of a stream of views: who hears nothing for
// much longer has lost the daemon.
const FollowEvery = 5 * time.Second

// UndrainRequest takes a drain back.
type UndrainRequest struct {
	Who string `json:"who,omitempty"`
}

// HoldRequest keeps new sessions away while a command stops or restarts the server.
type HoldRequest struct {
	// Command is the name of the command, as "leave".
	Command string `json:"command"`
}

// RefusalCode says what kept the daemon from doing what it was asked.
type RefusalCode string

// The codes.
const (
	RefusedInvalid     RefusalCode = "invalid"      // the request makes no sense
	RefusedNotMember   RefusalCode = "not-member"   // this machine is not a cluster node
	RefusedNotDraining RefusalCode = "not-draining" // there is nothing to take back
	RefusedTooLate     RefusalCode = "too-late"     // this node is going already
	RefusedLeft        RefusalCode = "left"         // it has gone
	RefusedNotReady    RefusalCode = "not-ready"    // the daemon is starting, or ending
	RefusedFailed      RefusalCode = "failed"       // anything else
)

// Refusal is what the daemon says where it does not do what it was asked.
type Refusal struct { //nolint:errname // it is an answer before it is an error
	Code    RefusalCode `json:"code"`
	Message string      `json:"message"`
	// View is how things are instead.
	View *lifecycle.View `json:"view,omitempty"`
}

// Error implements error.
func (r *Refusal) Error() string {
	if r.Message == "" {
		return fmt.Sprintf("the daemon refused: %s", string(r.Code))
	}
	return r.Message
}

// Refuse makes a refusal of what lifecycle returns.
func Refuse(err error, v lifecycle.View) *Refusal {
	r := &Refusal{Code: RefusedFailed, Message: err.Error(), View: &v}
	for _, row := range []struct {
		err  error
		code RefusalCode
	}{
		{lifecycle.ErrNotJoined, RefusedNotMember},
		{lifecycle.ErrNotDraining, RefusedNotDraining},
		{lifecycle.ErrTooLate, RefusedTooLate},
		{lifecycle.ErrLeft, RefusedLeft},
	} {
		if errors.Is(err, row.err) {
			r.Code = row.code
		}
	}
	return r
}

// HTTPStatus is the status of its answer.
func (r *Refusal) HTTPStatus() int {
	switch r.Code {
	case RefusedInvalid:
		return http.StatusBadRequest
	case RefusedNotReady:
		return http.StatusServiceUnavailable
	case RefusedFailed:
		return http.StatusInternalServerError
	case RefusedNotMember, RefusedNotDraining, RefusedTooLate, RefusedLeft:
	}
	return http.StatusConflict
}
