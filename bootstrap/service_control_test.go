// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// A drain's stop is meant, also of a machine whose join or leave was interrupted.
func TestDrainedServerStaysStopped(t *testing.T) {
	t.Parallel()
	service := &fakeService{state: isUp}
	m := newTree(t, joined, interrupted(PhaseLeaving), serving(service))
	_, err := m.StopServer(t.Context())
	must.OK(t, err)
	converge(t, m, watchRequest(t))
	must.Equal(t, "calls", service.did(), "stop")
}

// A server that is stopping is waited for, and one that is starting is stopped, too: otherwise a node would be marked left while
// its server runs. A command may return before the server has ended, or although it does not.
func TestStopServer(t *testing.T) {
	t.Parallel()
	is := func(all ...ams.Activity) []ams.Activity { return all }
	for name, tt := range map[string]struct {
		states []ams.Activity // one for each question, the last for all others
		left   bool
		did    string
		want   error
	}{
		"it runs":                      {is(ams.ActivityActive, ams.ActivityInactive), false, "stop", nil},
		"it starts":                    {is(ams.ActivityActivating, ams.ActivityInactive), false, "stop", nil},
		"it is stopping":               {is(ams.ActivityDeactivating, ams.ActivityInactive), false, "stop", nil},
		"it is down":                   {is(ams.ActivityInactive), false, "", nil},
		"it failed":                    {is(ams.ActivityFailed), false, "", nil},
		"of a machine that left":       {is(ams.ActivityActive), true, "", nil},
		"it ends later":                {is(ams.ActivityActive, ams.ActivityActive, ams.ActivityDeactivating, ams.ActivityFailed), false, "stop", nil},
		"it does not end":              {is(ams.ActivityActive), false, "stop", ErrServing},
		"it is not known then":         {is(ams.ActivityActive, ams.ActivityUnknown), false, "stop", nil},
		"it is not known for a moment": {is(ams.ActivityActive, ams.ActivityUnknown, ams.ActivityUnknown, ams.ActivityActive), false, "stop", ErrServing},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, service, asked := newTree(t, joined), &fakeService{}, 0
				if tt.left {
					do(t, m, without(stateFile))
				}
				service.on = func(call string) error {
					if call == "state" {
						service.state = ams.State{Activity: tt.states[min(asked, len(tt.states)-1)]}
						asked++
					}
					return nil
				}
				m.Service = service
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := m.StopServer(ctx)
				if !errors.Is(err, tt.want) || asked < len(tt.states) {
					t.Errorf("%v after %d questions", err, asked)
				}
				must.Equal(t, "calls", service.did(), tt.did)
			})
		})
	}
}

// The service manager calls the agent before it starts the server. A server that a command starts again, after a drain, has the
// address that it joined with.
func TestStartServer(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined, edited(liveFile, "db.type=mongodb", "db.type=mapdb"))
	var c *Convergence
	var given, with netip.Addr
	m.SetAddress = func(a netip.Addr) { given = a }
	service := serverIn(ams.ActivityInactive, "")
	m.Service = service
	service.on = func(call string) error {
		if call == "start" {
			req := watchRequest(t)
			req.Mode, with = ConvergeBeforeStart, given
			c = converge(t, m, req)
		}
		return nil
	}
	must.OK(t, m.StartServer(t.Context()))
	if c == nil || ids(c.Repairs) != IDDrift || with != joinedAs().Address {
		t.Errorf("%+v; started with the address %s", c, with)
	}
	for name, service := range map[string]*fakeService{"it runs": running(), "not known": {fails: map[string]error{"state": errors.New("the bus is away")}}} {
		m.Service = service
		must.Equal(t, name+": an error", m.StartServer(t.Context()) != nil, service.fails != nil)
		must.Equal(t, name, service.did(), "")
	}
}

// A server that is stopped is waited for without a question to MongoDB, which on many machines would be searches without end.
func TestStoppedServerIsAwaited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := &Machine{Service: &fakeService{state: isDown}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := m.awaitAlive(ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		must.Contain(t, "the error", err.Error(), "does not run")
		for _, is := range []ams.Activity{"", ams.ActivityActivating, ams.ActivityActive, ams.ActivityFailed} {
			m.Service = &fakeService{state: ams.State{Activity: is}}
			began := time.Now()
			if got, err := m.awaitAlive(t.Context()); err != nil || got.Activity != is || time.Since(began) > 0 {
				t.Errorf("%s: %v, %v", is, got, err)
			}
		}
	})
}

// A server that serves is not deregistered. One in a crash loop is about to be started again. The source of its state, such as
// docker, may end before the server does: then its port decides.
func TestDeregister(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	must.OK(t, err)
	away, reached := errors.New("docker is away"), errors.New("MongoDB was asked")
	m := newTree(t, joined, edited(serverFile, "http.port=5080", "http.port="+port))
	m.Connect = func(context.Context, cluster.Target) (*cluster.Client, error) { return nil, reached }
	noAnswer := &fakeService{fails: map[string]error{"state": away}}
	for _, tt := range []struct {
		name     string
		service  *fakeService
		goesDown bool
		want     error
	}{
		{"it runs", serverIn(ams.ActivityActive, ""), false, ErrServing},
		{"it stops", serverIn(ams.ActivityDeactivating, ""), false, ErrServing},
		{"it crashes", serverIn(ams.ActivityActivating, "auto-restart"), false, ErrServing},
		{"no answer, and it listens", noAnswer, true, away},
		{"no answer, and it has ended", noAnswer, true, reached},
		{"no answer, by hand", noAnswer, false, away},
	} {
		if errors.Is(tt.want, reached) {
			l.Close()
		}
		m.Service = tt.service
		if _, err := m.Deregister(t.Context(), DeregisterRequest{GoesDown: tt.goesDown}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A shutdown does not wait for a MongoDB that is away as long as a command does (review real-server S6: 10 s for this step alone).
func TestDeregisterWithoutMongo(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // it accepts, and answers nothing
	must.OK(t, err)
	defer l.Close()
	m := newTree(t, joined, serving(&fakeService{state: isDown}))
	m.Connect = func(ctx context.Context, t cluster.Target) (*cluster.Client, error) {
		return cluster.Connect(ctx, t, cluster.Options{Timeout: 30 * time.Second})
	}
	began := time.Now()
	_, err = m.Deregister(t.Context(), DeregisterRequest{Mongo: mustTarget(t, l.Addr().String()), Reason: "machine stopped", MongoWait: 200 * time.Millisecond})
	if took := time.Since(began); err == nil || took > 20*time.Second {
		t.Errorf("it took %s: %v", took, err)
	}
}
