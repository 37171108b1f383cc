// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package host is a whole pretended machine for proofs that take long: a tree, a
// stand-in AMS and EC2's metadata, with the real agent's daemon on it, which can
// be started, stopped, killed and measured as often as wanted.
//
// Linux only; the API is not stable.
package host
