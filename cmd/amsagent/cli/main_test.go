// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
)

// update rewrites what the golden tests compare with: go test ./cmd/amsagent/cli -update
var update = flag.Bool("update", false, "rewrite the golden files")

// The exit codes, as docs/commands.md has them.
const (
	codeOK          = 0
	codeFailed      = 1
	codeUsage       = 2
	codePreflight   = 3
	codeUnknown     = 4
	codeNotMember   = 5
	codeDegraded    = 6
	codeInterrupted = 130
)

// machines is the folder of empty machines. TestMain sets it before any test runs.
var machines string

// emptyMachine returns a new folder, which is removed after all tests: no test reads the machine that it runs on.
func emptyMachine() string {
	dir, err := os.MkdirTemp(machines, "")
	if err != nil {
		panic(err)
	}
	return dir
}

// inMachines runs the tests while the folder is there.
type inMachines struct{ *testing.M }

func (m inMachines) Run() (code int) {
	var err error
	if machines, err = os.MkdirTemp("", "m"); err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(machines) }()
	flag.Parse()
	if err := flag.Set("test.parallel", "32"); err != nil { // these tests wait more than they compute
		panic(err)
	}
	return m.M.Run()
}

func TestMain(m *testing.M) {
	testscript.Main(inMachines{m}, map[string]func(){
		"amsagent": func() { os.Exit(Main(os.Args[1:], OS())) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"imds": imds, "mode": mode},
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("AMSAGENT_ROOT", e.WorkDir)
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "hangup" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			// Under nohup it is ignored by whatever the tests start.
			return !signal.Ignored(syscall.SIGHUP), nil
		},
	})
}

// serviceOfAWS serves the metadata of an EC2 instance, which has these tags at a request; nil switches tags off.
func serviceOfAWS(tags func() map[string]string) *httptest.Server {
	service := fakeaws.New(fakeaws.Options{})
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := tags()
		service.Update(func(i *fakeaws.Instance) { i.Tags, i.TagsEnabled = now, now != nil })
		service.ServeHTTP(w, r)
	}))
}

// metadataOfAWS is serviceOfAWS for a test.
func metadataOfAWS(t *testing.T, tags func() map[string]string) *httptest.Server {
	t.Helper()
	srv := serviceOfAWS(tags)
	t.Cleanup(srv.Close)
	return srv
}

// imds TAG=VALUE... points the agent at the metadata of an EC2 instance with these tags, `imds untagged` at one that shows
// none, `imds empty` at another service.
func imds(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: imds TAG=VALUE... | untagged | empty")
	}
	var srv *httptest.Server
	switch args[0] {
	case "empty":
		srv = httptest.NewServer(http.NotFoundHandler())
	case "untagged":
		srv = serviceOfAWS(func() map[string]string { return nil })
	default:
		tags := map[string]string{}
		for _, arg := range args {
			tag, value, _ := strings.Cut(arg, "=")
			tags[tag] = value
		}
		srv = serviceOfAWS(func() map[string]string { return maps.Clone(tags) })
	}
	ts.Defer(srv.Close)
	ts.Setenv("AMSAGENT_AWS_ENDPOINT", srv.URL)
}

// mode OCTAL FILE checks a file's permissions.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: mode OCTAL FILE")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); (got == args[0]) == neg {
		ts.Fatalf("%s has mode %s", args[1], got)
	}
}

// fixedNow keeps times out of the goldens.
func fixedNow() time.Time { return time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC) }

// testEnv is an environment of its own: these variables, buffers, and an empty machine unless AMSAGENT_ROOT names another
// one, so that no test reads the machine that it runs on.
type testEnv struct {
	vars  map[string]string
	stdin io.Reader
	tty   bool // standard input is a terminal
	// columns and rows are those of standard output if it is a terminal; columns is 0 if not.
	columns, rows atomic.Int32
	stdout        locked.Buffer
	stderr        locked.Buffer
}

func (e *testEnv) env() Env {
	if _, named := e.vars["AMSAGENT_ROOT"]; !named {
		vars := map[string]string{"AMSAGENT_ROOT": emptyMachine()}
		maps.Copy(vars, e.vars)
		e.vars = vars
	}
	if e.stdin == nil {
		e.stdin = strings.NewReader("")
	}
	return Env{
		Stdin:      e.stdin,
		IsTerminal: func(f any) bool { return e.tty && f == e.stdin || e.columns.Load() > 0 && f == any(&e.stdout) },
		Stdout:     &e.stdout,
		Stderr:     &e.stderr,
		LookupEnv:  func(k string) (string, bool) { v, ok := e.vars[k]; return v, ok },
		Environ: func() []string {
			var out []string
			for k, v := range e.vars {
				out = append(out, k+"="+v)
			}
			return out
		},
		Clearenv:   func() {},
		Size:       func(any) (int, int) { return int(e.columns.Load()), int(e.rows.Load()) },
		Now:        fixedNow,
		Geteuid:    func() int { return 1000 },
		Executable: func() (string, error) { return "/usr/bin/amsagent", nil },
		Journal:    func(string, string) error { return errors.New("there is no journal") },
		Signals:    func() (<-chan os.Signal, func()) { return nil, func() {} },
		Notify:     func(string) {},
		Exit:       func(int) {},
	}
}

// globalsOf returns what a command has in an environment before its settings are read.
func globalsOf(env Env) *globals {
	g := newGlobals(env)
	g.settings.Root = g.env.getenv("AMSAGENT_ROOT")
	g.settings.Sources.LookupEnv, g.settings.Sources.Environ = env.LookupEnv, env.Environ
	g.out.SetForm("text", "never", slog.LevelError)
	return g
}

// plainGlobals is globalsOf with text without color, and the log.
func plainGlobals(e *testEnv) *globals {
	g := globalsOf(e.env())
	g.out.SetForm("text", "never", 0)
	return g
}

// run runs one command line with the given variables.
func run(t *testing.T, vars map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	e := &testEnv{vars: vars}
	code = Main(args, e.env())
	return code, e.stdout.String(), e.stderr.String()
}

// tree makes a root with files, whose names end in ! for mode 0600.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	plant(t, root, files)
	return root
}

// plant is tree for a folder that is there.
func plant(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		mode := os.FileMode(0o644)
		if n, ok := strings.CutSuffix(name, "!"); ok {
			name, mode = n, 0o600
		}
		path := filepath.Join(root, name)
		must.OK(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must.OK(t, os.WriteFile(path, []byte(text), mode))
		must.OK(t, os.Chmod(path, mode))
	}
}

func TestUsageErrors(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"no command", nil, []string{"no command given", "amsagent join --mongo"}},
		{"near a command", []string{"verison"}, []string{`error: unknown command "verison" [`, "hint: did you mean `amsagent version`?"}},
		{"begins as one", []string{"meta", "--root", "/nowhere"}, []string{`unknown command "meta"`, "did you mean `amsagent metadata`?"}},
		{"capitals", []string{"Config"}, []string{`unknown command "Config"`, "did you mean `amsagent config`?"}},
		{"with a flag of its own", []string{"staus", "--wait", "active"}, []string{`unknown command "staus"`, "did you mean `amsagent status`?"}},
		{"near none", []string{"xyzzy"}, []string{`unknown command "xyzzy"`, "see: amsagent --help"}},
		{"unknown flag", []string{"config", "--mongoo", "x"}, []string{"unknown flag --mongoo of amsagent config", "did you mean `--mongo`?"}},
		{"unlike any flag", []string{"config", "--no-color"}, []string{"unknown flag --no-color of amsagent config", "see: amsagent config --help"}},
		{"unknown flag with a value", []string{"config", "--mongoo=mongodb://u:hunter22@h"}, []string{"unknown flag --mongoo of"}},
		{"a word that is no address", []string{"config", "list"}, []string{`takes no argument: "list"`, "see: amsagent config --help"}},
		{"unknown letter", []string{"config", "-x"}, []string{"unknown flag -x", "see: amsagent config --help"}},
		{"word after one dash", []string{"join", "-mongo=mongodb://u:hunter22@h"}, []string{"unknown flag -m of amsagent join", "did you mean `--mongo`?"}},
		{"unknown letter with a value", []string{"config", "-mmongodb://u:hunter22@h"}, []string{"unknown flag -m"}},
		{"no value", []string{"config", "--role"}, []string{"flag needs an argument: --role"}},
		{"not a truth", []string{"config", "--offline=maybe"}, []string{"offline", "see: amsagent config --help"}},
		{"argument", []string{"config", "10.0.2.4"}, []string{`takes no argument: "10.0.2.4"`, "see: amsagent config --help"}},
		{"secret argument", []string{"config", "mongodb://u:hunter22@h"}, []string{"takes no argument"}},
		{"secret command", []string{"mongodb://u:hunter22@h"}, []string{"unknown command"}},
		{"empty value", []string{"config", "--mongo", ""}, []string{"--mongo: the value is empty"}},
		{"wrong word", []string{"config", "--provider", "asw"}, []string{`--provider: "asw" is not one of auto, aws,`}},
		{"wrong form", []string{"-o", "yaml", "config"}, []string{`--output: "yaml" is not one of text, json`}},
		{"no root", []string{"config", "--root", "/does/not/exist"}, []string{"--root: ", "/does/not/exist/: no such file or directory"}},
		{"root is a file", []string{"config", "--root", "main_test.go"}, []string{"--root: ", "not a directory"}},
		{"named config is missing", []string{"config", "--config", "/does/not/exist"}, []string{"--config: reading the settings: open ", "/does/not/exist: no such file"}},
		{"secret as address", []string{"config", "--mongo", "mongodb://u:hunter22@h:port"}, []string{"--mongo: connection string"}},
		{"no shell", []string{"completion"}, []string{"completion needs a shell"}},
		{"wrong shell", []string{"completion", "bsh"}, []string{"completion needs a shell"}},
		{"no command for help", []string{"help", "exit-code"}, []string{"no command \"exit-code\"", "`amsagent help` lists the commands"}},
		{"help for an id", []string{"help", "ams-service"}, []string{"amsagent doctor --explain AMS-SERVICE"}},
		{"two commands for help", []string{"help", "config", "version"}, []string{"no command \"config version\""}},
		{"two nodes", []string{"events", "i-1", "i-2"}, []string{"takes one node"}},
		{"no event", []string{"events", "--limit", "0"}, []string{"--limit: 0 is outside 1 to 10000"}},
		{"from the future", []string{"events", "--since", "-1h"}, []string{"is in the future"}},
		{"no duration", []string{"events", "--since", "yesterday"}, []string{"since"}},
		{"no state", []string{"nodes", "--state", "activ"}, []string{`--state: "activ" is not one of joining, active`}},
		{"no column", []string{"nodes", "--sort", "cpuu"}, []string{`--sort: "cpuu" is not one of address`}},
		{"no column, backwards", []string{"nodes", "--sort", "-x"}, []string{`--sort: "-x" is not one of address`}},
		{"too often", []string{"nodes", "--watch", "--interval", "1ms"}, []string{"--interval: 1ms is outside 100ms to 1h"}},
		{"an interval of one look", []string{"nodes", "--interval", "1s"}, []string{"--interval is for --watch"}},
		{"an address for nodes", []string{"nodes", "10.0.2.4"}, []string{`takes no argument: "10.0.2.4"`}},
		{"near a command below one", []string{"nodes", "pruen"}, []string{"did you mean `amsagent nodes prune`?"}},
		{"too young to remove", []string{"nodes", "prune", "--older-than", "5s"}, []string{"--older-than: 5s is less than 20s"}},
		{"an argument of prune", []string{"nodes", "prune", "now"}, []string{"takes no argument"}},
		{"two deadlines", []string{"drain", "--now", "--deadline", "1h"}, []string{"--now and --deadline contradict"}},
		{"a short deadline", []string{"drain", "--deadline", "10ms"}, []string{"--deadline: 10ms is outside 1s to 168h"}},
		{"a long deadline", []string{"drain", "--deadline", "200h"}, []string{"--deadline: 200h is outside"}},
		{"no time", []string{"drain", "--deadline", "0"}, []string{"--deadline: 0s is outside"}},
		{"a past deadline", []string{"drain", "--deadline=-1m"}, []string{"--deadline: -1m is outside"}},
		{"days", []string{"drain", "--deadline", "1d"}, []string{`invalid argument "1d" for "--deadline" flag`}},
		{"a flag that is not a truth", []string{"drain", "--detach=maybe"}, []string{`invalid argument "maybe" for "--detach" flag`}},
		{"a reason of two lines", []string{"drain", "--reason", "a\nb"}, []string{"one line of at most"}},
		{"a past timeout", []string{"drain", "--timeout=-1s"}, []string{"--timeout: -1s is before now"}},
		{"a timeout of nothing", []string{"event", "--detach", "--timeout", "1s"}, []string{"--detach and --timeout contradict"}},
		{"an argument of undrain", []string{"undrain", "x"}, []string{"undrain takes no argument"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := run(t, nil, tt.args...)
			if code != codeUsage || stdout != "" {
				t.Errorf("exit %d, want %d; stdout %q", code, codeUsage, stdout)
			}
			// The error of a command that never changes anything does not mention it.
			reads := !slices.Contains(tt.args, "prune") && slices.ContainsFunc(tt.args, func(a string) bool {
				return slices.Contains([]string{"completion", "config", "events", "help", "nodes", "status", "version"}, a)
			})
			if says := strings.HasSuffix(stderr, "\namsagent: nothing was changed on this machine\n"); says == reads {
				t.Errorf("ends with the state of the machine: %v, want %v", says, !reads)
			}
			must.Contain(t, "stderr", stderr, append(tt.want, "amsagent: error: ", "[AGENT-USAGE]\n")...)
			if strings.Contains(stderr, "hunter22") || strings.Contains(stderr, "failed to") {
				t.Errorf("a password, or failed to:\n%s", stderr)
			}
		})
	}
}

// failingWriter is a stdout that cannot be written to.
type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }

func TestStdoutFails(t *testing.T) {
	for _, args := range []string{
		"version", "--version", "version -o json", "config --offline", "completion bash", "--help", "version --help", "help", "help version",
	} {
		e := &testEnv{}
		env := e.env()
		env.Stdout = failingWriter{syscall.ENOSPC}
		must.Equal(t, args+": exit", Main(strings.Fields(args), env), codeFailed)
		must.Contain(t, args, e.stderr.String(), "AGENT-OUTPUT", "writing to standard output: no space left")
	}
}

// TestNoTestReadsThisMachine: the environment of a test comes from testEnv, which has a root of its own, and the
// scripts have one by their Setup.
func TestNoTestReadsThisMachine(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	must.OK(t, err)
	other := regexp.MustCompile(`newGlobals\(\w|\bEnv\{|"AMSAGENT_ROOT": *""`)
	for _, f := range files {
		b, err := os.ReadFile(f)
		must.OK(t, err)
		// The first has the one place; the second one runs below another root of the file system.
		if found := other.FindAll(b, -1); len(found) > 0 && f != "main_test.go" && f != "root_test.go" {
			t.Errorf("%s: %s", f, found)
		}
	}
}

// fakeSignals delivers signals that the test sends.
type fakeSignals struct{ ch chan os.Signal }

func (f fakeSignals) source() (<-chan os.Signal, func()) { return f.ch, func() {} }

func TestInterrupt(t *testing.T) { synctest.Test(t, testInterrupt) }

func testInterrupt(t *testing.T) {
	sig := fakeSignals{make(chan os.Signal, 2)}
	exited := make(chan int, 1)
	e := &testEnv{}
	env := e.env()
	env.Signals = sig.source
	env.Exit = func(code int) { exited <- code }
	g := globalsOf(env)
	g.out.SetForm("text", "auto", 0)
	ctx, stop := interruptible(t.Context(), g)
	defer stop()

	sig.ch <- syscall.SIGTERM
	<-ctx.Done()
	synctest.Wait()
	must.Equal(t, "exit", report(ctx, g, ctx.Err()), codeInterrupted)
	const want = "amsagent: error: interrupted [AGENT-INTERRUPTED]\namsagent: cause: interrupted by signal: terminated\n"
	must.Contain(t, "stderr", e.stderr.String(), want)
	// A library may return what the context was ended with.
	must.Equal(t, "exit", report(ctx, g, &userError{Msg: "cannot join", Cause: context.Cause(ctx), Exit: codeFailed}), codeInterrupted)
	// An error that has nothing to do with the signal keeps its own.
	must.Equal(t, "exit", report(ctx, g, errors.New("undo failed")), codeFailed)

	// A check that was cut short has no finding: neither its exit code nor its cause.
	e.stderr.Reset()
	pre := cannot("join", &bootstrap.PreflightError{Findings: []bootstrap.Finding{
		{ID: bootstrap.IDService, Text: "systemd is not available: connecting: context canceled", Hint: "say it with --service-command"},
		{ID: bootstrap.IDMongo, Text: "server selection error"},
	}})
	must.Equal(t, "exit in the preflight", report(ctx, g, pre), codeInterrupted)
	if got := e.stderr.String(); !strings.HasPrefix(got, want) || !strings.Contains(got, stateUntouched) || strings.Contains(got, "service-command") || strings.Contains(got, "canceled") {
		t.Errorf("in the preflight:\n%s", got)
	}
	// The error has other failures, and not the end of the context.
	e.stderr.Reset()
	both := &userError{Msg: "cannot join", State: "half done", Cause: errors.Join(fmt.Errorf("asking the bus: %w", context.Canceled), errors.New("undo: no space left on device"))}
	must.Equal(t, "exit", report(ctx, g, both), codeInterrupted)
	if got := e.stderr.String(); !strings.Contains(got, "no space left on device") || !strings.Contains(got, "signal: terminated") || strings.Contains(got, "canceled") || !strings.Contains(got, "half done") {
		t.Errorf("with a failed rollback:\n%s", got)
	}

	// The timeout of coreutils sends two signals for one.
	sig.ch <- syscall.SIGTERM
	sig.ch <- syscall.SIGCONT
	synctest.Wait()
	select {
	case code := <-exited:
		t.Errorf("two signals at once: exit %d", code)
	default:
	}
	<-time.After(oneSignal)
	sig.ch <- syscall.SIGINT
	must.Equal(t, "second signal: exit", <-exited, codeInterrupted)
}

func TestJSONErrors(t *testing.T) {
	for _, args := range [][]string{
		{"-o", "json", "nonsense"}, {"nonsense", "-ojson"}, {"nonsense", "--output=json"}, {"--bogus", "--output", "json"}, {"-o=json", "join", "-mongo=x"},
	} {
		code, stdout, stderr := run(t, nil, args...)
		if code != codeUsage || stdout != "" || !strings.HasPrefix(stderr, `{"schema_version":1,"kind":"error","error":{"id":"AGENT-USAGE","message":"unknown `) ||
			strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, `"exit_code":2}}`) || !strings.Contains(stderr, `"state":"nothing was changed on this machine"`) {
			t.Errorf("%v: exit %d, stdout %q, stderr %s", args, code, stdout, stderr)
		}
	}
	code, _, stderr := run(t, map[string]string{"AMSAGENT_OUTPUT": "json"}, "nonsense")
	if code != codeUsage || !strings.HasPrefix(stderr, "{") {
		t.Errorf("by variable: exit %d, stderr %s", code, stderr)
	}
	_, _, stderr = run(t, nil, "nonsense", "--", "-o", "json")
	if strings.HasPrefix(stderr, "{") {
		t.Errorf("after --: %s", stderr)
	}
}

func TestBuildVersion(t *testing.T) {
	info := &debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.time", Value: "2026-11-20T08:00:00Z"}, {Key: "vcs.modified", Value: "true"},
	}}
	for _, tt := range []struct {
		stamped string
		info    *debug.BuildInfo
		want    string
	}{
		{"v9", info, "v9"}, {"", info, "v1.2.3"}, {"", nil, "unknown"}, {"", &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "unknown"},
	} {
		must.Equal(t, fmt.Sprintf("stamped %q", tt.stamped), buildVersion(tt.stamped, tt.info).Version, tt.want)
	}
	if v := buildVersion("", info); v.Commit != "0123456789abcdef" || v.CommitTime != "2026-11-20T08:00:00Z" || !v.Modified {
		t.Errorf("%+v", v)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		code, stdout, stderr := run(t, nil, "completion", shell)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "amsagent") || len(stdout) < 1000 {
			t.Errorf("%s: exit %d, %d bytes, stderr %q", shell, code, len(stdout), stderr)
		}
	}
	// The scripts call this, also where a setting is wrong.
	wrong := map[string]string{"AMSAGENT_TIMEOUT": "wrong"}
	for _, c := range []struct{ line, first string }{
		{"config --provider a", "auto\naws\n"},
		{"config --on-failure ", "rollback\nkeep\n"},
		{"nodes --state ", "joining\n"},
		{"nodes --sort ", "address\n"},
		{"status --wait ", "joining\n"},
		{"doctor --explain ", "AGENT-"},
		{"doctor --ignore ", "AGENT-"},
		{"seal --keep ", "identity\n"},
		{"seal --remove ", "tls\nlicence\n"},
		{"hel", "help\t"},
	} {
		code, stdout, stderr := run(t, wrong, append([]string{"__complete"}, strings.Split(c.line, " ")...)...)
		if code != 0 || !strings.HasPrefix(stdout, c.first) || strings.Contains(stderr, "error") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", c.line, code, stdout, stderr)
		}
	}
}
