// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

// Server is a node that a load balancer uses.
type Server struct {
	ID    string     `json:"id"`
	Role  string     `json:"role"`
	Group string     `json:"group,omitempty"`
	Addr  netip.Addr `json:"address"`
	// Port is Ant Media Server's HTTP port.
	Port int `json:"port"`
	// Weight is the share of new sessions within the role, from 1 to 100.
	Weight int `json:"weight"`
	// Full: the server would refuse a new stream. It is in the list, because it has the files of running streams.
	Full bool `json:"full,omitempty"`
	// Since is when the server entered the list; zero for the first list.
	Since time.Time `json:"since,omitzero"`
}

const (
	// leastShare is the least weight under load. With less, nearly all new sessions would go to an empty server.
	leastShare = 10
	// rampTime is how long a new server's weight grows, from a tenth.
	rampTime = time.Minute
	// maxScore is 100 % of a limit of 1 %.
	maxScore = 10_000
	// unknownScore is the score of a role without any known score.
	unknownScore = 50
)

// Filter selects members. Empty lists select all.
type Filter struct {
	Roles, Groups []string
}

func (f Filter) selects(role, group string) bool {
	return role != "" && Selects(f.Roles, role) && Selects(f.Groups, group)
}

// Selects reports whether list is empty or has name, in any case.
func Selects(list []string, name string) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, name) })
}

// Members returns the servers for new sessions, ordered by role and address: active nodes whose server serves, as far as
// known. If no server of a role serves, it returns all of them, because they may have the files of running streams. was is the
// previous list, empty for the first: a new server begins with a low weight.
func Members(members []cluster.Member, f Filter, was []Server, now time.Time) []Server {
	list := []Server{}
	before := index(was)
	scores := map[string][]int{}
	score := map[string]int{}
	members = slices.DeleteFunc(slices.Clone(members), func(m cluster.Member) bool {
		_, ok := cluster.Dialable(m.Address())
		return !ok || !mayServe(m) || m.Replaced || !f.selects(m.Node.Role, m.Node.Group)
	})
	served := map[string]bool{} // roles
	for _, m := range members {
		if serves(m) {
			served[strings.ToLower(m.Node.Role)] = true
		}
	}
	for _, m := range members {
		addr, _ := cluster.Dialable(m.Address())
		n := m.Node
		role := strings.ToLower(n.Role)
		if served[role] && !serves(m) {
			continue
		}
		s := Server{ID: n.ID, Role: role, Group: n.Group, Addr: addr.Unmap(), Port: cmp.Or(n.Port, ams.DefaultHTTPPort), Since: now}
		b, again := before[s.key()]
		switch {
		case again && b.Since.After(now): // the clock was set back
			s.Since = time.Time{}
		case again:
			s.Since = b.Since
		case len(was) > 0 && m.Health == cluster.Unknown:
			continue // after MongoDB was away, the records of dead nodes look like the others
		case len(was) == 0:
			s.Since = time.Time{}
		}
		if n.Load != nil && n.Load.Score != nil && *n.Load.Score >= 0 && *n.Load.Score <= maxScore { // else unknown
			score[s.ID] = *n.Load.Score
			scores[role] = append(scores[role], *n.Load.Score)
		}
		list = append(list, s)
	}
	for i := range list {
		s := &list[i]
		load, known := score[s.ID]
		if !known {
			load = median(scores[s.Role])
		}
		s.Full = known && load >= 100
		s.Weight = ramp(weight(load), now.Sub(s.Since))
	}
	slices.SortFunc(list, compare)
	return list
}

// serves reports whether a node's applications answer, as far as known.
func serves(m cluster.Member) bool {
	return m.Health != cluster.NotServing && (m.Node.Serving == nil || m.Node.Serving.Up)
}

// mayServe accepts an unknown health: the balancer's own check sees a server that is down.
func mayServe(m cluster.Member) bool {
	switch m.Health {
	case cluster.Gone, cluster.Left, cluster.NoAgent:
		return false
	case cluster.Healthy, cluster.NotServing, cluster.AMSStale, cluster.AgentStale, cluster.Unknown:
	}
	return m.State() == cluster.StateActive
}

// weight is the share of a load score.
func weight(score int) int { return min(100, max(leastShare, 100-score)) }

func ramp(weight int, after time.Duration) int {
	share := min(1, max(0.1, after.Seconds()/rampTime.Seconds()))
	return max(1, int(float64(weight)*share+0.5))
}

func median(scores []int) int {
	if len(scores) == 0 {
		return unknownScore
	}
	sorted := slices.Sorted(slices.Values(scores))
	return sorted[len(sorted)/2]
}

// serverKey: a node with another address is another server.
type serverKey struct {
	id, role string
	addr     netip.Addr
}

func (s Server) key() serverKey { return serverKey{s.ID, s.Role, s.Addr} }

func index(list []Server) map[serverKey]Server {
	m := make(map[serverKey]Server, len(list))
	for _, s := range list {
		m[s.key()] = s
	}
	return m
}

func compare(a, b Server) int {
	return cmp.Or(strings.Compare(a.Role, b.Role), a.Addr.Compare(b.Addr), strings.Compare(a.ID, b.ID))
}

// Held is a role whose new list was refused.
type Held struct {
	Role string   `json:"role"`
	IDs  []string `json:"ids"` // of the servers that stay
	Why  string   `json:"reason"`
}

// Evidence is what is known about a server that a new list has lost.
type Evidence int

// The kinds of evidence.
const (
	// Answers: its port is open, or it is not known to be closed.
	Answers Evidence = iota
	// Dead: nothing serves at its port.
	Dead
	// Leaves: its own record takes it out, for example by a drain.
	Leaves
	// HasLeft: its own record takes it out, and nothing serves at its port.
	HasLeft
)

// Guard compares a new list with the last good one. A lost server stays with its last weight, and is reported, while its port
// answers: the registry may be cut off, or the wrong one. The last server of a role stays, too, unless it has left.
func Guard(was, is []Server, evidence func(Server) Evidence) (list []Server, held []Held) {
	list = slices.Clone(is)
	stays := index(is)
	for _, role := range Roles(was) {
		h, after := Held{Role: role, Why: "the cluster has lost them, and their ports answer"}, ofRole(is, role)
		var lost, last []Server
		for _, s := range ofRole(was, role) {
			if _, ok := stays[s.key()]; ok || slices.ContainsFunc(after, func(a Server) bool { return a.Addr == s.Addr }) {
				continue // with another id, another machine has the address
			}
			switch evidence(s) {
			case Answers:
				lost = append(lost, s)
			case Dead, Leaves:
				last = append(last, s)
			case HasLeft:
			}
		}
		if len(after) == 0 && len(lost) == 0 {
			h.Why, lost = "no server of the role would be left", last
		}
		if len(lost) == 0 {
			continue
		}
		for _, s := range lost {
			h.IDs = append(h.IDs, s.ID)
		}
		list = append(list, lost...)
		held = append(held, h)
	}
	slices.SortFunc(list, compare)
	return list, held
}

// Roles returns the roles of a list, in order.
func Roles(list []Server) []string {
	var roles []string
	for _, s := range list {
		if !slices.Contains(roles, s.Role) {
			roles = append(roles, s.Role)
		}
	}
	slices.Sort(roles)
	return roles
}

func ofRole(list []Server, role string) []Server {
	return slices.DeleteFunc(slices.Clone(list), func(s Server) bool { return s.Role != role })
}
