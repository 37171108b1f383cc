// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package record writes what a metadata service was asked and what it answered into a folder, one JSON file per exchange,
// and plays such a folder back. The files are meant to be attached to a bug report and to become tests.
//
// What is written is decided by a list of what is known to be harmless, never by a list of what is known to be secret:
//   - session tokens, credentials, user data, keys, signatures and every path that the provider's policy does not name
//     leave only a note behind;
//   - instance ids, other resource ids, account ids, MAC and IP addresses are replaced by made-up ones, the same by the same,
//     out of the ranges reserved for documentation;
//   - tag keys and values are replaced, except the agent's own role and group;
//   - of headers only a few are kept; the token is noted as present.
//
// Names and numbering follow the order of the requests, so a recorder asks one thing at a time and the same machine gives
// the same files.
//
// It never sends anything anywhere. The API is not stable yet.
package record
