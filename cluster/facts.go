// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// ReplicaSet is zero for a single server.
type ReplicaSet struct {
	Name  string
	Hosts []string // data-bearing members, not hidden or passive
	// OneNamed: the connection string names one of several members, which AMS's driver keeps.
	OneNamed bool
}

// ReplicaSet returns what is known since the first answered call.
func (c *Client) ReplicaSet() ReplicaSet {
	d := c.watch.member()
	return ReplicaSet{d.SetName, d.Hosts, c.target.namesOne() && len(d.Hosts) > 1}
}

// Latency returns the median of n > 0 pings.
func (c *Client) Latency(ctx context.Context, n int) (time.Duration, error) {
	var trips []time.Duration
	for range n + 1 {
		start := time.Now()
		if err := c.Ping(ctx); err != nil {
			return 0, err
		}
		trips = append(trips, time.Since(start))
	}
	trips = trips[1:]
	slices.Sort(trips)
	return trips[n/2], nil
}

// OpenToAll reports whether the server lists its databases without a login.
func OpenToAll(ctx context.Context, t Target, o Options) (bool, error) {
	const op = "asking MongoDB without a password"
	o.noLogin = true
	c, err := Connect(ctx, t, o)
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close(ctx) }()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	// Any member of a set answers this.
	err = c.db("admin").RunCommand(ctx, bson.D{{Key: "listDatabases", Value: 1}, {Key: "nameOnly", Value: true}}).Err()
	if err == nil {
		return true, nil
	}
	switch e := newError(op, err, t, c.watch); e.Kind {
	case KindForbidden, KindAuth:
		return false, nil
	default:
		return false, e
	}
}
