// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cluster reads and writes a cluster's data in MongoDB: the agent's registry and the documents of Ant Media Server
// (AMS). Only this package imports the MongoDB driver. The API is not stable yet.
//
// # The registry
//
// A node has one document, its record ([Node]). Changes compare and swap its random rev.
//
// # Clocks
//
// The age of a record is by MongoDB's clock ([Client.ServerTime]). AMS stamps its documents by its machine's.
//
// # Write concern
//
// Every write waits for a majority, so no election rolls it back. Only [Client.Heartbeat] uses w: 1: the next one replaces a
// lost one, and heartbeats must continue without a majority.
package cluster
