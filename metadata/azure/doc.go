// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package azure reads the instance metadata service of Azure, reports its Scheduled Events about this machine, and acknowledges them.
//
// The service answers five requests in a second, of all programs on the machine together: Watch makes one in a second.
//
// The API is not stable yet.
package azure
