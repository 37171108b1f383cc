// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lb"
)

var now = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// member returns an active, healthy member; score < 0 is unknown.
func member(id, role string, score int, change ...func(*cluster.Member)) cluster.Member {
	m := cluster.Member{Health: cluster.Healthy, Node: &cluster.Node{ID: id, IP: address(id).String(), Role: role, State: cluster.StateActive, Port: 5080}}
	m.Node.Serving = &cluster.Serving{Up: true}
	if score >= 0 {
		m.Node.Load = &cluster.Load{Score: &score}
	}
	for _, c := range change {
		c(&m)
	}
	return m
}

// address is a node's own: that of e7 is 10.0.0.7.
func address(id string) netip.Addr {
	var n byte
	_, _ = fmt.Sscanf(id[1:], "%d", &n)
	return netip.AddrFrom4([4]byte{10, 0, 0, n})
}

func state(s cluster.State) func(*cluster.Member) {
	return func(m *cluster.Member) { m.Node.State = s }
}

func health(h cluster.Health) func(*cluster.Member) { return func(m *cluster.Member) { m.Health = h } }

func TestMembers(t *testing.T) {
	down := func(m *cluster.Member) { m.Node.Serving = &cluster.Serving{} }
	unknown := func(m *cluster.Member) { m.Node.Serving = nil }
	for name, tt := range map[string]struct {
		members []cluster.Member
		filter  lb.Filter
		want    map[string]int // weights
	}{
		"weights from the load, with a floor": {
			[]cluster.Member{member("e1", "edge", 0), member("e2", "edge", 60), member("e3", "edge", 99)},
			lb.Filter{},
			map[string]int{"e1": 100, "e2": 40, "e3": 10},
		},
		"an unknown load is the median of the role": {
			[]cluster.Member{member("e1", "edge", 20), member("e2", "edge", 40), member("e3", "edge", 80), member("e4", "edge", -1), member("o5", "origin", -1)},
			lb.Filter{},
			map[string]int{"e1": 80, "e2": 60, "e3": 20, "e4": 60, "o5": 50},
		},
		"a score out of range is unknown": {
			[]cluster.Member{member("e1", "edge", 20), member("e2", "edge", 20000), member("e3", "edge", 0, func(m *cluster.Member) { m.Node.Load.Score = new(-200) })},
			lb.Filter{},
			map[string]int{"e1": 80, "e2": 80, "e3": 80},
		},
		"states": {
			[]cluster.Member{
				member("e1", "edge", 0, state(cluster.StateJoining)), member("e2", "edge", 0, state(cluster.StateDraining)),
				member("e3", "edge", 0, state(cluster.StateLeft), health(cluster.Left)), member("e4", "edge", 0, state(cluster.StateFailed)), member("e5", "edge", 0),
			}, lb.Filter{}, map[string]int{"e5": 100},
		},
		"healths: what is unknown stays": {
			[]cluster.Member{
				member("e1", "edge", 0, health(cluster.Gone)), member("e2", "edge", 0, health(cluster.NotServing)), member("e3", "edge", 0, health(cluster.AMSStale)),
				member("e4", "edge", 0, health(cluster.AgentStale)), member("e5", "edge", 0, health(cluster.Unknown)),
				{Health: cluster.NoAgent, AMS: []cluster.AMSNode{{IP: "10.0.0.9"}}},
			}, lb.Filter{}, map[string]int{"e3": 100, "e4": 100, "e5": 100},
		},
		"serving": {
			[]cluster.Member{member("e1", "edge", 0, down), member("e2", "edge", 0, unknown)}, lb.Filter{}, map[string]int{"e2": 100},
		},
		"all of a role, if none serves": {
			[]cluster.Member{
				member("e1", "edge", 0, down), member("e2", "edge", 0, health(cluster.NotServing)), member("e3", "edge", 0, down, state(cluster.StateDraining)),
				member("e4", "edge", 0, down, health(cluster.Gone)), member("o5", "origin", 0),
			}, lb.Filter{}, map[string]int{"e1": 100, "e2": 100, "o5": 100},
		},
		"filters, in any case; no role is in no list": {
			[]cluster.Member{
				member("e1", "Edge", 0, func(m *cluster.Member) { m.Node.Group = "a" }), member("e2", "edge", 0), member("o3", "origin", 0), member("x4", "", 0),
			}, lb.Filter{Roles: []string{"EDGE"}, Groups: []string{"A"}}, map[string]int{"e1": 100},
		},
		"addresses that no balancer can use": {
			[]cluster.Member{
				member("e1", "edge", 0, func(m *cluster.Member) { m.Node.IP = "edge.example.com" }), member("e2", "edge", 0, func(m *cluster.Member) { m.Node.IP = "0.0.0.0" }),
				member("e3", "edge", 0, func(m *cluster.Member) { m.Node.IP = "::ffff:10.0.0.3" }),
			}, lb.Filter{}, map[string]int{"e3": 100},
		},
		"a machine whose address another one has": {
			[]cluster.Member{
				member("e1", "edge", 0, func(m *cluster.Member) { m.Replaced = true }), member("e2", "edge", 0, func(m *cluster.Member) { m.Node.IP = "10.0.0.1" }),
			}, lb.Filter{}, map[string]int{"e2": 100},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string]int{}
			for _, s := range lb.Members(tt.members, tt.filter, nil, now) {
				got[s.ID] = s.Weight
				if !s.Addr.Is4() || s.Port != 5080 || !s.Since.IsZero() {
					t.Errorf("%+v", s)
				}
			}
			must.NoDiff(t, "servers", got, tt.want)
		})
	}
}

// A node whose health is unknown stays in the list, and does not enter it.
func TestUnknown(t *testing.T) {
	unknown := func(m *cluster.Member) { m.Health = cluster.Unknown }
	members := []cluster.Member{member("e1", "edge", 0, unknown), member("e2", "edge", 0, unknown)}
	first := lb.Members(members, lb.Filter{}, nil, now)
	must.NoDiff(t, "the first list", ids(first), []string{"e1", "e2"})
	must.NoDiff(t, "after a list with e1", ids(lb.Members(members, lb.Filter{}, first[:1], now)), []string{"e1"})
}

// The weight of a server that is new, or came back, grows for a minute. Neither the first list nor another load starts that.
func TestRamp(t *testing.T) {
	members := []cluster.Member{member("e1", "edge", 0), member("e2", "edge", 50)}
	list := lb.Members(members, lb.Filter{}, nil, now)
	members = append(members, member("e3", "edge", 20))
	for after, want := range map[time.Duration]int{0: 8, 6 * time.Second: 8, 30 * time.Second: 40, time.Minute: 80, time.Hour: 80} {
		is := lb.Members(members, lb.Filter{}, list, now)
		is = lb.Members(members, lb.Filter{}, is, now.Add(after))
		must.NoDiff(t, fmt.Sprintf("weights after %s", after), []int{is[0].Weight, is[1].Weight, is[2].Weight}, []int{100, 50, want})
	}
	// A clock that is set back gives a server that entered meanwhile no less than the others.
	is := lb.Members(members, lb.Filter{}, list, now)
	is = lb.Members(members, lb.Filter{}, is, now.Add(-time.Hour))
	must.Equal(t, "weight after the clock went back", is[2].Weight, 80)
	// The same id at another address is another machine.
	members[0].Node.IP = "10.0.0.200"
	must.Equal(t, "weight of another machine", lb.Members(members, lb.Filter{}, list, now)[2].Weight, 10)
}

func ids(list []lb.Server) (ids []string) {
	for _, s := range list {
		ids = append(ids, s.ID)
	}
	return ids
}

func TestGuard(t *testing.T) {
	six := []string{"e1", "e2", "e3", "e4", "e5", "e6"}
	for name, tt := range map[string]struct {
		was, is, leave, left, dead, want, held []string
	}{
		"none is lost":                       {was: six, is: six, want: six},
		"one is lost, and its port answers":  {was: six, is: six[:5], want: six, held: six[5:]},
		"all are lost":                       {was: six, want: six, held: six},
		"one is dead":                        {was: six, is: six[:5], dead: six[5:], want: six[:5]},
		"all but one are dead":               {was: six, is: six[:1], dead: six[1:], want: six[:1]},
		"all are dead":                       {was: six, dead: six, want: six, held: six},
		"all but one are dead, one answers":  {was: six, dead: six[1:], want: six[:1], held: six[:1]},
		"more than half drains":              {was: six, is: six[:2], leave: six[2:], want: six[:2]},
		"all drain":                          {was: six, leave: six, want: six, held: six},
		"all have left":                      {was: six, left: six},
		"all have left but one, which dies":  {was: six, left: six[1:], dead: six[:1], want: six[:1], held: six[:1]},
		"half drains and half is lost":       {was: six, leave: six[:3], want: six[3:], held: six[3:]},
		"others come while they are held":    {was: six, is: []string{"e7", "e8"}, want: append(slices.Clone(six), "e7", "e8"), held: six},
		"the first list":                     {is: six, want: six},
		"the only server of a role is lost":  {was: six[:1], want: six[:1], held: six[:1]},
		"the only server drains":             {was: six[:1], leave: six[:1], want: six[:1], held: six[:1]},
		"another machine has its address":    {was: []string{"e1", "e2"}, is: []string{"e2", "f1"}, want: []string{"f1", "e2"}},
		"another one, and the last one dies": {was: []string{"e1"}, is: []string{"f1"}, dead: []string{"e1"}, want: []string{"f1"}},
	} {
		t.Run(name, func(t *testing.T) {
			list := func(ids []string) (list []lb.Server) {
				for _, id := range ids {
					list = append(list, lb.Server{ID: id, Role: "edge", Addr: address(id), Weight: 1})
				}
				return list
			}
			got, held := lb.Guard(list(tt.was), list(tt.is), func(s lb.Server) lb.Evidence {
				switch {
				case slices.Contains(tt.left, s.ID):
					return lb.HasLeft
				case slices.Contains(tt.leave, s.ID):
					return lb.Leaves
				case slices.Contains(tt.dead, s.ID):
					return lb.Dead
				}
				return lb.Answers
			})
			must.NoDiff(t, "ids", ids(got), tt.want, cmpopts.EquateEmpty())
			var kept []string
			for _, h := range held {
				kept = append(kept, h.IDs...)
			}
			must.NoDiff(t, "held", kept, tt.held, cmpopts.EquateEmpty())
		})
	}
}

// Whatever the registry shows: no role that had servers becomes empty while one of them has not left, a server is lost only if it
// leaves or nothing serves at its port, and a server that serves is in the list at once.
func TestHistories(t *testing.T) {
	for seed := range must.Sample(uint64(1_000), 10_000) {
		random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // the same histories in each run
		var list []lb.Server
		at := now
		for range 20 {
			at = at.Add(time.Duration(random.IntN(90)) * time.Second)
			var members []cluster.Member
			healths, states := cluster.Healths(), cluster.States()
			good := random.IntN(100)
			for n := range random.IntN(13) {
				m := member(fmt.Sprintf("e%d", n+1), []string{"edge", "origin"}[n%2], random.IntN(130)-10)
				if random.IntN(100) > good {
					m.Health, m.Node.State = healths[random.IntN(len(healths))], states[random.IntN(len(states))]
				}
				members = append(members, m)
			}
			is := lb.Members(members, lb.Filter{}, list, at)
			judged := map[string]lb.Evidence{}
			for _, s := range list {
				judged[s.ID] = lb.Evidence(random.IntN(4))
			}
			next, _ := lb.Guard(list, is, func(s lb.Server) lb.Evidence { return judged[s.ID] })
			for _, role := range lb.Roles(list) {
				before, after := role1(list, role), role1(next, role)
				lost := slices.DeleteFunc(slices.Clone(before), func(s lb.Server) bool { return slices.Contains(ids(after), s.ID) })
				if slices.ContainsFunc(lost, func(s lb.Server) bool { return judged[s.ID] == lb.Answers }) ||
					len(after) == 0 && slices.ContainsFunc(lost, func(s lb.Server) bool { return judged[s.ID] != lb.HasLeft }) {
					t.Fatalf("seed %d: %s: %v after %v, %v", seed, role, ids(after), ids(before), judged)
				}
			}
			for _, s := range is {
				if !slices.Contains(ids(next), s.ID) {
					t.Fatalf("seed %d: %s serves and is not in the list", seed, s.ID)
				}
			}
			for _, s := range next {
				if s.Weight < 1 || s.Weight > 100 {
					t.Fatalf("seed %d: %+v", seed, s)
				}
			}
			list = next
		}
	}
}

func role1(list []lb.Server, role string) []lb.Server {
	return slices.DeleteFunc(slices.Clone(list), func(s lb.Server) bool { return s.Role != role })
}
