// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cluster reads and writes the cluster's data in MongoDB: the agent's registry of nodes (database "amsagent"), and
// the documents of Ant Media Server (AMS) itself (clusterdb.clusternode and the broadcasts of each application).
//
// It is the only package that may import the MongoDB driver. It uses no files, cloud APIs or environment variables.
//
// # The registry
//
// A node has one document, its record ([Node]). [Client.Register], [Client.SetOwnState], [Client.AskDrain] and
// [Client.TakeDrainRequest] change it by compare-and-swap: they read the record with read concern majority, compute the new
// one, and write it if the random rev is still the same. If the answer to a write is lost, they read again and look for
// their own rev. [Client.Heartbeat] writes only the field heartbeat of its own instance, and keeps the rev.
//
// # Clocks
//
// The age of a record is by MongoDB's clock ([Client.ServerTime], [Node.Age]). AMS stamps its documents by its machine's.
//
// # Write concern
//
// Every write waits for a majority of the replica set, whatever the connection string sets: no election rolls it back. Only
// [Client.Heartbeat] waits for the primary alone (w: 1): the next heartbeat replaces one that was rolled back, and heartbeats
// must continue while no majority can acknowledge.
//
// Nothing needs transactions, pipeline updates, change streams or TTL indexes. The API is not stable yet.
package cluster
