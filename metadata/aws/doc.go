// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package aws reads the EC2 instance metadata service, version 2, and calls the Auto Scaling API about this one instance.
//
// The SDK's imds client makes the requests and keeps the session token. Its own retries are off: it pays for them out of a bucket
// that a slow service empties for long. The loop of package cloud retries instead, within a bound.
//
// The API is not stable yet.
package aws
