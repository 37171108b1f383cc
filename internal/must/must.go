// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package must ends a test whose preparation fails.
package must

import "testing"

// OK ends the test if err is not nil.
func OK(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
