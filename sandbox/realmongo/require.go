// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realmongo

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Version is the release that tools/scripts/real.sh fetches.
const Version = "6.0.5"

// Binary returns the path of the program, and an error that says how to get it
// where it is not there.
func Binary() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("looking for a real mongod: %w", err)
	}
	path := filepath.Join(cache, "amsagent", "real", "mongod-"+Version, "mongod")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("there is no real mongod (`make real-fetch` fetches it): %w", err)
	}
	return path, nil
}

// Require returns the path of the program. Where it is missing the test is
// skipped; with REQUIRE_REAL=1, as in `make real`, it fails.
func Require(t testing.TB) string {
	t.Helper()
	path, err := Binary()
	switch {
	case err == nil:
	case os.Getenv("REQUIRE_REAL") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	return path
}
