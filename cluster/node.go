// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"time"
)

// ErrNoNode says that the registry has no record of that id.
var ErrNoNode = errors.New("no such node in the registry")

// Node is one record of the registry: what a machine says about itself. What AMS says about the same machine is an
// [AMSNode].
type Node struct {
	ID       string `bson:"_id" json:"id"` // the cloud's id of the instance
	IP       string `bson:"ip,omitempty" json:"ip,omitempty"`
	PublicIP string `bson:"public_ip,omitempty" json:"public_ip,omitempty"`
	Hostname string `bson:"hostname,omitempty" json:"hostname,omitempty"`
	// Name is what the cloud's signals call the machine by, where that is not ID.
	Name     string `bson:"name,omitempty" json:"name,omitempty"`
	Role     string `bson:"role,omitempty" json:"role,omitempty"`
	Group    string `bson:"group,omitempty" json:"group,omitempty"`
	Provider string `bson:"provider,omitempty" json:"provider,omitempty"`
	Region   string `bson:"region,omitempty" json:"region,omitempty"`
	Zone     string `bson:"zone,omitempty" json:"zone,omitempty"`
	Type     string `bson:"type,omitempty" json:"type,omitempty"`
	Agent    string `bson:"agent,omitempty" json:"agent,omitempty"` // version
	AMS      string `bson:"ams,omitempty" json:"ams,omitempty"`     // version
	// BootID and IP together name one instance of the node: one boot at one address.
	BootID string `bson:"boot_id,omitempty" json:"boot_id,omitempty"`
	// Drift names values of the server's files that differ from those of the join, by
	// application, with secrets masked; the server runs with them until it is restarted.
	Drift string `bson:"drift,omitempty" json:"drift,omitempty"`
	// Port is where AMS answers HTTP; 0 is not known.
	Port int `bson:"port,omitempty" json:"port,omitempty"`
	// IntervalMS is the time between heartbeats; 0 where no daemon runs.
	IntervalMS Millis `bson:"interval_ms,omitempty" json:"interval_ns,omitempty"`

	State  State  `bson:"state" json:"state"`
	Reason string `bson:"reason,omitempty" json:"reason,omitempty"`
	// LeftBy is what took the node out of the cluster, or is about to: leave (the command), drain,
	// stop (of the server's unit).
	LeftBy string `bson:"left_by,omitempty" json:"left_by,omitempty"`
	// StopFailed: the node drains, and its server does not end.
	StopFailed bool `bson:"stop_failed,omitempty" json:"stop_failed,omitempty"`
	// Cut is how many sessions were cut when the node left; nil is not known.
	Cut *int `bson:"cut,omitempty" json:"cut,omitempty"`
	// DrainRequest is what somebody elsewhere asks of this node, until its agent takes it.
	DrainRequest *DrainRequest `bson:"drain_request,omitempty" json:"drain_request,omitempty"`

	// MongoDB's clock sets these; they are ignored when a Node is written.
	StateSince time.Time `bson:"state_since,omitempty" json:"state_since,omitzero"`
	UpdatedAt  time.Time `bson:"updated_at,omitempty" json:"updated_at,omitzero"`

	// Heartbeat is the last one; zero before the first. It is ignored when a Node is written.
	Heartbeat `bson:"-"`
}

// Age returns how long ago the record was written, by MongoDB's clock. It is
// not known for a record that no agent wrote.
func (n Node) Age(serverNow time.Time) (age time.Duration, known bool) {
	if n.UpdatedAt.IsZero() {
		return 0, false
	}
	return max(0, serverNow.Sub(n.UpdatedAt)), true
}

// Instance names one boot of one machine at one address.
func (n Node) Instance() string { return n.BootID + " " + n.IP }

// SameInstance reports whether both records are of one instance of a node: the same boot at the same address.
func (n Node) SameInstance(m Node) bool {
	return n.ID == m.ID && n.BootID == m.BootID && n.IP == m.IP
}

// Heartbeats reports whether a daemon writes this record. Of one that only a join wrote,
// the age says nothing about the machine.
func (n Node) Heartbeats() bool { return n.Seq > 0 || n.IntervalMS > 0 }

// WithCloudFactsOf returns n with what a cloud said of the machine in an earlier record,
// where n does not say it: the cloud may not answer at the moment. The public address
// is another one after a boot.
func (n Node) WithCloudFactsOf(earlier Node) Node {
	for _, f := range []struct{ mine, theirs *string }{
		{&n.Name, &earlier.Name},
		{&n.Provider, &earlier.Provider},
		{&n.Region, &earlier.Region},
		{&n.Zone, &earlier.Zone},
		{&n.Type, &earlier.Type},
	} {
		if *f.mine == "" {
			*f.mine = *f.theirs
		}
	}
	if n.PublicIP == "" && n.BootID == earlier.BootID {
		n.PublicIP = earlier.PublicIP
	}
	return n
}

// DefaultInterval is the time between heartbeats where nothing else is said.
const DefaultInterval = 5 * time.Second

// maxInterval bounds what a record may say: nobody is alive for an hour because of
// a number that somebody wrote.
const maxInterval = 5 * time.Minute

func (n Node) interval() time.Duration {
	if n.IntervalMS <= 0 {
		return DefaultInterval
	}
	return min(n.IntervalMS.Duration(), maxInterval)
}

// silentIntervals is after how many intervals without a heartbeat a record is free for
// another machine.
const silentIntervals = 3

// inUse reports whether only the record's machine may write it: its daemon wrote a heartbeat
// moments ago and did not say that it left.
func (n Node) inUse(age time.Duration) bool {
	return n.Heartbeats() && n.State != StateLeft && n.State != StateFailed && age < silentIntervals*n.interval()
}

// otherMachine reports whether the record is another machine's: both boot and address
// differ. Another boot at the same address is this machine after a reset, and the
// same boot at another address this machine after a move.
func (n Node) otherMachine(self Node) bool {
	return n.ID == self.ID && n.BootID != self.BootID && !SameAddress(n.IP, self.IP) && n.BootID+n.IP != ""
}

// UsedByOther reports whether another machine than self writes this record, which
// is of the given age.
func (n Node) UsedByOther(self Node, age time.Duration) bool {
	return n.otherMachine(self) && n.inUse(age)
}

// OtherMachineError says that another machine uses this node's record: two machines
// have one id. The record was not changed.
type OtherMachineError struct {
	// Node is the record as the other machine wrote it.
	Node Node
	// Age is how long ago that was, by MongoDB's clock; zero is not known.
	Age time.Duration
}

// Error names the other machine.
func (e *OtherMachineError) Error() string {
	who := "a machine without an address"
	if e.Node.IP != "" {
		who = e.Node.IP
	}
	if e.Node.Hostname != "" {
		who += " (" + e.Node.Hostname + ")"
	}
	s := fmt.Sprintf("another machine uses the id %s: %s writes its record", e.Node.ID, who)
	if e.Age > 0 {
		s += fmt.Sprintf(", %s ago", e.Age.Round(100*time.Millisecond))
	}
	return s
}

// Free is in how long the record is free if the other machine writes it no more.
func (e *OtherMachineError) Free() time.Duration {
	return max(0, silentIntervals*e.Node.interval()-e.Age)
}
