// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

// joinRequest is a join with an address. The cloud names the machine.
func joinRequest(t *testing.T, mongo, address string) JoinRequest {
	return JoinRequest{
		Mongo: mustTarget(t, mongo), Address: address, ForceAddress: true, Valve: ValveKeep,
		Identify: func(context.Context) (metadata.Instance, error) { return metadata.Instance{ID: "i-1"}, nil },
	}
}

// inspect changes no file.
func inspect(t *testing.T, m *Machine, req JoinRequest) *Inspection {
	t.Helper()
	before := treeFiles(t, m)
	in, err := m.Inspect(t.Context(), req)
	must.OK(t, err)
	must.NoDiff(t, "the files after an inspection", treeFiles(t, m), before)
	return in
}

// A join fails for these reasons before it changes anything, and an inspection, which doctor makes, finds the same.
func TestPreflight(t *testing.T) {
	t.Parallel()
	up := func(change func(*ams.State)) *fakeService {
		s := &fakeService{state: ams.State{Activity: ams.ActivityActive}}
		change(&s.state)
		return s
	}
	unitFile := func(is string) *fakeService { return up(func(s *ams.State) { s.UnitFile = is }) }
	address := func(is string) *fakeService {
		return up(func(s *ams.State) { s.HostAddress, s.HostAddressFile = is, "/etc/default/antmedia" })
	}
	folder := func(is string) *fakeService { return up(func(s *ams.State) { s.WorkingDirectory = is }) }
	// The vendor's unit starts Java without IPv6: such a server reaches neither MongoDB nor another node by it.
	ipv4Only := &fakeService{state: ams.State{Activity: ams.ActivityInactive, IPv4Only: true, Fragment: "/etc/systemd/system/antmedia.service"}}
	otherTree := func(t testing.TB, m *Machine) {
		must.OK(t, os.CopyFS(at(m, "/opt/ams2"), os.DirFS(filepath.Join(treesDir, "3.0"))))
	}
	for name, tt := range map[string]struct {
		tree           []step
		service        *fakeService
		mongo, address string // testMongo and 10.0.1.7, if empty
		failed, warns  string // ids
		says           string // a part of the text or of the hint
	}{
		"the unit is disabled": {service: unitFile("disabled"), warns: IDNotEnabled, says: "systemctl enable"}, // it does not come back after a reboot
		"the unit is enabled":  {service: unitFile("enabled")},
		"the unit is static":   {service: unitFile("static")},

		// systemd lets a file of EnvironmentFile= override every drop-in: the server would register under another address.
		"EnvironmentFile= has another address":  {tree: []step{joined}, service: address("10.0.1.9"), failed: IDAddress, says: "--address"},
		"EnvironmentFile= has this address":     {tree: []step{joined}, service: address("10.0.1.7")},
		"EnvironmentFile= has an empty address": {tree: []step{joined}, service: address(""), failed: IDAddress},
		"EnvironmentFile= has a name":           {tree: []step{joined}, service: address("media.example.org"), failed: IDAddress},
		"early in a boot":                       {service: &fakeService{state: isDown, booting: true}, failed: IDService, says: "sysinit.target"},

		"IPv6: MongoDB":                  {service: ipv4Only, mongo: "[fd00::1]:27017", failed: IDMongoForm},
		"IPv6: the node":                 {service: ipv4Only, mongo: "10.0.0.5", address: "fd00::14", failed: IDAddress},
		"IPv6: both":                     {service: ipv4Only, mongo: "mongodb://[fd00::1],[fd00::2]/", address: "fd00::14", failed: IDAddress + " " + IDMongoForm},
		"IPv6: one member has IPv4":      {service: ipv4Only, mongo: "mongodb://10.0.0.5,[fd00::1]/"},
		"IPv6: a Java that may use IPv6": {service: &fakeService{state: isDown}, mongo: "[fd00::1]", address: "fd00::14"},

		"a service that runs another folder": {tree: []step{otherTree}, service: folder("/opt/ams2"), failed: IDInstall, says: "name the server that runs: --ams-dir /opt/ams2"},
		"a service that runs this folder":    {tree: []step{otherTree}, service: folder(ams.DefaultDir)},
		"a loopback address of MongoDB":      {mongo: "127.0.0.1", warns: IDMongoLocal},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTree(t, tt.tree...)
			if m.Connect = noMongo; tt.service != nil {
				m.Service = tt.service
			}
			req := joinRequest(t, cmp.Or(tt.mongo, testMongo), cmp.Or(tt.address, "10.0.1.7"))
			req.DryRun = true
			res, err := m.Join(t.Context(), req)
			pre := asRefused(t, err)
			must.Equal(t, "the join fails", ids(pre.Findings), strings.TrimSpace(tt.failed+" "+IDMongo))
			found := inspect(t, m, req).Findings
			if tt.service != nil && tt.service.booting { // this is for a join that starts the server
				must.Equal(t, "the inspection fails", ids(failedOf(found)), "")
				req.Offline = true
				_, err = m.Join(t.Context(), req)
				must.OK(t, err)
				found = pre.Findings[:1]
			}
			must.Equal(t, "the inspection fails", ids(failedOf(found)), tt.failed)
			for _, warns := range []string{ids(res.Warnings), ids(warningsOf(found))} {
				must.Equal(t, "a warning of the unit", strings.Contains(warns, IDNotEnabled), tt.warns == IDNotEnabled)
				must.Equal(t, "a warning of the address", strings.Contains(warns, IDMongoLocal), tt.warns == IDMongoLocal)
			}
			text := ""
			for _, f := range found {
				text += f.Text + f.Hint
			}
			must.Contain(t, "the findings", text, tt.says)
			must.Equal(t, "the hint names --address", strings.Contains(text, "--address"), tt.says == "--address")
		})
	}
}

// The owner of the installation cannot be known. A password must not be written then: its files could stay readable by all.
func TestUnknownOwner(t *testing.T) {
	t.Parallel()
	m := newTree(t)
	f := &facts{address: ams.Address{Addr: joinedAs().Address}}
	m.checkInstall(f)
	f.install.Dir = filepath.Join(f.install.Dir, "gone")
	m.checkPlan(m.store(), joinRequest(t, testMongo, ""), f)
	must.Equal(t, "failed", ids(f.failed()), IDInstall)
	must.Equal(t, "a plan", f.plan != nil, false)
}

// Every call on a dead disk or network file system fails, and so does a join. The daemon's join, which skips files that their
// owner made unreadable, must not skip these: they may hold a password.
func TestDeadFileSystem(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	const app = "webapps/LiveApp/WEB-INF"
	for folder, want := range map[string]string{"": IDInstall, app: IDFile} {
		for _, skipApps := range []bool{false, true} {
			t.Run(fmt.Sprintf("%q, %v", folder, skipApps), func(t *testing.T) {
				m := newTree(t)
				f := &facts{address: ams.Address{Addr: joinedAs().Address}, skipApps: skipApps}
				m.checkInstall(f)
				foreign(t, m) // in a folder of root's nothing could be its owner's doing
				deadMount(t, at(m, folder))
				m.checkPlan(m.store(), joinRequest(t, testMongo, ""), f)
				if ids(f.failed()) != want || !errors.Is(f.failed()[0].Err, unix.ENOTCONN) || len(warningsOf(f.findings)) > 0 {
					t.Errorf("failed: %v, warnings: %v", f.failed(), warningsOf(f.findings))
				}
				if (f.plan != nil) != (folder == app) {
					t.Fatalf("a plan: %v", f.plan != nil)
				}
				if f.plan != nil && slices.ContainsFunc(f.plan.Files(), func(p conf.PlannedFile) bool { return strings.Contains(p.Before.Path, app) }) {
					t.Error("it has a file that cannot be read")
				}
			})
		}
	}
}

// deadMount mounts a file system on a folder, whose server is gone: each call on it fails.
func deadMount(t *testing.T, folder string) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	defer unix.Close(fd)
	mount(t, "test", folder, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
}

// mount lasts until the end of the test.
func mount(t *testing.T, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() { must.OK(t, unix.Unmount(target, unix.MNT_DETACH)) })
}

// A file that is a mount point, as docker mounts one, cannot be replaced by a rename: this is found before any change.
func TestMountedFile(t *testing.T) {
	t.Parallel()
	for _, flags := range []uintptr{0, unix.MS_RDONLY} {
		m := newTree(t)
		file := at(m, serverFile)
		mount(t, file, file, "", unix.MS_BIND, "")
		must.OK(t, unix.Mount("", file, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""))
		req := joinRequest(t, testMongo, "10.0.1.7")
		all := [][]Finding{failedOf(inspect(t, m, req).Findings)}
		req.Offline = true
		for _, req.DryRun = range []bool{true, false} {
			_, err := m.Join(t.Context(), req)
			all = append(all, asRefused(t, err).Findings)
		}
		for _, found := range all {
			must.Equal(t, "failed", ids(found), IDWritable)
			must.Contain(t, "the finding", found[0].Text+found[0].Hint, "mount its folder", serverFile)
		}
	}
}

// In a container /etc/hosts is a mount: a join and a leave edit it in place.
func TestJoinWithMountedHosts(t *testing.T) {
	t.Parallel()
	const hosts = "127.0.0.1 localhost\n"
	m := newTree(t, with("/etc/hostname", "no-such-name\n"), with(hostsFile, ""), with("/source", hosts))
	mount(t, at(m, "/source"), at(m, hostsFile), "", unix.MS_BIND, "")
	joinOffline(t, m, testMongo, "10.0.1.7")
	must.Equal(t, hostsFile, content(t, m, "/source"), hosts+"10.0.1.7\tno-such-name\t# added by amsagent\n")
	leaveOffline(t, m)
	must.Equal(t, "/etc/hosts after the leave", content(t, m, "/source"), hosts)
}

// An inspection finds what the preflight of a join finds, without a join.
func TestInspect(t *testing.T) {
	t.Parallel()
	m := newTree(t)
	in := inspect(t, m, joinRequest(t, testMongo, "10.0.1.7"))
	if len(failedOf(in.Findings)) > 0 || !in.Planned || !in.Writable || in.Mode != conf.ModeStandalone || in.State != nil || in.Unread != nil {
		t.Errorf("%+v", in)
	}
	if !slices.Contains(in.Changes, "/usr/local/antmedia/conf/jee-container.xml") || !slices.Contains(in.Changes, MongoPath) {
		t.Errorf("a join would change %v", in.Changes)
	}
	must.Equal(t, "the agent's state", content(t, m, stateFile), "none")

	// Without an address of MongoDB the check whether the files can be edited still runs.
	noTarget := joinRequest(t, testMongo, "10.0.1.7")
	noTarget.Mongo = cluster.Target{}
	if in := inspect(t, m, noTarget); !in.Planned || in.Changes != nil || len(failedOf(in.Findings)) > 0 {
		t.Errorf("%+v", in)
	}
	edit(t, m, beansFile, "cluster end -->", "cluster end")
	noTarget.Identify = func(context.Context) (metadata.Instance, error) { return metadata.Instance{}, errors.New("no answer") }
	in = inspect(t, m, noTarget)
	must.Equal(t, "failed", ids(failedOf(in.Findings)), IDIdentity+" "+IDSections)
	must.Equal(t, "planned", in.Planned, false)

	empty := &Machine{Root: t.TempDir(), Service: m.Service}
	in, err := empty.Inspect(t.Context(), joinRequest(t, testMongo, "10.0.1.7"))
	if err != nil || !strings.Contains(ids(failedOf(in.Findings)), IDInstall) || in.Install != nil {
		t.Errorf("%+v, %v", in, err)
	}

	// What a joined machine remembers is in it, and a record that cannot be used is a finding.
	m = newTree(t, joined)
	if in := inspect(t, m, joinRequest(t, testMongo, "10.0.1.7")); !in.Undo || in.Mode != conf.ModeCluster {
		t.Errorf("%+v", in)
	}
	put(t, m, stateFile, "{")
	must.Contain(t, "warnings", ids(warningsOf(inspect(t, m, noTarget).Findings)), IDRecord)
}

// The address has a reason that names its source, also for a machine outside a cloud.
func TestAddressReason(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ provider, source, want string }{
		{metadata.Generic, "address of the default route's interface eth0", "address of the default route's interface eth0"},
		{metadata.AWS, "private address of the identity document", "instance metadata of aws: private address of the identity document"},
	} {
		req := joinRequest(t, testMongo, "")
		req.Identify = func(context.Context) (metadata.Instance, error) {
			return metadata.Instance{ID: "i-1", Provider: c.provider, Address: joinedAs().Address, AddressSource: c.source}, nil
		}
		must.Equal(t, c.provider, inspect(t, newTree(t), req).Address.Reason, c.want)
	}
}

// A count of one has the word in the singular.
func TestOneFile(t *testing.T) {
	t.Parallel()
	m := newTree(t, withDropIn, joinedTo("10.0.2.4", "10.0.0.5"))
	var said []string
	m.Progress = func(s string) { said = append(said, s) }
	joinOffline(t, m, "10.0.2.4", "10.0.0.6") // in the drop-in alone
	must.Contain(t, "said", strings.Join(said, "\n"), "edited 1 file; nothing else was touched")
}

func TestReach(t *testing.T) {
	t.Parallel()
	m := &Machine{Connect: func(context.Context, cluster.Target) (*cluster.Client, error) {
		return nil, &cluster.Error{Kind: cluster.KindAuth, Op: "x", Err: errors.New("y")}
	}, Progress: func(s string) { t.Errorf("said: %s", s) }}
	c, found := m.Reach(t.Context(), mustTarget(t, "10.0.2.4"))
	if c != nil || ids(found) != IDMongoAuth || found[0].Severity != Bad {
		t.Errorf("%v, %v", c, found)
	}
}

// TestLoneRole: a role that no other node has is a warning while others have roles.
func TestLoneRole(t *testing.T) {
	nodes := func(roles ...string) (all []cluster.Node) {
		for i, r := range roles {
			role, left := strings.CutPrefix(r, "left ")
			n := cluster.Node{ID: strconv.Itoa(i), Role: role, State: cluster.StateActive}
			if left {
				n.State = cluster.StateLeft
			}
			all = append(all, n)
		}
		return all
	}
	for _, tt := range []struct {
		role  string
		nodes []cluster.Node
		want  string // the roles that it names
	}{
		{"egde", nodes("me", "origin", "edge", "edge"), "edge, origin"},
		{"edge", nodes("me", "origin", "edge"), ""},
		{"edge", nodes("edge", "origin"), ""},
		{"origin", nodes("me", "edge"), ""},
		{"edge", nodes("me", "ingest", "edge-eu"), "edge-eu, ingest"},
		{"ingest", nodes("me", "left ingest", "origin"), ""},
		{"ingest", nodes("me", "left origin"), ""},
		{"ingest", nodes("me", "", ""), ""},
		{"ingest", nodes("me"), ""},
		{"", nodes("me", "origin"), ""},
	} {
		want := tt.want
		if want != "" {
			want = "role " + tt.role + ": no other node has it (" + want + ")"
		}
		must.Equal(t, tt.role, LoneRole(tt.role, "0", tt.nodes), want)
	}
}
