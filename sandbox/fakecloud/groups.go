// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakealibaba"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
)

// aws has Auto Scaling with a hook for the end of each machine. Without a heartbeat it waits for the heartbeat timeout.
func (c *Cloud) aws(ctx context.Context, o Options) error {
	scaling, err := fakeaws.StartAutoScaling(ctx, fakeaws.AutoScalingOptions{ScalingOptions: fakes.ScalingOptions{Log: o.Log}})
	if err != nil {
		return err
	}
	c.Title, c.Scaling, c.close = "AWS", &scaling.Scaling, scaling.Close
	c.scaleIn = func(all []*machine) error {
		var errs []error
		for _, m := range all {
			errs = append(errs, scaling.Terminate(m.ID))
		}
		return errors.Join(errs...)
	}
	c.start = func(ctx context.Context, m *machine) (service, []string, error) {
		i := fakeaws.Sample()
		i.ID, i.Hostname = m.ID, m.Name+".internal"
		i.NICs[0].MAC, i.NICs[0].IPv4s, i.NICs[0].Public = m.MAC, []string{m.Address}, ""
		i.Tags = map[string]string{"Name": m.Name, "amsagent:role": m.Role}
		s, err := fakeaws.Start(ctx, fakeaws.Options{Instance: &i, Listen: fakes.Listen{Log: o.Log}})
		if err != nil {
			return nil, nil, err
		}
		if err := scaling.Attach(m.Role+"s", s); err != nil {
			return nil, nil, errors.Join(err, s.Close())
		}
		m.interrupt = func(at time.Time) error {
			s.Interrupt("terminate", at)
			return nil
		}
		return s, []string{"AMSAGENT_AWS_ENDPOINT=" + s.Endpoint(), "AMSAGENT_AWS_AUTOSCALING_ENDPOINT=" + scaling.Endpoint()}, nil
	}
	for _, group := range []string{"origins", "edges"} {
		scaling.Group(group, fakes.Hook{Name: "drain", Timeout: c.Lead, Limit: o.Limit})
	}
	scaling.Each(c.ofGroup(fakes.Target, "Terminated"))
	return nil
}

// alibaba has Auto Scaling with a hook for the end of each machine. Without a heartbeat it waits for its own time; the
// metadata does not show it.
func (c *Cloud) alibaba(ctx context.Context, o Options) error {
	ess, err := fakealibaba.StartCloud(ctx, fakealibaba.CloudOptions{Longest: o.Limit, ScalingOptions: fakes.ScalingOptions{Log: o.Log}})
	if err != nil {
		return err
	}
	c.Title, c.Scaling, c.close = "Alibaba Cloud", &ess.Scaling, ess.Close
	c.scaleIn = func(all []*machine) error {
		var ids []string
		for _, m := range all {
			ids = append(ids, m.ID)
		}
		return ess.ScaleIn(ids...)
	}
	c.start = func(ctx context.Context, m *machine) (service, []string, error) {
		i := fakealibaba.Sample()
		i.ID, i.Name, i.Hostname = m.ID, m.Name, m.Name
		i.NICs = []fakealibaba.NIC{{MAC: m.MAC, IPv4s: []string{m.Address}}}
		i.Tags = map[string]string{"Name": m.Name, "amsagent-role": m.Role, "amsagent-group": m.Role + "s"}
		s, err := fakealibaba.Start(ctx, fakealibaba.Options{Instance: &i, Cloud: ess, Listen: fakes.Listen{Log: o.Log}})
		if err != nil {
			return nil, nil, err
		}
		if err := ess.Attach("asg-"+m.Role+"s", "", s); err != nil {
			return nil, nil, errors.Join(err, s.Close())
		}
		m.interrupt = func(at time.Time) error {
			s.Interrupt(at)
			return nil
		}
		return s, []string{
			"AMSAGENT_ALIBABA_ENDPOINT=" + s.Endpoint(),
			"AMSAGENT_ALIBABA_ESS_ENDPOINT=" + ess.Endpoint(), "AMSAGENT_ALIBABA_ECS_ENDPOINT=" + ess.Endpoint(),
		}, nil
	}
	for _, group := range []string{"asg-origins", "asg-edges"} {
		ess.Group(group, fakes.Hook{Name: "ash-drain", Timeout: c.Lead})
	}
	ess.Each(c.ofGroup(fakes.State, "Removing"))
	return nil
}

// ofGroup translates the books of scaling groups. An entry of this what and text is the first sign that the machine must leave.
func (c *Cloud) ofGroup(what fakes.What, text string) func(fakes.Entry) {
	return func(b fakes.Entry) {
		m, ok := c.find(func(m *machine) bool { return m.ID == b.Instance })
		if !ok {
			return // an instance without an agent
		}
		e := Entry{Time: b.Time, What: Other, ID: b.Instance}
		hook := fmt.Sprintf("hook %q", b.Hook)
		by, _ := c.find(func(m *machine) bool { return m.ID == b.By })
		switch {
		case b.What == what && b.Text == text:
			e.What, e.Text = Notice, m.Name+": "+string(b.What)+" "+b.Text
		case b.What == fakes.Wait:
			e.Text = hook + " begins to wait for " + m.Name
		case b.What == fakes.Heartbeat:
			e.What, e.Text = Heartbeat, hook+" gets a heartbeat from "+by.Name
		case b.What == fakes.Completed:
			e.What, e.Text = Answer, hook+" is completed by "+by.Name+": "+b.Text
		case b.What == fakes.TimedOut:
			e.Text = hook + " has expired (" + b.Text + ")"
		case b.What == fakes.Gone:
			e.What, e.Text, e.Late = Gone, m.Name+" is released: "+b.Text, b.Text == fakes.ByTime
		default:
			return
		}
		c.write(e)
	}
}
