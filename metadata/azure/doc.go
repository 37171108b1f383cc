// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package azure reads Azure's instance metadata service, and reports and acknowledges Scheduled Events of this machine.
//
// The service answers five requests a second for the whole machine. Watch sends one a second.
package azure
