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
