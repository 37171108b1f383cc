// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
)

// statusOf is a node in a state, with heartbeats of its agent and its server.
func statusOf(state cluster.State, change ...func(*bootstrap.Status)) *bootstrap.Status {
	s := &bootstrap.Status{Member: true, Phase: bootstrap.PhaseJoined, Row: bootstrap.RowView{
		Looked: true, Address: "10.0.0.5",
		Registry: &cluster.Node{ID: "i-1", IP: "10.0.0.5", State: state, Heartbeat: cluster.Heartbeat{Seq: 3}, Interval: seconds.Duration(5 * time.Second)},
		Agent:    cluster.Signal{Known: true, Fresh: true, Age: seconds.Duration(time.Second)}, Server: cluster.Signal{Known: true, Fresh: true},
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
		{"on the way", "active", statusOf("joining"), "its state is joining", false},
		{"failed", "active", statusOf("failed", func(s *bootstrap.Status) { s.Row.Registry.Reason = "not seen" }), "its state is failed: not seen", true},
		{"failed, and joining again", "active", statusOf("failed", func(s *bootstrap.Status) { s.Phase = bootstrap.PhaseJoining }), "its state is failed", false},
		{"left, and a boot", "active", statusOf("left"), "its state is left", false},
		{"draining may be undone", "active", statusOf("draining"), "its state is draining", false},
		{"too late for joining", "joining", statusOf("active"), "its state is active", true},
		{"too late to fail", "failed", statusOf("active"), "its state is active", true},
		{"left", "left", statusOf("left"), "", false},
		{"draining", "draining", statusOf("draining"), "", false},
		{"gone for good", "left", &bootstrap.Status{Row: bootstrap.RowView{Looked: true}}, "", false},
		{"no row", "active", &bootstrap.Status{Row: bootstrap.RowView{Looked: true}}, "the registry has no record of this node", false},
		{"MongoDB away", "active", &bootstrap.Status{Row: bootstrap.RowView{Err: "refused"}}, "the cluster could not be asked: refused", false},
		{"no beat", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Registry.Seq, s.Row.Registry.Interval = 0, 0 }), "the agent has not sent a heartbeat yet", false},
		{"registered, and not a beat yet", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Registry.Seq = 0 }), "the agent has not sent a heartbeat yet", false},
		{"of an earlier boot", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.EarlierBoot = true }), "the agent has not registered since this machine booted", false},
		{"agent silent", "active", statusOf("active", func(s *bootstrap.Status) {
			s.Row.Agent = cluster.Signal{Known: true, Age: seconds.Duration(time.Minute)}
		}), "the agent's last heartbeat was 60 s ago", false},
		{"AMS silent", "active", statusOf("active", func(s *bootstrap.Status) {
			s.Row.Server = cluster.Signal{Known: true, Age: seconds.Duration(time.Minute)}
		}), "Ant Media Server wrote its document 60 s ago", false},
		{"no AMS", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Server = cluster.Signal{} }), "Ant Media Server has no document as 10.0.0.5", false},
		{"serves", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Registry.Serving = &cluster.Serving{Up: true} }), "", false},
		{"does not serve", "active", statusOf("active", func(s *bootstrap.Status) { s.Row.Registry.Serving = &cluster.Serving{Why: "LiveApp fails"} }), "viewers are not served: LiveApp fails", false},
		{"draining need not serve", "draining", statusOf("draining", func(s *bootstrap.Status) { s.Row.Registry.Serving = &cluster.Serving{} }), "", false},
		{"a restart is pending", "active", statusOf("active", func(s *bootstrap.Status) {
			s.Disagree = []bootstrap.Finding{{ID: "AMS-DRIFT"}, {ID: "STATUS-RESTART", Text: "the files are newer"}}
		}), "STATUS-RESTART: the files are newer", false},
		{"what does not matter", "active", statusOf("active", func(s *bootstrap.Status) { s.Disagree = []bootstrap.Finding{{ID: "AMS-DRIFT"}} }), "", false},
		{"what matters for active only", "draining", statusOf("draining", func(s *bootstrap.Status) { s.Row.Server = cluster.Signal{} }), "", false},
	} {
		if missing, never := missingFor(tt.want, tt.s); missing != tt.missing || never != tt.never {
			t.Errorf("%s: %q, %t; want %q, %t", tt.name, missing, never, tt.missing, tt.never)
		}
	}
}

// The first line of status and its exit code without --strict.
func TestSummarize(t *testing.T) {
	life := func(state lifecycle.State) *daemon.View {
		return &daemon.View{Lifecycle: &lifecycle.View{State: state, Progress: "2 viewers left"}}
	}
	broken := bootstrap.FilesView{Err: "no such file", Dir: "/opt/ams"}
	for want, v := range map[string]*statusView{
		"draining: 2 viewers left, exit 0":                                             {Status: statusOf("active"), Daemon: life(lifecycle.StateDraining)},
		"left: this node is out of the cluster, the machine may terminate, exit 0":     {Status: statusOf("left"), Daemon: life(lifecycle.StateLeft)},
		"parked: out of the cluster until it is wanted again, exit 0":                  {Status: statusOf("left"), Daemon: life(lifecycle.StateParked)},
		"resuming: Ant Media Server is being started, exit 0":                          {Status: statusOf("left"), Daemon: life(lifecycle.StateResuming)},
		"broken: the server cannot start with these files, exit 1":                     {Status: &bootstrap.Status{Files: broken}},
		"broken: the server cannot start with these files, exit 0":                     {Status: statusOf("active", func(s *bootstrap.Status) { s.Files = broken })},
		"not a member: this machine is standalone, exit 5":                             {Status: &bootstrap.Status{Files: bootstrap.FilesView{Mode: conf.ModeStandalone}}, Daemon: life(lifecycle.StateLeft)},
		"not a member: no Ant Media Server is found here, exit 5":                      {Status: &bootstrap.Status{}},
		"degraded: 1 disagreement, exit 0":                                             {Status: statusOf("joining", func(s *bootstrap.Status) { s.Disagree = []bootstrap.Finding{{}} })},
		"unknown: a cluster node by its files; the cluster could not be asked, exit 0": {Status: &bootstrap.Status{Member: true}},
		"left: this node is out of the cluster, exit 0":                                {Status: statusOf("left")},
		"joining: according to its node record, exit 0":                                {Status: statusOf("joining"), Daemon: life(lifecycle.StateActive)},
		"active: in the cluster as 10.0.0.5, exit 0":                                   {Status: statusOf("active")},
	} {
		got := v.summarize(output.Palette{})
		must.Equal(t, "result", fmt.Sprintf("%s: %s, exit %d", got.paint(got.word), got.text, got.exit), want)
	}
}

func TestStatusShowsTheLoad(t *testing.T) {
	s := statusOf("active", func(s *bootstrap.Status) {
		s.Row.Registry.Load = &cluster.Load{
			CPU: new(83), Mem: new(61), Disk: new(7), Score: new(97), GPUs: []cluster.GPULoad{{Util: new(3)}, {Enc: new(97)}},
		}
		s.Row.Registry.Sessions = &cluster.Sessions{Publishers: new(1), Viewers: new(431), By: cluster.CountedByConnections}
	})
	text := func(s *bootstrap.Status) string {
		w := &output.Text{Now: fixedNow()}
		statusText(w, &statusView{Status: s})
		return w.String()
	}
	must.Golden(t, *update, "nodes/status-plain.txt", text(s))
	s.Row.Agent = cluster.Signal{Known: true, Age: seconds.Duration(time.Hour)}
	if got := text(s); strings.Contains(got, "Load") || strings.Contains(got, "viewers") || !strings.Contains(got, "last heartbeat 60 min ago, one every 5 s: silent") {
		t.Errorf("an old load is shown as if it were one of today:\n%s", got)
	}
}

// A wait that ends without success names what was missing, once.
func TestStatusWaits(t *testing.T) {
	t.Parallel()
	m := withMongo(t)
	plant(t, m.root, map[string]string{"etc/machine-id": "0123456789abcdef0123456789abcdef\n"})
	c := m.run("status", "--wait", "active", "--timeout", "5s")
	c.ends(codeUnknown)
	const missing = "the registry has no record of this node"
	c.said("error: this node is not active after 5 s [AGENT-TIMEOUT]\n", "cause: "+missing+"\n")
	must.Equal(t, "number of reports", strings.Count(c.stderr.String(), "waiting for active: "+missing), 1)
}
