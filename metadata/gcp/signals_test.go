// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/gcp"
)

// polls is a metadata server without a network, so that its minutes pass at once. It holds polls back as the real one.
type polls struct {
	mu      sync.Mutex
	items   map[string]string // by the path below computeMetadata/v1/
	changed chan struct{}
	asked   map[string][]time.Time
	held    map[string]int
	// bad says what is wrong with the answers; Held alone is about polls that wait.
	bad     func(path string, held bool) error
	instant bool
	noTag   bool
	hang    bool // polls that wait are never answered
	mangle  func(body string) (string, int)
}

func newPolls(items map[string]string) *polls {
	all := map[string]string{
		"instance/preempted": "FALSE", "instance/maintenance-event": "NONE", "instance/shutdown-details/stop-state": "",
		"instance/scheduling/on-host-maintenance": "TERMINATE",
	}
	for k, v := range items {
		if all[k] = v; v == gone {
			delete(all, k)
		}
	}
	return &polls{items: all, changed: make(chan struct{}), asked: map[string][]time.Time{}, held: map[string]int{}}
}

const gone = "\x00gone"

func (p *polls) set(path, v string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.items[path] = v; v == gone {
		delete(p.items, path)
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *polls) be(change func(*polls)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

func (p *polls) count(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.asked[path])
}

// RoundTrip implements http.RoundTripper.
func (p *polls) RoundTrip(req *http.Request) (*http.Response, error) {
	path := strings.TrimPrefix(req.URL.Path, "/computeMetadata/v1/")
	q := req.URL.Query()
	held := q.Get("wait_for_change") == "true"
	seconds, _ := strconv.Atoi(q.Get("timeout_sec"))
	p.mu.Lock()
	p.asked[path] = append(p.asked[path], time.Now())
	if held {
		p.held[path]++
	}
	bad, hang, instant := p.bad, p.hang, p.instant
	p.mu.Unlock()
	if bad != nil {
		if err := bad(path, held); err != nil {
			return nil, err
		}
	}
	if req.Header.Get("Metadata-Flavor") != "Google" {
		return nil, errors.New("no flavor")
	}
	if held && hang {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	timeout := time.NewTimer(time.Duration(seconds) * time.Second)
	defer timeout.Stop()
	for {
		p.mu.Lock()
		v, ok := p.items[path]
		changed, noTag, mangle := p.changed, p.noTag, p.mangle
		p.mu.Unlock()
		tag := fmt.Sprintf("%x", v)
		if tag == "" {
			tag = "0"
		}
		if held && !instant && q.Get("last_etag") == tag {
			select {
			case <-changed:
				continue
			case <-timeout.C:
			case <-req.Context().Done():
				return nil, req.Context().Err()
			}
		}
		status := http.StatusOK
		if !ok {
			status, v = http.StatusNotFound, "<title>404</title>"
		}
		h := http.Header{"Metadata-Flavor": {"Google"}}
		if !noTag {
			h.Set("ETag", tag)
		}
		if mangle != nil {
			v, status = mangle(v)
		}
		return &http.Response{
			Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: h, Body: io.NopCloser(strings.NewReader(v)), ContentLength: -1, Request: req,
		}, nil
	}
}

// watched is one run of Watch.
type watched struct {
	*polls
	t    *testing.T
	log  bytes.Buffer
	mu   sync.Mutex
	seen []gcp.Signal
	end  func()
}

// watch runs fn in a bubble of its own time.
func watch(t *testing.T, items map[string]string, root string, fn func(w *watched)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{polls: newPolls(items), t: t}
		w.begin(root)
		fn(w)
		w.end()
	})
}

func (w *watched) begin(root string) {
	p, err := gcp.New(cloud.Options{Transport: w.polls, Root: root, Log: slog.New(slog.NewTextHandler(&w.log, nil))})
	must.OK(w.t, err)
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Watch(ctx, func(s gcp.Signal) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.seen = append(w.seen, s)
		})
	}()
	w.end = func() {
		cancel()
		<-done
	}
}

// signals are those that came since the last look, without those that say at the beginning that there is nothing.
func (w *watched) signals() []gcp.Signal {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.seen
	w.seen = nil
	return out
}

func (w *watched) none(what string) {
	w.t.Helper()
	if s := w.signals(); len(s) > 0 {
		w.t.Errorf("%s: %+v", what, s)
	}
}

// one is the one signal that came, after which moment it is, and how long after it was seen it happens.
func (w *watched) one(what string, want gcp.Signal, in time.Duration) gcp.Signal {
	w.t.Helper()
	s := w.signals()
	if len(s) != 1 {
		w.t.Fatalf("%s: %d signals: %+v", what, len(s), s)
	}
	got := s[0]
	if in != 0 && got.At.Sub(got.Seen) != in || in == 0 && !got.At.IsZero() {
		w.t.Errorf("%s: it happens %s after it was seen, want %s", what, got.At.Sub(got.Seen), in)
	}
	got.Seen, got.At = time.Time{}, time.Time{}
	if d := cmp.Diff(want, got); d != "" {
		w.t.Errorf("%s:\n%s", what, d)
	}
	return s[0]
}

// settled waits until all is known to be quiet.
func (w *watched) settled() {
	w.t.Helper()
	tick(5 * time.Second)
	kinds := map[gcp.SignalKind]bool{}
	for _, s := range w.signals() {
		if !s.Gone || s.Value != "" {
			w.t.Errorf("of a quiet machine: %+v", s)
		}
		kinds[s.Kind] = true
	}
	if len(kinds) != 4 {
		w.t.Errorf("said to be quiet: %v", kinds)
	}
}

func tick(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestWatchQuiet(t *testing.T) {
	watch(t, map[string]string{"instance/upcoming-maintenance": gone}, "", func(w *watched) {
		w.settled()
		before := w.count("instance/preempted") + w.count("instance/maintenance-event") + w.count("instance/shutdown-details/stop-state")
		tick(10 * time.Minute)
		w.none("ten minutes of nothing")
		after := w.count("instance/preempted") + w.count("instance/maintenance-event") + w.count("instance/shutdown-details/stop-state")
		if n := after - before; n < 27 || n > 36 {
			t.Errorf("%d polls in ten minutes, want some three a minute", n)
		}
		if n := w.count("instance/upcoming-maintenance"); n > 6 {
			t.Errorf("what is announced hours before was asked for %d times", n)
		}
		if w.log.Len() > 0 {
			t.Errorf("log: %s", w.log.String())
		}
	})
}

func TestWatchPreempted(t *testing.T) {
	watch(t, nil, "", func(w *watched) {
		w.settled()
		tick(37 * time.Second)
		at := time.Now()
		w.set("instance/preempted", "TRUE")
		s := w.one("preempted", gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE"}, 30*time.Second)
		if took := s.Seen.Sub(at); took > 1100*time.Millisecond {
			t.Errorf("seen after %s", took)
		}
		tick(20 * time.Second)
		w.none("the same again")
		w.set("instance/preempted", "FALSE")
		tick(3 * time.Second)
		w.one("taken back", gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE", Gone: true}, 0)
		w.set("instance/preempted", "true")
		tick(3 * time.Second)
		w.one("once more", gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE"}, 30*time.Second)
	})
	// It was so before we came.
	watch(t, map[string]string{"instance/preempted": "TRUE"}, "", func(w *watched) {
		tick(100 * time.Millisecond)
		w.one("from the start", gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE"}, 30*time.Second)
	})
}

// A service that cannot make up its mind takes nobody back into service by one word.
func TestWatchFlapping(t *testing.T) {
	watch(t, nil, "", func(w *watched) {
		w.settled()
		w.set("instance/preempted", "TRUE")
		tick(time.Second)
		w.one("preempted", gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE"}, 30*time.Second)
		for range 20 {
			w.set("instance/preempted", "FALSE")
			tick(300 * time.Millisecond)
			w.set("instance/preempted", "TRUE")
			tick(900 * time.Millisecond)
		}
		w.none("flapping")
		if n := w.count("instance/preempted"); n > 40 {
			t.Errorf("asked %d times in 30 s", n)
		}
	})
}

func TestWatchMaintenance(t *testing.T) {
	term := gcp.Signal{Kind: gcp.SignalMaintenance, Value: "TERMINATE_ON_HOST_MAINTENANCE"}
	watch(t, nil, "", func(w *watched) {
		w.settled()
		w.set("instance/maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
		tick(2 * time.Second)
		w.one("moved", gcp.Signal{Kind: gcp.SignalMaintenance, Value: "MIGRATE_ON_HOST_MAINTENANCE"}, 0)
		w.set("instance/maintenance-event", "NONE")
		tick(5 * time.Second)
		w.one("over", gcp.Signal{Kind: gcp.SignalMaintenance, Value: "MIGRATE_ON_HOST_MAINTENANCE", Gone: true}, 0)
		w.set("instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
		tick(2 * time.Second)
		w.one("stopped for it", term, time.Minute)
		w.set("instance/maintenance-event", "SOMETHING_NEW")
		tick(2 * time.Second)
		w.one("a word of tomorrow", gcp.Signal{Kind: gcp.SignalMaintenance, Value: "SOMETHING_NEW"}, 0)
		tick(3 * time.Minute)
		w.none("and nothing was taken back")
	})
	// A graphics processor makes it an hour, if we saw it begin.
	gpu := t.TempDir()
	for name, text := range map[string]string{"vendor": "0x10de\n", "class": "0x030200\n"} {
		path := filepath.Join(gpu, "sys/bus/pci/devices/0000:00:04.0", name)
		must.OK(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must.OK(t, os.WriteFile(path, []byte(text), 0o600))
	}
	watch(t, nil, gpu, func(w *watched) {
		w.settled()
		w.set("instance/maintenance-event", term.Value)
		tick(2 * time.Second)
		w.one("with a graphics processor", term, time.Hour)
	})
	watch(t, map[string]string{"instance/maintenance-event": term.Value}, gpu, func(w *watched) {
		tick(100 * time.Millisecond)
		w.one("nobody knows since when", term, time.Minute)
	})
}

func TestWatchUpcoming(t *testing.T) {
	const path = "instance/upcoming-maintenance"
	plan := func(at time.Time) string {
		return `{"maintenance_status":"PENDING","type":"SCHEDULED","window_start_time":"` + at.UTC().Format(time.RFC3339) + `"}`
	}
	watch(t, map[string]string{path: "NONE"}, "", func(w *watched) {
		w.settled()
		at := time.Now().Add(5 * time.Hour).Truncate(time.Second)
		w.set(path, plan(at))
		tick(6 * time.Minute)
		s := w.signals()
		if len(s) != 1 || s[0].Kind != gcp.SignalUpcoming || !s[0].At.Equal(at) || s[0].Text != "scheduled" || s[0].Gone {
			t.Fatalf("%+v", s)
		}
		w.set(path, plan(at.Add(time.Hour)))
		tick(6 * time.Minute)
		if s := w.signals(); len(s) != 1 || s[0].Gone || !s[0].At.Equal(at.Add(time.Hour)) {
			t.Errorf("another date: %+v", s)
		}
		// The last hour of it: the word of the other item does not make it earlier.
		tick(time.Until(at.Add(5 * time.Minute)))
		w.set("instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
		tick(2 * time.Second)
		if s := w.signals(); len(s) != 1 || !s[0].At.Equal(at.Add(time.Hour)) {
			t.Errorf("%+v", s)
		}
		w.set(path, `{ "error": "no notifications have been received yet, try again later" }`)
		tick(6 * time.Minute)
		if s := w.signals(); len(s) != 1 || !s[0].Gone || s[0].Kind != gcp.SignalUpcoming {
			t.Errorf("taken back: %+v", s)
		}
	})
	watch(t, map[string]string{path: "NONE", "instance/scheduling/on-host-maintenance": "MIGRATE"}, "", func(w *watched) {
		w.settled()
		w.set(path, plan(time.Now().Add(5*time.Hour)))
		tick(6 * time.Minute)
		w.none("a machine that is moved instead")
	})
}

func TestWatchStopState(t *testing.T) {
	const state, details = "instance/shutdown-details/stop-state", "instance/shutdown-details/"
	pending := gcp.Signal{Kind: gcp.SignalStopState, Value: "PENDING_STOP"}
	for name, c := range map[string]struct {
		details string
		in      time.Duration
		target  string
	}{
		"a number":    {`{"maxDuration": 600, "requestTimestamp": "%s", "stopState": "PENDING_STOP", "targetState": "DELETED"}`, 10*time.Minute - 4*time.Second, "deleted"},
		"with an s":   {`{"max-duration": "90s", "request-timestamp": "%s"}`, 86 * time.Second, ""},
		"the API's":   {`{"maxDuration": {"seconds": "300", "nanos": 0}, "requestTimestamp": "%s", "newField": 1}`, 296 * time.Second, ""},
		"no moment":   {`{"maxDuration": "300"}`, 300 * time.Second, ""},
		"long ago":    {`{"maxDuration": "300", "requestTimestamp": "1999-01-01T00:00:00Z"}`, 300 * time.Second, ""},
		"in a while":  {`{"maxDuration": "300", "requestTimestamp": "2099-01-01T00:00:00Z"}`, 300 * time.Second, ""},
		"not told":    {`{}`, 10 * time.Minute, ""},
		"nonsense":    {`{"maxDuration": "soon"}`, 10 * time.Minute, ""},
		"not JSON":    {`oops`, 10 * time.Minute, ""},
		"not there":   {gone, 10 * time.Minute, ""},
		"no duration": {`{"maxDuration": 0, "targetState": "STOPPED"}`, 10 * time.Minute, "stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			watch(t, nil, "", func(w *watched) {
				w.settled()
				text := c.details
				if strings.Contains(text, "%s") {
					text = fmt.Sprintf(text, time.Now().Add(-2*time.Second).UTC().Format(time.RFC3339))
				}
				w.set(details, text)
				tick(2 * time.Second) // the clock of the service is right, and the answer comes late
				w.set(state, "PENDING_STOP")
				tick(2 * time.Second)
				want := pending
				want.Text = c.target
				s := w.signals()
				if len(s) != 1 {
					t.Fatalf("%+v", s)
				}
				if in := s[0].At.Sub(s[0].Seen); in != c.in {
					t.Errorf("it ends %s after it was seen, want %s\n%s", in, c.in, w.log.String())
				}
				s[0].At, s[0].Seen = time.Time{}, time.Time{}
				if d := cmp.Diff(want, s[0]); d != "" {
					t.Error(d)
				}
				w.set(state, "")
				tick(3 * time.Second)
				w.one("taken back", gcp.Signal{Kind: gcp.SignalStopState, Value: "PENDING_STOP", Gone: true}, 0)
			})
		})
	}
	// Most machines know no graceful shutdown.
	watch(t, map[string]string{state: gone}, "", func(w *watched) {
		w.settled()
		before := w.count(state)
		tick(time.Hour)
		if n := w.count(state) - before; n < 55 || n > 70 {
			t.Errorf("what is not there was asked for %d times in an hour", n)
		}
		w.set(state, "PENDING_STOP")
		tick(61 * time.Second)
		w.one("it is there after all", pending, 10*time.Minute)
		if s := w.log.String(); !strings.Contains(s, "usual time is taken") {
			t.Errorf("log: %s", s)
		}
	})
}

// However the service answers, nobody asks all the time, and a preemption is seen.
func TestWatchWorstDay(t *testing.T) {
	const item = "instance/preempted"
	for name, c := range map[string]struct {
		be    func(*polls)
		most  int           // requests for one item in ten minutes
		sees  time.Duration // until a preemption is seen
		warns int           // lines of the log that warn
	}{
		"answers at once":     {func(p *polls) { p.instant = true }, 130, 6 * time.Second, 0},
		"no tags":             {func(p *polls) { p.noTag = true }, 310, 6 * time.Second, 0},
		"never answers polls": {func(p *polls) { p.hang = true }, 130, 71 * time.Second, 0},
		"breaks polls off": {func(p *polls) {
			p.bad = func(_ string, held bool) error {
				if held {
					return io.ErrUnexpectedEOF
				}
				return nil
			}
		}, 130, 6 * time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			watch(t, nil, "", func(w *watched) {
				w.settled()
				w.be(c.be)
				tick(75 * time.Second)
				before := w.count(item)
				tick(10 * time.Minute)
				w.none("nothing has changed")
				if n := w.count(item) - before; n > c.most {
					t.Errorf("asked %d times in ten minutes", n)
				}
				w.set(item, "TRUE")
				tick(c.sees)
				w.one("seen", gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE"}, 30*time.Second)
				if n := strings.Count(w.log.String(), "level=WARN"); n != c.warns {
					t.Errorf("%d warnings: %s", n, w.log.String())
				}
				if n := strings.Count(w.log.String(), "\n"); n > 10 {
					t.Errorf("%d lines: %s", n, w.log.String())
				}
			})
		})
	}
	// What cannot be read is no word: nothing is taken back by it, and all is well when it is over.
	for name, be := range map[string]func(*polls){
		"gone": func(p *polls) { p.bad = func(string, bool) error { return io.EOF } },
		"503": func(p *polls) {
			p.mangle = func(string) (string, int) { return "unavailable", http.StatusServiceUnavailable }
		},
		"403":      func(p *polls) { p.mangle = func(string) (string, int) { return "no", http.StatusForbidden } },
		"nonsense": func(p *polls) { p.mangle = func(string) (string, int) { return "<html>log in</html>", http.StatusOK } },
		"half a word": func(p *polls) {
			p.mangle = func(v string) (string, int) { return v[:min(2, len(v))] + "\x00", http.StatusOK }
		},
	} {
		t.Run(name, func(t *testing.T) {
			watch(t, nil, "", func(w *watched) {
				w.settled()
				w.set(item, "TRUE")
				tick(2 * time.Second)
				w.one("seen", gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE"}, 30*time.Second)
				w.be(be)
				w.set("instance/other", "x")
				before := w.count(item)
				tick(10 * time.Minute)
				w.none("an outage")
				if n := w.count(item) - before; n > 60 || n < 8 {
					t.Errorf("asked %d times in ten minutes of an outage", n)
				}
				if n := strings.Count(w.log.String(), "level=WARN"); n < 1 || n > 4 {
					t.Errorf("%d warnings: %s", n, w.log.String())
				}
				w.be(func(p *polls) { p.bad, p.mangle = nil, nil })
				w.set(item, "FALSE")
				tick(70 * time.Second)
				w.one("well again", gcp.Signal{Kind: gcp.SignalPreempted, Value: "TRUE", Gone: true}, 0)
				if !strings.Contains(w.log.String(), "can be read again") {
					t.Errorf("log: %s", w.log.String())
				}
			})
		})
	}
	// The 503 of a maintenance last for less than a second, and are not worth a word.
	watch(t, nil, "", func(w *watched) {
		w.settled()
		until := time.Now().Add(800 * time.Millisecond)
		w.be(func(p *polls) {
			p.mangle = func(v string) (string, int) {
				if time.Now().Before(until) {
					return "", http.StatusServiceUnavailable
				}
				return v, http.StatusOK
			}
		})
		w.set("instance/other", "x")
		tick(2 * time.Minute)
		w.none("a moment's outage")
		if w.log.Len() > 0 {
			t.Errorf("log: %s", w.log.String())
		}
	})
}

func TestParseUpcoming(t *testing.T) {
	at := time.Date(2026, 11, 20, 19, 0, 1, 0, time.UTC)
	for name, c := range map[string]struct {
		body string
		want gcp.Maintenance
		err  bool
	}{
		"documented": {fixture(t, "upcoming-maintenance.json"), gcp.Maintenance{Status: "PENDING", Type: "SCHEDULED", Start: at}, false},
		"camel":      {`{"maintenanceStatus":"ONGOING","type":"UNSCHEDULED","windowStartTime":"2026-11-20T19:00:01Z"}`, gcp.Maintenance{Status: "ONGOING", Type: "UNSCHEDULED", Start: at}, false},
		"wrapped":    {`{"Upcoming maintenance":{"maintenance_status":"PENDING","window_start_time":"2026-11-20T19:00:01Z"}}`, gcp.Maintenance{Status: "PENDING", Start: at}, false},
		"older":      {`{"startTime":"2026-11-20T19:00:01Z"}`, gcp.Maintenance{Status: "PENDING", Start: at}, false},
		"none":       {"NONE", gcp.Maintenance{}, false},
		"none, JSON": {`"NONE"`, gcp.Maintenance{}, false},
		"nothing":    {"", gcp.Maintenance{}, false},
		"not yet":    {`{ "error": "no notifications have been received yet, try again later" }`, gcp.Maintenance{}, false},
		"empty":      {`{}`, gcp.Maintenance{}, false},
		"no moment":  {`{"window_start_time":"soon"}`, gcp.Maintenance{}, true},
		"a list":     {`[]`, gcp.Maintenance{}, true},
		"a word":     {`LATER`, gcp.Maintenance{}, true},
		"HTML":       {`<html>`, gcp.Maintenance{}, true},
	} {
		m, err := gcp.ParseUpcoming([]byte(c.body))
		if d := cmp.Diff(c.want, m); (err != nil) != c.err || d != "" {
			t.Errorf("%s: %v\n%s", name, err, d)
		}
	}
	s, err := gcp.ParseShutdown([]byte(fixture(t, "shutdown-details.json")))
	want := gcp.Shutdown{State: "PENDING_STOP", Target: "DELETED", Requested: time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC), Max: 10 * time.Minute}
	if d := cmp.Diff(want, s); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
}
