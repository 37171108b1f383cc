// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package files is the only way by which the agent reaches files that another
// user may change under its hands: it runs as root, and the tree it edits belongs
// to the user of a server that faces the internet.
//
// A [Root] opens folders component by component and never lets the kernel follow
// a link. What it opened is a [Folder], a descriptor: all further calls take a
// single name in it, so that no rename of a folder, and no link in its place, can
// lead a call anywhere else.
//
// Links. One that root made is followed: operators move folders to other disks.
// One that another user made is followed only to what belongs to that very user.
// A file behind a link of root's, where the link lies in a folder of another user,
// must belong to that user: he may have moved the link there. A file of another user
// in his folder must be one that he may read, and have no second name. Everything else
// is an error that is [ErrLink]. A folder of root's that a group, or everybody, may write
// counts as theirs, too, unless it has the sticky bit.
//
// What is created gets the owner that the caller names, never setuid, setgid, the
// sticky bit or file capabilities.
//
// The package knows no format and no policy but this one. Its API is not stable
// yet.
package files
