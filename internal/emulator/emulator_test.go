// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package emulator_test

import (
	"fmt"
	"testing"

	"github.com/amsagent/amsagent/internal/emulator"
)

type skipped struct {
	testing.TB
	why string
}

func (s *skipped) Skipf(format string, args ...any) { s.why = fmt.Sprintf(format, args...) }

// A test is skipped under an emulator alone.
func TestSkip(t *testing.T) {
	for name, want := range map[string]string{
		"":                    "",
		"qemu-aarch64-static": "not under qemu-aarch64-static: it has no strace",
	} {
		t.Setenv(emulator.Variable, name)
		s := &skipped{TB: t}
		emulator.Skip(s, "it has no strace")
		if s.why != want {
			t.Errorf("under %q the test is skipped with %q, want %q", name, s.why, want)
		}
	}
}
