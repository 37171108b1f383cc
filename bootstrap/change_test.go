// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

// The server's files change only while it is down, and each way out of a change leaves a server that ran either running,
// or to the next command.
func TestChange(t *testing.T) {
	t.Parallel()
	cut := errors.New("cut")
	half := &conf.UnfinishedError{New: []string{"/a"}, Old: []string{"/b"}}
	old, fresh := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for name, tt := range map[string]struct {
		stopped, unmanaged, idle    bool // idle: it did not run, and must not run afterwards
		stopErr, writeErr, startErr error
		late                        int // of the stop
		did, step                   string
		owed, down                  bool // what the state has in the end, and whether the error is errDown
		address                     netip.Addr
	}{
		"it runs":                             {did: "stop write start", address: fresh},
		"it is down":                          {stopped: true, did: "write start", address: fresh},
		"it is down, and stays so":            {stopped: true, idle: true, did: "write"},
		"not managed":                         {unmanaged: true, did: "write", owed: true},
		"it does not stop":                    {stopErr: cut, did: "stop back start", step: stepStop, address: old},
		"its stop outlasts the command":       {stopErr: context.DeadlineExceeded, late: 5, did: "stop back start", step: stepStop, address: old},
		"nothing is written":                  {writeErr: cut, did: "stop write back start", step: stepWrite, address: old},
		"nothing is written, and it was down": {stopped: true, idle: true, writeErr: cut, did: "write", step: stepWrite},
		"all is written, without the end":     {writeErr: &conf.UnfinishedError{New: []string{"/a"}}, did: "stop write start", step: stepWrite, address: fresh},
		"half is written":                     {writeErr: half, did: "stop write", step: stepWrite, owed: true},
		"it does not start":                   {startErr: cut, did: "stop write start", step: stepStart, owed: true, address: fresh},
		"nothing is written, and it is gone":  {writeErr: cut, startErr: cut, did: "stop write back start", step: stepWrite, owed: true, down: true, address: old},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := &fakeService{state: isUp, late: tt.late, fails: map[string]error{"stop": tt.stopErr, "start": tt.startErr}}
				if tt.stopped {
					service.state = ams.State{Activity: ams.ActivityInactive, StopTimeout: time.Second}
				}
				var address netip.Addr
				m := &Machine{Service: service, SetAddress: func(a netip.Addr) { address = a }}
				var owed bool
				note := func(call string, err error) func() error {
					return func() error {
						if call == "write" && !tt.unmanaged && !service.state.Dead() || service.ending > 0 {
							t.Errorf("%s while the server runs or stops", call)
						}
						service.calls = append(service.calls, call)
						return err
					}
				}
				step, err := m.change(t.Context(), serverChange{
					managed: !tt.unmanaged, ran: !tt.idle, start: !tt.idle, former: old, address: fresh,
					save: func(start bool) error {
						owed = start
						return nil
					},
					write: note("write", tt.writeErr), back: note("back", nil),
				})
				must.Equal(t, "calls", service.did(), tt.did)
				if step != tt.step || (err != nil) != (tt.step != "") || errors.Is(err, errDown) != tt.down {
					t.Errorf("step %q, %v", step, err)
				}
				must.Equal(t, "the state's start", owed, tt.owed)
				must.Equal(t, "the address", address, tt.address)
			})
		})
	}
}

// A server that an interrupted command stopped, and only that, is started by the next convergence or command, with the unit's
// files as they are now. If that command fails, the server runs all the same.
func TestInterruptedCommandStartsTheServer(t *testing.T) {
	t.Parallel()
	state := func(f func(*State)) step { return func(t testing.TB, m *Machine) { change(t, m, f) } }
	for name, tt := range map[string]struct {
		phase  Phase // joining, if empty
		step   step
		server ams.State // down, if zero
		starts bool
		owed   bool // afterwards
	}{
		"in a join":             {starts: true},
		"in a leave":            {phase: PhaseLeaving, starts: true},
		"it failed":             {server: ams.State{Activity: ams.ActivityFailed}, starts: true},
		"joined":                {phase: PhaseJoined, owed: true},
		"it did not run":        {step: state(func(s *State) { s.Start = false })},
		"another boot":          {step: with(bootFile, "boot-2\n"), owed: true},
		"a boot of no name":     {step: state(func(s *State) { s.Boot = "" }), owed: true},
		"it runs":               {server: running().state},
		"it starts":             {server: ams.State{Activity: ams.ActivityActivating, Sub: "start-pre"}},
		"it is stopping":        {server: ams.State{Activity: ams.ActivityDeactivating, MainPID: 7}, owed: true},
		"started since, by now": {server: ams.State{Activity: ams.ActivityInactive, Started: time.Now().Add(time.Hour)}},
		"its files are damaged": {step: with(journalFile, "{"), owed: true},
	} {
		for _, command := range []string{"converge", "join", "leave"} {
			if name == "its files are damaged" && command == "leave" {
				continue // it puts the journal aside
			}
			t.Run(name+", "+command, func(t *testing.T) {
				t.Parallel()
				m := newTree(t, joined, interrupted(cmp.Or(tt.phase, PhaseJoining)))
				if tt.step != nil {
					do(t, m, tt.step)
				}
				m.Connect = noMongo
				var given netip.Addr
				m.SetAddress = func(a netip.Addr) { given = a }
				service := &fakeService{state: tt.server}
				if tt.server.Activity == "" {
					service.state = ams.State{Activity: ams.ActivityInactive, StopTimeout: time.Second}
				}
				m.Service = service
				var err error
				switch command {
				case "converge":
					_, _ = m.Converge(t.Context(), watchRequest(t))
				case "join":
					_, err = m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, "mongodb://127.0.0.1:1"), Identify: watchRequest(t).Identify})
				case "leave":
					do(t, m, with(beansFile, "<beans>"), without(undoFile))
					_, err = m.Leave(t.Context(), LeaveRequest{Now: true})
				}
				must.Equal(t, "refused", err != nil, command != "converge")
				want, address := "", netip.Addr{}
				if tt.starts {
					want, address = "reload start", joinedAs().Address
				}
				must.Equal(t, "calls", service.did(), want)
				must.Equal(t, "the address", given, address)
				must.Equal(t, "a start is pending", stateOf(t, m).Start, tt.owed)
			})
		}
	}
}
