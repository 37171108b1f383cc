// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"context"
	"errors"

	"github.com/amsagent/amsagent/sandbox/fakealibaba"
	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// newAlibaba starts Auto Scaling with a hook for the end of each machine. Without a heartbeat it waits for its own time; the
// metadata does not show it.
func newAlibaba(ctx context.Context, o Options) (Cloud, error) {
	ess, err := fakealibaba.StartCloud(ctx, fakealibaba.CloudOptions{Longest: o.Limit, ScalingOptions: cloud.ScalingOptions{Log: o.Log}})
	if err != nil {
		return nil, err
	}
	c := &groups{face: newFace[Machine]("alibaba", "Alibaba Cloud", o), scaling: &ess.Scaling}
	c.scaleIn = func(id string) error { return ess.ScaleIn(id) }
	c.notice = func(b cloud.Entry) bool { return b.What == cloud.State && b.Text == "Removing" }
	c.start = func(ctx context.Context, m Machine) (Metadata, error) {
		i := fakealibaba.Sample()
		i.ID, i.Name, i.Hostname = m.ID, m.Name, m.Name
		i.NICs = []fakealibaba.NIC{{MAC: m.MAC, IPv4s: []string{m.Address}}}
		i.Tags = map[string]string{"Name": m.Name, "amsagent-role": m.Role, "amsagent-group": m.Role + "s"}
		s, err := fakealibaba.Start(ctx, fakealibaba.Options{Instance: &i, Cloud: ess, Listen: cloud.Listen{Log: o.Log}})
		if err != nil {
			return nil, err
		}
		if err := ess.Attach("asg-"+m.Role+"s", "", s); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		return metadata{s, []string{
			"AMSAGENT_ALIBABA_ENDPOINT=" + s.Endpoint(),
			"AMSAGENT_ALIBABA_ESS_ENDPOINT=" + ess.Endpoint(), "AMSAGENT_ALIBABA_ECS_ENDPOINT=" + ess.Endpoint(),
		}}, nil
	}
	for _, group := range []string{"asg-origins", "asg-edges"} {
		ess.Group(group, cloud.Hook{Name: "ash-drain", Timeout: c.lead})
	}
	c.follow()
	return c, nil
}
