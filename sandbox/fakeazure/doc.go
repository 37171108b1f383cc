// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakeazure is a fake of the metadata service that a virtual machine of
// Azure sees at 169.254.169.254, and of the Scheduled Events behind it.
//
// A [Server] is the service of one machine: instance and load balancer metadata
// with the rules of their versions, and faults that can be switched on and off
// while it runs. A [Set] is what machines share: one document of events, which any
// of them may acknowledge for all. It moves its events through time, and keeps
// books on who said what, and when.
//
// Documented are: the header, the versions and the 400 with the newest of them, the
// 404 of a machine without a load balancer, 410 for a while after a boot, five
// requests in a second and the 429 beyond, the shape of all documents, the slow
// first call and the delay of the events after it, one acknowledgement for all
// machines of an event, an empty NotBefore and the state Started once an event has
// begun, its absence when it is over, and that of deletes with one NotBefore none
// goes before all were acknowledged or their time is over.
//
// Guessed are: the texts of errors, a 400 for X-Forwarded-For, that the document's
// incarnation grows by one, the time from an acknowledgement to the begin of the
// event and from there to its end, and that a reading which is not extended is
// whole. Azure's least notice of five minutes is not kept to: tests are told theirs.
//
// All of it answers on loopback unless told otherwise. The API is not stable.
package fakeazure
