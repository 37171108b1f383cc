// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package gcp reads the instance metadata of Google Cloud, and watches what it signals about the end of this machine.
//
// Of the attributes only those are kept that are ours: keys, scripts and user data are attributes, too.
//
// The API is not stable yet.
package gcp
