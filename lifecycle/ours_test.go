// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func named(names ...string) func() HookNames { return func() HookNames { return names } }

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
