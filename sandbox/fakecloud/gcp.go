// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"context"
	"errors"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakegcp"
)

// gcp is a project with Spot VMs in two managed instance groups. It has no API, and no call of a machine changes what becomes
// of it: a machine that is preempted is switched off after 30 s, or after the lead if that is less. A scale-in of its group
// gives no notice before the power button, so ScaleIn preempts.
func (c *Cloud) gcp(o Options) {
	c.Title, c.Lead = "GCP", min(c.Lead, fakegcp.Sample().Window())
	c.close = func() error {
		var servers []*fakegcp.Server // closed outside of the lock: one that writes into the books has its own lock first
		c.mu.Lock()
		for _, m := range c.machines {
			if m.gcp != nil {
				servers = append(servers, m.gcp)
			}
		}
		c.mu.Unlock()
		var errs []error
		for _, s := range servers {
			errs = append(errs, s.Close())
		}
		return errors.Join(errs...)
	}
	c.scaleIn = func(all []*machine) error {
		for _, m := range all {
			m.gcp.Preempt(c.Lead)
		}
		return nil
	}
	c.start = func(ctx context.Context, m *machine) (service, []string, error) {
		i := fakegcp.Sample()
		i.ID, i.Name = m.ID, m.Name
		i.NICs[0].MAC, i.NICs[0].IPv4, i.NICs[0].Public = m.MAC, m.Address, ""
		i.Attributes = map[string]string{"amsagent-role": m.Role, "created-by": fakegcp.GroupOf(i.Number, i.Zone, m.Role+"s")}
		s, err := fakegcp.Start(ctx, fakegcp.Options{Instance: &i, Listen: fakes.Listen{Log: o.Log}})
		if err != nil {
			return nil, nil, err
		}
		s.Each(func(b fakegcp.Entry) {
			e := Entry{Time: b.Time, What: Other, ID: m.ID, Text: m.Name + " " + b.Text, Late: b.Late}
			switch b.What {
			case fakegcp.Notice:
				e.What = Notice
			case fakegcp.Gone:
				e.What = Gone
			}
			c.write(e)
		})
		c.mu.Lock()
		m.gcp = s
		m.interrupt = func(at time.Time) error {
			s.Preempt(time.Until(at))
			return nil
		}
		c.mu.Unlock()
		return s, []string{"AMSAGENT_GCP_ENDPOINT=" + s.Endpoint()}, nil
	}
}
