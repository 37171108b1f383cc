// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

const (
	// longestWait is a hook's longest wait with all heartbeats.
	longestWait = 6 * time.Hour
	// leastWait is the shortest heartbeat timeout.
	leastWait   = 30 * time.Second
	defaultWait = 10 * time.Minute
	// unseen bounds a wait that the agent has not noticed.
	unseen = scalingEvery + 2*time.Second
	// beats is planned for a whole wait. A token allows twenty for all its machines.
	beats = 18
	// One page suffices: a group has one activity at a time and few hooks, an activity few actions.
	pageSize = "50"
)

// membership returns the group or "", and a lifecycle state such as InService or Removing:Wait.
func (p *Provider) membership(ctx context.Context, tries int) (group, state string, err error) {
	self, err := p.where(ctx)
	if err != nil {
		return "", "", err
	}
	var out struct {
		Instances list[struct {
			ID    string `json:"InstanceId"`
			Group string `json:"ScalingGroupId"`
			State string `json:"LifecycleState"`
		}] `json:"ScalingInstances"`
	}
	err = p.ess.call(ctx, tries, "DescribeScalingInstances", url.Values{"InstanceIds.1": {self.InstanceID}}, &out)
	for _, i := range out.Instances {
		if i.ID == self.InstanceID {
			return cloud.Printable(i.Group), cloud.Printable(i.State), err
		}
	}
	return "", "", err
}

// step returns the first part of a lifecycle state. An instance protected from scale-in is in service.
func step(state string) string {
	s, _, _ := strings.Cut(state, ":")
	if s == "Protected" {
		return "InService"
	}
	return s
}

// actions returns the waits of hooks for this instance: ID, Token and Others.
func (p *Provider) actions(ctx context.Context, group string) ([]cloud.Hook, error) {
	self, err := p.where(ctx)
	if err != nil {
		return nil, err
	}
	var activities struct {
		List list[struct {
			ID string `json:"ScalingActivityId"`
		}] `json:"ScalingActivities"`
	}
	err = p.ess.call(ctx, cloud.CallAttempts, "DescribeScalingActivities", url.Values{
		"ScalingGroupId": {group}, "StatusCode": {"InProgress"}, "PageNumber": {"1"}, "PageSize": {pageSize},
	}, &activities)
	if err != nil {
		return nil, err
	}
	var found []cloud.Hook
	for _, activity := range activities.List {
		var out struct {
			List list[struct {
				Hook      string       `json:"LifecycleHookId"`
				Token     string       `json:"LifecycleActionToken"`
				Status    string       `json:"LifecycleActionStatus"`
				Instances list[string] `json:"InstanceIds"`
			}] `json:"LifecycleActions"`
		}
		err := p.ess.call(ctx, cloud.CallAttempts, "DescribeLifecycleActions", url.Values{
			"ScalingActivityId": {activity.ID}, "LifecycleActionStatus": {"Pending"}, "MaxResults": {pageSize},
		}, &out)
		if err != nil {
			return nil, err
		}
		for _, a := range out.List {
			if slices.Contains(a.Instances, self.InstanceID) && (a.Status == "" || a.Status == "Pending") {
				others := slices.DeleteFunc(slices.Clone(a.Instances), func(id string) bool { return id == self.InstanceID })
				slices.Sort(others)
				found = append(found, cloud.Hook{ID: a.Hook, Token: a.Token, Others: slices.Compact(others)})
			}
		}
	}
	return found, nil
}

func (p *Provider) list(ctx context.Context, group string, launching bool) ([]cloud.Hook, error) {
	var out struct {
		List list[struct {
			ID         string `json:"LifecycleHookId"`
			Name       string `json:"LifecycleHookName"`
			Transition string `json:"LifecycleTransition"`
			Timeout    int64  `json:"HeartbeatTimeout"`
			Default    string `json:"DefaultResult"`
		}] `json:"LifecycleHooks"`
	}
	err := p.ess.call(ctx, cloud.CallAttempts, "DescribeLifecycleHooks", url.Values{
		"ScalingGroupId": {group}, "PageNumber": {"1"}, "PageSize": {pageSize},
	}, &out)
	var found []cloud.Hook
	for _, l := range out.List {
		if (l.Transition == "SCALE_OUT") != launching {
			continue
		}
		timeout := time.Duration(l.Timeout) * time.Second
		if timeout <= 0 || timeout > longestWait {
			timeout = defaultWait
		}
		h := cloud.Hook{Provider: Name, Group: group, Name: cmp.Or(l.Name, l.ID), ID: l.ID, Launching: launching, Timeout: seconds.Duration(timeout)}
		h.Abandons = l.Default == "ABANDON"
		found = append(found, h)
	}
	return found, err
}

// Pending implements cloud.Hooks. A hook that does not wait has no token.
func (p *Provider) Pending(ctx context.Context, launching bool) ([]cloud.Hook, error) {
	group, state, err := p.membership(ctx, cloud.CallAttempts)
	if err != nil || group == "" {
		return nil, err
	}
	switch s := step(state); {
	case s == "InService" && !launching:
		// Another source reported the end first, or the transition was canceled.
		return nil, fmt.Errorf("%w: the instance is %s", cloud.ErrNotWaiting, state)
	case s != map[bool]string{true: "Pending", false: "Removing"}[launching]:
		return nil, nil // no hook waits in this state or the next
	}
	waiting, err := p.actions(ctx, group)
	if err != nil {
		return nil, err
	}
	all, err := p.list(ctx, group, launching)
	_, denied := errors.AsType[*cloud.DeniedError](err)
	switch {
	case err != nil && !denied, err == nil && len(all) == 0 && len(waiting) == 0:
		return nil, err
	case len(waiting) == 0:
		return nil, fmt.Errorf("%w: the instance is %s, and no lifecycle action is pending", cloud.ErrNotWaiting, state)
	}
	return merged(all, waiting, group, launching), nil
}

// merged returns the group's hooks with the waiting actions; those that cannot be listed have the default timeout.
func merged(all []cloud.Hook, waiting []cloud.Hook, group string, launching bool) []cloud.Hook {
	for _, a := range waiting {
		i := slices.IndexFunc(all, func(l cloud.Hook) bool { return l.ID == a.ID })
		if i < 0 {
			i = len(all)
			all = append(all, cloud.Hook{Provider: Name, Group: group, Name: a.ID, ID: a.ID, Launching: launching, Timeout: seconds.Duration(defaultWait)})
		}
		all[i].Token, all[i].Limit = a.Token, time.Now().Add(longestWait)
		if !launching {
			// In a scale-out the first machine that serves completes the action for all: the load balancer sends no sessions
			// to machines of unknown health.
			all[i].Others = a.Others
			all[i].Timeout -= min(seconds.Duration(unseen), all[i].Timeout/2)
		}
	}
	return all
}

func (p *Provider) token(ctx context.Context, hook cloud.Hook) (string, error) {
	if hook.Token != "" {
		return hook.Token, nil
	}
	all, err := p.Pending(ctx, hook.Launching)
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "", fmt.Errorf("%w: no hook waits for the instance any more", cloud.ErrGone)
	}
	for _, h := range all {
		if h.ID == hook.ID && h.Token != "" {
			return h.Token, nil
		}
	}
	return "", cloud.ErrNotWaiting
}

// wait returns the timeout to request. Machines may share the token of a wait, and the cloud counts heartbeats per token: each
// sends one at half of this time, so that its share lasts for the longest wait. A launch keeps the hook's timeout, so that a
// failed machine is replaced.
func wait(hook cloud.Hook) time.Duration {
	if hook.Launching {
		return max(time.Duration(hook.Timeout), leastWait)
	}
	share := max(1, beats/(1+len(hook.Others)))
	return min(2*longestWait/time.Duration(share), longestWait)
}

// Extend implements cloud.Hooks. Near the limit it still returns the usual time: halving the rest would exceed the token's
// heartbeats.
func (p *Provider) Extend(ctx context.Context, hook cloud.Hook) (time.Duration, error) {
	token, err := p.token(ctx, hook)
	if err != nil {
		return 0, err
	}
	usual := wait(hook)
	most := usual
	if !hook.Limit.IsZero() {
		most = min(usual, time.Until(hook.Limit).Truncate(time.Second))
	}
	if most < leastWait {
		return usual, nil // it cannot be extended
	}
	for ask := most; ; ask = max(ask/2, leastWait) {
		err := p.beat(ctx, hook.ID, token, ask)
		switch {
		case err == nil && ask < most:
			return ask, nil
		case err == nil, errors.Is(err, errOften) && usual >= longestWait: // the other machines have used up the heartbeats
			return usual, nil
		case !errors.Is(err, errLimit), errors.Is(err, errOften), ask <= leastWait:
			return 0, err
		}
		// The start of the six hours is undocumented: a shorter time may work.
	}
}

func (p *Provider) beat(ctx context.Context, hook, token string, timeout time.Duration) error {
	// Only this call has lower-case parameter names.
	return p.ess.call(ctx, cloud.CallAttempts, "RecordLifecycleActionHeartbeat", url.Values{
		"lifecycleHookId": {hook}, "lifecycleActionToken": {token}, "heartbeatTimeout": {strconv.Itoa(int(timeout / time.Second))},
	}, &struct{}{})
}

// Complete implements cloud.Hooks: all instances of the action continue.
func (p *Provider) Complete(ctx context.Context, hook cloud.Hook) error {
	token, err := p.token(ctx, hook)
	if err != nil {
		return err
	}
	return p.ess.call(ctx, cloud.CallAttempts, "CompleteLifecycleAction", url.Values{
		"LifecycleHookId": {hook.ID}, "LifecycleActionToken": {token}, "LifecycleActionResult": {"CONTINUE"},
	}, &struct{}{})
}

// Check implements cloud.Provider. It sends no real heartbeat: the cloud counts them.
func (p *Provider) Check(ctx context.Context, f cloud.Filter) (cloud.Check, error) {
	group, state, err := p.membership(ctx, cloud.CallAttempts)
	if err != nil || group == "" {
		return cloud.Check{}, err
	}
	all, err := p.list(ctx, group, false)
	if err != nil {
		return cloud.Check{Group: group, Unproved: cloud.UnprovedBoth}, err
	}
	for i := range all {
		all[i].Limit = time.Now().Add(longestWait)
	}
	return f.Check(group, all, func(hook cloud.Hook) error {
		// A drain needs these two permissions to find the token.
		if _, err := p.actions(ctx, group); err != nil || step(state) != "InService" {
			return err
		}
		err := p.beat(ctx, hook.ID, "00000000-0000-0000-0000-000000000000", leastWait) // matches no action
		if errors.Is(err, cloud.ErrGone) {
			return cloud.ErrNotWaiting
		}
		return err
	})
}
