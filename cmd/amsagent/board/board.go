// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package board has the texts about nodes and events that commands and the page share.
package board

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/lb"
)

// Query selects and orders nodes.
type Query struct {
	Roles, Groups, States []string // empty: all
	Sort                  string   // one of SortKeys, with - before it in reverse
	All                   bool     // with the nodes that have left
}

// New returns the part of a look that the options select.
func New(opts Query, l cluster.Look, members []cluster.Member) Nodes {
	data := Nodes{ServerTime: l.ServerTime, Members: []Node{}}
	for _, r := range l.Bad {
		data.BadRecords = append(data.BadRecords, BadRecord{r.ID, r.Err.Error()})
	}
	for _, m := range members {
		v := Node{Member: m}
		switch {
		case !lb.Selects(opts.Roles, v.Record().Role), !lb.Selects(opts.Groups, v.Record().Group), !lb.Selects(opts.States, string(v.State())):
		case v.State() == cluster.StateLeft && !v.Reimaging && !opts.All && len(opts.States) == 0:
			data.LeftHidden++
		default:
			data.Members = append(data.Members, v)
		}
	}
	for _, d := range cluster.SettingsDifferences(members) {
		if lb.Selects(opts.Roles, d.Role) {
			data.Settings = append(data.Settings, d)
		}
	}
	data.Summary = Summarize(data.Members)
	sortNodes(data.Members, opts.Sort)
	return data
}

// WriteNodes prints what `amsagent nodes` does.
func WriteNodes(w *output.Text, data Nodes, t Style) {
	w.Line("%s", Headline(data, t.Color))
	if len(data.Members) > 0 {
		w.Line("\n%s", strings.Join(Table(data.Members, t), "\n"))
	}
	after := Afterword(data)
	for _, v := range data.Members {
		if v.State() == cluster.StateDraining {
			after = append(after, output.Printable(v.Address())+" drains: "+DrainText(v, data.ServerTime))
		}
	}
	if len(after) > 0 {
		w.Line("\n%s", strings.Join(after, "\n"))
	}
}

// Headline is the first line of `amsagent nodes`.
func Headline(data Nodes, p output.Palette) string {
	switch {
	case len(data.Members) > 0:
		return data.Summary.line(p)
	case data.LeftHidden > 0:
		return "no nodes"
	}
	return "no nodes: nothing is registered, or nothing matches"
}

// AllSilent describes [cluster.Unknown].
const AllSilent = "no node has a fresh heartbeat: MongoDB accepts no writes, or was away until now"

// longGone is the age from which a dead node's record may be removed.
const longGone = 10 * time.Minute

// Afterword has what the table does not show: records that cannot be read, and what to do.
func Afterword(data Nodes) []string {
	var lines []string
	for _, r := range data.BadRecords {
		lines = append(lines, output.Printable("the record of "+r.ID+" cannot be read: "+r.Why))
	}
	if data.LeftHidden > 0 {
		lines = append(lines, fmt.Sprintf("%d left: shown with --all", data.LeftHidden))
	}
	notServing, old := data.Summary.Health[cluster.NotServing], 0
	if notServing > 1 {
		lines = append(lines, fmt.Sprintf("%d do not serve viewers: amsagent nodes -o json has the reasons", notServing))
	}
	for _, v := range data.Members {
		if v.Health == cluster.NotServing && notServing == 1 {
			lines = append(lines, output.Printable(v.Address()+" does not serve viewers: "+v.WhyNotServing()))
		}
		if v.Health == cluster.Gone && time.Duration(v.Agent.Age) > longGone {
			old++
		}
	}
	for _, d := range data.Settings {
		lines = append(lines, output.Printable(d.String()+": amsagent doctor --explain AMS-UNEQUAL"))
	}
	if data.Summary.Health[cluster.Unknown] > 0 {
		lines = append(lines, AllSilent+"; amsagent nodes --watch shows which come back")
	}
	if old > 0 {
		lines = append(lines, fmt.Sprintf("%d gone for more than %s: amsagent nodes prune lists the records to remove", old, output.Roughly(longGone)))
	}
	return lines
}

// BalancersText names the load balancers that know a node, and whether they send new sessions to it.
func BalancersText(n cluster.Node, serverNow time.Time) string {
	var words []string
	recent := n.BalancersAt(serverNow)
	for _, name := range slices.Sorted(maps.Keys(recent)) {
		word := " took it out"
		if recent[name].Uses {
			word = " uses it"
		}
		words = append(words, output.Printable(name)+word)
	}
	return strings.Join(words, ", ")
}

// DrainText says what holds a node's drain, until when, and by whose deadline.
func DrainText(v Node, serverNow time.Time) string {
	n := v.Record()
	parts := []string{"the sessions are not known"}
	if s := v.Sessions(); s != nil {
		parts[0] = s.Left()
	}
	if n.StopFailed {
		parts = append(parts, "Ant Media Server does not end")
	}
	if d := n.Drain; d != nil && v.HasHeartbeat() {
		at := d.Until.UTC().Format(time.TimeOnly + " MST")
		until := "the deadline was at " + at
		if left := d.Until.Sub(serverNow); left > 0 {
			until = "until " + at + " (" + output.Roughly(left) + ")"
		}
		parts = append(parts, strings.TrimSuffix(until+" by "+d.By, " by "))
	}
	return output.Printable(strings.TrimSuffix(strings.Join(append(parts, BalancersText(n, serverNow)), "; "), "; "))
}
