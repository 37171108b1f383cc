// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Command sandbox runs the fake environment of an agent: a MongoDB, a cloud, an Ant Media Server.
package main

import (
	"os"

	"github.com/amsagent/amsagent/sandbox/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.OS()))
}
