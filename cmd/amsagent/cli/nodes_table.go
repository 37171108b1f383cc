// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/metadata/generic"
)

// nodeView is one machine of the cluster as `nodes` shows it.
type nodeView struct {
	cluster.Member
}

// nodesData is what `nodes` prints.
type nodesData struct {
	ServerTime time.Time    `json:"server_time"`
	Summary    nodesSummary `json:"summary"`
	Members    []nodeView   `json:"members"`
	// LeftHidden counts the nodes that have left and are not among Members.
	LeftHidden int `json:"left_hidden"`
	// BadRecords are records of the registry that hold what no agent writes, and are no members.
	BadRecords []badRecord `json:"bad_records,omitempty"`
}

type badRecord struct {
	ID  string `json:"id"`
	Why string `json:"reason"`
}

// noRole counts the nodes without a role: an empty name in JSON looks like a mistake.
const noRole = "none"

// nodesSummary counts the members shown.
type nodesSummary struct {
	Nodes  int                    `json:"nodes"`
	Health map[cluster.Health]int `json:"health"`
	States map[cluster.State]int  `json:"states"`
	// Roles are the nodes' own; "none" counts those without one.
	Roles map[string]int `json:"roles"`
	// Publishers and Viewers are of the nodes with a fresh heartbeat that could count; nil if none could.
	Publishers *int `json:"publishers,omitempty"`
	Viewers    *int `json:"viewers,omitempty"`
	// Estimated is whether some viewers were counted by their connections.
	Estimated bool `json:"viewers_estimated,omitempty"`
	// NotCounted are nodes whose sessions are unknown, although they are not gone.
	NotCounted int `json:"not_counted"`
}

func summarize(members []nodeView) nodesSummary {
	s := nodesSummary{
		Nodes: len(members), Health: map[cluster.Health]int{}, States: map[cluster.State]int{}, Roles: map[string]int{},
	}
	add := func(sum **int, n *int) {
		if n == nil {
			return
		}
		if *sum == nil {
			*sum = new(int)
		}
		**sum += *n
	}
	for _, m := range members {
		s.Health[m.Health]++
		if m.Node != nil {
			s.States[m.State()]++
			s.Roles[cmp.Or(m.Node.Role, noRole)]++
		}
		sessions := m.sessions()
		if sessions == nil || sessions.Publishers == nil || sessions.Viewers == nil {
			if m.Health != cluster.Gone && m.Health != cluster.Unknown && m.Health != cluster.Left {
				s.NotCounted++
			}
		}
		if sessions != nil {
			add(&s.Publishers, sessions.Publishers)
			add(&s.Viewers, sessions.Viewers)
			s.Estimated = s.Estimated || sessions.Viewers != nil && sessions.By == cluster.CountedByConnections
		}
	}
	return s
}

// line is the summary in one line.
func (s nodesSummary) line(p output.Palette) string {
	var health, states, sessions []string
	for _, h := range cluster.Healths() {
		if n := s.Health[h]; n > 0 && h != cluster.Left { // left is also a state
			health = append(health, paintHealth(p, h, fmt.Sprintf("%d %s", n, h)))
		}
	}
	for _, st := range slices.Sorted(maps.Keys(s.States)) {
		if st != cluster.StateActive && st != "" {
			states = append(states, fmt.Sprintf("%d %s", s.States[st], output.Printable(string(st))))
		}
	}
	if s.Publishers != nil {
		sessions = append(sessions, output.Count(*s.Publishers, "publisher"))
	}
	if s.Viewers != nil {
		about := ""
		if s.Estimated {
			about = "about "
		}
		sessions = append(sessions, about+output.Count(*s.Viewers, "viewer"))
	}
	if s.NotCounted > 0 && len(sessions) > 0 {
		sessions = append(sessions, output.Count(s.NotCounted, "node")+" not counted")
	}
	line := output.Count(s.Nodes, "node")
	if len(health) > 0 {
		line += ": " + strings.Join(health, ", ")
	}
	for _, words := range [][]string{states, s.roles(), sessions} {
		if len(words) > 0 {
			line += "; " + strings.Join(words, ", ")
		}
	}
	return line
}

// roles counts the nodes of each role, the origins first.
func (s nodesSummary) roles() []string {
	var words []string
	for _, role := range slices.SortedFunc(maps.Keys(s.Roles), func(a, b string) int {
		known := []string{"edge", "origin"}
		return cmp.Or(slices.Index(known, b)-slices.Index(known, a), strings.Compare(a, b))
	}) {
		if role != noRole {
			words = append(words, output.Printable(output.Count(s.Roles[role], role)))
		}
	}
	if n := s.Roles[noRole]; n > 0 && len(words) > 0 {
		words = append(words, fmt.Sprintf("%d without a role", n))
	}
	return words
}

// row is the node's record; empty without an agent.
func (v nodeView) row() cluster.Node {
	if v.Node == nil {
		return cluster.Node{}
	}
	return *v.Node
}

// hasHeartbeat reports whether the agent's last heartbeat counts.
func (v nodeView) hasHeartbeat() bool {
	return v.Node != nil && v.Agent.Fresh && v.Health != cluster.Left
}

// load is what the agent read, or Ant Media Server if there is no agent.
func (v nodeView) load() cluster.Load {
	switch {
	case v.hasHeartbeat() && v.Node.Load != nil:
		return *v.Node.Load
	case v.Node == nil && v.Server.Fresh:
		return cluster.Load{CPU: amsCPU(v.AMS[0]), Mem: amsMemory(v.AMS[0])}
	}
	return cluster.Load{}
}

func amsCPU(n cluster.AMSNode) *int {
	if n.CPU == nil {
		return nil
	}
	return new(int(min(max(*n.CPU, 0), 1000)))
}

func amsMemory(n cluster.AMSNode) *int {
	var used, total int
	if _, err := fmt.Sscanf(n.Memory, "%d/%d", &used, &total); err != nil || used < 0 || total <= 0 || used > total {
		return nil
	}
	return new(100 * used / total)
}

// whyNotServing names what does not serve; "" if the node serves, or if that is unknown.
func (v nodeView) whyNotServing() string {
	if v.Health != cluster.NotServing {
		return ""
	}
	return cmp.Or(v.Node.Serving.Why, "the agent gives no reason")
}

func (v nodeView) sessions() *cluster.Sessions {
	if !v.hasHeartbeat() {
		return nil
	}
	return v.Node.Sessions
}

// gpu finds the busiest device by its busiest part: the cores, the encoder or the decoder.
func (v nodeView) gpu() (busiest *int, index, devices int) {
	gpus := v.load().GPUs
	for i, d := range gpus {
		for _, part := range []*int{d.Util, d.Enc, d.Dec} {
			if part != nil && (busiest == nil || *part > *busiest) {
				busiest, index = part, i
			}
		}
	}
	return busiest, index, len(gpus)
}

func percentText(n *int) string { return numberText(n, "%") }

func numberText(n *int, unit string) string {
	if n == nil {
		return "-"
	}
	return strconv.Itoa(*n) + unit
}

// ageText is the age of a signal, with ~ if it depends on a clock that was not compared.
func ageText(s cluster.Signal) string {
	switch {
	case !s.Known:
		return "-"
	case s.Estimated:
		return "~" + output.Roughly(s.Age)
	}
	return output.Roughly(s.Age)
}

func gpuText(v nodeView) string {
	busiest, index, devices := v.gpu()
	switch {
	case devices == 0:
		return "-"
	case devices == 1:
		return percentText(busiest)
	case busiest == nil:
		return fmt.Sprintf("- of %d", devices)
	}
	return fmt.Sprintf("%d%% #%d of %d", *busiest, index, devices)
}

func sessionsText(v nodeView) string {
	s := v.sessions()
	if s == nil || s.Publishers == nil && s.Viewers == nil {
		return "-"
	}
	about := ""
	if s.Viewers != nil && s.By == cluster.CountedByConnections {
		about = "~"
	}
	return numberText(s.Publishers, "") + "/" + about + numberText(s.Viewers, "")
}

func versionText(n cluster.Node) string {
	if n.AMS == "" {
		return n.Agent
	}
	return strings.TrimPrefix(n.Agent+", AMS "+n.AMS, ", ")
}

// nodeColumn is one column of the table.
type nodeColumn struct {
	title string
	text  func(nodeView) string
	right bool
	// spare: a terminal does not show the column if all its cells are empty.
	spare bool
	paint func(output.Palette, nodeView, string) string
}

func nodeColumns() []nodeColumn {
	field := func(title string, value func(cluster.Node) string) nodeColumn {
		return nodeColumn{title: title, spare: true, text: func(v nodeView) string { return output.Dash(output.Printable(value(v.row()))) }}
	}
	signal := func(title string, of func(nodeView) cluster.Signal) nodeColumn {
		return nodeColumn{title: title, right: true, text: func(v nodeView) string { return ageText(of(v)) }, paint: func(p output.Palette, v nodeView, s string) string {
			if of(v).Known && !of(v).Fresh {
				return p.Yellow(s)
			}
			return s
		}}
	}
	load := func(title string, percent func(nodeView) *int) nodeColumn {
		return nodeColumn{
			title: title, right: true, text: func(v nodeView) string { return percentText(percent(v)) },
			paint: func(p output.Palette, v nodeView, s string) string { return paintLoad(p, percent(v), s) },
		}
	}
	score := load("SCORE", func(v nodeView) *int { return v.load().Score })
	gpu := load("GPU", func(v nodeView) *int { n, _, _ := v.gpu(); return n })
	score.spare, gpu.spare, gpu.text = true, true, gpuText
	return []nodeColumn{
		{title: "NODE", text: func(v nodeView) string { return nodeName(v.Node) }},
		field("ROLE", func(n cluster.Node) string { return n.Role }),
		field("GROUP", func(n cluster.Node) string { return n.Group }),
		field("ZONE", func(n cluster.Node) string { return cmp.Or(n.Zone, n.Region) }),
		{title: "ADDRESS", text: func(v nodeView) string { return output.Dash(output.Printable(v.Address())) }},
		{title: "STATE", text: stateText, paint: paintState},
		{
			title: "HEALTH", text: func(v nodeView) string { return string(v.Health) },
			paint: func(p output.Palette, v nodeView, s string) string { return paintHealth(p, v.Health, s) },
		},
		signal("AGENT", func(v nodeView) cluster.Signal { return v.Agent }),
		signal("AMS", func(v nodeView) cluster.Signal { return v.Server }),
		load("CPU", func(v nodeView) *int { return v.load().CPU }),
		gpu,
		load("MEM", func(v nodeView) *int { return v.load().Mem }),
		score,
		{title: "PUB/VIEW", right: true, text: sessionsText},
		field("VERSION", versionText),
	}
}

// nodeName returns a node's id, or the host name if the id is made of the machine id.
func nodeName(n *cluster.Node) string {
	switch {
	case n == nil:
		return "(no agent)"
	case n.Hostname != "" && strings.HasPrefix(n.ID, generic.IDPrefix):
		return output.Printable(n.Hostname)
	}
	return output.Dash(output.Printable(n.ID))
}

// nodeText returns the id, too, if the name is the host's.
func nodeText(n *cluster.Node) string {
	name := nodeName(n)
	if n == nil || name == output.Dash(output.Printable(n.ID)) {
		return name
	}
	return name + " (" + output.Printable(n.ID) + ")"
}

func stateText(v nodeView) string {
	if v.Reimaging {
		return "reimaging"
	}
	return output.Dash(output.Printable(string(v.State())))
}

func paintState(p output.Palette, v nodeView, s string) string {
	switch v.State() {
	case cluster.StateJoining, cluster.StateDraining:
		return p.Yellow(s)
	case cluster.StateFailed:
		return p.Red(s)
	case cluster.StateActive, cluster.StateLeft:
	}
	return s
}

func paintHealth(p output.Palette, h cluster.Health, s string) string {
	switch h {
	case cluster.Healthy:
		return p.Green(s)
	case cluster.NotServing, cluster.AMSStale, cluster.AgentStale, cluster.NoAgent, cluster.Unknown:
		return p.Yellow(s)
	case cluster.Gone:
		return p.Red(s)
	case cluster.Left:
		return p.Dim(s)
	}
	return s
}

// tableStyle is what the table is printed on.
type tableStyle struct {
	color output.Palette
	// width and height are those of the terminal; 0 without one: then all columns are printed.
	width, height int
}

// narrower are the columns that a narrow terminal does not show, the first one first.
func narrower() []string {
	return []string{"VERSION", "ZONE", "SCORE", "GROUP", "GPU", "MEM", "AMS", "AGENT", "ROLE", "CPU", "PUB/VIEW", "STATE", "ADDRESS"}
}

// nodeTable renders the members, a header first.
func nodeTable(members []nodeView, t tableStyle) []string {
	const gap = "  "
	columns := nodeColumns()
	drop := func(which func(nodeColumn) bool) { columns = slices.DeleteFunc(columns, which) }
	if t.width > 0 {
		drop(func(c nodeColumn) bool {
			return c.spare && !slices.ContainsFunc(members, func(v nodeView) bool { return c.text(v) != "-" })
		})
	}
	width := func(c nodeColumn) int {
		n := len(c.title)
		for _, v := range members {
			n = max(n, utf8.RuneCountInString(c.text(v)))
		}
		return n
	}
	total := func() (n int) {
		for _, c := range columns {
			n += width(c) + len(gap)
		}
		return n - len(gap)
	}
	for _, title := range narrower() {
		if t.width == 0 || total() <= t.width {
			break
		}
		drop(func(c nodeColumn) bool { return c.title == title })
	}
	lines := make([]string, len(members)+1)
	for i, c := range columns {
		n := width(c)
		cell := func(row int, text, shown string) {
			padding := strings.Repeat(" ", n-utf8.RuneCountInString(text))
			if c.right {
				shown = padding + shown
			} else if i < len(columns)-1 {
				shown += padding
			}
			if i > 0 {
				shown = gap + shown
			}
			lines[row] += shown
		}
		cell(0, c.title, t.color.Bold(c.title))
		for row, v := range members {
			text := c.text(v)
			shown := text
			if c.paint != nil && v.State() != cluster.StateLeft {
				shown = c.paint(t.color, v, text)
			}
			cell(row+1, text, shown)
		}
	}
	for row, v := range members {
		if v.State() == cluster.StateLeft {
			lines[row+1] = t.color.Dim(lines[row+1])
		}
	}
	return lines
}

// rank is 0 for a node that needs attention, 1 for one that is alive and active, 2 for one that has left.
func (v nodeView) rank() int {
	switch {
	case v.Health == cluster.Left:
		return 2
	case v.Health == cluster.Healthy && v.State() == cluster.StateActive:
		return 1
	}
	return 0
}

// sortKeys are the values of --sort.
func sortKeys() []string { return []string{"address", "state", "cpu", "sessions"} }

// sortNodes orders members, which come in the order of their addresses. Unknown values come last, in both directions.
func sortNodes(members []nodeView, key string) {
	key, reverse := strings.CutPrefix(key, "-")
	value := map[string]func(nodeView) *int{
		"cpu": func(v nodeView) *int { return v.load().CPU },
		"state": func(v nodeView) *int {
			if v.Node == nil {
				return nil
			}
			return new(slices.Index(cluster.States(), v.State()))
		},
		"sessions": func(v nodeView) *int {
			if s := v.sessions(); s != nil {
				if n, known := s.Total(); known {
					return &n
				}
			}
			return nil
		},
	}[key]
	if value == nil { // the addresses
		if reverse {
			slices.Reverse(members)
		}
		return
	}
	order := func(v nodeView) int {
		switch n := value(v); {
		case n == nil:
			return math.MaxInt
		case reverse:
			return -*n
		default:
			return *n
		}
	}
	slices.SortStableFunc(members, func(a, b nodeView) int { return cmp.Compare(order(a), order(b)) })
}

const (
	loadAlarming = 75 // from here on AMS refuses streams by default
	loadFull     = 90
)

// paintLoad colors a load in percent.
func paintLoad(p output.Palette, percent *int, s string) string {
	switch {
	case percent == nil || *percent < loadAlarming:
		return s
	case *percent < loadFull:
		return p.Yellow(s)
	}
	return p.Red(s)
}
