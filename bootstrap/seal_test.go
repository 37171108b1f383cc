// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
)

// used leaves what an installation has after some days, with what its image must not hold and what looks like it.
func used(t testing.TB, m *Machine) {
	for name, text := range map[string]string{
		"conf/instanceId": "id", "conf/initialized": "", "SECRET_KEY": "s", "fqdn": "media.example.org", "shutdown.token": "t",
		"webapps/LiveApp/.initialized": "", "webapps/LiveApp/.closed": "", "webapps/root/.initialized": "",
		"server.db": "users", "liveapp.db": "streams", "liveapp.db.wal.0": "log",
		"log/ant-media-server.log": "…", "change_server_mode.log": "…", "enable_ssl.log": "…",
		"conf/fullchain.pem": "public", "conf/privkey.pem": "private",
		// These belong to the installation.
		"lib/mapdb.jar": "code", "server.dbx": "not a database", "db.sh": "script", "webapps/LiveApp/index.html": "page",
		// The machine's.
		"/etc/machine-id": "0123456789abcdef0123456789abcdef\n", "/var/lib/dbus/machine-id": "0123456789abcdef0123456789abcdef\n",
		"/etc/hostname": "builder\n",
		hostsFile:       "127.0.0.1 localhost\n127.0.1.1 builder\n10.1.2.3 builder\n10.0.0.21\n10.1.2.3 mongo\n10.1.2.4 builder db # two names\n",
	} {
		put(t, m, name, text)
	}
	edit(t, m, serverFile, "server.jwtServerSecretKey=", "server.jwtServerSecretKey=hush")
	edit(t, m, serverFile, "server.licence_key=", "server.licence_key=paid")
	edit(t, m, serverFile, "server.name=", "server.name=builder")
}

func sealed(t *testing.T, m *Machine, req SealRequest) *SealResult {
	t.Helper()
	res, err := m.Seal(t.Context(), req)
	if err != nil {
		t.Fatalf("%v; %+v", err, res.Found)
	}
	return res
}

func TestSeal(t *testing.T) {
	t.Parallel()
	m := newTree(t, used)
	before := contents(t, m)

	plan := sealed(t, m, SealRequest{DryRun: true})
	must.NoDiff(t, "the files after a dry run", contents(t, m), before)
	must.Equal(t, "a dry run", plan.Outcome, OutcomePlanned)
	kept := sealed(t, m, SealRequest{Keep: SealItems()})
	must.NoDiff(t, "the files after one that keeps all", contents(t, m), before)
	must.Equal(t, "one that keeps all", kept.Outcome, OutcomeUnchanged)
	if i := slices.IndexFunc(kept.Found, func(f Sealed) bool { return !f.Kept }); i >= 0 {
		t.Errorf("not called kept: %+v", kept.Found[i])
	}

	res := sealed(t, m, SealRequest{})
	must.NoDiff(t, "the files that were found", res.Found, plan.Found)
	must.Equal(t, "the outcome", res.Outcome, OutcomeSealed)
	const dir = ams.DefaultDir + "/"
	want := maps.Clone(before)
	for _, name := range []string{
		"conf/instanceId", "conf/initialized", "SECRET_KEY", "fqdn", "shutdown.token", "webapps/LiveApp/.initialized", "webapps/LiveApp/.closed",
		"webapps/root/.initialized", "server.db", "liveapp.db", "liveapp.db.wal.0", "log/ant-media-server.log", "change_server_mode.log", "enable_ssl.log",
	} {
		delete(want, dir+name)
	}
	delete(want, "/var/lib/dbus/machine-id")
	want["/etc/machine-id"] = ""
	want[hostsFile] = "127.0.0.1 localhost\n127.0.1.1 builder\n10.1.2.3 mongo\n10.1.2.4 builder db # two names\n"
	want[dir+serverFile] = strings.NewReplacer("server.jwtServerSecretKey=hush", "server.jwtServerSecretKey=", "server.name=builder", "server.name=").
		Replace(before[dir+serverFile])
	must.NoDiff(t, "the files", contents(t, m), want)
	must.Equal(t, "the second time", sealed(t, m, SealRequest{}).Outcome, OutcomeUnchanged)

	must.Equal(t, "the outcome of one that removes more", sealed(t, m, SealRequest{Remove: []SealItem{SealTLS, SealLicence}}).Outcome, OutcomeSealed)
	must.Equal(t, "the items to remove", content(t, m, "conf/privkey.pem")+property(t, m, serverFile, "server.licence_key"), "none")
}

func TestSealLeavesForeignNames(t *testing.T) {
	t.Parallel()
	m := newTree(t, used, edited(serverFile, "server.name=builder", "server.name=live.example.org"))
	sealed(t, m, SealRequest{})
	must.Equal(t, "the name of the load balancer", property(t, m, serverFile, "server.name"), "live.example.org")
}

func TestSealRefuses(t *testing.T) {
	t.Parallel()
	notRoot := &Machine{Service: ams.None{}, Euid: 1000, AMSDir: t.TempDir()}
	for name, tt := range map[string]struct {
		m    *Machine
		req  SealRequest
		want string
	}{
		"a node":                        {newTree(t, joined), SealRequest{}, "AGENT-SEAL-JOINED"},
		"a node of the vendor's script": {newTree(t, joined, without(StateDir)), SealRequest{}, "AGENT-SEAL-JOINED"},
		"a server that runs":            {newTree(t, used, serving(running())), SealRequest{}, "AGENT-SEAL-RUNNING"},
		"nothing there":                 {&Machine{Root: t.TempDir(), Service: ams.None{}}, SealRequest{}, IDInstall},
		"not root":                      {notRoot, SealRequest{}, IDRoot},
		"not root, a dry run":           {notRoot, SealRequest{DryRun: true}, IDRoot},
	} {
		before := map[string]string{}
		if tt.m != notRoot {
			before = contents(t, tt.m)
		}
		_, err := tt.m.Seal(t.Context(), tt.req)
		if !slices.ContainsFunc(asRefused(t, err).Findings, func(f Finding) bool { return f.ID == tt.want && (f.Hint != "" || f.ID == IDRoot) }) {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
		if tt.m != notRoot {
			must.NoDiff(t, name, contents(t, tt.m), before)
		}
	}
}

// What cannot be removed keeps nothing else, and is named.
func TestSealGoesOn(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a file that it cannot remove")
	}
	m := newTree(t, used, linked("log", "log")) // a folder that leads round in a circle
	res, err := m.Seal(t.Context(), SealRequest{})
	asFailed(t, err)
	if !slices.ContainsFunc(res.Found, func(f Sealed) bool { return f.Item == SealLogs && f.Err != "" && strings.HasSuffix(f.Path, "/log") }) {
		t.Errorf("what failed is not named: %+v", res.Found)
	}
	must.Equal(t, "another file", content(t, m, "server.db"), "none")
}

// What a leave keeps of files that an operator edited may hold a password, and goes with the seal.
func TestSealSaved(t *testing.T) {
	t.Parallel()
	const rotated = "mongodb://ams:rotated-pass@10.0.0.5/"
	holders := func(m *Machine) string {
		all := contents(t, m)
		maps.DeleteFunc(all, func(_, text string) bool { return !strings.Contains(text, "rotated-pass") })
		return strings.Join(slices.Collect(maps.Keys(all)), " ")
	}
	m := newTree(t, joined, with(MongoPath, rotated+"\n"))
	leaveOffline(t, m)
	must.Equal(t, "kept by the leave", holders(m), MongoPath+".amsagent-saved")
	// The name was taken when another leave kept one.
	put(t, m, MongoPath+".amsagent-saved-1", rotated+"\n")
	// A damaged journal that was set aside leaves its staged files.
	for _, name := range []string{MongoPath, serverFile, liveFile, undoFile} {
		put(t, m, path.Dir(name)+"/."+path.Base(name)+".amsagent-0123456789ab.new", rotated+"\n")
	}
	res := sealed(t, m, SealRequest{})
	must.Equal(t, "files with the password", holders(m), "")
	if !slices.ContainsFunc(res.Found, func(f Sealed) bool {
		return f.Item == SealAgent && f.Path == MongoPath+".amsagent-saved" && f.What == "removed"
	}) {
		t.Errorf("not named: %+v", res.Found)
	}
}

// One that is killed between any two files is finished by the next: it comes to the same end.
func TestSealKilled(t *testing.T) {
	t.Parallel()
	whole := newTree(t, used)
	plan := sealed(t, whole, SealRequest{DryRun: true})
	sealed(t, whole, SealRequest{})
	want := contents(t, whole)
	// The files that stay change first, in one transaction.
	var files []SealItem
	for _, i := range SealItems() {
		if !slices.Contains([]SealItem{SealJWT, SealName, SealHosts, SealMongo}, i) {
			files = append(files, i)
		}
	}
	var gone []Sealed
	for _, f := range plan.Found {
		if slices.Contains(files, f.Item) && !f.Kept {
			gone = append(gone, f)
		}
	}
	if len(gone) < 15 {
		t.Fatalf("only %d files go", len(gone))
	}
	for n := range len(gone) + 1 {
		m := newTree(t, used)
		sealed(t, m, SealRequest{Keep: files})
		for _, f := range gone[:n] {
			if f.Path == "/etc/machine-id" {
				put(t, m, f.Path, "")
			} else {
				must.OK(t, os.Remove(at(m, f.Path)))
			}
		}
		res := sealed(t, m, SealRequest{})
		if n < len(gone) != (res.Outcome == OutcomeSealed) {
			t.Errorf("after %d: %s", n, res.Outcome)
		}
		must.NoDiff(t, fmt.Sprintf("the files after %d", n), contents(t, m), want)
	}
}

// A link is not followed to what is not the server's: neither by a file's name, nor by the folder of the logs.
func TestSealFollowsNoLinkOut(t *testing.T) {
	t.Parallel()
	const log = "/var/log/antmedia/ant-media-server.log"
	m := newTree(t, used, with("/data/other.log", "foreign"), with("/data/users", "foreign"), with(log, "…"),
		linked("fqdn", "/data/users"), linked("link.db", "/data/users"), linked("conf/privkey.pem", "/data/users"), linked("log", "/data"))
	res := sealed(t, m, SealRequest{Remove: []SealItem{SealTLS}})
	must.Equal(t, "foreign files", content(t, m, "/data/other.log")+content(t, m, "/data/users"), "foreignforeign")
	if !slices.ContainsFunc(res.Warnings, func(f Finding) bool { return f.ID == "AGENT-SEAL-LINK" && strings.Contains(f.Text, "/data") }) {
		t.Errorf("%+v", res.Warnings)
	}
	do(t, m, linked("log", "/var/log/antmedia")) // as in the vendor's installation
	sealed(t, m, SealRequest{})
	must.Equal(t, "the log", content(t, m, log), "none")
}

// A folder that its owner exchanges, while root goes through it, leads to no other one.
func TestSealOfAnExchangedFolder(t *testing.T) {
	t.Parallel()
	m := newTree(t, used, with("/data/ant-media-server.log", "foreign"))
	install, err := m.open()
	must.OK(t, err)
	s := &sealer{Machine: m, store: m.store(), install: install, result: &SealResult{}}
	s.matching(SealLogs, path.Join(ams.DefaultDir, "log"), func(string) bool {
		do(t, m, moved("log", "former"), linked("log", "/data"))
		return true
	})
	must.OK(t, s.failed)
	must.Equal(t, "the logs", content(t, m, "/data/ant-media-server.log")+content(t, m, "former/ant-media-server.log"), "foreignnone")
}

// A link of root's that the server's user gives another name leads to none of root's files.
func TestSealOfAMovedLink(t *testing.T) {
	t.Parallel()
	m := newTree(t, used, with("/etc/ssl/private/site.key", "root's"))
	install, err := m.open()
	must.OK(t, err)
	if err := os.Chown(at(m, ""), 4711, 4711); err != nil {
		t.Skipf("needs root to give files away: %v", err)
	}
	do(t, m, moved("conf", "former"), linked("conf", "/etc/ssl/private")) // root made it as ssl
	s := &sealer{Machine: m, store: m.store(), install: install, req: SealRequest{Remove: []SealItem{SealTLS}}, result: &SealResult{}}
	s.files()
	if contents(t, m)["/etc/ssl/private/site.key"] == "" || !errors.Is(s.failed, files.ErrLink) {
		t.Errorf("%v, %+v", s.failed, s.result.Found)
	}
}

// What a switch of mode leaves of MongoDB's login goes; what an application is to use stays, and is said.
func TestSealLogins(t *testing.T) {
	t.Parallel()
	const mongo = "mongodb://u:hunter22@10.0.2.4/"
	root := settingsOf("root")
	m := newTree(t, used, with(MongoPath, mongo), edited(serverFile, "clusterdb.host=localhost", "clusterdb.host="+mongo),
		edited(serverFile, "clusterdb.user=", "clusterdb.user=u"), edited(serverFile, "clusterdb.password=", "clusterdb.password=hunter22"),
		edited(liveFile, "db.host=localhost", "db.host="+mongo), edited(root, "db.host=localhost", "db.host="+mongo), edited(root, "db.type=mapdb", "db.type=mongodb"))
	res := sealed(t, m, SealRequest{})
	left := property(t, m, serverFile, "clusterdb.host") + property(t, m, serverFile, "clusterdb.password") + property(t, m, serverFile, "clusterdb.user") + property(t, m, liveFile, "db.host")
	must.Equal(t, "logins that are not in use", left, "")
	must.Equal(t, "those in use", property(t, m, root, "db.host")+content(t, m, MongoPath), mongo+mongo)
	i := slices.IndexFunc(res.Warnings, func(f Finding) bool { return f.ID == "AGENT-SEAL-SECRET" })
	if i < 0 || strings.Contains(res.Warnings[i].Text, "fullchain") {
		t.Fatalf("%+v", res.Warnings)
	}
	must.Contain(t, "the warning", res.Warnings[i].Text, root, MongoPath, "privkey.pem")
	for _, f := range res.Found {
		if strings.Contains(f.What, "hunter22") {
			t.Errorf("a secret: %+v", f)
		}
	}
	must.Equal(t, "the second time", sealed(t, m, SealRequest{}).Outcome, OutcomeUnchanged)
}
