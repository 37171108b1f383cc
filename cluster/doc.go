// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cluster reads and writes the cluster's data in MongoDB: the agent's registry of nodes (database "amsagent"), and
// the documents of Ant Media Server (AMS) itself (clusterdb.clusternode and the broadcasts of each application).
//
// It is the only package that may import the MongoDB driver. It uses no files, no cloud API and no environment variables, and
// prints nothing: the caller passes a logger and a clock.
//
// # The registry
//
// A node has one document, its record ([Node]). [Client.Register], [Client.SetOwnState], [Client.AskDrain] and
// [Client.TakeDrainRequest] change it by compare-and-swap: they read the record with read concern majority, compute the new
// one, and write it if the random rev is still the same. If the answer to a write is lost, they read again and look for
// their own rev. [Client.Heartbeat] writes only the field heartbeat of its own instance, and keeps the rev.
//
// # Connection strings
//
//	target, err := cluster.ParseTarget("10.0.2.4")
//	client, err := cluster.Connect(ctx, target, cluster.Options{AppName: "amsagent join"})
//	defer client.Close(ctx)
//	if err := client.Ping(ctx); err != nil { … }   // *cluster.Error, with a Kind
//
// A [Target] never shows its password: every way of printing it gives [Target.Redacted]. Only [Target.Raw], [Target.URI] and
// [Target.Schemeless] return the password, as a [redact.Secret].
//
// # Clocks
//
// The age of a record is by MongoDB's clock ([Client.ServerTime], [Node.Age]). AMS stamps its documents with the clock of its
// machine; for the AMS on this machine, that is the local clock ([AMSNode.Fresh]).
//
// # Write concern
//
// Every write waits for a majority of the replica set, whatever the connection string sets: no election rolls it back. Only
// [Client.Heartbeat] waits for the primary alone (w: 1): the next heartbeat replaces one that was rolled back, and heartbeats
// must continue while no majority can acknowledge.
//
// # Server features
//
// The package needs no transactions, pipeline updates, change streams or TTL indexes, and atomic updates of single documents
// only. A command that the server does not implement fails with [KindUnsupported].
//
// The API is not stable yet.
package cluster
