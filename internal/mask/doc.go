// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package mask finds secrets in text before it is shown: which names of settings belong to a secret, and where the
// values of such settings stand in a file or in an error. It is the one list of these names; conf masks files and diffs
// with it, cluster everything else that is printed.
//
// It masks too much rather than too little. It knows no secret by its value.
package mask
