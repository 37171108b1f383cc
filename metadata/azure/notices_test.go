// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure_test

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeazure"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/azure"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	pathEvents  = "/metadata/scheduledevents"
	topicEvents = "azure-events"
)

// soon is five minutes after the begin of the time in a bubble.
var soon = time.Date(2000, 1, 1, 0, 5, 0, 0, time.UTC)

// listed is how long an event that has begun is in the document.
const listed = 10 * time.Second

// world is the emulated machine edge_3 of a scale set, and what Watch reports and logs on it.
type world struct {
	*fakeazure.Server
	*metadatatest.Watched
	t   *testing.T
	log locked.Buffer
}

// bubble runs test with a machine in a bubble, which must never make more requests than Azure answers.
func bubble(t *testing.T, o fakeazure.Options, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Set = fakeazure.NewSet("edge", fakeazure.SetOptions{StartedTime: listed})
		w := &world{t: t, Server: fakeazure.New(o)}
		test(t, w)
		if w.wrote(fakeazure.Throttled) {
			t.Error("more than five requests in a second")
		}
	})
}

func (w *world) provider() *azure.Provider {
	return open(w.t, cloud.Options{Transport: fakes.Transport{Handler: w}, Log: slog.New(slog.NewTextHandler(&w.log, nil))})
}

func (w *world) watch() { w.Watched = metadatatest.Watch(w.t, w.provider()) }

// announce schedules event 602d, of this machine and in five minutes if the caller does not say otherwise.
func (w *world) announce(e fakeazure.Event) {
	w.t.Helper()
	e.ID, e.Lead = cmp.Or(e.ID, "602d"), cmp.Or(e.Lead, 5*time.Minute)
	if e.VMs == nil {
		e.VMs = []string{"EDGE_3"}
	}
	_, err := w.Set().Announce(e)
	must.OK(w.t, err)
}

func (w *world) fault(f fakes.Fault) {
	w.t.Helper()
	must.OK(w.t, w.AddFault(f))
}

// wrote reports whether the books of the set have such an entry.
func (w *world) wrote(what string) bool {
	return slices.ContainsFunc(w.Set().Books(), func(e fakeazure.Entry) bool { return e.What == what })
}

// logged fails the test unless the log has this number of warnings and of recoveries.
func (w *world) logged(bad, good int) {
	w.t.Helper()
	log := w.log.String()
	if b, g := strings.Count(log, "level=WARN"), strings.Count(log, "can be read again"); b != bad || g != good || strings.Count(log, "\n") != bad+good {
		w.t.Errorf("%d warnings, %d times well again:\n%s", b, g, log)
	}
}

// notice is that of event 602d, without a time.
func notice(kind cloud.Kind, source, reason string) cloud.Notice {
	return cloud.Notice{ID: "azure-events/602d", Kind: kind, Reason: reason, Who: strings.TrimSuffix("Azure ("+source+")", " ()")}
}

// scheduled is the notice of an event that has not begun: it can be acknowledged.
func scheduled(n cloud.Notice, event string, at time.Time, others ...string) cloud.Notice {
	n.At = at
	n.Hook = &cloud.Hook{Provider: "azure", Group: "edge", Name: event + " 602d", Token: "602d", Fixed: true, Limit: at, Others: append([]string{}, others...)}
	return n
}

func TestNotices(t *testing.T) {
	terminate, preempt := notice(cloud.Terminate, "User", "scale-in"), notice(cloud.Interrupt, "Platform", "spot eviction")
	reboot, redeploy := notice(cloud.Reboot, "Platform", "scheduled event Reboot"), notice(cloud.Reboot, "Platform", "scheduled event Redeploy")
	caused, party := notice(cloud.Reboot, "Platform", "scheduled event Reboot, for 9s: be cause"), notice(cloud.Unknown, "Platform", "scheduled event Party")
	past := reboot
	past.Past, party.At = true, soon
	for _, tt := range []struct {
		name   string
		event  fakeazure.Event
		begins time.Duration // after the first poll, or before it if negative
		want   []cloud.Notice
	}{
		{"terminate", fakeazure.Event{Type: "Terminate"}, 0, []cloud.Notice{scheduled(terminate, "Terminate", soon)}},
		{"of several machines", fakeazure.Event{Type: "Terminate", VMs: []string{"edge_4", "edge_3", "edge_5"}}, 0, []cloud.Notice{scheduled(terminate, "Terminate", soon, "edge_4", "edge_5")}},
		{"preempt", fakeazure.Event{Type: "Preempt"}, 0, []cloud.Notice{scheduled(preempt, "Preempt", soon)}},
		{"reboot", fakeazure.Event{Type: "Reboot", Duration: 9 * time.Second, Description: "be\ncause\x1b"}, 0, []cloud.Notice{scheduled(caused, "Reboot", soon)}},
		{"redeploy", fakeazure.Event{Type: "Redeploy"}, 0, []cloud.Notice{scheduled(redeploy, "Redeploy", soon)}},
		{"freeze", fakeazure.Event{Type: "Freeze"}, 0, nil},
		{"unknown type", fakeazure.Event{Type: "Party"}, 0, []cloud.Notice{party}},
		{"of another machine", fakeazure.Event{Type: "Terminate", VMs: []string{"edge_33"}}, 0, nil},
		{"end that has begun", fakeazure.Event{Type: "Terminate"}, -1, []cloud.Notice{notice(cloud.Interrupt, "User", "scale-in")}},
		{"eviction that has begun", fakeazure.Event{Type: "Preempt"}, -1, []cloud.Notice{preempt}},
		{"reboot that has begun", fakeazure.Event{Type: "Reboot"}, 1, []cloud.Notice{reboot}},
		{"reboot before this boot", fakeazure.Event{Type: "Reboot"}, -1, []cloud.Notice{past}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, fakeazure.Options{}, func(t *testing.T, w *world) {
				w.announce(tt.event)
				if tt.begins < 0 {
					must.OK(t, w.Set().Begin("602d"))
				}
				w.watch()
				if <-time.After(1500 * time.Millisecond); tt.begins > 0 {
					must.OK(t, w.Set().Begin("602d"))
				}
				w.Look(topicEvents, time.Second, metadatatest.Some, tt.want...)
			})
		})
	}
}

// TestClock: the clock of the machine is not the cloud's. An acknowledgement waits until the cloud's time.
func TestClock(t *testing.T) {
	ends := func(t *testing.T, c fakes.Clock, event string, kind cloud.Kind, lead time.Duration) {
		bubble(t, fakeazure.Options{}, func(t *testing.T, w *world) {
			notBefore := c.Now().Add(lead).UTC().Format(http.TimeFormat)
			events := `{"Events":[{"EventId":"1","Resources":["edge_3"],"EventType":"` + event + `","EventStatus":"Scheduled","NotBefore":"` + notBefore + `"}]}`
			w.fault(fakes.Fault{Path: "scheduledevents", Status: http.StatusOK, Body: events})
			w.Watched = metadatatest.Watch(t, open(t, cloud.Options{Transport: fakes.Transport{Handler: w, Clock: c.Date}}))
			<-time.After(5 * time.Second)
			synctest.Wait()
			w.One(topicEvents, kind, lead)
			if n := w.Last()[topicEvents]; n[0].Hook == nil || !n[0].Hook.Limit.Equal(n[0].At) {
				t.Errorf("%+v", n)
			}
		})
	}
	for _, c := range fakes.Clocks() {
		t.Run(c.Name, func(t *testing.T) {
			ends(t, c, "Terminate", cloud.Terminate, 5*time.Minute)
			ends(t, c, "Preempt", cloud.Interrupt, 30*time.Second)
		})
	}
}

// TestUnexpectedEvents: documents that the emulated service does not give.
func TestUnexpectedEvents(t *testing.T) {
	terminate, preempt := notice(cloud.Terminate, "", "scale-in"), notice(cloud.Interrupt, "", "spot eviction")
	for _, tt := range []struct {
		name, event string
		want        cloud.Notice
	}{
		{
			"its time is over", `"EventType":"terminate","EventStatus":"Scheduled","NotBefore":"Fri, 31 Dec 1999 23:59:00 GMT"`,
			scheduled(terminate, "terminate", soon.Add(-6*time.Minute)),
		},
		{
			"one digit in the date", `"EventType":"Preempt","EventStatus":"Scheduled","NotBefore":"Sat, 1 Jan 2000 00:05:00 GMT"`,
			scheduled(preempt, "Preempt", soon),
		},
		{"no time", `"EventType":"Preempt","EventStatus":"Scheduled","NotBefore":"soon"`, scheduled(preempt, "Preempt", time.Time{})},
		{
			"parts of unknown form", `"EventType":"Preempt","EventStatus":"Scheduled","NotBefore":null,"ResourceType":7,"DurationInSeconds":"5"`,
			scheduled(preempt, "Preempt", time.Time{}),
		},
		{
			"of something else", `"EventType":"Preempt","EventStatus":"Scheduled","NotBefore":"Sat, 01 Jan 2000 00:05:00 GMT","ResourceType":"Disk"`,
			notice(cloud.Unknown, "", "spot eviction"),
		},
		{
			"unknown status, to come", `"EventType":"Terminate","EventStatus":"Approved","NotBefore":"Sat, 01 Jan 2000 00:05:00 GMT"`,
			scheduled(terminate, "Terminate", soon),
		},
		{"unknown status, past", `"EventType":"Terminate","EventStatus":"Completed","NotBefore":""`, notice(cloud.Unknown, "", "scale-in")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, fakeazure.Options{}, func(t *testing.T, w *world) {
				events := `{"Events":[{"EventId":17,"EventType":[]},{"EventId":"602d","Resources":["edge_3"],` + tt.event + `}]}`
				w.fault(fakes.Fault{Path: "scheduledevents", Status: http.StatusOK, Body: events})
				w.watch()
				w.Look(topicEvents, time.Second, metadatatest.Some, tt.want)
			})
		})
	}
}

// TestWatch: a scale-in moves, is acknowledged, begins and is over; a reboot of this machine comes between.
func TestWatch(t *testing.T) {
	bubble(t, fakeazure.Options{}, func(t *testing.T, w *world) {
		w.announce(fakeazure.Event{Type: "Terminate"})
		w.announce(fakeazure.Event{ID: "1", Type: "Reboot", VMs: []string{"edge_0"}})
		w.watch()
		terminate := notice(cloud.Terminate, "User", "scale-in")
		w.Look(topicEvents, 500*time.Millisecond, 1, scheduled(terminate, "Terminate", soon))
		w.Look(topicEvents, 10*time.Second, 10, scheduled(terminate, "Terminate", soon))
		must.Equal(t, "asked (times) for the name of this machine", w.Asked(pathInstance, time.Time{}), 1)
		later, err := w.Set().Move("602d", soon.Add(10*time.Minute))
		must.OK(t, err)
		terminate = scheduled(terminate, "Terminate", later)
		w.Look(topicEvents, time.Second, 1, terminate)

		w.announce(fakeazure.Event{ID: "2", Type: "Reboot"})
		must.OK(t, w.Set().Begin("2"))
		reboot := notice(cloud.Reboot, "Platform", "scheduled event Reboot")
		reboot.ID = "azure-events/2"
		w.Look(topicEvents, time.Second, 1, terminate, reboot)
		w.Look(topicEvents, listed, 10, terminate)

		must.OK(t, w.provider().Complete(t.Context(), *terminate.Hook))
		w.Look(topicEvents, time.Second, 1, notice(cloud.Interrupt, "User", "scale-in"))
		w.Look(topicEvents, listed, 10)
		w.logged(0, 0)
		must.Equal(t, fmt.Sprintf("number of topics in %v", w.Last()), len(w.Last()), 1)
	})
}

// An event that cannot be decoded is not reported. An outage is two lines in the log.
func TestWatchTrouble(t *testing.T) {
	for status, least := range map[int]int{400: 100, 403: 9, 404: 100, 410: 100, 429: 100, 500: 100, http.StatusOK: 100} {
		bubble(t, fakeazure.Options{}, func(t *testing.T, w *world) {
			w.announce(fakeazure.Event{Type: "Preempt"})
			w.watch()
			preempt := scheduled(notice(cloud.Interrupt, "Platform", "spot eviction"), "Preempt", soon)
			w.Look(topicEvents, 5500*time.Millisecond, 6, preempt)
			broken := time.Now()
			w.fault(fakes.Fault{Path: "scheduledevents", Status: status, Body: "<html>"})
			w.Look(topicEvents, 10*time.Minute, 0, preempt)
			if n := w.Asked(pathEvents, broken); n < least || n > 170 {
				t.Errorf("%d: %d polls in ten minutes", status, n)
			}
			w.ClearFaults()
			w.Look(topicEvents, time.Minute, metadatatest.Some) // the event is over
			w.logged(1, 1)
		})
	}
	// Without a name no event concerns this machine.
	bubble(t, fakeazure.Options{VM: &fakeazure.VM{ID: fakeazure.Sample().ID}}, func(t *testing.T, w *world) {
		w.announce(fakeazure.Event{Type: "Preempt", VMs: []string{""}})
		w.watch()
		w.Look(topicEvents, time.Minute, 0)
		must.Equal(t, "asked (times) for the name of this machine", w.Asked(pathInstance, time.Time{}), 1)
		w.logged(1, 0)
	})
}

// TestFieldReport11_FirstCall: the first call may take two minutes. With a timeout of one second it never got an answer.
func TestFieldReport11_FirstCall(t *testing.T) {
	bubble(t, fakeazure.Options{FirstCall: 2 * time.Minute}, func(t *testing.T, w *world) {
		w.watch()
		w.Look(topicEvents, 2*time.Minute, 1)
		// From then on four seconds are slow, and ten are too long.
		for bad, delay := range []time.Duration{4 * time.Second, 10 * time.Second} {
			w.fault(fakes.Fault{Path: "scheduledevents", Delay: delay, Times: 1})
			<-time.After(10 * time.Second)
			w.logged(bad, bad)
		}
		// After a day without an answer the events are off again.
		w.fault(fakes.Fault{Path: "scheduledevents", Status: http.StatusInternalServerError})
		<-time.After(24 * time.Hour)
		w.ClearFaults()
		w.Reports()
		back := time.Now()
		w.fault(fakes.Fault{Path: "scheduledevents", Delay: 2 * time.Minute, Times: 1})
		w.Look(topicEvents, 126*time.Second, metadatatest.Some)
		if n := w.Asked(pathEvents, back); n > 10 {
			t.Errorf("asked %d times while the events were switched on", n)
		}
		w.logged(2, 2)
	})
}

// TestFieldReport12_PerZone: events are off in a zone until a machine there requests them. Every machine does so from the
// start, even if it cannot read its own metadata.
func TestFieldReport12_PerZone(t *testing.T) {
	bubble(t, fakeazure.Options{}, func(t *testing.T, w *world) {
		w.fault(fakes.Fault{Path: "instance", Status: http.StatusGone})
		w.announce(fakeazure.Event{Type: "Preempt", Lead: time.Hour})
		w.watch()
		w.Look(topicEvents, 0, 0)
		if !w.wrote(fakeazure.Enabled) {
			t.Error("the events are not switched on in the first moment")
		}
		w.Look(topicEvents, 10*time.Minute, 0)
		if n := w.Asked(pathEvents, time.Time{}); n < 110 {
			t.Errorf("%d polls in ten minutes", n)
		}
		w.ClearFaults()
		w.Look(topicEvents, 6*time.Second, metadatatest.Some, scheduled(notice(cloud.Interrupt, "Platform", "spot eviction"), "Preempt", soon.Add(55*time.Minute)))
		w.logged(1, 1)
	})
}

func TestComplete(t *testing.T) {
	ours := cloud.Hook{Provider: "azure", Token: "602d"}
	for _, tt := range []struct {
		name     string
		hook     cloud.Hook
		refusal  int // of the service, 0 for none
		ok, gone bool
		requests int
	}{
		{"done", ours, 0, true, false, 1},
		{"not known any more", cloud.Hook{Provider: "azure", Token: "602e"}, 0, false, true, 1},
		{"refused", ours, 403, false, false, 1},
		{"not there", ours, 404, false, false, 1},
		{"throttled", ours, 429, false, false, 1},
		{"hook of another cloud", cloud.Hook{Provider: "aws", Token: "602d"}, 0, false, true, 0},
		{"no event", cloud.Hook{Provider: "azure"}, 0, false, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, fakeazure.Options{}, func(t *testing.T, w *world) {
				w.announce(fakeazure.Event{Type: "Terminate"})
				if tt.refusal != 0 {
					w.fault(fakes.Fault{Status: tt.refusal})
				}
				err := w.provider().Complete(t.Context(), tt.hook)
				if (err == nil) != tt.ok || errors.Is(err, cloud.ErrGone) != tt.gone || w.wrote(fakeazure.Acked) != tt.ok || len(w.Requests()) != tt.requests {
					t.Errorf("%v, requests %v, books %v", err, w.Requests(), w.Set().Books())
				}
			})
		})
	}
	h := open(t, cloud.Options{})
	if found, err := h.Pending(t.Context(), false); found != nil || err != nil {
		t.Errorf("%v, %v", found, err)
	}
	if _, err := h.Extend(t.Context(), ours); !errors.Is(err, cloud.ErrNotWaiting) {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		set, priority string
		without, ask  string // parts of the result
	}{
		{"edge", "Regular", "", " -n edge "},
		{"edge", "Spot", "30 s ahead", ""},
		{"", "Regular", "", ""},
	} {
		o := fakeazure.Options{VM: &fakeazure.VM{ID: fakeazure.Sample().ID, ScaleSet: tt.set, Priority: tt.priority}}
		bubble(t, o, func(t *testing.T, w *world) {
			c, err := w.provider().Check(t.Context(), nil)
			if err != nil || c.Group != tt.set || !strings.Contains(c.Without, tt.without) || !strings.Contains(c.Ask, tt.ask) || (c.Untold != "") != (tt.ask != "") {
				t.Errorf("%+v: %+v, %v", tt, c, err)
			}
		})
	}
}
