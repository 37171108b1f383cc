// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/internal/netns"
	"github.com/amsagent/amsagent/sandbox/realmongo"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// Addresses of the bridge: the machine's, a container's, and a viewer's.
const bridgeHost, bridgeServer, bridgeViewer = "10.88.0.1", "10.88.0.2", "10.88.0.3"

// bridge is a machine with docker's network: a bridge, a container, and a viewer beyond it. The server may be in the container,
// behind docker-proxy, and runs as root, as the proxy does.
type bridge struct {
	*rig.Node
	t               *testing.T
	machine, viewer int // process of each network namespace
	dir             string
	port, server    string
}

func newBridge(t *testing.T, contained bool) *bridge {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	realmongo.Require(t)
	const script = `ip link set lo up
ip link add br0 type bridge && ip addr add ` + bridgeHost + `/24 dev br0 && ip link set br0 up || exit 77
for a in ` + bridgeServer + ` ` + bridgeViewer + `; do
  unshare --net sleep infinity & pid=$!
  until [ "$(readlink /proc/$pid/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do :; done
  ip link add v$pid type veth peer name eth0 netns $pid || exit 77
  ip link set v$pid master br0 up
  nsenter -t $pid -n sh -c "ip link set lo up; ip addr add $a/24 dev eth0; ip link set eth0 up"
  echo $pid
done
"$1" mongo --listen ` + bridgeHost + `:27017 --control "" --die-with-parent >&2 &
read -r _
kill $(jobs -p)
wait`
	cmd := exec.Command("unshare", "--net", "bash", "-c", script, "bash", bins.sandbox)
	shell, err := hold(t, cmd)
	must.OK(t, err)
	t.Cleanup(func() { _ = shell.end() })
	b := &bridge{t: t, machine: cmd.Process.Pid, server: bridgeHost}
	var container int
	for _, pid := range []*int{&container, &b.viewer} {
		if _, err := fmt.Sscan(shell.line(), pid); err != nil {
			_ = shell.end()
			t.Skipf("no bridge can be had here: %s", shell.said)
		}
	}
	dir, in := rig.ShortDir(t), b.machine
	b.dir = dir
	if contained {
		in, b.server = container, bridgeServer
	}
	// A server's process is called java.
	java := filepath.Join(dir, "java")
	must.OK(t, os.Symlink(bins.sandbox, java))
	b.Node = rig.New(t, rig.Options{
		Options: standin.Options{
			Dir: dir, Sandbox: b.within(dir, in, java), Mounted: true, Tree: tree.Options{NoUnit: true, Host: "bridged", HostResolves: true, DMI: "aws"},
			Args: []string{"--period", "5s", "--mongo-timeout", "5s", "--stream-wait", "0s", "--save-at-start=false"},
		},
		Agent: b.within(dir, b.machine, bins.agent), Address: bridgeHost,
		Env: []string{
			"AMSAGENT_METRICS_ADDRESS=127.0.0.1:0", "AMSAGENT_BEAT_INTERVAL=1s", "AMSAGENT_PROVIDER=generic",
			"AMSAGENT_ADDRESS=" + bridgeHost, "AMSAGENT_ROLE=origin",
		},
	})
	b.port = b.serverPort(dir)
	if contained {
		b.proxy()
	}
	b.Must("join", "--mongo", bridgeHost+":27017", "--timeout", "60s", "--force-address")
	b.Daemon()
	return b
}

// within writes a program that runs another one in the network of a process. The server listens at all addresses.
func (b *bridge) within(dir string, pid int, program string) string {
	b.t.Helper()
	name := filepath.Join(dir, fmt.Sprintf("%s-%d", filepath.Base(program), pid))
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" != ams ] || set -- \"$@\" --http-host file\nexec nsenter --net=/proc/%d/ns/net %s \"$@\"\n", pid, program)
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	must.OK(b.t, os.WriteFile(name, []byte(script), 0o755))
	return name
}

func (b *bridge) serverPort(dir string) string {
	b.t.Helper()
	var said struct{ Addr string }
	text, err := os.ReadFile(filepath.Join(dir, "service/info.json"))
	must.OK(b.t, err)
	must.OK(b.t, json.Unmarshal(text, &said))
	_, port, err := net.SplitHostPort(said.Addr)
	must.OK(b.t, err)
	return port
}

// proxy is docker-proxy: connections of the machine to its own port. Those of others the kernel forwards.
func (b *bridge) proxy() {
	b.t.Helper()
	l, err := netns.Listen(b.t.Context(), b.machine, "tcp", net.JoinHostPort("127.0.0.1", b.port))
	must.OK(b.t, err)
	b.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				s, err := netns.Dial(context.Background(), b.machine, "tcp", net.JoinHostPort(b.server, b.port))
				if err != nil {
					return
				}
				defer func() { _ = s.Close() }()
				go func() { _, _ = io.Copy(s, c) }()
				_, _ = io.Copy(c, s)
			}()
		}
	}()
}

// watch lets viewers come from beyond the bridge.
func (b *bridge) watch(n int) {
	b.t.Helper()
	for range n {
		c, err := netns.Dial(b.t.Context(), b.viewer, "tcp", net.JoinHostPort(b.server, b.port))
		must.OK(b.t, err)
		b.t.Cleanup(func() { _ = c.Close() })
		_, err = io.WriteString(c, "GET /LiveApp/play/s1?kind=hls HTTP/1.1\r\nHost: node\r\n\r\n")
		must.OK(b.t, err)
		status, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || !strings.Contains(status, " 200 ") {
			b.t.Fatalf("a viewer: %q, %v", status, err)
		}
	}
}

// drainIs waits until a drain's view is so.
func (b *bridge) drainIs(what string, ok func(lifecycle.View) bool) (v lifecycle.View) {
	b.t.Helper()
	until(b.t, what, func() string {
		out, code := b.Run("status", "-o", "json")
		var said struct{ Daemon *daemon.View }
		if jerr := json.Unmarshal([]byte(out), &said); jerr != nil {
			return fmt.Sprint(code, jerr)
		}
		if said.Daemon == nil || said.Daemon.Lifecycle == nil || !ok(*said.Daemon.Lifecycle) {
			return out
		}
		v = *said.Daemon.Lifecycle
		return ""
	})
	return v
}

// TestDrainBridge: the connections to a server with a network of its own are not seen. Its viewers are unknown, never zero,
// and a drain cuts none of them (review night-shift A2). Those of a server in the machine's network are counted.
func TestDrainBridge(t *testing.T) {
	t.Parallel()
	for name, contained := range map[string]bool{"the machine's network": false, "a network of its own": true} {
		t.Run(name, func(t *testing.T) {
			b := newBridge(t, contained)
			b.drainIs("the node serves", func(v lifecycle.View) bool { return v.Ready && v.Start != "starting" })
			join := []string{"join", "--mongo", bridgeHost + ":27017", "--force-address"}
			for _, command := range [][]string{join, {"doctor"}} {
				if out, _ := b.Run(command...); strings.Contains(out, "AGENT-NOT-COUNTED") != contained {
					t.Errorf("%s: %s", command[0], out)
				}
			}
			b.watch(5)
			// The daemon's count decides here, too: known viewers, or none that can be known (A8).
			for _, command := range [][]string{{"leave"}, append(join, "--address", bridgeServer)} {
				if out, code := b.Run(command...); code == 0 || !strings.Contains(out, "AMS-SESSIONS") {
					t.Fatalf("%s cuts viewers: exit %d\n%s", command[0], code, out)
				}
			}
			b.Must("drain", "--detach")
			counts := map[time.Time]bool{}
			b.drainIs("a dozen counts", func(v lifecycle.View) bool {
				if v.Step != lifecycle.StepAnnouncing && v.Step != lifecycle.StepDraining {
					t.Fatalf("the drain went on: %+v", v)
				}
				if s := v.Sessions; s != nil {
					counts[v.Counted] = true
					if known := s.Viewers != nil && *s.Viewers == 5; known == contained || s.Viewers != nil && !known {
						t.Fatalf("the viewers: %s", s.Left())
					}
				}
				return len(counts) > 12
			})
			st, err := fakeams.ReadStats(filepath.Join(b.dir, "service/stats.json"))
			if err != nil || st.Cut.Viewers != 5 { // killed, as it has not ended
				t.Errorf("the viewers of the server: %+v, %v", st, err)
			}
		})
	}
}
