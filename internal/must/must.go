// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package must ends a test that cannot go on.
package must

import (
	"os"
	"testing"
	"time"
)

// Sample returns the fixed part of a random or exhaustive test that the gate runs. If AMSAGENT_FAULTS is `all` (make
// faults, a step of heavy), it returns the whole.
func Sample[T any](part, whole T) T {
	if os.Getenv("AMSAGENT_FAULTS") == "all" {
		return whole
	}
	return part
}

// OK ends the test if err is not nil.
func OK(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Until waits for what must come. Only a defect reaches the limit.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit, tick := time.After(5*time.Minute), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("it did not come: %s", what)
		}
	}
}
