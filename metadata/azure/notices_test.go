// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const pathEvents = "/metadata/scheduledevents"

// start is the begin of the time in a bubble, soon is five minutes later in the format of Azure.
var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

const soon = "Sat, 01 Jan 2000 00:05:00 GMT"

// world is Watch in a bubble with its own clock, and its metadata service, in memory.
type world struct {
	mu       sync.Mutex
	instance string
	events   string                      // the answer about events
	status   func(req *http.Request) int // nil is 200 for all
	slow     time.Duration               // of the next answer about events
	asked    map[string]int              // "GET /metadata/instance"
	posted   []string

	log locked.Buffer
	*metadatatest.Watched
}

func newWorld(t *testing.T) *world {
	return &world{instance: metadatatest.Fixture(t, "instance.json"), events: list(), asked: map[string]int{}}
}

// list is the answer with these events.
func list(events ...map[string]any) string {
	b, err := json.Marshal(map[string]any{"DocumentIncarnation": 1, "Events": append([]map[string]any{}, events...)})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// with is an event about this machine, with changes.
func with(kind string, change map[string]any) map[string]any {
	e := map[string]any{
		"EventId": "602d", "EventType": kind, "ResourceType": "VirtualMachine", "Resources": []string{"EDGE_3"}, "EventStatus": "Scheduled",
		"NotBefore": soon, "Description": "", "EventSource": "User", "DurationInSeconds": -1,
	}
	maps.Copy(e, change)
	return e
}

// set changes the service, and resets the counts.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	clear(w.asked)
	if w.Watched != nil {
		w.Reports()
	}
}

func (w *world) say(events ...map[string]any) { w.set(func() { w.events = list(events...) }) }

// RoundTrip implements http.RoundTripper.
func (w *world) RoundTrip(req *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.asked[req.Method+" "+req.URL.Path]++
	status, body := http.StatusOK, w.instance
	if w.status != nil {
		status = w.status(req)
	}
	if req.Header.Get("Metadata") != "true" || req.Header.Get("X-Forwarded-For") != "" || req.URL.Query().Get("api-version") == "" {
		status = http.StatusBadRequest
	}
	slow := time.Duration(0)
	switch {
	case req.Method == http.MethodPost:
		b, _ := io.ReadAll(req.Body)
		w.posted, body = append(w.posted, req.URL.Path+" "+string(b)), ""
	case req.URL.Path == pathEvents:
		body, slow, w.slow = w.events, w.slow, 0
	}
	w.mu.Unlock()
	if slow > 0 && !sleep.For(req.Context(), slow) {
		return nil, req.Context().Err()
	}
	return metadatatest.Answer(req, status, body), nil
}

// bubble runs test beside Watch.
func bubble(t *testing.T, w *world, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := open(t, cloud.Options{Transport: w, Log: slog.New(slog.NewTextHandler(&w.log, nil))})
		w.Watched = metadatatest.Watch(t, p)
		test(t)
		for topic := range w.Last() {
			if topic != TopicEvents {
				t.Errorf("topic %s", topic)
			}
		}
	})
}

// count returns the number of requests since the last change.
func (w *world) count(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[what]
}

// logged fails the test unless the log has this number of warnings and of recoveries.
func (w *world) logged(t *testing.T, bad, good int) {
	t.Helper()
	log := w.log.String()
	if b, g := strings.Count(log, "level=WARN"), strings.Count(log, "can be read again"); b != bad || g != good || strings.Count(log, "\n") != bad+good {
		t.Errorf("%d warnings, %d times well again:\n%s", b, g, log)
	}
}

func notice(kind cloud.Kind, reason string, at time.Time, hook *cloud.Hook) cloud.Notice {
	return cloud.Notice{ID: "azure-events/602d", Kind: kind, Reason: reason, Who: "Azure (User)", At: at, Hook: hook}
}

func hook(kind string, limit time.Time, others ...string) *cloud.Hook {
	return &cloud.Hook{Provider: "azure", Group: "edge", Name: kind + " 602d", Token: "602d", Fixed: true, Limit: limit, Others: append([]string{}, others...)}
}

func TestNotices(t *testing.T) {
	at, past, none := start.Add(5*time.Minute), start.Add(-time.Minute), time.Time{}
	started := map[string]any{"EventStatus": "started", "NotBefore": ""}
	azure := func(n cloud.Notice) cloud.Notice { n.Who = "Azure"; return n }
	before := func(n cloud.Notice) cloud.Notice { n.Past = true; return n }
	for _, tt := range []struct {
		name  string
		event map[string]any
		late  bool // it is missing at the first poll
		want  []cloud.Notice
	}{
		{"terminate", with("Terminate", nil), false, []cloud.Notice{notice(cloud.Terminate, "scale-in", at, hook("Terminate", at))}},
		{
			"of several machines", with("terminate", map[string]any{"Resources": []string{"edge_4", "edge_3", "edge_5"}}), true,
			[]cloud.Notice{notice(cloud.Terminate, "scale-in", at, hook("terminate", at, "edge_4", "edge_5"))},
		},
		{"preempt", with("Preempt", nil), false, []cloud.Notice{notice(cloud.Interrupt, "spot eviction", at, hook("Preempt", at))}},
		{
			"reboot", with("Reboot", map[string]any{"EventSource": nil, "DurationInSeconds": 9, "Description": "be\ncause\x1b"}), false,
			[]cloud.Notice{azure(notice(cloud.Reboot, "scheduled event Reboot, for 9s: be cause", at, hook("Reboot", at)))},
		},
		{"redeploy", with("Redeploy", nil), false, []cloud.Notice{notice(cloud.Reboot, "scheduled event Redeploy", at, hook("Redeploy", at))}},
		{"freeze", with("Freeze", nil), false, nil},
		{"of another machine", with("Terminate", map[string]any{"Resources": []string{"edge_33"}}), false, nil},
		{"end that has begun", with("Terminate", started), false, []cloud.Notice{notice(cloud.Interrupt, "scale-in", none, nil)}},
		{"eviction that has begun", with("Preempt", started), false, []cloud.Notice{notice(cloud.Interrupt, "spot eviction", none, nil)}},
		{"reboot that has begun", with("Reboot", started), true, []cloud.Notice{notice(cloud.Reboot, "scheduled event Reboot", none, nil)}},
		{"reboot before this boot", with("Redeploy", started), false, []cloud.Notice{before(notice(cloud.Reboot, "scheduled event Redeploy", none, nil))}},
		{
			"its time is over", with("Terminate", map[string]any{"NotBefore": "Fri, 31 Dec 1999 23:59:00 GMT"}), false,
			[]cloud.Notice{notice(cloud.Terminate, "scale-in", past, hook("Terminate", past))},
		},
		{"one digit in the date", with("Preempt", map[string]any{"NotBefore": "Sat, 1 Jan 2000 00:05:00 GMT"}), false, []cloud.Notice{notice(cloud.Interrupt, "spot eviction", at, hook("Preempt", at))}},
		{"no time", with("Preempt", map[string]any{"NotBefore": "soon"}), false, []cloud.Notice{notice(cloud.Interrupt, "spot eviction", none, hook("Preempt", none))}},
		{"parts of unknown form", with("Preempt", map[string]any{"ResourceType": 7, "NotBefore": nil, "DurationInSeconds": "5"}), false, []cloud.Notice{notice(cloud.Interrupt, "spot eviction", none, hook("Preempt", none))}},
		{"of something else", with("Preempt", map[string]any{"ResourceType": "Disk"}), false, []cloud.Notice{notice(cloud.Unknown, "spot eviction", none, nil)}},
		{"unknown type", with("Party", nil), false, []cloud.Notice{notice(cloud.Unknown, "scheduled event Party", at, nil)}},
		{"unknown status, to come", with("Terminate", map[string]any{"EventStatus": "Approved"}), false, []cloud.Notice{notice(cloud.Terminate, "scale-in", at, hook("Terminate", at))}},
		{"unknown status, past", with("Terminate", map[string]any{"EventStatus": "Completed", "NotBefore": ""}), false, []cloud.Notice{notice(cloud.Unknown, "scale-in", none, nil)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if !tt.late {
				w.say(map[string]any{"EventId": 17, "EventType": []int{}}, tt.event)
			}
			bubble(t, w, func(t *testing.T) {
				<-time.After(1500 * time.Millisecond)
				if tt.late {
					w.say(tt.event)
					<-time.After(time.Second)
				}
				w.Look(TopicEvents, 0, metadatatest.Some, tt.want...)
			})
		})
	}
}

func TestParseEvents(t *testing.T) {
	events, err := parseEvents([]byte(metadatatest.Fixture(t, "scheduledevents.json")))
	if err != nil || len(events) != 2 || !cloud.ParseTime(events[0].NotBefore, http.TimeFormat).Equal(time.Date(2026, 11, 20, 8, 5, 0, 0, time.UTC)) || events[0].started() || !events[1].started() {
		t.Errorf("%+v, %v", events, err)
	}
	for _, body := range []string{`{"DocumentIncarnation":1}`, `null`, `{"Events":{}}`, `{"Events":null}`, `<html>`, ``} {
		if events, err := parseEvents([]byte(body)); err == nil {
			t.Errorf("%s: %v", body, events)
		}
	}
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	w.say(with("Terminate", nil), with("Reboot", map[string]any{"Resources": []string{"edge_0"}}))
	bubble(t, w, func(t *testing.T) {
		at := start.Add(5 * time.Minute)
		terminate := notice(cloud.Terminate, "scale-in", at, hook("Terminate", at))
		w.Look(TopicEvents, 500*time.Millisecond, 1, terminate)
		w.Look(TopicEvents, 10*time.Second, 10, terminate)
		if n := w.count("GET " + pathInstance); n != 1 {
			t.Errorf("asked %d times for the name of this machine", n)
		}
		reboot := notice(cloud.Reboot, "scheduled event Reboot", time.Time{}, nil)
		reboot.ID = "azure-events/2"
		w.say(with("Terminate", nil), with("Reboot", map[string]any{"EventId": "2", "EventStatus": "Started"}))
		w.Look(TopicEvents, time.Second, 1, terminate, reboot)
		later := at.Add(10 * time.Minute)
		w.say(with("Terminate", map[string]any{"NotBefore": later.Format(http.TimeFormat)}))
		w.Look(TopicEvents, time.Second, 1, notice(cloud.Terminate, "scale-in", later, hook("Terminate", later)))
		w.say(with("Terminate", map[string]any{"EventStatus": "Started", "NotBefore": ""}))
		w.Look(TopicEvents, time.Second, 1, notice(cloud.Interrupt, "scale-in", time.Time{}, nil))
		w.say()
		w.Look(TopicEvents, 3*time.Second, 3)
		w.logged(t, 0, 0)
	})
}

// An event that cannot be decoded is not reported. An outage is two lines in the log.
func TestWatchTrouble(t *testing.T) {
	for status, least := range map[int]int{400: 100, 403: 9, 404: 100, 410: 100, 429: 100, 500: 100, http.StatusOK: 100} {
		w := newWorld(t)
		w.say(with("Preempt", nil))
		bubble(t, w, func(t *testing.T) {
			at := start.Add(5 * time.Minute)
			preempt := notice(cloud.Interrupt, "spot eviction", at, hook("Preempt", at))
			<-time.After(5500 * time.Millisecond)
			w.set(func() { w.status, w.events = func(*http.Request) int { return status }, "<html>" })
			w.Look(TopicEvents, 10*time.Minute, 0, preempt)
			if n := w.count("GET " + pathEvents); n < least || n > 170 {
				t.Errorf("%d: %d polls in ten minutes", status, n)
			}
			w.set(func() { w.status, w.events = nil, list() })
			w.Look(TopicEvents, time.Minute, metadatatest.Some)
			w.logged(t, 1, 1)
		})
	}
	// Without a name no event concerns this machine.
	w := newWorld(t)
	w.instance = doc(t, map[string]any{"name": ""})
	w.say(with("Preempt", map[string]any{"Resources": []string{""}}))
	bubble(t, w, func(t *testing.T) {
		w.Look(TopicEvents, time.Minute, 0)
		if n := w.count("GET " + pathInstance); n != 1 {
			t.Errorf("asked %d times for the name of this machine", n)
		}
		w.logged(t, 1, 0)
	})
}

// TestFieldReport11_FirstCall: the first call may take two minutes. With a timeout of one second it never got an answer.
func TestFieldReport11_FirstCall(t *testing.T) {
	w := newWorld(t)
	w.slow = 2 * time.Minute
	bubble(t, w, func(t *testing.T) {
		w.Look(TopicEvents, 2*time.Minute, 1)
		// From then on four seconds are slow, and ten are too long.
		w.set(func() { w.slow = 4 * time.Second })
		<-time.After(10 * time.Second)
		w.logged(t, 0, 0)
		w.set(func() { w.slow = 10 * time.Second })
		<-time.After(10 * time.Second)
		w.logged(t, 1, 1)
		// After a day without an answer the events are off again.
		w.set(func() { w.status = func(*http.Request) int { return http.StatusInternalServerError } })
		<-time.After(24 * time.Hour)
		w.set(func() { w.status, w.slow = nil, 2*time.Minute })
		w.Look(TopicEvents, 126*time.Second, metadatatest.Some)
		if n := w.count("GET " + pathEvents); n > 10 {
			t.Errorf("asked %d times while the events were switched on", n)
		}
		w.logged(t, 2, 2)
	})
}

// TestFieldReport12_PerZone: events are off in a zone until a machine there requests them. Every machine does so from the
// start, even if it cannot read its own metadata.
func TestFieldReport12_PerZone(t *testing.T) {
	w := newWorld(t)
	w.status = func(req *http.Request) int {
		if req.URL.Path == pathInstance {
			return http.StatusGone
		}
		return http.StatusOK
	}
	w.say(with("Preempt", nil))
	bubble(t, w, func(t *testing.T) {
		w.Look(TopicEvents, 0, 0)
		if n := w.count("GET " + pathEvents); n != 1 {
			t.Errorf("%d polls in the first moment", n)
		}
		w.Look(TopicEvents, 10*time.Minute, 0)
		if n := w.count("GET " + pathEvents); n < 110 {
			t.Errorf("%d polls in ten minutes", n)
		}
		w.set(func() { w.status = nil })
		at := start.Add(5 * time.Minute)
		w.Look(TopicEvents, 6*time.Second, metadatatest.Some, notice(cloud.Interrupt, "spot eviction", at, hook("Preempt", at)))
		w.logged(t, 1, 1)
	})
}

func TestComplete(t *testing.T) {
	for _, tt := range []struct {
		name        string
		hook        cloud.Hook
		status      int
		gone, fails bool
		starts      int
	}{
		{"done", *hook("", start), 200, false, false, 1},
		{"not known any more", *hook("", start), 400, true, true, 1},
		{"refused", *hook("", start), 403, false, true, 1},
		{"not there", *hook("", start), 404, false, true, 1},
		{"throttled", *hook("", start), 429, false, true, 1},
		{"hook of another cloud", cloud.Hook{Provider: "aws", Token: "602d"}, 200, true, true, 0},
		{"no event", cloud.Hook{Provider: "azure"}, 200, true, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.status = func(*http.Request) int { return tt.status }
			err := open(t, cloud.Options{Transport: w}).Hooks().Complete(t.Context(), tt.hook)
			if (err != nil) != tt.fails || errors.Is(err, cloud.ErrGone) != tt.gone || len(w.asked) != tt.starts || len(w.posted) != tt.starts {
				t.Errorf("%v, asked %v", err, w.asked)
			}
			if tt.starts > 0 && w.posted[0] != pathEvents+` {"StartRequests":[{"EventId":"602d"}]}` {
				t.Errorf("posted %s", w.posted)
			}
		})
	}
	h := open(t, cloud.Options{}).Hooks()
	if found, err := h.Pending(t.Context(), false); found != nil || err != nil {
		t.Errorf("%v, %v", found, err)
	}
	if _, err := h.Extend(t.Context(), *hook("", start)); !errors.Is(err, cloud.ErrNotWaiting) {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		compute             map[string]any
		without, ask, group string // parts of the result
	}{
		{nil, "", " -n edge ", "edge"},
		{map[string]any{"priority": "Spot"}, "30 s ahead", "", "edge"},
		{map[string]any{"vmScaleSetName": ""}, "", "", ""},
	} {
		w := newWorld(t)
		w.instance = doc(t, tt.compute)
		c, err := open(t, cloud.Options{Transport: w}).Check(t.Context(), nil)
		if err != nil || c.Group != tt.group || !strings.Contains(c.Without, tt.without) || !strings.Contains(c.Ask, tt.ask) || (c.Untold != "") != (tt.ask != "") {
			t.Errorf("%v: %+v, %v", tt.compute, c, err)
		}
	}
}

func seeds(f *testing.F) {
	f.Add([]byte(metadatatest.Fixture(f, "instance.json")))
	f.Add([]byte(metadatatest.Fixture(f, "scheduledevents.json")))
	f.Add([]byte(list(with("Reboot", map[string]any{"EventId": "\x1b", "EventSource": "a\nb", "EventType": "\u0085", "DurationInSeconds": 1e300}))))
	for _, s := range []string{``, `null`, `{}`, `[]`, `{"compute":null,"network":null}`, `{"Events":null}`, `{"Events":[null]}`, "\xff"} {
		f.Add([]byte(s))
	}
}

func FuzzParseInstance(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMachine(b)
		if err != nil {
			return
		}
		if len(m.Compute.VMID) != 36 {
			t.Errorf("id %q", m.Compute.VMID)
		}
		m.scaleSet()
		for _, n := range m.Network.Interface {
			n.reached()
		}
	})
}

func FuzzParseDocument(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		events, _ := parseEvents(b)
		w := &watch{machine: &machine{}}
		for _, e := range events {
			n := w.notice(e)
			if n == nil {
				continue
			}
			text := n.ID + n.Who + n.Reason
			if n.Hook != nil {
				text += n.Hook.Name
			}
			if strings.ContainsFunc(text, unicode.IsControl) || n.Past || n.Hook != nil && n.Kind == cloud.Unknown {
				t.Errorf("%+v", n)
			}
		}
	})
}
