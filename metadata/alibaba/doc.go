// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package alibaba reads the instance metadata of Alibaba Cloud, and calls two APIs for data that the metadata lacks: Auto
// Scaling (ESS) for scale-ins and hooks, and ECS for tags.
//
// The package signs the calls itself, with signature V3: the maintained generic client costs 1.8 MB of binary for seven calls.
//
// The API is not stable yet.
package alibaba
