// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	stdcmp "cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestParseSignals(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 8, 22, 0, 0, time.UTC)
	for _, tt := range []struct {
		name, body string
		parse      func([]byte) (any, error)
		want       any // nil: an error
	}{
		{"state", "InService", anyOf(aws.ParseTargetState), "InService"},
		{"state with a line end", "Warmed:Stopped\n", anyOf(aws.ParseTargetState), "Warmed:Stopped"},
		{"a state to come", "Frozen:Deep", anyOf(aws.ParseTargetState), "Frozen:Deep"},
		{"no state", "", anyOf(aws.ParseTargetState), nil},
		{"a page", "<html>404</html>", anyOf(aws.ParseTargetState), nil},
		{"two words", "In Service", anyOf(aws.ParseTargetState), nil},
		{"terminate", `{"action":"terminate","time":"2026-11-20T08:22:00Z"}`, anyOf(aws.ParseInstanceAction), aws.Interruption{Action: "terminate", Time: at}},
		{"hibernate", `{"action": "hibernate", "time": "2026-11-20T09:22:00+01:00", "more": 1}`, anyOf(aws.ParseInstanceAction), aws.Interruption{Action: "hibernate", Time: at}},
		{"no time", `{"action":"stop"}`, anyOf(aws.ParseInstanceAction), nil},
		{"no action", `{"time":"2026-11-20T08:22:00Z"}`, anyOf(aws.ParseInstanceAction), nil},
		{"not JSON", `terminate`, anyOf(aws.ParseInstanceAction), nil},
		{"old form", "2026-11-20T08:22:00Z\n", anyOf(aws.ParseTerminationTime), aws.Interruption{Action: "terminate", Time: at}},
		{"old form without a time", "not-a-time", anyOf(aws.ParseTerminationTime), aws.Interruption{}},
		{"no scheduled events", `[]`, anyOf(aws.ParseScheduled), []aws.ScheduledEvent(nil)},
		{"scheduled without a state and an id", `[{"Code":"instance-stop","NotBefore":"2 Jan 2027 03:04:05 GMT"}]`, anyOf(aws.ParseScheduled), []aws.ScheduledEvent{
			{ID: "instance-stop", Code: "instance-stop", State: "active", NotBefore: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)},
		}},
		{"scheduled in the way of RFC 3339", `[{"EventId":"e1","Code":"x","State":"Active","NotBefore":"2027-01-02T03:04:05Z","Description":"a\u0000\u001b[31mb"}]`, anyOf(aws.ParseScheduled), []aws.ScheduledEvent{
			{ID: "e1", Code: "x", State: "active", NotBefore: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC), Description: "a[31mb"},
		}},
		{"scheduled as an object", `{}`, anyOf(aws.ParseScheduled), nil},
		{"scheduled with a code that is none", `[{"EventId":"e1","Code":"a b","State":"active"}]`, anyOf(aws.ParseScheduled), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := tt.parse([]byte(tt.body))
			if tt.want == nil {
				if err == nil {
					t.Fatalf("parsed as %v", got)
				}
				return
			}
			must.OK(t, err)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func anyOf[T any](parse func([]byte) (T, error)) func([]byte) (any, error) {
	return func(b []byte) (any, error) { return parse(b) }
}

func TestParseScheduledFile(t *testing.T) {
	t.Parallel()
	body, err := os.ReadFile(filepath.Join("testdata", "signals", "scheduled.json"))
	must.OK(t, err)
	want := []aws.ScheduledEvent{
		{
			ID: "instance-event-0d59937288b749b32", Code: "system-reboot", State: aws.EventActive, Description: "scheduled reboot",
			NotBefore: time.Date(2019, 1, 21, 9, 0, 43, 0, time.UTC),
		},
		{
			ID: "instance-event-0e439355b779n26", Code: "instance-retirement", State: aws.EventCanceled,
			Description: "[Canceled] The instance is running on degraded hardware", NotBefore: time.Date(2019, 2, 1, 0, 0, 0, 0, time.UTC),
		},
	}
	got, err := aws.ParseScheduled(body)
	must.OK(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	// One that cannot be read takes none of the others away.
	got, err = aws.ParseScheduled([]byte(strings.Replace(string(body), "canceled", "fancelled", 1)))
	if err == nil || len(got) != 1 || got[0].ID != want[0].ID {
		t.Errorf("with one of two unreadable: %v, %v", got, err)
	}
	got, err = aws.ParseScheduled([]byte(strings.Replace(string(body), "21 Jan 2019 09:00:43 GMT", "next week", 1)))
	if err == nil || len(got) != 2 || !got[0].NotBefore.IsZero() {
		t.Errorf("with a date that is none: %v, %v", got, err)
	}
}

func FuzzSignals(f *testing.F) {
	for _, s := range []string{
		"InService", `{"action":"terminate","time":"2026-11-20T08:22:00Z"}`, `{"noticeTime":"2026-11-20T08:22:00Z"}`, "2026-11-20T08:22:00Z",
		`[{"EventId":"e","Code":"system-reboot","State":"active","NotBefore":"21 Jan 2019 09:00:43 GMT","NotAfter":"","Description":"d"}]`, `[null]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if s, err := aws.ParseTargetState(body); err == nil && (s == "" || len(s) > 64 || strings.ContainsAny(s, " \n\x1b")) {
			t.Errorf("state %q", s)
		}
		if a, err := aws.ParseInstanceAction(body); err == nil && (a.Action == "" || a.Time.IsZero()) {
			t.Errorf("action %+v", a)
		}
		if _, err := aws.ParseTerminationTime(body); err != nil {
			t.Error(err)
		}
		events, _ := aws.ParseScheduled(body)
		seen := map[string]bool{}
		for _, e := range events {
			if e.ID == "" || e.Code == "" || e.State == "" || seen[e.ID] || !utf8.ValidString(e.Description) || strings.ContainsAny(e.Description, "\n\x1b\x00") {
				t.Errorf("event %+v", e)
			}
			seen[e.ID] = true
		}
	})
}

// imdsInMemory is a metadata service without a network, so that hours of polling take no time.
type imdsInMemory struct {
	mu     sync.Mutex
	bodies map[string]string
	fault  func(path string) (status int, body string, hang bool) // status 0: none
	valid  string
	ttl    string // of the tokens; empty: as asked for
	tokens int
	seen   []string
}

func newIMDS() *imdsInMemory { return &imdsInMemory{bodies: map[string]string{}} }

func (m *imdsInMemory) set(path, body string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if body == "" {
		delete(m.bodies, path)
		return
	}
	m.bodies[path] = body
}

func (m *imdsInMemory) breakWith(f func(path string) (int, string, bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

func (m *imdsInMemory) expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.valid = ""
}

// count of the requests so far, those for tokens apart.
func (m *imdsInMemory) count() (requests, tokens int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.seen), m.tokens
}

// RoundTrip implements http.RoundTripper.
func (m *imdsInMemory) RoundTrip(req *http.Request) (*http.Response, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(req.URL.Path, "/latest/"), "meta-data/")
	m.mu.Lock()
	fault := m.fault
	if req.Method == http.MethodPut {
		m.tokens++
	} else {
		m.seen = append(m.seen, path)
	}
	m.mu.Unlock()
	if fault != nil {
		status, body, hang := fault(path)
		if hang {
			<-req.Context().Done()
			return nil, req.Context().Err()
		}
		if status != 0 {
			return reply(req, status, body), nil
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if req.Method == http.MethodPut {
		m.valid = "token-" + strconv.Itoa(m.tokens)
		resp := reply(req, http.StatusOK, m.valid)
		resp.Header.Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", stdcmp.Or(m.ttl, req.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds")))
		return resp, nil
	}
	if m.valid == "" || req.Header.Get("X-Aws-Ec2-Metadata-Token") != m.valid {
		return reply(req, http.StatusUnauthorized, ""), nil
	}
	if body, ok := m.bodies[path]; ok {
		return reply(req, http.StatusOK, body), nil
	}
	return reply(req, http.StatusNotFound, "<html>404</html>"), nil
}

func reply(req *http.Request, status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}, Request: req}
}

// watching is a run of Watch and what it has told.
type watching struct {
	imds *imdsInMemory
	log  *locked.Buffer

	mu      sync.Mutex
	signals []aws.Signal
}

// watch runs Watch in a bubble of synctest, where time passes when everybody waits.
func watch(t *testing.T, imds *imdsInMemory, o aws.WatchOptions, body func(w *watching)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &watching{imds: imds, log: &locked.Buffer{}}
		p, err := aws.New(cloud.Options{Transport: imds, Log: slog.New(slog.NewTextHandler(w.log, nil))})
		must.OK(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.Watch(ctx, o, func(s aws.Signal) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.signals = append(w.signals, s)
			})
		}()
		body(w)
		cancel()
		<-done
	})
}

// pass lets time pass and returns what was told meanwhile.
func (w *watching) pass(d time.Duration) []aws.Signal {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.signals
	w.signals = nil
	return out
}

func (w *watching) want(t *testing.T, after time.Duration, want ...aws.Signal) {
	t.Helper()
	got := w.pass(after)
	byKind := func(a, b aws.Signal) int { return strings.Compare(string(a.Kind)+a.ID, string(b.Kind)+b.ID) }
	slices.SortStableFunc(got, byKind)
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(aws.Signal{}, "Seen"), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("signals (-want +got):\n%s", diff)
	}
}

func (w *watching) lines(level string) int { return strings.Count(w.log.String(), "level="+level) }

func TestWatchTarget(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	path := string(aws.SignalTarget)
	watch(t, imds, aws.WatchOptions{}, func(w *watching) {
		w.want(t, time.Minute) // not there: outside of a group
		before := ""
		for _, state := range []string{
			"InService", "Terminated", "InService", "Standby", "InService", "Detached", "Warmed:Stopped", "Warmed:Running", "Warmed:Hibernated",
			"Warmed:Terminated", "Frozen:Deep", "InService",
		} {
			imds.set(path, state)
			w.want(t, 2*time.Second, aws.Signal{Kind: aws.SignalTarget, Value: state, Before: before})
			w.want(t, time.Minute)
			before = state
		}
		// A missing item takes nothing back.
		imds.set(path, "")
		w.want(t, time.Hour)
		imds.set(path, "InService")
		w.want(t, time.Hour)
		if w.log.String() != "" {
			t.Errorf("log:\n%s", w.log)
		}
	})
}

func TestWatchFirstLook(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where synctest begins
	imds.set(string(aws.SignalTarget), "Terminated\n")
	imds.set(string(aws.SignalSpot), `{"action":"terminate","time":"2000-01-01T00:02:00Z"}`)
	imds.set(string(aws.SignalScheduled), `[{"EventId":"e1","Code":"instance-reboot","State":"active","NotBefore":"8 Jan 2000 00:00:00 GMT","Description":"d"},
		{"EventId":"e2","Code":"instance-stop","State":"canceled","NotBefore":"9 Jan 2000 00:00:00 GMT"}]`)
	watch(t, imds, aws.WatchOptions{}, func(w *watching) {
		w.want(
			t, 50*time.Millisecond,
			aws.Signal{Kind: aws.SignalTarget, Value: "Terminated"},
			aws.Signal{Kind: aws.SignalScheduled, Value: "instance-reboot", ID: "e1", At: now.AddDate(0, 0, 7), Text: "d"},
			aws.Signal{Kind: aws.SignalScheduled, Value: "instance-stop", ID: "e2", At: now.AddDate(0, 0, 8), Gone: true},
			aws.Signal{Kind: aws.SignalSpot, Value: "terminate", At: now.Add(2 * time.Minute)},
		)
		w.want(t, 10*time.Minute)
	})
}

func TestWatchTakenBack(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	const action = `{"action":"stop","time":"2000-01-01T00:02:00Z"}`
	at := time.Date(2000, 1, 1, 0, 2, 0, 0, time.UTC)
	watch(t, imds, aws.WatchOptions{}, func(w *watching) {
		w.pass(time.Second)
		imds.set(string(aws.SignalSpot), action)
		spot := aws.Signal{Kind: aws.SignalSpot, Value: "stop", At: at}
		w.want(t, 5*time.Second, spot)
		// A 404 by mistake, and another one.
		imds.set(string(aws.SignalSpot), "")
		w.want(t, 10*time.Second)
		imds.set(string(aws.SignalSpot), action)
		w.want(t, time.Minute)
		imds.set(string(aws.SignalSpot), "")
		spot.Gone = true
		w.want(t, 16*time.Second, spot)
		w.want(t, time.Minute)

		// The older form alone, which is asked for less often.
		later := time.Now().Add(2 * time.Minute).UTC().Truncate(time.Second)
		imds.set("spot/termination-time", later.Format(time.RFC3339))
		w.want(t, 35*time.Second, aws.Signal{Kind: aws.SignalSpot, Value: "terminate", At: later})
		w.want(t, time.Minute)
		imds.set("spot/termination-time", "")
		w.want(t, 16*time.Second, aws.Signal{Kind: aws.SignalSpot, Value: "terminate", At: later, Gone: true})
		// What is long past is no notice, as after a stop and a start.
		later = time.Now().Add(time.Minute).UTC().Truncate(time.Second)
		imds.set(string(aws.SignalSpot), `{"action":"stop","time":"`+later.Format(time.RFC3339)+`"}`)
		w.want(t, 5*time.Second, aws.Signal{Kind: aws.SignalSpot, Value: "stop", At: later})
		w.want(t, 3*time.Hour, aws.Signal{Kind: aws.SignalSpot, Value: "stop", At: later, Gone: true})
		w.want(t, time.Hour)
	})
}

// A clock that is wrong neither hides an interruption nor moves it to a later time.
func TestWatchSpotClock(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{-2 * time.Hour, 61 * time.Minute, 3 * time.Hour} {
		imds := newIMDS()
		watch(t, imds, aws.WatchOptions{}, func(w *watching) {
			w.pass(5 * time.Hour) // a time before 2000 is none
			now := time.Now()
			imds.set(string(aws.SignalSpot), `{"action":"terminate","time":"`+now.Add(2*time.Minute-ahead).UTC().Format(time.RFC3339)+`"}`)
			got := w.pass(2 * time.Minute)
			if len(got) != 1 || got[0].Gone || got[0].At.Before(now) || got[0].At.After(now.Add(2*time.Minute+6*time.Second)) {
				t.Errorf("%s ahead: %+v", ahead, got)
			}
		})
	}
}

func TestWatchScheduled(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	event := func(id, state, day string) string {
		return fmt.Sprintf(`{"EventId":%q,"Code":"system-reboot","State":%q,"NotBefore":"%s Jan 2000 00:00:00 GMT","Description":"x"}`, id, state, day)
	}
	signal := func(id string, day int, gone bool) aws.Signal {
		return aws.Signal{Kind: aws.SignalScheduled, Value: "system-reboot", ID: id, At: time.Date(2000, 1, day, 0, 0, 0, 0, time.UTC), Text: "x", Gone: gone}
	}
	set := func(events ...string) { imds.set(string(aws.SignalScheduled), "["+strings.Join(events, ",")+"]") }
	watch(t, imds, aws.WatchOptions{}, func(w *watching) {
		set()
		w.want(t, 5*time.Minute)
		set(event("a", "active", "8"), event("b", "active", "9"))
		w.want(t, time.Minute, signal("a", 8, false), signal("b", 9, false))
		set(event("a", "active", "10"), event("b", "canceled", "9"))
		w.want(t, time.Minute, signal("a", 8, true), signal("a", 10, false), signal("b", 9, true))
		w.want(t, time.Hour)
		// Canceled, and scheduled again under the same id.
		set(event("a", "completed", "10"), event("b", "active", "9"))
		w.want(t, time.Minute, signal("a", 10, true), signal("b", 9, false))
		// Half an answer takes nothing back, and the rest counts.
		set(`{"EventId":"c","Code":"?","State":"active"}`, event("d", "active", "11"))
		w.want(t, time.Minute, signal("d", 11, false))
		w.want(t, time.Hour)
		if w.lines("WARN") != 1 {
			t.Errorf("log:\n%s", w.log)
		}
		set(event("d", "active", "11"))
		w.want(t, 5*time.Minute, signal("b", 9, true))
		imds.set(string(aws.SignalScheduled), "")
		w.want(t, 5*time.Minute, signal("d", 11, true))
		if w.lines("INFO") != 1 {
			t.Errorf("log:\n%s", w.log)
		}
	})
}

// TestWatchSurvives holds that no trouble of the service ends the watching, floods the log or the service, or hides a
// signal that can be read; and that all is well when the trouble is over, however long it took.
func TestWatchSurvives(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(path string) (int, string, bool){
		"hang": func(string) (int, string, bool) { return 0, "", true },
		"429":  func(string) (int, string, bool) { return http.StatusTooManyRequests, "slow down", false },
		"500":  func(string) (int, string, bool) { return http.StatusInternalServerError, "", false },
		"503 of the token": func(path string) (int, string, bool) {
			return at(path == "api/token", http.StatusServiceUnavailable), "", false
		},
		"401 for ever": func(path string) (int, string, bool) {
			return at(path != "api/token", http.StatusUnauthorized), "", false
		},
		"403":              func(string) (int, string, bool) { return http.StatusForbidden, "", false },
		"404 of the token": func(path string) (int, string, bool) { return at(path == "api/token", http.StatusNotFound), "", false },
		"garbage": func(path string) (int, string, bool) {
			return at(path != "api/token", http.StatusOK), "<html>\x00", false
		},
		"redirect":           func(string) (int, string, bool) { return http.StatusFound, "", false },
		"garbage as a token": func(path string) (int, string, bool) { return at(path == "api/token", http.StatusOK), "\x00\n", false },
		"too large": func(path string) (int, string, bool) {
			return at(path != "api/token", http.StatusOK), strings.Repeat("x", cloud.MaxBody+1), false
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			imds := newIMDS()
			// With a token that outlasts the trouble: synctest does not see through the lock behind which the SDK fetches one.
			imds.ttl = "21600"
			imds.set(string(aws.SignalTarget), "InService")
			watch(t, imds, aws.WatchOptions{}, func(w *watching) {
				w.want(t, time.Minute, aws.Signal{Kind: aws.SignalTarget, Value: "InService"})
				imds.breakWith(fault)
				if name != "hang" {
					imds.expire()
				}
				before, tokens := imds.count()
				long := 3 * time.Hour
				if name == "too large" {
					long = time.Minute // a megabyte each
				}
				w.want(t, long)
				after, tokensAfter := imds.count()
				if perSecond := float64(after-before+tokensAfter-tokens) / long.Seconds(); perSecond > 1 {
					t.Errorf("%.2f requests in a second while in trouble", perSecond)
				}
				if n := w.lines("WARN"); n == 0 || n > 4 {
					t.Errorf("%d warnings:\n%s", n, w.log)
				}
				if strings.Contains(w.log.String(), "rate limit") || strings.Contains(w.log.String(), "quota") {
					t.Errorf("the SDK's bucket ran dry:\n%s", w.log)
				}
				imds.set(string(aws.SignalTarget), "Terminated")
				imds.breakWith(nil)
				wait := 20 * time.Second
				if name == "403" || name == "404 of the token" || name == "401 for ever" {
					wait = time.Minute + 5*time.Second
				}
				w.want(t, wait, aws.Signal{Kind: aws.SignalTarget, Value: "Terminated", Before: "InService"})
				w.want(t, 3*time.Minute)
				if w.lines("INFO") != 1 {
					t.Errorf("not told that all is well again:\n%s", w.log)
				}
			})
		})
	}
}

func at(hit bool, status int) int {
	if hit {
		return status
	}
	return 0
}

// TestWatchTokenHangs is what a hop limit of 1 looks like from inside a container, in real time.
func TestWatchTokenHangs(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	imds.set(string(aws.SignalTarget), "Terminated")
	imds.breakWith(func(path string) (int, string, bool) { return 0, "", path == "api/token" })
	var log locked.Buffer
	warnings := func() int { return strings.Count(log.String(), "level=WARN") }
	p, err := aws.New(cloud.Options{Transport: imds, Log: slog.New(slog.NewTextHandler(&log, nil)), AttemptTimeout: 5 * time.Millisecond})
	must.OK(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	seen, done := make(chan aws.Signal, 1), make(chan struct{})
	go func() {
		defer close(done)
		p.Watch(ctx, aws.WatchOptions{StateInterval: time.Millisecond, Interval: time.Millisecond}, func(s aws.Signal) { seen <- s })
	}()
	// It says so once, and goes on asking.
	end, after := time.Now().Add(2*time.Minute), 0
	for {
		_, tokens := imds.count()
		if warnings() == 0 {
			after = tokens + 4
		} else if tokens >= after {
			break
		}
		select {
		case s := <-seen:
			t.Fatal(s)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatalf("%d tokens were asked for, %d warnings", tokens, warnings())
		}
	}
	if n := warnings(); n != 1 {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
	imds.breakWith(nil)
	if s := <-seen; s.Value != "Terminated" {
		t.Error(s)
	}
	cancel()
	<-done
}

// TestWatchOneItem holds that trouble with one item has no influence on the others.
func TestWatchOneItem(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	imds.set(string(aws.SignalTarget), "InService")
	imds.breakWith(func(path string) (int, string, bool) {
		switch path {
		case string(aws.SignalScheduled):
			return http.StatusOK, `{"no":"list"}`, false
		case string(aws.SignalSpot):
			return 0, "", true
		}
		return 0, "", false
	})
	watch(t, imds, aws.WatchOptions{}, func(w *watching) {
		w.want(t, time.Hour, aws.Signal{Kind: aws.SignalTarget, Value: "InService"})
		if w.lines("WARN") != 2 {
			t.Errorf("log:\n%s", w.log)
		}
		for range 20 {
			imds.set(string(aws.SignalTarget), "Terminated")
			w.want(t, 2*time.Second, aws.Signal{Kind: aws.SignalTarget, Value: "Terminated", Before: "InService"})
			imds.set(string(aws.SignalTarget), "InService")
			w.want(t, 2*time.Second, aws.Signal{Kind: aws.SignalTarget, Value: "InService", Before: "Terminated"})
		}
	})
}

// TestWatchToken holds that a session token that ends costs one request and no line.
func TestWatchToken(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	watch(t, imds, aws.WatchOptions{}, func(w *watching) {
		w.pass(time.Minute)
		for range 10 {
			imds.expire()
			w.pass(time.Minute)
		}
		if w.log.String() != "" {
			t.Errorf("log:\n%s", w.log)
		}
	})
}

// TestWatchRate holds the polling to less than one request in a second, tokens among them, and a change of the target
// to one interval.
func TestWatchRate(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	imds.set(string(aws.SignalTarget), "InService")
	watch(t, imds, aws.WatchOptions{}, func(w *watching) {
		w.pass(time.Second)
		requests, tokens := imds.count()
		w.pass(time.Hour)
		r, k := imds.count()
		if perSecond := float64(r-requests+k-tokens) / 3600; perSecond > 1 || perSecond < 0.7 {
			t.Errorf("%.3f requests in a second", perSecond)
		}
		state, other := "InService", "Terminated"
		for range 100 {
			w.pass(rand.N(10 * time.Second))
			state, other = other, state
			imds.set(string(aws.SignalTarget), state)
			if got := w.pass(aws.DefaultStateInterval); len(got) != 1 {
				t.Fatalf("%d signals within an interval", len(got))
			}
		}
	})
}

// TestWatchDisabled holds what the settings of the process forbid.
func TestWatchDisabled(t *testing.T) {
	t.Parallel()
	_, err := aws.New(cloud.Options{Disabled: []string{"aws"}})
	if !errors.Is(err, cloud.ErrForbidden) {
		t.Fatal(err)
	}
}
