// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

const scalingGroup = "edge-asg"

// together runs subtests side by side, more of them than there are cores: all they
// do is wait.
type together struct{ sync.WaitGroup }

func (w *together) run(t *testing.T, name string, test func(*testing.T)) {
	t.Helper()
	w.Go(func() { t.Run(name, test) })
}

// scaled is a host in an Auto Scaling group.
type scaled struct {
	*host
	asg *fakeaws.AutoScaling
}

// newScaled starts a host with a scaling group of its own around it. The settings
// tell where MongoDB is, so that its daemon joins by itself.
func newScaled(t testing.TB, m *mongod.Server, ip string, o fakeaws.AutoScalingOptions, hooks ...fakes.Hook) *scaled {
	t.Helper()
	asg, err := fakeaws.StartAutoScaling(context.Background(), o)
	must.OK(t, err)
	t.Cleanup(func() { _ = asg.Close() })
	h := &scaled{host: newHost(t, m, ip), asg: asg}
	asg.Group(scalingGroup, hooks...)
	must.OK(t, asg.Attach(scalingGroup, h.aws))
	h.env = []string{"AMSAGENT_MONGO=" + mongoURI(m, daemonPassword), "AMSAGENT_AWS_AUTOSCALING_ENDPOINT=" + asg.Endpoint()}
	h.config("")
	return h
}

// endHook is a hook for the end of a machine, as people set it.
func endHook(timeout time.Duration) fakes.Hook {
	return fakes.Hook{Name: "drain", Timeout: timeout}
}

// serving starts the daemon and waits until the node serves and nothing is under
// way.
func (h *scaled) serving() *process {
	h.t.Helper()
	p := h.daemon()
	p.viewIs("it serves", func(v daemon.View) bool {
		// Where the cloud refuses to tell of a hook, it is asked on.
		return v.Ready && v.Lifecycle != nil && (v.Lifecycle.Start == "" || v.Lifecycle.Start == "proved" && v.Lifecycle.Trouble["discover"] != "")
	})
	return p
}

// people asks the stand-in AMS for sessions: POST lets them come, DELETE lets them go.
func (h *scaled) people(method, path string, query ...string) {
	h.t.Helper()
	must.OK(h.t, h.tryPeople(method, path, query...))
}

func (h *scaled) tryPeople(method, path string, query ...string) error {
	q := url.Values{}
	if path != "/behaviour" {
		q.Set("app", "LiveApp")
	}
	for i := 0; i < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := h.svc.Control(ctx, method, path, q)
	return err
}

// viewers lets some come. The server cannot tell MongoDB of them where that is away.
func (h *scaled) viewers(n int) {
	h.t.Helper()
	before := h.live().Live.Viewers
	err := h.tryPeople(http.MethodPost, "/viewers", "stream", "s1", "n", strconv.Itoa(n))
	if now := h.live().Live.Viewers; now != before+n {
		h.t.Fatalf("%d viewers, want %d: %v", now, before+n, err)
	}
}

// viewersGo lets all go. The server cannot tell MongoDB of it where that is away, and
// tries for so long that it may have been stopped before.
func (h *scaled) viewersGo() {
	h.t.Helper()
	err := h.tryPeople(http.MethodDelete, "/viewers", "stream", "s1")
	st, lerr := h.tryLive()
	if lerr != nil {
		st = h.sessions()
	}
	if st.Live.Viewers+st.Cut.Viewers > 0 {
		h.t.Fatalf("viewers stay: %+v: %v", st, err)
	}
}

// sessions are what the stand-in AMS counted, in its life until now or until its end.
func (h *scaled) sessions() fakeams.Stats {
	h.t.Helper()
	st, err := fakeams.ReadStats(h.svc.StatsFile())
	must.OK(h.t, err)
	return st
}

// live are those of now, as the server says.
func (h *scaled) live() fakeams.Stats {
	h.t.Helper()
	st, err := h.tryLive()
	must.OK(h.t, err)
	return st
}

func (h *scaled) tryLive() (st fakeams.Stats, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b, err := h.svc.Control(ctx, http.MethodGet, "/stats", nil)
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	return st, err
}

// serverRuns asks the service, not what the agent says of it.
func (h *scaled) serverRuns() bool {
	h.t.Helper()
	st, err := h.svc.Status()
	must.OK(h.t, err)
	return st == "active"
}

// life waits until the daemon says something of the node's going.
func (p *process) life(what string, ok func(lifecycle.View) bool) lifecycle.View {
	p.h.t.Helper()
	v := p.viewIs(what, func(v daemon.View) bool { return v.Lifecycle != nil && ok(*v.Lifecycle) })
	return *v.Lifecycle
}

func (p *process) step(s lifecycle.Step) lifecycle.View {
	p.h.t.Helper()
	return p.life("step "+string(s), func(v lifecycle.View) bool { return v.Step == s })
}

// counted waits until so many viewers were counted in the drain under way.
func (p *process) counted(viewers int) lifecycle.View {
	p.h.t.Helper()
	return p.life(fmt.Sprintf("%d viewers are counted", viewers), func(v lifecycle.View) bool {
		return v.Step == lifecycle.StepDraining && v.Sessions != nil && v.Sessions.Viewers != nil && *v.Sessions.Viewers == viewers
	})
}

func (p *process) ready() bool {
	p.h.t.Helper()
	_, code := p.get("/readyz")
	return code == http.StatusOK
}

// untilReady waits for readiness: a server that answers late is out of service for a moment.
func (p *process) untilReady() {
	p.h.t.Helper()
	until(p.h.t, "the node is ready", func() string {
		if body, code := p.get("/readyz"); code != http.StatusOK {
			return soFar(body)
		}
		return ""
	})
}

// documents are AMS's own of this node's address.
func (h *scaled) documents() []cluster.AMSNode {
	h.t.Helper()
	docs, err := h.client.AMSNodesByAddress(context.Background(), h.ip)
	must.OK(h.t, err)
	return docs
}

// hasLeft waits until the cluster's lists are without this node, and holds its AMS
// to have stopped.
func (h *scaled) hasLeft() cluster.Node {
	h.t.Helper()
	h.rowIs(cluster.StateLeft)
	until(h.t, "AMS's document is gone", func() string {
		if docs := h.documents(); len(docs) > 0 {
			return fmt.Sprintf("%+v", docs)
		}
		return ""
	})
	if h.serverRuns() {
		h.t.Error("the row says left, and Ant Media Server runs")
	}
	return h.row()
}

// entries are the lines of the books that fit.
func (h *scaled) entries(fits func(fakes.Entry) bool) []fakes.Entry {
	return slices.DeleteFunc(h.asg.Books(), func(e fakes.Entry) bool { return e.Instance != h.id || !fits(e) })
}

func (h *scaled) calls(action string) []fakes.Entry {
	return h.entries(func(e fakes.Entry) bool { return e.What == fakes.Call && e.Text == action })
}

// completed waits until a hook was told, and gives the line about it.
func (h *scaled) completed(hook string) fakes.Entry {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := h.asg.WaitFor(ctx, func(e fakes.Entry) bool {
		return e.Instance == h.id && e.Hook == hook && (e.What == fakes.Completed || e.What == fakes.TimedOut)
	})
	switch {
	case err != nil:
		h.t.Fatalf("hook %s waits: %v\n%s", hook, err, h.story())
	case e.What != fakes.Completed || e.Text != "CONTINUE":
		h.t.Fatalf("hook %s: %+v\n%s", hook, e, h.story())
	}
	return e
}

// story is what happened in the cloud, for a test that failed.
func (h *scaled) story() string {
	var b strings.Builder
	for _, e := range h.asg.Books() {
		fmt.Fprintf(&b, "%s %s %s %s %s %s\n", e.Time.Format("05.000"), e.What, e.Hook, e.Text, e.Code, e.Instance)
	}
	return b.String()
}

// terminate is a scale-in.
func (h *scaled) terminate() {
	h.t.Helper()
	must.OK(h.t, h.asg.Terminate(h.id))
}

// event gives an event to the agent, on its standard input.
func (h *scaled) event(text string, args ...string) (string, int) {
	h.t.Helper()
	cmd := exec.Command(bins.agent, append([]string{"event"}, args...)...)
	cmd.Env, cmd.Stdin = h.environ(), strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		h.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// hookEvent is what EventBridge sends when a hook begins to wait.
func hookEvent(instance, hook string, launching bool) string {
	kind, transition, from, to := "TERMINATE", "TERMINATING", "AutoScalingGroup", "EC2"
	if launching {
		kind, transition, from, to = "LAUNCH", "LAUNCHING", to, from
	}
	return fmt.Sprintf(`{"version":"0","id":"12345678-1234-1234-1234-123456789012","detail-type":"EC2 Instance-%s Lifecycle Action",`+
		`"source":"aws.autoscaling","account":"123456789012","time":%q,"region":"eu-west-1","resources":[],"detail":{`+
		`"LifecycleActionToken":"87654321-4321-4321-4321-210987654321","AutoScalingGroupName":%q,"LifecycleHookName":%q,`+
		`"EC2InstanceId":%q,"LifecycleTransition":"autoscaling:EC2_INSTANCE_%s","Origin":%q,"Destination":%q}}`,
		strings.ToLower(kind), time.Now().UTC().Format(time.RFC3339), scalingGroup, hook, instance, transition, from, to)
}

// record is the drain as it is kept on disk.
func (h *scaled) record() (r record) {
	h.t.Helper()
	var file struct {
		Step     lifecycle.Step
		BootTime time.Time `json:"boot_time"`
		Began    time.Duration
	}
	b, err := os.ReadFile(filepath.Join(h.root, lifecycle.RecordPath))
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil && !os.IsNotExist(err) {
		h.t.Fatal(err)
	}
	r.Step = file.Step
	if file.Began != 0 {
		r.Begun = file.BootTime.Add(file.Began)
	}
	return r
}

type record struct {
	Step  lifecycle.Step
	Begun time.Time
}

// kept waits until a step is on disk. A daemon tells of a step before it is kept, and one
// that is killed in between does it again.
func (h *scaled) kept(is func(lifecycle.Step) bool) {
	h.t.Helper()
	until(h.t, "the step is kept", func() string {
		if r := h.record(); !is(r.Step) {
			return fmt.Sprintf("%+v", r)
		}
		return ""
	})
}

// viewers NAME N: so many come to the node's AMS; viewers NAME none: all go.
func (w *world) viewers(ts *testscript.TestScript, _ bool, args []string) error {
	c, err := amsctl.Load(filepath.Join(ts.MkAbs(args[0]+".service"), "service", "config.json"))
	if err != nil {
		return err
	}
	method, q := http.MethodDelete, url.Values{"app": {"LiveApp"}, "stream": {"s1"}}
	if args[1] != "none" {
		method = http.MethodPost
		q.Set("n", args[1])
	}
	_, err = c.Control(w.ctx, method, "/viewers", q)
	return err
}

// asg start HOOK…: the instance of `imds` is in a group with these hooks, each
// NAME:terminating or NAME:launching; $AMSAGENT_AWS_AUTOSCALING_ENDPOINT leads to its
// API. asg deny ACTION…; asg terminate; asg launch; asg completed HOOK waits for it.
func (w *world) scaling(ts *testscript.TestScript, _ bool, args []string) error {
	id := w.aws.Get().ID
	switch args[0] {
	case "start":
		var hooks []fakes.Hook
		for _, a := range args[1:] {
			h, err := fakes.ParseHook(a, "terminating", "launching")
			if err != nil {
				return err
			}
			hooks = append(hooks, h)
		}
		var err error
		if w.asg, err = fakeaws.StartAutoScaling(w.ctx, fakeaws.AutoScalingOptions{}); err != nil {
			return err
		}
		ts.Defer(func() { _ = w.asg.Close() })
		ts.Setenv("AMSAGENT_AWS_AUTOSCALING_ENDPOINT", w.asg.Endpoint())
		w.asg.Group(scalingGroup, hooks...)
		return w.asg.Attach(scalingGroup, w.aws)
	case "deny":
		return w.asg.Verbs().Run("POST /deny", url.Values{"action": args[1:]})
	case "terminate", "launch":
		return w.asg.Verbs().Run("POST /"+args[0], nil)
	case "completed":
		ctx, cancel := context.WithTimeout(w.ctx, patience)
		defer cancel()
		_, err := w.asg.WaitFor(ctx, func(e fakes.Entry) bool {
			return e.What == fakes.Completed && e.Instance == id && e.Hook == args[1] && e.Text == "CONTINUE"
		})
		return err
	}
	return fmt.Errorf("asg %s is not known", args[0])
}
