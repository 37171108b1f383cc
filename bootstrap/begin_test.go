// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
)

// A command that may not begin changes nothing, and says so.
func TestNothingBegins(t *testing.T) {
	t.Parallel()
	join := func(m *Machine) error {
		_, err := m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", ForceAddress: true, Offline: true})
		return err
	}
	leave := func(m *Machine) error {
		_, err := m.Leave(t.Context(), LeaveRequest{Offline: m.Service == ams.None{}, Now: true})
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
	service := &fakeService{state: isUp}
	ofAnother := func(t testing.TB, m *Machine) { change(t, m, func(s *State) { s.InstanceID = "i-2" }) }
	for name, tt := range map[string]struct {
		tree    []step
		command func(*Machine) error
	}{
		"join":                           {nil, join},
		"leave":                          {[]step{joined}, leave},
		"leave after an interrupted run": {[]step{joined, with(journalFile, "{")}, leave},
		"leave with a damaged record":    {[]step{joined, with(undoFile, "{")}, leave},
		"leave, online":                  {[]step{joined, serving(service)}, leave},
		"seal":                           {[]step{used}, seal},
		"converge":                       {[]step{joined, edited(liveFile, "db.type=mongodb", "db.type=mapdb")}, converge},
		"converge of a copy":             {[]step{joined, ofAnother, otherHardware}, converge},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTree(t, tt.tree...)
			asked := 0
			m.Begin = func(context.Context) error { asked++; return context.DeadlineExceeded }
			before := snapshot(t, m)
			err := tt.command(m)
			failed, ok := errors.AsType[*FailedError](err)
			if !ok || !failed.Unknown || failed.State != "nothing was changed on this machine" || !errors.Is(err, context.DeadlineExceeded) || asked == 0 {
				t.Errorf("%v, %+v, asked %d times", err, failed, asked)
			}
			must.NoDiff(t, "the files", snapshot(t, m), before)
			must.Equal(t, "the service", service.did(), "")
			m.Begin, m.Service = nil, ams.None{}
			must.OK(t, tt.command(m))
			if maps.Equal(snapshot(t, m), before) {
				t.Error("it changes nothing at all: this proves nothing")
			}
		})
	}
}
