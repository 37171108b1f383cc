// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
)

// A join without an agent must not promise a drain.
func TestJoinNext(t *testing.T) {
	for id, promised := range map[string]bool{"": true, bootstrap.IDDrift: true, bootstrap.IDDaemon: false} {
		w := &output.Text{}
		joinText(w, &bootstrap.JoinResult{Outcome: bootstrap.OutcomeJoined, Warnings: []bootstrap.Finding{{ID: id}}}, "", cluster.Target{})
		if got := strings.Contains(w.String(), "amsagent drain"); got != promised || !strings.Contains(w.String(), "amsagent nodes") {
			t.Errorf("with %q:\n%s", id, w.String())
		}
	}
}
