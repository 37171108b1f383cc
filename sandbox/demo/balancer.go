// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// balancer is a real HAProxy with a fixed list of both nodes, which asks the agents.
type balancer struct {
	*proc.Program
	front  string // host:port
	client *http.Client
}

// haproxy finds the program; Debian has it where users do not look.
func haproxy() (string, bool) {
	for _, name := range []string{"haproxy", "/usr/sbin/haproxy"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, true
		}
	}
	return "", false
}

// balance shows that a load balancer sends viewers to both nodes.
func (d *demo) balance() error {
	if d.nodes[0].check == "" {
		return nil
	}
	d.print("")
	for _, n := range d.nodes {
		line, err := n.agentCheck(d.ctx)
		if err != nil {
			return err
		}
		d.print("   %s answers HAProxy's agent check: %s", n.name, line)
	}
	program, ok := haproxy()
	if !ok {
		d.print("   (where HAProxy is installed, the demo shows what it makes of that)")
		return nil
	}
	number, err := port.Free()
	if err != nil {
		return err
	}
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
	bind 127.0.0.1:%d
	http-response set-header X-Node %%s
	default-server weight 100 agent-check agent-inter 200ms
`, number)
	for _, n := range d.nodes {
		_, check, err := net.SplitHostPort(n.check)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "\tserver %s %s agent-port %s\n", n.name, n.serves, check)
	}
	file := filepath.Join(d.dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		return err
	}
	p, err := proc.Start(exec.Command(program, "-db", "-f", file))
	if err != nil {
		return err
	}
	d.balancer = &balancer{p, net.JoinHostPort("127.0.0.1", strconv.Itoa(number)), &http.Client{
		Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
	}}
	return d.sent(func(format string, args ...any) { d.print("   "+format, args...) }, "HAProxy asks both, and sends viewers to", "origin-1", "edge-1")
}

// sent checks to which nodes HAProxy sends ten viewers who come one after the other. The agents call a busy machine full, as AMS
// does, and here all machines are your own: then there is nothing to see.
func (d *demo) sent(say func(format string, args ...any), what string, want ...string) error {
	if d.balancer == nil {
		return nil
	}
	full := false
	err := d.until("HAProxy sends viewers to "+strings.Join(want, " and "), func() string {
		var to []string
		for _, n := range d.nodes {
			if line, err := n.agentCheck(d.ctx); err == nil && strings.HasSuffix(line, " 0%") {
				full = true
				return ""
			}
		}
		for range 10 {
			node, err := d.balancer.viewer(d)
			if err != nil {
				return err.Error()
			}
			if !slices.Contains(to, node) {
				to = append(to, node)
			}
		}
		slices.Sort(to)
		if slices.Sort(want); !slices.Equal(to, want) {
			return "it sends them to " + strings.Join(to, " and ")
		}
		return ""
	})
	if full {
		say("(your computer is busy, so the agents say that the nodes are full: HAProxy sends no viewers)")
		return err
	}
	if err = d.check(err == nil, "%v", err); err == nil {
		say("%s %s", what, strings.Join(want, " and "))
	}
	return err
}

// viewer sends a viewer and returns the node that answers.
func (b *balancer) viewer(d *demo) (node string, err error) {
	req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, "http://"+b.front+"/"+app+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return "", err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	if node = resp.Header.Get("X-Node"); node == "" {
		err = errors.New(resp.Status)
	}
	return node, errors.Join(err, resp.Body.Close())
}
