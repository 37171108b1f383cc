// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package house

import (
	"flag"
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

var (
	update = flag.Bool("update", false, "lower the counts in testdata/words.txt")
	finds  = flag.String("finds", "", "write all finds to this `file`, as make stats does")
)

// wordRules match what plain technical English avoids (CONTRIBUTING.md, "Words"). The list is about grammar first: a
// person without a noun, data that speaks, "where" for "if", "is to" before a verb.
var wordRules = []struct {
	instead string
	match   *regexp.Regexp
}{
	{"the operator, another process, any client", regexp.MustCompile(`(?i)\b(some|no|any|every)body\b|\bwho(m|se)?ever\b|(?-i:(?:^|[.;:] )Who (?:is|has|asks|joins|goes|wants|writes)\b)`)},
	{"must, will, should", regexp.MustCompile(`(?i)\b(is|are|was|were) to (be|go|come|hear|serve|end|stop|know|join)\b`)},
	{"reports, sets, returns; last seen; acknowledgement", regexp.MustCompile(`(?i)\b(tells?|told|says that|heard)\b|\b(its|our|own|last|one) word\b`)},
	{"is not a, invalid, ignored", regexp.MustCompile(`(?i)\b(is|are|was) none\b|\bnone of ours\b`)},
	{"if, when", regexp.MustCompile(`(?i)\bwhere (it|there|nothing|nobody|one|that|no)\b|\bas where\b`)},
	{"a noun as the subject", regexp.MustCompile(`(?:^|[.;] )What (is|was|the|it|they|we)\b[^?]*(?:$|[.;])`)},
	{"leaves, terminates, is removed", regexp.MustCompile(`(?i)\b(machine|node|row)s? (that )?goes\b|\bis going\b`)},
	{"treat as, accept, cancel, restore, repair, ignore", regexp.MustCompile(`(?i)\btakes? (up|back)\b|\btaken (up|back)\b|\bgives? back\b|\bputs? \w+ right\b|\bleft alone\b`)},
	{"its owner, that user", regexp.MustCompile(`\b([Hh]e|[Hh]is|[Hh]im)\b`)},
	{"the glossary's word", regexp.MustCompile(`(?i)\b(mend(s|ed|ing)?|owed|anew|once more|every now and then|nought|pretended|surroundings|in vain|witness(es)?|verdicts?|tombstone|blanks)\b`)},
}

// badNames are functions without a verb.
var badNames = regexp.MustCompile(`^(told|mended|gone|late|over|bare|again|fresh|ours|own|spare|alone|elsewhere|hindered|settled)$`)

// TestWords counts what the rules match in each folder: comments and strings of Go files, names of functions, attributes
// of log calls, and Markdown. The counts in testdata/words.txt may only fall; a folder that is not listed has none.
func TestWords(t *testing.T) {
	const table = "testdata/words.txt"
	counts, examples := map[string]int{}, map[string][]string{}
	var all strings.Builder
	for _, f := range checkout(t) {
		if isFixture(f) || f.path == "internal/house/words_test.go" {
			continue
		}
		var found []string
		switch {
		case f.tree != nil:
			found = wordsInGo(f)
		case f.is(".md"):
			found = wordsInMarkdown(string(f.read(t)))
		}
		dir := path.Dir(f.path)
		counts[dir] += len(found)
		for _, one := range found {
			examples[dir] = append(examples[dir], f.path+":"+one)
			fmt.Fprintf(&all, "%s:%s\n", f.path, one)
		}
	}
	if *finds != "" {
		must.OK(t, os.WriteFile(*finds, []byte(all.String()), 0o600))
	}
	text, err := os.ReadFile(table)
	must.OK(t, err)
	allowed := map[string]int{}
	for line := range strings.Lines(string(text)) {
		if n, dir, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
			allowed[dir], _ = strconv.Atoi(n)
		}
	}
	if *update {
		var out strings.Builder
		out.WriteString("# Finds of the rules in words_test.go, for each folder. They may only fall: go test ./internal/house -run TestWords -update\n")
		for _, dir := range slices.Sorted(maps.Keys(counts)) {
			if n := min(counts[dir], allowed[dir]); n > 0 {
				fmt.Fprintln(&out, n, dir)
			}
		}
		must.OK(t, os.WriteFile(table, []byte(out.String()), 0o600))
	}
	total := 0
	for _, dir := range slices.Sorted(maps.Keys(counts)) {
		total += counts[dir]
		if counts[dir] <= allowed[dir] {
			continue
		}
		t.Errorf("%s: %d finds, at most %d:", dir, counts[dir], allowed[dir])
		for _, line := range examples[dir] {
			t.Log("  ", line)
		}
	}
	t.Logf("%d finds in all", total)
}

func wordsIn(line int, text string) []string {
	var found []string
	for _, rule := range wordRules {
		for _, m := range rule.match.FindAllString(text, -1) {
			found = append(found, fmt.Sprintf("%d: %q: %s", line, m, rule.instead))
		}
	}
	return found
}

func wordsInGo(f file) (found []string) {
	line := func(n ast.Node) int { return f.fset.Position(n.Pos()).Line }
	for _, group := range f.tree.Comments {
		// A sentence may go on in the next line.
		found = append(found, wordsIn(line(group), strings.Join(strings.Fields(group.Text()), " "))...)
	}
	ast.Inspect(f.tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); n.Kind == token.STRING && err == nil {
				found = append(found, wordsIn(line(n), text)...)
			}
		case *ast.FuncDecl:
			if badNames.MatchString(n.Name.Name) {
				found = append(found, fmt.Sprintf("%d: func %s: a name has a verb", line(n), n.Name.Name))
			}
		case *ast.CallExpr:
			found = append(found, badLog(line(n), n)...)
		}
		return true
	})
	return found
}

// badLog checks a call such as log.Warn("constant message", "error", err).
func badLog(line int, call *ast.CallExpr) []string {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, method.Sel.Name) || len(call.Args) < 2 {
		return nil
	}
	var found []string
	for i, arg := range call.Args {
		lit, ok := arg.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			continue
		}
		switch text, _ := strconv.Unquote(lit.Value); {
		case i == 0 && strings.Contains(text, ";"):
			found = append(found, fmt.Sprintf("%d: log message %q: one constant statement", line, text))
		case i%2 == 1 && slices.Contains([]string{"err", "what", "why"}, text):
			found = append(found, fmt.Sprintf("%d: log attribute %q: error, detail, reason", line, text))
		}
	}
	return found
}

var (
	fence      = regexp.MustCompile("(?ms)^ *```.*?^ *```[^\n]*$|^    [^\n]*$")
	inlineCode = regexp.MustCompile("`[^`\n]*`")
	link       = regexp.MustCompile(`\]\([^)]*\)`)
	item       = regexp.MustCompile(`^(- |\||\d+\. )`)
	sentences  = regexp.MustCompile(`[.!?:](?:\s|$)`)
)

// wordsInMarkdown also finds sentences of more than 30 and paragraphs of more than 90 words.
func wordsInMarkdown(text string) []string {
	var found []string
	blank := func(s string) string { return strings.Repeat("\n", strings.Count(s, "\n")) }
	text = fence.ReplaceAllStringFunc(text, blank)
	text = inlineCode.ReplaceAllString(text, "CODE")
	text = link.ReplaceAllString(text, "]")
	line := 1
	for _, block := range strings.Split(text, "\n\n") {
		at := line
		line += strings.Count(block, "\n") + 2
		// Each item of a list and each row of a table is a paragraph of its own.
		var items []string
		for _, l := range strings.Split(block, "\n") {
			trimmed := strings.TrimSpace(l)
			if len(items) == 0 || item.MatchString(trimmed) {
				items = append(items, trimmed)
			} else {
				items[len(items)-1] += " " + trimmed
			}
		}
		for _, text := range items {
			found = append(found, wordsIn(at, text)...)
			if strings.HasPrefix(text, "|") {
				continue
			}
			if n := len(strings.Fields(text)); n > 90 {
				found = append(found, fmt.Sprintf("%d: a paragraph of %d words", at, n))
			}
			for _, s := range sentences.Split(text, -1) {
				if n := len(strings.Fields(s)); n > 30 {
					found = append(found, fmt.Sprintf("%d: a sentence of %d words: %.60s", at, n, strings.TrimSpace(s)))
				}
			}
		}
	}
	return found
}

func TestWordRules(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"The daemon reports whether it runs.": 0,
		"Nobody is to go.":                    2,
		"It tells whether he joins.":          2,
		"What is it?":                         0,
		"What is left goes.":                  1,
		"Where there is none.":                2,
	} {
		if got := wordsIn(1, text); len(got) != want {
			t.Errorf("%q: %q, want %d finds", text, got, want)
		}
	}
	long := strings.Repeat("word ", 31)
	if got := wordsInMarkdown("# Title\n\n" + long + "\n\n    nobody in code\n\n`nobody`\n"); len(got) != 1 {
		t.Errorf("%q, want one long sentence", got)
	}
}
