// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/demo"
)

// A demo on real servers names what it lacks: root, or what `make real-fetch` fetches.
func TestDemoWithoutRealServers(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	self, err := os.Executable()
	must.OK(t, err)
	err = demo.Run(t.Context(), demo.Options{Agent: self, Sandbox: self, Cloud: "aws", Real: true, Out: io.Discard})
	if os.Geteuid() != 0 {
		if !errors.Is(err, demo.ErrNotRoot) {
			t.Errorf("without root: %v", err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), "make real-fetch") {
		t.Errorf("without a server: %v", err)
	}
}
