// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"github.com/amsagent/amsagent/internal/plain"
)

// Heartbeat is a daemon's report on its machine, every few seconds. It is one document in the node's record.
type Heartbeat struct {
	// Seq counts the heartbeats since the daemon connected, from 1.
	Seq int64 `bson:"seq" json:"seq"`
	// Load and Sessions are nil before the first heartbeat.
	Load     *Load     `bson:"load,omitempty" json:"load,omitempty"`
	Sessions *Sessions `bson:"sessions,omitempty" json:"sessions,omitempty"`
	Serving  *Serving  `bson:"serving,omitempty" json:"serving,omitempty"` // nil if unknown
	// ClockMS is how far the machine's clock is ahead of MongoDB's; nil if unknown. AMS stamps its document by it.
	ClockMS *Millis `bson:"clock_ms,omitempty" json:"clock_ns,omitempty"`
	// Checks are the load balancers that name themselves in their agent checks, and whether the last answer let them send
	// new sessions to the node.
	Checks map[string]bool `bson:"checks,omitempty" json:"checks,omitempty"`
}

// Load is how busy a machine is. A reading that is unknown is nil, not zero.
type Load struct {
	// CPU is the busy share of all cores since the previous heartbeat, in percent; unknown if a control group limits the
	// server's CPU.
	CPU *int `bson:"cpu,omitempty" json:"cpu,omitempty"`
	// Mem is the share of memory in use, in percent, as AMS's own limit counts it; unknown if a control group limits the
	// server's memory.
	Mem *int `bson:"mem,omitempty" json:"mem,omitempty"`
	// NetRx and NetTx are bytes per second since the previous heartbeat, over the interfaces to other machines.
	NetRx *int64 `bson:"net_rx,omitempty" json:"net_rx,omitempty"`
	NetTx *int64 `bson:"net_tx,omitempty" json:"net_tx,omitempty"`
	Disk  *int   `bson:"disk,omitempty" json:"disk,omitempty"` // the used share of AMS's volume, in percent
	// GPUs are the devices by their index; nil if there is no device or they are unknown.
	GPUs []GPULoad `bson:"gpus,omitempty" json:"gpus,omitempty"`
	// Score is the highest use of a resource that limits AMS, in percent; unknown if a control group limits the server.
	Score *int `bson:"score,omitempty" json:"score,omitempty"`
}

// GPULoad is the use of one device, in percent; nil if the driver does not report it, as for a device that is split (MIG).
type GPULoad struct {
	Name string `bson:"name,omitempty" json:"name,omitempty"`
	Util *int   `bson:"util,omitempty" json:"util,omitempty"`
	Enc  *int   `bson:"enc,omitempty" json:"enc,omitempty"`
	Dec  *int   `bson:"dec,omitempty" json:"dec,omitempty"`
	Mem  *int   `bson:"mem,omitempty" json:"mem,omitempty"`
}

// Sessions are the publishers and viewers that a node itself serves; nil if they could not be counted.
type Sessions struct {
	Publishers *int      `bson:"publishers,omitempty" json:"publishers,omitempty"`
	Viewers    *int      `bson:"viewers,omitempty" json:"viewers,omitempty"`
	By         CountedBy `bson:"by,omitempty" json:"by,omitempty"` // how the viewers were counted
	// PublishersBy is the same for the publishers. It is not in the record.
	PublishersBy CountedBy `bson:"-" json:"publishers_by,omitempty"`
	// Idle is how many connections from other machines nothing was sent on for two minutes, which do not count as sessions; nil if
	// no count is by connections.
	Idle *int `bson:"idle,omitempty" json:"idle,omitempty"`
}

// CountedBy is a way to count sessions.
type CountedBy string

// The ways.
const (
	CountedByAMS         CountedBy = "ams"         // AMS's own statistics
	CountedByConnections CountedBy = "connections" // established connections, an estimate
	CountedByMongoDB     CountedBy = "mongodb"     // AMS's own documents of streams
	CountedByService     CountedBy = "service"     // the service manager reports that no server runs
)

// Total returns the number of sessions, known if both parts are.
func (s Sessions) Total() (n int, known bool) {
	if s.Publishers == nil || s.Viewers == nil {
		return 0, false
	}
	return *s.Publishers + *s.Viewers, true
}

// Left returns a text such as "2 publishers, about 31 viewers left, 4 idle connections not counted".
func (s Sessions) Left() string { return s.left() + s.NotCounted() }

// NotCounted returns a text about idle connections to append to the sessions; "" without any.
func (s Sessions) NotCounted() string {
	switch {
	case s.Idle == nil || *s.Idle <= 0:
		return ""
	case *s.Idle == 1:
		return ", 1 idle connection not counted"
	}
	return fmt.Sprintf(", %d idle connections not counted", *s.Idle)
}

func (s Sessions) left() string {
	if n, known := s.Total(); known && n == 0 {
		return "no publishers and no viewers left"
	}
	count := func(n int, one string) string {
		if n == 1 {
			return "1 " + one
		}
		return fmt.Sprintf("%d %ss", n, one)
	}
	about := ""
	if s.By == CountedByConnections {
		about = "about "
	}
	switch {
	case s.Publishers == nil && s.Viewers == nil:
		return "publishers and viewers not known"
	case s.Publishers == nil:
		return about + count(*s.Viewers, "viewer") + " left, publishers not known"
	case s.Viewers == nil:
		return count(*s.Publishers, "publisher") + " left, viewers not known"
	}
	return count(*s.Publishers, "publisher") + ", " + about + count(*s.Viewers, "viewer") + " left"
}

// Serving is whether the server of a node serves viewers, as its agent sees it.
type Serving struct {
	Up  bool   `bson:"up" json:"up"`                       // true if all required applications serve
	Why string `bson:"why,omitempty" json:"why,omitempty"` // Why names the applications that do not serve; "" while Up
}

// maxWhy bounds Serving.Why in a record: a server may have hundreds of applications.
const maxWhy = 200

// Equal reports whether both are the same.
func (s *Serving) Equal(t *Serving) bool {
	if s == nil || t == nil {
		return s == t
	}
	return *s == *t
}

// Heartbeat replaces the heartbeat in the record of self's instance. Only the primary acknowledges it.
//
// The error is [ErrNoNode] if there is no record: the node must register again. It is an [OtherMachineError] if another machine
// has registered under this id.
func (c *Client) Heartbeat(ctx context.Context, self Node, h Heartbeat) error {
	if self.ID == "" {
		return errors.New("writing a heartbeat: the node has no id")
	}
	op := "writing a heartbeat of node " + self.ID
	if h.Serving != nil {
		bounded := Serving{Up: h.Serving.Up, Why: plain.Truncate(h.Serving.Why, maxWhy)}
		h.Serving = &bounded
	}
	filter := bson.D{{Key: "_id", Value: self.ID}, {Key: "boot_id", Value: orNull(self.BootID)}, {Key: "ip", Value: orNull(self.IP)}}
	update := bson.D{
		{Key: "$set", Value: bson.D{{Key: heartbeatKey, Value: h}}},
		{Key: "$currentDate", Value: bson.D{{Key: "updated_at", Value: true}}},
	}
	matched := int64(0)
	err := c.call(ctx, op, func(ctx context.Context) error {
		primary := c.nodes().Clone(options.Collection().SetWriteConcern(writeconcern.W1()))
		res, err := primary.UpdateOne(ctx, filter, update)
		if err == nil {
			matched = res.MatchedCount
		}
		return err
	})
	if err != nil || matched > 0 {
		return err
	}
	n, err := c.Node(ctx, self.ID)
	if err != nil {
		return err
	}
	if n.SameInstance(self) {
		return fmt.Errorf("%s: %w", op, ErrNoNode) // registered since
	}
	e := &OtherMachineError{Node: n}
	if now, err := c.ServerTime(ctx); err == nil {
		e.Age, _ = n.Age(now)
	}
	return fmt.Errorf("%s: %w", op, e)
}

// orNull returns a filter value. Empty fields are not stored: null matches a missing field.
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}
