// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

// TestLeaveTellsOfEachFile: byte for byte is said of the files of which it is true.
func TestLeaveTellsOfEachFile(t *testing.T) {
	t.Parallel()
	saved, err := os.ReadFile("testdata/rewritten.properties")
	must.OK(t, err)
	live := "webapps/LiveApp/WEB-INF/red5-web.properties"
	for _, tt := range []struct {
		name  string
		mongo string
		edit  func(t *testing.T, dir string)
		want  map[string]Restored // of the files that are not "bytes" or "removed"
		exact bool
	}{
		{name: "as join left them", edit: func(*testing.T, string) {}, want: map[string]Restored{}, exact: true},
		{
			mongo: "mongodb://plain:secret1@10.77.0.1:27311/?authSource=admin",
			name:  "the server saved its settings", want: map[string]Restored{live: RestoredKeys},
			edit: func(t *testing.T, dir string) {
				must.OK(t, os.WriteFile(filepath.Join(dir, live), saved, 0o644))
			},
		},
		{
			name: "an operator changed what join had set", want: map[string]Restored{live: RestoredStandalone},
			edit: func(t *testing.T, dir string) {
				b, err := os.ReadFile(filepath.Join(dir, live))
				must.OK(t, err)
				text := strings.Replace(string(b), "db.host=10.0.2.4", "my.own.key=1\ndb.host=10.0.2.99", 1)
				if text == string(b) {
					t.Fatalf("no db.host in %s", b)
				}
				must.OK(t, os.WriteFile(filepath.Join(dir, live), []byte(text), 0o644))
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := ownTree(t, "3.0", "3.0.3")
			mongo := tt.mongo
			if mongo == "" {
				mongo = "10.0.2.4"
			}
			joinOffline(t, m, mongo, "10.0.1.7")
			tt.edit(t, filepath.Join(m.Root, ams.DefaultDir))
			res := leaveOffline(t, m)
			got := map[string]Restored{}
			for _, f := range res.Files {
				switch {
				case f.Restored == "":
					t.Errorf("%s: nothing is said of it", f.Path)
				case f.Path == MongoPath && f.Restored != restoredRemoved:
					t.Errorf("%s: %s", f.Path, f.Restored)
				case f.Restored != restoredBytes && f.Restored != restoredRemoved:
					name, ok := strings.CutPrefix(f.Path, path.Clean(ams.DefaultDir)+"/")
					if !ok {
						t.Errorf("%s: %s", f.Path, f.Restored)
					}
					got[name] = f.Restored
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if res.Exact != tt.exact {
				t.Errorf("exact is %v", res.Exact)
			}
		})
	}
}

// Damage that the owner of the tree does to one file does not block a leave: all other files are restored, and a warning names
// this one.
func TestLeaveOfAHinderedTree(t *testing.T) {
	t.Parallel()
	const container = "conf/jee-container.xml"
	write := func(text string) func(string) error {
		return func(real string) error { return os.WriteFile(real, []byte(text), 0o644) }
	}
	harms := map[string]func(real string) error{
		"a pipe":    func(real string) error { return errors.Join(os.Remove(real), syscall.Mkfifo(real, 0o644)) },
		"malformed": write("<beans>\nx=\\uZZZZ\n"),
		"empty":     write(""),
	}
	for _, name := range []string{container, "conf/red5.properties", "webapps/LiveApp/WEB-INF/red5-web.properties"} {
		for what, harm := range harms {
			t.Run(name+" is "+what, func(t *testing.T) {
				m := ownTree(t, "3.0", "3.0.3")
				before := treeFiles(t, m)
				joinOffline(t, m, testMongo, "10.0.1.7")
				real := filepath.Join(m.Root, ams.DefaultDir, name)
				must.OK(t, harm(real))
				res := leaveOffline(t, m)
				said := false
				for _, w := range res.Warnings {
					said = said || (w.ID == IDConflict || w.ID == IDTorn) && strings.Contains(w.Text, name)
				}
				if !said {
					t.Errorf("warnings %v", res.Warnings)
				}
				given := name == container && what != "a pipe"
				if !given {
					must.OK(t, os.Remove(real))
				}
				after := treeFiles(t, m)
				for path, was := range before {
					if (given || !strings.HasSuffix(path, name)) && after[path] != was {
						t.Errorf("%s was not given back", path)
					}
				}
			})
		}
	}
}

// A jee-container.xml of an upgrade stays although it has no known sections: it is a standalone server's.
func TestLeaveKeepsAStandaloneContainer(t *testing.T) {
	t.Parallel()
	const container = "conf/jee-container.xml"
	m := ownTree(t, "3.0", "3.0.3")
	real := filepath.Join(m.Root, ams.DefaultDir, container)
	b, err := os.ReadFile(real)
	must.OK(t, err)
	newer := strings.Replace(string(b), "cluster end", "end of the cluster", 1)
	if newer == string(b) {
		t.Fatal("the file has no section")
	}
	before := treeFiles(t, m)
	joinOffline(t, m, testMongo, "10.0.1.7")
	must.OK(t, os.WriteFile(real, []byte(newer), 0o644))
	res := leaveOffline(t, m)
	if len(res.Warnings) != 1 || res.Warnings[0].ID != IDConflict || !strings.Contains(res.Warnings[0].Text, "it stays as it is") {
		t.Errorf("warnings %v", res.Warnings)
	}
	for path, is := range treeFiles(t, m) {
		switch was := before[path]; {
		case strings.HasSuffix(path, container):
			if is == was {
				t.Error("the former container was put back")
			}
		case is != was:
			t.Errorf("%s was not given back", path)
		}
	}
	if got, err := os.ReadFile(real); err != nil || string(got) != newer {
		t.Errorf("the container is another one: %v", err)
	}
}

// The same without an undo record, because the vendor's script made the server a cluster node.
func TestLeaveOfAHinderedCluster(t *testing.T) {
	t.Parallel()
	const live = "webapps/LiveApp/WEB-INF/red5-web.properties"
	for what, tt := range map[string]struct {
		name string
		harm func(real string) error
	}{
		"malformed settings":  {live, appendText("x=\\uZZZZ\n")},
		"empty settings":      {live, func(real string) error { return os.Truncate(real, 0) }},
		"settings are a pipe": {live, func(real string) error { return errors.Join(os.Remove(real), syscall.Mkfifo(real, 0o644)) }},
		"malformed, server's": {"conf/red5.properties", appendText("x=\\uZZZZ\n")},
		"a container, no XML": {"conf/jee-container.xml", appendText("<beans>")},
		"an empty container":  {"conf/jee-container.xml", func(real string) error { return os.Truncate(real, 0) }},
		"a folder without one": {"webapps/new/WEB-INF/red5-web.properties", func(real string) error {
			return errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, nil, 0o644))
		}},
	} {
		t.Run(what, func(t *testing.T) {
			m := ownTree(t, "3.0", "3.0.3")
			standalone := treeFiles(t, m)
			joinOffline(t, m, testMongo, "10.0.1.7")
			for _, name := range []string{statePath, StateDir + "/undo.json"} {
				if err := os.Remove(filepath.Join(m.Root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
			// This join adopts an existing node.
			joinOffline(t, m, "10.0.2.5", "10.0.1.7")
			must.OK(t, tt.harm(filepath.Join(m.Root, ams.DefaultDir, tt.name)))
			res := leaveOffline(t, m)
			said := false
			for _, w := range res.Warnings {
				said = said || (w.ID == IDConflict || w.ID == IDTorn) && strings.Contains(w.Text, tt.name)
			}
			if !said {
				t.Errorf("warnings %v", res.Warnings)
			}
			must.OK(t, os.Remove(filepath.Join(m.Root, ams.DefaultDir, tt.name)))
			after := treeFiles(t, m)
			for path, was := range standalone {
				if strings.HasSuffix(path, ".properties") && !strings.HasSuffix(path, tt.name) && strings.Contains(after[path], "mongodb") {
					t.Errorf("%s is that of a node\n(standalone: %d bytes)", path, len(was))
				}
			}
		})
	}
}

func appendText(text string) func(real string) error {
	return func(real string) error {
		b, err := os.ReadFile(real)
		if err != nil {
			return err
		}
		return os.WriteFile(real, append(b, text...), 0o644)
	}
}

// Missing files and too many applications do not block a leave either, as long as the tree exists.
func TestLeaveOfAnIncompleteTree(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		harm  func(tree string) error
		holds string // of the file that was harmed
		left  bool
	}{
		"settings gone": {func(tree string) error { return os.Remove(filepath.Join(tree, "conf/red5.properties")) }, "conf/red5.properties", true},
		"many applications": {func(tree string) error {
			var errs []error
			for i := range 4200 {
				errs = append(errs, os.Mkdir(filepath.Join(tree, "webapps", strconv.Itoa(i)), 0o755))
			}
			return errors.Join(errs...)
		}, "", true},
		"all gone": {func(tree string) error { return os.RemoveAll(filepath.Join(tree, "conf")) }, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			m := ownTree(t, "3.0", "3.0.3")
			before := treeFiles(t, m)
			joinOffline(t, m, testMongo, "10.0.1.7")
			must.OK(t, tt.harm(filepath.Join(m.Root, ams.DefaultDir)))
			_, err := m.Leave(t.Context(), LeaveRequest{Offline: true})
			if (err == nil) != tt.left {
				t.Fatalf("%v", err)
			}
			if !tt.left {
				return
			}
			after := treeFiles(t, m)
			for path, was := range before {
				if (tt.holds == "" || !strings.HasSuffix(path, tt.holds)) && after[path] != was {
					t.Errorf("%s was not given back", path)
				}
			}
		})
	}
}

// stopping is a server that saves its settings, as it had read them, whenever it ends, and
// notes what is done with it.
type stopping struct {
	ams.None
	save func()
	did  []string
	// late is how often it is asked until it has ended, and saves, after the command to stop
	// has returned.
	late    int
	ending  int
	stopErr error
	stopped bool
	found   ams.State // before anything is done, unless unknown
}

func (s *stopping) State(context.Context) (ams.State, error) {
	if len(s.did) == 0 && s.found.Known() {
		return s.found, nil
	}
	if s.ending > 0 {
		if s.ending--; s.ending == 0 {
			s.save()
			s.stopped = true
		}
		return ams.State{Activity: ams.ActivityDeactivating, MainPID: 1}, nil
	}
	if s.stopped {
		return ams.State{Activity: ams.ActivityInactive}, nil
	}
	return ams.State{Activity: ams.ActivityActive, MainPID: 1}, nil
}

func (s *stopping) Stop(context.Context) error {
	s.did = append(s.did, "stop")
	switch {
	case s.stopErr != nil:
		return s.stopErr
	case s.late > 0:
		s.ending = s.late
	default:
		s.save()
		s.stopped = true
	}
	return nil
}

func (s *stopping) Start(context.Context) error {
	s.did = append(s.did, "start")
	if s.ending > 0 {
		s.save() // the one that has not ended yet
	}
	s.stopped, s.ending = false, 0
	return nil
}

// A leave restores the files after the server has saved its settings at its end, whatever made the machine a node.
func TestLeaveIsOverwritten(t *testing.T) {
	t.Parallel()
	const live = "webapps/LiveApp/WEB-INF/red5-web.properties"
	for name, tt := range map[string]struct {
		scripted bool     // the vendor's script made it a node before the join
		forget   []string // files of the agent's that are gone
		edited   bool     // a value of the join's, by a person since
		late     int      // see stopping
		stopErr  error
	}{
		"a join":                    {},
		"a value that was edited":   {edited: true},
		"a stop that returns early": {late: 2},
		"a stop that fails":         {stopErr: errors.New("stuck")},
		"a join without a record":   {forget: []string{statePath, StateDir + "/undo.json"}},
		"a join over the script's":  {scripted: true},
		"the script's, and no join": {scripted: true, forget: []string{statePath, StateDir + "/undo.json", MongoPath}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits for a server that stays up
			m := ownTree(t, "3.0", "3.0.3")
			joinOffline(t, m, "10.0.9.9", "10.0.1.7")
			if tt.scripted {
				// It leaves no record.
				if err := errors.Join(os.Remove(filepath.Join(m.Root, StateDir, "undo.json")), os.Remove(filepath.Join(m.Root, statePath))); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				joinOffline(t, m, testMongo, "10.0.1.7")
			}
			for _, name := range tt.forget {
				if err := os.Remove(filepath.Join(m.Root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
			real := filepath.Join(m.Root, ams.DefaultDir, live)
			joined, err := os.ReadFile(real)
			if tt.edited {
				joined = bytes.ReplaceAll(joined, []byte("10.0.9.9"), []byte("10.0.9.8"))
				err = errors.Join(err, os.WriteFile(real, joined, 0o644))
			}
			must.OK(t, err)
			if !strings.Contains(string(joined), "\ndb.type=mongodb\n") {
				t.Fatalf("it is no node:\n%s", joined)
			}
			saves := 1 // by the server that the join made a node
			service := &stopping{late: tt.late, stopErr: tt.stopErr, save: func() {
				if saves--; saves < 0 {
					return
				}
				if err := os.WriteFile(real, joined, 0o644); err != nil {
					t.Error(err)
				}
			}}
			m.Service = service
			before := treeFiles(t, m)
			res, err := m.Leave(t.Context(), LeaveRequest{Now: true})
			if !errors.Is(err, tt.stopErr) {
				t.Fatal(err)
			}
			if did := strings.Join(service.did, " "); did != "stop start" || err == nil && !res.Restarted {
				t.Errorf("%s: %+v", did, res)
			}
			if tt.stopErr != nil {
				if failed, ok := errors.AsType[*FailedError](err); !ok || failed.Step != stepStop || !maps.Equal(treeFiles(t, m), before) {
					t.Errorf("%v: a file was changed", err)
				}
				return
			}
			if b, err := os.ReadFile(real); err != nil || strings.Contains(string(b), "mongodb") {
				t.Errorf("%v: after a leave:\n%s", err, b)
			}
		})
	}
}

// A server that is being started, or started again after a crash, may have read its files.
func TestLeaveWhileStarting(t *testing.T) {
	t.Parallel()
	for sub, want := range map[string]string{"start-pre": "stop start", "auto-restart": "stop start"} {
		t.Run(sub, func(t *testing.T) {
			t.Parallel() // each waits for a server that stays up
			m := ownTree(t, "3.0", "3.0.3")
			joinOffline(t, m, "10.0.9.9", "10.0.1.7")
			service := &stopping{save: func() {}, found: ams.State{Activity: ams.ActivityActivating, Sub: sub}}
			m.Service = service
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			res, err := m.Leave(ctx, LeaveRequest{Now: true})
			if did := strings.Join(service.did, " "); err != nil || did != want || !res.Restarted {
				t.Errorf("%q, %v: %+v", did, err, res)
			}
		})
	}
}

// The server saves its settings when it stops: a rolled back join restores the files after that.
func TestRollbackIsNotOverwritten(t *testing.T) {
	t.Parallel()
	const live = "webapps/LiveApp/WEB-INF/red5-web.properties"
	m := ownTree(t, "3.0", "3.0.3")
	joinOffline(t, m, "10.0.2.9", "10.0.1.7")
	in, err := m.open()
	must.OK(t, err)
	record, err := m.store().Record()
	must.OK(t, err)
	req := JoinRequest{Mongo: mustTarget(t, "10.0.3.3"), Valve: ValveKeep}
	j := &joiner{
		Machine: m, store: m.store(), result: &JoinResult{Restarted: true}, req: req, wasRunning: true,
		facts: &facts{
			install: in, record: record, state: &State{Phase: PhaseJoined, Address: "10.0.1.7"}, mode: conf.ModeCluster,
			service: ams.State{Activity: ams.ActivityActive}, address: ams.Address{Addr: netip.MustParseAddr("10.0.1.7")},
		},
	}
	if j.facts.plan, err = j.replan(req); err == nil {
		err = j.commit(j.facts.plan)
	}
	must.OK(t, err)
	j.wrote = true
	real := filepath.Join(m.Root, ams.DefaultDir, live)
	joined, err := os.ReadFile(real)
	must.OK(t, err)
	service := &stopping{save: func() {
		if err := os.WriteFile(real, joined, 0o644); err != nil {
			t.Error(err)
		}
	}}
	m.Service = service
	said := j.rollBack(t.Context(), "a reason")
	if got := property(t, m, live, "db.host"); got != "10.0.2.9" {
		t.Errorf("db.host is %s: %s", got, said)
	}
	if did := strings.Join(service.did, " "); did != "stop start" || !strings.Contains(said, "runs again as before") {
		t.Errorf("%s: %s", did, said)
	}
}

// stuck is a server that can neither be stopped nor started.
type stuck struct{ stopping }

func (s *stuck) Stop(context.Context) error { return errors.New("stuck") }

// A rollback that restarts the server, or tries to, is reported as a restart, also if the join made none: the daemon limits
// restarts by it, because each cuts viewers.
func TestRollbackTellsItsRestart(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{true, false} {
		m := ownTree(t, "3.0", "3.0.3")
		m.Service = &stuck{}
		j := &joiner{
			Machine: m, store: m.store(), result: &JoinResult{}, wasRunning: running,
			facts:    &facts{state: &State{Phase: PhaseJoining, Address: "10.0.1.7"}, mode: conf.ModeCluster, service: ams.State{Activity: ams.ActivityActive}},
			changing: true,
		}
		if said := j.rollBack(t.Context(), "a reason"); j.result.Restarted != running {
			t.Errorf("the server ran: %v, restarted: %v: %s", running, j.result.Restarted, said)
		}
	}
}

// An application whose file its owner made unreadable is left out of a convergence, which
// looks after all other files.
func TestConvergeLeavesOutAnApplication(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	const name = "webapps/LiveApp/WEB-INF/red5-web.properties"
	for what, spoil := range map[string]func(real string) error{
		"a circle": func(real string) error { return errors.Join(os.Remove(real), os.Symlink(path.Base(real), real)) },
		"a file for the folder": func(real string) error {
			return errors.Join(os.RemoveAll(path.Dir(real)), os.WriteFile(path.Dir(real), nil, 0o644))
		},
		"more than there is room for": func(real string) error {
			webapps := filepath.Dir(filepath.Dir(filepath.Dir(real)))
			text := strings.Repeat("#"+strings.Repeat("x", 1022)+"\n", conf.MaxSettings>>10)
			var err error
			for n := range 65 {
				app := filepath.Join(webapps, fmt.Sprintf("App%d", n), "WEB-INF")
				err = errors.Join(err, os.MkdirAll(app, 0o755), os.WriteFile(filepath.Join(app, filepath.Base(real)), []byte(text), 0o644))
			}
			return err
		},
		"malformed": func(real string) error { return os.WriteFile(real, []byte("x=\\uZZZZ\n"), 0o644) },
		"empty, and made after the join": func(real string) error {
			shop := strings.Replace(real, "LiveApp", "Shop", 1)
			return errors.Join(os.MkdirAll(filepath.Dir(shop), 0o755), os.WriteFile(shop, nil, 0o644))
		},
		"half written, and made after the join": func(real string) error {
			shop := strings.Replace(real, "LiveApp", "Shop", 1)
			return errors.Join(os.MkdirAll(filepath.Dir(shop), 0o755), os.WriteFile(shop, []byte("#Sat Nov 21 00:34:56 UTC 2026\ndb.ty"), 0o644))
		},
	} {
		t.Run(what, func(t *testing.T) {
			m := joinedTree(t)
			dir := filepath.Join(m.Root, ams.DefaultDir)
			must.OK(t, spoil(filepath.Join(dir, name)))
			edit(t, m, "conf/red5.properties", "clusterdb.host=", "clusterdb.host=x")
			put(t, m, MongoPath, "x\n") // is planned after the applications
			err := filepath.WalkDir(dir, func(real string, _ fs.DirEntry, err error) error {
				return errors.Join(err, os.Lchown(real, 4711, 4711))
			})
			must.OK(t, err)
			req := convergeRequest(t, joinedAs(), nil)
			req.Mode = ConvergeBeforeStart
			c := converge(t, m, req)
			if !strings.Contains(ids(c.Warnings), "AMS-FILE") {
				t.Errorf("warnings %v", c.Warnings)
			}
			b, err := os.ReadFile(filepath.Join(dir, "conf/red5.properties"))
			if err != nil || strings.Contains(string(b), "clusterdb.host=x") {
				t.Errorf("red5.properties was not put right: %v\n%s", err, b)
			}
			if b, err := os.ReadFile(filepath.Join(m.Root, MongoPath)); err != nil || string(b) == "x\n" {
				t.Errorf("%s was not put right: %v", MongoPath, err)
			}
		})
	}
}

// A join writes after the server has saved its settings at its end, and before its start.
func TestJoinIsOverwritten(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		saves    bool
		activity ams.Activity
		want     string
	}{
		{false, ams.ActivityActive, "stop start"},
		{true, ams.ActivityActive, "stop start"},
		{false, ams.ActivityInactive, "start"},
		{true, ams.ActivityActivating, "stop start"}, // it has read its files already
	} {
		m := ownTree(t, "3.0", "3.0.3")
		joinOffline(t, m, testMongo, "10.0.1.7")
		live := filepath.Join(m.Root, ams.DefaultDir, "webapps/LiveApp/WEB-INF/red5-web.properties")
		before, err := os.ReadFile(live)
		must.OK(t, err)
		service := &stopping{found: ams.State{Activity: tt.activity}, save: func() {
			if !tt.saves {
				return
			}
			if err := os.WriteFile(live, before, 0o644); err != nil {
				t.Error(err)
			}
		}}
		m.Service = service
		in, err := m.open()
		must.OK(t, err)
		j := &joiner{
			Machine: m, store: m.store(), result: &JoinResult{}, req: JoinRequest{Mongo: mustTarget(t, "10.0.2.9"), Valve: ValveKeep},
			facts: &facts{install: in, service: ams.State{Activity: tt.activity}, address: ams.Address{Addr: netip.MustParseAddr("10.0.1.7")}},
		}
		must.OK(t, j.change(t.Context(), true))
		if got := property(t, m, "webapps/LiveApp/WEB-INF/red5-web.properties", "db.host"); got != "10.0.2.9" {
			t.Errorf("%+v: db.host is %s", tt, got)
		}
		if got := strings.Join(service.did, " "); got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

// A join warns of a file that is not as it wrote it, and of one that cannot be compared.
func TestJoinWarnsOfDrift(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		harm func(live string) error
		want string // in the warning; "" for none
	}{
		"as joined": {func(string) error { return nil }, ""},
		"edited":    {appendText("\ndb.host=10.0.2.77\n"), "written by another program since"},
		"refused":   {func(live string) error { return errors.Join(os.Remove(live), syscall.Mkfifo(live, 0o644)) }, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			m := ownTree(t, "3.0", "3.0.3")
			joinOffline(t, m, testMongo, "10.0.1.7")
			in, err := m.open()
			must.OK(t, err)
			must.OK(t, tt.harm(filepath.Join(m.Root, ams.DefaultDir, liveFile)))
			j := &joiner{
				Machine: m, store: m.store(), req: JoinRequest{Mongo: mustTarget(t, testMongo), Valve: ValveKeep},
				facts: &facts{install: in, address: ams.Address{Addr: netip.MustParseAddr("10.0.1.7")}},
			}
			j.warnDrift()
			got := warningsOf(j.facts.findings)
			if tt.want == "" && len(got) == 0 {
				return
			}
			if ids(got) != IDDrift || tt.want == "" || !strings.Contains(got[0].Text, tt.want) || !strings.Contains(got[0].Text, liveFile) {
				t.Errorf("%v", got)
			}
		})
	}
}
