// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/ams"
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
	put(t, m, "etc/hosts", "127.0.0.1 localhost\n127.0.1.1 builder\n10.1.2.3 builder\n10.1.2.3 mongo\n10.1.2.4 builder db # two names\n")
	edit(t, m, serverFile, "server.jwtServerSecretKey=", "server.jwtServerSecretKey=hush")
	edit(t, m, serverFile, "server.licence_key=", "server.licence_key=paid")
	edit(t, m, serverFile, "server.name=", "server.name=builder")
	return m
}

func put(t *testing.T, m *Machine, name, text string) {
	t.Helper()
	real := filepath.Join(m.Root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
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
	if err != nil {
		t.Fatal(err)
	}
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
		t.Errorf("what was to go is there: %s", res.Outcome)
	}
}

func TestSealKeeps(t *testing.T) {
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
	m := usedTree(t)
	edit(t, m, serverFile, "server.name=builder", "server.name=live.example.org")
	sealed(t, m, SealRequest{})
	if v := property(t, m, serverFile, "server.name"); v != "live.example.org" {
		t.Errorf("the name of the load balancer is %q", v)
	}
}

func TestSealRefuses(t *testing.T) {
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
	t.Run("a node", func(t *testing.T) { refused(t, joinedTree(t), SealRequest{}, IDSealJoined) })
	t.Run("a node of the vendor's script", func(t *testing.T) {
		m := joinedTree(t)
		if err := os.RemoveAll(filepath.Join(m.Root, StateDir)); err != nil {
			t.Fatal(err)
		}
		refused(t, m, SealRequest{}, IDSealJoined)
	})
	t.Run("a server that runs", func(t *testing.T) {
		m := usedTree(t)
		m.Service = runningService{}
		refused(t, m, SealRequest{}, IDSealRunning)
	})
	t.Run("nothing there", func(t *testing.T) {
		refused(t, &Machine{Root: t.TempDir(), Service: ams.None{}}, SealRequest{}, IDInstall)
	})
	t.Run("not root", func(t *testing.T) {
		_, err := (&Machine{Service: ams.None{}, Euid: 1000, AMSDir: t.TempDir()}).Seal(t.Context(), SealRequest{})
		var pre *PreflightError
		if !errors.As(err, &pre) || pre.Findings[0].ID != IDRoot {
			t.Errorf("%v", err)
		}
	})
}

// runningService is a server that runs.
type runningService struct{ ams.None }

func (runningService) State(context.Context) (ams.State, error) {
	return ams.State{Activity: ams.ActivityActive}, nil
}

func TestSealJoined(t *testing.T) {
	m := ownTree(t, "3.0", "3.0.3")
	before := contents(t, m)
	m = joinedTree(t)
	res := sealed(t, m, SealRequest{Joined: true})
	after := contents(t, m)
	for name := range after {
		if strings.HasPrefix(name, "/var/lib/amsagent/") || strings.HasPrefix(name, "/etc/") {
			t.Errorf("%s is left", name)
		}
		if strings.HasPrefix(name, "/run/") {
			delete(after, name)
		}
	}
	if diff := cmp.Diff(before, after); diff != "" || res.Outcome != OutcomeSealed {
		t.Errorf("%s: not what was found before the join:\n%s", res.Outcome, diff)
	}
}

// TestSealGoesOn: what cannot be removed keeps nothing else, and is named.
func TestSealGoesOn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a file that it cannot remove")
	}
	m := usedTree(t)
	dir := filepath.Join(m.Root, ams.DefaultDir, "log")
	if err := os.Remove(filepath.Join(dir, "ant-media-server.log")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(dir), os.Symlink("/proc/self/nothing/there", filepath.Join(m.Root, "loop"))); err != nil {
		t.Fatal(err)
	}
	// A folder that leads round in a circle.
	if err := os.Symlink("log", dir); err != nil {
		t.Fatal(err)
	}
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
