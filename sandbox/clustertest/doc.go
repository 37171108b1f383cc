// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package clustertest holds no code, only tests: package cluster against a
// MongoDB-wire server that misbehaves on request. They live in the sandbox
// module because the server does, and the agent must not depend on it.
//
// They say nothing about what the server cannot show: replica sets, elections,
// TTL indexes. How the client reads such answers is tested in package cluster
// with scripted replies. This package has no API and will have none; it is as
// unstable as tests are.
package clustertest
