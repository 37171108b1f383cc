// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata"
)

func ptr[T any](v T) *T { return &v }

// aNode is a node that is well; change makes it another.
func aNode(i int, change ...func(*nodeView)) nodeView {
	v := nodeView{Member: cluster.Member{
		Node: &cluster.Node{
			ID: fmt.Sprintf("i-0123456789abcde%02x", i), IP: fmt.Sprintf("10.0.%d.%d", i/200, 5+i%200), Role: "origin", Group: "origins-a",
			Zone: "eu-west-1a", Agent: "0.3.0", AMS: "3.0.3", State: cluster.StateActive, Interval: seconds.Duration(5 * time.Second),
			Heartbeat: cluster.Heartbeat{
				Seq:      7,
				Load:     &cluster.Load{CPU: ptr((i * 37) % 101), Mem: ptr((i*13 + 40) % 101), Score: ptr(max((i*37)%101, (i*13+40)%101))},
				Sessions: &cluster.Sessions{Publishers: ptr(i % 7), Viewers: ptr(i * 31 % 400), By: cluster.CountedByAMS},
			},
		},
		AMS:    []cluster.AMSNode{{ID: fmt.Sprint("x", i)}},
		Agent:  cluster.Signal{Known: true, Fresh: true, Age: seconds.Duration(3 * time.Second)},
		Server: cluster.Signal{Known: true, Fresh: true, Age: seconds.Duration(4 * time.Second)},
		Health: cluster.Healthy,
	}}
	for _, f := range change {
		f(&v)
	}
	return v
}

// aCluster has one of each kind.
func aCluster() []nodeView {
	edge := func(v *nodeView) { v.Node.Role, v.Node.Group = "edge", "edges" }
	return []nodeView{
		aNode(1, func(v *nodeView) {
			v.Node.Load = &cluster.Load{CPU: ptr(83), Mem: ptr(61), Score: ptr(97), GPUs: []cluster.GPULoad{{Util: ptr(40), Enc: ptr(97)}, {Util: ptr(12)}}}
		}),
		aNode(2, func(v *nodeView) { // the driver reports nothing about its devices
			v.Node.Load = &cluster.Load{CPU: ptr(0), Mem: ptr(100), GPUs: make([]cluster.GPULoad, 4)}
			v.Node.Sessions = &cluster.Sessions{Publishers: ptr(0), Viewers: ptr(12), By: cluster.CountedByConnections}
		}),
		aNode(3, edge, func(v *nodeView) {
			v.Health, v.Server = cluster.AMSStale, cluster.Signal{Known: true, Age: seconds.Duration(80 * time.Second), Estimated: true}
			v.Node.Sessions = nil
		}),
		aNode(4, edge, func(v *nodeView) {
			v.Health, v.Agent.Fresh, v.Agent.Age, v.Node.State = cluster.AgentStale, false, seconds.Duration(14*time.Second), cluster.StateDraining
		}),
		aNode(5, edge, func(v *nodeView) {
			v.Health, v.Agent.Fresh, v.Server.Fresh, v.Agent.Age, v.Server.Age = cluster.Gone, false, false, seconds.Duration(3*time.Hour), seconds.Duration(3*time.Hour)
		}),
		aNode(6, func(v *nodeView) {
			*v = nodeView{Member: cluster.Member{
				AMS:    []cluster.AMSNode{{ID: "0c8a10.0.0.99", IP: "10.0.0.99", CPU: ptr(7.0), Memory: "586/1945"}},
				Server: cluster.Signal{Known: true, Fresh: true, Age: seconds.Duration(2 * time.Second), Estimated: true}, Health: cluster.NoAgent,
			}}
		}),
		aNode(7, edge, func(v *nodeView) {
			v.Node.State, v.Node.Role, v.Node.Load, v.Node.Sessions = cluster.StateJoining, "\x1b[2Jtranscoder", nil, nil
			v.Node.Group = "生产"
		}),
	}
}

// notServing is a node that is active and whose viewers are not served.
func notServing(i int) nodeView {
	return aNode(i, func(v *nodeView) {
		v.Health, v.Node.Serving = cluster.NotServing, &cluster.Serving{Why: "LiveApp fails\x1b[2J"}
	})
}

func dataOf(members []nodeView) nodesData {
	return nodesData{Members: members, Summary: summarize(members)}
}

func TestNodesTable(t *testing.T) {
	for name, s := range map[string]tableStyle{
		"plain":     {},
		"80":        {width: 80},
		"120":       {width: 120},
		"160":       {width: 160},
		"200":       {width: 200},
		"40":        {width: 40},
		"120-color": {width: 120, color: output.Palette{On: true}},
		"80-color":  {width: 80, color: output.Palette{On: true}},
	} {
		t.Run(name, func(t *testing.T) {
			data := dataOf(append(aCluster(), notServing(8)))
			data.LeftHidden = 2
			w := &output.Text{}
			nodesText(w, data, s)
			golden(t, filepath.Join("nodes", "table-"+name+".txt"), w.String())
			for _, line := range nodeTable(data.Members, s) {
				if n := utf8.RuneCountInString(withoutColor(line)); s.width > 0 && n > s.width {
					t.Errorf("%d columns: %q", n, line)
				}
				if strings.Contains(line, "\x1b[2J") {
					t.Errorf("a row wrote to the terminal: %q", line)
				}
			}
		})
	}
}

func withoutColor(s string) string {
	for {
		before, rest, ok := strings.Cut(s, "\x1b[")
		if !ok {
			return s
		}
		_, after, _ := strings.Cut(rest, "m")
		s = before + after
	}
}

func TestNodesSummary(t *testing.T) {
	for _, tt := range []struct {
		name    string
		members []nodeView
		want    string
	}{
		{"all kinds", aCluster(), "7 nodes: 3 healthy, 1 ams-stale, 1 agent-stale, 1 no-agent, 1 gone; 1 draining, 1 joining; 2 origins, 3 edges, 1 \\u001b[2Jtranscoder; 1 publisher, about 43 viewers, 4 nodes not counted"},
		{"one", []nodeView{aNode(1)}, "1 node: 1 healthy; 1 origin; 1 publisher, 31 viewers"},
		{"not counted", []nodeView{aNode(1, func(v *nodeView) { v.Node.Sessions = &cluster.Sessions{} })}, "1 node: 1 healthy; 1 origin"},
		{"zero is known", []nodeView{aNode(0)}, "1 node: 1 healthy; 1 origin; 0 publishers, 0 viewers"},
		{"no roles", []nodeView{aNode(0, func(v *nodeView) { v.Node.Role = "" })}, "1 node: 1 healthy; 0 publishers, 0 viewers"},
		{"some without", []nodeView{aNode(0, func(v *nodeView) { v.Node.Role = "" }), aNode(1)}, "2 nodes: 2 healthy; 1 origin, 1 without a role; 1 publisher, 31 viewers"},
	} {
		if got := headline(dataOf(tt.members), output.Palette{}); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
	if got := headline(nodesData{}, output.Palette{}); got != "no nodes: nothing is registered, or nothing matches" {
		t.Error(got)
	}
	if got := headline(nodesData{LeftHidden: 1}, output.Palette{}); got != "no nodes" {
		t.Error(got)
	}
	some := dataOf([]nodeView{aNode(0, func(v *nodeView) { v.Node.Role = "" }), aNode(1)})
	if diff := cmp.Diff(map[string]int{"none": 1, "origin": 1}, some.Summary.Roles); diff != "" {
		t.Error(diff)
	}
}

func TestNodesSort(t *testing.T) {
	for key, want := range map[string]string{
		"address":   "6 7 8 9 10 99 12",
		"-address":  "12 99 10 9 8 7 6",
		"cpu":       "7 99 8 6 9 10 12",
		"-cpu":      "6 8 99 7 9 10 12",
		"sessions":  "7 6 8 9 10 99 12",
		"-sessions": "6 7 8 9 10 99 12",
		"state":     "12 6 7 8 10 9 99",
	} {
		members := aCluster()
		sortNodes(members, key)
		var order []string
		for _, m := range members {
			order = append(order, m.Address()[len("10.0.0."):])
		}
		if got := strings.Join(order, " "); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

// Outside a cloud a node's id is made of the machine id: the table shows the host name. Other texts have both.
func TestNodesByHostName(t *testing.T) {
	const id = "m-bce15aa9449b48d5a7ee27d83cc6dd98"
	members := []nodeView{aNode(1, func(v *nodeView) { v.Node.ID, v.Node.Hostname = id, "edge-7\x1b[2J" }), aNode(2, func(v *nodeView) { v.Node.Hostname = "ip-10-0-0-2" })}
	for _, width := range []int{0, 200, 80, 40} {
		lines := nodeTable(members, tableStyle{width: width})
		if !strings.HasPrefix(lines[1], `edge-7\u001b[2J  `) || !strings.HasPrefix(lines[2], "i-") {
			t.Errorf("%d columns:\n%s", width, strings.Join(lines, "\n"))
		}
	}
	e, v := &testEnv{}, members[0]
	must.OK(t, (&watcher{g: plainGlobals(e)}).printChange("first", v, v))
	pruned, joined := &output.Text{}, &output.Text{}
	pruneText(pruned, pruneData{Remove: []pruneItem{{member: v.Member}}})
	joinText(joined, &bootstrap.JoinResult{Outcome: bootstrap.OutcomeJoined, Instance: metadata.Instance{ID: id, Hostname: v.Node.Hostname}}, "", cluster.Target{})
	drain := remoteDrain{node: *v.Node}
	lines := []string{e.stdout.String(), pruned.String(), joined.String(), drain.progress()}
	for _, c := range []bootstrap.Convergence{{}, {Standalone: true}, {Repairs: []bootstrap.Finding{{ID: bootstrap.IDDrift}}}} {
		w := &output.Text{}
		c.Phase, c.Node = bootstrap.PhaseJoined, *v.Node
		convergeText(w, &c)
		lines = append(lines, w.String())
	}
	for _, line := range lines {
		if want := `edge-7\u001b[2J (` + id + ")"; !strings.Contains(line, want) {
			t.Errorf("lacks %s:\n%s", want, line)
		}
	}
}
