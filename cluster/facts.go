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

// ServerFacts is a server's description of itself.
type ServerFacts struct {
	// ReplicaSet is the name of its replica set, "" for a standalone server; Members is the number of hosts.
	ReplicaSet string `json:"replica_set,omitempty"`
	Members    int    `json:"members,omitempty"`
	// Hosts are the data-bearing members that are not hidden or passive.
	Hosts []string `json:"hosts,omitempty"`
	// OneNamed is true if the connection string names one of several members instead of the set: AMS's driver uses only that
	// one, even when it is not the primary.
	OneNamed bool `json:"one_named,omitempty"`
	// Writable is true if the server takes writes now.
	Writable bool `json:"writable"`
}

const maxMembers = 50 // of a replica set, a limit of MongoDB

// ServerFacts asks the server about itself.
func (c *Client) ServerFacts(ctx context.Context) (ServerFacts, error) {
	const op = "asking MongoDB about itself"
	var f ServerFacts
	var hello bson.Raw
	err := c.callTwice(ctx, op, func(ctx context.Context) error {
		var err error
		hello, err = c.db("admin").RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Raw()
		return err
	})
	if err != nil {
		return f, err
	}
	f.ReplicaSet = textField(hello, "setName")
	f.Writable, _ = field(hello, "isWritablePrimary").BooleanOK()
	if hosts, ok := field(hello, "hosts").ArrayOK(); ok {
		values, _ := hosts.Values()
		f.Members = len(values)
		for _, v := range values[:min(len(values), maxMembers)] {
			host, _ := v.StringValueOK()
			f.Hosts = append(f.Hosts, host)
		}
	}
	f.OneNamed = f.ReplicaSet != "" && f.Members > 1 && c.target.namesOne()
	return f, nil
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
