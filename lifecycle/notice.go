// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Kind says what a notice means for this machine: one of the cloud's, or one of these.
type Kind = cloud.Kind

// The kinds.
const (
	Terminate = cloud.Terminate
	Interrupt = cloud.Interrupt
	Reboot    = cloud.Reboot
	Park      = cloud.Park
	// Resume: a parked machine is to serve again.
	Resume Kind = "resume"
	// Launch: a hook waits until this machine serves.
	Launch Kind = "launch"
	// Withdrawn takes back the notice with the same ID.
	Withdrawn Kind = "withdrawn"
	// Ask: a person, or a program of theirs, wants this node drained.
	Ask Kind = "ask"
	// Shutdown: the service manager stops us because the machine goes down.
	Shutdown Kind = "shutdown"
)

// Hook is a hook of the cloud's that waits for us.
type Hook = cloud.Hook

// Notice says that this machine will go, or may, or is to serve again.
type Notice struct {
	// ID is made of the cloud's own facts, so that a notice that is seen twice,
	// or by two sources, has one.
	ID     string `json:"id"`
	Source string `json:"source"` // "aws-lifecycle", "aws-spot", "event", "drain"...
	Kind   Kind   `json:"kind"`
	// Reason is for people, Who the person or program behind it where known.
	Reason string `json:"reason,omitempty"`
	Who    string `json:"who,omitempty"`
	// By says whose the deadline is, where several could have been.
	By       string    `json:"by,omitempty"`
	Received time.Time `json:"received"`
	// Deadline is when the machine goes whatever we do; zero is not known.
	Deadline time.Time `json:"deadline,omitzero"`
	// Moved tells that the cloud has moved the deadline, and the limit of the hook:
	// these take the place of what was said before, also where they are later.
	Moved bool `json:"moved,omitempty"`
	// Hook waits for our word; nil where none does or none is known yet.
	Hook *Hook `json:"hook,omitempty"`
}
