// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

const (
	// treesDir has the project's own installations, written by hand.
	treesDir  = "../sandbox/tree/files"
	testMongo = "mongodb://u:p%40ss@10.0.2.4:27017/?replicaSet=rs0"

	serverFile = "conf/red5.properties"
	beansFile  = "conf/jee-container.xml"
	liveFile   = "webapps/LiveApp/WEB-INF/red5-web.properties"

	stateFile   = StateDir + "/state.json"
	undoFile    = StateDir + "/undo.json"
	journalFile = StateDir + "/journal"
	hostsFile   = "/etc/hosts"
	bootFile    = "/proc/sys/kernel/random/boot_id"
)

// ownTree copies one of the project's own installations below a new root.
func ownTree(t testing.TB, variant, release string) *Machine {
	t.Helper()
	return treeIn(t, filepath.Join(treesDir, variant), release)
}

func treeIn(t testing.TB, source, release string) *Machine {
	t.Helper()
	m := &Machine{Root: t.TempDir(), Service: ams.None{}, Euid: os.Geteuid(), Version: "test"}
	must.OK(t, os.CopyFS(at(m, ""), os.DirFS(source)))
	if release != "" {
		r, err := ams.ParseRelease(release)
		must.OK(t, err)
		m.Release = r
	}
	return m
}

// step is a change of a machine.
type step func(testing.TB, *Machine)

// newTree is a machine with a standalone installation of release 3.0.3, after those steps.
func newTree(t testing.TB, steps ...step) *Machine {
	t.Helper()
	m := ownTree(t, "3.0", "3.0.3")
	do(t, m, steps...)
	return m
}

func do(t testing.TB, m *Machine, steps ...step) {
	t.Helper()
	for _, s := range steps {
		s(t, m)
	}
}

// joinedTo is a join with --offline.
func joinedTo(mongo, address string) step {
	return func(t testing.TB, m *Machine) { joinOffline(t, m, mongo, address) }
}

// scripted is the vendor's script, which makes the server a cluster node without a record.
func scripted(t testing.TB, m *Machine) {
	do(t, m, joinedTo("10.0.9.9", "10.0.1.7"), without(undoFile, stateFile, MongoPath))
}

// joined is a join: with a drop-in, and the state that a join without --offline leaves.
func joined(t testing.TB, m *Machine) {
	must.OK(t, os.MkdirAll(at(m, "/etc/systemd/system"), 0o755))
	m.DropIn = true
	do(t, m, joinedTo(testMongo, "10.0.1.7"), remembered)
}

// remembered adds to the state what a join without --offline writes there.
func remembered(t testing.TB, m *Machine) {
	change(t, m, func(s *State) {
		s.Phase, s.InstanceID, s.Address, s.Role, s.Group = PhaseJoined, "i-1", "10.0.1.7", "edge", "edges"
		s.Provider, s.Release = "aws", "3.0.3"
	})
}

// interrupted is a command of this boot that stopped the server a minute ago, and has not started it.
func interrupted(phase Phase) step {
	return func(t testing.TB, m *Machine) {
		put(t, m, bootFile, "boot-1\n")
		change(t, m, func(s *State) {
			s.Phase, s.Start, s.Boot, s.Since = phase, true, "boot-1", time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
		})
	}
}

// with is a file, and without removes some.
func with(path, text string) step { return func(t testing.TB, m *Machine) { put(t, m, path, text) } }

func without(paths ...string) step {
	return func(t testing.TB, m *Machine) {
		for _, path := range paths {
			must.OK(t, os.RemoveAll(at(m, path)))
		}
	}
}

// moved renames a file or a folder, and linked makes a link.
func moved(from, to string) step {
	return func(t testing.TB, m *Machine) { must.OK(t, os.Rename(at(m, from), at(m, to))) }
}

func linked(path, to string) step {
	return func(t testing.TB, m *Machine) {
		must.OK(t, errors.Join(os.RemoveAll(at(m, path)), os.Symlink(to, at(m, path))))
	}
}

// edited replaces a text of a file.
func edited(path, old, repl string) step {
	return func(t testing.TB, m *Machine) { edit(t, m, path, old, repl) }
}

// serving is the service of the server.
func serving(s Service) step { return func(_ testing.TB, m *Machine) { m.Service = s } }

// at is the real path of a file: an absolute one is below the root, another below the installation.
func at(m *Machine, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Join(m.Root, path)
	}
	return filepath.Join(m.Root, ams.DefaultDir, path)
}

func put(t testing.TB, m *Machine, path, text string) {
	t.Helper()
	must.OK(t, errors.Join(os.MkdirAll(filepath.Dir(at(m, path)), 0o755), os.WriteFile(at(m, path), []byte(text), 0o644)))
}

// content returns "none" without a file.
func content(t testing.TB, m *Machine, path string) string {
	t.Helper()
	b, err := os.ReadFile(at(m, path))
	if errors.Is(err, fs.ErrNotExist) {
		return "none"
	}
	must.OK(t, err)
	return string(b)
}

func edit(t testing.TB, m *Machine, path, old, repl string) {
	t.Helper()
	text := content(t, m, path)
	if !strings.Contains(text, old) {
		t.Fatalf("%s does not hold %q", path, old)
	}
	put(t, m, path, strings.Replace(text, old, repl, 1))
}

func property(t testing.TB, m *Machine, path, key string) string {
	t.Helper()
	p, err := conf.ParseProperties([]byte(content(t, m, path)))
	must.OK(t, err)
	v, _ := p.Get(key)
	return v
}

// stateOf returns an empty state without a file.
func stateOf(t testing.TB, m *Machine) (s State) {
	t.Helper()
	if text := content(t, m, stateFile); text != "none" {
		must.OK(t, json.Unmarshal([]byte(text), &s))
	}
	return s
}

// change edits the state file.
func change(t testing.TB, m *Machine, f func(*State)) {
	t.Helper()
	s := stateOf(t, m)
	f(&s)
	s.Version = 1
	b, err := json.Marshal(s)
	must.OK(t, err)
	put(t, m, stateFile, string(b))
}

// treeFiles has the mode and the content of each file below the installation.
func treeFiles(t testing.TB, m *Machine) map[string]string {
	return filesBelow(t, at(m, ""), func(info fs.FileInfo) string { return info.Mode().String() + "\n" })
}

// allFiles has that of each file below the root.
func allFiles(t testing.TB, m *Machine) map[string]string {
	return filesBelow(t, m.Root, func(info fs.FileInfo) string { return info.Mode().String() + "\n" })
}

// contents has the content of each file below the root.
func contents(t testing.TB, m *Machine) map[string]string {
	return filesBelow(t, m.Root, func(fs.FileInfo) string { return "" })
}

// snapshot also has the time of each file: a command that writes nothing does not touch one.
func snapshot(t testing.TB, m *Machine) map[string]string {
	return filesBelow(t, m.Root, func(info fs.FileInfo) string { return info.Mode().String() + info.ModTime().String() })
}

// filesBelow leaves out the agent's lock.
func filesBelow(t testing.TB, top string, what func(fs.FileInfo) string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must.OK(t, filepath.WalkDir(top, func(real string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(real, "/run/amsagent/lock") {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(real)
		all[strings.TrimPrefix(real, top)] = what(info) + string(b)
		return err
	}))
	return all
}

func mustTarget(t testing.TB, s string) cluster.Target {
	t.Helper()
	target, err := cluster.ParseTarget(s)
	must.OK(t, err)
	return target
}

// joinOffline edits the files of a machine and returns the result.
func joinOffline(t testing.TB, m *Machine, mongo, address string) *JoinResult {
	t.Helper()
	res, err := m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, mongo), Address: address, Offline: true, Valve: ValveKeep})
	must.OK(t, err)
	return res
}

func leaveOffline(t testing.TB, m *Machine) *LeaveResult {
	t.Helper()
	res, err := m.Leave(t.Context(), LeaveRequest{Offline: true})
	must.OK(t, err)
	return res
}

// locked is the lock of a command. It reports false if another one has it.
func locked(t testing.TB, m *Machine) (_ *conf.Lock, ok bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lock, err := (&conf.Store{Root: m.Root, Dir: StateDir}).Lock(ctx, "/run/amsagent/lock", cancel)
	return lock, err == nil
}

// asRefused gives the error of a command that began nothing, and asFailed that of one that did.
func asRefused(t testing.TB, err error) *PreflightError {
	t.Helper()
	refused, ok := errors.AsType[*PreflightError](err)
	if !ok {
		t.Fatalf("not refused: %v", err)
	}
	return refused
}

func asFailed(t testing.TB, err error) *FailedError {
	t.Helper()
	failed, ok := errors.AsType[*FailedError](err)
	if !ok {
		t.Fatalf("not failed: %v", err)
	}
	return failed
}

func noMongo(context.Context, cluster.Target) (*cluster.Client, error) {
	return nil, errors.New("MongoDB is away")
}

// joinedAs is the instance of a machine that has joined.
func joinedAs() metadata.Instance {
	return metadata.Instance{Provider: "aws", ID: "i-1", Address: netip.MustParseAddr("10.0.1.7"), Zone: "eu-west-1a"}
}

func convergeRequest(t testing.TB, inst metadata.Instance, err error) ConvergeRequest {
	return ConvergeRequest{
		Mongo: mustTarget(t, testMongo), Valve: ValveAuto, Address: inst.Address.String(), ForceAddress: true,
		Identify: func(context.Context) (metadata.Instance, error) { return inst, err },
	}
}

// watchRequest is the daemon's.
func watchRequest(t testing.TB) ConvergeRequest {
	req := convergeRequest(t, joinedAs(), nil)
	req.Mode = ConvergeWatch
	return req
}

func converge(t testing.TB, m *Machine, req ConvergeRequest) *Convergence {
	t.Helper()
	c, err := m.Converge(t.Context(), req)
	must.OK(t, err)
	return c
}

// ids has those of findings, in their order.
func ids(findings []Finding) string {
	var out []string
	for _, f := range findings {
		out = append(out, f.ID)
	}
	return strings.Join(out, " ")
}

func failedOf(fs []Finding) []Finding {
	failed, _ := Failed(fs)
	return failed
}

func warningsOf(fs []Finding) []Finding {
	_, warnings := Failed(fs)
	return warnings
}
