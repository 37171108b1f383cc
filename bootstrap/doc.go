// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package bootstrap makes a machine with Ant Media Server a node, and restores it: plan, preflight, apply, verify,
// undo. It combines conf (files), metadata (clouds), ams (the server) and cluster (MongoDB).
//
//   - All checks precede the first change. A [PreflightError] lists those that failed.
//   - The files change in one transaction. The data to undo it is on disk before.
//   - A join succeeds only if the cluster has a fresh document of the server. Otherwise files, drop-in and service are
//     restored. A [FailedError] describes the result.
//   - A repeated command writes nothing.
//   - After a crash, the next join or leave finishes the work.
//
// The package never prints or prompts. Its API is not stable yet.
package bootstrap
