// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"net"
	"net/http"
	"strconv"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/internal/promtext"
)

// target is an entry of Prometheus' http_sd format.
type target struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// targets lists every node that has not left, however ill: a target that disappears can fire no alert.
func targets(s state, port int) []target {
	list := []target{}
	for _, m := range s.members {
		addr, ok := cluster.Dialable(m.Address())
		if !ok || m.Node == nil || m.Replaced || m.State() == cluster.StateLeft && !m.Reimaging {
			continue
		}
		labels := map[string]string{"node": m.Node.ID}
		for name, value := range map[string]string{"role": m.Node.Role, "group": m.Node.Group, "zone": m.Node.Zone} {
			if value != "" {
				labels[name] = value
			}
		}
		list = append(list, target{[]string{net.JoinHostPort(addr.Unmap().String(), strconv.Itoa(port))}, labels})
	}
	return list
}

func (w *server) serveTargets(rw http.ResponseWriter, _ *http.Request) {
	s, _ := w.feed.state()
	if s.read.IsZero() {
		http.Error(rw, "the cluster was not read yet: "+s.failed, http.StatusServiceUnavailable) // Prometheus keeps its last list
		return
	}
	writeJSON(rw, targets(s, w.o.MetricsPort))
}

func (w *server) serveMetrics(rw http.ResponseWriter, _ *http.Request) {
	s, _ := w.feed.state()
	rw.Header().Set("Content-Type", promtext.ContentType)
	_, _ = rw.Write(metrics(s))
}

// metrics returns what is known now: while MongoDB is away, that is when it was last read, and what was counted.
func metrics(s state) []byte {
	page := new(promtext.Page)
	page.Gauge("amsagent_cluster_last_look_timestamp_seconds", "When MongoDB was last read, in seconds since 1970.", promtext.Timestamp(s.read))
	var cut []promtext.Series
	for role, n := range s.cut {
		cut = append(cut, promtext.Of(new(float64(n)), "role", role))
	}
	for _, g := range s.groups {
		if _, counted := s.cut[g.name]; g.kind == "role" && !counted {
			cut = append(cut, promtext.Of(new(0.0), "role", g.name))
		}
	}
	page.Family("counter", "amsagent_cluster_cut_sessions_total", "Sessions that nodes of the role cut when they left, since this program started.", cut...)
	if s.failed != "" {
		return page.Bytes()
	}
	type key struct {
		role   string
		state  cluster.State
		health cluster.Health
	}
	count := map[key]float64{}
	for _, m := range s.members {
		if m.Replaced {
			continue // the machine that has the address now counts
		}
		state := m.State()
		if state != "" && !state.Valid() {
			state = "other" // any client can write a record
		}
		count[key{roleOf(board.Node{Member: m}.Record()), state, m.Health}]++
	}
	var nodes, score, free, sessions []promtext.Series
	for k, n := range count {
		nodes = append(nodes, promtext.Of(&n, "role", k.role, "state", string(k.state), "health", string(k.health)))
	}
	for _, g := range s.groups {
		if g.kind != "role" {
			continue
		}
		if known := g.nodes - g.unknown; known > 0 {
			score = append(score, promtext.Of(new(float64(g.score)/float64(100*known)), "role", g.name))
			free = append(free, promtext.Of(new(float64(g.free)/100), "role", g.name))
		}
		for kind, n := range map[string]*int{"publishers": g.all.Publishers, "viewers": g.all.Viewers} {
			if n != nil {
				sessions = append(sessions, promtext.Of(new(float64(*n)), "role", g.name, "kind", kind))
			}
		}
	}
	page.Family("gauge", "amsagent_cluster_nodes", "Nodes by role, state in the registry, and health.", nodes...)
	page.Family("gauge", "amsagent_cluster_score_ratio", "Mean score of the role's serving nodes whose score is known.", score...)
	page.Family("gauge", "amsagent_cluster_free_nodes", "Sum of 1 - score of the role's serving nodes whose score is known: how many nodes are free.", free...)
	page.Family("gauge", "amsagent_cluster_sessions", "Sessions of the role's nodes that could count them.", sessions...)
	return page.Bytes()
}
