// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// A source is a Go file.
type source struct {
	path  string
	text  []byte
	lines int
	tree  *ast.File
}

// A checkout is what the figures are made of.
type checkout struct {
	fset                *token.FileSet
	sources             []source // without those that do not parse
	lines               map[string]int
	elsewhere           map[string]bool // folders of the agent that belong to no part
	stories, storyLines int
	complaints          []string
}

// Rows of the table that are no part of the agent.
const (
	unitTests = "unit tests"
	sandbox   = "sandbox, with the fakes"
	elsewhere = "elsewhere"
)

// Tests beside the agent's code belong to the unit tests, too.
var (
	sandboxFolders = []string{"sandbox", "test", "internal/fakes"}
	unitFolders    = []string{"internal/readback", "internal/locked", "internal/must", "internal/house", "conf/internal/javatest"}
)

// isTestSide reports whether a Go file is no part of the agent.
func isTestSide(name string) bool { return rowOf(name) == unitTests || rowOf(name) == sandbox }

// rowOf names the row of the table to which the lines of a Go file belong.
func rowOf(name string) string {
	switch {
	case below(name, sandboxFolders...):
		return sandbox
	case strings.HasSuffix(name, "_test.go"), below(name, unitFolders...):
		return unitTests
	}
	row, longest := elsewhere, ""
	for _, p := range parts {
		for _, folder := range p.folders {
			if below(name, folder) && len(folder) > len(longest) {
				row, longest = p.name, folder
			}
		}
	}
	return row
}

func below(name string, folders ...string) bool {
	for _, folder := range folders {
		if name == folder || strings.HasPrefix(name, folder+"/") {
			return true
		}
	}
	return false
}

func readCheckout(top string) (*checkout, error) {
	c := &checkout{fset: token.NewFileSet(), lines: map[string]int{}, elsewhere: map[string]bool{}}
	return c, filepath.WalkDir(top, func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name == "build" || name == "tools" || strings.HasPrefix(entry.Name(), ".") && name != "." {
				return filepath.SkipDir
			}
			return nil
		}
		story := path.Ext(name) == ".txtar" && slices.Contains([]string{"script", "booted"}, path.Base(path.Dir(name)))
		if !story && (path.Ext(name) != ".go" || strings.Contains("/"+name, "/testdata/")) {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		lines := bytes.Count(text, []byte("\n"))
		if story {
			c.stories++
			c.storyLines += lines
			return nil
		}
		c.add(name, text, lines)
		return nil
	})
}

func (c *checkout) add(name string, text []byte, lines int) {
	row := rowOf(name)
	c.lines[row] += lines
	if row == elsewhere {
		c.elsewhere[path.Dir(name)] = true
	}
	tree, err := parser.ParseFile(c.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		c.complain("only its lines are counted", err)
		return
	}
	c.sources = append(c.sources, source{path: name, text: text, lines: lines, tree: tree})
}

// complain keeps what is not counted for the end of the table.
func (c *checkout) complain(what string, err error) {
	if err != nil {
		c.complaints = append(c.complaints, fmt.Sprintf("%s: %v", what, err))
	}
}

// agent has the sources that are linked into the agent.
func (c *checkout) agent() (sources []source) {
	for _, s := range c.sources {
		if !isTestSide(s.path) {
			sources = append(sources, s)
		}
	}
	return sources
}
