// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
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
	onBoth(t, func(t *testing.T, b backdoor, c *cluster.Client) {
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
		unchanged("its end", c.SetOwnState(t.Context(), copied, cluster.StateLeft, "shutdown", cluster.Details{Cut: new(3)}), was)

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
	})
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

// TestJoinOverALiveMachine: a join under the id of a machine that sends heartbeats is refused and changes nothing; --replace
// replaces the record. If the other machine is silent, as after a reset with a new address, the join waits.
func TestJoinOverALiveMachine(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	n := other()
	n.ID, n.Interval, n.State = nodeID, seconds.Duration(3*time.Second), cluster.StateActive
	_, err := a.client.Register(t.Context(), n, cluster.RegisterOptions{Replace: true})
	must.OK(t, err)
	req := bootstrap.JoinRequest{Mongo: a.client.Target(), Role: "edge", Identify: a.o.Identify}
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
