// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
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
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// scrape reads the metrics as Prometheus does.
func scrape(t *testing.T, p *rig.Daemon) map[string]*dto.MetricFamily {
	t.Helper()
	body, code := p.Get("/metrics")
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

// value returns the value of the series with this label value; -1 if there is no such series.
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

// TestDaemonLife: a machine of a golden image joins by itself. New settings, ends and kills of its daemon affect neither the
// node record nor the server.
func TestDaemonLife(t *testing.T) {
	t.Parallel()
	h := newOnAWS(t, newDatabase(t), "10.0.7.41")
	h.Config("mongo: file:/etc/amsagent/where\n")
	h.Write("etc/amsagent/where", h.Mongo.LoginURI()+"\n")
	p := h.Daemon()
	h.RecordIs(cluster.StateActive)
	joined := h.Record()
	if joined.Role != "edge" || joined.Group != "edge-asg" || joined.IP != h.Address || joined.Zone != "eu-west-1a" {
		t.Errorf("the record: %+v", joined)
	}
	v := p.Beats()
	if v.State != cluster.StateActive || v.Phase != bootstrap.PhaseJoined || v.ID != h.ID || v.Load.CPU == nil || v.Trouble != "" {
		t.Errorf("the view: %+v", v)
	}
	if info, err := os.Stat(p.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the control socket: %v, %v", info, err)
	}
	_, body, err := p.Ask(t.Context())
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
	must.OK(t, err)
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
	if body, code := p.Get("/healthz"); code != 200 || body != "{\"healthy\":true}\n" {
		t.Errorf("health: %d %s", code, body)
	}
	p.Notifies("WATCHDOG=1", func(s string) bool { return s == "WATCHDOG=1" })
	p.Notifies("the last heartbeat", func(s string) bool {
		return strings.HasPrefix(s, "STATUS=active; 0 publishers; 0 viewers; last heartbeat at ")
	})
	if sent := p.Notified(); !rig.IsReady(sent[0]) {
		t.Errorf("the notifications of the service manager: %q", sent)
	}
	touched := h.Touches()

	// A second one on this machine.
	if out, code := h.Run("run"); code != 1 || !strings.Contains(out, "another amsagent daemon runs on this machine") {
		t.Errorf("a second daemon: exit %d: %s", code, out)
	}
	p.Beats()

	// New settings.
	was := len(p.Notified())
	h.Config("mongo: file:/etc/amsagent/where\nbeat_interval: nonsense\n")
	p.Signal(syscall.SIGHUP)
	p.Says("config.yaml is wrong")
	h.Write("etc/amsagent/config.yaml", "mongo: file:/etc/amsagent/where\nmetrics_address: 127.0.0.1:0\nbeat_interval: 2s\n")
	p.Signal(syscall.SIGHUP)
	p.Says("settings read again")
	until(t, "the row has the new interval", func() string {
		if n := h.Record(); n.Interval != seconds.Duration(2*time.Second) || n.State != cluster.StateActive {
			return n.Reason
		}
		return ""
	})
	reloading := regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=\d+$`)
	until(t, "the service manager is notified of the reload and of its end", func() string {
		since := p.Notified()[was:]
		if i := slices.IndexFunc(since, reloading.MatchString); i < 0 || !slices.ContainsFunc(since[i:], rig.IsReady) {
			return fmt.Sprintf("%q", since)
		}
		return ""
	})
	h.Config("mongo: file:/etc/amsagent/where\n")

	// The end of the daemon changes neither the record nor the server.
	if code, took := p.End(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d after %s", code, took)
	}
	p.Notifies("STOPPING=1", func(s string) bool { return s == "STOPPING=1" })
	same := func(when string) {
		t.Helper()
		n := h.Record()
		if n.State != joined.State || !n.StateSince.Equal(joined.StateSince) || h.Touches() != touched {
			t.Errorf("%s: %+v, and the service was touched %d times; before: %+v, %d", when, n, h.Touches(), joined, touched)
		}
	}
	same("after its end")
	p = h.Daemon()
	p.Says("Ant Media Server is in the cluster")
	p.Beats()
	same("after its start")
	p.End(syscall.SIGKILL)
	p = h.Daemon() // over a socket and a lock file that are left
	p.Says("Ant Media Server is in the cluster")
	p.Beats()
	same("after a kill")

	// A state that another program has set stays.
	must.OK(t, h.Client.SetOwnState(t.Context(), h.Record(), cluster.StateDraining, "operator", cluster.Details{}))
	p.End(syscall.SIGTERM)
	p = h.Daemon()
	p.Says("Ant Media Server is in the cluster")
	v = p.ViewIs("draining", func(v daemon.View) bool { return v.State == cluster.StateDraining })
	if n := h.Record(); n.State != cluster.StateDraining || n.Reason != "operator" || v.StateSince.IsZero() {
		t.Errorf("the record: %+v", n)
	}
	must.OK(t, h.Client.SetOwnState(t.Context(), h.Record(), cluster.StateActive, "", cluster.Details{}))

	// A leave by hand is final, also for the daemon that comes after this one.
	h.Must("leave")
	p.ViewIs("not a member", func(v daemon.View) bool {
		return v.Phase == "" && v.State == "" && strings.Contains(v.Activity, "left by hand")
	})
	p.End(syscall.SIGTERM)
	touched = h.Touches()
	p = h.Daemon()
	p.ViewIs("not a member", func(v daemon.View) bool { return strings.Contains(v.Activity, "left by hand") })
	if n := h.Record(); n.State != cluster.StateLeft || h.Touches() != touched {
		t.Errorf("after a leave: %+v", n)
	}

	// A join by hand is followed.
	h.Must("join")
	p.ViewIs("a member", func(v daemon.View) bool { return v.Phase == bootstrap.PhaseJoined })
	p.Beats()
	h.RecordIs(cluster.StateActive)
}

// TestDaemonFromTags: the daemon joins from tags alone, and a later join by hand overrides them.
func TestDaemonFromTags(t *testing.T) {
	t.Parallel()
	h := newOnAWS(t, newDatabase(t), "10.0.7.42")
	h.Config("")
	p := h.Daemon()
	p.Says("not a member; waiting for amsagent join")
	// A port that is taken does not stop the heartbeats.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	defer l.Close()
	p.End(syscall.SIGTERM)
	h.aws.Update(func(i *fakeaws.Instance) { i.Tags["amsagent:mongo"] = h.Mongo.LoginURI() })
	p = h.Daemon("--metrics-address", l.Addr().String())
	p.Says("metrics and health are not served")
	h.RecordIs(cluster.StateActive)
	p.Beats()

	// Another join, to another MongoDB.
	other := newDatabase(t)
	h.Write("etc/amsagent/other", other.LoginURI()+"\n")
	h.Must("join", "--mongo", "file:/etc/amsagent/other")
	h.Client = rig.Connect(t, other)
	h.RecordIs(cluster.StateActive)
	until(t, "beats arrive at the other MongoDB", func() string {
		if n := h.Record(); n.Load == nil || n.Seq < 2 {
			return n.Reason
		}
		return ""
	})
	p.End(syscall.SIGTERM)
	p = h.Daemon()
	p.Says("Ant Media Server is in the cluster")
	p.Beats()
	h.RecordIs(cluster.StateActive)
	if strings.Contains(p.Output(), "id=AMS-DRIFT") {
		t.Errorf("a restart took the machine back to where its tag says")
	}
	// As at a boot.
	h.Must("converge")
	if stored, err := os.ReadFile(h.Path("etc/amsagent/mongo")); err != nil || !strings.Contains(string(stored), other.LoginURI()) {
		t.Errorf("a converge took the machine back to where its tag says: %s, %v", stored, err)
	}

	// A tag that changes takes effect at the next look, for good, and restarts no server.
	touched := h.Touches()
	h.aws.Update(func(i *fakeaws.Instance) { i.Tags["amsagent:role"] = "origin" })
	p.Signal(syscall.SIGHUP)
	origin := func(when string) {
		t.Helper()
		until(t, when+" the node is an origin", func() string {
			n := h.Record()
			out, code := h.Run("status", "-o", "json")
			if n.Role != "origin" || n.State != cluster.StateActive || code != 0 || !strings.Contains(out, `"role": "origin"`) || strings.Contains(out, `"edge"`) {
				return fmt.Sprintf("%+v; exit %d: %s", n, code, out)
			}
			return ""
		})
	}
	origin("after a reload")
	p.End(syscall.SIGTERM)
	p = h.Daemon()
	p.Beats()
	origin("after a restart")
	if now := h.Touches(); now != touched {
		t.Errorf("a tag touched the service %d times", now-touched)
	}
}

// TestDaemonAgentCheck: a restart of the daemon ends no maintenance that an operator has set, a word of a load balancer is a role
// once a node of the registry has it, and a daemon without a file descriptor says which of its ports do not answer.
func TestDaemonAgentCheck(t *testing.T) {
	t.Parallel()
	number, err := port.Free()
	must.OK(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", number)
	h := newOnAWS(t, newDatabase(t), "10.0.7.47")
	h.Config("mongo: file:/etc/amsagent/where\nagent_check_address: " + address + "\n")
	h.Write("etc/amsagent/where", h.Mongo.LoginURI()+"\n")
	ask := func(send string) string {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		_, _ = conn.Write([]byte(send + "\n"))
		answer, _ := io.ReadAll(conn)
		return strings.TrimSpace(string(answer))
	}
	p := h.Serving()
	for n := range 4 {
		if got := ask("edge name=lb1"); strings.HasPrefix(got, "ready up ") != (n < 3) || !strings.Contains(got, "up ") {
			t.Errorf("answer %d: %q", n, got)
		}
	}
	p.End(syscall.SIGTERM)
	p = h.Serving()
	if got := ask("edge name=lb1"); !strings.HasPrefix(got, "up ") {
		t.Errorf("after a restart: %q", got)
	}
	if info, err := os.Stat(h.Path("run/amsagent/agent-check.json")); err != nil || info.Size() == 0 {
		t.Errorf("the kept askers: %v, %v", info, err)
	}

	if got := ask("vod"); !strings.HasPrefix(got, "up ") {
		t.Errorf("a word that is no role: %q", got)
	}
	_, err = h.Client.Register(t.Context(), cluster.Node{ID: "vod1", IP: "10.0.7.48", Role: "vod", State: cluster.StateActive}, cluster.RegisterOptions{})
	must.OK(t, err)
	until(t, "vod is a role", func() string {
		if got := ask("vod"); got != "maint" {
			return got
		}
		return ""
	})

	metrics := p.View().Metrics
	pid, err := p.PID()
	must.OK(t, err)
	must.OK(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: 4096}, nil))
	for _, to := range []string{address, metrics} {
		conn, err := net.Dial("tcp", to) // the kernel accepts it
		must.OK(t, err)
		defer conn.Close()
	}
	p.Says("agent checks are not answered")
	p.Says("metrics and health are not served")
	must.OK(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 4096, Max: 4096}, nil))
	p.Says("metrics and health are served again")
	p.ViewIs("both answer", func(v daemon.View) bool { return v.MetricsError == "" && v.AgentCheckError == "" })
	if got := ask("edge name=lb1"); !strings.HasPrefix(got, "up ") {
		t.Errorf("at the end: %q", got)
	}
}

// TestBalanceCrowd: of many silent clients of `balance --listen`, the oldest one makes room for each new one.
func TestBalanceCrowd(t *testing.T) {
	t.Parallel()
	number, err := port.Free()
	must.OK(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", number)
	cmd := exec.Command(bins.agent, "balance", "--mongo", "127.0.0.1:1", "--state-dir", t.TempDir(), "--listen", address)
	p, err := proc.Start(cmd)
	must.OK(t, err)
	t.Cleanup(func() { p.Signal(syscall.SIGKILL) })
	until(t, "the list is served", func() string {
		if !strings.Contains(p.Output(), "serving the list by HTTP") {
			return soFar(p.Output())
		}
		return ""
	})
	var silent []net.Conn
	for range 100 {
		conn, err := net.Dial("tcp", address)
		must.OK(t, err)
		defer conn.Close()
		silent = append(silent, conn)
	}
	_, err = silent[0].Read(make([]byte, 1))
	must.Equal(t, "the oldest", err, io.EOF)
	must.OK(t, silent[99].SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	_, err = silent[99].Read(make([]byte, 1))
	must.Equal(t, "the newest is open", errors.Is(err, os.ErrDeadlineExceeded), true)
	body, code, err := rig.Fetch(t.Context(), http.DefaultClient, "http://"+address+"/healthz")
	if code == 0 || err != nil {
		t.Errorf("%d %s, %v", code, body, err)
	}
}

// TestDaemonMayNot: with auto_join off, only the operator joins.
func TestDaemonMayNot(t *testing.T) {
	t.Parallel()
	h := newOnAWS(t, newDatabase(t), "10.0.7.43")
	h.Config("auto_join: false\n")
	h.Env = append(h.Env, "AMSAGENT_MONGO="+h.Mongo.LoginURI())
	// Another file in the socket's place is neither removed nor an error.
	h.Write("run/amsagent/control.sock", "precious")
	p := h.Daemon()
	p.Says("no control socket")
	p.Says("not a member; auto_join is off")
	if nodes, err := h.Client.Nodes(t.Context()); err != nil || len(nodes) != 0 || h.Touches() != 1 {
		t.Errorf("it did something: %v, %v", nodes, err)
	}
	h.Must("join")
	p.Says("Ant Media Server is in the cluster")
	h.RecordIs(cluster.StateActive)
	b, err := os.ReadFile(p.Socket)
	if err != nil || string(b) != "precious" {
		t.Errorf("the file in the socket's place: %q, %v", b, err)
	}
	p.End(syscall.SIGTERM)
	if _, err := os.Stat(p.Socket); err != nil {
		t.Errorf("the file in the socket's place: %v", err)
	}
}

// TestDaemonWithoutRun: /run that takes nothing.
func TestDaemonWithoutRun(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	h := newOnAWS(t, newDatabase(t), "10.0.7.44")
	h.Config("")
	h.Env = append(h.Env, "AMSAGENT_MONGO="+h.Mongo.LoginURI())
	dir := h.Path("run")
	must.OK(t, os.MkdirAll(dir, 0o755))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0755"); err != nil {
		t.Skipf("mounting is not allowed here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	must.OK(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if out, code := h.Run("run"); code != 1 || !strings.Contains(out, "read-only file system") || !strings.Contains(out, "nothing was changed") {
		t.Errorf("read-only: exit %d: %s", code, out)
	}
	must.OK(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64k"))
	fill(t, filepath.Join(dir, "fill"))
	p := h.Daemon() // full: a lock and a socket need no room
	h.RecordIs(cluster.StateActive)
	p.Beats()
}
