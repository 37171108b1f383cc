// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
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
	case metadata.Generic, metadata.None, "":
		return doctor.HookView{Without: "no cloud that this agent knows ends this machine"}, nil
	}
	c := newCloud(h.a)
	if err := c.open(inst); err != nil {
		return doctor.HookView{}, err
	}
	v := doctor.HookView{Group: inst.Group}
	if c.completer == nil {
		v.Without = "this version knows no hooks of " + inst.Provider
		return v, nil
	}
	hook, err := c.completer.Discover(ctx, false)
	if v, denied := deniedView(v, err); denied {
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
	switch {
	case errors.As(err, &denied):
		v.Denied, v.Policy = denied.Permission, denied.Policy
		if denied.Err != nil {
			v.Answer = denied.Err.Error()
		}
	case errors.As(err, &ours):
		v.Denied, v.Policy, v.Answer = ours.Action, ours.Policy, ours.Reason
	default:
		return v, false
	}
	return v, true
}

func (h *hookAsker) aws() (*aws.AutoScaling, error) {
	opts, s, err := h.a.cloudOptions()
	if err != nil {
		return nil, err
	}
	p, err := aws.New(opts)
	if err != nil {
		return nil, err
	}
	return p.AutoScaling(aws.AutoScalingOptions{Endpoint: s.AWSAutoscalingEndpoint, Proxy: h.a.g.proxy()})
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
