// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// release is one section of CHANGELOG.md.
type release struct {
	version string
	date    time.Time
	changes []string
}

var heading = regexp.MustCompile(`^## (?:Unreleased|\[?v?([0-9][^\s\]]*)\]?[\s,(-]+([0-9]{4}-[0-9]{2}-[0-9]{2})\)?)$`)

// changelog reads CHANGELOG.md: sections `## Unreleased` and `## 1.2.3 (2026-01-31)` with lists. What is not released yet is
// what this package is, and of this commit. A section it does not understand is an error: it would be lost in silence.
func changelog(text []byte, version string, date time.Time) ([]release, error) {
	var all []release
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, " \r\n")
		switch {
		case strings.HasPrefix(line, "## "):
			m := heading.FindStringSubmatch(line)
			if m == nil {
				return nil, fmt.Errorf("CHANGELOG.md: %q is neither Unreleased nor a version with its date", line)
			}
			r := release{version: version, date: date}
			if m[1] != "" {
				day, err := time.Parse(time.DateOnly, m[2])
				if err != nil {
					return nil, fmt.Errorf("CHANGELOG.md: %q: %w", line, err)
				}
				r = release{version: packageVersion(m[1], day), date: day}
			}
			all = append(all, r)
		case len(all) == 0 || line == "":
		case strings.HasPrefix(line, "- "):
			last := &all[len(all)-1]
			last.changes = append(last.changes, plain(line[2:]))
		case strings.HasPrefix(line, "  "):
			last := &all[len(all)-1]
			if len(last.changes) == 0 {
				return nil, fmt.Errorf("CHANGELOG.md: %q belongs to no entry", line)
			}
			last.changes[len(last.changes)-1] += " " + plain(strings.TrimSpace(line))
		default:
			return nil, fmt.Errorf("CHANGELOG.md: %q is no entry of a list", line)
		}
	}
	var kept []release
	for _, r := range all {
		if len(r.changes) > 0 {
			kept = append(kept, r)
		}
	}
	if len(kept) == 0 {
		return nil, errors.New("CHANGELOG.md has no entry")
	}
	// After a release, with nothing to tell yet: dpkg wants this package's own version first.
	if kept[0].version != version {
		kept = append([]release{{version: version, date: date, changes: []string{"No change that a user notices."}}}, kept...)
	}
	return kept, nil
}

// plain drops the marks of Markdown that occur in a changelog.
func plain(s string) string { return strings.ReplaceAll(s, "`", "") }

// debianChangelog is deb-changelog(5).
func debianChangelog(all []release) []byte {
	var b bytes.Buffer
	for i, r := range all {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s (%s-1) stable; urgency=medium\n\n", program, r.version)
		for _, c := range r.changes {
			for n, line := range fold(c, 74) {
				b.WriteString([]string{"  * ", "    "}[min(n, 1)] + line + "\n")
			}
		}
		fmt.Fprintf(&b, "\n -- %s  %s\n", maintainer, r.date.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	}
	return b.Bytes()
}

// rpmChangelog is what nfpm makes an rpm's changelog of.
func rpmChangelog(all []release) []byte {
	var b bytes.Buffer
	for _, r := range all {
		fmt.Fprintf(&b, "- semver: %s\n  date: %s\n  packager: %s\n  changes:\n", strconv.Quote(r.version+"-1"), r.date.UTC().Format(time.RFC3339), strconv.Quote(maintainer))
		for _, c := range r.changes {
			fmt.Fprintf(&b, "    - note: %s\n", strconv.Quote(c))
		}
	}
	return b.Bytes()
}

// fold breaks a text at blanks, into lines of at most so many characters.
func fold(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len([]rune(line))+1+len([]rune(word)) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
