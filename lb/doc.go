// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package lb decides which nodes of the cluster a load balancer uses, and reports them to it.
//
// [Members] makes a list of servers from a look at the cluster, and [Guard] keeps the last good list if a new one cannot be
// trusted. A [Feed] does both once a second. Its list is published by DNS ([DNS]), by HTTP ([Handler]), and through HAProxy's
// runtime API ([HAProxy]). [AgentCheck] answers HAProxy's agent check on each node, without a feed.
package lb
