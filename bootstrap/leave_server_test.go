// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
)

var errCut = errors.New("canceled")

// A leave restores the files after the server has saved its settings at its end, and starts a server that ran. Wherever it is
// interrupted, the next one completes it.
func TestLeaveOfAServer(t *testing.T) {
	t.Parallel()
	now, offline := LeaveRequest{Now: true}, LeaveRequest{Offline: true}
	const webInf = "webapps/LiveApp/WEB-INF"
	adopted := []step{scripted, joinedTo("10.0.2.4", "10.0.1.7")}
	pending := func(phase Phase) []step { return []step{joined, interrupted(phase)} }
	cutStart := func(_ *Machine, s *fakeService, call string) error {
		if call != "start" {
			return nil
		}
		s.state = isUp // it starts all the same
		return errCut
	}
	cutStop := func(_ *Machine, _ *fakeService, call string) error {
		return map[string]error{"stop": errCut}[call]
	}
	folder := func(path string) func(*Machine, *fakeService, string) error {
		return func(m *Machine, _ *fakeService, _ string) error { return os.MkdirAll(at(m, path), 0o700) }
	}
	const stateTemp = StateDir + "/.state.json.amsagent-tmp" // a file cannot replace a folder that is not empty
	const cannotRead = "still those of a cluster node"
	for name, tt := range map[string]struct {
		tree         []step    // a join with --offline, if empty
		server       ams.State // it runs, if zero
		late, ending int
		saves        string // what the server adds to its settings as it ends
		unreadable   bool   // the server makes its settings unreadable as it ends
		on           func(m *Machine, s *fakeService, call string) error
		cancel       bool // once the files are restored
		did          string
		fails        string // a part of the error
		asJoined     bool   // after the failure
		pending      bool   // the server's start, after the failure
		// What follows a failure.
		repair []step
		next   LeaveRequest
		other  bool // in the end the files are standalone, but not as before the join
		down   bool // in the end
	}{
		"a join":                     {did: "stop reload start"},
		"a value that was edited":    {tree: []step{joinedTo("10.0.9.9", "10.0.1.7"), edited(liveFile, "10.0.9.9", "10.0.9.8")}, did: "stop reload start", other: true},
		"a setting saved at the end": {saves: "settings.saved=1\n", did: "stop reload start", other: true},
		"a stop that returns early":  {late: 2, did: "stop reload start"},
		"no record":                  {tree: []step{joined, without(stateFile, undoFile)}, did: "stop reload start", other: true},
		"a join over the script's":   {tree: adopted, did: "stop reload start", other: true},
		"the script's, and no join":  {tree: []step{scripted}, did: "stop reload start", other: true},

		// It may have read its files.
		"it is starting":                    {server: ams.State{Activity: ams.ActivityActivating, Sub: "start-pre"}, did: "stop reload start"},
		"it is started after a crash":       {server: ams.State{Activity: ams.ActivityActivating, Sub: "auto-restart"}, did: "stop reload start"},
		"it is stopped by another":          {ending: 5, did: "stop reload", down: true},
		"stopped by an operator since":      {tree: pending(PhaseLeaving), server: ams.State{Activity: ams.ActivityInactive, Started: time.Now()}, did: "reload", down: true},
		"stopped by an interrupted command": {tree: pending(PhaseLeaving), server: isDown, did: "reload start"},

		"canceled in the start":               {on: cutStart, did: "stop reload start", fails: "canceled", pending: true, next: now},
		"canceled in the start, then offline": {on: cutStart, did: "stop reload start", fails: "canceled", pending: true, next: offline},
		"canceled in the start, joined again": {on: cutStart, did: "stop reload start", fails: "canceled", pending: true, repair: []step{joinedTo("10.0.2.5", "10.0.1.7")}, next: offline},
		"the script's, canceled":              {tree: adopted, on: cutStart, did: "stop reload start", fails: "canceled", pending: true, next: now, other: true},
		"the script's, then offline":          {tree: adopted, on: cutStart, did: "stop reload start", fails: "canceled", pending: true, next: offline, other: true},
		"the script's, joined again":          {tree: adopted, on: cutStart, did: "stop reload start", fails: "canceled", pending: true, repair: []step{joinedTo("10.0.2.5", "10.0.1.7")}, next: offline, other: true},
		"the script's, saved after that":      {tree: adopted, on: cutStart, did: "stop reload start", fails: "canceled", pending: true, repair: []step{edited(liveFile, "db.type=mapdb", "db.type=mongodb")}, next: offline, other: true},
		"the script's, joined online":         {tree: adopted, on: cutStart, did: "stop reload start", fails: "canceled", pending: true, repair: []step{joinedTo("10.0.2.5", "10.0.1.7")}, next: now, other: true},
		"a stop that fails":                   {tree: []step{joined}, on: cutStop, did: "stop start", fails: "stopping Ant Media Server", asJoined: true, next: now},
		"the script's, a stop that fails":     {tree: adopted, on: cutStop, did: "stop start", fails: "stopping Ant Media Server", asJoined: true, next: now, other: true},
		"it ends between stop and start":      {tree: []step{joined}, cancel: true, did: "stop reload start", fails: "context canceled", next: now},

		"stopped by another, its file cannot be read":      {ending: 5, unreadable: true, did: "stop", fails: cannotRead, next: now, down: true},
		"its file cannot be read":                          {unreadable: true, did: "stop start", fails: cannotRead, next: now},
		"no journal can be written":                        {tree: []step{joined}, on: folder(journalFile), did: "stop start", fails: "an earlier change is not finished", asJoined: true, repair: []step{without(journalFile)}, next: now},
		"after an interruption, no journal can be written": {tree: pending(PhaseLeaving), server: isDown, on: folder(journalFile), did: "start", fails: "an earlier change is not finished", repair: []step{without(journalFile)}, next: now},
		"after an interruption, no state can be written":   {tree: pending(PhaseJoining), server: isDown, on: folder(stateTemp + "/x"), did: "reload start", fails: "writing " + stateFile, pending: true, repair: []step{without(stateTemp)}, next: now},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newTree(t)
				before := treeFiles(t, m)
				if len(tt.tree) == 0 {
					tt.tree = []step{joinedTo("10.0.2.4", "10.0.1.7")}
				}
				do(t, m, tt.tree...)
				settings, joined, state := content(t, m, liveFile), treeFiles(t, m), stateOf(t, m)
				must.Contain(t, "the settings of a node", settings, "\ndb.type=mongodb\n")
				service := &fakeService{state: tt.server, late: tt.late, ending: tt.ending}
				if tt.server.Activity == "" {
					service.state = isUp
				}
				service.save = func() {
					service.save = nil
					put(t, m, liveFile, settings+tt.saves)
					if tt.unreadable {
						do(t, m, moved(webInf, webInf+".away"), with(webInf, ""))
					}
				}
				if tt.on != nil {
					service.on = func(call string) error { return tt.on(m, service, call) }
				}
				m.Service = service
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				m.Progress = func(said string) {
					if tt.cancel && strings.HasPrefix(said, "gave back") {
						cancel()
					}
				}
				res, err := m.Leave(ctx, now)
				must.Equal(t, "calls", service.did(), tt.did)
				if tt.fails == "" {
					must.OK(t, err)
					must.Equal(t, "restarted", res.Restarted, strings.HasSuffix(tt.did, "start"))
				} else {
					failed := asFailed(t, err)
					must.Contain(t, "the error", fmt.Sprint(failed, failed.State), tt.fails)
					must.Equal(t, "a start is pending", stateOf(t, m).Start, tt.pending)
					if tt.asJoined {
						must.NoDiff(t, "the files", treeFiles(t, m), joined)
						must.NoDiff(t, "the state", new(stateOf(t, m)), &state)
					}
					service.on = nil
					if tt.unreadable {
						do(t, m, without(webInf), moved(webInf+".away", webInf))
					}
					do(t, m, tt.repair...)
					_, err = m.Leave(t.Context(), tt.next)
					must.OK(t, err)
				}
				if !tt.other {
					must.NoDiff(t, "the files", treeFiles(t, m), before)
				}
				must.Contain(t, "the settings", content(t, m, liveFile), tt.saves)
				if text := content(t, m, liveFile); strings.Contains(text, "mongodb") || strings.Contains(text, "10.0.") {
					t.Errorf("after the leave:\n%s", text)
				}
				must.Equal(t, "the record and the state", content(t, m, undoFile)+content(t, m, stateFile), "nonenone")
				must.Equal(t, "the server is down", service.state.Dead(), tt.down)
				must.Equal(t, "the result says so", res.Stopped, tt.down)
			})
		})
	}
}

// However often a leave fails to start the server, the next one starts it.
func TestInterruptedLeaveStartsTheServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		service := &fakeService{state: isUp, fails: map[string]error{"start": errCut}}
		m := newTree(t, joined, with(bootFile, "boot-1\n"), serving(service))
		for range 2 {
			_, err := m.Leave(t.Context(), LeaveRequest{Now: true})
			s := stateOf(t, m)
			if !errors.Is(err, errCut) || s.Phase != PhaseLeaving || !s.Start || s.Boot != "boot-1" || s.InstanceID != "i-1" || s.Address != "10.0.1.7" || s.Role != "edge" {
				t.Fatalf("%v: %+v", err, s)
			}
		}
		service.fails = nil
		res, err := m.Leave(t.Context(), LeaveRequest{Now: true})
		must.OK(t, err)
		must.Equal(t, "calls", service.did(), "stop reload start reload start reload start")
		if !res.Restarted || res.Stopped {
			t.Errorf("%+v", res)
		}
		must.NoDiff(t, "the files", treeFiles(t, m), treeFiles(t, newTree(t)))
	})
}

// A leave may be killed at each moment: what the next one needs is written before, and removed last.
func TestOrderOfALeave(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined, with(StateDir+"/drain.json", "{}"))
	m.Service = &fakeService{state: isUp, on: func(call string) error {
		if call == "state" {
			return nil
		}
		return os.WriteFile(filepath.Join(m.Root, StateDir, call), nil, 0o600)
	}}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must.OK(t, err)
	defer unix.Close(fd)
	// The server's files are opened for writing before, which changes nothing.
	for dir, events := range map[string]uint32{StateDir: unix.IN_CLOSE_WRITE, "conf": 0} {
		_, err := unix.InotifyAddWatch(fd, at(m, dir), unix.IN_MOVED_TO|unix.IN_DELETE|events)
		must.OK(t, err)
	}
	_, err = m.Leave(t.Context(), LeaveRequest{Now: true})
	must.OK(t, err)
	var got []string
	events := make([]byte, 64<<10)
	n, err := unix.Read(fd, events)
	must.OK(t, err)
	for events = events[:n]; len(events) > 0; {
		size := unix.SizeofInotifyEvent + binary.NativeEndian.Uint32(events[12:])
		name := string(bytes.TrimRight(events[unix.SizeofInotifyEvent:size], "\x00"))
		if binary.NativeEndian.Uint32(events[4:])&unix.IN_DELETE != 0 {
			name = "-" + name
		}
		// The files of the commit itself are another test's.
		if !strings.Contains(name, ".amsagent-") && !strings.Contains(name, "journal") && name != "red5.properties" {
			got = append(got, name)
		}
		events = events[size:]
	}
	must.Equal(t, "the order", strings.Join(got, " "),
		"state.json stop jee-container.xml -undo.json reload start state.json state.json -drain.json -state.json")
}
