// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package heartbeat measures the machine (CPU, memory, network, disk, GPUs, sessions) and writes heartbeats into the
// registry.
//
// A missing reading is nil, with its reason in [Sample.Missing], never zero. Every path is below a root that a test can
// set, to run on recorded /proc and /sys trees.
//
// It decides nothing about joining, draining or leaving.
//
// The API is not stable yet.
package heartbeat
