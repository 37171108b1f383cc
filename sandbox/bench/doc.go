// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package bench measures the real agent against the sandbox: what the daemon takes
// of a machine, how soon a node that died is called gone, and what it takes to learn
// and to watch what a cloud says. `make bench` runs it and prints the figures; nothing
// fails because of one, as a figure of a busy machine says little.
//
// There is nothing to import and nothing stable.
package bench
