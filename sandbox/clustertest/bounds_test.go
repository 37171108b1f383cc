// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// heap is the writer of a log that measures the memory in use at each line.
type heap struct {
	most  uint64
	lines int
}

func (h *heap) Write(line []byte) (int, error) {
	runtime.GC()
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	h.most, h.lines = max(h.most, now.HeapAlloc), h.lines+1
	return len(line), nil
}

// TestLargeRow: of two thousand records, four have a role of 15 MB and an unknown field. A reader keeps neither in memory.
func TestLargeRow(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{Binary: realmongo.Require(t)})
	var warned heap
	b, c := open(t, s), connect(t, s.URI(), cluster.Options{Log: slog.New(slog.NewTextHandler(&warned, nil))})
	docs := make([]any, 0, 2000)
	for i := range 2000 {
		docs = append(docs, bson.M{"_id": fmt.Sprintf("i-%04d", i), "ip": fmt.Sprintf("10.1.%d.%d", i/250, i%250), "state": "active", "role": "edge"})
	}
	b.insert(b.nodes(), docs...)
	for i := range 4 {
		b.insert(b.nodes(), bson.M{"_id": fmt.Sprintf("j-%d", i), "state": "active", "role": strings.Repeat("x", 15<<20), "unknown": strings.Repeat("y", 1<<19)})
	}
	b.insert(b.ams(), bson.M{"_id": "huge", "ip": own, "lastUpdateTime": time.Now().UnixMilli(), "memory": strings.Repeat("x", 15<<20)})

	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	look, err := c.Look(t.Context())
	must.OK(t, err)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if len(look.Nodes) != 2000 || len(look.AMS) != 1 || len(look.Bad) != 4 || warned.lines != 4 || look.Bad[0].ID != "j-0" {
		t.Fatalf("%d records, %d documents, bad ones: %v, logged %d times", len(look.Nodes), len(look.AMS), look.Bad, warned.lines)
	}
	if len(look.AMS[0].Memory) > 256 {
		t.Errorf("a text of AMS of %d bytes", len(look.AMS[0].Memory))
	}
	for what, then := range map[string]uint64{"the look": after.HeapAlloc, "the reading": warned.most} {
		if grown := int64(then) - int64(before.HeapAlloc); grown > 16<<20 {
			t.Errorf("%s holds %d MB", what, grown>>20)
		}
	}
	runtime.KeepAlive(look)
}

// A call that waits for the connection of a call that hangs uses a new connection after the pool was cleared.
func TestWaitsBehindOneThatHangs(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	c := connect(t, "mongodb://"+s.Addr()+"/?directConnection=true", cluster.Options{Timeout: 20 * time.Second, MaxPool: 1})
	must.OK(t, s.Faults().Set(mongod.Fault{Mode: mongod.BlackHole, Commands: []string{"find"}, Times: 1}))
	hung := make(chan error, 1)
	go func() {
		_, err := c.Node(t.Context(), "i-1")
		hung <- err
	}()
	must.Until(t, "the first call is swallowed", func() bool { return s.Faults().Current().Mode == mongod.None })
	<-time.After(10 * time.Second) // the second call must not time out with the first
	if _, err := c.Node(t.Context(), "i-1"); !errors.Is(err, cluster.ErrNoNode) {
		t.Errorf("the second call: %v", err)
	}
	if err := <-hung; cluster.KindOf(err) != cluster.KindTimeout {
		t.Errorf("the first call: %v", err)
	}
}

// LocalStreams uses AMS's index on status, and does not read every broadcast.
func TestStreamsByIndex(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{Binary: realmongo.Require(t)})
	b, c := open(t, s), connect(t, s.URI(), cluster.Options{})
	coll := b.Database("liveapp").Collection("broadcast")
	must.OK(t, b.Database("liveapp").RunCommand(t.Context(), bson.D{
		{Key: "createIndexes", Value: "broadcast"},
		{Key: "indexes", Value: bson.A{bson.M{"key": bson.M{"status": 1}, "name": "status_1"}}},
	}).Err())
	now := time.Now()
	docs := make([]any, 0, 10_000)
	for i := range 10_000 {
		docs = append(docs, bson.M{"streamId": fmt.Sprintf("s%d", i), "status": "finished", "originAdress": own, "updateTime": now.Add(-time.Hour).UnixMilli()})
	}
	for i := range 3 {
		docs[i] = bson.M{"streamId": fmt.Sprintf("live%d", i), "status": "broadcasting", "originAdress": own, "updateTime": now.UnixMilli()}
	}
	b.insert(coll, docs...)
	must.OK(t, b.Database("liveapp").RunCommand(t.Context(), bson.D{{Key: "profile", Value: 2}}).Err())
	streams, err := c.LocalStreams(t.Context(), []string{"liveapp"}, own, now)
	if err != nil || len(streams) != 1 || len(streams[0].IDs) != 3 {
		t.Fatalf("%v, %v", streams, err)
	}
	var seen struct {
		Plan     string `bson:"planSummary"`
		Examined int    `bson:"docsExamined"`
	}
	err = b.Database("liveapp").Collection("system.profile").FindOne(t.Context(), bson.M{"op": "query", "ns": "liveapp.broadcast"}).Decode(&seen)
	if err != nil || !strings.HasPrefix(seen.Plan, "IXSCAN") || seen.Examined != 3 {
		t.Errorf("%+v, %v", seen, err)
	}
}

// TestRights: the rights that the hints name are enough. An error for a missing read right on an application's database is
// short.
func TestRights(t *testing.T) {
	t.Parallel()
	s := startReal(t, realmongo.Options{Users: map[string]string{"root": "secret"}})
	b := openURI(t, s.URI())
	on := func(role, db string) bson.M { return bson.M{"role": role, "db": db} }
	run := func(command bson.D) {
		t.Helper()
		must.OK(t, b.Database("admin").RunCommand(t.Context(), command).Err())
	}
	run(bson.D{
		{Key: "createUser", Value: "node"},
		{Key: "pwd", Value: "secret"},
		{Key: "roles", Value: bson.A{on("readWrite", "amsagent"), on("readWrite", "clusterdb")}},
	})
	c := connect(t, "mongodb://node:secret@"+s.Addrs()+"/?authSource=admin", cluster.Options{})
	must.OK(t, c.CheckAccess(t.Context()))
	err := c.CheckRead(t.Context(), []string{"liveapp"})
	if cluster.KindOf(err) != cluster.KindForbidden || strings.Contains(err.Error(), "lsid") || !strings.Contains(err.Error(), "liveapp") {
		t.Errorf("without read on liveapp: %v", err)
	}
	run(bson.D{{Key: "grantRolesToUser", Value: "node"}, {Key: "roles", Value: bson.A{on("read", "liveapp")}}})
	must.Equal(t, "with read on liveapp", c.CheckRead(t.Context(), []string{"liveapp"}), nil)
	register(t, c, node())
	must.Equal(t, "the indexes", c.EnsureIndexes(t.Context()), nil)

	// An existing index with another expiry is neither a missing right nor an unsupported feature.
	must.OK(t, b.nodes().Indexes().DropAll(t.Context()))
	other := b.Database("amsagent").RunCommand(t.Context(), bson.D{
		{Key: "createIndexes", Value: "nodes"},
		{Key: "indexes", Value: bson.A{bson.M{"key": bson.M{"left_at": 1}, "name": "left_at_1", "expireAfterSeconds": 60}}},
	})
	must.OK(t, other.Err())
	if err := c.EnsureIndexes(t.Context()); cluster.KindOf(err) != cluster.KindOther {
		t.Errorf("another expiry: %v", err)
	}
}
