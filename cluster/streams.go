// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// RepairStreams ends the streams that a node left "broadcasting", as AMS does only when a server with the same address
// starts. Streams written within 20 s by that node's clock (now) are live and stay. It writes into AMS's collections: call
// it only for an operator.
func (c *Client) RepairStreams(ctx context.Context, databases []string, address string, now time.Time) error {
	if address == "" {
		return errors.New("repairing streams: no address is given")
	}
	before := now.Add(-streamFresh)
	stale := append(addressFilter("originAdress", address), // sic
		bson.E{Key: "status", Value: "broadcasting"},
		bson.E{Key: "$or", Value: bson.A{
			bson.D{{Key: "updateTime", Value: bson.D{{Key: "$lt", Value: before.UnixMilli()}}}},
			bson.D{{Key: "updateTime", Value: bson.D{{Key: "$lt", Value: before}}}},
			bson.D{{Key: "updateTime", Value: bson.D{{Key: "$exists", Value: false}}}},
		}})
	var errs []error
	for _, name := range databases {
		coll := c.db(name).Collection(broadcastCollection)
		errs = append(errs, c.call(ctx, "repairing streams of "+name, func(ctx context.Context) error {
			// AMS deletes the streams that it made when they end.
			if _, err := coll.DeleteMany(ctx, append(stale[:len(stale):len(stale)], bson.E{Key: "zombi", Value: true})); err != nil {
				return err
			}
			_, err := coll.UpdateMany(ctx, stale, bson.D{{Key: "$set", Value: bson.D{
				{Key: "status", Value: "terminated_unexpectedly"},
				{Key: "hlsViewerCount", Value: int32(0)},
				{Key: "dashViewerCount", Value: int32(0)},
				{Key: "webRTCViewerCount", Value: int32(0)},
				{Key: "rtmpViewerCount", Value: int32(0)},
			}}})
			return err
		}))
	}
	return errors.Join(errs...)
}
