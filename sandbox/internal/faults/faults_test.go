// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/sandbox/internal/faults"
)

func TestList(t *testing.T) {
	t.Parallel()
	var l faults.List[string]
	strike := func(want string, matching ...string) <-chan struct{} {
		t.Helper()
		got, healed := l.Strike(func(f string) bool {
			for _, m := range matching {
				if f == m {
					return true
				}
			}
			return false
		})
		if got != want {
			t.Errorf("it was struck by %q, want %q; in force: %q", got, want, l.All())
		}
		return healed
	}
	strike("", "a") // a healthy one
	l.Add("a", 2)
	l.Add("b", 0)
	l.Add("a later", 1)
	strike("")
	strike("a", "a", "b")
	strike("a", "a", "b") // for the last time
	strike("b", "a", "b")
	strike("", "a")
	strike("a later", "a later")
	healed := strike("b", "b")
	if diff := cmp.Diff([]string{"b"}, l.All()); diff != "" {
		t.Errorf("in force (-want +got):\n%s", diff)
	}
	select {
	case <-healed:
		t.Error("healed by nobody")
	default:
	}
	l.Clear()
	<-healed
	strike("", "a", "b")
	l.Clear()
	if n := len(l.All()); n > 0 {
		t.Errorf("%d faults in force", n)
	}
}
