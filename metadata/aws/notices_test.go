// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

// The paths of the three items, and their topics.
const (
	target    = "autoscaling/target-lifecycle-state"
	spot      = "spot/instance-action"
	scheduled = "events/maintenance/scheduled"
	state     = "aws-lifecycle"
)

func scaleIn() cloud.Notice {
	return cloud.Notice{ID: "aws-lifecycle/terminate", Kind: cloud.Terminate, Who: "Auto Scaling", Reason: "scale-in"}
}

func parked(reason string) cloud.Notice {
	return cloud.Notice{ID: "aws-lifecycle/park", Kind: cloud.Park, Who: "Auto Scaling", Reason: reason}
}

// TestNotices: each answer of an item and the notices in force; bad means that there is no report.
func TestNotices(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile(filepath.Join("testdata", "signals", "scheduled.json"))
	must.OK(t, err)
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // the time at which synctest begins
	in := now.Add(2 * time.Minute)
	day := func(d int) time.Time { return time.Date(2000, 1, d, 0, 0, 0, 0, time.UTC) }
	event := func(kind cloud.Kind, id, reason string, at time.Time) cloud.Notice {
		return cloud.Notice{ID: "aws-scheduled/" + id, Kind: kind, Who: "EC2", Reason: "scheduled event " + reason, At: at}
	}
	interrupt := cloud.Notice{ID: "aws-spot/interrupt", Kind: cloud.Interrupt, Who: "EC2 Spot", Reason: "spot interruption (terminate)", At: in}
	hibernate := interrupt
	hibernate.Kind, hibernate.Reason = cloud.Park, "spot interruption (hibernate)"
	late := interrupt
	late.At = now
	outlived := interrupt
	outlived.At, outlived.Past = now, true
	frozen := cloud.Notice{ID: "aws-lifecycle/unknown/Frozen:Deep", Kind: cloud.Unknown, Who: "Auto Scaling", Reason: "target state Frozen:Deep, state InService"}
	for _, tt := range []struct {
		name, item, body string
		want             []cloud.Notice
		bad              bool
	}{
		{"in service", target, "InService", nil, false},
		{"outside of a group", target, "", nil, true},
		{"scale-in", target, "Terminated\n", []cloud.Notice{scaleIn()}, false},
		{"scale-in of the pool", target, "Warmed:Terminated", []cloud.Notice{scaleIn()}, false},
		{"into the pool", target, "Warmed:Stopped", []cloud.Notice{parked("return to the warm pool (Stopped)")}, false},
		{"hibernated in the pool", target, "Warmed:Hibernated", []cloud.Notice{parked("return to the warm pool (Hibernated)")}, false},
		{"standby", target, "Standby", []cloud.Notice{parked("standby")}, false},
		{"detached", target, "Detached", []cloud.Notice{parked("detached from the group")}, false},
		{"a state to come", target, "Frozen:Deep", []cloud.Notice{frozen}, false},
		{"a page", target, "<html>404</html>", nil, true},
		{"no interruption", spot, "", nil, false},
		{"interruption", spot, `{"action":"terminate","time":"2000-01-01T00:02:00Z"}`, []cloud.Notice{interrupt}, false},
		{"another zone and one field more", spot, `{"action": "terminate", "time": "2000-01-01T01:02:00+01:00", "more": 1}`, []cloud.Notice{interrupt}, false},
		{"hibernation", spot, `{"action":"hibernate","time":"2000-01-01T00:02:00Z"}`, []cloud.Notice{hibernate}, false},
		{"an interruption from before this boot", spot, `{"action":"terminate","time":"1999-01-01T00:00:00Z"}`, []cloud.Notice{outlived}, false},
		{"one that should have come in this boot", spot, `{"action":"terminate","time":"1999-12-31T23:59:59Z"}`, []cloud.Notice{late}, false},
		{"no time", spot, `{"action":"stop"}`, nil, true},
		{"not JSON", spot, `terminate`, nil, true},
		{"nothing is scheduled", scheduled, "[]", nil, false},
		{"no scheduled events", scheduled, "", nil, false},
		{"the user guide's example", scheduled, string(file), []cloud.Notice{
			event(cloud.Reboot, "system-reboot/instance-event-0d59937288b749b32", "system-reboot: scheduled reboot", time.Date(2019, 1, 21, 9, 0, 43, 0, time.UTC)),
		}, false},
		{"stop, reboots and maintenance", scheduled, `[{"EventId":"a","Code":"instance-stop","NotBefore":"8 Jan 2000 00:00:00 GMT"},
			{"EventId":"b","Code":"instance-reboot","State":"active","NotBefore":"2099-01-09T00:00:00Z"},
			{"EventId":"c","Code":"system-maintenance","State":"Active","NotBefore":"10 Jan 2000 00:00:00 GMT","Description":"power\u001b[31m"},
			{"EventId":"d","Code":"instance-retirement","State":"completed","NotBefore":"11 Jan 2000 00:00:00 GMT"}]`, []cloud.Notice{
			event(cloud.Interrupt, "instance-stop/a", "instance-stop", day(8)),
			event(cloud.Reboot, "instance-reboot/b", "instance-reboot", time.Date(2099, 1, 9, 0, 0, 0, 0, time.UTC)),
			event(cloud.Reboot, "system-maintenance/c", "system-maintenance: power[31m", day(10)),
		}, false},
		{"without a date", scheduled, `[{"EventId":"e","Code":"instance-stop","NotBefore":"next week"}]`, []cloud.Notice{
			event(cloud.Unknown, "instance-stop/e", "instance-stop", time.Time{}),
		}, false},
		{"an event to come", scheduled, `[{"EventId":"e","Code":"instance-party","NotBefore":"8 Jan 2000 00:00:00 GMT"}]`, []cloud.Notice{
			event(cloud.Unknown, "instance-party/e", "instance-party", day(8)),
		}, false},
		{"a reboot that is over", scheduled, `[{"EventId":"b","Code":"instance-reboot","State":"active","NotBefore":"8 Jan 1999 00:00:00 GMT"}]`, []cloud.Notice{
			{ID: "aws-scheduled/instance-reboot/b", Kind: cloud.Reboot, Who: "EC2", Reason: "scheduled event instance-reboot", At: time.Date(1999, 1, 8, 0, 0, 0, 0, time.UTC), Past: true},
		}, false},
		{"an object", scheduled, `{}`, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			topic := map[string]string{target: state, spot: "aws-spot", scheduled: "aws-scheduled"}[tt.item]
			emulate(t, func(t *testing.T, e *emulated) {
				e.item(tt.item, tt.body)
				e.watch(t)
				reported := e.pass(50 * time.Millisecond)[topic] > 0
				if reported == tt.bad {
					t.Errorf("reported: %v", reported)
				}
				e.Look(topic, 0, metadatatest.Any, tt.want...)
			})
		})
	}
}

// TestClock: the clock of the machine is not the cloud's. A notice's time is the cloud's, and no notice is dropped for its time.
func TestClock(t *testing.T) {
	t.Parallel()
	for _, c := range fakes.Clocks() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				imds := fakeaws.New(fakeaws.Options{})
				p, err := aws.New(cloud.Options{Transport: fakes.Transport{Handler: imds, Clock: c.Date}})
				must.OK(t, err)
				spots, reboots := c.Now().Add(2*time.Minute).UTC().Format(time.RFC3339), c.Now().Add(24*time.Hour).UTC().Format(time.RFC3339)
				imds.Update(func(i *fakeaws.Instance) {
					fakes.Set(&i.Extra, spot, `{"action":"terminate","time":"`+spots+`"}`)
					fakes.Set(&i.Extra, scheduled, `[{"EventId":"b","Code":"instance-reboot","State":"active","NotBefore":"`+reboots+`"}]`)
				})
				w := metadatatest.Watch(t, p)
				<-time.After(time.Second)
				synctest.Wait()
				w.One("aws-spot", cloud.Interrupt, 2*time.Minute)
				day := 24 * time.Hour
				if c.Undated {
					day -= c.Ahead // as the cloud says it
				}
				w.One("aws-scheduled", cloud.Reboot, day)
			})
		})
	}
}

// TestUnknownTarget: the API resolves a target state that this version does not know. The agent asks until the answer is final.
func TestUnknownTarget(t *testing.T) {
	t.Parallel()
	reimage := cloud.Notice{ID: "aws-lifecycle/reimage", Kind: cloud.Reimage, Who: "Auto Scaling", Reason: "root volume replaced"}
	unknown := func(id, reason string) cloud.Notice {
		return cloud.Notice{ID: "aws-lifecycle/unknown/" + id, Kind: cloud.Unknown, Who: "Auto Scaling", Reason: reason}
	}
	const replaced = "RootVolumeReplaced"
	past := reimage
	past.Past = true
	quarantined, notKnown := unknown("Quarantined", "target state Quarantined, state Quarantining:Wait"), unknown(replaced, "target state "+replaced)
	notAllowed := unknown(replaced, "target state "+replaced+", state not known without autoscaling:DescribeAutoScalingInstances")
	deny := func(e *emulated) { e.asg.Deny("DescribeAutoScalingInstances") }
	for name, tt := range map[string]struct {
		target, state string
		change        func(e *emulated)
		first, last   []cloud.Notice // at once, and after a minute
		calls         int            // within a minute
	}{
		"a root is being replaced":   {replaced, "ReplacingRootVolume:Wait", nil, list(reimage), list(reimage), 1},
		"the new root looks":         {replaced, "ReplacingRootVolume:Proceed", nil, list(past), list(past), 7},
		"the target says it is over": {"ReplacingRootVolume:Proceed", "InService", deny, list(past), list(past), 0},
		"a termination":              {"Erased", "Terminating:Wait", nil, list(scaleIn()), list(scaleIn()), 1},
		"a standby":                  {"Aside", "EnteringStandby", nil, list(parked("standby")), list(parked("standby")), 1},
		"into the pool":              {"Cold", "Warmed:Pending:Wait", nil, list(parked("return to the warm pool (Pending)")), list(parked("return to the warm pool (Pending)")), 1},
		"nothing has begun":          {"Cold", "InService", nil, list(unknown("Cold", "target state Cold, state InService")), list(unknown("Cold", "target state Cold, state InService")), 7},
		"the old root sees it late": {replaced, "InService", func(e *emulated) {
			time.AfterFunc(5*time.Second, func() { _ = e.asg.Move(self, replaced, "ReplacingRootVolume:Proceed") })
		}, nil, list(reimage), 2},
		"the new root, and then it is over": {replaced, "ReplacingRootVolume:Proceed", func(e *emulated) {
			time.AfterFunc(5*time.Second, func() { _ = e.asg.Move(self, replaced, "Pending:Wait") })
		}, list(past), nil, 7},
		"it terminates later": {"Cold", "InService", func(e *emulated) {
			time.AfterFunc(5*time.Second, func() { _ = e.asg.Move(self, "Cold", "Terminating:Wait") })
		}, list(unknown("Cold", "target state Cold, state InService")), list(scaleIn()), 2},
		"it begins in a moment": {replaced, "InService", func(e *emulated) {
			time.AfterFunc(5*time.Second, func() { _ = e.asg.ReplaceRoot(self) })
		}, nil, list(reimage), 2},
		"it was replaced":    {replaced, "Pending:Wait", nil, nil, nil, 7},
		"the target says it": {"ReplacingRootVolume:Wait", "InService", deny, list(reimage), list(reimage), 0},
		"another state":      {"Quarantined", "Quarantining:Wait", nil, list(quarantined), list(quarantined), 1},
		"a denied question":  {replaced, "ReplacingRootVolume", deny, list(notAllowed), list(notAllowed), 1},
		"the API answers some later": {replaced, "ReplacingRootVolume", func(e *emulated) {
			_ = e.asg.AddFault(fakes.Fault{Code: "Odd", Times: 1})
		}, list(notKnown), list(reimage), 2},
	} {
		t.Run(name, func(t *testing.T) {
			emulate(t, func(t *testing.T, e *emulated) {
				must.OK(t, e.asg.Move(self, tt.target, tt.state))
				if tt.change != nil {
					tt.change(e)
				}
				e.watch(t)
				e.Look(state, time.Second, metadatatest.Any, tt.first...)
				<-time.After(57 * time.Second)
				e.Look(state, 3*time.Second, metadatatest.Any, tt.last...)
				must.Equal(t, "calls", e.calls(), tt.calls)
			})
		})
	}
}

// TestWatchTarget: a change is seen within one interval, and a missing item withdraws nothing.
func TestWatchTarget(t *testing.T) {
	t.Parallel()
	emulate(t, func(t *testing.T, e *emulated) {
		e.watch(t)
		e.Look(state, 2*time.Second, metadatatest.Any)
		must.OK(t, e.asg.Terminate(self))
		e.Look(state, 2*time.Second, metadatatest.Any, scaleIn())
		e.SetTarget("")
		if n := e.pass(time.Hour)[state]; n > 0 {
			t.Errorf("%d reports of a missing item", n)
		}
		e.SetTarget("InService")
		e.Look(state, 2*time.Second, metadatatest.Any)
		must.Equal(t, "log", e.log.String(), "")
	})
}

// TestWatchSurvives checks that no failure of the service ends Watch, floods the log or the service, or hides a signal that can
// be read; and that Watch recovers after the failure, however long it took.
func TestWatchSurvives(t *testing.T) {
	t.Parallel()
	const items, token = "meta-data/*", "api/token"
	for name, fault := range map[string]fakes.Fault{
		// Of the items alone: the lock around the SDK's token request blocks synctest.
		"hang":               {Path: items, Hang: true},
		"429":                {Status: http.StatusTooManyRequests},
		"500":                {Status: http.StatusInternalServerError},
		"503 of the token":   {Path: token, Status: http.StatusServiceUnavailable},
		"401 for ever":       {Path: items, Status: http.StatusUnauthorized},
		"403":                {Status: http.StatusForbidden},
		"404 of the token":   {Path: token, Status: http.StatusNotFound},
		"garbage":            {Path: items, Status: http.StatusOK, Body: "<html>\x00"},
		"redirect":           {Status: http.StatusFound},
		"garbage as a token": {Path: token, Status: http.StatusOK, Body: "\x00\n"},
		"too large":          {Path: items, Status: http.StatusOK, Body: strings.Repeat("x", cloud.MaxBody+1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			emulate(t, func(t *testing.T, e *emulated) {
				e.watch(t)
				e.Look(state, time.Minute, metadatatest.Any)
				must.OK(t, e.AddFault(fault))
				e.ExpireTokens()
				before := len(e.Requests())
				long := time.Hour
				if name == "too large" {
					long = time.Minute // a megabyte each
				}
				e.pass(long)
				after := len(e.Requests())
				if perSecond := float64(after-before) / long.Seconds(); perSecond > 1 {
					t.Errorf("%.2f requests in a second while it fails", perSecond)
				}
				if n := e.lines("WARN"); n == 0 || n > 3 {
					t.Errorf("%d warnings:\n%s", n, e.log.String())
				}
				if strings.Contains(e.log.String(), "rate limit") || strings.Contains(e.log.String(), "quota") {
					t.Errorf("the SDK's bucket ran dry:\n%s", e.log.String())
				}
				must.OK(t, e.asg.Terminate(self))
				e.ClearFaults()
				wait := 20 * time.Second
				if name == "403" || name == "404 of the token" || name == "401 for ever" {
					wait = time.Minute + 5*time.Second
				}
				e.Look(state, wait, metadatatest.Any, scaleIn())
				e.pass(3 * time.Minute)
				must.Equal(t, "ends of failures in\n"+e.log.String(), e.lines("INFO"), e.lines("WARN"))
			})
		})
	}
}

// TestWatchOneItem checks that the failure of one item does not affect the others.
func TestWatchOneItem(t *testing.T) {
	t.Parallel()
	emulate(t, func(t *testing.T, e *emulated) {
		e.item(scheduled, `{"no":"list"}`)
		must.OK(t, e.AddFault(fakes.Fault{Path: "meta-data/" + spot, Hang: true}))
		e.watch(t)
		e.pass(time.Hour)
		must.Equal(t, "warnings in\n"+e.log.String(), e.lines("WARN"), 2)
		for range 20 {
			must.OK(t, e.asg.Terminate(self))
			e.Look(state, 2*time.Second, metadatatest.Any, scaleIn())
			must.OK(t, e.asg.Restore(self))
			e.Look(state, 2*time.Second, metadatatest.Any)
		}
	})
}
