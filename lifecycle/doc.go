// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package lifecycle drains a node: it receives notices, waits for sessions to end, stops the server, deregisters the node,
// and completes the cloud's hook last.
//
// [Runner] applies events to a state with a pure function, stores the state in drain.json, and derives its work from it.
//
// The API is not stable yet.
package lifecycle
