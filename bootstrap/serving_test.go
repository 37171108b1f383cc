// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
)

// roundTrip is a server without a network.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A command says what it does where that takes long, and nothing where it does not.
func TestWhileSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		m := &Machine{Progress: func(line string) { said = append(said, line) }}
		m.whileSlow("quick", func() { _ = pause(t.Context(), slowTime-time.Millisecond) })
		m.whileSlow("slow", func() { _ = pause(t.Context(), slowTime+time.Millisecond) })
		if len(said) != 1 || said[0] != "slow" {
			t.Errorf("it said %q", said)
		}
	})
}

// What a join waits for is not told once it is there: the look was cut short, and says "context canceled".
func TestSayWaitingIsNotCutShort(t *testing.T) {
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

// The server's user decides how many applications there are, and when they answer: few
// are asked at a time, and all of them together take no longer than one may.
func TestAskAllBounds(t *testing.T) {
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
		for i := range 4096 {
			apps = append(apps, fmt.Sprintf("hangs-%d", i))
		}
		began := time.Now()
		answers := askAll(t.Context(), client, "http://127.0.0.1:5080", apps)
		if d := time.Since(began); d != servingLimit || most != maxAsks {
			t.Errorf("%s, %d at a time", d, most)
		}
		states := map[ams.AppServing]int{}
		for _, a := range answers {
			states[a.State]++
		}
		if states[ams.AppSilent] != maxAsks || states[ams.AppNotAsked] != len(apps)-maxAsks {
			t.Errorf("%v", states)
		}

		// Those that hang keep no other from being asked, in the next round at the latest.
		apps = append(apps[:3*maxAsks:3*maxAsks], "serves")
		install := &ams.Installation{HTTPPort: 5080}
		for _, name := range apps {
			install.Apps = append(install.Apps, ams.App{Name: name})
		}
		j := &joiner{Machine: &Machine{HTTP: client}, facts: &facts{install: install}, result: &JoinResult{}}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		served, err := j.awaitServing(ctx)
		var not *NotServingError
		if !errors.As(err, &not) || len(not.Apps) != 3*maxAsks || strings.Contains(err.Error(), string(ams.AppNotAsked)) {
			t.Errorf("%v", err)
		}
		if len(served) != 1 || served[0].Name != "serves" {
			t.Errorf("%v serve", served)
		}
	})
}

// A command writes no file while the server starts, and waits without the lock: a drain may come.
func TestConvergeWhileStarting(t *testing.T) {
	const starting, name = "Application is getting initialized", "webapps/LiveApp/WEB-INF/red5-web.properties"
	for what, serves := range map[string]int64{"it serves": 10, "it never does": 1 << 30} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := joinedTree(t)
				edit(t, m, name, "db.type=mongodb", "db.type=mapdb")
				real := filepath.Join(m.Root, ams.DefaultDir, name)
				before, err := os.ReadFile(real)
				if err != nil {
					t.Fatal(err)
				}
				m.Service = running()
				var asked, locked atomic.Int64 // several applications are asked at a time
				m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
					code, body := http.StatusForbidden, starting
					if asked.Add(1) > serves {
						code, body = http.StatusNotFound, ""
					}
					bound, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					defer cancel()
					if lock, err := m.lock(bound); err != nil {
						locked.Add(1)
					} else if err := lock.Unlock(); err != nil {
						t.Error(err)
					}
					if now, err := os.ReadFile(real); err != nil || string(now) != string(before) {
						t.Errorf("it was written while the server starts: %v", err)
					}
					return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(body))}, nil
				})}
				req := watchRequest(t)
				req.Mode = ConvergeByCommand
				c, err := m.Converge(t.Context(), req)
				after, rerr := os.ReadFile(real)
				if rerr != nil {
					t.Fatal(rerr)
				}
				var failed *FailedError
				switch {
				case serves < asked.Load():
					if err != nil || string(after) == string(before) || ids(c.Repairs) != IDDrift {
						t.Errorf("%v, %+v", err, c)
					}
				case !errors.As(err, &failed) || failed.Hint == "" || string(after) != string(before):
					t.Errorf("%v", err)
				}
				if asked, locked := asked.Load(), locked.Load(); asked < 4 || asked-locked < asked/2 {
					t.Errorf("the machine was locked at %d of %d questions", locked, asked)
				}
			})
		})
	}
}

// silenced is a service that says nothing once the command has ended, as systemd's.
type silenced struct{ serviceThat }

func (s silenced) State(ctx context.Context) (ams.State, error) {
	if err := ctx.Err(); err != nil {
		return ams.State{Activity: ams.ActivityUnknown}, err
	}
	return s.serviceThat.State(ctx)
}

// A command that ends while the server starts, at any question, writes nothing.
func TestConvergeEndsWhileStarting(t *testing.T) {
	const starting, name = "Application is getting initialized", "webapps/LiveApp/WEB-INF/red5-web.properties"
	why := errors.New("interrupted by signal")
	for _, at := range []int64{1, 3, 5} { // in the first pass, and in two rounds of the wait
		for _, timeout := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d, timeout %v", at, timeout), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := joinedTree(t)
					edit(t, m, name, "db.type=mongodb", "db.type=mapdb")
					was := snapshot(t, m)
					m.Service = silenced{running()}
					ctx, stop := context.WithCancelCause(t.Context())
					defer stop(nil)
					ctx, cancel := context.WithTimeout(ctx, time.Hour)
					defer cancel()
					var asked atomic.Int64
					m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
						switch n := asked.Add(1); {
						case n == at && timeout:
							_ = pause(t.Context(), time.Hour)
						case n == at:
							stop(why)
						}
						return &http.Response{StatusCode: http.StatusForbidden, Body: io.NopCloser(strings.NewReader(starting))}, nil
					})}
					req := watchRequest(t)
					req.Mode = ConvergeByCommand
					want := why
					if timeout {
						want = context.DeadlineExceeded
					}
					_, err := m.Converge(ctx, req)
					failed, ok := errors.AsType[*FailedError](err)
					if !ok || !errors.Is(err, want) || failed.State != untouched || failed.Unknown != timeout {
						t.Errorf("%+v", err)
					}
					if now := snapshot(t, m); !maps.Equal(was, now) {
						t.Error("files were written")
					}
				})
			})
		}
	}
}

// What was recovered before the wait is reported by a command that fails after it.
func TestConvergeFailsAfterRecovery(t *testing.T) {
	for name, tt := range map[string]struct {
		harm  func(t *testing.T, m *Machine) // during the wait
		ready bool                           // the server serves after it
	}{
		"the lock is held": {func(t *testing.T, m *Machine) {
			lock, err := m.lock(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = lock.Unlock() })
		}, true},
		"the record is damaged": {func(t *testing.T, m *Machine) { put(t, m, StateDir+"/undo.json", "{") }, true},
		"it never serves":       {func(*testing.T, *Machine) {}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := joinedTree(t)
				m.Service = running()
				// An undo record is the journal of the commit that made it.
				b, err := os.ReadFile(filepath.Join(m.Root, StateDir, "undo.json"))
				if err != nil {
					t.Fatal(err)
				}
				put(t, m, StateDir+"/journal", string(b))
				edit(t, m, liveFile, "db.type=mongodb", "db.type=mapdb")
				var asked atomic.Int64
				m.HTTP = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
					code, body := http.StatusForbidden, "Application is getting initialized"
					n := asked.Add(1)
					if n == 3 {
						tt.harm(t, m)
					}
					if tt.ready && n >= 3 {
						code, body = http.StatusNotFound, ""
					}
					return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(body))}, nil
				})}
				req := watchRequest(t)
				req.Mode = ConvergeByCommand
				ctx, cancel := context.WithTimeout(t.Context(), 2*startingTime)
				defer cancel()
				c, err := m.Converge(ctx, req)
				state := ""
				if pre, ok := errors.AsType[*PreflightError](err); ok {
					state = pre.State
				} else if failed, ok := errors.AsType[*FailedError](err); ok {
					state = failed.State
				}
				if !strings.HasPrefix(state, "an interrupted join was finished first") {
					t.Errorf("%v: %q", err, state)
				}
				if c == nil || strings.Count(ids(c.Repairs), IDInterrupted) != 1 {
					t.Errorf("%+v", c)
				}
			})
		})
	}
}

// How a start shows, and that no server that hangs is waited for.
func TestAwaitStarted(t *testing.T) {
	const starting = "Application is getting initialized"
	for name, tt := range map[string]struct {
		age     time.Duration                   // of the server
		answers func(asked int) (string, error) // by the server, to the nth question; "" is 404
		want    time.Duration
	}{
		"it serves":    {time.Second, func(int) (string, error) { return "", nil }, 0},
		"starting":     {time.Hour, func(n int) (string, error) { return map[bool]string{true: starting}[n < 4], nil }, 4 * servingPoll},
		"no port yet":  {time.Second, func(n int) (string, error) { return "", map[bool]error{true: syscall.ECONNREFUSED}[n < 4] }, 4 * servingPoll},
		"it is broken": {time.Hour, func(int) (string, error) { return "", syscall.ECONNREFUSED }, 0},
		"for ever":     {time.Hour, func(int) (string, error) { return starting, nil }, startingTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := -1
				client := &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
					asked++
					body, err := tt.answers(asked)
					if err != nil {
						return nil, err
					}
					code := http.StatusForbidden
					if body == "" {
						code = http.StatusNotFound
					}
					return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader(body))}, nil
				})}
				f := facts{install: &ams.Installation{HTTPPort: 5080, Apps: []ams.App{{Name: "LiveApp"}}}}
				f.service.Started = time.Now().Add(-tt.age)
				began := time.Now()
				(&Machine{HTTP: client}).awaitStarted(t.Context(), &f)
				if d := time.Since(began); d != tt.want {
					t.Errorf("it waited for %s, want %s", d, tt.want)
				}
			})
		})
	}
}
