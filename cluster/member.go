// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Verdict is what the two witnesses of a node say together: its agent, which
// beats into the registry, and its AMS, which writes clusternode.
type Verdict string

// The verdicts. An active node with both witnesses is alive or not serving; where its
// agent does not say which, it is alive.
const (
	VerdictAlive      Verdict = "alive"       // both are heard
	VerdictNotServing Verdict = "not-serving" // both are heard, and viewers are not served
	VerdictAMSStale   Verdict = "ams-stale"   // the agent is heard, AMS is silent
	VerdictAgentStale Verdict = "agent-stale" // AMS is heard, the agent is silent
	VerdictGone       Verdict = "gone"        // neither is heard
	VerdictLeft       Verdict = "left"        // it said so itself: nobody expects to hear of it
)

// Verdicts returns all verdicts, from well to bad, and those that have left.
func Verdicts() []Verdict {
	return []Verdict{VerdictAlive, VerdictNotServing, VerdictAMSStale, VerdictAgentStale, VerdictGone, VerdictLeft}
}

const (
	// beatSlack is what a beat may be late: jitter, a slow write, a busy machine.
	beatSlack = time.Second
	// amsPeriod is how often AMS writes its document.
	amsPeriod = 5 * time.Second
)

// agentLimit is how long an agent may be silent: two beats and a second.
func agentLimit(interval time.Duration) time.Duration { return 2*interval + beatSlack }

// Heard is when a witness was last heard.
type Heard struct {
	// Known is false where there is no such witness.
	Known bool `json:"known"`
	// Age is at least 1 where it is known: 0 is left out.
	Age   time.Duration `json:"age_ns,omitempty"`
	Fresh bool          `json:"fresh"`
	// Guess says that Age is by a clock that nobody told us about: AMS stamps
	// with its machine's, and this one's may be wrong. What was seen to change
	// is no guess.
	Guess bool `json:"guess,omitempty"`
}

// Member is one machine of the cluster, from both sides.
type Member struct {
	// Node is the row of the registry; nil where only AMS is known there.
	Node *Node `json:"node,omitempty"`
	// AMS are AMS's documents of this address, newest first. There are several
	// where earlier lives left theirs.
	AMS     []AMSNode `json:"ams"`
	Agent   Heard     `json:"agent_heard"`
	Server  Heard     `json:"ams_heard"`
	Verdict Verdict   `json:"verdict"`
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

// ID is the row's id, or that of AMS's document where there is no row.
func (m Member) ID() string {
	switch {
	case m.Node != nil:
		return m.Node.ID
	case len(m.AMS) > 0:
		return m.AMS[0].ID
	}
	return ""
}

// State is the row's state; "" where there is none.
func (m Member) State() State {
	if m.Node == nil {
		return ""
	}
	return m.Node.State
}

// Endpoint is where the node's AMS answers HTTP; false where nobody told. A
// port that is only usual is none: a refusal there would prove nothing.
func (m Member) Endpoint() (address string, port int, known bool) {
	if m.Node == nil || m.Node.IP == "" || m.Node.Port <= 0 {
		return "", 0, false
	}
	return m.Node.IP, m.Node.Port, true
}

// notServing reports whether the node is active and its agent sees that viewers are
// not served. In the other states viewers are not sent there anyway.
func (m Member) notServing() bool {
	return m.State() == StateActive && m.Node.Serving != nil && !m.Node.Serving.Up
}

// Silent reports whether nothing is heard of the machine any more, be it gone or
// one that has left.
func (m Member) Silent() bool {
	return m.Verdict == VerdictGone || m.Verdict == VerdictLeft && !m.Agent.Fresh && !m.Server.Fresh
}

// Overdue tells in how long the agent will be taken for silent, where a beat of
// it is late already. Who looks again then finds out no later than can be.
func (m Member) Overdue() (in time.Duration, late bool) {
	if m.Node == nil || !m.Agent.Fresh || !m.Node.Heartbeats() {
		return 0, false
	}
	interval := m.Node.interval()
	if m.Agent.Age <= interval+beatSlack/2 {
		return 0, false
	}
	return agentLimit(interval) - m.Agent.Age, true
}

// Refused takes into account that nobody listens where the node's AMS ought to
// answer: of a node whose agent has fallen silent, that is the end. Without it,
// AMS is taken for silent only when it has missed two of its periods.
//
// It changes nothing where AMS has written since the agent fell silent: it lives,
// and what refuses us is a firewall, or AMS listens elsewhere.
func (m *Member) Refused() {
	if m.Node == nil || !m.Node.Heartbeats() || m.Agent.Fresh || m.Server.Guess || m.Verdict == VerdictLeft {
		return
	}
	if m.Server.Known && m.Server.Age < m.Agent.Age-m.Node.interval()-beatSlack/2 {
		return
	}
	m.Server.Fresh = false
	m.Verdict = VerdictGone
}

// Observer judges the members of a cluster, one look after the other. It
// remembers since when it has seen what each witness wrote last, so that from
// the second look on no clock but its own matters: not those of the nodes, and
// not that of a server which is set while we look. On the first look it relies
// on the server's clock, and for AMS on what each agent said of its machine's.
// The zero value is ready. It is not for several goroutines at once.
type Observer struct {
	rows, docs map[string]observed
	// last is when the look before was taken; zero before the first.
	last time.Time
	// Looks failed between gone and back; zero where none ever did. lost says
	// that they still do.
	gone, back time.Time
	lost       bool
}

// observed is what a witness wrote last, with what is known of when.
type observed struct {
	// version tells it from what the same witness writes next. All of it would take too much memory.
	version string
	// written is when, by the observer's own clock; zero where nobody knows.
	written time.Time
	guess   bool
}

// Lost tells that a look failed. While the database was away nobody could write
// to it: of silence since, only what comes after its return counts.
func (o *Observer) Lost(now time.Time) {
	if o.lost {
		return
	}
	o.lost = true
	if !o.back.IsZero() && o.last.Sub(o.back) <= amsFresh {
		return // it went away again before everybody could write
	}
	if o.gone = o.last; o.gone.IsZero() {
		o.gone = now
	}
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

// Look reads the server's clock, the registry and AMS's documents.
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

// Judge puts rows and documents together by address and judges each machine.
// now is the observer's own clock when the look began. The order is that of the
// addresses.
//
// A row that says left owns nothing: what is written under its address since is
// another machine's, or ought to be seen for itself.
func (o *Observer) Judge(l Look, now time.Time) []Member {
	if o.lost {
		o.lost, o.back = false, now
	}
	members := make([]Member, 0, len(l.Nodes))
	owner := make(map[string]int, len(l.Nodes)) // address -> member
	for i := range l.Nodes {
		members = append(members, Member{Node: &l.Nodes[i], AMS: []AMSNode{}})
		n := l.Nodes[i]
		if n.IP == "" || n.State == StateLeft {
			continue
		}
		// Of several rows with one address all but the one written last are
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
		rows: make(map[string]observed, len(l.Nodes)), docs: make(map[string]observed, len(l.AMS)),
		last: now, gone: o.gone, back: o.back,
	}
	for i := range members {
		o.judge(&members[i], l.ServerTime, now, &next)
	}
	*o = next
	slices.SortStableFunc(members, func(a, b Member) int {
		return cmp.Or(compareText(a.Address(), b.Address()), compareText(a.ID(), b.ID()))
	})
	return members
}

func (o *Observer) judge(m *Member, server, now time.Time, next *Observer) {
	slices.SortStableFunc(m.AMS, func(a, b AMSNode) int { return b.LastUpdate.Compare(a.LastUpdate) })
	clock, told := server, false // of the machine, as far as its agent told
	if n := m.Node; n != nil {
		if n.ClockMS != nil {
			clock, told = server.Add(n.ClockMS.Duration()), true
		}
		if !n.UpdatedAt.IsZero() {
			version := fmt.Sprint(n.UpdatedAt.UnixMilli(), n.Seq)
			is, again := o.rows[n.ID]
			if !again || is.version != version {
				is = o.written(server.Sub(n.UpdatedAt), now, true)
			}
			is.version = version
			next.rows[n.ID] = is
			m.Agent = o.heard(is, now, agentLimit(n.interval()))
		}
	}
	for _, doc := range m.AMS {
		version := doc.IP + rawText(doc.written)
		is, again := o.docs[doc.key()]
		switch {
		case again && is.version == version:
		case doc.LastUpdate.IsZero() && !again:
			is.written = time.Time{} // nothing is known of it until it changes
		default:
			is = o.written(clock.Sub(doc.LastUpdate), now, told && !doc.LastUpdate.IsZero())
		}
		is.version = version
		next.docs[doc.key()] = is
		if is.written.IsZero() {
			continue
		}
		if heard := o.heard(is, now, amsFresh); !m.Server.Known || heard.Age < m.Server.Age {
			m.Server = heard
		}
	}
	// AMS's own rule waits for four periods, because one witness that is late is
	// no proof. Two that are late are; a row that nobody ever beat for is none.
	late := m.Node != nil && m.Node.Heartbeats() && !o.fresh(now.Add(-m.Server.Age), now, agentLimit(amsPeriod))
	switch {
	case m.State() == StateLeft:
		m.Verdict = VerdictLeft
	case m.Agent.Fresh && m.Server.Fresh && m.notServing():
		m.Verdict = VerdictNotServing
	case m.Agent.Fresh && m.Server.Fresh:
		m.Verdict = VerdictAlive
	case m.Agent.Fresh:
		m.Verdict = VerdictAMSStale
	case m.Server.Fresh && !late:
		m.Verdict = VerdictAgentStale
	default:
		m.Verdict = VerdictGone
		m.Server.Fresh = false
	}
}

// written tells when a witness wrote what was not there at the look before. age
// is how old that is by its stamp, and told whether that stamp's clock is known.
func (o *Observer) written(age time.Duration, now time.Time, told bool) observed {
	// A stamp of the future is a clock that nobody told us of: it was written,
	// and we cannot say when.
	at := now.Add(-max(0, age))
	switch {
	case o.last.IsZero():
		return observed{written: at, guess: !told}
	case !told:
		at = now
	case at.Before(o.last):
		at = o.last // it came after that, whatever the stamp says
	}
	return observed{written: at}
}

func (o *Observer) heard(is observed, now time.Time, limit time.Duration) Heard {
	return Heard{Known: true, Age: max(1, now.Sub(is.written)), Fresh: o.fresh(is.written, now, limit), Guess: is.guess}
}

// fresh reports whether a witness that wrote last at written has been silent for
// no longer than limit. Where the database was away, one that was heard before
// has as long again after its return.
func (o *Observer) fresh(written, now time.Time, limit time.Duration) bool {
	if now.Sub(written) <= limit {
		return true
	}
	return !o.back.IsZero() && now.Sub(o.back) <= limit && o.gone.Sub(written) <= limit
}

// key names the document, whatever its id is.
func (n AMSNode) key() string { return rawText(n.id) }

// rawText is what is stored, to be compared.
func rawText(v bson.RawValue) string { return string([]byte{byte(v.Type)}) + string(v.Value) }
