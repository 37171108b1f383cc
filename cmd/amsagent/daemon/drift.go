// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
)

// DriftView lists server settings that differ from the join. The daemon neither restarts a running server nor writes its
// files: they are repaired just before its next start, or by a command.
type DriftView struct {
	Since time.Time `json:"since"`
	// Values are the first 32 values, Omitted the number of others.
	Values  []bootstrap.Difference `json:"values"`
	Omitted int                    `json:"omitted,omitempty"`
	// Means is the consequence; Fix lists commands that end it.
	Means string   `json:"effect"`
	Fix   []string `json:"fix"`
}

// maxListed bounds lists whose length the server's user controls.
const maxListed = 32

func listed[T any](list []T) (first []T, omitted int) {
	n := min(len(list), maxListed)
	return list[:n:n], len(list) - n
}

// reasonStandalone is for a node made standalone with the vendor's script.
const reasonStandalone = "made standalone by hand"

// driftOf returns nil if nothing differs.
func driftOf(c *bootstrap.Convergence, since time.Time) *DriftView {
	v := &DriftView{Since: since, Fix: []string{bootstrap.RestartHint}}
	v.Values, v.Omitted = listed(c.Differences)
	switch {
	case c.Standalone:
		v.Values, v.Omitted = []bootstrap.Difference{}, 0
		v.Means = "this machine was made standalone by hand: its files are not repaired, and no viewers are sent here"
		v.Fix = []string{"amsagent join", "amsagent leave"}
	case len(c.Torn) > 0:
		v.Means = "settings files are half written; they are made whole just before the server starts the next time"
	case len(c.Differences) > 0:
		v.Means = "the server's files were changed; its next start puts back the values that this machine joined with"
	case c.RestartNeeded:
		v.Means = "the server's files were written after it was started: it runs with other settings"
	default:
		return nil
	}
	return v
}

// follow shows a convergence and logs each change once.
func (m *member) follow(c *bootstrap.Convergence) {
	since := time.Now()
	if d := m.d.view.get().Drift; d != nil {
		since = d.Since
	}
	drift := driftOf(c, since)
	m.d.view.change(func(v *View) {
		v.Drift, v.Standalone, v.RestartPending = drift, c.Standalone, c.RestartNeeded && !c.Standalone
	})
	text := ""
	if drift != nil {
		text = drift.Means
		for _, d := range drift.Values {
			text += "; " + d.String()
		}
		if drift.Omitted > 0 {
			text += fmt.Sprintf("; and %d more", drift.Omitted)
		}
	}
	switch {
	case text == m.d.drifted:
	case text == "":
		m.d.log.Info("the server's files are as joined again")
	case len(c.Differences)+len(c.Torn) == 0 && !c.Standalone:
		m.d.log.Warn("the server runs with older settings", "detail", text, "fix", strings.Join(drift.Fix, "; or "))
	default:
		m.d.log.Warn("the server's files are not as joined", "id", bootstrap.IDDrift, "detail", text, "fix", strings.Join(drift.Fix, "; or "))
	}
	m.d.drifted = text
}

// compareRelease logs each change once.
func (m *member) compareRelease(ctx context.Context) {
	r := m.d.o.Server.Release(ctx)
	older := func(r *bootstrap.RunningRelease) bool { return r != nil && r.Match == bootstrap.ReleaseOlder }
	if was := m.d.view.get().Release; older(&r) && !older(was) {
		m.d.log.Warn("the server was not restarted after its files were replaced", "id", "STATUS-RELEASE", "running", r.Running, "files", r.Files)
	}
	m.d.view.change(func(v *View) { v.Release = &r })
}
