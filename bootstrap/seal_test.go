// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
)

// usedTree is an installation after some days of use, with what its image must not
// hold and what looks like it.
func usedTree(t *testing.T) *Machine {
	t.Helper()
	m := ownTree(t, "3.0", "3.0.3")
	for name, text := range map[string]string{
		"conf/instanceId": "id", "conf/initialized": "", "SECRET_KEY": "s", "fqdn": "media.example.org", "shutdown.token": "t",
		"webapps/LiveApp/.initialized": "", "webapps/LiveApp/.closed": "", "webapps/root/.initialized": "",
		"server.db": "users", "liveapp.db": "streams", "liveapp.db.wal.0": "log",
		"log/ant-media-server.log": "…", "change_server_mode.log": "…", "enable_ssl.log": "…",
		"conf/fullchain.pem": "public", "conf/privkey.pem": "private",
		// These belong to the installation.
		"lib/mapdb.jar": "code", "server.dbx": "not a database", "db.sh": "script", "webapps/LiveApp/index.html": "page",
	} {
		put(t, m, filepath.Join(ams.DefaultDir, name), text)
	}
	put(t, m, "etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	put(t, m, "var/lib/dbus/machine-id", "0123456789abcdef0123456789abcdef\n")
	put(t, m, "etc/hostname", "builder\n")
	put(t, m, "etc/hosts", "127.0.0.1 localhost\n127.0.1.1 builder\n10.1.2.3 builder\n10.0.0.21\n10.1.2.3 mongo\n10.1.2.4 builder db # two names\n")
	edit(t, m, serverFile, "server.jwtServerSecretKey=", "server.jwtServerSecretKey=hush")
	edit(t, m, serverFile, "server.licence_key=", "server.licence_key=paid")
	edit(t, m, serverFile, "server.name=", "server.name=builder")
	return m
}

func put(t *testing.T, m *Machine, name, text string) {
	t.Helper()
	real := filepath.Join(m.Root, name)
	must.OK(t, errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, []byte(text), 0o644)))
}

// contents is every file with its bytes, by its path below the root.
func contents(t *testing.T, m *Machine) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(m.Root, func(name string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		all[strings.TrimPrefix(name, m.Root)] = string(b)
		return err
	})
	must.OK(t, err)
	return all
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
	m := usedTree(t)
	before := contents(t, m)

	plan := sealed(t, m, SealRequest{DryRun: true})
	if diff := cmp.Diff(before, contents(t, m)); diff != "" || plan.Outcome != OutcomePlanned {
		t.Fatalf("a dry run (%s) changed the machine:\n%s", plan.Outcome, diff)
	}
	res := sealed(t, m, SealRequest{})
	if diff := cmp.Diff(plan.Found, res.Found); diff != "" || res.Outcome != OutcomeSealed {
		t.Errorf("%s; what was planned is not what was done:\n%s", res.Outcome, diff)
	}
	after := contents(t, m)
	dir := ams.DefaultDir + "/"
	want := map[string]string{}
	for name, text := range before {
		want[name] = text
	}
	for _, name := range []string{
		"conf/instanceId", "conf/initialized", "SECRET_KEY", "fqdn", "shutdown.token", "webapps/LiveApp/.initialized", "webapps/LiveApp/.closed",
		"webapps/root/.initialized", "server.db", "liveapp.db", "liveapp.db.wal.0", "log/ant-media-server.log", "change_server_mode.log", "enable_ssl.log",
	} {
		delete(want, dir+name)
	}
	delete(want, "/var/lib/dbus/machine-id")
	want["/etc/machine-id"] = ""
	want["/etc/hosts"] = "127.0.0.1 localhost\n127.0.1.1 builder\n10.1.2.3 mongo\n10.1.2.4 builder db # two names\n"
	want[dir+serverFile] = strings.NewReplacer("server.jwtServerSecretKey=hush", "server.jwtServerSecretKey=", "server.name=builder", "server.name=").
		Replace(before[dir+serverFile])
	delete(after, "/run/amsagent/lock")
	if diff := cmp.Diff(want, after); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if res := sealed(t, m, SealRequest{}); res.Outcome != OutcomeUnchanged {
		t.Errorf("the second time: %s, %+v", res.Outcome, res.Found)
	}
	res = sealed(t, m, SealRequest{Remove: []SealItem{SealTLS, SealLicence}})
	if got := contents(t, m); got[dir+"conf/privkey.pem"] != "" || property(t, m, serverFile, "server.licence_key") != "" || res.Outcome != OutcomeSealed {
		t.Errorf("the items to remove are still there: %s", res.Outcome)
	}
}

func TestSealKeeps(t *testing.T) {
	t.Parallel()
	m := usedTree(t)
	before := contents(t, m)
	res := sealed(t, m, SealRequest{Keep: SealItems()})
	after := contents(t, m)
	delete(after, "/run/amsagent/lock")
	if diff := cmp.Diff(before, after); diff != "" || res.Outcome != OutcomeUnchanged {
		t.Errorf("%s:\n%s", res.Outcome, diff)
	}
	for _, f := range res.Found {
		if !f.Kept {
			t.Errorf("not called kept: %+v", f)
		}
	}
}

func TestSealLeavesForeignNames(t *testing.T) {
	t.Parallel()
	m := usedTree(t)
	edit(t, m, serverFile, "server.name=builder", "server.name=live.example.org")
	sealed(t, m, SealRequest{})
	if v := property(t, m, serverFile, "server.name"); v != "live.example.org" {
		t.Errorf("the name of the load balancer is %q", v)
	}
}

func TestSealRefuses(t *testing.T) {
	t.Parallel()
	refused := func(t *testing.T, m *Machine, req SealRequest, id string) {
		t.Helper()
		before := contents(t, m)
		_, err := m.Seal(t.Context(), req)
		var pre *PreflightError
		if !errors.As(err, &pre) || !slices.ContainsFunc(pre.Findings, func(f Finding) bool { return f.ID == id && f.Hint != "" }) {
			t.Fatalf("%v", err)
		}
		if diff := cmp.Diff(before, contents(t, m)); diff != "" {
			t.Error(diff)
		}
	}
	t.Run("a node", func(t *testing.T) { refused(t, joinedTree(t), SealRequest{}, idSealJoined) })
	t.Run("a node of the vendor's script", func(t *testing.T) {
		m := joinedTree(t)
		must.OK(t, os.RemoveAll(filepath.Join(m.Root, StateDir)))
		refused(t, m, SealRequest{}, idSealJoined)
	})
	t.Run("a server that runs", func(t *testing.T) {
		m := usedTree(t)
		m.Service = runningService{}
		refused(t, m, SealRequest{}, idSealRunning)
	})
	t.Run("nothing there", func(t *testing.T) {
		refused(t, &Machine{Root: t.TempDir(), Service: ams.None{}}, SealRequest{}, IDInstall)
	})
	t.Run("not root", func(t *testing.T) {
		for _, dry := range []bool{false, true} {
			_, err := (&Machine{Service: ams.None{}, Euid: 1000, AMSDir: t.TempDir()}).Seal(t.Context(), SealRequest{DryRun: dry})
			var pre *PreflightError
			if !errors.As(err, &pre) || pre.Findings[0].ID != IDRoot {
				t.Errorf("%v", err)
			}
		}
	})
}

// runningService is a server that runs.
type runningService struct{ ams.None }

func (runningService) State(context.Context) (ams.State, error) {
	return ams.State{Activity: ams.ActivityActive}, nil
}

// TestSealGoesOn: what cannot be removed keeps nothing else, and is named.
func TestSealGoesOn(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a file that it cannot remove")
	}
	m := usedTree(t)
	dir := filepath.Join(m.Root, ams.DefaultDir, "log")
	must.OK(t, os.Remove(filepath.Join(dir, "ant-media-server.log")))
	must.OK(t, errors.Join(os.Remove(dir), os.Symlink("/proc/self/nothing/there", filepath.Join(m.Root, "loop"))))
	// A folder that leads round in a circle.
	must.OK(t, os.Symlink("log", dir))
	res, err := m.Seal(t.Context(), SealRequest{})
	var failed *FailedError
	if !errors.As(err, &failed) {
		t.Fatalf("%v", err)
	}
	if !slices.ContainsFunc(res.Found, func(f Sealed) bool { return f.Item == SealLogs && f.Err != "" && strings.HasSuffix(f.Path, "/log") }) {
		t.Errorf("what failed is not named: %+v", res.Found)
	}
	if _, err := os.Stat(filepath.Join(m.Root, ams.DefaultDir, "server.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the rest was not removed: %v", err)
	}
}

// TestSealSaved: what a leave keeps of files that an operator edited may hold a password, and goes with the seal.
func TestSealSaved(t *testing.T) {
	t.Parallel()
	const rotated = "mongodb://ams:rotated-pass@10.0.0.5/"
	holders := func(m *Machine) (names []string) {
		for name, text := range contents(t, m) {
			if strings.Contains(text, "rotated-pass") {
				names = append(names, name)
			}
		}
		return names
	}
	m := joinedTree(t)
	put(t, m, MongoPath, rotated+"\n")
	if _, err := m.Leave(t.Context(), LeaveRequest{Offline: true}); err != nil {
		t.Fatal(err)
	}
	if got := holders(m); !slices.Equal(got, []string{MongoPath + ".amsagent-saved"}) {
		t.Fatalf("the leave kept %v", got)
	}
	// The name was taken when another leave kept one.
	put(t, m, MongoPath+".amsagent-saved-1", rotated+"\n")
	// A damaged journal that was set aside leaves its staged files.
	for _, name := range []string{MongoPath, serverFile, "webapps/LiveApp/WEB-INF/red5-web.properties", undoPath} {
		if !path.IsAbs(name) {
			name = path.Join(ams.DefaultDir, name)
		}
		put(t, m, path.Dir(name)+"/."+path.Base(name)+".amsagent-0123456789ab.new", rotated+"\n")
	}
	res := sealed(t, m, SealRequest{})
	if got := holders(m); len(got) > 0 {
		t.Errorf("the password is in %v", got)
	}
	if !slices.ContainsFunc(res.Found, func(f Sealed) bool {
		return f.Item == SealAgent && f.Path == MongoPath+".amsagent-saved" && f.What == "removed"
	}) {
		t.Errorf("not named: %+v", res.Found)
	}
}

// One that is killed between any two files is finished by the next: it comes to the same end.
func TestSealKilled(t *testing.T) {
	t.Parallel()
	whole := usedTree(t)
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
		m := usedTree(t)
		sealed(t, m, SealRequest{Keep: files})
		for _, f := range gone[:n] {
			at := filepath.Join(m.Root, f.Path)
			if f.Path == "/etc/machine-id" {
				put(t, m, f.Path, "")
			} else if err := os.Remove(at); err != nil {
				t.Fatal(err)
			}
		}
		res := sealed(t, m, SealRequest{})
		if n < len(gone) != (res.Outcome == OutcomeSealed) {
			t.Errorf("after %d: %s", n, res.Outcome)
		}
		if diff := cmp.Diff(want, contents(t, m)); diff != "" {
			t.Errorf("after %d:\n%s", n, diff)
		}
	}
}

// A link is not followed to what is not the server's: neither by a file's name, nor by the folder of the logs.
func TestSealFollowsNoLinkOut(t *testing.T) {
	t.Parallel()
	m := usedTree(t)
	dir := filepath.Join(m.Root, ams.DefaultDir)
	put(t, m, "data/other.log", "somebody's")
	put(t, m, "data/users", "somebody's")
	put(t, m, "var/log/antmedia/ant-media-server.log", "…")
	for link, to := range map[string]string{"fqdn": "/data/users", "link.db": "/data/users", "conf/privkey.pem": "/data/users", "log": "/data"} {
		must.OK(t, errors.Join(os.RemoveAll(filepath.Join(dir, link)), os.Symlink(to, filepath.Join(dir, link))))
	}
	res := sealed(t, m, SealRequest{Remove: []SealItem{SealTLS}})
	all := contents(t, m)
	if all["/data/other.log"] == "" || all["/data/users"] == "" || !slices.ContainsFunc(res.Warnings, func(f Finding) bool { return f.ID == idSealLink && strings.Contains(f.Text, "/data") }) {
		t.Errorf("%+v", res.Warnings)
	}
	// As the vendor's installation has it.
	must.OK(t, errors.Join(os.Remove(filepath.Join(dir, "log")), os.Symlink("/var/log/antmedia", filepath.Join(dir, "log"))))
	if res = sealed(t, m, SealRequest{}); contents(t, m)["/var/log/antmedia/ant-media-server.log"] != "" || len(res.Found) == 0 {
		t.Errorf("%+v", res)
	}
}

// A folder that its owner exchanges, while root goes through it, leads to no other one.
func TestSealOfAnExchangedFolder(t *testing.T) {
	t.Parallel()
	m := usedTree(t)
	dir := filepath.Join(m.Root, ams.DefaultDir)
	put(t, m, "data/ant-media-server.log", "somebody's")
	install, err := m.open()
	must.OK(t, err)
	s := &sealer{Machine: m, store: m.store(), install: install, result: &SealResult{}}
	s.matching(SealLogs, path.Join(ams.DefaultDir, "log"), func(string) bool {
		must.OK(t, errors.Join(os.Rename(filepath.Join(dir, "log"), filepath.Join(dir, "former")), os.Symlink("/data", filepath.Join(dir, "log"))))
		return true
	})
	all := contents(t, m)
	if all["/data/ant-media-server.log"] == "" || all[path.Join(ams.DefaultDir, "former/ant-media-server.log")] != "" || s.failed != nil {
		t.Errorf("%v, %+v", s.failed, s.result.Found)
	}
}

// A link of root's that the server's user gives another name leads to none of root's files.
func TestSealOfAMovedLink(t *testing.T) {
	t.Parallel()
	m := usedTree(t)
	dir := filepath.Join(m.Root, ams.DefaultDir)
	put(t, m, "etc/ssl/private/site.key", "root's")
	install, err := m.open()
	must.OK(t, err)
	if err := os.Chown(dir, 4711, 4711); err != nil {
		t.Skipf("needs root to give files away: %v", err)
	}
	// Root made it as ssl.
	must.OK(t, errors.Join(os.Rename(filepath.Join(dir, "conf"), filepath.Join(dir, "former")), os.Symlink("/etc/ssl/private", filepath.Join(dir, "conf"))))
	s := &sealer{Machine: m, store: m.store(), install: install, req: SealRequest{Remove: []SealItem{SealTLS}}, result: &SealResult{}}
	s.files()
	if contents(t, m)["/etc/ssl/private/site.key"] == "" || !errors.Is(s.failed, files.ErrLink) {
		t.Errorf("%v, %+v", s.failed, s.result.Found)
	}
}

// What a switch of mode leaves of MongoDB's login goes; what an application is to use stays, and is said.
func TestSealLogins(t *testing.T) {
	t.Parallel()
	m := usedTree(t)
	const liveApp, root = "webapps/LiveApp/WEB-INF/red5-web.properties", "webapps/root/WEB-INF/red5-web.properties"
	edit(t, m, serverFile, "clusterdb.host=localhost", "clusterdb.host=mongodb://u:hunter22@10.0.2.4/")
	edit(t, m, serverFile, "clusterdb.user=", "clusterdb.user=u")
	edit(t, m, serverFile, "clusterdb.password=", "clusterdb.password=hunter22")
	edit(t, m, liveApp, "db.host=localhost", "db.host=mongodb://u:hunter22@10.0.2.4/")
	edit(t, m, root, "db.host=localhost", "db.host=mongodb://u:hunter22@10.0.2.4/")
	edit(t, m, root, "db.type=mapdb", "db.type=mongodb")
	put(t, m, MongoPath, "mongodb://u:hunter22@10.0.2.4/")
	res := sealed(t, m, SealRequest{})
	if v := property(t, m, serverFile, "clusterdb.host") + property(t, m, serverFile, "clusterdb.password") + property(t, m, serverFile, "clusterdb.user") + property(t, m, liveApp, "db.host"); v != "" {
		t.Errorf("left: %s", v)
	}
	if property(t, m, root, "db.host") == "" || contents(t, m)[MongoPath] == "" {
		t.Error("what is in use is gone")
	}
	i := slices.IndexFunc(res.Warnings, func(f Finding) bool { return f.ID == idSealSecret })
	if i < 0 || !strings.Contains(res.Warnings[i].Text, root) || !strings.Contains(res.Warnings[i].Text, MongoPath) || !strings.Contains(res.Warnings[i].Text, "privkey.pem") || strings.Contains(res.Warnings[i].Text, "fullchain") {
		t.Errorf("%+v", res.Warnings)
	}
	for _, f := range res.Found {
		if strings.Contains(f.What, "hunter22") {
			t.Errorf("a secret: %+v", f)
		}
	}
	if res := sealed(t, m, SealRequest{}); res.Outcome != OutcomeUnchanged {
		t.Errorf("the second time: %+v", res.Found)
	}
}
