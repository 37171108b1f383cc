// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package tree writes an Ant Media Server installation into a folder: the files
// that an agent edits, the server's jar with a manifest, the systemd unit. The
// files are our own, hand-written in the shape of the real ones; the jar holds a
// manifest and nothing else.
//
// It writes below the folder it is given and nowhere else, and it never starts
// anything. Linux only; the API is not stable.
package tree
