// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTransitions(t *testing.T) {
	allowed := map[State]string{
		StateJoining:  "joining active left failed",
		StateActive:   "active draining left",
		StateDraining: "active draining left",
		StateLeft:     "joining left",
		StateFailed:   "joining left failed",
		"nonsense":    "",
		"":            "",
	}
	for from, want := range allowed {
		var got []string
		for _, to := range append(States(), "nonsense") {
			if from.CanTransition(to) {
				got = append(got, string(to))
			}
		}
		if diff := cmp.Diff(strings.Fields(want), got); diff != "" && want != "" || want == "" && got != nil {
			t.Errorf("from %q (-want +got):\n%s", from, diff)
		}
	}
	for _, s := range States() {
		for _, p := range s.predecessors() {
			if !p.CanTransition(s) || p == s {
				t.Errorf("%s is called a predecessor of %s", p, s)
			}
		}
		// The filters of a registration must cover each state exactly once.
		from := s.takesOver()
		if slices.Contains(from, s) || slices.Contains(from, StateDraining) && s == StateActive || slices.Contains(from, StateActive) && s == StateJoining {
			t.Errorf("registering as %s takes over from %v", s, from)
		}
	}
}
