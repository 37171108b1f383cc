// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// wordFinds lists what the rules of internal/house match in a checkout. They are a test of another module, which writes its
// finds even if it fails.
func wordFinds(top string) ([]string, error) {
	dir, err := os.MkdirTemp("", "stats")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	name := filepath.Join(dir, "finds")
	cmd := exec.CommandContext(context.Background(), "go", "test", "-vet=off", "-run", "^TestWords$", "./internal/house", "-finds", name)
	cmd.Dir = top
	out, failed := cmd.CombinedOutput()
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", errors.Join(failed, err), out)
	}
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' }), nil
}
