// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cloud holds what every metadata provider shares: the types Instance, Provider and Options, the errors a caller
// branches on, the HTTP client and the one retry loop.
//
// Callers use package metadata, which names all of this again; this package exists because the providers, which package
// metadata opens, need the same types.
//
// It never reads the environment, never goes through a proxy, never follows a redirect and never sends X-Forwarded-For:
// a metadata service is on this very machine's link, and some clouds refuse who looks forwarded.
//
// The API is not stable yet.
package cloud
