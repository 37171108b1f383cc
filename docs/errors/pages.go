// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package pages holds the pages about errors, warnings and checks, one for each id:
// `amsagent doctor --explain ID` prints them without a network. They are part
// of the program, so they are short. Its API is not stable yet.
package pages

import (
	"embed"
	"slices"
	"strings"
)

//go:embed *-*.md
var files embed.FS

// Page returns the page of an id, or an error.
func Page(id string) ([]byte, error) { return files.ReadFile(id + ".md") }

// Title returns what an id means in a few words, or "" without a page.
func Title(id string) string {
	page, err := Page(id)
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(page), "\n")
	return strings.TrimPrefix(first, "# "+id+": ")
}

// IDs lists the ids that have a page.
func IDs() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil // cannot be: it is in the program
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, strings.TrimSuffix(e.Name(), ".md"))
	}
	slices.Sort(ids)
	return ids
}
