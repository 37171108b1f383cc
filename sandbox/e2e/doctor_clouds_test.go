// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakealibaba"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// doctored lets the doctor look at a machine of a cloud.
func doctored(h *rig.Node) []doctor.Result {
	h.T.Helper()
	out, code := h.Run("doctor", "-o", "json")
	var d struct{ Checks []doctor.Result }
	if err := json.Unmarshal([]byte(out), &d); err != nil || len(d.Checks) == 0 {
		h.T.Fatalf("exit %d: %v\n%s", code, err, out)
	}
	return d.Checks
}

// finds looks for a result with this severity whose text has what was seen.
func finds(t *testing.T, results []doctor.Result, id string, want bootstrap.Severity, seen string) {
	t.Helper()
	i := slices.IndexFunc(results, func(r doctor.Result) bool { return r.ID == id && r.Severity == want && strings.Contains(r.Text, seen) })
	if i < 0 {
		t.Errorf("%s %s: %q is not there, but %+v", id, want, seen, results)
	}
}

// TestCloudAlibabaDoctor: on a machine in service the doctor checks the hook, its timeouts and all permissions but the last. It
// neither completes nor extends a wait.
func TestCloudAlibabaDoctor(t *testing.T) {
	t.Parallel()
	ess := newESS(t, fakealibaba.CloudOptions{}, fakes.Hook{Name: "ash-end", Timeout: 10 * time.Minute}, fakes.Hook{Name: "ash-ready", Launching: true, Timeout: time.Minute})
	h := newOnAlibaba(t, newDatabase(t), ess, 21, nil)
	all := doctored(h.Node)
	finds(t, all, "AGENT-HOOK", bootstrap.Good, "ash-end of group "+alibabaGroup+"; this machine may keep it waiting; whether it may complete it shows only then")
	finds(t, all, "AGENT-DEADLINES", bootstrap.Good, "hook ash-end waits 10m at a time, 6h in all")
	for call, permission := range map[string]string{
		"RecordLifecycleActionHeartbeat": "ess:RecordLifecycleActionHeartbeat", "DescribeLifecycleHooks": "ess:DescribeLifecycleHooks",
		"DescribeScalingInstances": "ess:DescribeScalingInstances", "DescribeScalingActivities": "ess:DescribeScalingActivities",
	} {
		must.OK(t, ess.AddFault(fakes.Fault{Path: call, Code: "Forbidden.RAM", Status: 403}))
		finds(t, doctored(h.Node), "AGENT-HOOK-DENIED", bootstrap.Bad, "permission "+permission+" is missing")
		ess.ClearFaults()
	}
	must.OK(t, ess.ScaleIn(h.ID))
	h.noted(fakes.Wait)
	finds(t, doctored(h.Node), "AGENT-HOOK", bootstrap.Good, "ash-end of group "+alibabaGroup+"; whether this machine may keep it waiting and complete it shows only when it waits")
	if n := written(ess, fakes.Heartbeat) + written(ess, fakes.Completed); n > 0 {
		t.Errorf("the doctor completed or extended the wait %d times", n)
	}
}

// TestCloudAzureDoctor: a setting that no machine can read is not reported as missing.
func TestCloudAzureDoctor(t *testing.T) {
	t.Parallel()
	h := newOnAzure(t, newDatabase(t), newAzureSet(t), 21, "10.0.61.21")
	all := doctored(h.Node)
	finds(t, all, "AGENT-HOOK", bootstrap.Unknown, "terminate notification")
	for _, r := range all {
		if r.ID == "AGENT-HOOK" && !strings.HasPrefix(r.Hint, "az vmss show ") {
			t.Errorf("the hint: %q", r.Hint)
		}
	}
}

// TestDoctorSilence: whatever is asked takes the connection and says nothing, the database, the cloud and the daemon, and
// several doctors look at once. Each is over in its time, and lists all.
func TestDoctorSilence(t *testing.T) {
	t.Parallel()
	h := newOnAlibaba(t, newDatabase(t), newESS(t, fakealibaba.CloudOptions{}), 22, nil)
	tcp := silent(t, "tcp", "127.0.0.1:0")
	socket := h.Path("run/amsagent/control.sock")
	must.OK(t, os.MkdirAll(filepath.Dir(socket), 0o755))
	silent(t, "unix", socket)
	for i, v := range h.Env {
		if name, _, _ := strings.Cut(v, "="); strings.HasSuffix(name, "_ENDPOINT") {
			h.Env[i] = name + "=http://" + tcp
		}
	}
	// The doctor's own 15 s, on a machine that is busy with other tests.
	const bound = 32 * time.Second
	var doctors sync.WaitGroup
	for range 3 {
		doctors.Go(func() {
			begin := time.Now()
			out, code := h.Run("doctor", "-o", "json", "--mongo", tcp)
			if took := time.Since(begin); took > bound {
				t.Errorf("it took %s", took)
			}
			var d struct{ Checks []doctor.Result }
			if err := json.Unmarshal([]byte(out), &d); err != nil || code != 6 || len(d.Checks) < 40 {
				t.Errorf("exit %d, %d checks, %v", code, len(d.Checks), err)
			}
			for _, r := range d.Checks {
				if r.Check == "AMS-MONGO" && r.Severity != bootstrap.Bad || r.Check == "AGENT-DAEMON-DOWN" && r.Severity != bootstrap.Unknown {
					t.Errorf("%+v", r)
				}
			}
		})
	}
	doctors.Wait()
}

// silent takes connections and says nothing.
func silent(t *testing.T, network, address string) string {
	t.Helper()
	l, err := net.Listen(network, address)
	must.OK(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	return l.Addr().String()
}
