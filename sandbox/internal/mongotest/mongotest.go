// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package mongotest chooses the MongoDB under the tests of a package: the real mongod
// where it can be had. A start costs a second of CPU, emptying a server milliseconds:
// so a server that one test has done with is emptied and handed to the next one.
//
//	var servers mongotest.Servers
//
//	func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }
//
//	s := servers.Start(t, mongod.Options{})
//
// The variable SANDBOX_MONGODB names another engine: `ferretdb`, which is embedded, or
// the addresses of servers that run already, joined by commas. Without it, and without
// the real mongod, tests run on FerretDB and say so; with REQUIRE_REAL=1 they fail. The
// API is not stable.
package mongotest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// Variable is the environment variable that names the engine.
const Variable = "SANDBOX_MONGODB"

// Engine is what serves behind the proxy of package mongod.
type Engine string

// The engines.
const (
	// Real is the mongod of package realmongo.
	Real Engine = "mongod"
	// FerretDB is FerretDB 1 on SQLite, embedded: no TTL index, one command at a time.
	FerretDB Engine = "ferretdb"
	// Running is a server that was started by somebody else: FerretDB 2 on DocumentDB, as
	// tools/scripts/documentdb.sh starts it.
	Running Engine = "running"
)

// Servers are the servers of one test package. The zero value has none.
type Servers struct {
	mu      sync.Mutex
	chosen  bool
	engine  Engine
	binary  string
	idle    map[int][]server // by members
	all     []server
	running chan string // addresses of running servers that no test uses
}

// server is a real mongod that outlives a test.
type server struct {
	set     *realmongo.Set
	dir     string
	address string // as mongod.Options.Backend has it
}

// Main runs the tests and ends the servers. It returns the exit status.
func (p *Servers) Main(m *testing.M) int {
	code := m.Run()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.all {
		if err := errors.Join(s.set.Close(), os.RemoveAll(s.dir)); err != nil {
			fmt.Fprintln(os.Stderr, "mongotest:", err)
			code = cmp.Or(code, 1)
		}
	}
	return code
}

// Engine returns what the tests run on.
func (p *Servers) Engine(t testing.TB) Engine {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.choose(); err != nil {
		t.Fatal(err)
	}
	return p.engine
}

func (p *Servers) choose() error {
	if p.chosen {
		return nil
	}
	binary, err := realmongo.Binary()
	switch name := os.Getenv(Variable); {
	case name == string(FerretDB):
		p.engine = FerretDB
	case name != "":
		p.engine = Running
		addresses := strings.Split(name, ",")
		p.running = make(chan string, len(addresses))
		for _, a := range addresses {
			p.running <- a
		}
	case err == nil:
		p.engine, p.binary = Real, binary
	case os.Getenv("REQUIRE_REAL") == "1":
		return err
	default:
		p.engine = FerretDB
		fmt.Fprintln(os.Stderr, "mongotest: these tests run on embedded FerretDB:", err)
	}
	p.idle, p.chosen = map[int][]server{}, true
	return nil
}

// Start starts a server for one test, which ends with it. With [mongod.Options.Binary]
// it is the real one, whatever the engine of the others is.
func (p *Servers) Start(t testing.TB, o mongod.Options) *mongod.Server {
	t.Helper()
	var giveBack func()
	engine := p.Engine(t)
	if o.Binary == "" && engine == Real {
		o.Binary = p.binary
	}
	switch {
	case o.Binary != "" && o.Dir == "" && o.Users == nil:
		o.Backend, giveBack = p.takeReal(t, o)
		o.Binary = ""
	case o.Binary == "" && engine == Running:
		o.Backend, giveBack = p.takeRunning(t)
	}
	// Not the test's own context, which ends before its cleanup begins.
	s, err := mongod.Start(context.WithoutCancel(t.Context()), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Faults().Clear()
		if err := s.Close(); err != nil {
			t.Errorf("closing MongoDB: %v", err)
		}
		if giveBack != nil {
			giveBack()
		}
	})
	return s
}

// Choose names the real mongod in options with which a test starts a server by itself,
// where that is the engine.
func (p *Servers) Choose(o mongod.Options) (mongod.Options, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.choose(); err != nil {
		return o, err
	}
	if p.engine == Real {
		o.Binary = p.binary
	}
	return o, nil
}

// takeReal returns the address of an idle, empty mongod, which it starts where there is
// none, and what gives it back.
func (p *Servers) takeReal(t testing.TB, o mongod.Options) (address string, giveBack func()) {
	t.Helper()
	members := 0
	if o.ReplicaSet != "" {
		members = 1
	}
	one, ok := p.pop(members)
	if !ok {
		var err error
		if one, err = start(t.Context(), o.Binary, members); err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		p.all = append(p.all, one)
		p.mu.Unlock()
	}
	return one.address, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
		defer cancel()
		if err := one.set.Empty(ctx); err != nil {
			t.Errorf("emptying MongoDB for the next test: %v", err)
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.idle[members] = append(p.idle[members], one)
	}
}

func (p *Servers) pop(members int) (server, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle := p.idle[members]
	if len(idle) == 0 {
		return server{}, false
	}
	last := len(idle) - 1
	p.idle[members] = idle[:last]
	return idle[last], true
}

func start(ctx context.Context, binary string, members int) (one server, err error) {
	if one.dir, err = os.MkdirTemp("", "mongotest-"); err != nil {
		return one, fmt.Errorf("making a folder for mongod: %w", err)
	}
	o := realmongo.Options{Binary: binary, Members: members, Dir: one.dir}
	// The member of a set must find itself, which it does by a port alone.
	if members == 0 {
		o.Socket = filepath.Join(one.dir, "s")
	}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	if one.set, err = realmongo.Start(ctx, o); err != nil {
		_ = os.RemoveAll(one.dir)
		return one, err
	}
	if one.address = one.set.Member(0).Addr(); o.Socket != "" {
		one.address = "unix:" + o.Socket
	}
	return one, nil
}

// takeRunning waits for a running server that no other test uses, and empties it.
func (p *Servers) takeRunning(t testing.TB) (address string, giveBack func()) {
	t.Helper()
	select {
	case address = <-p.running:
	case <-time.After(2 * time.Minute):
		t.Fatalf("there are not enough servers in %s for tests that want several at once", Variable)
	}
	giveBack = func() { p.running <- address }
	if err := empty(t.Context(), address); err != nil {
		giveBack()
		t.Fatal(err)
	}
	return address, giveBack
}

func empty(ctx context.Context, address string) error {
	o := options.Client().SetHosts([]string{address}).SetDirect(true).SetTimeout(20 * time.Second)
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		o.SetHosts([]string{"localhost"}).SetDialer(unixDialer(path))
	}
	c, err := mongo.Connect(o)
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", address, err)
	}
	defer func() { _ = c.Disconnect(context.WithoutCancel(ctx)) }()
	names, err := c.ListDatabaseNames(ctx, bson.D{})
	for _, name := range names {
		if !slices.Contains([]string{"admin", "config", "local"}, name) {
			err = errors.Join(err, c.Database(name).Drop(ctx))
		}
	}
	if err != nil {
		return fmt.Errorf("emptying %s: %w", address, err)
	}
	return nil
}

type unixDialer string

func (d unixDialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", string(d))
}
