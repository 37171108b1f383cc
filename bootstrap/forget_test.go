// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestJoinForgetsDrain: a join removes the record of a finished drain, so that a daemon started later runs as a node. It does
// not cancel a drain in progress.
func TestJoinForgetsDrain(t *testing.T) {
	t.Parallel()
	for text, gone := range map[string]bool{
		`{"version":2,"step":"done"}`:     true,
		`{"version":2,"step":"draining"}`: false,
		`{"version":2}`:                   false, // a notice without a drain
		`{`:                               false,
	} {
		m := joinedTree(t)
		put(t, m, drainPath, text)
		j := &joiner{Machine: m, store: m.store()}
		if was := j.forgetDrain(); was != gone {
			t.Errorf("%s: %v", text, was)
		}
		if _, err := os.Stat(filepath.Join(m.Root, drainPath)); errors.Is(err, os.ErrNotExist) != gone {
			t.Errorf("%s: %v", text, err)
		}
		if j.forgetDrain() {
			t.Errorf("%s: forgotten twice", text)
		}
	}
}
