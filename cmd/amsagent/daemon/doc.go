// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package daemon is what `amsagent run` does as long as the machine is up: it
// keeps the machine as it joined, beats, and answers questions about itself.
//
// It puts bootstrap and heartbeat together, which do not know each other. It
// prints nothing and reads no flags and no environment: package cli hands it
// everything. A restart of it changes nothing in the cluster.
//
// Its parts: [Daemon] follows the state file from one session to the next; a
// session is the time in which a machine is the same node; the control socket
// and the metrics only read.
package daemon
