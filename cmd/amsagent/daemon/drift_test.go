// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
)

// Which restart the daemon makes, and what it says of those that it does not.
func TestRestartOf(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	drift := []bootstrap.Difference{{Path: "/p", Key: "db.type", Old: "mapdb", New: "mongodb"}}
	pending := &bootstrap.PendingRestart{By: "amsagent converge", Since: now.Add(-time.Minute), Values: drift}
	log := func(ago time.Duration, causes ...string) *bootstrap.RestartLog {
		return &bootstrap.RestartLog{Last: now.Add(-ago), Causes: causes}
	}
	tests := []struct {
		name  string
		c     bootstrap.Convergence
		auto  bool
		none  bool
		due   bool
		cause string
		waits string
		stop  string
		after time.Duration
	}{
		{name: "as joined", none: true},
		{name: "by hand standalone", c: bootstrap.Convergence{Standalone: true, RestartNeeded: true}, auto: true, none: true},
		{
			name: "drift, and nobody asked", c: bootstrap.Convergence{RestartNeeded: true, Differences: drift, Cause: "c"},
			waits: "a command: amsagent converge --restart, amsagent join",
		},
		{
			name: "a command asked", c: bootstrap.Convergence{RestartNeeded: true, Asked: true, Pending: pending, Restarts: log(2*time.Hour, "c")},
			due: true, waits: "the end of the last session", stop: "amsagent converge --no-restart",
		},
		{
			name: "a command asked within the hour", c: bootstrap.Convergence{RestartNeeded: true, Asked: true, Pending: pending, Restarts: log(10 * time.Minute)},
			due: true, waits: "the hour since", stop: "amsagent converge --no-restart", after: 50 * time.Minute,
		},
		{
			name: "the settings ask", c: bootstrap.Convergence{RestartNeeded: true, Differences: drift, Cause: "c"}, auto: true,
			due: true, cause: "c", waits: "the end of the last session", stop: "auto_restart: false",
		},
		{
			name: "the same cause again", c: bootstrap.Convergence{RestartNeeded: true, Differences: drift, Cause: "c", Restarts: log(2*time.Hour, "c")}, auto: true,
			cause: "c", waits: "does not do it again",
		},
	}
	for _, tt := range tests {
		v := restartOf(&tt.c, tt.auto, now, now)
		if (v == nil) != tt.none {
			t.Errorf("%s: %+v", tt.name, v)
		}
		if v == nil {
			continue
		}
		var after time.Duration
		if !v.NotBefore.IsZero() {
			after = v.NotBefore.Sub(now)
		}
		if v.Due != tt.due || v.cause != tt.cause || !strings.Contains(v.Waits, tt.waits) || v.Stop != tt.stop || after != tt.after || len(v.Values) != 1 {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
}

func TestDriftOf(t *testing.T) {
	if d := driftOf(&bootstrap.Convergence{}, time.Now()); d != nil {
		t.Errorf("as joined: %+v", d)
	}
	d := driftOf(&bootstrap.Convergence{Standalone: true}, time.Now())
	if d == nil || strings.Join(d.Fix, " ") != "amsagent join amsagent leave" || !strings.Contains(d.Means, reasonStandalone) {
		t.Errorf("standalone: %+v", d)
	}
	d = driftOf(&bootstrap.Convergence{Torn: []string{"/p"}, Differences: []bootstrap.Difference{{Path: "/p"}}}, time.Now())
	if d == nil || !strings.Contains(d.Means, "half written") {
		t.Errorf("torn: %+v", d)
	}
}

// A machine that was made standalone by hand serves nobody of this cluster.
func TestStandaloneIsNotReady(t *testing.T) {
	w := newView("test")
	w.change(func(v *View) { v.State, v.Proved = cluster.StateActive, true })
	w.change(func(v *View) { v.Standalone = true })
	if w.get().Ready {
		t.Error("ready although it is standalone")
	}
	if v := w.get(); v.serving() == nil || *v.serving() != (cluster.Serving{Why: "made standalone by hand"}) {
		t.Errorf("the row says %+v", v.serving())
	}
}

// The server's user decides how many files differ, and how.
func TestLongListsAreCut(t *testing.T) {
	long := strings.Repeat("\x01", 256)
	c := bootstrap.Convergence{RestartNeeded: true, Asked: true}
	for range 4000 {
		c.Differences = append(c.Differences, bootstrap.Difference{Path: "/" + long, Key: long, Old: long, New: long})
		c.Warnings = append(c.Warnings, bootstrap.Finding{ID: bootstrap.IDFile, Text: long})
	}
	c.Repairs = c.Warnings
	w := newView("test")
	w.setConvergence(&c)
	now := time.Now()
	drift, restart := driftOf(&c, now), restartOf(&c, false, now, now)
	w.change(func(v *View) { v.Drift, v.Restart = drift, restart })
	b, err := json.Marshal(w.get())
	if err != nil || len(b) > 1<<20 {
		t.Errorf("the view has %d bytes, %v", len(b), err)
	}
	if n := len(drift.Values) + drift.Omitted; n != 4000 || len(restart.Values)+restart.Omitted != 4000 {
		t.Errorf("%d values of the drift, %d of the restart", n, len(restart.Values)+restart.Omitted)
	}
	if v := w.get(); v.Warnings[len(v.Warnings)-1].Text != "and 3968 more" || len(v.Repairs) != maxListed+1 {
		t.Errorf("%d warnings, the last of which is %v", len(v.Warnings), v.Warnings[len(v.Warnings)-1])
	}
}
