// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

func TestDriftOf(t *testing.T) {
	must.Equal(t, "as joined", driftOf(&bootstrap.Convergence{}, time.Now()), nil)
	d := driftOf(&bootstrap.Convergence{Standalone: true}, time.Now())
	if d == nil || strings.Join(d.Fix, " ") != "amsagent join amsagent leave" || !strings.Contains(d.Means, reasonStandalone) {
		t.Errorf("standalone: %+v", d)
	}
	d = driftOf(&bootstrap.Convergence{Torn: []string{"/p"}, Differences: []bootstrap.Difference{{Path: "/p"}}}, time.Now())
	if d == nil || !strings.Contains(d.Means, "half written") {
		t.Errorf("torn: %+v", d)
	}
	d = driftOf(&bootstrap.Convergence{RestartNeeded: true}, time.Now())
	if d == nil || !strings.Contains(d.Means, "written after it was started") || d.Fix[0] != bootstrap.RestartHint {
		t.Errorf("older than its files: %+v", d)
	}
}

// A machine that was made standalone by hand serves no viewers of this cluster.
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
	c := bootstrap.Convergence{RestartNeeded: true}
	for range 4000 {
		c.Differences = append(c.Differences, bootstrap.Difference{Path: "/" + long, Key: long, Old: long, New: long})
		c.Warnings = append(c.Warnings, bootstrap.Finding{ID: bootstrap.IDFile, Text: long})
	}
	c.Repairs = c.Warnings
	w := newView("test")
	w.setConvergence(&c)
	drift := driftOf(&c, time.Now())
	w.change(func(v *View) { v.Drift = drift })
	b, err := json.Marshal(w.get())
	if err != nil || len(b) > 1<<20 {
		t.Errorf("the view has %d bytes, %v", len(b), err)
	}
	must.Equal(t, "values", len(drift.Values)+drift.Omitted, 4000)
	if v := w.get(); v.Warnings[len(v.Warnings)-1].Text != "and 3968 more" || len(v.Repairs) != maxListed+1 {
		t.Errorf("%d warnings, the last of which is %v", len(v.Warnings), v.Warnings[len(v.Warnings)-1])
	}
}

// The metric has no line while the release of the running server is not known, as while it does not serve.
func TestReleaseMetric(t *testing.T) {
	watchServer(t, func(w *watched) {
		w.becomes(true, time.Second)
		m := &member{d: w.d}
		line := func() string {
			var page bytes.Buffer
			writeMetrics(&page, w.d.view.get())
			_, rest, _ := strings.Cut(page.String(), "\namsagent_server_outdated ")
			value, _, _ := strings.Cut(rest, "\n")
			return value
		}
		if got := line(); got != "" {
			t.Errorf("before the first look: %s", got)
		}
		for _, tt := range []struct {
			match bootstrap.ReleaseMatch
			want  string
		}{{bootstrap.ReleaseSame, "0"}, {bootstrap.ReleaseUnknown, ""}, {bootstrap.ReleaseOlder, "1"}} {
			w.f.mu.Lock()
			w.f.release = bootstrap.RunningRelease{Match: tt.match}
			w.f.mu.Unlock()
			m.compareRelease(t.Context())
			if got := line(); got != tt.want {
				t.Errorf("%s: %q, want %q", tt.match, got, tt.want)
			}
		}
		w.f.set(ams.AppRefused, "LiveApp")
		w.becomes(false, 6*time.Second)
		if got := line(); got != "" {
			t.Errorf("it does not serve: %s", got)
		}
	})
}
