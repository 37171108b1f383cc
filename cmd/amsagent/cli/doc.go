// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of amsagent: the only place that reads flags, environment and config.yaml, prints,
// and picks an exit code. [Main] runs it.
//
// What it never does: decide anything about AMS, MongoDB or a cloud. A command gathers its settings, calls a library
// package, and says what came of it.
//
// # Rules of the screen
//
//   - stdout is the result and nothing else; progress, warnings, logs and errors go to stderr.
//   - The first line is the verdict, the last one what to do next. No stack, no dump of a struct.
//   - An error is four kinds of lines: error, cause, hint, and the state that we left. Its id finds its page.
//   - With -o json the result is one object with a schema_version, and every line on stderr is one object too.
//   - Times are relative and rounded for people ("12 s ago"), absolute with a zone in JSON and in logs.
//   - The same words with and without color; color only on a terminal.
//   - Who waits hears from us at least every 30 s.
//   - Nothing is asked, ever. A closed stdin is normal, a closed stdout is an error that is reported, not a crash.
//   - A secret is never printed: not in an error, not in a log line, not at debug level, not in JSON.
//
// # How a command is made
//
// One file cmd_NAME.go with a constructor newNameCommand(g *globals), a nameOptions struct with AddFlags for the flags
// that are the command's own, and runName(ctx, opts, g), which knows no flag library and is called from tests.
// Settings that can also come from the environment, config.yaml or instance tags are rows of one table
// (settings_table.go); a command only names those whose flags it takes. Exit codes are one table (exit.go), and so is
// the way from a library's error to an id, a hint and an exit code (errors_table.go).
//
// The API of this package is not stable yet.
package cli
