// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/internal/seconds"
)

// Health follows from a node's heartbeats and its AMS document.
type Health string

// The healths.
const (
	Healthy    Health = "healthy"     // both signals are fresh
	NotServing Health = "not-serving" // both are fresh, viewers are not served
	AMSStale   Health = "ams-stale"   // only the heartbeat
	AgentStale Health = "agent-stale" // only the AMS document
	NoAgent    Health = "no-agent"    // only the AMS document; no record
	Unknown    Health = "unknown"     // neither; MongoDB may have been away
	Gone       Health = "gone"        // neither
	Left       Health = "left"        // the record's state
)

// Healths is ordered from good to bad, then Left.
func Healths() []Health {
	return []Health{Healthy, NotServing, AMSStale, AgentStale, NoAgent, Unknown, Gone, Left}
}

const (
	// lateness allows for jitter, a slow write and a busy machine.
	lateness = time.Second
	// amsPeriod is the interval of AMS's writes.
	amsPeriod = 5 * time.Second
	// GoneLimit is the silence of a server that is gone.
	GoneLimit = 2*amsPeriod + lateness
)

func goneLimit(interval time.Duration) time.Duration { return 2*interval + lateness }

// Signal is a liveness signal.
type Signal struct {
	Known bool `json:"known"` // false without such a signal
	// Age is at least 1 if known: JSON omits 0.
	Age   seconds.Duration `json:"age_seconds,omitempty"`
	Fresh bool             `json:"fresh"`
	// Estimated: Age is by the clock of AMS's machine.
	Estimated bool `json:"estimated,omitempty"`

	silent   time.Duration
	doubtful bool // old at a first look after an outage, and unchanged since
}

func (s Signal) provesLife() bool { return s.Fresh && !s.doubtful }

// Member is a machine of the cluster.
type Member struct {
	Node *Node `json:"node,omitempty"` // nil if only AMS is known
	// AMS are newest first. Earlier processes may have left some.
	AMS    []AMSNode `json:"ams"`
	Agent  Signal    `json:"agent_signal"`
	Server Signal    `json:"ams_signal"`
	Health Health    `json:"health"`
	// Reimaging: the root volume is replaced; the node is expected back.
	Reimaging bool `json:"reimaging,omitempty"`
	// Replaced: a newer record has this address.
	Replaced bool `json:"-"`
}

// Address returns the node's address.
func (m Member) Address() string {
	if m.Node != nil && m.Node.IP != "" {
		return m.Node.IP
	}
	if len(m.AMS) > 0 {
		return m.AMS[0].IP
	}
	return ""
}

// ID returns the record's id, else the document's.
func (m Member) ID() string {
	switch {
	case m.Node != nil:
		return m.Node.ID
	case len(m.AMS) > 0:
		return m.AMS[0].ID
	}
	return ""
}

// State returns the record's state, or "".
func (m Member) State() State {
	if m.Node == nil {
		return ""
	}
	return m.Node.State
}

// Silent reports whether the machine is gone, or left for good.
func (m Member) Silent() bool {
	return m.Health == Gone || m.Health == Left && !m.Reimaging && !m.Agent.Fresh && !m.Server.Fresh
}

// Look is a snapshot of the cluster.
type Look struct {
	Nodes      []Node
	Bad        []BadRecordError // invalid records
	AMS        []AMSNode
	ServerTime time.Time // MongoDB's, when the look began
	At         time.Time // the local clock
}

// Look reads a snapshot.
func (c *Client) Look(ctx context.Context) (Look, error) {
	l := Look{At: c.now()}
	var err error
	// A slow read must not make the nodes seem older.
	if l.ServerTime, err = c.ServerTime(ctx); err != nil {
		return Look{}, err
	}
	if l.Nodes, l.Bad, err = c.records(ctx); err != nil {
		return Look{}, err
	}
	l.AMS, err = c.AMSNodes(ctx)
	return l, err
}

// Observer finds the members' health from successive looks. At first, a signal's silence is its age by MongoDB's clock,
// for AMS's corrected by the agent's skew. Later it is the time without a change, at most one interval per look: MongoDB may
// have been away. It is not safe for concurrent use.
type Observer struct {
	seen map[string]lastSeen // key: "node " or "doc " and the id
	last time.Time           // the previous look
	// outage: no fresh heartbeat of any node at the last look, or it failed.
	outage bool
}

type lastSeen struct {
	Signal
	seq    int64 // seq and sent are the signal's own, at is by the observer's clock
	sent   time.Time
	at     time.Time
	before time.Duration // silent at the last look without an outage
}

// Failed notes that a look failed.
func (o *Observer) Failed() { o.outage = true }

// Observe returns the machines, ordered by address. A left record gets no AMS documents: another machine may have the
// address now.
func (o *Observer) Observe(l Look) []Member {
	members := make([]Member, 0, len(l.Nodes))
	owner := make(map[string]int, len(l.Nodes))
	anyFresh := false
	for i := range l.Nodes {
		n := l.Nodes[i]
		members = append(members, Member{Node: &l.Nodes[i], AMS: []AMSNode{}, Reimaging: n.reimaging(l.ServerTime)})
		age, known := n.Age(l.ServerTime)
		anyFresh = anyFresh || known && n.Heartbeats() && n.State != StateLeft && age < goneLimit(n.interval())-n.interval()
		if n.IP == "" || n.State == StateLeft {
			continue
		}
		// The newest record with an address is the current machine's.
		key := oneSpelling(n.IP)
		j, taken := owner[key]
		if taken && !n.UpdatedAt.After(l.Nodes[j].UpdatedAt) {
			members[i].Replaced = true
			continue
		}
		if taken {
			members[j].Replaced = true
		}
		owner[key] = i
	}
	for _, doc := range l.AMS {
		key := oneSpelling(doc.IP)
		if doc.IP == "" {
			key = "id " + doc.ID // without an address they do not belong together
		}
		i, ok := owner[key]
		if !ok {
			i = len(members)
			members = append(members, Member{AMS: []AMSNode{}})
			owner[key] = i
		}
		members[i].AMS = append(members[i].AMS, doc)
	}
	next := Observer{seen: map[string]lastSeen{}, last: l.At, outage: !anyFresh}
	for i := range members {
		m := &members[i]
		o.signals(m, l, &next)
		m.Health = m.health(anyFresh)
	}
	*o = next
	slices.SortStableFunc(members, func(a, b Member) int {
		return cmp.Or(compareText(a.Address(), b.Address()), compareText(a.ID(), b.ID()))
	})
	return members
}

func (o *Observer) signals(m *Member, l Look, next *Observer) {
	slices.SortStableFunc(m.AMS, newestFirst)
	clock, known := l.ServerTime, false
	if n := m.Node; n != nil {
		if n.Clock != nil {
			clock, known = l.ServerTime.Add(time.Duration(*n.Clock)), true
		}
		m.Agent = o.signal(next, reading{"node " + n.ID, n.Seq, n.UpdatedAt, l.ServerTime, true, n.interval(), goneLimit(n.interval())})
	}
	for _, doc := range m.AMS {
		s := o.signal(next, reading{"doc " + doc.IP + " " + doc.ID, 0, doc.LastUpdate, clock, known, amsPeriod, amsFresh})
		if s.Known && (!m.Server.Known || s.silent < m.Server.silent) {
			m.Server = s
		}
	}
}

type reading struct {
	key             string
	seq             int64
	sent            time.Time // zero if it was never sent, or the time is unreadable
	now             time.Time // by the clock of sent
	known           bool      // that clock; otherwise only a change counts
	interval, limit time.Duration
}

// isNew: an election may roll a heartbeat back; the clock of AMS's machine may be set back.
func (r reading) isNew(was lastSeen) bool {
	return r.seq > was.seq || r.sent.After(was.sent) || r.seq == 0 && r.sent.Before(was.sent)
}

func (o *Observer) signal(next *Observer, r reading) Signal {
	if r.sent.IsZero() {
		return Signal{}
	}
	is, again := o.seen[r.key]
	age, passed := max(0, r.now.Sub(r.sent)), next.last.Sub(o.last)
	switch {
	case !again:
		is = lastSeen{at: next.last.Add(-age), Signal: Signal{Known: true, silent: age, Estimated: !r.known}}
		if o.outage {
			is.silent, is.doubtful = 0, age > r.limit
		}
	case r.isNew(is):
		if age = min(age, passed); !r.known {
			age = 0
		}
		is = lastSeen{at: next.last.Add(-age), Signal: Signal{Known: true, silent: min(age, r.interval)}}
	default:
		is.silent += min(passed, r.interval)
		if o.outage && !next.outage && is.before <= r.limit {
			is.silent = 0 // no node could write
		}
	}
	is.seq, is.sent, is.Age, is.Fresh = r.seq, r.sent, seconds.Duration(max(1, next.last.Sub(is.at))), is.silent <= r.limit
	if !next.outage {
		is.before = is.silent
	}
	next.seen[r.key] = is
	return is.Signal
}

// anyFresh proves that MongoDB accepts heartbeats.
func (m *Member) health(anyFresh bool) Health {
	// AMS waits for four periods: one late signal proves nothing, two do.
	late := m.Node != nil && m.Node.Heartbeats() && m.Server.silent > GoneLimit
	switch {
	case m.State() == StateLeft:
		return Left
	case (m.Agent.Fresh || m.Server.Fresh) && !m.Agent.provesLife() && !m.Server.provesLife():
		return Unknown // it may have ended before the outage
	case m.Agent.Fresh && m.Server.Fresh && m.State() == StateActive && m.Node.Serving != nil && !m.Node.Serving.Up:
		return NotServing // other states get no viewers
	case m.Agent.Fresh && m.Server.Fresh:
		return Healthy
	case m.Agent.Fresh:
		return AMSStale
	case m.Server.Fresh && m.Node == nil:
		return NoAgent
	case m.Server.Fresh && !late:
		return AgentStale
	}
	m.Server.Fresh = false
	if !anyFresh {
		return Unknown
	}
	return Gone
}

// Dialable accepts only one machine's IP address: any client of MongoDB may have written it.
func Dialable(address string) (_ netip.Addr, ok bool) {
	addr, err := netip.ParseAddr(address)
	return addr, err == nil && addr.Zone() == "" && !addr.IsUnspecified() && !addr.IsMulticast()
}

// Peers finds the other machines that still serve. It keeps state between calls.
type Peers struct {
	mu       sync.Mutex
	observer Observer
}

// Serving returns those machines (ids or [Node.Name]s) that may still have sessions. A single look finds none gone.
func (p *Peers) Serving(ctx context.Context, c *Client, machines []string) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	look, err := c.Look(ctx)
	if err != nil {
		p.observer.Failed()
		return nil, err
	}
	return p.serving(look, machines), nil
}

func (p *Peers) serving(l Look, machines []string) []string {
	if l.At.Sub(p.observer.last) > amsFresh {
		p.observer.Failed() // ignore timestamps: after a failover all records are old
	}
	var out []string
	add := func(n Node) {
		i := slices.IndexFunc(machines, n.isNamed)
		if i >= 0 && !slices.Contains(out, machines[i]) {
			out = append(out, machines[i])
		}
	}
	for _, m := range p.observer.Observe(l) {
		n := m.Node
		if n == nil || !n.Heartbeats() || n.State == StateLeft || n.State == StateFailed || m.goneForLong() {
			continue
		}
		add(*n)
	}
	for _, b := range l.Bad {
		add(Node{ID: b.ID, Name: b.name}) // it may serve
	}
	slices.Sort(out)
	return out
}

func (n Node) isNamed(s string) bool { return s != "" && (s == n.ID || strings.EqualFold(s, n.Name)) }

// goneForLong requires AMS's own limit of silence.
func (m Member) goneForLong() bool {
	return m.Health == Gone && m.Agent.silent >= amsFresh && (!m.Server.Known || m.Server.silent >= amsFresh)
}
