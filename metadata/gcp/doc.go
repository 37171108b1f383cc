// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package gcp reads the instance metadata of Google Cloud, and watches its signals about the end of this machine.
//
// The package keeps only the agent's own attributes: keys, scripts and user data are attributes, too.
//
// The API is not stable yet.
package gcp
