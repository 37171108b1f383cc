// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	pathPreempted   = "instance/preempted"
	pathMaintenance = "instance/maintenance-event"
	pathUpcoming    = "instance/upcoming-maintenance"
	pathDetails     = "instance/shutdown-details/"
	pathStop        = pathDetails + "stop-state"

	maintenanceStop = "TERMINATE_ON_HOST_MAINTENANCE"
)

// start is the begin of the time in a bubble.
var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// answer is one answer before it is sent. held reports that the request waits for a change, hold that the server makes it wait.
type answer struct {
	held, hold        bool
	status            int
	body, tag, flavor string
}

// world is Watch in a bubble with its own clock, and its metadata server, in memory. It holds back answers like the real one.
type world struct {
	mu      sync.Mutex
	items   map[string]string // by the path below base; any other is a 404
	fault   func(a *answer)   // changes the answer; nil is a healthy server
	changed chan struct{}
	asked   map[string]int
	waited  int             // requests that ask to wait
	holding map[string]bool // the items for which a request waits now

	log locked.Buffer
	*metadatatest.Watched
}

func watch(t *testing.T, root string, items map[string]string, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			items: map[string]string{pathPreempted: "FALSE", pathMaintenance: "NONE", pathStop: ""}, changed: make(chan struct{}),
			asked: map[string]int{}, holding: map[string]bool{},
		}
		for path, word := range items {
			w.items[path] = word
		}
		p, err := New(cloud.Options{Transport: w, Root: root, Log: slog.New(slog.NewTextHandler(&w.log, nil))})
		must.OK(t, err)
		w.Watched = metadatatest.Watch(t, p)
		test(t, w)
	})
}

// set changes the server. Waiting requests read the new values.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	w.Reports()
	w.asked, w.waited = map[string]int{}, 0
	close(w.changed)
	w.changed = make(chan struct{})
}

// hold advances the time until a request for an item waits: a request that ends is repeated a moment later.
func (w *world) hold(path string) {
	for {
		w.mu.Lock()
		held := w.holding[path]
		w.mu.Unlock()
		if held {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
}

func (w *world) say(path, word string) { w.set(func() { w.items[path] = word }) }

// after advances the time, and compares the seconds of the reports since the last change, and the last report.
func (w *world) after(t *testing.T, d time.Duration, topic string, seconds []int, want ...cloud.Notice) {
	t.Helper()
	<-time.After(d)
	synctest.Wait()
	if d := cmp.Diff(seconds, w.Reports()[topic]) + cmp.Diff(want, w.Last()[topic]); d != "" {
		t.Errorf("%s, -want +got:\n%s", topic, d)
	}
}

// RoundTrip implements http.RoundTripper.
func (w *world) RoundTrip(req *http.Request) (*http.Response, error) {
	path, q := strings.TrimPrefix(req.URL.Path, base), req.URL.Query()
	seconds, _ := strconv.Atoi(q.Get("timeout_sec"))
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	a := answer{held: q.Get("wait_for_change") == "true"}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[path]++
	if a.held {
		w.waited++
	}
	for {
		word, ok := w.items[path]
		a.status, a.body, a.tag, a.flavor = http.StatusOK, word, fmt.Sprintf("0%x", word), "Google"
		if a.hold = a.held && q.Get("last_etag") == a.tag && time.Now().Before(end); !ok {
			a.status, a.body = http.StatusNotFound, "<title>404</title>"
		}
		if req.Header.Get("Metadata-Flavor") != "Google" {
			a.status = http.StatusForbidden
		}
		if w.fault != nil {
			w.fault(&a)
		}
		if !a.hold {
			resp := metadatatest.Answer(req, a.status, a.body)
			resp.Header.Set("Metadata-Flavor", a.flavor)
			resp.Header.Set("Etag", a.tag)
			return resp, nil
		}
		changed := w.changed
		w.holding[path] = true
		w.mu.Unlock()
		select {
		case <-changed:
		case <-time.After(max(time.Until(end), time.Second)):
		case <-req.Context().Done():
		}
		w.mu.Lock()
		delete(w.holding, path)
		if err := req.Context().Err(); err != nil {
			return nil, err
		}
	}
}

// of is a notice at a time after the start of the bubble.
func of(id string, kind cloud.Kind, reason string, at time.Duration) cloud.Notice {
	return cloud.Notice{ID: id, Kind: kind, Reason: reason, Who: "Google Cloud", At: start.Add(at)}
}

func preemption(at time.Duration) cloud.Notice {
	return of("gcp-preempted/interrupt", cloud.Interrupt, "preemption of a Spot VM", at)
}

func reboot(at time.Duration) cloud.Notice {
	return of("gcp-maintenance/reboot", cloud.Reboot, "host maintenance", at)
}

func shutdown(more string, at time.Duration) cloud.Notice {
	return of("gcp-shutdown/terminate", cloud.Terminate, "graceful shutdown"+more, at)
}

func unknown(id, reason string) cloud.Notice {
	return cloud.Notice{ID: id, Kind: cloud.Unknown, Reason: reason, Who: "Google Cloud"}
}

func TestNotices(t *testing.T) {
	gpu := t.TempDir()
	for name, text := range map[string]string{"vendor": "0x10de\n", "class": "0x030200\n"} {
		path := filepath.Join(gpu, "sys/bus/pci/devices/0000:00:04.0", name)
		must.OK(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must.OK(t, os.WriteFile(path, []byte(text), 0o600))
	}
	const pending, ago = "PENDING_STOP", `"requestTimestamp": "1999-12-31T23:59:56Z"`
	for _, tt := range []struct {
		name, path, word string
		more             string // the answers for pathUpcoming and pathDetails; "" is a 404
		root             string
		late             time.Duration // the time until the announcement
		want             []cloud.Notice
	}{
		{"quiet", pathPreempted, "FALSE", "", "", 0, nil},
		{"preempted", pathPreempted, "TRUE", "", "", 0, []cloud.Notice{preemption(30 * time.Second)}},
		{"preempted later", pathPreempted, "true\n", "", "", 10 * time.Second, []cloud.Notice{preemption(40 * time.Second)}},
		{"unknown word", pathPreempted, "SOON", "", "", 0, []cloud.Notice{unknown("gcp-preempted/SOON", "instance/preempted is SOON")}},
		{"moved while it runs", pathMaintenance, "MIGRATE_ON_HOST_MAINTENANCE", "", "", 0, nil},
		{"maintenance", pathMaintenance, maintenanceStop, "", "", 0, []cloud.Notice{reboot(time.Minute)}},
		{"maintenance, no plan", pathMaintenance, maintenanceStop, "NONE", "", 0, []cloud.Notice{reboot(time.Minute)}},
		{"planned", pathMaintenance, maintenanceStop, `{"startTime": "2000-01-01T00:30:00Z"}`, "", 0, []cloud.Notice{reboot(30 * time.Minute)}},
		{"plan for another", pathMaintenance, maintenanceStop, `{"startTime": "2000-01-01T05:00:00Z"}`, "", 0, []cloud.Notice{reboot(time.Minute)}},
		{"GPU", pathMaintenance, maintenanceStop, "", gpu, 10 * time.Second, []cloud.Notice{reboot(time.Hour + 10*time.Second)}},
		{"GPU, announced before the first look", pathMaintenance, maintenanceStop, "", gpu, 0, []cloud.Notice{reboot(time.Minute)}},
		{"no state", pathStop, "STOP_STATE_UNSPECIFIED", "", "", 0, nil},
		{"unknown state", pathStop, "STOPPING", "", "", 0, []cloud.Notice{unknown("gcp-shutdown/STOPPING", "instance/shutdown-details/stop-state is STOPPING")}},
		{"details", pathStop, pending, `{"maxDuration": 600, "targetState": "DELETED", ` + ago + `}`, "", 0, []cloud.Notice{shutdown(" (to be deleted)", 596*time.Second)}},
		{"seconds with an s", pathStop, pending, `{"max-duration": "90s", "request-timestamp": "1999-12-31T23:59:56Z"}`, "", 0, []cloud.Notice{shutdown("", 86*time.Second)}},
		{"duration of the API", pathStop, pending, `{"maxDuration": {"seconds": "300", "nanos": 0}, "new": 1, ` + ago + `}`, "", 0, []cloud.Notice{shutdown("", 296*time.Second)}},
		{"no moment", pathStop, pending, `{"maxDuration": "300"}`, "", 0, []cloud.Notice{shutdown("", 300*time.Second)}},
		{"long ago", pathStop, pending, `{"maxDuration": "300", "requestTimestamp": "1989-01-01T00:00:00Z"}`, "", 0, []cloud.Notice{shutdown("", 300*time.Second)}},
		{"in the future", pathStop, pending, `{"maxDuration": "300", "requestTimestamp": "2099-01-01T00:00:00Z"}`, "", 0, []cloud.Notice{shutdown("", 300*time.Second)}},
		{"no number", pathStop, pending, `{"maxDuration": "NaN"}`, "", 0, []cloud.Notice{shutdown("", 10*time.Minute)}},
		{"no duration", pathStop, pending, `{"maxDuration": 0, "targetState": "STOPPED"}`, "", 0, []cloud.Notice{shutdown(" (to be stopped)", 10*time.Minute)}},
		{"not JSON", pathStop, pending, `oops`, "", 0, []cloud.Notice{shutdown("", 10*time.Minute)}},
		{"no details", pathStop, pending, "", "", 0, []cloud.Notice{shutdown("", 10*time.Minute)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			items := map[string]string{}
			if tt.more != "" {
				items[pathUpcoming], items[pathDetails] = tt.more, tt.more
			}
			if tt.late == 0 {
				items[tt.path] = tt.word
			}
			watch(t, tt.root, items, func(t *testing.T, w *world) {
				if tt.late > 0 {
					<-time.After(tt.late)
					w.say(tt.path, tt.word)
				}
				<-time.After(time.Second / 2)
				synctest.Wait()
				want := map[string][]cloud.Notice{TopicPreempted: nil, TopicMaintenance: nil, TopicShutdown: nil}
				want[map[string]string{pathPreempted: TopicPreempted, pathMaintenance: TopicMaintenance, pathStop: TopicShutdown}[tt.path]] = tt.want
				if d := cmp.Diff(want, w.Last()); d != "" {
					t.Errorf("-want +got:\n%s", d)
				}
			})
		})
	}
}

func TestWatch(t *testing.T) {
	watch(t, "", nil, func(t *testing.T, w *world) {
		// At the moments of this test no waiting request ends.
		w.after(t, 5500*time.Millisecond, TopicPreempted, []int{0, 1, 2, 3})
		w.set(func() {})
		<-time.After(10 * time.Minute)
		w.set(func() {
			all := w.asked[pathPreempted] + w.asked[pathMaintenance] + w.asked[pathStop]
			if all < 27 || all > 36 || w.waited != all || len(w.asked) != 3 {
				t.Errorf("%d requests in ten minutes, %d of them wait: %v", all, w.waited, w.asked)
			}
		})
		w.hold(pathPreempted)
		soon := preemption(time.Since(start) + 30*time.Second)
		w.say(pathPreempted, "TRUE")
		w.after(t, 5*time.Second, TopicPreempted, []int{0}, soon)
		<-time.After(2*time.Minute + 200*time.Millisecond)
		w.say(pathMaintenance, "NONE") // the other items wait on
		w.after(t, 100*time.Millisecond, TopicPreempted, nil, soon)
		w.hold(pathPreempted)
		w.say(pathPreempted, "FALSE")
		w.after(t, 10*time.Second, TopicPreempted, []int{0, 1, 2, 3})

		// A signal that ends and returns does not move the end.
		w.hold(pathPreempted)
		soon = preemption(time.Since(start) + 30*time.Second)
		w.say(pathPreempted, "TRUE")
		w.after(t, 5*time.Second, TopicPreempted, []int{0}, soon)
		w.hold(pathPreempted)
		w.say(pathPreempted, "FALSE")
		w.after(t, 5*time.Second, TopicPreempted, []int{0, 1, 2, 3})
		w.hold(pathPreempted)
		w.say(pathPreempted, "TRUE")
		w.after(t, 5*time.Second, TopicPreempted, []int{0}, soon)

		w.hold(pathMaintenance)
		known := reboot(time.Since(start) + time.Minute)
		w.say(pathMaintenance, maintenanceStop)
		w.after(t, 5*time.Second, TopicMaintenance, []int{0}, known)
		w.hold(pathMaintenance)
		w.say(pathMaintenance, "SOMETHING_NEW") // withdraws nothing
		w.after(t, 5*time.Second, TopicMaintenance, []int{0}, known, unknown("gcp-maintenance/SOMETHING_NEW", "instance/maintenance-event is SOMETHING_NEW"))
		w.hold(pathMaintenance)
		w.say(pathMaintenance, "NONE")
		w.after(t, 10*time.Second, TopicMaintenance, []int{0, 1, 2, 3})
		if w.log.String() != "" {
			t.Errorf("log: %s", w.log.String())
		}
	})
}

// An item that does not exist has no notice. It is requested each minute.
func TestWatchAbsent(t *testing.T) {
	watch(t, "", nil, func(t *testing.T, w *world) {
		w.set(func() { delete(w.items, pathStop) })
		<-time.After(time.Hour)
		w.set(func() {
			if n := w.asked[pathStop]; n < 55 || n > 75 || w.log.String() != "" {
				t.Errorf("asked %d times in an hour, log %s", n, w.log.String())
			}
			w.items[pathStop], w.items[pathDetails] = "PENDING_STOP", "{}"
		})
		<-time.After(61 * time.Second)
		synctest.Wait()
		if got := w.Last()[TopicShutdown]; len(got) != 1 || got[0].Kind != cloud.Terminate || w.log.String() != "" {
			t.Errorf("%+v, log %s", got, w.log.String())
		}
	})
}

// An item is requested at most once a second, whatever the server does, and its end is noticed. An answer that cannot be
// decoded is not reported, and such an outage is two lines in the log for each item.
func TestWatchTrouble(t *testing.T) {
	for _, tt := range []struct {
		name        string
		fault       func(a *answer)
		least, most int           // requests for an item in ten minutes
		sees        time.Duration // the time until the end is noticed, for an outage that ended before
		outage      bool
	}{
		{"503", func(a *answer) { a.status, a.hold = http.StatusServiceUnavailable, false }, 100, 170, 6 * time.Second, true},
		{"403", func(a *answer) { a.status, a.hold = http.StatusForbidden, false }, 8, 30, 61 * time.Second, true},
		{"no header", func(a *answer) { a.flavor, a.body, a.hold = "", "FALSE", false }, 8, 30, 61 * time.Second, true},
		{"page", func(a *answer) { a.body, a.hold = "<html>log in</html>", false }, 100, 170, 6 * time.Second, true},
		{"half a word", func(a *answer) { a.body, a.hold = "FA\x00", false }, 100, 170, 6 * time.Second, true},
		{"answers at once", func(a *answer) { a.hold = false }, 590, 601, time.Second, false},
		{"gives no tags", func(a *answer) { a.tag = "" }, 530, 601, time.Second, false},
		{"breaks waits off", func(a *answer) {
			if a.held {
				a.status, a.hold = http.StatusBadGateway, false
			}
		}, 590, 601, 2 * time.Second, false},
		{"never answers waits", func(a *answer) { a.hold = a.held }, 15, 20, 72 * time.Second, false},
		{"away for a moment", func(a *answer) {
			if time.Since(start) < 5800*time.Millisecond {
				a.status, a.hold = http.StatusServiceUnavailable, false
			}
		}, 10, 13, time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			watch(t, "", map[string]string{pathPreempted: "TRUE"}, func(t *testing.T, w *world) {
				<-time.After(5 * time.Second)
				w.set(func() { w.fault = tt.fault })
				<-time.After(10 * time.Minute)
				w.set(func() {
					if n := w.asked[pathPreempted]; n < tt.least || n > tt.most {
						t.Errorf("asked %d times in ten minutes", n)
					}
					at := w.Reports()[TopicPreempted]
					if d := cmp.Diff([]cloud.Notice{preemption(30 * time.Second)}, w.Last()[TopicPreempted]); d != "" || tt.outage != (at == nil) {
						t.Errorf("reports after %d s:\n%s", at, d)
					}
					if w.items[pathPreempted] = "FALSE"; tt.outage {
						w.fault = nil
					}
				})
				<-time.After(tt.sees)
				synctest.Wait()
				log, lines := w.log.String(), 0
				if tt.outage {
					lines = 3
				}
				if bad, good := strings.Count(log, "level=WARN"), strings.Count(log, "can be read again"); bad != lines || good != lines || w.Last()[TopicPreempted] != nil {
					t.Errorf("%v; %d warnings, %d times well again:\n%s", w.Last()[TopicPreempted], bad, good, log)
				}
			})
		})
	}
}

func TestParseUpcoming(t *testing.T) {
	plan, err := os.ReadFile("testdata/upcoming-maintenance.json")
	must.OK(t, err)
	for _, body := range []string{
		string(plan), `{"maintenanceStatus": "ONGOING", "windowStartTime": "2026-11-20T19:00:01Z"}`, `{"startTime": "2026-11-20T19:00:01Z"}`,
		`{"Upcoming maintenance": {"maintenance_status": "PENDING", "window_start_time": "2026-11-20T19:00:01Z"}}`,
	} {
		if got := parseUpcoming([]byte(body)); !got.Equal(time.Date(2026, 11, 20, 19, 0, 1, 0, time.UTC)) {
			t.Errorf("%s: %s", body, got)
		}
	}
	for _, body := range []string{
		`NONE`, `"NONE"`, ``, `{}`, `null`, `[]`, `<html>`, `{"window_start_time": "soon"}`,
		`{ "error": "no notifications have been received yet, try again later" }`,
	} {
		if got := parseUpcoming([]byte(body)); !got.IsZero() {
			t.Errorf("%s: %s", body, got)
		}
	}
}

func seeds(f *testing.F, more ...string) {
	names, err := filepath.Glob("testdata/*.json")
	if err != nil || len(names) != 4 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		must.OK(f, err)
		f.Add(b)
	}
	for _, s := range more {
		f.Add([]byte(s))
	}
}

func FuzzParseMachine(f *testing.F) {
	seeds(f, `{"id":"edge","zone":"z"}`, `{"id":4.5e18,"zone":"z"}`, `{"id":[4567],"zone":"z"}`, `{"id":4567,"zone":17}`, `{"id":4567,"zone":"a/"}`, `[]`, `null`)
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := parseMachine(body)
		if err != nil {
			return
		}
		if id := m.ID.String(); id == "" || strings.Trim(id, "0123456789") != "" || m.Zone == "" || strings.Contains(m.Zone+m.MachineType, "/") {
			t.Errorf("%+v", m)
		}
		for k := range agentAttributes(m.Attributes) {
			if !strings.HasPrefix(k, "amsagent") && k != "created-by" && k != "instance-template" {
				t.Errorf("attribute %q is not ours", k)
			}
		}
		for _, n := range m.Interfaces {
			var inst cloud.Instance
			inst.Choose([]cloud.NIC{n.reached()}, nil)
			if inst.IPv6.IsValid() && !inst.IPv6.Is6() || inst.Address.IsValid() != (inst.AddressSource != "") {
				t.Errorf("%+v", inst)
			}
		}
	})
}

func FuzzParseProject(f *testing.F) {
	seeds(f, `{"projectId":7}`)
	f.Fuzz(func(t *testing.T, body []byte) {
		if p, err := parseProject(body); err == nil && p.ID == "" {
			t.Error("a project without a name")
		}
	})
}

func FuzzParseSignals(f *testing.F) {
	seeds(f, "NONE", "TRUE", "PENDING_STOP", "", `{"maxDuration":{"seconds":"1e3"}}`, `{"maxDuration":"1e999s"}`, `{"maxDuration":"nan"}`, `{"a":{"startTime":"2026-11-20T19:00:01Z"}}`)
	f.Fuzz(func(t *testing.T, body []byte) {
		if oneWord.Match(body) && (len(body) > 64 || strings.ContainsAny(string(body), " \n<>")) {
			t.Errorf("%q is no word", body)
		}
		if _, at := parseShutdown(body, start); !at.IsZero() && (at.Before(start) || at.Sub(start) > maxShutdown) {
			t.Errorf("it ends at %s", at)
		}
		parseUpcoming(body)
	})
}
