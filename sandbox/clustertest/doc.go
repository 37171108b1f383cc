// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package clustertest holds no code, only tests: package cluster, and the daemon
// with it, against a MongoDB behind a proxy that misbehaves on request. They live in
// the sandbox module because the server does, and the agent must not depend on it.
//
// The server is the real mongod of package realmongo; package mongotest has the
// choice of another. Where another engine differs from MongoDB the test says so as
// "a known difference", with the reason. This package has no API and will have none;
// it is as unstable as tests are.
package clustertest
