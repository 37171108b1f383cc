// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// amsOwner owns the installation: not who runs the agent, so that owners have to
// be kept.
const amsOwner = 1500

// The password is in the connection string: files that hold it must not be readable by all users. Only a join gets it, from a
// file.
const crashUser, crashPassword, secretFile = "ams", "p@ss/w:rd", "/secret"

// startCrashMongo starts one database for all nodes of a test.
func startCrashMongo(t *testing.T) *mongod.Server {
	t.Helper()
	return servers.Start(t, mongod.Options{Users: map[string]string{crashUser: crashPassword}})
}

// crashNode is a node whose service command a test may change. Its methods return errors: many nodes work side by side.
type crashNode struct {
	*rig.Node
	wrap string // the service command
	// failed reports that a join failed: then the record may stay so.
	failed bool
	// clean and joined are the tree before a join and after it, by path.
	clean, joined map[string]string
}

// crashNodeOptions: the zero value is a node that is joined and left offline.
type crashNodeOptions struct {
	mongo *mongod.Server // nil: offline
	// shm puts the tree into memory: for what does not depend on the disk.
	shm bool
	// tree changes how the installation is written.
	tree func(*tree.Options)
	args []string // of the stand-in
	// owner lets the stand-in run as the tree's owner, as the real server does, and not as root.
	owner bool
}

// memoryDir is a folder in memory if the machine has /dev/shm.
func memoryDir(t testing.TB) string {
	t.Helper()
	if info, err := os.Stat("/dev/shm"); err != nil || !info.IsDir() {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "amsagent-crash-") //nolint:usetesting // in memory: thousands of fsyncs would take an hour on a disk
	must.OK(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// newCrashNode writes a machine. number makes its address and its id.
func newCrashNode(t testing.TB, number int, o crashNodeOptions) *crashNode {
	t.Helper()
	base := t.TempDir()
	if o.shm {
		base = memoryDir(t)
	}
	n := &crashNode{wrap: filepath.Join(base, "svc")}
	with := rig.Options{
		Options: standin.Options{
			Dir: base, Command: "svc.real", Sandbox: bins.sandbox, StartWait: 10 * time.Second, StopWait: 5 * time.Second,
			Tree: tree.Options{Host: fmt.Sprintf("node%d", number), Owner: &tree.Owner{UID: amsOwner, GID: amsOwner}},
			Args: append([]string{"--period", "500ms", "--mongo-timeout", "5s", "--save-at-start=false"}, o.args...),
		},
		Agent: bins.agent, Address: fmt.Sprintf("127.0.%d.%d", 1+number/200, 1+number%200), Mongo: o.mongo, Stopped: o.mongo == nil,
	}
	mongo, service := "mongodb://"+crashUser+":p%40ss%2Fw%3Ard@127.0.0.1:27017/?authSource=admin", ""
	if o.mongo != nil {
		mongo, service = o.mongo.LoginURI(), n.wrap
	}
	with.Env = []string{
		"HOME=/nonexistent", "AMSAGENT_PROVIDER=generic", "AMSAGENT_ADDRESS=" + with.Address, "AMSAGENT_TIMEOUT=60s",
		"AMSAGENT_SERVICE_COMMAND=" + service,
	}
	if os.Geteuid() != 0 {
		with.Tree.Owner = nil
	}
	if o.tree != nil {
		o.tree(&with.Tree)
	}
	if o.owner {
		with.User = amsOwner
		must.OK(t, errors.Join(os.Chmod(base, 0o711), os.Chmod(bins.dir, 0o711)))
	}
	n.Node = rig.New(t, with)
	id := n.Path("etc/machine-id")
	must.OK(t, errors.Join(os.RemoveAll(id), os.WriteFile(id, fmt.Appendf(nil, "%032x\n", number+1), 0o444)))
	n.Write(secretFile, mongo)
	n.wrapper(t, "")
	n.clean = n.snapshot(t)
	return n
}

// wrapper writes the service command: it notes what it is asked for, and runs
// lines before it does it.
func (n *crashNode) wrapper(t testing.TB, lines string) {
	t.Helper()
	text := "#!/bin/sh\necho \"$1\" >>'" + n.wrap + ".log'\n" + lines + "\nexec '" + n.wrap + ".real' \"$@\"\n"
	// A daemon may run the present one.
	must.OK(t, os.WriteFile(n.wrap+".new", []byte(text), 0o755))
	must.OK(t, os.Rename(n.wrap+".new", n.wrap))
}

// command is a command of the agent as this node needs it.
func (n *crashNode) command(args ...string) *exec.Cmd {
	if args[0] == "join" {
		args = append(args, "--mongo", "file:"+secretFile)
	}
	if n.Mongo == nil && (args[0] == "join" || args[0] == "leave") {
		args = append(args, "--offline")
	} else if args[0] == "leave" {
		args = append(args, "--now") // no daemon counts sessions
	}
	return n.Cmd(args...)
}

// ran is how a command ended.
type ran struct {
	Exit     int
	Out, Err string
}

func (n *crashNode) start(args ...string) (*exec.Cmd, *strings.Builder, *strings.Builder) {
	cmd := n.command(args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	return cmd, &out, &errs
}

// trace runs a command under the tracer.
func (n *crashNode) trace(s shot, args ...string) (traced, error) {
	cmd := n.command(args...)
	return traceAgent(cmd.Args, cmd.Environ(), s) // each variable once
}

// agent runs a command to its end.
func (n *crashNode) agent(args ...string) ran {
	cmd, out, errs := n.start(args...)
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return ran{Exit: -1, Err: err.Error()}
	}
	return ran{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// mustRun runs a command that has to end well.
func (n *crashNode) mustRun(t testing.TB, args ...string) ran {
	t.Helper()
	r := n.agent(args...)
	if r.Exit != 0 {
		t.Fatalf("amsagent %s: exit %d\n%s%s", strings.Join(args, " "), r.Exit, r.Out, r.Err)
	}
	return r
}

// learn joins and leaves once, to know what a joined tree looks like.
func (n *crashNode) learn(t testing.TB) {
	t.Helper()
	n.mustRun(t, "join", "--role", "edge")
	n.joined = n.snapshot(t)
	if err := n.isJoined(); err != nil {
		t.Fatalf("after a join: %v", err)
	}
	n.mustRun(t, "leave")
	if err := n.isLeft(); err != nil {
		t.Fatalf("after a leave: %v", err)
	}
}

func (n *crashNode) snapshot(t testing.TB) map[string]string {
	t.Helper()
	m, err := n.look()
	must.OK(t, err)
	return m
}

// look lists type, mode, owner and content of everything but what the agent keeps
// for itself.
func (n *crashNode) look() (map[string]string, error) {
	lines, err := tree.Snapshot(n.Path("/"), "var/lib", "run", "proc")
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for _, line := range lines {
		f := strings.SplitN(line, " ", 4)
		m[f[3]] = strings.Join(f[:3], " ")
	}
	return m, nil
}

// oldOrNew lists the paths that are neither as before nor as after the transaction, except its own temporary files.
func (n *crashNode) oldOrNew() error {
	now, err := n.look()
	if err != nil {
		return err
	}
	var errs []error
	for path, line := range now {
		if strings.Contains(path, ".amsagent-") || line == n.clean[path] || line == n.joined[path] {
			continue
		}
		errs = append(errs, fmt.Errorf("%s is neither old nor new: %q, old %q, new %q", path, line, n.clean[path], n.joined[path]))
	}
	for path, line := range n.clean {
		if _, there := now[path]; !there && n.joined[path] != "" {
			errs = append(errs, fmt.Errorf("%s is gone (%q)", path, line))
		}
	}
	return errors.Join(errs...)
}

// differences lists where the tree is not as wanted.
func (n *crashNode) differences(want map[string]string) error {
	return n.differencesBut(want, func(string, string) bool { return false })
}

// differencesBut is differences without additional paths that are allowed.
func (n *crashNode) differencesBut(want map[string]string, allowed func(path, line string) bool) error {
	now, err := n.look()
	if err != nil {
		return err
	}
	var errs []error
	for path, line := range want {
		if now[path] != line {
			errs = append(errs, fmt.Errorf("%s is %q, want %q", path, now[path], line))
		}
	}
	for path, line := range now {
		if _, ok := want[path]; !ok && !allowed(path, line) {
			errs = append(errs, fmt.Errorf("%s should not be there (%s)", path, line))
		}
	}
	return errors.Join(errs...)
}

// stray reports whether a change that is not finished may leave a path: a temporary file, or a folder of a joined tree.
func (n *crashNode) stray(path, line string) bool {
	return strings.Contains(path, ".amsagent-") || strings.HasPrefix(line, "d") && line == n.joined[path]
}

// strays lists temporary files anywhere below the root. ownTemps allows those beside the agent's own files: the agent cannot
// remove a file from a disk that refuses writes.
func (n *crashNode) strays(ownTemps bool) error {
	var errs []error
	err := filepath.WalkDir(n.Path("/"), func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := filepath.Base(p)
		if ownTemps && strings.HasSuffix(base, ".amsagent-tmp") {
			return nil
		}
		if strings.Contains(base, ".amsagent-") || strings.HasPrefix(base, "journal") {
			errs = append(errs, fmt.Errorf("left behind: %s", p))
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

const crashStateDir = "var/lib/amsagent"

// rememberedState reads the state file; nil if it does not exist.
func (n *crashNode) rememberedState() (map[string]any, error) {
	b, err := os.ReadFile(n.Path(crashStateDir + "/state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s map[string]any
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("state.json: %w", err)
	}
	return s, nil
}

// kept lists what the agent has in its state folder.
func (n *crashNode) kept() ([]string, error) {
	entries, err := os.ReadDir(n.Path(crashStateDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// isJoined proves that a join is complete, everywhere it can be seen.
func (n *crashNode) isJoined() error {
	errs := []error{n.strays(false)}
	if n.joined != nil {
		errs = append(errs, n.differences(n.joined))
	}
	names, err := n.kept()
	want := "config.yaml.good state.json undo.json"
	if n.Mongo == nil {
		want = "state.json undo.json" // it has the agent's own files
	}
	if got := strings.Join(names, " "); got != want {
		err = errors.Join(err, fmt.Errorf("the state folder holds %q, want %q", got, want))
	}
	errs = append(errs, err)
	if n.Mongo != nil {
		s, err := n.rememberedState()
		if s["phase"] != "joined" || s["restart_pending"] != nil {
			err = errors.Join(err, fmt.Errorf("state.json says %v", s))
		}
		errs = append(errs, err, n.row("active"), n.running("cluster"), n.documents(true))
	}
	return errors.Join(errs...)
}

// isLeft proves that nothing of a join is left.
func (n *crashNode) isLeft() error {
	errs := []error{n.strays(false), n.differences(n.clean)}
	names, err := n.kept()
	if len(names) > 0 {
		err = errors.Join(err, fmt.Errorf("the state folder holds %v", names))
	}
	errs = append(errs, err)
	if n.Mongo != nil {
		row := n.row(cluster.StateLeft)
		if row != nil && n.failed {
			row = n.row(cluster.StateFailed)
		}
		errs = append(errs, row, n.running("standalone"), n.documents(false))
	}
	return errors.Join(errs...)
}

// row proves that the registry has this node in that state. A node that was
// never registered has left, too.
func (n *crashNode) row(want cluster.State) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	nodes, err := n.Client.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, r := range nodes {
		if r.IP == n.Address {
			if r.State != want {
				return fmt.Errorf("the row in the registry says %s (%s), want %s", r.State, r.Reason, want)
			}
			return nil
		}
	}
	if want == cluster.StateLeft || want == cluster.StateFailed {
		return nil // it never was in the cluster
	}
	return errors.New("no row in the registry")
}

// running proves that AMS is up in that mode.
func (n *crashNode) running(mode string) error {
	return eventually(10*time.Second, func() error {
		st, err := n.StandIn.Service.Status()
		if err != nil || st != amsctl.Active {
			return fmt.Errorf("the service is %s: %w", st, err)
		}
		b, err := n.StandIn.Service.Info()
		if err != nil {
			return err
		}
		var info struct {
			Mode    string `json:"mode"`
			Address string `json:"address"`
		}
		if err := json.Unmarshal(b, &info); err != nil {
			return err
		}
		if info.Mode != mode || (mode == "cluster" && info.Address != n.Address) {
			return fmt.Errorf("AMS runs as %+v, want %s", info, mode)
		}
		return nil
	})
}

// documents proves that AMS's own document is in the cluster, or is not.
func (n *crashNode) documents(want bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	docs, err := n.Client.AMSNodesByAddress(ctx, n.Address)
	if err != nil {
		return err
	}
	if (len(docs) > 0) != want {
		return fmt.Errorf("%d documents of %s in clusternode", len(docs), n.Address)
	}
	return nil
}

// finish runs the next command after a crash, and leaves. Everything has to be
// right after each of both.
func (n *crashNode) finish(next string) error {
	if next == "join" {
		if r := n.agent("join", "--role", "edge"); r.Exit != 0 {
			return fmt.Errorf("the next join: exit %d\n%s", r.Exit, r.Err)
		}
		if err := n.isJoined(); err != nil {
			return fmt.Errorf("after the next join: %w", err)
		}
	}
	if r := n.agent("leave"); r.Exit != 0 {
		return fmt.Errorf("leaving: exit %d\n%s", r.Exit, r.Err)
	}
	if err := n.isLeft(); err != nil {
		return fmt.Errorf("after leaving: %w", err)
	}
	return nil
}

// stateSaid is what an error says of the state of the machine.
func stateSaid(stderr string) (string, error) {
	for line := range strings.Lines(stderr) {
		var o struct {
			Error *struct {
				State string `json:"state"`
			} `json:"error"`
		}
		if json.Unmarshal([]byte(line), &o) == nil && o.Error != nil {
			if o.Error.State == "" {
				return "", fmt.Errorf("an error without a state: %s", line)
			}
			return o.Error.State, nil
		}
	}
	return "", fmt.Errorf("it failed without an error:\n%s", stderr)
}

// removeState makes a machine that the agent has never seen.
func (n *crashNode) removeState() error {
	return errors.Join(os.RemoveAll(n.Path("var/lib")), os.RemoveAll(n.Path("run")))
}

// eventually asks until the answer is good or the time is over.
func eventually(limit time.Duration, ask func() error) error {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-tick.C
	}
}

var volatile = regexp.MustCompile(`(/dev/shm|/tmp)/[^ :)]*|[0-9a-f]{12}\.new`)

// truthful compares what the command says of the machine with the machine.
func (n *crashNode) truthful(cmd string, r ran, lasting bool) (claim string, _ error) {
	before, after := n.clean, n.joined
	if cmd == "leave" {
		before, after = n.joined, n.clean
	}
	if r.Exit < 0 {
		return "", errors.New("it was killed")
	}
	if r.Exit == 0 {
		// What could not be removed of its own result file may be left.
		return "done", errors.Join(n.differences(after), n.mode(after))
	}
	state, err := stateSaid(r.Err)
	if err != nil {
		return "", err
	}
	claim = volatile.ReplaceAllString(state, "X")
	has := func(s string) bool { return strings.Contains(state, s) }
	switch {
	case has("the files are half changed"):
		return claim, n.halfChanged(state, before, after)
	case has("the files of Ant Media Server are as before, the agent's own may be new"):
		return claim, errors.Join(n.oldOrNew(), n.serverFiles(before), n.mode(before))
	case has("but the journal of the change is left"):
		return claim, errors.Join(n.differencesBut(before, n.stray), n.mode(before))
	case has("the files of Ant Media Server were given back, and those of the agent were not"):
		return claim, errors.Join(n.oldOrNew(), n.serverFiles(after), n.mode(after))
	case has("but what was begun is not finished"):
		return claim, errors.Join(n.differencesBut(n.andSecret(after), n.stray), n.mode(after))
	case strings.HasPrefix(state, "the files are still those of a cluster node; of Ant Media Server: it runs"):
		return claim, errors.Join(n.differences(before), n.mode(before))
	case has("of Ant Media Server: it runs"):
		return claim, n.differences(n.andSecret(n.clean))
	case has("of Ant Media Server: it does not run"), has("does not start with them either"), has("does not stay up with them either"), has("of Ant Media Server: whether it runs is not known"):
		return claim, n.differences(n.andSecret(n.clean))
	case has("nothing was changed on this machine but the agent's own"):
		return claim, errors.Join(n.oldOrNew(), n.serverFiles(before), n.mode(before))
	case strings.HasPrefix(state, "nothing was changed on this machine"), strings.HasPrefix(state, "the files are still those of a cluster node"):
		return claim, errors.Join(n.strays(lasting), n.differences(before), n.mode(before), n.rowBefore(cmd))
	case has("the files were put back"):
		if has("but for") {
			return claim, nil
		}
		return claim, errors.Join(n.differences(before), n.mode(before))
	case has("this machine is a cluster node"):
		return claim, errors.Join(n.differences(n.joined), n.mode(n.joined))
	case has("this machine is standalone"), has("this machine left the cluster"):
		return claim, errors.Join(n.differences(n.andSecret(n.clean)), n.mode(n.clean))
	case has("the interrupted run is still unfinished"):
		return claim, n.oldOrNew()
	}
	return claim, errors.New("no claim that this test knows")
}

// andSecret adds the secret, if it is there: it stays until a leave has deregistered the node.
func (n *crashNode) andSecret(want map[string]string) map[string]string {
	want = maps.Clone(want)
	for _, path := range []string{"etc/amsagent", "etc/amsagent/mongo"} {
		if _, err := os.Stat(n.Path(path)); err == nil {
			want[path] = n.joined[path]
		}
	}
	return want
}

// serverFiles lists which of the server's files are not as wanted.
func (n *crashNode) serverFiles(want map[string]string) error {
	now, err := n.look()
	errs := []error{err}
	for path, line := range want {
		if strings.HasPrefix(path, "usr/local/antmedia/") && now[path] != line {
			errs = append(errs, fmt.Errorf("%s is %q, want %q", path, now[path], line))
		}
	}
	return errors.Join(errs...)
}

// mode proves that AMS runs as the tree says.
func (n *crashNode) mode(tree map[string]string) error {
	if n.Mongo == nil {
		return nil
	}
	if maps.Equal(tree, n.joined) {
		return n.running("cluster")
	}
	return n.running("standalone")
}

// rowBefore proves that a command that changed nothing did not change what the
// others see of this node.
func (n *crashNode) rowBefore(cmd string) error {
	switch {
	case n.Mongo == nil:
		return nil
	case cmd == "leave":
		return n.row(cluster.StateActive)
	case n.row(cluster.StateLeft) == nil:
		return nil
	}
	return n.row(cluster.StateFailed)
}

var halfList = regexp.MustCompile(`(new|as before|edited by another program): ([^;)]*)`)

// halfChanged checks a list of which files are new and which are as before.
func (n *crashNode) halfChanged(state string, before, after map[string]string) error {
	now, err := n.look()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range halfList.FindAllStringSubmatch(state, -1) {
		for path := range strings.SplitSeq(m[2], ", ") {
			path = strings.TrimPrefix(path, "/")
			want := map[string]string{"new": after[path], "as before": before[path]}[m[1]]
			if m[1] == "edited by another program" || now[path] != want {
				errs = append(errs, fmt.Errorf("%s is %q, not %s", path, now[path], m[1]))
			}
		}
	}
	return errors.Join(append(errs, n.oldOrNew())...)
}
