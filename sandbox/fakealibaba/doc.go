// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakealibaba is a fake of what an ECS instance of Alibaba Cloud sees: the
// metadata service with the session tokens of hardened mode, the credentials of its
// RAM role, and, see [Cloud], the APIs of Auto Scaling (ESS) and ECS with the groups
// behind them, and of KMS with its secrets. Faults can be switched on and off while
// it runs, and books are kept of who said what when.
//
// The API computes signature V3 again and refuses a wrong one, an old one, a nonce
// that it has seen, credentials that have ended and permissions that are not there.
//
// Documented, and so here: the paths and headers of the metadata, 401 for a token
// that has ended, 403 for a service that is switched off, 404 for what is not set;
// the names of the API's actions, parameters and errors; a hook's own time, the 20
// heartbeats and the 6 hours of a wait; that one token may be that of several
// instances; both shapes of lists (of the API of 2014, wrapped, and of 2022, plain).
//
// Guessed: the form of the list of IPv6 addresses and that of active system events
// (both can be given as text), that a heartbeat begins a new time instead of adding
// to the old one, that one scale-in of several instances gives them one action for
// each hook, the texts of errors, and how soon the states follow each other.
//
// All answer on loopback unless told otherwise. The API is not stable.
package fakealibaba
