// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"cmp"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/mongotest"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// own is the address of this node.
const own = "10.0.0.3"

var servers mongotest.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// startServer starts a server, which is a replica set of one if CLUSTER_SET is set.
func startServer(t *testing.T, o mongod.Options) *mongod.Server {
	t.Helper()
	if os.Getenv("CLUSTER_SET") != "" && o.Users == nil {
		o.ReplicaSet = realmongo.SetName
	}
	return servers.Start(t, o)
}

// started is a server of a test, with both clients.
func started(t *testing.T) (*mongod.Server, backdoor, *cluster.Client) {
	t.Helper()
	s := startServer(t, mongod.Options{})
	return s, open(t, s), connect(t, s.URI(), cluster.Options{})
}

// startReal starts servers without a proxy.
func startReal(t *testing.T, o realmongo.Options) *realmongo.Set {
	t.Helper()
	o.Binary = realmongo.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	s, err := realmongo.Start(ctx, o)
	must.OK(t, err)
	t.Cleanup(func() { must.OK(t, s.Close()) })
	return s
}

// onBoth runs do on a real mongod, and on the registry in memory of package fakemongo, which must do the same.
func onBoth(t *testing.T, do func(t *testing.T, b backdoor, c *cluster.Client)) {
	t.Helper()
	t.Parallel()
	t.Run("mongod", func(t *testing.T) {
		t.Parallel()
		s := startServer(t, mongod.Options{})
		do(t, open(t, s), connect(t, s.URI(), cluster.Options{MaxPool: 8}))
	})
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		m := fakemongo.NewMemory()
		t.Cleanup(m.Close)
		const uri = "mongodb://memory/"
		door := openWith(t, options.Client().ApplyURI(uri).SetDialer(m))
		do(t, door, connect(t, uri, cluster.Options{Dialer: m, MaxPool: 8}))
	})
}

func connect(t *testing.T, uri string, o cluster.Options) *cluster.Client {
	t.Helper()
	o.Timeout = cmp.Or(o.Timeout, time.Minute) // 10 s may be too short on a busy machine
	target, err := cluster.ParseTarget(uri)
	must.OK(t, err)
	c, err := cluster.Connect(t.Context(), target, o)
	must.OK(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) }) // bounded by a second, which is short on a busy machine
	return c
}

// backdoor is a second client, which writes as AMS does and reads the stored documents.
type backdoor struct {
	t *testing.T
	*mongo.Client
}

func open(t *testing.T, s *mongod.Server) backdoor {
	t.Helper()
	return openURI(t, s.URI())
}

func openURI(t *testing.T, uri string) backdoor {
	t.Helper()
	return openWith(t, options.Client().ApplyURI(uri))
}

func openWith(t *testing.T, o *options.ClientOptions) backdoor {
	t.Helper()
	// The registry in memory keeps no order of fields.
	m, err := mongo.Connect(o.SetTimeout(20 * time.Second).SetBSONOptions(&options.BSONOptions{DefaultDocumentM: true}))
	must.OK(t, err)
	t.Cleanup(func() { _ = m.Disconnect(context.Background()) })
	return backdoor{t, m}
}

func (b backdoor) ams() *mongo.Collection   { return b.Database("clusterdb").Collection("clusternode") }
func (b backdoor) nodes() *mongo.Collection { return b.Database("amsagent").Collection("nodes") }

func (b backdoor) insert(coll *mongo.Collection, docs ...any) {
	b.t.Helper()
	_, err := coll.InsertMany(b.t.Context(), docs)
	must.OK(b.t, err)
}

// write writes an AMS document as AMS does.
func (b backdoor) write(id, ip string, at time.Time) {
	b.t.Helper()
	_, err := b.ams().UpdateOne(b.t.Context(), bson.M{"_id": id},
		bson.M{"$set": bson.M{"_t": "ClusterNode", "ip": ip, "lastUpdateTime": at.UnixMilli(), "memory": "586/1945", "cpu": "7"}},
		upsert())
	must.OK(b.t, err)
}

func (b backdoor) record(id string) bson.M {
	b.t.Helper()
	var doc bson.M
	must.OK(b.t, b.nodes().FindOne(b.t.Context(), bson.M{"_id": id}).Decode(&doc))
	return doc
}

func (b backdoor) count(coll *mongo.Collection, filter any) int {
	b.t.Helper()
	n, err := coll.CountDocuments(b.t.Context(), filter)
	must.OK(b.t, err)
	return int(n)
}

func fault(t *testing.T, s *mongod.Server, f mongod.Fault) {
	t.Helper()
	must.OK(t, s.Faults().Set(f))
}

// pass waits until the clock of the server shows another millisecond.
func pass(t *testing.T, c *cluster.Client) {
	t.Helper()
	start, err := c.ServerTime(t.Context())
	must.OK(t, err)
	must.Until(t, "the server's clock advances", func() bool {
		now, err := c.ServerTime(t.Context())
		return err == nil && now.After(start)
	})
}

func idsOf(nodes []cluster.AMSNode) string {
	ids := make([]string, 0, len(nodes))
	for _, n := range nodes {
		ids = append(ids, n.ID)
	}
	return strings.Join(ids, " ")
}

func upsert() options.Lister[options.UpdateOneOptions] { return options.UpdateOne().SetUpsert(true) }
