// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package port

import (
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// TestFreeBesideAnother: what one process has handed out and nobody listens on yet, no other process hands out.
func TestFreeBesideAnother(t *testing.T) {
	const variable = "SANDBOX_TEST_PORT_OF"
	if text := os.Getenv(variable); text != "" {
		had, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		// The first that this process tries is the other's.
		taken.n = had - first - os.Getpid()*97%count - 1 + count
		if n, err := Free(); err != nil || n == had {
			t.Errorf("%d after %d, %v", n, had, err)
		}
		return
	}
	n, err := Free()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestFreeBesideAnother$")
	cmd.Env = append(os.Environ(), variable+"="+strconv.Itoa(n))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
