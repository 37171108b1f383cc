// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// hookAsker asks this machine's cloud for its hooks, as the daemon does in a drain.
type hookAsker struct {
	a        *daemonAdapter
	identify bootstrap.Identifier
}

// TerminationHook implements doctor.Hooks.
func (h *hookAsker) TerminationHook(ctx context.Context) (doctor.HookView, error) {
	inst, err := h.identify(ctx)
	if err != nil {
		return doctor.HookView{}, err
	}
	if h.a.g.lastSeen().Unrecognised {
		return doctor.HookView{Untold: noCloud}, nil
	}
	p, err := h.a.openCloud()
	if err != nil {
		return doctor.HookView{}, err
	}
	c, err := p.Check(ctx, h.a.hookNames())
	v := doctor.HookView{
		Group: c.Group, Others: c.Others, Unproved: c.Unproved, Without: c.Without, Untold: c.Untold, Ask: c.Ask, Window: time.Duration(inst.StopWindow),
	}
	if v.Without != "" && v.Window > 0 {
		v.Without += fmt.Sprintf(", and gives this one %.0f s", v.Window.Seconds())
	}
	var names []string
	least := func(to *time.Duration, d time.Duration) {
		if d > 0 && (*to == 0 || d < *to) {
			*to = d
		}
	}
	for _, hook := range c.Ours {
		names = append(names, hook.Name)
		least(&v.Timeout, time.Duration(hook.Timeout))
		if hook.Abandons {
			v.Abandons = hook.Name
		}
		if !hook.Limit.IsZero() {
			least(&v.Limit, time.Until(hook.Limit).Round(time.Second))
		}
	}
	v.Name = strings.Join(names, ", ")
	if denied, ok := errors.AsType[*cloud.DeniedError](err); ok {
		v.Denied, v.Policy, v.Answer = denied.Permission, denied.Policy, denied.Reason
		err = nil
	}
	return v, err
}
