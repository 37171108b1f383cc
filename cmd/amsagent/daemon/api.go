// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/lifecycle"
)

// Paths of the control socket. An answer that is no success has a [Refusal] as its
// body.
const (
	PathStatus = "/v1/status" // GET: a View
	// PathDrain takes a DrainRequest by POST and answers with a DrainView. GET is
	// the DrainView as it is; with ?follow=1 it is a stream of them, one in a line,
	// at each change and at least every FollowEvery.
	PathDrain   = "/v1/drain"
	PathUndrain = "/v1/undrain" // POST an UndrainRequest: a DrainView
	PathNotice  = "/v1/notice"  // POST a lifecycle.Notice: a DrainView
	QueryFollow = "follow"
)

// FollowEvery is the longest silence of a stream of views: who hears nothing for
// much longer has lost the daemon.
const FollowEvery = 5 * time.Second

// DrainRequest asks for a drain of this node. Where one is under way already, it is
// joined, and its deadline is moved only to be earlier.
type DrainRequest struct {
	// Deadline is from now; 0 is the daemon's own setting.
	Deadline time.Duration `json:"deadline_ns,omitempty"`
	// Now does not wait for the sessions: they are cut.
	Now    bool   `json:"now,omitempty"`
	Reason string `json:"reason,omitempty"`
	Who    string `json:"who,omitempty"`
	// RepairStreams ends streams that this node's address leaves "broadcasting".
	RepairStreams bool `json:"repair_streams,omitempty"`
}

// UndrainRequest takes a drain back.
type UndrainRequest struct {
	Who string `json:"who,omitempty"`
}

// DrainView is how this node goes, or comes, as far as the daemon knows. It is kept
// over restarts of the daemon, and after the end of a drain until the next begins.
type DrainView struct {
	// ID names one drain, also after a restart of the daemon; "" where this node
	// has not been drained in this life.
	ID string `json:"id,omitempty"`
	// State is that of our row; "" on a machine that is no node.
	State cluster.State  `json:"state,omitempty"`
	Kind  lifecycle.Kind `json:"kind,omitempty"`
	// Step is what is being done, in words: "stopping Ant Media Server". Until it is
	// Irreversible, these have the numbers of sessions in them.
	Step   string    `json:"step,omitempty"`
	Began  time.Time `json:"began,omitzero"`
	Reason string    `json:"reason,omitempty"`
	// Who asked for it.
	Who string `json:"who,omitempty"`

	Sessions cluster.Sessions `json:"sessions"`
	// Deadline is when the sessions are waited for no longer, DeadlineOwner whose
	// word that is: "hook drain", "--deadline of alice", "the configured deadline".
	Deadline      time.Time       `json:"deadline,omitzero"`
	DeadlineOwner string          `json:"deadline_owner,omitempty"`
	Hook          *lifecycle.Hook `json:"hook,omitempty"`
	// Notes are what happened, and what does not go well but stops nothing: a
	// permission that is missing, MongoDB being away.
	Notes []string `json:"notes,omitempty"`
	// Irreversible tells that AMS is being stopped: there is no way back.
	Irreversible bool `json:"irreversible,omitempty"`

	// Ended is when it was over; zero while it is under way.
	Ended   time.Time `json:"ended,omitzero"`
	Outcome Outcome   `json:"outcome,omitempty"`
	// By is who ended it otherwise than it was begun.
	By string `json:"by,omitempty"`
	// Error is why it failed.
	Error string `json:"error,omitempty"`
	// Cut is how many sessions were cut; nil is not known.
	Cut *int `json:"cut,omitempty"`
}

// Outcome is how a drain, or a launch, ended.
type Outcome string

// The outcomes.
const (
	// OutcomeLeft: this node is out of the cluster, and nothing waits for it.
	OutcomeLeft Outcome = "left"
	// OutcomeUndrained: somebody took the drain back.
	OutcomeUndrained Outcome = "undrained"
	// OutcomeActive: a launch ended with this node serving.
	OutcomeActive Outcome = "active"
	// OutcomeFailed: it could not be done; Error says why.
	OutcomeFailed Outcome = "failed"
)

// Draining reports whether this node is on its way out.
func (v DrainView) Draining() bool { return v.ID != "" && v.Ended.IsZero() && !v.Launching() }

// Launching reports whether it is about this node coming, not going.
func (v DrainView) Launching() bool { return v.Kind == lifecycle.Launch || v.Kind == lifecycle.Resume }

// RefusalCode says what kept the daemon from doing what it was asked.
type RefusalCode string

// The codes.
const (
	RefusedInvalid     RefusalCode = "invalid"      // the request makes no sense
	RefusedNotMember   RefusalCode = "not-member"   // this machine is no node
	RefusedNotDraining RefusalCode = "not-draining" // there is nothing to undrain
	RefusedTooLate     RefusalCode = "too-late"     // AMS is being stopped
	RefusedNotReady    RefusalCode = "not-ready"    // the daemon is starting, or ending
	RefusedFailed      RefusalCode = "failed"       // anything else
)

// Refusal is what the daemon says where it does not do what it was asked.
type Refusal struct {
	Code    RefusalCode `json:"code"`
	Message string      `json:"message"`
	// View is how things are instead.
	View *DrainView `json:"view,omitempty"`
}

func (r *Refusal) Error() string {
	if r.Message == "" {
		return fmt.Sprintf("the daemon refused: %s", string(r.Code))
	}
	return r.Message
}
