// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
)

const monitoring = "../../packaging/monitoring/"

// prometheusTool is prometheus or promtool: the one on PATH, else the one that `tools/scripts/real.sh prometheus` fetched. Without
// one the test is skipped; with REQUIRE_REAL=1 it fails.
func prometheusTool(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	cache, err := os.UserCacheDir()
	must.OK(t, err)
	path := filepath.Join(cache, "amsagent/real/prometheus/usr/bin", name)
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("REQUIRE_REAL") == "1" {
			t.Fatal(err)
		}
		t.Skipf("there is no %s (`tools/scripts/real.sh prometheus` fetches it)", name)
	}
	return path
}

// TestPromtool: Prometheus' own program accepts the rules and the configuration, and the rules pass their tests.
func TestPromtool(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check", "rules", "amsagent.rules.yml"}, {"check", "config", "prometheus.yml"}, {"test", "rules", "amsagent.rules.test.yml"}} {
		cmd := exec.Command(prometheusTool(t, "promtool"), args...)
		cmd.Dir = monitoring
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

// prometheus is a real one, with the files of packaging.
type prometheus struct {
	t        *testing.T
	web, url string
	well     time.Time // when nothing fired
}

// background runs a program until the test ends.
func background(t *testing.T, env []string, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = env
	p, err := proc.Start(cmd)
	must.OK(t, err)
	t.Cleanup(func() {
		p.Signal(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("%s:\n%s", program, p.Output())
		}
	})
}

// newPrometheus starts `amsagent web` and a Prometheus that reads it, both each second, with a 60th of the time that alerts wait.
func newPrometheus(t *testing.T, program, mongo, metricsPort string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	var addresses [2]string
	for i := range addresses {
		port, err := freePort()
		must.OK(t, err)
		addresses[i] = "127.0.0.1:" + port
	}
	w := &prometheus{t: t, web: "http://" + addresses[0], url: "http://" + addresses[1]}
	background(t, []string{"AMSAGENT_ROOT=" + dir, "AMSAGENT_MONGO=" + mongo}, bins.agent, "web", "--listen", addresses[0], "--metrics-port", metricsPort)

	config, err := os.ReadFile(monitoring + "prometheus.yml")
	must.OK(t, err)
	text := strings.NewReplacer("15s", "1s", "127.0.0.1:9774", addresses[0]).Replace(string(config))
	must.OK(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(text), 0o600))
	rules, err := os.ReadFile(monitoring + "amsagent.rules.yml")
	must.OK(t, err)
	scaled := regexp.MustCompile(`(?m)^ +for: (\d+)([smhd])$`).ReplaceAllStringFunc(string(rules), func(line string) string {
		key, value, _ := strings.Cut(line, ": ")
		value = strings.Replace(value, "d", "h", 1) // a day is an hour, and then 24 times that
		d, err := time.ParseDuration(value)
		must.OK(t, err)
		if strings.HasSuffix(line, "d") {
			d *= 24
		}
		return fmt.Sprintf("%s: %dms", key, (d / 60).Milliseconds())
	})
	must.OK(t, os.WriteFile(filepath.Join(dir, "amsagent.rules.yml"), []byte(scaled), 0o600))
	background(t, []string{"HOME=" + dir}, program, "--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--web.listen-address", addresses[1], "--log.level", "warn")
	return w
}

// get reads data of Prometheus' API.
func (w *prometheus) get(path string, query url.Values, data any) error {
	resp, err := http.Get(w.url + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Data  any
		Error string
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

type promSample struct{ Metric map[string]string }

func (w *prometheus) query(expr string) (list []promSample, err error) {
	var data struct{ Result []promSample }
	err = w.get("/api/v1/query", url.Values{"query": {expr}}, &data)
	return data.Result, err
}

// has waits until a query has so many results.
func (w *prometheus) has(n int, expr string) (list []promSample) {
	w.t.Helper()
	until(w.t, fmt.Sprintf("%d results of %s", n, expr), func() string {
		var err error
		if list, err = w.query(expr); err != nil || len(list) != n {
			return fmt.Sprint("so far: ", list, err)
		}
		return ""
	})
	return list
}

// name identifies an alert: NAME node, or NAME role.
func name(labels map[string]string) string {
	return labels["alertname"] + " " + cmp.Or(labels["node"], labels["role"])
}

// fired waits until alerts have fired since the cluster was well, and returns all that have. An alert may have ended when the last one
// begins.
func (w *prometheus) fired(alerts ...string) (all []string) {
	w.t.Helper()
	until(w.t, fmt.Sprint(alerts, " fire"), func() string {
		var data struct {
			Alerts []struct{ Labels, Annotations map[string]string }
		}
		list, err := w.query(fmt.Sprintf(`max_over_time(ALERTS{alertstate="firing"}[%dms])`, time.Since(w.well).Milliseconds()))
		if err = errors.Join(err, w.get("/api/v1/alerts", nil, &data)); err != nil {
			return err.Error()
		}
		for _, a := range data.Alerts {
			if s := a.Annotations["summary"]; s == "" || strings.ContainsAny(s, "<%") {
				w.t.Errorf("%s: summary %q", name(a.Labels), s)
			}
		}
		all = nil
		for _, s := range list {
			all = append(all, name(s.Metric))
		}
		for _, alert := range alerts {
			if !slices.Contains(all, alert) {
				return fmt.Sprintf("so far: %q", all)
			}
		}
		return ""
	})
	return all
}

// page is a page of metrics that promtool accepts.
func (w *prometheus) page(address string) {
	w.t.Helper()
	resp, err := http.Get(address + "/metrics")
	must.OK(w.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must.OK(w.t, err)
	cmd := exec.Command(prometheusTool(w.t, "promtool"), "check", "metrics")
	cmd.Stdin = strings.NewReader(string(body))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		w.t.Errorf("promtool check metrics: %v\n%s\n%s", err, out, body)
	}
}

// monitored are nodes at addresses of the loopback, which Prometheus reaches at one port.
func monitored(t *testing.T, addresses ...string) (w *prometheus, port string, nodes []*onAWS, daemons []*rig.Daemon) {
	t.Helper()
	program := prometheusTool(t, "prometheus")
	port, err := freePort()
	must.OK(t, err)
	m := newDatabase(t)
	for _, ip := range addresses {
		h := newScaled(t, m, ip, fakeaws.AutoScalingOptions{}, endHook(time.Hour))
		h.Config("address: " + ip + "\n") // from a cloud, none of the loopback is accepted
		nodes, daemons = append(nodes, h), append(daemons, h.Daemon("--metrics-address", ip+":"+port))
	}
	w = newPrometheus(t, program, m.LoginURI(), port)
	for _, h := range nodes {
		h.RecordIs(cluster.StateActive)
	}
	w.has(len(nodes), `up{job="amsagent", role="edge", group="`+scalingGroup+`", zone="eu-west-1a", node=~".+"} == 1`)
	w.has(len(nodes), `amsagent_node_state{state="active"} == 1 and on (instance) amsagent_score_ratio and on (instance) amsagent_server_up == 1 and on (instance) amsagent_mongodb_reachable == 1`)
	w.has(0, `ALERTS{alertstate="firing"}`) // until it is scraped, amsagent web is missed
	w.well = time.Now()
	return w, port, nodes, daemons
}

// TestPrometheus: a real Prometheus finds two nodes by `amsagent web`. One drains with viewers until its deadline, one dies. The alerts
// about that fire, and no others; each name in the rules and the dashboard was scraped; each query of the dashboard has a result.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	w, port, nodes, daemons := monitored(t, "127.0.9.11", "127.0.9.12")
	drains, dies := nodes[0], nodes[1]
	drains.Viewers(3)
	w.has(1, `amsagent_viewers{node="`+drains.ID+`"} == 3`)

	drains.Must("drain", "--deadline", "60s", "--detach")
	daemons[1].End(syscall.SIGKILL)
	if err := dies.TryPeople(http.MethodPost, "/crash"); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	w.has(1, `amsagent_drain_deadline_timestamp_seconds{node="`+drains.ID+`"}`)
	w.page("http://" + drains.Address + ":" + port)
	w.page(w.web)
	w.dashboard()
	expected := []string{"AmsagentDrainNearDeadline " + drains.ID, "AmsagentUnscrapable " + dies.ID, "AmsagentNodeGone edge", "AmsagentHeadroomLow edge", "AmsagentSessionsCut edge"}
	all := w.fired(expected...)
	// When the last node has left, no heartbeat shows that MongoDB takes them: the dead one may be alive.
	expected = append(expected, "AmsagentNodesUnknown edge")
	for _, alert := range all {
		if !slices.Contains(expected, alert) {
			t.Errorf("%s fired", alert)
		}
	}
	if n := drains.HasLeft(); n.Cut == nil || *n.Cut != 3 {
		t.Errorf("the record: %+v", n)
	}
	// A node that has left is no target.
	w.has(1, `up{job="amsagent"}`)

	var names []string
	must.OK(t, w.get("/api/v1/label/__name__/values", nil, &names))
	// What only a machine with a GPU, or with a fault, has.
	names = append(names, "amsagent_gpu_encoder_utilization_ratio", "amsagent_reading_missing")
	for _, file := range []string{"amsagent.rules.yml", "dashboard.json"} {
		text, err := os.ReadFile(monitoring + file)
		must.OK(t, err)
		for _, name := range regexp.MustCompile(`(\w+:)?\bamsagent_\w+(:\w+)?`).FindAllString(string(text), -1) {
			if !slices.Contains(names, name) {
				t.Errorf("%s: %s was not scraped", file, name)
			}
		}
	}
}

// TestPrometheusAway: MongoDB answers nothing for a minute, so no application serves. That is one alert, and not one for each node.
func TestPrometheusAway(t *testing.T) {
	t.Parallel()
	w, _, nodes, _ := monitored(t, "127.0.9.13", "127.0.9.14")
	nodes[0].Fault(mongod.Fault{Mode: mongod.BlackHole})
	w.has(2, `amsagent_server_up == 0 and on (instance) amsagent_mongodb_reachable == 0`)
	w.fired("AmsagentNoDiscovery ")
	w.has(0, `ALERTS{alertstate="firing", node!=""}`)
	w.has(0, `amsagent_cluster_nodes`)
}

// dashboard asks what each panel asks. While a node drains, each has a result, but for GPUs and faults.
func (w *prometheus) dashboard() {
	w.t.Helper()
	b, err := os.ReadFile(monitoring + "dashboard.json")
	must.OK(w.t, err)
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	must.OK(w.t, json.Unmarshal(b, &d))
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$role", ".*", "$__rate_interval", "10s").Replace(target.Expr)
			if p.Title == "GPU encoder by device" || p.Title == "Reasons for degraded agents" {
				w.has(0, expr)
				continue
			}
			until(w.t, "a result of "+expr, func() string {
				list, err := w.query(expr)
				if err != nil || len(list) == 0 {
					return fmt.Sprint("so far: ", list, err)
				}
				return ""
			})
		}
	}
}
