// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

func TestRepairStreams(t *testing.T) {
	onBoth(t, func(t *testing.T, b backdoor, c *cluster.Client) {
		now := time.Now().Truncate(time.Millisecond)
		old := now.Add(-time.Minute)
		broadcast := func(id, status, origin string, at any, more ...bson.E) bson.D {
			return append(bson.D{
				{Key: "_id", Value: id},
				{Key: "streamId", Value: id},
				{Key: "status", Value: status},
				{Key: "originAdress", Value: origin},
				{Key: "updateTime", Value: at},
				{Key: "webRTCViewerCount", Value: int32(3)},
			}, more...)
		}
		b.insert(
			b.Database("liveapp").Collection("broadcast"),
			broadcast("left-over", "broadcasting", own, old.UnixMilli()),
			broadcast("left-over-date", "broadcasting", own, old),
			bson.D{{Key: "_id", Value: "timeless"}, {Key: "status", Value: "broadcasting"}, {Key: "originAdress", Value: own}},
			broadcast("zombi", "broadcasting", own, old.UnixMilli(), bson.E{Key: "zombi", Value: true}),
			broadcast("live", "broadcasting", own, now.UnixMilli()),
			broadcast("live-zombi", "broadcasting", own, now.UnixMilli(), bson.E{Key: "zombi", Value: true}),
			broadcast("elsewhere", "broadcasting", "10.0.0.30", old.UnixMilli()),
			broadcast("finished", "finished", own, old.UnixMilli()),
		)
		// It is idempotent.
		for range 2 {
			must.OK(t, c.RepairStreams(t.Context(), []string{"liveapp", "nosuch"}, own, now))
		}
		cur, err := b.Database("liveapp").Collection("broadcast").Find(t.Context(), bson.D{})
		must.OK(t, err)
		var docs []struct {
			ID      string `bson:"_id"`
			Status  string `bson:"status"`
			Viewers int32  `bson:"webRTCViewerCount"`
		}
		must.OK(t, cur.All(t.Context(), &docs))
		status := map[string]string{}
		for _, d := range docs {
			status[d.ID] = d.Status
			if d.Status == "terminated_unexpectedly" && d.Viewers != 0 {
				t.Errorf("%s ended with %d viewers", d.ID, d.Viewers)
			}
		}
		ended := "terminated_unexpectedly"
		must.NoDiff(t, "status", status, map[string]string{
			"left-over": ended, "left-over-date": ended, "timeless": ended,
			"live": "broadcasting", "live-zombi": "broadcasting", "elsewhere": "broadcasting", "finished": "finished",
		})
		if err := c.RepairStreams(t.Context(), []string{"liveapp"}, "", now); err == nil {
			t.Error("without an address")
		}
	})
}

// A record keeps why its node left and how many sessions were cut, until the node joins again.
func TestSetLeft(t *testing.T) {
	onBoth(t, func(t *testing.T, _ backdoor, c *cluster.Client) {
		n := node()
		n.State = cluster.StateActive
		_, err := c.Register(t.Context(), n, cluster.RegisterOptions{})
		must.OK(t, err)
		cut, viewers := 3, 3
		must.OK(t, c.Heartbeat(t.Context(), n, cluster.Heartbeat{Seq: 1, Sessions: &cluster.Sessions{Viewers: &viewers}, Serving: &cluster.Serving{Up: true}}))
		must.OK(t, c.SetOwnState(t.Context(), n, cluster.StateDraining, "scale-in", cluster.Details{StopFailed: true}))
		if got, err := c.Node(t.Context(), n.ID); err != nil || !got.StopFailed || got.LeftBy != "" || got.Cut != nil {
			t.Fatalf("%+v, %v", got, err)
		}
		for range 2 {
			must.OK(t, c.SetOwnState(t.Context(), n, cluster.StateLeft, "scale-in", cluster.Details{LeftBy: cluster.LeftByDrain, Cut: &cut}))
			got, err := c.Node(t.Context(), n.ID)
			if err != nil || got.State != cluster.StateLeft || got.Cut == nil || *got.Cut != 3 || got.Reason != "scale-in" || got.LeftBy != cluster.LeftByDrain || got.StopFailed {
				t.Fatalf("%+v, %v", got, err)
			}
			if got.Sessions != nil || got.Load != nil || got.Serving != nil {
				t.Errorf("a node that has left has sessions %+v, load %+v and service %+v", got.Sessions, got.Load, got.Serving)
			}
		}
		n.State = cluster.StateJoining
		if r, err := c.Register(t.Context(), n, cluster.RegisterOptions{}); err != nil || r.Cut != nil || r.LeftBy != "" || r.State != cluster.StateJoining {
			t.Errorf("after it came back: %+v, %v", r, err)
		}
	})
}
