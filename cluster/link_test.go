// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/description"

	"github.com/amsagent/amsagent/internal/must"
)

// The driver drops a server for good that was started once without its replica set, or that
// has been made anew since. What it knows is thrown away then, not at each failure.
func TestLostLink(t *testing.T) {
	t.Parallel()
	s := startFake(t, nil)
	c := connect(t, "mongodb://"+s.addr()+"/?replicaSet=rs0", Options{Timeout: 300 * time.Millisecond})
	// A busy machine may take longer than one such time, but less than relinkEvery.
	becomes := func(want Kind) {
		t.Helper()
		err := c.Ping(t.Context())
		for end := time.Now().Add(relinkEvery * 2 / 3); KindOf(err) != want && time.Now().Before(end); {
			err = c.Ping(t.Context())
		}
		if KindOf(err) != want {
			t.Fatalf("%v (%s), want %q", err, KindOf(err), want)
		}
	}
	becomes(KindConfig)
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
	if c.link.Load() == first {
		t.Error("the link that has lost its server was kept")
	}
	becomes("")

	// One that is away: its link is kept for a minute after it answered.
	c.link.Load().opened = time.Now().Add(-time.Hour)
	becomes("")
	away := c.link.Load()
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
	must.OK(t, err)
	return l
}

// The primary takes a call and hangs. The call goes to the next one once that is elected, at
// its first attempt, though its time has not ended.
func TestPrimaryHangs(t *testing.T) {
	t.Parallel()
	old, now := startFake(t, nil), startFake(t, nil)
	process := bson.NewObjectID()
	says := func(s *fakeServer, change, election int, extra ...bson.E) {
		s.setHello(append([]bson.E{
			{Key: "setName", Value: "rs0"},
			{Key: "setVersion", Value: 1},
			{Key: "hosts", Value: bson.A{old.addr(), now.addr()}},
			{Key: "me", Value: s.addr()},
			{Key: "electionId", Value: bson.ObjectID{11: byte(election)}},
			{Key: "topologyVersion", Value: bson.D{{Key: "processId", Value: process}, {Key: "counter", Value: int64(change)}}},
		}, extra...)...)
	}
	primary := bson.E{Key: "isWritablePrimary", Value: true}
	says(old, 1, 1, primary)
	says(now, 1, 1, bson.E{Key: "secondary", Value: true})
	asked := make(chan struct{})
	old.answer = func(name string, _ bson.Raw) (bson.D, error) {
		if name == "update" {
			close(asked)
			return nil, errHang
		}
		return okReply(), nil
	}
	target, err := ParseTarget("mongodb://" + old.addr() + "," + now.addr() + "/?replicaSet=rs0")
	must.OK(t, err)
	c, err := Connect(t.Context(), target, Options{Timeout: time.Hour, Elections: true})
	must.OK(t, err)
	// The driver may not hear that it is to stop while a member tells.
	defer func() { _ = c.Close(context.Background()) }()
	must.OK(t, c.Ping(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- c.AddEvent(t.Context(), Event{Node: "i-1", Kind: "asked"}) }()
	<-asked
	says(now, 2, 2, primary)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := len(now.sent("update")); n != 1 {
		t.Errorf("the new primary was asked %d times", n)
	}
}

// Closing waits for a server only while one is known.
func TestGoodbye(t *testing.T) {
	w := newWatch()
	unknown, member := event.ServerDescription{Kind: description.UnknownStr}, event.ServerDescription{Kind: description.ServerKindRSSecondary.String()}
	for _, tt := range []struct {
		servers []event.ServerDescription
		want    time.Duration
	}{
		{nil, closeTimeout / 20},
		{[]event.ServerDescription{unknown}, closeTimeout / 20},
		{[]event.ServerDescription{unknown, member}, closeTimeout},
		{[]event.ServerDescription{unknown, unknown}, closeTimeout / 20},
	} {
		if w.hears(tt.servers); w.goodbye() != tt.want {
			t.Errorf("%d servers: %s, want %s", len(tt.servers), w.goodbye(), tt.want)
		}
	}
}
