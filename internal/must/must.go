// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package must ends a test that cannot go on.
package must

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

// Golden compares a text with testdata/name, or writes it there.
func Golden(t testing.TB, update bool, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if update {
		OK(t, os.MkdirAll(filepath.Dir(path), 0o755))
		OK(t, os.WriteFile(path, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with -update)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got; -update rewrites it):\n%s", path, diff)
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
