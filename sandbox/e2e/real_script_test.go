// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// TestRealScripts runs the scripts of the gate that name the world real in their first line, and those of testdata/real.
func TestRealScripts(t *testing.T) {
	t.Parallel()
	realams.Require(t)
	files, err := filepath.Glob("../../testdata/real/*.txtar")
	must.OK(t, err)
	runScripts(scriptT{T: t}, append(files, scriptsOf(t, "real")...), "real", func(t *testing.T) place { return newRealPlace(t) })
}

func newRealPlace(t *testing.T) *realPlace {
	t.Helper()
	return &realPlace{t: t, nodes: map[string]*realNode{}, encoders: map[string]*realams.Process{}, players: map[string][]*realams.Process{}}
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

func (p *realPlace) mongod(ts *testscript.TestScript, args []string) error {
	switch {
	case slices.Equal(args, []string{"stop"}):
		return p.world.Mongo.Member(0).Kill()
	case slices.Equal(args, []string{"start"}):
		return p.world.Mongo.Member(0).Start(p.t.Context())
	}
	o := realams.Options{}
	for _, arg := range args {
		if user, password, found := strings.Cut(arg, ":"); found {
			if o.Users == nil {
				o.Users = map[string]string{}
			}
			o.Users[user] = password
		}
	}
	if slices.Contains(args, "tls") {
		if err := p.tls(ts, o); err != nil {
			return err
		}
	} else {
		p.world = realams.New(p.t, o)
	}
	// What runs outside of the machines, as players do: exec outside PROGRAM.
	enterBy(p.t, ts, fmt.Sprintf("*) enter=(nsenter --target %d --all --wd=/ --) ;;\n", p.world.Network()), "outside", "")
	_, port, err := net.SplitHostPort(p.world.Mongo.Member(0).Addr())
	ts.Setenv("MONGO", p.world.Mongo.Addrs())
	ts.Setenv("MONGO_PORT", port)
	ts.Setenv("MONGO_ALIAS", mongoAlias+":"+port)
	ts.Setenv("AMSAGENT_TIMEOUT", "5m") // a start takes minutes on a busy machine
	return err
}

// tls makes a replica set that takes nothing but TLS, and the files ca.pem and node.pem: its authority, and a client's certificate.
func (p *realPlace) tls(ts *testscript.TestScript, o realams.Options) error {
	ca := realmongo.NewAuthority(p.t)
	subject := pkix.Name{CommonName: "node", Organization: []string{"amsagent"}}
	o.Members, o.Mongod = 3, ca.Mongod(net.ParseIP(realams.HubAddress))
	p.world = realams.New(p.t, o)
	return errors.Join(
		os.Symlink(ca.File, ts.MkAbs("ca.pem")),
		os.Symlink(ca.Issue(subject), ts.MkAbs("node.pem")),
		p.world.Mongo.AddSubject(p.t.Context(), subject.String()),
		p.world.Mongo.RequireTLS(p.t.Context()),
	)
}

// enteringScript runs a command on the machine whose root is $AMSAGENT_ROOT. A signal goes to the command: nsenter does not pass it on,
// and what bash starts in the background would ignore an interrupt. A machine that goes down stops its processes before it ends them;
// nsenter then stops itself, and somebody has to continue it.
const enteringScript = `#!/bin/bash
case $AMSAGENT_ROOT in
%sesac
"${enter[@]}" env --default-signal=INT -u AMSAGENT_ROOT PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin %s "$@" <&0 &
pid=$!
trap "pkill -TERM -P $pid" INT TERM
while sleep 1 && kill -CONT $pid; do :; done </dev/null >/dev/null 2>&1 &
wait $pid
code=$?
while kill -0 $pid 2>/dev/null; do wait $pid; code=$?; done
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
	enterBy(p.t, ts, cases.String(), "machine", "sh -euc")
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

func (p *realPlace) transport() *http.Transport {
	return &http.Transport{DialContext: p.world.Dial, DisableKeepAlives: true} // the agent counts a connection that is kept
}

func (p *realPlace) command(what, name string, args []string) error {
	n := p.nodes[name]
	switch what {
	case "serves":
		n.WaitServed(p.t, append(realApps(n.Release), args...)...)
	case "panel":
		if key, value, found := strings.Cut(args[1], "="); found {
			n.change(args[0], key, value)
		} else {
			// On a busy machine the server answers with an error, and makes the application all the same.
			_, _, _ = n.AsAgent(p.t.Context(), http.MethodPost, "/rest/v2/applications/"+args[1], nil)
			n.WaitServed(p.t, args[1])
		}
	case "restart":
		n.restart(args[0])
	case "stays":
		return p.stays(args)
	case "idle":
		written, asked := n.files(), n.Asked()
		err := p.stays(args)
		n.same("what runs", written)
		n.asked("what runs", asked)
		return err
	}
	return nil
}

// stays looks on for a while. If there are a code and a URL, that is the answer all the time.
func (p *realPlace) stays(args []string) error {
	length, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: p.transport()}
	for end := time.Now().Add(length); time.Now().Before(end); wait(250 * time.Millisecond) {
		if len(args) == 1 {
			continue
		}
		if code := realams.Status(client, args[2]); strconv.Itoa(code) != args[1] {
			return fmt.Errorf("%s answers %d, want %s", args[2], code, args[1])
		}
	}
	return nil
}

// restart restarts the server and returns at a moment of its start.
func (n *realNode) restart(moment string) {
	n.t.Helper()
	before := n.Server()
	again := n.Start(n.t, realams.Service, "restart")
	until(n.t, moment, func() string {
		is := false
		switch now := n.Server(); {
		case now == 0 || now == before:
		case moment == "listens":
			is = n.Local("/rest/v2/liveness") != 0
		case moment == "initializes": // LiveApp starts last. A request during its start makes it lose its settings.
			is = n.Local("/rest/v2/liveness") == http.StatusOK && n.Served("LiveApp") == 0
		case moment == "serves":
			is = slices.ContainsFunc(realApps(n.Release), func(app string) bool { return n.Served(app) == http.StatusOK })
		}
		if !is {
			return "not yet; the service says: " + again.Output()
		}
		return ""
	})
}

func (p *realPlace) close() error { return nil }
