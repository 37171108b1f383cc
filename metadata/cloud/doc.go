// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cloud holds what the metadata providers share. Callers use package metadata, which aliases the types.
//
// It never reads the environment, and sends metadata requests neither through a proxy nor after a redirect.
package cloud
