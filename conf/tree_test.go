// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

const (
	stateDir      = "/var/lib/amsagent"
	containerPath = "/ams/conf/jee-container.xml"
	serverPath    = "/ams/conf/red5.properties"
	appPath       = "/ams/webapps/Live App/WEB-INF/red5-web.properties"
	rootPath      = "/ams/webapps/root/WEB-INF/red5-web.properties" // a link
	rootTarget    = "/data/root.properties"
	dropInPath    = "/etc/systemd/system/antmedia.service.d/50-amsagent.conf"
)

var propertyPaths = []string{serverPath, appPath, rootPath}

// newTree makes a root with a container, three properties files and the folder of a unit.
func newTree(t testing.TB) *Store {
	t.Helper()
	return newTreeIn(t, t.TempDir())
}

func newTreeIn(t testing.TB, root string) *Store {
	t.Helper()
	s := &Store{Root: root, Dir: stateDir}
	for path, text := range map[string]string{
		containerPath: standaloneXML,
		serverPath:    "# server\nhttp.port=5080\nclusterdb.host=localhost\n",
		appPath:       "db.type=mapdb\ndb.host=localhost\ndb.password=",
		rootTarget:    "db.type=mapdb\r\ndb.host=localhost\r\n",
	} {
		put(t, s, path, text)
	}
	must.OK(t, errors.Join(os.Chmod(at(s, serverPath), 0o640), os.Chmod(at(s, rootTarget), 0o600)))
	must.OK(t, os.MkdirAll(filepath.Dir(at(s, rootPath)), 0o755))
	must.OK(t, os.Symlink(rootTarget, at(s, rootPath)))
	must.OK(t, os.MkdirAll(filepath.Dir(at(s, dropInPath)), 0o755))
	return s
}

// at is the real path of a file.
func at(s *Store, path string) string { return filepath.Join(s.Root, path) }

// inside is what a real path is called below the root.
func inside(s *Store, real string) string {
	return filepath.Join("/", strings.TrimPrefix(real, s.Root))
}

// put writes over a file in place, or makes it.
func put(t testing.TB, s *Store, path, text string) {
	t.Helper()
	must.OK(t, errors.Join(os.MkdirAll(filepath.Dir(at(s, path)), 0o755), os.WriteFile(at(s, path), []byte(text), 0o644)))
}

func content(t testing.TB, s *Store, path string) string {
	t.Helper()
	f, err := s.Read(path)
	must.OK(t, err)
	if !f.Exists() {
		t.Errorf("%s is not there", path)
	}
	return string(f.Bytes)
}

func replaceIn(t testing.TB, s *Store, path, old, repl string) {
	t.Helper()
	text := content(t, s, path)
	if !strings.Contains(text, old) {
		t.Fatalf("%s does not hold %q", path, old)
	}
	put(t, s, path, strings.Replace(text, old, repl, 1))
}

func remove(t testing.TB, s *Store, path string) {
	t.Helper()
	must.OK(t, os.Remove(at(s, path)))
}

// replaceByLink puts a link in the place of a file, and moveTo moves that to where the link leads.
func replaceByLink(t testing.TB, s *Store, path, to string) {
	t.Helper()
	must.OK(t, errors.Join(os.Remove(at(s, path)), os.Symlink(to, at(s, path))))
}

func moveTo(t testing.TB, s *Store, path, to string) {
	t.Helper()
	must.OK(t, errors.Join(os.Rename(at(s, path), at(s, to)), os.Symlink(to, at(s, path))))
}

// snapshot is everything below the root but the state directory: kind, mode, link target and content.
func snapshot(t testing.TB, s *Store) map[string]string {
	t.Helper()
	out := map[string]string{}
	must.OK(t, filepath.WalkDir(s.Root, func(real string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := inside(s, real)
		if name == stateDir || name == "/run" {
			return fs.SkipDir
		}
		if name == "/var" || name == "/var/lib" {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		out[name] = info.Mode().String()
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(real)
			out[name] += " -> " + to
			return err
		case d.Type().IsRegular():
			b, err := os.ReadFile(real)
			out[name] += " " + string(b)
			return err
		}
		return nil
	}))
	return out
}

// set is the edit that gives a key a value.
func set(key, value string) func([]byte) ([]Span, error) {
	return func(src []byte) ([]Span, error) {
		p, err := ParseProperties(src)
		if err != nil {
			return nil, err
		}
		p.Set(key, value, nil)
		return p.Spans(), nil
	}
}

// addHost is that of /etc/hosts; "" adds no line.
func addHost(address string) func([]byte) ([]Span, error) {
	return func(src []byte) ([]Span, error) {
		if address == "" {
			return nil, nil
		}
		return AddHost(src, netip.MustParseAddr(address), "node"), nil
	}
}

func noEdit([]byte) ([]Span, error) { return nil, nil }

func toCluster(src []byte) ([]Span, error) {
	c, err := ParseContainer(src)
	if err != nil {
		return nil, err
	}
	err = c.SetMode(ModeCluster)
	return c.Spans(), err
}

// newPlan begins a plan with the record.
func newPlan(t testing.TB, s *Store) *Plan {
	t.Helper()
	record, err := s.Record()
	must.OK(t, err)
	return s.NewPlan(record)
}

// planCluster plans what a join would, towards the given database.
func planCluster(t testing.TB, s *Store, host string) *Plan {
	t.Helper()
	p := newPlan(t, s)
	must.OK(t, p.Edit(Target{Path: containerPath, Kind: KindContainer}, toCluster))
	must.OK(t, p.Edit(Target{Path: dropInPath, Kind: KindWhole, CreateMode: 0o644}, func(src []byte) ([]Span, error) {
		return []Span{{Anchor: "whole", Old: src, New: []byte("[Service]\nEnvironment=" + host + "\n")}}, nil
	}))
	local := "localhost"
	for _, path := range propertyPaths {
		now, err := s.Read(path)
		must.OK(t, err)
		must.OK(t, p.Edit(Target{Path: path, Kind: KindProperties, Private: true, Owner: now.UID}, func(src []byte) ([]Span, error) {
			q, err := ParseProperties(src)
			if err != nil {
				return nil, err
			}
			key := "db.host"
			if path == serverPath {
				key = "clusterdb.host"
			}
			q.Set(key, host, &local)
			q.Set("added.key", "x", &local)
			return q.Spans(), nil
		}))
	}
	return p
}

// join makes the tree a node of the cluster of that database.
func join(t testing.TB, s *Store, host string) *Plan {
	t.Helper()
	p := planCluster(t, s, host)
	must.OK(t, p.Commit("join"))
	return p
}

// joinedTwice joins, and joins another cluster: the tree between the two, and the plan of the second.
func joinedTwice(t *testing.T, s *Store) (between map[string]string, second *Plan) {
	t.Helper()
	join(t, s, "10.0.0.1")
	between = snapshot(t, s)
	return between, join(t, s, "10.0.0.2")
}

// planUndo plans to restore all that the record knows.
func planUndo(t testing.TB, s *Store) *Plan {
	t.Helper()
	record, err := s.Record()
	must.OK(t, err)
	p, err := s.PlanUndo(record)
	must.OK(t, err)
	return p
}

// leave restores all that the record knows, and returns the conflicts.
func leave(t testing.TB, s *Store) []Conflict {
	t.Helper()
	p := planUndo(t, s)
	must.OK(t, p.CommitUndo("leave"))
	return p.Conflicts
}

// undoAll is a leave without conflicts.
func undoAll(t testing.TB, s *Store) {
	t.Helper()
	noConflict(t, leave(t, s))
}

func noConflict(t testing.TB, conflicts []Conflict) {
	t.Helper()
	if len(conflicts) > 0 {
		t.Errorf("conflicts: %v", conflicts)
	}
}

// failsWith reports an error that is not the wanted one.
func failsWith(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// fileOwned is the owner, the mode and the content of a file.
func fileOwned(t testing.TB, s *Store, path string) string {
	t.Helper()
	f, err := s.Read(path)
	must.OK(t, err)
	return fmt.Sprintf("%d:%d %v %s", f.UID, f.GID, f.Mode, f.Bytes)
}

// conflictOf reports an error if one path is not all that is named.
func conflictOf(t testing.TB, conflicts []Conflict, path string) {
	t.Helper()
	if len(conflicts) != 1 || conflicts[0].Path != path {
		t.Errorf("conflicts: %v, want one of %s", conflicts, path)
	}
}

// reverted is the revert of a plan that was committed.
func reverted(t testing.TB, p *Plan) []Conflict {
	t.Helper()
	conflicts, err := p.Revert("rollback")
	must.OK(t, err)
	return conflicts
}
