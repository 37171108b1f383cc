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

	"github.com/google/go-cmp/cmp"
	"go.mongodb.org/mongo-driver/v2/bson"
)

// stage is a cluster that a test plays: the server's clock, the observer's, and
// what stands in both collections.
type stage struct {
	t    *testing.T
	now  time.Time // the observer's clock
	skew time.Duration
	rows map[string]Node
	docs map[string]AMSNode
	o    Observer
}

func newStage(t *testing.T) *stage {
	t.Helper()
	return &stage{
		t: t, now: time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC),
		rows: map[string]Node{}, docs: map[string]AMSNode{},
	}
}

func (s *stage) server() time.Time    { return s.now.Add(s.skew) }
func (s *stage) pass(d time.Duration) { s.now = s.now.Add(d) }

// beat writes a row as an agent does.
func (s *stage) beat(id, ip string, change ...func(*Node)) {
	n, ok := s.rows[id]
	if !ok {
		n = Node{ID: id, IP: ip, State: StateActive, IntervalMS: 5000}
	}
	n.Seq++
	n.UpdatedAt = s.server()
	for _, f := range change {
		f(&n)
	}
	s.rows[id] = n
}

// write writes AMS's document by a clock that is wrong by skew.
func (s *stage) write(id, ip string, skew time.Duration) {
	s.docs[id] = amsDoc(s.t, id, ip, s.server().Add(skew))
}

func amsDoc(t *testing.T, id any, ip string, at time.Time) AMSNode {
	t.Helper()
	return readAMSNode(raw(t, bson.D{{Key: "_id", Value: id}, {Key: "ip", Value: ip}, {Key: "lastUpdateTime", Value: at.UnixMilli()}}))
}

func (s *stage) look() []Member { return s.o.Judge(s.seen(), s.now) }

func (s *stage) seen() Look {
	l := Look{ServerTime: s.server(), At: s.now}
	for _, id := range slices.Sorted(maps.Keys(s.rows)) {
		l.Nodes = append(l.Nodes, s.rows[id])
	}
	for _, id := range slices.Sorted(maps.Keys(s.docs)) {
		l.AMS = append(l.AMS, s.docs[id])
	}
	return l
}

// says renders a look: id, address and verdict of each member.
func (s *stage) says() string {
	s.t.Helper()
	var out []string
	for _, m := range s.look() {
		out = append(out, fmt.Sprintf("%s %s %s", m.ID(), m.Address(), m.Verdict))
	}
	return strings.Join(out, "; ")
}

func (s *stage) want(want string) {
	s.t.Helper()
	if got := s.says(); got != want {
		s.t.Errorf("after %s: %s\nwant %s", s.now.Format("04:05"), got, want)
	}
}

func TestVerdicts(t *testing.T) {
	for _, tt := range []struct {
		name       string
		interval   time.Duration
		agent, ams time.Duration // since the last word; negative: never
		want       Verdict
	}{
		{"both", 5 * time.Second, time.Second, time.Second, VerdictAlive},
		{"at the limits", 5 * time.Second, 11 * time.Second, 20 * time.Second, VerdictAlive},
		{"ams silent", 5 * time.Second, time.Second, 20*time.Second + time.Millisecond, VerdictAMSStale},
		{"ams never there", 5 * time.Second, time.Second, -1, VerdictAMSStale},
		{"agent silent", 5 * time.Second, 11*time.Second + time.Millisecond, time.Second, VerdictAgentStale},
		{"agent silent, ams late once", 5 * time.Second, 12 * time.Second, 11 * time.Second, VerdictAgentStale},
		{"agent silent, ams late twice", 5 * time.Second, 12 * time.Second, 11*time.Second + time.Millisecond, VerdictGone},
		{"agent silent, no ams", 5 * time.Second, 12 * time.Second, -1, VerdictGone},
		{"a second", time.Second, 3*time.Second + time.Millisecond, time.Second, VerdictAgentStale},
		{"a second, in time", time.Second, 3 * time.Second, time.Second, VerdictAlive},
		{"no interval", 0, 11 * time.Second, time.Second, VerdictAlive},
		{"no interval, silent", 0, 12 * time.Second, time.Second, VerdictAgentStale},
		{"an interval that nobody means", 100 * time.Hour, time.Hour, -1, VerdictGone},
		{"a negative interval", -time.Hour, 12 * time.Second, -1, VerdictGone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			end := s.now
			if tt.agent >= 0 {
				s.now = end.Add(-tt.agent)
				s.beat("a", "10.0.0.1", func(n *Node) { n.IntervalMS = MillisOf(tt.interval) })
			}
			if tt.ams >= 0 {
				s.now = end.Add(-tt.ams)
				s.write("d", "10.0.0.1", 0)
			}
			s.now = end
			got := s.look()
			if len(got) != 1 || got[0].Verdict != tt.want {
				t.Fatalf("%+v, want %s", got, tt.want)
			}
			m := got[0]
			if m.Agent.Fresh && m.Server.Fresh != (m.Verdict == VerdictAlive) || m.Verdict == VerdictGone && (m.Agent.Fresh || m.Server.Fresh) {
				t.Errorf("the witnesses contradict the verdict: %+v", m)
			}
		})
	}
}

// Clocks of nodes that are ten minutes off change no verdict.
func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{10 * time.Minute, -10 * time.Minute, 25 * time.Second, -25 * time.Second, 0} {
		for _, told := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s told=%t", skew, told), func(t *testing.T) {
				s := newStage(t)
				beat := func() {
					s.beat("a", "10.0.0.1", func(n *Node) {
						if ms := MillisOf(skew); told {
							n.ClockMS = &ms
						}
					})
					s.write("d", "10.0.0.1", skew)
				}
				beat()
				s.pass(2 * time.Second)
				m := s.look()[0]
				if m.Server.Guess == told {
					t.Errorf("first look: %+v", m.Server)
				}
				if told && (m.Verdict != VerdictAlive || m.Server.Age != 2*time.Second) {
					t.Errorf("first look, with the clock told: %+v", m)
				}
				for range 5 {
					s.pass(3 * time.Second)
					beat()
					s.pass(2 * time.Second)
					s.want("a 10.0.0.1 alive")
					if m := s.look()[0]; m.Server.Guess || m.Server.Age > 3*time.Second {
						t.Errorf("%+v", m.Server)
					}
				}
				// And the end is seen in time, too: both are silent for 11 s.
				s.pass(8 * time.Second)
				s.want("a 10.0.0.1 alive")
				s.pass(1001 * time.Millisecond)
				want := "gone"
				if !told {
					// Its last word was first seen two seconds after it was written.
					want = "agent-stale"
				}
				s.want("a 10.0.0.1 " + want)
				s.pass(2 * time.Second)
				s.want("a 10.0.0.1 gone")
			})
		}
	}
}

// One look a minute must not make a node look older than it is.
func TestRareLooks(t *testing.T) {
	s := newStage(t)
	for range 4 {
		s.beat("a", "10.0.0.1")
		s.write("d", "10.0.0.1", -10*time.Minute)
		s.pass(4 * time.Second)
		if s.o.last.IsZero() {
			s.look()
		} else {
			s.want("a 10.0.0.1 alive")
		}
		s.pass(56 * time.Second)
	}
}

// The server's clock is set while we look.
func TestServerClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		s := newStage(t)
		zero := Millis(0)
		known := func(n *Node) { n.ClockMS = &zero }
		s.beat("live", "10.0.0.1", known)
		s.write("d1", "10.0.0.1", 0)
		s.beat("dies", "10.0.0.2", known)
		s.write("d2", "10.0.0.2", 0)
		s.pass(2 * time.Second)
		s.want("live 10.0.0.1 alive; dies 10.0.0.2 alive")
		s.skew = jump
		s.pass(2 * time.Second)
		s.want("live 10.0.0.1 alive; dies 10.0.0.2 alive")
		for _, want := range []string{"alive", "gone"} {
			s.pass(5 * time.Second)
			s.beat("live", "10.0.0.1")
			// AMS's machine keeps its own clock, and its agent has not told yet.
			s.docs["d1"] = amsDoc(t, "d1", "10.0.0.1", s.now)
			s.want("live 10.0.0.1 alive; dies 10.0.0.2 " + want)
		}
	}
}

// While the database is away nobody can write to it.
func TestSilenceOfTheDatabase(t *testing.T) {
	s := newStage(t)
	s.beat("dead", "10.0.0.2")
	s.pass(time.Minute)
	s.beat("live", "10.0.0.1")
	s.write("d", "10.0.0.1", 0)
	s.want("live 10.0.0.1 alive; dead 10.0.0.2 gone")
	s.pass(5 * time.Second)
	s.o.Lost(s.now)
	s.pass(5 * time.Minute)
	s.o.Lost(s.now)
	// It is back; whoever was heard before has as long again as ever.
	s.want("live 10.0.0.1 alive; dead 10.0.0.2 gone")
	s.pass(5 * time.Second)
	// Away again, before everybody came back.
	s.o.Lost(s.now)
	s.pass(time.Minute)
	s.want("live 10.0.0.1 alive; dead 10.0.0.2 gone")
	s.pass(11 * time.Second)
	s.want("live 10.0.0.1 alive; dead 10.0.0.2 gone")
	s.pass(time.Millisecond)
	s.want("live 10.0.0.1 gone; dead 10.0.0.2 gone")
	s.beat("live", "10.0.0.1")
	s.want("live 10.0.0.1 alive; dead 10.0.0.2 gone") // AMS has its 20 s
	s.pass(9 * time.Second)
	s.want("live 10.0.0.1 ams-stale; dead 10.0.0.2 gone")

	// It was away when we came.
	s = newStage(t)
	s.beat("dead", "10.0.0.2")
	s.pass(time.Hour)
	s.beat("live", "10.0.0.1")
	s.write("d", "10.0.0.1", 0)
	s.pass(5 * time.Second)
	s.o.Lost(s.now)
	s.pass(5 * time.Minute)
	s.want("live 10.0.0.1 alive; dead 10.0.0.2 gone")
	s.pass(12 * time.Second)
	s.want("live 10.0.0.1 gone; dead 10.0.0.2 gone")
}

func TestMembersByAddress(t *testing.T) {
	t.Run("address reused by a new machine", func(t *testing.T) {
		s := newStage(t)
		s.beat("old", "10.0.0.1")
		s.write("old10.0.0.1", "10.0.0.1", 0)
		s.pass(time.Hour)
		s.beat("new", "10.0.0.1")
		s.write("new10.0.0.1", "10.0.0.1", 0)
		s.want("new 10.0.0.1 alive; old 10.0.0.1 gone")
		if m := s.look()[0]; len(m.AMS) != 2 || m.AMS[0].ID != "new10.0.0.1" || m.Server.Age > time.Millisecond {
			t.Errorf("the newest of several documents counts: %+v", m)
		}
		if m := s.look()[1]; m.Server.Known {
			t.Errorf("the old row has a witness: %+v", m)
		}
	})
	t.Run("a tombstone owns nothing", func(t *testing.T) {
		s := newStage(t)
		s.beat("old", "10.0.0.1", func(n *Node) { n.State = StateLeft })
		s.pass(time.Minute)
		s.write("x10.0.0.1", "10.0.0.1", 0) // an AMS without an agent has the address now
		s.want("old 10.0.0.1 left; x10.0.0.1 10.0.0.1 agent-stale")
		s.beat("new", "10.0.0.1")
		s.want("new 10.0.0.1 alive; old 10.0.0.1 left")
		// Its own last word is newer than the other's.
		s.pass(time.Second)
		s.beat("old", "10.0.0.1")
		s.want("new 10.0.0.1 alive; old 10.0.0.1 left")
	})
	t.Run("AMS without rows", func(t *testing.T) {
		s := newStage(t)
		s.write("a", "10.0.0.9", 0)
		s.write("b", "10.0.0.10", 0)
		s.write("c", "10.0.0.10", 0)
		s.write("e", "", 0)
		s.write("f", "", 0)
		s.want("e  agent-stale; f  agent-stale; a 10.0.0.9 agent-stale; b 10.0.0.10 agent-stale")
		s.pass(20 * time.Second)
		s.want("e  agent-stale; f  agent-stale; a 10.0.0.9 agent-stale; b 10.0.0.10 agent-stale")
		s.pass(time.Millisecond)
		s.want("e  gone; f  gone; a 10.0.0.9 gone; b 10.0.0.10 gone")
		m := s.look()[2]
		if m.Refused(); m.Node != nil || m.State() != "" || m.Agent.Known || len(m.AMS) != 1 {
			t.Errorf("%+v", m)
		}
		if _, _, known := m.Endpoint(); known {
			t.Error("nobody told the port")
		}
	})
	t.Run("spellings of IPv6", func(t *testing.T) {
		s := newStage(t)
		s.beat("a", "fd00::1")
		s.write("d", "fd00:0:0:0:0:0:0:1", 0)
		s.beat("b", "FD00::2")
		s.write("e", "fd00:0:0:0:0:0:0:2%eth0", 0)
		s.beat("c", "10.0.0.3")
		s.write("f", "::ffff:10.0.0.3", 0)
		s.want("c 10.0.0.3 alive; a fd00::1 alive; b FD00::2 alive")
	})
	t.Run("rows without an address", func(t *testing.T) {
		s := newStage(t)
		s.beat("a", "")
		s.write("d", "", 0)
		s.want("a  ams-stale; d  agent-stale")
	})
	t.Run("nothing", func(t *testing.T) {
		if got := newStage(t).look(); got == nil || len(got) != 0 {
			t.Errorf("%#v", got)
		}
	})
	t.Run("a row that was never written by us", func(t *testing.T) {
		s := newStage(t)
		s.rows["a"] = Node{ID: "a"}
		if m := s.look()[0]; m.Agent.Known || m.Verdict != VerdictGone {
			t.Errorf("%+v", m)
		}
	})
	t.Run("a document without a time", func(t *testing.T) {
		s := newStage(t)
		doc := func(stamp any) AMSNode {
			return readAMSNode(raw(t, bson.D{{Key: "_id", Value: bson.NewObjectID()}, {Key: "ip", Value: "10.0.0.1"}, {Key: "lastUpdateTime", Value: stamp}}))
		}
		first := doc("soon")
		s.docs["d"] = first
		s.beat("a", "10.0.0.1")
		if m := s.look()[0]; m.Server.Known || m.Verdict != VerdictAMSStale {
			t.Errorf("%+v", m)
		}
		second := doc("later")
		second.id = first.id
		s.docs["d"] = second
		s.want("a 10.0.0.1 alive") // it was seen to change
	})
}

func TestRefused(t *testing.T) {
	s := newStage(t)
	zero := Millis(0)
	s.beat("a", "10.0.0.1", func(n *Node) { n.Port = 5080; n.IntervalMS = 1000; n.ClockMS = &zero })
	s.pass(900 * time.Millisecond) // both die between two beats, and AMS wrote last
	s.write("d", "10.0.0.1", 0)
	m := s.look()[0]
	if m.Refused(); m.Verdict != VerdictAlive {
		t.Errorf("its agent is heard: %+v", m)
	}
	s.pass(2101 * time.Millisecond)
	m = s.look()[0]
	if m.Verdict != VerdictAgentStale {
		t.Fatalf("%+v", m)
	}
	if ip, port, known := m.Endpoint(); ip != "10.0.0.1" || port != 5080 || !known {
		t.Errorf("%s %d %t", ip, port, known)
	}
	if m.Refused(); m.Verdict != VerdictGone || m.Server.Fresh {
		t.Errorf("%+v", m)
	}
	// What was made of one look does not stain the next.
	s.beat("a", "10.0.0.1")
	s.want("a 10.0.0.1 alive")

	// AMS writes on: somebody else refuses us.
	s.pass(5 * time.Second)
	s.write("d", "10.0.0.1", 0)
	m = s.look()[0]
	if m.Refused(); m.Verdict != VerdictAgentStale || !m.Server.Fresh {
		t.Errorf("%+v", m)
	}
	// A row that nobody beats for tells nothing of when its machine died.
	s = newStage(t)
	s.rows["a"] = Node{ID: "a", IP: "10.0.0.1", Port: 5080, UpdatedAt: s.server()}
	s.pass(time.Minute)
	s.write("d", "10.0.0.1", 0)
	m = s.look()[0]
	if m.Refused(); m.Verdict != VerdictAgentStale {
		t.Errorf("%+v", m)
	}
	// Nor does a document by a clock that nobody knows.
	s.beat("a", "10.0.0.1", func(n *Node) { n.IntervalMS = 1000 })
	s.write("d", "10.0.0.1", time.Minute)
	s.pass(10 * time.Second)
	s.o = Observer{}
	m = s.look()[0]
	if m.Refused(); m.Verdict != VerdictAgentStale || !m.Server.Guess {
		t.Errorf("%+v", m)
	}
}

func TestOverdue(t *testing.T) {
	s := newStage(t)
	s.beat("a", "10.0.0.1")
	for _, tt := range []struct {
		at   time.Duration
		in   time.Duration
		late bool
	}{
		{5 * time.Second, 0, false},
		{6 * time.Second, 5 * time.Second, true},
		{11 * time.Second, 0, true},
		{12 * time.Second, 0, false},
	} {
		s.now = s.rows["a"].UpdatedAt.Add(tt.at)
		s.o = Observer{}
		if in, late := s.look()[0].Overdue(); in != tt.in || late != tt.late {
			t.Errorf("after %s: %s, %t", tt.at, in, late)
		}
	}
	s.rows["a"] = Node{ID: "a", UpdatedAt: s.server()}
	s.pass(6 * time.Second)
	if _, late := s.look()[0].Overdue(); late {
		t.Error("nobody beats for it")
	}
}

func TestLookOrder(t *testing.T) {
	s := newStage(t)
	for i := range 12 {
		s.beat(fmt.Sprintf("i-%02d", 12-i), fmt.Sprintf("10.0.0.%d", i))
	}
	var got []string
	for _, m := range s.look() {
		got = append(got, m.Address())
	}
	if diff := cmp.Diff([]string{"10.0.0.0", "10.0.0.1", "10.0.0.2"}, got[:3]); diff != "" || got[11] != "10.0.0.11" {
		t.Errorf("%v", got)
	}
}

// Only an active node that both witnesses vouch for is called not serving; what an older
// agent does not say is not held against it.
func TestNotServing(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tt := range map[string]struct {
		state      State
		serving    *Serving
		agent, ams time.Duration // since each was heard
		want       Verdict
	}{
		"serves":                                 {StateActive, &Serving{Up: true}, time.Second, time.Second, VerdictAlive},
		"does not":                               {StateActive, &Serving{Why: "LiveApp fails"}, time.Second, time.Second, VerdictNotServing},
		"not known":                              {StateActive, nil, time.Second, time.Second, VerdictAlive},
		"joining":                                {StateJoining, &Serving{}, time.Second, time.Second, VerdictAlive},
		"draining":                               {StateDraining, &Serving{}, time.Second, time.Second, VerdictAlive},
		"left":                                   {StateLeft, &Serving{}, time.Second, time.Second, VerdictLeft},
		"AMS silent weighs more":                 {StateActive, &Serving{}, time.Second, time.Minute, VerdictAMSStale},
		"an old word of an agent that is silent": {StateActive, &Serving{}, 30 * time.Second, time.Second, VerdictAgentStale},
	} {
		zero := Millis(0)
		var o Observer
		members := o.Judge(Look{
			Nodes: []Node{{
				ID: "a", IP: "10.0.0.1", State: tt.state, IntervalMS: 5000,
				UpdatedAt: now.Add(-tt.agent), Heartbeat: Heartbeat{Seq: 1, Serving: tt.serving, ClockMS: &zero},
			}},
			AMS: []AMSNode{{ID: "x", IP: "10.0.0.1", LastUpdate: now.Add(-tt.ams)}}, ServerTime: now,
		}, now)
		if len(members) == 0 || members[0].Verdict != tt.want && !(tt.state == StateLeft && members[len(members)-1].Verdict == tt.want) {
			t.Errorf("%s: %+v", name, members)
		}
	}
}
