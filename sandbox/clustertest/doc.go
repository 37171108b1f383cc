// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package clustertest tests package cluster and the daemon against a MongoDB behind a proxy that injects faults. It is in the
// sandbox module, on which the agent must not depend.
//
// The server is the real mongod of package realmongo; package mongotest can select another. Tests mark differences of other
// engines as "a known difference".
package clustertest
