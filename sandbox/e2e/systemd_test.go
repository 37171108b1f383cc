// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"net/http"
	"os"
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
	t.Run("Interrupted", n.interrupted)
	t.Run("Killed", n.killed)
	t.Run("MongoAway", n.mongoAway)
	t.Run("TwoAtOnce", n.twoAtOnce)
	t.Run("Speed", n.speed)
}

// standalone: everything is as it was installed, for systemd and the cluster, too.
func (n *bootedNode) standalone(t *testing.T, when string) {
	t.Helper()
	n.same(t, when, n.pure)
	n.unit(t, nodeUnit).want(t, map[string]string{
		"ActiveState": "active", "SubState": "running", "Result": "success", "NRestarts": "0", "Environment": "ANTMEDIA_HOME=" + nodeHome,
		"TimeoutStopUSec": "10s", "DropInPaths": "", "NeedDaemonReload": "no",
	})
	if _, err := os.Stat(n.Path("/etc/systemd/system/" + nodeUnit + ".d")); err == nil {
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
	u := n.unit(t, nodeUnit)
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

// verifying waits until a join has restarted the server and verifies it.
func (n *bootedNode) verifying(t *testing.T, p *nodeProcess, before nodeUnitState) {
	t.Helper()
	must.Until(t, "the restart", func() bool {
		u := n.unit(t, nodeUnit)
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
			before := n.unit(t, nodeUnit)
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
	if err := os.RemoveAll(n.Path("/run/fakeams-hold")); err != nil {
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
		before := n.unit(t, nodeUnit)
		p := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
		n.verifying(t, p, before)
		kill(t, p)
		n.agent(t, 0, "status").says(t, "degraded: ")
		n.row(t, "joining")
		// The server was on its way: the next join has only to wait for it.
		n.agent(t, 0, "join", "--mongo", nodeMongo).says(t, "joined: ")
		n.joined(t, "after the next join")
		if got := n.starts(); got != 2 {
			t.Errorf("%d starts", got)
		}
		n.agent(t, 0, "leave", "--now")
		n.standalone(t, "after the leave")
	})
	t.Run("WhileItProvesThenFails", func(t *testing.T) {
		n.reset(t, "--only-in=cluster", "--never-up")
		before := n.unit(t, nodeUnit)
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
		before := n.unit(t, nodeUnit)
		p := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
		n.verifying(t, p, before)
		kill(t, p)
		n.agent(t, 0, "leave", "--now")
		n.standalone(t, "after the leave")
		n.row(t, "left")
	})
	t.Run("BeforeTheStop", func(t *testing.T) {
		n.reset(t)
		before := n.unit(t, nodeUnit)
		n.hold(t)
		p := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
		n.held(t)
		kill(t, p)
		n.release(t)
		// Only the drop-in is a node's.
		n.unit(t, nodeUnit).want(t, map[string]string{"InvocationID": before["InvocationID"], "DropInPaths": nodeDropIn})
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
		if got := n.starts(); got != 2 {
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
		n.unit(t, nodeUnit).want(t, map[string]string{"ActiveState": "inactive", "DropInPaths": ""})
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
		before := n.unit(t, nodeUnit)
		p := n.start(t, "amsagent", "join", "--mongo", nodeMongo)
		n.verifying(t, p, before)
		n.hold(t)
		p.Signal(syscall.SIGTERM)
		n.held(t)
		kill(t, p)
		n.release(t)
		n.unit(t, nodeUnit).want(t, map[string]string{"ActiveState": "inactive", "DropInPaths": ""})
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
		n.unit(t, nodeUnit).want(t, map[string]string{"ActiveState": "inactive"})
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
		n.unit(t, nodeUnit).want(t, map[string]string{"ActiveState": "inactive"})
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
	n.unit(t, nodeUnit).want(t, map[string]string{"ActiveState": "active", "DropInPaths": "", "NeedDaemonReload": "no"})
	isSecret := func(line string) bool {
		return strings.HasSuffix(line, " amsagent") || strings.HasSuffix(line, " amsagent/mongo")
	}
	if was, now := n.pure, slices.DeleteFunc(n.bytes(t), isSecret); !slices.Equal(was, now) { // the next leave needs it
		t.Errorf("the tree is not as before\n%s", nodeDifference(was, now))
	}
	starts := n.starts()
	resume()
	n.agent(t, 0, "leave", "--now").says(t, "left: this machine is standalone")
	n.standalone(t, "after the next leave")
	n.row(t, "left")
	if got := n.starts(); got != starts {
		t.Errorf("the next leave restarted the server %d times", got-starts)
	}
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
	if got := n.starts(); got != 2 {
		t.Errorf("want one restart in all, there were %d", got-1)
	}
	n.joined(t, "after two joins")
}

// speed: what a join costs beside the server's own start.
func (n *bootedNode) speed(t *testing.T) {
	const slow = 3 * time.Second
	n.reset(t, "--only-in=cluster", "--slow-start="+slow.String())
	r := n.agent(t, 0, "join", "--mongo", nodeMongo)
	own := n.ownStart(t, n.unit(t, nodeUnit))
	t.Logf("join with a server that needs %s to start: %s, so %s beside it", own.Round(time.Millisecond), r.took.Round(time.Millisecond), (r.took - own).Round(time.Millisecond))
	// The two seconds for which it is watched, a stop, some looks: three in all. A busy
	// machine has its time.
	if r.took-own > 15*time.Second {
		t.Errorf("a join took %s, of which the server's start was %s", r.took, own)
	}
	r = n.agent(t, 0, "leave", "--now")
	t.Logf("leave: %s", r.took.Round(time.Millisecond))
}
