// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package metadata detects the cloud of this machine and opens what reads its metadata. One folder below holds one provider; adding
// a cloud is a folder and a line in Open.
//
// The API is not stable yet.
package metadata
