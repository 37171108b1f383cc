// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package gcp reads Google Cloud's instance metadata and watches its termination signals.
//
// It keeps only the agent's own attributes: others hold keys, scripts and user data.
package gcp
