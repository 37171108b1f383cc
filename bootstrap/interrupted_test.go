// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
)

var errCut = errors.New("canceled")

// cutRestart is a server during whose next restart the command is canceled.
type cutRestart struct {
	stopping
	cut bool
}

func (s *cutRestart) Restart(ctx context.Context) error {
	err := s.stopping.Restart(ctx)
	if s.cut {
		s.cut, err = false, errCut
	}
	return err
}

// scriptedTree is a node that the vendor's script made, and that joined after that.
func scriptedTree(t *testing.T) *Machine {
	t.Helper()
	m := ownTree(t, "3.0", "3.0.3")
	joinOffline(t, m, "10.0.9.9", "10.0.1.7")
	if err := os.Remove(filepath.Join(m.Root, undoPath)); err != nil { // the script leaves none
		t.Fatal(err)
	}
	return m
}

// What the server saves over a leave that is interrupted in its restart is given back by the
// next one, and by the one after a join.
func TestInterruptedLeave(t *testing.T) {
	const live = "webapps/LiveApp/WEB-INF/red5-web.properties"
	for name, tt := range map[string]struct {
		scripted, join, stuck bool
		next                  LeaveRequest
	}{
		"a join":                      {next: LeaveRequest{Now: true}},
		"a join, offline":             {next: LeaveRequest{Offline: true}},
		"a join, joined again":        {join: true, next: LeaveRequest{Offline: true}},
		"a stop that fails":           {stuck: true, next: LeaveRequest{Now: true}},
		"the script's, and it fails":  {scripted: true, stuck: true, next: LeaveRequest{Now: true}},
		"the script's":                {scripted: true, next: LeaveRequest{Now: true}},
		"the script's, offline":       {scripted: true, next: LeaveRequest{Offline: true}},
		"the script's, joined again":  {scripted: true, join: true, next: LeaveRequest{Offline: true}},
		"the script's, joined online": {scripted: true, join: true, next: LeaveRequest{Now: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits for a server that stays up
			m := ownTree(t, "3.0", "3.0.3")
			before := treeFiles(t, m)
			if tt.scripted {
				m = scriptedTree(t)
			}
			joinOffline(t, m, "10.0.2.4", "10.0.1.7")
			real := filepath.Join(m.Root, ams.DefaultDir, live)
			joined, err := os.ReadFile(real)
			if err != nil {
				t.Fatal(err)
			}
			saves := 1
			service := &cutRestart{cut: true}
			if tt.stuck {
				saves, service.cut, service.stopErr = 2, false, errCut // the second restart saves, too
			}
			service.save = func() {
				if saves--; saves >= 0 {
					if err := os.WriteFile(real, joined, 0o644); err != nil {
						t.Error(err)
					}
				}
			}
			m.Service = service
			if _, err := m.Leave(t.Context(), LeaveRequest{Now: true}); !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			if got := property(t, m, live, "db.type"); got != "mongodb" {
				t.Fatalf("db.type is %s: the server saved nothing", got)
			}
			service.stopErr = nil
			if tt.join {
				joinOffline(t, m, "10.0.2.5", "10.0.1.7")
			}
			res, err := m.Leave(t.Context(), tt.next)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(real)
			if err != nil || strings.Contains(string(b), "mongodb") || strings.Contains(string(b), "10.0.") {
				t.Errorf("%v: after the next leave, %+v:\n%s", err, res, b)
			}
			if after := treeFiles(t, m); !tt.scripted && !maps.Equal(after, before) {
				t.Error("the files are not those before the join")
			}
			for _, path := range []string{statePath, undoPath} {
				if _, err := os.Stat(filepath.Join(m.Root, path)); err == nil {
					t.Errorf("%s is left", path)
				}
			}
		})
	}
}

// What a person had written is kept beside the file that a leave gives back. The server, killed
// while it saves, takes nothing of that away.
func TestKeptEditOutlivesATornFile(t *testing.T) {
	const live = "webapps/LiveApp/WEB-INF/red5-web.properties"
	m := ownTree(t, "3.0", "3.0.3")
	before := treeFiles(t, m)
	joinOffline(t, m, "10.0.2.4", "10.0.1.7")
	real := filepath.Join(m.Root, ams.DefaultDir, live)
	edit := []byte("db.host=\\uZZZZ\n") // no editor of settings reads it
	if err := os.WriteFile(real, edit, 0o644); err != nil {
		t.Fatal(err)
	}
	saves := 1
	m.Service = &stopping{save: func() {
		if saves--; saves < 0 {
			return
		}
		if err := os.WriteFile(real, []byte("#Sat Nov 21 00:34:56 UTC 2026\ndb.ty"), 0o644); err != nil {
			t.Error(err)
		}
	}}
	if res, err := m.Leave(t.Context(), LeaveRequest{Now: true}); err != nil {
		t.Fatalf("%v: %+v", err, res)
	}
	if kept, err := os.ReadFile(conf.SavedName(real)); err != nil || string(kept) != string(edit) {
		t.Errorf("%v: kept is %q", err, kept)
	}
	after := treeFiles(t, m)
	delete(after, "/"+conf.SavedName(live))
	if !maps.Equal(after, before) {
		t.Error("the files are not those before the join")
	}
}

// A join that comes before the next leave, and its rollback, do not forget that an
// application's settings may be a node's still.
func TestInterruptedLeaveIsRemembered(t *testing.T) {
	m := ownTree(t, "3.0", "3.0.3")
	in, err := m.open()
	if err != nil {
		t.Fatal(err)
	}
	j := &joiner{Machine: m, store: m.store(), result: &JoinResult{}, facts: &facts{install: in, state: &State{Phase: PhaseLeaving, Standalone: true}}}
	for what, save := range map[string]func() error{
		"a join":     func() error { return j.save(PhaseJoined, false) },
		"a rollback": j.saveUndoing,
	} {
		err := save()
		if s, lerr := loadState(m.store()); err != nil || lerr != nil || s == nil || !s.Standalone {
			t.Errorf("%s: %v, %v: %+v", what, err, lerr, s)
		}
	}
}
