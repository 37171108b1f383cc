// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeazure"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// onAzure is a machine of a scale set on which the daemon runs.
type onAzure struct {
	*rig.Node
	azure *fakeazure.Server
	vm    string // what events call it
}

// newAzureSet makes a scale set; with it end the events that are under way.
func newAzureSet(t *testing.T) *fakeazure.Set {
	t.Helper()
	s := fakeazure.NewSet("edge", fakeazure.SetOptions{})
	t.Cleanup(func() {
		_ = s.Close()
		if t.Failed() {
			var b strings.Builder
			for _, e := range s.Books() {
				fmt.Fprintf(&b, "%s %s %s %s %s\n", e.Time.Format("05.000"), e.What, e.VM, e.Type, e.Event)
			}
			t.Logf("the books of the set:\n%s", b.String())
		}
	})
	return s
}

// newOnAzure makes the n-th machine of a set.
func newOnAzure(t *testing.T, m *mongod.Server, set *fakeazure.Set, n int, ip string) *onAzure {
	t.Helper()
	vm := fakeazure.Sample()
	vm.ID, vm.Name, vm.Hostname = fmt.Sprintf("5c08b38e-4d1b-4f0a-9e6c-%012x", n), fmt.Sprintf("edge_%d", n), fmt.Sprintf("edge%06d", n)
	vm.NICs[0].IPv4s = []string{ip}
	h := &onAzure{Node: newNode(t, m, "azure", vm.ID, ip), vm: vm.Name}
	var err error
	h.azure, err = fakeazure.Start(context.Background(), fakeazure.Options{VM: &vm, Set: set})
	must.OK(t, err)
	t.Cleanup(func() { _ = h.azure.Close() })
	h.Env = append(h.Env, "AMSAGENT_AZURE_ENDPOINT="+h.azure.Endpoint(), "AMSAGENT_MONGO="+m.LoginURI())
	h.Config("")
	return h
}

// announce schedules an event and gives its id and its time.
func (h *onAzure) announce(e fakeazure.Event) (string, time.Time) {
	h.T.Helper()
	if e.VMs == nil {
		e.VMs = []string{h.vm}
	}
	set := h.azure.Set()
	id, err := set.Announce(e)
	must.OK(h.T, err)
	i := slices.IndexFunc(set.Events(), func(e fakeazure.Event) bool { return e.ID == id })
	return id, set.Events()[i].NotBefore
}

// noted waits for an entry of the books about an event.
func (h *onAzure) noted(what, event string) fakeazure.Entry {
	h.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 35*time.Second)
	defer cancel()
	e, err := h.azure.Set().WaitFor(ctx, func(e fakeazure.Entry) bool { return e.What == what && e.Event == event })
	if err != nil {
		h.T.Fatalf("%s: %v", what, err)
	}
	return e
}

func (h *onAzure) written(what string) (n int) {
	for _, e := range h.azure.Set().Books() {
		if e.What == what {
			n++
		}
	}
	return n
}

// acked waits for the acknowledgement of an event, and holds that it is the only one
// and came after the row said left.
func (h *onAzure) acked(event string) fakeazure.Entry {
	h.T.Helper()
	e := h.noted(fakeazure.Acked, event)
	if n := h.Record(); n.State != cluster.StateLeft || n.StateSince.After(e.Time) {
		h.T.Errorf("acknowledged at %s, and the record: %+v", e.Time, n)
	}
	return e
}

// moderate holds that the service was never asked too often.
func (h *onAzure) moderate() {
	h.T.Helper()
	if n := h.written(fakeazure.Throttled); n > 0 {
		h.T.Errorf("%d requests were too many", n)
	}
	for _, r := range h.azure.Requests() {
		if r.Status >= 400 && r.Status != 404 {
			h.T.Errorf("%+v", r)
		}
	}
}

// TestCloudAzureTogether: one event names two machines, and one acknowledgement releases both. One of the agents sends it when
// both nodes have left.
func TestCloudAzureTogether(t *testing.T) {
	t.Parallel()
	db, set := newDatabase(t), newAzureSet(t)
	a, b := newOnAzure(t, db, set, 4, "10.0.62.2"), newOnAzure(t, db, set, 5, "10.0.62.3")
	pa, pb := a.Serving(), b.Serving()
	b.Viewers(1)
	// The case of the names does not matter.
	id, _ := a.announce(fakeazure.Event{Type: fakeazure.Terminate, VMs: []string{"EDGE_4", "Edge_5"}, Lead: time.Minute})
	a.HasLeft()
	pa.Life("it waits for the other", func(v lifecycle.View) bool {
		return v.Step == lifecycle.StepCompleting && strings.Contains(v.Trouble["continue"], "Edge_5")
	})
	if pb.Ready() || pb.Counted(1).Kind != lifecycle.Terminate {
		t.Error("the other one does not drain")
	}
	wait(6 * time.Second) // more than one question
	if a.written(fakeazure.Acked) > 0 || b.Live().Live.Viewers != 1 {
		t.Fatal("the event was acknowledged while the other machine serves")
	}
	b.ViewersGo()
	e := a.noted(fakeazure.Acked, id)
	b.HasLeft()
	for _, h := range []*onAzure{a, b} {
		if n := h.Record(); n.StateSince.After(e.Time) {
			t.Errorf("acknowledged at %s by %s, and: %+v", e.Time, e.VM, n)
		}
	}
	pa.Step(lifecycle.StepDone)
	pb.Step(lifecycle.StepDone)
	if g := a.noted(fakeazure.Gone, id); g.Late {
		t.Errorf("%+v", g)
	}
	if st := b.Sessions(); st.Cut.Viewers != 0 {
		t.Errorf("the sessions: %+v", st)
	}
	// Both agents may acknowledge at the same moment. The later one is refused because the event is gone, and treats that as
	// done.
	if acked, refused := a.written(fakeazure.Acked), a.written(fakeazure.Refused); acked+refused > 2 {
		t.Errorf("acknowledged %d times, and refused %d times", acked, refused)
	}
	if n := a.written(fakeazure.Throttled); n > 0 {
		t.Errorf("%d requests were too many", n)
	}
}

// TestCloudAzureDeadline: a viewer stays on one of two machines. That machine's own deadline cuts the session, and not an
// acknowledgement of the other machine, which has long left.
func TestCloudAzureDeadline(t *testing.T) {
	t.Parallel()
	db, set := newDatabase(t), newAzureSet(t)
	a, b := newOnAzure(t, db, set, 6, "10.0.62.4"), newOnAzure(t, db, set, 7, "10.0.62.5")
	a.Serving()
	pb := b.Serving()
	b.Viewers(1)
	id, at := a.announce(fakeazure.Event{Type: fakeazure.Terminate, VMs: []string{"edge_6", "edge_7"}, Lead: 18 * time.Second})
	a.HasLeft()
	v := pb.Counted(1)
	for time.Now().Before(v.Deadline.Add(-200 * time.Millisecond)) {
		if st := b.Live(); st.Live.Viewers != 1 || a.written(fakeazure.Acked) > 0 {
			t.Fatalf("cut %s before the deadline: %+v", time.Until(v.Deadline), st)
		}
		wait(100 * time.Millisecond)
	}
	n := b.HasLeft()
	if st := b.Sessions(); st.Cut.Viewers != 1 || n.Cut == nil || *n.Cut != 1 {
		t.Errorf("the sessions: %+v, the record: %+v", st, n)
	}
	if e := b.noted(fakeazure.Acked, id); e.Time.Before(n.StateSince) || e.Time.After(at) {
		t.Errorf("acknowledged at %s, left at %s, the time was %s", e.Time, n.StateSince, at)
	}
}

// TestCloudAzurePreempt: the half minute of a Spot machine, and one that Azure begins
// without it.
func TestCloudAzurePreempt(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	var all together
	defer all.Wait()
	all.run(t, "with notice", func(t *testing.T) {
		h := newOnAzure(t, db, newAzureSet(t), 10, "10.0.62.6")
		h.azure.Update(func(vm *fakeazure.VM) { vm.Priority = "Spot" })
		p := h.Serving()
		h.Viewers(1)
		id, at := h.announce(fakeazure.Event{Type: fakeazure.Preempt, Lead: 14 * time.Second})
		v := p.Counted(1)
		if v.Kind != lifecycle.Interrupt || v.Reason != "spot eviction" || !v.Deadline.Before(at) || time.Until(v.Deadline) < 2*time.Second {
			t.Errorf("the drain: %+v", v)
		}
		for time.Now().Before(v.Deadline.Add(-200 * time.Millisecond)) {
			if st := h.Live(); st.Live.Viewers != 1 {
				t.Fatalf("cut %s before the deadline: %+v", time.Until(v.Deadline), st)
			}
			wait(100 * time.Millisecond)
		}
		if e := h.acked(id); e.Time.After(at) {
			t.Errorf("acknowledged %s after the time", e.Time.Sub(at))
		}
		if st := h.Sessions(); st.Cut.Viewers != 1 {
			t.Errorf("the sessions: %+v", st)
		}
		h.moderate()
	})
	all.run(t, "without", func(t *testing.T) {
		set := fakeazure.NewSet("edge", fakeazure.SetOptions{StartedTime: 5 * time.Second})
		t.Cleanup(func() { _ = set.Close() })
		h := newOnAzure(t, db, set, 11, "10.0.62.7")
		p := h.Serving()
		h.Viewers(1)
		id, _ := h.announce(fakeazure.Event{Type: fakeazure.Preempt, Lead: time.Hour})
		must.OK(t, h.azure.Set().Begin(id))
		// The end of the machine is not known: the node accepts no new sessions, and none is cut.
		h.RecordIs(cluster.StateDraining)
		p.Counted(1)
		h.noted(fakeazure.Gone, id)
		if st := h.Live(); st.Live.Viewers != 1 || h.written(fakeazure.Acked) > 0 {
			t.Errorf("the sessions: %+v", st)
		}
		// A node that is still there after the event serves again.
		h.RecordIs(cluster.StateActive)
		p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })
	})
}

// TestCloudAzureReboot: a node drains before a reboot, acknowledges it, and serves again after the boot, while the event is
// still listed.
func TestCloudAzureReboot(t *testing.T) {
	t.Parallel()
	set := fakeazure.NewSet("edge", fakeazure.SetOptions{StartedTime: 8 * time.Second})
	t.Cleanup(func() { _ = set.Close() })
	h := newOnAzure(t, newDatabase(t), set, 12, "10.0.62.8")
	p := h.Serving()
	h.Viewers(1)
	id, _ := h.announce(fakeazure.Event{Type: fakeazure.Reboot, Lead: 15 * time.Minute, Duration: 9 * time.Second})
	p.Counted(1)
	h.RecordIs(cluster.StateDraining)
	h.ViewersGo()
	h.noted(fakeazure.Acked, id)
	p.Step(lifecycle.StepDone)
	if !h.ServerRuns() || p.Ready() || h.Record().State != cluster.StateDraining {
		t.Errorf("drained: %+v", h.Record())
	}
	h.noted(fakeazure.Started, id)
	// The boot.
	p.End(syscall.SIGKILL)
	h.Write("proc/sys/kernel/random/boot_id", "99999999-2222-3333-4444-555555555555\n")
	p = h.Daemon()
	h.RecordIs(cluster.StateActive)
	p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })
	h.noted(fakeazure.Over, id)
	wait(2500 * time.Millisecond)
	if h.Record().State != cluster.StateActive || h.written(fakeazure.Acked) != 1 {
		t.Errorf("the record: %+v", h.Record())
	}
}

// TestCloudAzureMoves: the time of an event moves, later and earlier, and while no daemon runs. The node drains throughout, with
// the new deadline, and no session is cut.
func TestCloudAzureMoves(t *testing.T) {
	t.Parallel()
	h := newOnAzure(t, newDatabase(t), newAzureSet(t), 16, "10.0.62.12")
	p := h.Serving()
	h.Viewers(1)
	id, at := h.announce(fakeazure.Event{Type: fakeazure.Terminate, Lead: 5 * time.Minute})
	h.RecordIs(cluster.StateDraining)
	was := p.Counted(1).Deadline
	move := func(by time.Duration) time.Time {
		to, err := h.azure.Set().Move(id, at.Add(by))
		must.OK(t, err)
		return to
	}
	// drainsUntil waits for the deadline of an event at that time, which is as long before it as the first one was.
	drainsUntil := func(to time.Time) {
		t.Helper()
		want := was.Add(to.Sub(at))
		for end := time.Now().Add(20 * time.Second); ; wait(50 * time.Millisecond) {
			v, n := p.View(), h.Record()
			switch {
			case v.Ready || v.Lifecycle == nil || v.Lifecycle.Step != lifecycle.StepDraining || n.State != cluster.StateDraining:
				t.Fatalf("ready %v, the drain %+v, the row %+v", v.Ready, v.Lifecycle, n)
			case v.Lifecycle.Deadline.Sub(want).Abs() < time.Second:
				return
			case time.Now().After(end):
				t.Fatalf("the deadline is %s, want %s", v.Lifecycle.Deadline, want)
			}
		}
	}
	drainsUntil(move(10 * time.Minute))
	drainsUntil(move(-2 * time.Minute))
	p.End(syscall.SIGKILL)
	to := move(time.Minute)
	p = h.Daemon()
	p.Life("it drains again", func(v lifecycle.View) bool { return v.Step == lifecycle.StepDraining })
	drainsUntil(to)
	if h.Live().Live.Viewers != 1 || h.written(fakeazure.Acked) != 0 {
		t.Errorf("the sessions: %+v", h.Live())
	}
	h.ViewersGo()
	h.acked(id)
	h.HasLeft()
	if st := h.Sessions(); st.Cut.Viewers != 0 {
		t.Errorf("the sessions: %+v", st)
	}
	h.moderate()
}

// TestCloudAzureCancelled: an event is cancelled while no daemon runs.
func TestCloudAzureCancelled(t *testing.T) {
	t.Parallel()
	h := newOnAzure(t, newDatabase(t), newAzureSet(t), 13, "10.0.62.9")
	p := h.Serving()
	h.Viewers(1)
	touched := h.Touches()
	id, _ := h.announce(fakeazure.Event{Type: fakeazure.Terminate, Lead: 15 * time.Minute})
	p.Counted(1)
	h.RecordIs(cluster.StateDraining)
	p.End(syscall.SIGKILL)
	must.OK(t, h.azure.Set().Cancel(id))
	p = h.Daemon()
	h.RecordIs(cluster.StateActive)
	p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })
	if h.Live().Live.Viewers != 1 || h.Touches() != touched {
		t.Errorf("the sessions: %+v", h.Live())
	}
}

// TestCloudAzureBoot: the metadata service of a machine that has just started drops
// calls, is gone for a while, and takes its time for the first question about events;
// they are off in its zone until then.
func TestCloudAzureBoot(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	set := fakeazure.NewSet("edge", fakeazure.SetOptions{EnableDelay: 2 * time.Second})
	t.Cleanup(func() { _ = set.Close() })
	h := newOnAzure(t, db, set, 14, "10.0.62.10")
	vm := h.azure.Get()
	late, err := fakeazure.Start(context.Background(), fakeazure.Options{
		VM: &vm, Set: set, DropCalls: 3, BootTime: 4 * time.Second, FirstCall: 6 * time.Second,
	})
	must.OK(t, err)
	t.Cleanup(func() { _ = late.Close() })
	h.Env = append(h.Env, "AMSAGENT_AZURE_ENDPOINT="+late.Endpoint())
	id, at := h.announce(fakeazure.Event{Type: fakeazure.Terminate, Lead: time.Minute})
	p := h.Daemon()
	p.Life("the event is known", func(v lifecycle.View) bool { return len(v.Notices) == 1 })
	if e := h.acked(id); e.Time.After(at) {
		t.Errorf("acknowledged after its time: %+v", e)
	}
	p.Step(lifecycle.StepDone)
	if n := h.written(fakeazure.Throttled); n > 0 {
		t.Errorf("%d requests were too many", n)
	}
	// Events were asked for while the machine did not know itself yet.
	if !slices.ContainsFunc(late.Requests(), func(r fakes.Request) bool { return r.Path == "/metadata/scheduledevents" && r.Status == 410 }) {
		t.Errorf("no early request for events was refused: %+v", late.Requests())
	}
}

// TestCloudAzureValve: Azure's gateway sends a header that makes Tomcat's
// RemoteIpValve answer 403. A join takes the valve away, and a leave puts it back.
func TestCloudAzureValve(t *testing.T) {
	t.Parallel()
	h := newOnAzure(t, newDatabase(t), newAzureSet(t), 15, "10.0.62.11")
	const valve = "org.apache.catalina.valves.RemoteIpValve"
	name := h.StandIn.Tree.Conf("jee-container.xml")
	read := func() string {
		t.Helper()
		b, err := os.ReadFile(name)
		must.OK(t, err)
		return string(b)
	}
	before := read()
	if !strings.Contains(before, valve) {
		t.Fatal("the tree has no valve, so nothing is shown here")
	}
	h.Must("join")
	if strings.Contains(read(), valve) {
		t.Error("the valve is there after a join on Azure")
	}
	h.Must("leave")
	if read() != before {
		t.Error("the container is not what it was before the join")
	}
	h.Must("join", "--remote-ip-valve", "keep")
	if !strings.Contains(read(), valve) {
		t.Error("the valve is gone despite --remote-ip-valve keep")
	}
	h.Must("leave")
	// The provider decides: generic reads no metadata on the same machine.
	h.Must("join", "--provider", "generic", "--address", h.Address)
	if !strings.Contains(read(), valve) {
		t.Error("the valve is gone although this is not Azure")
	}
	h.Must("leave", "--provider", "generic", "--address", h.Address)
	if read() != before {
		t.Error("the container is not what it was before the joins")
	}
}
