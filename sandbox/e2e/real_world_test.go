// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"maps"
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

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// The user of MongoDB, with a password in which java.util.Properties escapes nothing;
// the ':' and '=' of the address are enough.
const realUser, realPassword = "plain", "secret1"

// realApps are the applications of a release that serve viewers.
func realApps(release string) []string {
	if strings.HasPrefix(release, "2.4.") {
		return []string{"LiveApp", "WebRTCApp"}
	}
	return []string{"LiveApp", "WebRTCApp", "live"}
}

// realReleases are those of a join and a leave: REAL_RELEASE, or all.
func realReleases() []string {
	if one := os.Getenv("REAL_RELEASE"); one != "" {
		return []string{one}
	}
	return []string{realams.Newest, "2.16.2", "2.10.0", "2.4.3"}
}

// realRelease is the release of everything else.
func realRelease() string { return realReleases()[0] }

// realNode is a real server with an agent on it.
type realNode struct {
	*realams.Node
	t     testing.TB
	world *realams.World
}

func newRealNode(t testing.TB, w *realams.World, release string) *realNode {
	t.Helper()
	n := &realNode{Node: w.Node(t, release), t: t, world: w}
	n.MustRun(t, "mkdir", "-p", "/etc/amsagent")
	return n
}

// joinArgs is the command line of a join, by an address of MongoDB that is in a file.
func (n *realNode) joinArgs(uri string, more ...string) []string {
	n.write("/run/mongo", uri+"\n")
	args := []string{
		bins.agent, "join", "--mongo", "file:/run/mongo", "--address", n.Address,
		"--provider", "generic", "--service-command", realams.Service, "--timeout", "5m",
	}
	return append(args, more...)
}

// figure is a log line that the report of `make real` lists.
func figure(t testing.TB, format string, args ...any) {
	t.Helper()
	t.Logf("figure: "+format, args...)
}

// write writes a file of the node, for root alone.
func (n *realNode) write(name, text string) {
	n.t.Helper()
	const script = `umask 077; printf '%s' "$2" >"$1"`
	n.MustRun(n.t, "sh", "-c", script, "sh", name, text)
}

// join joins and returns what it said.
func (n *realNode) join(uri string, more ...string) string {
	n.t.Helper()
	return n.MustRun(n.t, n.joinArgs(uri, more...)...)
}

// realDaemon is the agent's daemon on a real node.
type realDaemon struct {
	*rig.Daemon
	n        *realNode
	balancer *http.Client
}

// slack is a node whose programs have the unit's TimerSlackNSec.
type slack struct{ *realams.Node }

func (s slack) Command(args ...string) *exec.Cmd {
	return s.Node.Command(append([]string{"sh", "-c", `echo 5000000 >/proc/self/timerslack_ns; exec "$@"`, "sh"}, args...)...)
}

// daemon starts the daemon, which has to find what join was given, and waits for its
// first word.
func (n *realNode) daemon() *realDaemon {
	n.t.Helper()
	node := &rig.Node{Machine: slack{n.Node}, T: n.t, Agent: bins.agent, Address: n.Address}
	d := &realDaemon{node.Daemon("--metrics-address", "0.0.0.0:9771"), n, n.world.HTTP(2 * time.Second)}
	until(n.t, "the daemon listens", func() string {
		if d.readyz() == 0 {
			return soFar(d.Output())
		}
		return ""
	})
	return d
}

// readyz is what a balancer gets.
func (d *realDaemon) readyz() int {
	return realams.Status(d.balancer, "http://"+d.n.Address+":9771/readyz")
}

// healthz is what decides whether the machine is kept.
func (d *realDaemon) healthz() int {
	return realams.Status(d.balancer, "http://"+d.n.Address+":9771/healthz")
}

// ready waits until the daemon says so.
func (d *realDaemon) ready() {
	d.n.t.Helper()
	until(d.n.t, "/readyz answers 200", func() string {
		if d.readyz() != 200 {
			return soFar(d.Output())
		}
		return ""
	})
}

// end ends the daemon as systemd does.
func (d *realDaemon) end() {
	d.n.t.Helper()
	if code, took := d.End(syscall.SIGTERM); code != 0 || took > 30*time.Second {
		d.n.t.Errorf("the daemon ended with %d after %s", code, took)
	}
}

// messages counts the lines of the daemon's log by message.
func (d *realDaemon) messages() map[string]int {
	count := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m) msg=("(?:[^"\\]|\\.)*"|\S+)`).FindAllStringSubmatch(d.Output(), -1) {
		count[m[1]]++
	}
	return count
}

// files are all files that the agent or the server writes and that decide how the
// server starts next.
func (n *realNode) files() map[string]string {
	n.t.Helper()
	all := n.Files(n.t, realams.Home+"/conf", "/etc/amsagent")
	delete(all, realams.Home+"/conf/instanceId") // which 2.10.0 makes minutes after its start
	settings, err := filepath.Glob(n.Path(realams.Home + "/webapps/*/WEB-INF"))
	must.OK(n.t, err)
	for _, folder := range settings {
		app := filepath.Base(filepath.Dir(folder))
		maps.Copy(all, n.Files(n.t, realams.Home+"/webapps/"+app+"/WEB-INF"))
	}
	return all
}

// settled waits until the server has saved its settings, a moment after an application serves, and returns the files. Each
// application must have kept its name: one that gets a request during its start loses its name and the operator's settings.
func (n *realNode) settled() map[string]string {
	n.t.Helper()
	n.WaitServed(n.t, realApps(n.Release)...)
	last := n.files()
	quiet := time.Now()
	until(n.t, "the server's files rest for 5 s", func() string {
		if now := n.files(); !maps.Equal(now, last) {
			last, quiet = now, time.Now()
		}
		if time.Since(quiet) < 5*time.Second {
			return "they change"
		}
		return ""
	})
	for _, app := range realApps(n.Release) {
		text := n.Read(n.t, realams.Home+"/webapps/"+app+"/WEB-INF/red5-web.properties")
		if name := regexp.MustCompile(`(?m)^appName=(.*)$`).FindStringSubmatch(text); name != nil && name[1] != app {
			n.t.Errorf("%s is named %q", app, name[1])
		}
	}
	return last
}

// same compares files with what they were.
func (n *realNode) same(what string, before map[string]string) {
	n.t.Helper()
	if diff := cmp.Diff(before, n.files()); diff != "" {
		n.t.Errorf("%s changed files (-before +after):\n%s", what, diff)
	}
}

// asked compares the calls of the service.
func (n *realNode) asked(what string, before []string) {
	n.t.Helper()
	if now := n.Asked(); !slices.Equal(before, now) {
		n.t.Errorf("%s: the service was asked for %v, want %v", what, now, before)
	}
}

// status is the object that `amsagent status` prints.
func (n *realNode) status() map[string]any {
	n.t.Helper()
	out, code := n.Run(n.t, "sh", "-c", `exec "$1" status -o json 2>/dev/null`, "sh", bins.agent)
	var v map[string]any
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != 0 {
		n.t.Fatalf("status: exit %d, %v: %s", code, err, out)
	}
	return v
}
