// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
)

// withApp is one with the settings of LiveApp. The lines, if any, replace those of its database.
func withApp(name string, lines ...string) step {
	return func(t testing.TB, m *Machine) {
		text := slices.DeleteFunc(strings.SplitAfter(content(t, m, liveFile), "\n"), func(line string) bool {
			return len(lines) > 0 && strings.HasPrefix(line, "db.")
		})
		put(t, m, settingsOf(name), strings.Join(append(text, lines...), ""))
	}
}

func settingsOf(app string) string { return "webapps/" + app + "/WEB-INF/red5-web.properties" }

// pipe puts a pipe in the place of a file.
func pipe(path string) step {
	return func(t testing.TB, m *Machine) {
		must.OK(t, errors.Join(os.Remove(at(m, path)), syscall.Mkfifo(at(m, path), 0o644)))
	}
}

func appended(path, text string) step {
	return func(t testing.TB, m *Machine) { put(t, m, path, content(t, m, path)+text) }
}

func withDropIn(_ testing.TB, m *Machine) { m.DropIn = true }

// A leave with --offline restores each file that is as the join left it. Damage to another one, which the server's user can do
// at any time, does not block it, and is reported.
func TestLeave(t *testing.T) {
	t.Parallel()
	const plain, other = "mongodb://plain:secret1@10.77.0.1:27311/?authSource=admin", "mongodb://plain:secret2@10.77.0.2:27311/?authSource=admin"
	const escape = `x=\uZZZZ` + "\n"
	savedByServer, err := os.ReadFile("testdata/rewritten.properties")
	must.OK(t, err)
	once, again := joinedTo(testMongo, "10.0.1.7"), joinedTo("10.0.2.5", "10.0.1.7")
	adopted := []step{scripted, again}
	type row struct {
		found []step // before the join
		joins []step // one join, if empty
		since []step
		fails string // why the leave is not possible
		// The files are made standalone by their keys: the former bytes are not known.
		noRecord bool
		// The files that are not as before, those that name MongoDB, and those of a record that are not restored byte for byte.
		// An application stands for its file, and ~ for the end of a copy's name.
		differ, mongo, restored string
		has                     map[string]string // what is in some files
		warns                   []string          // "id: text", or a part of that
	}
	rows := map[string]row{
		"as the join left it": {},
		"the server saved its settings": {
			joins: []step{joinedTo(plain, "10.0.1.7")}, since: []step{with(liveFile, string(savedByServer))},
			differ: "LiveApp", restored: "LiveApp: keys",
		},
		"an operator changed a value of the join": {
			joins: []step{joinedTo("10.0.2.4", "10.0.1.7")}, since: []step{edited(liveFile, "db.host=10.0.2.4", "my.own.key=1\ndb.host=10.0.2.99")},
			differ: "LiveApp", restored: "LiveApp: standalone", warns: []string{"AGENT-EDITED: LiveApp: db.host was edited since"},
		},
		"half written": {
			since:  []step{with(liveFile, "#Sat Nov 21 00:34:56 UTC 2026\nsettings.x=1")},
			differ: "LiveApp~", restored: "LiveApp~: standalone", has: map[string]string{liveFile + ".amsagent-saved": "settings.x=1"}, warns: []string{"AMS-TORN: "},
		},
		"the container of an upgrade": {
			since:  []step{with(beansFile, strings.Replace(content(t, newTree(t), beansFile), "cluster end", "end of the cluster", 1))},
			differ: "conf/jee-container.xml", restored: "conf/jee-container.xml: standalone", has: map[string]string{beansFile: "end of the cluster"},
			warns: []string{"AGENT-EDITED: conf/jee-container.xml: has sections that cannot be switched, but is a standalone server's: it stays as it is"},
		},
		"the server's settings are missing": {
			since: []step{without(serverFile)}, differ: serverFile,
			warns: []string{"AMS-INSTALL: ", "AGENT-EDITED: conf/red5.properties: was removed since"},
		},
		"more applications than are read": {since: []step{manyFolders}, warns: []string{"AMS-INSTALL: "}},
		"the server's folder is missing":  {since: []step{without("conf")}, fails: "is not an Ant Media Server tree"},

		// Another tool had made the same files a node's.
		"adopted": {joins: adopted, noRecord: true},
		"adopted, malformed settings": {
			joins: adopted, since: []step{appended(liveFile, escape)}, noRecord: true,
			differ: "LiveApp~", mongo: "LiveApp~", warns: []string{"AGENT-EDITED: LiveApp: cannot be read as settings any more"},
		},
		"adopted, empty settings": {joins: adopted, since: []step{with(liveFile, "")}, noRecord: true, warns: []string{"AMS-TORN: "}},
		"adopted, settings are a pipe": {
			joins: adopted, since: []step{pipe(liveFile)}, noRecord: true,
			differ: "LiveApp", warns: []string{"AGENT-EDITED: LiveApp: it is left as it is"},
		},
		"the script's alone, settings are a pipe": {
			joins: []step{scripted, pipe(liveFile)}, noRecord: true,
			differ: "LiveApp", warns: []string{"AGENT-EDITED: LiveApp is not made standalone: "},
		},
		"adopted, malformed settings of the server": {
			joins: adopted, since: []step{appended(serverFile, escape)}, noRecord: true,
			differ: serverFile + "~", mongo: serverFile + "~", warns: []string{"AGENT-EDITED: conf/red5.properties: cannot be read as settings any more"},
		},
		"adopted, the container is no XML": {
			joins: adopted, since: []step{appended(beansFile, "<beans>")}, noRecord: true,
			differ: beansFile, warns: []string{"AGENT-EDITED: conf/jee-container.xml is left as it is: it is no XML"},
		},
		"adopted, the container is empty": {
			joins: adopted, since: []step{with(beansFile, "")}, noRecord: true,
			differ: beansFile, warns: []string{"AGENT-EDITED: conf/jee-container.xml is left as it is: it is no XML"},
		},
		"adopted, an empty application was made after it": {
			joins: adopted, since: []step{with(settingsOf("new"), "")}, noRecord: true,
			differ: "new", warns: []string{"AGENT-EDITED: new is not made standalone"},
		},

		// The files of the agent.
		"no record": {
			found: []step{withDropIn}, since: []step{remembered, without(undoFile)}, noRecord: true,
			differ: "conf/red5.properties LiveApp WebRTCAppEE root", warns: []string{"AGENT-RECORD: "},
		},
		"a damaged record, after a leave that was refused": {
			since:    []step{remembered, with(undoFile, "{"), moved(beansFile, beansFile+".away"), refusedLeave, moved(beansFile+".away", beansFile)},
			noRecord: true, differ: "conf/red5.properties LiveApp WebRTCAppEE root " + undoFile + ".damaged-1", warns: []string{"AGENT-RECORD: "},
		},
		// It has no own file to write.
		"a join that was killed after it saved its state": {joins: []step{func(t testing.TB, m *Machine) { change(t, m, func(*State) {}) }}},
		"a file for the folder of the drop-in":            {since: []step{with(filepath.Dir(ams.DropInPath), "")}, differ: filepath.Dir(ams.DropInPath)},
	}
	for _, file := range []string{beansFile, serverFile, liveFile} {
		name := short.Replace(file)
		rows[file+" is a pipe"] = row{since: []step{pipe(file)}, differ: name, warns: []string{"AGENT-EDITED: " + name + ": it is left as it is"}}
		if file != liveFile { // without it there is no installation
			rows[file+" is a pipe"] = row{since: []step{pipe(file)}, differ: name, warns: []string{"AMS-INSTALL: ", "AGENT-EDITED: " + name + ": it is left as it is"}}
		}
		rows[file+" is malformed"] = row{
			since: []step{with(file, "<beans>\n"+escape)}, differ: name + "~", restored: name + "~: standalone",
			warns: []string{"AGENT-EDITED: " + name + ": "},
		}
		rows[file+" is empty"] = row{since: []step{with(file, "")}, warns: []string{"AMS-TORN: "}}
	}
	rows[beansFile+" is empty"] = row{
		since: []step{with(beansFile, "")}, differ: beansFile + "~", restored: beansFile + "~: standalone",
		warns: []string{"AGENT-EDITED: conf/jee-container.xml: is no XML any more"},
	}
	for _, file := range []string{beansFile, liveFile} {
		for what, name := range map[string]string{"not UTF-8": "\xff", "too long": strings.Repeat("x", 240)} {
			to := filepath.Join(filepath.Dir(file), name)
			r := row{since: []step{moved(file, to), linked(file, name)}, differ: short.Replace(file + " " + to), warns: []string{"AGENT-EDITED: " + short.Replace(file)}}
			if file == liveFile {
				r.mongo = short.Replace(to)
			}
			rows[file+" has a name that is "+what] = r
		}
	}
	// A folder gets another name, with a link by the former one. It gets back what it had.
	renamed := []step{moved("webapps/LiveApp", "webapps/renamed"), linked("webapps/LiveApp", "renamed")}
	own := map[string]string{settingsOf("renamed"): "db.type=mongodb\ndb.host=10.0.9.9\ndb.name=own\n"}
	uses := []step{with(liveFile, own[settingsOf("renamed")])}
	rows["an application is renamed"] = row{found: uses, since: renamed, differ: "LiveApp renamed", has: own}
	rows["an application is renamed, and joined again"] = row{found: uses, since: append(renamed[:2:2], again), differ: "LiveApp renamed", has: own}
	// An application that was made on the node becomes standalone with the server. One that used MongoDB before the join, or uses
	// another database, keeps it.
	for name, mongo := range map[string]string{"": plain, ", joined again": plain, ", joined with another MongoDB": other} {
		rows["an application was made"+name] = row{
			found:  []step{withApp("before", "db.type=mongodb\n", "db.host=mongodb\\://plain\\:secret1@10.77.0.1\\:27311/?authSource\\=admin\n", "db.name=before\n")},
			joins:  []step{joinedTo(plain, "10.0.1.7")},
			since:  []step{withApp("made"), withApp("redis", "db.type=redisdb\n", "db.host=10.0.9.9\n", "db.name=redis\n"), joinedTo(mongo, "10.0.1.7")},
			differ: "made redis", restored: "made: standalone",
			has: map[string]string{settingsOf("made"): "\ndb.type=mapdb\ndb.host=localhost\n", settingsOf("redis"): "\ndb.type=redisdb\n"},
		}
	}
	// A link to an application's folder, made after the join. Its name may have been an application's own before.
	for name, since := range map[string][]step{"alive": nil, "zlive": nil, "alive, joined again": {again}} {
		app, _, _ := strings.Cut(name, ",")
		rows["a link "+name] = row{since: append([]step{linked("webapps/"+app, "LiveApp")}, since...)}
	}
	for name, found := range map[string][]step{
		"WebRTCAppEE": nil, "alive": {withApp("alive")},
		"behind": {withApp("behind"), moved("/usr/local", "/srv"), linked("/usr/local", "../srv")},
	} {
		rows["a link replaces "+name] = row{
			found: found, since: []step{linked("webapps/"+name, "LiveApp")}, differ: strings.Replace(name, "behind", "/srv/antmedia/behind", 1),
			warns: []string{"AGENT-EDITED: " + name + ": it is left as it is: it is now another name of LiveApp"},
		}
	}
	// An operator's secret from before comes back, also after a second join, and without the undo record. Without the state file
	// the files are known by name.
	const found, hosts = "10.9.9.9\n", "127.0.0.1 localhost\n"
	for name, r := range map[string]row{
		"a join":          {},
		"no record":       {since: []step{without(undoFile)}, noRecord: true, differ: "conf/red5.properties LiveApp WebRTCAppEE root", warns: []string{"AGENT-RECORD: "}},
		"no state":        {since: []step{without(stateFile)}, differ: MongoPath},
		"damaged state":   {since: []step{with(stateFile, "{")}, differ: MongoPath, warns: []string{"AGENT-RECORD: "}},
		"not written yet": {since: []step{with(MongoPath, found), without(ams.DropInPath), with(hostsFile, hosts)}},
	} {
		r.found = []step{withDropIn, with(MongoPath, found), with("/etc/hostname", "no-such-name\n"), with(hostsFile, hosts)}
		r.joins = []step{joinedTo("10.0.2.4", "10.0.1.7"), joinedTo(testMongo, "10.0.1.8"), remembered}
		rows["own files, "+name] = r
	}
	for name, tt := range rows {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newTree(t, tt.found...)
			before := allFiles(t, m)
			if len(tt.joins) == 0 {
				tt.joins = []step{once}
			}
			do(t, m, append(tt.joins, tt.since...)...)
			res, err := m.Leave(t.Context(), LeaveRequest{Offline: true})
			if tt.fails != "" {
				must.Contain(t, "the error", fmt.Sprint(err), tt.fails)
				return
			}
			must.OK(t, err)
			after := allFiles(t, m)
			var differ, mongo, restored, warns []string
			for _, path := range slices.Sorted(maps.Keys(merged(before, after))) {
				if before[path] == after[path] {
					continue
				}
				differ = append(differ, short.Replace(path))
				if strings.Contains(after[path], "p%40ss") || strings.Contains(after[path], "10.0.2.") || strings.Contains(after[path], "secret1") || strings.Contains(after[path], "secret2") {
					mongo = append(mongo, short.Replace(path))
				}
			}
			for _, f := range res.Files {
				if name := short.Replace(f.Path); f.Restored != "bytes" && f.Restored != "removed" {
					restored = append(restored, name+": "+string(f.Restored))
				}
				must.Equal(t, f.Path+" is removed", content(t, m, f.Path) == "none", f.Restored == "removed")
			}
			for _, w := range res.Warnings {
				warns = append(warns, short.Replace(w.ID+": "+w.Text))
			}
			must.Equal(t, "files that are not as before", strings.Join(differ, " "), tt.differ)
			must.Equal(t, "files that name MongoDB", strings.Join(mongo, " "), tt.mongo)
			if !tt.noRecord {
				must.Equal(t, "restored", strings.Join(restored, " "), tt.restored)
			}
			must.Equal(t, "exact", res.Exact, !tt.noRecord && tt.restored == "" && !strings.Contains(strings.Join(warns, ""), IDConflict))
			for path, text := range tt.has {
				must.Contain(t, path, content(t, m, path), text)
			}
			if !slices.EqualFunc(warns, tt.warns, strings.Contains) {
				t.Errorf("warnings: %q, want %q", warns, tt.warns)
			}
		})
	}
}

// short makes names of files short, for a table.
var short = strings.NewReplacer(ams.DefaultDir+"/", "", "webapps/", "", "/WEB-INF/red5-web.properties", "", ".amsagent-saved", "~")

// merged has the keys of both.
func merged(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

func manyFolders(t testing.TB, m *Machine) {
	for i := range 4200 {
		must.OK(t, os.Mkdir(at(m, fmt.Sprint("webapps/", i)), 0o755))
	}
}

// refusedLeave puts a damaged record aside.
func refusedLeave(t testing.TB, m *Machine) {
	_, err := m.Leave(t.Context(), LeaveRequest{Offline: true})
	must.Contain(t, "the state", asRefused(t, err).State, "undo.json.damaged-1")
}
