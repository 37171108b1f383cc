// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/sleep"
)

// roundTrip is a server without a network.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(code int, body string) (*http.Response, error) {
	return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(body))}, nil
}

// A slow step is announced, a quick one is not.
func TestWhileSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var said []string
		m := &Machine{Progress: func(line string) { said = append(said, line) }}
		m.whileSlow("quick", func() { sleep.For(t.Context(), slowTime-time.Millisecond) })
		m.whileSlow("slow", func() { sleep.For(t.Context(), slowTime+time.Millisecond) })
		must.Equal(t, "said", strings.Join(said, ", "), "slow")
	})
}

// Once the wait is over, its progress is not reported: the check was cut short and would say "context canceled".
func TestSayWaitingIsNotCutShort(t *testing.T) {
	t.Parallel()
	said := 0
	m := newTree(t, joined, serving(running()))
	m.Progress = func(string) { said++ }
	m.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
		return answer(http.StatusOK, "")
	})}
	j := joinerOf(t, m, testMongo, "10.0.1.7")
	j.sayWaiting(t.Context())
	must.Equal(t, "sentences", said, 1)
	over, seen := context.WithCancel(t.Context())
	seen()
	j.sayWaiting(over)
	must.Equal(t, "sentences after the end", said, 1)
}

// The server's user decides how many applications there are, and when they answer: a bounded number
// is asked at a time, and all of them together take no longer than one may.
func TestAskAllBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most := 0, 0
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			now += n
			most = max(most, now)
		}
		m := ownTree(t, "3.0", "2.10.0")
		m.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			count(1)
			defer count(-1)
			if strings.HasPrefix(r.URL.Path, "/hangs-") {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return answer(http.StatusNotFound, "")
		})}
		var apps []string
		for i := range 1024 {
			apps = append(apps, fmt.Sprintf("hangs-%d", i))
			put(t, m, settingsOf(apps[i]), "")
		}
		m.Serving = []string{"hangs-*"}
		began := time.Now()
		answers := m.Server().look(t.Context())
		if d := time.Since(began); d != servingLimit || most != maxAsks || len(answers) != len(apps) {
			t.Errorf("%d answers after %s, %d at a time", len(answers), d, most)
		}
		for _, a := range answers {
			must.Equal(t, a.Name, a.State, ams.AppSilent)
		}

		// Those that hang keep no other from being asked.
		apps = append(apps[:3*maxAsks:3*maxAsks], "serves")
		j := &joiner{Machine: m, facts: &facts{}, result: &JoinResult{}}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		err := j.awaitServing(ctx, manyApps{m.Server(), apps})
		not, ok := errors.AsType[*NotServingError](err)
		if !ok || len(not.Apps) != 3*maxAsks || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		} else if !slices.IsSortedFunc(not.Apps, func(a, b ams.AppAnswer) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("not in the order of names: %v", err)
		}
		if served := j.result.Applications; len(served) != 1 || served[0].Name != "serves" {
			t.Errorf("%v serve", served)
		}
	})
}

// manyApps is a server with other applications than those on disk.
type manyApps struct {
	*Server
	apps []string
}

func (m manyApps) Applications() ([]string, error) { return m.apps, nil }

// startTime is when the start of a server must be over.
const startTime = 2 * time.Minute

// asking is the daemon, which calls LiveApp, and a server that counts the calls.
type asking struct {
	t       *testing.T
	m       *Machine
	service *fakeService
	server  *Server
	code    int  // of the answer; 0: the connection is refused
	absent  bool // the server does not have the application
	// The calls, and the questions to the service manager.
	calls, looks int
}

const initialized, closedMark, webXML = "webapps/LiveApp/" + ams.InitializedName, "webapps/LiveApp/" + ams.ClosedName, "webapps/LiveApp/WEB-INF/web.xml"

func newAsking(t *testing.T, steps ...step) *asking {
	w := &asking{t: t, m: newTree(t, append([]step{joined}, steps...)...), code: http.StatusNotFound}
	w.service = &fakeService{state: isUp, on: func(string) error { w.looks++; return nil }}
	w.m.Service, w.m.Serving = w.service, []string{"LiveApp"}
	w.m.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		w.calls++
		switch {
		case w.code == 0:
			return nil, syscall.ECONNREFUSED
		case w.absent && strings.HasSuffix(r.URL.Path, ".m3u8"):
			return answer(http.StatusInternalServerError, r.URL.Path)
		case w.absent:
			return answer(w.code, r.URL.Path)
		}
		return answer(w.code, "")
	})}
	w.server = w.m.Server()
	return w
}

// ask calls the application, and returns what it is, and how often the server was called.
func (w *asking) ask(want ams.AppServing, calls int) {
	w.t.Helper()
	w.calls = 0
	a := w.server.Ask(w.t.Context(), "LiveApp")
	if a.State != want || w.calls != calls {
		w.t.Errorf("%s after %d calls: %+v; want %s after %d", a.State, w.calls, a, want, calls)
	}
}

func (w *asking) wait(d time.Duration) { sleep.For(w.t.Context(), d) }

// age sets the times of the application's files.
func (w *asking) age(to time.Time, files ...string) {
	w.t.Helper()
	for _, file := range files {
		must.OK(w.t, os.Chtimes(at(w.m, file), to, to))
	}
}

// A join waits for a broken application, and another process restarts the server.
func TestAwaitServingFollowsARestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newAsking(t, with(initialized, ""), with(closedMark, ""))
		w.code = http.StatusInternalServerError
		restarted := time.Now().Add(5 * time.Second)
		w.service.state.Started = time.Now().Add(-time.Hour)
		w.service.on = func(string) error { // it is asked every second
			if !time.Now().Before(restarted) {
				w.service.state.Started = restarted
			}
			return nil
		}
		var last time.Time
		transport := w.m.HTTP.Transport
		w.m.HTTP.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			last = time.Now()
			return transport.RoundTrip(r)
		})
		j := &joiner{Machine: w.m, facts: &facts{install: &ams.Installation{Apps: []ams.App{{Name: "LiveApp"}}}}, result: &JoinResult{}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := j.serve(ctx)
		if err == nil || last.Before(restarted.Add(-time.Second)) || last.After(restarted.Add(time.Second)) {
			t.Errorf("asked %s after the restart for the last time: %v", last.Sub(restarted), err)
		}
	})
}

// From 2.16.2 on a request makes an application lose its settings while its context is being built: the agent waits for the
// marks of a complete start, but not forever.
func TestNotAskedInItsStart(t *testing.T) {
	t.Parallel()
	const unknown = -time.Hour
	once, twice := []string{initialized}, []string{initialized, closedMark}
	for name, tt := range map[string]struct {
		marks []string
		age   time.Duration // of the server
		old   bool          // no file is newer than the server
		made  bool          // now, while the server runs
		want  ams.AppServing
	}{
		"the first start ever":                        {nil, time.Second, true, false, ams.AppStarting},
		"the first start ever takes long":             {nil, startTime, true, false, ams.AppServes},
		"a start after a stop":                        {twice, time.Second, true, false, ams.AppStarting},
		"a start after a stop takes long":             {twice, startTime, true, false, ams.AppServes},
		"it has started":                              {once, time.Second, false, false, ams.AppServes},
		"a start after a kill":                        {once, time.Second, true, false, ams.AppStarting},
		"a start after a kill takes long":             {once, startTime, true, false, ams.AppServes},
		"a start at an unknown time":                  {nil, unknown, true, false, ams.AppStarting},
		"a start after a stop, at an unknown time":    {twice, unknown, true, false, ams.AppStarting},
		"it has started, at an unknown time":          {once, unknown, true, false, ams.AppServes},
		"the clock was set back since it has started": {once, -time.Minute, true, false, ams.AppServes},
		"the clock was set back in its start":         {nil, -time.Minute, true, false, ams.AppStarting},
		"the panel makes it":                          {nil, time.Hour, false, true, ams.AppWaits},
		"the panel makes it, of unknown start":        {nil, unknown, false, true, ams.AppStarting},
		"the panel has made it":                       {once, time.Hour, false, true, ams.AppServes},
	} {
		t.Run(name, func(t *testing.T) {
			w := newAsking(t)
			var started time.Time
			if tt.age != unknown {
				started = time.Now().Add(-tt.age)
			}
			w.service.state.Started = started
			for _, mark := range tt.marks {
				put(t, w.m, mark, "")
			}
			if tt.made {
				put(t, w.m, webXML, "")
			}
			if tt.old {
				w.age(started.Add(-time.Second), path.Dir(initialized), liveFile)
			}
			w.ask(tt.want, map[bool]int{true: 1}[tt.want == ams.AppServes])
		})
	}
}

// An application that the server does not have is missing, unless it was made after the server's start.
func TestNotDeployed(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		started time.Time
		want    ams.AppServing
	}{
		"broken":                 {time.Now().Add(time.Minute), ams.AppMissing},
		"made since":             {time.Now().Add(-time.Hour), ams.AppWaits},
		"the start is not known": {time.Time{}, ams.AppWaits},
	} {
		w := newAsking(t, with(webXML, ""), with(initialized, ""))
		w.service.state.Started, w.absent = tt.started, true
		a := w.server.Ask(t.Context(), "LiveApp")
		must.Equal(t, name, a.State, tt.want)
		must.Equal(t, name+": it serves", a.Serves(), tt.want == ams.AppWaits)
	}
}

// An application that served the last time is in no start: the service manager, which may hang, is not asked.
func TestServesIsAskedAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newAsking(t, with(initialized, ""))
		for _, looks := range []int{1, 1} {
			w.ask(ams.AppServes, 1)
			must.Equal(t, "questions to the service manager", w.looks, looks)
			w.wait(600 * time.Millisecond)
		}
		w.code = http.StatusInternalServerError
		for _, looks := range []int{1, 2, 2, 3} {
			w.ask(ams.AppFailing, 1)
			must.Equal(t, "questions to the service manager", w.looks, looks)
			w.wait(600 * time.Millisecond)
		}
	})
}

// The panel replaces the archive of an application that served: it is not asked while it is redeployed.
func TestNotAskedWhileMadeAnew(t *testing.T) {
	t.Parallel()
	w := newAsking(t)
	w.service.state.Started = time.Now().Add(-time.Hour)
	w.ask(ams.AppServes, 1)
	w.absent = true
	put(t, w.m, webXML, "")
	w.ask(ams.AppWaits, 2)
	w.ask(ams.AppWaits, 0)
}

// Another release is put in the place of one that may be asked at any time, while the daemon runs.
func TestNotAskedInTheStartOfANewerRelease(t *testing.T) {
	t.Parallel()
	w := newAsking(t, with(webXML, ""))
	install := func(release string) {
		w.m.Release = ams.Release{Version: release}
		put(t, w.m, "ant-media-server.jar", release)
	}
	install("2.10.0")
	w.ask(ams.AppServes, 1)
	w.code = 0
	w.ask(ams.AppRefused, 1)
	w.code = http.StatusNotFound
	install("2.17.1")
	w.ask(ams.AppStarting, 0)
}

// Whose port was edited serves at the one before until its next start, and that is its port.
func TestPortOfAServerThatServes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newAsking(t, with(initialized, ""))
		transport := w.m.HTTP.Transport
		w.m.HTTP.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.URL.Port() != "5080" {
				return nil, syscall.ECONNREFUSED
			}
			return transport.RoundTrip(r)
		})
		must.Equal(t, "the port before any question", w.server.Port(), 0)
		w.wait(startTime)
		w.ask(ams.AppServes, 1)
		must.Equal(t, "the port", w.server.Port(), 5080)
		edit(t, w.m, serverFile, "http.port=5080", "http.port=6080\n\n") // another length: two writes may have one time
		w.ask(ams.AppServes, 1)
		must.Equal(t, "the port", w.server.Port(), 5080)
		w.wait(startTime) // the last answer is so old that the server may have been restarted
		must.Equal(t, "the port of an old answer", w.server.Port(), 0)
		w.ask(ams.AppRefused, 0)
		must.Equal(t, "the port", w.server.Port(), 0)
	})
}

// An application without marks is asked when a start must be over, also if only the port shows that there was one.
func TestAskedAfterAStartThatNobodyKnows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newAsking(t)
		w.code = http.StatusInternalServerError
		for _, tt := range []struct {
			closed bool // the port
			want   ams.AppServing
			calls  int
		}{
			{false, ams.AppStarting, 0},
			{false, ams.AppStarting, 0},
			{false, ams.AppFailing, 1},
			{true, ams.AppRefused, 0},
			{false, ams.AppStarting, 0},
			{false, ams.AppFailing, 1},
		} {
			w.server.refuses = func(context.Context, *ams.Installation) bool { return tt.closed }
			w.ask(tt.want, tt.calls)
			w.wait(startTime / 2)
		}
	})
}

// The service manager misses a kill and a restart of the server: the port was closed in between, so an older mark does not count.
func TestNotAskedAfterNobodyListened(t *testing.T) {
	t.Parallel()
	hour := time.Now().Add(-time.Hour)
	for name, started := range map[string]time.Time{"nothing": {}, "the start before": hour} {
		t.Run(name, func(t *testing.T) {
			w := newAsking(t, with(initialized, ""))
			w.service.state.Started = started
			w.age(hour, path.Dir(initialized), liveFile)
			closed := true
			w.server.refuses = func(context.Context, *ams.Installation) bool { return closed }
			w.ask(ams.AppRefused, 0)
			w.ask(ams.AppRefused, 0) // by this answer it may listen
			closed = false
			w.ask(ams.AppStarting, 0)
			w.age(time.Now().Add(time.Second), liveFile) // the clock of files is some milliseconds behind
			w.ask(ams.AppServes, 1)
		})
	}
}

// A machine that stood still while its server was restarted.
func TestNotAskedAfterAPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newAsking(t, with(initialized, ""))
		w.ask(ams.AppServes, 1)
		w.wait(3 * time.Second)
		w.service.state.Started = time.Now()
		put(t, w.m, closedMark, "")
		w.ask(ams.AppStarting, 0)
	})
}

// A service manager that hangs keeps no application from being asked.
func TestAskedWhileTheServiceManagerHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newAsking(t, with(initialized, ""), with("webapps/live/"+ams.InitializedName, ""))
		w.service.hangs, w.service.fails = true, map[string]error{"state": context.DeadlineExceeded}
		began := time.Now()
		for _, app := range []string{"LiveApp", "live"} {
			if a := w.server.Ask(t.Context(), app); !a.Serves() || time.Since(began) != 500*time.Millisecond {
				t.Errorf("after %s: %+v", time.Since(began), a)
			}
		}
	})
}
