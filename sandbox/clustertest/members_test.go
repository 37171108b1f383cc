// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

func member(t *testing.T, c *cluster.Client, id, ip string) {
	t.Helper()
	_, err := c.Register(t.Context(), cluster.Node{ID: id, IP: ip, State: cluster.StateActive, BootID: "b", Interval: seconds.Duration(5 * time.Second), Port: 5080}, cluster.RegisterOptions{})
	must.OK(t, err)
}

// memberOf returns the node that member registers.
func memberOf(id, ip string) cluster.Node { return cluster.Node{ID: id, IP: ip, BootID: "b"} }

// A heartbeat replaces all values of the previous one.
func TestHeartbeat(t *testing.T) {
	onBoth(t, func(t *testing.T, b backdoor, c *cluster.Client) {
		self := memberOf("i-1", own)
		if err := c.Heartbeat(t.Context(), self, cluster.Heartbeat{Seq: 1}); !errors.Is(err, cluster.ErrNoNode) {
			t.Errorf("a heartbeat without a record: %v", err)
		}
		must.Equal(t, "records", b.count(b.nodes(), bson.M{}), 0)
		member(t, c, "i-1", own)
		before, err := c.Node(t.Context(), "i-1")
		must.OK(t, err)
		pass(t, c)
		first := cluster.Heartbeat{
			Seq: 1, Clock: (*seconds.Duration)(new(-1500 * time.Millisecond)), Serving: &cluster.Serving{Up: true},
			Load: &cluster.Load{
				CPU: new(83), Mem: new(61), NetRx: new(int64(1) << 40), NetTx: new(int64(7)), Disk: new(3), Score: new(97),
				GPUs: []cluster.GPULoad{{Name: "A10G", Util: new(40), Enc: new(97), Dec: new(0), Mem: new(12)}, {}},
			},
			Sessions: &cluster.Sessions{Publishers: new(3), Viewers: new(431), By: cluster.CountedByConnections},
			Drain:    &cluster.DrainLimit{Until: time.UnixMilli(1_900_000_000_123).UTC(), By: "hook drain"},
		}
		second := cluster.Heartbeat{
			Seq: 2, Load: &cluster.Load{CPU: new(0)}, Sessions: &cluster.Sessions{Publishers: new(0)}, Serving: &cluster.Serving{Why: "LiveApp fails"},
		}
		for _, want := range []cluster.Heartbeat{first, second, first} {
			must.OK(t, c.Heartbeat(t.Context(), self, want))
			n, err := c.Node(t.Context(), "i-1")
			must.OK(t, err)
			must.NoDiff(t, "heartbeat", n.Heartbeat, want)
			n.Heartbeat, n.UpdatedAt = before.Heartbeat, before.UpdatedAt
			must.NoDiff(t, "the heartbeat changed more than itself", n, before)
		}
		if n, err := c.Node(t.Context(), "i-1"); err != nil || !n.UpdatedAt.After(before.UpdatedAt) {
			t.Errorf("updated_at %s, before %s, %v", n.UpdatedAt, before.UpdatedAt, err)
		}

		// Another instance drops the heartbeat of this one.
		r, err := c.Register(t.Context(), cluster.Node{ID: "i-1", IP: own, State: cluster.StateJoining, BootID: "c"}, cluster.RegisterOptions{})
		if err != nil || r.Load != nil || r.Sessions != nil || r.Clock != nil || r.Serving != nil || r.Heartbeats() {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// The clocks of the nodes are ten minutes off.
func TestLookAndJudge(t *testing.T) {
	t.Parallel()
	_, b, c := started(t)
	var o cluster.Observer
	says := func() string {
		t.Helper()
		l, err := c.Look(t.Context())
		must.OK(t, err)
		if d := time.Since(l.At); l.ServerTime.IsZero() || d < 0 || d > time.Minute {
			t.Errorf("%+v", l)
		}
		var out []string
		for _, m := range o.Observe(l) {
			out = append(out, fmt.Sprintf("%s %s %s", m.ID(), m.Address(), m.Health))
		}
		return strings.Join(out, "; ")
	}
	must.Equal(t, "an empty cluster", says(), "")
	member(t, c, "skewed", "10.0.0.1")
	member(t, c, "plain", "fd00::2")
	member(t, c, "departed", "10.0.0.4")
	must.OK(t, c.SetOwnState(t.Context(), memberOf("departed", "10.0.0.4"), cluster.StateLeft, "test", cluster.Details{}))
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	const others = "skewed 10.0.0.1 healthy; departed 10.0.0.4 left; z 10.0.0.4 no-agent; plain fd00::2 "
	// Each round writes all signals again: on a busy machine, the first ones are old before the last look.
	seq := int64(0)
	must.Until(t, "two looks judge by the age, then by the change", func() bool {
		for _, id := range []string{"skewed", "plain"} {
			seq++
			self, h := memberOf("plain", "fd00::2"), cluster.Heartbeat{Seq: seq}
			if id == "skewed" {
				self, h.Clock = memberOf(id, "10.0.0.1"), (*seconds.Duration)(new(-10*time.Minute))
			}
			must.OK(t, c.Heartbeat(t.Context(), self, h))
		}
		b.write("x10.0.0.1", "10.0.0.1", ago(10*time.Minute))
		b.write("y", "fd00:0:0:0:0:0:0:2", ago(10*time.Minute))
		b.write("z", "10.0.0.4", ago(0))
		b.write("old", "10.0.0.1", ago(time.Hour))
		o = cluster.Observer{}
		first := says()
		b.write("y", "fd00:0:0:0:0:0:0:2", ago(10*time.Minute-5*time.Second))
		second := says()
		t.Logf("first look: %s\nafter a change: %s", first, second)
		return first == others+"ams-stale" && second == others+"healthy"
	})
}

func TestRemoveNode(t *testing.T) {
	t.Parallel()
	s, b, c := started(t)
	member(t, c, "i-1", own)
	member(t, c, "i-2", "10.0.0.4")
	n, err := c.Node(t.Context(), "i-1")
	must.OK(t, err)
	pass(t, c)
	must.OK(t, c.Heartbeat(t.Context(), memberOf("i-1", own), cluster.Heartbeat{Seq: 1}))
	if gone, err := c.RemoveNode(t.Context(), n); err != nil || gone {
		t.Errorf("a record that was written since: %t, %v", gone, err)
	}
	n, err = c.Node(t.Context(), "i-1")
	must.OK(t, err)
	for range 2 { // the second time, there is no record
		if gone, err := c.RemoveNode(t.Context(), n); err != nil || !gone {
			t.Errorf("%t, %v", gone, err)
		}
	}
	must.Equal(t, "records left; the other one is wanted", b.count(b.nodes(), bson.M{}), 1)
	// A record that no agent wrote has no time.
	b.insert(b.nodes(), bson.M{"_id": "i-3"})
	n, err = c.Node(t.Context(), "i-3")
	must.OK(t, err)
	if gone, err := c.RemoveNode(t.Context(), n); err != nil || !gone {
		t.Errorf("%t, %v", gone, err)
	}
	// The answer is lost, and the record is read again.
	n, err = c.Node(t.Context(), "i-2")
	must.OK(t, err)
	fault(t, s, mongod.Fault{Mode: mongod.CutReply, Times: 1, Commands: []string{"delete"}})
	if gone, err := c.RemoveNode(t.Context(), n); err != nil || !gone {
		t.Errorf("%t, %v", gone, err)
	}
	if _, err := c.RemoveNode(t.Context(), cluster.Node{}); err == nil {
		t.Error("a record without an id")
	}
}
