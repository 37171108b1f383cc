// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"os"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// TestMakefile: make refuses an unknown cloud before it builds what knows them.
func TestMakefile(t *testing.T) {
	b, err := os.ReadFile("../../Makefile")
	must.OK(t, err)
	if line := "\nCLOUDS := " + strings.Join(Names(), " ") + "\n"; !strings.Contains(string(b), line) {
		t.Errorf("the Makefile has no line %q", strings.TrimSpace(line))
	}
}
