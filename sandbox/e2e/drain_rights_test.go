// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
)

// rightsCase is a drain on a cloud whose API refuses one action.
type rightsCase struct {
	denied string // "": none
	// reported: the log names the permission. Otherwise the drain does not need it.
	reported bool
	// completes: the hook is completed all the same.
	completes bool
	// blind: the scale-in cannot be seen without this right, so that only the hook's event begins a drain.
	blind bool
}

// TestDrainRights takes each right of the documented policies away, one at a time: the log names it once, the node drains and leaves
// all the same, and no viewer is cut. The agent calls nothing that the policy does not name.
func TestDrainRights(t *testing.T) {
	for _, tt := range []struct {
		cloud, service, policy string
		rights                 []rightsCase
	}{
		{"aws", "autoscaling:", aws.Policy("eu-west-1", "123456789012", ""), []rightsCase{
			{completes: true},
			{denied: "DescribeAutoScalingInstances", completes: true}, // a tag has the group
			{denied: "DescribeLifecycleHooks", reported: true},
			{denied: "RecordLifecycleActionHeartbeat", reported: true, completes: true},
			{denied: "CompleteLifecycleAction", reported: true},
		}},
		{"alibaba", "ess:", alibaba.Policy, []rightsCase{
			{completes: true},
			{denied: "DescribeScalingInstances", blind: true},
			{denied: "DescribeScalingActivities", reported: true},
			{denied: "DescribeLifecycleActions", reported: true},
			{denied: "DescribeLifecycleHooks", completes: true}, // only for names
			{denied: "RecordLifecycleActionHeartbeat", reported: true, completes: true},
			{denied: "CompleteLifecycleAction", reported: true},
		}},
	} {
		t.Run(tt.cloud, func(t *testing.T) {
			t.Parallel()
			db := newDatabase(t)
			var all together
			defer all.Wait()
			for i, c := range tt.rights {
				all.run(t, "without "+c.denied, func(t *testing.T) {
					h := newOnCloud(t, db, newCloud(t, tt.cloud, fakecloud.Options{Lead: 30 * time.Second}), 20+i)
					h.cloud.Scaling.Deny(c.denied)
					c.drains(t, h, tt.service)
					for _, e := range h.cloud.Scaling.Books() {
						if e.What == fakes.Call && !strings.Contains(tt.policy, ":"+e.Text+`"`) {
							t.Errorf("it calls %s", e.Text)
						}
					}
				})
			}
		})
	}
}

func (c rightsCase) drains(t *testing.T, h *onCloud, service string) {
	t.Helper()
	p := h.Serving()
	h.Viewers(1)
	must.OK(t, h.cloud.ScaleIn(h.ID))
	if c.blind {
		p.Says("cannot be seen from here")
		return
	}
	p.Counted(1)
	h.ViewersGo()
	h.HasLeft()
	if c.completes {
		p.Step(lifecycle.StepDone)
		h.noted(fakecloud.Answer)
	}
	must.Equal(t, "viewers cut", h.Sessions().Cut.Viewers, 0)
	missing := "permission=" + service + c.denied + " "
	if c.reported {
		p.Says(missing)
	}
	if n := p.Said(missing); n > 1 || n == 1 && !c.reported {
		t.Errorf("the permission is said to be missing %d times:\n%s", n, p.Output())
	}
}
