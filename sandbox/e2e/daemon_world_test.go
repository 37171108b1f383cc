// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// The database wants a password, and nobody else shall read it.
const (
	daemonUser     = "cluster"
	daemonPassword = "s3cret-of-the-cluster"
)

// host is a pretended machine on which the real daemon runs.
type host struct {
	t       testing.TB
	root    string
	id, ip  string
	svc     amsctl.Config
	wrapper string
	aws     *fakeaws.Server // nil on another cloud
	rig     *rig.Machine
	tree    tree.Tree
	mongo   *mongod.Server
	client  *cluster.Client
	env     []string // besides what every command gets
}

// newDatabase starts a MongoDB with a password.
func newDatabase(t testing.TB) *mongod.Server {
	t.Helper()
	return servers.Start(t, mongod.Options{Users: map[string]string{daemonUser: daemonPassword}})
}

func mongoURI(m *mongod.Server, password string) string {
	return "mongodb://" + daemonUser + ":" + password + "@" + m.Addr() + "/?authSource=admin&directConnection=true"
}

// newHost makes a machine in EC2.
func newHost(t testing.TB, m *mongod.Server, ip string) *host {
	t.Helper()
	h := newHostIn(t, m, "aws", "i-0abc"+strings.ReplaceAll(fmt.Sprintf("%13s", strings.ReplaceAll(ip, ".", "")), " ", "0"), ip)
	i := fakeaws.Sample()
	i.ID, i.NICs[0].IPv4s = h.id, []string{ip}
	var err error
	if h.aws, err = fakeaws.Start(context.Background(), fakeaws.Options{Instance: &i}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.aws.Close() })
	return h
}

// newHostIn makes one with the firmware of a cloud and an Ant Media Server that
// runs. Who is to tell it about itself is for h.env to say.
func newHostIn(t testing.TB, m *mongod.Server, cloud, id, ip string) *host {
	t.Helper()
	dir := shortDir(t)
	h := &host{t: t, ip: ip, mongo: m, id: id}
	h.client = h.connect(m)
	var err error
	if h.rig, err = rig.New(rig.Options{
		Dir: dir, Sandbox: bins.sandbox, Tree: tree.Options{NoUnit: true, Host: "node", HostResolves: true, DMI: cloud},
		Args: []string{"--request-timeout", "1s", "--stream-wait", "100ms"},
	}); err != nil {
		t.Fatal(err)
	}
	h.root, h.tree, h.svc, h.wrapper = h.rig.Tree.Root, h.rig.Tree, h.rig.Service, h.rig.Command
	h.proc()
	must.OK(t, h.rig.ReportSessions()) // the agent counts no connections of a tree
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := h.svc.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	if out, err := exec.Command(h.wrapper, "start").CombinedOutput(); err != nil {
		t.Fatalf("starting the service: %v: %s", err, out)
	}
	return h
}

// shortDir is TempDir for a control socket, without the test's name: a path of a
// socket has 107 bytes, and TempDir ends with a number of any length.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "h") //nolint:usetesting // TempDir has the name of the test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A command of a daemon that was killed may still write its log.
		must.Until(t, dir+" is removed", func() bool { return os.RemoveAll(dir) == nil })
	})
	return dir
}

// proc gives the machine this one's /proc.
func (h *host) proc() {
	h.t.Helper()
	if err := h.rig.LinkProc("11111111-2222-3333-4444-555555555555"); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) connect(m *mongod.Server) *cluster.Client {
	h.t.Helper()
	target, err := cluster.ParseTarget(mongoURI(m, daemonPassword))
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := cluster.Connect(context.Background(), target, cluster.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// write replaces a file below the root, or an absolute one.
func (h *host) write(name, text string) {
	h.t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(h.root, name)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		h.t.Fatal(err)
	}
	mode := os.FileMode(0o600)
	if name == h.wrapper {
		mode = 0o755
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		h.t.Fatal(err)
	}
}

// config writes the settings; the connection string is in a file of its own.
func (h *host) config(lines string) {
	h.write("etc/amsagent/config.yaml", "beat_interval: 1s\nmetrics_address: 127.0.0.1:0\n"+lines)
}

func (h *host) environ() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "NO_COLOR=1",
		"AMSAGENT_ROOT=" + h.root, "AMSAGENT_SERVICE_COMMAND=" + h.wrapper, "AMSAGENT_TIMEOUT=120s",
	}
	if h.aws != nil {
		env = append(env, "AMSAGENT_AWS_ENDPOINT="+h.aws.Endpoint())
	}
	return append(env, h.env...)
}

// run runs another command of the agent.
func (h *host) run(args ...string) (string, int) {
	cmd := exec.Command(bins.agent, args...)
	cmd.Env = h.environ()
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		h.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (h *host) must(args ...string) {
	h.t.Helper()
	if out, code := h.run(args...); code != 0 {
		h.t.Fatalf("amsagent %v: exit %d\n%s", args, code, out)
	}
}

// touches counts what the service was asked for besides its status.
func (h *host) touches() int {
	b, err := os.ReadFile(h.wrapper + ".log")
	if err != nil {
		h.t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if line != "status\n" {
			n++
		}
	}
	return n
}

func (h *host) row() cluster.Node {
	h.t.Helper()
	n, err := h.client.Node(context.Background(), h.id)
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// rowIs waits until the row is in a state.
func (h *host) rowIs(s cluster.State) {
	h.t.Helper()
	until(h.t, "the row is "+string(s), func() string {
		n, err := h.client.Node(context.Background(), h.id)
		if err != nil {
			return err.Error()
		}
		if n.State != s {
			return fmt.Sprintf("%+v", n)
		}
		return ""
	})
}

// forget removes the row, as a person might.
func (h *host) forget() {
	h.t.Helper()
	c, err := mongo.Connect(options.Client().ApplyURI(mongoURI(h.mongo, daemonPassword)))
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = c.Disconnect(context.Background()) }()
	if r, err := c.Database("amsagent").Collection("nodes").DeleteOne(context.Background(), bson.D{{Key: "_id", Value: h.id}}); err != nil || r.DeletedCount != 1 {
		h.t.Fatal(r, err)
	}
}

// patience is how long a test waits for what must come. Only a defect reaches it.
const patience = 5 * time.Minute

// until waits until why returns "".
func until(t testing.TB, what string, why func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		text := why()
		if text == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it did not come true: %s: %s", what, text)
		}
		wait(20 * time.Millisecond)
	}
}

// soFar is a text that is not what until waits for, also where there is none yet.
func soFar(text string) string { return "so far: " + text }

func wait(d time.Duration) { <-time.After(d) }

// process is one running daemon.
type process struct {
	h    *host
	cmd  *exec.Cmd
	ctl  string
	done chan struct{}
	log  locked.Buffer

	mu       sync.Mutex
	notified []string
	watchdog []time.Time
}

// daemon starts the daemon and waits until it says that it is up.
func (h *host) daemon(args ...string) *process {
	h.t.Helper()
	p := &process{h: h, done: make(chan struct{}), ctl: filepath.Join(h.root, "run/amsagent/control.sock")}
	socket := filepath.Join(h.t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		h.t.Fatal(err)
	}
	p.cmd = exec.Command(bins.agent, append([]string{"run"}, args...)...)
	p.cmd.Env = append(h.environ(), "NOTIFY_SOCKET="+socket)
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	var read sync.WaitGroup
	read.Go(func() {
		b := make([]byte, 8<<10)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.notified = append(p.notified, string(b[:n]))
			if string(b[:n]) == "WATCHDOG=1" {
				p.watchdog = append(p.watchdog, time.Now())
			}
			p.mu.Unlock()
		}
	})
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	h.t.Cleanup(func() {
		select {
		case <-p.done:
		default:
			_ = p.cmd.Process.Kill()
			<-p.done
		}
		_ = conn.Close()
		read.Wait()
		if h.t.Failed() {
			h.t.Logf("log of the daemon:\n%s", p.text())
		}
		if strings.Contains(p.text()+strings.Join(p.told(), "\n"), daemonPassword) {
			h.t.Errorf("the password is in what the daemon said:\n%s", p.text())
		}
	})
	p.tells("the daemon is up", isReady)
	return p
}

func isReady(told string) bool { return told == "READY=1" || strings.HasPrefix(told, "READY=1\n") }

func (p *process) text() string { return p.log.String() }

func (p *process) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.notified)
}

// says waits for a line in the log.
func (p *process) says(text string) {
	p.h.t.Helper()
	until(p.h.t, "the log says "+text, func() string {
		if !strings.Contains(p.text(), text) {
			return soFar(p.text())
		}
		return ""
	})
}

// tells waits for a message to the service manager. One that the daemon has sent, even if it has ended since, is read by
// another goroutine.
func (p *process) tells(what string, is func(string) bool) {
	p.h.t.Helper()
	until(p.h.t, "the service manager is told: "+what, func() string {
		if told := p.told(); !slices.ContainsFunc(told, is) {
			return fmt.Sprintf("so far: %q", told)
		}
		return ""
	})
}

// said counts the lines of the log with a text.
func (p *process) said(text string) int { return strings.Count(p.text(), text) }

// end sends a signal and returns how the daemon ended, and how long it took.
func (p *process) end(sig syscall.Signal) (int, time.Duration) {
	p.h.t.Helper()
	begin := time.Now()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.h.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		p.h.t.Fatalf("it does not end after %s:\n%s", sig, p.text())
	}
	return p.cmd.ProcessState.ExitCode(), time.Since(begin)
}

// ask asks the control socket.
func (p *process) ask() (daemon.View, string, error) {
	c := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", p.ctl)
		},
	}}
	body, code, err := fetch(c, "http://daemon/v1/status")
	if err != nil || code != http.StatusOK {
		return daemon.View{}, body, fmt.Errorf("%d: %w", code, err)
	}
	var v daemon.View
	return v, body, json.Unmarshal([]byte(body), &v)
}

func fetch(c *http.Client, url string) (string, int, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), resp.StatusCode, err
}

func (p *process) view() daemon.View {
	p.h.t.Helper()
	v, body, err := p.ask()
	if err != nil {
		p.h.t.Fatalf("%v: %s", err, body)
	}
	return v
}

// viewIs waits until the daemon says something of itself.
func (p *process) viewIs(what string, ok func(daemon.View) bool) daemon.View {
	p.h.t.Helper()
	var v daemon.View
	until(p.h.t, "the daemon says: "+what, func() string {
		var body string
		var err error
		if v, body, err = p.ask(); err != nil {
			return err.Error()
		}
		if !ok(v) {
			return body
		}
		return ""
	})
	return v
}

// beats waits for one more beat.
func (p *process) beats() daemon.View {
	p.h.t.Helper()
	was := p.view().Beat.Last
	return p.viewIs("a beat was written", func(v daemon.View) bool { return v.Beat.Last.After(was) })
}

func (p *process) get(path string) (string, int) {
	p.h.t.Helper()
	body, code, err := fetch(http.DefaultClient, "http://"+p.view().Metrics+path)
	if err != nil {
		p.h.t.Fatal(err)
	}
	return body, code
}
