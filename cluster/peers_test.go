// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// After a failover all rows are old, and nobody had a chance to write: a peer that seems gone is not for as long as a server may be silent.
func TestPeersAfterFailover(t *testing.T) {
	var p Peers
	s := newStage(t)
	zero := Millis(0)
	want := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, serving(p.judge(s.seen()), []string{"i-a", "i-b"})); diff != "" {
			t.Errorf("at %s -want +got\n%s", s.now.Format("04:05"), diff)
		}
	}
	for _, id := range []string{"i-a", "i-b"} {
		s.beat(id, "10.0.0."+id, func(n *Node) { n.State, n.ClockMS = StateDraining, &zero })
		s.write("d"+id, "10.0.0."+id, 0)
	}
	s.pass(12200 * time.Millisecond)
	want("i-a", "i-b")
	s.beat("i-a", "10.0.0.i-a")
	s.pass(amsFresh - time.Millisecond)
	want("i-a", "i-b")
	s.pass(time.Millisecond)
	want("i-a") // i-b had as long as a server may be silent
	// Another failover. The look before is no witness of a silence that began after it.
	s.pass(time.Hour)
	s.beat("i-b", "10.0.0.i-b")
	s.pass(12200 * time.Millisecond)
	want("i-b")
	s.pass(amsFresh)
	want()
}

func TestServing(t *testing.T) {
	member := func(id, name string, s State, v Verdict) Member {
		return Member{Node: &Node{ID: id, Name: name, State: s, IntervalMS: 5000}, Verdict: v}
	}
	quiet := Member{Node: &Node{ID: "never-beat", State: StateActive}, Verdict: VerdictAMSStale}
	members := []Member{
		member("id-1", "edge_1", StateDraining, VerdictAlive),
		member("id-2", "edge_2", StateLeft, VerdictGone),
		member("id-3", "edge_3", StateActive, VerdictGone),
		member("id-4", "edge_4", StateActive, VerdictAMSStale),
		member("id-5", "edge_5", StateFailed, VerdictAgentStale),
		// Two rows of one name: a machine that was imaged anew, and its former life.
		member("id-6", "edge_6", StateLeft, VerdictGone),
		member("id-7", "edge_6", StateActive, VerdictAgentStale),
		member("id-8", "", StateActive, VerdictAlive),
		quiet,
		{AMS: []AMSNode{{ID: "ams-only"}}, Verdict: VerdictAgentStale},
	}
	for _, tc := range []struct {
		name     string
		machines []string
		want     []string
	}{
		{"by name", []string{"edge_1", "edge_2", "edge_3"}, []string{"edge_1"}},
		{"by name in another case", []string{"EDGE_1"}, []string{"EDGE_1"}},
		{"by id", []string{"id-4", "id-2"}, []string{"id-4"}},
		{"failed is not serving", []string{"edge_5"}, nil},
		{"one of two rows serves", []string{"edge_6"}, []string{"edge_6"}},
		{"nobody we know", []string{"edge_99", ""}, nil},
		{"no agent there", []string{"never-beat", "ams-only"}, nil},
		{"in order", []string{"id-8", "edge_4", "edge_1"}, []string{"edge_1", "edge_4", "id-8"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, serving(members, tc.machines)); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}
