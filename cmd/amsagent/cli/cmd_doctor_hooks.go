// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/aws"
)

// doctorHooks asks this machine's cloud for its hooks, as the daemon does in a drain.
func (g *globals) doctorHooks(m *bootstrap.Machine, identify doctorIdentity) doctor.Hooks {
	return &hookAsker{a: &daemonAdapter{g: g, machine: m}, identify: identify}
}

type hookAsker struct {
	a        *daemonAdapter
	identify doctorIdentity
}

// TerminationHook implements doctor.Hooks.
func (h *hookAsker) TerminationHook(ctx context.Context) (doctor.HookView, error) {
	inst, err := h.identify(ctx)
	if err != nil {
		return doctor.HookView{}, err
	}
	switch inst.Provider {
	case metadata.Generic, "":
		if h.a.g.lastSeen().Unrecognised {
			return doctor.HookView{Untold: noCloud}, nil
		}
		return doctor.HookView{Without: "no cloud that this agent knows ends this machine"}, nil
	}
	v := doctor.HookView{Group: inst.Group, Window: inst.StopWindow}
	switch inst.Provider {
	case metadata.Alibaba:
		api, err := h.alibaba()
		if err != nil {
			return v, err
		}
		defer api.CloseIdleConnections()
		return alibabaHook(ctx, api, h.a.hookNames(), v)
	case metadata.Azure:
		return azureHook(v, inst.LifeCycle), nil
	case metadata.GCP:
		v.Without = "Google Cloud asks nobody before it ends a machine"
		if v.Window > 0 {
			v.Without += fmt.Sprintf(", and gives this one %.0f s", v.Window.Seconds())
		}
		return v, nil
	}
	c := newCloud(h.a)
	if err := c.open(inst); err != nil {
		return doctor.HookView{}, err
	}
	if c.completer == nil {
		v.Without = "this version knows no hooks of " + inst.Provider
		return v, nil
	}
	hook, err := c.completer.Discover(ctx, false)
	if v, denied := deniedView(v, err); denied {
		return v, nil
	}
	var others *lifecycle.OthersHooksError
	if errors.As(err, &others) {
		v.Group, v.Others = others.Group, others.Hooks
		return v, nil
	}
	if err != nil {
		return v, err
	}
	if hook == nil {
		if inst.Provider == metadata.AWS && v.Group == "" {
			return h.awsGroup(ctx, v)
		}
		return v, nil
	}
	v.Group, v.Name, v.Timeout = hook.Group, hook.Name, hook.Timeout
	if !hook.Limit.IsZero() {
		v.Limit = time.Until(hook.Limit).Round(time.Second)
	}
	if inst.Provider == metadata.AWS {
		return h.awsRights(ctx, v)
	}
	return v, nil
}

func deniedView(v doctor.HookView, err error) (doctor.HookView, bool) {
	var denied *lifecycle.DeniedError
	var ours *aws.DeniedError
	var theirs *alibaba.DeniedError
	switch {
	case errors.As(err, &denied):
		v.Denied, v.Policy = denied.Permission, denied.Policy
		if denied.Err != nil {
			v.Answer = denied.Err.Error()
		}
	case errors.As(err, &ours):
		v.Denied, v.Policy, v.Answer = ours.Action, ours.Policy, ours.Reason
	case errors.As(err, &theirs):
		v.Denied, v.Policy, v.Answer = theirs.Action, theirs.Policy, theirs.Reason
	default:
		return v, false
	}
	return v, true
}

func (h *hookAsker) aws() (*aws.AutoScaling, error) {
	opts, s := h.a.cloudOptions()
	p, err := aws.New(opts)
	if err != nil {
		return nil, err
	}
	return p.AutoScaling(aws.AutoScalingOptions{Endpoint: s.Endpoints[endpointAutoScaling], Proxy: h.a.g.proxy()})
}

// awsGroup tells a machine without a group from a group without a hook.
func (h *hookAsker) awsGroup(ctx context.Context, v doctor.HookView) (doctor.HookView, error) {
	api, err := h.aws()
	if err != nil {
		return v, err
	}
	defer api.CloseIdleConnections()
	m, err := api.Membership(ctx)
	if v, denied := deniedView(v, err); denied {
		return v, nil
	}
	if m != nil {
		v.Group = m.Group
	}
	return v, err
}

// noAction is the token of no action.
const noAction = "00000000-0000-0000-0000-000000000000"

// awsRights finds out whether this machine may keep a hook waiting, without doing it: where the group says that the
// machine is in service no hook waits for it, so that a heartbeat for an action that never was is refused, either for want
// of an action or for want of the right. To complete is not tried: if a termination began at that very moment, nobody
// could take that back.
func (h *hookAsker) awsRights(ctx context.Context, v doctor.HookView) (doctor.HookView, error) {
	api, err := h.aws()
	if err != nil {
		return v, err
	}
	defer api.CloseIdleConnections()
	const both = "whether this machine may keep it waiting and complete it shows only when it waits"
	m, err := api.Membership(ctx)
	if v, denied := deniedView(v, err); denied {
		return v, nil
	}
	if err != nil || m == nil || m.State != aws.TargetInService {
		v.Unproved = both
		return v, nil // that no more is known is said
	}
	first, _, _ := strings.Cut(v.Name, ",") // of several hooks; the right is the same for all
	err = api.Heartbeat(ctx, aws.Action{Group: v.Group, Hook: first, Token: noAction})
	if v, denied := deniedView(v, err); denied {
		return v, nil
	}
	if !errors.Is(err, aws.ErrNoAction) {
		v.Unproved = both
		return v, nil
	}
	v.Unproved = "this machine may keep it waiting; whether it may complete it shows only then"
	return v, nil
}

// azureHook: what Azure calls terminate notification stands in the model of the scale set. No machine reads that without an
// identity of its own, which the agent does without.
func azureHook(v doctor.HookView, lifeCycle string) doctor.HookView {
	switch {
	case v.Group == "":
		return v
	case strings.EqualFold(lifeCycle, "spot"):
		v.Without = "Azure tells a Spot machine when it takes it away, 30 s ahead, and of a scale-in it tells it nothing"
		return v
	}
	v.Untold = "a machine of scale set " + v.Group + " is told of its end only where terminate notification is on, and Azure tells no machine whether it is"
	v.Ask = "az vmss show -g RESOURCE-GROUP -n " + v.Group + " --query virtualMachineProfile.scheduledEventsProfile.terminateNotificationProfile"
	return v
}

func (h *hookAsker) alibaba() (*alibaba.ESS, error) {
	opts, s := h.a.cloudOptions()
	p, err := alibaba.New(opts)
	if err != nil {
		return nil, err
	}
	return p.ESS(alibaba.APIOptions{Endpoint: s.Endpoints[endpointESS], Proxy: h.a.g.proxy()})
}

// alibabaAPI is what the doctor asks of Auto Scaling.
type alibabaAPI interface {
	Membership(ctx context.Context) (*alibaba.Membership, error)
	Hooks(ctx context.Context, group string) ([]alibaba.LifecycleHook, error)
	Pending(ctx context.Context, group string) ([]alibaba.Action, error)
	Heartbeat(ctx context.Context, hook, token string, wait time.Duration) error
}

// alibabaHook looks at the group, and not at what waits: a look that the daemon takes in a drain is a heartbeat, too, and
// the cloud counts those.
func alibabaHook(ctx context.Context, api alibabaAPI, ours lifecycle.HookNames, v doctor.HookView) (doctor.HookView, error) {
	m, err := api.Membership(ctx)
	if v, denied := deniedView(v, err); denied {
		return v, nil
	}
	if err != nil {
		return v, err
	}
	v.Group = ""
	if m == nil {
		return v, nil
	}
	v.Group = m.Group
	hooks, err := api.Hooks(ctx, m.Group)
	if v, denied := deniedView(v, err); denied {
		return v, nil
	}
	if err != nil {
		return v, err
	}
	mine := lifecycle.AlibabaOurs(ours, hooks, false)
	var names []string
	for _, hook := range hooks {
		if hook.Launching {
			continue
		}
		if !mine(hook.ID) {
			v.Others = append(v.Others, cmp.Or(hook.Name, hook.ID))
			continue
		}
		names = append(names, hook.ID)
		if hook.Timeout > 0 && (v.Timeout == 0 || hook.Timeout < v.Timeout) {
			v.Timeout = hook.Timeout
		}
	}
	if len(names) == 0 {
		return v, nil
	}
	v.Name, v.Limit = strings.Join(names, ","), alibaba.LongestWait
	// In a drain the token is found among what waits: two more rights.
	_, err = api.Pending(ctx, m.Group)
	if v, denied := deniedView(v, err); denied {
		return v, nil
	}
	const both = "whether this machine may keep it waiting and complete it shows only when it waits"
	if err != nil || m.State != alibaba.StateInService {
		v.Unproved = both
		return v, nil //nolint:nilerr // that no more is known is said
	}
	// As on AWS: the token is that of no action, so that this is refused in any case.
	err = api.Heartbeat(ctx, names[0], noAction, alibaba.LeastWait)
	if v, denied := deniedView(v, err); denied {
		return v, nil
	}
	if !errors.Is(err, alibaba.ErrOver) {
		v.Unproved = both
		return v, nil
	}
	v.Unproved = "this machine may keep it waiting; whether it may complete it shows only then"
	return v, nil
}
