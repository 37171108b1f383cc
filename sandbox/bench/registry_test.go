// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// connect returns a client of the agent's, and one of the driver alone.
func connect(b *testing.B, pool int) (*cluster.Client, *mongo.Client) {
	b.Helper()
	addr := startMongo(b, buildSandbox(b))
	target, err := cluster.ParseTarget(addr)
	must.OK(b, err)
	c, err := cluster.Connect(b.Context(), target, cluster.Options{MaxPool: uint64(pool)})
	must.OK(b, err)
	raw, err := mongo.Connect(options.Client().ApplyURI("mongodb://" + addr + "/?directConnection=true").SetMaxPoolSize(uint64(pool)))
	must.OK(b, err)
	b.Cleanup(func() {
		_ = c.Close(context.Background())
		_ = raw.Disconnect(context.Background())
	})
	return c, raw
}

// member is a node of the registry.
func member(i int) cluster.Node {
	return cluster.Node{
		ID: fmt.Sprintf("i-%017d", i), IP: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&0xff, i&0xff), BootID: fmt.Sprint("boot", i),
		Role: "edge", State: cluster.StateActive, Interval: seconds.Duration(cluster.DefaultInterval),
	}
}

func beat(seq int64) cluster.Heartbeat {
	n := func(v int) *int { return &v }
	rate := int64(1_250_000)
	skew := 12 * time.Millisecond
	return cluster.Heartbeat{
		Seq: seq, Load: &cluster.Load{CPU: n(17), Mem: n(43), Disk: n(31), Score: n(57), NetRx: &rate, NetTx: &rate},
		Sessions: &cluster.Sessions{Publishers: n(3), Viewers: n(120), By: cluster.CountedByAMS}, Serving: &cluster.Serving{Up: true}, Clock: (*seconds.Duration)(&skew),
	}
}

// BenchmarkHeartbeatRatio compares a heartbeat with the driver's own update of one field, one after the other. It fails above 1.8:
// 1.2 to 1.5 by machine, and a second round trip is 2.
func BenchmarkHeartbeatRatio(b *testing.B) {
	const rounds = 1000
	c, raw := connect(b, 1)
	self := member(1)
	_, err := c.Register(b.Context(), self, cluster.RegisterOptions{})
	must.OK(b, err)
	bare := raw.Database("bare").Collection("nodes")
	_, err = bare.InsertOne(b.Context(), bson.D{{Key: "_id", Value: "x"}})
	must.OK(b, err)
	for b.Loop() {
		var ours, theirs []time.Duration
		for i := range int64(rounds) {
			start := time.Now()
			must.OK(b, c.Heartbeat(b.Context(), self, beat(i+1)))
			between := time.Now()
			_, err := bare.UpdateOne(b.Context(), bson.D{{Key: "_id", Value: "x"}}, bson.D{{Key: "$set", Value: bson.D{{Key: "seq", Value: i}}}})
			must.OK(b, err)
			ours, theirs = append(ours, between.Sub(start)), append(theirs, time.Since(between))
		}
		ratio := float64(quantile(ours, 0.5)) / float64(quantile(theirs, 0.5))
		if ratio > 1.8 {
			b.Errorf("a heartbeat takes %.2f times as long as an update", ratio)
		}
		b.ReportMetric(ratio, "heartbeat/update")
		b.ReportMetric(float64(quantile(ours, 0.5).Microseconds()), "µs-heartbeat")
		b.ReportMetric(0, "ns/op")
	}
	size, err := raw.Database("amsagent").Collection("nodes").FindOne(b.Context(), bson.D{{Key: "_id", Value: self.ID}}).Raw()
	must.OK(b, err)
	b.ReportMetric(float64(len(size)), "B-record")
}

// BenchmarkNodes writes the heartbeats of 200, 1,000 and 10,000 nodes at 5 s to one mongod: how long each takes, how many of those
// are late, and how many cores mongod uses. The clients are on this machine, too.
func BenchmarkNodes(b *testing.B) {
	for _, nodes := range []int{200, 1000, 10_000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) { benchmarkNodes(b, nodes) })
	}
}

func benchmarkNodes(b *testing.B, nodes int) {
	const seconds, writers = 15, 64
	c, raw := connect(b, writers)
	var documents []any
	for i := range nodes {
		n := member(i)
		documents = append(documents, bson.D{{Key: "_id", Value: n.ID}, {Key: "ip", Value: n.IP}, {Key: "boot_id", Value: n.BootID}, {Key: "state", Value: "active"}})
	}
	_, err := raw.Database("amsagent").Collection("nodes").InsertMany(b.Context(), documents)
	must.OK(b, err)
	for b.Loop() {
		pace := make(chan int, nodes)
		took := make([][]time.Duration, writers)
		var work sync.WaitGroup
		for w := range writers {
			work.Go(func() {
				for i := range pace {
					start := time.Now()
					must.Equal(b, "heartbeat", c.Heartbeat(b.Context(), member(i%nodes), beat(int64(i/nodes+1))), nil)
					took[w] = append(took[w], time.Since(start))
				}
			})
		}
		tick := max(10*time.Millisecond, cluster.DefaultInterval/time.Duration(nodes))
		perTick := nodes * int(tick) / int(cluster.DefaultInterval)
		every := time.NewTicker(tick)
		began, used := time.Now(), processTime(b, raw)
		sent, late := 0, 0
		for time.Since(began) < seconds*time.Second {
			<-every.C
			late = max(late, len(pace))
			for range perTick {
				pace <- sent
				sent++
			}
		}
		every.Stop()
		close(pace)
		work.Wait()
		var all []time.Duration
		for _, t := range took {
			all = append(all, t...)
		}
		b.Logf("%d heartbeats in %d s: p50 %s, p99 %s, at most %d waited; load average %s",
			sent, seconds, quantile(all, 0.5), quantile(all, 0.99), late, proc.LoadAverage())
		b.ReportMetric(float64(sent)/time.Since(began).Seconds(), "heartbeats/s")
		b.ReportMetric((processTime(b, raw)-used).Seconds()/time.Since(began).Seconds(), "cores-mongod")
		b.ReportMetric(float64(quantile(all, 0.5).Microseconds()), "µs-p50")
		b.ReportMetric(float64(quantile(all, 0.99).Microseconds()), "µs-p99")
		b.ReportMetric(0, "ns/op")
	}
}

// processTime is the CPU time of mongod.
func processTime(b *testing.B, raw *mongo.Client) time.Duration {
	b.Helper()
	var status struct {
		Extra struct {
			User   int64 `bson:"user_time_us"`
			System int64 `bson:"system_time_us"`
		} `bson:"extra_info"`
	}
	must.OK(b, raw.Database("admin").RunCommand(b.Context(), bson.D{{Key: "serverStatus", Value: 1}}).Decode(&status))
	return time.Duration(status.Extra.User+status.Extra.System) * time.Microsecond
}

// BenchmarkLook reads and judges a cluster of 1,000 nodes.
func BenchmarkLook(b *testing.B) {
	const nodes = 1000
	c, raw := connect(b, 2)
	var servers []any
	for i := range nodes {
		n := member(i)
		_, err := c.Register(b.Context(), n, cluster.RegisterOptions{})
		must.OK(b, err)
		must.OK(b, c.Heartbeat(b.Context(), n, beat(1)))
		servers = append(servers, bson.D{{Key: "_id", Value: "x" + n.IP}, {Key: "ip", Value: n.IP}, {Key: "lastUpdateTime", Value: time.Now().UnixMilli()}})
	}
	_, err := raw.Database("clusterdb").Collection("clusternode").InsertMany(b.Context(), servers)
	must.OK(b, err)
	var o cluster.Observer
	for b.Loop() {
		l, err := c.Look(b.Context())
		must.OK(b, err)
		if members := o.Observe(l); len(members) != nodes {
			b.Fatalf("%d members", len(members))
		}
	}
}
