// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/readback"
)

// corpusDir holds real configuration files of AMS, beside the project.
const corpusDir = "../../shared/corpus/ams"

// corpusTree copies one release below a new root.
func corpusTree(t *testing.T, release string) *Machine {
	t.Helper()
	return treeIn(t, filepath.Join(corpusDir, release), strings.TrimSuffix(release, "-panel-saved"))
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
				resolved, err := java.Resolve(at(m, in.Server.Path), "${clusterdb.host}")
				must.OK(t, err)
				must.Equal(t, "what Spring makes of ${clusterdb.host}", resolved, form.Reveal())
				if strings.Contains(mongo, "://") {
					for path, content := range treeFiles(t, m) {
						if strings.Contains(content, form.Reveal()[strings.LastIndex(form.Reveal(), "@"):]) && strings.HasPrefix(content, "-rw-r--r--") {
							t.Errorf("%s holds a password and is readable by all users", path)
						}
					}
				}

				joined := treeFiles(t, m)
				must.Equal(t, "a second join", joinOffline(t, m, mongo, "10.0.0.7").Outcome, OutcomeUnchanged)
				must.NoDiff(t, "the files after a second join", treeFiles(t, m), joined)
				must.Equal(t, "the leave is exact", leaveOffline(t, m).Exact, true)
				must.NoDiff(t, "the files after the leave", treeFiles(t, m), before)
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
		v, err := java.Properties(at(m, p))
		must.OK(t, err)
		props[p] = v
	}
	beans, err := java.Beans(at(m, in.Container.Path))
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
		must.NoDiff(t, "what Java reads in "+path, got[path], want)
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
	must.NoDiff(t, "classes of the beans, but for the cluster's", rest, was.Classes())
}

// TestCorpusUnrelatedEdit edits lines that the agent does not manage between join and leave: the edits survive, all else is
// as before the join.
func TestCorpusUnrelatedEdit(t *testing.T) {
	t.Parallel()
	for _, release := range corpusReleases(t) {
		t.Run(release, func(t *testing.T) {
			byHand := func(t testing.TB, m *Machine) {
				in, err := ams.Open(m.Root, m.AMSDir)
				must.OK(t, err)
				if release != "1.9.0" { // whose container is given back whole
					edit(t, m, in.Container.Path, `name="checkInterval"`, `name="checkInterval" `)
				}
				edit(t, m, in.Server.Path, "http.port=5080", "http.port=5081\n# a note\nmy.clusterdb.host=keep")
				for _, a := range in.Apps {
					edit(t, m, a.File.Path, "db.name=", "mydb.host=keepme\ndb.name=")
				}
			}
			alone, node := corpusTree(t, release), corpusTree(t, release)
			do(t, alone, byHand)
			do(t, node, joinedTo("10.0.2.4", "10.0.0.7"), byHand)
			must.Equal(t, "warnings", ids(leaveOffline(t, node).Warnings), "")
			must.NoDiff(t, "the files", treeFiles(t, node), treeFiles(t, alone))
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
			text := content(t, m, in.Container.Path)
			put(t, m, in.Container.Path, strings.NewReplacer("<!-- cluster start", "<!-- cluster start -->  ", "cluster end -->", "<!-- cluster end -->").Replace(text))
			edit(t, m, in.Server.Path, "clusterdb.host=localhost", "clusterdb.host=10.0.2.4")
			for _, a := range in.Apps {
				edit(t, m, a.File.Path, "db.type=mapdb", "db.type=mongodb")
				edit(t, m, a.File.Path, "db.host=localhost", "db.host=10.0.2.4")
			}
			leaveOffline(t, m)
			must.NoDiff(t, "a clean standalone installation", treeFiles(t, m), want)
		})
	}
}
