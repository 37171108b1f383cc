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

// Health is what the two signals of a node say together: its agent's heartbeats, and the document that its AMS writes.
type Health string

// The healths.
const (
	Healthy    Health = "healthy"     // both signals are fresh
	NotServing Health = "not-serving" // both are fresh, and the agent says that viewers are not served
	AMSStale   Health = "ams-stale"   // only the agent's is fresh
	AgentStale Health = "agent-stale" // only AMS's is fresh
	NoAgent    Health = "no-agent"    // AMS's is fresh, and the registry has no record
	Unknown    Health = "unknown"     // neither is fresh, and no node could be heard: MongoDB may have been away
	Gone       Health = "gone"        // neither is fresh
	Left       Health = "left"        // the record says so
)

// Healths returns all, from well to bad, and those that have left.
func Healths() []Health {
	return []Health{Healthy, NotServing, AMSStale, AgentStale, NoAgent, Unknown, Gone, Left}
}

const (
	// lateness is what a heartbeat may be late: jitter, a slow write, a busy machine.
	lateness = time.Second
	// amsPeriod is how often AMS writes its document.
	amsPeriod = 5 * time.Second
)

// goneLimit is how long an agent may be silent: two heartbeats and a second.
func goneLimit(interval time.Duration) time.Duration { return 2*interval + lateness }

// Signal is what is known of one of the two signals of a node.
type Signal struct {
	// Known is false where there is no such signal.
	Known bool `json:"known"`
	// Age is at least 1 where it is known: 0 is left out.
	Age   time.Duration `json:"age_ns,omitempty"`
	Fresh bool          `json:"fresh"`
	// Estimated says that Age is by a clock that may be wrong: AMS stamps with its machine's.
	Estimated bool `json:"guess,omitempty"`

	silent time.Duration
}

// Member is one machine of the cluster, from both sides.
type Member struct {
	// Node is the record of the registry; nil where only AMS is known there.
	Node *Node `json:"node,omitempty"`
	// AMS are AMS's documents of this address, newest first. There are several
	// where earlier lives left theirs.
	AMS    []AMSNode `json:"ams"`
	Agent  Signal    `json:"agent_heard"`
	Server Signal    `json:"ams_heard"`
	Health Health    `json:"verdict"`
}

// Address is the node's address, by which the others call it.
func (m Member) Address() string {
	if m.Node != nil && m.Node.IP != "" {
		return m.Node.IP
	}
	if len(m.AMS) > 0 {
		return m.AMS[0].IP
	}
	return ""
}

// ID is the record's id, or that of AMS's document where there is no record.
func (m Member) ID() string {
	switch {
	case m.Node != nil:
		return m.Node.ID
	case len(m.AMS) > 0:
		return m.AMS[0].ID
	}
	return ""
}

// State is the record's state; "" where there is none.
func (m Member) State() State {
	if m.Node == nil {
		return ""
	}
	return m.Node.State
}

// Silent reports whether nothing is heard of the machine any more, be it gone or
// one that has left.
func (m Member) Silent() bool {
	return m.Health == Gone || m.Health == Left && !m.Agent.Fresh && !m.Server.Fresh
}

// Look is one look at the cluster.
type Look struct {
	Nodes []Node // of the registry
	// Bad are the records of the registry that cannot be read.
	Bad []BadRecordError
	AMS []AMSNode // of clusternode
	// ServerTime is MongoDB's clock when the look began, and At the local one.
	ServerTime time.Time
	At         time.Time
}

// Look reads MongoDB's clock, the registry and AMS's documents.
func (c *Client) Look(ctx context.Context) (Look, error) {
	l := Look{At: c.now()}
	var err error
	// The clock first: reading that takes long, or has to be repeated, must not
	// make the nodes look older than they are.
	if l.ServerTime, err = c.ServerTime(ctx); err != nil {
		return Look{}, err
	}
	if l.Nodes, l.Bad, err = c.records(ctx); err != nil {
		return Look{}, err
	}
	l.AMS, err = c.AMSNodes(ctx)
	return l, err
}

// Observer finds the health of the members of a cluster, one look after the other. It remembers what each signal said last.
// From the second look on, silence is the time between looks in which a signal said nothing new, at most one interval for each
// look: MongoDB may have been away between two of them. On the first look, silence is the age of the stamp by MongoDB's
// clock, for AMS's with what the agent said of its machine's clock.
//
// The zero value is ready. It is not for several goroutines at once.
type Observer struct {
	rows, docs map[string]heard
	last       time.Time // the look before; zero before the first
	// blind says that after the look before which somebody was heard, no look succeeded or nobody was heard.
	blind bool
	// patient observers trust no stamp: silence begins with their first look.
	patient bool
}

// heard is what a signal said last.
type heard struct {
	row    rowVersion // of a record
	doc    string     // of a document: what tells it from the next one
	at     time.Time  // when it was written, by the observer's clock; zero is not known
	silent time.Duration
	// before is silent at the last look at which somebody was heard.
	before    time.Duration
	estimated bool
}

// rowVersion tells what a record says from what it says next.
type rowVersion struct {
	seq     int64
	updated time.Time
}

// newer reports whether v is a sign of life after w. An election may roll a heartbeat back.
func (v rowVersion) newer(w rowVersion) bool { return v.seq > w.seq || v.updated.After(w.updated) }

// Failed says that a look failed.
func (o *Observer) Failed() { o.blind = true }

// Observe puts records and documents together by address and finds the health of each machine. The order is that of the
// addresses.
//
// A record that says left owns nothing: what is written under its address since is
// another machine's, or ought to be seen for itself.
func (o *Observer) Observe(l Look) []Member {
	members := make([]Member, 0, len(l.Nodes))
	owner := make(map[string]int, len(l.Nodes)) // address -> member
	someone := false
	for i := range l.Nodes {
		n := l.Nodes[i]
		members = append(members, Member{Node: &l.Nodes[i], AMS: []AMSNode{}})
		age, known := n.Age(l.ServerTime)
		someone = someone || known && n.Heartbeats() && n.State != StateLeft && age < goneLimit(n.interval())-n.interval()
		if n.IP == "" || n.State == StateLeft {
			continue
		}
		// Of several records with one address all but the one written last are
		// of earlier machines.
		key := oneSpelling(n.IP)
		if j, taken := owner[key]; !taken || n.UpdatedAt.After(l.Nodes[j].UpdatedAt) {
			owner[key] = i
		}
	}
	for _, doc := range l.AMS {
		key := oneSpelling(doc.IP)
		if doc.IP == "" {
			key = "id " + doc.key() // no address is not one that all of them share
		}
		i, ok := owner[key]
		if !ok {
			i = len(members)
			members = append(members, Member{AMS: []AMSNode{}})
			owner[key] = i
		}
		members[i].AMS = append(members[i].AMS, doc)
	}
	next := Observer{
		rows: make(map[string]heard, len(l.Nodes)), docs: make(map[string]heard, len(l.AMS)),
		last: l.At, blind: !someone, patient: o.patient,
	}
	for i := range members {
		m := &members[i]
		o.signals(m, l, &next)
		m.Health = m.health(someone)
	}
	*o = next
	slices.SortStableFunc(members, func(a, b Member) int {
		return cmp.Or(compareText(a.Address(), b.Address()), compareText(a.ID(), b.ID()))
	})
	return members
}

// signals finds what both signals of a member say.
func (o *Observer) signals(m *Member, l Look, next *Observer) {
	slices.SortStableFunc(m.AMS, func(a, b AMSNode) int { return b.LastUpdate.Compare(a.LastUpdate) })
	clock, known := l.ServerTime, false // of the machine
	if n := m.Node; n != nil {
		if n.ClockMS != nil {
			clock, known = l.ServerTime.Add(n.ClockMS.Duration()), true
		}
		if !n.UpdatedAt.IsZero() {
			version := rowVersion{n.Seq, n.UpdatedAt}
			was, again := o.rows[n.ID]
			h := o.hear(was, again, version.newer(was.row), l.At, l.ServerTime.Sub(n.UpdatedAt), n.interval(), goneLimit(n.interval()), next.blind)
			h.row = version
			next.rows[n.ID] = h
			m.Agent = h.signal(l.At, goneLimit(n.interval()))
		}
	}
	for _, doc := range m.AMS {
		version := doc.IP + rawText(doc.written)
		was, again := o.docs[doc.key()]
		if !again && doc.LastUpdate.IsZero() {
			next.docs[doc.key()] = heard{doc: version} // nothing is known of it until it changes
			continue
		}
		age := clock.Sub(doc.LastUpdate)
		if again && (!known || doc.LastUpdate.IsZero()) {
			age = 0 // it was seen to change, whatever its clock says
		}
		h := o.hear(was, again, was.doc != version, l.At, age, amsPeriod, amsFresh, next.blind)
		h.doc = version
		if !again {
			h.estimated = !known
		}
		next.docs[doc.key()] = h
		if s := h.signal(l.At, amsFresh); s.Known && (!m.Server.Known || s.silent < m.Server.silent) {
			m.Server = s
		}
	}
}

// hear is what is known of a signal after a look. age is by its stamp; interval is how often it says something new.
func (o *Observer) hear(was heard, again, changed bool, at time.Time, age, interval, limit time.Duration, blind bool) heard {
	is := was
	switch {
	case !again:
		is = heard{at: at.Add(-max(0, age)), silent: max(0, age)}
		if o.patient || o.blind {
			is.silent = 0
		}
	case changed:
		age = min(max(0, age), at.Sub(o.last)) // it was written after the look before
		is = heard{at: at.Add(-age), silent: min(age, interval)}
	case is.at.IsZero():
	default:
		is.silent += min(at.Sub(o.last), interval)
		if o.blind && !blind && is.before <= limit {
			is.silent = 0 // nobody could be heard in the meantime
		}
	}
	if !blind {
		is.before = is.silent
	}
	return is
}

func (h heard) signal(at time.Time, limit time.Duration) Signal {
	if h.at.IsZero() {
		return Signal{}
	}
	return Signal{Known: true, Age: max(1, at.Sub(h.at)), Fresh: h.silent <= limit, Estimated: h.estimated, silent: h.silent}
}

// health is the table of healths. someone says that MongoDB takes the heartbeats of a node at this moment.
func (m *Member) health(someone bool) Health {
	// AMS's own rule waits for four periods, because one signal that is late proves nothing. Two that are late do.
	late := m.Node != nil && m.Node.Heartbeats() && m.Server.silent > goneLimit(amsPeriod)
	switch {
	case m.State() == StateLeft:
		return Left
	case m.Agent.Fresh && m.Server.Fresh && m.State() == StateActive && m.Node.Serving != nil && !m.Node.Serving.Up:
		return NotServing // in the other states viewers are not sent there anyway
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
	if !someone {
		return Unknown
	}
	return Gone
}

// key names the document, whatever its id is.
func (n AMSNode) key() string { return rawText(n.id) }

// rawText is what is stored, to be compared.
func rawText(v bson.RawValue) string { return string([]byte{byte(v.Type)}) + string(v.Value) }
