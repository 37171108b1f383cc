// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// wants compares an error with the wanted one; for a *cloud.DeniedError it compares the permission.
func wants(t *testing.T, err, want error) {
	t.Helper()
	if d, ok := errors.AsType[*cloud.DeniedError](want); ok {
		got, ok := errors.AsType[*cloud.DeniedError](err)
		if !ok || got.Permission != d.Permission || got.Policy != Policy || got.NoRole != d.NoRole {
			t.Errorf("error %#v, want %v", err, want)
		}
	} else if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

func lacks(action string) error { return &cloud.DeniedError{Permission: "ess:" + action} }

func TestPending(t *testing.T) {
	t.Parallel()
	const ours, logs = "amsagent t-1 14m48s [];", "logs t-2 9m48s [i-b i-c];"
	for _, tt := range []struct {
		name, state, hooks, waits string
		launching                 bool
		failing                   string // the call that fails
		by                        answer
		want                      string // name, token, timeout and the other machines of each hook
		err                       error
	}{
		{"waits", "Removing:Wait", "ash-1 ash-3", "t-1 t-9", false, "", answer{}, ours, nil},
		{"one token for three machines", "Removing:Wait", "ash-2", "t-2", false, "", answer{}, logs, nil},
		{"one of two waits", "Removing:Wait", "ash-1 ash-2", "t-2", false, "", answer{}, "amsagent  15m0s [];" + logs, nil},
		{"both wait", "Removing:Wait", "ash-1 ash-2", "t-2 t-1", false, "", answer{}, ours + logs, nil},
		{"the one that waits is not listed", "Removing:Wait", "ash-2", "t-1", false, "", answer{}, "logs  10m0s [];ash-1 t-1 9m48s [];", nil},
		{"no right to list the hooks", "Removing:Wait", "", "t-1", false, describeHooks, denied(), "ash-1 t-1 9m48s [];", nil},
		{"nor does one wait", "Removing", "", "", false, describeHooks, denied(), "", cloud.ErrNotWaiting},
		{"waits soon", "Removing", "ash-1", "", false, "", answer{}, "", cloud.ErrNotWaiting},
		{"in service still", "InService", "ash-1", "t-1", false, "", answer{}, "", cloud.ErrNotWaiting},
		{"protected", "Protected", "ash-1", "", false, "", answer{}, "", cloud.ErrNotWaiting},
		{"a group without hooks", "Removing", "", "", false, "", answer{}, "", nil},
		{"a group with the other hook", "Removing", "ash-3", "", false, "", answer{}, "", nil},
		{"in no group", "", "ash-1", "t-1", false, "", answer{}, "", nil},
		{"standby", "Standby", "ash-1", "t-1", false, "", answer{}, "", nil},
		{"the end of one that starts", "Pending:Wait", "ash-1", "t-1", false, "", answer{}, "", nil},
		{"the start of one that serves", "InService", "ash-3", "", true, "", answer{}, "", nil},
		{"the start of one that ends", "Removing:Wait", "ash-3", "t-1", true, "", answer{}, "", nil},
		{"a start, with others", "Pending:Wait", "ash-1 ash-3", "t-3", true, "", answer{}, "up t-3 5m0s [];", nil},
		{"no right to list what waits", "Removing:Wait", "ash-1", "t-1", false, describeActions, denied(), "", lacks(describeActions)},
		{"no list of the hooks", "Removing:Wait", "ash-1", "t-1", false, describeHooks, bad(400, "Throttling"), "", errThrottled},
		{"no answer about the group", "", "", "", false, describeMembers, bad(400, "Throttling"), "", errThrottled},
	} {
		for _, wrapped := range []bool{false, true} {
			row(t, fmt.Sprintf("%s/wrapped=%t", tt.name, wrapped), func(t *testing.T, w *world) {
				w.wrapped = wrapped
				w.in(tt.state, tt.hooks, tt.waits)
				if tt.failing != "" {
					w.on(tt.failing, tt.by)
				}
				all, err := w.open().Hooks().Pending(t.Context(), tt.launching)
				wants(t, err, tt.err)
				got := ""
				for _, h := range all {
					got += fmt.Sprintf("%s %s %s %v;", h.Name, h.Token, h.Timeout, h.Others)
					if h.Provider != Name || h.Group != "asg-1" || h.Launching != tt.launching || h.Token != "" && !h.Limit.Equal(midnight().Add(LongestWait)) {
						t.Errorf("%+v", h)
					}
				}
				if got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
			})
		}
	}
}

// The calls and their parameters.
func TestQueries(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.in("Removing:Wait", "ash-1", "t-1")
		w.on(heartbeat, done())
		w.on(complete, done())
		h := w.open().Hooks()
		all, err := h.Pending(t.Context(), false)
		must.OK(t, err)
		_, err = h.Extend(t.Context(), all[0])
		must.OK(t, errors.Join(err, h.Complete(t.Context(), all[0])))
		for action, want := range map[string]string{
			describeMembers: "InstanceIds.1=" + self + "&RegionId=cn-hangzhou",
			describeScaling: "PageNumber=1&PageSize=50&RegionId=cn-hangzhou&ScalingGroupId=asg-1&StatusCode=InProgress",
			describeActions: "LifecycleActionStatus=Pending&MaxResults=50&RegionId=cn-hangzhou&ScalingActivityId=asa-1",
			describeHooks:   "PageNumber=1&PageSize=50&RegionId=cn-hangzhou&ScalingGroupId=asg-1",
			heartbeat:       "RegionId=cn-hangzhou&heartbeatTimeout=2400&lifecycleActionToken=t-1&lifecycleHookId=ash-1",
			complete:        "LifecycleActionResult=CONTINUE&LifecycleActionToken=t-1&LifecycleHookId=ash-1&RegionId=cn-hangzhou",
		} {
			if got := w.called(action)[0].query.Encode(); got != want {
				t.Errorf("%s: %s, want %s", action, got, want)
			}
		}
	})
}

func TestExtend(t *testing.T) {
	t.Parallel()
	machines := func(n int, left time.Duration) cloud.Hook {
		return cloud.Hook{ID: "ash-1", Token: "t-1", Others: make([]string, n-1), Limit: midnight().Add(left)}
	}
	start := func(timeout time.Duration) cloud.Hook {
		return cloud.Hook{ID: "ash-1", Token: "t-1", Launching: true, Timeout: timeout}
	}
	refused := func(code string) answer { return bad(http.StatusBadRequest, code) }
	for _, tt := range []struct {
		name    string
		hook    cloud.Hook
		answers []answer
		want    time.Duration
		asked   string // for how many seconds
		err     error
	}{
		{"one machine", machines(1, LongestWait), []answer{done()}, 40 * time.Minute, "2400", nil},
		{"three machines", machines(3, LongestWait), []answer{done()}, 2 * time.Hour, "7200", nil},
		{"forty machines", machines(40, LongestWait), []answer{done()}, LongestWait, "21600", nil},
		{"a start", start(5 * time.Minute), []answer{done()}, 5 * time.Minute, "300", nil},
		{"a start whose time is not known", start(0), []answer{done()}, leastWait, "30", nil},
		{"until the limit", machines(1, 10*time.Minute), []answer{done()}, 40 * time.Minute, "600", nil},
		{"at the limit", machines(1, 29*time.Second), nil, 40 * time.Minute, "", nil},
		{"past the limit", machines(1, -time.Hour), nil, 40 * time.Minute, "", nil},
		{"a shorter time is accepted", machines(1, LongestWait), []answer{refused(tooLong), refused(tooLong), done()}, 10 * time.Minute, "2400 1200 600", nil},
		{"less until the limit", machines(1, 10*time.Minute), []answer{refused(tooLong), done()}, 5 * time.Minute, "600 300", nil},
		{"no time is accepted", machines(1, LongestWait), []answer{refused(tooLong)}, 0, "2400 1200 600 300 150 75 37 30", errLimit},
		{"too often", machines(1, LongestWait), []answer{refused(tooOften)}, 0, "2400", errOften},
		{"more machines than heartbeats", machines(40, 6*time.Hour-time.Second), []answer{refused(tooOften)}, LongestWait, "21599", nil},
		{"over", machines(1, LongestWait), []answer{refused(over)}, 0, "2400", cloud.ErrGone},
		{"denied", machines(1, LongestWait), []answer{denied()}, 0, "2400", lacks(heartbeat)},
		{"without a token", cloud.Hook{ID: "ash-1"}, []answer{done()}, 40 * time.Minute, "2400", nil},
		{"without a token, not waiting", cloud.Hook{ID: "ash-2"}, nil, 0, "", cloud.ErrNotWaiting},
	} {
		row(t, tt.name, func(t *testing.T, w *world) {
			w.in("Removing:Wait", "", "t-1")
			w.on(heartbeat, tt.answers...)
			got, err := w.open().Hooks().Extend(t.Context(), tt.hook)
			wants(t, err, tt.err)
			if errors.Is(err, errLimit) && errors.Is(err, cloud.ErrGone) {
				t.Errorf("a hook that waits is over: %v", err)
			}
			var asked []string
			for _, c := range w.called(heartbeat) {
				asked = append(asked, c.query.Get("heartbeatTimeout"))
			}
			if got != tt.want || strings.Join(asked, " ") != tt.asked {
				t.Errorf("it waits %s, asked for %v; want %s and %v", got, asked, tt.want, tt.asked)
			}
		})
	}
}

// A drain of six hours: a token allows no more than twenty heartbeats, for all its machines together, and the hook never
// lapses.
func TestHeartbeats(t *testing.T) {
	t.Parallel()
	for _, machines := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 40} {
		row(t, strconv.Itoa(machines), func(t *testing.T, w *world) {
			end, until, sent := midnight().Add(LongestWait), midnight().Add(defaultWait), 0
			w.beat = func(q url.Values) answer {
				n, err := strconv.Atoi(q.Get("heartbeatTimeout"))
				must.OK(t, err)
				asked := time.Now().Add(time.Duration(n) * time.Second)
				switch sent++; {
				case time.Now().After(until):
					return bad(http.StatusBadRequest, over)
				case sent > 20:
					return bad(http.StatusBadRequest, tooOften)
				case asked.After(end) || n < 30:
					return bad(http.StatusBadRequest, tooLong)
				}
				until = asked
				return done()
			}
			h := w.open().Hooks()
			var all sync.WaitGroup
			for range machines {
				all.Go(func() {
					for time.Now().Before(end) {
						waits, err := h.Extend(t.Context(), cloud.Hook{ID: "ash-1", Token: "t-1", Others: make([]string, machines-1), Limit: end})
						if err != nil {
							t.Error(err)
							return
						}
						<-time.After(waits / 2) // like the runner
					}
				})
			}
			all.Wait()
			if machines <= 10 && sent > 20 || end.Sub(until) > leastWait {
				t.Errorf("%d heartbeats; it waited until %s before the end", sent, end.Sub(until))
			}
		})
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, state, id, token string
		answer                 answer
		calls                  int
		err                    error
	}{
		{"with a token", "", "ash-1", "t-1", done(), 1, nil},
		{"over", "", "ash-1", "t-1", bad(http.StatusBadRequest, over), 1, cloud.ErrGone},
		{"denied", "", "ash-1", "t-1", denied(), 1, lacks(complete)},
		{"without a token", "Removing:Wait", "ash-1", "", done(), 1, nil},
		{"without a token, not waiting", "Removing:Wait", "ash-2", "", done(), 0, cloud.ErrNotWaiting},
		{"without a token, in no group", "", "ash-1", "", done(), 0, cloud.ErrGone},
	} {
		row(t, tt.name, func(t *testing.T, w *world) {
			w.in(tt.state, "", "t-1")
			w.on(complete, tt.answer)
			wants(t, w.open().Hooks().Complete(t.Context(), cloud.Hook{ID: tt.id, Token: tt.token}), tt.err)
			calls := w.called(complete)
			if len(calls) != tt.calls || tt.calls > 0 && calls[0].query.Get("LifecycleActionToken") != "t-1" {
				t.Errorf("%+v", calls)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, state, hooks string
		failing            string // the call that fails
		by                 answer
		group              string
		ours, others       []string
		unproved           string
		beats              int
		err                error
	}{
		{"may do all", "InService", "ash-1 ash-3", "", answer{}, "asg-1", []string{"amsagent"}, nil, cloud.UnprovedComplete, 1, nil},
		{"beside another's", "Protected", "ash-1 ash-2", "", answer{}, "asg-1", []string{"amsagent"}, []string{"logs"}, cloud.UnprovedComplete, 1, nil},
		{"others only", "InService", "ash-2 ash-2", "", answer{}, "asg-1", nil, []string{"logs", "logs"}, cloud.UnprovedBoth, 0, nil},
		{"a group without hooks", "InService", "", "", answer{}, "asg-1", nil, nil, cloud.UnprovedBoth, 0, nil},
		{"in no group", "", "ash-1", "", answer{}, "", nil, nil, "", 0, nil},
		{"on its way out", "Removing:Wait", "ash-1", "", answer{}, "asg-1", []string{"amsagent"}, nil, cloud.UnprovedBoth, 0, nil},
		{"no right to see the group", "InService", "ash-1", describeMembers, denied(), "", nil, nil, "", 0, lacks(describeMembers)},
		{"no right to list the hooks", "InService", "ash-1", describeHooks, denied(), "asg-1", nil, nil, cloud.UnprovedBoth, 0, lacks(describeHooks)},
		{"no right to list what waits", "InService", "ash-1", describeActions, denied(), "asg-1", []string{"amsagent"}, nil, cloud.UnprovedBoth, 0, lacks(describeActions)},
		{"no list of what waits", "InService", "ash-1", describeActions, bad(400, "X"), "asg-1", []string{"amsagent"}, nil, cloud.UnprovedBoth, 0, nil},
		{"no right to keep it waiting", "InService", "ash-1", heartbeat, denied(), "asg-1", []string{"amsagent"}, nil, cloud.UnprovedBoth, 1, lacks(heartbeat)},
		{"another refusal", "InService", "ash-1", heartbeat, bad(400, "X"), "asg-1", []string{"amsagent"}, nil, cloud.UnprovedBoth, 1, nil},
	} {
		row(t, tt.name, func(t *testing.T, w *world) {
			w.in(tt.state, tt.hooks, "")
			w.on(heartbeat, bad(http.StatusBadRequest, over))
			if tt.failing != "" {
				w.on(tt.failing, tt.by)
			}
			c, err := w.open().Check(t.Context(), nil)
			wants(t, err, tt.err)
			var ours []string
			for _, h := range c.Ours {
				ours = append(ours, h.Name)
			}
			if c.Group != tt.group || !slices.Equal(ours, tt.ours) || !slices.Equal(c.Others, tt.others) || c.Unproved != tt.unproved || c.Without+c.Untold != "" {
				t.Errorf("%+v", c)
			}
			if beats := len(w.called(heartbeat)); beats != tt.beats || len(w.called(complete)) > 0 {
				t.Errorf("%d heartbeats, completed %v", beats, w.called(complete))
			}
		})
	}
}
