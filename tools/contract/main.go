// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Command contract prints what tests do, and compares what a tier of tests ran with the names that must have run and
// passed there.
//
//	go test -json … | contract print FILE
//	contract check TIER[,TIER…] CONTRACT FILE…
//
// print copies the events to FILE and prints a line for each package, then what was skipped and what failed.
//
// CONTRACT has one test a line, with its tier and its package before it: `gate sandbox/e2e TestScripts/drain`. The last
// part of a package may be `*`: then the test passes in one of these packages at least, and fails in none. Each FILE has
// the output of `go test -json`. A test that is missing, skipped or failed is listed, and the exit code is 1.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	var ok bool
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "print":
		ok, err = printTo(args[1])
	case len(args) > 3 && args[0] == "check":
		ok, err = check(os.Stdout, strings.Split(args[1], ","), args[2], args[3:])
	default:
		fmt.Fprintln(os.Stderr, "usage: contract print FILE | contract check TIER[,TIER...] CONTRACT FILE...")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "contract:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func printTo(name string) (bool, error) {
	file, err := os.Create(name)
	if err != nil {
		return false, err
	}
	ok, err := show(os.Stdout, io.TeeReader(os.Stdin, file))
	if closed := file.Close(); err == nil {
		err = closed
	}
	return ok, err
}

const module = "github.com/amsagent/amsagent/"

// An event is one of `go test -json` (go doc test2json). Package is without the name of the module.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64 // seconds
}

// events calls handle for each event. A line that is no event is given to other: a compiler writes such lines.
func events(r io.Reader, handle func(event), other func(line string)) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		var e event
		switch {
		case strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &e) == nil:
			e.Package = strings.TrimPrefix(e.Package, module)
			handle(e)
		case line != "":
			other(line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
