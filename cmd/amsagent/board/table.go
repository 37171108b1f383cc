// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package board

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

// Node is one machine of the cluster as `nodes` shows it.
type Node struct {
	cluster.Member
}

// Nodes is what `nodes` prints.
type Nodes struct {
	ServerTime time.Time `json:"server_time"`
	Summary    Summary   `json:"summary"`
	Members    []Node    `json:"members"`
	// Settings has the nodes whose server has other settings than those of its role, of the roles shown.
	Settings []cluster.SettingsDifference `json:"settings_differences,omitempty"`
	// LeftHidden counts the nodes that have left and are not among Members.
	LeftHidden int `json:"left_hidden"`
	// BadRecords are records of the registry that hold what no agent writes, and are no members.
	BadRecords []BadRecord `json:"bad_records,omitempty"`
}

// BadRecord is a record that cannot be read.
type BadRecord struct {
	ID  string `json:"id"`
	Why string `json:"reason"`
}

// NoRole counts the nodes without a role: an empty name in JSON looks like a mistake.
const NoRole = "none"

// Summary counts the members shown.
type Summary struct {
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

// Summarize counts nodes and their sessions.
func Summarize(members []Node) Summary {
	s := Summary{
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
			s.Roles[cmp.Or(m.Node.Role, NoRole)]++
		}
		sessions := m.Sessions()
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

// line is the first line of `nodes`.
func (s Summary) line(p output.Palette) string {
	line := output.Count(s.Nodes, "node")
	if health := s.health(p, cluster.Healths()); len(health) > 0 {
		line += ": " + strings.Join(health, ", ")
	}
	return joinParts(line, s.states(cluster.StateActive), s.roles(), s.Sessions())
}

// Problems is the first line in two parts: what is not right, the worst first, and the rest.
func (s Summary) Problems() (wrong, rest string) {
	healths := cluster.Healths()[1:]
	slices.Reverse(healths)
	rest = output.Count(s.Nodes, "node")
	if n := s.Health[cluster.Healthy]; n > 0 && n == s.Nodes {
		rest += " healthy"
	} else if s.Nodes > 0 {
		rest = fmt.Sprintf("%d of %s healthy", n, rest)
	}
	return strings.Join(append(s.health(output.Palette{}, healths), s.states(cluster.StateLeft)...), ", "), joinParts(rest, s.roles(), s.Sessions())
}

func joinParts(line string, parts ...[]string) string {
	for _, words := range parts {
		if len(words) > 0 {
			line += "; " + strings.Join(words, ", ")
		}
	}
	return line
}

func (s Summary) health(p output.Palette, order []cluster.Health) (words []string) {
	for _, h := range order {
		if n := s.Health[h]; n > 0 && h != cluster.Left { // that is a state, too
			words = append(words, paintHealth(p, h, fmt.Sprintf("%d %s", n, h)))
		}
	}
	return words
}

// states counts the nodes of each state but the active ones and those of another.
func (s Summary) states(without cluster.State) (words []string) {
	for _, st := range slices.Sorted(maps.Keys(s.States)) {
		if st != cluster.StateActive && st != without && st != "" {
			words = append(words, fmt.Sprintf("%d %s", s.States[st], output.Printable(string(st))))
		}
	}
	return words
}

// Sessions has the sums of the sessions, in words; none if no node counts.
func (s Summary) Sessions() (words []string) {
	if s.Publishers != nil {
		words = append(words, output.Count(*s.Publishers, "publisher"))
	}
	if s.Viewers != nil {
		about := ""
		if s.Estimated {
			about = "about "
		}
		words = append(words, about+output.Count(*s.Viewers, "viewer"))
	}
	if s.NotCounted > 0 && len(words) > 0 {
		words = append(words, output.Count(s.NotCounted, "node")+" not counted")
	}
	return words
}

// roles counts the nodes of each role, the origins first.
func (s Summary) roles() []string {
	var words []string
	for _, role := range slices.SortedFunc(maps.Keys(s.Roles), func(a, b string) int {
		known := []string{"edge", "origin"}
		return cmp.Or(slices.Index(known, b)-slices.Index(known, a), strings.Compare(a, b))
	}) {
		if role != NoRole {
			words = append(words, output.Printable(output.Count(s.Roles[role], role)))
		}
	}
	if n := s.Roles[NoRole]; n > 0 && len(words) > 0 {
		words = append(words, fmt.Sprintf("%d without a role", n))
	}
	return words
}

// Record is the node's record; empty without an agent.
func (v Node) Record() cluster.Node {
	if v.Node == nil {
		return cluster.Node{}
	}
	return *v.Node
}

// HasHeartbeat reports whether the agent's last heartbeat counts.
func (v Node) HasHeartbeat() bool {
	return v.Node != nil && v.Agent.Fresh && v.Health != cluster.Left
}

// Load is what the agent read, or Ant Media Server if there is no agent.
func (v Node) Load() cluster.Load {
	switch {
	case v.HasHeartbeat() && v.Node.Load != nil:
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

// WhyNotServing names what does not serve; "" if the node serves, or if that is unknown.
func (v Node) WhyNotServing() string {
	if v.Health != cluster.NotServing {
		return ""
	}
	return cmp.Or(v.Node.Serving.Why, "the agent gives no reason")
}

// Sessions are those of the last heartbeat, if it counts.
func (v Node) Sessions() *cluster.Sessions {
	if !v.HasHeartbeat() {
		return nil
	}
	return v.Node.Sessions
}

// GPU finds the busiest device by its busiest part: the cores, the encoder or the decoder.
func (v Node) GPU() (busiest *int, index, devices int) {
	gpus := v.Load().GPUs
	for i, d := range gpus {
		for _, part := range []*int{d.Util, d.Enc, d.Dec} {
			if part != nil && (busiest == nil || *part > *busiest) {
				busiest, index = part, i
			}
		}
	}
	return busiest, index, len(gpus)
}

// Percent is a share, or - if it is unknown.
func Percent(n *int) string { return numberText(n, "%") }

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

func gpuText(v Node) string {
	busiest, index, devices := v.GPU()
	switch {
	case devices == 0:
		return "-"
	case devices == 1:
		return Percent(busiest)
	case busiest == nil:
		return fmt.Sprintf("- of %d", devices)
	}
	return fmt.Sprintf("%d%% #%d of %d", *busiest, index, devices)
}

func sessionsText(v Node) string {
	s := v.Sessions()
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

// Column is one column of the table.
type Column struct {
	Title string
	Text  func(Node) string
	Right bool
	// spare: a terminal does not show the column if all its cells are empty.
	spare bool
	paint func(output.Palette, Node, string) string
}

// Columns are those of the table.
func Columns() []Column {
	field := func(title string, value func(cluster.Node) string) Column {
		return Column{Title: title, spare: true, Text: func(v Node) string { return output.Dash(output.Printable(value(v.Record()))) }}
	}
	signal := func(title string, of func(Node) cluster.Signal) Column {
		return Column{Title: title, Right: true, Text: func(v Node) string { return ageText(of(v)) }, paint: func(p output.Palette, v Node, s string) string {
			if of(v).Known && !of(v).Fresh {
				return p.Yellow(s)
			}
			return s
		}}
	}
	load := func(title string, percent func(Node) *int) Column {
		return Column{
			Title: title, Right: true, Text: func(v Node) string { return Percent(percent(v)) },
			paint: func(p output.Palette, v Node, s string) string { return PaintLoad(p, percent(v), s) },
		}
	}
	score := load("SCORE", func(v Node) *int { return v.Load().Score })
	gpu := load("GPU", func(v Node) *int { n, _, _ := v.GPU(); return n })
	score.spare, gpu.spare, gpu.Text = true, true, gpuText
	return []Column{
		{Title: "NODE", Text: func(v Node) string { return nodeName(v.Node) }},
		field("ROLE", func(n cluster.Node) string { return n.Role }),
		field("GROUP", func(n cluster.Node) string { return n.Group }),
		field("ZONE", func(n cluster.Node) string { return cmp.Or(n.Zone, n.Region) }),
		{Title: "ADDRESS", Text: func(v Node) string { return output.Dash(output.Printable(v.Address())) }},
		{Title: "STATE", Text: stateText, paint: paintState},
		{
			Title: "HEALTH", Text: func(v Node) string { return string(v.Health) },
			paint: func(p output.Palette, v Node, s string) string { return paintHealth(p, v.Health, s) },
		},
		signal("AGENT", func(v Node) cluster.Signal { return v.Agent }),
		signal("AMS", func(v Node) cluster.Signal { return v.Server }),
		load("CPU", func(v Node) *int { return v.Load().CPU }),
		gpu,
		load("MEM", func(v Node) *int { return v.Load().Mem }),
		score,
		{Title: "PUB/VIEW", Right: true, Text: sessionsText},
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

// NodeText returns the id, too, if the name is the host's.
func NodeText(n *cluster.Node) string {
	name := nodeName(n)
	if n == nil || name == output.Dash(output.Printable(n.ID)) {
		return name
	}
	return name + " (" + output.Printable(n.ID) + ")"
}

func stateText(v Node) string {
	if v.Reimaging {
		return "reimaging"
	}
	return output.Dash(output.Printable(string(v.State())))
}

func paintState(p output.Palette, v Node, s string) string {
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

// Style is what the table is printed on.
type Style struct {
	Color output.Palette
	// width and height are those of the terminal; 0 without one: then all columns are printed.
	Width, Height int
}

// narrower are the columns that a narrow terminal does not show, the first one first.
func narrower() []string {
	return []string{"VERSION", "ZONE", "SCORE", "GROUP", "GPU", "MEM", "AMS", "AGENT", "ROLE", "CPU", "PUB/VIEW", "STATE", "ADDRESS"}
}

// Table renders the members, a header first.
func Table(members []Node, t Style) []string {
	const gap = "  "
	columns := Columns()
	drop := func(which func(Column) bool) { columns = slices.DeleteFunc(columns, which) }
	if t.Width > 0 {
		drop(func(c Column) bool {
			return c.spare && !slices.ContainsFunc(members, func(v Node) bool { return c.Text(v) != "-" })
		})
	}
	width := func(c Column) int {
		n := len(c.Title)
		for _, v := range members {
			n = max(n, utf8.RuneCountInString(c.Text(v)))
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
		if t.Width == 0 || total() <= t.Width {
			break
		}
		drop(func(c Column) bool { return c.Title == title })
	}
	lines := make([]string, len(members)+1)
	for i, c := range columns {
		n := width(c)
		cell := func(row int, text, shown string) {
			padding := strings.Repeat(" ", n-utf8.RuneCountInString(text))
			if c.Right {
				shown = padding + shown
			} else if i < len(columns)-1 {
				shown += padding
			}
			if i > 0 {
				shown = gap + shown
			}
			lines[row] += shown
		}
		cell(0, c.Title, t.Color.Bold(c.Title))
		for row, v := range members {
			text := c.Text(v)
			shown := text
			if c.paint != nil && v.State() != cluster.StateLeft {
				shown = c.paint(t.Color, v, text)
			}
			cell(row+1, text, shown)
		}
	}
	for row, v := range members {
		if v.State() == cluster.StateLeft {
			lines[row+1] = t.Color.Dim(lines[row+1])
		}
	}
	return lines
}

// Rank is 0 for a node that needs attention, 1 for one that is alive and active, 2 for one that has left.
func (v Node) Rank() int {
	switch {
	case v.Health == cluster.Left:
		return 2
	case v.Health == cluster.Healthy && v.State() == cluster.StateActive:
		return 1
	}
	return 0
}

// SortKeys are the values of --sort.
func SortKeys() []string { return []string{"address", "state", "cpu", "sessions"} }

// sortNodes orders members, which come in the order of their addresses. Unknown values come last, in both directions.
func sortNodes(members []Node, key string) {
	key, reverse := strings.CutPrefix(key, "-")
	value := map[string]func(Node) *int{
		"cpu": func(v Node) *int { return v.Load().CPU },
		"state": func(v Node) *int {
			if v.Node == nil {
				return nil
			}
			return new(slices.Index(cluster.States(), v.State()))
		},
		"sessions": func(v Node) *int {
			if s := v.Sessions(); s != nil {
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
	order := func(v Node) int {
		switch n := value(v); {
		case n == nil:
			return math.MaxInt
		case reverse:
			return -*n
		default:
			return *n
		}
	}
	slices.SortStableFunc(members, func(a, b Node) int { return cmp.Compare(order(a), order(b)) })
}

const (
	loadAlarming = 75 // from here on AMS refuses streams by default
	loadFull     = 90
)

// PaintLoad colors a load in percent.
func PaintLoad(p output.Palette, percent *int, s string) string {
	switch {
	case percent == nil || *percent < loadAlarming:
		return s
	case *percent < loadFull:
		return p.Yellow(s)
	}
	return p.Red(s)
}
