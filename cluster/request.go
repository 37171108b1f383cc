// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// DrainRequest is a drain that somebody elsewhere asks a node for. It stands in the
// node's row until the agent of that node takes it up, or until it is withdrawn.
type DrainRequest struct {
	// ID tells one request from the next.
	ID string `json:"id"`
	// Deadline is how long sessions are waited for; 0 is what the node is configured
	// with. Now waits for none.
	Deadline time.Duration `json:"deadline_ns,omitempty"`
	Now      bool          `json:"now,omitempty"`
	// RepairStreams ends the streams that the node leaves "broadcasting".
	RepairStreams bool   `json:"repair_streams,omitempty"`
	Reason        string `json:"reason,omitempty"`
	Who           string `json:"who,omitempty"`
	// At is when it was asked, by the server's clock.
	At time.Time `json:"at,omitzero"`
}

// The fields of a row that hold a request, and when it was made: not every engine sets
// its clock within a document.
const (
	requestKey = "drain_request"
	askedKey   = "drain_asked_at"
)

// ErrNotAskable says that a node cannot be asked: its row is gone, of another life of the
// machine, or has left.
var ErrNotAskable = errors.New("the row of this node is another one now, or it has left")

// AskDrain writes a request into the row of a node, in the place of an earlier one, and
// returns its id. n is the row as it was read: the error is [ErrNotAskable] where the row
// is of another life by now, or is of a node that has left.
func (c *Client) AskDrain(ctx context.Context, n Node, r DrainRequest) (id string, err error) {
	op := "asking node " + n.ID + " to drain"
	id = bson.NewObjectID().Hex()
	filter := append(n.lifeFilter(), bson.E{Key: "state", Value: anyOf([]State{StateJoining, StateActive, StateDraining})})
	var ask change
	ask.set = bson.D{{Key: requestKey, Value: bson.D{
		{Key: "id", Value: id},
		{Key: "deadline_ms", Value: r.Deadline.Milliseconds()},
		{Key: "now", Value: r.Now},
		{Key: "repair_streams", Value: r.RepairStreams},
		{Key: "reason", Value: r.Reason},
		{Key: "who", Value: r.Who},
	}}}
	ask.stamp(askedKey)
	matched := int64(0)
	err = c.call(ctx, op, func(ctx context.Context) error {
		res, err := c.nodes().UpdateOne(ctx, filter, ask.update())
		if err == nil {
			matched = res.MatchedCount
		}
		return err
	})
	if err == nil && matched == 0 {
		err = fmt.Errorf("%s: %w", op, ErrNotAskable)
	}
	return id, err
}

// TakeDrainRequest removes a request from a row, and reports whether this call did it: of
// a node's agent that takes it up, and of who withdraws it, one is told true.
func (c *Client) TakeDrainRequest(ctx context.Context, node, id string) (taken bool, err error) {
	var take change
	take.remove(requestKey, askedKey)
	// Not repeated: of an attempt whose answer was lost the second would say "no".
	err = c.unrepeated(ctx, "taking the request to drain node "+node, func(ctx context.Context) error {
		res, err := c.nodes().UpdateOne(ctx,
			bson.D{{Key: "_id", Value: node}, {Key: requestKey + ".id", Value: id}},
			take.update())
		taken = err == nil && res.MatchedCount > 0
		return err
	})
	return taken, err
}

// readRequest reads a request whatever its fields hold; nil where there is none.
func readRequest(doc bson.Raw) *DrainRequest {
	inner, ok := field(doc, requestKey).DocumentOK()
	if !ok || textField(inner, "id") == "" {
		return nil
	}
	r := &DrainRequest{ID: textField(inner, "id"), Reason: textField(inner, "reason"), Who: textField(inner, "who"), At: timeField(doc, askedKey)}
	r.Now, _ = field(inner, "now").BooleanOK()
	r.RepairStreams, _ = field(inner, "repair_streams").BooleanOK()
	if ms, ok := int64Field(inner, "deadline_ms"); ok && ms > 0 {
		r.Deadline = time.Duration(min(ms, longestDeadline.Milliseconds())) * time.Millisecond
	}
	return r
}

// longestDeadline bounds what a row may say.
const longestDeadline = 7 * 24 * time.Hour
