// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package gcp reads the instance metadata of Google Cloud, and watches what it
// signals about the end of this machine.
//
// One request describes the machine, a second one the project, whose attributes
// count for all its machines. The signals are long polls: the service holds its
// answer back until there is something new.
//
// Reading and parsing are apart: the parse functions make no request and are
// fuzzed. Of the attributes only those are kept that are ours; keys, scripts and
// user data, which are attributes too, are left where they are.
//
// The API is not stable yet.
package gcp
