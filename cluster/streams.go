// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// RepairedStreams is what became of the streams that a node had left behind in
// one application.
type RepairedStreams struct {
	Database string `json:"database"`
	// Ended were said to be broadcasting, and say terminated_unexpectedly now.
	Ended int64 `json:"ended"`
	// Removed were made by the stream itself (zombi), and go with it.
	Removed int64 `json:"removed"`
}

// RepairStreams ends the streams that a node with this address has left
// "broadcasting": AMS itself does that only when the same address starts again,
// and an instance that was replaced never does. A stream that was written within
// AMS's own 20 s is live somewhere and stays. now is the clock of the node that
// went.
//
// It writes into AMS's own collections, so it is done only where an operator asks
// for it. With an error, what was done until then is returned as well.
func (c *Client) RepairStreams(ctx context.Context, databases []string, address string, now time.Time) ([]RepairedStreams, error) {
	if address == "" {
		return nil, errors.New("repairing streams: no address is given")
	}
	before := now.Add(-streamFresh)
	stale := append(addressFilter("originAdress", address), // sic
		bson.E{Key: "status", Value: "broadcasting"},
		bson.E{Key: "$or", Value: bson.A{
			bson.D{{Key: "updateTime", Value: bson.D{{Key: "$lt", Value: before.UnixMilli()}}}},
			bson.D{{Key: "updateTime", Value: bson.D{{Key: "$lt", Value: before}}}},
			bson.D{{Key: "updateTime", Value: bson.D{{Key: "$exists", Value: false}}}},
		}})
	var done []RepairedStreams
	var errs []error
	for _, name := range databases {
		r := RepairedStreams{Database: name}
		coll := c.db(name).Collection(broadcastCollection)
		err := c.call(ctx, "repairing streams of "+name, func(ctx context.Context) error {
			// AMS deletes those of its own making when they end.
			removed, err := coll.DeleteMany(ctx, append(stale[:len(stale):len(stale)], bson.E{Key: "zombi", Value: true}))
			if err != nil {
				return err
			}
			r.Removed += removed.DeletedCount
			ended, err := coll.UpdateMany(ctx, stale, bson.D{{Key: "$set", Value: bson.D{
				{Key: "status", Value: "terminated_unexpectedly"},
				{Key: "hlsViewerCount", Value: int32(0)},
				{Key: "dashViewerCount", Value: int32(0)},
				{Key: "webRTCViewerCount", Value: int32(0)},
				{Key: "rtmpViewerCount", Value: int32(0)},
			}}})
			if err != nil {
				return err
			}
			r.Ended += ended.ModifiedCount
			return nil
		})
		done = append(done, r)
		if err != nil {
			errs = append(errs, err)
		}
	}
	return done, errors.Join(errs...)
}
