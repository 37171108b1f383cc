// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package alibaba reads the instance metadata of Alibaba Cloud. Scale-ins and hooks come from the Auto Scaling API (ESS),
// tags from the ECS API.
//
// It signs its calls itself: the maintained generic client costs 1.8 MB of binary for seven calls.
package alibaba
