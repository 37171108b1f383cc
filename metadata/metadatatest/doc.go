// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package metadatatest is what every metadata provider must pass, and the fake service it is tried against.
//
// A provider's test describes its cloud once, as a Service and some Machines, and calls Run. Each rule is a subtest with a
// name; a rule for all clouds is added here. Faults of the service are tested on the client of package cloud, which
// reads all of them.
//
// It is for tests only. Nothing in it talks beyond loopback.
//
// The API is not stable yet.
package metadatatest
