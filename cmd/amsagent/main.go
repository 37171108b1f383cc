// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Amsagent makes a machine that runs Ant Media Server join its cluster, be seen while it works, and leave without
// cutting a stream. Everything it does on the command line is in package cli.
package main

import (
	"os"

	"github.com/amsagent/amsagent/cmd/amsagent/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.OS()))
}
