// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cluster is the cluster as MongoDB holds it: connection strings, our
// own registry of nodes (database "amsagent"), and what Ant Media Server (AMS)
// itself writes there (clusterdb.clusternode and the broadcasts of each
// application).
//
// It is the only package that may import the MongoDB driver. It never reads or
// writes a file, never asks a cloud, never reads the environment, and never
// prints: a logger and a clock are handed in.
//
// # The registry
//
// A node has one document, its record ([Node]). [Client.Register], [Client.SetOwnState], [Client.AskDrain] and
// [Client.TakeDrainRequest] change it by compare-and-swap: they read what a majority has, compute the new record, and write
// it if the record's random rev is still the one that was read. A write whose answer was lost may have been done: they read
// again and look for their own rev. [Client.Heartbeat] writes the field heartbeat of its own instance alone, and no rev.
//
// # Connection strings
//
//	target, err := cluster.ParseTarget("10.0.2.4")
//	client, err := cluster.Connect(ctx, target, cluster.Options{AppName: "amsagent join"})
//	defer client.Close(ctx)
//	if err := client.Ping(ctx); err != nil { … }   // *cluster.Error, with a Kind
//
// A [Target] never shows its password: every way of printing it gives
// [Target.Redacted], and only [Target.Raw], [Target.URI] and
// [Target.Schemeless] return the real thing, as a [redact.Secret] that has to be
// revealed by name.
//
// # Clocks
//
// Three clocks meet here and are never mixed. A record of our registry is judged
// by the server's clock ([Client.ServerTime], [Node.Age]). AMS stamps its
// documents with the clock of the machine it runs on; about AMS on this very
// machine the local clock is the right judge ([AMSNode.Fresh]).
//
// # What is acknowledged
//
// Every write waits for a majority of the replica set, whatever the connection
// string says: no election rolls it back. Only [Client.Heartbeat] waits for the primary
// alone (w: 1), since the next heartbeat replaces one that was rolled back, and heartbeats
// must go on while no majority can acknowledge.
//
// # What the server may lack
//
// Nothing here needs transactions, pipeline updates, change streams, TTL
// indexes or atomic read-modify-write beyond the one document an update names.
// What a server does not implement comes back as an [Error] of
// [KindUnsupported].
//
// The API is not stable yet.
package cluster
