// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
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
}
