// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package bootstrap makes a machine with Ant Media Server a cluster node, and
// gives it back as it was: plan → preflight → apply → verify → undo. It
// orchestrates conf (files), metadata (what the cloud says), ams (the server on
// this machine) and cluster (MongoDB), and knows none of their protocols.
//
// What it promises:
//
//   - Every check is made before the first change, and all that fail are listed
//     ([PreflightError]): then nothing was changed.
//   - The files change as one transaction. What leave needs to give the former
//     bytes back is on disk before the first of them is replaced.
//   - Join succeeds only when AMS itself was seen in the cluster: its own fresh
//     document under this machine's address. Otherwise the files, the drop-in
//     and the service are put back ([FailedError] says which state is left).
//   - Joining or leaving twice is doing it once: the second writes nothing.
//   - A process killed anywhere leaves a machine that the next join or leave
//     finishes.
//
// It prints nothing and asks nothing: progress goes through a callback. Its API
// is not stable yet.
package bootstrap
