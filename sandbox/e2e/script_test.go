// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/fakes/fakeazure"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/internal/mongotest"
	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/internal/programs"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// binaries are the programs under test, built once.
type binaries struct{ dir, agent, sandbox string }

// bins is set by TestMain, before any test runs, and never changed.
var bins binaries

var servers mongotest.Servers

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "amsagent-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bins.dir = dir
	if bins.agent, err = programs.Agent(context.Background(), dir); err == nil {
		bins.sandbox, err = programs.Sandbox(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Under nohup, or started by a shell in the background, the daemons of the tests would ignore a hangup or an interrupt. A
	// process starts others with the default of a signal that it receives.
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	return servers.Main(m)
}

// TestScripts runs the scripts of testdata/script. `amsagent` is the real binary, without a terminal and with standard input at
// /dev/null. The commands of [world] emulate its environment. TestRealScripts runs those that begin with `# worlds: standin real` on
// the real server, too.
func TestScripts(t *testing.T) {
	t.Parallel()
	var files []string
	// The longest first, so that none runs alone at the end.
	for _, pattern := range []string{"nodes", "guide-*", "metadata*", "failures-*", "serving", "ready", "*"} {
		more, err := filepath.Glob("../../testdata/script/" + pattern + ".txtar")
		must.OK(t, err)
		files = append(files, slices.DeleteFunc(more, func(f string) bool { return slices.Contains(files, f) })...)
	}
	runScripts(scriptT{T: t}, files, "standin", func(t *testing.T) place {
		return &standIns{t: t, nodes: map[string]*standin.Machine{}}
	})
}

// scriptT is the test of a script.
type scriptT struct {
	*testing.T
	oneByOne bool
}

func (t scriptT) Parallel() {
	if !t.oneByOne {
		t.T.Parallel()
	}
}

func (t scriptT) Run(name string, f func(testscript.T)) {
	t.T.Run(name, func(sub *testing.T) { f(scriptT{sub, t.oneByOne}) })
}

func (t scriptT) Verbose() bool { return testing.Verbose() }

// scriptsOf lists the scripts of the gate that name this world in their first line.
func scriptsOf(t *testing.T, name string) []string {
	t.Helper()
	all, err := filepath.Glob("../../testdata/script/*.txtar")
	must.OK(t, err)
	return slices.DeleteFunc(all, func(file string) bool {
		text, err := os.ReadFile(file)
		must.OK(t, err)
		first, _, _ := strings.Cut(string(text), "\n")
		worlds, ok := strings.CutPrefix(first, "# worlds: ")
		return !ok || !slices.Contains(strings.Fields(worlds), name)
	})
}

func runScripts(t scriptT, files []string, name string, newPlace func(*testing.T) place) {
	testscript.RunT(t, testscript.Params{
		Files:               files,
		RequireExplicitExec: true,
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "standin", "real", "booted":
				return name == cond, nil
			case "2.10.0":
				return os.Getenv("REAL_RELEASE") == cond, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(env *testscript.Env) error {
			w := &world{ctx: context.Background(), t: env.T(), taken: map[string]taken{}, place: newPlace(env.T().(scriptT).T)}
			env.Values["world"] = w
			env.Defer(w.close)
			env.Setenv("PATH", bins.dir+":"+env.Getenv("PATH"))
			env.Setenv("NO_COLOR", "1")
			// A story that goes wrong ends soon.
			env.Setenv("AMSAGENT_TIMEOUT", "120s")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"until":       untilTrue,
			"boot":        worldCommand((*world).boot),
			"off":         worldCommand((*world).off),
			"mongod":      worldCommand((*world).mongod),
			"fault":       worldCommand((*world).fault),
			"node":        worldCommand((*world).node),
			"service":     worldCommand((*world).service),
			"snapshot":    worldCommand((*world).snapshot),
			"same":        worldCommand((*world).same),
			"alike":       worldCommand((*world).alike),
			"clusternode": worldCommand((*world).clusternode),
			"row":         worldCommand((*world).row),
			"publish":     worldCommand((*world).publish),
			"replace":     worldCommand((*world).replace),
			"setting":     worldCommand((*world).setting),
			"noleak":      worldCommand((*world).noleak),
			"mode":        worldCommand((*world).mode),
			"imds":        worldCommand((*world).imds),
			"azure":       worldCommand((*world).vm),
			"restarts":    worldCommand((*world).restarts),
			"viewers":     worldCommand((*world).viewers),
			"asg":         worldCommand((*world).scaling),
			"answers":     worldCommand((*world).answers),
			"readiness":   worldCommand((*world).readiness),
			"server":      worldCommand((*world).server),
			"freeaddress": worldCommand((*world).freeAddress),
			"serves":      realCommand("serves"),
			"panel":       realCommand("panel"),
			"restart":     realCommand("restart"),
			"upgrade":     realCommand("upgrade"),
			"create":      realCommand("create"),
			"stays":       realCommand("stays"),
			"idle":        realCommand("idle"),
		},
	})
}

// untilTrue repeats a shell command until it succeeds: until 'COMMAND'.
func untilTrue(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: until 'COMMAND'")
	}
	for deadline := time.Now().Add(patience); ; wait(100 * time.Millisecond) {
		err := ts.Exec("sh", "-c", args[0])
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: not within %s: %v", args[0], patience, err)
		}
	}
}

// world is what surrounds the agent in one script.
type world struct {
	ctx context.Context
	t   testscript.T

	place place
	taken map[string]taken
	aws   *fakeaws.Server
	asg   *fakeaws.AutoScaling
	azure *fakeazure.Server
	// polled ends the polling of a readiness command.
	polled func() error
}

func (w *world) close() {
	if w.aws != nil {
		_ = w.aws.Close()
	}
	if w.azure != nil {
		_ = w.azure.Close()
	}
	if err := w.place.close(); err != nil {
		w.t.Log(err)
	}
}

// standIns is the place of a command that the real server cannot have.
func (w *world) standIns() (*standIns, error) {
	p, ok := w.place.(*standIns)
	if !ok {
		return nil, errors.New("only a stand-in can do that")
	}
	return p, nil
}

func worldCommand(f func(*world, *testscript.TestScript, bool, []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		ts.Check(f(ts.Value("world").(*world), ts, neg, args))
	}
}

// realCommand is a command that only a real server obeys:
// serves NAME [APP…]: waits until the applications of the release, and others, serve.
// panel NAME make APP: what the web panel does. panel NAME PATH KEY=VALUE changes a setting.
// restart NAME listens|initializes|serves: restarts the server, and returns when its port is open, when its applications are being
// initialized, or when the first of them serves.
// stays NAME DURATION CODE URL: that is the answer all the time.
// idle NAME DURATION [CODE URL]: moreover nothing writes a file, or asks the service for anything.
func realCommand(what string) func(*testscript.TestScript, bool, []string) {
	return worldCommand(func(w *world, _ *testscript.TestScript, _ bool, args []string) error {
		p, ok := w.place.(interface {
			command(what, name string, args []string) error
		})
		if !ok {
			return errors.New("only a real server can do that")
		}
		return p.command(what, args[0], args[1:])
	})
}

// mongod [user:password]: a MongoDB; $MONGO is its address, $MONGO_ALIAS another name of it. `mongod stop` refuses its
// connections, as after its end, `mongod start` accepts them again.
func (w *world) mongod(ts *testscript.TestScript, _ bool, args []string) error {
	return w.place.mongod(ts, args)
}

// node NAME [address=IP[,IP2]] [variant=V] [version=R] [port=P] [apps=a,b] [hosts=yes] [statistics=no] [-- flags of the stand-in]:
// writes an installation below $WORK/NAME with a machine id, and a service
// command for it. $NAME is the root, $NAME_SVC the command, $NAME_AMS the
// installation, $NAME_IP and $NAME_IP2 its addresses. Its AMS runs on a free port of the loopback, and saves the settings
// of its applications at each start in cluster mode, as the real one does. It reports its sessions: the agent counts no
// connections of a tree.
func (w *world) node(ts *testscript.TestScript, _ bool, args []string) error {
	return w.place.node(ts, args[0], args[1:])
}

// booted is the place of a machine that is switched on and off.
type booted interface {
	boot(ts *testscript.TestScript) error
	off() error
}

// boot NAME: boots a machine with image=golden; if it runs, it is powered off before.
func (w *world) boot(ts *testscript.TestScript, _ bool, _ []string) error {
	p, ok := w.place.(booted)
	if !ok {
		return errOnlyBooted
	}
	return p.boot(ts)
}

// off NAME: waits until a machine that shuts down is off. Its MongoDB answers until the next boot.
func (w *world) off(_ *testscript.TestScript, _ bool, _ []string) error {
	p, ok := w.place.(booted)
	if !ok {
		return errOnlyBooted
	}
	return p.off()
}

var errOnlyBooted = errors.New("only a booted machine can do that")

// fault MODE [delay=D] [after=N] [times=N] [commands=a,b] [then=MODE]; fault none.
func (w *world) fault(_ *testscript.TestScript, _ bool, args []string) error {
	f := mongod.Fault{Mode: mongod.Mode(args[0])}
	for _, a := range args[1:] {
		k, v, _ := strings.Cut(a, "=")
		var err error
		switch k {
		case "delay":
			f.Delay, err = time.ParseDuration(v)
		case "after":
			f.After, err = strconv.Atoi(v)
		case "times":
			f.Times, err = strconv.Atoi(v)
		case "commands":
			f.Commands = strings.Split(v, ",")
		case "then":
			f.Then = mongod.Mode(v)
		default:
			err = fmt.Errorf("unknown setting %q", k)
		}
		if err != nil {
			return err
		}
	}
	p, err := w.standIns()
	if err != nil {
		return err
	}
	return p.mongo.Faults().Set(f)
}

func freePort() (string, error) {
	n, err := port.Free()
	return strconv.Itoa(n), err
}

// service NAME start|stop|status: what an operator does by hand.
func (w *world) service(ts *testscript.TestScript, neg bool, args []string) error {
	out, err := w.place.service(args[0], args[1])
	ts.Logf("%s", out)
	if neg != (err != nil) {
		return fmt.Errorf("service %v: %w: %s", args, err, out)
	}
	return nil
}

// snapshot NAME: records contents, modes and owners of the node's tree.
// same NAME: fails if the tree has changed. The agent's files below /var/lib and /run are ignored.
// same NAME saved: the same after the server has saved the settings of its applications: those are compared by the values that
// the server reads.
// same NAME untouched: nor were the same bytes written, by inodes and times. Only a booted machine has that.
func (w *world) snapshot(_ *testscript.TestScript, _ bool, args []string) error {
	s, err := w.place.take(args[0])
	w.taken[args[0]] = s
	return err
}

// alike DIR NAME: the installation of a node says the same to the server as the one
// in DIR.
func (w *world) alike(ts *testscript.TestScript, neg bool, args []string) error {
	var sides [2][]string
	for i, dir := range []string{ts.MkAbs(args[0]), ts.Getenv(args[1] + "_AMS")} {
		for _, below := range []string{"conf", "webapps"} {
			lines, err := tree.SnapshotBy(filepath.Join(dir, below), meaning)
			if err != nil {
				return err
			}
			for _, line := range lines {
				content := strings.SplitN(line, " ", 3)[2] // cp changes modes and owners
				if name := filepath.Base(content); !strings.HasPrefix(name, ".") && name != "instanceId" {
					sides[i] = append(sides[i], below+" "+content)
				}
			}
		}
	}
	a, b := strings.Join(sides[0], "\n"), strings.Join(sides[1], "\n")
	if (a == b) == neg {
		return fmt.Errorf("want alike %v\n--- %s\n%s\n--- %s\n%s", !neg, args[0], a, args[1], b)
	}
	return nil
}

func (w *world) same(_ *testscript.TestScript, neg bool, args []string) error {
	now, err := w.place.take(args[0])
	if err != nil {
		return err
	}
	was, ok := w.taken[args[0]]
	if !ok {
		return errors.New("no snapshot was taken")
	}
	a, b := strings.Join(was.bytes, "\n"), strings.Join(now.bytes, "\n")
	switch {
	case len(args) < 2:
	case args[1] == "saved":
		a, b = strings.Join(was.meaning, "\n"), strings.Join(now.meaning, "\n")
	case args[1] == "untouched":
		a, b = strings.Join(was.touched, "\n"), strings.Join(now.touched, "\n")
	}
	if (a == b) == neg {
		return fmt.Errorf("the tree of %s: want changed %v\n--- was\n%s\n--- is\n%s", args[0], neg, a, b)
	}
	return nil
}

// clusternode ADDRESS: AMS has a document of this address in clusterdb.
func (w *world) clusternode(_ *testscript.TestScript, neg bool, args []string) error {
	c, err := w.place.connect(w.ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(w.ctx) }()
	n, err := c.AMSNodesByAddress(w.ctx, args[0])
	if err != nil {
		return err
	}
	if (len(n) == 0) != neg {
		return fmt.Errorf("%d documents of %s", len(n), args[0])
	}
	return nil
}

// row ADDRESS [STATE] [ROLE] [cut=N]: the registry has this node, in this state, which cut so many sessions.
func (w *world) row(_ *testscript.TestScript, neg bool, args []string) error {
	c, err := w.place.connect(w.ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(w.ctx) }()
	nodes, err := c.Nodes(w.ctx)
	if err != nil {
		return err
	}
	found := false
	for _, n := range nodes {
		if n.IP != args[0] {
			continue
		}
		said := []string{string(n.State), n.Role}
		if n.Cut != nil {
			said = append(said, fmt.Sprintf("cut=%d", *n.Cut))
		}
		found = !slices.ContainsFunc(args[1:], func(want string) bool { return !slices.Contains(said, want) })
		if !found && !neg {
			return fmt.Errorf("row %+v", n)
		}
	}
	if found == neg {
		return fmt.Errorf("row of %s: %+v", args[0], nodes)
	}
	return nil
}

// setting NAME APP KEY=VALUE: the server reads this value, however it is spelled.
func (w *world) setting(ts *testscript.TestScript, neg bool, args []string) error {
	name, app, want := args[0], args[1], args[2]
	b, err := os.ReadFile(filepath.Join(ts.Getenv(name+"_AMS"), "webapps", app, "WEB-INF/red5-web.properties"))
	if err != nil {
		return err
	}
	text, err := fakeams.OwnSettings(b)
	key, value, _ := strings.Cut(want, "=")
	if line := fmt.Sprintf("%s=%q\n", key, value); err == nil && strings.Contains("\n"+text, "\n"+line) == neg {
		return fmt.Errorf("the settings of %s: want %v for %q in\n%s", app, !neg, want, text)
	}
	return err
}

// replace FILE OLD NEW: an operator edits a file.
func (w *world) replace(ts *testscript.TestScript, _ bool, args []string) error {
	file := ts.MkAbs(args[0])
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	unquote := strings.NewReplacer(`\n`, "\n", `\t`, "\t")
	old, repl := unquote.Replace(args[1]), unquote.Replace(args[2])
	if !strings.Contains(string(b), old) {
		return fmt.Errorf("%s does not hold %q", args[0], old)
	}
	return os.WriteFile(file, []byte(strings.Replace(string(b), old, repl, 1)), 0o644)
}

// noleak TEXT: fails if the last command's output or a world-readable file below $WORK has the text.
func (w *world) noleak(ts *testscript.TestScript, _ bool, args []string) error {
	for _, name := range []string{"stdout", "stderr"} {
		if strings.Contains(ts.ReadFile(name), args[0]) {
			return fmt.Errorf("%s holds %q", name, args[0])
		}
	}
	return filepath.WalkDir(ts.MkAbs("."), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(p, "/mongo/") {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if info.Mode()&0o004 != 0 && strings.Contains(string(b), args[0]) {
			return fmt.Errorf("%s (%s) holds %q", p, info.Mode(), args[0])
		}
		return nil
	})
}

// mode FILE OCTAL: the file has these permission bits.
func (w *world) mode(ts *testscript.TestScript, _ bool, args []string) error {
	info, err := os.Stat(ts.MkAbs(args[0]))
	if err != nil {
		return err
	}
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[1] {
		return fmt.Errorf("%s has mode %s, want %s", args[0], got, args[1])
	}
	return nil
}

// publish NAME STREAM: an encoder begins to send a stream to LiveApp. ! publish NAME STREAM: it ends.
func (w *world) publish(_ *testscript.TestScript, neg bool, args []string) error {
	return w.place.publish(args[0], args[1], !neg)
}

// viewers NAME N: so many come to the stream s1. viewers NAME none: all go.
func (w *world) viewers(_ *testscript.TestScript, _ bool, args []string) error {
	if args[1] == "none" {
		return w.place.watch(args[0], 0)
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	return w.place.watch(args[0], n)
}

// restarts NAME N: the agent asked N times for a start, and N times at most for a stop.
func (w *world) restarts(_ *testscript.TestScript, _ bool, args []string) error {
	asked := w.place.asked(args[0])
	if n := touched(asked); strconv.Itoa(n) != args[1] {
		return fmt.Errorf("the service was started %d times, want %s: %q", n, args[1], asked)
	}
	return nil
}

// touched counts the requests that start the server, or those that stop it if they are more.
func touched(asked []string) int {
	counts := map[string]int{}
	for _, what := range asked {
		counts[what]++
	}
	return max(counts["start"], counts["stop"])
}
