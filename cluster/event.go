// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Event is one line of the cluster's history: who did what to which node, and
// why. When is the server's word.
type Event struct {
	Node string `bson:"node" json:"node"` // id of the node
	Kind string `bson:"kind" json:"kind"` // "join", "drain", "leave", "notice"…
	Who  string `bson:"who,omitempty" json:"who,omitempty"`
	Why  string `bson:"why,omitempty" json:"why,omitempty"`
	// Cut is how many sessions were cut; nil where nobody counted.
	Cut *int64 `bson:"cut,omitempty" json:"cut,omitempty"`
	// Details are further facts for a person to read.
	Details map[string]string `bson:"details,omitempty" json:"details,omitempty"`
}

// AddEvent writes an event. A repeated attempt does not write it twice.
func (c *Client) AddEvent(ctx context.Context, e Event) error {
	if e.Node == "" || e.Kind == "" {
		return errors.New("writing an event: it has no node or no kind")
	}
	data, err := bson.Marshal(e)
	if err != nil {
		return fmt.Errorf("writing an event: %w", err)
	}
	// An insert cannot ask for the server's clock, an upsert can. The id is
	// made once, so that an attempt whose answer was lost is found again.
	id := bson.NewObjectID()
	return c.call(ctx, "writing an event", func(ctx context.Context) error {
		// The second attempt must not move the time of the first.
		filter := bson.D{{Key: "_id", Value: id}, {Key: "at", Value: bson.D{{Key: "$exists", Value: false}}}}
		update := bson.D{
			{Key: "$set", Value: bson.Raw(data)},
			{Key: "$currentDate", Value: bson.D{{Key: "at", Value: true}}},
		}
		_, err := c.events().UpdateOne(ctx, filter, update, options.UpdateOne().SetUpsert(true))
		if mongo.IsDuplicateKeyError(err) {
			return nil
		}
		return err
	})
}
