// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

// TestDrainRequest: a request is in the record until it is taken, or the instance ends.
func TestDrainRequest(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	b, c := open(t, s), connect(t, s.URI(), cluster.Options{})
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
	for _, bad := range []any{1, "drain", bson.M{"id": 7}, bson.A{1}, bson.M{"id": "x", "now": "yes"}} {
		_, err = b.nodes().UpdateByID(t.Context(), n.ID, bson.M{"$set": bson.M{"drain_request": bad}})
		must.OK(t, err)
		_, err := c.Node(t.Context(), n.ID)
		if is, ok := errors.AsType[*cluster.BadRecordError](err); !ok || is.ID != n.ID {
			t.Errorf("%v: %v", bad, err)
		}
		if l, err := c.Look(t.Context()); err != nil || len(l.Bad) != 1 || len(l.Nodes) != 0 {
			t.Errorf("%v: %+v, %v", bad, l, err)
		}
	}
	register(t, c, n)
	must.Equal(t, "request", record().DrainRequest, nil)
}

// TestDaemonOldRequest: the daemon refuses a request that is two minutes old.
func TestDaemonOldRequest(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	a.serves()
	b := open(t, a.mongo)
	nodes, err := a.client.Nodes(t.Context())
	if err != nil || len(nodes) != 1 {
		t.Fatalf("%v, %v", nodes, err)
	}
	id := nodes[0].ID
	request := bson.M{"drain_request": bson.M{"id": "x", "asked_by": "ann", "at": time.Now().Add(-2 * time.Minute)}}
	_, err = b.nodes().UpdateByID(t.Context(), id, bson.M{"$set": request})
	must.OK(t, err)
	must.Until(t, "the request is refused", func() bool {
		events, err := a.client.Events(t.Context(), cluster.EventQuery{Nodes: []string{id}, Limit: 10})
		return err == nil && slices.ContainsFunc(events, func(e cluster.PastEvent) bool {
			return e.Kind == "refused" && e.Who == "ann" && strings.Contains(e.Why, "the request is 2m")
		})
	})
	if n, err := a.client.Node(t.Context(), id); err != nil || n.DrainRequest != nil || n.State != cluster.StateActive {
		t.Errorf("%+v, %v", n, err)
	}
}

// TestDaemonRefusesRemoteDrain: with remote_drain: false, a request in the registry is refused, with the reason in the record. A
// drain on the machine works.
func TestDaemonRefusesRemoteDrain(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	settings := a.o.Settings
	a.o.Settings = func() daemon.Settings { s := settings(); s.NoRemoteDrain = true; return s }
	a.start()
	ask := func() (id string) {
		n, err := a.client.Node(t.Context(), nodeID)
		must.OK(t, err)
		id, err = a.client.AskDrain(t.Context(), n, cluster.DrainRequest{Who: "ann"})
		must.OK(t, err)
		return id
	}
	for range 2 {
		id := ask()
		must.Until(t, "the request is refused", func() bool {
			n, err := a.client.Node(t.Context(), nodeID)
			return err == nil && n.DrainRequest == nil && n.DrainRefused != nil && *n.DrainRefused == cluster.DrainRefusal{ID: id, Reason: cluster.RefusedRemoteDrain}
		})
	}
	must.Until(t, "both refusals are events", func() bool { return slices.Equal(a.kinds(), []string{"join", "refused", "refused"}) })
	a.says("a request to drain was refused", 2)
	must.Equal(t, "the state", a.state(), cluster.StateActive)
	a.drain(`{"asked_by":"uid 0"}`)
	must.Until(t, "the node drains", func() bool { s := a.state(); return s == cluster.StateDraining || s == cluster.StateLeft })
}

// TestDaemonBadRecord: a record that cannot be read any more is registered again.
func TestDaemonBadRecord(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	large := bson.M{"balancers": bson.M{"x": bson.M{"text": strings.Repeat("x", 20<<10)}}}
	_, err := a.door.nodes().UpdateByID(t.Context(), nodeID, bson.M{"$set": large})
	must.OK(t, err)
	must.Until(t, "the record can be read", func() bool {
		n, err := a.client.Node(t.Context(), nodeID)
		return err == nil && n.State == cluster.StateActive
	})
}

// TestDaemonTakeLost: the daemon gets an error for accepting a request, but MongoDB has done it. The request is carried out after
// that.
func TestDaemonTakeLost(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	n, err := a.client.Node(t.Context(), nodeID)
	must.OK(t, err)
	fault(t, a.mongo, mongod.Fault{Mode: mongod.Error, Commands: []string{"findAndModify"}})
	update := func(change bson.M) {
		t.Helper()
		_, err := a.door.nodes().UpdateByID(t.Context(), nodeID, change)
		must.OK(t, err)
	}
	update(bson.M{"$set": bson.M{"drain_request": bson.M{"id": "x", "asked_by": "ann", "at": time.Now()}}})
	must.Until(t, "the daemon gets an error", func() bool { return strings.Contains(a.text(), "a drain request could not be accepted") })
	fault(t, a.mongo, mongod.Fault{Mode: mongod.Error, Commands: []string{"find"}})
	<-time.After(3 * time.Second) // a call that had begun before has ended
	update(bson.M{"$unset": bson.M{"drain_request": ""}, "$set": bson.M{"drain_taken": bson.M{"id": "x", "by": n.Instance()}}})
	a.mongo.Faults().Clear()
	must.Until(t, "the node has left", func() bool { return a.state() == cluster.StateLeft })
	must.Contain(t, "the log", a.text(), "another machine requests a drain of this node")
}

// TestDaemonEventOnce: the answer to an event is lost again and again. Each try is the same event.
func TestDaemonEventOnce(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	n, err := a.client.Node(t.Context(), nodeID)
	must.OK(t, err)
	before := len(a.mongo.Commands())
	fault(t, a.mongo, mongod.Fault{Mode: mongod.CutReply, Commands: []string{"update"}, Database: "amsagent"})
	_, err = a.client.AskDrain(t.Context(), n, cluster.DrainRequest{Who: "ann"})
	must.OK(t, err)
	must.Until(t, "the event is tried twice", func() bool {
		tries := 0
		for _, c := range a.mongo.Commands()[before:] {
			if c.Name == "update" && c.Collection == "events" {
				tries++
			}
		}
		return tries >= 2
	})
	a.mongo.Faults().Clear()
	events := a.door.Database("amsagent").Collection("events")
	must.Until(t, "the next event is written", func() bool { return a.door.count(events, bson.M{"kind": "drained"}) > 0 })
	must.Equal(t, "the event is there (times)", a.door.count(events, bson.M{"kind": "drain"}), 1)
}

// TestDaemonRestored: MongoDB is restored from a backup of yesterday, whose record of a running node is another one
// (docs/operations.md).
func TestDaemonRestored(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	restore := func(change bson.M) {
		t.Helper()
		record := a.door.record(nodeID)
		delete(record, "heartbeat")
		record["updated_at"] = time.Now().Add(-24 * time.Hour)
		for key, value := range change {
			record[key] = value
		}
		_, err := a.door.nodes().ReplaceOne(t.Context(), bson.M{"_id": nodeID}, record)
		must.OK(t, err)
	}
	becomes := func(what string, state cluster.State) {
		t.Helper()
		must.Until(t, what, func() bool {
			n, err := a.client.Node(t.Context(), nodeID)
			v := a.view()
			return err == nil && n.State == state && n.BootID == "boot-1" && n.Heartbeats() && v.State == state
		})
	}
	_, err := a.door.nodes().DeleteOne(t.Context(), bson.M{"_id": nodeID})
	must.OK(t, err)
	becomes("a record that is missing is registered again", cluster.StateActive)
	restore(nil)
	becomes("heartbeats continue in its own record", cluster.StateActive)
	restore(bson.M{"boot_id": "boot-0"})
	becomes("the record of an earlier boot is taken", cluster.StateActive)
	restore(bson.M{"boot_id": "boot-0", "state": "left", "left_by": "leave"})
	becomes("the record of an earlier boot, which left, is taken", cluster.StateActive)

	for _, state := range []cluster.State{cluster.StateDraining, cluster.StateLeft} {
		restore(bson.M{"state": string(state)})
		becomes("the record says "+string(state), state)
		a.roundsGoOn(20)
		becomes("it still does", state)
		if v := a.view(); v.Ready || v.Trouble == "" {
			t.Errorf("%s: ready %v, trouble %q", state, v.Ready, v.Trouble)
		}
		if state == cluster.StateDraining {
			var v any
			a.control("POST", daemon.PathUndrain, `{"asked_by":"root"}`, &v)
		} else {
			a.end()
			a.start()
		}
		becomes("it is active again after "+string(state), cluster.StateActive)
	}
}
