// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakegcp is a fake of the metadata server that a machine on Google Cloud
// sees at 169.254.169.254, with what a cloud does to a machine behind it: it is
// preempted, its host is looked after, it is stopped, and then it is off. It keeps
// books of that and of who asked for what.
//
// Documented, and done here: the header Metadata-Flavor on each request and each
// answer; folders that end with a slash; recursive=true with JSON; the long poll by
// wait_for_change, last_etag and timeout_sec; 503 for a moment while the host is
// worked on; TRUE and FALSE of preempted; the words of maintenance-event; the 30 and
// the 120 seconds from the soft power-off to the hard one.
//
// Guessed, since no document says so: the form of an ETag (16 hexadecimal digits);
// that a poll without last_etag waits for the next change; that max-duration is a
// number of seconds; 403 for a request with X-Forwarded-For or without the header.
//
// It answers on loopback unless told otherwise. The API is not stable.
package fakegcp
