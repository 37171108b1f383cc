// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/lifecycle"
)

// Paths of the control socket. An error response has a [Refusal] as its body. Responses are application/json, that of
// [PathHold] is application/x-ndjson.
const (
	PathStatus  = "/v1/status"  // GET: a View
	PathDrain   = "/v1/drain"   // GET, or POST a lifecycle.DrainRequest: a lifecycle.View
	PathUndrain = "/v1/undrain" // POST an UndrainRequest: a lifecycle.View
	PathNotice  = "/v1/notice"  // POST a lifecycle.Notice: a lifecycle.View
	// PathSessions counts by GET, and answers a SessionsView.
	PathSessions = "/v1/sessions"
	// PathHold accepts a HoldRequest by POST. It answers one line when this node is not ready, which lasts until the connection
	// ends.
	PathHold = "/v1/hold"
)

// SessionsView is a count of now.
type SessionsView struct {
	cluster.Sessions
	// Missing is why some are unknown.
	Missing string `json:"missing,omitempty"`
}

// UndrainRequest cancels a drain.
type UndrainRequest struct {
	Who string `json:"asked_by,omitempty"`
}

// HoldRequest keeps new sessions away while a command stops or restarts the server.
type HoldRequest struct {
	// Command is its name, such as "leave".
	Command string `json:"command"`
}

// RefusalCode is the cause of a refusal.
type RefusalCode string

// The codes.
const (
	RefusedInvalid     RefusalCode = "invalid"      // invalid request
	RefusedNotMember   RefusalCode = "not-member"   // this machine is not a cluster node
	RefusedNotDraining RefusalCode = "not-draining" // no drain to cancel
	RefusedTooLate     RefusalCode = "too-late"     // stopping or shutting down already
	RefusedLeft        RefusalCode = "left"         // the node has left
	RefusedFailed      RefusalCode = "failed"       // anything else
)

// Refusal is the daemon's error response.
type Refusal struct { //nolint:errname // it is an answer before it is an error
	Code    RefusalCode `json:"code"`
	Message string      `json:"message"`
	// View is the current state.
	View *lifecycle.View `json:"view,omitempty"`
}

// Error implements error.
func (r *Refusal) Error() string {
	if r.Message == "" {
		return fmt.Sprintf("the daemon refused: %s", string(r.Code))
	}
	return r.Message
}

// Refuse converts an error of package lifecycle.
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

// HTTPStatus returns the response's status.
func (r *Refusal) HTTPStatus() int {
	switch r.Code {
	case RefusedInvalid:
		return http.StatusBadRequest
	case RefusedFailed:
		return http.StatusInternalServerError
	case RefusedNotMember, RefusedNotDraining, RefusedTooLate, RefusedLeft:
	}
	return http.StatusConflict
}
