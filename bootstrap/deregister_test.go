// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

type stoppedService struct{ Service }

func (stoppedService) State(context.Context) (ams.State, error) {
	return ams.State{Activity: ams.ActivityInactive}, nil
}

// A server in a crash loop is about to be started again.
func TestDeregisterServing(t *testing.T) {
	t.Parallel()
	m := &Machine{Root: t.TempDir()}
	must.OK(t, saveState(m.store(), State{Phase: PhaseJoined, InstanceID: "i-1", Address: "192.0.2.4"}))
	for _, st := range []ams.State{
		{Activity: ams.ActivityActive},
		{Activity: ams.ActivityDeactivating},
		{Activity: ams.ActivityActivating, Sub: "auto-restart"},
	} {
		m.Service = serviceThat{state: st}
		if _, err := m.Deregister(t.Context(), DeregisterRequest{}); !errors.Is(err, ErrServing) {
			t.Errorf("%s: %v", st, err)
		}
	}
}

// The source of the server's state, such as docker, may end before the server does: then its port decides.
func TestDeregisterWhereNothingTells(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	must.OK(t, err)
	away, reached := errors.New("docker is away"), errors.New("MongoDB was asked")
	m := ownTree(t, "3.0", "2.10.0")
	m.Service = serviceThat{err: away}
	m.Connect = func(context.Context, cluster.Target) (*cluster.Client, error) { return nil, reached }
	edit(t, m, "conf/red5.properties", "http.port=5080", "http.port="+port)
	must.OK(t, saveState(m.store(), State{Phase: PhaseJoined, InstanceID: "i-1", Address: "192.0.2.4"}))
	down := DeregisterRequest{GoesDown: true}
	if _, err := m.Deregister(t.Context(), down); !errors.Is(err, away) {
		t.Errorf("a server that listens: %v", err)
	}
	l.Close()
	if _, err := m.Deregister(t.Context(), down); !errors.Is(err, reached) {
		t.Errorf("a server that has ended: %v", err)
	}
	if _, err := m.Deregister(t.Context(), DeregisterRequest{}); !errors.Is(err, away) {
		t.Errorf("by hand: %v", err)
	}
}

// A shutdown does not wait for a MongoDB that is away as long as a command does
// (review real-server S6: 10 s for this step alone).
func TestDeregisterWithoutMongo(t *testing.T) {
	t.Parallel()
	// It accepts and says nothing.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	defer l.Close()
	target, err := cluster.ParseTarget(l.Addr().String())
	must.OK(t, err)
	m := &Machine{Root: t.TempDir(), Service: stoppedService{}, Connect: func(ctx context.Context, t cluster.Target) (*cluster.Client, error) {
		return cluster.Connect(ctx, t, cluster.Options{Timeout: 30 * time.Second})
	}}
	must.OK(t, saveState(m.store(), State{Phase: PhaseJoined, InstanceID: "i-1", Address: "192.0.2.4"}))
	began := time.Now()
	_, err = m.Deregister(t.Context(), DeregisterRequest{Mongo: target, Reason: "machine stopped", MongoWait: 200 * time.Millisecond})
	if err == nil {
		t.Fatal("it succeeded without an answer of MongoDB")
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s: %v", took, err)
	}
}
