// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package e2e runs the real binary of the agent against the sandbox: the scripts
// in testdata/script of the project, and, with the build tag e2e, the heavy tests
// that kill it at every system call or boot a systemd. It has no API; there is
// nothing to import and nothing stable.
package e2e
