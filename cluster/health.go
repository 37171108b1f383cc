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

	"go.mongodb.org/mongo-driver/v2/bson"
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
)

func goneLimit(interval time.Duration) time.Duration { return 2*interval + lateness }

// Signal is a liveness signal.
type Signal struct {
	Known bool `json:"known"` // false without such a signal
	// Age is at least 1 if known: JSON omits 0.
	Age   time.Duration `json:"age_ns,omitempty"`
	Fresh bool          `json:"fresh"`
	// Estimated: Age is by the clock of AMS's machine.
	Estimated bool `json:"guess,omitempty"`

	silent   time.Duration
	doubtful bool
}

// provesLife reports whether the signal was sent since the last outage.
func (s Signal) provesLife() bool { return s.Fresh && !s.doubtful }

// Member is a machine of the cluster.
type Member struct {
	Node *Node `json:"node,omitempty"` // nil if only AMS is known
	// AMS are newest first. Earlier processes may have left some.
	AMS    []AMSNode `json:"ams"`
	Agent  Signal    `json:"agent_signal"`
	Server Signal    `json:"ams_signal"`
	Health Health    `json:"health"`
	// Reimaging: the root volume is replaced, and the node is expected back.
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

// Observer finds the health of members from successive looks. At first, a signal's silence is its age by MongoDB's clock;
// for AMS's, corrected by the agent's skew. Later it is the time without a change, at most one interval for each look:
// MongoDB may have been away. An Observer is not safe for concurrent use.
type Observer struct {
	seen map[string]lastSeen // key: "node " or "doc " and the id
	last time.Time           // the previous look
	// outage: no fresh heartbeat of any node at the last look, or it failed.
	outage bool
	// patient observers ignore timestamps: silence begins with their first look.
	patient bool
}

type lastSeen struct {
	seq     int64 // seq and updated are a record's version, doc an AMS document's
	updated time.Time
	doc     string
	at      time.Time // last written, by the observer's clock; zero if unknown
	silent  time.Duration
	// doubtful: old at a first look after an outage, and unchanged since.
	doubtful bool
	// before is silent at the last look without an outage.
	before    time.Duration
	estimated bool
}

// Failed notes that a look failed.
func (o *Observer) Failed() { o.outage = true }

// Observe returns the health of each machine, ordered by address. A left record gets no AMS documents: another machine may
// have the address now.
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
		if j, taken := owner[key]; !taken || n.UpdatedAt.After(l.Nodes[j].UpdatedAt) {
			owner[key] = i
		}
	}
	for i, m := range members {
		current, owned := owner[oneSpelling(m.Node.IP)]
		members[i].Replaced = owned && current != i && m.State() != StateLeft
	}
	for _, doc := range l.AMS {
		key := oneSpelling(doc.IP)
		if doc.IP == "" {
			key = "id " + doc.key() // without an address they do not belong together
		}
		i, ok := owner[key]
		if !ok {
			i = len(members)
			members = append(members, Member{AMS: []AMSNode{}})
			owner[key] = i
		}
		members[i].AMS = append(members[i].AMS, doc)
	}
	next := Observer{seen: map[string]lastSeen{}, last: l.At, outage: !anyFresh, patient: o.patient}
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
	slices.SortStableFunc(m.AMS, func(a, b AMSNode) int { return b.LastUpdate.Compare(a.LastUpdate) })
	clock, known := l.ServerTime, false
	if n := m.Node; n != nil {
		if n.Clock != nil {
			clock, known = l.ServerTime.Add(*n.Clock), true
		}
		if !n.UpdatedAt.IsZero() {
			key := "node " + n.ID
			was, again := o.seen[key]
			changed := n.Seq > was.seq || n.UpdatedAt.After(was.updated) // an election may roll a heartbeat back
			age, limit := l.ServerTime.Sub(n.UpdatedAt), goneLimit(n.interval())
			is := o.update(was, again, changed, l.At, age, n.interval(), limit, next.outage)
			is.seq, is.updated = n.Seq, n.UpdatedAt
			next.seen[key] = is
			m.Agent = is.signal(l.At, limit)
		}
	}
	for _, doc := range m.AMS {
		key, version := "doc "+doc.key(), doc.IP+rawText(doc.written)
		was, again := o.seen[key]
		if !again && doc.LastUpdate.IsZero() {
			next.seen[key] = lastSeen{doc: version} // unknown until changed
			continue
		}
		age := clock.Sub(doc.LastUpdate)
		if again && (!known || doc.LastUpdate.IsZero()) {
			age = 0 // only a change counts: the clock may be wrong
		}
		is := o.update(was, again, was.doc != version, l.At, age, amsPeriod, amsFresh, next.outage)
		is.doc = version
		if !again {
			is.estimated = !known
		}
		next.seen[key] = is
		if s := is.signal(l.At, amsFresh); s.Known && (!m.Server.Known || s.silent < m.Server.silent) {
			m.Server = s
		}
	}
}

// update: age is by the signal's timestamp, interval the time between its changes.
func (o *Observer) update(was lastSeen, again, changed bool, at time.Time, age, interval, limit time.Duration, out bool) lastSeen {
	is := was
	switch {
	case !again:
		is = lastSeen{at: at.Add(-max(0, age)), silent: max(0, age)}
		if o.patient || o.outage {
			is.silent, is.doubtful = 0, is.silent > limit
		}
	case changed:
		age = min(max(0, age), at.Sub(o.last)) // written after the previous look
		is = lastSeen{at: at.Add(-age), silent: min(age, interval)}
	case is.at.IsZero():
	default:
		is.silent += min(at.Sub(o.last), interval)
		if o.outage && !out && is.before <= limit {
			is.silent = 0 // no node could write
		}
	}
	if !out {
		is.before = is.silent
	}
	return is
}

func (s lastSeen) signal(at time.Time, limit time.Duration) Signal {
	if s.at.IsZero() {
		return Signal{}
	}
	return Signal{Known: true, Age: max(1, at.Sub(s.at)), Fresh: s.silent <= limit, Estimated: s.estimated, silent: s.silent, doubtful: s.doubtful}
}

// health: anyFresh proves that MongoDB accepts heartbeats.
func (m *Member) health(anyFresh bool) Health {
	// AMS waits for four periods: one late signal proves nothing, two do.
	late := m.Node != nil && m.Node.Heartbeats() && m.Server.silent > goneLimit(amsPeriod)
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

func (n AMSNode) key() string { return rawText(n.id) }

func rawText(v bson.RawValue) string { return string([]byte{byte(v.Type)}) + string(v.Value) }

// Dialable accepts only an IP address of one machine: any client of MongoDB may have written it.
func Dialable(address string) (_ netip.Addr, ok bool) {
	addr, err := netip.ParseAddr(address)
	return addr, err == nil && addr.Zone() == "" && !addr.IsUnspecified() && !addr.IsMulticast()
}

// Peers finds the other machines that still serve. It keeps state between calls.
type Peers struct {
	mu       sync.Mutex
	observer Observer
}

// Serving returns those machines (ids or [Node.Name]s) that may still have sessions. A single look finds none gone: after a
// failover all records are old.
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
	p.observer.patient = true
	var out []string
	for _, m := range p.observer.Observe(l) {
		n := m.Node
		if n == nil || !n.Heartbeats() || n.State == StateLeft || n.State == StateFailed || m.goneForLong() {
			continue
		}
		i := slices.IndexFunc(machines, func(s string) bool { return s != "" && (s == n.ID || strings.EqualFold(s, n.Name)) })
		if i >= 0 && !slices.Contains(out, machines[i]) {
			out = append(out, machines[i])
		}
	}
	slices.Sort(out)
	return out
}

// goneForLong requires AMS's own limit of silence.
func (m Member) goneForLong() bool {
	return m.Health == Gone && m.Agent.silent >= amsFresh && (!m.Server.Known || m.Server.silent >= amsFresh)
}
