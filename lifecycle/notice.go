// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import "time"

// Kind says what a notice means for this machine.
type Kind string

// The kinds.
const (
	// Terminate: the machine is taken out of its group and goes. A hook may wait
	// for our word.
	Terminate Kind = "terminate"
	// Interrupt: the machine goes at the deadline, whatever anybody does (spot).
	Interrupt Kind = "interrupt"
	// Reboot: the machine is started again at the deadline and comes back.
	Reboot Kind = "reboot"
	// Park: the machine leaves service and stays as it is, to come back later
	// (warm pool, standby, detached).
	Park Kind = "park"
	// Resume: a parked machine is to serve again.
	Resume Kind = "resume"
	// Launch: a hook waits for our word that this machine serves.
	Launch Kind = "launch"
	// Withdrawn takes back the notice with the same ID.
	Withdrawn Kind = "withdrawn"
	// Ask: a person, or a program of theirs, wants this node drained.
	Ask Kind = "ask"
	// Shutdown: the service manager stops us because the machine goes down.
	Shutdown Kind = "shutdown"
)

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
	// Served tells that a boot of the machine after the Deadline is the Reboot that is
	// announced. Others are of a host, and come whoever starts the machine.
	Served bool `json:"-"`
}

// Hook is something of the cloud's that waits until we say that it may go on.
type Hook struct {
	Provider string `json:"provider"`
	Group    string `json:"group"`
	Name     string `json:"name"`
	// Token is the cloud's for this one action, where it gave one.
	Token string `json:"token,omitempty"`
	// Others are the other machines that the same word of ours lets go, by id or as
	// the cloud's signals call them: the word is said when they have left, too.
	Others []string `json:"others,omitempty"`
	// Fixed tells that nothing we say makes the cloud wait longer than Limit.
	Fixed bool `json:"fixed,omitempty"`
	// Launching tells the hook of a start from that of an end.
	Launching bool `json:"launching,omitempty"`
	// Timeout is how long the cloud waits from one word of ours to the next; 0 is
	// not known. Limit is when it waits no longer; zero is not known.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
	Limit   time.Time     `json:"limit,omitzero"`
	// Ours tells that it was kept waiting before, so it is this agent's by default although
	// there may be other hooks by now.
	Ours bool `json:"-"`
	// Parking tells that the machine is on its way out of service to come back.
	Parking bool `json:"-"`
}
