// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
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
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// service is the stand-in AMS in this very process, as something to start and stop.
type service struct {
	dir     string
	mu      sync.Mutex
	address string
	server  *fakeams.Server
	started time.Time
	starts  int
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

// eyes are a sampler that sees what the test wants.
type eyes struct {
	mu       sync.Mutex
	sessions cluster.Sessions
	hang     chan struct{} // nil: it does not hang
	hangs    bool          // that somebody waits for hang
}

func (e *eyes) Run(ctx context.Context) { <-ctx.Done() }

func (e *eyes) Sample(context.Context) heartbeat.Sample {
	e.mu.Lock()
	hang, s := e.hang, heartbeat.Sample{At: time.Now(), Session: e.sessions}
	e.hangs = hang != nil
	e.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return s
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

	mu       sync.Mutex
	watchdog int
	told     string // the last status
	stop     context.CancelFunc
	ended    chan struct{}
}

const nodeID = "i-0123456789abcdef0"

// newAgent makes a machine that has joined, without a daemon yet.
func newAgent(t *testing.T) *agent {
	t.Helper()
	s := startServer(t, mongod.Options{})
	a := newAgentAt(t, s.URI(), s.URI())
	a.mongo = s
	return a
}

// newAgentAt is newAgent with a MongoDB that runs. uri is what the agent is told of it,
// all names its members.
func newAgentAt(t *testing.T, uri, all string) *agent {
	t.Helper()
	a := &agent{t: t, root: t.TempDir(), eyes: &eyes{}, reload: make(chan struct{})}
	a.client, a.door = connect(t, uri, cluster.Options{}), openURI(t, all)
	number, err := port.Free()
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tree.Write(a.root, tree.Options{NoUnit: true, Host: "node", HostResolves: true, HTTPPort: number})
	if err != nil {
		t.Fatal(err)
	}
	a.svc = &service{dir: tr.Dir}
	t.Cleanup(func() {
		if err := a.svc.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	target := a.client.Target()
	a.target.Store(&target)
	log := slog.New(slog.NewTextHandler(&a.log, nil))
	open := func(ctx context.Context, to cluster.Target) (*cluster.Client, error) {
		return cluster.Connect(ctx, to, cluster.Options{Timeout: 2 * time.Second, MaxPool: 2, Elections: true})
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
		return metadata.Instance{ID: nodeID, Provider: "none", Address: netip.MustParseAddr(own)}, nil
	}
	var interval atomic.Int64
	interval.Store(int64(50 * time.Millisecond))
	a.o = daemon.Options{
		Machine: a.machine, Server: a.machine.Server(), Identify: identify, Connect: open, Reload: a.reload, Log: log, Version: "test",
		Mongo: func(context.Context) (daemon.Named, error) { return daemon.Named{Target: *a.target.Load()}, nil },
		Settings: func() daemon.Settings {
			return daemon.Settings{Interval: time.Duration(interval.Load()), JoinTimeout: 2 * time.Minute}
		},
		Reread: func() error { return nil },
		Notify: func(s string) {
			a.mu.Lock()
			defer a.mu.Unlock()
			switch text, status := strings.CutPrefix(s, "STATUS="); {
			case status:
				a.told = text
			case s == "WATCHDOG=1":
				a.watchdog++
			}
		},
		Sampler: func(func() *cluster.Client, func() cluster.Node) daemon.Sampler { return a.eyes },
		Control: filepath.Join(a.root, "c"), Lock: filepath.Join(a.root, "l"),
		Periods: daemon.Periods{
			State: 10 * time.Millisecond, Retry: 20 * time.Millisecond, MostRetry: 100 * time.Millisecond,
			Drift:   100 * time.Millisecond,
			Witness: 50 * time.Millisecond, Stop: 2 * time.Second,
		},
	}
	if err := a.svc.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: target, Role: "edge", Identify: identify}); err != nil {
		t.Fatal(err)
	}
	a.eyes.see(0, 0)
	return a
}

func (a *agent) text() string { return a.log.String() }

func (a *agent) status() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.told
}

func (a *agent) rounds() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.watchdog
}

func (a *agent) start() {
	ctx, cancel := context.WithCancel(context.Background())
	a.stop, a.ended = cancel, make(chan struct{})
	a.mu.Lock()
	a.told = ""
	a.mu.Unlock()
	d := daemon.New(a.o)
	go func() {
		defer close(a.ended)
		if err := d.Run(ctx); err != nil {
			a.t.Error(err)
		}
	}()
	a.t.Cleanup(func() {
		a.end()
		if a.t.Failed() {
			a.t.Logf("log:\n%s", a.text())
		}
	})
	a.serves()
}

// serves waits until the node beats and is active.
func (a *agent) serves() {
	a.t.Helper()
	eventually(a.t, "the node is active and beats", func() bool {
		return strings.HasPrefix(a.status(), "active; ") && strings.Contains(a.status(), "last beat at")
	})
}

func (a *agent) end() {
	a.stop()
	<-a.ended
}

// says waits until the log has a text so many times.
func (a *agent) says(text string, times int) {
	a.t.Helper()
	eventually(a.t, "the log says "+text, func() bool { return strings.Count(a.text(), text) >= times })
}

// roundsGoOn waits for so many more rounds of the loop.
func (a *agent) roundsGoOn(n int) {
	a.t.Helper()
	to := a.rounds() + n
	eventually(a.t, "the loop goes round", func() bool { return a.rounds() >= to })
}

func (a *agent) file(name string) string { return filepath.Join(a.svc.dir, name) }

func (a *agent) write(name, text string) {
	a.t.Helper()
	if err := os.WriteFile(a.file(name), []byte(text), 0o644); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) read(name string) string {
	a.t.Helper()
	b, err := os.ReadFile(a.file(name))
	if err != nil {
		a.t.Fatal(err)
	}
	return string(b)
}

const appFile = "webapps/LiveApp/WEB-INF/red5-web.properties"

// view is what the daemon tells on its control socket.
func (a *agent) view() (v daemon.View) {
	a.t.Helper()
	a.control(http.MethodGet, daemon.PathStatus, "", &v)
	return v
}

// control asks the daemon, which is to answer 200.
func (a *agent) control(method, path, body string, answer any) {
	a.t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", a.o.Control)
		},
	}}
	req, err := http.NewRequestWithContext(a.t.Context(), method, "http://amsagent"+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil || resp.StatusCode != http.StatusOK {
		a.t.Fatalf("%s %s: %s, %v", method, path, resp.Status, err)
	}
}

// means compares two settings files as the server reads them: it saves its own
// spelling at each start.
func means(t *testing.T, a, b string) bool {
	t.Helper()
	read := func(text string) map[string]string {
		p, err := conf.ParseProperties([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]string)
		for _, key := range p.Keys() {
			values[key], _ = p.Get(key)
		}
		return values
	}
	return maps.Equal(read(a), read(b))
}

// converges is amsagent converge, by a person.
func (a *agent) converges() *bootstrap.Convergence {
	a.t.Helper()
	c, err := a.machine.Converge(a.t.Context(), bootstrap.ConvergeRequest{
		Mongo: *a.target.Load(), Identify: a.o.Identify,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// stays gives the daemon time to restart AMS, or to write a file, and it does not.
func (a *agent) stays(why string, starts int, file, text string) {
	a.t.Helper()
	a.roundsGoOn(20)
	if a.svc.count() != starts {
		a.t.Errorf("AMS was restarted: %s", why)
	}
	if a.read(file) != text {
		a.t.Errorf("%s was written while the server runs: %s", file, why)
	}
}

// differs makes a file differ from what was joined with, and waits until that is told.
func (a *agent) differs(text string) {
	a.t.Helper()
	times := strings.Count(a.text(), "id=AMS-DRIFT")
	a.write(appFile, text)
	a.says("id=AMS-DRIFT", times+1)
}

// TestDaemonDrift: an upgrade restores a file while the server runs. The daemon says
// what differs, and neither writes nor restarts. A join restarts the server.
func TestDaemonDrift(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	joined, starts := a.read(appFile), a.svc.count()
	upgraded := strings.Replace(joined, "db.type=mongodb", "db.type=mapdb", 1)
	if joined == upgraded {
		t.Fatal("the file of a node is not what this test takes it for")
	}
	a.differs(upgraded)
	a.stays("nobody asked for it", starts, appFile, upgraded)
	v := a.view()
	if d := v.Drift; d == nil || len(d.Values) != 1 || !strings.HasSuffix(d.Values[0].Path, appFile) ||
		d.Values[0].Key != "db.type" || d.Values[0].Old != "mapdb" || d.Values[0].New != "mongodb" || d.Means == "" || d.Since.IsZero() ||
		!slices.Equal(d.Fix, []string{bootstrap.RestartHint}) {
		t.Errorf("what differs: %+v", d)
	}
	if !v.RestartPending || !strings.Contains(a.text(), `fix="`+bootstrap.RestartHint+`"`) {
		t.Errorf("restart pending: %t, or the log does not say what ends it", v.RestartPending)
	}
	const drift = "LiveApp: db.type is mapdb, joined with mongodb"
	eventually(t, "the row names the drift", func() bool { return a.door.row(nodeID)["drift"] == drift })
	if n := strings.Count(a.text(), "id=AMS-DRIFT"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	// Two spellings of one value are no difference.
	a.write(appFile, strings.Replace(joined, "db.type=mongodb", "db.type : mongo\\u0064b", 1))
	a.says("the server's files are as joined again", 1)
	eventually(t, "nothing differs", func() bool {
		v := a.view()
		return v.Drift == nil && !v.RestartPending && a.door.row(nodeID)["drift"] == nil
	})
	a.stays("another spelling", starts, appFile, strings.Replace(joined, "db.type=mongodb", "db.type : mongo\\u0064b", 1))
}

// TestDaemonOlderThanFiles: a command writes the files of a server that runs. A restart is pending until the server is
// started again.
func TestDaemonOlderThanFiles(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	joined, starts := a.read(appFile), a.svc.count()
	a.differs(strings.Replace(joined, "db.type=mongodb", "db.type=mapdb", 1))
	a.converges()
	repaired := a.read(appFile)
	if !means(t, repaired, joined) {
		t.Error("a command did not write the file")
	}
	eventually(t, "the server is older than its files", func() bool {
		d := a.view().Drift
		return a.view().RestartPending && d != nil && len(d.Values) == 0
	})
	a.stays("files that are as joined", starts, appFile, repaired)
	<-time.After(2 * time.Second) // the time of the files is known to a second
	if err := a.svc.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is pending", func() bool { return !a.view().RestartPending && a.view().Drift == nil })
}

// TestDaemonUnmended: a file that cannot be mended keeps no node from being seen.
func TestDaemonUnmended(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	const container = "conf/jee-container.xml"
	joined := a.read(container)
	a.write(container, "<beans>")
	a.start()
	a.says("the files could not be compared or mended", 1)
	a.roundsGoOn(20)
	if n := strings.Count(a.text(), "the files could not be compared or mended"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	if row := a.door.row(nodeID); row["state"] != "active" {
		t.Errorf("the row: %v", row)
	}
	a.write(container, joined)
	eventually(t, "nothing is wrong", func() bool { return !strings.Contains(a.status(), "AMS") && strings.Contains(a.status(), "last beat") })
}

// What the cloud does not say at a start of the daemon stays in the row as it was, and
// is put right when the cloud answers, while the node serves on.
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
		return metadata.Instance{}, &metadata.Error{Provider: "azure", Item: "identity", Kind: metadata.ErrNotReady}
	}
	row := func() string {
		r := a.door.row(nodeID)
		return fmt.Sprint(r["provider"], " ", r["name"], " ", r["region"], " ", r["zone"], " ", r["type"], " ", r["state"])
	}
	answer.Store(&known)
	a.start()
	eventually(t, "the row has what the cloud says", func() bool { return row() == "azure edges_7 westeurope 2 F8s active" })
	a.end()

	answer.Store(nil)
	a.start()
	a.says("taken for "+nodeID, 1)
	a.roundsGoOn(10)
	if got := row(); got != "azure edges_7 westeurope 2 F8s active" {
		t.Errorf("while the cloud does not answer the row says %s", got)
	}
	moved := known
	moved.Zone, moved.Type = "3", "F16s"
	answer.Store(new(moved))
	eventually(t, "the row has what the cloud says now", func() bool { return row() == "azure edges_7 westeurope 3 F16s active" })
	// Nor does what changes later wait for the next session, as the address that a machine is given while it runs.
	moved.PublicAddress, moved.Hostname = netip.MustParseAddr("203.0.113.9"), "edges-7"
	answer.Store(&moved)
	eventually(t, "the row has the public address and the name", func() bool {
		r := a.door.row(nodeID)
		return r["public_ip"] == "203.0.113.9" && r["hostname"] == "edges-7" && r["state"] == "active"
	})
	partly := moved
	partly.PublicAddress, partly.Hostname, partly.Zone, partly.Missing = netip.Addr{}, "", "", []string{"public_address"}
	partly.Type = "F32s"
	answer.Store(&partly)
	eventually(t, "the row has the part that the cloud says, and keeps the other", func() bool {
		r := a.door.row(nodeID)
		return row() == "azure edges_7 westeurope 3 F32s active" && r["public_ip"] == "203.0.113.9" && r["hostname"] == "edges-7"
	})
	answer.Store(nil)
	a.roundsGoOn(10)
	if got := row(); got != "azure edges_7 westeurope 3 F32s active" {
		t.Errorf("while the cloud does not answer the row says %s", got)
	}
	answer.Store(&moved)
	eventually(t, "the row has all of it again", func() bool { return row() == "azure edges_7 westeurope 3 F16s active" })
	a.serves()
	if strings.Contains(a.text(), "AMS-CLONED") {
		t.Error("the machine was taken for another one")
	}
}

// TestDaemonStartsWhileMetadataHang: a daemon that is started again beats and is ready before
// a metadata service that hangs has answered, and has its answer later.
func TestDaemonStartsWhileMetadataHang(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	identify, hung := a.o.Identify, make(chan struct{})
	a.o.Identify = func(ctx context.Context) (metadata.Instance, error) {
		select {
		case <-hung:
			return identify(ctx)
		case <-ctx.Done():
			return metadata.Instance{}, context.Cause(ctx)
		}
	}
	a.start()
	eventually(t, "the node is ready", func() bool { return a.view().Ready })
	a.says("the metadata service has not answered for 2s, and is asked again; taken for "+nodeID, 1)
	close(hung)
	a.serves()
	if n := a.door.count(a.door.nodes(), bson.M{"_id": nodeID, "state": "active"}); n != 1 {
		t.Errorf("%d rows", n)
	}
}

// TestDaemonWitness: AMS's own word stops, comes back, and comes under another
// address. Each is said once.
func TestDaemonWitness(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	const lost, back = "does not write its document any more", "writes its document again"
	age := func(d time.Duration) {
		t.Helper()
		if _, err := a.door.ams().UpdateMany(t.Context(), bson.M{"ip": own}, bson.M{"$set": bson.M{"lastUpdateTime": time.Now().Add(-d).UnixMilli()}}); err != nil {
			t.Fatal(err)
		}
	}
	a.says("is in the cluster", 1)
	a.svc.silent(true)
	a.roundsGoOn(3)
	age(30 * time.Second)
	a.says(lost, 1)
	a.roundsGoOn(20)
	if v := a.view(); !v.Ready || v.AMSAge == nil || *v.AMSAge < 20*time.Second {
		t.Errorf("viewers are served all the same: ready %t, age %v", v.Ready, v.AMSAge)
	}
	a.svc.silent(false)
	a.says(back, 1)
	// It is killed, its document is removed by others, and it comes back.
	if err := a.svc.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.door.ams().DeleteMany(t.Context(), bson.M{}); err != nil {
		t.Fatal(err)
	}
	a.says(lost, 2)
	a.svc.mu.Lock()
	a.svc.address = "10.0.0.77" // not the one of this node
	a.svc.mu.Unlock()
	if err := a.svc.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.roundsGoOn(20)
	a.machine.SetAddress(netip.MustParseAddr(own))
	if err := a.svc.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.says(back, 2)
	if n, m := strings.Count(a.text(), lost), strings.Count(a.text(), back); n != 2 || m != 2 {
		t.Errorf("said %d and %d times", n, m)
	}
	if row := a.door.row(nodeID); row["state"] != "active" {
		t.Errorf("the row: %v", row)
	}
}

// TestDaemonStateKept: AMS was seen, and MongoDB took no writes just then.
func TestDaemonStateKept(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	if _, err := a.door.nodes().UpdateOne(t.Context(), bson.M{"_id": nodeID}, bson.M{"$set": bson.M{"state": "joining"}}); err != nil {
		t.Fatal(err)
	}
	fault(t, a.mongo, mongod.Fault{Mode: mongod.Error, Commands: []string{"update"}, Code: 10107, Name: "NotWritablePrimary"})
	ctx, cancel := context.WithCancel(t.Context())
	a.ended, a.stop = make(chan struct{}), cancel
	go func() {
		defer close(a.ended)
		_ = daemon.New(a.o).Run(ctx)
	}()
	t.Cleanup(a.end)
	a.says("Ant Media Server is in the cluster", 1)
	a.says("the registry could not be told yet", 1)
	a.roundsGoOn(3)
	if row := a.door.row(nodeID); row["state"] != "joining" {
		t.Errorf("the row: %v", row)
	}
	a.mongo.Faults().Clear()
	eventually(t, "the state is written", func() bool { return a.door.row(nodeID)["state"] == "active" })
	a.serves()
}

// slowStart is a service manager that does not know since when the server runs, and a
// machine on which all is slow once it was started.
type slowStart struct {
	*service
	started func()
}

func (s slowStart) State(ctx context.Context) (ams.State, error) {
	st, err := s.service.State(ctx)
	st.Started = time.Time{}
	return st, err
}

func (s slowStart) Start(ctx context.Context) error {
	defer s.started()
	return s.service.Start(ctx)
}

func (s slowStart) Restart(ctx context.Context) error {
	return errors.Join(s.Stop(ctx), s.Start(ctx))
}

// TestJoinOutlastsSlowMongo: a question that MongoDB does not answer in the moment
// after the server's start is asked again. It does not take the join back.
func TestJoinOutlastsSlowMongo(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	if _, err := a.machine.Leave(t.Context(), bootstrap.LeaveRequest{Mongo: *a.target.Load()}); err != nil {
		t.Fatal(err)
	}
	asked := func() int {
		return len(slices.DeleteFunc(a.mongo.Commands(), func(c mongod.Command) bool {
			return c.Fault != mongod.Delay || c.Collection != "clusternode"
		}))
	}
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a.machine.Service = slowStart{a.svc, sync.OnceFunc(func() {
		fault(t, a.mongo, mongod.Fault{Mode: mongod.Delay, Delay: time.Hour, Commands: []string{"find"}})
		work.Go(func() {
			// Until it was asked again.
			for asked() < 2 && ctx.Err() == nil {
				<-time.After(10 * time.Millisecond)
			}
			a.mongo.Faults().Clear()
		})
	})}
	if _, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: *a.target.Load(), Role: "edge", Identify: a.o.Identify}); err != nil {
		t.Errorf("after %d questions: %v", asked(), err)
	}
	if n := asked(); n < 2 {
		t.Errorf("asked %d times while MongoDB was slow", n)
	}
	if row := a.door.row(nodeID); row["state"] != "active" {
		t.Errorf("the row: %v", row)
	}
}

// TestStopWhileJoinLooks: a join that changes nothing and waits for the server's document
// keeps no drain from stopping the server, and ends with that.
func TestStopWhileJoinLooks(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.svc.silent(true)
	if _, err := a.door.ams().DeleteMany(t.Context(), bson.D{}); err != nil {
		t.Fatal(err)
	}
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
	eventually(t, "the join looks for the document", func() bool { return looked() >= before+3 })
	began := time.Now()
	if _, err := a.machine.StopServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("the stop took %s", took)
	}
	if err := <-joined; !errors.Is(err, ams.ErrUnstable) {
		t.Errorf("the join: %v", err)
	}
	if s, err := a.machine.StateFile(); err != nil || s == nil || s.Phase != bootstrap.PhaseJoined || a.svc.count() != starts {
		t.Errorf("the state: %+v, %v; started %d times, %d before", s, err, a.svc.count(), starts)
	}
}

// TestDaemonMongoElsewhere: MongoDB is gone, and the settings say where the new one
// is. The agent goes there by itself, without a signal; the server does when it is
// started again.
func TestDaemonMongoElsewhere(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	other := startServer(t, mongod.Options{})
	a.start()
	starts := a.svc.count()
	client := connect(t, other.URI(), cluster.Options{})
	to := client.Target()
	a.target.Store(&to)
	a.roundsGoOn(10)
	// On a busy machine it may not answer in time once.
	before, _, moved := strings.Cut(a.text(), "another MongoDB is named now")
	if moved && !strings.Contains(before, "a beat could not be written") {
		t.Error("a node whose MongoDB answers was moved")
	}
	const settings = "conf/red5.properties"
	before = a.read(settings)
	fault(t, a.mongo, mongod.Fault{Mode: mongod.Refuse})
	a.says("another MongoDB is named now", 1)
	a.says("id=AMS-DRIFT", 2) // our own file, which is written, and the server's
	a.stays("nobody asked for it", starts, settings, before)
	v := a.view()
	if d := v.Drift; d == nil || !slices.ContainsFunc(d.Values, func(d bootstrap.Difference) bool {
		return strings.HasSuffix(d.Path, settings) && d.Key == "clusterdb.host" && d.New == other.URI()
	}) || len(d.Fix) == 0 {
		t.Errorf("what differs: %+v", d)
	}
	if !v.RestartPending {
		t.Error("no restart is pending")
	}
	// The server is in the old one still.
	if n, err := client.Node(t.Context(), nodeID); err != nil || n.State != cluster.StateJoining || v.Ready {
		t.Errorf("the row in the other MongoDB: %+v, %v; ready %t", n, err, v.Ready)
	}
	a.converges()
	if err := a.svc.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node is in the other MongoDB", func() bool {
		n, err := client.Node(t.Context(), nodeID)
		return err == nil && n.State == cluster.StateActive && n.Seq > 0
	})
	a.serves()
	if !strings.Contains(a.read(settings), other.URI()[len("mongodb://"):]) {
		t.Errorf("%s: %s", settings, a.read(settings))
	}
}

// TestDaemonKeepsWhatIsNamed: an operator writes another password, another MongoDB, or half a line
// into the agent's own file. The daemon never writes the former one over it.
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
		if err := os.WriteFile(file+".new", []byte(uri+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	stays := func(uri string) {
		t.Helper()
		a.roundsGoOn(10)
		if b, err := os.ReadFile(file); err != nil || string(b) != uri+"\n" {
			t.Errorf("%s: %q, %v; want %q", bootstrap.MongoPath, b, err, uri)
		}
	}
	// As another password would: the same servers.
	again := a.mongo.URI() + "?retryWrites=true"
	named(again)
	eventually(t, "the settings of the server are said to differ", func() bool {
		d := a.view().Drift
		return d != nil && slices.ContainsFunc(d.Values, func(d bootstrap.Difference) bool { return d.New == again })
	})
	stays(again)

	named("mongodb://[half")
	a.says("the files could not be compared or mended", 1)
	stays("mongodb://[half")

	elsewhere := startServer(t, mongod.Options{}).URI()
	named(elsewhere)
	stays(elsewhere)
}

// TestDaemonTakesBack: a leave announced that this node goes, changed nothing, and could
// not take its word back; or a drain was forgotten before its end was told. The daemon of a
// node that nothing drains makes it active.
func TestDaemonTakesBack(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	a.end()
	if _, err := a.door.nodes().UpdateOne(t.Context(), bson.M{"_id": nodeID}, bson.M{"$set": bson.M{"state": "draining", "left_by": "leave"}}); err != nil {
		t.Fatal(err)
	}
	a.start()
	if row := a.door.row(nodeID); row["state"] != "active" {
		t.Errorf("the row: %v", row)
	}
}

// TestDaemonEndsWithoutMongo: a database that takes and does not answer holds up
// no end.
func TestDaemonEndsWithoutMongo(t *testing.T) {
	t.Parallel()
	for _, mode := range []mongod.Mode{mongod.BlackHole, mongod.Refuse} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			a := newAgent(t)
			a.o.Periods.Stop = 0 // the usual
			a.start()
			fault(t, a.mongo, mongod.Fault{Mode: mode})
			a.says("a beat could not be written", 1)
			a.end()
			if strings.Contains(a.text(), "something hangs") {
				t.Error("it was not waited for what ends by itself")
			}
			a.mongo.Faults().Clear()
			if row := a.door.row(nodeID); row["state"] != "active" {
				t.Errorf("the row: %v", row)
			}
		})
	}
}

// TestDaemonEndsWhileProving: nor does a server that is waited for and hangs, with a
// database that does not answer.
func TestDaemonEndsWhileProving(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.o.Periods.Stop = 0 // the usual
	a.svc.silent(true)
	if _, err := a.door.ams().DeleteMany(t.Context(), bson.M{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.ended, a.stop = make(chan struct{}), cancel
	go func() {
		defer close(a.ended)
		_ = daemon.New(a.o).Run(ctx)
	}()
	t.Cleanup(a.end)
	eventually(t, "it beats", func() bool { return strings.Contains(a.status(), "last beat at") })
	fault(t, a.mongo, mongod.Fault{Mode: mongod.Refuse})
	a.says("a beat could not be written", 1)
	a.svc.hang(true)
	defer a.svc.hang(false)
	a.end()
	if strings.Contains(a.text(), "something hangs") {
		t.Errorf("it was not waited for what ends by itself:\n%s", a.text())
	}
}

// TestDaemonWaitsForOthers: another amsagent has the machine for long, as a join
// by hand may. Meanwhile the loop goes round, and what it leaves is followed.
func TestDaemonWaitsForOthers(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.o.Periods.Drift = time.Hour
	a.start()
	store := &conf.Store{Root: a.root, Dir: bootstrap.StateDir}
	lock, err := store.Lock(t.Context(), "/run/amsagent/lock", nil)
	if err != nil {
		t.Fatal(err)
	}
	a.reload <- struct{}{} // the session that follows waits for the lock
	a.says("settings read again", 1)
	a.roundsGoOn(30)
	// The other one is a leave.
	path := filepath.Join(a.root, bootstrap.StateDir, "state.json")
	state, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(state, []byte(`"joined"`), []byte(`"leaving"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	a.roundsGoOn(10)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	a.roundsGoOn(10)
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	a.says("this machine left by hand", 1)
}

// TestDaemonByHand: a person takes the machine out of the cluster and back, while
// the settings would have it in, and MongoDB is slow. No step of the daemon that was
// under way writes behind the person's back.
func TestDaemonByHand(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	settings := a.o.Settings
	a.o.Settings = func() daemon.Settings {
		s := settings()
		s.AutoJoin = true
		return s
	}
	a.o.Periods.Idle = 50 * time.Millisecond
	a.start()
	fault(t, a.mongo, mongod.Fault{Mode: mongod.Delay, Delay: 50 * time.Millisecond, Commands: []string{"update"}})
	if _, err := a.machine.Leave(t.Context(), bootstrap.LeaveRequest{Mongo: *a.target.Load()}); err != nil {
		t.Fatal(err)
	}
	a.mongo.Faults().Clear()
	left := a.door.row(nodeID)
	eventually(t, "the daemon knows", func() bool { return strings.Contains(a.status(), "left by hand") })
	a.roundsGoOn(30)
	now := a.door.row(nodeID)
	if now["state"] != "left" || now["state_since"] != left["state_since"] || now["updated_at"] != left["updated_at"] {
		t.Errorf("the row was %v, and is %v", left, now)
	}
	if n := a.door.count(a.door.ams(), bson.M{}); n != 0 {
		t.Errorf("AMS has %d documents", n)
	}
	if _, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: *a.target.Load(), Identify: a.o.Identify}); err != nil {
		t.Fatal(err)
	}
	a.serves()
	eventually(t, "the row is active and beats", func() bool {
		row := a.door.row(nodeID)
		return row["state"] == "active" && row["sessions"] != nil
	})
	if n := strings.Count(a.text(), "msg=joined"); n != 0 {
		t.Errorf("the daemon joined %d times by itself", n)
	}
}

// TestDaemonHangs: the watchdog hears nothing from a loop that hangs, and the end
// does not wait for it.
func TestDaemonHangs(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	hang := make(chan struct{})
	a.eyes.mu.Lock()
	a.eyes.hang = hang
	a.eyes.mu.Unlock()
	eventually(t, "the loop hangs", func() bool {
		a.eyes.mu.Lock()
		defer a.eyes.mu.Unlock()
		return a.eyes.hangs
	})
	a.end()
	a.says("something hangs; it is not waited for", 1)
	close(hang)
}

// TestDaemonSessionsLeaveNothing: two hundred sessions cost nothing that stays.
func TestDaemonSessionsLeaveNothing(t *testing.T) {
	a := newAgent(t)
	a.start()
	const proof = "Ant Media Server is in the cluster"
	begin := func(n int) {
		t.Helper()
		for range n {
			times := strings.Count(a.text(), proof)
			a.reload <- struct{}{}
			a.says(proof, times+1)
		}
	}
	settled := func() (goroutines, files int) {
		t.Helper()
		a.serves()
		// What has ended is gone a moment later.
		var seen [][2]int
		for range 10 {
			a.roundsGoOn(2)
			seen = append(seen, [2]int{runtime.NumGoroutine(), descriptors(t)})
		}
		least := slices.MinFunc(seen, func(a, b [2]int) int { return a[0] - b[0] })
		return least[0], least[1]
	}
	// Connections that end come and go by the handful, this process' other ones too:
	// a session that leaves one thing behind adds two hundred.
	const many, some = 200, 20
	begin(20)
	g, f := settled()
	begin(many)
	g2, f2 := settled()
	if g2 > g+some || f2 > f+some {
		t.Errorf("goroutines %d, then %d; descriptors %d, then %d", g, g2, f, f2)
	}
	t.Logf("goroutines %d, then %d; descriptors %d, then %d", g, g2, f, f2)
	if row := a.door.row(nodeID); row["state"] != "active" {
		t.Errorf("the row: %v", row)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
