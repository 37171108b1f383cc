// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package emulator is for tests alone: they run under an emulator of another processor, too (`make arm64`).
//
// The API is not stable.
package emulator

import (
	"os"
	"testing"
)

// Variable is set by `make arm64`: an emulated program cannot see that it is one.
const Variable = "AMSAGENT_TEST_EMULATOR"

// Skip skips a test that cannot run under an emulator, and says why; elsewhere it does nothing.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if name := os.Getenv(Variable); name != "" { // a test has nobody to hand it in
		t.Skipf("not under %s: %s", name, reason)
	}
}

// SkipOwnProgram skips a test that starts its own program again: the kernel cannot run it without the emulator.
func SkipOwnProgram(t testing.TB) {
	t.Helper()
	Skip(t, "the test starts its own program, which the kernel cannot run")
}
