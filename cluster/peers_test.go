// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"slices"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

// After a failover all records are old: a peer is not gone until it was silent for AMS's own limit.
func TestPeersAfterFailover(t *testing.T) {
	var p Peers
	s := newStage(t)
	zero := time.Duration(0)
	want := func(want ...string) {
		t.Helper()
		must.NoDiff(t, "at "+s.now.Format("04:05"), p.serving(s.seen(), []string{"i-a", "i-b"}), want)
	}
	for _, id := range []string{"i-a", "i-b"} {
		s.heartbeat(id, "10.0.0."+id, func(n *Node) { n.State, n.Clock = StateDraining, (*seconds.Duration)(&zero) })
		s.write("d"+id, "10.0.0."+id, 0)
	}
	s.pass(12200 * time.Millisecond)
	want("i-a", "i-b")
	for range 4 { // within AMS's own limit
		s.pass(5 * time.Second)
		s.heartbeat("i-a", "10.0.0.i-a")
		want("i-a", "i-b")
	}
	s.pass(5 * time.Second)
	s.heartbeat("i-a", "10.0.0.i-a")
	want("i-a")
	// Another failover: i-b is back, and i-a is old.
	s.pass(time.Hour)
	s.heartbeat("i-b", "10.0.0.i-b")
	want("i-a", "i-b")
}

// So it is with a machine that joined after the looks of an earlier completion.
func TestPeersThatJoinedSince(t *testing.T) {
	var p Peers
	s := newStage(t)
	zero := time.Duration(0)
	beats := func(id string) {
		s.heartbeat(id, "10.0.0."+id, func(n *Node) { n.State, n.Clock = StateDraining, (*seconds.Duration)(&zero) })
	}
	beats("i-a")
	p.serving(s.seen(), nil)
	s.pass(time.Hour)
	beats("i-b")
	s.pass(24 * time.Second) // MongoDB elects
	beats("i-a")
	must.NoDiff(t, "serving", p.serving(s.seen(), []string{"i-a", "i-b"}), []string{"i-a", "i-b"})
}

// A machine whose record cannot be read may serve.
func TestPeersWithABadRecord(t *testing.T) {
	var p Peers
	l := newStage(t).seen()
	l.Bad = []BadRecordError{{ID: "i-b"}, {ID: "i-c", name: "edge_3"}}
	must.NoDiff(t, "serving", p.serving(l, []string{"i-a", "i-b", "edge_2", "EDGE_3", ""}), []string{"EDGE_3", "i-b"})
}

func TestServing(t *testing.T) {
	node := func(id, name string, st State, age time.Duration) Node {
		return Node{ID: id, IP: "10.0.0." + id, Name: name, State: st, Interval: seconds.Duration(5 * time.Second), UpdatedAt: time.Unix(1e9, 0).Add(-age)}
	}
	silent := node("never", "no-heartbeat", StateActive, 0)
	silent.Interval = 0
	nodes := []Node{
		node("id-1", "edge_1", StateDraining, 0), node("id-2", "edge_2", StateLeft, time.Hour), node("id-3", "edge_3", StateActive, time.Hour),
		node("id-5", "edge_5", StateFailed, 0),
		// Two records with one name: a reimaged machine, and the one before.
		node("id-6", "edge_6", StateLeft, time.Hour), node("id-7", "edge_6", StateActive, 0),
		node("id-8", "", StateActive, 0), silent,
	}
	for _, tc := range []struct {
		name     string
		machines []string
		want     []string
	}{
		{"by name", []string{"edge_1", "edge_2", "edge_3"}, []string{"edge_1"}},
		{"by name in another case", []string{"EDGE_1"}, []string{"EDGE_1"}},
		{"by id", []string{"id-7", "id-2"}, []string{"id-7"}},
		{"failed is not serving", []string{"edge_5"}, nil},
		{"one of two records serves", []string{"edge_6"}, []string{"edge_6"}},
		{"unknown machines", []string{"edge_99", ""}, nil},
		{"no agent there", []string{"no-heartbeat", "ams-only"}, nil},
		{"in order", []string{"id-8", "edge_6", "edge_1"}, []string{"edge_1", "edge_6", "id-8"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p Peers
			var got []string
			for i := range 6 {
				at := time.Unix(1e9, 0).Add(time.Duration(i) * 5 * time.Second)
				l := Look{ServerTime: at, At: at, Nodes: slices.Clone(nodes)}
				for j := range l.Nodes {
					if n := &l.Nodes[j]; n.UpdatedAt.Equal(time.Unix(1e9, 0)) {
						n.UpdatedAt = at
					}
				}
				got = p.serving(l, tc.machines)
			}
			must.NoDiff(t, "peers", got, tc.want)
		})
	}
}
