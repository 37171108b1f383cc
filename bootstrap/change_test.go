// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
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
		did, step                   string
		owed, down                  bool // what the state has in the end, and whether the error is errDown
		address                     netip.Addr
	}{
		"it runs":                             {did: "stop write start", address: fresh},
		"it is down":                          {stopped: true, did: "write start", address: fresh},
		"it is down, and stays so":            {stopped: true, idle: true, did: "write"},
		"not managed":                         {unmanaged: true, did: "write", owed: true},
		"it does not stop":                    {stopErr: cut, did: "stop back start", step: stepStop, address: old},
		"nothing is written":                  {writeErr: cut, did: "stop write back start", step: stepWrite, address: old},
		"nothing is written, and it was down": {stopped: true, idle: true, writeErr: cut, did: "write", step: stepWrite},
		"all is written, without the end":     {writeErr: &conf.UnfinishedError{New: []string{"/a"}}, did: "stop write start", step: stepWrite, address: fresh},
		"half is written":                     {writeErr: half, did: "stop write", step: stepWrite, owed: true},
		"it does not start":                   {startErr: cut, did: "stop write start", step: stepStart, owed: true, address: fresh},
		"nothing is written, and it is gone":  {writeErr: cut, startErr: cut, did: "stop write back start", step: stepWrite, owed: true, down: true, address: old},
	} {
		t.Run(name, func(t *testing.T) {
			service := &hooked{stopping: stopping{save: func() {}, stopped: tt.stopped}}
			service.hook = func(_ *hooked, call string) error {
				return map[string]error{"stop": tt.stopErr, "start": tt.startErr}[call]
			}
			var address netip.Addr
			m := &Machine{Service: service, SetAddress: func(a netip.Addr) { address = a }}
			var owed bool
			note := func(call string, err error) func() error {
				return func() error {
					if call == "write" && !tt.unmanaged && !service.stopped {
						t.Error("it writes while the server runs")
					}
					service.did = append(service.did, call)
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
			if got := strings.Join(service.did, " "); got != tt.did || step != tt.step || (err != nil) != (tt.step != "") || errors.Is(err, errDown) != tt.down {
				t.Errorf("%s; step %q, %v", got, step, err)
			}
			if owed != tt.owed || address != tt.address {
				t.Errorf("the state says start: %t; the address is %s", owed, address)
			}
		})
	}
}

// A server that an interrupted command stopped, and only that, is started by the next convergence or command.
func TestInterruptedCommandStartsTheServer(t *testing.T) {
	t.Parallel()
	since := time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	down := ams.State{Activity: ams.ActivityInactive, Started: since.Add(-time.Hour)}
	for name, tt := range map[string]struct {
		change  func(*State)
		service ams.State
		file    string // damaged
		starts  bool
		owed    bool // afterwards
	}{
		"in a join":             {service: down, starts: true},
		"in a leave":            {change: func(s *State) { s.Phase = PhaseLeaving }, service: down, starts: true},
		"it failed":             {service: ams.State{Activity: ams.ActivityFailed}, starts: true},
		"joined":                {change: func(s *State) { s.Phase = PhaseJoined }, service: down, owed: true},
		"it did not run":        {change: func(s *State) { s.Start = false }, service: down},
		"another boot":          {change: func(s *State) { s.Boot = "boot-0" }, service: down, owed: true},
		"a boot of no name":     {change: func(s *State) { s.Boot = "" }, service: down, owed: true},
		"it runs":               {service: running().state},
		"it starts":             {service: ams.State{Activity: ams.ActivityActivating, Sub: "start-pre"}},
		"it is stopping":        {service: ams.State{Activity: ams.ActivityDeactivating, MainPID: 7}, owed: true},
		"started since, by now": {service: ams.State{Activity: ams.ActivityInactive, Started: since.Add(10 * time.Second)}},
		"its files are damaged": {service: down, file: StateDir + "/journal", owed: true},
	} {
		for _, command := range []string{"converge", "join", "leave"} {
			if tt.file != "" && command == "leave" {
				continue // it puts the journal aside
			}
			t.Run(name+", "+command, func(t *testing.T) {
				t.Parallel()
				m := joinedTree(t)
				m.Connect = func(context.Context, cluster.Target) (*cluster.Client, error) { return nil, errors.New("away") }
				put(t, m, "/proc/sys/kernel/random/boot_id", "boot-1\n")
				change(t, m, func(s *State) {
					s.Phase, s.Start, s.Boot, s.Since = PhaseJoining, true, "boot-1", since
					if tt.change != nil {
						tt.change(s)
					}
				})
				if tt.file != "" {
					put(t, m, tt.file, "{")
				}
				var given netip.Addr
				m.SetAddress = func(a netip.Addr) { given = a }
				service := &stopping{save: func() {}, found: tt.service}
				m.Service = service
				switch command {
				case "converge":
					_, _ = m.Converge(t.Context(), watchRequest(t))
				case "join": // is refused
					_, err := m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, "mongodb://127.0.0.1:1"), Identify: convergeRequest(t, joinedAs(), nil).Identify})
					if err == nil {
						t.Error("it joined")
					}
				case "leave":
					put(t, m, filepath.Join(ams.DefaultDir, "conf/jee-container.xml"), "<beans>")
					must.OK(t, os.Remove(filepath.Join(m.Root, undoPath)))
					if _, err := m.Leave(t.Context(), LeaveRequest{Now: true}); err == nil {
						t.Error("it left")
					}
				}
				s, err := loadState(m.store())
				must.OK(t, err)
				if did := strings.Join(service.did, " "); (did == "start") != tt.starts || !tt.starts && did != "" || s.Start != tt.owed {
					t.Errorf("%q, state %+v", did, s)
				}
				if tt.starts && given.String() != "10.0.1.7" {
					t.Errorf("with the address %s", given)
				}
			})
		}
	}
}

// A drain's stop is meant, also of a machine whose join or leave was interrupted.
func TestDrainedServerStaysStopped(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	put(t, m, "/proc/sys/kernel/random/boot_id", "boot-1\n")
	change(t, m, func(s *State) { s.Phase, s.Start, s.Boot = PhaseLeaving, true, "boot-1" })
	service := &stopping{save: func() {}}
	m.Service = service
	_, err := m.StopServer(t.Context())
	must.OK(t, err)
	converge(t, m, watchRequest(t))
	if did := strings.Join(service.did, " "); did != "stop" {
		t.Errorf("%s", did)
	}
}

// However a leave is interrupted after the stop, the next one starts the server, and restores the files.
func TestInterruptedLeaveStartsTheServer(t *testing.T) {
	t.Parallel()
	before, m := treeFiles(t, ownTree(t, "3.0", "3.0.3")), joinedTree(t)
	put(t, m, "/proc/sys/kernel/random/boot_id", "boot-1\n")
	service := &hooked{stopping: stopping{save: func() {}}, hook: func(s *hooked, call string) error {
		if call == "start" && len(s.did) < 3 {
			return errCut
		}
		return nil
	}}
	m.Service = service
	for range 2 {
		if _, err := m.Leave(t.Context(), LeaveRequest{Now: true}); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		s, err := loadState(m.store())
		if err != nil || s.Phase != PhaseLeaving || !s.Start || s.Boot != "boot-1" || s.InstanceID != "i-1" || s.Address != "10.0.1.7" || s.Role != "edge" {
			t.Fatalf("%v: %+v", err, s)
		}
	}
	res, err := m.Leave(t.Context(), LeaveRequest{Now: true})
	if got := strings.Join(service.did, " "); err != nil || got != "stop start start start" || !res.Restarted || res.Stopped {
		t.Errorf("%v: %s: %+v", err, got, res)
	}
	if d := cmp.Diff(before, treeFiles(t, m)); d != "" {
		t.Errorf("the files are not those before the join (-before +after):\n%s", d)
	}
}

// While the server runs a command writes none of its files, reports what differs, and asks for a restart.
func TestConvergeByHandWritesNothing(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]ams.State{
		"it runs":     running().state,
		"it starts":   {Activity: ams.ActivityActivating, Sub: "start-pre", StopTimeout: time.Second},
		"it stops":    {Activity: ams.ActivityDeactivating, MainPID: 7, StopTimeout: time.Second},
		"it crashes":  {Activity: ams.ActivityActivating, Sub: "auto-restart", StopTimeout: time.Second},
		"not managed": {Activity: ams.ActivityUnknown, StopTimeout: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			m := joinedTree(t)
			m.Service = serviceThat{state: state}
			if name == "not managed" {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				must.OK(t, err)
				defer l.Close()
				edit(t, m, serverFile, "http.port=5080", fmt.Sprintf("http.port=%d", l.Addr().(*net.TCPAddr).Port))
			}
			edit(t, m, liveFile, "db.type=mongodb", "db.type=mapdb")
			req := watchRequest(t)
			req.Mode = convergeByCommand
			c := converge(t, m, req)
			if got := property(t, m, liveFile, "db.type"); got != "mapdb" || len(c.Repairs) > 0 || len(c.Differences) != 1 || !c.RestartNeeded {
				t.Errorf("db.type is %s: %+v", got, c)
			}
		})
	}
}
