// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	g "maragu.dev/gomponents"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
)

// Go would copy the closures of gomponents' functions to each place that calls them, for 250 kB.

//go:noinline
func el(name string, children ...g.Node) g.Node { return g.El(name, children...) }

//go:noinline
func at(name, value string) g.Node { return g.Attr(name, value) }

//go:noinline
func text(s string) g.Node { return g.Text(s) }

// view is what all pages show of the cluster, and how well it is.
type view struct {
	state
	wrong, rest string // the first line
	tone        string // ok, warn, bad or unknown
}

func viewOf(s state) view {
	v := view{state: s}
	v.wrong, v.rest = v.nodes.Summary.Problems()
	health := v.nodes.Summary.Health
	switch {
	case s.read.IsZero():
		v.tone, v.wrong, v.rest = "unknown", "", "The cluster was not read yet"
	case s.failed != "" || len(v.nodes.Members) == 0:
		v.tone = "unknown"
	case health[cluster.Gone]+health[cluster.NotServing] > 0:
		v.tone = "bad"
	case v.wrong != "":
		v.tone = "warn"
	default:
		v.tone = "ok"
	}
	return v
}

// content is what a page shows, without the time of the last look: what changes it changes the page.
func (v view) content(path string, main ...g.Node) g.Node {
	link := func(to, name string) g.Node {
		return el("a", at("href", to), g.If(path == to, at("aria-current", "page")), text(name))
	}
	notice := "MongoDB cannot be read; this is the last look. "
	if v.read.IsZero() {
		notice = "MongoDB cannot be read. "
	}
	failed := []g.Node{at("id", "failed"), at("role", "status")}
	if v.failed == "" {
		failed = append(failed, at("hidden", ""))
	}
	return el("div",
		at("id", "page"), at("class", v.tone),
		el("header",
			el("h1", at("id", "headline"), el("strong", at("aria-live", "polite"), text(cmp.Or(v.wrong, v.rest))), g.If(v.wrong != "", el("span", text(v.rest)))),
			el("p", append(failed, text(notice+output.OneLine(v.failed)))...),
		),
		el("nav", at("aria-label", "Pages"), link("/", "Nodes"), text(" "), link("/events", "Events")),
		el("main", main...),
	)
}

// document is a page around its content. tag identifies the content.
func (v view) document(tag, content string) g.Node {
	return g.Group{g.Raw("<!doctype html>\n"), el("html",
		at("lang", "en"),
		el("head",
			el("meta", at("charset", "utf-8")),
			el("meta", at("name", "viewport"), at("content", "width=device-width, initial-scale=1")),
			el("title", text(cmp.Or(v.wrong, v.rest))),
			el("link", at("rel", "icon"), at("id", "icon"), at("href", "/icon.svg?tone="+v.tone)),
			el("link", at("rel", "stylesheet"), at("href", "/page.css")),
			el("script", at("src", "/page.js"), at("defer", "")),
			el("noscript", el("meta", at("http-equiv", "refresh"), at("content", "10"))),
		),
		el("body",
			at("data-tag", tag),
			g.Raw(content),
			el("footer", text("as of "), el("span", at("id", "asof"), text(asOf(v.state))), text("; amsagent web only reads")),
			el("p", at("id", "lost"), at("role", "status"), at("hidden", ""), text("This page has lost its server; it shows the last answer.")),
		),
	)}
}

func asOf(s state) string {
	if s.read.IsZero() {
		return "no look yet"
	}
	return s.read.UTC().Format(time.TimeOnly) + " UTC"
}

// nodesPage shows all nodes, or those of a query.
func (v view) nodesPage(q url.Values) g.Node {
	query := queryOf(q)
	data := board.New(query, v.look, v.members)
	left := data.LeftHidden // their link is in the table
	data.LeftHidden = 0
	return v.content("/",
		notes(board.Afterword(data)),
		el("section", at("id", "drains"), g.Map(data.Members, func(n board.Node) g.Node { return v.drain(n, true) })),
		el("ul", at("id", "groups"), at("aria-label", "Headroom"), g.Map(v.groups, headroomItem)),
		v.filters(q),
		nodesTable(data, query.Sort, q, len(v.nodes.Members), left),
	)
}

func notes(lines []string) g.Node {
	return el("div", at("id", "notes"), g.Map(lines, func(line string) g.Node { return el("p", text(line)) }))
}

func queryNames() []string { return []string{"role", "group", "state", "sort", "all"} }

// queryOf accepts what `amsagent nodes` does, and ignores the rest.
func queryOf(q url.Values) board.Query {
	list := func(name string) []string {
		return slices.DeleteFunc(slices.Clone(q[name]), func(s string) bool { return s == "" })
	}
	o := board.Query{Roles: list("role"), Groups: list("group"), States: list("state"), Sort: q.Get("sort"), All: q.Has("all")}
	if !slices.Contains(board.SortKeys(), strings.TrimPrefix(o.Sort, "-")) {
		o.Sort = "address"
	}
	return o
}

func headroomItem(r headroom) g.Node {
	free := el("b", text("?"))
	if n := r.freePercent(); n != nil {
		free = el("b", text(board.Percent(n)))
	}
	of := " free of " + output.Count(r.nodes, "serving node")
	if r.unknown > 0 {
		of += fmt.Sprintf(", %d unknown", r.unknown)
	}
	return el("li",
		el("h2", text(r.kind+" "+output.Printable(r.name))), free, el("span", text(of)), el("br"), el("small", text(cmp.Or(strings.Join(r.all.Sessions(), ", "), "sessions not known")+"; free in the last 15 minutes:")),
		el("svg", at("class", "spark"), at("viewBox", "0 0 180 40"), at("preserveAspectRatio", "none"), at("role", "img"),
			at("aria-label", "Free capacity in the last 15 minutes"),
			g.Map(polylines(r.history), func(points string) g.Node { return el("polyline", at("points", points)) })),
	)
}

// polylines draws percents into a box of 180 × 40. An unknown value is a gap, never zero.
func polylines(points []*int) []string {
	lines := []string{""}
	for i, n := range points {
		last := &lines[len(lines)-1]
		switch {
		case n != nil:
			*last += fmt.Sprintf("%d,%d ", kept-len(points)+i, 40-min(100, max(0, *n))*40/100)
		case *last != "":
			lines = append(lines, "")
		}
	}
	return slices.DeleteFunc(lines, func(line string) bool { return line == "" })
}

func (v view) filters(q url.Values) g.Node {
	field := func(name string, of func(board.Node) string) g.Node {
		values := map[string]bool{}
		for _, m := range v.members {
			values[of(board.Node{Member: m})] = true
		}
		delete(values, "")
		return el("label", text(name), el("select", at("name", name), el("option", at("value", ""), text("all")),
			g.Map(slices.Sorted(maps.Keys(values)), func(value string) g.Node {
				return el("option", at("value", value), g.If(value == q.Get(name), at("selected", "")), text(output.Printable(value)))
			})))
	}
	return el("form", at("method", "get"), at("action", "/"),
		field("role", func(n board.Node) string { return n.Record().Role }),
		field("group", func(n board.Node) string { return n.Record().Group }),
		field("state", func(n board.Node) string { return string(n.State()) }),
		g.If(q.Get("sort") != "", el("input", at("type", "hidden"), at("name", "sort"), at("value", q.Get("sort")))),
		el("button", text("Filter")),
	)
}

// columns are those of `nodes`, what changes first.
func columns() []board.Column {
	order := []string{"NODE", "ROLE", "STATE", "HEALTH", "SCORE", "PUB/VIEW", "CPU", "GPU", "MEM", "AGENT", "AMS", "ADDRESS", "ZONE", "GROUP", "VERSION"}
	list := board.Columns()
	slices.SortFunc(list, func(a, b board.Column) int { return slices.Index(order, a.Title) - slices.Index(order, b.Title) })
	return list
}

// cell is a column's text. An age is not shown while it is young: it would change each row each second.
func cell(c board.Column, n board.Node) (text string, late bool) {
	signal := n.Agent
	switch c.Title {
	case "AMS":
		signal = n.Server
	case "AGENT":
	default:
		return c.Text(n), false
	}
	if signal.Fresh {
		return "fresh", false
	}
	return c.Text(n), signal.Known
}

func nodesTable(data board.Nodes, sort string, q url.Values, all, left int) g.Node {
	caption := fmt.Sprintf("%d of %s", len(data.Members), output.Count(max(all, len(data.Members)), "node"))
	var shown []board.Column
	for _, c := range columns() {
		same := len(data.Members) > 1
		first := ""
		if same {
			first, _ = cell(c, data.Members[0])
			same = !slices.ContainsFunc(data.Members[1:], func(n board.Node) bool { text, _ := cell(c, n); return text != first })
		}
		figure := strings.HasPrefix(first, "~") || first != "" && first[0] >= '0' && first[0] <= '9' && c.Right
		switch {
		case c.Title == "NODE" || !same || figure:
			shown = append(shown, c)
		case first != "-":
			caption += fmt.Sprintf("; %s: %s", strings.ToLower(c.Title), first)
		}
	}
	row := func(n board.Node) g.Node {
		cells := []g.Node{at("id", "n-"+n.ID()+"-"+n.Address())}
		for i, c := range shown {
			shown, late := cell(c, n)
			if i == 0 {
				cells = append(cells, el("th", at("scope", "row"), el("a", at("href", "/node/"+url.PathEscape(n.ID())), text(shown))))
				continue
			}
			cells = append(cells, el("td", at("data-name", c.Title), at("class", classOf(c, n, shown, late)), text(shown), meter(c, n)))
		}
		return el("tr", cells...)
	}
	return el("div",
		at("class", "scroll"), at("role", "region"), at("aria-label", "Nodes"), at("tabindex", "0"),
		el("table", at("class", "cards"), el("caption", at("id", "caption"), text(caption), leftLink(q, left)),
			el("thead", el("tr", at("id", "head"), g.Map(shown, func(c board.Column) g.Node { return columnHead(c, sort, q) }))),
			el("tbody", at("id", "rows"), g.Map(data.Members, row))),
	)
}

// leftLink shows the nodes that have left, too.
func leftLink(q url.Values, left int) g.Node {
	if left == 0 {
		return nil
	}
	to := url.Values{}
	maps.Copy(to, q)
	to.Set("all", "1")
	return g.Group{text("; "), el("a", at("href", "/?"+to.Encode()), text(fmt.Sprintf("%d left", left)))}
}

func meter(c board.Column, n board.Node) g.Node {
	if score := n.Load().Score; c.Title == "SCORE" && score != nil {
		return el("meter", at("max", "100"), at("high", "80"), at("optimum", "0"), at("value", strconv.Itoa(*score)), at("aria-hidden", "true"))
	}
	return nil
}

func classOf(c board.Column, n board.Node, text string, late bool) string {
	var classes []string
	switch {
	case c.Title == "HEALTH":
		classes = append(classes, "h-"+string(n.Health))
	case c.Title == "STATE":
		classes = append(classes, "s-"+string(n.State()))
	case c.Right:
		classes = append(classes, "num")
	}
	if late {
		classes = append(classes, "late")
	}
	if text == "-" {
		classes = append(classes, "empty")
	}
	return strings.Join(classes, " ")
}

func columnHead(c board.Column, sort string, q url.Values) g.Node {
	class := g.If(c.Right, at("class", "num"))
	key := map[string]string{"ADDRESS": "address", "STATE": "state", "CPU": "cpu", "PUB/VIEW": "sessions"}[c.Title]
	if key == "" {
		return el("th", at("scope", "col"), class, text(c.Title))
	}
	order, next := "none", key
	switch sort {
	case key:
		order, next = "ascending", "-"+key
	case "-" + key:
		order = "descending"
	}
	to := url.Values{}
	maps.Copy(to, q)
	to.Set("sort", next)
	return el("th", at("scope", "col"), class, at("aria-sort", order), el("a", at("href", "/?"+to.Encode()), text(c.Title)))
}

// drain says what holds a drain, until when, and by whose deadline.
func (v view) drain(n board.Node, named bool) g.Node {
	if n.State() != cluster.StateDraining {
		return nil
	}
	why := board.DrainText(n, v.look.ServerTime)
	if named {
		return el("p", at("class", "wait"), el("a", at("href", "/node/"+url.PathEscape(n.ID())), text(board.NodeText(n.Node))), text(" drains: "+why))
	}
	return el("p", at("class", "wait"), text("Drains: "+why))
}

func (v view) nodePage(n board.Node, events past) g.Node {
	var list []g.Node
	for _, f := range facts(n, v.look.ServerTime) {
		list = append(list, el("dt", text(f[0])), el("dd", text(f[1])))
	}
	var gpus, docs [][]string
	for i, d := range n.Load().GPUs {
		gpus = append(gpus, []string{strconv.Itoa(i), output.Printable(d.Name), board.Percent(d.Util), board.Percent(d.Enc), board.Percent(d.Dec), board.Percent(d.Mem)})
	}
	for _, d := range n.AMS {
		docs = append(docs, []string{output.Printable(d.ID), output.Printable(d.IP), output.Zoned(d.LastUpdate.UTC()), output.Printable(d.Memory)})
	}
	return v.content("/node/"+n.ID(),
		el("section", at("id", "facts"),
			el("h2", text(board.NodeText(n.Node))),
			v.drain(n, false),
			el("dl", list...),
			simpleTable("GPUs", []string{"#", "name", "use", "encoder", "decoder", "memory"}, gpus),
			simpleTable("Ant Media Server's own documents", []string{"id", "address", "written", "memory"}, docs),
		),
		el("section", at("id", "advice"), advice(n)),
		eventsTable(events, v.look.Nodes),
	)
}

// facts are what is known of a node, by name.
func facts(v board.Node, serverNow time.Time) (list [][2]string) {
	n := v.Record()
	fact := func(name, value string) {
		if value != "" {
			list = append(list, [2]string{name, output.Printable(value)})
		}
	}
	texts := map[string]string{}
	for _, c := range board.Columns() {
		texts[c.Title], _ = cell(c, v)
	}
	of := func(name, column string) {
		if texts[column] != "-" {
			fact(name, texts[column])
		}
	}
	fact("state", strings.TrimSpace(string(v.State())+" "+since(n.StateSince)))
	fact("reason", n.Reason)
	fact("health", string(v.Health))
	fact("does not serve", v.WhyNotServing())
	of("role", "ROLE")
	of("group", "GROUP")
	of("zone", "ZONE")
	of("address", "ADDRESS")
	fact("public address", n.PublicIP)
	of("publishers/viewers", "PUB/VIEW")
	of("score", "SCORE")
	of("CPU", "CPU")
	of("memory", "MEM")
	of("last heartbeat", "AGENT")
	of("server's document", "AMS")
	of("version", "VERSION")
	fact("machine", strings.TrimSpace(n.Provider+" "+n.Type))
	fact("balancers", board.BalancersText(n, serverNow))
	fact("drift", n.Drift)
	if n.Clock != nil {
		text := output.Rounded(*n.Clock) + " ahead of MongoDB's"
		if *n.Clock < 0 {
			text = output.Rounded(-*n.Clock) + " behind MongoDB's"
		}
		fact("clock", text)
	}
	return list
}

func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return "since " + output.Zoned(t.UTC())
}

// plainID: the line is pasted into a shell, and any client of MongoDB can write a record.
var plainID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// advice is what to do with a node: on a terminal, because the page only reads.
func advice(n board.Node) g.Node {
	var lines []g.Node
	if addr, ok := cluster.Dialable(n.Address()); ok {
		panel := "http://" + net.JoinHostPort(addr.Unmap().String(), strconv.Itoa(cmp.Or(n.Record().Port, ams.DefaultHTTPPort)))
		lines = append(lines, el("p", el("a", at("href", panel), at("rel", "noreferrer"), text("Panel of this server"))))
	}
	switch {
	case !n.HasHeartbeat():
	case n.State() == cluster.StateActive && plainID.MatchString(n.ID()):
		lines = append(lines, el("p", text("To drain it: "), el("code", text("amsagent drain "+n.ID()+` --reason "..."`))))
	case n.State() == cluster.StateDraining:
		lines = append(lines, el("p", text("To cancel the drain, on that machine: "), el("code", text("amsagent undrain"))))
	}
	return g.Group(lines)
}

// eventsTable has the latest event first.
func eventsTable(events past, nodes []cluster.Node) g.Node {
	caption := "Events, the latest first"
	if events.err != nil {
		caption = "The events cannot be read: " + output.OneLine(events.err.Error())
	}
	rows := events.Rows(nodes)
	slices.Reverse(rows)
	heads := []string{"time", "node", "event", "by", "reason"}
	body := []g.Node{at("id", "rows")}
	for i, row := range rows {
		cells := []g.Node{at("id", fmt.Sprintf("e-%d", len(rows)-i)), el("th", at("scope", "row"), text(row[0]))}
		for j := 1; j < len(heads); j++ {
			value := text(row[j])
			if j == 1 {
				value = el("a", at("href", "/node/"+url.PathEscape(events.Events.Events[len(rows)-1-i].Node)), value)
			}
			cells = append(cells, el("td", at("data-name", heads[j]), g.If(j == len(heads)-1, at("class", "wrap")), value))
		}
		body = append(body, el("tr", cells...))
	}
	return el("div",
		at("class", "scroll"), at("role", "region"), at("aria-label", "Events"), at("tabindex", "0"),
		el("table", at("class", "cards"), el("caption", at("id", "caption"), text(caption)), tableHead(heads), el("tbody", body...)),
	)
}

func tableHead(heads []string) g.Node {
	return el("thead", el("tr", g.Map(heads, func(title string) g.Node { return el("th", at("scope", "col"), text(title)) })))
}

func simpleTable(caption string, heads []string, rows [][]string) g.Node {
	if len(rows) == 0 {
		return nil
	}
	return el("table", at("class", "cards"), el("caption", text(caption)), tableHead(heads), el("tbody", g.Map(rows, func(row []string) g.Node {
		cells := []g.Node{el("th", at("scope", "row"), text(row[0]))}
		for i := 1; i < len(row); i++ {
			cells = append(cells, el("td", at("data-name", heads[i]), text(row[i])))
		}
		return el("tr", cells...)
	})))
}
