// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realmongo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

// Variable is the environment variable that names a server which runs already: host:port,
// or unix:PATH. It has no users.
const Variable = "MONGO"

// marker is a database in a server that was borrowed before: its other databases are ours.
const marker = "amsagent-sandbox"

// Borrow waits for one of the servers that no other borrower of this machine uses, and
// empties it. It takes a server that is empty, or that it has emptied before: the data of
// the operator are safe. The release function empties it again.
func Borrow(ctx context.Context, addresses ...string) (address string, release func() error, err error) {
	for {
		for _, a := range addresses {
			// An abstract socket, which ends with its process.
			mark, err := net.Listen("unix", "@amsagent-mongo-"+a)
			if err != nil {
				continue
			}
			if err := empty(ctx, a); err != nil {
				return "", nil, errors.Join(err, mark.Close())
			}
			return a, func() error {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				return errors.Join(empty(ctx, a), mark.Close())
			}, nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return "", nil, fmt.Errorf("waiting for a server that is not in use: %w (a test may need several: %s takes them joined by commas)", err, Variable)
		}
	}
}

// empty drops every database of a server, if they are ours.
func empty(ctx context.Context, address string) error {
	o := options.Client().SetAppName(appName).SetHosts([]string{address}).SetDirect(true).SetServerSelectionTimeout(10 * time.Second)
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		o.SetHosts([]string{"localhost"}).SetDialer(dialer(func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	}
	c, err := mongo.Connect(o)
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", address, err)
	}
	defer disconnect(c)
	names, err := c.ListDatabaseNames(ctx, bson.D{})
	if err != nil {
		return fmt.Errorf("listing the databases of %s: %w", address, err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains([]string{"admin", "config", "local"}, name) })
	if len(names) > 0 && !slices.Contains(names, marker) {
		return fmt.Errorf("the server %s is not empty, so its databases are not touched: %s", address, strings.Join(names, ", "))
	}
	if len(names) == 0 {
		if _, err := c.Database(marker).Collection("mark").InsertOne(ctx, bson.M{"_id": 1}); err != nil {
			return fmt.Errorf("marking %s: %w", address, err)
		}
	}
	for _, name := range names {
		if name == marker {
			continue
		}
		if err := c.Database(name).Drop(ctx); err != nil {
			return fmt.Errorf("emptying %s: %w", address, err)
		}
	}
	return nil
}
