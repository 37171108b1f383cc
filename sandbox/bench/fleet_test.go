// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/host"
)

const (
	fleetNodes = 10_000
	// fleetClients share the nodes, as ten thousand processes cannot be had. Each
	// holds as many connections as one daemon.
	fleetClients = 32
	fleetBeat    = 5 * time.Second
)

// BenchmarkFleetRatio compares the beats of nodes, from the sample on, with a bare
// loop of UpdateOne: same server, same driver, same number of connections and of
// callers, in turns of one run. Both go as fast as the server lets them.
func BenchmarkFleetRatio(b *testing.B) {
	const (
		callers = fleetClients
		turns   = 8
		turn    = 2 * time.Second
	)
	addr, _ := startMongo(b, buildSandbox(b))
	f := newFleet(b, addr, callers)
	bare := newBare(b, addr)
	for b.Loop() {
		var beats, updates []float64 // per second, by turn
		var ratios []float64
		bare.run(b.Context(), callers, turn/2) // to warm both up
		f.flatOut(b.Context(), callers, turn/2)
		wire, written := f.wire.Load(), f.written.Load()
		var spent cost
		for range turns {
			u := bare.run(b.Context(), callers, turn)
			before := f.cost()
			n := f.flatOut(b.Context(), callers, turn)
			spent = spent.add(f.cost().sub(before))
			updates, beats = append(updates, u), append(beats, n)
			ratios = append(ratios, n/u)
		}
		total := float64(f.written.Load() - written)
		if total == 0 || f.failed.Load() > 0 {
			b.Fatalf("%v beats were written, %d failed: %v", total, f.failed.Load(), f.first)
		}
		b.ReportMetric(quantile(ratios, 0.5), "fleet/bare")
		b.ReportMetric(quantile(beats, 0.5), "beats/s")
		b.ReportMetric(quantile(updates, 0.5), "bare-updates/s")
		b.ReportMetric(float64(spent.cpu.Microseconds())/total, "client-µs/beat")
		b.ReportMetric(float64(spent.allocs)/total, "allocs/beat")
		b.ReportMetric(float64(spent.bytes)/total, "alloc-B/beat")
		b.ReportMetric(float64(f.wire.Load()-wire)/total, "wire-B/beat")
		b.ReportMetric(0, "ns/op")
		b.Logf("ratios of %d turns, from least to most: %.2f; load average %s", turns, ratios, host.LoadAverage())
	}
}

// BenchmarkFleet10k lets up to ten thousand nodes beat every five seconds into one
// server that keeps up, and shows what that asks of those who beat and of the wire.
func BenchmarkFleet10k(b *testing.B) {
	length := time.Duration(setting(b, "BENCH_FLEET_SECONDS", 15) * float64(time.Second))
	addr, server := startSink(b)
	f := newFleet(b, addr, 0)
	for b.Loop() {
		for _, nodes := range []int{1000, 3000, fleetNodes} {
			served, err := host.ReadUsage(server)
			must.OK(b, err)
			r := f.beat(b.Context(), nodes, length)
			now, err := host.ReadUsage(server)
			must.OK(b, err)
			rounds := float64(max(1, r.written+r.failed))
			written := float64(max(1, r.written))
			b.Logf("%5d nodes: %6.1f beats/s wanted, %6.1f written (%3.0f %%), %d failed, %d dropped; latency p50 %v p99 %v; "+
				"client %.0f µs and %.0f allocations a beat, %.0f bytes on the wire; server %.2f of %d cores; load average %s",
				nodes, float64(nodes)/fleetBeat.Seconds(), float64(r.written)/length.Seconds(),
				100*float64(r.written)/(float64(nodes)*length.Seconds()/fleetBeat.Seconds()), r.failed, r.dropped,
				quantile(r.latency, 0.5).Round(time.Millisecond/10), quantile(r.latency, 0.99).Round(time.Millisecond/10),
				float64(r.spent.cpu.Microseconds())/rounds, float64(r.spent.allocs)/rounds, float64(r.wire)/written,
				(now.CPU-served.CPU).Seconds()/length.Seconds(), runtime.NumCPU(), host.LoadAverage())
			b.ReportMetric(float64(r.written)/length.Seconds(), fmt.Sprintf("beats/s-of-%d", nodes))
			b.ReportMetric(float64(r.spent.cpu.Microseconds())/rounds, fmt.Sprintf("client-µs/beat-of-%d", nodes))
		}
		b.ReportMetric(0, "ns/op")
	}
}

// fleet is many nodes with few clients.
type fleet struct {
	clients         []*cluster.Client
	wire            atomic.Int64 // bytes of requests, the driver's own among them
	written, failed atomic.Int64
	first           error // of those that failed

	// sending is held by who writes a beat, and taken to end a run: no beat is cut
	// off in the middle, as that would cost its connection.
	sending sync.RWMutex
}

// sender is a client within a run.
type sender struct {
	*cluster.Client
	f *fleet
}

func (s sender) Beat(ctx context.Context, b cluster.Beat, last *cluster.Beat) error {
	s.f.sending.RLock()
	defer s.f.sending.RUnlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.Client.Beat(ctx, b, last)
}

func newFleet(b *testing.B, addr string, nodes int) *fleet {
	b.Helper()
	target, err := cluster.ParseTarget(addr)
	must.OK(b, err)
	f := &fleet{}
	for range fleetClients {
		c, err := cluster.Connect(b.Context(), target, cluster.Options{
			AppName: "fleet", Timeout: fleetBeat, MaxPool: 1, Dialer: countingDialer{&f.wire},
		})
		must.OK(b, err)
		b.Cleanup(func() { _ = c.Close(context.Background()) })
		f.clients = append(f.clients, c)
	}
	rows := make([]any, nodes)
	for i := range rows {
		// What a registration writes, in its size.
		rows[i] = bson.D{
			{Key: "_id", Value: nodeID(i)},
			{Key: "ip", Value: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)},
			{Key: "hostname", Value: fmt.Sprintf("edge-%d.internal", i)},
			{Key: "role", Value: "edge"},
			{Key: "group", Value: "edges"},
			{Key: "provider", Value: "aws"},
			{Key: "region", Value: "eu-west-1"},
			{Key: "zone", Value: "eu-west-1a"},
			{Key: "type", Value: "c6i.large"},
			{Key: "agent", Value: "0.2.0"},
			{Key: "ams", Value: "3.0.3"},
			{Key: "state", Value: "active"},
		}
	}
	if nodes == 0 {
		return f
	}
	m := connect(b, addr, 1)
	const batch = 1000
	for len(rows) > 0 {
		n := min(batch, len(rows))
		if _, err := m.Database("amsagent").Collection("nodes").InsertMany(b.Context(), rows[:n]); err != nil {
			b.Fatal(err)
		}
		rows = rows[n:]
	}
	return f
}

func nodeID(i int) string { return fmt.Sprintf("i-0a1b2c3d4e5%06d", i) }

func connect(b *testing.B, addr string, pool uint64) *mongo.Client {
	b.Helper()
	m, err := mongo.Connect(options.Client().ApplyURI("mongodb://" + addr + "/?directConnection=true").
		SetMaxPoolSize(pool).SetServerMonitoringMode("poll").SetWriteConcern(writeconcern.W1()))
	must.OK(b, err)
	b.Cleanup(func() { _ = m.Disconnect(context.Background()) })
	return m
}

type countingDialer struct{ sent *atomic.Int64 }

func (d countingDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return countingConn{c, d.sent}, nil
}

type countingConn struct {
	net.Conn
	sent *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// sample is a machine at work: every figure differs from one beat to the next.
func sample(context.Context) heartbeat.Sample {
	percent := func() *int { return new(rand.IntN(101)) }
	rate := func() *int64 { return new(rand.Int64N(1 << 28)) }
	var s heartbeat.Sample
	s.Load = cluster.Load{CPU: percent(), Mem: percent(), NetRx: rate(), NetTx: rate(), Disk: percent(), Score: percent()}
	s.Session = cluster.Sessions{Publishers: new(rand.IntN(20)), Viewers: new(rand.IntN(2000)), By: cluster.CountedByAMS}
	return s
}

// flatOut lets some nodes beat without a pause for a while, and returns the beats
// written in a second.
func (f *fleet) flatOut(ctx context.Context, nodes int, length time.Duration) float64 {
	before, start := f.written.Load(), time.Now()
	f.run(ctx, nodes, time.Microsecond, length, nil)
	return float64(f.written.Load()-before) / time.Since(start).Seconds()
}

// beats is what became of them.
type beats struct {
	written, failed, dropped int64
	latency                  []time.Duration
	spent                    cost
	wire                     int64
}

// beat lets nodes beat at their pace for one interval, and then counts.
func (f *fleet) beat(ctx context.Context, nodes int, length time.Duration) beats {
	var mu sync.Mutex
	var r beats
	var before cost
	counted := time.Now().Add(fleetBeat)
	// The first beat of each is larger than those that follow.
	time.AfterFunc(fleetBeat, func() {
		mu.Lock()
		defer mu.Unlock()
		before, r.wire = f.cost(), -f.wire.Load()
	})
	f.run(ctx, nodes, fleetBeat, fleetBeat+length, func(report heartbeat.Report) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case time.Now().Before(counted):
		case !report.Tried:
			r.dropped++
		case report.Err != nil:
			r.failed++
		default:
			r.written++
			r.latency = append(r.latency, report.Latency)
		}
	})
	r.spent = f.cost().sub(before)
	r.wire += f.wire.Load()
	return r
}

// run runs the loops of nodes, each through one of the clients.
func (f *fleet) run(ctx context.Context, nodes int, interval, length time.Duration, tell func(heartbeat.Report)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end := time.AfterFunc(length, func() {
		f.sending.Lock()
		defer f.sending.Unlock()
		cancel()
	})
	defer end.Stop()
	var all sync.WaitGroup
	for i := range nodes {
		l := &heartbeat.Loop{
			ID: nodeID(i), Interval: interval, Sample: sample, Sender: sender{f.clients[i%len(f.clients)], f},
			Report: func(r heartbeat.Report) {
				switch {
				case r.Tried && r.Err == nil:
					f.written.Add(1)
				case r.Tried:
					if f.failed.Add(1) == 1 {
						f.first = r.Err
					}
				}
				if tell != nil {
					tell(r)
				}
			},
		}
		all.Go(func() { l.Run(ctx) })
	}
	all.Wait()
}

// cost is what this process has used so far.
type cost struct {
	cpu           time.Duration
	allocs, bytes uint64
}

func (f *fleet) cost() cost {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r) // it fails for a wrong argument alone
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return cost{time.Duration(r.Utime.Nano() + r.Stime.Nano()), m.Mallocs, m.TotalAlloc}
}

func (c cost) sub(d cost) cost { return cost{c.cpu - d.cpu, c.allocs - d.allocs, c.bytes - d.bytes} }

func (c cost) add(d cost) cost { return cost{c.cpu + d.cpu, c.allocs + d.allocs, c.bytes + d.bytes} }

// bare is the loop to compare with: the driver's own way to write such an update.
type bare struct{ clients []*mongo.Collection }

func newBare(b *testing.B, addr string) *bare {
	b.Helper()
	r := &bare{}
	for range fleetClients {
		r.clients = append(r.clients, connect(b, addr, 1).Database("amsagent").Collection("nodes"))
	}
	return r
}

func (r *bare) run(ctx context.Context, callers int, length time.Duration) float64 {
	var n atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	for i := range callers {
		nodes := r.clients[i%len(r.clients)]
		all.Go(func() {
			filter := bson.D{{Key: "_id", Value: nodeID(i)}}
			for seq := int32(1); time.Since(start) < length; seq++ {
				_, err := nodes.UpdateOne(ctx, filter, bson.D{
					{Key: "$set", Value: bson.D{
						{Key: "seq", Value: seq},
						{Key: "load", Value: bson.D{
							{Key: "cpu", Value: rand.Int32N(101)},
							{Key: "mem", Value: rand.Int32N(101)},
							{Key: "net_rx", Value: rand.Int32N(1 << 28)},
							{Key: "net_tx", Value: rand.Int32N(1 << 28)},
							{Key: "disk", Value: rand.Int32N(101)},
							{Key: "score", Value: rand.Int32N(101)},
						}},
						{Key: "sessions.publishers", Value: rand.Int32N(20)},
						{Key: "sessions.viewers", Value: rand.Int32N(2000)},
					}},
					{Key: "$currentDate", Value: bson.D{{Key: "updated_at", Value: true}}},
				})
				if err == nil {
					n.Add(1)
				}
			}
		})
	}
	all.Wait()
	return float64(n.Load()) / time.Since(start).Seconds()
}
