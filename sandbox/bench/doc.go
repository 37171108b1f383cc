// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package bench measures the real agent against the sandbox: what the daemon
// takes of a machine, what a fleet asks of a database, how soon a node that died is
// called gone, and what a join adds to the start of a real server (after `make real-fetch`,
// as root; skipped elsewhere). `make bench` runs it and prints the figures; nothing
// fails because of one, as a figure of a busy machine says little.
//
// There is nothing to import and nothing stable.
package bench
