// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package board

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
)

// Events is what `events` prints.
type Events struct {
	// Nodes are the ids that were asked for; none are all.
	Nodes  []string            `json:"nodes,omitempty"`
	Events []cluster.PastEvent `json:"events"`
}

// WriteEvents prints the events, the latest last.
func WriteEvents(w *output.Text, d Events, nodes []cluster.Node) {
	if len(d.Events) == 0 {
		w.Line("no events")
		return
	}
	w.Table(d.Rows(nodes))
}

// Rows returns the time, node, kind, author and reason of each event.
func (d Events) Rows(nodes []cluster.Node) (rows [][]string) {
	names := map[string]string{}
	for _, n := range nodes {
		names[n.ID] = NodeText(&n)
	}
	for _, e := range d.Events {
		at := "-"
		if !e.At.IsZero() {
			at = output.Zoned(e.At.UTC())
		}
		rows = append(rows, []string{at, output.Dash(cmp.Or(names[e.Node], e.Node)), output.Dash(e.Kind), output.Dash(e.Who), eventText(e)})
	}
	return rows
}

// eventText is the reason of an event and its details.
func eventText(e cluster.PastEvent) string {
	var parts []string
	if e.Why != "" {
		parts = append(parts, e.Why)
	}
	if e.Cut != nil {
		parts = append(parts, output.Count(int(*e.Cut), "session")+" cut")
	}
	for _, key := range slices.Sorted(maps.Keys(e.Details)) {
		parts = append(parts, fmt.Sprintf("%s %s", key, e.Details[key]))
	}
	return output.Dash(strings.Join(parts, "; "))
}
