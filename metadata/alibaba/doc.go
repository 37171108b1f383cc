// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package alibaba reads the instance metadata of Alibaba Cloud, and calls the two APIs that know what the metadata do not tell: Auto
// Scaling (ESS), for scale-ins and hooks, and ECS, for tags.
//
// Both are spoken to by hand, with signature V3: the maintained generic client costs 1.8 MB of binary for seven calls.
//
// The API is not stable yet.
package alibaba
