// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	agent "github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/sandbox/fakeaws"
)

// group starts an API with a group that has these hooks and one instance in it,
// and the agent's own client for that instance.
func group(t *testing.T, o fakeaws.AutoScalingOptions, hooks ...fakeaws.Hook) (*fakeaws.AutoScaling, *fakeaws.Server, *agent.AutoScaling) {
	t.Helper()
	asg, err := fakeaws.StartAutoScaling(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := asg.Close(); err != nil {
			t.Error(err)
		}
	})
	asg.Group("edge-asg", hooks...)
	s := start(t, fakeaws.Options{Control: "127.0.0.1:0", AutoScaling: asg})
	if err := asg.Attach("edge-asg", "", s); err != nil {
		t.Fatal(err)
	}
	p, err := agent.New(cloud.Options{Endpoints: map[string]string{"aws": s.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.AutoScaling(agent.AutoScalingOptions{Endpoint: asg.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return asg, s, c
}

const id = "i-0abc1234567890def"

func action(hook string) agent.Action { return agent.Action{Group: "edge-asg", Hook: hook} }

func state(t *testing.T, c *agent.AutoScaling) string {
	t.Helper()
	m, err := c.Membership(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m == nil {
		return ""
	}
	return m.State
}

// until waits for a state in the books.
func until(t *testing.T, asg *fakeaws.AutoScaling, state string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := asg.WaitFor(ctx, func(e fakeaws.Entry) bool { return e.What == fakeaws.State && e.Text == state }); err != nil {
		t.Fatalf("waiting for %s: %v", state, err)
	}
}

// story is what the books tell besides the calls.
func story(asg *fakeaws.AutoScaling) []string {
	var out []string
	for _, e := range asg.Books() {
		if e.What != fakeaws.Call {
			out = append(out, strings.TrimSpace(fmt.Sprint(e.What, " ", e.Hook, " ", e.Text)))
		}
	}
	return out
}

func TestScaleIn(t *testing.T) {
	t.Parallel()
	asg, s, c := group(
		t, fakeaws.AutoScalingOptions{WaitDelay: 2 * time.Second, ActionDelay: 2 * time.Second},
		fakeaws.Hook{Name: "drain", HeartbeatTimeout: 30 * time.Second}, fakeaws.Hook{Name: "logs"}, fakeaws.Hook{Name: "up", Launching: true},
	)
	hooks, err := c.Hooks(t.Context(), "edge-asg")
	if diff := cmp.Diff([]agent.LifecycleHook{
		{Name: "drain", Timeout: 30 * time.Second, Limit: 50 * time.Minute},
		{Name: "logs", Timeout: time.Hour, Limit: 48 * time.Hour},
		{Name: "up", Launching: true, Timeout: time.Hour, Limit: 48 * time.Hour},
	}, hooks); diff != "" || err != nil {
		t.Fatal(diff, err)
	}
	gone := asg.Gone(id)
	if err := asg.Terminate(id); err != nil {
		t.Fatal(err)
	}
	// The metadata tells it before any hook waits.
	if got, err := get(t, client(s), "autoscaling/target-lifecycle-state"); got != "Terminated" {
		t.Fatal(got, err)
	}
	if err := c.Complete(t.Context(), action("drain"), false); !errors.Is(err, agent.ErrNoAction) {
		t.Fatal(err)
	}
	until(t, asg, "Terminating:Wait")
	if err := c.Heartbeat(t.Context(), action("drain")); !errors.Is(err, agent.ErrNoAction) {
		t.Fatal("the API knew of the action at once:", err)
	}
	for c.Heartbeat(t.Context(), action("drain")) != nil {
		<-time.After(50 * time.Millisecond) // the book has room for the last requests only
	}
	if err := c.Complete(t.Context(), action("drain"), false); err != nil {
		t.Fatal(err)
	}
	if got := state(t, c); got != "Terminating:Wait" {
		t.Fatal("did not wait for the other hook:", got)
	}
	if err := c.Complete(t.Context(), action("drain"), false); !errors.Is(err, agent.ErrNoAction) {
		t.Fatal("completed twice:", err)
	}
	if err := c.Complete(t.Context(), action("logs"), false); err != nil {
		t.Fatal(err)
	}
	<-gone
	if got := state(t, c); got != "" {
		t.Error(got)
	}
	want := []string{
		"target  InService", "state  InService", "target  Terminated", "state  Terminating", "state  Terminating:Wait", "wait drain", "wait logs",
		"heartbeat drain 1", "completed drain CONTINUE", "completed logs CONTINUE", "state  Terminating:Proceed", "state  Terminated",
	}
	if diff := cmp.Diff(want, story(asg)); diff != "" {
		t.Error(diff)
	}
	for _, e := range asg.Books() {
		if (e.What == fakeaws.Completed || e.What == fakeaws.Heartbeat) && e.By != id {
			t.Errorf("by %q: %+v", e.By, e)
		}
	}
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	asg, _, c := group(t, fakeaws.AutoScalingOptions{}, fakeaws.Hook{Name: "drain", HeartbeatTimeout: 4 * time.Second, GlobalTimeout: 6 * time.Second})
	gone := asg.Gone(id)
	began := time.Now()
	if err := asg.Terminate(id); err != nil {
		t.Fatal(err)
	}
	until(t, asg, "Terminating:Wait")
	for time.Since(began) < 5*time.Second {
		if err := c.Heartbeat(t.Context(), action("drain")); err != nil && time.Since(began) < 5*time.Second {
			t.Fatal(err)
		}
		<-time.After(50 * time.Millisecond)
	}
	<-gone
	if took := time.Since(began); took < 5900*time.Millisecond {
		t.Error("gone after", took)
	}
	if s := story(asg); !strings.Contains(strings.Join(s, "\n"), "timed out drain global timeout") {
		t.Error(s)
	}

	asg, _, _ = group(t, fakeaws.AutoScalingOptions{}, fakeaws.Hook{Name: "drain", HeartbeatTimeout: 200 * time.Millisecond})
	gone = asg.Gone(id)
	if err := asg.Terminate(id); err != nil {
		t.Fatal(err)
	}
	<-gone
	if s := story(asg); !strings.Contains(strings.Join(s, "\n"), "timed out drain heartbeat timeout") {
		t.Error(s)
	}
}

func TestMoves(t *testing.T) {
	t.Parallel()
	asg, s, c := group(t, fakeaws.AutoScalingOptions{}, fakeaws.Hook{Name: "down"}, fakeaws.Hook{Name: "up", Launching: true})
	target := func() string { return s.Instance().Signals.Target }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(asg.Pool(id, "Stopped", false))
	until(t, asg, "Warmed:Pending:Wait")
	if target() != "Warmed:Stopped" {
		t.Error(target())
	}
	must(c.Complete(t.Context(), action("down"), false))
	until(t, asg, "Warmed:Stopped")
	must(asg.Launch(id))
	until(t, asg, "Pending:Wait")
	if target() != "InService" {
		t.Error(target())
	}
	must(c.Complete(t.Context(), action("up"), false))
	until(t, asg, "Pending:Proceed")
	if got := state(t, c); got != "InService" {
		t.Error(got)
	}
	must(asg.Standby(id))
	if got := state(t, c); got != "Standby" || target() != "Standby" {
		t.Error(got, target())
	}
	must(asg.Restore(id))
	if got := state(t, c); got != "InService" || target() != "InService" {
		t.Error(got, target())
	}
	must(asg.Terminate(id))
	must(asg.Restore(id))
	if err := c.Complete(t.Context(), action("down"), false); !errors.Is(err, agent.ErrNoAction) {
		t.Error("a hook waits for what was taken back:", err)
	}
	// A launch that is abandoned ends the machine, whose own hooks then wait.
	must(asg.Launch(id))
	for {
		if err := c.Complete(t.Context(), action("up"), true); err == nil {
			break
		} else if !errors.Is(err, agent.ErrNoAction) {
			t.Fatal(err)
		}
	}
	if got := state(t, c); got != "Terminating:Wait" {
		t.Error(got)
	}
	must(asg.Restore(id))
	gone := asg.Gone(id)
	must(asg.Detach(id))
	<-gone
	if _, tagged := s.Instance().Tags["aws:autoscaling:groupName"]; tagged || target() != "Detached" {
		t.Error("tag or target", target())
	}
}

func TestAPIFaults(t *testing.T) {
	t.Parallel()
	asg, s, c := group(t, fakeaws.AutoScalingOptions{}, fakeaws.Hook{Name: "drain"})
	if err := asg.Terminate(id); err != nil {
		t.Fatal(err)
	}
	until(t, asg, "Terminating:Wait")
	fault := func(f fakeaws.APIFault) {
		t.Helper()
		if err := asg.AddFault(f); err != nil {
			t.Fatal(err)
		}
	}
	beat := func() error { return c.Heartbeat(t.Context(), action("drain")) }
	asg.Deny("RecordLifecycleActionHeartbeat")
	denied, ok := errors.AsType[*agent.DeniedError](beat())
	if !ok || denied.Action != "autoscaling:RecordLifecycleActionHeartbeat" || !strings.Contains(denied.Policy, "autoScalingGroupName/edge-asg") {
		t.Error(denied)
	}
	asg.Allow()
	for _, f := range []fakeaws.APIFault{
		{Code: "Throttling"}, {Code: "InternalFailure", Status: 500}, {Empty: true}, {Body: "<html>"}, {Reset: true}, {Code: "ResourceContention", Status: 500},
	} {
		f.Times = 1
		fault(f)
		if err := beat(); err != nil {
			t.Errorf("%+v: %v", f, err)
		}
	}
	// The credentials end in between, and the tokens of the metadata service too.
	s.RotateCredentials()
	s.ExpireTokens()
	if err := beat(); err != nil {
		t.Error(err)
	}
	// The word was heard and the answer was lost.
	fault(fakeaws.APIFault{Action: "CompleteLifecycleAction", Deaf: true, Times: 1})
	if err := c.Complete(t.Context(), action("drain"), false); !errors.Is(err, agent.ErrNoAction) && err != nil {
		t.Error(err)
	}
	codes := map[string]int{}
	for _, e := range asg.Books() {
		if e.What == fakeaws.Call {
			codes[e.Code]++
		}
	}
	for _, want := range []string{"AccessDenied", "Throttling", "InternalFailure", "(fault)", "(reset)", "ExpiredToken"} {
		if codes[want] == 0 {
			t.Errorf("no %s in %v", want, codes)
		}
	}
	for _, bad := range []fakeaws.APIFault{{}, {Code: "x", Empty: true}, {Delay: -1}, {Code: "x", Status: 99}} {
		if asg.AddFault(bad) == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
}

func TestAPIUnsigned(t *testing.T) {
	t.Parallel()
	asg, _, _ := group(t, fakeaws.AutoScalingOptions{})
	resp, err := http.Post(asg.Endpoint(), "application/x-www-form-urlencoded", strings.NewReader("Action=DescribeAutoScalingInstances&Version=2011-01-01"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Error(resp.Status)
	}
}

// TestControlGroups drives the groups and the signals over HTTP, as the command line's users do.
func TestControlGroups(t *testing.T) {
	t.Parallel()
	asg, s, _ := group(t, fakeaws.AutoScalingOptions{}, fakeaws.Hook{Name: "drain"})
	do := func(method, path, body string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.ControlAddr()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var v any
		if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
			return resp.Status
		}
		return fmt.Sprint(resp.StatusCode, v)
	}
	for _, tt := range []struct{ method, path, body, want string }{
		{"PUT", "/target", "Warmed:Running\n", "Warmed:Running"},
		{"POST", "/spot?action=stop&in=90s", "", "stop"},
		{"POST", "/spot?in=soon", "", "400"},
		{"POST", "/rebalance", "", "rebalance"},
		{"POST", "/scheduled", `{"id":"e7","code":"system-reboot","state":"active","not_before":"2027-01-02T03:04:05Z"}`, "e7"},
		{"POST", "/scheduled", `{"color":"red"}`, "400"},
		{"POST", "/rotate-credentials", "", "ASIAFAKE000000000001"},
		{"GET", "/asg/members", "", "InService"},
		{"POST", "/asg/fault?code=Throttling&times=2&action=CompleteLifecycleAction", "", "Throttling"},
		{"POST", "/asg/fault?colour=red", "", "400"},
		{"DELETE", "/asg/fault", "", "200 []"},
		{"POST", "/asg/deny?action=DescribeLifecycleHooks", "", "200"},
		{"DELETE", "/asg/deny", "", "200"},
		{"PUT", "/asg/group?name=edge-asg", `[{"name":"drain","heartbeat_timeout_ns":30000000000}]`, "200"},
		{"POST", "/asg/pool?state=Molten", "", "400"},
		{"POST", "/asg/terminate?instance=i-1", "", "400"},
		{"POST", "/asg/terminate", "", "Terminated"},
		{"GET", "/asg/books", "", "Terminating"},
	} {
		if got := do(tt.method, tt.path, tt.body); !strings.Contains(got, tt.want) {
			t.Errorf("%s %s: %s, want %s", tt.method, tt.path, got, tt.want)
		}
	}
	until(t, asg, "Terminating:Wait")
	c := client(s)
	if got, err := get(t, c, "events/maintenance/scheduled"); !strings.Contains(got, "2 Jan 2027 03:04:05 GMT") {
		t.Error(got, err)
	}
	do("DELETE", "/signals", "")
	for _, path := range []string{"spot/instance-action", "events/recommendations/rebalance", "events/maintenance/scheduled"} {
		if _, err := get(t, c, path); status(err) != http.StatusNotFound {
			t.Error(path, err)
		}
	}
	if got, err := get(t, c, "autoscaling/target-lifecycle-state"); got != "Terminated" {
		t.Error(got, err)
	}
}

func TestParseHook(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]fakeaws.Hook{
		"drain:terminating":       {Name: "drain"},
		"up:launching:30s":        {Name: "up", Launching: true, HeartbeatTimeout: 30 * time.Second},
		"drain:terminating:1m:1h": {Name: "drain", HeartbeatTimeout: time.Minute, GlobalTimeout: time.Hour},
	} {
		if got, err := fakeaws.ParseHook(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "drain", "drain:sideways", ":launching", "a:launching:soon", "a:launching:-1s", "a:launching:1s:1s:1s"} {
		if got, err := fakeaws.ParseHook(text); err == nil {
			t.Errorf("%s: %+v", text, got)
		}
	}
}
