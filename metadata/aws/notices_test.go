// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	stdcmp "cmp"
	"context"
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

	"github.com/amsagent/amsagent/internal/locked"
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

// imdsInMemory is a metadata service without a network, so that hours of polling take no time.
type imdsInMemory struct {
	mu     sync.Mutex
	bodies map[string]string
	fault  func(path string) (status int, body string, hang bool) // status 0: none
	valid  string
	ttl    string // of the tokens; empty: as requested
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

// count returns the number of requests so far, those for tokens separately.
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
			return metadatatest.Answer(req, status, body), nil
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if req.Method == http.MethodPut {
		m.valid = "token-" + strconv.Itoa(m.tokens)
		resp := metadatatest.Answer(req, http.StatusOK, m.valid)
		resp.Header.Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", stdcmp.Or(m.ttl, req.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds")))
		return resp, nil
	}
	if m.valid == "" || req.Header.Get("X-Aws-Ec2-Metadata-Token") != m.valid {
		return metadatatest.Answer(req, http.StatusUnauthorized, ""), nil
	}
	if body, ok := m.bodies[path]; ok {
		return metadatatest.Answer(req, http.StatusOK, body), nil
	}
	return metadatatest.Answer(req, http.StatusNotFound, "<html>404</html>"), nil
}

// watching is a run of Watch and its log.
type watching struct {
	*metadatatest.Watched
	log locked.Buffer
}

// watch runs Watch in a bubble of synctest.
func watch(t *testing.T, imds *imdsInMemory, body func(w *watching)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &watching{}
		p, err := aws.New(cloud.Options{Transport: imds, Log: slog.New(slog.NewTextHandler(&w.log, nil))})
		must.OK(t, err)
		w.Watched = metadatatest.Watch(t, p)
		body(w)
	})
}

// pass advances the time and returns the reports in between.
func (w *watching) pass(d time.Duration) map[string][]int {
	<-time.After(d)
	synctest.Wait()
	return w.Reports()
}

func (w *watching) lines(level string) int { return strings.Count(w.log.String(), "level="+level) }

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
	frozen := cloud.Notice{ID: "aws-lifecycle/unknown/Frozen:Deep", Kind: cloud.Unknown, Who: "Auto Scaling", Reason: "target state Frozen:Deep"}
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
			imds := newIMDS()
			imds.set(tt.item, tt.body)
			topic := map[string]string{target: state, spot: aws.TopicSpot, scheduled: aws.TopicScheduled}[tt.item]
			watch(t, imds, func(w *watching) {
				reported := len(w.pass(50 * time.Millisecond)[topic]) > 0
				if reported == tt.bad {
					t.Errorf("reported: %v", reported)
				}
				w.Look(topic, 0, metadatatest.Any, tt.want...)
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
	denied := xmlError(403, "AccessDenied", "no")
	for name, tt := range map[string]struct {
		target      string
		answers     []answer
		first, last []cloud.Notice // at once, and after a minute
		calls       int            // within a minute
	}{
		"a root is being replaced":   {"RootVolumeReplaced", list(member("edge-asg", "ReplacingRootVolume:Wait")), list(reimage), list(reimage), 1},
		"it begins in a moment":      {"RootVolumeReplaced", list(member("edge-asg", "InService"), member("edge-asg", "ReplacingRootVolume")), nil, list(reimage), 2},
		"it was replaced":            {"RootVolumeReplaced", list(member("edge-asg", "Pending:Wait")), nil, nil, 7},
		"the target says it":         {"ReplacingRootVolume:Wait", list(denied), list(reimage), list(reimage), 0},
		"another state":              {"Quarantined", list(member("edge-asg", "Quarantining:Wait")), list(unknown("Quarantined", "target state Quarantined, state Quarantining:Wait")), list(unknown("Quarantined", "target state Quarantined, state Quarantining:Wait")), 1},
		"a denied question":          {"RootVolumeReplaced", list(denied), list(unknown("RootVolumeReplaced", "target state RootVolumeReplaced")), list(unknown("RootVolumeReplaced", "target state RootVolumeReplaced")), 1},
		"the API answers some later": {"RootVolumeReplaced", list(xmlError(400, "Odd", "no"), member("edge-asg", "ReplacingRootVolume")), list(unknown("RootVolumeReplaced", "target state RootVolumeReplaced")), list(reimage), 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				imds := instanceWithRole()
				imds.set(target, tt.target)
				p, api, _ := openAPI(t, imds, "", tt.answers...)
				w := metadatatest.Watch(t, p)
				w.Look(state, time.Second, metadatatest.Any, tt.first...)
				<-time.After(57 * time.Second)
				w.Look(state, 3*time.Second, metadatatest.Any, tt.last...)
				if n := len(api.calls); n != tt.calls {
					t.Errorf("%d calls, want %d", n, tt.calls)
				}
			})
		})
	}
}

// TestWatchTarget: a change is seen within one interval, and a missing item withdraws nothing.
func TestWatchTarget(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	watch(t, imds, func(w *watching) {
		imds.set(target, "InService")
		w.Look(state, 2*time.Second, metadatatest.Any)
		imds.set(target, "Terminated")
		w.Look(state, 2*time.Second, metadatatest.Any, scaleIn())
		imds.set(target, "")
		if n := len(w.pass(time.Hour)[state]); n > 0 {
			t.Errorf("%d reports of a missing item", n)
		}
		imds.set(target, "InService")
		w.Look(state, 2*time.Second, metadatatest.Any)
		if w.log.String() != "" {
			t.Errorf("log:\n%s", w.log.String())
		}
	})
}

// TestWatchSurvives checks that no failure of the service ends Watch, floods the log or the service, or hides a signal that can
// be read; and that Watch recovers after the failure, however long it took.
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
			// With a token that outlasts the failure: the lock around the SDK's token request blocks synctest.
			imds.ttl = "21600"
			imds.set(target, "InService")
			watch(t, imds, func(w *watching) {
				w.Look(state, time.Minute, metadatatest.Any)
				imds.breakWith(fault)
				if name != "hang" {
					imds.expire()
				}
				before, tokens := imds.count()
				long := 3 * time.Hour
				if name == "too large" {
					long = time.Minute // a megabyte each
				}
				w.pass(long)
				after, tokensAfter := imds.count()
				if perSecond := float64(after-before+tokensAfter-tokens) / long.Seconds(); perSecond > 1 {
					t.Errorf("%.2f requests in a second while it fails", perSecond)
				}
				if n := w.lines("WARN"); n == 0 || n > 3 {
					t.Errorf("%d warnings:\n%s", n, w.log.String())
				}
				if strings.Contains(w.log.String(), "rate limit") || strings.Contains(w.log.String(), "quota") {
					t.Errorf("the SDK's bucket ran dry:\n%s", w.log.String())
				}
				imds.set(target, "Terminated")
				imds.breakWith(nil)
				wait := 20 * time.Second
				if name == "403" || name == "404 of the token" || name == "401 for ever" {
					wait = time.Minute + 5*time.Second
				}
				w.Look(state, wait, metadatatest.Any, scaleIn())
				w.pass(3 * time.Minute)
				if w.lines("INFO") != w.lines("WARN") {
					t.Errorf("the end of the failure is not logged:\n%s", w.log.String())
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

// TestWatchTokenHangs is a hop limit of 1 as seen from a container, in real time: it logs one line for each item, and the next
// good answer counts.
func TestWatchTokenHangs(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	imds.set(target, "Terminated")
	imds.breakWith(func(path string) (int, string, bool) { return 0, "", path == "api/token" })
	log := &locked.Buffer{}
	p, err := aws.New(cloud.Options{Transport: imds, Log: slog.New(slog.NewTextHandler(log, nil)), AttemptTimeout: 5 * time.Millisecond})
	must.OK(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	seen, done := make(chan []cloud.Notice, 100), make(chan struct{})
	go func() {
		defer close(done)
		p.Watch(ctx, func(topic string, current []cloud.Notice) {
			if topic == state {
				seen <- current
			}
		})
	}()
	for strings.Count(log.String(), "level=WARN") < 3 {
		select {
		case got := <-seen:
			t.Fatal(got)
		case <-time.After(5 * time.Millisecond):
		}
	}
	imds.breakWith(nil)
	if got := <-seen; len(got) != 1 || got[0].Kind != cloud.Terminate {
		t.Error(got)
	}
	cancel()
	<-done
}

// TestWatchOneItem checks that the failure of one item does not affect the others.
func TestWatchOneItem(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	imds.breakWith(func(path string) (int, string, bool) {
		switch path {
		case scheduled:
			return http.StatusOK, `{"no":"list"}`, false
		case spot:
			return 0, "", true
		}
		return 0, "", false
	})
	watch(t, imds, func(w *watching) {
		w.pass(time.Hour)
		if w.lines("WARN") != 2 {
			t.Errorf("log:\n%s", w.log.String())
		}
		for range 20 {
			imds.set(target, "Terminated")
			w.Look(state, 2*time.Second, metadatatest.Any, scaleIn())
			imds.set(target, "InService")
			w.Look(state, 2*time.Second, metadatatest.Any)
		}
	})
}

// TestWatchRate checks that polling makes less than one request a second, including tokens, even if tokens expire each minute.
func TestWatchRate(t *testing.T) {
	t.Parallel()
	imds := newIMDS()
	imds.set(target, "InService")
	watch(t, imds, func(w *watching) {
		w.pass(time.Second)
		requests, tokens := imds.count()
		for range 60 {
			imds.expire()
			w.pass(time.Minute)
		}
		r, k := imds.count()
		if perSecond := float64(r-requests+k-tokens) / 3600; perSecond > 1 || perSecond < 0.7 {
			t.Errorf("%.3f requests in a second", perSecond)
		}
		if w.log.String() != "" {
			t.Errorf("log:\n%s", w.log.String())
		}
	})
}
