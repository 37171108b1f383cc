// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"errors"
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
	add := func(f string, times int) {
		t.Helper()
		if err := l.Add(f, times, func() error { return nil }); err != nil {
			t.Error(err)
		}
	}
	strike("", "a") // a healthy one
	add("a", 2)
	add("b", 0)
	add("a later", 1)
	bad := errors.New("it does nothing")
	if err := l.Add("c", 1, func() error { return bad }); !errors.Is(err, bad) || err.Error() != "adding a fault: it does nothing" {
		t.Errorf("a bad one: %v", err)
	}
	strike("", "c")
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
