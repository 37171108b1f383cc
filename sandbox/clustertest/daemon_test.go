// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// service starts and stops a fake AMS in this process.
type service struct {
	dir     string
	mu      sync.Mutex
	address string
	server  *fakeams.Server
	started time.Time
	starts  int
	mute    bool // the next server writes no document
}

func (s *service) Name() string                 { return "the stand-in" }
func (s *service) Reload(context.Context) error { return nil }

func (s *service) State(context.Context) (ams.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil || s.server.State() == fakeams.Crashed {
		return ams.State{Activity: ams.ActivityInactive}, nil
	}
	return ams.State{Activity: ams.ActivityActive, Started: s.started}, nil
}

func (s *service) Start(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	started := time.Now()
	server, err := fakeams.Start(context.Background(), fakeams.Options{
		Root: s.dir, HostAddress: s.address, Period: 50 * time.Millisecond,
		MongoTimeout: 5 * time.Second, StreamWait: 50 * time.Millisecond, LocalAddress: "10.0.0.99", SaveAtStart: true,
		Behaviour: fakeams.Behaviour{Silent: s.mute},
	})
	if err != nil {
		return err
	}
	s.server, s.started = server, started
	s.starts++
	return nil
}

func (s *service) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return nil
	}
	err := s.server.Stop(ctx)
	s.server = nil
	return err
}

func (s *service) Restart(ctx context.Context) error {
	return errors.Join(s.Stop(ctx), s.Start(ctx))
}

func (s *service) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starts
}

func (s *service) silent(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server.SetBehaviour(func(b *fakeams.Behaviour) { b.Silent = on })
}

func (s *service) hang(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server.SetBehaviour(func(b *fakeams.Behaviour) { b.Hang = on })
}

// eyes is a sampler with the test's values.
type eyes struct {
	mu       sync.Mutex
	sessions cluster.Sessions
}

func (e *eyes) Run(ctx context.Context) { <-ctx.Done() }

func (e *eyes) Sample(context.Context) heartbeat.Sample {
	e.mu.Lock()
	defer e.mu.Unlock()
	return heartbeat.Sample{At: time.Now(), Session: e.sessions}
}

func (e *eyes) Sessions(context.Context) (cluster.Sessions, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sessions, nil
}

func (e *eyes) see(publishers, viewers int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sessions = cluster.Sessions{Publishers: &publishers, Viewers: &viewers}
}

// agent is a daemon in this process.
type agent struct {
	t       *testing.T
	root    string
	mongo   *mongod.Server
	client  *cluster.Client
	door    backdoor
	svc     *service
	machine *bootstrap.Machine
	eyes    *eyes
	reload  chan struct{}
	target  atomic.Pointer[cluster.Target] // where MongoDB is
	o       daemon.Options

	log locked.Buffer

	mu         sync.Mutex
	watchdog   int
	lastStatus string
	stop       context.CancelFunc
	ended      chan struct{}
}

const nodeID = "i-0123456789abcdef0"

// newAgent returns a machine that has joined, without a daemon.
func newAgent(t *testing.T) *agent {
	t.Helper()
	s := startServer(t, mongod.Options{})
	a := newAgentAt(t, s.URI(), s.URI())
	a.mongo = s
	return a
}

// newAgentAt is newAgent with a running MongoDB. The agent uses uri; all names all members.
func newAgentAt(t *testing.T, uri, all string) *agent {
	t.Helper()
	a := &agent{t: t, root: t.TempDir(), eyes: &eyes{}, reload: make(chan struct{})}
	a.client, a.door = connect(t, uri, cluster.Options{}), openURI(t, all)
	number, err := port.Free()
	must.OK(t, err)
	tr, err := tree.Write(a.root, tree.Options{NoUnit: true, Host: "node", HostResolves: true, HTTPPort: number})
	must.OK(t, err)
	a.svc = &service{dir: tr.Dir}
	t.Cleanup(func() {
		must.OK(t, a.svc.Stop(context.Background()))
	})
	target := a.client.Target()
	a.target.Store(&target)
	log := slog.New(slog.NewTextHandler(&a.log, nil))
	open := func(ctx context.Context, to cluster.Target) (*cluster.Client, error) {
		return cluster.Connect(ctx, to, cluster.Options{Timeout: 2 * time.Second, MaxPool: 2})
	}
	a.machine = &bootstrap.Machine{
		Root: a.root, Service: a.svc, Connect: open, Version: "test", Log: log,
		SetAddress: func(to netip.Addr) {
			a.svc.mu.Lock()
			defer a.svc.mu.Unlock()
			if a.svc.address = ""; to.IsValid() {
				a.svc.address = to.String()
			}
		},
	}
	identify := func(context.Context) (metadata.Instance, error) {
		return metadata.Instance{ID: nodeID, Provider: "generic", Address: netip.MustParseAddr(own)}, nil
	}
	began := time.Now()
	var interval atomic.Int64
	interval.Store(int64(50 * time.Millisecond))
	a.o = daemon.Options{
		Machine: a.machine, Server: a.machine.Server(), Identify: identify, Connect: open, Reload: a.reload, Log: log, Version: "test",
		Mongo: func(context.Context) (daemon.Named, error) { return daemon.Named{Target: *a.target.Load()}, nil },
		Settings: func() daemon.Settings {
			return daemon.Settings{Interval: time.Duration(interval.Load()), JoinTimeout: 2 * time.Minute}
		},
		Reread: func() error { return nil },
		Redact: func(s string) string { return s },
		Notify: func(s string) {
			a.mu.Lock()
			defer a.mu.Unlock()
			switch text, status := strings.CutPrefix(s, "STATUS="); {
			case status:
				a.lastStatus = text
			case s == "WATCHDOG=1":
				a.watchdog++
			}
		},
		Sampler: func(func() *cluster.Client, func() cluster.Node) daemon.Sampler { return a.eyes },
		Lifecycle: lifecycle.Options{
			Files:    &conf.Store{Root: a.root, Dir: bootstrap.StateDir},
			Deadline: func() (time.Duration, bool) { return lifecycle.DefaultDeadline, true },
			StopTime: func() time.Duration { return 0 },
			Filter:   func() cloud.Filter { return nil },
			Uptime:   func() (string, time.Duration) { return "", time.Since(began) + 1 },
		},
		Control: filepath.Join(a.root, "c"), Lock: filepath.Join(a.root, "l"),
		Periods: daemon.Periods{
			State: 10 * time.Millisecond, Retry: 20 * time.Millisecond, MostRetry: 100 * time.Millisecond,
			Drift:    100 * time.Millisecond,
			Document: 50 * time.Millisecond, Stop: 2 * time.Second,
		},
	}
	boot(t, a.root, "boot-1")
	a.hardware("8eb3085c-1b4d-0a4f-9e6c-3b2a1c0d0001")
	must.OK(t, a.svc.Start(t.Context()))
	_, err = a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: target, Role: "edge", Identify: identify})
	must.OK(t, err)
	a.eyes.see(0, 0)
	return a
}

func (a *agent) text() string { return a.log.String() }

func (a *agent) status() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lastStatus
}

func (a *agent) rounds() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.watchdog
}

func (a *agent) start() {
	a.begin()
	a.serves()
}

// begin starts a daemon that may not serve.
func (a *agent) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	a.stop, a.ended = cancel, make(chan struct{})
	a.mu.Lock()
	a.lastStatus = ""
	a.mu.Unlock()
	d := daemon.New(a.o)
	go func() {
		defer close(a.ended)
		must.Equal(a.t, "run", d.Run(ctx), nil)
	}()
	a.t.Cleanup(func() {
		a.end()
		if a.t.Failed() {
			a.t.Logf("log:\n%s", a.text())
		}
	})
	must.Until(a.t, "the control socket answers", func() bool {
		c, err := new(net.Dialer).DialContext(a.t.Context(), "unix", a.o.Control)
		return err == nil && c.Close() == nil
	})
}

// serves waits until the node is active and has written a heartbeat.
func (a *agent) serves() {
	a.t.Helper()
	must.Until(a.t, "the node is active and writes heartbeats", func() bool {
		return strings.HasPrefix(a.status(), "active; ") && strings.Contains(a.status(), lastHeartbeat)
	})
}

// lastHeartbeat begins the part of the daemon's status with the time of the last heartbeat.
const lastHeartbeat = "; last "

func (a *agent) end() {
	a.stop()
	<-a.ended
}

// says waits until the log has a text that many times.
func (a *agent) says(text string, times int) {
	a.t.Helper()
	must.Until(a.t, "the log has "+text, func() bool { return strings.Count(a.text(), text) >= times })
}

// roundsGoOn waits for n more rounds of the loop.
func (a *agent) roundsGoOn(n int) {
	a.t.Helper()
	to := a.rounds() + n
	must.Until(a.t, "the loop continues", func() bool { return a.rounds() >= to })
}

func (a *agent) file(name string) string { return filepath.Join(a.svc.dir, name) }

func (a *agent) write(name, text string) {
	a.t.Helper()
	must.OK(a.t, os.WriteFile(a.file(name), []byte(text), 0o644))
}

func (a *agent) read(name string) string {
	a.t.Helper()
	b, err := os.ReadFile(a.file(name))
	must.OK(a.t, err)
	return string(b)
}

// view returns the daemon's view from its control socket.
func (a *agent) view() (v daemon.View) {
	a.t.Helper()
	a.control(http.MethodGet, daemon.PathStatus, "", &v)
	return v
}

// control sends a request to the daemon, which must answer 200.
func (a *agent) control(method, path, body string, answer any) {
	a.t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", a.o.Control)
		},
	}}
	req, err := http.NewRequestWithContext(a.t.Context(), method, "http://amsagent"+path, strings.NewReader(body))
	must.OK(a.t, err)
	resp, err := client.Do(req)
	must.OK(a.t, err)
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil || resp.StatusCode != http.StatusOK {
		a.t.Fatalf("%s %s: %s, %v", method, path, resp.Status, err)
	}
}

// TestDaemonUnreadableFile: a file that cannot be repaired does not keep the node from registering.
func TestDaemonUnreadableFile(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	const container = "conf/jee-container.xml"
	joined := a.read(container)
	a.write(container, "<beans>")
	a.start()
	a.says("comparing or repairing the files failed", 1)
	a.roundsGoOn(20)
	must.Equal(t, "it was logged (times)", strings.Count(a.text(), "comparing or repairing the files failed"), 1)
	if record := a.door.record(nodeID); record["state"] != "active" {
		t.Errorf("the record: %v", record)
	}
	a.write(container, joined)
	must.Until(t, "nothing is wrong", func() bool {
		return !strings.Contains(a.status(), "AMS") && strings.Contains(a.status(), lastHeartbeat)
	})
}

// Facts that the cloud does not report when the daemon starts stay in the record, and are corrected when the cloud answers,
// while the node serves.
func TestDaemonUnidentified(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	known := metadata.Instance{
		ID: nodeID, Provider: "azure", Address: netip.MustParseAddr(own), Name: "edges_7", Region: "westeurope", Zone: "2", Type: "F8s",
	}
	var answer atomic.Pointer[metadata.Instance]
	a.o.Identify = func(context.Context) (metadata.Instance, error) {
		if i := answer.Load(); i != nil {
			return *i, nil
		}
		return metadata.Instance{}, &metadata.Error{Provider: "azure", Item: "identity", Kind: cloud.ErrNotReady}
	}
	record := func() string {
		r := a.door.record(nodeID)
		return fmt.Sprint(r["provider"], " ", r["name"], " ", r["region"], " ", r["zone"], " ", r["type"], " ", r["state"])
	}
	answer.Store(&known)
	a.start()
	must.Until(t, "the record has the cloud's facts", func() bool { return record() == "azure edges_7 westeurope 2 F8s active" })
	a.end()

	answer.Store(nil)
	a.start()
	a.says("taken for "+nodeID, 1)
	a.roundsGoOn(10)
	must.Equal(t, "while the cloud does not answer, the record has", record(), "azure edges_7 westeurope 2 F8s active")
	moved := known
	moved.Zone, moved.Type = "3", "F16s"
	answer.Store(new(moved))
	must.Until(t, "the record has the cloud's new facts", func() bool { return record() == "azure edges_7 westeurope 3 F16s active" })
	// Later changes do not wait for a restart either, for example a public address that is assigned while the machine runs.
	moved.PublicAddress, moved.Hostname = netip.MustParseAddr("203.0.113.9"), "edges-7"
	answer.Store(&moved)
	must.Until(t, "the record has the public address and the name", func() bool {
		r := a.door.record(nodeID)
		return r["public_ip"] == "203.0.113.9" && r["hostname"] == "edges-7" && r["state"] == "active"
	})
	partly := moved
	partly.PublicAddress, partly.Hostname, partly.Zone, partly.Missing = netip.Addr{}, "", "", []string{"public_address"}
	partly.Type = "F32s"
	answer.Store(&partly)
	must.Until(t, "the record has the facts that the cloud reports, and keeps the others", func() bool {
		r := a.door.record(nodeID)
		return record() == "azure edges_7 westeurope 3 F32s active" && r["public_ip"] == "203.0.113.9" && r["hostname"] == "edges-7"
	})
	answer.Store(nil)
	a.roundsGoOn(10)
	must.Equal(t, "while the cloud does not answer, the record has", record(), "azure edges_7 westeurope 3 F32s active")
	answer.Store(&moved)
	must.Until(t, "the record has all facts again", func() bool { return record() == "azure edges_7 westeurope 3 F16s active" })
	a.serves()
	if strings.Contains(a.text(), "AGENT-CLONED") {
		t.Error("the machine was treated as another one")
	}
}

// TestStopWhileJoinLooks: a join that changes nothing and waits for the AMS document does not keep a drain from stopping the
// server, and ends then.
func TestStopWhileJoinLooks(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.svc.silent(true)
	_, err := a.door.ams().DeleteMany(t.Context(), bson.D{})
	must.OK(t, err)
	looked := func() int {
		return len(slices.DeleteFunc(a.mongo.Commands(), func(c mongod.Command) bool {
			return c.Name != "find" || c.Collection != "clusternode"
		}))
	}
	before, starts := looked(), a.svc.count()
	joined := make(chan error, 1)
	go func() {
		_, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: *a.target.Load(), Role: "edge", Identify: a.o.Identify})
		joined <- err
	}()
	must.Until(t, "the join looks for the document", func() bool { return looked() >= before+3 })
	began := time.Now()
	_, err = a.machine.StopServer(t.Context())
	must.OK(t, err)
	if took := time.Since(began); took > time.Minute {
		t.Errorf("the stop took %s", took)
	}
	err = <-joined
	if _, unstable := errors.AsType[*ams.UnstableError](err); !unstable {
		t.Errorf("the join: %v", err)
	}
	if s, err := a.machine.StateFile(); err != nil || s == nil || s.Phase != bootstrap.PhaseJoined || a.svc.count() != starts {
		t.Errorf("the state: %+v, %v; started %d times, %d before", s, err, a.svc.count(), starts)
	}
}

// TestDaemonMongoElsewhere: MongoDB is gone, and the settings name another one. The agent uses it without a signal, and writes
// no file of the server.
func TestDaemonMongoElsewhere(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	other := startServer(t, mongod.Options{})
	a.start()
	const settings = "conf/red5.properties"
	before := a.read(settings)
	client := connect(t, other.URI(), cluster.Options{})
	to := client.Target()
	a.target.Store(&to)
	fault(t, a.mongo, mongod.Fault{Mode: mongod.Refuse})
	must.Until(t, "the node is in the other MongoDB, and its server is not", func() bool {
		n, err := client.Node(t.Context(), nodeID)
		return err == nil && n.State == cluster.StateJoining
	})
	if a.read(settings) != before || !a.view().RestartPending {
		t.Errorf("%s was written while the server runs, or no restart is pending", settings)
	}
}

// TestDaemonKeepsWhatIsNamed: an operator writes another password, another MongoDB, or half a line into the agent's own file.
// The daemon never overwrites it with the old value.
func TestDaemonKeepsWhatIsNamed(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	file := filepath.Join(a.root, bootstrap.MongoPath)
	a.o.Mongo = func(context.Context) (daemon.Named, error) {
		b, err := os.ReadFile(file)
		if err != nil {
			return daemon.Named{}, err
		}
		t, err := cluster.ParseTarget(strings.TrimSpace(string(b)))
		return daemon.Named{Target: t, Stored: true}, err
	}
	a.start()
	named := func(uri string) {
		t.Helper()
		must.OK(t, os.WriteFile(file+".new", []byte(uri+"\n"), 0o600))
		must.OK(t, os.Rename(file+".new", file))
	}
	stays := func(uri string) {
		t.Helper()
		a.roundsGoOn(10)
		if b, err := os.ReadFile(file); err != nil || string(b) != uri+"\n" {
			t.Errorf("%s: %q, %v; want %q", bootstrap.MongoPath, b, err, uri)
		}
	}
	// The same servers, as with another password.
	again := a.mongo.URI() + "?retryWrites=true"
	named(again)
	must.Until(t, "the daemon reports the server's drift", func() bool {
		d := a.view().Drift
		return d != nil && slices.ContainsFunc(d.Values, func(d bootstrap.Difference) bool { return d.New == again })
	})
	stays(again)

	named("mongodb://[half")
	a.says("comparing or repairing the files failed", 1)
	stays("mongodb://[half")

	elsewhere := startServer(t, mongod.Options{}).URI()
	named(elsewhere)
	stays(elsewhere)
}

// TestDaemonCancelsStaleDrain: a leave that failed could not restore the state, or the record of a drain was lost. The daemon
// of a node that does not drain sets the state to active.
func TestDaemonCancelsStaleDrain(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	a.end()
	_, err := a.door.nodes().UpdateOne(t.Context(), bson.M{"_id": nodeID}, bson.M{"$set": bson.M{"state": "draining", "left_by": "leave"}})
	must.OK(t, err)
	a.start()
	if record := a.door.record(nodeID); record["state"] != "active" {
		t.Errorf("the record: %v", record)
	}
}
