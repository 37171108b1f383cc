// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/seconds"
)

// scrape reads the metrics as Prometheus does.
func scrape(t *testing.T, p *process) map[string]*dto.MetricFamily {
	t.Helper()
	body, code := p.get("/metrics")
	if code != 200 || strings.Contains(body, daemonPassword) {
		t.Fatalf("%d: %s", code, body)
	}
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("the linter: %v, %v\n%s", problems, err, body)
	}
	var parser expfmt.TextParser
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	return families
}

// value is that of one line, by the value of its one label; -1 where there is none.
func value(f *dto.MetricFamily, label string) float64 {
	for _, m := range f.GetMetric() {
		if label != "" && !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == label }) {
			continue
		}
		switch {
		case m.Counter != nil:
			return m.Counter.GetValue()
		case m.Gauge != nil:
			return m.Gauge.GetValue()
		case m.Histogram != nil:
			return float64(m.Histogram.GetSampleCount())
		}
	}
	return -1
}

// TestDaemonLife: a machine of a golden image joins by itself, and whatever
// happens to its daemon happens to nobody else.
func TestDaemonLife(t *testing.T) {
	t.Parallel()
	h := newHost(t, newDatabase(t), "10.0.7.41")
	h.config("mongo: file:/etc/amsagent/where\n")
	h.write("etc/amsagent/where", mongoURI(h.mongo, daemonPassword)+"\n")
	p := h.daemon()
	h.rowIs(cluster.StateActive)
	joined := h.row()
	if joined.Role != "edge" || joined.Group != "edge-asg" || joined.IP != h.ip || joined.Zone != "eu-west-1a" {
		t.Errorf("the row: %+v", joined)
	}
	v := p.beats()
	if v.State != cluster.StateActive || v.Phase != bootstrap.PhaseJoined || v.ID != h.id || v.Load.CPU == nil || v.Trouble != "" {
		t.Errorf("the view: %+v", v)
	}
	if info, err := os.Stat(p.ctl); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the control socket: %v, %v", info, err)
	}
	_, body, err := p.ask()
	if err != nil || strings.Contains(body, daemonPassword) {
		t.Errorf("the status: %v, %s", err, body)
	}
	for _, field := range []string{"version", "pid", "started", "phase", "activity", "id", "address", "role", "group", "state", "state_since", "heartbeat", "load", "sessions", "repairs", "warnings", "metrics"} {
		if !strings.Contains(body, `"`+field+`":`) {
			t.Errorf("the status has no %s: %s", field, body)
		}
	}
	var f map[string]*dto.MetricFamily
	until(t, "heartbeats are sent, and viewers are counted", func() string {
		f = scrape(t, p)
		if value(f["amsagent_heartbeats_total"], "sent") < 1 || f["amsagent_viewers"] == nil || f["amsagent_score_ratio"] == nil {
			return fmt.Sprint(f)
		}
		return ""
	})
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, family := range f {
		if row := fmt.Sprintf("\n| `%s` | %s |", name, strings.ToLower(family.GetType().String())); !strings.Contains(string(page), row) {
			t.Errorf("docs/metrics.md has no row %q", row)
		}
	}
	if value(f["amsagent_joined"], "") != 1 || value(f["amsagent_node_state"], "active") != 1 || value(f["amsagent_node_state"], "left") != 0 {
		t.Errorf("the metrics: %v", f)
	}
	if f["amsagent_gpu_utilization_ratio"] != nil {
		t.Errorf("there is no GPU: %v", f)
	}
	if body, code := p.get("/healthz"); code != 200 || body != "{\"healthy\":true}\n" {
		t.Errorf("health: %d %s", code, body)
	}
	p.tells("WATCHDOG=1", func(s string) bool { return s == "WATCHDOG=1" })
	p.tells("the last heartbeat", func(s string) bool {
		return strings.HasPrefix(s, "STATUS=active; 0 publishers; 0 viewers; last heartbeat at ")
	})
	if told := p.told(); !isReady(told[0]) {
		t.Errorf("the service manager was told %q", told)
	}
	touched := h.touches()

	// A second one on this machine.
	if out, code := h.run("run"); code != 1 || !strings.Contains(out, "another amsagent daemon runs on this machine") {
		t.Errorf("a second daemon: exit %d: %s", code, out)
	}
	p.beats()

	// New settings.
	was := len(p.told())
	h.config("mongo: file:/etc/amsagent/where\nbeat_interval: nonsense\n")
	p.signal(syscall.SIGHUP)
	p.says("config.yaml is wrong")
	h.write("etc/amsagent/config.yaml", "mongo: file:/etc/amsagent/where\nmetrics_address: 127.0.0.1:0\nbeat_interval: 2s\n")
	p.signal(syscall.SIGHUP)
	p.says("settings read again")
	until(t, "the row has the new interval", func() string {
		if n := h.row(); n.Interval != seconds.Duration(2*time.Second) || n.State != cluster.StateActive {
			return n.Reason
		}
		return ""
	})
	reloading := regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=\d+$`)
	until(t, "the service manager is told of the reload and of its end", func() string {
		since := p.told()[was:]
		if i := slices.IndexFunc(since, reloading.MatchString); i < 0 || !slices.ContainsFunc(since[i:], isReady) {
			return fmt.Sprintf("%q", since)
		}
		return ""
	})
	h.config("mongo: file:/etc/amsagent/where\n")

	// Its end is nobody's business.
	if code, took := p.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d after %s", code, took)
	}
	p.tells("STOPPING=1", func(s string) bool { return s == "STOPPING=1" })
	same := func(when string) {
		t.Helper()
		n := h.row()
		if n.State != joined.State || !n.StateSince.Equal(joined.StateSince) || h.touches() != touched {
			t.Errorf("%s: %+v, and the service was touched %d times; before: %+v, %d", when, n, h.touches(), joined, touched)
		}
	}
	same("after its end")
	p = h.daemon()
	p.says("Ant Media Server is in the cluster")
	p.beats()
	same("after its start")
	p.end(syscall.SIGKILL)
	p = h.daemon() // over a socket and a lock file that are left
	p.says("Ant Media Server is in the cluster")
	p.beats()
	same("after a kill")

	// What others say of the node stays.
	if err := h.client.SetOwnState(t.Context(), h.row(), cluster.StateDraining, "operator", cluster.Details{}); err != nil {
		t.Fatal(err)
	}
	p.end(syscall.SIGTERM)
	p = h.daemon()
	p.says("Ant Media Server is in the cluster")
	v = p.viewIs("draining", func(v daemon.View) bool { return v.State == cluster.StateDraining })
	if n := h.row(); n.State != cluster.StateDraining || n.Reason != "operator" || v.StateSince.IsZero() {
		t.Errorf("the row: %+v", n)
	}
	if err := h.client.SetOwnState(t.Context(), h.row(), cluster.StateActive, "", cluster.Details{}); err != nil {
		t.Fatal(err)
	}

	// A leave by hand is final, also for the daemon that comes after this one.
	h.must("leave")
	p.viewIs("not a member", func(v daemon.View) bool {
		return v.Phase == "" && v.State == "" && strings.Contains(v.Activity, "left by hand")
	})
	p.end(syscall.SIGTERM)
	touched = h.touches()
	p = h.daemon()
	p.viewIs("not a member", func(v daemon.View) bool { return strings.Contains(v.Activity, "left by hand") })
	if n := h.row(); n.State != cluster.StateLeft || h.touches() != touched {
		t.Errorf("after a leave: %+v", n)
	}

	// A join by hand is followed.
	h.must("join")
	p.viewIs("a member", func(v daemon.View) bool { return v.Phase == bootstrap.PhaseJoined })
	p.beats()
	h.rowIs(cluster.StateActive)
}

func (p *process) signal(sig syscall.Signal) {
	p.h.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.h.t.Fatal(err)
	}
}

// TestDaemonFromTags: nothing but tags, and then somebody knows better.
func TestDaemonFromTags(t *testing.T) {
	t.Parallel()
	h := newHost(t, newDatabase(t), "10.0.7.42")
	h.config("")
	p := h.daemon()
	p.says("not a member; waiting for amsagent join")
	// A port that is taken keeps nobody from beating.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p.end(syscall.SIGTERM)
	h.aws.Update(func(i *fakeaws.Instance) { i.Tags["amsagent:mongo"] = mongoURI(h.mongo, daemonPassword) })
	p = h.daemon("--metrics-address", l.Addr().String())
	p.says("metrics and health are not served")
	h.rowIs(cluster.StateActive)
	p.beats()

	// Another join, to another MongoDB.
	other := newDatabase(t)
	h.write("etc/amsagent/other", mongoURI(other, daemonPassword)+"\n")
	h.must("join", "--mongo", "file:/etc/amsagent/other")
	h.client = h.connect(other)
	h.rowIs(cluster.StateActive)
	until(t, "beats arrive at the other MongoDB", func() string {
		if n := h.row(); n.Load == nil || n.Seq < 2 {
			return n.Reason
		}
		return ""
	})
	p.end(syscall.SIGTERM)
	p = h.daemon()
	p.says("Ant Media Server is in the cluster")
	p.beats()
	h.rowIs(cluster.StateActive)
	if strings.Contains(p.text(), "id=AMS-DRIFT") {
		t.Errorf("a restart took the machine back to where its tag says")
	}
	// As at a boot.
	h.must("converge")
	if stored, err := os.ReadFile(filepath.Join(h.root, "etc/amsagent/mongo")); err != nil || !strings.Contains(string(stored), mongoURI(other, daemonPassword)) {
		t.Errorf("a converge took the machine back to where its tag says: %s, %v", stored, err)
	}

	// A tag that changes takes effect at the next look, for good, and restarts no server.
	touched := h.touches()
	h.aws.Update(func(i *fakeaws.Instance) { i.Tags["amsagent:role"] = "origin" })
	p.signal(syscall.SIGHUP)
	origin := func(when string) {
		t.Helper()
		until(t, when+" the node is an origin", func() string {
			n := h.row()
			out, code := h.run("status", "-o", "json")
			if n.Role != "origin" || n.State != cluster.StateActive || code != 0 || !strings.Contains(out, `"role": "origin"`) || strings.Contains(out, `"edge"`) {
				return fmt.Sprintf("%+v; exit %d: %s", n, code, out)
			}
			return ""
		})
	}
	origin("after a reload")
	p.end(syscall.SIGTERM)
	p = h.daemon()
	p.beats()
	origin("after a restart")
	if now := h.touches(); now != touched {
		t.Errorf("a tag touched the service %d times", now-touched)
	}
}

// TestDaemonMayNot: the settings say that a person joins.
func TestDaemonMayNot(t *testing.T) {
	t.Parallel()
	h := newHost(t, newDatabase(t), "10.0.7.43")
	h.config("auto_join: false\n")
	h.env = []string{"AMSAGENT_MONGO=" + mongoURI(h.mongo, daemonPassword)}
	// What stands where the socket belongs is not ours to remove, nor to fail at.
	h.write("run/amsagent/control.sock", "precious")
	p := h.daemon()
	p.says("no control socket")
	p.says("not a member; auto_join is off")
	if nodes, err := h.client.Nodes(t.Context()); err != nil || len(nodes) != 0 || h.touches() != 1 {
		t.Errorf("it did something: %v, %v", nodes, err)
	}
	h.must("join")
	p.says("Ant Media Server is in the cluster")
	h.rowIs(cluster.StateActive)
	b, err := os.ReadFile(p.ctl)
	if err != nil || string(b) != "precious" {
		t.Errorf("the file in the socket's place: %q, %v", b, err)
	}
	p.end(syscall.SIGTERM)
	if _, err := os.Stat(p.ctl); err != nil {
		t.Errorf("the file in the socket's place: %v", err)
	}
}

// TestDaemonWithoutRun: /run that takes nothing.
func TestDaemonWithoutRun(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	h := newHost(t, newDatabase(t), "10.0.7.44")
	h.config("")
	h.env = []string{"AMSAGENT_MONGO=" + mongoURI(h.mongo, daemonPassword)}
	dir := filepath.Join(h.root, "run")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0755"); err != nil {
		t.Skipf("mounting is not allowed here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if out, code := h.run("run"); code != 1 || !strings.Contains(out, "read-only file system") || !strings.Contains(out, "nothing was changed") {
		t.Errorf("read-only: exit %d: %s", code, out)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64k"); err != nil {
		t.Fatal(err)
	}
	fill(t, filepath.Join(dir, "fill"))
	p := h.daemon() // full: a lock and a socket need no room
	h.rowIs(cluster.StateActive)
	p.beats()
}
