// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

// TestUnknownOwner: whom the installation belongs to cannot be known. A password
// must not be written then: its files could stay readable by all.
func TestUnknownOwner(t *testing.T) {
	t.Parallel()
	m := ownTree(t, "3.0", "3.0.3")
	f := &facts{address: ams.Address{Addr: netip.MustParseAddr("10.0.1.7")}}
	m.checkInstall(f)
	f.install.Dir = filepath.Join(f.install.Dir, "gone")
	m.checkPlan(m.store(), JoinRequest{Mongo: mustTarget(t, testMongo)}, f)
	if got := findingIDs(f.failed()); len(got) != 1 || got[0] != IDInstall {
		t.Errorf("%v", f.findings)
	}
	if f.plan != nil {
		t.Error("there is a plan")
	}
}

// TestDeadFileSystem: every call on a dead disk or network file system fails, and so does a join. The daemon's join, which skips
// files that their owner made unreadable, must not skip these: they may hold a password.
func TestDeadFileSystem(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	const app = "webapps/LiveApp/WEB-INF"
	for name, tt := range map[string]struct {
		folder string // below the installation
		id     string
		plan   bool
	}{
		"the installation": {".", IDInstall, false},
		"an application":   {app, IDFile, true},
	} {
		for _, skipApps := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %v", name, skipApps), func(t *testing.T) {
				m := ownTree(t, "3.0", "3.0.3")
				f := &facts{address: ams.Address{Addr: netip.MustParseAddr("10.0.1.7")}, skipApps: skipApps}
				m.checkInstall(f)
				// In a folder of root's nothing could be its owner's doing.
				if err := filepath.WalkDir(filepath.Join(m.Root, ams.DefaultDir), func(path string, _ fs.DirEntry, err error) error {
					return errors.Join(err, os.Lchown(path, 4711, 4711))
				}); err != nil {
					t.Fatal(err)
				}
				deadMount(t, filepath.Join(m.Root, ams.DefaultDir, tt.folder))
				m.checkPlan(m.store(), JoinRequest{Mongo: mustTarget(t, testMongo)}, f)
				if ids(f.failed()) != tt.id || !errors.Is(f.failed()[0].Err, unix.ENOTCONN) || len(warningsOf(f.findings)) > 0 {
					t.Errorf("failed: %v, warnings: %v", f.failed(), warningsOf(f.findings))
				}
				if (f.plan != nil) != tt.plan {
					t.Fatalf("a plan: %v", f.plan != nil)
				}
				if tt.plan && slices.ContainsFunc(f.plan.Files(), func(p conf.PlannedFile) bool { return strings.Contains(p.Before.Path, app) }) {
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
	err = unix.Mount("test", folder, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	_ = unix.Close(fd)
	if err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestServerNotEnabled: review real-server S10, a join said nothing about a server
// that does not come back after a reboot.
func TestServerNotEnabled(t *testing.T) {
	t.Parallel()
	for unitFile, want := range map[string]string{"disabled": IDNotEnabled, "enabled": "", "static": "", "": ""} {
		m := ownTree(t, "3.0", "3.0.3")
		m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, UnitFile: unitFile}}
		f := &facts{}
		req := JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", ForceAddress: true, DryRun: true}
		req.Identify = func(context.Context) (metadata.Instance, error) { return joinedAs(), nil }
		must.OK(t, m.preflight(t.Context(), m.store(), req, f))
		var got string
		for _, w := range warningsOf(f.findings) {
			if strings.Contains(w.Hint, "systemctl enable") {
				got += w.ID
			}
		}
		if got != want || len(f.failed()) > 0 {
			t.Errorf("%q: warnings %q, want %q: %v", unitFile, got, want, f.failed())
		}
	}
}

// TestAddressOfAnEnvironmentFile: systemd lets a file of EnvironmentFile= override every
// drop-in, so the server would register under another address after a restart for nothing.
func TestAddressOfAnEnvironmentFile(t *testing.T) {
	t.Parallel()
	for address, failed := range map[string]string{"10.0.1.9": IDAddress, "10.0.1.7": "", "": IDAddress, "media.example.org": IDAddress} {
		m := joinedTree(t)
		m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, HostAddress: address, HostAddressFile: "/etc/default/antmedia"}}
		req := JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", ForceAddress: true, DryRun: true}
		req.Identify = func(context.Context) (metadata.Instance, error) { return joinedAs(), nil }
		f := &facts{}
		must.OK(t, m.preflight(t.Context(), m.store(), req, f))
		if got := ids(f.failed()); got != failed {
			t.Errorf("%q: failed %q, want %q: %v", address, got, failed, f.failed())
		}
		if failed != "" && strings.Contains(f.failed()[0].Hint, "--address") != (address == "10.0.1.9") {
			t.Errorf("%q: hint %q", address, f.failed()[0].Hint)
		}
	}
}

// A drop-in with a later name leaves the server less time to stop than the join's: the join says it.
func TestJoinWarnsOfItsStopTimeout(t *testing.T) {
	t.Parallel()
	for timeout, want := range map[time.Duration]string{10 * time.Second: IDTimeline, 10 * time.Minute: "", 0: ""} {
		m := ownTree(t, "3.0", "3.0.3")
		m.DropIn, m.Service = true, serviceThat{state: ams.State{Activity: ams.ActivityActive, StopTimeout: timeout}}
		in, err := m.open()
		must.OK(t, err)
		j := &joiner{Machine: m, facts: &facts{install: in}}
		j.warnStopTimeout(t.Context())
		if got := ids(warningsOf(j.facts.findings)); got != want {
			t.Errorf("%s: %v", timeout, warningsOf(j.facts.findings))
		}
	}
}

// startingMachine is a service of a machine that boots.
type startingMachine struct {
	serviceThat
	early bool
}

func (s startingMachine) SystemStarting(context.Context) (bool, error) { return s.early, nil }

// Before sysinit.target systemd starts nothing, and the rollback of a join would drop the boot's start of the server.
func TestJoinEarlyInABoot(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{true, false} {
		m := ownTree(t, "3.0", "3.0.3")
		m.Service = startingMachine{serviceThat{state: ams.State{Activity: ams.ActivityInactive}}, early}
		for _, offline := range []bool{false, true} {
			f := &facts{}
			req := JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", ForceAddress: true, Offline: offline, Identify: func(context.Context) (metadata.Instance, error) { return metadata.Instance{ID: "i-1"}, nil }}
			must.OK(t, m.preflight(t.Context(), m.store(), req, f))
			if got := slices.ContainsFunc(f.failed(), func(f Finding) bool { return f.ID == IDService }); got != (early && !offline) {
				t.Errorf("early %v, offline %v: %v", early, offline, f.failed())
			}
		}
	}
}

// The vendor's unit starts Java without IPv6: such a server reaches neither MongoDB nor another node by it.
func TestIPv6WithoutIPv6(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		mongo, address string
		ipv4Only       bool
		want           []string
	}{
		"MongoDB":                  {"[fd00::1]:27017", "10.0.1.7", true, []string{IDMongoForm}},
		"the node":                 {"10.0.0.5", "fd00::14", true, []string{IDAddress}},
		"both":                     {"mongodb://[fd00::1],[fd00::2]/", "fd00::14", true, []string{IDAddress, IDMongoForm}},
		"one member has IPv4":      {"mongodb://10.0.0.5,[fd00::1]/", "10.0.1.7", true, nil},
		"a Java that may use IPv6": {"[fd00::1]", "fd00::14", false, nil},
	} {
		m := ownTree(t, "3.0", "3.0.3")
		m.Service = serviceThat{state: ams.State{Activity: ams.ActivityInactive, IPv4Only: tt.ipv4Only, Fragment: "/etc/systemd/system/antmedia.service"}}
		req := JoinRequest{
			Mongo: mustTarget(t, tt.mongo), Address: tt.address, ForceAddress: true,
			Identify: func(context.Context) (metadata.Instance, error) { return metadata.Instance{ID: "i-1"}, nil },
		}
		f := &facts{}
		must.OK(t, m.preflight(t.Context(), m.store(), req, f))
		if got := findingIDs(f.failed()); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v", name, f.failed())
		}
		if in := inspect(t, m, req); !slices.Equal(findingIDs(failedOf(in.Findings)), tt.want) {
			t.Errorf("%s, doctor: %v", name, failedOf(in.Findings))
		}
	}
}

// A file that is a mount point, as docker mounts one, cannot be replaced by a rename: this is found before any change.
func TestMountedFile(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	for _, flags := range []uintptr{0, unix.MS_RDONLY} {
		m := ownTree(t, "3.0", "3.0.3")
		file := filepath.Join(m.Root, ams.DefaultDir, serverFile)
		if err := unix.Mount(file, file, "", unix.MS_BIND, ""); err != nil {
			t.Skip("mounting failed: ", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(file, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		must.OK(t, unix.Mount("", file, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""))
		req := JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", ForceAddress: true}
		in := inspect(t, m, req)
		all := [][]Finding{failedOf(in.Findings)}
		for _, dry := range []bool{true, false} {
			req.Offline, req.DryRun = true, dry
			_, err := m.Join(t.Context(), req)
			pre, ok := errors.AsType[*PreflightError](err)
			if !ok {
				t.Fatalf("dry run %v: %v", dry, err)
			}
			all = append(all, pre.Findings)
		}
		for _, found := range all {
			if ids(found) != IDWritable || !strings.Contains(found[0].Hint, "mount its folder") || !strings.Contains(found[0].Text, serverFile) {
				t.Errorf("flags %d: %v", flags, found)
			}
		}
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
		if got := LoneRole(tt.role, "0", tt.nodes); got != want {
			t.Errorf("%s: %q, want %q", tt.role, got, want)
		}
	}
}
