// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

// other returns another machine with the id of node(): it runs from a copy of its disk.
func other() cluster.Node {
	n := node()
	n.IP, n.BootID, n.Hostname = "10.0.0.77", "boot-of-the-copy", "copy"
	return n
}

func isOther(err error) bool {
	_, ok := errors.AsType[*cluster.OtherMachineError](err)
	return ok
}

// Of two live machines with one id, the second one's registration, heartbeat and state do not change the record, and fail with
// an [cluster.OtherMachineError].
func TestOneRowOneMachine(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	b, c := open(t, s), connect(t, s.URI(), cluster.Options{})
	first, copied := node(), other()
	heartbeat := func(n cluster.Node, seq int64) error {
		return c.Heartbeat(t.Context(), n, cluster.Heartbeat{Seq: seq})
	}
	unchanged := func(what string, err error, was bson.M) {
		t.Helper()
		if !isOther(err) {
			t.Errorf("%s: %v", what, err)
		}
		must.NoDiff(t, what+" changed the record", b.record(first.ID), was)
	}

	register(t, c, first)
	must.OK(t, heartbeat(first, 1))
	was := b.record(first.ID)
	_, err := c.Register(t.Context(), copied, cluster.RegisterOptions{})
	unchanged("the registration of the copy", err, was)
	if text := err.Error(); !strings.Contains(text, own) || !strings.Contains(text, first.ID) {
		t.Errorf("the error does not name the other machine: %v", err)
	}
	unchanged("its heartbeat", heartbeat(copied, 7), was)
	unchanged("its leave", c.SetOwnState(t.Context(), copied, cluster.StateLeft, "shutdown", cluster.Details{}), was)
	unchanged("its end", c.SetOwnState(t.Context(), copied, cluster.StateLeft, "shutdown", cluster.Details{Cut: num(3)}), was)

	// An operator replaces the record. Now the first machine is refused.
	if r, err := c.Register(t.Context(), copied, cluster.RegisterOptions{Replace: true}); err != nil || r.IP != copied.IP {
		t.Fatalf("taking over: %+v, %v", r, err)
	}
	must.OK(t, heartbeat(copied, 1))
	was = b.record(first.ID)
	unchanged("a heartbeat of the first", heartbeat(first, 2), was)
	unchanged("a drain of the first", c.SetOwnState(t.Context(), first, cluster.StateDraining, "drain", cluster.Details{}), was)
	_, err = c.Register(t.Context(), first, cluster.RegisterOptions{GiveWay: true})
	unchanged("a registration of the first", err, was)

	// After two silent intervals and a second, the record is free.
	_, err = b.nodes().UpdateOne(t.Context(), bson.M{"_id": first.ID}, bson.M{"$set": bson.M{"updated_at": time.Now().Add(-12 * time.Second)}})
	must.OK(t, err)
	if _, err := c.Register(t.Context(), first, cluster.RegisterOptions{GiveWay: true}); err != nil {
		t.Errorf("the copy is silent: %v", err)
	}
	must.OK(t, heartbeat(first, 3))
}

// A registration does not change the record if another machine writes it between the registration's read and its write.
func TestTakenWhileRegistering(t *testing.T) {
	t.Parallel()
	for name, registered := range map[string]bool{"again": true, "for the first time": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, mongod.Options{})
			b := open(t, s)
			c, copied := connect(t, s.URI(), cluster.Options{Timeout: time.Minute}), connect(t, s.URI(), cluster.Options{})
			n := node()
			if registered {
				register(t, c, n)
			}
			pass(t, c)
			fault(t, s, mongod.Fault{Mode: mongod.Delay, Delay: time.Minute, Commands: []string{"findAndModify"}, Times: 1})
			done := make(chan error, 1)
			go func() {
				_, err := c.Register(t.Context(), n, cluster.RegisterOptions{})
				done <- err
			}()
			must.Until(t, "the write is held back", func() bool { return s.Faults().Current().Mode == mongod.None })
			o := other()
			o.Interval = seconds.Duration(time.Minute)
			_, err := copied.Register(t.Context(), o, cluster.RegisterOptions{Replace: true})
			must.OK(t, err)
			was := b.record(n.ID)
			s.Faults().Clear()
			if err := <-done; !isOther(err) {
				t.Errorf("the registration: %v", err)
			}
			must.NoDiff(t, "it wrote over the other's record", b.record(n.ID), was)
		})
	}
}

// TestNextBootWaits: a boot that writes without a person's word waits until the record of the boot before is silent.
func TestNextBootWaits(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	b, c := open(t, s), connect(t, s.URI(), cluster.Options{})
	for what, write := range map[string]func(cluster.Node) error{
		"a registration": func(n cluster.Node) error {
			_, err := c.Register(t.Context(), n, cluster.RegisterOptions{Waits: true})
			return err
		},
		"a state": func(n cluster.Node) error {
			return c.SetOwnState(t.Context(), n, cluster.StateActive, "run", cluster.Details{})
		},
	} {
		first := node()
		first.ID, first.Interval = what, seconds.Duration(time.Minute)
		register(t, c, first)
		was, next := b.record(what), first
		next.BootID = "boot-2"
		if err := write(next); !isOther(err) {
			t.Errorf("%s over a fresh record: %v", what, err)
		}
		must.NoDiff(t, what+" changed a fresh record", b.record(what), was)
		_, err := b.nodes().UpdateOne(t.Context(), bson.M{"_id": what}, bson.M{"$set": bson.M{"updated_at": time.Now().Add(-122 * time.Second)}})
		must.OK(t, err)
		must.Equal(t, what+" over a silent record", write(next), nil)
	}
}

// The same machine is not refused: after a reset only the boot differs, after a move only the address, and a node that has left
// does not use its record.
func TestOwnRowAfterAChange(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	c := connect(t, s.URI(), cluster.Options{})
	for name, change := range map[string]func(before, now *cluster.Node){
		"a reset":       func(_, now *cluster.Node) { now.BootID = "boot-2" },
		"a move":        func(_, now *cluster.Node) { now.IP = "10.0.0.99" },
		"after a leave": func(before, now *cluster.Node) { *now = other(); now.ID, before.State = before.ID, cluster.StateLeft },
		"no heartbeat":  func(before, now *cluster.Node) { *now = other(); now.ID, before.Interval = before.ID, 0 },
		"a join that failed": func(before, now *cluster.Node) {
			*now = other()
			now.ID, before.State = before.ID, cluster.StateFailed
		},
	} {
		before := node()
		before.ID = name
		now := before
		change(&before, &now)
		register(t, c, before)
		if r, err := c.Register(t.Context(), now, cluster.RegisterOptions{}); err != nil || r.IP != now.IP {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// A node that has left and joins again in the same boot has no heartbeat yet: readers wait for its first one.
func TestJoinAfterLeaveForgetsBeats(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	b, c := open(t, s), connect(t, s.URI(), cluster.Options{})
	n := node()
	register(t, c, n)
	err := c.Heartbeat(t.Context(), n, cluster.Heartbeat{
		Seq: 42, Clock: (*seconds.Duration)(num(time.Second)),
		Load: &cluster.Load{CPU: num(83), GPUs: []cluster.GPULoad{{Name: "A10G"}}}, Sessions: &cluster.Sessions{Viewers: num(7)},
	})
	must.OK(t, err)
	must.OK(t, c.SetOwnState(t.Context(), n, cluster.StateLeft, "scale-in", cluster.Details{Cut: num(2)}))
	n.Interval = 0
	again := register(t, c, n)
	if again.Heartbeats() || again.Load != nil || again.Sessions != nil || again.Clock != nil || again.Cut != nil {
		t.Errorf("the record has the old heartbeat: %+v", again)
	}
	must.Equal(t, "state", again.State, cluster.StateJoining)
	if _, there := b.record(n.ID)["left_at"]; there {
		t.Error("left_at is still there")
	}
}

// boot writes the boot id of a machine below a root.
func boot(t *testing.T, root, id string) {
	t.Helper()
	file := filepath.Join(root, "proc/sys/kernel/random/boot_id")
	must.OK(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must.OK(t, os.WriteFile(file, []byte(id+"\n"), 0o644))
}

// hardware writes the firmware's id of the machine.
func (a *agent) hardware(id string) {
	a.t.Helper()
	file := filepath.Join(a.root, "sys/class/dmi/id/product_uuid")
	must.OK(a.t, os.MkdirAll(filepath.Dir(file), 0o755))
	must.OK(a.t, os.WriteFile(file, []byte(id+"\n"), 0o600))
}

const otherHardware = "3f1c0a52-7d5e-4c0b-9f43-6a1d2e8b7c90"

// silent makes the record as old as if its machine had been silent for so long, and that machine's interval short.
func (a *agent) silent(d time.Duration) {
	a.t.Helper()
	_, err := a.door.nodes().UpdateOne(a.t.Context(), bson.M{"_id": nodeID}, bson.M{"$set": bson.M{"updated_at": time.Now().Add(-d), "interval_ns": int64(1)}})
	must.OK(a.t, err)
}

// drain asks the daemon to drain.
func (a *agent) drain(request string) {
	a.t.Helper()
	var v lifecycle.View
	a.control(http.MethodPost, daemon.PathDrain, request, &v)
}

// alive makes the record one that the machine of boot-1 writes: for an hour, it is not silent.
func (a *agent) alive(n cluster.Node) bson.M {
	a.t.Helper()
	n.ID, n.State, n.Interval = nodeID, cluster.StateActive, seconds.Duration(5*time.Minute)
	_, err := a.client.Register(a.t.Context(), n, cluster.RegisterOptions{Replace: true})
	must.OK(a.t, err)
	must.OK(a.t, a.client.Heartbeat(a.t.Context(), n, cluster.Heartbeat{Seq: 7}))
	return a.door.record(nodeID)
}

// A leave and a stop soon after a reboot do not leave the record active: they wait until the former boot is silent.
func TestLeaveAfterAReboot(t *testing.T) {
	t.Parallel()
	for what, leave := range map[string]func(*agent) error{
		"leave": func(a *agent) error {
			_, err := a.machine.Leave(t.Context(), bootstrap.LeaveRequest{Mongo: a.client.Target(), Now: true})
			return err
		},
		"deregister": func(a *agent) error {
			must.OK(t, a.svc.Stop(t.Context()))
			_, err := a.machine.Deregister(t.Context(), bootstrap.DeregisterRequest{Mongo: a.client.Target(), Reason: "stop"})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			a := newAgent(t)
			boot(t, a.root, "boot-2")
			n := cluster.Node{ID: nodeID, IP: own, BootID: "boot-1", State: cluster.StateActive, Interval: seconds.Duration(time.Millisecond)}
			_, err := a.client.Register(t.Context(), n, cluster.RegisterOptions{Replace: true})
			must.OK(t, err)
			must.OK(t, a.client.Heartbeat(t.Context(), n, cluster.Heartbeat{Seq: 7}))
			must.OK(t, leave(a))
			must.Equal[any](t, "the record", a.door.record(nodeID)["state"], string(cluster.StateLeft))
		})
	}
}

// TestDaemonOnACopiedDisk: a copy of a node's disk boots on other hardware while the metadata are silent. It does
// not register, is not ready and drains alone, until the metadata name it. The status shows why.
func TestDaemonOnACopiedDisk(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	was := a.alive(cluster.Node{IP: own, BootID: "boot-1", Port: 5080})
	var answer atomic.Pointer[metadata.Instance]
	a.o.Identify = func(context.Context) (metadata.Instance, error) {
		if i := answer.Load(); i != nil {
			return *i, nil
		}
		return metadata.Instance{}, errors.New("HTTP 500")
	}
	boot(t, a.root, "boot-2")
	a.hardware(otherHardware)
	a.begin()
	must.Until(t, "the status shows why", func() bool { return strings.Contains(a.view().Trouble, "other hardware than "+nodeID) })
	a.drain(`{"now":true}`)
	must.Until(t, "the copy has drained", func() bool { return a.view().Lifecycle.Step == lifecycle.StepDone })
	if v := a.view(); v.Ready || v.State != "" {
		t.Errorf("ready %t, record %q", v.Ready, v.State)
	}
	must.NoDiff(t, "the copy changed the record of the original", a.door.record(nodeID), was)
	a.end()

	// It is the same machine, after a move: the metadata say so. The record is of its former boot.
	must.OK(t, os.Remove(filepath.Join(a.root, bootstrap.StateDir, "drain.json")))
	must.OK(t, a.svc.Start(t.Context()))
	answer.Store(&metadata.Instance{ID: nodeID, Provider: "aws", Address: netip.MustParseAddr(own)})
	a.begin()
	must.Until(t, "the status shows that the record is fresh", func() bool { return strings.Contains(a.status(), "uses this node's record") })
	must.NoDiff(t, "the next boot changed a fresh record", a.door.record(nodeID), was)
	a.silent(11 * time.Minute)
	a.serves()
}

// TestDaemonOnOtherHardware: without metadata, a machine on other hardware takes the record once it is silent, with an event.
func TestDaemonOnOtherHardware(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.alive(cluster.Node{IP: own, BootID: "boot-1", Port: 5080})
	boot(t, a.root, "boot-2")
	a.hardware(otherHardware)
	a.begin()
	must.Until(t, "the status shows that the record is fresh", func() bool { return strings.Contains(a.status(), "uses this node's record") })
	a.silent(11 * time.Minute)
	a.serves()
	events := func() int {
		return a.door.count(a.door.Database("amsagent").Collection("events"), bson.M{"node": nodeID, "kind": "hardware"})
	}
	must.Until(t, "an event of it", func() bool { return events() == 1 })
	must.Until(t, "the hardware is the node's", func() bool {
		s, err := a.machine.StateFile()
		return err == nil && s.Hardware == otherHardware
	})
	a.end()
	a.start()
	must.Equal(t, "events", events(), 1)
	// A person knows: a join takes the next hardware at once.
	a.end()
	a.hardware("ec2e1916-9099-7caf-fd21-012345abcdef")
	_, err := a.machine.Join(t.Context(), bootstrap.JoinRequest{Mongo: *a.target.Load(), Role: "edge", Identify: a.o.Identify})
	must.OK(t, err)
	if s, err := a.machine.StateFile(); err != nil || s.Hardware != "ec2e1916-9099-7caf-fd21-012345abcdef" {
		t.Errorf("after a join: %+v, %v", s, err)
	}
}

// TestDaemonDrainOfADuplicate: of two machines with one id, the second drains, and its daemon is started again. The record of the
// first stays as it is.
func TestDaemonDrainOfADuplicate(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.eyes.see(0, 3)
	began := time.Now()
	a.o.Lifecycle.Uptime = func() (string, time.Duration) { return "boot-1", time.Since(began) + 1 }
	a.start()
	was := a.alive(other())
	a.says("another machine uses this node's id", 1)
	a.drain("{}")
	must.Until(t, "it drains", func() bool { return a.view().Lifecycle.Step == lifecycle.StepDraining })
	a.end()
	// The registry is written before the session begins.
	identify := a.o.Identify
	a.o.Identify = func(ctx context.Context) (metadata.Instance, error) {
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
		return identify(ctx)
	}
	a.begin()
	must.Until(t, "it drains again", func() bool { return a.view().Lifecycle.Step == lifecycle.StepDraining && a.view().ID != "" })
	a.roundsGoOn(20)
	must.NoDiff(t, "it changed the record of the other machine", a.door.record(nodeID), was)
}

// TestDaemonGetsAnotherMachinesAnswer: the metadata give another instance's data once. The node stays who it is.
func TestDaemonGetsAnotherMachinesAnswer(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	a.start()
	must.Until(t, "the agent's note of this boot", func() bool { return a.machine.EnteredBefore("boot-1 " + own) })
	a.end()
	identify := a.o.Identify
	var asked atomic.Int32
	a.o.Identify = func(ctx context.Context) (metadata.Instance, error) {
		i, err := identify(ctx)
		if asked.Add(1) == 1 {
			i.ID, i.Address = "i-0fedcba9876543210", netip.MustParseAddr("10.0.0.77")
		}
		return i, err
	}
	a.start()
	must.Until(t, "the metadata are asked again", func() bool { return asked.Load() >= 3 })
	if v := a.view(); v.ID != nodeID || v.Address != own || !v.Ready || strings.Contains(a.text(), "AGENT-CLONED") {
		t.Errorf("it is %s at %s, ready: %t", v.ID, v.Address, v.Ready)
	}
	must.Equal(t, "records", a.door.count(a.door.nodes(), bson.M{}), 1)
}

// TestDaemonAndItsCopy: if another machine uses the daemon's record, the daemon logs it once and does not write, until the
// other machine is silent.
func TestDaemonAndItsCopy(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	boot(t, a.root, "boot-1")
	a.start()
	must.Until(t, "the record is of this boot", func() bool { return a.door.record(nodeID)["boot_id"] == "boot-1" })
	n := other()
	n.ID, n.Interval, n.State = nodeID, seconds.Duration(time.Minute), cluster.StateActive
	_, err := a.client.Register(t.Context(), n, cluster.RegisterOptions{Replace: true})
	must.OK(t, err)
	a.says("another machine uses this node's id", 1)
	must.Until(t, "the status names it", func() bool { return strings.Contains(a.status(), "10.0.0.77 uses this node's ") })
	was := a.door.record(nodeID)
	a.roundsGoOn(10)
	must.NoDiff(t, "the daemon wrote over the other's record", a.door.record(nodeID), was)
	a.silent(4 * time.Minute)
	a.serves()
	must.Until(t, "the record is this machine's again", func() bool { return a.door.record(nodeID)["ip"] == own })
	must.Equal(t, "logged (times)", strings.Count(a.text(), "another machine uses this node's id"), 1)
}

// TestJoinOverALiveMachine: a join under the id of a machine that sends heartbeats is refused and changes nothing; --replace
// replaces the record. If the other machine is silent, as after a reset with a new address, the join waits.
func TestJoinOverALiveMachine(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	boot(t, a.root, "boot-1")
	n := other()
	n.ID, n.Interval, n.State = nodeID, seconds.Duration(3*time.Second), cluster.StateActive
	_, err := a.client.Register(t.Context(), n, cluster.RegisterOptions{Replace: true})
	must.OK(t, err)
	req := bootstrap.JoinRequest{
		Mongo: a.client.Target(), Role: "edge",
		Identify: func(context.Context) (metadata.Instance, error) {
			return metadata.Instance{ID: nodeID, Provider: "generic", Address: netip.MustParseAddr(own)}, nil
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for seq := int64(1); ctx.Err() == nil; seq++ {
			_ = a.client.Heartbeat(ctx, n, cluster.Heartbeat{Seq: seq})
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	_, err = a.machine.Join(t.Context(), req)
	refused, ok := errors.AsType[*bootstrap.PreflightError](err)
	if !ok || len(refused.Findings) != 1 || refused.Findings[0].ID != bootstrap.IDDuplicate {
		t.Fatalf("a join over a live machine: %v", err)
	}
	if f := refused.Findings[0]; !strings.Contains(f.Hint, "machine-id") || !strings.Contains(f.Hint, "--replace") || !isOther(f.Err) {
		t.Errorf("%+v", f)
	}
	must.Equal[any](t, "address in the record", a.door.record(nodeID)["ip"], n.IP)
	cancel()
	<-stopped
	if _, err := a.machine.Join(t.Context(), req); err != nil {
		t.Errorf("a join over a record that falls silent: %v", err)
	}
	must.Equal(t, "address in the record", a.door.record(nodeID)["ip"], own)

	n.Interval = seconds.Duration(time.Minute)
	_, err = a.client.Register(t.Context(), n, cluster.RegisterOptions{Replace: true})
	must.OK(t, err)
	if _, err := a.machine.Join(t.Context(), req); err == nil {
		t.Error("a join replaced a fresh record with a long interval")
	}
	req.Replace = true
	if _, err := a.machine.Join(t.Context(), req); err != nil || a.door.record(nodeID)["ip"] != own {
		t.Errorf("--replace: %v", err)
	}
}
