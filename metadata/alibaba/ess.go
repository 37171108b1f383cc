// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"context"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// The states of an instance in its scaling group. The first part of some is followed by :Wait while a hook waits.
const (
	StatePending   = "Pending"
	StateInService = "InService"
	StateProtected = "Protected"
	StateStandby   = "Standby"
	StateStopped   = "Stopped"
	StateRemoving  = "Removing"
)

// The bounds of a wait: of one word, and of all.
const (
	LeastWait   = 30 * time.Second
	LongestWait = 6 * time.Hour
)

// Bounds of what is read page by page. A group has one scaling activity at a time, and few hooks.
const (
	pageSize = 50
	maxPages = 20
)

// ESS speaks to the Auto Scaling API for this one instance. It is safe for use by several goroutines, and nothing is asked
// before the first call.
type ESS struct{ api *api }

// ESS opens the API. It makes no request.
func (p *Provider) ESS(o APIOptions) (*ESS, error) {
	a, err := newAPI(p, essProduct, o)
	if err != nil {
		return nil, err
	}
	return &ESS{a}, nil
}

// CloseIdleConnections ends the connections that wait for the next call.
func (e *ESS) CloseIdleConnections() { e.api.http.CloseIdleConnections() }

// Membership is how the group sees this instance.
type Membership struct {
	Group string
	// State is the lifecycle state, such as InService or Removing:Wait.
	State string
}

// Membership asks how the group sees this instance. It is nil for an instance that is in no group, or in none any more.
func (e *ESS) Membership(ctx context.Context) (*Membership, error) {
	return e.membership(ctx, cloud.CallAttempts)
}

// membership with one try is for who asks again anyway.
func (e *ESS) membership(ctx context.Context, tries int) (*Membership, error) {
	self, err := e.api.where(ctx)
	if err != nil {
		return nil, err
	}
	var out struct {
		Instances list[struct {
			ID    string `json:"InstanceId"`
			Group string `json:"ScalingGroupId"`
			State string `json:"LifecycleState"`
		}] `json:"ScalingInstances"`
	}
	err = e.api.callAtMost(ctx, tries, "DescribeScalingInstances", url.Values{"InstanceIds.1": {self.InstanceID}}, &out)
	if err != nil {
		return nil, err
	}
	for _, i := range out.Instances {
		if i.ID == self.InstanceID && isToken(i.Group) && isToken(i.State) {
			return &Membership{Group: i.Group, State: i.State}, nil
		}
	}
	return nil, nil //nolint:nilnil // in no group, and no error
}

// Action is one lifecycle action that waits: one hook in one scaling activity. It may be about several instances, which all
// go on by one word.
type Action struct {
	Hook, Token string
	// Others are the other instances of the action.
	Others []string
}

// Pending lists the actions of a group that wait for this instance, by the ids of their hooks.
func (e *ESS) Pending(ctx context.Context, group string) ([]Action, error) {
	self, err := e.api.where(ctx)
	if err != nil {
		return nil, err
	}
	activities, err := e.activities(ctx, group)
	if err != nil {
		return nil, err
	}
	found := map[string]Action{}
	for _, id := range activities {
		waiting, err := e.actions(ctx, id, self.InstanceID)
		if err != nil {
			return nil, err
		}
		for _, a := range waiting {
			found[a.Hook+"\x00"+a.Token] = a
		}
	}
	var actions []Action
	for _, key := range slices.Sorted(maps.Keys(found)) {
		actions = append(actions, found[key])
	}
	return actions, nil
}

// activities lists the scaling activities of a group that are under way.
func (e *ESS) activities(ctx context.Context, group string) ([]string, error) {
	var ids []string
	for page := 1; page <= maxPages; page++ {
		var out struct {
			Activities list[struct {
				ID     string `json:"ScalingActivityId"`
				Status string `json:"StatusCode"`
			}] `json:"ScalingActivities"`
		}
		err := e.api.call(ctx, "DescribeScalingActivities", url.Values{
			"ScalingGroupId": {group}, "StatusCode": {"InProgress"},
			"PageNumber": {strconv.Itoa(page)}, "PageSize": {strconv.Itoa(pageSize)},
		}, &out)
		if err != nil {
			return nil, err
		}
		for _, a := range out.Activities {
			if isToken(a.ID) && (a.Status == "" || a.Status == "InProgress") {
				ids = append(ids, a.ID)
			}
		}
		if len(out.Activities) < pageSize {
			break
		}
	}
	return ids, nil
}

// actions lists what waits for an instance in one activity.
func (e *ESS) actions(ctx context.Context, activity, self string) ([]Action, error) {
	var actions []Action
	next := ""
	for range maxPages {
		params := url.Values{
			"ScalingActivityId": {activity}, "LifecycleActionStatus": {"Pending"}, "MaxResults": {strconv.Itoa(pageSize)},
		}
		if next != "" {
			params.Set("NextToken", next)
		}
		var out struct {
			Actions list[struct {
				Hook      string       `json:"LifecycleHookId"`
				Token     string       `json:"LifecycleActionToken"`
				Status    string       `json:"LifecycleActionStatus"`
				Instances list[string] `json:"InstanceIds"`
			}] `json:"LifecycleActions"`
			Next string `json:"NextToken"`
		}
		if err := e.api.call(ctx, "DescribeLifecycleActions", params, &out); err != nil {
			return nil, err
		}
		for _, a := range out.Actions {
			if !slices.Contains(a.Instances, self) || !isToken(a.Hook) || !isToken(a.Token) || a.Status != "" && a.Status != "Pending" {
				continue
			}
			action := Action{Hook: a.Hook, Token: a.Token}
			for _, id := range a.Instances {
				if id != self && !slices.Contains(action.Others, id) {
					action.Others = append(action.Others, id)
				}
			}
			slices.Sort(action.Others)
			actions = append(actions, action)
		}
		if out.Next == "" || out.Next == next {
			break
		}
		next = out.Next
	}
	return actions, nil
}

// DefaultWait is how long a hook waits for which nobody chose another time.
const DefaultWait = 10 * time.Minute

// LifecycleHook is one hook of a group.
type LifecycleHook struct {
	ID   string
	Name string // as people call it
	// Launching tells the hook of a start from that of an end.
	Launching bool
	// Timeout is how long it waits for a first word; 0 is not told.
	Timeout time.Duration
}

// Hooks lists the hooks of a group.
func (e *ESS) Hooks(ctx context.Context, group string) ([]LifecycleHook, error) {
	var hooks []LifecycleHook
	for page := 1; page <= maxPages; page++ {
		var out struct {
			Hooks list[struct {
				ID         string `json:"LifecycleHookId"`
				Name       string `json:"LifecycleHookName"`
				Transition string `json:"LifecycleTransition"`
				Timeout    int64  `json:"HeartbeatTimeout"`
			}] `json:"LifecycleHooks"`
		}
		err := e.api.call(ctx, "DescribeLifecycleHooks", url.Values{
			"ScalingGroupId": {group}, "PageNumber": {strconv.Itoa(page)}, "PageSize": {strconv.Itoa(pageSize)},
		}, &out)
		if err != nil {
			return nil, err
		}
		for _, h := range out.Hooks {
			hook := LifecycleHook{ID: h.ID, Name: h.Name, Launching: h.Transition == "SCALE_OUT"}
			if h.Timeout > 0 && h.Timeout <= int64(LongestWait/time.Second) {
				hook.Timeout = time.Duration(h.Timeout) * time.Second
			}
			hooks = append(hooks, hook)
		}
		if len(out.Hooks) < pageSize {
			break
		}
	}
	return hooks, nil
}

// Heartbeat makes an action wait for so long from now on. ErrOver means that it does not wait any more, ErrLimit that it
// waits and cannot be made to wait so long.
func (e *ESS) Heartbeat(ctx context.Context, hook, token string, wait time.Duration) error {
	// The first letters are lower-case in this call alone.
	return e.api.call(ctx, "RecordLifecycleActionHeartbeat", url.Values{
		"lifecycleHookId": {hook}, "lifecycleActionToken": {token}, "heartbeatTimeout": {strconv.Itoa(int(wait / time.Second))},
	}, &struct{}{})
}

// Complete ends the wait of an action, for all its instances: they go on. ErrOver means that it does not wait any more.
func (e *ESS) Complete(ctx context.Context, hook, token string) error {
	return e.api.call(ctx, "CompleteLifecycleAction", url.Values{
		"LifecycleHookId": {hook}, "LifecycleActionToken": {token}, "LifecycleActionResult": {"CONTINUE"},
	}, &struct{}{})
}

// Policy is the smallest policy with which everything works, as JSON for the role; nothing is asked.
func (e *ESS) Policy() string { return policyJSON() }
