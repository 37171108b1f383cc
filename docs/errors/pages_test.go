// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package pages

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// update rewrites the list of pages: go test ./docs/errors -update
var update = flag.Bool("update", false, "rewrite README.md")

// maxPages is what all pages together may take of the program.
const maxPages = 60 << 10

// elsewhere finds what leads into the sources: on a machine there are the program and its manual, which know the pages by their ids.
var elsewhere = regexp.MustCompile(`\bdocs/\S*|\S+\.md\b`)

func TestPages(t *testing.T) {
	ids := IDs()
	if len(ids) < 100 {
		t.Fatalf("only %d pages", len(ids))
	}
	total := 0
	for _, id := range ids {
		b, err := Page(id)
		must.OK(t, err)
		text := string(b)
		total += len(b)
		if title(text) == "" || !strings.HasPrefix(text, "# "+id+": ") {
			t.Errorf("%s: begins with %q", id, strings.SplitN(text, "\n", 2)[0])
		}
		// A page has, perhaps, the meaning; then how to see it, and how to fix it.
		if form := regexp.MustCompile(`(?m)^(Check|Fix): \S`).FindAllStringSubmatch(text, -1); len(form) != 2 || form[0][1] != "Check" || form[1][1] != "Fix" {
			t.Errorf("%s: has not one line that begins with Check: and then one that begins with Fix:", id)
		}
		if !strings.HasSuffix(text, "\n") {
			t.Errorf("%s: does not end with a line feed", id)
		}
		if strings.Contains(text, "://") && regexp.MustCompile(`https?://`).MatchString(text) {
			t.Errorf("%s: names an address of the web, which may go away", id)
		}
		// Each page that it names exists.
		for _, other := range regexp.MustCompile(`\b(?:AGENT|AMS|STATUS)-[A-Z]+(?:-[A-Z]+)*\b`).FindAllString(text, -1) {
			if !slices.Contains(ids, other) {
				t.Errorf("%s: there is no page of %s", id, other)
			}
		}
		must.Equal(t, id+": it names a document that is not on the machine; an id alone leads to its page", elsewhere.FindString(text), "")
	}
	if total > maxPages {
		t.Errorf("%d bytes, more than %d", total, maxPages)
	}
	if _, err := Page("AMS-NO-SUCH"); err == nil {
		t.Error("a page of nothing")
	}
}

// title is the first line without the id.
func title(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	_, t, _ := strings.Cut(line, ": ")
	return t
}

// literals calls f with every string literal of the program but its imports.
func literals(t *testing.T, f func(path, text string)) {
	t.Helper()
	root := "../.."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch name := d.Name(); {
			case name == "sandbox", name == "tools", name == "packaging", name == "build", name == "testdata", name != ".." && strings.HasPrefix(name, ".") && name != root:
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if s, err := strconv.Unquote(lit.Value); err == nil {
					f(path, s)
				}
			}
			_, imports := n.(*ast.ImportSpec)
			return !imports
		})
		return nil
	})
	must.OK(t, err)
}

// A hint leads to something that is on the machine: a command, or an id.
func TestNoHintLeadsElsewhere(t *testing.T) {
	n := 0
	literals(t, func(path, text string) {
		n++
		must.Equal(t, fmt.Sprintf("%s: %q names a document that is not on the machine", path, text), elsewhere.FindString(text), "")
	})
	if n < 1000 {
		t.Fatalf("only %d literals were found: the walk is wrong", n)
	}
}

// Every id in the sources has a page, and every page an id.
func TestEveryIDHasItsPage(t *testing.T) {
	used := map[string]string{}
	shape := regexp.MustCompile(`^(AGENT|AMS|STATUS)-[A-Z]+(-[A-Z]+)*$`)
	literals(t, func(path, text string) {
		if shape.MatchString(text) {
			used[text] = path
		}
	})
	if len(used) < 100 {
		t.Fatalf("only %d ids were found: the walk is wrong", len(used))
	}
	have := IDs()
	for id, path := range used {
		if !slices.Contains(have, id) {
			t.Errorf("%s, in %s, has no page", id, path)
		}
	}
	for _, id := range have {
		if used[id] == "" {
			t.Errorf("docs/errors/%s.md is the page of no id", id)
		}
	}
}

// README.md lists all pages.
func TestIndex(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Errors, warnings and checks\n\nOne page for each id that a command prints; on a machine `amsagent doctor --explain ID` shows it.\n" +
		"`AMS-…` are about Ant Media Server and MongoDB, `AGENT-…` about the agent, `STATUS-…` about contradictions that `amsagent status` finds.\n" +
		"This list is made of the pages: `go test ./docs/errors -update`.\n\n")
	for _, id := range IDs() {
		page, err := Page(id)
		must.OK(t, err)
		fmt.Fprintf(&b, "- [%s](%s.md): %s\n", id, id, title(string(page)))
	}
	if *update {
		must.OK(t, os.WriteFile("README.md", []byte(b.String()), 0o644))
	}
	have, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatalf("%v (make it with -update)", err)
	}
	must.NoDiff(t, "README.md (-update rewrites it)", string(have), b.String())
}
