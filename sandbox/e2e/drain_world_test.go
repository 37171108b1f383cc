// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
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

// newScaled makes a machine in an Auto Scaling group of its own. Its environment sets MongoDB's address, so that its daemon joins
// by itself.
func newScaled(t testing.TB, m *mongod.Server, ip string, o fakeaws.AutoScalingOptions, hooks ...fakes.Hook) *onAWS {
	t.Helper()
	h := newOnAWS(t, m, ip)
	var err error
	h.asg, err = fakeaws.StartAutoScaling(context.Background(), o)
	must.OK(t, err)
	t.Cleanup(func() { _ = h.asg.Close() })
	h.asg.Group(scalingGroup, hooks...)
	must.OK(t, h.asg.Attach(scalingGroup, h.aws))
	h.Env = append(h.Env, "AMSAGENT_MONGO="+m.LoginURI(), "AMSAGENT_AWS_AUTOSCALING_ENDPOINT="+h.asg.Endpoint())
	h.Config("")
	return h
}

// endHook is a hook for the end of a machine, as people set it.
func endHook(timeout time.Duration) fakes.Hook {
	return fakes.Hook{Name: "drain", Timeout: timeout}
}

// entries are the lines of the books that fit.
func (h *onAWS) entries(fits func(fakes.Entry) bool) []fakes.Entry {
	return slices.DeleteFunc(h.asg.Books(), func(e fakes.Entry) bool { return e.Instance != h.ID || !fits(e) })
}

// completed waits until a hook is completed, and returns its entry.
func (h *onAWS) completed(hook string) fakes.Entry {
	h.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := h.asg.WaitFor(ctx, func(e fakes.Entry) bool {
		return e.Instance == h.ID && e.Hook == hook && (e.What == fakes.Completed || e.What == fakes.TimedOut)
	})
	switch {
	case err != nil:
		h.T.Fatalf("hook %s waits: %v\n%s", hook, err, h.story())
	case e.What != fakes.Completed || e.Text != "CONTINUE":
		h.T.Fatalf("hook %s: %+v\n%s", hook, e, h.story())
	}
	return e
}

// story is what happened in the cloud, for a test that failed.
func (h *onAWS) story() string {
	var b strings.Builder
	for _, e := range h.asg.Books() {
		fmt.Fprintf(&b, "%s %s %s %s %s %s\n", e.Time.Format("05.000"), e.What, e.Hook, e.Text, e.Code, e.Instance)
	}
	return b.String()
}

// terminate is a scale-in.
func (h *onAWS) terminate() {
	h.T.Helper()
	must.OK(h.T, h.asg.Terminate(h.ID))
}

// hookEvent is what EventBridge sends when the hook for the end of a machine begins to wait.
func hookEvent(instance string) string {
	return fmt.Sprintf(`{"version":"0","id":"12345678-1234-1234-1234-123456789012","detail-type":"EC2 Instance-terminate Lifecycle Action",`+
		`"source":"aws.autoscaling","account":"123456789012","time":%q,"region":"eu-west-1","resources":[],"detail":{`+
		`"LifecycleActionToken":"87654321-4321-4321-4321-210987654321","AutoScalingGroupName":%q,"LifecycleHookName":"drain",`+
		`"EC2InstanceId":%q,"LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING","Origin":"AutoScalingGroup","Destination":"EC2"}}`,
		time.Now().UTC().Format(time.RFC3339), scalingGroup, instance)
}

// record is the drain as it is kept on disk.
func (h *onAWS) record() (r record) {
	h.T.Helper()
	var file struct {
		Step     lifecycle.Step
		BootTime time.Time `json:"boot_time"`
		Began    time.Duration
	}
	b, err := os.ReadFile(h.Path(lifecycle.RecordPath))
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil && !os.IsNotExist(err) {
		h.T.Fatal(err)
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

// kept waits until a step is on disk. A daemon reports a step before it stores it, and repeats the step after a kill in between.
func (h *onAWS) kept(is func(lifecycle.Step) bool) {
	h.T.Helper()
	until(h.T, "the step is kept", func() string {
		if r := h.record(); !is(r.Step) {
			return fmt.Sprintf("%+v", r)
		}
		return ""
	})
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
