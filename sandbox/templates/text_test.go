// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// source is a template as text, without comments and indents. Nothing here knows a schema or evaluates an expression.
type source struct {
	raw, text string
	blocks    map[string]string // of text, by name: "edgeSet", "aws_lb.rtmp", "variable.region", "EdgeTargets"
}

var (
	// Where a block begins, and its name.
	begins = map[string]*regexp.Regexp{
		".bicep": regexp.MustCompile(`^(?:resource|var|param) (\w+)`),
		".tf":    regexp.MustCompile(`^(?:resource )?((?:\w+ )?(?:"[\w-]+" )*)\{`),
		".hcl":   regexp.MustCompile(`^((?:\w+ )(?:"[\w-]+" )*)\{`),
		".yaml":  regexp.MustCompile(`^  (\w+):`),
	}
	section = regexp.MustCompile(`^(\w+):`)
	blanks  = regexp.MustCompile(`\s+`)
	// What Fn::Sub puts a value for.
	reference = regexp.MustCompile(`\$\{[\w:.]+\}`)
)

// read reads a file, or all files of a module.
func read(t *testing.T, pattern string) source {
	t.Helper()
	files, err := filepath.Glob(pattern)
	must.OK(t, err)
	s := source{blocks: map[string]string{}}
	for _, file := range files {
		s.raw += contents(t, file)
	}
	name, under := "", ""
	for line := range strings.Lines(s.raw) {
		if m := section.FindStringSubmatch(line); m != nil {
			name, under = "", strings.TrimSuffix(m[1], "Resources")
		}
		if m := begins[filepath.Ext(pattern)].FindStringSubmatch(line); m != nil {
			name = strings.Join(strings.Fields(strings.ReplaceAll(under+" "+m[1], `"`, "")), ".")
			if s.blocks[name] != "" {
				t.Errorf("%s: %s is there twice", pattern, name)
			}
			s.blocks[name] = "\n"
		}
		line = blanks.ReplaceAllString(strings.TrimSpace(line), " ")
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "//") {
			continue
		}
		s.text += line + "\n"
		s.blocks[name] += line + "\n"
	}
	return s
}

// finds are all places of a pattern, each as its groups.
func (s source) finds(pattern string) []string {
	out := []string{}
	for _, m := range regexp.MustCompile("(?m)"+pattern).FindAllStringSubmatch(s.text, -1) {
		out = append(out, strings.Join(strings.Fields(strings.Join(m[1:], " ")), " "))
	}
	return out
}

func lines(text string) []string {
	out := []string{}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// lacks returns what the template lacks of a cell. A line of a cell names blocks, and after each | what these have, in this
// order. A line with {role} or {Role} is one for origin and one for edge. `all PATTERN => A; B` is everything that the pattern
// finds in the template. An indented line continues the line before it.
func (s source) lacks(cell string) (out []string) {
	for _, line := range lines(strings.ReplaceAll(cell, "\n\t\t\t\t", " ")) {
		if all, ok := strings.CutPrefix(line, "all "); ok {
			pattern, want, _ := strings.Cut(all+" ", " => ")
			if got := strings.Join(s.finds(pattern), "; "); got != strings.TrimSpace(want) {
				out = append(out, fmt.Sprintf("%s\nfinds %s\nwant  %s", pattern, got, want))
			}
			continue
		}
		for _, role := range []string{"origin", "edge"} {
			ofRole := strings.NewReplacer("{role}", role, "{Role}", strings.ToUpper(role[:1])+role[1:]).Replace(line)
			parts := strings.Split(ofRole, " | ")
			for _, name := range strings.Fields(parts[0]) {
				rest := s.blocks[name]
				for _, part := range parts[1:] {
					at := regexp.MustCompile(`(?:^|[^\w.-])(` + regexp.QuoteMeta(part) + `)(?:[^\w./-]|$)`).FindStringSubmatchIndex(rest)
					if at == nil {
						out = append(out, fmt.Sprintf("%s lacks, or not here: %s", name, part))
						continue
					}
					rest = rest[at[3]:]
				}
			}
			if ofRole == line {
				break
			}
		}
	}
	return out
}

// used: each name that is used is declared, and each declared one is used.
func used(t *testing.T, declared, names []string) {
	t.Helper()
	for _, name := range names {
		if !slices.Contains(declared, name) {
			t.Errorf("%s is used, and not there", name)
		}
	}
	for _, name := range declared {
		if !slices.Contains(names, name) {
			t.Errorf("nothing uses %s", name)
		}
	}
}

// filled is a script with values in the places of names, as "{{name}}" with the marks "{{" and "}}". It has each of them, and no other.
func filled(t *testing.T, script, begin, end string, values map[string]string) string {
	t.Helper()
	var names []string
	out := regexp.MustCompile(regexp.QuoteMeta(begin)+`([\w.]+)`+regexp.QuoteMeta(end)).ReplaceAllStringFunc(script, func(s string) string {
		name := strings.TrimSuffix(strings.TrimPrefix(s, begin), end)
		names = append(names, name)
		return values[name]
	})
	used(t, slices.Sorted(maps.Keys(values)), names)
	return out
}

// references: what a module of Terraform names is declared, and a variable that is declared is named.
func (s source) references(t *testing.T) {
	t.Helper()
	used(t, s.finds(`^variable "(\w+)"`), s.finds(`\bvar\.(\w+)`))
	for _, name := range s.finds(`\b((?:data\.)?(?:aws|google)_\w+\.\w+)`) {
		if s.blocks[name] == "" {
			t.Errorf("there is no %s", name)
		}
	}
	for _, name := range s.finds(`\blocal\.(\w+)`) {
		if !strings.Contains(s.blocks["locals"], "\n"+name+" = ") {
			t.Errorf("there is no local.%s", name)
		}
	}
}

// heredoc is the only text of a module between marks.
func (s source) heredoc(t *testing.T) string {
	t.Helper()
	all := regexp.MustCompile(`(?s)<<-END\n(.*?\n) *END\n`).FindAllStringSubmatch(s.raw, -1)
	if len(all) != 1 {
		t.Fatalf("%d texts", len(all))
	}
	return regexp.MustCompile(`(?m)^ +`).ReplaceAllString(all[0][1], "")
}

// needs skips a test on a machine without one of these programs.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
}

// writeStandIns writes programs, each a script of sh.
func writeStandIns(t *testing.T, dir string, bodies map[string]string) {
	t.Helper()
	for name, body := range bodies {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	}
}

func contents(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must.OK(t, err)
	return string(b)
}
