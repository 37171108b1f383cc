// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package files accesses files that another user may change meanwhile: the agent runs as root, and the files belong
// to the server's user.
//
// A [Root] opens folders name by name, and the kernel follows no link. A [Folder] is a descriptor, so that a rename
// or a link cannot redirect a call.
//
// A link of root is followed, and a link of another user only to that user's files. A link of root in another user's
// folder may have been moved there, and must lead to that user's file. Another owner's file in such a folder must be
// readable for that user and have a single name. Everything else is [ErrLink]. A folder of root that others may write
// to counts as theirs, unless it has the sticky bit.
//
// New files never get setuid, setgid, sticky or file capabilities. The API is not stable yet.
package files
