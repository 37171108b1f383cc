// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

const testMongo = "mongodb://u:p%40ss@10.0.2.4:27017/?replicaSet=rs0"

// joinedTree is a machine that has joined, with the state file of a join.
func joinedTree(t *testing.T) *Machine {
	t.Helper()
	m := ownTree(t, "3.0", "3.0.3")
	// Where systemd's folder is, a drop-in says the address.
	must.OK(t, os.MkdirAll(filepath.Join(m.Root, "etc/systemd/system"), 0o755))
	m.DropIn = true
	joinOffline(t, m, testMongo, "10.0.1.7")
	s := State{Phase: PhaseJoined, InstanceID: "i-1", Address: "10.0.1.7", Role: "edge", Group: "edges", Provider: "aws", Release: "3.0.3"}
	must.OK(t, remember(m, s))
	return m
}

// remember saves a state, with the records of the join before it.
func remember(m *Machine, s State) error {
	was, err := readState(m.store())
	if err != nil {
		return err
	}
	s.Own = was.Own
	return saveState(m.store(), s)
}

// change edits the state file.
func change(t *testing.T, m *Machine, f func(*State)) {
	t.Helper()
	s, err := loadState(m.store())
	must.OK(t, err)
	f(s)
	must.OK(t, saveState(m.store(), *s))
}

func convergeRequest(t *testing.T, inst metadata.Instance, err error) ConvergeRequest {
	return ConvergeRequest{
		Mongo: mustTarget(t, testMongo), Valve: ValveAuto, Address: inst.Address.String(), ForceAddress: true,
		Identify: func(context.Context) (metadata.Instance, error) { return inst, err },
	}
}

func joinedAs() metadata.Instance {
	return metadata.Instance{Provider: "aws", ID: "i-1", Address: netip.MustParseAddr("10.0.1.7"), Zone: "eu-west-1a"}
}

func converge(t *testing.T, m *Machine, req ConvergeRequest) *Convergence {
	t.Helper()
	c, err := m.Converge(t.Context(), req)
	must.OK(t, err)
	return c
}

func ids(findings []Finding) string {
	var out []string
	for _, f := range findings {
		out = append(out, f.ID)
	}
	return strings.Join(out, " ")
}

// snapshot returns all files below the root with their modification times: a convergence without repairs must not touch a file.
func snapshot(t *testing.T, m *Machine) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(m.Root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Base(name) == "lock" {
			return err
		}
		info, err := d.Info()
		if err == nil {
			b, rerr := os.ReadFile(name)
			files[name], err = string(b)+info.ModTime().String(), rerr
		}
		return err
	})
	must.OK(t, err)
	return files
}

// Every way in which a machine is found other than it joined.
func TestConvergeRepairs(t *testing.T) {
	t.Parallel()
	moved := joinedAs()
	moved.Address = netip.MustParseAddr("10.0.1.9")
	cloned := moved
	cloned.ID = "i-2"
	tests := []struct {
		name    string
		disturb func(t *testing.T, m *Machine)
		inst    metadata.Instance
		repairs string
	}{
		{name: "new address", inst: moved, repairs: "AGENT-MOVED AMS-DRIFT"},
		{name: "copy of the disk", inst: cloned, repairs: "AGENT-CLONED AGENT-MOVED AMS-DRIFT", disturb: func(t *testing.T, m *Machine) {
			change(t, m, func(s *State) { s.Hardware = oldHardware })
			put(t, m, hardwareFile, newHardware)
		}},
		{name: "lost drop-in", inst: joinedAs(), repairs: "AMS-DRIFT", disturb: func(t *testing.T, m *Machine) {
			must.OK(t, os.Remove(filepath.Join(m.Root, ams.DropInPath)))
		}},
		{name: "files of an upgrade", inst: joinedAs(), repairs: "AMS-DRIFT", disturb: func(t *testing.T, m *Machine) {
			change(t, m, func(s *State) { s.Release = "2.17.1" })
			fresh := ownTree(t, "3.0", "3.0.3")
			for _, name := range []string{"conf/red5.properties", "conf/jee-container.xml", "webapps/LiveApp/WEB-INF/red5-web.properties"} {
				b, err := os.ReadFile(filepath.Join(fresh.Root, ams.DefaultDir, name))
				must.OK(t, err)
				must.OK(t, os.WriteFile(filepath.Join(m.Root, ams.DefaultDir, name), b, 0o644))
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := joinedTree(t)
			original := treeFiles(t, ownTree(t, "3.0", "3.0.3"))
			if tt.disturb != nil {
				tt.disturb(t, m)
			}
			c := converge(t, m, convergeRequest(t, tt.inst, nil))
			if got := ids(c.Repairs); got != tt.repairs {
				t.Errorf("repairs %q, want %q: %v", got, tt.repairs, c.Repairs)
			}
			s, err := loadState(m.store())
			if err != nil || s.InstanceID != tt.inst.ID || s.Address != tt.inst.Address.String() || s.Phase != PhaseJoined {
				t.Errorf("state %+v, %v", s, err)
			}
			if c.Node.IP != tt.inst.Address.String() || c.Node.ID != tt.inst.ID {
				t.Errorf("row %+v", c.Node)
			}
			v, err := ams.ReadDropIn(m.Root)
			if err != nil || v.HostAddress != tt.inst.Address.String() {
				t.Errorf("drop-in %+v, %v", v, err)
			}
			if in, err := m.open(); err != nil {
				t.Error(err)
			} else if mode, err := in.Mode(); mode != "cluster" {
				t.Errorf("mode %s, %v", mode, err)
			}
			// The second run finds nothing, and leave still knows the original.
			if c := converge(t, m, convergeRequest(t, tt.inst, nil)); len(c.Repairs) > 0 {
				t.Errorf("the second run repairs %v", c.Repairs)
			}
			leaveOffline(t, m)
			left := treeFiles(t, m)
			for name, was := range original {
				if left[name] != was {
					t.Errorf("%s is not as before the join", name)
				}
			}
		})
	}
}

const (
	hardwareFile = "/sys/class/dmi/id/product_uuid"
	oldHardware  = "8eb3085c-1b4d-0a4f-9e6c-3b2a1c0d0001"
	newHardware  = "3f1c0a52-7d5e-4c0b-9f43-6a1d2e8b7c90"
)

// Who a machine is: by the metadata, its hardware and its interfaces. The state was written on old hardware.
func TestConvergeIdentity(t *testing.T) {
	t.Parallel()
	away := errors.New("the metadata service does not answer")
	other, otherAddress, generic := joinedAs(), joinedAs(), joinedAs()
	other.ID, other.Address = "i-2", netip.MustParseAddr("10.0.1.9")
	otherAddress.Address = other.Address
	generic.Provider = metadata.Generic
	type look struct {
		inst metadata.Instance
		err  error
		want string // "ID ADDRESS HARDWARE", then what it says of that
	}
	const old, is = "i-1 10.0.1.7 old", "i-2 10.0.1.9 "
	for name, tt := range map[string]struct {
		was, hardware, interfaces string // the hardware of the state and of this machine
		entered                   bool   // the cluster had this boot
		registered                bool
		looks                     []look // 40 s apart
	}{
		"no answer":                              {"old", "old", "10.0.1.7", false, false, []look{{err: away, want: old}}},
		"no answer, other hardware":              {"old", "new", "10.0.1.9", false, false, []look{{err: away, want: old + " unidentified"}}},
		"no answer, hardware not known":          {"old", "", "10.0.1.9", false, false, []look{{err: away, want: old}}},
		"no answer, hardware not known before":   {"", "new", "10.0.1.9", false, false, []look{{err: away, want: "i-1 10.0.1.7 none"}}},
		"the same":                               {"", "old", "10.0.1.7", false, false, []look{{inst: joinedAs(), want: old}}},
		"resized":                                {"old", "new", "10.0.1.7", false, false, []look{{inst: joinedAs(), want: "i-1 10.0.1.7 new"}}},
		"resized, a malformed tag":               {"old", "new", "10.0.1.7", false, false, []look{{joinedAs(), ErrTags, "i-1 10.0.1.7 new"}}},
		"a machine id on other hardware":         {"old", "new", "10.0.1.7", false, false, []look{{inst: generic, want: old + " other"}, {inst: generic, want: old + " other"}}},
		"a machine id that has the record":       {"old", "new", "10.0.1.7", false, true, []look{{inst: generic, want: "i-1 10.0.1.7 new"}}},
		"a copy":                                 {"old", "new", "10.0.1.9", false, false, []look{{inst: other, want: is + "new cloned"}}},
		"a copy, hardware not known":             {"old", "", "10.0.1.9", false, false, []look{{inst: other, want: "i-1 10.0.1.9 old unidentified"}, {inst: other, want: "i-1 10.0.1.9 old unidentified"}, {inst: other, want: is + "none cloned"}}},
		"one odd answer":                         {"old", "old", "10.0.1.7", false, false, []look{{inst: other, want: old + " unidentified"}, {inst: joinedAs(), want: old}, {inst: other, want: old + " unidentified"}, {inst: other, want: old + " unidentified"}}},
		"one odd answer to a node":               {"old", "old", "10.0.1.7", true, false, []look{{inst: other, want: old}, {inst: joinedAs(), want: old}}},
		"a node gets the same answer twice":      {"old", "old", "10.0.1.7", true, false, []look{{inst: other, want: old}, {inst: other, want: old}, {inst: other, want: "i-2 10.0.1.7 old cloned"}}},
		"an address that no interface has":       {"old", "old", "10.0.1.7", false, false, []look{{inst: otherAddress, want: old}}},
		"an address that an interface has":       {"old", "old", "10.0.1.7 10.0.1.9", false, false, []look{{inst: otherAddress, want: "i-1 10.0.1.9 old"}}},
		"neither address is here":                {"old", "old", "10.0.1.8", false, false, []look{{inst: otherAddress, want: "i-1 10.0.1.9 old"}}},
		"neither is here, and it is another one": {"old", "old", "10.0.1.8", false, false, []look{{inst: other, want: old + " unidentified"}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				full := map[string]string{"old": oldHardware, "new": newHardware}
				m := joinedTree(t)
				m.Interfaces = func() (all []ams.Interface, _ error) {
					for a := range strings.FieldsSeq(tt.interfaces) {
						all = append(all, ams.Interface{Name: "eth0", Addr: netip.MustParseAddr(a)})
					}
					return all, nil
				}
				put(t, m, "/proc/sys/kernel/random/boot_id", "boot-1\n")
				put(t, m, hardwareFile, full[tt.hardware])
				change(t, m, func(s *State) { s.Hardware = full[tt.was] })
				if tt.entered {
					must.OK(t, m.Entered("boot-1 10.0.1.7"))
				}
				for i, l := range tt.looks {
					req := convergeRequest(t, l.inst, l.err)
					req.Mode, req.Address, req.ForceAddress, req.Registered = ConvergeWatch, "", false, tt.registered
					c := converge(t, m, req)
					s, err := loadState(m.store())
					must.OK(t, err)
					hardware := map[string]string{oldHardware: "old", newHardware: "new", "": "none"}[s.Hardware]
					got := s.InstanceID + " " + s.Address + " " + hardware
					for word, said := range map[string]bool{"unidentified": c.Unidentified != "", "other": c.OtherHardware, "cloned": strings.Contains(ids(c.Repairs), IDCloned)} {
						if said {
							got += " " + word
						}
					}
					if got != l.want || c.Node.ID != s.InstanceID || c.Node.IP != s.Address {
						t.Errorf("look %d: %s, want %s; record %+v, warnings %v", i, got, l.want, c.Node, c.Warnings)
					}
					if c.Unidentified != "" && !strings.Contains(ids(c.Warnings), IDIdentity) {
						t.Errorf("look %d: no warning is AGENT-IDENTITY: %v", i, c.Warnings)
					}
					<-time.After(40 * time.Second)
				}
			})
		})
	}
}

// A malformed tag says nothing against who this machine is.
func TestConvergeMalformedTag(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	moved := joinedAs()
	moved.Address = netip.MustParseAddr("10.0.1.9")
	c := converge(t, m, convergeRequest(t, moved, fmt.Errorf("%w: amsagent:role", ErrTags)))
	if !strings.HasPrefix(ids(c.Repairs), idMoved) || !strings.HasPrefix(ids(c.Warnings), IDConfig) || c.Incomplete {
		t.Errorf("repairs %s, warnings %v, incomplete %t", ids(c.Repairs), c.Warnings, c.Incomplete)
	}
	if c.Node.IP != "10.0.1.9" || c.Node.Zone != "eu-west-1a" {
		t.Errorf("row %+v", c.Node)
	}
}

// An address that is behind a translation is the cloud's to confirm. While its answer lacks it, nothing contradicts it.
func TestConvergeTranslatedAddress(t *testing.T) {
	t.Parallel()
	partly := joinedAs()
	partly.Missing = []string{"public_address"}
	for _, c := range []struct {
		inst metadata.Instance
		err  error
		want bool
	}{{err: errors.New("it does not answer")}, {inst: partly}, {inst: joinedAs(), want: true}} {
		m := joinedTree(t)
		m.Interfaces = func() ([]ams.Interface, error) {
			return []ams.Interface{{Name: "eth0", Addr: partly.Address}}, nil
		}
		req := convergeRequest(t, c.inst, c.err)
		req.Address, req.ForceAddress = "203.0.113.9", false
		if got := converge(t, m, req); strings.Contains(ids(got.Warnings), IDAddress) != c.want || got.Node.IP != "10.0.1.7" {
			t.Errorf("%+v, %v: %v, %s", c.inst, c.err, got.Warnings, got.Node.IP)
		}
	}
}

// A signal ends the question to the cloud, and the convergence with it.
func TestConvergeInterrupted(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	change(t, m, func(s *State) { s.Address = "10.0.1.6" })
	was := snapshot(t, m)
	why := errors.New("interrupted by signal")
	ctx, cancel := context.WithCancelCause(t.Context())
	req := convergeRequest(t, joinedAs(), nil)
	req.Identify = func(ctx context.Context) (metadata.Instance, error) {
		cancel(why)
		return metadata.Instance{}, context.Cause(ctx)
	}
	if c, err := m.Converge(ctx, req); !errors.Is(err, why) {
		t.Errorf("%+v, %v", c, err)
	}
	if now := snapshot(t, m); !maps.Equal(was, now) {
		t.Errorf("files were written: %v", slices.Sorted(maps.Keys(now)))
	}
}

// serviceThat is a service in one state, which must not be touched.
type serviceThat struct {
	ams.None
	state ams.State
	err   error
}

func (s serviceThat) State(context.Context) (ams.State, error) { return s.state, s.err }

// If the service manager fails to report whether the server runs, it may be starting: a
// command writes only the agent's own files, and reports the others. The server's start writes all.
func TestConvergeOfAnUnknownService(t *testing.T) {
	t.Parallel()
	away := errors.New("the bus is away")
	for name, tt := range map[string]struct {
		mode    ConvergeMode
		service Service
		drifts  bool
		writes  bool
	}{
		"a command":                {convergeByCommand, serviceThat{err: away}, true, false},
		"a unit that is not there": {convergeByCommand, serviceThat{err: ams.ErrNoUnit}, true, true},
		"a command, nothing to do": {convergeByCommand, serviceThat{err: away}, false, false},
		"nothing is managed":       {convergeByCommand, ams.None{}, true, true},
		"the daemon":               {ConvergeWatch, serviceThat{err: away}, true, false},
		"before the start":         {ConvergeBeforeStart, serviceThat{err: away}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := joinedTree(t)
			m.Service = tt.service
			if tt.drifts {
				edit(t, m, liveFile, "db.type=mongodb", "db.type=mapdb")
			}
			put(t, m, MongoPath, "10.0.2.5\n")
			req := convergeRequest(t, joinedAs(), nil)
			req.Mode = tt.mode
			c := converge(t, m, req)
			if reported := len(c.Differences) > 0 && c.RestartNeeded; reported == (tt.writes || !tt.drifts) {
				t.Errorf("%+v", c)
			}
			if wrote := property(t, m, liveFile, "db.type") == "mongodb"; tt.drifts && wrote != tt.writes {
				t.Errorf("the server's file was written: %v", wrote)
			}
			if b, err := os.ReadFile(filepath.Join(m.Root, MongoPath)); err != nil || string(b) == "10.0.2.5\n" {
				t.Errorf("the agent's file was not written: %v", err)
			}
		})
	}
}

// An operator may edit the agent's MongoDB file after the daemon has read it: the edit stays. A connection string from another
// source overwrites the file.
func TestConvergeAfterMongoWasNamedAnew(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		is     *string // nil: none
		stored bool
		stays  bool
	}{
		"another one":                  {new("10.0.2.5\n"), true, true},
		"half a line":                  {new("mongodb://[half"), true, true},
		"not written yet":              {new(""), true, true},
		"missing":                      {nil, true, false},
		"as it was read":               {new(testMongo + "\r\n"), true, false},
		"another one, named elsewhere": {new("10.0.2.5\n"), false, false},
		"half a line, named elsewhere": {new("mongodb://[half"), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := joinedTree(t)
			file := filepath.Join(m.Root, MongoPath)
			must.OK(t, os.Remove(file))
			if tt.is != nil {
				put(t, m, MongoPath, *tt.is)
			}
			req := convergeRequest(t, joinedAs(), nil)
			req.Mode, req.MongoStored = ConvergeWatch, tt.stored
			converge(t, m, req)
			want := testMongo + "\n"
			if tt.stays {
				want = *tt.is
			}
			if b, err := os.ReadFile(file); err != nil || string(b) != want {
				t.Errorf("%q, %v, want %q", b, err, want)
			}
			if info, err := os.Stat(file); err != nil || !tt.stays && info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
		})
	}
}

// Damage to files that only a leave needs, or by the server's user, does not remove a serving node from the cluster at the next
// start of the daemon.
func TestConvergeOfWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(dir, tree string) error{
		"the record":  func(dir, _ string) error { return os.WriteFile(filepath.Join(dir, "undo.json"), []byte("{"), 0o600) },
		"the journal": func(dir, _ string) error { return os.WriteFile(filepath.Join(dir, "journal"), []byte("{"), 0o600) },
		"a release to come": func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "undo.json"), []byte(`{"version":99}`), 0o600)
		},
		"the settings":  func(_, tree string) error { return os.Remove(filepath.Join(tree, "conf/red5.properties")) },
		"the container": func(_, tree string) error { return os.Remove(filepath.Join(tree, "conf/jee-container.xml")) },
	} {
		m := joinedTree(t)
		m.Service = running()
		must.OK(t, damage(filepath.Join(m.Root, StateDir), filepath.Join(m.Root, ams.DefaultDir)))
		c, err := m.Converge(t.Context(), watchRequest(t))
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if c == nil || c.Phase != PhaseJoined || c.Node.ID != "i-1" || c.Node.IP != "10.0.1.7" || c.Node.AMS != "3.0.3" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func TestConvergeLeavesTheUnfinishedAlone(t *testing.T) {
	t.Parallel()
	for _, phase := range []Phase{PhaseJoining, PhaseLeaving} {
		m := joinedTree(t)
		s := State{Phase: phase, InstanceID: "i-1", Address: "10.0.1.7"}
		must.OK(t, saveState(m.store(), s))
		moved := joinedAs()
		moved.ID = "i-2"
		c := converge(t, m, convergeRequest(t, moved, nil))
		if c.Phase != phase || len(c.Repairs) > 0 {
			t.Errorf("%s: %+v", phase, c)
		}
	}
}

// Settings that depend on the cloud stay unchanged while its metadata service does not answer, even if the state does not name
// the cloud.
func TestValveWithoutCloud(t *testing.T) {
	t.Parallel()
	unknown := errors.New("the metadata service does not answer")
	for _, c := range []struct {
		removed bool
		joined  string // the cloud in the state
		after   bool   // the valve is removed again
	}{{true, "", false}, {false, "", false}, {true, metadata.Azure, false}, {false, metadata.Azure, true}} {
		removed, m := c.removed, joinedTree(t)
		req := convergeRequest(t, joinedAs(), nil)
		if removed {
			req.Valve = ValveRemove
		}
		converge(t, m, req)
		change(t, m, func(s *State) { s.Provider = c.joined })
		name := filepath.Join(m.Root, "usr/local/antmedia/conf/jee-container.xml")
		before, err := os.ReadFile(name)
		must.OK(t, err)
		if strings.Contains(string(before), "RemoteIpValve") == removed {
			t.Fatalf("removed: %t\n%s", removed, before)
		}
		req = convergeRequest(t, metadata.Instance{}, unknown)
		req.Address = "10.0.1.7"
		converge(t, m, req)
		if c.after { // an upgrade put it back, behind which Azure's gateway gets 403
			if after, err := os.ReadFile(name); err != nil || strings.Contains(string(after), "RemoteIpValve") {
				t.Errorf("%v: the valve is still there", err)
			}
			continue
		}
		if after, err := os.ReadFile(name); err != nil || string(after) != string(before) {
			t.Errorf("removed: %t: it was written: %v", removed, err)
		}
		if _, err := m.Join(t.Context(), JoinRequest{Mongo: req.Mongo, Address: "10.0.1.7", Offline: true, Valve: ValveAuto}); err != nil {
			t.Fatal(err)
		}
		if after, err := os.ReadFile(name); err != nil || string(after) != string(before) {
			t.Errorf("removed: %t: the join wrote it: %v", removed, err)
		}
		m.Connect = func(context.Context, cluster.Target) (*cluster.Client, error) { return nil, errors.New("away") }
		if s, err := m.Status(t.Context(), StatusRequest{Mongo: req.Mongo, Valve: ValveAuto}); err != nil || len(s.Files.Drift) > 0 {
			t.Errorf("removed: %t: %v, drift %v", removed, err, s)
		}
	}
}
