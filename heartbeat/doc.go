// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package heartbeat knows what the machine is doing (CPU, memory, network,
// disk, GPUs, the server's own process, sessions) and beats it into the
// registry.
//
// A reading that is missing is missing: nil, with its reason in
// [Sample.Missing], never zero. Every path is below a root that a test can set,
// so that all of it runs on recorded /proc and /sys trees.
//
// It never decides anything: who joins, drains or leaves is not its matter.
//
// The API is not stable yet.
package heartbeat
