// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package aws reads the EC2 instance metadata service (IMDSv2) and calls the Auto Scaling API for this instance.
//
// The SDK's retries are off: a slow service exhausts their budget for a long time. Package cloud retries instead.
package aws
