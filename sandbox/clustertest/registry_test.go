// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/sandbox/internal/mongotest"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

func node() cluster.Node {
	return cluster.Node{
		ID: "i-0abc", IP: own, PublicIP: "198.51.100.7", Hostname: "ip-10-0-0-3", Role: "origin", Group: "origins",
		Provider: "aws", Region: "eu-central-1", Zone: "eu-central-1a", Type: "c7g.large", Agent: "0.1.0", AMS: "3.0.3",
		BootID: "boot-1", Interval: seconds.Duration(5 * time.Second), State: cluster.StateJoining, Reason: "join",
	}
}

// byServer ignores the fields that the server's clock sets.
var byServer = cmpopts.IgnoreFields(cluster.Node{}, "StateSince", "UpdatedAt")

func register(t *testing.T, c *cluster.Client, n cluster.Node) cluster.Node {
	t.Helper()
	r, err := c.Register(t.Context(), n, cluster.RegisterOptions{})
	must.OK(t, err)
	return r
}

func TestRegister(t *testing.T) {
	onBoth(t, func(t *testing.T, b backdoor, c *cluster.Client) {
		if _, err := c.Node(t.Context(), "i-0abc"); !errors.Is(err, cluster.ErrNoNode) {
			t.Fatalf("reading a node that is not there: %v", err)
		}
		before, err := c.ServerTime(t.Context())
		must.OK(t, err)
		first := register(t, c, node())
		after, err := c.ServerTime(t.Context())
		must.OK(t, err)
		must.NoDiff(t, "stored", first, node(), byServer)
		for name, at := range map[string]time.Time{"updated_at": first.UpdatedAt, "state_since": first.StateSince} {
			if at.Before(before) || at.After(after) {
				t.Errorf("%s = %v, the server's clock was between %v and %v", name, at, before, after)
			}
		}
		if age, known := first.Age(after); !known || age > after.Sub(before) {
			t.Errorf("Age = %v, %v", age, known)
		}

		// Again: only the time changes.
		pass(t, c)
		again := register(t, c, node())
		must.NoDiff(t, "registering twice", again, first, cmpopts.IgnoreFields(cluster.Node{}, "UpdatedAt"))
		if !again.UpdatedAt.After(first.UpdatedAt) {
			t.Error("updated_at did not move")
		}

		// Empty values are removed, except the interval, which only the daemon may know.
		less := cluster.Node{ID: "i-0abc", IP: own, BootID: "boot-1", State: cluster.StateActive}
		stored := register(t, c, less)
		less.Interval = first.Interval
		must.NoDiff(t, "stored", stored, less, byServer)
		record := b.record("i-0abc")
		var keys []string
		for k := range record {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		must.NoDiff(t, "fields of the record", keys, []string{"_id", "boot_id", "interval_ns", "ip", "rev", "state", "state_since", "updated_at"})
		must.Equal(t, "records", b.count(b.nodes(), bson.M{}), 1)

		for _, bad := range []cluster.Node{{State: cluster.StateJoining}, {ID: "i-1"}, {ID: "i-1", State: "dancing"}} {
			if _, err := c.Register(t.Context(), bad, cluster.RegisterOptions{}); err == nil {
				t.Errorf("Register(%+v) succeeded", bad)
			}
		}
	})
}

// old is a row as another program or an earlier release wrote it.
func old(id string, state cluster.State) bson.M {
	return bson.M{
		"_id": id, "ip": own, "boot_id": "boot-1", "role": "edge", "hostname": "old", "state": string(state), "reason": "old",
		"heartbeat": bson.M{"seq": int64(99), "load": bson.M{"cpu": 3}}, "left_at": time.Unix(1, 0), "state_since": time.Unix(1, 0), "updated_at": time.Unix(1, 0),
	}
}

// kept are the fields of old that a row still has, and "since" if its state is as old.
func (b backdoor) kept(id string) (kept string) {
	b.t.Helper()
	row := b.record(id)
	for _, key := range []string{"hostname", "heartbeat", "left_at"} {
		if row[key] != nil {
			kept += key + " "
		}
	}
	if row["state_since"] == bson.NewDateTimeFromTime(time.Unix(1, 0)) {
		kept += "since"
	}
	return kept
}

// The tables of states are in package cluster. These are one write of each kind.
func TestRegisterAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, b backdoor, c *cluster.Client) {
		for name, tt := range map[string]struct {
			was, as, is cluster.State
			change      func(*cluster.Node)
			kept        string
		}{
			"it keeps its state":     {was: cluster.StateActive, as: cluster.StateJoining, is: cluster.StateActive, kept: "heartbeat since"},
			"it is active now":       {was: cluster.StateJoining, as: cluster.StateActive, is: cluster.StateActive, kept: "heartbeat "},
			"it left, and joins":     {was: cluster.StateLeft, as: cluster.StateJoining, is: cluster.StateJoining},
			"it left, as registered": {was: cluster.StateLeft, as: cluster.StateLeft, is: cluster.StateLeft, kept: "heartbeat left_at since"},
			"another boot": {
				was: cluster.StateActive, as: cluster.StateJoining, is: cluster.StateJoining,
				change: func(n *cluster.Node) { n.BootID = "boot-2" },
			},
			"another address": {
				was: cluster.StateActive, as: cluster.StateJoining, is: cluster.StateJoining,
				change: func(n *cluster.Node) { n.IP = "10.0.0.99" },
			},
		} {
			b.insert(b.nodes(), old(name, tt.was))
			n := node()
			n.ID, n.Hostname, n.State = name, "", tt.as
			if tt.change != nil {
				tt.change(&n)
			}
			want := n
			if want.State = tt.is; tt.is != tt.as {
				want.Reason = "old"
			}
			must.NoDiff(t, name, register(t, c, n), want, byServer, cmpopts.IgnoreFields(cluster.Node{}, "Heartbeat"))
			must.Equal(t, name+": kept", b.kept(name), tt.kept)
			must.Equal(t, name+": records", b.count(b.nodes(), bson.M{"_id": name}), 1)
		}
	})
}

func TestSetState(t *testing.T) {
	onBoth(t, func(t *testing.T, b backdoor, c *cluster.Client) {
		set := func(id string, to cluster.State) error {
			return c.SetOwnState(t.Context(), cluster.Node{ID: id, IP: own, BootID: "boot-1"}, to, "because", cluster.Details{})
		}
		for _, tt := range []struct {
			from, to cluster.State
			kept     string
		}{
			{cluster.StateActive, cluster.StateActive, "hostname heartbeat since"},
			{cluster.StateActive, cluster.StateDraining, "hostname heartbeat "},
			{cluster.StateActive, cluster.StateLeft, "hostname left_at "},
			{cluster.StateLeft, cluster.StateJoining, "hostname heartbeat "},
		} {
			id := fmt.Sprintf("%s to %s", tt.from, tt.to)
			b.insert(b.nodes(), old(id, tt.from))
			must.OK(t, set(id, tt.to))
			got, err := c.Node(t.Context(), id)
			must.OK(t, err)
			must.Equal(t, id, string(got.State)+got.Reason, string(tt.to)+"because")
			must.Equal(t, id+" keeps", b.kept(id), tt.kept)
		}
		b.insert(b.nodes(), old("refused", cluster.StateFailed), bson.M{"_id": "odd", "state": int32(3)})
		was := b.record("refused")
		refused, _ := errors.AsType[*cluster.TransitionError](set("refused", cluster.StateActive))
		must.Equal(t, "failed to active", *refused, cluster.TransitionError{ID: "refused", From: cluster.StateFailed, To: cluster.StateActive})
		must.NoDiff(t, "it changed the record", b.record("refused"), was)
		if _, bad := errors.AsType[*cluster.BadRecordError](set("odd", cluster.StateActive)); !bad {
			t.Error("a record with an unreadable state took another")
		}
		if err := set("missing", cluster.StateLeft); !errors.Is(err, cluster.ErrNoNode) {
			t.Errorf("setting the state of a missing node: %v", err)
		}
		must.Equal(t, "records of a missing node after its state was set", b.count(b.nodes(), bson.M{"_id": "missing"}), 0)
	})
}

func TestManyAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, b backdoor, c *cluster.Client) {
		const callers, each = 8, 6
		var all sync.WaitGroup
		for i := range callers {
			for j := range each {
				all.Go(func() {
					// The same record from all callers, with two states.
					n := node()
					n.State = []cluster.State{cluster.StateJoining, cluster.StateActive}[j%2]
					if _, err := c.Register(t.Context(), n, cluster.RegisterOptions{}); err != nil {
						t.Errorf("registering: %v", err)
					}
					// And a record of each caller.
					n.ID = fmt.Sprintf("i-%d", i)
					if _, err := c.Register(t.Context(), n, cluster.RegisterOptions{}); err != nil {
						t.Errorf("registering: %v", err)
					}
					err := c.SetOwnState(t.Context(), n, cluster.StateActive, "", cluster.Details{})
					must.Equal(t, "setting the state", err, nil)
				})
			}
		}
		all.Wait()
		nodes, err := c.Nodes(t.Context())
		must.OK(t, err)
		if len(nodes) != callers+1 || b.count(b.nodes(), bson.M{}) != callers+1 {
			t.Errorf("%d records, want %d", len(nodes), callers+1)
		}
		for _, n := range nodes {
			if n.State != cluster.StateActive || n.Role != "origin" || n.StateSince.After(n.UpdatedAt) {
				t.Errorf("%+v", n)
			}
		}
		if !slices.IsSortedFunc(nodes, func(a, b cluster.Node) int { return strings.Compare(a.ID, b.ID) }) {
			t.Error("the nodes are not in order")
		}
	})
}

// A write whose answer is lost is done once: the record is read, and has the rev of that write.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	t.Run("one server", func(t *testing.T) {
		t.Parallel()
		answerLost(t, mongod.Options{})
	})
	t.Run("a set", func(t *testing.T) {
		t.Parallel()
		answerLost(t, mongod.Options{ReplicaSet: realmongo.SetName})
	})
}

func answerLost(t *testing.T, o mongod.Options) {
	t.Helper()
	s := startServer(t, o)
	b, c := open(t, s), connect(t, s.URI(), cluster.Options{})
	register(t, c, node())

	writes := func() int {
		return len(slices.DeleteFunc(s.Commands(), func(c mongod.Command) bool { return c.Name != "findAndModify" }))
	}
	once := writes() + 1
	fault(t, s, mongod.Fault{Mode: mongod.CutReply, Commands: []string{"findAndModify"}, Times: 1})
	must.OK(t, c.SetOwnState(t.Context(), node(), cluster.StateActive, "verified", cluster.Details{}))
	n, err := c.Node(t.Context(), "i-0abc")
	must.OK(t, err)
	if sent := writes(); n.State != cluster.StateActive || sent != once {
		t.Errorf("state %s, %d commands that write, want %d", n.State, sent, once)
	}

	for _, command := range []string{"find", "findAndModify"} {
		again := node()
		again.BootID = "boot of " + command
		fault(t, s, mongod.Fault{Mode: mongod.CutReply, Commands: []string{command}, Times: 1})
		r := register(t, c, again)
		must.NoDiff(t, fmt.Sprintf("stored, the answer to %s lost", command), r, again, byServer)
		s.Faults().Clear()
	}
	must.Equal(t, "records", b.count(b.nodes(), bson.M{}), 1)

	cut := int64(2)
	event := cluster.Event{
		Node: "i-0abc", Kind: "leave", Who: "root", Why: "scale-in", Cut: &cut,
		Details: map[string]string{"hook": "terminating"},
	}
	must.OK(t, c.AddEvent(t.Context(), event))
	var events []struct {
		cluster.Event `bson:",inline"`
		At            time.Time `bson:"at"`
	}
	cur, err := b.Database("amsagent").Collection("events").Find(t.Context(), bson.M{})
	if err == nil {
		err = cur.All(t.Context(), &events)
	}
	if err != nil || len(events) != 1 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	must.NoDiff(t, "stored", events[0].Event, event)
	if now, err := c.ServerTime(t.Context()); err != nil || now.Sub(events[0].At) > time.Minute {
		t.Errorf("the event is of %v, the server's clock is at %v (%v)", events[0].At, now, err)
	}
	must.OK(t, c.AddEvent(t.Context(), cluster.Event{Node: "i-0def", Kind: "join"}))
	for _, tt := range []struct {
		q    cluster.EventQuery
		want []string // kinds
	}{
		{cluster.EventQuery{Limit: 10}, []string{"leave", "join"}},
		{cluster.EventQuery{Limit: 1}, []string{"join"}},
		{cluster.EventQuery{Limit: 10, Nodes: []string{"i-0abc", "i-9"}}, []string{"leave"}},
		{cluster.EventQuery{Limit: 10, Since: time.Now().Add(time.Hour)}, nil},
	} {
		past, err := c.Events(t.Context(), tt.q)
		var kinds []string
		for _, e := range past {
			kinds = append(kinds, e.Kind)
			if e.Kind == event.Kind && (!e.At.Equal(events[0].At) || cmp.Diff(event, e.Event) != "") {
				t.Errorf("read %+v, written %+v", e, event)
			}
		}
		if err != nil || !slices.Equal(kinds, tt.want) {
			t.Errorf("%+v: %v, %v", tt.q, kinds, err)
		}
	}
	if err := c.AddEvent(t.Context(), cluster.Event{Kind: "join"}); err == nil {
		t.Error("an event without a node was written")
	}
}

// With the indexes, the server removes old documents only.
func TestIndexes(t *testing.T) {
	t.Parallel()
	_, b, c := started(t)
	must.OK(t, c.EnsureIndexes(t.Context()))
	must.Equal(t, "a second time", c.EnsureIndexes(t.Context()), nil)
	specs, err := b.nodes().Indexes().ListSpecifications(t.Context())
	if err != nil || !slices.ContainsFunc(specs, func(s mongo.IndexSpecification) bool { return s.ExpireAfterSeconds != nil }) {
		t.Errorf("%+v, %v", specs, err)
	}
	if mongotest.Running() {
		return // DocumentDB looks for old documents once a minute
	}
	now, old := time.Now(), time.Now().AddDate(-1, 0, 0)
	b.insert(b.nodes(), bson.M{"_id": "i-old", "left_at": old}, bson.M{"_id": "i-new", "left_at": now}, bson.M{"_id": "i-active", "updated_at": old})
	events := b.Database("amsagent").Collection("events")
	b.insert(events, bson.M{"_id": "e-old", "at": old}, bson.M{"_id": "e-new", "at": now})
	must.Until(t, "the old ones are removed", func() bool { return b.count(b.nodes(), bson.M{}) == 2 && b.count(events, bson.M{}) == 1 })
	must.Equal(t, "records left of the two", b.count(b.nodes(), bson.M{"_id": bson.M{"$in": bson.A{"i-new", "i-active"}}}), 2)
}

// A server without TTL indexes is reported, and everything else works.
func TestIndexesAreOptional(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	c := connect(t, s.URI(), cluster.Options{})
	fault(t, s, mongod.Fault{Mode: mongod.Error, Commands: []string{"createIndexes"}, Code: 238, Name: "NotImplemented"})
	err := c.EnsureIndexes(t.Context())
	must.Equal(t, fmt.Sprintf("EnsureIndexes: kind of %v", err), cluster.KindOf(err), cluster.KindUnsupported)
	register(t, c, node())
	must.OK(t, c.AddEvent(t.Context(), cluster.Event{Node: "i-0abc", Kind: "join"}))
}

// CheckAccess detects a missing right, and changes nothing.
func TestCheckAccess(t *testing.T) {
	t.Parallel()
	s, b, c := started(t)
	b.write("a", own, time.Now())
	b.write("", own, time.Now())
	must.OK(t, c.CheckAccess(t.Context()))
	must.NoDiff(t, "documents", databases(b), map[string]int64{"clusterdb.clusternode": 2})
	// The driver waits for an election until the timeout.
	impatient := connect(t, s.URI(), cluster.Options{Timeout: 3 * time.Second})
	for _, command := range []string{"find", "update", "delete"} {
		fault(t, s, mongod.Fault{Mode: mongod.Error, Commands: []string{command}, Code: 13, Name: "Unauthorized", Message: "not authorized"})
		if err := c.CheckAccess(t.Context()); cluster.KindOf(err) != cluster.KindForbidden {
			t.Errorf("%s not allowed: %v", command, err)
		}
		if command == "find" {
			s.Faults().Clear()
			continue // a secondary answers reads
		}
		fault(t, s, mongod.Fault{Mode: mongod.Error, Commands: []string{command}, Code: 10107, Name: "NotWritablePrimary", Message: "not primary"})
		if err := impatient.CheckAccess(t.Context()); cluster.KindOf(err) != cluster.KindNotPrimary {
			t.Errorf("%s on a secondary: %v", command, err)
		}
		s.Faults().Clear()
	}
}

// databases returns the number of documents of each collection.
func databases(b backdoor) map[string]int64 {
	b.t.Helper()
	names, err := b.ListDatabaseNames(b.t.Context(), bson.D{})
	must.OK(b.t, err)
	all := map[string]int64{}
	for _, db := range names {
		if slices.Contains([]string{"admin", "config", "local", "amsagent-sandbox"}, db) { // the last marks a borrowed server
			continue
		}
		colls, err := b.Database(db).ListCollectionNames(b.t.Context(), bson.D{})
		must.OK(b.t, err)
		for _, c := range colls {
			n, err := b.Database(db).Collection(c).CountDocuments(b.t.Context(), bson.D{})
			must.OK(b.t, err)
			all[db+"."+c] = n
		}
	}
	return all
}

// TestOddFields: another program wrote fields that no update can name. The record is registered again, also if it cannot be read.
func TestOddFields(t *testing.T) {
	t.Parallel()
	_, b, c := started(t)
	n := node()
	for name, more := range map[string]bson.M{
		"odd names":           {},
		"and no agent's rev":  {"rev": 7, "port": -1},
		"and a large text":    {"rev": "r", "a": strings.Repeat("x", 20<<10)},
		"and a rev of no use": {"rev": bson.Regex{Pattern: ".*"}, "port": -1},
	} {
		doc := bson.M{"_id": n.ID, "boot_id": "old", "ip": n.IP, "state": "active", "": 1, "a.b": 1, "$x": 1, "state.x": 1}
		maps.Copy(doc, more)
		_, err := b.nodes().DeleteMany(t.Context(), bson.M{})
		must.OK(t, err)
		b.insert(b.nodes(), doc)
		r, err := c.Register(t.Context(), n, cluster.RegisterOptions{})
		must.OK(t, err)
		must.NoDiff(t, name, r, n, byServer)
		must.OK(t, c.SetOwnState(t.Context(), n, cluster.StateActive, "verified", cluster.Details{}))
	}
}
