// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/metadata"
)

// TestConvergeAsksBeforeItLocks: a drain that wants to stop the server must not
// wait for a metadata service that hangs.
func TestConvergeAsksBeforeItLocks(t *testing.T) {
	m := joinedTree(t)
	req := convergeRequest(t, joinedAs(), nil)
	asked := 0
	req.Identify = func(ctx context.Context) (metadata.Instance, error) {
		asked++
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		lock, err := m.lock(ctx)
		if err != nil {
			t.Errorf("the machine is locked while the cloud is asked: %v", err)
			return joinedAs(), nil
		}
		return joinedAs(), lock.Unlock()
	}
	converge(t, m, req)
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

// starter is a command that starts the server.
type starter struct {
	ams.None
	started func()
}

func (starter) State(context.Context) (ams.State, error) {
	return ams.State{Activity: ams.ActivityInactive}, nil
}

func (s starter) Start(context.Context) error {
	s.started()
	return nil
}

// TestStartServerTellsTheAddress: a server that a command starts again, after a
// drain, has the address that it joined with.
func TestStartServerTellsTheAddress(t *testing.T) {
	m := joinedTree(t)
	var told, with netip.Addr
	m.SetAddress = func(a netip.Addr) { told = a }
	m.Service = starter{started: func() { with = told }}
	if err := m.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := joinedAs().Address; with != want {
		t.Errorf("started with the address %s, want %s", with, want)
	}
}
