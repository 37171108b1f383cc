// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
)

// statusOf is a node in a state with both witnesses heard.
func statusOf(state cluster.State, change ...func(*bootstrap.Status)) *bootstrap.Status {
	s := &bootstrap.Status{Member: true, Phase: bootstrap.PhaseJoined, Row: bootstrap.RowView{
		Looked: true, Address: "10.0.0.5",
		Registry: &cluster.Node{ID: "i-1", IP: "10.0.0.5", State: state, Seq: 3, IntervalMS: 5000},
		Agent:    cluster.Heard{Known: true, Fresh: true, Age: time.Second}, Server: cluster.Heard{Known: true, Fresh: true},
	}}
	for _, f := range change {
		f(s)
	}
	return s
}

func TestMissingFor(t *testing.T) {
	for _, tt := range []struct {
		name    string
		want    cluster.State
		s       *bootstrap.Status
		missing string
		never   bool
	}{
		{"active", "active", statusOf("active"), "", false},
		{"on the way", "active", statusOf("joining"), "the row says joining", false},
		{"failed", "active", statusOf("failed", func(s *bootstrap.Status) { s.Row.Registry.Reason = "not seen" }), "the row says failed: not seen", true},
		{"failed, and joining again", "active", statusOf("failed", func(s *bootstrap.Status) { s.Phase = bootstrap.PhaseJoining }), "the row says failed", false},
		{"left, and a boot", "active", statusOf("left"), "the row says left", false},
		{"draining may be undone", "active", statusOf("draining"), "the row says draining", false},
		{"too late for joining", "joining", statusOf("active"), "the row says active", true},
		{"too late to fail", "failed", statusOf("active"), "the row says active", true},
		{"left", "left", statusOf("left"), "", false},
		{"draining", "draining", statusOf("draining"), "", false},
		{"gone for good", "left", &bootstrap.Status{Row: bootstrap.RowView{Looked: true}}, "", false},
		{"no row", "active", &bootstrap.Status{Row: bootstrap.RowView{Looked: true}}, "the registry has no row of this node", false},
		{"MongoDB away", "active", &bootstrap.Status{Row: bootstrap.RowView{Err: "refused"}}, "the cluster could not be asked: refused", false},
		{"no beat", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Registry.Seq, s.Row.Registry.IntervalMS = 0, 0 }), "the agent has not beaten yet", false},
		{"registered, and not a beat yet", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Registry.Seq = 0 }), "the agent has not beaten yet", false},
		{"of an earlier boot", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.EarlierBoot = true }), "the agent has not registered since this machine booted", false},
		{"agent silent", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Agent = cluster.Heard{Known: true, Age: time.Minute} }), "the agent's last beat was 60 s ago", false},
		{"AMS silent", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Server = cluster.Heard{Known: true, Age: time.Minute} }), "Ant Media Server wrote its document 60 s ago", false},
		{"no AMS", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Server = cluster.Heard{} }), "Ant Media Server has no document as 10.0.0.5", false},
		{"serves", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Registry.Serving = &cluster.Serving{Up: true} }), "", false},
		{"does not serve", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Registry.Serving = &cluster.Serving{Why: "LiveApp fails"} }), "the row says that viewers are not served: LiveApp fails", false},
		{"draining need not serve", "draining", statusOf("draining", func(s *bootstrap.Status) { s.Row.Registry.Serving = &cluster.Serving{} }), "", false},
		{"a restart owed", "active", statusOf("active", func(s *bootstrap.Status) {
			s.Disagree = []bootstrap.Disagreement{{ID: "STATUS-DRIFT"}, {ID: "STATUS-RESTART", Text: "the files are newer"}}
		}), "STATUS-RESTART: the files are newer", false},
		{"what does not matter", "active", statusOf("active", func(s *bootstrap.Status) { s.Disagree = []bootstrap.Disagreement{{ID: "STATUS-DRIFT"}} }), "", false},
		{"what matters for active only", "draining", statusOf("draining", func(s *bootstrap.Status) { s.Row.Server = cluster.Heard{} }), "", false},
	} {
		if missing, never := missingFor(tt.want, tt.s); missing != tt.missing || never != tt.never {
			t.Errorf("%s: %q, %t; want %q, %t", tt.name, missing, never, tt.missing, tt.never)
		}
	}
}

func TestWaitStatus(t *testing.T) {
	wait := func(t *testing.T, timeout time.Duration, want cluster.State, looks ...*bootstrap.Status) waited {
		t.Helper()
		var w waited
		synctest.Test(t, func(t *testing.T) {
			e := &testEnv{}
			g := newGlobals(e.env().withDefaults())
			g.setForm("text", "auto", 0)
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			begin := time.Now()
			n := 0
			w.last, w.werr, w.err = waitStatus(ctx, want, g, func(ctx context.Context) (*bootstrap.Status, error) {
				s := looks[min(n, len(looks)-1)]
				n++
				if s == nil {
					return nil, errors.New("the state file is torn")
				}
				return s, ctx.Err()
			})
			w.said, w.took = e.stderr.String(), time.Since(begin)
		})
		return w
	}
	joining, active := statusOf("joining"), statusOf("active")
	w := wait(t, time.Minute, "active", joining, joining, active)
	if w.last != active || w.werr != nil || w.err != nil || w.took != 2*time.Second || strings.Count(w.said, "waiting for active: the row says joining") != 1 {
		t.Errorf("%+v", w)
	}
	// A log hears at least every half minute that nothing hangs.
	w = wait(t, 65*time.Second, "active", joining)
	var ue *userError
	if w.last != joining || !errors.As(w.werr, &ue) || ue.Exit != exitUnknown || ue.ID != idTimeout || w.took != 65*time.Second {
		t.Errorf("%+v", w)
	}
	if n := strings.Count(w.said, "waiting for active"); n != 3 {
		t.Errorf("said %d times:\n%s", n, w.said)
	}
	if w = wait(t, time.Minute, "active", joining, statusOf("failed")); !errors.As(w.werr, &ue) || ue.Exit != exitFailed || w.took != time.Second {
		t.Errorf("%+v", w)
	}
	if w = wait(t, time.Minute, "active", joining, nil); w.err == nil {
		t.Error("a look that is impossible is no reason to wait")
	}
}

// waited is what came of a wait.
type waited struct {
	last      *bootstrap.Status
	werr, err error
	said      string
	took      time.Duration
}

func TestStatusWaitUsage(t *testing.T) {
	code, stdout, stderr := run(t, nil, "status", "--wait", "activ")
	if code != exitUsage || stdout != "" || !strings.Contains(stderr, "--wait: \"activ") {
		t.Errorf("exit %d, %q\n%s", code, stdout, stderr)
	}
}

func TestStatusShowsTheLoad(t *testing.T) {
	s := statusOf("active", func(s *bootstrap.Status) {
		s.Row.Registry.Load = &cluster.Load{
			CPU: ptr(83), Mem: ptr(61), Disk: ptr(7), Score: ptr(97), GPUs: []cluster.GPULoad{{Util: ptr(3)}, {Enc: ptr(97)}},
		}
		s.Row.Registry.Sessions = &cluster.Sessions{Publishers: ptr(1), Viewers: ptr(431), By: cluster.CountedByConnections}
	})
	text := func(s *bootstrap.Status) string {
		w := &textWriter{now: fixedNow()}
		statusText(w, &statusView{Status: s})
		return w.b.String()
	}
	golden(t, "nodes/status-plain.txt", text(s))
	s.Row.Agent = cluster.Heard{Known: true, Age: time.Hour}
	if got := text(s); strings.Contains(got, "Load") || strings.Contains(got, "viewers") || !strings.Contains(got, "last beat 60 min ago, one every 5 s: silent") {
		t.Errorf("an old load is shown as if it were one of today:\n%s", got)
	}
}

// A join with a password takes the server's files out of the sight of others: a monitoring user is told that he cannot
// know, and never that a node is none.
func TestStatusThatOnlyRootKnows(t *testing.T) {
	s := &bootstrap.Status{Unprivileged: true}
	s.Files.Err = "open /usr/local/antmedia/conf/red5.properties: permission denied"
	w := &textWriter{}
	if text := statusVerdict(w, s); !unknownToUser(s) || !strings.Contains(text, "unknown: only root may tell") {
		t.Errorf("%q", text)
	}
	s.Unprivileged = false
	if text := statusVerdict(w, s); unknownToUser(s) || strings.Contains(text, "unknown") {
		t.Errorf("%q", text)
	}
}
