// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package none tells what its user told it, and an id. It asks no cloud, reads no route and no host name, so that a
// machine on which all of that would be wrong can still be described.
//
// The API is not stable yet.
package none
