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
	"path/filepath"
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

// A slow step is announced, a quick one is not.
func TestWhileSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var said []string
		m := &Machine{Progress: func(line string) { said = append(said, line) }}
		m.whileSlow("quick", func() { sleep.For(t.Context(), slowTime-time.Millisecond) })
		m.whileSlow("slow", func() { sleep.For(t.Context(), slowTime+time.Millisecond) })
		if len(said) != 1 || said[0] != "slow" {
			t.Errorf("it said %q", said)
		}
	})
}

// Once the wait is over, its progress is not reported: the check was cut short and would say "context canceled".
func TestSayWaitingIsNotCutShort(t *testing.T) {
	t.Parallel()
	client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	})}
	var said []string
	m := &Machine{Service: serviceThat{state: ams.State{Activity: ams.ActivityActive}}, HTTP: client, Progress: func(line string) { said = append(said, line) }}
	j := &joiner{Machine: m, facts: &facts{install: &ams.Installation{}}, result: &JoinResult{}}
	j.sayWaiting(t.Context())
	if len(said) != 1 {
		t.Fatalf("%q", said)
	}
	over, seen := context.WithCancel(t.Context())
	seen()
	j.sayWaiting(over)
	if len(said) != 1 {
		t.Errorf("it said %q", said)
	}
}

// The server's user decides how many applications there are, and when they answer: a bounded number
// is asked at a time, and all of them together take no longer than one may.
func TestAskAllBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most := 0, 0
		client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			defer func() {
				mu.Lock()
				now--
				mu.Unlock()
			}()
			if strings.HasPrefix(r.URL.Path, "/hangs-") {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return &http.Response{StatusCode: http.StatusNotFound, Body: http.NoBody}, nil
		})}
		var apps []string
		for i := range 1024 {
			apps = append(apps, fmt.Sprintf("hangs-%d", i))
		}
		began := time.Now()
		m := ownTree(t, "3.0", "2.10.0")
		m.HTTP = client
		for _, app := range apps {
			put(t, m, filepath.Join(ams.DefaultDir, "webapps", app, "WEB-INF/red5-web.properties"), "")
		}
		m.Serving = []string{"hangs-*"}
		answers := m.Server().look(t.Context())
		if d := time.Since(began); d != servingLimit || most != maxAsks || len(answers) != len(apps) {
			t.Errorf("%d answers after %s, %d at a time", len(answers), d, most)
		}
		for _, a := range answers {
			if a.State != ams.AppSilent {
				t.Errorf("%+v", a)
			}
		}

		// Those that hang keep no other from being asked.
		apps = append(apps[:3*maxAsks:3*maxAsks], "serves")
		j := &joiner{Machine: m, facts: &facts{}, result: &JoinResult{}}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		err := j.awaitServing(ctx, manyApps{m.Server(), apps})
		var not *NotServingError
		if !errors.As(err, &not) || len(not.Apps) != 3*maxAsks || !errors.Is(err, context.DeadlineExceeded) {
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

// A join waits for a broken application, and another process restarts the server.
func TestAwaitServingFollowsARestart(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.Serving = []string{"LiveApp"}
	app := filepath.Join(ams.DefaultDir, "webapps/LiveApp")
	put(t, m, filepath.Join(app, ams.InitializedName), "")
	put(t, m, filepath.Join(app, ams.ClosedName), "")
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		restarted := began.Add(5 * time.Second)
		var last time.Time
		m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
			last = time.Now()
			return &http.Response{StatusCode: http.StatusInternalServerError, Body: http.NoBody}, nil
		})}
		m.Service = startedAt{at: func() time.Time {
			if time.Now().Before(restarted) {
				return began.Add(-time.Hour)
			}
			return restarted
		}}
		j := &joiner{Machine: m, facts: &facts{install: &ams.Installation{Apps: []ams.App{{Name: "LiveApp"}}}}, result: &JoinResult{}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := j.serve(ctx)
		// The service manager is asked every second.
		if err == nil || last.Before(restarted.Add(-time.Second)) || last.After(restarted.Add(serviceEvery)) {
			t.Errorf("asked %s after the restart for the last time: %v", last.Sub(restarted), err)
		}
	})
}

// startedAt is a service that reports when the server was started.
type startedAt struct {
	ams.None
	at func() time.Time
}

func (s startedAt) State(context.Context) (ams.State, error) {
	return ams.State{Activity: ams.ActivityActive, Started: s.at()}, nil
}

// A command that fails after a recovery reports the recovery.
func TestConvergeFailsAfterRecovery(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	// An undo record is the journal of the commit that made it.
	b, err := os.ReadFile(filepath.Join(m.Root, StateDir, "undo.json"))
	must.OK(t, err)
	put(t, m, StateDir+"/journal", string(b))
	edit(t, m, liveFile, "db.type=mongodb", "db.type=mapdb")
	asked := 0
	m.Begin = func(context.Context) error {
		if asked++; asked == 2 { // after the recovery's
			return context.DeadlineExceeded
		}
		return nil
	}
	req := watchRequest(t)
	req.Mode = convergeByCommand
	c, err := m.Converge(t.Context(), req)
	failed, ok := errors.AsType[*FailedError](err)
	if !ok || !strings.HasPrefix(failed.State, "an interrupted join was finished first") {
		t.Errorf("%v", err)
	}
	if c == nil || strings.Count(ids(c.Repairs), idInterrupted) != 1 {
		t.Errorf("%+v", c)
	}
}

// process writes the /proc entries of a process of that age and returns its id.
func process(t *testing.T, root string, age time.Duration) int {
	t.Helper()
	const pid = 42
	m := &Machine{Root: root}
	put(t, m, "proc/stat", fmt.Sprintf("btime %d\n", time.Now().Add(-age).Unix()))
	put(t, m, "proc/42/stat", "42 (java) S"+strings.Repeat(" 0", 30)+"\n")
	return pid
}

// From 2.16.2 on a request makes an application lose its settings while its context is being built: the agent waits for the
// marks of a complete start, but not forever.
func TestNotAskedInItsStart(t *testing.T) {
	t.Parallel()
	const unknown = -time.Hour
	mark, closed := ".initialized", ".closed"
	for name, tt := range map[string]struct {
		marks []string
		age   time.Duration // of the server
		old   bool          // no file is newer than the server
		asked bool
		made  bool // now, while the server runs
	}{
		"the first start ever":                        {nil, time.Second, true, false, false},
		"the first start ever takes long":             {nil, startingTime, true, true, false},
		"a start after a stop":                        {[]string{mark, closed}, time.Second, true, false, false},
		"a start after a stop takes long":             {[]string{mark, closed}, startingTime, true, true, false},
		"it has started":                              {[]string{mark}, time.Second, false, true, false},
		"a start after a kill":                        {[]string{mark}, time.Second, true, false, false},
		"a start after a kill takes long":             {[]string{mark}, startingTime, true, true, false},
		"a start at an unknown time":                  {nil, unknown, true, false, false},
		"a start after a stop, at an unknown time":    {[]string{mark, closed}, unknown, true, false, false},
		"it has started, at an unknown time":          {[]string{mark}, unknown, true, true, false},
		"the clock was set back since it has started": {[]string{mark}, -time.Minute, true, true, false},
		"the clock was set back in its start":         {nil, -time.Minute, true, false, false},
		"the panel makes it":                          {nil, time.Hour, false, false, true},
		"the panel makes it, of unknown start":        {nil, unknown, false, false, true},
		"the panel has made it":                       {[]string{mark}, time.Hour, false, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := joinedTree(t)
			asked := 0
			m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
				asked++
				return &http.Response{StatusCode: http.StatusNotFound, Body: http.NoBody}, nil
			})}
			var started time.Time
			if tt.age != unknown {
				started = time.Now().Add(-tt.age)
			}
			m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, Started: started}}
			app := filepath.Join(ams.DefaultDir, "webapps/LiveApp")
			for _, mark := range tt.marks {
				put(t, m, filepath.Join(app, mark), "")
			}
			if tt.made {
				put(t, m, filepath.Join(app, "WEB-INF/web.xml"), "")
			}
			if tt.old {
				for _, file := range []string{"", "WEB-INF/red5-web.properties"} {
					before := started.Add(-time.Second)
					must.OK(t, os.Chtimes(filepath.Join(m.Root, app, file), before, before))
				}
			}
			want, times := ams.AppAnswer{Name: "LiveApp", State: ams.AppStarting}, 0
			if tt.made && tt.age != unknown {
				want.State = ams.AppWaits
			}
			if tt.asked {
				want, times = ams.AppAnswer{Name: "LiveApp", State: ams.AppServes, Code: http.StatusNotFound}, 1
			}
			if got := m.Server().Ask(t.Context(), "LiveApp"); got != want || asked != times {
				t.Errorf("the daemon asked %d times: %+v, want %+v", asked, got, want)
			}
		})
	}
}

// An application that the server does not have is missing, unless it was made after the server's start.
func TestNotDeployed(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		code := http.StatusNotFound
		if strings.HasSuffix(r.URL.Path, ".m3u8") {
			code = http.StatusInternalServerError
		}
		return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(r.URL.Path))}, nil
	})}
	app := filepath.Join(ams.DefaultDir, "webapps/LiveApp")
	put(t, m, filepath.Join(app, "WEB-INF/web.xml"), "")
	put(t, m, filepath.Join(app, ".initialized"), "")
	for name, tt := range map[string]struct {
		started time.Time
		want    ams.AppServing
	}{
		"broken":                 {time.Now().Add(time.Minute), ams.AppMissing},
		"made since":             {time.Now().Add(-time.Hour), ams.AppWaits},
		"the start is not known": {time.Time{}, ams.AppWaits},
	} {
		m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, Started: tt.started}}
		if got := m.Server().Ask(t.Context(), "LiveApp"); got.State != tt.want || got.Serves() != (tt.want == ams.AppWaits) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// An application that served the last time is in no start: the service manager, which may hang, is not asked.
func TestServesIsAskedAlone(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	put(t, m, filepath.Join(ams.DefaultDir, "webapps/LiveApp", ams.InitializedName), "")
	synctest.Test(t, func(t *testing.T) {
		code := http.StatusNotFound
		m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: code, Body: http.NoBody}, nil
		})}
		looked := 0
		m.Service = countedService{serviceThat{state: ams.State{Activity: ams.ActivityActive}}, &looked}
		s := m.Server()
		ask := func(serves bool, want int) {
			t.Helper()
			if a := s.Ask(t.Context(), "LiveApp"); a.Serves() != serves || looked != want {
				t.Errorf("%+v; the service manager was asked %d times, want %d", a, looked, want)
			}
			sleep.For(t.Context(), 600*time.Millisecond)
		}
		ask(true, 1)
		ask(true, 1)
		code = http.StatusInternalServerError
		ask(false, 1)
		ask(false, 2)
		ask(false, 2)
		ask(false, 3)
	})
}

// The panel replaces the archive of an application that served: it is not asked while it is redeployed.
func TestNotAskedWhileMadeAnew(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	asked, there := 0, true
	m.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		asked++
		code, body := http.StatusNotFound, ""
		if !there {
			body = r.URL.Path
			if strings.HasSuffix(r.URL.Path, ".m3u8") {
				code = http.StatusInternalServerError
			}
		}
		return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(body))}, nil
	})}
	m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, Started: time.Now().Add(-time.Hour)}}
	s := m.Server()
	if a := s.Ask(t.Context(), "LiveApp"); a.State != ams.AppServes {
		t.Fatalf("%+v", a)
	}
	there = false
	put(t, m, filepath.Join(ams.DefaultDir, "webapps/LiveApp/WEB-INF/web.xml"), "")
	if a := s.Ask(t.Context(), "LiveApp"); a.State != ams.AppWaits {
		t.Errorf("%+v", a)
	}
	asked = 0
	if a := s.Ask(t.Context(), "LiveApp"); a.State != ams.AppWaits || asked > 0 {
		t.Errorf("asked %d times: %+v", asked, a)
	}
}

// Another release is put in the place of one that may be asked at any time, while the daemon runs.
func TestNotAskedInTheStartOfANewerRelease(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive}}
	put(t, m, filepath.Join(ams.DefaultDir, "webapps/LiveApp/WEB-INF/web.xml"), "")
	install := func(release string) {
		t.Helper()
		m.Release = ams.Release{Version: release}
		put(t, m, filepath.Join(ams.DefaultDir, "ant-media-server.jar"), release)
	}
	asked := 0
	var stopped error
	m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
		asked++
		if stopped != nil {
			return nil, stopped
		}
		return &http.Response{StatusCode: http.StatusNotFound, Body: http.NoBody}, nil
	})}
	install("2.10.0")
	s := m.Server()
	if a := s.Ask(t.Context(), "LiveApp"); !a.Serves() || asked != 1 {
		t.Fatalf("asked %d times: %+v", asked, a)
	}
	stopped = syscall.ECONNREFUSED
	if a := s.Ask(t.Context(), "LiveApp"); a.State != ams.AppRefused {
		t.Fatalf("%+v", a)
	}
	stopped, asked = nil, 0
	install("2.17.1")
	if a := s.Ask(t.Context(), "LiveApp"); a.State != ams.AppStarting || asked != 0 {
		t.Errorf("asked %d times: %+v", asked, a)
	}
}

// Whose port was edited serves at the one before until its next start, and that is its port.
func TestPortOfAServerThatServes(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	settings := filepath.Join(ams.DefaultDir, "conf/red5.properties")
	before, err := os.ReadFile(filepath.Join(m.Root, settings))
	must.OK(t, err)
	put(t, m, settings, string(before)+"\nhttp.port=5080\n")
	put(t, m, filepath.Join(ams.DefaultDir, "webapps/LiveApp", ams.InitializedName), "")
	synctest.Test(t, func(t *testing.T) {
		m.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.URL.Port() != "5080" {
				return nil, syscall.ECONNREFUSED
			}
			return &http.Response{StatusCode: http.StatusNotFound, Body: http.NoBody}, nil
		})}
		s := m.Server()
		if p := s.Port(); p != 0 {
			t.Errorf("before any question: %d", p)
		}
		ask := func(want ams.AppServing, port int) {
			t.Helper()
			sleep.For(t.Context(), startingTime)
			if a := s.Ask(t.Context(), "LiveApp"); a.State != want || s.Port() != port {
				t.Errorf("%+v, want %s; port %d, want %d", a, want, s.Port(), port)
			}
		}
		ask(ams.AppServes, 5080)
		put(t, m, settings, string(before)+"\nhttp.port=6080\n\n") // another length: two writes may have one time
		if a := s.Ask(t.Context(), "LiveApp"); !a.Serves() || s.Port() != 5080 {
			t.Errorf("%+v, port %d", a, s.Port())
		}
		ask(ams.AppRefused, 0) // the last answer is so old that the server may have been restarted
	})
}

// An application without marks is asked when a start must be over, also if only the port shows that there was one.
func TestAskedAfterAStartThatNobodyKnows(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive}}
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
			asked++
			return &http.Response{StatusCode: http.StatusInternalServerError, Body: http.NoBody}, nil
		})}
		s := m.Server()
		var closed bool
		s.refuses = func(context.Context, *ams.Installation) bool { return closed }
		ask := func(times int, want ams.AppServing) {
			t.Helper()
			asked = 0
			if a := s.Ask(t.Context(), "LiveApp"); a.State != want || asked != times {
				t.Errorf("asked %d times, want %d: %+v", asked, times, a)
			}
			sleep.For(t.Context(), startingTime/2)
		}
		ask(0, ams.AppStarting)
		ask(0, ams.AppStarting)
		ask(1, ams.AppFailing)
		closed = true
		ask(0, ams.AppRefused)
		closed = false
		ask(0, ams.AppStarting)
		ask(1, ams.AppFailing)
	})
}

// The service manager misses a kill and a restart of the server: the port was closed in between, so an older mark does not count.
func TestNotAskedAfterNobodyListened(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]ams.State{
		"nothing":          {Activity: ams.ActivityActive},
		"the start before": {Activity: ams.ActivityActive, Started: time.Now().Add(-time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			m := joinedTree(t)
			m.Service = serviceThat{state: state}
			app := filepath.Join(ams.DefaultDir, "webapps/LiveApp")
			put(t, m, filepath.Join(app, ams.InitializedName), "")
			hour := time.Now().Add(-time.Hour)
			for _, file := range []string{"", "WEB-INF/red5-web.properties"} {
				must.OK(t, os.Chtimes(filepath.Join(m.Root, app, file), hour, hour))
			}
			asked := 0
			m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
				asked++
				return &http.Response{StatusCode: http.StatusNotFound, Body: http.NoBody}, nil
			})}
			s := m.Server()
			s.refuses = func(context.Context, *ams.Installation) bool { return true }
			for range 2 { // by the second answer it may listen
				if a := s.Ask(t.Context(), "LiveApp"); a.State != ams.AppRefused {
					t.Errorf("%+v", a)
				}
			}
			s.refuses = func(context.Context, *ams.Installation) bool { return false }
			if a := s.Ask(t.Context(), "LiveApp"); a.State != ams.AppStarting || asked > 0 {
				t.Errorf("asked %d times: %+v", asked, a)
			}
			later := time.Now().Add(time.Second) // the clock of files is some milliseconds behind
			must.OK(t, os.Chtimes(filepath.Join(m.Root, app, "WEB-INF/red5-web.properties"), later, later))
			if a := s.Ask(t.Context(), "LiveApp"); !a.Serves() {
				t.Errorf("%+v", a)
			}
		})
	}
}

// A machine that stood still while its server was restarted.
func TestNotAskedAfterAPause(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
			asked++
			return &http.Response{StatusCode: http.StatusNotFound, Body: http.NoBody}, nil
		})}
		mark := filepath.Join(ams.DefaultDir, "webapps/LiveApp", ams.InitializedName)
		put(t, m, mark, "")
		m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive}}
		s := m.Server()
		if a := s.Ask(t.Context(), "LiveApp"); !a.Serves() || asked != 1 {
			t.Fatalf("asked %d times: %+v", asked, a)
		}
		sleep.For(t.Context(), servedFor)
		m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, Started: time.Now()}}
		put(t, m, filepath.Join(ams.DefaultDir, "webapps/LiveApp", ams.ClosedName), "")
		if a := s.Ask(t.Context(), "LiveApp"); a.State != ams.AppStarting || asked != 1 {
			t.Errorf("asked %d times: %+v", asked, a)
		}
	})
}

// A service manager that hangs keeps no application from being asked.
func TestAskedWhileTheServiceManagerHangs(t *testing.T) {
	t.Parallel()
	m := joinedTree(t)
	for _, app := range []string{"LiveApp", "live"} {
		put(t, m, filepath.Join(ams.DefaultDir, "webapps", app, ams.InitializedName), "")
	}
	synctest.Test(t, func(t *testing.T) {
		m.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusNotFound, Body: http.NoBody}, r.Context().Err()
		})}
		m.Service = hangingService{}
		began := time.Now()
		s := m.Server()
		for _, app := range []string{"LiveApp", "live"} {
			if a := s.Ask(t.Context(), app); !a.Serves() || time.Since(began) != serviceLimit {
				t.Errorf("after %s: %+v", time.Since(began), a)
			}
		}
	})
}

// hangingService answers nothing.
type hangingService struct{ serviceThat }

func (s hangingService) State(ctx context.Context) (ams.State, error) {
	<-ctx.Done()
	return ams.State{}, errors.New("it hung")
}

// countedService counts the questions.
type countedService struct {
	serviceThat
	asked *int
}

func (s countedService) State(ctx context.Context) (ams.State, error) {
	*s.asked++
	return s.serviceThat.State(ctx)
}

// A restart of the server by any client ends what was pending, by the service's time or the process's.
func TestRestartedSince(t *testing.T) {
	t.Parallel()
	for name, age := range map[string]time.Duration{"since": time.Minute, "before": time.Hour} {
		t.Run(name, func(t *testing.T) {
			m := joinedTree(t)
			m.Service = serviceThat{state: ams.State{Activity: ams.ActivityActive, MainPID: process(t, m.Root, age)}}
			change(t, m, func(s *State) { s.RestartPending = true })
			written := time.Now().Add(-2 * time.Minute)
			must.OK(t, os.Chtimes(filepath.Join(m.Root, ams.DropInPath), written, written))
			if c, waits := converge(t, m, watchRequest(t)), age == time.Hour; c.RestartNeeded != waits {
				t.Errorf("it waits: %+v", c)
			}
		})
	}
}
