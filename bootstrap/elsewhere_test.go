// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

// TestRunsElsewhere: a server that runs under another address of this machine is
// restarted by a join whose files need no change.
func TestRunsElsewhere(t *testing.T) {
	t.Parallel()
	const own, docker = "10.0.1.7", "172.17.0.1"
	now := time.Now()
	doc := func(ip string, age time.Duration) cluster.AMSNode {
		return cluster.AMSNode{ID: "x" + ip, IP: ip, LastUpdate: now.Add(-age)}
	}
	running := ams.State{Activity: ams.ActivityActive, MainPID: 12, Started: now.Add(-time.Minute)}
	for _, tt := range []struct {
		name    string
		state   ams.State
		environ string // of the process; "-": unreadable
		seen    []cluster.AMSNode
		want    string
	}{
		{"under docker's", running, "-", []cluster.AMSNode{doc(docker, time.Second)}, docker},
		{"started without its address", running, "HOME=/\x00", []cluster.AMSNode{doc(docker, time.Second)}, docker},
		{"the process has this address", running, "AMS_HOST_ADDRESS=" + own + "\x00", []cluster.AMSNode{doc(docker, time.Second)}, ""},
		{"started with an address of no interface", running, "AMS_HOST_ADDRESS=203.0.113.9\x00", nil, "203.0.113.9"},
		{"under both", running, "-", []cluster.AMSNode{doc(docker, time.Second), doc(own, time.Second)}, ""},
		{"of a machine elsewhere", running, "-", []cluster.AMSNode{doc("10.0.1.8", time.Second)}, ""},
		{"an old document", running, "-", []cluster.AMSNode{doc(docker, 40*time.Second)}, ""},
		{"of the process before", ams.State{Activity: ams.ActivityActive, MainPID: 12, Started: now}, "-", []cluster.AMSNode{doc(docker, time.Second)}, ""},
		{"it does not run", ams.State{Activity: ams.ActivityInactive}, "-", []cluster.AMSNode{doc(docker, time.Second)}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			if tt.environ != "-" {
				dir := filepath.Join(root, "proc/12")
				must.OK(t, os.MkdirAll(dir, 0o755))
				for name, text := range map[string]string{
					"proc/12/environ": tt.environ, "proc/stat": "btime 1700000000\n",
					"proc/12/stat": "12 (java) " + strings.Repeat("1 ", 30) + "\n",
				} {
					must.OK(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
				}
			}
			m := &Machine{Root: root, Interfaces: func() ([]ams.Interface, error) {
				return []ams.Interface{
					{Name: "lo", Addr: netip.MustParseAddr("127.0.0.1")},
					{Name: "eth0", Addr: netip.MustParseAddr(own)},
					{Name: "docker0", Addr: netip.MustParseAddr(docker)},
				}, nil
			}}
			j := &joiner{Machine: m, seen: tt.seen, result: &JoinResult{}, facts: &facts{install: &ams.Installation{}, service: tt.state, address: ams.Address{Addr: netip.MustParseAddr(own)}}}
			if got := j.runsElsewhere(); got != tt.want {
				t.Errorf("%q; want %q", got, tt.want)
			}
		})
	}
}

// TestStatusWithoutMongo: what does not need MongoDB is compared without it.
func TestStatusWithoutMongo(t *testing.T) {
	t.Parallel()
	running, stopped := ams.State{Activity: ams.ActivityActive}, ams.State{Activity: ams.ActivityFailed}
	for name, tt := range map[string]struct {
		process  ProcessView
		want     string
		severity Severity
	}{
		"stopped":  {ProcessView{Service: "/opt/ctl.sh", State: stopped}, "STATUS-STOPPED", Bad},
		"liveness": {ProcessView{State: running, Liveness: ams.Liveness{State: ams.LiveBroken, Code: 500}}, "STATUS-LIVENESS", Warning},
		"well":     {ProcessView{State: running, Liveness: ams.Liveness{State: ams.Live}}, "", ""},
	} {
		s := &Status{Files: FilesView{Mode: conf.ModeCluster}, Process: tt.process}
		s.compare(&State{Phase: PhaseJoined})
		if got := disagreements(s); got != tt.want || tt.want != "" && s.Disagree[0].Severity != tt.severity {
			t.Errorf("%s: %v, want %s %s", name, s.Disagree, tt.severity, tt.want)
		}
		if name == "stopped" && !strings.HasSuffix(s.Disagree[0].Hint, "start it: amsagent join") {
			t.Errorf("%s: %q", name, s.Disagree[0].Hint)
		}
	}
}

// TestStatusOfNotReady: status says of a node that is not ready what its row and `nodes` say, once.
func TestStatusOfNotReady(t *testing.T) {
	t.Parallel()
	heard := cluster.Signal{Known: true, Fresh: true}
	live := ams.Liveness{State: ams.Live}
	refused := []ams.AppAnswer{{Name: "LiveApp", State: ams.AppRefused}}
	for name, tt := range map[string]struct {
		process ProcessView
		state   cluster.State
		serving *cluster.Serving
		fresh   bool // the server's document
		want    string
	}{
		"ready":                         {ProcessView{}, cluster.StateActive, &cluster.Serving{Up: true}, true, ""},
		"not known":                     {ProcessView{}, cluster.StateActive, nil, true, ""},
		"no service, died just now":     {ProcessView{}, cluster.StateActive, &cluster.Serving{Why: "refused"}, true, "AMS-NOT-SERVING"},
		"no service, dead":              {ProcessView{}, cluster.StateActive, &cluster.Serving{Why: "refused"}, false, "AMS-NOT-SEEN"},
		"no service, dead, old agent":   {ProcessView{}, cluster.StateActive, nil, false, "AMS-NOT-SEEN"},
		"no service, drained":           {ProcessView{}, cluster.StateDraining, &cluster.Serving{}, false, ""},
		"nothing but the console":       {ProcessView{Liveness: live}, cluster.StateActive, &cluster.Serving{Why: "no application is known"}, true, "AMS-NOT-SERVING"},
		"applications, which are named": {ProcessView{Liveness: live, Applications: refused}, cluster.StateActive, &cluster.Serving{}, true, "AMS-NOT-SERVING"},
		"a service that is stopped":     {ProcessView{State: ams.State{Activity: ams.ActivityFailed}}, cluster.StateActive, &cluster.Serving{}, false, "STATUS-STOPPED"},
	} {
		s := &Status{Files: FilesView{Mode: conf.ModeCluster}, Process: tt.process}
		s.Row = RowView{Looked: true, Agent: heard, Fresh: tt.fresh, Registry: &cluster.Node{State: tt.state, Heartbeat: cluster.Heartbeat{Serving: tt.serving, Seq: 7}}}
		s.compare(&State{Phase: PhaseJoined})
		if got := disagreements(s); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func disagreements(s *Status) string {
	var got []string
	for _, d := range s.Disagree {
		got = append(got, d.ID)
	}
	return strings.Join(got, " ")
}
