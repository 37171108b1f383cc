// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const completing = "CompleteLifecycleAction"

func hook(name string, launching bool) cloud.Hook {
	return cloud.Hook{Provider: "aws", Group: group, Name: name, Launching: launching}
}

// TestHooksWire: both transitions as the group plays them. The emulated API accepts a call only if it is signed for its service
// and region, with the key of the instance's role.
func TestHooksWire(t *testing.T) {
	t.Parallel()
	emulate(t, func(t *testing.T, e *emulated) {
		ctx, hooks := t.Context(), e.p
		ending, starting := hook("z", false), hook("up", true)
		ending.Timeout, ending.Abandons, ending.Limit = seconds.Duration(5*time.Minute), true, time.Now().Add(500*time.Minute)
		starting.Timeout, starting.Limit = seconds.Duration(time.Hour), time.Now().Add(48*time.Hour)
		for launching, want := range map[bool]cloud.Hook{false: ending, true: starting} {
			got, err := hooks.Pending(ctx, launching)
			if diff := cmp.Diff(list(want), got); diff != "" || err != nil {
				t.Error(diff, err)
			}
		}
		ending.Token, starting.Token = "of another action, which came late", "of another action, which came late"
		must.OK(t, e.asg.Launch(self))
		<-time.After(time.Second)
		must.OK(t, hooks.Complete(ctx, starting))
		e.terminate(t)
		<-time.After(4 * time.Minute)
		if waits, err := hooks.Extend(ctx, ending); err != nil || waits != 5*time.Minute {
			t.Error(waits, err)
		}
		<-time.After(4 * time.Minute)
		must.OK(t, hooks.Complete(ctx, ending))
		var done []string
		for _, entry := range e.entries(fakes.Completed) {
			done = append(done, entry.Hook+" "+entry.Text+" by "+entry.By)
		}
		if diff := cmp.Diff([]string{"up CONTINUE by " + self, "z CONTINUE by " + self}, done); diff != "" || len(e.entries(fakes.Heartbeat)) != 1 {
			t.Errorf("%s\n%+v", diff, e.asg.Books())
		}
		must.Equal(t, "log", e.log.String(), "")
	})
}

// TestHooksPlace checks the address of the API.
func TestHooksPlace(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, region string
		ipv4         bool
		given        string
		url, arn     string
	}{
		{"Europe", "eu-west-1", true, "", "https://autoscaling.eu-west-1.amazonaws.com/", "arn:aws:autoscaling:eu-west-1:123456789012:autoScalingGroup:*:autoScalingGroupName/edge-asg"},
		{"China", "cn-north-1", true, "", "https://autoscaling.cn-north-1.amazonaws.com.cn/", "arn:aws-cn:autoscaling:cn-north-1:"},
		{"GovCloud", "us-gov-west-1", true, "", "https://autoscaling.us-gov-west-1.amazonaws.com/", "arn:aws-us-gov:autoscaling:us-gov-west-1:"},
		{"IPv6 alone", "eu-west-1", false, "", "https://autoscaling.eu-west-1.api.aws/", "arn:aws:autoscaling:eu-west-1:"},
		{"given", "eu-west-1", false, "http://127.0.0.1:9/", "http://127.0.0.1:9/", "arn:aws:autoscaling:eu-west-1:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			emulate(t, func(t *testing.T, e *emulated) {
				e.asg = fakeaws.NewAutoScaling(fakeaws.AutoScalingOptions{Region: tt.region})
				e.asg.Group(group)
				must.OK(t, e.asg.Attach(group, e.Server))
				e.Update(func(i *fakeaws.Instance) {
					if i.Region = tt.region; !tt.ipv4 {
						i.NICs[0].IPv4s = nil
					}
				})
				e.open(t, tt.given)
				e.asg.Deny(completing)
				denied, ok := errors.AsType[*cloud.DeniedError](e.p.Complete(t.Context(), hook("h", false)))
				if !ok || !strings.Contains(denied.Policy, tt.arn) || e.url != tt.url {
					t.Errorf("%s: %+v", e.url, denied)
				}
			})
		})
	}
	if _, err := aws.New(cloud.Options{Endpoints: map[string]string{aws.EndpointAutoScaling: "http://user:secret@x/path"}}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

func TestHooksErrors(t *testing.T) {
	t.Parallel()
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["autoscaling:CompleteLifecycleAction","autoscaling:RecordLifecycleActionHeartbeat"],` +
		`"Resource":"arn:aws:autoscaling:eu-west-1:123456789012:autoScalingGroup:*:autoScalingGroupName/edge-asg"},` +
		`{"Effect":"Allow","Action":["autoscaling:DescribeAutoScalingInstances","autoscaling:DescribeLifecycleHooks"],"Resource":"*"}]}`
	denied := &cloud.DeniedError{Permission: "autoscaling:CompleteLifecycleAction", Policy: policy, Reason: "User: x is not authorized", Provider: "aws", Group: group}
	move := func(state string) func(*emulated) error {
		return func(e *emulated) error { return e.asg.Move(self, "Terminated", state) }
	}
	for _, tt := range []struct {
		name    string
		history func(*emulated) error // nil: the hook waits
		fault   fakes.Fault
		want    error // matched, or compared with a *DeniedError
		text    string
		calls   int
	}{
		{"not waiting yet", move("Terminating:Wait"), fakes.Fault{}, cloud.ErrNotWaiting, "the instance is Terminating:Wait", 2},
		{"the API lags behind", move("InService"), fakes.Fault{}, cloud.ErrNotWaiting, "", 2},
		{"completed by another program", move("Terminating:Proceed"), fakes.Fault{}, cloud.ErrGone, "", 2},
		{"retained", move("Terminating:Retained"), fakes.Fault{}, cloud.ErrGone, "", 2},
		{"the root is being replaced", move("ReplacingRootVolume:Proceed"), fakes.Fault{}, cloud.ErrGone, "", 2},
		{"detached", move("Detached"), fakes.Fault{}, cloud.ErrGone, "", 2},
		{"in no group any more", func(e *emulated) error { return e.asg.Detach(self) }, fakes.Fault{}, cloud.ErrGone, "in no group", 2},
		{"in another group", func(e *emulated) error {
			e.asg.Group("new-asg")
			return e.asg.Attach("new-asg", e.Server)
		}, fakes.Fault{}, cloud.ErrMoved, "in group new-asg now", 2},
		{"not waiting, and the state is denied", func(e *emulated) error {
			e.asg.Deny("DescribeAutoScalingInstances")
			return nil
		}, fakes.Fault{}, cloud.ErrNotWaiting, "", 2},
		{"no group", nil, fakes.Fault{Code: "ValidationError", Message: "AutoScalingGroup name not found - null"}, cloud.ErrGone, "", 1},
		{"invalid", nil, fakes.Fault{Code: "ValidationError", Message: "1 validation error detected"}, nil, "ValidationError: 1 validation error", 1},
		{"denied", nil, fakes.Fault{Status: 403, Code: "AccessDenied", Message: "User: x is not authorized"}, denied, "", 1},
		{"throttled once", nil, fakes.Fault{Code: "Throttling", Times: 1}, nil, "", 2},
		{"throttled", nil, fakes.Fault{Code: "Throttling", Message: "Rate exceeded"}, nil, "Throttling: Rate exceeded", 3},
		{"contention", nil, fakes.Fault{Status: 500, Code: "ResourceContention", Times: 1}, nil, "", 2},
		{"500", nil, fakes.Fault{Status: 500, Code: "InternalFailure", Times: 1}, nil, "", 2},
		{"a page", nil, fakes.Fault{Status: 502, Body: "<html>Bad Gateway</html>"}, nil, "calling CompleteLifecycleAction", 3},
		{"nothing as a success", nil, fakes.Fault{Empty: true, Times: 1}, nil, "", 2},
		{"a page as a success", nil, fakes.Fault{Body: "<html><p>login", Times: 1}, nil, "", 2},
		{"unreachable", nil, fakes.Fault{Reset: true}, nil, "the Auto Scaling API cannot be reached: connection reset by peer", 3},
		{"the answer is lost", nil, fakes.Fault{Deaf: true, Times: 1}, cloud.ErrGone, "in no group", 3},
		{"expired for ever", nil, fakes.Fault{Status: 403, Code: "ExpiredToken"}, nil, "ExpiredToken", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			emulate(t, func(t *testing.T, e *emulated) {
				if tt.history == nil {
					e.terminate(t)
				} else {
					must.OK(t, tt.history(e))
				}
				if tt.fault != (fakes.Fault{}) {
					tt.fault.Path = completing
					must.OK(t, e.asg.AddFault(tt.fault))
				}
				err := e.p.Complete(t.Context(), hook("z", false))
				if want, ok := errors.AsType[*cloud.DeniedError](tt.want); ok {
					got, _ := errors.AsType[*cloud.DeniedError](err)
					must.NoDiff(t, "hooks", got, want)
				} else if tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && tt.text == "" && err != nil ||
					tt.text != "" && (err == nil || !strings.Contains(err.Error(), tt.text)) {
					t.Error(err)
				}
				if done := len(e.entries(fakes.Completed)) == 1; e.calls() != tt.calls || err == nil && !done {
					t.Errorf("%d calls, want %d; completed: %v\n%+v", e.calls(), tt.calls, done, e.asg.Books())
				}
			})
		})
	}
}

func list[T any](v ...T) []T { return v }

// TestHooksExpiredKey: keys that the API takes no longer are read again.
func TestHooksExpiredKey(t *testing.T) {
	t.Parallel()
	emulate(t, func(t *testing.T, e *emulated) {
		for range 2 {
			_, err := e.p.Pending(t.Context(), false)
			must.OK(t, err)
			e.ExpireKeys()
		}
		must.Equal(t, "calls", e.calls(), 5)
	})
}

// A parked machine waits for no completion, and the launch hook of a machine in service is over.
func TestHooksOver(t *testing.T) {
	t.Parallel()
	parking := hook("z", false)
	parking.Parking = true
	for _, tt := range []struct {
		state string
		hook  cloud.Hook
		want  error
	}{
		{"Standby", parking, cloud.ErrGone},
		{"Warmed:Stopped", parking, cloud.ErrGone},
		{"Warmed:Stopped", hook("z", false), cloud.ErrNotWaiting},
		{"Warmed:Terminating:Wait", hook("z", false), cloud.ErrNotWaiting},
		{"Warmed:Terminating:Proceed", hook("z", false), cloud.ErrGone},
		{"InService", hook("up", true), cloud.ErrGone},
		{"Pending:Wait", hook("up", true), cloud.ErrNotWaiting},
		{"Pending:Proceed", hook("up", true), cloud.ErrGone},
		{"Terminating:Wait", hook("up", true), cloud.ErrGone},
		// While the API still has the root volume as being replaced, the launch hook of the new root is not over.
		{"ReplacingRootVolume:Proceed", hook("up", true), cloud.ErrNotWaiting},
	} {
		emulate(t, func(t *testing.T, e *emulated) {
			must.OK(t, e.asg.Move(self, "Terminated", tt.state))
			if _, err := e.p.Extend(t.Context(), tt.hook); !errors.Is(err, tt.want) {
				t.Errorf("%s, %+v: %v, want %v", tt.state, tt.hook, err, tt.want)
			}
		})
	}
}

// If the permission for the state is missing, the tag of the group names the group; if the permission for the hooks is missing,
// the error names it.
func TestHooksDenied(t *testing.T) {
	t.Parallel()
	emulate(t, func(t *testing.T, e *emulated) {
		hooks := e.p
		e.asg.Deny("DescribeAutoScalingInstances")
		if got, err := hooks.Pending(t.Context(), true); err != nil || len(got) != 1 || got[0].Group != group {
			t.Errorf("%+v, %v", got, err)
		}
		e.asg.Deny("DescribeLifecycleHooks")
		_, err := hooks.Pending(t.Context(), true)
		if denied, ok := errors.AsType[*cloud.DeniedError](err); !ok || denied.Group != group || denied.Permission != "autoscaling:DescribeLifecycleHooks" {
			t.Errorf("%+v", err)
		}
		e.Update(func(i *fakeaws.Instance) { i.TagsEnabled = false })
		_, err = hooks.Pending(t.Context(), true)
		if denied, ok := errors.AsType[*cloud.DeniedError](err); !ok || denied.Permission != "autoscaling:DescribeAutoScalingInstances" {
			t.Errorf("%+v", err)
		}
		e.asg.Allow()
		must.OK(t, e.asg.Detach(self))
		asked := e.calls()
		if got, err := hooks.Pending(t.Context(), false); got != nil || err != nil || e.calls() != asked+1 {
			t.Errorf("in no group: %+v, %v, %d calls", got, err, e.calls()-asked)
		}
	})
}

// TestHooksClock checks that calls of a machine whose clock is three hours late succeed: the API returns its time.
func TestHooksClock(t *testing.T) {
	t.Parallel()
	emulate(t, func(t *testing.T, e *emulated) {
		const late, layout = 3 * time.Hour, "20060102T150405Z"
		<-time.After(12 * time.Hour) // one day for both clocks
		clock := metadatatest.RoundTrip(func(req *http.Request) (*http.Response, error) {
			at, err := time.Parse(layout, req.Header.Get("X-Amz-Date"))
			must.OK(t, err)
			req.Header.Set("X-Amz-Date", at.Add(-late).Format(layout))
			resp, err := fakes.Transport{Handler: e.asg}.RoundTrip(req)
			must.OK(t, err)
			resp.Header.Set("Date", time.Now().Add(late).UTC().Format(http.TimeFormat))
			return resp, nil
		})
		p, err := aws.New(cloud.Options{Transport: fakes.Transport{Handler: e.Server}, APITransport: clock})
		must.OK(t, err)
		e.terminate(t)
		must.OK(t, p.Complete(t.Context(), hook("z", false)))
		if calls := e.entries(fakes.Call); len(calls) != 2 || calls[0].Code != "RequestExpired" {
			t.Errorf("%+v", calls)
		}
	})
}

// TestHooksNoRole checks that a machine without a role gets the same error about permissions as one whose role lacks them.
func TestHooksNoRole(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*emulated) error{
		"no role": func(e *emulated) error {
			e.Update(func(i *fakeaws.Instance) { i.Role = "" })
			return nil
		},
		"role that cannot be taken on": func(e *emulated) error {
			const body = `{"Code":"AssumeRoleUnauthorizedAccess","Message":"EC2 cannot assume the role ams-node"}`
			return e.AddFault(fakes.Fault{Path: "meta-data/iam/security-credentials/ams-node", Status: 200, Body: body})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			emulate(t, func(t *testing.T, e *emulated) {
				must.OK(t, change(e))
				d, ok := errors.AsType[*cloud.DeniedError](e.p.Complete(t.Context(), hook("h", false)))
				if !ok || d.Permission != "autoscaling:CompleteLifecycleAction" || !strings.Contains(d.Reason, "role") || !strings.Contains(d.Policy, "autoScalingGroupName/edge-asg") {
					t.Errorf("%+v", d)
				}
				must.Equal(t, "the API was called without credentials", e.calls(), 0)
			})
		})
	}
}

// TestHooksBound checks that a call ends with its context or after its own limit, even if a service does not answer.
func TestHooksBound(t *testing.T) {
	t.Parallel()
	for name, hang := range map[string]func(*emulated, fakes.Fault) error{
		"the API":      func(e *emulated, f fakes.Fault) error { return e.asg.AddFault(f) },
		"the metadata": func(e *emulated, f fakes.Fault) error { return e.AddFault(f) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			emulate(t, func(t *testing.T, e *emulated) {
				must.OK(t, hang(e, fakes.Fault{Hang: true}))
				for timeout, limit := range map[time.Duration]time.Duration{200 * time.Millisecond: 200 * time.Millisecond, time.Hour: cloud.CallTimeout} {
					ctx, cancel := context.WithTimeout(t.Context(), timeout)
					defer cancel()
					began := time.Now()
					err := e.p.Complete(ctx, hook("h", false))
					if took := time.Since(began); err == nil || took < 200*time.Millisecond || took > limit {
						t.Errorf("%v after %v, want %v", err, took, limit)
					}
				}
			})
		})
	}
}

// TestCheck: the doctor's check of the hooks changes nothing, not even a wait that begins during it.
func TestCheck(t *testing.T) {
	t.Parallel()
	deny := func(action string) func(*emulated) error {
		return func(e *emulated) error {
			e.asg.Deny(action)
			return nil
		}
	}
	for _, tt := range []struct {
		name     string
		filter   cloud.Filter
		history  func(*emulated) error
		ours     int
		others   []string
		unproved string
		denied   string
	}{
		{"in no group", nil, func(e *emulated) error { return e.asg.Detach(self) }, 0, nil, "", ""},
		{"in service", nil, nil, 1, nil, cloud.UnprovedComplete, ""},
		{"on its way out", nil, func(e *emulated) error { return e.asg.Terminate(self) }, 1, nil, cloud.UnprovedBoth, ""},
		{"a scale-in begins", nil, func(e *emulated) error {
			time.AfterFunc(time.Second, func() { _ = e.asg.Terminate(self) })
			return e.asg.AddFault(fakes.Fault{Path: "RecordLifecycleActionHeartbeat", Delay: 2 * time.Second})
		}, 1, nil, cloud.UnprovedComplete, ""},
		{"no heartbeat is allowed", nil, deny("RecordLifecycleActionHeartbeat"), 1, nil, cloud.UnprovedBoth, "autoscaling:RecordLifecycleActionHeartbeat"},
		{"another name is ours", cloud.Filter{"drain"}, nil, 0, []string{"z"}, cloud.UnprovedBoth, ""},
		{"denied", nil, deny("DescribeAutoScalingInstances"), 0, nil, "", "autoscaling:DescribeAutoScalingInstances"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			emulate(t, func(t *testing.T, e *emulated) {
				if tt.history != nil {
					must.OK(t, tt.history(e))
				}
				c, err := e.p.Check(t.Context(), tt.filter)
				denied, _ := errors.AsType[*cloud.DeniedError](err)
				if (denied != nil) != (tt.denied != "") || denied != nil && denied.Permission != tt.denied || denied == nil && err != nil {
					t.Errorf("%v", err)
				}
				if len(c.Ours) != tt.ours || !slices.Equal(c.Others, tt.others) || c.Unproved != tt.unproved {
					t.Errorf("%+v", c)
				}
				if changed := append(e.entries(fakes.Heartbeat), e.entries(fakes.Completed)...); len(changed) > 0 {
					t.Errorf("%+v", changed)
				}
			})
		})
	}
}
