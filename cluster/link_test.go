// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// The driver drops a server for good that was started once without its replica set, or that
// has been made anew since. What it knows is thrown away then, not at each failure.
func TestLostLink(t *testing.T) {
	t.Parallel()
	s := startFake(t, nil)
	c := connect(t, "mongodb://"+s.addr()+"/?replicaSet=rs0", Options{Timeout: 300 * time.Millisecond})
	if err := c.Ping(t.Context()); KindOf(err) != KindConfig {
		t.Fatalf("%v (%s)", err, KindOf(err))
	}
	s.setHello(bson.E{Key: "isWritablePrimary", Value: true}, bson.E{Key: "setName", Value: "rs0"}, bson.E{Key: "setVersion", Value: 1},
		bson.E{Key: "hosts", Value: bson.A{s.addr()}}, bson.E{Key: "me", Value: s.addr()})
	if err := c.Ping(t.Context()); err == nil {
		t.Fatal("the driver finds the server again by itself: this code is not needed any more")
	}
	first := c.link.Load()
	first.opened = time.Now().Add(-relinkEvery)
	if err := c.Ping(t.Context()); err == nil {
		t.Error("the search that has failed was not told")
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Errorf("the server is there again: %v", err)
	}

	// One that is away: its link is kept for a minute after it answered.
	away := c.link.Load()
	away.opened = time.Now().Add(-time.Hour)
	if err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.setHello(bson.E{Key: "secondary", Value: true}, bson.E{Key: "setName", Value: "rs0"}, bson.E{Key: "setVersion", Value: 1},
		bson.E{Key: "hosts", Value: bson.A{s.addr()}}, bson.E{Key: "me", Value: s.addr()})
	c.link.Store(mustOpen(t, c)) // which has not seen a primary
	now := c.link.Load()
	for _, tt := range []struct {
		silent   time.Duration
		replaced bool
	}{{lostAfter / 2, false}, {lostAfter, true}} {
		now.opened = time.Now().Add(-time.Hour)
		now.answered.Store(int64(time.Hour - tt.silent))
		if err := c.Ping(t.Context()); KindOf(err) != KindNotPrimary && KindOf(err) != KindTimeout {
			t.Errorf("%v (%s)", err, KindOf(err))
		}
		if replaced := c.link.Load() != now; replaced != tt.replaced {
			t.Errorf("after %s replaced: %t", tt.silent, replaced)
		}
	}
	if err := away.mongo.Disconnect(t.Context()); err != nil {
		t.Error(err)
	}
}

func mustOpen(t *testing.T, c *Client) *link {
	t.Helper()
	l, err := c.open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
