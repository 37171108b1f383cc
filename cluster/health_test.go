// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

// stage is a fake cluster: MongoDB's clock, the observer's clock, and both collections.
type stage struct {
	t       *testing.T
	now     time.Time // the observer's clock
	skew    time.Duration
	records map[string]Node
	docs    map[string]AMSNode
	o       Observer
}

func newStage(t *testing.T) *stage {
	t.Helper()
	return &stage{
		t: t, now: time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC),
		records: map[string]Node{}, docs: map[string]AMSNode{},
	}
}

func (s *stage) server() time.Time    { return s.now.Add(s.skew) }
func (s *stage) pass(d time.Duration) { s.now = s.now.Add(d) }

// heartbeat writes a record, as an agent does.
func (s *stage) heartbeat(id, ip string, change ...func(*Node)) {
	n, ok := s.records[id]
	if !ok {
		n = Node{ID: id, IP: ip, State: StateActive, Interval: seconds.Duration(5 * time.Second)}
	}
	n.Seq++
	n.UpdatedAt = s.server()
	for _, f := range change {
		f(&n)
	}
	s.records[id] = n
}

// write writes an AMS document by a clock that is wrong by skew.
func (s *stage) write(id, ip string, skew time.Duration) {
	s.docs[id] = amsDoc(s.t, id, ip, s.server().Add(skew))
}

func amsDoc(t *testing.T, id any, ip string, at time.Time) AMSNode {
	t.Helper()
	return readAMSNode(raw(t, bson.D{{Key: "_id", Value: id}, {Key: "ip", Value: ip}, {Key: "lastUpdateTime", Value: at.UnixMilli()}}))
}

func (s *stage) look() []Member { return s.o.Observe(s.seen()) }

func (s *stage) seen() Look {
	l := Look{ServerTime: s.server(), At: s.now}
	for _, id := range slices.Sorted(maps.Keys(s.records)) {
		l.Nodes = append(l.Nodes, s.records[id])
	}
	for _, id := range slices.Sorted(maps.Keys(s.docs)) {
		l.AMS = append(l.AMS, s.docs[id])
	}
	return l
}

// members returns id, address and health of each member but the bystander.
func (s *stage) members() string {
	s.t.Helper()
	var out []string
	for _, m := range s.look() {
		if m.ID() != bystander {
			out = append(out, fmt.Sprintf("%s %s %s", m.ID(), m.Address(), m.Health))
		}
	}
	return strings.Join(out, "; ")
}

// bystander is a healthy node: without a fresh heartbeat of any node, no node is gone.
const bystander = "bystander"

// watch looks every second.
func (s *stage) watch(d time.Duration) {
	for range d / time.Second {
		s.pass(time.Second)
		s.bystander()
		s.look()
	}
}

func (s *stage) bystander() { s.heartbeat(bystander, "10.0.0.250") }

func (s *stage) want(want string) {
	s.t.Helper()
	s.bystander()
	must.NoDiff(s.t, "after "+s.now.Format("04:05"), s.members(), want)
}

func TestHealths(t *testing.T) {
	for _, tt := range []struct {
		name       string
		interval   time.Duration
		agent, ams time.Duration // since the last signal; negative: never
		want       Health
	}{
		{"both", 5 * time.Second, time.Second, time.Second, Healthy},
		{"at the limits", 5 * time.Second, 11 * time.Second, 20 * time.Second, Healthy},
		{"ams silent", 5 * time.Second, time.Second, 20*time.Second + time.Millisecond, AMSStale},
		{"ams never there", 5 * time.Second, time.Second, -1, AMSStale},
		{"agent silent", 5 * time.Second, 11*time.Second + time.Millisecond, time.Second, AgentStale},
		{"agent silent, ams late once", 5 * time.Second, 12 * time.Second, 11 * time.Second, AgentStale},
		{"agent silent, ams late twice", 5 * time.Second, 12 * time.Second, 11*time.Second + time.Millisecond, Gone},
		{"agent silent, no ams", 5 * time.Second, 12 * time.Second, -1, Gone},
		{"a second", time.Second, 3*time.Second + time.Millisecond, time.Second, AgentStale},
		{"a second, in time", time.Second, 3 * time.Second, time.Second, Healthy},
		{"no interval", 0, 11 * time.Second, time.Second, Healthy},
		{"no interval, silent", 0, 12 * time.Second, time.Second, AgentStale},
		{"an interval that is too long", 100 * time.Hour, time.Hour, -1, Gone},
		{"a negative interval", -time.Hour, 12 * time.Second, -1, Gone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			end := s.now
			if tt.agent >= 0 {
				s.now = end.Add(-tt.agent)
				s.heartbeat("a", "10.0.0.1", func(n *Node) { n.Interval = seconds.Duration(tt.interval) })
			}
			if tt.ams >= 0 {
				s.now = end.Add(-tt.ams)
				s.write("d", "10.0.0.1", 0)
			}
			s.now = end
			s.bystander()
			s.o = Observer{}
			got := slices.DeleteFunc(s.look(), func(m Member) bool { return m.ID() == bystander })
			if len(got) != 1 || got[0].Health != tt.want {
				t.Fatalf("%+v, want %s", got, tt.want)
			}
			m := got[0]
			if m.Agent.Fresh && m.Server.Fresh != (m.Health == Healthy) || m.Health == Gone && (m.Agent.Fresh || m.Server.Fresh) {
				t.Errorf("the signals contradict the health: %+v", m)
			}
		})
	}
}

// Health does not depend on the nodes' clocks.
func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{10 * time.Minute, -10 * time.Minute, 25 * time.Second, -25 * time.Second, 0} {
		for _, reported := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s reported=%t", skew, reported), func(t *testing.T) {
				s := newStage(t)
				send := func() {
					s.heartbeat("a", "10.0.0.1", func(n *Node) {
						if reported {
							n.Clock = (*seconds.Duration)(&skew)
						}
					})
					s.write("d", "10.0.0.1", skew)
				}
				send()
				s.pass(2 * time.Second)
				m := s.look()[0]
				if m.Server.Estimated == reported {
					t.Errorf("first look: %+v", m.Server)
				}
				if reported && (m.Health != Healthy || m.Server.Age != seconds.Duration(2*time.Second)) {
					t.Errorf("first look, with the clock reported: %+v", m)
				}
				for range 5 {
					s.pass(3 * time.Second)
					send()
					s.pass(2 * time.Second)
					s.want("a 10.0.0.1 healthy")
					if m := s.look()[0]; m.Server.Estimated || m.Server.Age > seconds.Duration(3*time.Second) {
						t.Errorf("%+v", m.Server)
					}
				}
				// Both are silent for 11 s, and the end is detected.
				s.watch(8 * time.Second)
				s.want("a 10.0.0.1 healthy")
				s.pass(1001 * time.Millisecond)
				want := "gone"
				if !reported {
					// The last document was first seen two seconds after it was written.
					want = "agent-stale"
				}
				s.want("a 10.0.0.1 " + want)
				s.pass(2 * time.Second)
				s.want("a 10.0.0.1 gone")
			})
		}
	}
}

// MongoDB's clock jumps between looks.
func TestServerClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		s := newStage(t)
		zero := time.Duration(0)
		known := func(n *Node) { n.Clock = (*seconds.Duration)(&zero) }
		s.heartbeat("live", "10.0.0.1", known)
		s.write("d1", "10.0.0.1", 0)
		s.heartbeat("dies", "10.0.0.2", known)
		s.write("d2", "10.0.0.2", 0)
		s.pass(2 * time.Second)
		s.want("live 10.0.0.1 healthy; dies 10.0.0.2 healthy")
		s.skew = jump
		s.pass(2 * time.Second)
		s.want("live 10.0.0.1 healthy; dies 10.0.0.2 healthy")
		for _, want := range []string{"healthy", "gone"} {
			s.pass(5 * time.Second)
			s.heartbeat("live", "10.0.0.1")
			// The clock of AMS's machine does not jump, and its agent has not reported the difference yet.
			s.docs["d1"] = amsDoc(t, "d1", "10.0.0.1", s.now)
			s.want("live 10.0.0.1 healthy; dies 10.0.0.2 " + want)
		}
	}
}

// An outage of MongoDB makes no node gone, whether looks fail meanwhile, see no change, or fall outside it. A dead machine is
// gone when MongoDB is back.
func TestTimeWithoutMongoDB(t *testing.T) {
	t.Parallel()
	const nodes, begin = 16, 121 * time.Second
	start := time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)
	for _, every := range spans(1, 5, 15, 30, 60) {
		for _, away := range spans(3, 5, 8, 12, 20, 31, 46, 59, 300) {
			for _, reads := range []bool{false, true} {
				for phase := range 4 {
					name := fmt.Sprintf("looks each %s, %s away, reads %t, phase %d", every, away, reads, phase)
					if reads && away < 12*time.Second {
						continue // a dead node also misses two consecutive heartbeats
					}
					// back is when a node writes again. A heartbeat waits 5 s for MongoDB; then the driver needs up to 7 s.
					back := func(i int) time.Duration {
						if away <= 5*time.Second {
							return begin + away + time.Duration(i%4)*200*time.Millisecond
						}
						return begin + away + time.Duration(i%8)*time.Second
					}
					written := func(i int, at time.Duration) time.Duration {
						own := time.Duration(i) * 300 * time.Millisecond
						switch {
						case i == 0 && at > 30*time.Second:
							return 30 * time.Second // dead since then
						case at >= back(i):
							return at - (at-back(i))%(5*time.Second)
						}
						last := min(at, begin)
						return last - (last-own)%(5*time.Second)
					}
					var o Observer
					gone := false
					for at := 20*time.Second + time.Duration(phase)*every/4; at < begin+away+5*every+time.Minute; at += every {
						if at >= begin && at < begin+away && !reads {
							o.Failed()
							continue
						}
						l := Look{ServerTime: start.Add(at), At: start.Add(at)}
						for i := range nodes {
							w := written(i, at)
							l.Nodes = append(l.Nodes, Node{
								ID: fmt.Sprint(i), IP: fmt.Sprintf("10.0.1.%d", i), State: StateActive, Interval: seconds.Duration(5 * time.Second), UpdatedAt: start.Add(w),
								Heartbeat: Heartbeat{Seq: 1 + int64(w/time.Millisecond)},
							})
						}
						for _, m := range o.Observe(l) {
							switch {
							case m.ID() == "0":
								gone = m.Health == Gone
							case m.Health == Gone:
								t.Fatalf("%s: node %s is gone after %s: %+v", name, m.ID(), at, m.Agent)
							}
						}
					}
					if !gone {
						t.Errorf("%s: the dead node is not gone", name)
					}
				}
			}
		}
	}
}

// A machine that was gone before an outage of MongoDB stays gone after it.
func TestGoneBeforeAnOutage(t *testing.T) {
	s := newStage(t)
	s.heartbeat("dead", "10.0.0.1")
	s.want("dead 10.0.0.1 ams-stale")
	s.watch(12 * time.Second)
	s.want("dead 10.0.0.1 gone")
	for range 30 {
		s.pass(time.Second)
		s.o.Failed()
	}
	s.want("dead 10.0.0.1 gone")
}

// A signal that has changed since the previous look is no older than that look, although MongoDB's clock jumped.
func TestAgeOfAChange(t *testing.T) {
	s := newStage(t)
	s.heartbeat("a", "10.0.0.1")
	s.look()
	s.pass(2 * time.Second)
	s.heartbeat("a", "10.0.0.1")
	s.skew = 10 * time.Minute
	must.Equal(t, "the age", s.look()[0].Agent.Age, seconds.Duration(2*time.Second))
}

// An observer whose first looks fail does not know since when MongoDB was away. A node with old signals is unknown until it sends
// one, or is gone, also if other nodes send theirs.
func TestFirstLookThatSucceeds(t *testing.T) {
	s := newStage(t)
	s.heartbeat("dead", "10.0.0.1")
	s.write("dead", "10.0.0.1", 0)
	s.pass(time.Hour)
	s.heartbeat("late", "10.0.0.2")
	s.write("late", "10.0.0.2", 0)
	s.pass(25 * time.Second)
	s.o.Failed()
	s.heartbeat("quick", "10.0.0.3")
	s.write("quick", "10.0.0.3", 0)
	s.want("dead 10.0.0.1 unknown; late 10.0.0.2 unknown; quick 10.0.0.3 healthy")
	s.pass(time.Second)
	s.write("late", "10.0.0.2", 0)
	s.want("dead 10.0.0.1 unknown; late 10.0.0.2 healthy; quick 10.0.0.3 healthy")
	s.heartbeat("late", "10.0.0.2")
	s.want("dead 10.0.0.1 unknown; late 10.0.0.2 healthy; quick 10.0.0.3 healthy")
	for range 6 {
		s.pass(4 * time.Second)
		for id, ip := range map[string]string{"late": "10.0.0.2", "quick": "10.0.0.3"} {
			s.heartbeat(id, ip)
			s.write(id, ip, 0)
		}
		s.look()
	}
	s.want("dead 10.0.0.1 gone; late 10.0.0.2 healthy; quick 10.0.0.3 healthy")
}

// A heartbeat that an election rolled back is no liveness signal. A restarted daemon counts from 1 again.
func TestLowerSeq(t *testing.T) {
	for name, tt := range map[string]struct {
		updated time.Duration // updated_at after that of the previous look
		want    string
	}{
		"rolled back": {-5 * time.Second, "a 10.0.0.1 gone"},
		"restarted":   {8 * time.Second, "a 10.0.0.1 ams-stale"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.heartbeat("a", "10.0.0.1", func(n *Node) { n.Seq = 101 })
			s.want("a 10.0.0.1 ams-stale")
			at := s.records["a"].UpdatedAt
			for range 2 {
				s.pass(4 * time.Second)
				s.want("a 10.0.0.1 ams-stale")
			}
			n := s.records["a"]
			n.Seq, n.UpdatedAt = 100, at.Add(tt.updated)
			s.records["a"] = n
			s.pass(4 * time.Second)
			s.want(tt.want)
		})
	}
}

func TestMembersByAddress(t *testing.T) {
	t.Run("address reused by a new machine", func(t *testing.T) {
		s := newStage(t)
		s.heartbeat("old", "10.0.0.1")
		s.write("old10.0.0.1", "10.0.0.1", 0)
		s.pass(time.Hour)
		s.heartbeat("new", "10.0.0.1")
		s.write("new10.0.0.1", "10.0.0.1", 0)
		s.want("new 10.0.0.1 healthy; old 10.0.0.1 gone")
		if m := s.look()[0]; len(m.AMS) != 2 || m.AMS[0].ID != "new10.0.0.1" || m.Server.Age > seconds.Duration(time.Millisecond) {
			t.Errorf("the newest of several documents counts: %+v", m)
		}
		if m := s.look(); m[1].Server.Known || m[0].Replaced || !m[1].Replaced {
			t.Errorf("the old record is the current one: %+v", m)
		}
	})
	t.Run("a record that left has no documents", func(t *testing.T) {
		s := newStage(t)
		s.heartbeat("old", "10.0.0.1", func(n *Node) { n.State = StateLeft })
		s.pass(time.Minute)
		s.write("x10.0.0.1", "10.0.0.1", 0) // an AMS without an agent has the address now
		s.want("old 10.0.0.1 left; x10.0.0.1 10.0.0.1 no-agent")
		s.heartbeat("new", "10.0.0.1")
		s.want("new 10.0.0.1 healthy; old 10.0.0.1 left")
		if m := s.look(); m[0].Replaced || m[1].Replaced {
			t.Errorf("replaced: %+v", m)
		}
		// Even if its record is newer than the other's.
		s.pass(time.Second)
		s.heartbeat("old", "10.0.0.1")
		s.want("new 10.0.0.1 healthy; old 10.0.0.1 left")
	})
	t.Run("a root volume is replaced", func(t *testing.T) {
		s := newStage(t)
		s.heartbeat("root", "10.0.0.1", func(n *Node) { n.State, n.LeftBy, n.StateSince = StateLeft, LeftByReimage, s.server() })
		s.heartbeat("gone", "10.0.0.2", func(n *Node) { n.State, n.LeftBy, n.StateSince = StateLeft, LeftByDrain, s.server() })
		s.pass(29 * time.Minute)
		if m := s.look(); !m[0].Reimaging || m[0].Silent() || m[1].Reimaging || !m[1].Silent() || m[0].Health != Left {
			t.Errorf("after 29 minutes: %+v", m)
		}
		s.pass(2 * time.Minute)
		if m := s.look(); m[0].Reimaging || !m[0].Silent() {
			t.Errorf("after its limit: %+v", m[0])
		}
	})
	t.Run("AMS without records", func(t *testing.T) {
		s := newStage(t)
		s.write("a", "10.0.0.9", 0)
		s.write("b", "10.0.0.10", 0)
		s.write("c", "10.0.0.10", 0)
		s.write("e", "", 0)
		s.write("f", "", 0)
		s.want("e  no-agent; f  no-agent; a 10.0.0.9 no-agent; b 10.0.0.10 no-agent")
		s.watch(20 * time.Second)
		s.want("e  no-agent; f  no-agent; a 10.0.0.9 no-agent; b 10.0.0.10 no-agent")
		s.pass(time.Millisecond)
		s.want("e  gone; f  gone; a 10.0.0.9 gone; b 10.0.0.10 gone")
		m := s.look()[2]
		if m.Node != nil || m.State() != "" || m.Agent.Known || len(m.AMS) != 1 {
			t.Errorf("%+v", m)
		}
	})
	t.Run("spellings of IPv6", func(t *testing.T) {
		s := newStage(t)
		s.heartbeat("a", "fd00::1")
		s.write("d", "fd00:0:0:0:0:0:0:1", 0)
		s.heartbeat("b", "FD00::2")
		s.write("e", "fd00:0:0:0:0:0:0:2%eth0", 0)
		s.heartbeat("c", "10.0.0.3")
		s.write("f", "::ffff:10.0.0.3", 0)
		s.want("c 10.0.0.3 healthy; a fd00::1 healthy; b FD00::2 healthy")
	})
	t.Run("records without an address", func(t *testing.T) {
		s := newStage(t)
		s.heartbeat("a", "")
		s.write("d", "", 0)
		s.want("a  ams-stale; d  no-agent")
	})
	t.Run("nothing", func(t *testing.T) {
		if got := newStage(t).look(); got == nil || len(got) != 0 {
			t.Errorf("%#v", got)
		}
	})
	t.Run("a record that no agent wrote", func(t *testing.T) {
		s := newStage(t)
		s.records["a"] = Node{ID: "a"}
		s.bystander()
		if m := s.look()[0]; m.Agent.Known || m.Health != Gone {
			t.Errorf("%+v", m)
		}
	})
	t.Run("a document without a time", func(t *testing.T) {
		s := newStage(t)
		for _, stamp := range []any{"soon", "later"} {
			s.docs["d"] = readAMSNode(raw(t, bson.D{{Key: "_id", Value: "d"}, {Key: "ip", Value: "10.0.0.1"}, {Key: "lastUpdateTime", Value: stamp}}))
			s.heartbeat("a", "10.0.0.1")
			if m := s.look()[0]; m.Server.Known || m.Health != AMSStale {
				t.Errorf("%s: %+v", stamp, m)
			}
		}
	})
}

// Only an active node with two fresh signals is not-serving. An older agent reports no Serving, which counts as serving.
func TestNotServing(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tt := range map[string]struct {
		state      State
		serving    *Serving
		agent, ams time.Duration // since the last signal of each
		want       Health
	}{
		"serves":                 {StateActive, &Serving{Up: true}, time.Second, time.Second, Healthy},
		"does not":               {StateActive, &Serving{Why: "LiveApp fails"}, time.Second, time.Second, NotServing},
		"not known":              {StateActive, nil, time.Second, time.Second, Healthy},
		"joining":                {StateJoining, &Serving{}, time.Second, time.Second, Healthy},
		"draining":               {StateDraining, &Serving{}, time.Second, time.Second, Healthy},
		"left":                   {StateLeft, &Serving{}, time.Second, time.Second, Left},
		"AMS silent weighs more": {StateActive, &Serving{}, time.Second, time.Minute, AMSStale},
		"the agent is silent":    {StateActive, &Serving{}, 30 * time.Second, time.Second, AgentStale},
	} {
		zero := time.Duration(0)
		var o Observer
		members := o.Observe(Look{
			At: now,
			Nodes: []Node{{
				ID: "a", IP: "10.0.0.1", State: tt.state, Interval: seconds.Duration(5 * time.Second),
				UpdatedAt: now.Add(-tt.agent), Heartbeat: Heartbeat{Seq: 1, Serving: tt.serving, Clock: (*seconds.Duration)(&zero)},
			}},
			AMS: []AMSNode{{ID: "x", IP: "10.0.0.1", LastUpdate: now.Add(-tt.ams)}}, ServerTime: now,
		})
		if len(members) == 0 || members[0].Health != tt.want && !(tt.state == StateLeft && members[len(members)-1].Health == tt.want) {
			t.Errorf("%s: %+v", name, members)
		}
	}
}

func spans(numbers ...int) []time.Duration {
	var all []time.Duration
	for _, n := range numbers {
		all = append(all, time.Duration(n)*time.Second)
	}
	return all
}
