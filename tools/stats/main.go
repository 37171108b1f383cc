// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Command stats prints the size of the project beside its budgets. Lines are those of `wc -l`. The figures fail nothing:
// a folder that belongs to no part is a row of its own, and what cannot be read or compiled is a line below the table.
//
//	stats CHECKOUT [unused|branchy|words|insides]
//
// The second argument lists what a figure counts.
package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A part is a row of the table: folders and files of the checkout. If several parts have a file, the longest path decides.
type part struct {
	name    string
	atMost  any // lines; of a part that is finished, those that it had
	folders []string
}

// finished is the size of a part that may grow only as finishedAtMost allows for all of them.
type finished int

func (f finished) String() string { return fmt.Sprintf("had %d", int(f)) }

const finishedAtMost = 3415 + 3215 + 1096 + 5242 + 2689 + 1463 + 250 + 60

var parts = []part{
	{"lifecycle", finished(3415), []string{"lifecycle"}},
	{"cluster", finished(3215), []string{"cluster"}},
	{"heartbeat", finished(1096), []string{"heartbeat"}},
	{"metadata", finished(5242), []string{"metadata"}},
	{"ams", finished(2689), []string{"ams"}},
	{"lb", finished(1463), []string{"lb"}},
	{"cli, settings, output, board", 10300, []string{"cmd/amsagent/cli", "cmd/amsagent/settings", "cmd/amsagent/output", "cmd/amsagent/board", "cmd/amsagent/main.go"}},
	{"daemon", 3227, []string{"cmd/amsagent/daemon"}},
	{"conf", 3300, []string{"conf"}},
	{"files", 1150, []string{"files"}},
	{"bootstrap", 6200, []string{"bootstrap"}},
	{"doctor", 2200, []string{"bootstrap/doctor"}},
	{"lint", 340, []string{"bootstrap/doctor/lint"}},
	{"web", 850, []string{"cmd/amsagent/web", "web"}},
	{"packaging", 200, []string{"packaging"}},
	{"internal", 600, []string{"internal", "docs"}},
}

func main() {
	lists := []string{"unused", "branchy", "words", "insides"}
	list := ""
	if len(os.Args) > 2 {
		list = os.Args[2]
	}
	if len(os.Args) < 2 || len(os.Args) > 3 || list != "" && !slices.Contains(lists, list) {
		fmt.Fprintf(os.Stderr, "usage: stats CHECKOUT [%s]\n", strings.Join(lists, "|"))
		os.Exit(2)
	}
	if err := run(os.Stdout, os.Args[1], list); err != nil {
		fmt.Fprintln(os.Stderr, "stats:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, top, list string) error {
	if _, err := os.Stat(filepath.Join(top, "go.mod")); err != nil {
		return err
	}
	c, err := readCheckout(top)
	if err != nil {
		return err
	}
	t := table{out}
	t.printLines(c)
	fmt.Fprintln(t)

	agent := c.agent()
	code, words := comments(c.fset, agent)
	t.row("comment words per 100 code lines", 100*words/max(code, 1), 125)
	functions, branchy := branches(agent)
	t.row("functions over 10 branches", percent(len(branchy), functions), "6 %")
	name, methods := mostMethods(agent)
	t.row("methods of "+name, methods, 30)
	exported := unused(agent, c.sources)
	t.row("exported, used by no other package", len(exported), 60)
	t.row("cloud words outside metadata", clouds(c.fset, agent), 61)
	if info, err := os.Stat(filepath.Join(top, "build/amsagent")); err == nil {
		t.row("build/amsagent, MB", fmt.Sprintf("%.1f", float64(info.Size())/1e6), 18.2)
	}
	fmt.Fprintln(t)

	finds, err := wordFinds(top)
	c.complain("word finds are not counted", err)
	t.printWords(finds)
	tested, err := countInsides(top)
	c.complain("not all tests are counted", err)
	t.printInsides(tested)

	listed := map[string][]string{"unused": exported, "branchy": branchy, "words": finds, "insides": listInsides(tested)}[list]
	for _, line := range slices.Concat(c.complaints, listed) {
		fmt.Fprintln(t, line)
	}
	return nil
}

type table struct{ io.Writer }

func (t table) row(name string, now, atMost any) {
	fmt.Fprintf(t, "%-36s %9v %9v\n", name, now, atMost)
}

func (t table) printLines(c *checkout) {
	t.row("lines without tests", "now", "at most")
	ended, total := 0, c.lines[elsewhere]
	for i, p := range parts {
		n := c.lines[p.name]
		total += n
		t.row(p.name, n, p.atMost)
		if _, ok := p.atMost.(finished); !ok {
			continue
		}
		ended += n
		if _, more := parts[i+1].atMost.(finished); !more {
			t.row("  these together", ended, finishedAtMost)
		}
	}
	if len(c.elsewhere) > 0 {
		t.row(elsewhere+": "+strings.Join(slices.Sorted(maps.Keys(c.elsewhere)), " "), c.lines[elsewhere], 0)
	}
	t.row("agent in all", total, 45500)
	t.row(unitTests, c.lines[unitTests], "")
	t.row(sandbox, c.lines[sandbox], "")
	t.row("test side in all", c.lines[unitTests]+c.lines[sandbox], 87000)
	t.row(fmt.Sprintf("beside it: %d stories as text", c.stories), c.storyLines, "")
}

// printWords counts the finds of the rules for words, of which each begins with the path of its file.
func (t table) printWords(finds []string) {
	agent, docs, tests := 0, 0, 0
	for _, find := range finds {
		switch name, _, _ := strings.Cut(find, ":"); {
		case isTestSide(name), below(name, "tools"):
			tests++
		case filepath.Ext(name) == ".md":
			docs++
		default:
			agent++
		}
	}
	t.row("word finds in the agent", agent, 0)
	t.row("word finds in docs", docs, 0)
	t.row("word finds in tests and tools", tests, 250)
}

func (t table) printInsides(tested []tests) {
	all, inside := 0, 0
	for _, p := range tested {
		all += p.all
		inside += len(p.inside)
	}
	t.row("tests of the agent", all, "")
	t.row("tests that name insides", inside, percent(inside, all))
}

func percent(n, of int) string { return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(max(of, 1))) }
