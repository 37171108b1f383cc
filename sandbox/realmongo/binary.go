// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realmongo

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Version is the release that mongod.sh fetches.
const Version = "6.0.5"

//go:embed mongod.sh
var script string

// Binary returns the path of a mongod: the one on PATH, else the one that mongod.sh has fetched.
func Binary() (string, error) {
	if own, err := exec.LookPath("mongod"); err == nil && exec.Command(own, "--version").Run() == nil {
		return own, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("looking for a mongod: %w", err)
	}
	path := filepath.Join(cache, "amsagent", "real", "mongod-"+Version, "mongod")
	if _, err := os.Stat(path); err != nil {
		return "", errors.New("there is no mongod on PATH, and none was fetched (`make deps` and `make real-fetch` fetch one)")
	}
	return path, nil
}

// Fetch is [Binary], but fetches a missing mongod. It writes the progress to log; the error has the reason of a failure.
func Fetch(ctx context.Context, log io.Writer) (string, error) {
	if path, err := Binary(); err == nil {
		return path, nil
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "bash", "-c", script, "mongod.sh")
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return "", fmt.Errorf("fetching a mongod: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("fetching a mongod: %w", err)
	}
	last := ""
	for lines := bufio.NewScanner(stderr); lines.Scan(); last = strings.TrimPrefix(lines.Text(), "mongod: ") {
		if last != "" {
			_, _ = fmt.Fprintln(log, last)
		}
	}
	if err := cmd.Wait(); err != nil {
		return "", errors.New(cmp.Or(last, err.Error()))
	}
	if last != "" {
		_, _ = fmt.Fprintln(log, last)
	}
	return strings.TrimSpace(out.String()), nil
}

// Require returns the path of a mongod. Without one the test is skipped; with REQUIRE_MONGOD=1
// (every tier) or REQUIRE_REAL=1 it fails.
func Require(t testing.TB) string {
	t.Helper()
	path, err := Binary()
	switch {
	case err == nil:
	case os.Getenv("REQUIRE_MONGOD") == "1" || os.Getenv("REQUIRE_REAL") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	return path
}
