// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// A demo on real servers says what it lacks: root, or what `make real-fetch` fetches.
func TestRealWithoutServers(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	self, err := os.Executable()
	must.OK(t, err)
	err = Run(t.Context(), Options{Agent: self, Sandbox: self, Cloud: "aws", Real: true, Out: io.Discard})
	if os.Geteuid() != 0 {
		if !errors.Is(err, ErrNotRoot) {
			t.Errorf("without root: %v", err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), "make real-fetch") {
		t.Errorf("without a server: %v", err)
	}
}
