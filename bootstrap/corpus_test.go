// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/readback"
)

// corpusDir holds real configuration files of AMS, beside the project.
const corpusDir = "../../shared/corpus/ams"

// corpusTree copies one release below a new root.
func corpusTree(t *testing.T, release string) *Machine {
	t.Helper()
	root := t.TempDir()
	target := filepath.Join(root, ams.DefaultDir)
	must.OK(t, os.CopyFS(target, os.DirFS(filepath.Join(corpusDir, release))))
	// The corpus is read-only, and so its copies are.
	err := filepath.WalkDir(target, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if d.IsDir() {
			mode = 0o755
		}
		return os.Chmod(p, mode)
	})
	must.OK(t, err)
	r, err := ams.ParseRelease(strings.TrimSuffix(release, "-panel-saved"))
	must.OK(t, err)
	return &Machine{Root: root, Release: r, Service: ams.None{}, Euid: os.Geteuid(), Version: "test"}
}

func corpusReleases(t *testing.T) []string {
	t.Helper()
	dirs, err := os.ReadDir(corpusDir)
	if err != nil {
		t.Skip("the tier corpus, without its folder ../shared/corpus (docs/testing.md)")
	}
	var names []string
	for _, d := range dirs {
		names = append(names, d.Name())
	}
	return names
}

// TestCorpus joins and leaves on the real files of every release, and asks
// Java and Spring what they read in between.
func TestCorpus(t *testing.T) {
	t.Parallel()
	java := readback.Start(t)
	for _, release := range corpusReleases(t) {
		for _, mongo := range []string{"10.0.2.4", "mongodb://us%20er:p%40%3A%2F%3F%23%25%26%5C@h1,h2:27018/?replicaSet=rs0&authSource=admin"} {
			name := release + "/bare"
			if strings.Contains(mongo, "://") {
				name = release + "/uri"
			}
			t.Run(name, func(t *testing.T) {
				m := corpusTree(t, release)
				before := treeFiles(t, m)
				in, err := ams.Open(m.Root, m.AMSDir)
				must.OK(t, err)
				wasProps, wasBeans := javaView(t, java, m, in)

				joinOffline(t, m, mongo, "10.0.0.7")
				form, err := MongoForm(m.Release, mustTarget(t, mongo))
				must.OK(t, err)
				props, beans := javaView(t, java, m, in)
				checkProperties(t, wasProps, props, in, form.Reveal())
				checkBeans(t, release, wasBeans, beans)
				// Spring fills placeholders in values as well: what it makes of
				// ours must be what we wrote.
				if got, err := java.Resolve(filepath.Join(m.Root, in.Server.Path), "${clusterdb.host}"); err != nil || got != form.Reveal() {
					t.Errorf("Spring resolves ${clusterdb.host} to %q, %v; want %q", got, err, form.Reveal())
				}
				if strings.Contains(mongo, "://") {
					for path, content := range treeFiles(t, m) {
						if strings.Contains(content, form.Reveal()[strings.LastIndex(form.Reveal(), "@"):]) && strings.HasPrefix(content, "-rw-r--r--") {
							t.Errorf("%s holds a password and is readable by all users", path)
						}
					}
				}

				joined := treeFiles(t, m)
				if res := joinOffline(t, m, mongo, "10.0.0.7"); res.Outcome != OutcomeUnchanged {
					t.Errorf("a second join: %s, want unchanged", res.Outcome)
				}
				if d := cmp.Diff(joined, treeFiles(t, m)); d != "" {
					t.Errorf("a second join changed (-first +second):\n%s", d)
				}
				if res := leaveOffline(t, m); !res.Exact {
					t.Errorf("leave is not exact: %v", res.Warnings)
				}
				if d := cmp.Diff(before, treeFiles(t, m)); d != "" {
					t.Errorf("join and leave are no round trip (-before +after):\n%s", d)
				}
			})
		}
	}
}

// javaView is what Java reads in all files of an installation.
func javaView(t *testing.T, java *readback.Reader, m *Machine, in *ams.Installation) (map[string]map[string]string, readback.Beans) {
	t.Helper()
	props := map[string]map[string]string{}
	paths := []string{in.Server.Path}
	for _, a := range in.Apps {
		paths = append(paths, a.File.Path)
	}
	for _, p := range paths {
		v, err := java.Properties(filepath.Join(m.Root, p))
		must.OK(t, err)
		props[p] = v
	}
	beans, err := java.Beans(filepath.Join(m.Root, in.Container.Path))
	must.OK(t, err)
	return props, beans
}

// checkProperties: exactly the intended values, and nothing else changed.
func checkProperties(t *testing.T, was, got map[string]map[string]string, in *ams.Installation, form string) {
	t.Helper()
	for path, values := range was {
		want := maps.Clone(values)
		if path == in.Server.Path {
			want["clusterdb.host"], want["clusterdb.user"], want["clusterdb.password"], want["useGlobalIp"] = form, "", "", "false"
		} else {
			want["db.type"], want["db.host"] = "mongodb", form
			for _, k := range []string{"db.user", "db.password"} {
				if _, ok := want[k]; ok {
					want[k] = ""
				}
			}
		}
		if d := cmp.Diff(want, got[path]); d != "" {
			t.Errorf("what Java reads in %s (-want +got):\n%s", path, d)
		}
	}
}

// clusterOnly are the beans that only a cluster node has.
var clusterOnly = []string{
	"io.antmedia.enterprise.cluster.TcpCluster",
	"io.antmedia.enterprise.cluster.ClusterStore",
	"io.antmedia.enterprise.cluster.HttpLiveStreamValve",
	"io.antmedia.filter.TokenGenerator", // in the first section up to 2.4.3
}

func checkBeans(t *testing.T, release string, was, got readback.Beans) {
	t.Helper()
	if got.Lookup("tomcat.cluster") == nil {
		t.Error("Spring finds no bean tomcat.cluster after the join")
	}
	if was.Lookup("tomcat.cluster") != nil {
		t.Error("Spring finds a bean tomcat.cluster before the join")
	}
	if release == "1.9.0" {
		return // two files of the vendor, which differ in more
	}
	var rest []string
	for _, c := range got.Classes() {
		if !slices.Contains(clusterOnly, c) {
			rest = append(rest, c)
		}
	}
	if d := cmp.Diff(was.Classes(), rest); d != "" {
		t.Errorf("classes of the beans, but for the cluster's (-before +after):\n%s", d)
	}
}

// TestCorpusUnrelatedEdit edits lines that the agent does not manage between join and leave: the edits survive, all else is
// as before the join.
func TestCorpusUnrelatedEdit(t *testing.T) {
	t.Parallel()
	for _, release := range corpusReleases(t) {
		t.Run(release, func(t *testing.T) {
			m := corpusTree(t, release)
			edit := func() {
				in, err := ams.Open(m.Root, m.AMSDir)
				must.OK(t, err)
				replace := func(path, old, repl string) {
					real := filepath.Join(m.Root, path)
					b, err := os.ReadFile(real)
					must.OK(t, err)
					if !bytes.Contains(b, []byte(old)) {
						t.Fatalf("%s has no %q", path, old)
					}
					must.OK(t, os.WriteFile(real, bytes.Replace(b, []byte(old), []byte(repl), 1), 0o644))
				}
				if release != "1.9.0" { // whose container is given back whole
					replace(in.Container.Path, `name="checkInterval"`, `name="checkInterval" `)
				}
				replace(in.Server.Path, "http.port=5080", "http.port=5081\n# a note\nmy.clusterdb.host=keep")
				for _, a := range in.Apps {
					replace(a.File.Path, "db.name=", "mydb.host=keepme\ndb.name=")
				}
			}
			edit()
			want := treeFiles(t, m)

			m = corpusTree(t, release)
			joinOffline(t, m, "10.0.2.4", "10.0.0.7")
			edit()
			res := leaveOffline(t, m)
			if len(res.Warnings) > 0 {
				t.Errorf("warnings: %v", res.Warnings)
			}
			if d := cmp.Diff(want, treeFiles(t, m)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestCorpusVendorSwitched makes a node as the vendor's script does, with its trailing whitespace, and leaves without an undo
// record: the files must be those of a clean standalone installation.
func TestCorpusVendorSwitched(t *testing.T) {
	t.Parallel()
	for _, release := range corpusReleases(t) {
		if release == "1.9.0" || strings.HasSuffix(release, "panel-saved") {
			continue // no markers; not a clean file to begin with
		}
		t.Run(release, func(t *testing.T) {
			m := corpusTree(t, release)
			want := treeFiles(t, m)
			in, err := ams.Open(m.Root, m.AMSDir)
			must.OK(t, err)
			vendorSwitch(t, filepath.Join(m.Root, in.Container.Path), strings.NewReplacer(
				"<!-- cluster start", "<!-- cluster start -->  ", "cluster end -->", "<!-- cluster end -->"))
			vendorSwitch(t, filepath.Join(m.Root, in.Server.Path), strings.NewReplacer("clusterdb.host=localhost", "clusterdb.host=10.0.2.4"))
			for _, a := range in.Apps {
				vendorSwitch(t, filepath.Join(m.Root, a.File.Path), strings.NewReplacer("db.type=mapdb", "db.type=mongodb", "db.host=localhost", "db.host=10.0.2.4"))
			}
			leaveOffline(t, m)
			if d := cmp.Diff(want, treeFiles(t, m)); d != "" {
				t.Errorf("not a clean standalone installation (-want +got):\n%s", d)
			}
		})
	}
}

func vendorSwitch(t *testing.T, path string, r *strings.Replacer) {
	t.Helper()
	b, err := os.ReadFile(path)
	must.OK(t, err)
	after := r.Replace(string(b))
	if after == string(b) {
		t.Fatalf("%s: nothing to switch", path)
	}
	must.OK(t, os.WriteFile(path, []byte(after), 0o644))
}
