// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package rig gives a test its machine: a server, the agent on it, and the record of the node in the registry.
// docs/testing.md lists what a test uses. The API is not stable.
package rig

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/standin"
)

// Machine is where an agent runs: a folder with a stand-in for the server (standin.Machine), or a real server in
// namespaces of its own (realams.Node).
type Machine interface {
	// Path is where a file of the machine lies, as seen from here.
	Path(name string) string
	// Command is a program on the machine that has not been started.
	Command(args ...string) *exec.Cmd
	// Asked lists what the service was asked for so far besides its status.
	Asked() []string
}

var _ Machine = (*standin.Machine)(nil)

// Options describe a node whose server is a stand-in.
type Options struct {
	standin.Options
	// Agent is the agent's program.
	Agent string
	// ID and Address are those of the node's record.
	ID, Address string
	// Mongo has the registry. Without it Node.Client is nil. The daemons of the node may not show its password.
	Mongo *mongod.Server
	// Env is added to the environment of each command of the agent.
	Env []string
	// Stopped leaves the server stopped.
	Stopped bool
}

// Node is a machine with the agent. A method that cannot do what it says ends the test.
type Node struct {
	Machine
	// StandIn is the machine, where its server is a stand-in.
	StandIn *standin.Machine

	T           testing.TB
	Agent       string
	ID, Address string
	Mongo       *mongod.Server
	Client      *cluster.Client
	Env         []string
}

// New makes a machine with a stand-in and starts its server, which ends with the test.
func New(t testing.TB, o Options) *Node {
	t.Helper()
	if o.Dir == "" {
		o.Dir = ShortDir(t)
	}
	m, err := standin.New(o.Options)
	must.OK(t, err)
	n := &Node{Machine: m, StandIn: m, T: t, Agent: o.Agent, ID: o.ID, Address: o.Address, Mongo: o.Mongo, Env: o.Env}
	if o.Mongo != nil {
		n.Client = Connect(t, o.Mongo)
	}
	t.Cleanup(func() {
		if err := m.Stop(); err != nil {
			t.Errorf("stopping the service: %v", err)
		}
	})
	if !o.Stopped {
		if out, err := exec.Command(m.Wrapper, "start").CombinedOutput(); err != nil {
			t.Fatalf("starting the service: %v: %s", err, out)
		}
	}
	return n
}

// NewInEC2 is New with a metadata service.
func NewInEC2(t testing.TB, o Options) (*Node, *fakeaws.Server) {
	t.Helper()
	i := fakeaws.Sample()
	i.ID, i.NICs[0].IPv4s = o.ID, []string{o.Address}
	aws, err := fakeaws.Start(context.Background(), fakeaws.Options{Instance: &i})
	must.OK(t, err)
	t.Cleanup(func() { _ = aws.Close() })
	o.Tree.DMI, o.Env = "aws", append(o.Env, "AMSAGENT_AWS_ENDPOINT="+aws.Endpoint())
	return New(t, o), aws
}

// ShortDir is TempDir without the test's name: the path of a socket has 107 bytes, and TempDir ends with a number of any
// length.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "h") //nolint:usetesting // TempDir has the name of the test
	must.OK(t, err)
	t.Cleanup(func() {
		// A command of a daemon that was killed may still write its log.
		must.Until(t, dir+" is removed", func() bool { return os.RemoveAll(dir) == nil })
	})
	return dir
}

// Connect opens the registry.
func Connect(t testing.TB, m *mongod.Server) *cluster.Client {
	t.Helper()
	target, err := cluster.ParseTarget(m.LoginURI())
	must.OK(t, err)
	c, err := cluster.Connect(context.Background(), target, cluster.Options{})
	must.OK(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// Patience is how long a test waits for what must come. Only a defect reaches it.
const Patience = 5 * time.Minute

// Until waits until why returns "".
func Until(t testing.TB, what string, why func() string) {
	t.Helper()
	for deadline := time.Now().Add(Patience); ; <-time.After(20 * time.Millisecond) {
		text := why()
		if text == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it did not come true: %s: %s", what, text)
		}
	}
}

// Write replaces a file of the machine, for its owner alone.
func (n *Node) Write(name, text string) {
	n.T.Helper()
	name = n.Path(name)
	must.OK(n.T, os.MkdirAll(filepath.Dir(name), 0o755))
	must.OK(n.T, os.WriteFile(name, []byte(text), 0o600))
}

// Config writes the settings: a heartbeat each second, metrics at a free port, and lines.
func (n *Node) Config(lines string) {
	n.T.Helper()
	n.Write("etc/amsagent/config.yaml", "beat_interval: 1s\nmetrics_address: 127.0.0.1:0\n"+lines)
}

// Cmd is a command of the agent that has not been started.
func (n *Node) Cmd(args ...string) *exec.Cmd {
	cmd := n.Command(append([]string{n.Agent}, args...)...)
	cmd.Env = append(cmd.Env, n.Env...)
	return cmd
}

// Run runs a command of the agent. It returns its output and its exit code.
func (n *Node) Run(args ...string) (string, int) {
	n.T.Helper()
	return n.run(n.Cmd(args...))
}

// Event gives an event to the agent, on its standard input.
func (n *Node) Event(text string, args ...string) (string, int) {
	n.T.Helper()
	cmd := n.Cmd(append([]string{"event"}, args...)...)
	cmd.Stdin = strings.NewReader(text)
	return n.run(cmd)
}

func (n *Node) run(cmd *exec.Cmd) (string, int) {
	n.T.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		n.T.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// Must is Run for a command that must succeed.
func (n *Node) Must(args ...string) string {
	n.T.Helper()
	out, code := n.Run(args...)
	if code != 0 {
		n.T.Fatalf("amsagent %v: exit %d\n%s", args, code, out)
	}
	return out
}

// Touches counts what the service was asked for besides its status.
func (n *Node) Touches() int { return len(n.Asked()) }

// Record is the record of the node in the registry.
func (n *Node) Record() cluster.Node {
	n.T.Helper()
	row, err := n.Client.Node(context.Background(), n.ID)
	must.OK(n.T, err)
	return row
}

// RecordIs waits until the record is in a state.
func (n *Node) RecordIs(s cluster.State) {
	n.T.Helper()
	Until(n.T, "the record is "+string(s), func() string {
		row, err := n.Client.Node(context.Background(), n.ID)
		if err == nil && row.State == s {
			return ""
		}
		return fmt.Sprintf("%+v, %v", row, err)
	})
}

// Documents are the server's own of the node's address.
func (n *Node) Documents() []cluster.AMSNode {
	n.T.Helper()
	docs, err := n.Client.AMSNodesByAddress(context.Background(), n.Address)
	must.OK(n.T, err)
	return docs
}

// HasLeft waits until the cluster's lists are without the node. Its server has to have stopped before.
func (n *Node) HasLeft() cluster.Node {
	n.T.Helper()
	n.RecordIs(cluster.StateLeft)
	Until(n.T, "AMS's document is gone", func() string {
		if docs := n.Documents(); len(docs) > 0 {
			return fmt.Sprintf("%+v", docs)
		}
		return ""
	})
	if n.ServerRuns() {
		n.T.Error("the record says left, and Ant Media Server runs")
	}
	return n.Record()
}

// Fault lets MongoDB fail.
func (n *Node) Fault(f mongod.Fault) {
	n.T.Helper()
	must.OK(n.T, n.Mongo.Faults().Set(f))
}

// ServerRuns asks the service, not what the agent says of it.
func (n *Node) ServerRuns() bool {
	n.T.Helper()
	st, err := n.StandIn.Service.Status()
	must.OK(n.T, err)
	return st == amsctl.Active
}

// StartServer starts the server as a boot does, with the address that the drop-in of its unit has.
func (n *Node) StartServer() error {
	cmd := exec.Command(n.StandIn.Wrapper, "start")
	cmd.Env = append(os.Environ(), "AMS_HOST_ADDRESS="+n.Address)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("starting the service: %w: %s", err, out)
	}
	return nil
}

// KillServer ends the server as a lack of memory does.
func (n *Node) KillServer() {
	n.T.Helper()
	pid, err := strconv.Atoi(n.StandIn.Service.PID())
	must.OK(n.T, err)
	must.OK(n.T, syscall.Kill(pid, syscall.SIGKILL))
}

// People asks the stand-in for sessions: POST lets them come, DELETE lets them go.
func (n *Node) People(method, path string, query ...string) {
	n.T.Helper()
	must.OK(n.T, n.TryPeople(method, path, query...))
}

// TryPeople is People for a server that may not take it.
func (n *Node) TryPeople(method, path string, query ...string) error {
	q := url.Values{}
	if path != "/behaviour" {
		q.Set("app", "LiveApp")
	}
	for pair := range slices.Chunk(query, 2) {
		q.Set(pair[0], pair[1])
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	_, err := n.StandIn.Service.Control(ctx, method, path, q)
	return err
}

// Viewers lets some come. While MongoDB is away, the server returns an error although they came.
func (n *Node) Viewers(count int) {
	n.T.Helper()
	before := n.Live().Live.Viewers
	err := n.TryPeople(http.MethodPost, "/viewers", "stream", "s1", "n", strconv.Itoa(count))
	if now := n.Live().Live.Viewers; now != before+count {
		n.T.Fatalf("%d viewers, want %d: %v", now, before+count, err)
	}
}

// ViewersGo lets all go. While MongoDB is away, the server tries to write that for so long that it may have been stopped
// before.
func (n *Node) ViewersGo() {
	n.T.Helper()
	err := n.TryPeople(http.MethodDelete, "/viewers", "stream", "s1")
	st, lerr := n.TryLive()
	if lerr != nil {
		st = n.Sessions()
	}
	if st.Live.Viewers+st.Cut.Viewers > 0 {
		n.T.Fatalf("viewers stay: %+v: %v", st, err)
	}
}

// Sessions are what the server counted, in its life until now or until its end.
func (n *Node) Sessions() fakeams.Stats {
	n.T.Helper()
	st, err := fakeams.ReadStats(n.StandIn.Service.StatsFile())
	must.OK(n.T, err)
	return st
}

// Live are the sessions of now, as the server says.
func (n *Node) Live() fakeams.Stats {
	n.T.Helper()
	st, err := n.TryLive()
	must.OK(n.T, err)
	return st
}

// TryLive is Live for a server that may have ended.
func (n *Node) TryLive() (fakeams.Stats, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return n.StandIn.Live(ctx)
}

// secret is the password of the node's MongoDB.
func (n *Node) secret() string {
	if n.Mongo == nil {
		return ""
	}
	uri, err := url.Parse(n.Mongo.LoginURI())
	if err != nil {
		return ""
	}
	password, _ := uri.User.Password()
	return password
}
