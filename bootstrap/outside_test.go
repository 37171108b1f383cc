// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

// TestConvergeAsksBeforeItLocks: a drain that wants to stop the server must not
// wait for a metadata service that hangs.
func TestConvergeAsksBeforeItLocks(t *testing.T) {
	t.Parallel()
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

// TestCommandsAskBeforeTheyLock: nor must it wait for a join or a leave that waits for
// the metadata service or for MongoDB.
func TestCommandsAskBeforeTheyLock(t *testing.T) {
	t.Parallel()
	away := errors.New("MongoDB is away")
	for name, run := range map[string]func(*Machine, func(context.Context) (metadata.Instance, error)) error{
		"join": func(m *Machine, identify func(context.Context) (metadata.Instance, error)) error {
			_, err := m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", ForceAddress: true, Identify: identify})
			var failed *PreflightError
			if !errors.As(err, &failed) || ids(failed.Findings) != IDMongo {
				return err
			}
			return nil
		},
		"leave": func(m *Machine, identify func(context.Context) (metadata.Instance, error)) error {
			change(t, m, func(s *State) { s.InstanceID = "" })
			_, err := m.Leave(t.Context(), LeaveRequest{Mongo: mustTarget(t, testMongo), Identify: identify})
			var failed *FailedError
			if !errors.As(err, &failed) || failed.Step != "deregistering" {
				return err
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := joinedTree(t)
			m.Service = serviceThat{state: ams.State{Activity: ams.ActivityInactive}}
			var asked []string
			unlocked := func(who string) {
				asked = append(asked, who)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				lock, err := m.store().Lock(ctx, lockPath, func() { cancel() })
				if err != nil {
					t.Errorf("the machine is locked while %s is asked: %v", who, err)
					return
				}
				if err := lock.Unlock(); err != nil {
					t.Error(err)
				}
			}
			m.Connect = func(context.Context, cluster.Target) (*cluster.Client, error) {
				unlocked("MongoDB")
				return nil, away
			}
			if err := run(m, func(context.Context) (metadata.Instance, error) {
				unlocked("the cloud")
				return joinedAs(), nil
			}); err != nil {
				t.Errorf("ended with %v", err)
			}
			if want := []string{"the cloud", "MongoDB"}; !slices.Equal(asked, want) {
				t.Errorf("asked %v, want each once: %v", asked, want)
			}
		})
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
	t.Parallel()
	m := joinedTree(t)
	var told, with netip.Addr
	m.SetAddress = func(a netip.Addr) { told = a }
	m.Service = starter{started: func() { with = told }}
	must.OK(t, m.StartServer(t.Context()))
	if want := joinedAs().Address; with != want {
		t.Errorf("started with the address %s, want %s", with, want)
	}
}
