// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package must has the checks of a test that need one line. OK, Golden and Until end a test that cannot continue.
package must

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
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

// Equal reports an error if got is not want: `what: got, want`. It does not end the test.
func Equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, show(got), show(want))
	}
}

// show quotes a string of one line.
func show(v any) string {
	s := fmt.Sprintf("%+v", v)
	if reflect.ValueOf(v).Kind() == reflect.String && !strings.Contains(s, "\n") {
		return strconv.Quote(s)
	}
	return s
}

// NoDiff reports an error with the differences of got and want. It does not end the test.
func NoDiff(t testing.TB, what string, got, want any, opts ...cmp.Option) {
	t.Helper()
	if diff := cmp.Diff(want, got, opts...); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// Contain reports an error for each part that is not in the text. It does not end the test.
func Contain(t testing.TB, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s: no %q in\n%s", what, part, text)
		}
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
