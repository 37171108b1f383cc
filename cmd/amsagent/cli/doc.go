// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of amsagent. Only this package reads flags and environment, and
// selects the exit code. [Main] runs it. Its API is not stable yet.
//
// Rules of the output:
//
//   - stdout has the result only; progress, warnings, logs and errors go to stderr.
//   - The first line is the outcome, the last one the next step.
//   - An error has four parts: error, cause, hint, and the state of the machine. Its id finds its page.
//   - With -o json the result is one object with a schema_version, and so is each line on stderr.
//   - Times are relative for people ("12 s ago"), absolute in JSON and logs.
//   - Color only on a terminal.
//   - A command that waits reports at least every 30 s.
//   - No command prompts. A closed stdin is normal; a closed stdout is a reported error.
//   - Secrets are never printed.
//
// A command is one file cmd_NAME.go. Exit codes are in exit.go, the ids, hints and exit codes of library errors in
// errors_table.go.
package cli
