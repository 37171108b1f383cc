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

// findBatch is the number of documents in one reply, which the server also bounds at 16 MB.
const findBatch = 1000

// maxFound bounds the documents of one collection. A cluster has at most some thousand nodes, and a node some thousand
// streams.
const maxFound = 100_000

// ErrTooMany means that a collection has more documents than expected: another program fills it.
var ErrTooMany = errors.New("too many documents")

// find reads all matching documents one at a time: it holds one batch, and the values that read returns. It fails with
// [ErrTooMany] beyond maxFound.
func find[T any](
	ctx context.Context, c *Client, op string, coll *mongo.Collection, filter bson.D, read func(bson.Raw) T, o *options.FindOptionsBuilder,
) ([]T, error) {
	var found []T
	err := c.call(ctx, op, func(ctx context.Context) error {
		found = []T{}
		cur, err := coll.Find(ctx, filter, o.SetBatchSize(findBatch))
		if err != nil {
			return err
		}
		defer func() {
			bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			_ = cur.Close(bound) // on the server, too
		}()
		for cur.Next(ctx) {
			if len(found) == maxFound {
				return fmt.Errorf("%s.%s: %w, more than %d match", coll.Database().Name(), coll.Name(), ErrTooMany, maxFound)
			}
			found = append(found, read(cur.Current))
		}
		return cur.Err()
	})
	return found, err
}
