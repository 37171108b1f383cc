// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package daemon implements `amsagent run`: it keeps the machine as it joined, sends heartbeats, and answers requests.
//
// It uses no flags, environment or standard output. Its restart changes nothing in the cluster.
//
// [Daemon] runs sessions. In a session, a machine is the same node.
package daemon
