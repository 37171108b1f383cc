// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// place has the machines of a script and their MongoDB. Files of a machine lie below its root, $NAME.
type place interface {
	mongod(ts *testscript.TestScript, args []string) error
	node(ts *testscript.TestScript, name string, args []string) error
	service(name, what string) ([]byte, error)
	take(name string) (taken, error)
	connect(ctx context.Context) (*cluster.Client, error)
	asked(name string) []string
	// publish begins to send a stream to LiveApp, or ends that.
	publish(name, stream string, begin bool) error
	// watch adds viewers of the published stream s1; 0: all leave.
	watch(name string, viewers int) error
	close() error
}

// taken is a snapshot: bytes, modes and owners; what the server reads; and, on a booted machine, inodes and times, which change if the
// same bytes are written.
type taken struct{ bytes, meaning, touched []string }

// standIns are machines with a stand-in for the server, and a MongoDB behind a proxy that can fail.
type standIns struct {
	t       *testing.T
	mongo   *mongod.Server
	release func() error // of mongo
	nodes   map[string]*standin.Machine
}

func (p *standIns) close() error {
	var err error
	for _, n := range p.nodes {
		_ = n.Stop()
	}
	if p.release != nil {
		err = p.release()
	}
	return err
}

func (p *standIns) mongod(ts *testscript.TestScript, args []string) error {
	var o mongod.Options
	switch {
	case len(args) == 1 && args[0] == "stop":
		return p.mongo.Faults().Set(mongod.Fault{Mode: mongod.Refuse})
	case len(args) == 1 && args[0] == "start":
		p.mongo.Faults().Clear()
		return nil
	case len(args) == 1:
		user, password, _ := strings.Cut(args[0], ":")
		o.Users = map[string]string{user: password}
	}
	var err error
	if o.Binary, err = realmongo.Binary(); err != nil {
		if os.Getenv("REQUIRE_MONGOD") == "1" {
			return err
		}
		p.t.Skip(err)
	}
	if p.mongo, p.release, err = servers.Take(context.Background(), o); err != nil {
		return err
	}
	ts.Setenv("MONGO", p.mongo.Addr())
	_, port, _ := strings.Cut(p.mongo.Addr(), ":")
	ts.Setenv("MONGO_PORT", port)
	ts.Setenv("MONGO_ALIAS", "localhost:"+port)
	return nil
}

func (p *standIns) node(ts *testscript.TestScript, name string, args []string) error {
	o := tree.Options{NoUnit: true, Host: name, HostResolves: true}
	flags, reports := []string{}, true
	for i, a := range args {
		if a == "--" {
			flags = args[i+1:]
			break
		}
		k, v, _ := strings.Cut(a, "=")
		switch k {
		case "address":
			first, second, _ := strings.Cut(v, ",")
			ts.Setenv(name+"_IP", first)
			ts.Setenv(name+"_IP2", second)
		case "variant":
			o.Variant = v
		case "version":
			o.Version = v
		case "apps":
			o.Apps = strings.Split(v, ",")
		case "hosts":
			o.HostResolves = v == "yes"
		case "jar":
			o.NoJar = v == "no"
		case "dmi":
			o.DMI = v
		case "statistics":
			reports = v != "no"
		case "symlink":
			o.Symlink = v == "yes"
		default:
			return fmt.Errorf("unknown setting %q", k)
		}
	}
	root := ts.MkAbs(name)
	m, err := standin.New(standin.Options{Dir: root + ".service", Root: root, Command: name + ".svc", Sandbox: bins.sandbox, Tree: o, Args: flags, Reports: reports})
	if err != nil {
		return err
	}
	id := m.Path("etc/machine-id") // replaced: it has mode 0444, and the test may not run as root
	if err := errors.Join(os.Remove(id), os.WriteFile(id, fmt.Appendf(nil, "%032x\n", len(p.nodes)+1), 0o644)); err != nil {
		return err
	}
	p.nodes[name] = m
	ts.Setenv(name, root)
	ts.Setenv(name+"_AMS", m.Tree.Dir)
	ts.Setenv(name+"_SVC", m.Wrapper)
	// The flags that every command of this node needs.
	ts.Setenv(name+"_PORT", strconv.Itoa(m.HTTPPort))
	return nil
}

func (p *standIns) service(name, what string) ([]byte, error) {
	return exec.Command(p.nodes[name].Wrapper, what).CombinedOutput()
}

func (p *standIns) asked(name string) []string { return p.nodes[name].Asked() }

func (p *standIns) take(name string) (t taken, err error) {
	own := []string{"var/lib", "var", "run"}
	if t.bytes, err = tree.Snapshot(p.nodes[name].Tree.Root, own...); err != nil {
		return t, err
	}
	t.meaning, err = tree.SnapshotBy(p.nodes[name].Tree.Root, meaning, own...)
	return t, err
}

// meaning returns the values that the server reads in an application's settings, and the content of any other file.
func meaning(path string, content []byte) ([]byte, error) {
	// A link may lead to settings of another name.
	if filepath.Ext(path) != ".properties" || filepath.Base(path) == "red5.properties" {
		return content, nil
	}
	text, err := fakeams.OwnSettings(content)
	return []byte(text), err
}

func (p *standIns) connect(ctx context.Context) (*cluster.Client, error) {
	t, err := cluster.ParseTarget(p.mongo.LoginURI())
	if err != nil {
		return nil, err
	}
	return cluster.Connect(ctx, t, cluster.Options{})
}

func (p *standIns) publish(name, stream string, begin bool) error {
	method, q := http.MethodDelete, url.Values{"app": {"LiveApp"}, "id": {stream}}
	if begin {
		method = http.MethodPost
		q.Set("announced", "true")
	}
	return p.control(name, method, "/stream", q)
}

func (p *standIns) watch(name string, viewers int) error {
	method, q := http.MethodDelete, url.Values{"app": {"LiveApp"}, "stream": {"s1"}}
	if viewers > 0 {
		method = http.MethodPost
		q.Set("n", strconv.Itoa(viewers))
	}
	return p.control(name, method, "/viewers", q)
}

// control is a call of the stand-in's control port.
func (p *standIns) control(name, method, path string, q url.Values) error {
	_, err := p.nodes[name].Service.Control(context.Background(), method, path, q)
	return err
}
