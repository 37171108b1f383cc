// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakealibaba"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

func TestScaling(t *testing.T) {
	t.Parallel()
	of := func(kind cloud.Kind, id, reason string) []cloud.Notice {
		return []cloud.Notice{{ID: "alibaba-lifecycle/" + id, Kind: kind, Reason: reason, Who: "Auto Scaling"}}
	}
	for state, want := range map[string][]cloud.Notice{
		"InService": nil, "Protected": nil, "Pending": nil, "Pending:Wait": nil,
		"Removing": of(cloud.Terminate, "terminate", "scale-in"), "Removing:Wait": of(cloud.Terminate, "terminate", "scale-in"),
		"Removing:Proceed": of(cloud.Terminate, "terminate", "scale-in"),
		"Standby":          of(cloud.Park, "park", "standby"), "Stopped": of(cloud.Park, "park", "stopped by the group"),
		"Frozen:Deep": of(cloud.Unknown, "unknown/Frozen:Deep", "state Frozen:Deep"),
	} {
		must.NoDiff(t, state, scaling(state), want)
	}
}

// dated is the clock of an answer with a header Date.
func dated() *cloud.Clock {
	var c cloud.Clock
	c.Seen(http.Header{"Date": {time.Now().UTC().Format(http.TimeFormat)}})
	return &c
}

func TestParseEvents(t *testing.T) {
	t.Parallel()
	const date, past = "2026-11-22T08:00:00Z", "2001-11-22T08:00Z"
	event := func(kind, state, notBefore string) string {
		return `[{"EventId":"e-1","EventType":{"Name":"` + kind + `"},"EventCycleStatus":{"Code":24,"Name":"` + state + `"},"NotBefore":"` + notBefore + `","New":{"x":[1]}}]`
	}
	for _, tt := range []struct{ name, body, want string }{ // kind, event, time and past; "error"
		{"none", "None", ""},
		{"empty", "\n", ""},
		{"empty list", "[]", ""},
		{"as of DescribeInstancesFullStatus", metadatatest.Fixture(t, "events_api.json"), "reboot SystemMaintenance.Reboot: host 2026-11-22 08:00 false"},
		{"another host", event("SystemMaintenance.Redeploy", "Scheduled", date), "reboot SystemMaintenance.Redeploy 2026-11-22 08:00 false"},
		{"a disk is isolated", event("A.RebootAndIsolateErrorDisk", "Scheduled", date), "reboot A.RebootAndIsolateErrorDisk 2026-11-22 08:00 false"},
		{"it fails now", event("InstanceFailure.Reboot", "Executing", ""), "reboot InstanceFailure.Reboot 0001-01-01 00:00 false"},
		{"it failed before this boot", event("InstanceFailure.Reboot", "Executing", past), "reboot InstanceFailure.Reboot 2001-11-22 08:00 true"},
		{"stop", event("SystemMaintenance.Stop", "Scheduled", date), "interrupt SystemMaintenance.Stop 2026-11-22 08:00 false"},
		{"not paid for", event("InstanceExpiration.Delete", "Scheduled", date), "interrupt InstanceExpiration.Delete 2026-11-22 08:00 false"},
		{"released", event("AccountUnbalanced.Release", "Scheduled", date), "interrupt AccountUnbalanced.Release 2026-11-22 08:00 false"},
		{"without a date", event("SystemMaintenance.Stop", "Scheduled", ""), "unknown SystemMaintenance.Stop 0001-01-01 00:00 false"},
		{"live migration", event("SystemMaintenance.Migrate", "Scheduled", date), "unknown SystemMaintenance.Migrate 0001-01-01 00:00 false"},
		{"waits for consent", event("SystemMaintenance.Stop", "Inquiring", date), ""},
		{"avoided", event("SystemMaintenance.Stop", "Avoided", date), ""},
		{"executed", event("SystemMaintenance.Stop", "Executed", date), ""},
		{"canceled", event("SystemMaintenance.Stop", "Canceled", date), ""},
		{"failed", event("SystemMaintenance.Stop", "Failed", date), ""},
		{
			"beside an odd one", `[{"EventId":"e-1","EventType":"X","NotBefore":7},` + event("SystemMaintenance.Stop", "Scheduled", date)[1:],
			"unknown  0001-01-01 00:00 falseinterrupt SystemMaintenance.Stop 2026-11-22 08:00 false",
		},
		{"a page", "<html>", "error"},
		{"a word", `"x"`, "error"},
	} {
		got := ""
		current, err := parseEvents(dated(), []byte(tt.body))
		for _, n := range current {
			got += fmt.Sprintf("%s %s %s %t", n.Kind, strings.TrimPrefix(n.Reason, "system event "), n.At.Format("2006-01-02 15:04"), n.Past)
			if n.Who != "ECS" || !strings.HasPrefix(n.ID, topicEvents+"/") || !strings.HasSuffix(n.ID, "/e-1") {
				t.Errorf("%s: %+v", tt.name, n)
			}
		}
		if err != nil {
			got += "error"
		}
		must.Equal(t, tt.name, got, tt.want)
	}
}

// watch runs Watch until the test ends.
func (a *account) watch() { a.Watched = metadatatest.Watch(a.t, a.open()) }

// logged counts a text in the log.
func (a *account) logged(text string, times int) {
	a.t.Helper()
	must.Equal(a.t, fmt.Sprintf("%q in the log:\n%s", text, a.log.String()), strings.Count(a.log.String(), text), times)
}

func TestWatchMetadata(t *testing.T) {
	bubble(t, func(t *testing.T, a *account) {
		a.watch()
		spot := cloud.Notice{
			ID: "alibaba-spot/interrupt", Kind: cloud.Interrupt, Reason: "spot instance is reclaimed", Who: "ECS spot",
			At: time.Now().Add(5 * time.Minute).UTC(),
		}
		a.Look(topicSpot, 11*time.Second, 3)
		a.meta.Interrupt(spot.At)
		a.Look(topicSpot, 5*time.Second, 1, spot)
		a.plays(serves(spotPath, http.StatusOK, "<html>"))
		a.Look(topicSpot, time.Minute, 0, spot)
		a.plays(serves(spotPath, http.StatusInternalServerError, ""))
		a.Look(topicSpot, time.Minute, 0, spot)
		a.logged(`cannot be read, notices may come late" item="spot`, 1)
		a.meta.ClearFaults()
		a.meta.Interrupt(time.Time{})
		a.Look(topicSpot, 10*time.Second, metadatatest.Some)

		events := metadatatest.Fixture(t, "events_api.json")
		event, err := parseEvents(dated(), []byte(events))
		must.OK(t, err)
		a.Look(topicEvents, time.Minute, 1)
		a.meta.Announce(events)
		a.Look(topicEvents, time.Minute, 1, event...)
		a.plays(serves(eventsPath, http.StatusOK, "[{"))
		a.Look(topicEvents, 5*time.Minute, 0, event...)
		a.meta.ClearFaults()
		a.meta.Announce("[]")
		a.Look(topicEvents, time.Minute, metadatatest.Some)
	})
}

// TestClock: the clock of the machine is not the cloud's.
func TestClock(t *testing.T) {
	for _, c := range fakes.Clocks() {
		row(t, c.Name, func(t *testing.T, a *account) {
			p, err := New(cloud.Options{Transport: fakes.Transport{Handler: a.meta, Clock: c.Date}, APITransport: a})
			must.OK(t, err)
			a.meta.Interrupt(c.Now().Add(5 * time.Minute))
			a.meta.Announce(`[{"EventId":"e","EventType":{"Name":"SystemMaintenance.Reboot"},"EventCycleStatus":{"Name":"Executing"},"NotBefore":"` +
				c.Now().Add(24*time.Hour).UTC().Format(time.RFC3339) + `"}]`)
			w := metadatatest.Watch(t, p)
			<-time.After(time.Second)
			synctest.Wait()
			w.One(topicSpot, cloud.Interrupt, 5*time.Minute)
			day := 24 * time.Hour
			if c.Undated {
				day -= c.Ahead
			}
			w.One(topicEvents, cloud.Reboot, day)
		})
	}
}

// TestFieldReport03_Token: a session token that expires early is replaced every time.
func TestFieldReport03_Token(t *testing.T) {
	bubble(t, func(t *testing.T, a *account) {
		a.watch()
		a.Look(topicSpot, time.Second, 1)
		for range 5 {
			a.Look(topicSpot, spotEvery, 1)
			a.meta.ExpireTokens()
		}
		a.logged(`item="spot`, 0)
	})
}

func TestWatchScaling(t *testing.T) {
	bubble(t, func(t *testing.T, a *account) {
		topic := cloud.GroupTopic(Name)
		a.plays(joins(drain))
		a.watch()
		look := func(what string, d time.Duration, least, most, reports int, want ...cloud.Notice) {
			t.Helper()
			before := len(a.called(describeMembers))
			a.Look(topic, d, reports, want...)
			if calls := len(a.called(describeMembers)) - before; calls < least || calls > most {
				t.Errorf("%s: %d calls, want %d to %d", what, calls, least, most)
			}
		}
		parked, ending := scaling("Standby")[0], scaling("Removing:Wait")[0]
		look("in service", 10*time.Minute, 54, 67, metadatatest.Some)
		a.plays(moves("Standby"))
		look("parked", 12*time.Second, 1, 2, metadatatest.Some, parked)
		// A refused call counts for the whole account: fewer calls follow, and more again after a success.
		a.plays(fails(fakes.Fault{Code: "Throttling.User"}))
		look("throttled", 10*time.Minute, 9, 14, 0, parked)
		a.ClearFaults()
		a.plays(fails(fakes.Fault{Code: "ServiceUnavailable", Status: http.StatusServiceUnavailable}))
		look("ill", 10*time.Minute, 9, 12, 0, parked)
		a.ClearFaults()
		a.plays(moves("InService"))
		look("well", 10*time.Minute, 18, 40, metadatatest.Some)
		look("well for long", 10*time.Minute, 54, 67, metadatatest.Some)
		a.logged(`cannot be read, notices may come late" item="state`, 1)
		a.logged(`can be read again" item="state`, 1)
		a.plays(ends(self))
		look("it ends", 12*time.Second, 1, 2, metadatatest.Some, ending)
		// One answer without this instance may be wrong. Outside of a group there are few calls.
		a.plays(completes(drain))
		look("in no group", 2*time.Minute, 2, 2, 0, ending)
		look("in no group for long", time.Hour, 10, 14, 0, ending)
		a.plays(joins(drain))
		look("in a group again", 7*time.Minute, 8, 50, metadatatest.Some)
	})
}

// Without the permission the agent asks every ten minutes, and logs that once.
func TestWatchScalingDenied(t *testing.T) {
	bubble(t, func(t *testing.T, a *account) {
		topic := cloud.GroupTopic(Name)
		a.plays(joins(), moves("Protected"), denies(describeMembers))
		a.meta.Update(func(i *fakealibaba.Instance) { i.Role = "" })
		a.watch()
		a.Look(topic, time.Hour, 0)
		a.logged("cannot be seen", 1)
		a.meta.Update(func(i *fakealibaba.Instance) { i.Role = "ams-node" })
		a.Look(topic, time.Hour, 0)
		a.logged("cannot be seen", 2)
		if n := len(a.called(describeMembers)); n < 5 || n > 7 {
			t.Errorf("%d calls in an hour", n)
		}
		a.ClearFaults()
		a.Look(topic, 11*time.Minute, metadatatest.Some)
		a.logged("can be read again", 1)
	})
}

func FuzzParseSystemEvents(f *testing.F) {
	f.Add([]byte(metadatatest.Fixture(f, "events_api.json")))
	f.Add([]byte(`[{"EventId":"e-1","EventType":{"Name":"InstanceFailure.Reboot"},"EventCycleStatus":{"Name":"Executing"}}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		notices, err := parseEvents(&cloud.Clock{}, body)
		for _, n := range notices {
			if err != nil || !strings.HasPrefix(n.ID, topicEvents+"/") || n.Kind == "" || strings.ContainsAny(n.ID+n.Reason, "\r\n\x00\x1b") {
				t.Errorf("%+v, %v", n, err)
			}
		}
	})
}
