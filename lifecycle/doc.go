// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package lifecycle drains a node: notices come in, sessions end, the server stops, the node deregisters, and the cloud's hook is
// completed last.
//
// [Runner] applies events to a state by a pure function, keeps the state in drain.json, and does the work that is derived from it.
// It acts on the machine and on the cloud only through the interfaces declared here.
//
// The API is not stable yet.
package lifecycle
