// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakegcp"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// onGCP is a machine on Google Cloud on which the daemon runs.
type onGCP struct {
	*rig.Node
	gcp *fakegcp.Server
}

// newOnGCP starts a Spot VM of a managed instance group. The project's attributes set MongoDB's address, so that the daemon
// joins by itself.
func newOnGCP(t *testing.T, m *mongod.Server, ip string) *onGCP {
	t.Helper()
	h := &onGCP{Node: newNode(t, m, "gcp", "45678901234567"+strings.ReplaceAll(ip, ".", ""), ip)}
	i := fakegcp.Sample()
	i.ID, i.NICs[0].IPv4 = h.ID, ip
	i.ProjectAttributes = map[string]string{"amsagent-mongo": m.LoginURI(), "ssh-keys": "operator:ssh-rsa secret-of-the-project"}
	var err error
	h.gcp, err = fakegcp.Start(context.Background(), fakegcp.Options{Instance: &i})
	must.OK(t, err)
	t.Cleanup(func() { _ = h.gcp.Close() })
	h.Env = append(h.Env, "AMSAGENT_GCP_ENDPOINT="+h.gcp.Endpoint())
	h.Config("")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the books: %+v", h.gcp.Books())
		}
	})
	return h
}

// waitOff waits until the machine is off.
func (h *onGCP) waitOff() fakegcp.Entry {
	h.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	e, err := h.gcp.WaitFor(ctx, func(e fakegcp.Entry) bool { return e.What == fakegcp.Gone })
	must.OK(h.T, err)
	return e
}

// deciding is the line of the timeline that counts, as people and programs see it.
func deciding(t *testing.T, v lifecycle.View) lifecycle.Moment {
	t.Helper()
	for _, m := range v.Timeline {
		if m.Decides {
			return m
		}
	}
	t.Fatalf("no entry decides: %+v", v.Timeline)
	return lifecycle.Moment{}
}

// TestCloudGCPPreemptionStays: a viewer who stays is cut before the machine is switched off, so that the server stops in order
// and the registry has the number of sessions cut.
func TestCloudGCPPreemptionStays(t *testing.T) {
	t.Parallel()
	h := newOnGCP(t, newDatabase(t), "10.0.61.2")
	p := h.Serving()
	h.Viewers(1)
	noticed := time.Now()
	h.gcp.Preempt(0)
	v := p.Counted(1)
	for time.Now().Before(v.Deadline.Add(-300 * time.Millisecond)) {
		if st := h.Live(); st.Live.Viewers != 1 {
			t.Fatalf("cut %s before the deadline: %+v", time.Until(v.Deadline), st)
		}
		wait(100 * time.Millisecond)
	}
	n := h.HasLeft()
	left := time.Since(noticed)
	t.Logf("served for %s, left after %s", v.Deadline.Sub(noticed).Round(time.Millisecond), left.Round(time.Millisecond))
	if served := v.Deadline.Sub(noticed); served < 14*time.Second || served > 17*time.Second {
		t.Errorf("served for %s of 30 s", served)
	}
	if e := h.waitOff(); !e.Late || e.Time.Sub(noticed) < left {
		t.Errorf("the machine's end: %+v", e)
	}
	if st := h.Sessions(); st.Cut.Viewers != 1 || st.State != "stopped" || n.Cut == nil || *n.Cut != 1 {
		t.Errorf("the sessions: %+v, the record: %+v", st, n)
	}
}

// TestCloudGCPStop: a graceful shutdown has a timeout, and a machine that has left does not use it up.
func TestCloudGCPStop(t *testing.T) {
	t.Parallel()
	h := newOnGCP(t, newDatabase(t), "10.0.61.3")
	h.gcp.Update(func(i *fakegcp.Instance) { i.Spot, i.Migrates = false, true })
	p := h.Serving()
	h.Viewers(2)
	// A shutdown that is cancelled while viewers watch has no effect on them.
	h.gcp.Stop(5*time.Minute, "STOPPED")
	h.RecordIs(cluster.StateDraining)
	h.gcp.Unstop()
	h.RecordIs(cluster.StateActive)
	if st := h.Live(); st.Live.Viewers != 2 || !h.ServerRuns() {
		t.Errorf("the sessions: %+v", st)
	}
	noticed := time.Now()
	h.gcp.Stop(3*time.Minute, "DELETED")
	v := p.Counted(2)
	m := deciding(t, v)
	if v.Kind != lifecycle.Terminate || v.Reason != "graceful shutdown (to be deleted)" || m.Ends.Sub(noticed.Add(3*time.Minute)).Abs() > 2*time.Second {
		t.Errorf("the drain: %+v", v)
	}
	if out, _ := h.Run("status"); !strings.Contains(out, "graceful shutdown (to be deleted)") {
		t.Errorf("status:\n%s", out)
	}
	wait(3 * time.Second)
	if st := h.Live(); st.Live.Viewers != 2 {
		t.Errorf("the sessions: %+v", st)
	}
	h.ViewersGo()
	n := h.HasLeft()
	h.gcp.Off()
	if e := h.waitOff(); e.Late || e.Time.Sub(noticed) > 25*time.Second {
		t.Errorf("the machine's end: %+v", e)
	}
	if st := h.Sessions(); st.Cut.Viewers != 0 || n.Cut == nil || *n.Cut != 0 {
		t.Errorf("the sessions: %+v, the record: %+v", st, n)
	}
	p.Step(lifecycle.StepDone)
}

// TestCloudGCPWorstDay: the metadata service vanishes, sends invalid answers and withdraws a notice. No session is cut, and a
// preemption is still seen.
func TestCloudGCPWorstDay(t *testing.T) {
	t.Parallel()
	h := newOnGCP(t, newDatabase(t), "10.0.61.4")
	// The service vanishes soon after it has come up.
	must.OK(t, h.gcp.Vanish(400*time.Millisecond))
	p := h.Serving()
	h.Viewers(1)
	fault := func(f fakes.Fault) {
		t.Helper()
		must.OK(t, h.gcp.AddFault(f))
	}
	quiet := func(what string) {
		t.Helper()
		if v := p.View(); !v.Ready || v.Lifecycle.State != lifecycle.StateActive {
			t.Errorf("%s: %+v", what, v.Lifecycle)
		}
	}
	before := len(h.gcp.Requests())
	fault(fakes.Fault{Held: true, Instant: true})
	h.gcp.Update(func(*fakegcp.Instance) {})
	wait(4 * time.Second)
	if n := len(h.gcp.Requests()) - before; n > 25 {
		t.Errorf("%d requests in 4 s of a service that does not wait", n)
	}
	quiet("polls that are answered at once")
	h.gcp.ClearFaults()
	fault(fakes.Fault{Status: 503, Times: 4})
	fault(fakes.Fault{Truncate: true, Times: 2})
	fault(fakes.Fault{Status: 200, Body: "<html>log in</html>", Times: 2})
	fault(fakes.Fault{NoFlavor: true, Times: 2})
	must.OK(t, h.gcp.Vanish(300*time.Millisecond))
	wait(3 * time.Second)
	quiet("invalid answers")
	h.gcp.ClearFaults()
	// A notice that is withdrawn.
	h.gcp.Announce(true)
	h.RecordIs(cluster.StateDraining)
	h.gcp.Announce(false)
	h.RecordIs(cluster.StateActive)
	p.ViewIs("it serves", func(v daemon.View) bool { return v.Ready })
	if st := h.Live(); st.Live.Viewers != 1 || st.Cut.Viewers != 0 {
		t.Errorf("the sessions: %+v", st)
	}
	h.gcp.Preempt(0)
	p.Counted(1)
	h.ViewersGo()
	h.HasLeft()
	h.gcp.Off()
	if e := h.waitOff(); e.Late {
		t.Errorf("%+v", e)
	}
}
