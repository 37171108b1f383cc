// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/must"
)

// What a seal says for people: what goes, what stays, and no letter that a terminal obeys.
func TestSealText(t *testing.T) {
	gone := bootstrap.Sealed{Item: bootstrap.SealDatabase, Path: "/usr/local/antmedia/evil\x1b[2J.db", What: "removed"}
	stays := bootstrap.Sealed{Item: bootstrap.SealTLS, Path: "/usr/local/antmedia/conf/privkey.pem", What: "kept: every clone will have it", Kept: true}
	for _, tt := range []struct {
		outcome bootstrap.Outcome
		found   []bootstrap.Sealed
		want    []string
	}{
		{bootstrap.OutcomePlanned, []bootstrap.Sealed{gone, stays}, []string{"sealing would remove 1 thing; nothing was touched\n", "(1 thing left in the image;"}},
		{bootstrap.OutcomeSealed, []bootstrap.Sealed{gone}, []string{"sealed: 1 thing removed;", "  databases   /usr/local/antmedia/evil"}},
		{bootstrap.OutcomeUnchanged, []bootstrap.Sealed{stays}, []string{"nothing to do: what names this machine is gone, but for what is kept\n", "  tls         /usr/local/antmedia/conf/privkey.pem: kept"}},
		{bootstrap.OutcomeUnchanged, nil, []string{"nothing to do: nothing here names this machine\n"}},
	} {
		w := &output.Text{}
		sealText(w, &bootstrap.SealResult{Outcome: tt.outcome, Found: tt.found})
		got := w.String()
		must.Contain(t, string(tt.outcome), got, tt.want...)
		if strings.Contains(got, "\x1b") || len(tt.found) == 0 && strings.Count(got, "\n") != 1 {
			t.Errorf("%s: %q", tt.outcome, got)
		}
	}
	help := newSealCommand(plainGlobals(&testEnv{})).Long
	for _, item := range bootstrap.SealItems() {
		if !strings.Contains(help, "\n  "+string(item)+" ") {
			t.Errorf("--help has no %s", item)
		}
	}
}
