// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// TestRealScripts runs the scripts of the gate that name the world real in their first line.
func TestRealScripts(t *testing.T) {
	t.Parallel()
	realams.Require(t)
	runScripts(scriptT{T: t}, scriptsOf(t, "real"), "real", func(t *testing.T) place {
		return &realPlace{t: t, nodes: map[string]*realNode{}, encoders: map[string]*realams.Process{}, players: map[string][]*realams.Process{}}
	})
}

// realPlace is a network of machines with the real server, and a real MongoDB.
type realPlace struct {
	t     *testing.T
	world *realams.World
	nodes map[string]*realNode
	// What sends streams, by node and stream, and who watches, by node.
	encoders map[string]*realams.Process
	players  map[string][]*realams.Process
}

// mongoAlias is the name of MongoDB's host on each machine.
const mongoAlias = "mongo.test"

func (p *realPlace) mongod(ts *testscript.TestScript, _ []string) error {
	p.world = realams.New(p.t, realams.Options{})
	_, port, err := net.SplitHostPort(p.world.Mongo.Addrs())
	ts.Setenv("MONGO", p.world.Mongo.Addrs())
	ts.Setenv("MONGO_PORT", port)
	ts.Setenv("MONGO_ALIAS", mongoAlias+":"+port)
	return err
}

// enteringScript runs a command on the machine whose root is $AMSAGENT_ROOT. A signal goes to the command: nsenter does not pass it on,
// and what bash starts in the background would ignore an interrupt.
const enteringScript = `#!/bin/bash
case $AMSAGENT_ROOT in
%sesac
"${enter[@]}" env --default-signal=INT -u AMSAGENT_ROOT PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin %s "$@" <&0 &
trap "pkill -TERM -P $!" INT TERM
wait $!
code=$?
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
exit $code
`

// enterBy makes a program for `exec` in a script that runs a command on a machine. The cases say how to enter which.
func enterBy(t *testing.T, ts *testscript.TestScript, cases, program, command string) {
	t.Helper()
	bin := ts.MkAbs("bin")
	must.OK(t, os.MkdirAll(bin, 0o755))
	must.OK(t, os.WriteFile(filepath.Join(bin, program), fmt.Appendf(nil, enteringScript, cases, command), 0o755)) //nolint:gosec // a program
	if path := ts.Getenv("PATH"); !strings.HasPrefix(path, bin+":") {
		ts.Setenv("PATH", bin+":"+path)
	}
}

func (p *realPlace) node(ts *testscript.TestScript, name string, args []string) error {
	n := newRealNode(p.t, p.world, realRelease())
	n.MustRun(p.t, "sh", "-c", "echo "+realams.HubAddress+" "+mongoAlias+" >>/etc/hosts")
	if !slices.Contains(args, "statistics=no") {
		n.AllowAgent(p.t)
	}
	p.nodes[name] = n
	second := fmt.Sprintf("10.77.0.%d", 200+len(p.nodes))
	n.MustRun(p.t, "ip", "addr", "add", second+"/24", "dev", "eth0")
	root := strings.TrimSuffix(n.Path("/"), "/")
	for suffix, value := range map[string]string{"": root, "_AMS": root + realams.Home, "_SVC": realams.Service, "_PORT": "5080", "_IP": n.Address, "_IP2": second} {
		ts.Setenv(name+suffix, value)
	}
	var cases strings.Builder
	for _, n := range p.nodes {
		enter := n.Command().Args
		fmt.Fprintf(&cases, "%s) enter=(%s) ;;\n", strings.TrimSuffix(n.Path("/"), "/"), strings.Join(enter, " "))
	}
	enterBy(p.t, ts, cases.String(), "amsagent", bins.agent)
	return os.Symlink(root, ts.MkAbs(name))
}

func (p *realPlace) service(name, what string) ([]byte, error) {
	n := p.nodes[name]
	out, err := n.Command(realams.Service, what).CombinedOutput()
	if err == nil && what == "start" {
		n.settled()
	}
	return out, err
}

// madeByServer are settings of an application that the real server makes in cluster mode, and keeps.
var madeByServer = regexp.MustCompile(`(?m)^(?:dbId|updateTime|clusterCommunicationKey|subscriberAuthenticationKey)=.*\n`)

// take waits until a server that runs has saved its settings.
func (p *realPlace) take(name string) (t taken, _ error) {
	n := p.nodes[name]
	files := n.files()
	if n.Server() != 0 {
		files = n.settled()
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		content, err := os.ReadFile(n.Path(path))
		if err != nil {
			return t, err
		}
		t.bytes = append(t.bytes, path+"\n"+string(content))
		if content, err = meaning(path, content); err != nil {
			return t, err
		}
		t.meaning = append(t.meaning, path+"\n"+string(madeByServer.ReplaceAll(content, nil)))
	}
	return t, nil
}

// dialer connects from the network of the machines.
type dialer struct{ *realams.World }

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return d.Dial(ctx, network, address)
}

func (p *realPlace) connect(ctx context.Context) (*cluster.Client, error) {
	target, err := cluster.ParseTarget(p.world.URI())
	if err != nil {
		return nil, err
	}
	return cluster.Connect(ctx, target, cluster.Options{Dialer: dialer{p.world}})
}

func (p *realPlace) asked(name string) []string { return p.nodes[name].Asked() }

func (p *realPlace) publish(name, stream string, begin bool) error {
	n, key := p.nodes[name], name+"/"+stream
	if !begin {
		p.encoders[key].Signal(syscall.SIGTERM)
		return nil
	}
	p.encoders[key] = p.world.Publish(p.t, n.Node, "LiveApp", stream)
	// The server counts a client that gets the playlist by HTTP as a viewer.
	playlist := n.Path(realams.Home + "/webapps/LiveApp/streams/" + stream + ".m3u8")
	until(p.t, "the server writes a playlist", func() string {
		if _, err := os.Stat(playlist); err != nil {
			return fmt.Sprintf("%v; the publisher says: %s", err, p.encoders[key].Output())
		}
		return ""
	})
	return nil
}

func (p *realPlace) watch(name string, viewers int) error {
	for range viewers {
		p.players[name] = append(p.players[name], p.world.Play(p.t, p.nodes[name].Node, "LiveApp", "s1"))
	}
	if viewers == 0 {
		for _, player := range p.players[name] {
			player.Signal(syscall.SIGTERM)
		}
		p.players[name] = nil
	}
	return nil
}

func (p *realPlace) close() error { return nil }
