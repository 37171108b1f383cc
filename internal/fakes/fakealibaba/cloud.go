// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"cmp"
	"context"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// CloudOptions configure an account without a group.
type CloudOptions struct {
	fakes.ScalingOptions
	// Longest is how long a wait can last; default 6h.
	Longest time.Duration
	// Skew is how far the API's clock is ahead of this machine's.
	Skew time.Duration
}

// maxBeats is how often a wait can be prolonged.
const maxBeats = 20

// Cloud is a fake of the APIs of Auto Scaling (ESS), ECS and KMS, on one port, with the groups behind them.
type Cloud struct {
	fakes.Scaling
	o CloudOptions

	// Guarded by Mu.
	owners  []*Server // whose role's keys are good
	nonces  map[string]bool
	secrets map[string]secret // of KMS
	wrapped bool
}

// NewCloud makes an account that does not listen.
func NewCloud(o CloudOptions) *Cloud {
	o.Longest = cmp.Or(o.Longest, 6*time.Hour)
	c := &Cloud{o: o, nonces: map[string]bool{}, secrets: map[string]secret{}}
	c.Init("ESS", o.ScalingOptions, func(h fakes.Hook) fakes.Hook {
		h.Timeout, h.Limit, h.Default = cmp.Or(h.Timeout, 10*time.Minute), o.Longest, cmp.Or(h.Default, "CONTINUE")
		return h
	})
	return c
}

// StartCloud serves until Close or until ctx is done.
func StartCloud(ctx context.Context, o CloudOptions) (*Cloud, error) {
	c := NewCloud(o)
	return c, c.Start(ctx, c)
}

// Wrap makes the API wrap its lists as that of 2014 does, or not.
func (c *Cloud) Wrap(wrapped bool) {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	c.wrapped = wrapped
}

// Attach makes an instance a member of a group, InService and without running any hook. meta is its metadata service; nil:
// none, and the id is needed.
func (c *Cloud) Attach(group, id string, meta *Server) error {
	if meta != nil {
		id = meta.Get().ID
		meta.Update(func(i *Instance) { fakes.Set(&i.Tags, "acs:autoscaling:scalingGroupId", group) })
	}
	return c.Join(&fakes.Instance{ID: id, Group: group})
}

// ScaleIn plays the scale-in of some instances of one group by one activity. It returns at once.
func (c *Cloud) ScaleIn(ids ...string) error { return c.scale("Removing", false, ids) }

// ScaleOut plays the start of some instances by one activity.
func (c *Cloud) ScaleOut(ids ...string) error { return c.scale("Pending", true, ids) }

func (c *Cloud) scale(state string, out bool, ids []string) error {
	return c.With(ids, func(all []*fakes.Instance) {
		c.Through(all, state, out, func(result, by string) {
			for _, i := range all {
				if !out && result == "ROLLBACK" || out && result == "CONTINUE" {
					c.Enter(i, "InService")
				} else {
					c.Release(i, by)
				}
			}
		})
	})
}

// Move puts an instance into a state (Standby, Protected, InService, Stopped), and runs no hook.
func (c *Cloud) Move(id, state string) error { return c.Scaling.Move(id, "", state) }

// Verbs of the groups: POST /scale-in?instance=I, which may be repeated: by one activity.
func (c *Cloud) Verbs() fakes.Verbs {
	return c.Scaling.Verbs(fakes.With("POST /scale-in", "instance", []string(nil), func(ids []string) error { return c.ScaleIn(ids...) }))
}
