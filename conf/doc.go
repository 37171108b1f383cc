// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package conf edits configuration files of Ant Media Server without changing any other byte, and changes several
// files in one crash-safe transaction.
//
// [Properties] and [Container] keep the source and a list of [Span]s. An edit replaces the smallest span, so that
// comments, order, line endings, byte order mark and trailing whitespace survive.
//
// A [Store] commits a list of [Change]s. After a crash every file is old or new, and [Store.Recover] finishes the commit.
// [FileRecord.Undo] restores the former bytes, even after other lines were edited.
//
// The package never prints, prompts or reads the environment. Its API is not stable yet.
package conf
