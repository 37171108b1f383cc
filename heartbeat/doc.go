// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package heartbeat measures the machine (CPU, memory, network, disk, GPUs, sessions) and writes heartbeats into the
// registry.
//
// A missing reading is nil, with its reason in [Sample.Missing]. The API is not stable yet.
package heartbeat
