// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// ReplicaSet is what the servers report about their replica set. It is zero for a single server.
type ReplicaSet struct {
	Name string
	// Hosts are the data-bearing members that are not hidden or passive.
	Hosts []string
	// OneNamed is true if the connection string names one of several members instead of the set: AMS's driver uses only that
	// one, even when it is not the primary.
	OneNamed bool
}

// ReplicaSet returns what is known since the first call that was answered.
func (c *Client) ReplicaSet() ReplicaSet {
	d := c.watch.member()
	return ReplicaSet{d.SetName, d.Hosts, c.target.namesOne() && len(d.Hosts) > 1}
}

// Latency returns the median of n round trips of a ping, after one that opens the connection.
func (c *Client) Latency(ctx context.Context, n int) (time.Duration, error) {
	var trips []time.Duration
	for i := range n + 1 {
		start := time.Now()
		if err := c.Ping(ctx); err != nil {
			return 0, err
		}
		if i > 0 {
			trips = append(trips, time.Since(start))
		}
	}
	slices.Sort(trips)
	if len(trips) == 0 {
		return 0, nil
	}
	return trips[len(trips)/2], nil
}

// OpenToAll reports whether the server lists its databases to a client without a login. An error means that it is unknown.
func OpenToAll(ctx context.Context, t Target, o Options) (bool, error) {
	const op = "asking MongoDB without a password"
	c, err := connectWith(ctx, t, o, func(opts *options.ClientOptions) { opts.Auth = nil })
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
