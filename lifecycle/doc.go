// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package lifecycle is how a node goes: notices come in, the node drains,
// deregisters, and the cloud's hook is completed last.
//
// One [Manager] has the word over all that. It keeps what it is about on disk,
// so that a daemon that was killed goes on with the same drain and the same
// deadline. It acts on the machine and on the cloud only through the interfaces
// declared here, and decides by what it has observed, never by what it has
// asked for.
//
// The API is not stable yet.
package lifecycle
