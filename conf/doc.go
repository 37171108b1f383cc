// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package conf edits the configuration files of Ant Media Server without
// losing a byte of what it does not mean to change, and writes several files
// as one transaction that a crash cannot tear.
//
// Editors. [Properties] reads java.util.Properties' grammar, [Container] reads
// jee-container.xml with its marked cluster sections. Both keep the source
// bytes and a list of [Span]s: what parses prints back byte for byte, and an
// edit replaces the smallest span. Comments, order, line endings, a byte order
// mark and trailing blanks survive because nothing is ever printed from a
// model.
//
// Transaction. A [Store] commits a list of [Change]s: stage, verify, journal,
// rename, fsync. After a crash at any instruction every file is old or new and
// [Store.Recover] finishes or undoes the rest. The [Record] that a commit leaves
// behind is what [Record.Undo] needs to give back the former bytes, also when
// other lines were edited since.
//
// The package knows files only: no cloud, no database, no service. It never
// prints, never asks, and never reads the environment. Its API is not stable
// yet.
package conf
