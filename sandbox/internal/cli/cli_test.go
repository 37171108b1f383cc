// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/cli"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// asSandbox makes this test binary the sandbox binary.
const asSandbox = "SANDBOX_TEST_AS_MAIN"

// environment makes it so; and a binary with the race detector would sleep for a
// second before each exit.
var environment = []string{asSandbox + "=1", "GORACE=atexit_sleep_ms=0"}

func TestMain(m *testing.M) {
	if os.Getenv(asSandbox) != "" {
		os.Exit(cli.Main(os.Args[1:], cli.OS()))
	}
	os.Exit(m.Run())
}

func sandbox(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), environment...)
	return cmd
}

// run runs to the end and returns exit status and output.
func run(t *testing.T, cmd *exec.Cmd) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// serve starts a server and returns what its ready line says.
func serve(t *testing.T, args ...string) (map[string]any, *exec.Cmd) {
	t.Helper()
	cmd := sandbox(t, args...)
	out, err := cmd.StdoutPipe()
	must.OK(t, err)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	must.OK(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = cmd.Wait()
		t.Fatalf("no ready line: %v\n%s", err, errs.String())
	}
	rest, ok := strings.CutPrefix(line, "ready ")
	if !ok {
		t.Fatalf("first line %q", line)
	}
	var said map[string]any
	must.OK(t, json.Unmarshal([]byte(rest), &said))
	return said, cmd
}

func ended(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		t.Fatal("the process does not end")
	}
	return cmd.ProcessState.ExitCode()
}

func TestUsage(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args []string
		want int
	}{
		{nil, 2},
		{[]string{"help"}, 0},
		{[]string{"mongo", "--help"}, 0},
		{[]string{"ams", "--help"}, 0},
		{[]string{"tree", "--help"}, 0},
		{[]string{"amsctl", "--help"}, 0},
		{[]string{"nothing"}, 2},
		{[]string{"mongo", "--no-such-flag"}, 2},
		{[]string{"mongo", "argument"}, 2},
		{[]string{"ams"}, 2},
		{[]string{"amsctl", "start"}, 2},
		{[]string{"amsctl", "--state", "/x", "--root", "/x", "dance"}, 2},
		{[]string{"amsctl", "--state", "/x", "--root", "/x", "--die-with-parent", "start"}, 2},
		{[]string{"demo", "--help"}, 0},
		{[]string{"demo", "--cloud", "nowhere"}, 2},
		{[]string{"demo", "--agent", "/nowhere/at/all"}, 1},
		{[]string{"tree"}, 2},
		{[]string{"tree", "--variant", "9", "/nowhere/at/all"}, 1},
	}
	for _, tt := range tests {
		status, stdout, stderr := run(t, sandbox(t, tt.args...))
		if status != tt.want || stdout != "" || stderr == "" {
			t.Errorf("%v: exit %d, want %d; stdout %q, stderr %q", tt.args, status, tt.want, stdout, stderr)
		}
	}
}

func TestArgumentFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "args")
	must.OK(t, os.WriteFile(file, []byte("--variant=2.10\n\n--app=My App\n"), 0o644))
	status, out, stderr := run(t, sandbox(t, "tree", "@"+file, "@"+file+"-missing", filepath.Join(t.TempDir(), "r")))
	if status != 0 || !strings.Contains(out, `"My App"`) {
		t.Errorf("exit %d, %s%s", status, out, stderr)
	}
}

func TestMongo(t *testing.T) {
	t.Parallel()
	realmongo.Require(t)
	dir := t.TempDir()
	said, cmd := serve(t, "mongo", "--user", "ams:pa:ss", "--tls", dir)
	uri := strings.Replace(said["uri"].(string), "mongodb://", "mongodb://ams:pa%3Ass@", 1) + "&tlsCAFile=" + filepath.Join(dir, "ca.pem")
	c, err := mongo.Connect(options.Client().ApplyURI(uri).SetServerSelectionTimeout(5 * time.Second))
	must.OK(t, err)
	defer func() { _ = c.Disconnect(context.Background()) }()
	_, err = c.Database("d").Collection("c").InsertOne(t.Context(), bson.M{})
	must.OK(t, err)
	resp, err := http.Get("http://" + said["control"].(string) + "/stats")
	must.OK(t, err)
	b, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	must.Contain(t, "statistics", string(b), `"insert": 1`)
	must.OK(t, cmd.Process.Signal(syscall.SIGTERM))
	must.Equal(t, "exit after SIGTERM", ended(t, cmd), 0)
}

// TestClouds: what the page of the sandbox says about each cloud goes as it stands there.
func TestClouds(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../README.md")
	must.OK(t, err)
	for _, c := range []struct {
		started, begin, books string
		leads                 []string // where: keys of the ready line
	}{
		{"aws --group edges --hook drain:terminating:60s --tag amsagent:role=edge", "/asg/terminate", "/asg/books", []string{"endpoint", "autoscaling"}},
		{"azure --tag amsagent-role=edge", "/event?type=Terminate&lead=60000", "/books", []string{"endpoint"}},
		{"alibaba --group edges --hook drain:in:60s --tag amsagent-role=edge", "/cloud/scale-in?instance=ID", "/cloud/books", []string{"endpoint", "api"}},
		{"gcp --attribute amsagent-role=edge", "/preempt", "/books", []string{"endpoint"}},
	} {
		for _, text := range []string{c.started, "POST " + c.begin, c.books} {
			if !strings.Contains(string(page), "`"+text+"`") {
				t.Errorf("the page does not say %s", text)
			}
		}
		said, cmd := serve(t, strings.Fields(c.started)...)
		for _, key := range c.leads {
			if at, _ := said[key].(string); !strings.HasPrefix(at, "http://127.0.0.1:") {
				t.Errorf("%s: %s leads to %q", c.started, key, said[key])
			}
		}
		control := "http://" + said["control"].(string)
		before := fetched(t, http.MethodGet, control+c.books)
		fetched(t, http.MethodPost, control+strings.Replace(c.begin, "=ID", "=i-bp13znx0m0me8cq0001", 1))
		must.Until(t, "a line in the books", func() bool { return fetched(t, http.MethodGet, control+c.books) != before })
		_ = cmd.Process.Signal(syscall.SIGTERM)
		must.Equal(t, c.started+": exit", ended(t, cmd), 0)
	}
}

// fetched returns the body of an answer with status 200.
func fetched(t *testing.T, method, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	must.OK(t, err)
	resp, err := http.DefaultClient.Do(req)
	must.OK(t, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s, %v: %s", method, url, resp.Status, err, b)
	}
	return string(b)
}

func TestServersDieWithAnother(t *testing.T) {
	t.Parallel()
	realmongo.Require(t)
	other := exec.Command("sleep", "600")
	if err := other.Start(); err != nil {
		t.Skip(err)
	}
	_, cmd := serve(t, "mongo", "--die-with", strconv.Itoa(other.Process.Pid))
	_ = other.Process.Kill()
	_ = other.Wait()
	must.Equal(t, "exit", ended(t, cmd), 0)
	if status, _, stderr := run(t, sandbox(t, "mongo", "--die-with", strconv.Itoa(other.Process.Pid))); status != 1 {
		t.Errorf("with a process that has ended: exit %d, %s", status, stderr)
	}
}

func TestServersDieWithTheirParent(t *testing.T) {
	t.Parallel()
	// A shell is the parent; it prints the pid of its child and is killed.
	pidFile := filepath.Join(t.TempDir(), "pid")
	shell := exec.Command("sh", "-c", `"$0" mongo --die-with-parent & echo $! > "$1"; wait`, os.Args[0], pidFile)
	shell.Env = append(os.Environ(), environment...)
	out, err := shell.StdoutPipe()
	must.OK(t, err)
	must.OK(t, shell.Start())
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "ready ") {
		t.Fatalf("%q, %v", line, err)
	}
	_ = shell.Process.Kill()
	// The server holds the pipe: its end is the server's end.
	done := make(chan struct{})
	go func() { defer close(done); _, _ = io.Copy(io.Discard, r) }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		b, _ := os.ReadFile(pidFile)
		t.Errorf("the server outlives its parent: pid %s", b)
	}
	_ = shell.Wait()
}
