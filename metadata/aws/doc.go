// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package aws reads the EC2 instance metadata service, version 2: every request carries a session token, and without one
// nothing is asked unless the caller allowed version 1.
//
// The AWS SDK's imds client makes the requests and keeps the token. Its own retries are off: it pays for them out of a
// bucket that a service which is slow for a minute empties for long, and it tells nobody. The loop of package cloud
// retries instead, within a bound, and says so in the log.
//
// Fetching and parsing are apart: the Parse functions are pure and are fuzzed.
//
// Watch polls what the service signals about the future of the instance and tells the changes. AutoScaling speaks to the
// Auto Scaling API about this one instance, with the credentials of its role; only then are credentials asked for.
//
// It never reads the AWS environment variables or shared files, and never asks for user data. The API is not stable yet.
package aws
