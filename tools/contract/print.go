// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// A log is what a test, or a package outside its tests, has printed.
type log struct {
	test
	running bool
	seconds float64
	output  strings.Builder
}

// printed is the state of one run of `go test`.
type printed struct {
	out  io.Writer
	logs map[test]*log
	// Of these, in their order, the logs are printed at the end.
	skipped, failed []*log
	builds          map[string]*strings.Builder // by import path: what the compiler printed
	tests           int
	seconds         float64 // of the package that took longest
	packages        int
}

// show prints the events of one run of `go test` in the form of gotestsum, and reports whether everything passed. A
// test that had not ended when its package failed is a failed test: its process died, or its time was over.
func show(out io.Writer, r io.Reader) (bool, error) {
	p := &printed{out: out, logs: map[test]*log{}, builds: map[string]*strings.Builder{}}
	err := events(r, p.add, func(line string) { _, _ = io.WriteString(out, line) })
	if err != nil {
		return false, err
	}
	for _, l := range p.skipped {
		fmt.Fprintf(out, "\n=== SKIP: %s (%.2fs)\n%s", l.test, l.seconds, l.output.String())
	}
	for _, l := range p.failed {
		fmt.Fprintf(out, "\n=== FAIL: %s (%.2fs)\n%s", l.test, l.seconds, l.output.String())
	}
	fmt.Fprintf(out, "\nDONE %d tests", p.tests)
	if len(p.skipped) > 0 {
		fmt.Fprintf(out, ", %d skipped", len(p.skipped))
	}
	if len(p.failed) > 0 {
		fmt.Fprintf(out, ", %d failures", len(p.failed))
	}
	fmt.Fprintf(out, " in %.1fs\n", p.seconds)
	return len(p.failed) == 0 && p.packages > 0, nil
}

func (p *printed) add(e event) {
	if strings.HasPrefix(e.Action, "build-") {
		p.build(e)
		return
	}
	t := test{e.Package, e.Test}
	l := p.logs[t]
	if l == nil {
		l = &log{test: t}
		p.logs[t] = l
	}
	switch e.Action {
	case "run":
		p.tests++
		l.running = true
	case "output":
		if !isFrame(e.Output) {
			l.output.WriteString(e.Output)
		}
	case "pass", "fail", "skip":
		l.running, l.seconds = false, e.Elapsed
		switch {
		case e.Test == "":
			p.ended(l, e.Action)
		case e.Action == "fail":
			p.failed = append(p.failed, l)
			delete(p.logs, t)
		case e.Action == "skip":
			p.skipped = append(p.skipped, l)
			delete(p.logs, t)
		default:
			delete(p.logs, t)
		}
	}
}

// isFrame reports whether go test itself wrote a line of output, whose meaning is an event of its own, too.
func isFrame(line string) bool {
	line = strings.TrimLeft(line, " ")
	for _, prefix := range []string{"=== RUN ", "=== PAUSE ", "=== CONT ", "=== NAME ", "--- PASS: ", "--- SKIP: ", "--- FAIL: "} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return line == "PASS\n" || line == "FAIL\n" || strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "?   \t")
}

func (p *printed) build(e event) {
	b := p.builds[e.ImportPath]
	if b == nil {
		b = &strings.Builder{}
		p.builds[e.ImportPath] = b
	}
	b.WriteString(e.Output)
	if e.Action == "build-fail" {
		fmt.Fprint(p.out, b.String())
	}
}

// ended prints the line of a package.
func (p *printed) ended(l *log, action string) {
	p.seconds = max(p.seconds, l.seconds)
	switch action {
	case "skip": // it has no tests
		return
	case "pass":
		p.packages++
		fmt.Fprintf(p.out, "PASS  %s (%.1fs)\n", l.pkg, l.seconds)
		return
	}
	p.packages++
	fmt.Fprintf(p.out, "FAIL  %s (%.1fs)\n", l.pkg, l.seconds)
	var running []*log
	for _, other := range p.logs {
		if other.pkg == l.pkg && other.running {
			running = append(running, other)
		}
	}
	slices.SortFunc(running, func(a, b *log) int { return strings.Compare(a.name, b.name) })
	p.failed = append(p.failed, running...)
	if !slices.ContainsFunc(p.failed, func(f *log) bool { return f.pkg == l.pkg }) {
		p.failed = append(p.failed, l)
	}
}
