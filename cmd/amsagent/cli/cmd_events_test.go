// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
)

func TestEvents(t *testing.T) {
	// Outside a cloud an id is no name. Of a node whose record is gone nothing else is known.
	const named, gone = "m-bce15aa9449b48d5a7ee27d83cc6dd98", "m-00000000000000000000000000000000"
	m := withMongo(t)
	at := time.Now().UTC().Add(-24 * time.Hour)
	day := "  " + at.Format(time.DateTime) + " UTC  "
	for _, e := range []map[string]any{
		{"_id": "1", "at": at.Add(-3 * time.Hour), "node": "i-1", "kind": "failed"},
		{"_id": "2", "at": at, "node": "i-1", "kind": "join", "asked_by": "amsagent", "details": map[string]string{"address": "10.0.1.5"}},
		{"_id": "3", "at": at, "node": named, "kind": "join"},
		{"_id": "4", "at": at, "node": "10.0.1.5", "kind": "drained", "asked_by": "ann", "reason": "scale-in\x1b[2J", "cut": 3, "details": map[string]string{"result": "left", "a": "b"}},
		{"_id": "5", "at": at, "node": gone, "kind": "left"},
		{"_id": "6", "at": time.Time{}.Add(-time.Hour), "node": gone, "kind": "left"},
	} {
		m.registry.Put(pastEvents, e)
	}
	m.node("i-1", "10.0.1.5", 0)
	m.node(named, "10.0.1.6", 0, func(n *cluster.Node) { n.Hostname = "edge-7\x1b[2J" })
	all := day + "i-1                                                   join     amsagent  address 10.0.1.5\n" +
		day + `edge-7\u001b[2J (` + named + ")  join     -         -\n" +
		day + `10.0.1.5                                              drained  ann       scale-in\u001b[2J; 3 sessions cut; a b; result left` + "\n" +
		day + gone + "                    left     -         -\n"
	for args, want := range map[string]string{
		"10.0.1.5 --since 25h": day + "i-1       join     amsagent  address 10.0.1.5\n" +
			day + `10.0.1.5  drained  ann       scale-in\u001b[2J; 3 sessions cut; a b; result left` + "\n",
		"--since 25h":    all,
		"--limit 4":      all,
		gone + " -n 9":   "  -                        " + gone + "  left  -  -\n" + day + gone + "  left  -  -\n",
		"i-9":            "no events\n",
		"i-1 --since 1s": "no events\n",
	} {
		c := m.run(append([]string{"events"}, strings.Fields(args)...)...)
		c.ends(codeOK)
		must.NoDiff(t, args, c.stdout.String(), want)
	}
	c := m.run("events", "--limit", "2", "-o", "json") // whose ids are no names
	c.ends(codeOK)
	must.Contain(t, "JSON", c.stdout.String(), `"node": "10.0.1.5"`, `"node": "`+gone+`"`)
	m.registry.SetFault(func(string, string) fakemongo.Fate { return fakemongo.Fails })
	c = m.run("events", "i-1")
	c.ends(codeFailed)
	c.said("cannot read the history: ")
}
