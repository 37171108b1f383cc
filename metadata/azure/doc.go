// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package azure reads the instance metadata service of Azure, reports its Scheduled Events about this machine, and acknowledges them.
//
// The service answers five requests a second, for all programs on the machine together: Watch makes one a second.
//
// The API is not stable yet.
package azure
