// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/seconds"
)

// Heartbeat is a daemon's periodic report, one document in the node's record.
type Heartbeat struct {
	// Seq counts from 1 since the daemon connected.
	Seq int64 `bson:"seq" json:"seq"`
	// These are nil before the first heartbeat.
	Load     *Load     `bson:"load,omitempty" json:"load,omitempty"`
	Sessions *Sessions `bson:"sessions,omitempty" json:"sessions,omitempty"`
	Serving  *Serving  `bson:"serving,omitempty" json:"serving,omitempty"` // nil if unknown
	// Clock is how far the machine's clock, which stamps AMS's document, is ahead of MongoDB's.
	Clock *seconds.Duration `bson:"clock_ns,omitempty" json:"clock_seconds,omitempty"`
	// Drain ends the wait for the sessions of a drain; nil without one, or without a deadline.
	Drain *DrainLimit `bson:"drain,omitempty" json:"drain,omitempty"`
	// Digest is of the server's settings, without what may differ between nodes of a role; "" if unknown.
	Digest string `bson:"digest,omitempty" json:"settings_digest,omitempty"`
	// Checks are load balancers that name themselves in agent checks: true if they may send sessions.
	Checks map[string]bool `bson:"checks,omitempty" json:"checks,omitempty"`
}

// DrainLimit is when a drain cuts the sessions that are left.
type DrainLimit struct {
	Until time.Time `bson:"until" json:"until"`               // by MongoDB's clock, if the node knows it
	By    string    `bson:"by,omitempty" json:"by,omitempty"` // the source of the deadline, such as "hook NAME"
}

// Load is how busy a machine was since the previous heartbeat. A value is nil if unknown, or if a control group limits the
// server's use of it.
type Load struct {
	// CPU is the busy share of all cores in percent.
	CPU *int `bson:"cpu,omitempty" json:"cpu,omitempty"`
	// Mem is the used share in percent, as AMS's own limit counts it.
	Mem *int `bson:"mem,omitempty" json:"mem,omitempty"`
	// NetRx and NetTx are bytes per second, from and to other machines.
	NetRx *int64 `bson:"net_rx,omitempty" json:"net_rx,omitempty"`
	NetTx *int64 `bson:"net_tx,omitempty" json:"net_tx,omitempty"`
	Disk  *int   `bson:"disk,omitempty" json:"disk,omitempty"` // of AMS's volume, in percent
	// GPUs are the devices by index; nil without any.
	GPUs []GPULoad `bson:"gpus,omitempty" json:"gpus,omitempty"`
	// Score is the highest use of a resource that limits AMS, in percent; unknown if a control group limits CPU or memory.
	Score *int `bson:"score,omitempty" json:"score,omitempty"`
}

// GPULoad is a device's use in percent; nil if not reported, as in MIG mode.
type GPULoad struct {
	Name string `bson:"name,omitempty" json:"name,omitempty"`
	Util *int   `bson:"util,omitempty" json:"util,omitempty"`
	Enc  *int   `bson:"enc,omitempty" json:"enc,omitempty"`
	Dec  *int   `bson:"dec,omitempty" json:"dec,omitempty"`
	Mem  *int   `bson:"mem,omitempty" json:"mem,omitempty"`
}

// Sessions are those that a node itself serves; nil if not counted.
type Sessions struct {
	Publishers *int      `bson:"publishers,omitempty" json:"publishers,omitempty"`
	Viewers    *int      `bson:"viewers,omitempty" json:"viewers,omitempty"`
	By         CountedBy `bson:"counted_by,omitempty" json:"counted_by,omitempty"` // source of Viewers
	// PublishersBy is Publishers' source, not in the record.
	PublishersBy CountedBy `bson:"-" json:"publishers_counted_by,omitempty"`
	// Idle counts connections silent for two minutes, which are no sessions; nil without a count by connections.
	Idle *int `bson:"idle,omitempty" json:"idle,omitempty"`
	// Peers counts connections of other nodes, perhaps of viewers behind a proxy, that no other count has; nil if unknown.
	Peers *int `bson:"peers,omitempty" json:"peers,omitempty"`
}

// CountedBy is a way to count sessions.
type CountedBy string

// The ways to count.
const (
	CountedByAMS         CountedBy = "ams"         // AMS's statistics
	CountedByConnections CountedBy = "connections" // an estimate
	CountedByMongoDB     CountedBy = "mongodb"     // AMS's stream documents
	CountedByService     CountedBy = "service"     // no server runs
)

// Total returns the sum, known if both parts are.
func (s Sessions) Total() (n int, known bool) {
	if s.Publishers == nil || s.Viewers == nil {
		return 0, false
	}
	return *s.Publishers + *s.Viewers, true
}

// HasPeers reports whether other nodes are known to be connected.
func (s Sessions) HasPeers() bool { return s.Peers != nil && *s.Peers > 0 }

// IsEmpty reports whether a stop cuts nothing. Zero connections do not prove that nothing is published.
func (s Sessions) IsEmpty() bool {
	n, known := s.Total()
	return known && n == 0 && !s.HasPeers() && s.PublishersBy != CountedByConnections
}

// Left returns a text such as "2 publishers, about 31 viewers left".
func (s Sessions) Left() string { return s.left() + s.NotCounted() }

// NotCounted returns a text about other connections to append.
func (s Sessions) NotCounted() (text string) {
	if s.HasPeers() {
		text = ", " + count(*s.Peers, "connection") + " of other nodes"
	}
	if s.Idle != nil && *s.Idle > 0 {
		text += ", " + count(*s.Idle, "idle connection") + " not counted"
	}
	return text
}

func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func (s Sessions) left() string {
	about := ""
	if s.By == CountedByConnections {
		about = "about "
	}
	switch n, known := s.Total(); {
	case known && n == 0 && !s.HasPeers():
		return "no publishers and no viewers left"
	case s.Publishers == nil && s.Viewers == nil:
		return "publishers and viewers not known"
	case s.Publishers == nil:
		return about + count(*s.Viewers, "viewer") + " left, publishers not known"
	case s.Viewers == nil:
		return count(*s.Publishers, "publisher") + " left, viewers not known"
	}
	return count(*s.Publishers, "publisher") + ", " + about + count(*s.Viewers, "viewer") + " left"
}

// Serving reports whether a server serves viewers.
type Serving struct {
	Up  bool   `bson:"up" json:"up"`                             // all required applications serve
	Why string `bson:"reason,omitempty" json:"reason,omitempty"` // the applications that do not
}

// maxWhy: a server may have hundreds of applications.
const maxWhy = 200

// Heartbeat replaces the heartbeat in the record of self's instance, or returns [ErrNoNode] if the node must register
// again, or an [OtherMachineError].
func (c *Client) Heartbeat(ctx context.Context, self Node, h Heartbeat) error {
	op := "writing a heartbeat of node " + self.ID
	if h.Serving != nil {
		bounded := Serving{Up: h.Serving.Up, Why: plain.Truncate(h.Serving.Why, maxWhy)}
		h.Serving = &bounded
	}
	if h.Drain != nil {
		h.Drain = &DrainLimit{Until: h.Drain.Until, By: plain.Truncate(h.Drain.By, maxWhy)}
	}
	filter := bson.D{{Key: "_id", Value: self.ID}, {Key: "boot_id", Value: orNull(self.BootID)}, {Key: "ip", Value: orNull(self.IP)}}
	update := bson.D{
		{Key: "$set", Value: bson.D{{Key: heartbeatKey, Value: h}}},
		{Key: "$currentDate", Value: bson.D{{Key: "updated_at", Value: true}}},
	}
	var res *mongo.UpdateResult
	err := c.call(ctx, op, func(ctx context.Context) (err error) {
		primary := c.nodes().Clone(options.Collection().SetWriteConcern(writeconcern.W1()))
		res, err = primary.UpdateOne(ctx, filter, update)
		return err
	})
	if err != nil || res.MatchedCount > 0 {
		return err
	}
	n, now, err := c.nodeNow(ctx, self.ID)
	switch age, _ := n.Age(now); {
	case err != nil:
		return err
	case n.SameInstance(self):
		return fmt.Errorf("%s: %w", op, ErrNoNode) // registered since
	default:
		return fmt.Errorf("%s: %w", op, n.usedByOther(self, age))
	}
}

// orNull: empty fields are not stored, and null matches them.
func orNull[T comparable](v T) any {
	if v == *new(T) {
		return nil
	}
	return v
}
