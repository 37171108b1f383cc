// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// haproxy finds the program; Debian has it where users do not look.
func haproxy() (string, bool) {
	for _, name := range []string{"haproxy", "/usr/sbin/haproxy"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, true
		}
	}
	return "", false
}

// balance shows that a real HAProxy with a fixed list of both nodes, which asks the agents, sends viewers to both.
func (d *demo) balance() {
	if d.nodes[0].check == "" {
		return
	}
	d.print("")
	for _, n := range d.nodes {
		line, err := d.agentCheck(n)
		must.OK(d, err)
		d.print("   %s answers HAProxy's agent check: %s", n.name, line)
	}
	program, ok := haproxy()
	if !ok {
		d.print("   (where HAProxy is installed, the demo shows what it makes of that)")
		return
	}
	front := d.free()
	var b strings.Builder
	fmt.Fprintf(&b, `global
	maxconn 100
defaults
	mode http
	timeout connect 5s
	timeout client 1m
	timeout server 1m
	option http-server-close
listen viewers
	bind %s
	http-response set-header X-Node %%s
	default-server weight 100 agent-check agent-inter 200ms
`, front)
	for _, n := range d.nodes {
		_, check, err := net.SplitHostPort(n.check)
		must.OK(d, err)
		fmt.Fprintf(&b, "\tserver %s %s agent-port %s\n", n.name, n.serves, check)
	}
	file := filepath.Join(d.dir, "haproxy.cfg")
	must.OK(d, os.WriteFile(file, []byte(b.String()), 0o600))
	d.start(exec.Command(program, "-db", "-f", file))
	d.balancer = "http://" + front + "/" + app + "/"
	d.sent(func(format string, args ...any) { d.print("   "+format, args...) }, "HAProxy asks both, and sends viewers to", "origin-1", "edge-1")
}

// agentCheck asks as HAProxy does, which expects one line.
func (d *demo) agentCheck(n *node) (string, error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(d.ctx, "tcp", n.check)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

// sent checks to which nodes HAProxy sends ten viewers who come one after the other. The agents call a busy machine full, as AMS
// does, and here all machines are your own: then there is nothing to see.
func (d *demo) sent(say func(format string, args ...any), what string, want ...string) {
	if d.balancer == "" {
		return
	}
	d.checks++
	client, full := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}, false
	d.until("HAProxy sends viewers to "+strings.Join(want, " and "), func() string {
		var to []string
		for _, n := range d.nodes {
			if line, err := d.agentCheck(n); err == nil && strings.HasSuffix(line, " 0%") {
				full = true
				return ""
			}
		}
		for range 10 {
			resp, err := client.Get(d.balancer)
			if err != nil {
				return err.Error()
			}
			_ = resp.Body.Close()
			node := resp.Header.Get("X-Node")
			if node == "" {
				return resp.Status
			}
			to = append(to, node)
		}
		slices.Sort(to)
		slices.Sort(want)
		if to = slices.Compact(to); !slices.Equal(to, want) {
			return "it sends them to " + strings.Join(to, " and ")
		}
		return ""
	})
	if full {
		say("(your computer is busy, so the agents say that the nodes are full: HAProxy sends no viewers)")
		return
	}
	say("%s %s", what, strings.Join(want, " and "))
}
