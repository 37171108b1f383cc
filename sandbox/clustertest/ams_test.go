// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/mongotest"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

func TestAMSNodes(t *testing.T) {
	onBoth(t, func(t *testing.T, b backdoor, c *cluster.Client) {
		if got, err := c.AMSNodes(t.Context()); err != nil || got == nil || len(got) != 0 {
			t.Errorf("an empty cluster: %v, %v", got, err)
		}

		now := time.Now().Truncate(time.Millisecond)
		id := bson.NewObjectID()
		b.insert(
			b.ams(),
			bson.M{"_id": "z10.0.0.3", "_t": "ClusterNode", "ip": own, "lastUpdateTime": now.UnixMilli(), "cpu": "7", "memory": "1/2"},
			bson.M{"_id": "a10.0.0.3", "ip": own, "lastUpdateTime": float64(now.Add(-time.Hour).UnixMilli()), "cpu": 7.5},
			bson.M{"_id": "b10.0.0.20", "ip": "10.0.0.20", "lastUpdateTime": now, "cpu": int32(7), "dbQueryAveargeTimeMs": int64(4), "note": "3.1.0 has it"},
			bson.M{"_id": id, "ip": "10.0.0.100"},
			bson.M{"_id": "", "lastUpdateTime": "soon"},
			bson.M{"_id": "v6", "ip": "fd00:0:0:0:0:0:0:1", "lastUpdateTime": now.UnixMilli()},
		)
		got, err := c.AMSNodes(t.Context())
		must.OK(t, err)
		var lines []string
		for _, n := range got {
			cpu := "-"
			if n.CPU != nil {
				cpu = fmt.Sprint(*n.CPU)
			}
			lines = append(lines, fmt.Sprintf("%s %s fresh=%v cpu=%s", n.IP, n.ID, n.Fresh(now), cpu))
		}
		want := []string{
			"  fresh=false cpu=-",
			"10.0.0.3 a10.0.0.3 fresh=false cpu=7.5",
			"10.0.0.3 z10.0.0.3 fresh=true cpu=7",
			"10.0.0.20 b10.0.0.20 fresh=true cpu=7",
			"10.0.0.100 " + id.Hex() + " fresh=false cpu=-",
			"fd00:0:0:0:0:0:0:1 v6 fresh=true cpu=-",
		}
		must.NoDiff(t, "lines", lines, want)
		for address, ids := range map[string]string{
			own: "a10.0.0.3 z10.0.0.3", "10.0.0.2": "", "10.0.0.20": "b10.0.0.20", "fd00::1": "v6", "10.0.0.100": id.Hex(),
		} {
			got, err := c.AMSNodesByAddress(t.Context(), address)
			if err != nil || idsOf(got) != ids {
				t.Errorf("%s: %q, %v, want %q", address, idsOf(got), err, ids)
			}
		}
	})
}

func TestDeleteAMSNodes(t *testing.T) {
	t.Parallel()
	stopped := time.Now().Truncate(time.Millisecond)
	before, after := stopped.Add(-3*time.Second), stopped.Add(3*time.Second)
	long := stopped.Add(-time.Hour)
	for name, tt := range map[string]struct {
		address, id string
		before      time.Time
		gone, stay  string
	}{
		"all up to the stop":     {own, "", stopped, " earlier-life hex mine", "later timeless"},
		"of long ago":            {own, "", stopped.Add(-20 * time.Second), " earlier-life", "hex later mine timeless"},
		"of one id":              {own, "mine", stopped, "mine", " earlier-life hex later timeless"},
		"of one that still runs": {own, "later", stopped, "", " earlier-life hex later mine timeless"},
		"of another address":     {own, "theirs", stopped, "", " earlier-life hex later mine timeless"},
		"nothing of the address": {"10.0.0.4", "", after, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, b, c := started(t)
			hex := bson.NewObjectID()
			b.insert(
				b.ams(),
				bson.M{"_id": "mine", "ip": own, "lastUpdateTime": before.UnixMilli()},
				bson.M{"_id": "later", "ip": own, "lastUpdateTime": after.UnixMilli()},
				bson.M{"_id": "earlier-life", "ip": own, "lastUpdateTime": float64(long.UnixMilli())},
				bson.M{"_id": "timeless", "ip": own},
				bson.M{"_id": "", "ip": own, "lastUpdateTime": long},
				bson.M{"_id": hex, "ip": own, "lastUpdateTime": before.UnixMilli()},
				bson.M{"_id": "theirs", "ip": "10.0.0.30", "lastUpdateTime": long.UnixMilli()},
				bson.M{"_id": "mine10.0.0.3", "ip": "10.0.0.31", "lastUpdateTime": long.UnixMilli()},
			)
			all := b.count(b.ams(), bson.M{})
			gone, stay, err := c.DeleteAMSNodes(t.Context(), tt.address, tt.id, tt.before)
			must.OK(t, err)
			named := func(nodes []cluster.AMSNode) string {
				ids := strings.Split(idsOf(nodes), " ")
				if i := slices.Index(ids, hex.Hex()); i >= 0 {
					ids[i] = "hex"
				}
				slices.Sort(ids)
				return strings.Join(ids, " ")
			}
			if named(gone) != tt.gone || named(stay) != tt.stay {
				t.Errorf("gone %q, stay %q, want %q and %q", named(gone), named(stay), tt.gone, tt.stay)
			}
			must.Equal(t, fmt.Sprintf("documents left of %d after deleting %d", all, len(gone)), b.count(b.ams(), bson.M{}), all-len(gone))
			for _, n := range gone {
				must.Equal(t, fmt.Sprintf("%q was reported as deleted: documents", n.ID), b.count(b.ams(), bson.M{"_id": n.ID}), 0)
			}
		})
	}
	c := connect(t, startServer(t, mongod.Options{}).URI(), cluster.Options{})
	if _, _, err := c.DeleteAMSNodes(t.Context(), "", "mine", stopped); err == nil {
		t.Error("a removal without an address was carried out")
	}
	if _, _, err := c.DeleteAMSNodes(t.Context(), own, "mine", time.Time{}); err == nil {
		t.Error("a removal without a time was carried out")
	}
}

// A running AMS writes between the read and the delete.
func TestDeleteAMSNodesRewrittenMeanwhile(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	b, c := open(t, s), connect(t, s.URI(), cluster.Options{Timeout: 2 * time.Minute})
	at := time.Now().Add(-time.Second)
	b.write("mine", own, at)
	b.write("other", own, at)

	fault(t, s, mongod.Fault{Mode: mongod.Delay, Delay: time.Hour, Commands: []string{"delete"}})
	type result struct {
		gone, stay []cluster.AMSNode
		err        error
	}
	done := make(chan result, 1)
	go func() {
		gone, stay, err := c.DeleteAMSNodes(t.Context(), own, "", at)
		done <- result{gone, stay, err}
	}()
	must.Until(t, "the delete is on its way", func() bool { return s.Stats().Struck > 0 })
	b.write("mine", own, at.Add(5*time.Second))
	s.Faults().Clear()
	r := <-done
	must.OK(t, r.err)
	if idsOf(r.gone) != "other" || idsOf(r.stay) != "mine" {
		t.Fatalf("gone %q, stay %q", idsOf(r.gone), idsOf(r.stay))
	}
	must.Equal(t, "the version reported is of", r.stay[0].LastUpdate.UnixMilli(), at.Add(5*time.Second).UnixMilli())
	must.Equal(t, "AMS's write", b.count(b.ams(), bson.M{"_id": "mine", "lastUpdateTime": at.Add(5 * time.Second).UnixMilli()}), 1)
}

func TestDeleteAMSNodesAnswerLost(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	b := open(t, s)
	c := connect(t, s.URI(), cluster.Options{Timeout: 2 * time.Second})
	b.write("mine", own, time.Now())
	fault(t, s, mongod.Fault{Mode: mongod.CutReply, Commands: []string{"delete"}, Times: 1})
	gone, stay, err := c.DeleteAMSNodes(t.Context(), own, "", time.Now())
	if err != nil || idsOf(gone) != "mine" || len(stay) != 0 {
		t.Errorf("gone %q, stay %v, %v", idsOf(gone), stay, err)
	}

	b.write("mine", own, time.Now())
	fault(t, s, mongod.Fault{Mode: mongod.Error, Commands: []string{"delete"}, Code: 13, Name: "Unauthorized", Message: "not authorized"})
	gone, stay, err = c.DeleteAMSNodes(t.Context(), own, "", time.Now())
	if cluster.KindOf(err) != cluster.KindForbidden || len(gone)+len(stay) != 0 {
		t.Errorf("gone %v, stay %v, %v", gone, stay, err)
	}

	// If the second read fails, the document is not reported as deleted.
	fault(t, s, mongod.Fault{Mode: mongod.Error, Commands: []string{"find"}, After: 1, Code: 13, Name: "Unauthorized", Message: "not authorized"})
	gone, stay, err = c.DeleteAMSNodes(t.Context(), own, "", time.Now())
	if cluster.KindOf(err) != cluster.KindForbidden || len(gone)+len(stay) != 0 {
		t.Errorf("gone %v, stay %v, %v", gone, stay, err)
	}
}

func TestLocalStreams(t *testing.T) {
	t.Parallel()
	s, b, c := started(t)
	now := time.Now().Truncate(time.Millisecond)
	broadcast := func(id, status, origin string, at any) bson.M {
		return bson.M{"_id": bson.NewObjectID(), "streamId": id, "status": status, "originAdress": origin, "updateTime": at, "webRTCViewerCount": int32(3)}
	}
	b.insert(
		b.Database("liveapp").Collection("broadcast"),
		broadcast("live", "broadcasting", own, now.UnixMilli()),
		broadcast("just-live", "broadcasting", own, now.Add(-20*time.Second).UnixMilli()),
		broadcast("dated", "broadcasting", own, now),
		broadcast("double", "broadcasting", own, float64(now.UnixMilli())),
		broadcast("left-over", "broadcasting", own, now.Add(-20*time.Second-time.Millisecond).UnixMilli()),
		broadcast("old-date", "broadcasting", own, now.Add(-time.Minute)),
		broadcast("finished", "finished", own, now.UnixMilli()),
		broadcast("elsewhere", "broadcasting", "10.0.0.30", now.UnixMilli()),
		bson.M{"streamId": "room", "status": "broadcasting", "virtual": true, "updateTime": now.UnixMilli()},
		bson.M{"streamId": "timeless", "status": "broadcasting", "originAdress": own},
	)
	b.insert(
		b.Database("webrtcappee").Collection("broadcast"),
		bson.M{"_id": "x", "status": "broadcasting", "originAdress": own, "updateTime": now.UnixMilli()},
	)
	got, err := c.LocalStreams(t.Context(), []string{"webrtcappee", "liveapp", "nosuch"}, own, now)
	must.OK(t, err)
	want := []cluster.DatabaseStreams{
		{Database: "webrtcappee", IDs: []string{"x"}},
		{Database: "liveapp", IDs: []string{"dated", "double", "just-live", "live"}},
		{Database: "nosuch", IDs: []string{}},
	}
	must.NoDiff(t, "applications", got, want)

	// The node's clock counts, not the server's.
	for _, skew := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		got, err := c.LocalStreams(t.Context(), []string{"liveapp"}, own, now.Add(skew))
		if n := len(got[0].IDs); err != nil || (skew > 0) != (n == 0) {
			t.Errorf("%s later: %d streams, %v", skew, n, err)
		}
	}

	// A database that cannot be read is an error.
	fault(t, s, mongod.Fault{Mode: mongod.Error, Commands: []string{"find"}, After: 1, Times: 1, Code: 13, Name: "Unauthorized", Message: "not authorized"})
	got, err = c.LocalStreams(t.Context(), []string{"webrtcappee", "liveapp", "nosuch"}, own, now)
	if cluster.KindOf(err) != cluster.KindForbidden || len(got) != 3 {
		t.Fatalf("%v, %v", got, err)
	}
	if len(got[0].IDs) != 1 || len(got[1].IDs) != 0 {
		t.Errorf("%+v", got)
	}
	for _, bad := range []struct {
		databases []string
		address   string
	}{{nil, own}, {[]string{"liveapp"}, ""}, {[]string{""}, own}, {[]string{"a b/c"}, own}} {
		if mongotest.Running() && len(bad.databases) == 1 && bad.databases[0] == "a b/c" {
			continue // a known difference: DocumentDB takes any name of a database
		}
		if got, err := c.LocalStreams(t.Context(), bad.databases, bad.address, now); err == nil {
			t.Errorf("LocalStreams(%q, %q) = %v", bad.databases, bad.address, got)
		}
	}
}

// amsWriter writes an AMS document repeatedly, by a clock.
func amsWriter(t *testing.T, b backdoor, id, ip string, clock func() time.Time) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var w sync.WaitGroup
	w.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_, _ = b.ams().UpdateOne(ctx, bson.M{"_id": id},
					bson.M{"$set": bson.M{"ip": ip, "lastUpdateTime": clock().UnixMilli()}}, upsert())
			}
		}
	})
	return func() { cancel(); w.Wait() }
}

func TestWaitAMSNode(t *testing.T) {
	t.Parallel()
	const poll = 20 * time.Millisecond
	for _, skew := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
		t.Run(skew.String(), func(t *testing.T) {
			t.Parallel()
			s := startServer(t, mongod.Options{})
			b := open(t, s)
			// The clock of this machine, and so of AMS, is wrong; MongoDB's is not.
			clock := func() time.Time { return time.Now().Add(skew) }
			c := connect(t, s.URI(), cluster.Options{Now: clock})
			// Documents from before do not count, even if they are fresh.
			b.write("mine", own, clock())
			b.write("future", own, clock().Add(10*time.Minute))
			b.write("earlier-life", own, clock().Add(-time.Hour))
			b.write("neighbour", "10.0.0.30", clock())
			before, err := c.AMSNodes(t.Context())
			must.OK(t, err)
			var reads atomic.Int64
			type result struct {
				node cluster.AMSNode
				err  error
			}
			done := make(chan result, 1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			go func() {
				n, err := c.WaitAMSNode(ctx, cluster.AMSWait{
					Address: own, Before: before, Poll: poll,
					Progress: func(ours []cluster.AMSNode, err error) {
						if err != nil || len(ours) != 3 {
							t.Errorf("progress: %v, %v", ours, err)
						}
						reads.Add(1)
					},
				})
				done <- result{n, err}
			}()
			must.Until(t, "it reads several times", func() bool { return reads.Load() >= 3 })
			select {
			case r := <-done:
				t.Fatalf("an old document was returned: %+v, %v", r.node, r.err)
			default:
			}
			stop := amsWriter(t, b, "mine", own, clock)
			defer stop()
			r := <-done
			if r.err != nil || r.node.ID != "mine" || !r.node.Fresh(clock()) {
				t.Errorf("%+v, %v", r.node, r.err)
			}
		})
	}
}

// The last document of a former process is not this one's, whatever the clock was set to.
func TestWaitAMSNodeOfThisProcess(t *testing.T) {
	t.Parallel()
	_, b, c := started(t)
	started := time.Now().Truncate(time.Millisecond)
	late, next := started.Add(-time.Second), started.Add(-500*time.Millisecond)
	for name, w := range map[string]cluster.AMSWait{
		"it ended late":     {Address: "10.0.0.11", Before: []cluster.AMSNode{}, Started: started},
		"it must change":    {Address: "10.0.0.12", Before: []cluster.AMSNode{}, MustChange: true},
		"without Before":    {Address: "10.0.0.14"},
		"both, not written": {Address: "10.0.0.13", MustChange: true, Started: started},
	} {
		reads := 0
		w.Poll = 20 * time.Millisecond
		b.write(name, w.Address, late)
		w.Progress = func(ours []cluster.AMSNode, err error) {
			if reads++; err != nil || len(ours) != 1 {
				t.Errorf("%s: %v, %v", name, ours, err)
			}
			if reads%3 == 0 {
				b.write(name, w.Address, next.Add(time.Duration(reads)*time.Millisecond))
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		n, err := c.WaitAMSNode(ctx, w)
		cancel()
		if err != nil || n.LastUpdate.Before(next) {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
}

func TestWaitAMSNodeSaysWhatItSaw(t *testing.T) {
	t.Parallel()
	const known = "172.17.0.1" // also an address of this machine
	tests := []struct {
		name      string
		prepare   func(b backdoor) // before AMS is started
		then      func(b backdoor) // during the wait
		elsewhere bool
		text      string
	}{
		{
			"docker0", nil, func(b backdoor) { b.write("x", known, time.Now()) },
			true, "it registered as 172.17.0.1, which is another address of this machine",
		},
		{
			"wrong address", func(b backdoor) { b.write("neighbour", "10.0.0.30", time.Now()) },
			func(b backdoor) { b.write("x", "203.0.113.9", time.Now()) },
			false, "may be it under a wrong address: 203.0.113.9",
		},
		{
			"not advancing", func(b backdoor) { b.write("mine", own, time.Now()) }, nil,
			false, "its document was not written since",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, b, c := started(t)
			if tt.prepare != nil {
				tt.prepare(b)
			}
			before, err := c.AMSNodes(t.Context())
			must.OK(t, err)
			if tt.then != nil {
				tt.then(b)
			}
			err = waitFor(t, c, cluster.AMSWait{
				Address: own, Before: before, Poll: 20 * time.Millisecond, LocalAddresses: []string{"127.0.0.1", own, known},
			}, func(reads int, _ error) bool { return reads == 3 })
			e, ok := errors.AsType[*cluster.AMSNotSeenError](err)
			if !ok {
				t.Fatalf("got %v", err)
			}
			if e.Elsewhere != tt.elsewhere || !strings.Contains(e.Error(), " for AMS to register as "+own+": ") || !strings.Contains(e.Error(), tt.text) || e.Last != nil || e.Reads != 3 {
				t.Errorf("elsewhere is %v, %d reads: %v", e.Elsewhere, e.Reads, e)
			}
			if !errors.Is(err, errEnough) {
				t.Error("the error does not wrap the end of the context")
			}
		})
	}
}

var errEnough = errors.New("enough was read")

// waitFor ends a wait after the reading that is enough.
func waitFor(t *testing.T, c *cluster.Client, w cluster.AMSWait, enough func(reads int, err error) bool) error {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	reads := 0
	w.Progress = func(_ []cluster.AMSNode, err error) {
		reads++
		if enough(reads, err) {
			cancel(errEnough)
		}
	}
	_, err := c.WaitAMSNode(ctx, w)
	return err
}

// A server that was started without an address, or with a wrong one, is reported after its second write, before the timeout.
func TestWaitAMSNodeElsewhere(t *testing.T) {
	t.Parallel()
	const docker, another = "172.17.0.1", "172.17.0.2"
	_, b, c := started(t)
	// Another node that had the same docker address before, and an earlier process of this machine.
	b.write("neighbour", docker, time.Now())
	stop := amsWriter(t, b, "neighbour", docker, time.Now)
	defer stop()
	b.write("dead", another, time.Now().Add(-time.Second))
	began := time.Now()
	before, err := c.AMSNodes(t.Context())
	must.OK(t, err)
	wait := cluster.AMSWait{
		Address: own, Before: before, LocalAddresses: []string{"127.0.0.1", own, docker, another},
		Elsewhere: 1100 * time.Millisecond, Started: began, NewOnly: true, Poll: 20 * time.Millisecond,
	}
	// One that a stopped process wrote before this start, and again while it ended.
	b.write("late", another, began.Add(-time.Second))
	last := time.AfterFunc(1500*time.Millisecond, func() { b.write("late", another, time.Now()) })
	defer last.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if _, err := c.WaitAMSNode(ctx, wait); errors.Is(err, cluster.ErrElsewhere) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("another server was reported: %v", err)
	}
	stop2 := amsWriter(t, b, "mine", another, time.Now)
	defer stop2()
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = c.WaitAMSNode(ctx, wait)
	e, ok := errors.AsType[*cluster.AMSNotSeenError](err)
	if !ok || !errors.Is(err, cluster.ErrElsewhere) || !e.Elsewhere || ctx.Err() != nil {
		t.Fatalf("%v", err)
	}
	must.Equal(t, "other addresses are named", e.Error(), "AMS registered as "+another+", which is another address of this machine, and not as "+own)
}

// MongoDB may be away for a part of the wait.
func TestWaitAMSNodeThroughAnOutage(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	b, c := open(t, s), connect(t, s.URI(), cluster.Options{Timeout: time.Second})
	before, err := connect(t, s.URI(), cluster.Options{}).AMSNodes(t.Context())
	must.OK(t, err)
	var failed atomic.Bool
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fault(t, s, mongod.Fault{Mode: mongod.Refuse})
	go func() {
		_, err := c.WaitAMSNode(ctx, cluster.AMSWait{
			Address: own, Before: before, Poll: 20 * time.Millisecond,
			Progress: func(_ []cluster.AMSNode, err error) { failed.Store(failed.Load() || err != nil) },
		})
		done <- err
	}()
	must.Until(t, "it detects the outage", failed.Load)
	s.Faults().Clear()
	b.write("mine", own, time.Now())
	must.OK(t, <-done)

	// MongoDB may stay away.
	fault(t, s, mongod.Fault{Mode: mongod.Refuse})
	err = waitFor(t, c, cluster.AMSWait{Address: own, Before: before, Poll: 20 * time.Millisecond}, func(_ int, err error) bool {
		return cluster.KindOf(err) == cluster.KindRefused
	})
	e, ok := errors.AsType[*cluster.AMSNotSeenError](err)
	if !ok || e.Reads > 0 || cluster.KindOf(e.Last) != cluster.KindRefused {
		t.Errorf("an outage until the end: %v", err)
	}
	// Cancellation ends the wait at once, even if MongoDB does not answer.
	fault(t, s, mongod.Fault{Mode: mongod.BlackHole})
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	start := time.Now()
	patient := connect(t, s.URI(), cluster.Options{Timeout: 2 * time.Minute})
	_, err = patient.WaitAMSNode(ctx, cluster.AMSWait{Address: own, Before: before, Poll: 20 * time.Millisecond})
	if took := time.Since(start); !errors.Is(err, context.Canceled) || took > time.Minute {
		t.Errorf("canceled: %v after %s", err, took)
	}
	// A reading that the end of the wait cuts short is no failure of MongoDB.
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start = time.Now()
	_, err = patient.WaitAMSNode(ctx, cluster.AMSWait{Address: own, Before: before, Poll: 20 * time.Millisecond})
	e, ok = errors.AsType[*cluster.AMSNotSeenError](err)
	if took := time.Since(start); !ok || e.Reads > 0 || e.Last != nil || !errors.Is(err, context.DeadlineExceeded) || took > time.Minute {
		t.Errorf("cut short: %v after %s", err, took)
	}
	s.Faults().Clear()

	// A refusal ends the wait.
	fault(t, s, mongod.Fault{Mode: mongod.Error, Commands: []string{"find"}, Code: 13, Name: "Unauthorized", Message: "not authorized"})
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = c.WaitAMSNode(ctx, cluster.AMSWait{Address: own, Before: before, Poll: 20 * time.Millisecond})
	if cluster.KindOf(err) != cluster.KindForbidden || ctx.Err() != nil {
		t.Error(err)
	}
	if _, err := c.WaitAMSNode(ctx, cluster.AMSWait{}); err == nil {
		t.Error("a wait without an address succeeded")
	}
}
