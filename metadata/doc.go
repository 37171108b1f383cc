// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package metadata detects the cloud of this machine and opens its provider. Each provider has a subfolder.
//
// The API, with that of the subpackages, is not stable yet.
package metadata
