// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Health of a node follows from its two liveness signals: its agent's heartbeats, and its AMS document.
type Health string

// The healths.
const (
	Healthy    Health = "healthy"     // both signals are fresh
	NotServing Health = "not-serving" // both are fresh, and the agent reports that viewers are not served
	AMSStale   Health = "ams-stale"   // only the agent's is fresh
	AgentStale Health = "agent-stale" // only AMS's is fresh
	NoAgent    Health = "no-agent"    // AMS's is fresh, and the registry has no record
	Unknown    Health = "unknown"     // neither is fresh, and MongoDB may have been away
	Gone       Health = "gone"        // neither is fresh
	Left       Health = "left"        // the state of the record
)

// Healths returns all values, from good to bad, and then Left.
func Healths() []Health {
	return []Health{Healthy, NotServing, AMSStale, AgentStale, NoAgent, Unknown, Gone, Left}
}

const (
	// lateness is how late a heartbeat may be: jitter, a slow write, a busy machine.
	lateness = time.Second
	// amsPeriod is how often AMS writes its document.
	amsPeriod = 5 * time.Second
)

// goneLimit is how long an agent may be silent: two heartbeats and a second.
func goneLimit(interval time.Duration) time.Duration { return 2*interval + lateness }

// Signal is the state of one of the two liveness signals of a node.
type Signal struct {
	Known bool `json:"known"` // false if there is no such signal
	// Age is at least 1 if it is known: 0 is left out.
	Age   time.Duration `json:"age_ns,omitempty"`
	Fresh bool          `json:"fresh"`
	// Estimated is true if Age is by a clock that may be wrong: that of AMS's machine.
	Estimated bool `json:"guess,omitempty"`

	silent   time.Duration
	doubtful bool // see lastSeen
}

// provesLife reports whether the machine has sent the signal since the last outage.
func (s Signal) provesLife() bool { return s.Fresh && !s.doubtful }

// Member is a machine of the cluster, with its record and its AMS documents.
type Member struct {
	Node *Node `json:"node,omitempty"` // the record of the registry; nil if only AMS is known there
	// AMS are AMS's documents of this address, newest first. Earlier processes may have left some.
	AMS    []AMSNode `json:"ams"`
	Agent  Signal    `json:"agent_heard"`
	Server Signal    `json:"ams_heard"`
	Health Health    `json:"verdict"`
	// Reimaging: the node has left because its root volume is replaced, and is expected back.
	Reimaging bool `json:"reimaging,omitempty"`
	// Replaced: another machine, with a newer record, has this node's address by now.
	Replaced bool `json:"-"`
}

// Address returns the node's address in the cluster.
func (m Member) Address() string {
	if m.Node != nil && m.Node.IP != "" {
		return m.Node.IP
	}
	if len(m.AMS) > 0 {
		return m.AMS[0].IP
	}
	return ""
}

// ID returns the record's id, or the AMS document's if there is no record.
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

// Silent reports whether the machine sends no signals: it is gone, or has left for good.
func (m Member) Silent() bool {
	return m.Health == Gone || m.Health == Left && !m.Reimaging && !m.Agent.Fresh && !m.Server.Fresh
}

// Look is a snapshot of the cluster.
type Look struct {
	Nodes      []Node           // of the registry
	Bad        []BadRecordError // its invalid records
	AMS        []AMSNode
	ServerTime time.Time // by MongoDB's clock when the look began
	At         time.Time // by the local clock
}

// Look reads MongoDB's clock, the registry and AMS's documents.
func (c *Client) Look(ctx context.Context) (Look, error) {
	l := Look{At: c.now()}
	var err error
	// Read the clock first: a slow read must not make the nodes seem older.
	if l.ServerTime, err = c.ServerTime(ctx); err != nil {
		return Look{}, err
	}
	if l.Nodes, l.Bad, err = c.records(ctx); err != nil {
		return Look{}, err
	}
	l.AMS, err = c.AMSNodes(ctx)
	return l, err
}

// Observer finds the health of the members of a cluster from successive looks. On the first look, the silence of a signal is
// its age by MongoDB's clock; for AMS's, corrected by the clock difference that the agent reported. Later, silence is the time
// between looks without a change of the signal, at most one interval for each look: MongoDB may have been away between them.
// It is not safe for concurrent use.
type Observer struct {
	seen map[string]lastSeen // by "node " and the id of a record, or "doc " and that of an AMS document
	last time.Time           // the previous look; zero before the first
	// outage means that since the last look with a fresh heartbeat, looks failed or found no fresh heartbeat of any node.
	outage bool
	// patient observers ignore timestamps: silence begins with their first look.
	patient bool
}

// lastSeen is the last state of a signal.
type lastSeen struct {
	seq     int64 // this and updated are the version of a record, doc that of an AMS document
	updated time.Time
	doc     string
	at      time.Time // when it was written, by the observer's clock; zero if unknown
	silent  time.Duration
	// doubtful: it was old at a first look after an outage, and has not changed since.
	doubtful bool
	// before is silent at the last look without an outage.
	before    time.Duration
	estimated bool
}

// Failed notes that a look failed.
func (o *Observer) Failed() { o.outage = true }

// Observe joins records and documents by address and returns the health of each machine, ordered by address.
//
// AMS documents are not assigned to a record in the state left: another machine may have the address now.
func (o *Observer) Observe(l Look) []Member {
	members := make([]Member, 0, len(l.Nodes))
	owner := make(map[string]int, len(l.Nodes)) // address -> member
	anyFresh := false
	for i := range l.Nodes {
		n := l.Nodes[i]
		members = append(members, Member{Node: &l.Nodes[i], AMS: []AMSNode{}, Reimaging: n.reimaging(l.ServerTime)})
		age, known := n.Age(l.ServerTime)
		anyFresh = anyFresh || known && n.Heartbeats() && n.State != StateLeft && age < goneLimit(n.interval())-n.interval()
		if n.IP == "" || n.State == StateLeft {
			continue
		}
		// Of several records with one address, the newest is the current machine's.
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
			key = "id " + doc.key() // documents without an address do not belong together
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

// signals sets both signals of a member.
func (o *Observer) signals(m *Member, l Look, next *Observer) {
	slices.SortStableFunc(m.AMS, func(a, b AMSNode) int { return b.LastUpdate.Compare(a.LastUpdate) })
	clock, known := l.ServerTime, false // of the machine
	if n := m.Node; n != nil {
		if n.ClockMS != nil {
			clock, known = l.ServerTime.Add(n.ClockMS.Duration()), true
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
			next.seen[key] = lastSeen{doc: version} // unknown until it changes
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

// update returns the state of a signal after a look. age is by its timestamp; interval is the time between its changes.
func (o *Observer) update(was lastSeen, again, changed bool, at time.Time, age, interval, limit time.Duration, out bool) lastSeen {
	is := was
	switch {
	case !again:
		is = lastSeen{at: at.Add(-max(0, age)), silent: max(0, age)}
		if o.patient || o.outage {
			is.silent, is.doubtful = 0, is.silent > limit
		}
	case changed:
		age = min(max(0, age), at.Sub(o.last)) // it was written after the previous look
		is = lastSeen{at: at.Add(-age), silent: min(age, interval)}
	case is.at.IsZero():
	default:
		is.silent += min(at.Sub(o.last), interval)
		if o.outage && !out && is.before <= limit {
			is.silent = 0 // no node could write in the meantime
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

// health finds the health from both signals. anyFresh means that MongoDB accepts heartbeats of some node at this moment.
func (m *Member) health(anyFresh bool) Health {
	// AMS's own rule waits for four periods, because one late signal proves nothing. Two late signals do.
	late := m.Node != nil && m.Node.Heartbeats() && m.Server.silent > goneLimit(amsPeriod)
	switch {
	case m.State() == StateLeft:
		return Left
	case (m.Agent.Fresh || m.Server.Fresh) && !m.Agent.provesLife() && !m.Server.provesLife():
		return Unknown // it may have ended before the outage
	case m.Agent.Fresh && m.Server.Fresh && m.State() == StateActive && m.Node.Serving != nil && !m.Node.Serving.Up:
		return NotServing // in other states, no viewers are sent there
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

// key is a map key for an id of any type.
func (n AMSNode) key() string { return rawText(n.id) }

// rawText makes a value comparable.
func rawText(v bson.RawValue) string { return string([]byte{byte(v.Type)}) + string(v.Value) }
