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

// findBatch is how many documents come in one answer. The server ends an answer at
// 16 MB besides.
const findBatch = 1000

// maxFound bounds the documents of one collection. A cluster has some thousand nodes at most, and a node some
// thousand streams.
const maxFound = 100_000

// ErrTooMany says that a collection has more documents than are read: some program fills
// it. Part of them would be a wrong answer.
var ErrTooMany = errors.New("too many documents")

// find reads all documents that match, each by itself, so that the memory it takes is
// that of one answer and of what read returns. It fails with [ErrTooMany] beyond maxFound.
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
			_ = cur.Close(bound) // the server forgets it, too
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
