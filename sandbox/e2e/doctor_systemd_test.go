// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/internal/must"
)

// doctorOn lets the doctor look at a booted machine.
func doctorOn(t *testing.T, n *bootedNode, args ...string) []doctor.Result {
	t.Helper()
	r := n.run(t, append([]string{"amsagent", "doctor", "-o", "json"}, args...)...)
	var d struct{ Checks []doctor.Result }
	if err := json.Unmarshal([]byte(r.stdout), &d); err != nil || len(d.Checks) == 0 {
		t.Fatalf("%v\n%s", err, r)
	}
	if r.took > doctorBound {
		t.Errorf("it took %s", r.took)
	}
	bad := slices.ContainsFunc(d.Checks, func(r doctor.Result) bool { return r.Severity == bootstrap.Bad && !r.Ignored })
	if bad != (r.code == 6) || !bad && r.code != 0 {
		t.Errorf("a problem: %t, and exit %d", bad, r.code)
	}
	return d.Checks
}

// doctorBound is longer than the doctor may take.
const doctorBound = 16 * time.Second

func finds(t *testing.T, results []doctor.Result, id string, want bootstrap.Severity, seen string) {
	t.Helper()
	i := slices.IndexFunc(results, func(r doctor.Result) bool { return r.ID == id && r.Severity == want && strings.Contains(r.Text, seen) })
	if i < 0 {
		var got []string
		for _, r := range results {
			if r.ID == id || r.Check == id {
				got = append(got, r.ID+" "+string(r.Severity)+": "+r.Text)
			}
		}
		t.Errorf("%s %s: %q is not there, but\n%s", id, want, seen, strings.Join(got, "\n"))
	}
}

// TestSystemdDoctor looks at a machine with a booted systemd: well, and broken in the ways that only a running machine
// can be.
func TestSystemdDoctor(t *testing.T) {
	n := bootNode(t)
	n.sh(t, `systemctl disable -q `+nodeUnit)

	all := doctorOn(t, n, "--mongo", nodeMongo)
	finds(t, all, "AMS-SERVICE", bootstrap.Good, nodeUnit)
	finds(t, all, "AMS-NOT-ENABLED", bootstrap.Warning, "does not start at boot")
	finds(t, all, "AMS-PORTS", bootstrap.Good, "the server runs")
	finds(t, all, "AGENT-IDENTITY", bootstrap.Good, nodeID+" on aws")
	finds(t, all, "AMS-ADDRESS", bootstrap.Good, nodeAddress)
	finds(t, all, "AMS-HOSTNAME", bootstrap.Good, "a join adds a line")
	finds(t, all, "AGENT-DAEMON-UNITS", bootstrap.Warning, "nothing drains this node")
	finds(t, all, "AMS-MONGO-OPEN", bootstrap.Warning, "shows its databases without a password")
	finds(t, all, "AGENT-DEADLINES", bootstrap.Good, "the server's stop 10s (a join makes it")
	finds(t, all, "AMS-GPU", bootstrap.Good, "")
	n.sh(t, `systemctl enable -q `+nodeUnit)
	if slices.ContainsFunc(doctorOn(t, n, "--mongo", nodeMongo), func(r doctor.Result) bool { return r.ID == "AMS-NOT-ENABLED" }) {
		t.Error("a server that starts at boot is said not to")
	}
	n.same(t, "after the doctor", n.pure)

	// A user that is not root gets fewer results, and no check fails.
	r := n.run(t, "runuser", "-u", "antmedia", "--", "amsagent", "doctor", "--mongo", nodeMongo)
	if r.code != 0 || !strings.Contains(r.stdout, "only root") || strings.Contains(r.stdout, "AGENT-FAILED") {
		t.Errorf("as another user: %s", r)
	}

	if r := n.run(t, "amsagent", "join", "--mongo", nodeMongo); r.code != 0 {
		t.Fatal(r)
	}
	all = doctorOn(t, n)
	finds(t, all, "AGENT-DROP-IN", bootstrap.Good, "AMS_HOST_ADDRESS="+nodeAddress)
	finds(t, all, "AGENT-DISAGREES", bootstrap.Good, "in the cluster as "+nodeAddress)
	finds(t, all, "AMS-HOSTNAME", bootstrap.Good, nodeHostname+" resolves to "+nodeAddress)
	finds(t, all, "AGENT-DAEMON-UNITS", bootstrap.Warning, "nothing drains this node")
	finds(t, all, "AGENT-DAEMON-DOWN", bootstrap.Bad, "nothing drains it")
	finds(t, all, "AMS-SETTINGS", bootstrap.Good, "the same database")

	// With its units, as the package installs them.
	for _, unit := range []string{convergeUnit, daemonUnit} {
		nodeCopy(t, "../../packaging/systemd/"+unit, n.path("/etc/systemd/system/"+unit))
	}
	n.sh(t, `chmod 644 /etc/systemd/system/amsagent*; ln -sf /usr/local/bin/amsagent /usr/bin/amsagent; systemctl daemon-reload`)
	if r := n.run(t, "amsagent", "join", "--mongo", nodeMongo); r.code != 0 {
		t.Fatal(r)
	}
	if r := n.run(t, "amsagent", "status", "--wait", "active", "--timeout", "30s"); r.code != 0 {
		t.Fatal(r)
	}
	all = doctorOn(t, n)
	finds(t, all, "AGENT-DAEMON-UNITS", bootstrap.Good, daemonUnit+" active")
	finds(t, all, "AGENT-DAEMON-DOWN", bootstrap.Good, "")
	finds(t, all, "AGENT-DEADLINES", bootstrap.Good, "power-off gives it 15m (less: who is still there is cut)")
	n.sh(t, `systemctl stop amsagent; systemctl disable -q amsagent`)
	all = doctorOn(t, n)
	finds(t, all, "AGENT-DAEMON-UNITS", bootstrap.Bad, daemonUnit+" is inactive")
	finds(t, all, "AGENT-DAEMON-DOWN", bootstrap.Bad, "nothing drains it")
	n.sh(t, `systemctl start amsagent`)
	finds(t, doctorOn(t, n), "AGENT-DAEMON-UNITS", bootstrap.Bad, "does not start at boot")
	// From here on the agent must not repair the damage.
	n.sh(t, `systemctl disable -q --now amsagent amsagent-node; rm /etc/systemd/system/amsagent*.service; systemctl daemon-reload`)

	// A later drop-in stands over ours.
	n.sh(t, `mkdir -p /etc/systemd/system/`+nodeUnit+`.d
printf '[Service]\nEnvironment=AMS_HOST_ADDRESS=10.7.7.7\nTimeoutStopSec=5\n' >/etc/systemd/system/`+nodeUnit+`.d/60-local.conf
systemctl daemon-reload; systemctl restart `+nodeUnit)
	all = doctorOn(t, n)
	finds(t, all, "AGENT-DROP-IN", bootstrap.Bad, "10.7.7.7")
	finds(t, all, "AGENT-DEADLINES", bootstrap.Warning, "kills the server 5s after")
	n.sh(t, `rm /etc/systemd/system/`+nodeUnit+`.d/60-local.conf; systemctl daemon-reload; systemctl restart `+nodeUnit)

	// A unit that was edited, and not read again.
	n.sh(t, `sleep 1; touch /etc/systemd/system/`+nodeUnit)
	all = doctorOn(t, n)
	finds(t, all, "AMS-RELOAD", bootstrap.Warning, nodeUnit)

	// Ours is lost.
	n.sh(t, `rm `+nodeDropIn+`; systemctl daemon-reload`)
	all = doctorOn(t, n)
	finds(t, all, "AGENT-DROP-IN", bootstrap.Bad, "is lost")
	finds(t, all, "AMS-DRIFT", bootstrap.Warning, nodeDropIn)

	// The server is stopped, and another process has one of its ports.
	n.sh(t, `systemctl stop `+nodeUnit+`; systemd-run -q --unit=squatter -p Type=exec sandbox mongo --listen 127.0.0.1:1935`)
	must.Until(t, "a listener on port 1935", func() bool {
		return strings.Contains(n.sh(t, `ss -ltn`), ":1935 ")
	})
	all = doctorOn(t, n)
	finds(t, all, "AMS-PORTS", bootstrap.Bad, "port 1935 (RTMP) is taken")
	finds(t, all, "STATUS-STOPPED", bootstrap.Bad, nodeUnit)
	n.sh(t, `systemctl stop squatter; systemctl mask -q `+nodeUnit+` 2>/dev/null || ln -sf /dev/null /run/systemd/system/`+nodeUnit+`; systemctl daemon-reload`)
	if strings.Contains(n.sh(t, `systemctl show -p LoadState --value `+nodeUnit), "masked") {
		finds(t, doctorOn(t, n), "AMS-SERVICE", bootstrap.Bad, "masked")
	}
}
