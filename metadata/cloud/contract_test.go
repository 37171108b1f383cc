// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func hooksNamed(names ...string) (hooks []cloud.Hook) {
	for _, n := range names {
		hooks = append(hooks, cloud.Hook{Provider: "aws", Group: "edge", Name: n})
	}
	return hooks
}

func TestOwnHooks(t *testing.T) {
	for _, tt := range []struct {
		name       string
		filter     cloud.Filter
		hooks, own []string
	}{
		{"the only one", nil, []string{"drain"}, []string{"drain"}},
		{"the only one, of CodeDeploy", nil, []string{"CodeDeploy-managed-automatic-launch-deployment-hook-live-1"}, nil},
		{"CodeDeploy's for our group", nil, []string{"CodeDeploy-managed-automatic-launch-deployment-hook-amsagent-edges-1"}, nil},
		{"CodeDeploy's by a pattern", cloud.Filter{"*"}, []string{"CodeDeploy-managed-automatic-launch-deployment-hook-live-1", "drain"}, []string{"drain"}},
		{"none at all", nil, nil, nil},
		{"one of several by its name", nil, []string{"ship-logs", "prod-AMSAgent-drain"}, []string{"prod-AMSAgent-drain"}},
		{"several of several", nil, []string{"amsagent-a", "amsagent-b", "c"}, []string{"amsagent-a", "amsagent-b"}},
		{"none of several", nil, []string{"drain", "CodeDeploy-managed-automatic-launch-deployment-hook"}, nil},
		{"named", cloud.Filter{"drain"}, []string{"drain", "amsagent"}, []string{"drain"}},
		{"by a pattern", cloud.Filter{"ams-*"}, []string{"ams-end", "logs", "ams-start"}, []string{"ams-end", "ams-start"}},
		{"a pattern and a slash", cloud.Filter{"ams-*"}, []string{"ams-x/terminate", "x/ams-y"}, []string{"ams-x/terminate"}},
		{"all of them", cloud.Filter{"*"}, []string{"a/b/c", "d"}, []string{"a/b/c", "d"}},
		{"a slash in a pattern", cloud.Filter{"a/*"}, []string{"a/b", "ab"}, []string{"a/b"}},
		{"the only one, and another is named", cloud.Filter{"drain"}, []string{"CodeDeploy"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ours, others := tt.filter.Select(hooksNamed(tt.hooks...), nil)
			must.NoDiff(t, "our hooks", ours, hooksNamed(tt.own...))
			must.Equal(t, fmt.Sprintf("%d ours and %d others: hooks", len(ours), len(others)), len(ours)+len(others), len(tt.hooks))
		})
	}
	if !(cloud.Filter{"ash-1"}).Match(cloud.Hook{Name: "drain", ID: "ash-1"}) {
		t.Error("a hook is not found by its id")
	}
}

// listed is the hooks of a group, or what the cloud answers in their place.
type listed struct {
	cloud.Hooks
	hooks []cloud.Hook
	err   error
}

func (l listed) Pending(context.Context, bool) ([]cloud.Hook, error) { return l.hooks, l.err }

func TestFind(t *testing.T) {
	denied := &cloud.DeniedError{Permission: "p", Provider: "aws", Group: "edge"}
	away := errors.New("away")
	for _, tt := range []struct {
		name   string
		filter cloud.Filter
		hooks  listed
		want   []cloud.Hook
		err    error
	}{
		{"ours", nil, listed{hooks: hooksNamed("drain")}, hooksNamed("drain"), nil},
		{"ours beside others", nil, listed{hooks: hooksNamed("amsagent", "logs")}, hooksNamed("amsagent"), &cloud.OthersHooksError{Group: "edge", Hooks: []string{"logs"}}},
		{"no hook", nil, listed{}, nil, nil},
		{"those of others", nil, listed{hooks: hooksNamed("a", "b")}, nil, &cloud.OthersHooksError{Group: "edge", Hooks: []string{"a", "b"}}},
		{"those of others, and ours is named", cloud.Filter{"c"}, listed{hooks: hooksNamed("a")}, nil, &cloud.OthersHooksError{Group: "edge", Hooks: []string{"a"}, Named: true}},
		{"away", cloud.Filter{"drain"}, listed{err: away}, nil, away},
		{"names need no right to list", cloud.Filter{"drain", "up"}, listed{err: denied}, hooksNamed("drain", "up"), nil},
		{"CodeDeploy's name does not help", cloud.Filter{"CodeDeploy-managed-x", "up"}, listed{err: denied}, hooksNamed("up"), nil},
		{"a pattern does", cloud.Filter{"drain*"}, listed{err: denied}, nil, denied},
		{"no names do", nil, listed{err: denied}, nil, denied},
		{"so does a group that is not known", cloud.Filter{"drain"}, listed{err: &cloud.DeniedError{}}, nil, &cloud.DeniedError{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.filter.Find(t.Context(), tt.hooks, false, nil)
			must.NoDiff(t, "hooks", got, tt.want)
			if !errors.Is(err, tt.err) && cmp.Diff(tt.err, err) != "" {
				t.Errorf("%v, want %v", err, tt.err)
			}
		})
	}
}

// Without names, a hook that the agent has used is its own, beside those by their names.
func TestHooksUsed(t *testing.T) {
	used := func(h cloud.Hook) bool { return h.Name != "logs" }
	all := listed{hooks: hooksNamed("drain", "logs", "amsagent", "CodeDeploy-managed-a")}
	for _, tt := range []struct {
		filter cloud.Filter
		own    []string
	}{{nil, []string{"drain", "amsagent"}}, {cloud.Filter{"logs"}, []string{"logs"}}} {
		ours, err := tt.filter.Find(t.Context(), all, false, used)
		others, ok := errors.AsType[*cloud.OthersHooksError](err)
		if diff := cmp.Diff(hooksNamed(tt.own...), ours); diff != "" || !ok || len(others.Hooks) != 4-len(tt.own) {
			t.Errorf("%v: %s %v", tt.filter, diff, err)
		}
	}
}

// Without heartbeats, the first hook that is abandoned ends the machine, else the last one. Beside this agent's hooks only the former does.
func TestHookThatEnds(t *testing.T) {
	hook := func(name string, timeout time.Duration, abandons bool) cloud.Hook {
		return cloud.Hook{Name: name, Timeout: seconds.Duration(timeout), Abandons: abandons}
	}
	for _, tt := range []struct {
		hooks []cloud.Hook
		ends  string
	}{
		{[]cloud.Hook{hook("a", 3, true), hook("b", 2, true), hook("c", 1, false)}, "b"},
		{[]cloud.Hook{hook("a", 1, false), hook("b", 3, false), hook("c", 2, false)}, "b"},
		{[]cloud.Hook{hook("a", 0, true), hook("b", 2, false)}, "b"},
		{[]cloud.Hook{hook("a", 0, true), hook("b", 0, false)}, ""},
		{[]cloud.Hook{hook("a", 3, true), hook("amsagent", 1, true)}, "a"},
		{[]cloud.Hook{hook("a", 3, false), hook("amsagent", 1, true)}, ""},
	} {
		_, err := cloud.Filter(nil).Find(t.Context(), listed{hooks: tt.hooks}, false, nil)
		others, ok := errors.AsType[*cloud.OthersHooksError](err)
		if !ok || (others.Ends == nil) != (tt.ends == "") || others.Ends != nil && others.Ends.Name != tt.ends {
			t.Errorf("%+v: %+v, want %s", tt.hooks, others, tt.ends)
		}
	}
}

// TestSpotEnd: an end counts by the cloud's clock, and without one from its first sight.
func TestSpotEnd(t *testing.T) {
	type look struct{ announced, want time.Duration } // after the begin; 0 is absent
	const never = 0
	for _, tt := range []struct {
		name  string
		known bool   // the cloud's clock, which is this machine's
		looks []look // a minute apart
	}{
		{"announced", true, []look{{never, never}, {3 * time.Minute, 3 * time.Minute}, {3 * time.Minute, 3 * time.Minute}}},
		{"withdrawn", true, []look{{2 * time.Minute, 2 * time.Minute}, {never, never}}},
		{"in hours", true, []look{{never, never}, {5 * time.Hour, 3 * time.Minute}, {5 * time.Hour, 3 * time.Minute}}},
		{"past", true, []look{{never, never}, {-5 * time.Hour, time.Minute}, {-5 * time.Hour, time.Minute}}},
		{"of several the earliest counts", true, []look{{2 * time.Minute, 2 * time.Minute}, {3 * time.Minute, 2 * time.Minute}, {4 * time.Minute, 2 * time.Minute}}},
		{"again after it was withdrawn", true, []look{{time.Minute, time.Minute}, {never, never}, {4 * time.Minute, 4 * time.Minute}}},
		{"no clock", false, []look{{never, never}, {-5 * time.Hour, 3 * time.Minute}, {-5 * time.Hour, 3 * time.Minute}}},
		{"no clock, in hours", false, []look{{never, never}, {5 * time.Hour, 3 * time.Minute}, {5 * time.Hour, 3 * time.Minute}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				end := cloud.SpotEnd{Lead: 2 * time.Minute}
				for i, l := range tt.looks {
					var announced, want time.Time
					if l.announced != never {
						announced = begin.Add(l.announced)
					}
					if l.want != never {
						want = begin.Add(l.want)
					}
					if got := end.At(&cloud.Clock{Known: tt.known}, announced); !got.Equal(want) {
						t.Errorf("look %d: %v, want %v", i, got.Sub(begin), l.want)
					}
					<-time.After(time.Minute)
				}
			})
		})
	}
}
