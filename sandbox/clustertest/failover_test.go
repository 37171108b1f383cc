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
	binary := realmongo.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	s, err := realmongo.Start(ctx, realmongo.Options{Binary: binary, Members: 3})
	must.OK(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// settled waits until all members are well and the first one is the primary, as its
// priority makes it.
func settled(t *testing.T, s *realmongo.Set) *realmongo.Member {
	t.Helper()
	first := s.Member(0)
	door := openURI(t, "mongodb://"+first.Addr()+"/?directConnection=true")
	must.Until(t, "the set is well", func() bool {
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

// newPrimary waits for a primary other than the one before, and tells since when.
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

// beatAfter returns when the first beat after a moment was written to a member.
func beatAfter(t *testing.T, m *realmongo.Member, moment time.Time) time.Time {
	t.Helper()
	door := openURI(t, "mongodb://"+m.Addr()+"/?directConnection=true")
	var row struct {
		UpdatedAt time.Time `bson:"updated_at"`
		State     string    `bson:"state"`
	}
	must.Until(t, "a beat", func() bool {
		err := door.nodes().FindOne(t.Context(), bson.M{"_id": nodeID}).Decode(&row)
		return err == nil && row.UpdatedAt.After(moment)
	})
	if row.State != "active" {
		t.Errorf("the row says %s", row.State)
	}
	return row.UpdatedAt
}

// TestRealFailover: whatever becomes of the primary, the daemon does not end, writes heartbeats
// within seven seconds of a new one and 30 of the fault, and the record says what it said.
func TestRealFailover(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	a := newAgentAt(t, s.URI(), s.URI())
	a.start()
	for _, fault := range []struct {
		name string
		harm func(*realmongo.Member) error
		mend func(*realmongo.Member) error
	}{
		{"a hang", (*realmongo.Member).Pause, (*realmongo.Member).Resume},
		{"a kill", (*realmongo.Member).Kill, func(m *realmongo.Member) error { return m.Start(t.Context()) }},
		// The last, since it keeps the first member from being the primary for a minute.
		{"a step down", func(*realmongo.Member) error { return s.StepDown(t.Context()) }, nil},
	} {
		old := settled(t, s)
		a.serves()
		t.Log("settled")
		begin := time.Now()
		must.OK(t, fault.harm(old))
		now, since := newPrimary(t, s, old)
		beat := beatAfter(t, now, since)
		t.Logf("%s: a new primary after %s, the first heartbeat %s later", fault.name, since.Sub(begin).Round(time.Millisecond), beat.Sub(since).Round(time.Millisecond))
		if late := beat.Sub(since); late > 7*time.Second || beat.Sub(begin) > 30*time.Second {
			t.Errorf("%s: the first heartbeat came %s after the new primary; the daemon's log:\n%s", fault.name, late, a.text())
		}
		if fault.mend != nil {
			must.OK(t, fault.mend(old))
		}
	}
	a.serves()
	select {
	case <-a.ended:
		t.Error("the daemon ended")
	default:
	}
	if n := strings.Count(a.text(), "heartbeat failed; heartbeats are dropped"); n > 2 {
		t.Errorf("the log says %d times within a minute that beats are not written", n)
	}
}

// TestRealLostMajority: a write that no majority has is rolled back with the member that took it, and nobody builds on it. A
// write that was acknowledged meanwhile stays.
func TestRealLostMajority(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	c := connect(t, s.URI(), cluster.Options{Timeout: time.Minute})
	_, err := c.Register(t.Context(), node(), cluster.RegisterOptions{})
	must.OK(t, err)
	first := settled(t, s)
	others := slices.DeleteFunc(slices.Clone(s.Members()), func(m *realmongo.Member) bool { return m == first })
	for _, m := range others {
		must.OK(t, m.Kill())
	}
	hasty := connect(t, s.URI(), cluster.Options{Timeout: time.Second})
	if _, err := hasty.AskDrain(t.Context(), node(), cluster.DrainRequest{Reason: "of no majority"}); err == nil {
		t.Error("a single member of three acknowledged a write")
	}
	// It reads while only the first member answers, and writes when there is another primary.
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
	settled(t, s)
	n, err := c.Node(t.Context(), node().ID)
	if err != nil || n.DrainRequest == nil || n.DrainRequest.ID != id || n.Reason != "verified" || n.State != cluster.StateActive {
		t.Errorf("%+v, %v; want the request %s and the state active", n, err, id)
	}
}

// holdingDialer connects, and holds the first write of a record until it is released.
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

// diary writes events one after another and remembers which were acknowledged.
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

// TestRealAcknowledgedStays: what was acknowledged outlasts a primary that dies and a
// majority that is lost. While it is lost nothing is acknowledged, and the daemon goes
// on; its beats flow again when the majority is back.
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

	first := settled(t, s)
	must.OK(t, first.Kill())
	newPrimary(t, s, first)
	more(len(d.acknowledged()) + 20)
	must.OK(t, first.Start(t.Context()))

	first = settled(t, s)
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
		t.Error("the daemon's loop stands still without a primary")
	}
	for _, m := range others {
		must.OK(t, m.Resume())
	}
	now, since := newPrimary(t, s, nil)
	if late := beatAfter(t, now, since).Sub(since); late > 7*time.Second {
		t.Errorf("the first beat came %s after the new primary", late)
	}
	more(lost + 20)
	a.serves()
	cancel()
	work.Wait()

	// The first member becomes the primary again as soon as it can: another election.
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

// TestRealMongoDiskFull: the disk under MongoDB is full, of which it dies. The daemon goes on,
// and beats again once there is room and a MongoDB.
func TestRealMongoDiskFull(t *testing.T) {
	t.Parallel()
	binary := realmongo.Require(t)
	if os.Geteuid() != 0 {
		t.Skip("a small disk is a mount, which only root may make")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=512m"); err != nil {
		t.Skip("no small disk can be made here: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	s, err := realmongo.Start(ctx, realmongo.Options{Binary: binary, Dir: disk})
	must.OK(t, err)
	t.Cleanup(func() { _ = s.Close() })
	a := newAgentAt(t, s.URI(), s.URI())
	a.start()

	// What the node writes takes hours to need more room; others write more.
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
	must.Until(t, "MongoDB takes no more, beats neither", func() bool {
		_ = write()
		return strings.Contains(a.text(), "heartbeat failed; heartbeats are dropped")
	})
	a.roundsGoOn(5)

	must.OK(t, os.Remove(filler))
	since := time.Now()
	must.Until(t, "MongoDB runs again", func() bool {
		_ = s.Member(0).Start(t.Context()) // an error where it has not ended yet
		is, err := s.Member(0).IsPrimary(t.Context())
		return err == nil && is
	})
	beatAfter(t, s.Member(0), since)
	a.serves()
}

// fill writes to a file until the disk takes no more.
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

// TestRealNoAcknowledgement: the primary takes writes that no majority acknowledges, as
// where a member of three is down and another one far behind. A daemon that is started
// then beats, and is ready.
func TestRealNoAcknowledgement(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	a := newAgentAt(t, s.URI(), s.URI())
	a.start()
	a.end()
	first := settled(t, s)
	var unlock []func()
	for _, m := range s.Members() {
		if m == first {
			continue
		}
		admin := openURI(t, "mongodb://"+m.Addr()+"/?directConnection=true").Database("admin")
		// A secondary that is locked answers, and takes nothing up.
		must.OK(t, admin.RunCommand(t.Context(), bson.D{{Key: "fsync", Value: 1}, {Key: "lock", Value: true}}).Err())
		unlock = append(unlock, func() {
			if err := admin.RunCommand(t.Context(), bson.D{{Key: "fsyncUnlock", Value: 1}}).Err(); err != nil {
				t.Error(err)
			}
		})
	}
	from := time.Now()
	a.start()
	beat := beatAfter(t, first, from)
	t.Logf("the first beat came after %s", beat.Sub(from).Round(time.Millisecond))
	if n := strings.Count(a.text(), "the registry could not be told yet"); n == 0 {
		t.Error("a majority acknowledges")
	}
	for _, f := range unlock {
		f()
	}
	a.serves()
}

// TestRealLeaveOutlastsElection: the primary dies as a leave begins, and the leave is whole
// all the same.
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
	if row := a.door.row(nodeID); row["state"] != "left" {
		t.Errorf("the row says %v", row["state"])
	}
	// Both documents of this address: the server's, and one that a card of before left.
	if n := a.door.count(a.door.ams(), bson.M{}); n != 0 || len(res.Deregistered) != 2 {
		t.Errorf("%d documents of Ant Media Server are left; removed: %v", n, res.Deregistered)
	}
}

// TestRealJoinOutlastsHang: the primary hangs while a join waits for the applications, and
// the join is whole all the same, one that changes nothing and one that joins anew.
func TestRealJoinOutlastsHang(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	a := newAgentAt(t, s.URI(), s.URI())
	a.machine.Connect = func(ctx context.Context, to cluster.Target) (*cluster.Client, error) {
		return cluster.Connect(ctx, to, cluster.Options{}) // as commands do
	}
	for _, anew := range []bool{false, true} {
		if anew {
			if _, err := a.machine.Leave(t.Context(), bootstrap.LeaveRequest{Mongo: a.client.Target(), Now: true}); err != nil {
				t.Fatal(err)
			}
		}
		primary, err := s.Primary(t.Context())
		must.OK(t, err)
		hangs := &hangingAt{then: sync.OnceValue(primary.Pause)}
		a.machine.HTTP = &http.Client{Transport: hangs}
		res, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify})
		if err != nil {
			t.Fatalf("anew %v: %v (%+v)", anew, err, res)
		}
		if !hangs.asked.Load() {
			t.Error("the applications were not asked")
		}
		if row := a.door.row(nodeID); row["state"] != "active" {
			t.Errorf("anew %v: the row says %v", anew, row["state"])
		}
		must.OK(t, primary.Resume())
		newPrimary(t, s, primary)
	}
}

// hangingAt lets something happen at the first question to an application.
type hangingAt struct {
	then  func() error
	asked atomic.Bool
}

func (h *hangingAt) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.Contains(r.URL.Path, "amsagent-readiness") {
		h.asked.Store(true)
		if err := h.then(); err != nil {
			return nil, err
		}
	}
	return http.DefaultTransport.RoundTrip(r)
}

// TestRealOneMemberNamed: an address that names one member of a set is used as AMS uses it, with a warning; once another
// member is the primary, each call fails with an error that says to name the set.
func TestRealOneMemberNamed(t *testing.T) {
	t.Parallel()
	s := realSet(t)
	first, err := s.Primary(t.Context())
	must.OK(t, err)
	a := newAgentAt(t, "mongodb://"+first.Addr()+"/", s.URI())
	a.start()
	f, err := a.client.ServerFacts(t.Context())
	if err != nil || !f.OneNamed || f.Members != 3 {
		t.Errorf("%+v, %v", f, err)
	}
	if set, hosts, one := a.client.OneNamed(); !one || set != realmongo.SetName || len(hosts) != 3 {
		t.Errorf("%s, %v, %v", set, hosts, one)
	}
	res, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify})
	if err != nil || !slices.ContainsFunc(res.Warnings, func(f bootstrap.Finding) bool {
		return f.ID == bootstrap.IDMongoMember && strings.Contains(f.Hint, "replicaSet=rs0")
	}) {
		t.Errorf("a join does not warn: %+v, %v", res, err)
	}
	checks := doctor.Run(t.Context(), doctor.Options{Machine: a.machine, Join: bootstrap.JoinRequest{Mongo: a.client.Target(), Identify: a.o.Identify}})
	if !slices.ContainsFunc(checks, func(r doctor.Result) bool {
		return r.ID == bootstrap.IDMongoMember && r.Verdict == doctor.Warning && strings.Contains(r.Hint, "replicaSet=rs0")
	}) {
		t.Errorf("doctor does not warn: %+v", checks)
	}
	all := connect(t, s.URI(), cluster.Options{})
	if f, err := all.ServerFacts(t.Context()); err != nil || f.OneNamed {
		t.Errorf("with all named: %+v, %v", f, err)
	}
	must.OK(t, s.StepDown(t.Context()))
	second, _ := newPrimary(t, s, first)
	// Neither the daemon nor a new client goes on with a member that takes no writes, and each says what to do.
	c := connect(t, "mongodb://"+first.Addr()+"/", cluster.Options{})
	for _, client := range []*cluster.Client{a.client, c} {
		must.Until(t, "the set has to be named", func() bool {
			_, err := client.Nodes(t.Context())
			return cluster.KindOf(err) == cluster.KindNotPrimary && strings.Contains(err.Error(), "/?replicaSet="+realmongo.SetName)
		})
	}
	if err := c.CheckAccess(t.Context()); cluster.KindOf(err) != cluster.KindNotPrimary {
		t.Errorf("a member that is not the primary takes writes: %v", err)
	}
	must.Until(t, "the daemon says it", func() bool { return strings.Contains(a.text(), "name the set: mongodb://") })
	// Who asks for one member gets it.
	third := connect(t, "mongodb://"+second.Addr()+"/?directConnection=true", cluster.Options{})
	if f, err := third.ServerFacts(t.Context()); err != nil || f.OneNamed {
		t.Errorf("%+v, %v", f, err)
	}
}
