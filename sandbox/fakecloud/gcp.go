// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"context"
	"errors"
	"maps"

	"github.com/amsagent/amsagent/sandbox/fakegcp"
	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// gcpCloud is a project on Google Cloud with Spot VMs in two managed instance groups. It has no API: each machine has its
// metadata server, and no call of a machine changes what becomes of it.
type gcpCloud struct {
	*face[*fakegcp.Server]
	o Options
}

// newGCP starts a project. A machine that is preempted is switched off after 30 s, or after the lead if that is less.
func newGCP(_ context.Context, o Options) (Cloud, error) {
	c := &gcpCloud{newFace[*fakegcp.Server]("gcp", "GCP", o), o}
	c.lead = min(c.lead, fakegcp.Sample().Window())
	return c, nil
}

func (c *gcpCloud) Close() error {
	c.mu.Lock()
	machines := maps.Clone(c.machines) // a machine that writes into the books has its own lock first
	c.mu.Unlock()
	var errs []error
	for _, s := range machines {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (c *gcpCloud) Machine(ctx context.Context, m Machine) (Metadata, error) {
	i := fakegcp.Sample()
	i.ID, i.Name = m.ID, m.Name
	i.NICs[0].MAC, i.NICs[0].IPv4, i.NICs[0].Public = m.MAC, m.Address, ""
	i.Attributes = map[string]string{"amsagent-role": m.Role, "created-by": fakegcp.GroupOf(i.Number, i.Zone, m.Role+"s")}
	s, err := fakegcp.Start(ctx, fakegcp.Options{Instance: &i, Listen: cloud.Listen{Log: c.o.Log}})
	if err != nil {
		return nil, err
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
	c.add(m.ID, s)
	return metadata{s, []string{"AMSAGENT_GCP_ENDPOINT=" + s.Endpoint()}}, nil
}

// ScaleIn preempts the machine: a scale-in of its group gives no notice before the power button.
func (c *gcpCloud) ScaleIn(id string) error {
	s, err := c.find(id)
	if err == nil {
		s.Preempt(c.lead)
	}
	return err
}

func (c *gcpCloud) Off(id string) error {
	s, err := c.find(id)
	if err == nil {
		s.Off()
	}
	return err
}
