// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

var tiers = []string{"gate", "corpus", "real", "heavy"}

// A test is named by its package, or a pattern of packages, and its name.
type test struct{ pkg, name string }

func (t test) String() string { return t.pkg + " " + t.name }

// check compares the events in files with the tests of some tiers in the file contract.
func check(out io.Writer, tiers []string, contract string, files []string) (bool, error) {
	text, err := os.ReadFile(contract)
	if err != nil {
		return false, err
	}
	var tests []test
	for _, tier := range tiers {
		of, err := due(string(text), tier)
		if err != nil {
			return false, fmt.Errorf("%s: %w", contract, err)
		}
		tests = append(tests, of...)
	}
	ran := outcomes{}
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			return false, err
		}
		err = events(file, ran.add, func(string) {})
		_ = file.Close()
		if err != nil {
			return false, err
		}
	}
	listed, passed := compare(strings.Join(tiers, ", "), tests, ran)
	_, err = io.WriteString(out, listed)
	return passed, err
}

// due returns the tests of one tier.
func due(contract, tier string) ([]test, error) {
	if !slices.Contains(tiers, tier) {
		return nil, fmt.Errorf("no tier is named %q", tier)
	}
	var tests []test
	for i, line := range strings.Split(contract, "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) != 3 || !slices.Contains(tiers, fields[0]) {
			return nil, fmt.Errorf("line %d: want `TIER PACKAGE NAME`, not %q", i+1, line)
		}
		if fields[0] == tier {
			tests = append(tests, test{fields[1], fields[2]})
		}
	}
	if len(tests) == 0 {
		return nil, fmt.Errorf("no test is due in the tier %q", tier)
	}
	seen := map[test]bool{}
	for _, t := range tests {
		if seen[t] {
			return nil, fmt.Errorf("tier %s: %s stands twice", tier, t)
		}
		seen[t] = true
	}
	return tests, nil
}

// An outcome is what the last run of a test in one package ended with.
type outcome struct {
	action string // pass, skip, fail; "" while it runs
	reason string // of a skip
}

// outcomes are by name and package.
type outcomes map[string]map[string]outcome

var skipReason = regexp.MustCompile(`^\s+\S+\.go:\d+: (.*)`)

// add takes the events of a test. A later run of the same test replaces an earlier one.
func (o outcomes) add(e event) {
	if e.Test == "" {
		return
	}
	if o[e.Test] == nil {
		o[e.Test] = map[string]outcome{}
	}
	last := o[e.Test][e.Package]
	switch e.Action {
	case "run":
		last = outcome{}
	case "output":
		if m := skipReason.FindStringSubmatch(e.Output); m != nil {
			last.reason = m[1]
		}
	case "pass", "skip", "fail":
		last.action = e.Action
	}
	o[e.Test][e.Package] = last
}

// of returns "" for a test that passed in one of its packages and failed in none, else the reason. A rule of the
// conformance suite is skipped for clouds to which it does not apply.
func (o outcomes) of(t test) string {
	passed, skipped := false, ""
	for pkg, one := range o[t.name] {
		if match, _ := path.Match(t.pkg, pkg); !match {
			continue
		}
		switch one.action {
		case "pass":
			passed = true
		case "skip":
			skipped = "skipped: " + one.reason
		default:
			return "failed"
		}
	}
	switch {
	case passed:
		return ""
	case skipped != "":
		return skipped
	}
	return "did not run"
}

// compare groups the tests by reason, so that one missing program is one line and not three hundred.
func compare(tiers string, tests []test, ran outcomes) (text string, passed bool) {
	var out strings.Builder
	broken := map[string][]test{}
	for _, t := range tests {
		if reason := ran.of(t); reason != "" {
			broken[reason] = append(broken[reason], t)
		}
	}
	const limit = 10
	for _, reason := range slices.Sorted(maps.Keys(broken)) {
		list := broken[reason]
		fmt.Fprintf(&out, "contract: %s (%d):\n", reason, len(list))
		for i, t := range list {
			if i == limit && len(list) > 2*limit {
				fmt.Fprintf(&out, "  … and %d more\n", len(list)-limit)
				break
			}
			fmt.Fprintf(&out, "  %s\n", t)
		}
	}
	if len(broken) == 0 {
		fmt.Fprintf(&out, "contract: all %d tests of %s ran and passed\n", len(tests), tiers)
	}
	return out.String(), len(broken) == 0
}
