// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package clustertest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// realSet starts a replica set of three real servers.
func realSet(t *testing.T) *realmongo.Set {
	t.Helper()
	return startReal(t, realmongo.Options{Members: 3})
}

// waitHealthy waits until all members are healthy and the first one is the primary, which has the highest priority.
func waitHealthy(t *testing.T, s *realmongo.Set) *realmongo.Member {
	t.Helper()
	first := s.Member(0)
	door := openURI(t, "mongodb://"+first.Addr()+"/?directConnection=true")
	must.Until(t, "the set is healthy", func() bool {
		var status struct {
			Members []struct {
				State int `bson:"state"`
			} `bson:"members"`
		}
		if err := door.Database("admin").RunCommand(t.Context(), bson.D{{Key: "replSetGetStatus", Value: 1}}).Decode(&status); err != nil {
			return false
		}
		for i, m := range status.Members {
			if i == 0 && m.State != 1 || i > 0 && m.State != 2 {
				return false
			}
		}
		return true
	})
	return first
}

// newPrimary waits for a primary other than the old one, and returns it with the time.
func newPrimary(t *testing.T, s *realmongo.Set, old *realmongo.Member) (*realmongo.Member, time.Time) {
	t.Helper()
	var now *realmongo.Member
	must.Until(t, "another member is the primary", func() bool {
		for _, m := range s.Members() {
			if m == old {
				continue
			}
			if is, err := m.IsPrimary(t.Context()); err == nil && is {
				now = m
				return true
			}
		}
		return false
	})
	return now, time.Now()
}

// heartbeatAfter waits for a heartbeat on a member that was written after a moment, and returns its time.
func heartbeatAfter(t *testing.T, m *realmongo.Member, moment time.Time) time.Time {
	t.Helper()
	door := openURI(t, "mongodb://"+m.Addr()+"/?directConnection=true")
	var record struct {
		UpdatedAt time.Time `bson:"updated_at"`
		State     string    `bson:"state"`
	}
	must.Until(t, "a heartbeat", func() bool {
		err := door.nodes().FindOne(t.Context(), bson.M{"_id": nodeID}).Decode(&record)
		return err == nil && record.UpdatedAt.After(moment)
	})
	if record.State != "active" {
		t.Errorf("the state is %s", record.State)
	}
	return record.UpdatedAt
}

// TestRealFailover: after any fault of the primary, the daemon continues, writes heartbeats within 7 s after the election and
// 30 s after the fault, and the record keeps its state.
func TestRealFailover(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	a := newAgentAt(t, s.URI(), s.URI())
	a.start()
	for _, fault := range []struct {
		name   string
		harm   func(*realmongo.Member) error
		repair func(*realmongo.Member) error
	}{
		{"a hang", (*realmongo.Member).Pause, (*realmongo.Member).Resume},
		{"a kill", (*realmongo.Member).Kill, func(m *realmongo.Member) error { return m.Start(t.Context()) }},
		// The last one: the first member cannot be the primary for a minute after it.
		{"a step down", func(*realmongo.Member) error { return s.StepDown(t.Context()) }, nil},
	} {
		old := waitHealthy(t, s)
		a.serves()
		t.Log("the set is healthy")
		begin := time.Now()
		must.OK(t, fault.harm(old))
		now, since := newPrimary(t, s, old)
		first := heartbeatAfter(t, now, since)
		t.Logf("%s: a new primary after %s, the first heartbeat %s later", fault.name, since.Sub(begin).Round(time.Millisecond), first.Sub(since).Round(time.Millisecond))
		if late := first.Sub(since); late > 7*time.Second || first.Sub(begin) > 30*time.Second {
			t.Errorf("%s: the first heartbeat came %s after the new primary; the daemon's log:\n%s", fault.name, late, a.text())
		}
		if fault.repair != nil {
			must.OK(t, fault.repair(old))
		}
	}
	a.serves()
	select {
	case <-a.ended:
		t.Error("the daemon ended")
	default:
	}
	if n := strings.Count(a.text(), "heartbeats are dropped until"); n > 2 {
		t.Errorf("the log has %d lines about lost heartbeats within a minute", n)
	}
}

// TestRealLostMajority: a write without a majority is rolled back, and no later write is based on it. A write that was
// acknowledged meanwhile stays.
func TestRealLostMajority(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	c := connect(t, s.URI(), cluster.Options{Timeout: time.Minute})
	_, err := c.Register(t.Context(), node(), cluster.RegisterOptions{})
	must.OK(t, err)
	first := waitHealthy(t, s)
	others := slices.DeleteFunc(slices.Clone(s.Members()), func(m *realmongo.Member) bool { return m == first })
	for _, m := range others {
		must.OK(t, m.Kill())
	}
	hasty := connect(t, s.URI(), cluster.Options{Timeout: time.Second})
	if _, err := hasty.AskDrain(t.Context(), node(), cluster.DrainRequest{Reason: "of no majority"}); err == nil {
		t.Error("a single member of three acknowledged a write")
	}
	// late reads while only the first member answers, and writes when another member is the primary.
	door := &holdingDialer{held: make(chan struct{}), release: make(chan struct{})}
	late := connect(t, s.URI(), cluster.Options{Timeout: time.Minute, Dialer: door})
	writes := make(chan error, 1)
	go func() {
		writes <- late.SetOwnState(context.WithoutCancel(t.Context()), node(), cluster.StateActive, "verified", cluster.Details{})
	}()
	<-door.held
	must.OK(t, first.Kill())
	for _, m := range others {
		must.OK(t, m.Start(t.Context()))
	}
	newPrimary(t, s, first)
	id, err := connect(t, s.URI(), cluster.Options{Timeout: time.Minute}).AskDrain(t.Context(), node(), cluster.DrainRequest{Reason: "acknowledged"})
	must.OK(t, err)
	close(door.release)
	must.OK(t, <-writes)
	must.OK(t, first.Start(t.Context()))
	waitHealthy(t, s)
	n, err := c.Node(t.Context(), node().ID)
	if err != nil || n.DrainRequest == nil || n.DrainRequest.ID != id || n.Reason != "verified" || n.State != cluster.StateActive {
		t.Errorf("%+v, %v; want the request %s and the state active", n, err, id)
	}
}

// holdingDialer holds back the first write of a record until it is released.
type holdingDialer struct {
	once          sync.Once
	held, release chan struct{}
}

func (d *holdingDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	return &holdingConn{c, d}, err
}

type holdingConn struct {
	net.Conn
	d *holdingDialer
}

func (c *holdingConn) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("findAndModify")) {
		c.d.once.Do(func() {
			close(c.d.held)
			<-c.d.release
		})
	}
	return c.Conn.Write(p)
}

// diary writes events and records which were acknowledged.
type diary struct {
	mu  sync.Mutex
	has []string
}

func (d *diary) write(ctx context.Context, c *cluster.Client) {
	for i := 0; ctx.Err() == nil; i++ {
		kind := strconv.Itoa(i)
		if err := c.AddEvent(ctx, cluster.Event{Node: "the diary", Kind: kind}); err == nil {
			d.mu.Lock()
			d.has = append(d.has, kind)
			d.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (d *diary) acknowledged() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.has)
}

// TestRealAcknowledgedStays: acknowledged events survive the death of a primary and the loss of the majority. Without a
// majority, no event is acknowledged, and the daemon continues; its heartbeats are written again when the majority is back.
func TestRealAcknowledgedStays(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	a := newAgentAt(t, s.URI(), s.URI())
	a.start()
	var d diary
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	work.Go(func() { d.write(ctx, connect(t, s.URI(), cluster.Options{Timeout: 2 * time.Second})) })
	defer work.Wait()
	defer cancel()
	more := func(n int) {
		t.Helper()
		must.Until(t, "more is acknowledged", func() bool { return len(d.acknowledged()) >= n })
	}
	more(20)

	first := waitHealthy(t, s)
	must.OK(t, first.Kill())
	newPrimary(t, s, first)
	more(len(d.acknowledged()) + 20)
	must.OK(t, first.Start(t.Context()))

	first = waitHealthy(t, s)
	others := slices.DeleteFunc(slices.Clone(s.Members()), func(m *realmongo.Member) bool { return m == first })
	for _, m := range others {
		must.OK(t, m.Pause())
	}
	must.Until(t, "there is no primary", func() bool {
		is, err := first.IsPrimary(t.Context())
		return err == nil && !is
	})
	lost := len(d.acknowledged())
	rounds := a.rounds()
	<-time.After(3 * time.Second)
	if n := len(d.acknowledged()); n != lost {
		t.Errorf("without a majority %d more were acknowledged", n-lost)
	}
	if a.rounds() == rounds {
		t.Error("the daemon's loop stops without a primary")
	}
	for _, m := range others {
		must.OK(t, m.Resume())
	}
	now, since := newPrimary(t, s, nil)
	if late := heartbeatAfter(t, now, since).Sub(since); late > 7*time.Second {
		t.Errorf("the first heartbeat came %s after the new primary", late)
	}
	more(lost + 20)
	a.serves()
	cancel()
	work.Wait()

	// The first member becomes the primary again as soon as possible: another election.
	var events []cluster.PastEvent
	must.Until(t, "the diary can be read", func() bool {
		var err error
		events, err = a.client.Events(t.Context(), cluster.EventQuery{Nodes: []string{"the diary"}, Limit: 100_000})
		return err == nil
	})
	there := map[string]bool{}
	for _, e := range events {
		there[e.Kind] = true
	}
	all := d.acknowledged()
	t.Logf("%d events were acknowledged", len(all))
	for _, kind := range all {
		if !there[kind] {
			t.Errorf("event %s was acknowledged and is not there", kind)
		}
	}
}

// TestRealMongoDiskFull: MongoDB's disk is full, and MongoDB ends. The daemon continues, and writes heartbeats again once
// MongoDB is back.
func TestRealMongoDiskFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=512m"); err != nil {
		t.Skip("mounting a small disk failed: ", err)
	}
	t.Cleanup(func() { must.OK(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	s := startReal(t, realmongo.Options{Dir: disk})
	a := newAgentAt(t, s.URI(), s.URI())
	a.start()

	// The node alone would take hours to fill the disk.
	blocks := a.door.Database("other").Collection("blocks")
	write := func() error {
		bound, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := blocks.InsertOne(bound, bson.M{"text": strings.Repeat("0123456789abcdef", 1<<16)})
		return err
	}
	must.OK(t, write())
	filler := filepath.Join(disk, "filler")
	if err := fill(filler); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	must.Until(t, "MongoDB accepts no writes and no heartbeats", func() bool {
		_ = write()
		return strings.Contains(a.text(), "heartbeats are dropped until")
	})
	a.roundsGoOn(5)

	must.OK(t, os.Remove(filler))
	since := time.Now()
	must.Until(t, "MongoDB runs again", func() bool {
		_ = s.Member(0).Start(t.Context()) // fails until the old process has ended
		is, err := s.Member(0).IsPrimary(t.Context())
		return err == nil && is
	})
	heartbeatAfter(t, s.Member(0), since)
	a.serves()
}

// fill writes to a file until the disk is full.
func fill(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
}

// TestRealNoAcknowledgement: no majority acknowledges the primary's writes, for example if one member of three is down and
// another one far behind. A daemon that starts then writes heartbeats. Its record may be joining: a second registration reads
// what a majority has. It is active once a majority acknowledges.
func TestRealNoAcknowledgement(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	a := newAgentAt(t, s.URI(), s.URI())
	a.start()
	a.end()
	// Only the primary has the new registration.
	_, err := a.door.nodes().DeleteOne(t.Context(), bson.M{"_id": nodeID})
	must.OK(t, err)
	first := waitHealthy(t, s)
	var unlock []func()
	for _, m := range s.Members() {
		if m == first {
			continue
		}
		admin := openURI(t, "mongodb://"+m.Addr()+"/?directConnection=true").Database("admin")
		// A locked secondary answers, but applies no writes.
		must.OK(t, admin.RunCommand(t.Context(), bson.D{{Key: "fsync", Value: 1}, {Key: "lock", Value: true}}).Err())
		unlock = append(unlock, func() {
			if err := admin.RunCommand(t.Context(), bson.D{{Key: "fsyncUnlock", Value: 1}}).Err(); err != nil {
				t.Error(err)
			}
		})
	}
	from := time.Now()
	a.begin()
	must.Until(t, "the daemon writes heartbeats", func() bool { return strings.Contains(a.status(), lastHeartbeat) })
	t.Logf("the first heartbeat came after %s", heartbeatAfter(t, first, from).Sub(from).Round(time.Millisecond))
	door := openURI(t, "mongodb://"+first.Addr()+"/?directConnection=true")
	must.Until(t, "a heartbeat in the new record", func() bool { return door.record(nodeID)["heartbeat"] != nil })
	if n := strings.Count(a.text(), "updating the registry failed"); n == 0 {
		t.Error("a majority acknowledges")
	}
	for _, f := range unlock {
		f()
	}
	a.serves()
}

// TestRealLeaveOutlastsElection: the primary dies as a leave begins, and the leave completes.
func TestRealLeaveOutlastsElection(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	a := newAgentAt(t, s.URI(), s.URI())
	a.door.write("second-card", own, time.Now().Add(-time.Hour))
	primary, err := s.Primary(t.Context())
	must.OK(t, err)
	must.OK(t, primary.Kill())
	res, err := a.machine.Leave(t.Context(), bootstrap.LeaveRequest{Mongo: a.client.Target(), Now: true})
	if err != nil {
		t.Fatalf("%v (%+v)", err, res)
	}
	if record := a.door.record(nodeID); record["state"] != "left" {
		t.Errorf("the state is %v", record["state"])
	}
	// Both documents of this address: the server's, and one of an earlier process.
	if n := a.door.count(a.door.ams(), bson.M{}); n != 0 || len(res.Deregistered) != 2 {
		t.Errorf("%d documents of Ant Media Server are left; removed: %v", n, res.Deregistered)
	}
}

// TestRealJoinOutlastsHang: the primary hangs while a join waits for the applications, and the join completes, with and without
// changes.
func TestRealJoinOutlastsHang(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	a := newAgentAt(t, s.URI(), s.URI())
	a.machine.Connect = func(ctx context.Context, to cluster.Target) (*cluster.Client, error) {
		return cluster.Connect(ctx, to, cluster.Options{}) // as commands do
	}
	for _, changes := range []bool{false, true} {
		if changes {
			if _, err := a.machine.Leave(t.Context(), bootstrap.LeaveRequest{Mongo: a.client.Target(), Now: true}); err != nil {
				t.Fatal(err)
			}
		}
		primary, err := s.Primary(t.Context())
		must.OK(t, err)
		var asked atomic.Bool
		hang := sync.OnceValue(primary.Pause)
		a.machine.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if strings.Contains(r.URL.Path, "amsagent-readiness") { // to an application
				asked.Store(true)
				if err := hang(); err != nil {
					return nil, err
				}
			}
			return http.DefaultTransport.RoundTrip(r)
		})}
		res, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify})
		if err != nil {
			t.Fatalf("changes %v: %v (%+v)", changes, err, res)
		}
		if !asked.Load() {
			t.Error("the applications were not asked")
		}
		if record := a.door.record(nodeID); record["state"] != "active" {
			t.Errorf("changes %v: the state is %v", changes, record["state"])
		}
		must.OK(t, primary.Resume())
		newPrimary(t, s, primary)
	}
}

// TestRealOneMemberNamed: an address that names one member of a set is used as AMS uses it, with a warning. Once another
// member is the primary, each call fails with an error that hints at naming the set.
func TestRealOneMemberNamed(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	first, err := s.Primary(t.Context())
	must.OK(t, err)
	a := newAgentAt(t, "mongodb://"+first.Addr()+"/", s.URI())
	a.start()
	if set := a.client.ReplicaSet(); !set.OneNamed || set.Name != realmongo.SetName || len(set.Hosts) != 3 {
		t.Errorf("%+v", set)
	}
	res, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify})
	if err != nil || !slices.ContainsFunc(res.Warnings, func(f bootstrap.Finding) bool {
		return f.ID == bootstrap.IDMongoMember && strings.Contains(f.Hint, "replicaSet=rs0")
	}) {
		t.Errorf("a join does not warn: %+v, %v", res, err)
	}
	checks := doctor.Run(t.Context(), doctor.Options{Machine: a.machine, Join: bootstrap.JoinRequest{Mongo: a.client.Target(), Identify: a.o.Identify}})
	if !slices.ContainsFunc(checks, func(r doctor.Result) bool {
		return r.ID == bootstrap.IDMongoMember && r.Severity == bootstrap.Warning && strings.Contains(r.Hint, "replicaSet=rs0")
	}) {
		t.Errorf("doctor does not warn: %+v", checks)
	}
	all := connect(t, s.URI(), cluster.Options{})
	must.OK(t, all.Ping(t.Context()))
	if set := all.ReplicaSet(); set.OneNamed || set.Name != realmongo.SetName {
		t.Errorf("with all members named: %+v", set)
	}
	must.OK(t, s.StepDown(t.Context()))
	second, _ := newPrimary(t, s, first)
	// Neither the daemon nor a new client uses a member that takes no writes.
	c := connect(t, "mongodb://"+first.Addr()+"/", cluster.Options{})
	for _, client := range []*cluster.Client{a.client, c} {
		must.Until(t, "the set has to be named", func() bool {
			_, err := client.Nodes(t.Context())
			return cluster.KindOf(err) == cluster.KindNotPrimary && strings.Contains(err.Error(), "/?replicaSet="+realmongo.SetName)
		})
	}
	if err := c.CheckAccess(t.Context()); cluster.KindOf(err) != cluster.KindNotPrimary {
		t.Errorf("a member that is not the primary accepts writes: %v", err)
	}
	must.Until(t, "the daemon logs it", func() bool { return strings.Contains(a.text(), "name the set: mongodb://") })
	// directConnection selects one member.
	third := connect(t, "mongodb://"+second.Addr()+"/?directConnection=true", cluster.Options{})
	must.OK(t, third.Ping(t.Context()))
	if set := third.ReplicaSet(); set.OneNamed || set.Name != realmongo.SetName {
		t.Errorf("%+v", set)
	}
}
