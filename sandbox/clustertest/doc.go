// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package clustertest tests package cluster, joins and elections against a MongoDB behind a proxy that injects faults. It is in the
// sandbox module, on which the agent must not depend.
//
// The daemon's decisions on its row are tests of package daemon, in a bubble with the registry in memory of package fakemongo.
// What onBoth runs holds that registry to mongod.
//
// The server is the real mongod of package realmongo; package mongotest can select another. Tests mark differences of other
// engines as "a known difference".
package clustertest
