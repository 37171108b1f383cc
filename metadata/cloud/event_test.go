// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestEventNotice(t *testing.T) {
	made := time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)
	now := made.Add(time.Minute)
	drain := cloud.Hook{Provider: "aws", Group: "edge-asg", Name: "drain", Token: "t-1"}
	ready := cloud.Hook{Provider: "aws", Group: "edge-asg", Name: "ready", Token: "t-2", Launching: true}
	noGroup := cloud.Hook{Provider: "aws", Name: "drain"}
	own := cloud.Hook{Provider: "alibaba", Name: "ash-1", ID: "ash-1", Token: "t-3"}
	until := own
	until.Limit = now.Add(6 * time.Hour)
	for _, tt := range []struct {
		kind cloud.Kind
		hook cloud.Hook
		wait time.Duration
		want cloud.Notice
		at   time.Time
	}{
		{cloud.Terminate, drain, 0, cloud.Notice{ID: "aws-lifecycle/terminate", Reason: "scale-in of group edge-asg, hook drain", Hook: &drain}, now},
		// It may be delivered again after the machine has come back, or left.
		{cloud.Park, drain, 0, cloud.Notice{ID: "aws-lifecycle/park", Reason: "return to the warm pool of group edge-asg, hook drain", Hook: &drain}, made},
		{cloud.Resume, ready, 0, cloud.Notice{ID: "aws-lifecycle/resume", Reason: "start out of the warm pool of group edge-asg, hook ready", Hook: &ready}, made},
		{cloud.Launch, ready, 0, cloud.Notice{ID: "aws-lifecycle/launch", Reason: "launch into group edge-asg, hook ready", Hook: &ready}, now},
		{cloud.Terminate, noGroup, 0, cloud.Notice{ID: "aws-lifecycle/terminate", Reason: "scale-in, hook drain"}, now},
		{cloud.Terminate, cloud.Hook{Provider: "aws"}, 0, cloud.Notice{ID: "aws-lifecycle/terminate", Reason: "scale-in"}, now},
		{cloud.Terminate, own, 6 * time.Hour, cloud.Notice{ID: "alibaba-lifecycle/terminate", Reason: "scale-in, hook ash-1", Hook: &until}, now},
	} {
		e := cloud.Event{InstanceID: "i-1", Group: tt.hook.Group, Kind: tt.kind, Hook: tt.hook, HookWait: tt.wait, Time: made}
		tt.want.Kind, tt.want.Who = tt.kind, "Auto Scaling"
		got, at := e.Notice(now)
		if diff := cmp.Diff(tt.want, got); diff != "" || !at.Equal(tt.at) {
			t.Errorf("%s at %s: %s", tt.kind, at, diff)
		}
		// The hook of the notice is not the event's own.
		if got.Hook != nil {
			got.Hook.Token = "another"
		}
		must.Equal(t, "the notice shares its hook with the event", e.Hook.Token, tt.hook.Token)
	}
}

func TestEventFor(t *testing.T) {
	one := cloud.Event{InstanceID: "i-1"}
	several := cloud.Event{InstanceID: "i-1", Instances: []string{"i-1", "i-2"}}
	launch := several
	launch.Hook.Launching = true
	for _, tt := range []struct {
		e      cloud.Event
		id     string
		ok     bool
		others string
	}{
		{one, "i-1", true, "[]"},
		{one, "i-2", false, "[]"},
		{several, "i-2", true, "[i-1]"},
		{several, "i-3", false, "[]"},
		{launch, "i-2", true, "[]"},
	} {
		got, ok := tt.e.For(tt.id)
		if ok != tt.ok || (got.InstanceID == tt.id) != ok || fmt.Sprint(got.Hook.Others) != tt.others {
			t.Errorf("%s: %t, %+v", tt.id, ok, got)
		}
	}
}

func TestEventStale(t *testing.T) {
	made := time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)
	e := cloud.Event{Kind: cloud.Park, Time: made}
	for age, want := range map[time.Duration]bool{-time.Hour: false, 0: false, 48 * time.Hour: false, 48*time.Hour + time.Second: true} {
		must.Equal(t, fmt.Sprint(age), e.Stale(made.Add(age)), want)
	}
	if (cloud.Event{}).Stale(made) {
		t.Error("an event without a time is stale")
	}
}
