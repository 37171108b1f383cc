// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Verdict is what the two witnesses of a node say together: its agent, which
// beats into the registry, and its AMS, which writes clusternode.
type Verdict string

// The verdicts.
const (
	VerdictAlive      Verdict = "alive"       // both are heard
	VerdictAMSStale   Verdict = "ams-stale"   // the agent is heard, AMS is silent
	VerdictAgentStale Verdict = "agent-stale" // AMS is heard, the agent is silent
	VerdictGone       Verdict = "gone"        // neither is heard
)

// Verdicts returns all verdicts, from well to bad.
func Verdicts() []Verdict {
	return []Verdict{VerdictAlive, VerdictAMSStale, VerdictAgentStale, VerdictGone}
}

const (
	// DefaultInterval is the time from beat to beat where nothing else is said.
	DefaultInterval = 5 * time.Second
	// beatSlack is what a beat may be late: jitter, a slow write, a busy machine.
	beatSlack = time.Second
	// amsPeriod is how often AMS writes its document.
	amsPeriod = 5 * time.Second
)

// agentLimit is how long an agent may be silent: two beats and a second.
func agentLimit(interval time.Duration) time.Duration {
	if interval <= 0 {
		interval = DefaultInterval
	}
	return 2*interval + beatSlack
}

// Heard is when a witness was last heard.
type Heard struct {
	// Known is false where there is no such witness.
	Known bool          `json:"known"`
	Age   time.Duration `json:"age_ns,omitempty"`
	Fresh bool          `json:"fresh"`
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

// Refused takes into account that nobody listens where the node's AMS ought to
// answer: of a node whose agent is silent, that is the end. Without it, AMS is
// taken for silent only when it has missed two of its periods.
func (m *Member) Refused() {
	if !m.Agent.Fresh {
		m.Server.Fresh = false
		m.Verdict = VerdictGone
	}
}

// Observer judges the members of a cluster, one look after the other. It
// remembers when AMS's documents changed under its eyes, so that the clocks of
// the nodes do not matter; on the first look it relies on what each agent said
// of its machine's clock. The zero value is ready. It is not for several
// goroutines at once.
type Observer struct {
	seen map[string]observed
}

type observed struct {
	doc AMSNode
	// changed is when the document was seen to change, by the observer's own
	// clock; zero until it did.
	changed time.Time
}

// Look is one look at the cluster.
type Look struct {
	Nodes []Node    // of the registry
	AMS   []AMSNode // of clusternode
	// ServerTime is the clock of MongoDB at the time of the look.
	ServerTime time.Time
}

// Look reads the registry, AMS's documents and the server's clock.
func (c *Client) Look(ctx context.Context) (Look, error) {
	var l Look
	var err error
	if l.Nodes, err = c.Nodes(ctx); err != nil {
		return Look{}, err
	}
	if l.AMS, err = c.AMSNodes(ctx); err != nil {
		return Look{}, err
	}
	l.ServerTime, err = c.ServerTime(ctx)
	return l, err
}

// Judge puts rows and documents together by address and judges each machine.
// now is the observer's own clock. The order is that of the addresses.
func (o *Observer) Judge(l Look, now time.Time) []Member {
	owner := ownersOf(l.Nodes)
	members := make([]Member, 0, len(l.Nodes))
	for i := range l.Nodes {
		members = append(members, Member{Node: &l.Nodes[i], AMS: []AMSNode{}})
	}
	for _, doc := range l.AMS {
		i, ok := owner(doc.IP)
		if !ok {
			i = slices.IndexFunc(members, func(m Member) bool { return m.Node == nil && SameAddress(m.AMS[0].IP, doc.IP) })
			if i < 0 {
				members = append(members, Member{AMS: []AMSNode{}})
				i = len(members) - 1
			}
		}
		members[i].AMS = append(members[i].AMS, doc)
	}
	seen := make(map[string]observed, len(l.AMS))
	for i := range members {
		o.judge(&members[i], l.ServerTime, now, seen)
	}
	o.seen = seen
	slices.SortStableFunc(members, func(a, b Member) int {
		return cmp.Or(compareText(a.Address(), b.Address()), compareText(a.ID(), b.ID()))
	})
	return members
}

// ownersOf tells which row an address belongs to: of several with the same one,
// the one that is in the cluster, and of these the one written last. The others
// are earlier machines that had the address.
func ownersOf(nodes []Node) func(address string) (int, bool) {
	byAddress := make(map[string]int)
	spelling := func(a string) string {
		if addr, err := netip.ParseAddr(a); err == nil {
			return addr.Unmap().WithZone("").String()
		}
		return a
	}
	for i, n := range nodes {
		if n.IP == "" {
			continue
		}
		key := spelling(n.IP)
		j, taken := byAddress[key]
		if !taken || betterOwner(n, nodes[j]) {
			byAddress[key] = i
		}
	}
	return func(address string) (int, bool) {
		i, ok := byAddress[spelling(address)]
		return i, ok
	}
}

func betterOwner(a, b Node) bool {
	if in := a.State != StateLeft; in != (b.State != StateLeft) {
		return in
	}
	return a.UpdatedAt.After(b.UpdatedAt)
}

func (o *Observer) judge(m *Member, server, now time.Time, seen map[string]observed) {
	slices.SortStableFunc(m.AMS, func(a, b AMSNode) int { return b.LastUpdate.Compare(a.LastUpdate) })
	// The clock of the machine, as far as its agent told.
	clock := server
	if n := m.Node; n != nil {
		if n.ClockMS != nil {
			clock = server.Add(time.Duration(*n.ClockMS) * time.Millisecond)
		}
		if age, known := n.Age(server); known {
			limit := agentLimit(time.Duration(n.IntervalMS) * time.Millisecond)
			m.Agent = Heard{Known: true, Age: age, Fresh: age <= limit}
		}
	}
	for _, doc := range m.AMS {
		before, again := o.seen[doc.key()]
		is := observed{doc: doc, changed: before.changed}
		if again && !doc.sameVersion(before.doc) {
			is.changed = now
		}
		seen[doc.key()] = is
		if doc.LastUpdate.IsZero() {
			continue
		}
		// A stamp of the future is a clock that nobody told us of: it was
		// written, and we cannot say when.
		age := max(0, clock.Sub(doc.LastUpdate))
		if !is.changed.IsZero() {
			age = now.Sub(is.changed)
		}
		if !m.Server.Known || age < m.Server.Age {
			m.Server = Heard{Known: true, Age: age}
		}
	}
	m.Server.Fresh = m.Server.Known && m.Server.Age <= amsFresh
	switch {
	case m.Agent.Fresh && m.Server.Fresh:
		m.Verdict = VerdictAlive
	case m.Agent.Fresh:
		m.Verdict = VerdictAMSStale
	case m.Server.Fresh && m.Server.Age <= agentLimit(amsPeriod):
		m.Verdict = VerdictAgentStale
	case m.Server.Fresh && m.Node == nil:
		// There is no agent that could speak for it: AMS's own rule holds.
		m.Verdict = VerdictAgentStale
	default:
		// AMS's own rule waits for four periods, because one witness that is
		// late is no proof. Two that are late are.
		m.Verdict = VerdictGone
		m.Server.Fresh = false
	}
}

// key names the document whatever its id is.
func (n AMSNode) key() string { return n.id.String() + " " + n.IP }

// RemoveNode deletes the row of a node if nobody has written it since it was
// read. It reports whether the row is not there any more.
func (c *Client) RemoveNode(ctx context.Context, n Node) (bool, error) {
	if n.ID == "" {
		return false, errors.New("removing a node: it has no id")
	}
	op := "removing node " + n.ID
	filter := bson.D{{Key: "_id", Value: n.ID}, {Key: "updated_at", Value: bson.D{{Key: "$exists", Value: false}}}}
	if !n.UpdatedAt.IsZero() {
		filter[1].Value = n.UpdatedAt
	}
	err := c.call(ctx, op, func(ctx context.Context) error {
		// The count says nothing after an attempt whose answer was lost.
		_, err := c.nodes().DeleteOne(ctx, filter)
		return err
	})
	if err != nil {
		return false, err
	}
	switch _, err := c.Node(ctx, n.ID); {
	case errors.Is(err, ErrNoNode):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("%s: looking again: %w", op, err)
	}
	return false, nil
}
