// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package realmongo runs a real mongod for tests: one server, or a replica set of
// one or three, with or without users. The program is the mongod on PATH, else the one
// that mongod.sh fetches (`make deps`); it is under the SSPL, a tool of the tests that is
// never packed or shipped.
//
//	set, err := realmongo.Start(ctx, realmongo.Options{Binary: realmongo.Require(t), Members: 3})
//	defer set.Close()
//	set.URI()                        // names all members and the set
//	set.Member(0).Kill()             // SIGKILL; Pause and Resume are SIGSTOP and SIGCONT
//	set.Member(0).Start(ctx)         // on the same data and the same port
//	set.StepDown(ctx)                // the primary, as an operator does it
//
// Faults of single commands (an error, a delay, a lost reply) are made by the
// proxy of package mongod, which takes this program as its backend:
// mongod.Options.Binary.
//
// The servers listen on loopback, or wherever Options.Prefix leads, and end with
// the process that started them. The API is not stable.
package realmongo
