// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/azure"
	"github.com/amsagent/amsagent/metadata/cloud"
)

const pathEvents = "/metadata/scheduledevents"

// set is a metadata service with scheduled events, without a network in between.
type set struct {
	mu        sync.Mutex
	instance  string
	events    string
	n         int // the incarnation
	status    int // of events, where it is not 200
	slow      time.Duration
	got       []string
	at        []time.Time // of the polls
	instances int
	down      bool // of the instance metadata
	posted    []string
}

func newSet(t *testing.T) *set { return &set{instance: fixture(t, "instance.json"), events: ""} }

func (s *set) list(events ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	s.events = strings.Join(events, ",")
}

func (s *set) set(change func(*set)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// RoundTrip implements http.RoundTripper.
func (s *set) RoundTrip(req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.got = append(s.got, req.Method+" "+req.URL.Path)
	status, body, slow := http.StatusOK, s.instance, time.Duration(0)
	switch {
	case req.URL.Path == pathEvents && req.Method == http.MethodGet:
		s.at = append(s.at, time.Now())
		body = fmt.Sprintf(`{"DocumentIncarnation":%d,"Events":[%s]}`, s.n, s.events)
		if s.status != 0 {
			status, body = s.status, "<html>"
		}
		slow, s.slow = s.slow, 0
	case req.URL.Path == pathEvents:
		b, _ := io.ReadAll(req.Body)
		s.posted = append(s.posted, string(b))
		body = ""
		if s.status != 0 {
			status = s.status
		}
	default:
		s.instances++
		if s.down {
			status = http.StatusServiceUnavailable
		}
	}
	s.mu.Unlock()
	if req.Header.Get("Metadata") != "true" || req.Header.Get("X-Forwarded-For") != "" || req.URL.Query().Get("api-version") == "" {
		status = http.StatusBadRequest
	}
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	rec := httptest.NewRecorder()
	rec.WriteHeader(status)
	_, _ = rec.WriteString(body)
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}

// event is one of the document.
func event(id, kind, status, notBefore string, resources ...string) string {
	return fmt.Sprintf(`{"EventId":%q,"EventType":%q,"ResourceType":"VirtualMachine","Resources":["%s"],"EventStatus":%q,"NotBefore":%q,"Description":"","EventSource":"User","DurationInSeconds":-1}`,
		id, kind, strings.Join(resources, `","`), status, notBefore)
}

const soon = "Fri, 20 Nov 2026 08:05:00 GMT"

// watching runs Watch while test runs, in a bubble.
func watching(t *testing.T, s *set, o azure.WatchOptions, test func(said func() []string, log *bytes.Buffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p, err := azure.New(cloud.Options{Transport: s, Root: "testdata/nowhere", Log: slog.New(slog.NewTextHandler(&log, nil))})
		must.OK(t, err)
		var (
			mu   sync.Mutex
			list []string
		)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.Watch(ctx, o, func(sig azure.Signal) {
				mu.Lock()
				defer mu.Unlock()
				text := sig.Event.ID + " " + sig.Event.Type + " " + sig.Event.Status
				if sig.Gone {
					text += " gone"
				}
				if sig.First {
					text += " first"
				}
				if sig.Before.Status != "" && !sig.Gone {
					text += " after " + sig.Before.Status
				}
				if sig.Machine.Name != "edge_3" || sig.Seen.IsZero() {
					t.Errorf("%+v", sig)
				}
				list = append(list, text)
			})
		}()
		test(func() []string {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			out := list
			list = nil
			return out
		}, &log)
		cancel()
		<-done
	})
}

func sleep(d time.Duration) { <-time.After(d) }

func TestWatch(t *testing.T) {
	s := newSet(t)
	s.list(event("1", "Terminate", "Scheduled", soon, "edge_0", "EDGE_3"), event("2", "Reboot", "Scheduled", soon, "edge_0"))
	watching(t, s, azure.WatchOptions{}, func(said func() []string, log *bytes.Buffer) {
		want := func(what string, want ...string) {
			t.Helper()
			if d := cmp.Diff(want, said()); d != "" {
				t.Errorf("%s: %s", what, d)
			}
		}
		sleep(1500 * time.Millisecond)
		want("what is there at first, of this machine", "1 Terminate Scheduled first")
		sleep(10 * time.Second)
		want("nothing changes")
		s.list(event("1", "Terminate", "Scheduled", soon, "edge_0", "EDGE_3"), event("3", "Freeze", "Scheduled", soon, "edge_3"))
		sleep(1500 * time.Millisecond)
		want("one more", "3 Freeze Scheduled")
		s.list(event("1", "Terminate", "Started", "", "edge_0", "EDGE_3"))
		sleep(1100 * time.Millisecond)
		want("it begins", "1 Terminate Started after Scheduled")
		sleep(time.Second)
		want("one is over", "3 Freeze Scheduled gone")
		s.list()
		sleep(3 * time.Second)
		want("all are", "1 Terminate Started gone")
		s.list(event("1", "Terminate", "Scheduled", soon, "edge_3"))
		sleep(2 * time.Second)
		want("once more", "1 Terminate Scheduled")
		s.list(event("1", "Terminate", "Scheduled", soon, "edge_0"))
		sleep(3 * time.Second)
		want("it is about others now", "1 Terminate Scheduled gone")
		if log.Len() > 0 {
			t.Errorf("log: %s", log)
		}
	})
	if s.instances != 1 {
		t.Errorf("the machine was asked for its name %d times", s.instances)
	}
	// Once a second, not more. The first second also asks for the machine's name: the poll after it is a quarter late.
	if d := s.at[1].Sub(s.at[0]); d > 1300*time.Millisecond {
		t.Errorf("poll 1 came %v after the first", d)
	}
	for i := 3; i < len(s.at); i++ {
		if d := s.at[i].Sub(s.at[i-1]); d < 950*time.Millisecond || d > 1100*time.Millisecond {
			t.Errorf("poll %d came %v after the one before", i, d)
		}
	}
}

// TestWatchOneDocument: a node is not put back into service by one document that somebody mixed up.
func TestWatchOneDocument(t *testing.T) {
	s := newSet(t)
	e := event("1", "Terminate", "Scheduled", soon, "edge_3")
	s.list(e)
	watching(t, s, azure.WatchOptions{}, func(said func() []string, log *bytes.Buffer) {
		sleep(1500 * time.Millisecond)
		said()
		s.list()
		sleep(time.Second)
		s.list(e)
		sleep(5 * time.Second)
		if got := said(); len(got) > 0 {
			t.Errorf("%q", got)
		}
		// Nor by one that cannot be read in full.
		s.list(`{"EventId":17}`)
		sleep(5 * time.Second)
		s.list(`{"EventId":17}`, event("2", "Freeze", "Scheduled", soon, "edge_3"))
		sleep(5 * time.Second)
		if d := cmp.Diff([]string{"2 Freeze Scheduled"}, said()); d != "" {
			t.Error(d)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 2 {
			t.Errorf("log: %s", log)
		}
	})
}

// TestWatchKnown: an event that is gone when a daemon comes back is told as gone; one that is there is no news, but told
// in full.
func TestWatchKnown(t *testing.T) {
	s := newSet(t)
	s.list(event("1", "Terminate", "Scheduled", soon, "edge_3"))
	watching(t, s, azure.WatchOptions{Known: []string{"1", "2"}}, func(said func() []string, _ *bytes.Buffer) {
		sleep(5 * time.Second)
		if d := cmp.Diff([]string{"1 Terminate Scheduled first", "2   gone"}, said()); d != "" {
			t.Error(d)
		}
	})
}

// TestFieldReport12_PerZone: events are off in a zone until a machine there asks. Every machine does, from the first
// moment on, and whether its own metadata can be read or not.
func TestFieldReport12_PerZone(t *testing.T) {
	s := newSet(t)
	s.down = true
	s.list(event("1", "Preempt", "Scheduled", soon, "edge_3"))
	watching(t, s, azure.WatchOptions{}, func(said func() []string, log *bytes.Buffer) {
		synctest.Wait()
		s.set(func(s *set) {
			if len(s.at) != 1 {
				t.Errorf("%d polls in the first moment", len(s.at))
			}
		})
		sleep(10 * time.Minute)
		if got := said(); len(got) > 0 {
			t.Errorf("%q", got)
		}
		s.set(func(s *set) {
			if n := len(s.at); n < 590 || n > 601 {
				t.Errorf("%d polls in ten minutes", n)
			}
			s.down = false
		})
		sleep(40 * time.Second)
		if d := cmp.Diff([]string{"1 Preempt Scheduled first"}, said()); d != "" {
			t.Error(d)
		}
		if n := strings.Count(log.String(), "wait for the name"); n != 1 {
			t.Errorf("it says %d times that the name is not known:\n%s", n, log)
		}
	})
}

// TestFieldReport11_FirstCall: the first call takes up to two minutes. A bound of a second never got an answer.
func TestFieldReport11_FirstCall(t *testing.T) {
	s := newSet(t)
	s.list(event("1", "Preempt", "Scheduled", soon, "edge_3"))
	s.slow = 2 * time.Minute
	watching(t, s, azure.WatchOptions{}, func(said func() []string, log *bytes.Buffer) {
		sleep(121 * time.Second)
		if d := cmp.Diff([]string{"1 Preempt Scheduled first"}, said()); d != "" {
			t.Error(d)
		}
		// From then on four seconds are slow, and ten are too long.
		s.set(func(s *set) { s.slow = 4 * time.Second })
		sleep(10 * time.Second)
		if log.Len() > 0 {
			t.Errorf("log: %s", log)
		}
		s.set(func(s *set) { s.slow = time.Hour })
		sleep(20 * time.Second)
		if text := log.String(); strings.Count(text, "notices may come late") != 1 || strings.Count(text, "can be read again") != 1 {
			t.Errorf("log: %s", text)
		}
	})
	if n := len(s.at); n < 15 {
		t.Errorf("%d polls: one that hangs held up the others", n)
	}
}

// TestWatchTrouble: whatever the service does, it is asked again soon, and told once.
func TestWatchTrouble(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusGone, http.StatusTooManyRequests, http.StatusInternalServerError} {
		s := newSet(t)
		s.list()
		watching(t, s, azure.WatchOptions{}, func(said func() []string, log *bytes.Buffer) {
			sleep(5 * time.Second)
			var before int
			s.set(func(s *set) { s.status, before = status, len(s.at) })
			sleep(10 * time.Minute)
			s.set(func(s *set) {
				if n := len(s.at) - before; n > 200*3 || n < 9 {
					t.Errorf("%d: %d polls in ten minutes", status, n)
				}
				s.status = 0
			})
			s.list(event("1", "Preempt", "Scheduled", soon, "edge_3"))
			most := 6 * time.Second
			if status == http.StatusForbidden {
				most = time.Minute
			}
			sleep(most)
			if d := cmp.Diff([]string{"1 Preempt Scheduled"}, said()); d != "" {
				t.Errorf("%d: %s", status, d)
			}
			if n := strings.Count(log.String(), "level=WARN"); n != 1 {
				t.Errorf("%d: %d lines: %s", status, n, log)
			}
		})
	}
}

func TestStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t)
		p, err := azure.New(cloud.Options{Transport: s})
		must.OK(t, err)
		must.OK(t, p.Start(t.Context(), `602d9444-"x"`))
		if d := cmp.Diff([]string{`{"StartRequests":[{"EventId":"602d9444-\"x\""}]}`}, s.posted); d != "" {
			t.Error(d)
		}
		for status, kind := range map[int]error{
			400: cloud.ErrBadAnswer, 403: cloud.ErrForbidden, 404: cloud.ErrNotReady, 410: cloud.ErrNotReady, 429: cloud.ErrNotReady, 500: cloud.ErrNotReady,
		} {
			s.status, s.posted = status, nil
			err := p.Start(t.Context(), "1")
			e, ok := errors.AsType[*cloud.Error](err)
			if !ok || !errors.Is(err, kind) || e.Status != status || len(s.posted) != 1 {
				t.Errorf("%d: %v, asked %d times", status, err, len(s.posted))
			}
		}
	})
}

// BenchmarkPoll is one look in which nothing has changed, with the service in the same process: the budget is a
// thousandth of a core at one look a second.
func BenchmarkPoll(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"DocumentIncarnation":1,"Events":[]}`)
	}))
	defer srv.Close()
	p, err := azure.NewUnpaced(cloud.Options{Endpoints: map[string]string{"azure": srv.URL}})
	must.OK(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Events(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
