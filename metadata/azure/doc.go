// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package azure reads the instance metadata service of Azure, and its Scheduled Events.
//
// The service allows a machine five requests in a second, whoever on it asks. Of these a Provider takes three for reading
// the instance, and two for the events and for what Watch has to know of the instance, each counted over any second: a
// daemon that has one Provider to read and one to watch keeps to five without a word between the two. What other programs
// ask comes on top, and is answered 429: that is waited out.
//
// Fetching and parsing are apart: the Parse functions are pure and are fuzzed.
//
// Watch polls Scheduled Events and tells the changes that are about this machine; Start is the one thing that Azure can be
// told. Both speak to the metadata address and need no credentials.
//
// It never asks for user data. The API is not stable yet.
package azure
