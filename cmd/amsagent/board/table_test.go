// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package board

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

// aNode is a node that is well; change makes it another.
func aNode(i int, change ...func(*Node)) Node {
	v := Node{Member: cluster.Member{
		Node: &cluster.Node{
			ID: fmt.Sprintf("i-0123456789abcde%02x", i), IP: fmt.Sprintf("10.0.%d.%d", i/200, 5+i%200), Role: "origin", Group: "origins-a",
			Zone: "eu-west-1a", Agent: "0.3.0", AMS: "3.0.3", State: cluster.StateActive, Interval: seconds.Duration(5 * time.Second),
			Heartbeat: cluster.Heartbeat{
				Seq:      7,
				Load:     &cluster.Load{CPU: new((i * 37) % 101), Mem: new((i*13 + 40) % 101), Score: new(max((i*37)%101, (i*13+40)%101))},
				Sessions: &cluster.Sessions{Publishers: new(i % 7), Viewers: new(i * 31 % 400), By: cluster.CountedByAMS},
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
func aCluster() []Node {
	edge := func(v *Node) { v.Node.Role, v.Node.Group = "edge", "edges" }
	return []Node{
		aNode(1, func(v *Node) {
			v.Node.Load = &cluster.Load{CPU: new(83), Mem: new(61), Score: new(97), GPUs: []cluster.GPULoad{{Util: new(40), Enc: new(97)}, {Util: new(12)}}}
		}),
		aNode(2, func(v *Node) { // the driver reports nothing about its devices
			v.Node.Load = &cluster.Load{CPU: new(0), Mem: new(100), GPUs: make([]cluster.GPULoad, 4)}
			v.Node.Sessions = &cluster.Sessions{Publishers: new(0), Viewers: new(12), By: cluster.CountedByConnections}
		}),
		aNode(3, edge, func(v *Node) {
			v.Health, v.Server = cluster.AMSStale, cluster.Signal{Known: true, Age: seconds.Duration(80 * time.Second), Estimated: true}
			v.Node.Sessions = nil
		}),
		aNode(4, edge, func(v *Node) {
			v.Health, v.Agent.Fresh, v.Agent.Age, v.Node.State = cluster.AgentStale, false, seconds.Duration(14*time.Second), cluster.StateDraining
		}),
		aNode(5, edge, func(v *Node) {
			v.Health, v.Agent.Fresh, v.Server.Fresh, v.Agent.Age, v.Server.Age = cluster.Gone, false, false, seconds.Duration(3*time.Hour), seconds.Duration(3*time.Hour)
		}),
		aNode(6, func(v *Node) {
			*v = Node{Member: cluster.Member{
				AMS:    []cluster.AMSNode{{ID: "0c8a10.0.0.99", IP: "10.0.0.99", CPU: new(7.0), Memory: "586/1945"}},
				Server: cluster.Signal{Known: true, Fresh: true, Age: seconds.Duration(2 * time.Second), Estimated: true}, Health: cluster.NoAgent,
			}}
		}),
		aNode(7, edge, func(v *Node) {
			v.Node.State, v.Node.Role, v.Node.Load, v.Node.Sessions = cluster.StateJoining, "\x1b[2Jtranscoder", nil, nil
			v.Node.Group = "生产"
		}),
	}
}

// notServing is a node that is active and whose viewers are not served.
func notServing(i int) Node {
	return aNode(i, func(v *Node) {
		v.Health, v.Node.Serving = cluster.NotServing, &cluster.Serving{Why: "LiveApp fails\x1b[2J"}
	})
}

func dataOf(members []Node) Nodes {
	return Nodes{Members: members, Summary: Summarize(members)}
}

func TestNodesTable(t *testing.T) {
	for name, s := range map[string]Style{
		"plain":     {},
		"80":        {Width: 80},
		"120":       {Width: 120},
		"160":       {Width: 160},
		"200":       {Width: 200},
		"40":        {Width: 40},
		"120-color": {Width: 120, Color: output.Palette{On: true}},
		"80-color":  {Width: 80, Color: output.Palette{On: true}},
	} {
		t.Run(name, func(t *testing.T) {
			data := dataOf(append(aCluster(), notServing(8)))
			data.LeftHidden = 2
			w := &output.Text{}
			WriteNodes(w, data, s)
			must.Golden(t, *update, "table-"+name+".txt", w.String())
			for _, line := range Table(data.Members, s) {
				if n := utf8.RuneCountInString(withoutColor(line)); s.Width > 0 && n > s.Width {
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
		members []Node
		want    string
	}{
		{"all kinds", aCluster(), "7 nodes: 3 healthy, 1 ams-stale, 1 agent-stale, 1 no-agent, 1 gone; 1 draining, 1 joining; 2 origins, 3 edges, 1 \\u001b[2Jtranscoder; 1 publisher, about 43 viewers, 4 nodes not counted"},
		{"one", []Node{aNode(1)}, "1 node: 1 healthy; 1 origin; 1 publisher, 31 viewers"},
		{"not counted", []Node{aNode(1, func(v *Node) { v.Node.Sessions = &cluster.Sessions{} })}, "1 node: 1 healthy; 1 origin"},
		{"zero is known", []Node{aNode(0)}, "1 node: 1 healthy; 1 origin; 0 publishers, 0 viewers"},
		{"no roles", []Node{aNode(0, func(v *Node) { v.Node.Role = "" })}, "1 node: 1 healthy; 0 publishers, 0 viewers"},
		{"some without", []Node{aNode(0, func(v *Node) { v.Node.Role = "" }), aNode(1)}, "2 nodes: 2 healthy; 1 origin, 1 without a role; 1 publisher, 31 viewers"},
	} {
		must.NoDiff(t, tt.name, Headline(dataOf(tt.members), output.Palette{}), tt.want)
	}
	must.Equal(t, "headline", Headline(Nodes{}, output.Palette{}), "no nodes: nothing is registered, or nothing matches")
	must.Equal(t, "headline", Headline(Nodes{LeftHidden: 1}, output.Palette{}), "no nodes")
	some := dataOf([]Node{aNode(0, func(v *Node) { v.Node.Role = "" }), aNode(1)})
	must.NoDiff(t, "roles", some.Summary.Roles, map[string]int{"none": 1, "origin": 1})
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
		data := New(Query{Sort: key}, cluster.Look{}, membersOf(aCluster()))
		must.Equal(t, key, addressesOf(data), want)
	}
}

func membersOf(nodes []Node) (members []cluster.Member) {
	for _, v := range nodes {
		members = append(members, v.Member)
	}
	return members
}

// addressesOf lists the last bytes of the addresses in their order.
func addressesOf(data Nodes) string {
	var last []string
	for _, v := range data.Members {
		last = append(last, v.Address()[len("10.0.0."):])
	}
	return strings.Join(last, " ")
}

func TestNew(t *testing.T) {
	members := membersOf(aCluster())
	left := aNode(9, func(v *Node) {
		v.Node.State, v.Health, v.Agent.Fresh = cluster.StateLeft, cluster.Gone, false
	})
	members = append(members, left.Member)
	for _, tt := range []struct {
		name   string
		opts   Query
		want   string
		hidden int
	}{
		{"all but those that left", Query{}, "6 7 8 9 10 99 12", 1},
		{"those that left, too", Query{All: true}, "6 7 8 9 10 99 12 14", 0},
		{"only those that left", Query{States: []string{"left"}}, "14", 0},
		{"a role", Query{Roles: []string{"edge"}}, "8 9 10", 0},
		{"a role in capitals", Query{Roles: []string{"Edge"}}, "8 9 10", 0},
		{"several", Query{Roles: []string{"edge", "origin"}, States: []string{"draining", "active"}}, "6 7 8 9 10", 0},
		{"a group", Query{Groups: []string{"生产"}}, "12", 0},
		{"none", Query{Roles: []string{"x"}}, "", 0},
	} {
		tt.opts.Sort = "address"
		data := New(tt.opts, cluster.Look{}, members)
		if s := addressesOf(data); s != tt.want || data.LeftHidden != tt.hidden || data.Summary.Nodes != len(data.Members) || data.Members == nil {
			t.Errorf("%s: %s, %d hidden", tt.name, s, data.LeftHidden)
		}
	}
}

// The comparison is with all nodes of a role, also those that the query does not show.
func TestNodesWithOtherSettings(t *testing.T) {
	var members []cluster.Member
	for i := range 3 {
		members = append(members, aNode(i, func(v *Node) { v.Node.Digest = "a" }).Member)
	}
	members[1].Node.Digest, members[1].Node.Group = "b", "origins-b\x1b[2J"
	for _, tt := range []struct {
		opts Query
		want string
	}{
		{Query{}, members[1].Node.ID},
		{Query{Groups: []string{"origins-a"}}, members[1].Node.ID},
		{Query{Roles: []string{"edge"}}, ""},
	} {
		data := New(tt.opts, cluster.Look{}, members)
		text := strings.Join(Afterword(data), "\n")
		switch {
		case tt.want == "" && (len(data.Settings) > 0 || text != ""):
			t.Errorf("%+v: %+v, %q", tt.opts, data.Settings, text)
		case tt.want != "" && (len(data.Settings) != 1 || strings.Join(data.Settings[0].Nodes, " ") != tt.want || !data.Settings[0].Most ||
			!strings.Contains(text, members[1].Node.IP) || !strings.Contains(text, "AMS-UNEQUAL")):
			t.Errorf("%+v: %+v, %q", tt.opts, data.Settings, text)
		}
	}
}

// Outside a cloud a node's id is made of the machine id: the table shows the host name.
func TestNodesByHostName(t *testing.T) {
	const id = "m-bce15aa9449b48d5a7ee27d83cc6dd98"
	members := []Node{aNode(1, func(v *Node) { v.Node.ID, v.Node.Hostname = id, "edge-7\x1b[2J" }), aNode(2, func(v *Node) { v.Node.Hostname = "ip-10-0-0-2" })}
	for _, width := range []int{0, 200, 80, 40} {
		lines := Table(members, Style{Width: width})
		if !strings.HasPrefix(lines[1], `edge-7\u001b[2J  `) || !strings.HasPrefix(lines[2], "i-") {
			t.Errorf("%d columns:\n%s", width, strings.Join(lines, "\n"))
		}
	}
}

var update = flag.Bool("update", false, "rewrite testdata")
