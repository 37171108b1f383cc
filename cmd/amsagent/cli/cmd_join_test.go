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

// The board.Headline of a dry run reports a refusal, with and without files to write.
func TestRefusedDryRun(t *testing.T) {
	for _, files := range [][]bootstrap.FileResult{nil, {{Path: "/x", Changed: true}}} {
		for _, refused := range []bool{false, true} {
			join, leave := &output.Text{}, &output.Text{}
			joinText(join, &bootstrap.JoinResult{Outcome: bootstrap.OutcomePlanned, Files: files, Refused: refused}, "", cluster.Target{})
			leaveText(leave, &bootstrap.LeaveResult{Outcome: bootstrap.OutcomePlanned, Files: files, Refused: refused}, true, "")
			for _, w := range []*output.Text{join, leave} {
				if first, _, _ := strings.Cut(w.String(), "\n"); strings.Contains(first, "is refused") != refused {
					t.Errorf("%d files, refused %v: %s", len(files), refused, first)
				}
			}
		}
	}
}
