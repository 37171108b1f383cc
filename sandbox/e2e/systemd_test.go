// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

const (
	rolledBack = "the files were put back and Ant Media Server runs again as before (standalone)"
	nothing    = "nothing was changed on this machine"
)

// TestSystemd joins and leaves on a machine with a really booted systemd, and
// looks at systemd itself and at MongoDB for what became of it.
func TestSystemd(t *testing.T) {
	n := bootNode(t)
	t.Run("Story", n.story)
	t.Run("DoesNotComeUp", n.doesNotComeUp)
	t.Run("WasStopped", n.wasStopped)
	t.Run("Service", n.service)
	t.Run("Interrupted", n.interrupted)
	t.Run("Killed", n.killed)
	t.Run("MongoAway", n.mongoAway)
	t.Run("MayNot", n.mayNot)
	t.Run("TwoAtOnce", n.twoAtOnce)
	t.Run("SlowToStop", n.slowToStop)
	t.Run("VendorsNode", n.vendorsNode)
	t.Run("Speed", n.speed)
}

// standalone: everything is as it was installed, for systemd and the cluster, too.
func (n *bootedNode) standalone(t *testing.T, when string) {
	t.Helper()
	n.same(t, when, n.pure)
	n.show(t).want(t, map[string]string{
		"ActiveState": "active", "SubState": "running", "Result": "success", "NRestarts": "0", "Environment": "ANTMEDIA_HOME=" + nodeHome,
		"TimeoutStopUSec": "10s", "DropInPaths": "", "NeedDaemonReload": "no",
	})
	if _, err := os.Stat(n.path("/etc/systemd/system/" + nodeUnit + ".d")); err == nil {
		t.Errorf("%s the folder of the drop-in is still there", when)
	}
	must.Until(t, "a standalone server", func() bool { return n.mode(t) == "standalone" })
	if nodes := n.clusternode(t); len(nodes) != 0 {
		t.Errorf("%s clusternode still has %+v", when, nodes)
	}
	n.agent(t, 5, "status", "--mongo", nodeMongo).says(t, "not a member: this machine is standalone")
}

// joined: a node of the cluster from every side.
func (n *bootedNode) joined(t *testing.T, when string) {
	t.Helper()
	u := n.show(t)
	u.want(t, map[string]string{
		"ActiveState": "active", "SubState": "running", "NRestarts": "0", "Environment": "ANTMEDIA_HOME=" + nodeHome + " AMS_HOST_ADDRESS=" + nodeAddress,
		"TimeoutStopUSec": "2min", "DropInPaths": nodeDropIn, "NeedDaemonReload": "no",
	})
	if env := n.read(t, "/proc/"+u["MainPID"]+"/environ"); !strings.Contains(env, "\x00AMS_HOST_ADDRESS="+nodeAddress+"\x00") {
		t.Errorf("%s the server has the environment %q", when, env)
	}
	if mode, code := n.mode(t), n.liveness(); mode != "cluster" || code != http.StatusOK {
		t.Errorf("%s the server runs %q and answers %d", when, mode, code)
	}
	n.inCluster(t)
	n.row(t, "active")
	n.agent(t, 0, "status", "--strict").says(t, "active: in the cluster as "+nodeAddress)
}

// serves waits until nothing disagrees: the applications serve some time after the server has written its document. A join
// waits for them, a start by hand does not.
func (n *bootedNode) serves(t *testing.T) {
	t.Helper()
	must.Until(t, "applications that serve", func() bool { return n.run(t, "amsagent", "status", "--strict").code == 0 })
}

// userData is what an instance runs at its first boot, from cloud-init: no
// terminal, and standard input closed.
func (n *bootedNode) userData(t *testing.T) nodeRun {
	t.Helper()
	return n.run(t, "sh", "-c", "exec "+nodeUserData+" <&-")
}

// story is an instance's whole life.
func (n *bootedNode) story(t *testing.T) {
	n.reset(t)
	before := n.show(t)
	ok := t.Run("Join", func(t *testing.T) {
		r := n.userData(t)
		r.expect(t, 0)
		r.says(t, "joined: origin "+nodeID+" is in the cluster as "+nodeAddress)
		for line := range strings.Lines(r.stderr) {
			// No daemon runs here: the sessions are unknown, and nothing drains this node.
			if strings.Contains(line, "level=WARN") && !strings.Contains(line, "AMS-SESSIONS") && !strings.Contains(line, "AGENT-DAEMON-UNITS") {
				t.Errorf("not expected: %s", line)
			}
		}
		n.joined(t, "after the join")
		u := n.show(t)
		if u["MainPID"] == before["MainPID"] || u["InvocationID"] == before["InvocationID"] || n.starts(t) != 2 {
			t.Errorf("want exactly one restart: %d starts, before %v, after %v", n.starts(t), before, u)
		}
		t.Logf("join: %s, the server's own start in it %s", r.took.Round(time.Millisecond), n.ownStart(t, u))

		// Owners and modes of the vendor's files are what they were, and none is new.
		content := regexp.MustCompile(` [0-9a-f]{64} `)
		ofServer := func(list []string) (out []string) {
			for _, l := range list {
				if strings.HasPrefix(l, nodeHome) {
					out = append(out, content.ReplaceAllString(l, " … "))
				}
			}
			return out
		}
		if was, now := ofServer(n.pure), ofServer(n.bytes(t)); !slices.Equal(was, now) {
			t.Errorf("owners and modes\n%s", nodeDifference(was, now))
		}
		for p, want := range map[string]os.FileMode{
			nodeDropIn: 0o644, "/etc/amsagent/mongo": 0o600, "/etc/hosts": 0o644, "/run/amsagent/result.json": 0o644,
		} {
			if info, err := os.Stat(n.path(p)); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v; want mode %o", p, info, err, want)
			}
		}
		// One line makes the machine's name resolvable.
		if got, want := n.read(t, "/etc/hosts"), "127.0.0.1\tlocalhost\n::1\tlocalhost\n"+nodeAddress+"\t"+nodeHostname; !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 3 {
			t.Errorf("/etc/hosts is %q", got)
		}
		if got := n.sh(t, "getent hosts "+nodeHostname); !strings.HasPrefix(got, nodeAddress+" ") {
			t.Errorf("%s resolves to %q", nodeHostname, got)
		}
	})
	if !ok {
		t.FailNow()
	}
	joined := n.show(t)

	t.Run("Again", func(t *testing.T) {
		was := n.touched(t)
		r := n.userData(t)
		r.expect(t, 0)
		r.says(t, "nothing to do: origin "+nodeID+" is in the cluster as "+nodeAddress)
		n.show(t).want(t, joined)
		if now := n.touched(t); !slices.Equal(was, now) {
			t.Errorf("files were written\n%s", nodeDifference(was, now))
		}
		n.joined(t, "after a second join")
		t.Logf("second join: %s", r.took.Round(time.Millisecond))
	})

	t.Run("OperatorRestarts", func(t *testing.T) {
		was, content := n.touched(t), n.bytes(t)
		begin := time.Now()
		n.sh(t, "systemctl restart "+nodeUnit)
		must.Until(t, "the server's document", func() bool {
			nodes := n.clusternode(t)
			return len(nodes) == 1 && time.UnixMilli(nodes[0].Updated).After(begin) && n.mode(t) == "cluster"
		})
		n.serves(t)
		if u := n.show(t); u["InvocationID"] == joined["InvocationID"] {
			t.Error("systemd has not restarted it")
		}
		n.joined(t, "after a restart")
		served := n.touched(t)
		n.agent(t, 0, "join").says(t, "nothing to do: ")
		if now := n.touched(t); !slices.Equal(served, now) {
			t.Errorf("files were written\n%s", nodeDifference(served, now))
		}
		// The drop-in wrote nothing either. The server itself saves its applications' settings at each start.
		ofApps := func(line string) bool { return strings.HasPrefix(line, nodeHome+"/webapps/") }
		if was, now := slices.DeleteFunc(was, ofApps), slices.DeleteFunc(served, ofApps); !slices.Equal(was, now) {
			t.Errorf("files were written before the server's start\n%s", nodeDifference(was, now))
		}
		if now := n.bytes(t); !slices.Equal(content, now) {
			t.Errorf("the tree is not as before the restart\n%s", nodeDifference(content, now))
		}
	})

	t.Run("Leave", func(t *testing.T) {
		starts := n.starts(t)
		r := n.agent(t, 0, "leave", "--now")
		r.says(t, "left: this machine is standalone")
		if got := n.starts(t); got != starts+1 {
			t.Errorf("want one restart, there were %d", got-starts)
		}
		n.standalone(t, "after the leave")
		n.row(t, "left")
		t.Logf("leave: %s", r.took.Round(time.Millisecond))
	})

	t.Run("LeaveAgain", func(t *testing.T) {
		was, before := n.touched(t), n.show(t)
		n.agent(t, 0, "leave", "--now").says(t, "nothing to do: this machine is not a cluster node")
		n.show(t).want(t, before)
		if now := n.touched(t); !slices.Equal(was, now) {
			t.Errorf("files were written\n%s", nodeDifference(was, now))
		}
		n.row(t, "left")
	})
}

// ownStart is what the server itself needs from its start to its first document.
func (n *bootedNode) ownStart(t *testing.T, u nodeUnitState) time.Duration {
	t.Helper()
	// systemctl rounds to seconds; the server's log does not.
	log := n.read(t, nodeLog)
	log = log[strings.LastIndex(log[:strings.LastIndex(log, `msg="files read"`)], "time=")+len("time="):]
	stamp, _, _ := strings.Cut(log, " ")
	begin, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		t.Fatalf("%v; %v", err, u)
	}
	_, up, found := strings.Cut(log, "msg=up")
	if !found {
		t.Fatalf("the server is not up: %s%s", log, up)
	}
	i := strings.LastIndex(log[:strings.Index(log, "msg=up")], "time=") + len("time=")
	stamp, _, _ = strings.Cut(log[i:], " ")
	end, err := time.Parse(time.RFC3339Nano, stamp)
	must.OK(t, err)
	return end.Sub(begin)
}

// doesNotComeUp: a server that is well standalone and is not as a cluster node.
func (n *bootedNode) doesNotComeUp(t *testing.T) {
	for _, tt := range []struct {
		name    string
		flags   []string
		timeout time.Duration
		limit   time.Duration // when it must be over, with the rollback
		id      string
		cause   string
	}{
		// With Restart=on-failure systemd starts it again and again: that must be
		// noticed long before the time is over.
		{"FailsToStart", []string{"--fail-start"}, time.Minute, 30 * time.Second, "AMS-SERVICE", "antmedia.service did not stay up: activating (auto-restart, exit-code, exit status 1)"},
		{"Crashes", []string{"--crash-after=1s"}, time.Minute, 30 * time.Second, "AMS-SERVICE", "antmedia.service did not stay up: activating (auto-restart, exit-code, exit status 1)"},
		{"CrashesBeforeItIsUp", []string{"--never-up", "--crash-after=1s"}, time.Minute, 30 * time.Second, "AMS-SERVICE", "antmedia.service did not stay up: activating (auto-restart, exit-code, exit status 1)"},
		{"NeverUp", []string{"--never-up"}, 15 * time.Second, time.Minute, "AMS-NOT-SEEN", "liveness: starting: it answers 403"},
		{"WrongAddress", []string{"--register-address=10.9.0.99"}, 15 * time.Second, time.Minute, "AMS-NOT-SEEN", "may be it under a wrong address: 10.9.0.99"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.reset(t, append([]string{"--only-in=cluster"}, tt.flags...)...)
			r := n.agent(t, 1, "join", "--mongo", nodeMongo, "--timeout", tt.timeout.String())
			if r.took > tt.limit {
				t.Errorf("it took %s", r.took)
			}
			r.explains(t, tt.id, rolledBack)
			if !strings.Contains(r.stderr, tt.cause) {
				t.Errorf("want %q as a cause:\n%s", tt.cause, r)
			}
			if _, rest, _ := strings.Cut(r.stderr, "amsagent: hint: "); strings.Contains(rest, "may still come") {
				t.Errorf("nothing comes any more: %s", rest)
			}
			if tt.name == "WrongAddress" {
				// The agent cannot be certain whose document this is, so it stays.
				if nodes := n.clusternode(t); len(nodes) != 1 || nodes[0].IP != "10.9.0.99" {
					t.Errorf("clusternode: %+v", nodes)
				}
				must.OK(t, n.mongo.Database("clusterdb").Drop(t.Context()))
			}
			n.standalone(t, "after the rollback")
			n.noRow(t)
			if got := n.read(t, "/run/amsagent/result.json"); !strings.Contains(got, `"outcome": "failed"`) || !strings.Contains(got, rolledBack) {
				t.Errorf("result.json is %s", got)
			}
			t.Logf("rolled back after %s", r.took.Round(time.Millisecond))
			if tt.name == "Crashes" {
				// Once the server is well, the same command joins.
				n.behave(t)
				n.agent(t, 0, "join", "--mongo", nodeMongo)
				n.joined(t, "after the cure")
			}
		})
	}
}

// wasStopped: a join starts a server that is stopped, and stops it again if the join fails.
func (n *bootedNode) wasStopped(t *testing.T) {
	n.reset(t, "--only-in=cluster", "--fail-start")
	n.sh(t, "systemctl stop "+nodeUnit)
	r := n.agent(t, 1, "join", "--mongo", nodeMongo)
	r.explains(t, "AMS-SERVICE", "the files were put back and Ant Media Server is stopped, as before")
	n.same(t, "after the rollback", n.pure)
	n.show(t).want(t, map[string]string{"ActiveState": "inactive", "DropInPaths": "", "NeedDaemonReload": "no"})
	n.behave(t)
	n.agent(t, 0, "join", "--mongo", nodeMongo)
	n.joined(t, "after a start")
	// The operator stops the server: leave must not start it.
	n.sh(t, "systemctl stop "+nodeUnit)
	n.agent(t, 0, "leave", "--now")
	n.same(t, "after the leave", n.pure)
	n.show(t).want(t, map[string]string{"ActiveState": "inactive", "DropInPaths": "", "NeedDaemonReload": "no"})
	if nodes := n.clusternode(t); len(nodes) != 0 {
		t.Errorf("clusternode still has %+v", nodes)
	}
}

// service: a join detects a unit that cannot be restarted before it changes anything.
func (n *bootedNode) service(t *testing.T) {
	const unit = "/etc/systemd/system/" + nodeUnit
	for _, tt := range []struct {
		name, spoil string
		running     bool
		cause       string
	}{
		{"Masked", "ln -sf /dev/null " + unit + "; systemctl daemon-reload; systemctl stop " + nodeUnit, false, "masked"},
		{"MaskedWhileItRuns", "ln -sf /dev/null " + unit + "; systemctl daemon-reload", true, "masked"},
		{"Missing", "systemctl stop " + nodeUnit + "; rm " + unit + "; systemctl daemon-reload", false, "no such unit"},
		{"RemovedWhileItRuns", "rm " + unit + "; systemctl daemon-reload", true, "no such unit"},
		{"Broken", "sed -i s/^ExecStart=.*// " + unit + "; systemctl daemon-reload", true, "bad-setting"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.reset(t)
			n.sh(t, tt.spoil)
			was, before := n.touched(t), n.show(t)
			r := n.agent(t, 3, "join", "--mongo", nodeMongo)
			r.explains(t, "AMS-SERVICE", nothing)
			if !strings.Contains(r.stderr, tt.cause) {
				t.Errorf("want %q as a cause:\n%s", tt.cause, r)
			}
			after := n.show(t)
			after.want(t, before)
			if now := n.touched(t); !slices.Equal(was, now) {
				t.Errorf("files were written\n%s", nodeDifference(was, now))
			}
			if tt.running && (after["ActiveState"] != "active" || n.mode(t) != "standalone") {
				t.Errorf("the server does not run any more: %v", after)
			}
		})
	}
	t.Run("LeaveWhileItIsMasked", func(t *testing.T) {
		n.reset(t)
		n.agent(t, 0, "join", "--mongo", nodeMongo)
		n.sh(t, "mv "+unit+" /opt/fakeams/unit; ln -s /dev/null "+unit+"; systemctl daemon-reload")
		was, before := n.bytes(t), n.show(t)
		n.agent(t, 3, "leave", "--now").explains(t, "AMS-SERVICE", nothing)
		n.show(t).want(t, before)
		if now := n.bytes(t); !slices.Equal(was, now) {
			t.Errorf("files were written\n%s", nodeDifference(was, now))
		}
		n.inCluster(t)
		n.row(t, "active")
		n.sh(t, "mv /opt/fakeams/unit "+unit+"; systemctl daemon-reload")
		n.agent(t, 0, "leave", "--now")
		n.standalone(t, "after the leave")
	})
	t.Run("DoesNotStop", func(t *testing.T) {
		n.reset(t, "--only-in=standalone", "--slow-stop=1h")
		// Less than the two minutes of the agent's drop-in, which the rollback waits for, too.
		n.sh(t, `
mkdir -p /etc/systemd/system/`+nodeUnit+`.d
printf '[Service]\nTimeoutStopSec=20s\n' >/etc/systemd/system/`+nodeUnit+`.d/90-short.conf
systemctl daemon-reload`)
		r := n.agent(t, 1, "join", "--mongo", nodeMongo, "--timeout", "4s")
		r.explains(t, "AMS-SERVICE", rolledBack)
		if !strings.Contains(r.stderr, "stop of antmedia.service is not finished yet") {
			t.Errorf("want the cause: %s", r)
		}
		// systemd killed it when its time was over, and the rollback started it again.
		n.sh(t, "rm -r /etc/systemd/system/"+nodeUnit+".d; systemctl daemon-reload")
		n.standalone(t, "after the rollback")
		n.noRow(t)
		t.Logf("rolled back after %s", r.took.Round(time.Millisecond))
	})
}

// verifying waits until a join has restarted the server and verifies it.
func (n *bootedNode) verifying(t *testing.T, p *nodeProcess, before nodeUnitState) {
	t.Helper()
	must.Until(t, "the restart", func() bool {
		u := n.show(t)
		return p.Ended() || u["InvocationID"] != before["InvocationID"] && u["SubState"] == "running"
	})
	looks := n.looks(t)
	must.Until(t, "the proof", func() bool { return p.Ended() || n.looks(t) > looks })
	if p.Ended() {
		t.Fatalf("it ended before it could be interrupted: %s", p.wait(t))
	}
}

// interrupted: the operator presses Ctrl-C, or the system stops the command.
func (n *bootedNode) interrupted(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			n.reset(t, "--only-in=cluster", "--never-up")
			before := n.show(t)
			p := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
			n.verifying(t, p, before)
			p.Signal(sig)
			r := p.wait(t)
			r.expect(t, 130)
			if !strings.Contains(r.stderr, "[AGENT-INTERRUPTED]") || !strings.HasSuffix(r.stderr, "amsagent: "+rolledBack+"\n") {
				t.Errorf("%s", r)
			}
			n.standalone(t, "after the rollback")
			n.noRow(t)
		})
	}
	t.Run("leave", func(t *testing.T) {
		n.reset(t)
		n.agent(t, 0, "join", "--mongo", nodeMongo)
		n.hold(t)
		p := n.start(t, "amsagent", "leave", "--now")
		n.held(t)
		p.Signal(syscall.SIGTERM)
		n.release(t)
		r := p.wait(t)
		r.expect(t, 130)
		t.Logf("%s", r)
		n.agent(t, 0, "leave", "--now", "--mongo", nodeMongo)
		n.standalone(t, "after the leave")
		n.row(t, "left")
	})
}

// hold keeps systemd from finishing the next reload of its units. Then a join has written the agent's own files, and has not
// stopped the server yet; a leave and a rollback have restored all files, and have not started it yet.
func (n *bootedNode) hold(t *testing.T) {
	t.Helper()
	n.sh(t, `
mkdir -p /run/systemd/system-generators
printf '#!/bin/sh\n[ -e /run/fakeams-hold ] || exit 0\necho held >/run/fakeams-hold\nwhile [ -e /run/fakeams-hold ]; do sleep 0.05; done\n' >/run/systemd/system-generators/hold
chmod 755 /run/systemd/system-generators/hold
: >/run/fakeams-hold`)
	t.Cleanup(func() { n.release(t) })
}

// held waits until systemd is held. It does not answer any client now.
func (n *bootedNode) held(t *testing.T) {
	t.Helper()
	must.Until(t, "the reload", func() bool { return n.read(t, "/run/fakeams-hold") == "held\n" })
}

func (n *bootedNode) release(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(n.path("/run/fakeams-hold")); err != nil {
		t.Error(err)
	}
}

// killed: the process ends in the middle, and the next one finishes.
func (n *bootedNode) killed(t *testing.T) {
	kill := func(t *testing.T, p *nodeProcess) {
		t.Helper()
		p.Signal(syscall.SIGKILL)
		if r := p.wait(t); r.code == 0 {
			t.Fatalf("it was not killed: %s", r)
		}
	}
	t.Run("WhileItProves", func(t *testing.T) {
		n.reset(t, "--only-in=cluster", "--slow-start=3s")
		before := n.show(t)
		p := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
		n.verifying(t, p, before)
		kill(t, p)
		n.agent(t, 0, "status").says(t, "degraded: ")
		n.row(t, "joining")
		// The server was on its way: the next join has only to wait for it.
		n.agent(t, 0, "join", "--mongo", nodeMongo).says(t, "joined: ")
		n.joined(t, "after the next join")
		if got := n.starts(t); got != 2 {
			t.Errorf("%d starts", got)
		}
		n.agent(t, 0, "leave", "--now")
		n.standalone(t, "after the leave")
	})
	t.Run("WhileItProvesThenFails", func(t *testing.T) {
		n.reset(t, "--only-in=cluster", "--never-up")
		before := n.show(t)
		p := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
		n.verifying(t, p, before)
		kill(t, p)
		r := n.agent(t, 1, "join", "--mongo", nodeMongo, "--timeout", "3s")
		r.explains(t, "AMS-NOT-SEEN", rolledBack)
		n.standalone(t, "after the rollback")
		n.noRow(t)
	})
	t.Run("WhileItProvesThenLeave", func(t *testing.T) {
		n.reset(t, "--only-in=cluster", "--never-up")
		before := n.show(t)
		p := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
		n.verifying(t, p, before)
		kill(t, p)
		n.agent(t, 0, "leave", "--now")
		n.standalone(t, "after the leave")
		n.row(t, "left")
	})
	t.Run("BeforeTheStop", func(t *testing.T) {
		n.reset(t)
		before := n.show(t)
		n.hold(t)
		p := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
		n.held(t)
		kill(t, p)
		n.release(t)
		// Only the drop-in is a node's.
		n.show(t).want(t, map[string]string{"InvocationID": before["InvocationID"], "DropInPaths": nodeDropIn})
		if mode := n.mode(t); mode != "standalone" {
			t.Fatalf("the server runs %q", mode)
		}
		r := n.agent(t, 0, "status")
		r.says(t, "degraded: ")
		if !strings.Contains(r.stdout, "STATUS-RESTART") {
			t.Errorf("status does not say that a restart is due: %s", r)
		}
		n.agent(t, 0, "join", "--mongo", nodeMongo)
		n.joined(t, "after the next join")
		if got := n.starts(t); got != 2 {
			t.Errorf("%d starts", got)
		}
	})
	t.Run("BetweenStopAndStartOfALeave", func(t *testing.T) {
		n.reset(t)
		n.agent(t, 0, "join", "--mongo", nodeMongo)
		n.hold(t)
		p := n.start(t, "amsagent", "leave", "--now")
		n.held(t)
		kill(t, p)
		n.release(t)
		n.show(t).want(t, map[string]string{"ActiveState": "inactive", "DropInPaths": ""})
		// A command starts it, also one that changes nothing.
		if r := n.agent(t, 0, "converge"); !strings.Contains(r.stdout, "AGENT-RECOVERED") {
			t.Errorf("%s", r)
		}
		must.Until(t, "a standalone server", func() bool { return n.mode(t) == "standalone" })
		// Without --mongo: the agent still has the URI.
		n.agent(t, 0, "leave", "--now").says(t, "left: this machine is standalone")
		n.standalone(t, "after the next leave")
		n.row(t, "left")
	})
	t.Run("BetweenStopAndStartOfARollback", func(t *testing.T) {
		n.reset(t, "--only-in=cluster", "--never-up")
		before := n.show(t)
		p := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
		n.verifying(t, p, before)
		n.hold(t)
		p.Signal(syscall.SIGTERM)
		n.held(t)
		kill(t, p)
		n.release(t)
		n.show(t).want(t, map[string]string{"ActiveState": "inactive", "DropInPaths": ""})
		n.agent(t, 0, "leave", "--now", "--mongo", nodeMongo)
		n.standalone(t, "after a leave")
	})
	// The unit itself kills the agent while that stops it.
	stopped := func(t *testing.T, args ...string) {
		t.Helper()
		n.sh(t, `
mkdir -p /run/systemd/system/`+nodeUnit+`.d
printf '[Service]\nExecStopPost=+/usr/bin/pkill -9 -x amsagent\n' >/run/systemd/system/`+nodeUnit+`.d/90-kill.conf
systemctl daemon-reload`)
		if r := n.run(t, args...); r.code == 0 {
			t.Fatalf("it was not killed: %s", r)
		}
		n.sh(t, "rm -r /run/systemd/system/"+nodeUnit+".d; systemctl daemon-reload")
		n.show(t).want(t, map[string]string{"ActiveState": "inactive"})
	}
	t.Run("WhileItStopsThenDaemon", func(t *testing.T) {
		n.reset(t)
		stopped(t, "amsagent", "join", "--mongo", nodeMongo)
		d := n.start(t, "amsagent", "run")
		must.Until(t, "a node", func() bool { return n.mode(t) == "cluster" })
		d.Signal(syscall.SIGTERM)
		d.wait(t)
		n.agent(t, 0, "leave", "--now")
		n.standalone(t, "after the leave")
	})
	t.Run("WhileItStopsThenAnOperatorStops", func(t *testing.T) {
		n.reset(t)
		n.agent(t, 0, "join", "--mongo", nodeMongo)
		stopped(t, "amsagent", "leave", "--now")
		n.sh(t, "systemctl start "+nodeUnit+"; systemctl stop "+nodeUnit)
		n.agent(t, 0, "converge")
		n.show(t).want(t, map[string]string{"ActiveState": "inactive"})
	})
}

// mongoAway: a leave does not depend on MongoDB. The next leave, once MongoDB is back, updates the registry.
func (n *bootedNode) mongoAway(t *testing.T) {
	n.reset(t)
	n.agent(t, 0, "join", "--mongo", nodeMongo)
	n.sh(t, "kill -STOP $(systemctl show -p MainPID --value mongo)")
	resume := func() { n.sh(t, "kill -CONT $(systemctl show -p MainPID --value mongo)") }
	defer resume()
	r := n.agent(t, 1, "leave", "--now")
	t.Logf("leave without a database: %s", r)
	n.show(t).want(t, map[string]string{"ActiveState": "active", "DropInPaths": "", "NeedDaemonReload": "no"})
	isSecret := func(line string) bool {
		return strings.HasSuffix(line, " amsagent") || strings.HasSuffix(line, " amsagent/mongo")
	}
	if was, now := n.pure, slices.DeleteFunc(n.bytes(t), isSecret); !slices.Equal(was, now) { // the next leave needs it
		t.Errorf("the tree is not as before\n%s", nodeDifference(was, now))
	}
	starts := n.starts(t)
	resume()
	n.agent(t, 0, "leave", "--now").says(t, "left: this machine is standalone")
	n.standalone(t, "after the next leave")
	n.row(t, "left")
	if got := n.starts(t); got != starts {
		t.Errorf("the next leave restarted the server %d times", got-starts)
	}
}

// mayNot: an agent without permission to change the machine changes nothing and reports that.
func (n *bootedNode) mayNot(t *testing.T) {
	unchanged := func(t *testing.T, id string, args ...string) {
		t.Helper()
		was, before := n.touched(t), n.show(t)
		r := n.run(t, args...)
		r.expect(t, 3)
		r.explains(t, id, nothing)
		n.show(t).want(t, before)
		if now := n.touched(t); !slices.Equal(was, now) {
			t.Errorf("files were written\n%s", nodeDifference(was, now))
		}
		if nodes := n.clusternode(t); len(nodes) != 0 {
			t.Errorf("clusternode has %+v", nodes)
		}
	}
	t.Run("NotRoot", func(t *testing.T) {
		n.reset(t)
		unchanged(t, "AGENT-ROOT", "runuser", "-u", "nobody", "--", "amsagent", "join", "--mongo", nodeMongo)
	})
	t.Run("NotRootLeaves", func(t *testing.T) {
		n.reset(t)
		unchanged(t, "AGENT-ROOT", "runuser", "-u", "nobody", "--", "amsagent", "leave", "--now", "--mongo", nodeMongo)
	})
	t.Run("ReadOnly", func(t *testing.T) {
		n.reset(t)
		n.sh(t, fmt.Sprintf("mount --bind %[1]s %[1]s; mount -o remount,ro,bind %[1]s", nodeHome))
		defer n.sh(t, "umount "+nodeHome)
		unchanged(t, "AMS-WRITABLE", "amsagent", "join", "--mongo", nodeMongo)
	})
}

// twoAtOnce: user data and the operator join at the same moment.
func (n *bootedNode) twoAtOnce(t *testing.T) {
	n.reset(t)
	a := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
	b := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
	both := []nodeRun{a.wait(t), b.wait(t)}
	joined, idle := 0, 0
	for _, r := range both {
		r.expect(t, 0)
		if strings.HasPrefix(r.stdout, "joined: ") {
			joined++
		}
		if strings.HasPrefix(r.stdout, "nothing to do: ") {
			idle++
		}
	}
	if joined != 1 || idle != 1 {
		t.Errorf("want one that joins and one that finds it done: %v", both)
	}
	if got := n.starts(t); got != 2 {
		t.Errorf("want one restart in all, there were %d", got-1)
	}
	n.joined(t, "after two joins")
}

// slowToStop: a node that needs longer than the vendor's unit allows ends in
// order all the same, also when it leaves: the longer time must count until it
// has stopped.
func (n *bootedNode) slowToStop(t *testing.T) {
	n.reset(t, "--only-in=cluster", "--slow-stop=2s")
	n.sh(t, "sed -i s/TimeoutStopSec=10/TimeoutStopSec=1/ /etc/systemd/system/"+nodeUnit+"; systemctl daemon-reload")
	was := n.bytes(t)
	n.agent(t, 0, "join", "--mongo", nodeMongo)
	n.joined(t, "after the join")
	n.agent(t, 0, "leave", "--now")
	n.same(t, "after the leave", was)
	n.show(t).want(t, map[string]string{"ActiveState": "active", "TimeoutStopUSec": "1s", "DropInPaths": "", "NeedDaemonReload": "no", "Environment": "ANTMEDIA_HOME=" + nodeHome})
	log := n.read(t, nodeLog)
	if i := strings.LastIndex(log, "mode=cluster"); !strings.Contains(log[i:], "msg=ended state=stopped") {
		t.Errorf("the node was killed while it stopped:\n%s", log[i:])
	}
}

// speed: what a join costs beside the server's own start.
func (n *bootedNode) speed(t *testing.T) {
	const slow = 3 * time.Second
	n.reset(t, "--only-in=cluster", "--slow-start="+slow.String())
	r := n.agent(t, 0, "join", "--mongo", nodeMongo)
	own := n.ownStart(t, n.show(t))
	t.Logf("join with a server that needs %s to start: %s, so %s beside it", own.Round(time.Millisecond), r.took.Round(time.Millisecond), (r.took - own).Round(time.Millisecond))
	// The two seconds for which it is watched, a stop, some looks: three in all. A busy
	// machine has its time.
	if r.took-own > 15*time.Second {
		t.Errorf("a join took %s, of which the server's start was %s", r.took, own)
	}
	r = n.agent(t, 0, "leave", "--now")
	t.Logf("leave: %s", r.took.Round(time.Millisecond))
}
