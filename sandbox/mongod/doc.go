// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package mongod is a MongoDB for tests and demonstrations that can be made to
// misbehave: a mongod behind a proxy of our own, which spoils commands and
// connections on purpose, see [Faults].
//
// With [Options.Binary] it starts a mongod for itself (package realmongo), with
// [Options.Backend] it takes a server that runs already. Most tests let package
// mongotest choose.
//
// It runs on Linux and listens on loopback by default. Its API is not stable.
package mongod
