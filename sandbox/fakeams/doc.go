// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakeams is a stand-in for Ant Media Server: it has only the behaviour that an
// agent can observe. It reads the installation's files with its own parsers, so that an error
// in the agent's editors is not repeated here. They decide between standalone and cluster mode.
// It fails to start as the server does, registers itself in MongoDB every five seconds, and
// answers /rest/v2/liveness and, with the server token, /rest/v2/system-resources.
//
// Its start has the three moments of the real one's, far apart there: the HTTP port
// opens, and liveness is 500, 403 and 200; the server registers itself; then its
// applications come up one by one, each answering 403 "Application is getting
// initialized" (500 while its context is made) until it serves, LiveApp last. When its
// context is complete, each leaves the marks of a start, and in cluster mode the real server
// saves its settings, in place and in java.util.Properties' way; so does this one with
// [Options.SaveAtStart], and else sets the file's time only. One that is asked anything while
// its context is made saves defaults and an empty name, as the real one does from 2.16.2 on.
//
// The caller adds and removes publishers and viewers. A stop or a crash cuts the present
// sessions, as the server's does, and [Stats] counts them: a complete drain has cut none.
//
// It never streams, and beyond the above it writes into the installation only on request
// ([Options.Litter], the control port). The cluster part of the server is known from its
// interfaces and traces only; the stand-in has nothing that they do not show.
//
// Never compared with the real server, because that needs the Enterprise Edition: the data
// that its cluster part sends and stores beside clusternode (settings of applications in
// clusterdb, the order in which it registers and starts), its WebRTC counts, edges that
// fetch streams from origins. Compared and left out: the real port is open for seconds
// before anything is answered; an application that has no database yet is not refused
// here but answers 403 like one that is being initialized; publishers are never refused
// for want of CPU or memory.
//
// [Behaviour] makes it misbehave. The API is not stable.
package fakeams
