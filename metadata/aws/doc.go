// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package aws reads the EC2 instance metadata service, version 2, and calls the Auto Scaling API about this one instance.
//
// The SDK's imds client makes the requests and keeps the session token. Its own retries are off: they draw on a budget that a
// slow service exhausts for a long time. The loop of package cloud retries instead, within a bound.
//
// The API is not stable yet.
package aws
