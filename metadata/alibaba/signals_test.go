// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	spotPath   = meta + "instance/spot/termination-time"
	eventsPath = latest + "maintenance/active-system-events"
)

// watched runs Watch and keeps what it says.
type watched struct {
	t   *testing.T
	log *locked.Buffer

	mu  sync.Mutex
	all []string
}

func watch(t *testing.T, f *metadatatest.Fake, o alibaba.WatchOptions) *watched {
	t.Helper()
	w := &watched{t: t, log: &locked.Buffer{}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	p := open(t, f, func(o *cloud.Options) {
		o.Log = slog.New(slog.NewTextHandler(w.log, nil))
		o.AttemptTimeout = time.Minute // an answer that is late on a busy machine is no trouble
	})
	go func() {
		defer close(ended)
		p.Watch(ctx, o, func(s alibaba.Signal) {
			if s.Seen.IsZero() {
				t.Error("a signal that was not seen")
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.all = append(w.all, fmt.Sprintf("%s %s<%s %s gone=%v", s.Kind, s.Value, s.Before, s.ID, s.Gone))
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return w
}

func (w *watched) signals() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.all...)
}

// until waits for so many signals, and says whether there are no more.
func (w *watched) until(want ...string) {
	w.t.Helper()
	text := strings.Join(want, "\n")
	w.eventually(func() string {
		if got := strings.Join(w.signals(), "\n"); got != text {
			return "signals\n" + got + "\nwant\n" + text
		}
		return ""
	})
}

func (w *watched) eventually(why func() string) {
	w.t.Helper()
	end := time.Now().Add(2 * time.Minute)
	for {
		text := why()
		if text == "" {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s\nlog:\n%s", text, w.log.String())
		}
		<-time.After(2 * time.Millisecond)
	}
}

func (w *watched) says(text string) {
	w.t.Helper()
	w.eventually(func() string {
		if !strings.Contains(w.log.String(), text) {
			return "not said: " + text
		}
		return ""
	})
}

func fast() alibaba.WatchOptions {
	return alibaba.WatchOptions{Interval: 5 * time.Millisecond, EventInterval: 5 * time.Millisecond, ScalingInterval: 5 * time.Millisecond, IdleInterval: 10 * time.Millisecond, DeniedInterval: 10 * time.Millisecond}
}

func TestWatchMetadata(t *testing.T) {
	t.Parallel()
	f := metadatatest.NewFake(t, service(), bodies(t))
	w := watch(t, f, fast())
	at := time.Now().Add(5 * time.Minute).UTC()
	f.Set(spotPath, at.Format(time.RFC3339))
	w.until("spot/termination-time <  gone=false")
	// Said again, or 404 once by mistake: nothing new.
	f.Break(spotPath, 2, metadatatest.Status(http.StatusNotFound))
	f.Break(spotPath, 3, metadatatest.Status(http.StatusInternalServerError))
	f.Expire()
	f.Set(eventsPath, fixture(t, "events_api.json"))
	event := "maintenance/active-system-events SystemMaintenance.Reboot< e-1 gone="
	w.until("spot/termination-time <  gone=false", event+"false")
	f.Set(eventsPath, strings.Replace(fixture(t, "events_api.json"), "2026-11-22", "2026-11-23", 1))
	w.until("spot/termination-time <  gone=false", event+"false", event+"true", event+"false")
	f.Set(eventsPath, strings.Replace(fixture(t, "events_api.json"), "Scheduled", "Avoided", 1))
	w.until("spot/termination-time <  gone=false", event+"false", event+"true", event+"false", event+"true")
	f.Unset(spotPath)
	w.until("spot/termination-time <  gone=false", event+"false", event+"true", event+"false", event+"true", "spot/termination-time <  gone=true")
}

// What somebody has to agree to first is no event yet, and one that is no longer listed is over.
func TestWatchEvents(t *testing.T) {
	t.Parallel()
	f := metadatatest.NewFake(t, service(), bodies(t))
	f.Set(eventsPath, `[{"EventId":"e-1","EventType":"SystemMaintenance.Redeploy","EventCycleStatus":"Inquiring"},7]`)
	w := watch(t, f, fast())
	w.says("a system event is no object")
	f.Set(eventsPath, `[{"EventId":"e-1","EventType":"SystemMaintenance.Redeploy","EventCycleStatus":"Executing"}]`)
	event := "maintenance/active-system-events SystemMaintenance.Redeploy< e-1 gone="
	w.until(event + "false")
	w.says("can be read again")
	f.Unset(eventsPath)
	w.until(event+"false", event+"true")
}

func state(s string) answer {
	return good(`{"ScalingInstances":[{"InstanceId":"i-bp13znx0m0me8cq0001","ScalingGroupId":"asg-1","LifecycleState":"` + s + `"}]}`)
}

func (s *apiServer) plan(action string, answers ...answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[action] = answers
}

func TestWatchScaling(t *testing.T) {
	t.Parallel()
	const describe = "DescribeScalingInstances"
	f := rolled(t)
	s := newAPIServer(t, map[string][]answer{describe: {good(`{"ScalingInstances":[]}`)}})
	e, _ := openESS(t, f, s)
	o := fast()
	o.Scaling = e
	w := watch(t, f, o)
	one := "scaling/lifecycle-state InService<  gone=false"
	s.plan(describe, state("InService"))
	w.until(one)
	// A storm, an outage, and one answer that knows nothing of us: the state stays.
	s.plan(describe, bad(400, "Throttling.User", "x"), bad(503, "ServiceUnavailable", "x"), answer{reset: true}, good(`{"ScalingInstances":[]}`), state("InService"))
	w.says("cannot be read")
	w.says("can be read again")
	if n := strings.Count(w.log.String(), "cannot be read"); n > 2 {
		t.Errorf("said %d times:\n%s", n, w.log.String())
	}
	s.plan(describe, state("Removing"), state("Removing:Wait"))
	two := "scaling/lifecycle-state Removing<InService  gone=false"
	three := "scaling/lifecycle-state Removing:Wait<Removing  gone=false"
	w.until(one, two, three)
	s.plan(describe, good(`{"ScalingInstances":[]}`))
	w.until(one, two, three, "scaling/lifecycle-state <Removing:Wait  gone=false")
}

// Nobody may ask: said once, asked again now and then, and said when it is over.
func TestWatchScalingDenied(t *testing.T) {
	t.Parallel()
	const describe = "DescribeScalingInstances"
	f := metadatatest.NewFake(t, service(), bodies(t))
	s := newAPIServer(t, map[string][]answer{describe: {bad(403, "Forbidden.RAM", "x")}})
	e, _ := openESS(t, f, s)
	o := fast()
	o.Scaling = e
	w := watch(t, f, o)
	w.says("has no RAM role")
	f.Set(roles, "ams-node")
	f.Set(roles+"ams-node", credentialsUntil("1", time.Now().Add(time.Hour)))
	w.says("ess:DescribeScalingInstances")
	w.eventually(func() string {
		if n := len(s.called(describe)); n < 4 {
			return fmt.Sprintf("asked %d times", n)
		}
		return ""
	})
	s.plan(describe, state("Protected"))
	w.until("scaling/lifecycle-state Protected<  gone=false")
	w.says("a scale-in can be seen from here\" provider")
	for text, most := range map[string]int{"has no RAM role": 1, "lacks the permission": 1} {
		if n := strings.Count(w.log.String(), text); n != most {
			t.Errorf("%q said %d times:\n%s", text, n, w.log.String())
		}
	}
}

// TestFieldReport03_Token: a session token that ended early is replaced, for ever and not once.
// A clock that is ahead does not hide the end of a spot instance: the process saw it appear.
func TestWatchSpotClockAhead(t *testing.T) {
	t.Parallel()
	f := metadatatest.NewFake(t, service(), bodies(t))
	w := watch(t, f, fast())
	w.eventually(func() string {
		if f.Count(spotPath) < 2 {
			return "not looked at"
		}
		return ""
	})
	f.Set(spotPath, time.Now().Add(-2*time.Hour).UTC().Format(time.RFC3339))
	w.until("spot/termination-time <  gone=false")
}

func TestFieldReport03_Token(t *testing.T) {
	t.Parallel()
	f := metadatatest.NewFake(t, service(), bodies(t))
	w := watch(t, f, fast())
	for n := range 5 {
		w.eventually(func() string {
			if got := f.Count("/latest/api/token"); got <= n {
				return fmt.Sprintf("%d tokens after %d ended", got, n)
			}
			return ""
		})
		f.Expire()
	}
	f.Set(spotPath, time.Now().Add(time.Minute).UTC().Format(time.RFC3339))
	w.until("spot/termination-time <  gone=false")
}

// A service that is switched off is asked rarely, and said to be off once.
func TestWatchForbidden(t *testing.T) {
	t.Parallel()
	f := metadatatest.NewFake(t, service(), bodies(t))
	f.Break("/latest/api/token", -1, metadatatest.Status(http.StatusForbidden))
	w := watch(t, f, alibaba.WatchOptions{Interval: 50 * time.Millisecond, EventInterval: 50 * time.Millisecond})
	w.says("cannot be read")
	<-time.After(500 * time.Millisecond)
	if n := strings.Count(w.log.String(), "cannot be read"); n != 1 {
		t.Errorf("said %d times:\n%s", n, w.log.String())
	}
	if n := f.Count("/latest/api/token"); n > 10 {
		t.Errorf("asked %d times in half a second", n)
	}
}
