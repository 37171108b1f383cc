// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
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
	answers := func(action, list string) event {
		return fails(fakes.Fault{Path: action, Status: http.StatusOK, Body: `{"RequestId":"1","` + strings.TrimPrefix(action, "Describe") + `":[` + list + `]}`})
	}
	const (
		ours, others = "amsagent true 14m48s [];", "logs true 9m48s [];"
		named        = `{"LifecycleHookId":"amsagent","LifecycleHookName":"name","LifecycleTransition":"SCALE_IN","HeartbeatTimeout":-1}`
		other        = `{"InstanceId":"i-b","ScalingGroupId":"asg-1","LifecycleState":"Removing:Wait"}`
	)
	changes := func(a *account) error {
		a.Group(group, logs)
		return nil
	}
	for _, tt := range []struct {
		name      string
		history   history
		launching bool
		want      string // name, whether it waits, timeout and the other machines of each hook
		err       error
	}{
		{"waits", history{joins(drain, up), ends("i-b"), ends(self), waits}, false, ours, nil},
		{"one token for three machines", history{joins(logs), ends("i-c", self, "i-b"), waits}, false, "logs true 9m48s [i-b i-c];", nil},
		{"one of two waits", history{joins(drain, logs), ends(self), waits, completes(drain)}, false, "amsagent false 15m0s [];" + others, nil},
		{"both wait", history{joins(drain, logs), ends(self), waits}, false, ours + others, nil},
		{"the one that waits is not listed", append(waiting, changes), false, "logs false 10m0s [];amsagent true 9m48s [];", nil},
		{"a name, and no timeout", append(waiting, answers(describeHooks, named)), false, "name true 9m48s [];", nil},
		{"no right to list the hooks", append(waiting, denies(describeHooks)), false, "amsagent true 9m48s [];", nil},
		{"nor does one wait", history{joins(drain), ends(self), denies(describeHooks)}, false, "", cloud.ErrNotWaiting},
		{"waits soon", history{joins(drain), ends(self)}, false, "", cloud.ErrNotWaiting},
		{"in service still", history{joins()}, false, "", cloud.ErrNotWaiting},
		{"protected", history{joins(), moves("Protected")}, false, "", cloud.ErrNotWaiting},
		{"a group without hooks", history{joins(), ends(self)}, false, "", nil},
		{"a group with the other hook", history{joins(up), ends(self)}, false, "", nil},
		{"in no group", nil, false, "", nil},
		{"another instance", append(waiting, answers(describeMembers, other)), false, "", nil},
		{"standby", history{joins(drain), moves("Standby")}, false, "", nil},
		{"the end of one that starts", history{joins(drain, up), begins(self), waits}, false, "", nil},
		{"the start of one that serves", history{joins(up)}, true, "", nil},
		{"the start of one that ends", history{joins(drain, up), ends(self), waits}, true, "", nil},
		{"a start, with others", history{joins(drain, up), begins("i-b", self), waits}, true, "up true 5m0s [];", nil},
		{"no right to list what waits", append(waiting, denies(describeActions)), false, "", lacks(describeActions)},
		{"no list of the hooks", append(waiting, fails(fakes.Fault{Path: describeHooks, Code: "Throttling"})), false, "", errThrottled},
		{"no answer about the group", history{fails(fakes.Fault{Path: describeMembers, Code: "Throttling"})}, false, "", errThrottled},
	} {
		for _, wrapped := range []bool{false, true} {
			row(t, fmt.Sprintf("%s/wrapped=%t", tt.name, wrapped), func(t *testing.T, a *account) {
				a.Wrap(wrapped)
				a.plays(tt.history...)
				all, err := a.open().Pending(t.Context(), tt.launching)
				wants(t, err, tt.err)
				got := ""
				for _, h := range all {
					got += fmt.Sprintf("%s %t %s %v;", h.Name, h.Token != "", h.Timeout, h.Others)
					limit := h.Token == "" || h.Limit.Equal(time.Now().Add(longestWait))
					if h.Provider != Name || h.Group != group || h.Launching != tt.launching || h.Token != a.token(h.ID) || !limit {
						t.Errorf("%+v", h)
					}
				}
				must.Equal(t, "hooks", got, tt.want)
			})
		}
	}
}

func TestAbandons(t *testing.T) {
	bubble(t, func(t *testing.T, a *account) {
		a.plays(joins(drain, logs), ends(self), waits)
		all, err := a.open().Pending(t.Context(), false)
		must.OK(t, err)
		for _, h := range all {
			must.Equal(t, h.Name+" abandons", h.Abandons, h.Name == drain.Name)
		}
	})
}

// The API refuses or ignores a call with a wrong parameter, but for those of pages: without them there are ten entries.
func TestPages(t *testing.T) {
	bubble(t, func(t *testing.T, a *account) {
		a.plays(waiting...)
		_, err := a.open().Pending(t.Context(), false)
		must.OK(t, err)
		for action, want := range map[string]string{
			describeScaling: "PageNumber=1&PageSize=50&RegionId=cn-hangzhou&ScalingGroupId=asg-1&StatusCode=InProgress",
			describeActions: "LifecycleActionStatus=Pending&MaxResults=50&RegionId=cn-hangzhou&ScalingActivityId=" + a.Activities[0].ID,
			describeHooks:   "PageNumber=1&PageSize=50&RegionId=cn-hangzhou&ScalingGroupId=asg-1",
		} {
			must.Equal(t, action, a.called(action)[0].URL.Query().Encode(), want)
		}
	})
}

func TestExtend(t *testing.T) {
	t.Parallel()
	machines := func(n int) cloud.Hook { return cloud.Hook{ID: drain.Name, Token: "its", Others: make([]string, n-1)} }
	start := func(timeout time.Duration) cloud.Hook {
		return cloud.Hook{ID: drain.Name, Token: "its", Launching: true, Timeout: seconds.Duration(timeout)}
	}
	refused := func(code string, times int) event {
		return fails(fakes.Fault{Path: heartbeat, Code: code, Times: times})
	}
	const tooLong, tooOften = "LifecycleAction.TimeExceeded", "LifecycleAction.RecordTimesExceeded"
	for _, tt := range []struct {
		name  string
		hook  cloud.Hook
		left  time.Duration // until the limit; 0: not known
		then  history
		want  time.Duration
		asked string // for how many seconds
		err   error
	}{
		{"one machine", machines(1), longestWait, nil, 40 * time.Minute, "2400", nil},
		{"three machines", machines(3), longestWait, nil, 2 * time.Hour, "7200", nil},
		{"forty machines", machines(40), longestWait, nil, longestWait, "21600", nil},
		{"a start", start(5 * time.Minute), 0, nil, 5 * time.Minute, "300", nil},
		{"a start whose time is not known", start(0), 0, nil, leastWait, "30", nil},
		{"until the limit", machines(1), 10 * time.Minute, nil, 40 * time.Minute, "600", nil},
		{"at the limit", machines(1), 29 * time.Second, nil, 40 * time.Minute, "", nil},
		{"past the limit", machines(1), -time.Hour, nil, 40 * time.Minute, "", nil},
		{"a shorter time is accepted", machines(1), longestWait, history{refused(tooLong, 2)}, 10 * time.Minute, "2400 1200 600", nil},
		{"less until the limit", machines(1), 10 * time.Minute, history{refused(tooLong, 1)}, 5 * time.Minute, "600 300", nil},
		{"no time is accepted", machines(1), longestWait, history{refused(tooLong, 0)}, 0, "2400 1200 600 300 150 75 37 30", errLimit},
		{"too often", machines(1), longestWait, history{refused(tooOften, 0)}, 0, "2400", errOften},
		{"more machines than heartbeats", machines(40), longestWait - time.Second, history{refused(tooOften, 0)}, longestWait, "21599", nil},
		{"over", cloud.Hook{ID: drain.Name, Token: "of another wait"}, longestWait, nil, 0, "2400", cloud.ErrGone},
		{"denied", machines(1), longestWait, history{denies(heartbeat)}, 0, "2400", lacks(heartbeat)},
		{"without a token", cloud.Hook{ID: drain.Name}, 0, nil, 40 * time.Minute, "2400", nil},
		{"without a token, not waiting", cloud.Hook{ID: logs.Name}, 0, nil, 0, "", cloud.ErrNotWaiting},
	} {
		row(t, tt.name, func(t *testing.T, a *account) {
			a.plays(waiting...)
			a.plays(tt.then...)
			if tt.hook.Token == "its" {
				tt.hook.Token = a.token(drain.Name)
			}
			if tt.left != 0 {
				tt.hook.Limit = time.Now().Add(tt.left)
			}
			got, err := a.open().Extend(t.Context(), tt.hook)
			wants(t, err, tt.err)
			if errors.Is(err, errLimit) && errors.Is(err, cloud.ErrGone) {
				t.Errorf("a hook that waits is over: %v", err)
			}
			var asked []string
			for _, r := range a.called(heartbeat) {
				asked = append(asked, r.URL.Query().Get("heartbeatTimeout"))
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
		row(t, strconv.Itoa(machines), func(t *testing.T, a *account) {
			a.plays(joins(logs))
			all := []string{self}
			for n := range machines - 1 {
				all = append(all, fmt.Sprintf("i-%d", n))
				must.OK(t, a.Attach(group, all[n+1], nil))
			}
			a.plays(ends(all...), waits)
			h := a.open()
			hooks, err := h.Pending(t.Context(), false)
			must.OK(t, err)
			end := hooks[0].Limit
			var wg sync.WaitGroup
			for range machines {
				wg.Go(func() {
					for time.Now().Before(end) {
						waits, err := h.Extend(t.Context(), hooks[0])
						if err != nil {
							t.Error(err)
							return
						}
						<-time.After(waits / 2) // like the runner
					}
				})
			}
			wg.Wait()
			lapsed, err := a.WaitFor(t.Context(), func(e fakes.Entry) bool { return e.What == fakes.TimedOut })
			must.OK(t, err)
			if sent := len(a.called(heartbeat)); machines <= 10 && sent > 20 || end.Sub(lapsed.Time) > leastWait {
				t.Errorf("%d heartbeats; it waited until %s before the end", sent, end.Sub(lapsed.Time))
			}
		})
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		history   history
		id, token string
		completed bool
		err       error
	}{
		{"with a token", waiting, drain.Name, "its", true, nil},
		{"over", waiting, drain.Name, "of another wait", false, cloud.ErrGone},
		{"denied", append(waiting, denies(complete)), drain.Name, "its", false, lacks(complete)},
		{"without a token", waiting, drain.Name, "", true, nil},
		{"without a token, of a hook that was deleted", append(slices.Clone(waiting), func(a *account) error { a.Group(group); return nil }), drain.Name, "", true, nil},
		{"without a token, not waiting", waiting, logs.Name, "", false, cloud.ErrNotWaiting},
		{"without a token, in no group", nil, drain.Name, "", false, cloud.ErrGone},
	} {
		row(t, tt.name, func(t *testing.T, a *account) {
			a.plays(tt.history...)
			if tt.token == "its" {
				tt.token = a.token(drain.Name)
			}
			wants(t, a.open().Complete(t.Context(), cloud.Hook{ID: tt.id, Token: tt.token}), tt.err)
			completed := slices.ContainsFunc(a.Books(), func(e fakes.Entry) bool { return e.What == fakes.Completed && e.By == self && e.Text == "CONTINUE" })
			if completed != tt.completed || tt.token == "" && !tt.completed && len(a.called(complete)) > 0 {
				t.Errorf("completed %t by %d calls", completed, len(a.called(complete)))
			}
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	otherEnds := history{joins(drain), ends("i-b"), waits}
	refuses := func(action string) event { return fails(fakes.Fault{Path: action, Code: "X"}) }
	for _, tt := range []struct {
		name         string
		history      history
		group        string
		ours, others []string
		unproved     string
		beats        int
		err          error
	}{
		{"may do all", history{joins(drain, up)}, group, []string{"amsagent"}, nil, cloud.UnprovedComplete, 1, nil},
		{"beside another's", history{joins(drain, logs), moves("Protected")}, group, []string{"amsagent"}, []string{"logs"}, cloud.UnprovedComplete, 1, nil},
		{"others only", history{joins(logs, fakes.Hook{Name: "dns"})}, group, nil, []string{"logs", "dns"}, cloud.UnprovedBoth, 0, nil},
		{"a group without hooks", history{joins()}, group, nil, nil, cloud.UnprovedBoth, 0, nil},
		{"in no group", nil, "", nil, nil, "", 0, nil},
		{"on its way out", waiting, group, []string{"amsagent"}, nil, cloud.UnprovedBoth, 0, nil},
		{"no right to see the group", history{joins(drain), denies(describeMembers)}, "", nil, nil, "", 0, lacks(describeMembers)},
		{"no right to list the hooks", history{joins(drain), denies(describeHooks)}, group, nil, nil, cloud.UnprovedBoth, 0, lacks(describeHooks)},
		{"no right to list what waits", append(otherEnds, denies(describeActions)), group, []string{"amsagent"}, nil, cloud.UnprovedBoth, 0, lacks(describeActions)},
		{"no list of what waits", append(otherEnds, refuses(describeActions)), group, []string{"amsagent"}, nil, cloud.UnprovedBoth, 0, nil},
		{"no right to keep it waiting", history{joins(drain), denies(heartbeat)}, group, []string{"amsagent"}, nil, cloud.UnprovedBoth, 1, lacks(heartbeat)},
		{"another refusal", history{joins(drain), refuses(heartbeat)}, group, []string{"amsagent"}, nil, cloud.UnprovedBoth, 1, nil},
	} {
		row(t, tt.name, func(t *testing.T, a *account) {
			a.plays(tt.history...)
			c, err := a.open().Check(t.Context(), nil)
			wants(t, err, tt.err)
			var ours []string
			for _, h := range c.Ours {
				ours = append(ours, h.Name)
			}
			if c.Group != tt.group || !slices.Equal(ours, tt.ours) || !slices.Equal(c.Others, tt.others) || c.Unproved != tt.unproved || c.Without+c.Untold != "" {
				t.Errorf("%+v", c)
			}
			if beats := len(a.called(heartbeat)); beats != tt.beats || len(a.called(complete)) > 0 {
				t.Errorf("%d heartbeats, completed %d times", beats, len(a.called(complete)))
			}
		})
	}
}
