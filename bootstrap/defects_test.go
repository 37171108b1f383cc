// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/readback"
)

// The fifteen defects of the vendor's mode switch, each reproduced with its own script on its own files, are fifteen tests.

// refusedJoin is a join that changes nothing. It returns the finding.
func refusedJoin(t *testing.T, m *Machine, mongo string) Finding {
	t.Helper()
	before := treeFiles(t, m)
	_, err := m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, mongo), Address: "10.0.1.7", Offline: true, Valve: ValveKeep})
	found := asRefused(t, err).Findings
	must.Equal(t, "findings", len(found), 1)
	must.NoDiff(t, "the files after the refusal", treeFiles(t, m), before)
	return found[0]
}

// roundTrips leaves, which restores the files from before.
func roundTrips(t *testing.T, m *Machine, before map[string]string) {
	t.Helper()
	leaveOffline(t, m)
	must.NoDiff(t, "the files after the leave", treeFiles(t, m), before)
}

// Defect 1: asks y/n for a bare IP and cancels itself without a terminal.
func TestDefect01BareIPNeedsNoAnswer(t *testing.T) {
	t.Parallel()
	m := newTree(t)
	must.Equal(t, "the outcome", joinOffline(t, m, "10.0.0.5", "").Outcome, OutcomeEdited)
	must.Equal(t, "db.host", property(t, m, liveFile, "db.host"), "10.0.0.5")
}

// Defect 2: a host name or ip:port becomes Redis.
func TestDefect02NamesAndPortsAreMongoDB(t *testing.T) {
	t.Parallel()
	for _, mongo := range []string{"db.example.internal", "10.0.0.5:27018", "a.example,b.example:27018"} {
		m := newTree(t, joinedTo(mongo, ""))
		must.Equal(t, mongo+": db.type", property(t, m, liveFile, "db.type"), "mongodb")
		must.Equal(t, mongo+": clusterdb.host", property(t, m, serverFile, "clusterdb.host"), mongo)
	}
}

// Defect 3: separate user and password reach some files and not others.
func TestDefect03CredentialsReachEveryFile(t *testing.T) {
	t.Parallel()
	const uri = "mongodb://user:pass@10.0.0.5/?authSource=admin"
	m := newTree(t, joinedTo(uri, ""))
	for _, f := range []string{liveFile, settingsOf("WebRTCAppEE"), settingsOf("root")} {
		must.Equal(t, f+": db.host", property(t, m, f, "db.host"), uri)
		must.Equal(t, f+": a user or password beside the URI", property(t, m, f, "db.user")+property(t, m, f, "db.password"), "")
	}
	must.Equal(t, "clusterdb.host", property(t, m, serverFile, "clusterdb.host"), uri)
}

// Defects 4 and 5: a backslash is dropped, a slash breaks the edit, an ampersand inserts the old line. Java is asked what it reads.
func TestDefect04And05SpecialCharactersSurvive(t *testing.T) {
	t.Parallel()
	java := readback.Start(t)
	// The password is @ : / ? # % & \ and a blank.
	const rest = "us%20er:%40%3A%2F%3F%23%25%26%5C%20@h1,h2/?replicaSet=rs0&authSource=admin&w=majority"
	for _, tt := range []struct{ variant, release, want string }{
		{"3.0", "3.0.3", "mongodb://" + rest}, {"2.10", "2.10.0", "mongodb://" + rest}, {"2.10", "2.4.0", rest}, {"2.10", "1.9.1", rest},
	} {
		m := ownTree(t, tt.variant, tt.release)
		joinOffline(t, m, "mongodb://"+rest, "")
		for file, key := range map[string]string{serverFile: "clusterdb.host", liveFile: "db.host"} {
			got, err := java.Properties(at(m, file))
			must.OK(t, err)
			must.Equal(t, tt.release+": what Java reads as "+key, got[key], tt.want)
		}
	}
}

// Defect 6: a URI on a release that cannot use one leaves the node half switched, exit 0. The agent writes the form that release
// understands, or refuses the join with the reason.
func TestDefect06OldReleasesGetTheirForm(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "2.10", "2.1.0")
	joinOffline(t, m, "mongodb://u:p@h1/?replicaSet=rs0", "")
	must.Equal(t, "db.host", property(t, m, liveFile, "db.host"), "u:p@h1/?replicaSet=rs0")
	found := refusedJoin(t, ownTree(t, "2.10", "2.1.0"), "mongodb+srv://cluster0.example.net/")
	must.Equal(t, "the finding", found.ID+": "+found.Text,
		IDMongoForm+": Ant Media Server 2.1.0 cannot use this connection string: mongodb+srv:// is understood from 2.4.1 on")
}

// Defect 7: a blank in an argument splits it.
func TestDefect07BlanksDoNotSplit(t *testing.T) {
	t.Parallel()
	const uri = "mongodb://us%20er:p%2Aw%20rd@h1/"
	must.Equal(t, "db.host", property(t, newTree(t, joinedTo(uri, "")), liveFile, "db.host"), uri)
}

// Defect 8: standalone is neither idempotent nor a round trip.
func TestDefect08RoundTripWithoutDrift(t *testing.T) {
	t.Parallel()
	for _, v := range []string{"3.0", "2.10", "1.9.0"} {
		m := ownTree(t, v, "")
		before := treeFiles(t, m)
		for range 5 {
			joinOffline(t, m, "10.0.0.5", "")
			roundTrips(t, m, before)
			roundTrips(t, m, before)
		}
	}
}

// Defect 9: an operator's comment inside an active section makes the file ill-formed when the section is commented out.
func TestDefect09NestedComment(t *testing.T) {
	t.Parallel()
	const says = "line 29: a comment inside a cluster section"
	m := newTree(t, joinedTo("10.0.0.5", ""), edited(beansFile, `<property name="clusterStore">`, "<!-- ours -->\n\t\t<property name=\"clusterStore\">"))
	found := refusedJoin(t, m, "10.0.0.6")
	must.Equal(t, "the finding", found.ID, IDSections)
	must.Contain(t, "the finding", found.Text, says)
	// The server's user can make such a comment at any time: it does not keep the machine from leaving.
	res := leaveOffline(t, m)
	must.Equal(t, "warnings", ids(res.Warnings), IDConflict)
	must.Contain(t, "the warning", res.Warnings[0].Text, says)
	must.Contain(t, "the copy", content(t, m, beansFile+".amsagent-saved"), "<!-- ours -->")
	do(t, m, without(beansFile+".amsagent-saved"))
	must.NoDiff(t, "the files", treeFiles(t, m), treeFiles(t, newTree(t)))
}

// Defect 10: replaced lines of a CRLF file lose their CR.
func TestDefect10LineEndingsStay(t *testing.T) {
	t.Parallel()
	m := newTree(t)
	for _, f := range []string{serverFile, liveFile, beansFile} {
		put(t, m, f, strings.ReplaceAll(content(t, m, f), "\n", "\r\n"))
	}
	before := treeFiles(t, m)
	joinOffline(t, m, "10.0.0.5", "")
	for _, f := range []string{serverFile, liveFile, beansFile} {
		text := content(t, m, f)
		must.Equal(t, f+": line ends without CR", strings.Count(text, "\n")-strings.Count(text, "\r\n"), 0)
	}
	roundTrips(t, m, before)
}

// Defect 11: comments and other keys that contain the name are overwritten.
func TestDefect11OnlyTheKeyItself(t *testing.T) {
	t.Parallel()
	const lines = "mydb.host=keepme\n#db.type=redisdb\nxdb.type=keepme\ndb.type="
	m := newTree(t, edited(liveFile, "db.type=", lines), joinedTo("10.0.0.5", ""))
	must.Contain(t, "the settings", content(t, m, liveFile), lines+"mongodb\n")
}

// Defect 12: whitespace around the separator, or a missing key, kept the old value while the sections became active.
func TestDefect12BlanksAndMissingKeys(t *testing.T) {
	t.Parallel()
	m := newTree(t, edited(serverFile, "clusterdb.host=localhost", "clusterdb.host = localhost"), edited(liveFile, "db.type=mapdb\n", ""))
	before := treeFiles(t, m)
	joinOffline(t, m, "10.0.0.5", "")
	must.Equal(t, "clusterdb.host", property(t, m, serverFile, "clusterdb.host"), "10.0.0.5")
	must.Equal(t, "db.type", property(t, m, liveFile, "db.type"), "mongodb")
	roundTrips(t, m, before)
}

// Defect 13: an application with a blank in its name is skipped, and failures never reach the exit status.
func TestDefect13BlankInApplicationName(t *testing.T) {
	t.Parallel()
	app := settingsOf("My Live App")
	m := newTree(t, with(app, "db.name=mylive\ndb.type=mapdb\ndb.host=localhost"), joinedTo("10.0.0.5", ""))
	must.Equal(t, "db.host", property(t, m, app, "db.host"), "10.0.0.5")
	// A file that cannot be edited is a failure.
	found := refusedJoin(t, newTree(t, edited(liveFile, "db.name=", `broken=\uZZZZ`+"\ndb.name=")), "10.0.0.5")
	must.Contain(t, "the finding", found.Text, liveFile, `line 5: malformed \uxxxx escape`)
}

// Defect 14: lines of /etc/hosts that merely contain the host name are deleted.
func TestDefect14HostsFile(t *testing.T) {
	t.Parallel()
	const hosts = "127.0.0.1 localhost\n10.0.0.99 ams-node-10\n10.0.0.98 db-for-ams-node-1.internal\n"
	for _, tt := range []struct{ name, hosts, want string }{
		{"not resolvable: one marked line", hosts, hosts + "10.0.0.7\tams-node-1\t# added by amsagent\n"},
		{"resolvable: untouched", hosts + "10.0.0.7 ams-node-1\n", hosts + "10.0.0.7 ams-node-1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newTree(t, with(hostsFile, tt.hosts), with("/etc/hostname", "ams-node-1\n"), joinedTo("10.0.0.5", "10.0.0.7"))
			must.Equal(t, hostsFile, content(t, m, hostsFile), tt.want)
			leaveOffline(t, m)
			must.Equal(t, "/etc/hosts after the leave", content(t, m, hostsFile), tt.hosts)
		})
	}
}

// Defect 15: the service is restarted although nothing changed, and files are written one by one without a way back. The
// restarts are in the end-to-end tests; here: a second join would change nothing.
func TestDefect15NothingToDoRestartsNothing(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined, serving(running()))
	m.Connect = noMongo
	must.Equal(t, "files that would change", strings.Join(inspect(t, m, joinRequest(t, testMongo, "10.0.1.7")).Changes, " "), "")
	req := joinRequest(t, testMongo, "10.0.1.7")
	req.DryRun = true
	res, _ := m.Join(t.Context(), req) // which fails: MongoDB is away
	must.Equal(t, "it would restart", res.RestartNeeded, false)
}

// Another copy of the agent, which root alone can change, is as good in the drop-in as this one.
func TestAnotherCopyOfTheAgent(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a program that is root's alone")
	}
	m := newTree(t, withDropIn, with("/usr/bin/amsagent", "program"))
	m.Program = "/usr/bin/amsagent"
	installed := at(m, m.Program)
	must.OK(t, os.Chmod(installed, 0o755))
	joinOffline(t, m, testMongo, "10.0.1.7")
	m.Program = "/root/download/amsagent"
	changed := func() string {
		return strings.Join(inspect(t, m, joinRequest(t, testMongo, "10.0.1.7")).Changes, " ")
	}
	must.Equal(t, "files that would change", changed(), "")
	for name, harm := range map[string]func() error{
		"others may write to it": func() error { return os.Chmod(installed, 0o777) },
		"it is no program":       func() error { return os.Chmod(installed, 0o644) },
		"it is not there":        func() error { return os.Remove(installed) },
	} {
		must.OK(t, harm())
		must.Equal(t, name, changed(), ams.DropInPath)
		put(t, m, "/usr/bin/amsagent", "program")
	}
}

// A join of a release newer than the agent follows the files: unknown sections and keys stay as they are. Files without the
// known marks are refused.
func TestNewerRelease(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "4.2.0")
	do(t, m, edited(beansFile, "</beans>", "\t<!-- recorder start\n\t<bean id=\"recorder\" class=\"io.antmedia.Recorder\"/>\n\trecorder end -->\n\t<bean id=\"new\" class=\"io.antmedia.New\"/>\n</beans>"),
		edited(serverFile, "http.port=", "cluster.note=${new}\nhttp.port="), edited(liveFile, "db.type=", "settings.of.tomorrow={\"a\"\\:1}\ndb.type="))
	before := treeFiles(t, m)
	joinOffline(t, m, testMongo, "10.0.1.7")
	must.Contain(t, "the container", content(t, m, beansFile), "<!-- cluster start -->", "<!-- recorder start\n", `<bean id="new" class="io.antmedia.New"/>`)
	roundTrips(t, m, before)

	m = ownTree(t, "3.0", "4.2.0")
	put(t, m, beansFile, strings.NewReplacer("cluster start", "mode cluster", "cluster end", "mode end").Replace(content(t, m, beansFile)))
	must.Equal(t, "the finding", refusedJoin(t, m, testMongo).ID, IDSections)
}

// A server with 325 applications, whose files are of the size that the server writes, joins and leaves again: plan, journal and
// undo record hold them all.
func TestManyApplications(t *testing.T) {
	t.Parallel()
	const many, size = 325, 9 << 10
	m := newTree(t)
	for i := range many {
		app := fmt.Sprintf("app%03d", i)
		text := fmt.Sprintf("appName=%[1]s\ndb.name=%[1]s\ndb.type=mapdb\ndb.host=localhost\ndb.user=\ndb.password=\n", app)
		for n := 0; len(text) < size; n++ {
			text += fmt.Sprintf("settings.of%s.%04d=%s\n", app, n, strings.Repeat("x", 40))
		}
		put(t, m, settingsOf(app), text)
	}
	before := treeFiles(t, m)
	joinOffline(t, m, "10.0.2.4", "10.0.0.7")
	for i := range many {
		app := fmt.Sprintf("app%03d", i)
		must.Equal(t, app, property(t, m, settingsOf(app), "db.host"), "10.0.2.4")
	}
	leaveOffline(t, m)
	must.NoDiff(t, "the files after the leave", treeFiles(t, m), before)
}
