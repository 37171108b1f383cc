// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakeams is a stand-in for Ant Media Server: it does what an agent can
// see from outside, and nothing else. It reads the installation's files with
// readers of its own (a mistake of the agent's editors cannot hide behind the same
// mistake here), decides by them between standalone and cluster mode, refuses to
// start where the server would, registers itself in MongoDB every five seconds,
// and answers /rest/v2/liveness and, to who holds the server token,
// /rest/v2/system-resources.
//
// Publishers and viewers come and go as they are told to. A stop or a crash cuts
// those who are there, as the server's does, and [Stats] counts them: a drain that
// did its work has cut none.
//
// It never streams anything, and it writes into the installation only when asked
// to ([Options.Litter]). What the cluster part of the server does is known from its
// interfaces and its traces only; where those are silent, so is the stand-in.
//
// [Behaviour] makes it misbehave. The API is not stable.
package fakeams
