// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/aws"
)

func named(names ...string) func(context.Context) (HookNames, error) {
	return func(context.Context) (HookNames, error) { return names, nil }
}

func TestOwnHooks(t *testing.T) {
	for _, tt := range []struct {
		name       string
		names      HookNames
		hooks, own []string
	}{
		{"the only one", nil, []string{"drain"}, []string{"drain"}},
		{"the only one, of CodeDeploy", nil, []string{"CodeDeploy-managed-automatic-launch-deployment-hook-live-1"}, nil},
		{"none at all", nil, nil, nil},
		{"one of several by its name", nil, []string{"ship-logs", "prod-AMSAgent-drain"}, []string{"prod-AMSAgent-drain"}},
		{"several of several", nil, []string{"amsagent-a", "amsagent-b", "c"}, []string{"amsagent-a", "amsagent-b"}},
		{"none of several", nil, []string{"drain", "CodeDeploy-managed-automatic-launch-deployment-hook"}, nil},
		{"named", HookNames{"drain"}, []string{"drain", "amsagent"}, []string{"drain"}},
		{"by a pattern", HookNames{"ams-*"}, []string{"ams-end", "logs", "ams-start"}, []string{"ams-end", "ams-start"}},
		{"a pattern and a slash", HookNames{"ams-*"}, []string{"ams-x/terminate", "x/ams-y"}, []string{"ams-x/terminate"}},
		{"all of them", HookNames{"*"}, []string{"a/b/c", "d"}, []string{"a/b/c", "d"}},
		{"a slash in a pattern", HookNames{"a/*"}, []string{"a/b", "ab"}, []string{"a/b"}},
		{"the only one, and another is named", HookNames{"drain"}, []string{"CodeDeploy"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.own, tt.names.ours(tt.hooks)); diff != "" && len(tt.own)+len(tt.names.ours(tt.hooks)) > 0 {
				t.Error(diff)
			}
		})
	}
}

// Where it is not known which hooks are ours, none is touched but one that a drain has extended: the only one of a group may
// be another program's.
func TestHooksNotKnown(t *testing.T) {
	t.Parallel()
	unknown := errors.New("a tag is malformed")
	names := func(context.Context) (HookNames, error) { return nil, unknown }
	check := func(t *testing.T, c Completer, h Hook) {
		t.Helper()
		if found, err := c.Discover(t.Context(), false); found != nil || !errors.Is(err, unknown) {
			t.Error("discover:", found, err)
		}
		for say, err := range map[string]error{"beat": c.Heartbeat(t.Context(), h), "complete": c.Complete(t.Context(), h, Continue)} {
			if !errors.Is(err, unknown) {
				t.Error(say, err)
			}
		}
		h.Ours = true
		if err := errors.Join(c.Heartbeat(t.Context(), h), c.Complete(t.Context(), h, Continue)); err != nil {
			t.Error("extended before:", err)
		}
	}
	t.Run("aws", func(t *testing.T) {
		t.Parallel()
		f := &fakeAWS{hooks: []aws.LifecycleHook{{Name: "deploy"}}}
		c := NewAWSCompleter(f, AWSCompleterOptions{Group: "g", Hooks: names})
		check(t, c, Hook{Provider: "aws", Group: "g", Name: "deploy"})
		// No hook waits at a launch, whatever they are called.
		if h, err := c.Discover(t.Context(), true); h != nil || err != nil {
			t.Error(h, err)
		}
	})
	t.Run("alibaba", func(t *testing.T) {
		t.Parallel()
		f := removing(alibaba.Action{Hook: "ash-1", Token: "t-1"})
		check(t, NewAlibabaCompleter(f, AlibabaCompleterOptions{Hooks: names}), Hook{Provider: "alibaba", Group: "asg-1", Name: "ash-1", Token: "t-1"})
	})
}
