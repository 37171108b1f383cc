// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakealibaba"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/rig"
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
// all the same, and no viewer is cut. With all of them, the agent calls nothing that the policy does not name.
func TestDrainRights(t *testing.T) {
	t.Run("aws", func(t *testing.T) {
		t.Parallel()
		db := newDatabase(t)
		var all together
		defer all.Wait()
		rights := []string{"DescribeAutoScalingInstances", "DescribeLifecycleHooks", "RecordLifecycleActionHeartbeat", "CompleteLifecycleAction"}
		for i, c := range []rightsCase{
			{completes: true},
			{denied: "DescribeAutoScalingInstances", completes: true}, // a tag has the group
			{denied: "DescribeLifecycleHooks", reported: true},
			{denied: "RecordLifecycleActionHeartbeat", reported: true, completes: true},
			{denied: "CompleteLifecycleAction", reported: true},
		} {
			all.run(t, "without "+c.denied, func(t *testing.T) {
				h := newScaled(t, db, "10.0.13."+string(rune('1'+i)), fakeaws.AutoScalingOptions{}, endHook(20*time.Second))
				h.asg.Deny(c.denied)
				p := h.Serving()
				h.Viewers(1)
				h.terminate()
				c.drains(t, h.Node, p, "autoscaling:")
				if c.completes {
					h.completed("drain")
				}
				for _, call := range h.entries(func(e fakes.Entry) bool { return e.What == fakes.Call }) {
					if !slices.Contains(rights, call.Text) {
						t.Errorf("it calls %s", call.Text)
					}
				}
			})
		}
	})
	t.Run("alibaba", func(t *testing.T) {
		t.Parallel()
		db := newDatabase(t)
		var all together
		defer all.Wait()
		for i, c := range []rightsCase{
			{completes: true},
			{denied: "DescribeScalingInstances", blind: true},
			{denied: "DescribeScalingActivities", reported: true},
			{denied: "DescribeLifecycleActions", reported: true},
			{denied: "DescribeLifecycleHooks", completes: true}, // only for names
			{denied: "RecordLifecycleActionHeartbeat", reported: true, completes: true},
			{denied: "CompleteLifecycleAction", reported: true},
		} {
			all.run(t, "without "+c.denied, func(t *testing.T) {
				ess := newESS(t, fakealibaba.CloudOptions{}, fakes.Hook{Name: "ash-drain", Timeout: 30 * time.Second})
				ess.Deny(c.denied)
				h := newOnAlibaba(t, db, ess, 20+i, nil)
				p := h.Serving()
				h.Viewers(1)
				must.OK(t, ess.ScaleIn(h.ID))
				if c.blind {
					p.Says("cannot be seen from here")
					return
				}
				c.drains(t, h.Node, p, "ess:")
				if c.completes {
					h.noted(fakes.Completed)
				}
			})
		}
	})
}

func (c rightsCase) drains(t *testing.T, h *rig.Node, p *rig.Daemon, service string) {
	t.Helper()
	p.Counted(1)
	h.ViewersGo()
	h.HasLeft()
	if c.completes {
		p.Step(lifecycle.StepDone)
	}
	if st := h.Sessions(); st.Cut.Viewers != 0 {
		t.Errorf("the sessions: %+v", st)
	}
	missing := "permission=" + service + c.denied + " "
	if c.reported {
		p.Says(missing)
	}
	if n := p.Said(missing); n > 1 || n == 1 && !c.reported {
		t.Errorf("the permission is said to be missing %d times:\n%s", n, p.Output())
	}
}
