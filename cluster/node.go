// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/amsagent/amsagent/internal/seconds"
)

// ErrNoNode means that there is no such record.
var ErrNoNode = errors.New("no such node in the registry")

// Node is a registry record, written by the machine's agent.
type Node struct {
	ID       string `bson:"_id" json:"id"` // the instance id of the cloud
	IP       string `bson:"ip,omitempty" json:"ip,omitempty"`
	PublicIP string `bson:"public_ip,omitempty" json:"public_ip,omitempty"`
	Hostname string `bson:"hostname,omitempty" json:"hostname,omitempty"`
	// Name is the machine's name in the cloud's signals, if not ID.
	Name     string `bson:"name,omitempty" json:"name,omitempty"`
	Role     string `bson:"role,omitempty" json:"role,omitempty"`
	Group    string `bson:"group,omitempty" json:"group,omitempty"`
	Provider string `bson:"provider,omitempty" json:"provider,omitempty"`
	Region   string `bson:"region,omitempty" json:"region,omitempty"`
	Zone     string `bson:"zone,omitempty" json:"zone,omitempty"`
	Type     string `bson:"type,omitempty" json:"type,omitempty"`
	Agent    string `bson:"agent_version,omitempty" json:"agent_version,omitempty"` // version
	AMS      string `bson:"ams_version,omitempty" json:"ams_version,omitempty"`     // version
	// BootID and IP identify an instance of the node.
	BootID string `bson:"boot_id,omitempty" json:"boot_id,omitempty"`
	// Drift names settings in the server's files that differ from the join, secrets masked; repaired before its next start.
	Drift    string           `bson:"drift,omitempty" json:"drift,omitempty"`
	Port     int              `bson:"port,omitempty" json:"port,omitempty"`                    // AMS's HTTP port; 0 if unknown
	Interval seconds.Duration `bson:"interval_ns,omitempty" json:"interval_seconds,omitempty"` // between heartbeats; 0 without a daemon

	State  State  `bson:"state" json:"state"`
	Reason string `bson:"reason,omitempty" json:"reason,omitempty"`
	// LeftBy is why the node leaves: leave (the command), drain, stop (of the server's unit), reimage.
	LeftBy     string `bson:"left_by,omitempty" json:"left_by,omitempty"`
	StopFailed bool   `bson:"stop_failed,omitempty" json:"stop_failed,omitempty"` // the node drains, and its server does not stop
	Cut        *int   `bson:"cut,omitempty" json:"cut,omitempty"`                 // sessions that were cut; nil if unknown
	// DrainRequest is set until this node's agent accepts it.
	DrainRequest *DrainRequest `bson:"drain_request,omitempty" json:"drain_request,omitempty"`
	// DrainRefused is the last request, if this node's agent refused it.
	DrainRefused *DrainRefusal `bson:"drain_refused,omitempty" json:"drain_refused,omitempty"`

	// Balancers are those that know the node, by name; ignored on write.
	Balancers map[string]Balancer `bson:"balancers,omitempty" json:"balancers,omitempty"`

	// Set by MongoDB's clock; ignored on write.
	StateSince time.Time `bson:"state_since,omitempty" json:"state_since,omitzero"`
	UpdatedAt  time.Time `bson:"updated_at,omitempty" json:"updated_at,omitzero"`

	// Heartbeat is the last one; ignored on write.
	Heartbeat `bson:"heartbeat,omitempty"`
}

// Age returns the record's age by MongoDB's clock, if an agent wrote it.
func (n Node) Age(serverNow time.Time) (age time.Duration, known bool) {
	if n.UpdatedAt.IsZero() {
		return 0, false
	}
	return max(0, serverNow.Sub(n.UpdatedAt)), true
}

// Instance identifies one boot at one address.
func (n Node) Instance() string { return n.BootID + " " + n.IP }

// SameInstance compares id, boot and address.
func (n Node) SameInstance(m Node) bool {
	return n.ID == m.ID && n.BootID == m.BootID && n.IP == m.IP
}

// Heartbeats reports whether the record's age is a liveness signal: a daemon writes it.
func (n Node) Heartbeats() bool { return n.Seq > 0 || n.Interval > 0 }

// WithCloudFactsOf fills in missing cloud facts. The public address changes with a boot.
func (n Node) WithCloudFactsOf(earlier Node) Node {
	n.Name = cmp.Or(n.Name, earlier.Name)
	n.Provider = cmp.Or(n.Provider, earlier.Provider)
	n.Region = cmp.Or(n.Region, earlier.Region)
	n.Zone = cmp.Or(n.Zone, earlier.Zone)
	n.Type = cmp.Or(n.Type, earlier.Type)
	if n.PublicIP == "" && n.BootID == earlier.BootID {
		n.PublicIP = earlier.PublicIP
	}
	return n
}

// DefaultInterval is the default time between heartbeats.
const DefaultInterval = 5 * time.Second

// maxInterval: a wrong value must not keep a dead node alive for an hour.
const maxInterval = 5 * time.Minute

func (n Node) interval() time.Duration {
	if n.Interval <= 0 {
		return DefaultInterval
	}
	return min(time.Duration(n.Interval), maxInterval)
}

// inUse reports whether an agent writes the record. Another machine may take it after that.
func (n Node) inUse(serverNow time.Time) (age time.Duration, used bool) {
	age, known := n.Age(serverNow)
	return age, known && n.hasWriter() && age < goneLimit(n.interval())
}

func (n Node) hasWriter() bool {
	return n.Heartbeats() && n.State != StateLeft && n.State != StateFailed
}

// Silence proves that no agent writes a record: several looks found it unchanged. Its age alone is no proof, because no
// agent could write while MongoDB was away. The zero value has seen nothing.
type Silence struct{ written, first, last time.Time }

// isMissing reports whether a record of another address has not been unchanged for its limit, without a gap between self's
// looks. A nil s needs no silence, and neither does a record without a writer.
func (s *Silence) isMissing(was, self Node, now time.Time) bool {
	if s == nil || !was.hasWriter() || SameAddress(was.IP, self.IP) {
		return false
	}
	if !was.UpdatedAt.Equal(s.written) || now.Sub(s.last) > self.interval()+lateness {
		s.written, s.first = was.UpdatedAt, now
	}
	s.last = now
	return now.Sub(s.first) < goneLimit(was.interval())
}

// otherMachine: after a reset only the boot differs, after a move only the address.
func (n Node) otherMachine(self Node) bool {
	return n.ID == self.ID && n.BootID != self.BootID && !SameAddress(n.IP, self.IP) && n.BootID+n.IP != ""
}

// UsedByOther reports whether another machine than self writes the record, and its age.
func (n Node) UsedByOther(self Node, serverNow time.Time) (age time.Duration, used bool) {
	age, used = n.inUse(serverNow)
	return age, used && n.otherMachine(self)
}

// OtherMachineError means that another machine uses the record.
type OtherMachineError struct {
	Node Node
	Age  time.Duration // by MongoDB's clock; 0 if unknown
	Boot bool          // the address is the same: perhaps only an earlier boot
	// Silent: the record is old, but MongoDB may have been away.
	Silent bool
}

func (n Node) usedByOther(self Node, age time.Duration) error {
	return &OtherMachineError{Node: n, Age: age, Boot: SameAddress(n.IP, self.IP)}
}

func (e *OtherMachineError) Error() string {
	who := cmp.Or(e.Node.IP, "a machine without an address")
	if e.Node.Hostname != "" {
		who += " (" + e.Node.Hostname + ")"
	}
	s := fmt.Sprintf("another machine uses the id %s: %s writes its record", e.Node.ID, who)
	if e.Boot {
		s = fmt.Sprintf("another boot of %s wrote its record", e.Node.ID)
	}
	if e.Silent {
		s = fmt.Sprintf("the record of %s is of %s and old, but not yet known to be silent", e.Node.ID, who)
	}
	if e.Age > 0 {
		s += fmt.Sprintf(", %s ago", e.Age.Round(100*time.Millisecond))
	}
	return s
}

// Free returns the time until the record is free.
func (e *OtherMachineError) Free() time.Duration {
	return max(0, goneLimit(e.Node.interval())-e.Age)
}

// reimageLimit: a failed replacement of the root volume ends the machine.
const reimageLimit = 30 * time.Minute

func (n Node) reimaging(serverNow time.Time) bool {
	return n.State == StateLeft && n.LeftBy == LeftByReimage && serverNow.Sub(n.StateSince) < reimageLimit
}

// State is a node's lifecycle state.
type State string

// The states of a node.
const (
	StateJoining  State = "joining"
	StateActive   State = "active"
	StateDraining State = "draining"
	StateLeft     State = "left"
	StateFailed   State = "failed"
)

// States returns all states in lifecycle order.
func States() []State {
	return []State{StateJoining, StateActive, StateDraining, StateLeft, StateFailed}
}

// Valid reports whether s is a known state.
func (s State) Valid() bool { return slices.Contains(States(), s) }

var successors = map[State][]State{
	StateJoining:  {StateActive, StateFailed, StateLeft},
	StateActive:   {StateDraining, StateLeft},
	StateDraining: {StateActive, StateLeft},
	StateLeft:     {StateJoining},
	StateFailed:   {StateJoining, StateLeft},
}

// CanTransition reports whether s may change to next, or is next.
func (s State) CanTransition(next State) bool {
	return s.Valid() && (s == next || slices.Contains(successors[s], next))
}

// TransitionError is a forbidden change of state.
type TransitionError struct {
	ID       string
	From, To State
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("node %s is %s and cannot become %s", e.ID, e.From, e.To)
}
