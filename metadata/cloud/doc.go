// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cloud holds what every metadata provider shares: the types, the errors a caller branches on, the HTTP client and the one
// retry loop. Callers outside use package metadata, which names the types again.
//
// It never reads the environment, and never asks a metadata service through a proxy or after a redirect.
//
// The API is not stable yet.
package cloud
