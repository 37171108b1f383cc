// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package mongod is a MongoDB-wire server for tests and demonstrations: FerretDB
// on SQLite, embedded, behind a proxy of our own.
//
// The proxy is not decoration. FerretDB's updates are not atomic (400 concurrent
// increments of one document may end at 30), so the proxy lets one command at a
// time through, across all connections. That makes it also the natural place to
// spoil things on purpose: see [Faults].
//
// What it is not: a MongoDB. It has no TTL index, no change stream, no
// transaction and no replica set; a test that passes here says nothing about
// those. Its authentication is a fake (see [Options.Users]): embedded FerretDB
// has none, so the proxy plays the server's half of SCRAM-SHA-256 itself.
//
// With [Options.Binary] a real mongod serves behind the same proxy, with the same
// faults, and all of this is there: see package realmongo, which has the sets of
// three, too. With [Options.Backend] it is a server that runs already. Most tests
// let package mongotest choose.
//
// It runs on Linux, listens on loopback unless told otherwise, and its API is
// not stable.
package mongod
