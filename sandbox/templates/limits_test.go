// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

// userDataLimit is what EC2 takes of user data, before its encoding; ROS says the same for ECS.
const userDataLimit = 16 << 10
