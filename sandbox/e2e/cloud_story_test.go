// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// cloudStory is what the story of a machine that leaves well is like on one cloud.
type cloudStory struct {
	name string
	// patient is a cloud that waits until a viewer hangs up, short one with an early deadline.
	patient, short fakecloud.Options
	// takesAnswer: the agent acknowledges the termination. Other clouds see only the end of the machine.
	takesAnswer bool
	// unseen is the maximum delay before a notice is seen, plus the rounding of its time: the agent may assume a deadline
	// that is later than the cloud's by this much. It reserves far more for the last steps.
	unseen time.Duration
	// early is by how much the deadline that the agent assumes may be earlier than the cloud's; 0: 3 s.
	early time.Duration
	// source is the agent's name for the source of the notice, and reason the prefix of the reason in the node record.
	source, reason string
}

func cloudStories() []cloudStory {
	return []cloudStory{
		{
			name: "aws", takesAnswer: true, source: "aws-lifecycle", reason: "scale-in",
			patient: fakecloud.Options{Lead: 90 * time.Second}, // from word to word
			short:   fakecloud.Options{Lead: 5 * time.Second, Limit: 20 * time.Second},
			unseen:  2500 * time.Millisecond, // a hook does not report when its wait began
		},
		{
			// Azure's first deadline cannot be extended.
			name: "azure", takesAnswer: true, source: "azure-events", reason: "scale-in",
			short:  fakecloud.Options{Lead: 16 * time.Second},
			unseen: 1500 * time.Millisecond, // its times have whole seconds
		},
		{
			// The agent polls the groups about every ten seconds, and the API does not report when a wait began: if the
			// wait cannot be extended, the agent assumes the worst.
			name: "alibaba", takesAnswer: true, source: "alibaba-lifecycle", reason: "scale-in",
			patient: fakecloud.Options{Lead: 90 * time.Second}, // to the first word
			short:   fakecloud.Options{Lead: 24 * time.Second, Limit: 24 * time.Second},
			unseen:  1500 * time.Millisecond, early: 13 * time.Second,
		},
		{
			// A Spot VM has 30 s. Only the power button announces a scale-in of a group; that needs systemd and is tested
			// elsewhere.
			name: "gcp", source: "gcp-preempted", reason: "preemption of a Spot VM", unseen: 1500 * time.Millisecond,
		},
	}
}

// TestCloudStory: each cloud removes a machine that has a viewer. The story and its checks are the same for all clouds; the
// signals, the deadline and the acknowledgement differ. A viewer who leaves in time is the demo's story, on each cloud.
func TestCloudStory(t *testing.T) {
	for _, c := range cloudStories() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := newDatabase(t)
			var all together
			defer all.Wait()
			all.run(t, "never goes", func(t *testing.T) { c.neverGoes(t, newOnCloud(t, db, newCloud(t, c.name, c.short), 2)) })
			all.run(t, "metadata fail in bursts", func(t *testing.T) { c.bursts(t, newOnCloud(t, db, newCloud(t, c.name, c.patient), 3)) })
			if c.name != "gcp" { // its story is one of a Spot machine
				all.run(t, "a Spot machine", func(t *testing.T) { c.spot(t, newOnCloud(t, db, newCloud(t, c.name, c.patient), 4)) })
			}
		})
	}
}

// TestCloudTogether: one event of Azure, or one activity of Alibaba Cloud, takes two machines, and one answer releases both. The
// machine that has left first waits with it for the other.
func TestCloudTogether(t *testing.T) {
	for _, name := range []string{"azure", "alibaba"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, cloud := newDatabase(t), newCloud(t, name, fakecloud.Options{Lead: 5 * time.Minute})
			first, last := newOnCloud(t, db, cloud, 5), newOnCloud(t, db, cloud, 6)
			ofFirst, ofLast := first.Serving(), last.Serving()
			last.Viewers(1)
			must.OK(t, cloud.ScaleIn(first.ID, last.ID))
			first.HasLeft()
			ofFirst.Life("it waits for the other", func(v lifecycle.View) bool {
				return v.Step == lifecycle.StepCompleting && strings.Contains(v.Trouble["continue"], "have not left yet")
			})
			v := ofLast.Counted(1) // each machine asks for its own notice
			if v.Kind != lifecycle.Terminate || ofLast.Ready() {
				t.Errorf("the drain of the other one: %+v", v)
			}
			last.serves(time.Now().Add(6 * time.Second)) // more than one question
			if first.written(fakecloud.Answer)+last.written(fakecloud.Answer) > 0 {
				t.Error("the cloud was answered while the other machine serves")
			}
			last.ViewersGo()
			left := last.HasLeft()
			for _, h := range []*onCloud{first, last} {
				if gone := h.noted(fakecloud.Gone); gone.Late || left.StateSince.After(gone.Time) {
					t.Errorf("%+v, and the last one had left at %s", gone, left.StateSince)
				}
				must.Equal(t, "viewers cut", h.Sessions().Cut.Viewers, 0)
			}
			ofFirst.Step(lifecycle.StepDone)
			ofLast.Step(lifecycle.StepDone)
		})
	}
}

// onCloud is a node on a fake cloud.
type onCloud struct {
	*rig.Node
	cloud *fakecloud.Cloud
	meta  *fakecloud.Metadata
	// touched is the number of calls of the service command before the termination.
	touched int
}

func newCloud(t *testing.T, name string, o fakecloud.Options) *fakecloud.Cloud {
	t.Helper()
	cloud, err := fakecloud.Open(context.Background(), name, o)
	must.OK(t, err)
	t.Cleanup(func() { _ = cloud.Close() })
	return cloud
}

// newOnCloud makes the n-th edge of a cloud.
func newOnCloud(t *testing.T, db *mongod.Server, cloud *fakecloud.Cloud, n int) *onCloud {
	t.Helper()
	m := fakecloud.Machine{
		Name: fmt.Sprintf("edge-%d", n), ID: fakecloud.ID(cloud.Name, n), Address: fmt.Sprintf("10.0.%d.%d", 10+n/200, 1+n%200),
		Role: "edge", MAC: fmt.Sprintf("0e:49:61:0f:%02x:%02x", n>>8, n&0xff),
	}
	h := &onCloud{cloud: cloud, Node: newNode(t, db, cloud.Name, m.ID, m.Address)}
	var err error
	h.meta, err = cloud.Machine(context.Background(), m)
	must.OK(t, err)
	t.Cleanup(func() {
		_ = h.meta.Close()
		if t.Failed() {
			t.Logf("the books of %s:\n%s", cloud.Title, h.story())
		}
	})
	h.Env = append(append(h.Env, h.meta.Environ...), "AMSAGENT_MONGO="+db.LoginURI())
	h.Config("")
	return h
}

// story is what the cloud has in its books about this machine.
func (h *onCloud) story() string {
	var b strings.Builder
	for _, e := range fakecloud.Of(h.cloud.Books(), h.ID) {
		fmt.Fprintf(&b, "%s %s: %s\n", e.Time.Format("05.000"), e.What, e.Text)
	}
	return b.String()
}

// noted waits for a line of the books about this machine.
func (h *onCloud) noted(what string) fakecloud.Entry {
	h.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	e, err := h.cloud.WaitFor(ctx, func(e fakecloud.Entry) bool { return e.ID == h.ID && e.What == what })
	if err != nil {
		h.T.Fatalf("%s: %v", what, err)
	}
	return e
}

// written is how often something is in the books about this machine.
func (h *onCloud) written(what string) (n int) {
	for _, e := range fakecloud.Of(h.cloud.Books(), h.ID) {
		if e.What == what {
			n++
		}
	}
	return n
}

// taken lets the cloud terminate a machine with a viewer, and waits until the node record and readiness show it.
func (c cloudStory) taken(t *testing.T, h *onCloud, p *rig.Daemon) lifecycle.View {
	t.Helper()
	row := h.Record()
	if row.Provider != c.name || row.Role != "edge" || row.Group != "edges" || !p.Ready() {
		t.Errorf("a node that serves: %+v", row)
	}
	begin := time.Now()
	h.touched = h.Touches()
	must.OK(t, h.cloud.ScaleIn(h.ID))
	// The interval of requests to a service that fails grows to 15 s.
	until(t, "the row says draining", func() string {
		n, err := h.Client.Node(context.Background(), h.ID)
		if err == nil && n.State == cluster.StateDraining {
			return ""
		}
		return fmt.Sprintf("%v, %+v", err, n)
	})
	t.Logf("the cluster knew %s after the notice", time.Since(begin).Round(10*time.Millisecond))
	if p.Ready() {
		t.Error("a node that drains is ready")
	}
	v := p.Counted(1)
	if v.State != lifecycle.StateDraining || !strings.HasPrefix(v.Reason, c.reason) || v.Deadline.IsZero() || len(v.Notices) != 1 || v.Notices[0].Source != c.source {
		t.Errorf("the drain: %+v", v)
	}
	if h.written(fakecloud.Answer)+h.written(fakecloud.Gone) > 0 {
		t.Error("the termination was acknowledged while a viewer watches")
	}
	return v
}

// leaves waits for the end of the story and checks its order: the server stops, the record is left, the agent acknowledges, and
// the machine is gone before its time is over. After a kill the daemon may repeat the stop and the acknowledgement, which then
// have no effect.
func (c cloudStory) leaves(t *testing.T, h *onCloud, p *rig.Daemon, cut, stops int) {
	t.Helper()
	n := h.HasLeft()
	stopped, err := os.Stat(h.StandIn.Service.StatsFile())
	must.OK(t, err)
	if st := h.Sessions(); st.State != "stopped" || st.Cut.Viewers != cut || st.Left.Viewers != 1-cut || stopped.ModTime().After(n.StateSince.Add(clockGrain)) {
		t.Errorf("the server ended at %s with %+v, and the row said left at %s", stopped.ModTime(), st, n.StateSince)
	}
	if !strings.HasPrefix(n.Reason, c.reason) || n.Cut == nil || *n.Cut != cut {
		said := "nothing"
		if n.Cut != nil {
			said = strconv.Itoa(*n.Cut)
		}
		t.Errorf("of %d sessions cut the row says %s: %+v", cut, said, n)
	}
	var acked time.Time
	if c.takesAnswer {
		acked = h.noted(fakecloud.Answer).Time
		p.Step(lifecycle.StepDone)
	} else {
		p.Step(lifecycle.StepDone)
		acked = time.Now()
		// The end of the machine is the only signal to this cloud.
		if err := h.cloud.Off(h.ID); err != nil {
			t.Error(err)
		}
	}
	gone := h.noted(fakecloud.Gone)
	if n.StateSince.After(acked) || acked.After(gone.Time) || gone.Late {
		t.Errorf("left at %s, acknowledged at %s, and: %+v", n.StateSince, acked, gone)
	}
	if n := h.Touches() - h.touched; n < 1 || n > stops {
		t.Errorf("the service was asked for something %d times, at most %d is right", n, stops)
	}
	if n := h.written(fakecloud.Answer); n > stops || (n > 0) != c.takesAnswer || h.written(fakecloud.Gone) != 1 {
		t.Errorf("%d acknowledgements", n)
	}
}

// clockGrain is what a date in MongoDB is rounded by.
const clockGrain = time.Millisecond

// serves checks that no viewer is cut until then.
func (h *onCloud) serves(until time.Time) {
	h.T.Helper()
	viewers := h.Live().Live.Viewers
	for time.Now().Before(until) {
		if st := h.Live(); st.Live.Viewers != viewers || viewers == 0 {
			h.T.Fatalf("cut %s too early: %+v", time.Until(until), st)
		}
		wait(100 * time.Millisecond)
	}
}

// neverGoes: the viewer is served until the cloud's deadline less the time of the last steps, then cut, and the node has left
// before the machine is terminated.
func (c cloudStory) neverGoes(t *testing.T, h *onCloud) {
	p := h.Serving()
	h.Viewers(1)
	c.taken(t, h, p)
	ends := h.noted(fakecloud.Notice).Time.Add(max(h.cloud.Lead, c.short.Limit))
	var decides lifecycle.Moment
	// Some clouds have to be asked for it, which takes a moment.
	v := p.Life("the cloud's deadline decides", func(v lifecycle.View) bool {
		for _, m := range v.Timeline {
			if m.Decides {
				decides = m
			}
		}
		return !decides.Ends.IsZero()
	})
	span := decides.Ends.Sub(v.Begun)
	if late := decides.Ends.Sub(ends); late > c.unseen || late < -cmp.Or(c.early, 3*time.Second) {
		t.Fatalf("the cloud takes the machine at %s, and the agent believes in %s: %+v", ends, decides.Ends, v.Timeline)
	}
	if left := decides.Ends.Sub(v.Deadline); left < span/5 || left > span*3/4 || v.Deadline.Sub(decides.At).Abs() > time.Millisecond {
		t.Fatalf("of %s it keeps %s for the last steps: %+v", span, left, v.Timeline)
	}
	h.serves(v.Deadline.Add(-200 * time.Millisecond))
	c.leaves(t, h, p, 1, 1)
	if since := h.Record().StateSince; !since.Before(ends) {
		t.Errorf("it had left at %s, and the cloud took it at %s", since, ends)
	}
}

// bursts: the metadata service fails for a while again and again, from before the
// notice to the end.
func (c cloudStory) bursts(t *testing.T, h *onCloud) {
	p := h.Serving()
	h.Viewers(1)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	failing := make(chan struct{})
	all.Go(func() {
		defer h.meta.Heal()
		for i := 0; ; i++ {
			f := []fakecloud.Fault{{Status: 503}, {Reset: true}, {Status: 429}, {Hang: true}, {Truncate: true}, {Status: 500}}[i%6]
			if err := h.meta.Fail(f); err != nil {
				t.Error(err)
			}
			if i == 0 {
				close(failing)
			}
			// This period differs from all polling intervals of the agent.
			for _, d := range []time.Duration{900 * time.Millisecond, 1430 * time.Millisecond} {
				select {
				case <-time.After(d):
				case <-ctx.Done():
					return
				}
				h.meta.Heal()
			}
		}
	})
	<-failing
	c.taken(t, h, p)
	h.serves(time.Now().Add(4 * time.Second))
	h.ViewersGo()
	c.leaves(t, h, p, 0, 1)
}

// spot: an interruption leaves sixteen seconds, and the viewers are served for most of them.
func (c cloudStory) spot(t *testing.T, h *onCloud) {
	p := h.Serving()
	h.Viewers(2)
	ends := time.Now().Add(16 * time.Second).Truncate(time.Second)
	must.OK(t, h.cloud.Interrupt(h.ID, ends))
	v := p.Counted(2)
	if v.Kind != lifecycle.Interrupt || !v.Deadline.Before(ends) || time.Until(v.Deadline) < time.Second {
		t.Errorf("the drain: %+v", v)
	}
	h.serves(v.Deadline.Add(-200 * time.Millisecond))
	n := h.HasLeft()
	if n.StateSince.After(ends) || n.Cut == nil || *n.Cut != 2 || !strings.Contains(strings.ToLower(n.Reason), "spot") {
		t.Errorf("taken at %s, and the record: %+v", ends, n)
	}
	must.Equal(t, "viewers cut", h.Sessions().Cut.Viewers, 2)
}
