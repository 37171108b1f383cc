// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakealibaba"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	group           = "asg-1"
	describeMembers = "DescribeScalingInstances"
	describeScaling = "DescribeScalingActivities"
	describeActions = "DescribeLifecycleActions"
	describeHooks   = "DescribeLifecycleHooks"
	heartbeat       = "RecordLifecycleActionHeartbeat"
	complete        = "CompleteLifecycleAction"
	listTags        = "ListTagResources"
)

var (
	drain = fakes.Hook{Name: "amsagent", Timeout: 15 * time.Minute, Default: "ABANDON"}
	logs  = fakes.Hook{Name: "logs"}
	up    = fakes.Hook{Name: "up", Launching: true, Timeout: 5 * time.Minute}
	// waiting is a scale-in that waits at one hook.
	waiting = history{joins(drain), ends(self), waits}
)

// account is an emulated account in memory, with one ECS instance that has a RAM role.
type account struct {
	*fakealibaba.Cloud
	meta *fakealibaba.Server
	t    *testing.T
	log  locked.Buffer

	mu   sync.Mutex
	sent []*http.Request // to the APIs

	*metadatatest.Watched
}

func newAccount(t *testing.T, o fakealibaba.CloudOptions) *account {
	t.Helper()
	o.WaitDelay = time.Second
	a := &account{t: t, Cloud: fakealibaba.NewCloud(o)}
	a.meta = fakealibaba.New(fakealibaba.Options{Cloud: a.Cloud})
	t.Cleanup(func() {
		for _, secret := range []string{"STS.", a.meta.Key().Secret, a.meta.Key().Token} {
			if log := a.log.String(); strings.Contains(log, secret) {
				t.Errorf("the log holds a secret:\n%s", log)
			}
		}
	})
	return a
}

// bubble runs a test with an account and a clock of its own, which begins at midnight.
func bubble(t *testing.T, test func(t *testing.T, a *account)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { test(t, newAccount(t, fakealibaba.CloudOptions{})) })
}

// row is a bubble as a subtest.
func row(t *testing.T, name string, test func(t *testing.T, a *account)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { bubble(t, test) })
}

func (a *account) open() *Provider {
	p, err := New(cloud.Options{Transport: fakes.Transport{Handler: a.meta}, APITransport: a, Log: slog.New(slog.NewTextHandler(&a.log, nil))})
	must.OK(a.t, err)
	return p
}

// RoundTrip implements http.RoundTripper: it is the way to the APIs.
func (a *account) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasPrefix(r.UserAgent(), cloud.UserAgent) {
		a.t.Errorf("%s: its User-Agent is %q", r.URL, r.UserAgent())
	}
	a.mu.Lock()
	a.sent = append(a.sent, r)
	a.mu.Unlock()
	return fakes.Transport{Handler: a.Cloud}.RoundTrip(r)
}

// called returns the calls of an action so far.
func (a *account) called(action string) (found []*http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.sent {
		if r.Header.Get("X-Acs-Action") == action {
			found = append(found, r)
		}
	}
	return found
}

// answers returns the errors with which the calls so far were answered, "" for none.
func (a *account) answers() (codes []string) {
	for _, e := range a.Books() {
		if e.What == fakes.Call {
			codes = append(codes, e.Code)
		}
	}
	return codes
}

// token is that of a hook that waits for the instance.
func (a *account) token(hook string) string {
	for _, m := range a.Members() {
		for _, w := range m.Waiting {
			if m.Instance == self && w.Hook == hook {
				return w.Token
			}
		}
	}
	return ""
}

// event is one thing that happens to an account.
type event func(*account) error

// history is what happens one after the other.
type history []event

func (a *account) plays(h ...event) {
	a.t.Helper()
	for _, e := range h {
		must.OK(a.t, e(a))
	}
}

// joins makes the instance and two others members of a group with these hooks.
func joins(hooks ...fakes.Hook) event {
	return func(a *account) error {
		a.Group(group, hooks...)
		return errors.Join(a.Attach(group, "", a.meta), a.Attach(group, "i-b", nil), a.Attach(group, "i-c", nil))
	}
}

// ends is a scale-in by one activity, begins a scale-out; waits lets the time pass until the hooks wait.
func ends(ids ...string) event   { return func(a *account) error { return a.ScaleIn(ids...) } }
func begins(ids ...string) event { return func(a *account) error { return a.ScaleOut(ids...) } }
func moves(state string) event   { return func(a *account) error { return a.Move(self, state) } }

func waits(*account) error {
	<-time.After(2 * time.Second)
	return nil
}

// completes is another program that completes a hook.
func completes(hook fakes.Hook) event {
	return func(a *account) error { return a.Complete(hook.Name, a.token(hook.Name), "CONTINUE") }
}

// fails spoils answers of the APIs, serves answers of the metadata.
func fails(f fakes.Fault) event { return func(a *account) error { return a.AddFault(f) } }

func serves(path string, status int, body string) event {
	return func(a *account) error {
		a.meta.ClearFaults()
		return a.meta.AddFault(fakes.Fault{Path: path, Status: status, Body: body})
	}
}

func denies(action string) event {
	return fails(fakes.Fault{Path: action, Code: "Forbidden.RAM", Status: http.StatusForbidden})
}
