// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Amsagent makes a machine that runs Ant Media Server join its cluster, reports the machine's health, and drains the machine
// before it leaves, so no stream is cut. Everything it does on the command line is in package cli.
package main

import (
	"os"

	"github.com/amsagent/amsagent/cmd/amsagent/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.OS()))
}
