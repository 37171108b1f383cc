// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
)

// findBatch is how many documents come in one answer. The server ends an answer at
// 16 MB besides.
const findBatch = 1000

// maxFound and maxFoundBytes bound what is kept of one collection: whoever writes to it must not
// fill the memory of every node. A cluster has some thousand nodes at most, with 1 kB each, and a
// node some thousand streams.
const (
	maxFound      = 100_000
	maxFoundBytes = 32 << 20
)

// ErrTooMany says that a collection has more documents than are read: some program fills
// it. Part of them would be a wrong answer.
var ErrTooMany = errors.New("too many documents")

// find reads all documents that match, each by itself, so that the memory it takes is
// that of one answer and of what read returns. It fails with [ErrTooMany] beyond maxFound and maxFoundBytes.
//
// The command is sent as such because the driver's own find has no maxTimeMS: what
// the client gives up would go on in the server.
func find[T any](
	ctx context.Context, c *Client, op string, where func() *mongo.Collection, filter, fields bson.D, read func(bson.Raw) T,
	more ...bson.E,
) ([]T, error) {
	var found []T
	err := c.call(ctx, op, func(ctx context.Context) error {
		found = []T{}
		coll := where()
		cur, err := coll.Database().RunCommandCursor(ctx, append(bson.D{
			{Key: "find", Value: coll.Name()},
			{Key: "filter", Value: filter},
			{Key: "projection", Value: fields},
			{Key: "batchSize", Value: int32(findBatch)},
		}, more...))
		if err != nil {
			return err
		}
		defer func() {
			bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			_ = cur.Close(bound) // the server forgets it, too
		}()
		for size := 0; cur.Next(ctx); {
			one := read(cur.Current)
			size += sizeOf(reflect.ValueOf(one))
			if len(found) == maxFound || size > maxFoundBytes {
				return fmt.Errorf("%s.%s: %w, more than %d match, or they take more than %d bytes", coll.Database().Name(), coll.Name(), ErrTooMany, maxFound, maxFoundBytes)
			}
			found = append(found, one)
		}
		return cur.Err()
	})
	return found, err
}

// sizeOf is how many bytes a value takes, with what it refers to.
func sizeOf(v reflect.Value) int { return int(v.Type().Size()) + referred(v) }

func referred(v reflect.Value) int {
	n := 0
	switch v.Kind() {
	case reflect.String:
		n = v.Len()
	case reflect.Pointer:
		if !v.IsNil() {
			n = sizeOf(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			n += sizeOf(v.Index(i))
		}
	case reflect.Map:
		for i := v.MapRange(); i.Next(); {
			n += sizeOf(i.Key()) + sizeOf(i.Value())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			n += referred(v.Field(i))
		}
	default: // a number
	}
	return n
}
