// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
)

// The panel and the vendor's script give an application of a node the settings of one. A leave
// makes it standalone with the server: MongoDB's password is not left behind. What used MongoDB
// before the join uses it after the leave.
func TestLeaveOfLaterApplications(t *testing.T) {
	t.Parallel()
	const mongo, other = "mongodb://plain:secret1@10.77.0.1:27311/?authSource=admin", "mongodb://plain:secret2@10.77.0.2:27311/?authSource=admin"
	for _, tt := range []struct {
		name  string
		again string // the MongoDB of a second join
	}{
		{name: "joined once"},
		{name: "joined again", again: mongo},
		{name: "joined with another MongoDB", again: other},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := ownTree(t, "3.0", "3.0.3")
			webapps := filepath.Join(m.Root, ams.DefaultDir, "webapps")
			made := func(name string, from string, lines ...string) {
				t.Helper()
				b, err := os.ReadFile(filepath.Join(webapps, from, "WEB-INF/red5-web.properties"))
				must.OK(t, err)
				text := slices.DeleteFunc(strings.SplitAfter(string(b), "\n"), func(line string) bool {
					return len(lines) > 0 && strings.HasPrefix(line, "db.")
				})
				text = append(text, lines...)
				path := filepath.Join(webapps, name, "WEB-INF/red5-web.properties")
				must.OK(t, os.MkdirAll(filepath.Dir(path), 0o755))
				must.OK(t, os.WriteFile(path, []byte(strings.Join(text, "")), 0o644))
			}
			made("before", "LiveApp", "db.type=mongodb\n", "db.host=mongodb\\://plain\\:secret1@10.77.0.1\\:27311/?authSource\\=admin\n", "db.name=before\n")
			before := treeFiles(t, m)
			joinOffline(t, m, mongo, "10.0.1.7")
			made("made", "LiveApp")
			made("redis", "LiveApp", "db.type=redisdb\n", "db.host=10.0.9.9\n", "db.name=redis\n")
			if tt.again != "" {
				joinOffline(t, m, tt.again, "10.0.1.7")
			}
			res := leaveOffline(t, m)
			after := treeFiles(t, m)
			for path, was := range before {
				if after[path] != was {
					t.Errorf("%s is not as before the join:\n%s", path, after[path])
				}
			}
			got := after["/webapps/made/WEB-INF/red5-web.properties"]
			standalone := strings.Contains(got, "\ndb.type=mapdb\n") && strings.Contains(got, "\ndb.host=localhost\n") && !strings.Contains(got, "secret")
			if !standalone {
				t.Errorf("the application that was made on the node:\n%s", got)
			}
			if got := after["/webapps/redis/WEB-INF/red5-web.properties"]; !strings.Contains(got, "\ndb.type=redisdb\n") {
				t.Errorf("the application with a database of its own:\n%s", got)
			}
			said := map[string]Restored{}
			for _, f := range res.Files {
				if f.Changed {
					said[strings.TrimPrefix(f.Path, filepath.Join(ams.DefaultDir, "webapps"))] = f.Restored
				}
			}
			if how := said["/made/WEB-INF/red5-web.properties"]; how != RestoredStandalone || res.Exact {
				t.Errorf("said %q of it, exact is %v", how, res.Exact)
			}
			if slices.ContainsFunc(res.Warnings, func(f Finding) bool { return strings.Contains(f.Text, "webapps/made/") }) {
				t.Errorf("warnings: %v", res.Warnings)
			}
		})
	}
}

// A link to an application's folder, made after the join, does not block a leave and does not change the restored files.
func TestLeaveWithASecondName(t *testing.T) {
	t.Parallel()
	const rest = "/WEB-INF/red5-web.properties"
	for _, tt := range []struct {
		name     string
		replaced bool // the name was an application's own before
		again    bool
		behind   bool // the installation is behind a link
	}{
		{name: "alive"},
		{name: "zlive"},
		{name: "alive", again: true},
		{name: "WebRTCAppEE", replaced: true},
		{name: "alive", replaced: true},
		{name: "alive", replaced: true, behind: true},
	} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			m := ownTree(t, "3.0", "3.0.3")
			if local := filepath.Join(m.Root, "usr/local"); tt.behind {
				must.OK(t, errors.Join(os.Rename(local, filepath.Join(m.Root, "srv")), os.Symlink("../srv", local)))
			}
			webapps := filepath.Join(m.Root, ams.DefaultDir, "webapps")
			link := filepath.Join(webapps, tt.name)
			if tt.replaced {
				b, err := os.ReadFile(filepath.Join(webapps, "LiveApp", rest))
				if err == nil {
					err = errors.Join(os.MkdirAll(filepath.Join(link, "WEB-INF"), 0o755), os.WriteFile(filepath.Join(link, rest), b, 0o644))
				}
				must.OK(t, err)
			}
			before := treeFiles(t, m)
			joinOffline(t, m, testMongo, "10.0.1.7")
			must.OK(t, errors.Join(os.RemoveAll(link), os.Symlink("LiveApp", link)))
			if tt.again {
				joinOffline(t, m, "10.0.2.5", "10.0.1.7")
			}
			res := leaveOffline(t, m)
			must.OK(t, os.Remove(link))
			after := treeFiles(t, m)
			for path, was := range before {
				if !strings.Contains(path, "/"+tt.name+"/") && after[path] != was {
					t.Errorf("%s is not as before the join:\n%s", path, after[path])
				}
			}
			named := slices.ContainsFunc(res.Warnings, func(f Finding) bool {
				return f.ID == IDConflict && strings.Contains(f.Text, "/"+tt.name+rest) && strings.Contains(f.Text, "another name of")
			})
			if named != tt.replaced {
				t.Errorf("warnings: %v", res.Warnings)
			}
		})
	}
}

// A folder that gets another name while the machine is a node, with a link by the former one, gets
// back what it had, whatever is joined meanwhile.
func TestLeaveOfARenamedApplication(t *testing.T) {
	t.Parallel()
	const file = "WEB-INF/red5-web.properties"
	for _, tt := range []struct {
		name  string
		again bool // a second join
	}{{"renamed", false}, {"renamed, and joined again", true}} {
		t.Run(tt.name, func(t *testing.T) {
			m := ownTree(t, "3.0", "3.0.3")
			webapps := filepath.Join(m.Root, ams.DefaultDir, "webapps")
			put(t, m, filepath.Join(ams.DefaultDir, "webapps/LiveApp", file), "db.type=mongodb\ndb.host=10.0.9.9\ndb.name=own\n")
			was := treeFiles(t, m)["/webapps/LiveApp/"+file]
			joinOffline(t, m, testMongo, "10.0.1.7")
			must.OK(t, errors.Join(os.Rename(filepath.Join(webapps, "LiveApp"), filepath.Join(webapps, "renamed")), os.Symlink("renamed", filepath.Join(webapps, "LiveApp"))))
			if tt.again {
				joinOffline(t, m, "10.0.2.5", "10.0.1.7")
			}
			res := leaveOffline(t, m)
			if got := treeFilesOf(t, filepath.Join(webapps, "renamed", file)); got != was {
				t.Errorf("it has\n%s\nand had\n%s", got, was)
			}
			if !res.Exact || len(res.Warnings) > 0 {
				t.Errorf("exact %v, warnings %v", res.Exact, res.Warnings)
			}
		})
	}
}

// treeFilesOf is one file as treeFiles has it.
func treeFilesOf(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	must.OK(t, err)
	b, err := os.ReadFile(path)
	must.OK(t, err)
	return info.Mode().String() + "\n" + string(b)
}

// A leave that put a damaged record out of the way and was refused then is run again: what join made
// is still known by its name.
func TestLeaveAfterADamagedRecord(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	joinOffline(t, m, testMongo, "10.0.1.7")
	must.OK(t, remember(m, State{Phase: PhaseJoined, InstanceID: "i-1", Address: "10.0.1.7", Release: "3.0.3"}))
	put(t, m, StateDir+"/undo.json", "{")
	container := filepath.Join(m.Root, ams.DefaultDir, "conf/jee-container.xml")
	must.OK(t, os.Rename(container, container+".away"))
	_, err := m.Leave(t.Context(), LeaveRequest{Offline: true})
	if refused, ok := errors.AsType[*PreflightError](err); !ok || !strings.Contains(refused.State, "undo.json.damaged-1") {
		t.Fatalf("%+v", err)
	}
	must.OK(t, os.Rename(container+".away", container))
	leaveOffline(t, m)
	if _, err := os.Lstat(filepath.Join(m.Root, MongoPath)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", MongoPath, err)
	}
}

// Without its record a leave still removes the join's own files: the password, and the drop-in with the former address.
func TestLeaveWithoutItsRecord(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	m.DropIn = true
	joinOffline(t, m, testMongo, "10.0.1.7")
	must.OK(t, remember(m, State{Phase: PhaseJoined, InstanceID: "i-1", Address: "10.0.1.7", Release: "3.0.3"}))
	must.OK(t, os.Remove(filepath.Join(m.Root, undoPath)))
	for _, path := range []string{MongoPath, ams.DropInPath} {
		if _, err := os.Lstat(filepath.Join(m.Root, path)); err != nil {
			t.Fatal(err)
		}
	}
	res := leaveOffline(t, m)
	for _, path := range []string{MongoPath, ams.DropInPath} {
		if _, err := os.Lstat(filepath.Join(m.Root, path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if !slices.ContainsFunc(res.Warnings, func(f Finding) bool { return f.ID == IDRecord }) {
		t.Errorf("warnings %v", res.Warnings)
	}
}

// A file name that the agent cannot write does not block a leave: the file stays unchanged, with a warning.
func TestLeaveWithAnImpossibleName(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"conf/jee-container.xml", "webapps/LiveApp/WEB-INF/red5-web.properties"} {
		for _, name := range []string{"\xff", strings.Repeat("x", 240)} {
			t.Run(fmt.Sprintf("%s, %d bytes", path, len(name)), func(t *testing.T) {
				m := ownTree(t, "3.0", "3.0.3")
				before := treeFiles(t, m)
				joinOffline(t, m, testMongo, "10.0.1.7")
				file := filepath.Join(m.Root, ams.DefaultDir, path)
				must.OK(t, errors.Join(os.Rename(file, filepath.Join(filepath.Dir(file), name)), os.Symlink(name, file)))
				res := leaveOffline(t, m)
				for at, text := range treeFiles(t, m) {
					if was, ok := before[at]; ok && was != text && !strings.HasSuffix(file, at) {
						t.Errorf("%s is not as before the join:\n%s", at, text)
					}
				}
				if !slices.ContainsFunc(res.Warnings, func(f Finding) bool { return f.ID == IDConflict && strings.Contains(f.Text, path) }) {
					t.Errorf("warnings: %v", res.Warnings)
				}
			})
		}
	}
}
