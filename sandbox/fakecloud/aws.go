// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"context"
	"errors"

	"github.com/amsagent/amsagent/sandbox/fakeaws"
	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// newAWS starts Auto Scaling with a hook for the end of each machine. Without a heartbeat it waits for the heartbeat timeout.
func newAWS(ctx context.Context, o Options) (Cloud, error) {
	scaling, err := fakeaws.StartAutoScaling(ctx, fakeaws.AutoScalingOptions{ScalingOptions: cloud.ScalingOptions{Log: o.Log}})
	if err != nil {
		return nil, err
	}
	c := &groups{face: newFace[Machine]("aws", "AWS", o), scaling: &scaling.Scaling, scaleIn: scaling.Terminate}
	c.notice = func(b cloud.Entry) bool { return b.What == cloud.Target && b.Text == "Terminated" }
	c.start = func(ctx context.Context, m Machine) (Metadata, error) {
		i := fakeaws.Sample()
		i.ID, i.Hostname = m.ID, m.Name+".internal"
		i.NICs[0].MAC, i.NICs[0].IPv4s, i.NICs[0].Public = m.MAC, []string{m.Address}, ""
		i.Tags = map[string]string{"Name": m.Name, "amsagent:role": m.Role}
		s, err := fakeaws.Start(ctx, fakeaws.Options{Instance: &i, Listen: cloud.Listen{Log: o.Log}})
		if err != nil {
			return nil, err
		}
		if err := scaling.Attach(m.Role+"s", s); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		return metadata{s, []string{"AMSAGENT_AWS_ENDPOINT=" + s.Endpoint(), "AMSAGENT_AWS_AUTOSCALING_ENDPOINT=" + scaling.Endpoint()}}, nil
	}
	for _, group := range []string{"origins", "edges"} {
		scaling.Group(group, cloud.Hook{Name: "drain", Timeout: c.lead, Limit: o.Limit})
	}
	c.follow()
	return c, nil
}
