// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

// TestDrainRequest: a request is in the record until it is taken, or the instance ends.
func TestDrainRequest(t *testing.T) {
	onBoth(t, func(t *testing.T, b backdoor, c *cluster.Client) {
		n := node()
		n.State = cluster.StateActive
		register(t, c, n)
		record := func() cluster.Node {
			t.Helper()
			record, err := c.Node(t.Context(), n.ID)
			must.OK(t, err)
			return record
		}
		ask := func(r cluster.DrainRequest) string {
			t.Helper()
			id, err := c.AskDrain(t.Context(), record(), r)
			must.OK(t, err)
			return id
		}
		must.Equal(t, "request at first", record().DrainRequest, nil)
		first := ask(cluster.DrainRequest{Deadline: seconds.Duration(time.Hour), RepairStreams: true, Reason: "new kernel", Who: "ann"})
		id := ask(cluster.DrainRequest{Now: true, Who: "bob"})
		got := *record().DrainRequest
		server, err := c.ServerTime(t.Context())
		must.OK(t, err)
		if age := server.Sub(got.At); age < 0 || age > 30*time.Second {
			t.Errorf("asked %s ago, by the server's clock", age)
		}
		got.At = time.Time{}
		if want := (cluster.DrainRequest{ID: id, Now: true, Who: "bob"}); got != want || id == first {
			t.Errorf("the record has %+v, want %+v", got, want)
		}
		if taken, err := c.TakeDrainRequest(t.Context(), n.ID, first, "one"); taken || err != nil {
			t.Errorf("an earlier one is taken: %v, %v", taken, err)
		}
		// Only one of many takers gets it.
		var all sync.WaitGroup
		var takers atomic.Int32
		for i := range 8 {
			all.Go(func() {
				if taken, err := c.TakeDrainRequest(t.Context(), n.ID, id, strconv.Itoa(i)); err != nil {
					t.Error(err)
				} else if taken {
					takers.Add(1)
				}
			})
		}
		all.Wait()
		if takers.Load() != 1 || record().DrainRequest != nil {
			t.Errorf("%d took it; the record has %+v", takers.Load(), record().DrainRequest)
		}

		// Another instance, and a node that has left.
		ask(cluster.DrainRequest{})
		asked := record()
		next := n
		next.BootID = "boot-2"
		register(t, c, next)
		must.Equal(t, "request of the next instance", record().DrainRequest, nil)
		if _, err := c.AskDrain(t.Context(), asked, cluster.DrainRequest{}); !errors.Is(err, cluster.ErrNotAskable) {
			t.Errorf("the previous instance is asked: %v", err)
		}
		ask(cluster.DrainRequest{})
		must.OK(t, c.SetOwnState(t.Context(), next, cluster.StateLeft, "bye", cluster.Details{}))
		if _, err := c.AskDrain(t.Context(), record(), cluster.DrainRequest{}); !errors.Is(err, cluster.ErrNotAskable) || record().DrainRequest != nil {
			t.Errorf("one that has left is asked: %v", err)
		}

		// An invalid request is reported, and replaced by the next registration.
		_, err = b.nodes().UpdateByID(t.Context(), n.ID, bson.M{"$set": bson.M{"drain_request": "drain"}})
		must.OK(t, err)
		_, err = c.Node(t.Context(), n.ID)
		if is, ok := errors.AsType[*cluster.BadRecordError](err); !ok || is.ID != n.ID {
			t.Errorf("reading it: %v", err)
		}
		if l, err := c.Look(t.Context()); err != nil || len(l.Bad) != 1 || len(l.Nodes) != 0 {
			t.Errorf("a look: %+v, %v", l, err)
		}
		register(t, c, n)
		must.Equal(t, "request", record().DrainRequest, nil)
	})
}
