// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
)

// untouchable is a running server; starting or stopping it fails the test.
type untouchable struct{ t *testing.T }

func (untouchable) Name() string { return "the server" }
func (untouchable) State(context.Context) (ams.State, error) {
	return ams.State{Activity: ams.ActivityActive, MainPID: 1}, nil
}

func (s untouchable) touched() error {
	s.t.Error("the service was touched")
	return nil
}
func (s untouchable) Start(context.Context) error  { return s.touched() }
func (s untouchable) Stop(context.Context) error   { return s.touched() }
func (s untouchable) Reload(context.Context) error { return s.touched() }

// A command that may not begin changes nothing, and says so.
func TestNothingBegins(t *testing.T) {
	t.Parallel()
	damaged := func(name string) func(*testing.T) *Machine {
		return func(t *testing.T) *Machine {
			m := joinedTree(t)
			put(t, m, filepath.Join(StateDir, name), "{")
			return m
		}
	}
	join := func(m *Machine) error {
		_, err := m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", ForceAddress: true, Offline: true})
		return err
	}
	leave := func(m *Machine) error {
		_, err := m.Leave(t.Context(), LeaveRequest{Offline: true})
		return err
	}
	converge := func(m *Machine) error {
		_, err := m.Converge(t.Context(), convergeRequest(t, joinedAs(), nil))
		return err
	}
	seal := func(m *Machine) error {
		_, err := m.Seal(t.Context(), SealRequest{})
		return err
	}
	for name, tt := range map[string]struct {
		machine func(*testing.T) *Machine
		command func(*Machine) error
	}{
		"join":                           {func(t *testing.T) *Machine { return ownTree(t, "3.0", "3.0.3") }, join},
		"leave":                          {joinedTree, leave},
		"leave after an interrupted run": {damaged("journal"), leave},
		"leave with a damaged record":    {damaged(filepath.Base(undoPath)), leave},
		"leave, online": {func(t *testing.T) *Machine {
			m := joinedTree(t)
			m.Service = untouchable{t}
			return m
		}, func(m *Machine) error {
			_, err := m.Leave(t.Context(), LeaveRequest{Now: true})
			return err
		}},
		"seal": {usedTree, seal},
		"converge": {func(t *testing.T) *Machine {
			m := joinedTree(t)
			edit(t, m, "webapps/LiveApp/WEB-INF/red5-web.properties", "db.type=mongodb", "db.type=mapdb")
			return m
		}, converge},
		"converge of a copy": {func(t *testing.T) *Machine {
			m := joinedTree(t)
			change(t, m, func(s *State) { s.InstanceID, s.Hardware = "i-2", oldHardware })
			put(t, m, hardwareFile, newHardware)
			return m
		}, converge},
	} {
		t.Run(name, func(t *testing.T) {
			m := tt.machine(t)
			asked := 0
			m.Begin = func(context.Context) error { asked++; return context.DeadlineExceeded }
			before := filesOf(t, m)
			err := tt.command(m)
			failed, ok := errors.AsType[*FailedError](err)
			if !ok || !failed.Unknown || failed.State != untouched || !errors.Is(err, context.DeadlineExceeded) || asked == 0 {
				t.Errorf("%v, %+v, asked %d times", err, failed, asked)
			}
			if !maps.Equal(filesOf(t, m), before) {
				t.Error("files were changed")
			}
			m.Begin = nil
			m.Service = ams.None{}
			if err := tt.command(m); err != nil {
				t.Errorf("nothing hinders it, and %v", err)
			}
			if maps.Equal(filesOf(t, m), before) {
				t.Error("it changes nothing at all: this proves nothing")
			}
		})
	}
}

// filesOf returns the files below the root without the locks.
func filesOf(t *testing.T, m *Machine) map[string]string {
	t.Helper()
	all := snapshot(t, m)
	maps.DeleteFunc(all, func(name, _ string) bool { return strings.HasPrefix(name, filepath.Join(m.Root, "run")) })
	return all
}
