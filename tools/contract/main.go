// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Command contract compares what a tier of tests ran with the names that must have run and passed there.
//
//	contract TIER CONTRACT FILE...
//
// CONTRACT has one name a line, with its tier before it: `gate TestScripts/drain`. Each FILE is the output of
// `go test -json`. A name that is missing, skipped or failed is listed, and the exit code is 1.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: contract TIER CONTRACT FILE...")
		os.Exit(2)
	}
	ok, err := run(os.Stdout, os.Args[1], os.Args[2], os.Args[3:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "contract:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(out io.Writer, tier, contract string, files []string) (bool, error) {
	text, err := os.ReadFile(contract)
	if err != nil {
		return false, err
	}
	names, err := due(string(text), tier)
	if err != nil {
		return false, fmt.Errorf("%s: %w", contract, err)
	}
	ran := outcomes{}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return false, err
		}
		ran.read(data)
	}
	told, passed := report(tier, names, ran)
	_, err = io.WriteString(out, told)
	return passed, err
}

// due returns the names of one tier.
func due(contract, tier string) ([]string, error) {
	var names []string
	for i, line := range strings.Split(contract, "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) != 2 || !slices.Contains([]string{"gate", "real", "heavy"}, fields[0]) {
			return nil, fmt.Errorf("line %d: want `TIER NAME`, not %q", i+1, line)
		}
		if fields[0] == tier {
			names = append(names, fields[1])
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no name is due in the tier %q", tier)
	}
	if slices.Sort(names); len(slices.Compact(slices.Clone(names))) != len(names) {
		return nil, fmt.Errorf("tier %s: a name stands twice", tier)
	}
	return names, nil
}

// An outcome is what the last run of a test in one package ended with.
type outcome struct {
	action string // pass, skip, fail; "" while it runs
	reason string // of a skip
}

// outcomes are by name and package: a name may stand in several packages, one for each cloud for example.
type outcomes map[string]map[string]outcome

var skipReason = regexp.MustCompile(`^\s+\S+\.go:\d+: (.*)`)

// read adds the events of one run. A later run of the same test replaces an earlier one.
func (o outcomes) read(data []byte) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, len(data)+1)
	for lines.Scan() {
		var e struct{ Action, Package, Test, Output string }
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Test == "" {
			continue
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
}

// of returns "" for a name that passed in one package and failed in none, else the reason. A rule of the conformance
// suite is skipped for clouds that have no such thing.
func (o outcomes) of(name string) string {
	passed, skipped := false, ""
	for _, one := range o[name] {
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

// report groups the names by reason, so that one missing program is one line and not three hundred.
func report(tier string, names []string, ran outcomes) (text string, passed bool) {
	var out strings.Builder
	broken := map[string][]string{}
	for _, name := range names {
		if why := ran.of(name); why != "" {
			broken[why] = append(broken[why], name)
		}
	}
	reasons := make([]string, 0, len(broken))
	for why := range broken {
		reasons = append(reasons, why)
	}
	slices.Sort(reasons)
	const most = 10
	for _, why := range reasons {
		list := broken[why]
		fmt.Fprintf(&out, "contract: %s (%d):\n", why, len(list))
		for i, name := range list {
			if i == most && len(list) > 2*most {
				fmt.Fprintf(&out, "  … and %d more\n", len(list)-most)
				break
			}
			fmt.Fprintf(&out, "  %s\n", name)
		}
	}
	if len(broken) == 0 {
		fmt.Fprintf(&out, "contract: all %d names of the tier %s ran and passed\n", len(names), tier)
	}
	return out.String(), len(broken) == 0
}
