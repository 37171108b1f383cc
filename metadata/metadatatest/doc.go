// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package metadatatest holds the conformance tests for metadata providers and a fake service on loopback.
//
// A provider's test describes its cloud as a Suite. Faults of the service are tested in package cloud.
package metadatatest
