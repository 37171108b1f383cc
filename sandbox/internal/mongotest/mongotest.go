// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package mongotest gives the tests of a package their MongoDB: a real mongod behind the
// proxy of package mongod. A start costs a second of CPU, emptying a server milliseconds:
// so a server that a test has done with is emptied and handed to the next one.
//
//	var servers mongotest.Servers
//
//	func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }
//
//	s := servers.Start(t, mongod.Options{})
//
// Without a mongod a test is skipped, see [realmongo.Require]. The variable MONGO names
// servers without users that run already, joined by commas, for tests that need neither a
// user nor a set. One that names Options.Binary gets a mongod all the same. The API is not stable.
package mongotest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// Running reports whether tests use servers that run already, as tools/scripts/documentdb.sh
// starts them: those are not MongoDB, perhaps.
func Running() bool { return os.Getenv(realmongo.Variable) != "" }

// Servers are the servers of one test package. The zero value has none.
type Servers struct {
	mu   sync.Mutex
	idle map[kind][]server
	all  []server
}

// kind are the servers that one test can take from another.
type kind struct {
	members int
	login   bool
}

// server is a mongod that outlives a test.
type server struct {
	set     *realmongo.Set
	dir     string
	address string // as mongod.Options.Backend has it
}

// Main runs the tests and ends the servers. It returns the exit status.
func (p *Servers) Main(m *testing.M) int {
	code := m.Run()
	if err := p.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "mongotest:", err)
		code = cmp.Or(code, 1)
	}
	return code
}

// Close ends the servers.
func (p *Servers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	for _, s := range p.all {
		err = errors.Join(err, s.set.Close(), os.RemoveAll(s.dir))
	}
	return err
}

// Start starts a server for one test, which ends with it. One with Options.Dir is the
// test's own.
func (p *Servers) Start(t testing.TB, o mongod.Options) *mongod.Server {
	t.Helper()
	if o.Binary == "" && Running() {
		return running(t, o)
	}
	o.Binary = realmongo.Require(t)
	// Not the test's own context, which ends before its cleanup begins.
	s, release, err := p.Take(context.WithoutCancel(t.Context()), o)
	must.OK(t, err)
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Errorf("closing MongoDB: %v", err)
		}
	})
	return s
}

// Take is Start for a test that has no testing.TB; Options.Binary names the mongod. The
// release function ends the server.
func (p *Servers) Take(ctx context.Context, o mongod.Options) (_ *mongod.Server, release func() error, err error) {
	giveBack := func() error { return nil }
	if o.Dir == "" {
		if giveBack, err = p.lend(ctx, &o); err != nil {
			return nil, nil, err
		}
	}
	s, err := mongod.Start(ctx, o)
	if err != nil {
		return nil, nil, errors.Join(err, giveBack())
	}
	return s, func() error {
		s.Faults().Clear()
		return errors.Join(s.Close(), giveBack())
	}, nil
}

// admin is the user of a server with a login that all its tests have in common.
const admin, adminPassword = "mongotest", "mongotest"

// lend sets the options to a proxy before an idle, empty mongod with the users of the options. It starts one if none is idle.
func (p *Servers) lend(ctx context.Context, o *mongod.Options) (giveBack func() error, err error) {
	k := kind{login: o.Users != nil}
	if o.ReplicaSet != "" {
		k.members = 1
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	one, ok := p.pop(k)
	if !ok {
		if one, err = start(ctx, o.Binary, k); err != nil {
			return nil, err
		}
		p.mu.Lock()
		p.all = append(p.all, one)
		p.mu.Unlock()
	}
	for _, name := range slices.Sorted(maps.Keys(o.Users)) {
		if err := one.set.AddUser(ctx, cmp.Or(o.AuthDB, "admin"), name, o.Users[name]); err != nil {
			return nil, err
		}
	}
	o.Binary, o.Backend = "", one.address
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := one.set.Empty(ctx); err != nil {
			return fmt.Errorf("emptying MongoDB for the next test: %w", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.idle == nil {
			p.idle = map[kind][]server{}
		}
		p.idle[k] = append(p.idle[k], one)
		return nil
	}, nil
}

func (p *Servers) pop(k kind) (server, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle := p.idle[k]
	if len(idle) == 0 {
		return server{}, false
	}
	last := len(idle) - 1
	p.idle[k] = idle[:last]
	return idle[last], true
}

func start(ctx context.Context, binary string, k kind) (one server, err error) {
	if one.dir, err = os.MkdirTemp("", "mongotest-"); err != nil {
		return one, fmt.Errorf("making a folder for mongod: %w", err)
	}
	o := realmongo.Options{Binary: binary, Members: k.members, Dir: one.dir}
	if k.login {
		o.Users = map[string]string{admin: adminPassword}
	}
	// The member of a set must find itself, which it does by a port alone.
	if k.members == 0 {
		o.Socket = filepath.Join(one.dir, "s")
	}
	if one.set, err = realmongo.Start(ctx, o); err != nil {
		return one, errors.Join(err, os.RemoveAll(one.dir))
	}
	if one.address = one.set.Member(0).Addr(); o.Socket != "" {
		one.address = "unix:" + o.Socket
	}
	return one, nil
}

// running is a server that runs already and that no other test uses, emptied.
func running(t testing.TB, o mongod.Options) *mongod.Server {
	t.Helper()
	if o.Users != nil || o.ReplicaSet != "" {
		t.Skipf("the servers of %s have neither users nor sets of this test", realmongo.Variable)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	defer cancel()
	address, release, err := realmongo.Borrow(ctx, strings.Split(os.Getenv(realmongo.Variable), ",")...)
	must.OK(t, err)
	o.Backend = address
	s, err := mongod.Start(context.WithoutCancel(t.Context()), o)
	if err != nil {
		t.Fatal(errors.Join(err, release()))
	}
	t.Cleanup(func() {
		s.Faults().Clear()
		if err := errors.Join(s.Close(), release()); err != nil {
			t.Errorf("closing MongoDB: %v", err)
		}
	})
	return s
}
