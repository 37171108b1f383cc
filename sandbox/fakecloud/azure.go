// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeazure"
)

// azure has two uniform scale sets with termination notices. A set waits for the lead of the notice, and no longer.
func (c *Cloud) azure(o Options) {
	sets := map[string]*fakeazure.Set{}
	for _, role := range []string{"origin", "edge"} {
		sets[role] = fakeazure.NewSet(role+"s", fakeazure.SetOptions{Log: o.Log})
		sets[role].Each(c.ofSet)
	}
	c.Title = "Azure"
	c.close = func() error { return errors.Join(sets["origin"].Close(), sets["edge"].Close()) }
	c.scaleIn = func(all []*machine) error {
		event := fakeazure.Event{Type: fakeazure.Terminate, Lead: c.Lead}
		for _, m := range all {
			event.VMs = append(event.VMs, m.vm)
		}
		_, err := sets[all[0].Role].Announce(event)
		return err
	}
	c.start = func(ctx context.Context, m *machine) (service, []string, error) {
		if sets[m.Role] == nil {
			return nil, nil, fmt.Errorf("no set of machines with role %q in this cloud", m.Role)
		}
		vm := fakeazure.Sample()
		vm.ID, vm.Name, vm.ScaleSet, vm.Hostname = m.ID, m.vm, m.Role+"s", m.Name
		vm.NICs = []fakeazure.NIC{{MAC: m.MAC, IPv4s: []string{m.Address}}}
		vm.Tags = map[string]string{"Name": m.Name, "amsagent-role": m.Role}
		s, err := fakeazure.Start(ctx, fakeazure.Options{VM: &vm, Set: sets[m.Role], Listen: fakes.Listen{Log: o.Log}})
		if err != nil {
			return nil, nil, err
		}
		m.interrupt = func(at time.Time) error {
			_, err := sets[m.Role].Announce(fakeazure.Event{Type: fakeazure.Preempt, VMs: []string{m.vm}, Lead: time.Until(at)})
			return err
		}
		return s, []string{"AMSAGENT_AZURE_ENDPOINT=" + s.Endpoint()}, nil
	}
}

// ofSet puts an entry of a set into the words of every cloud. One about an event is about each of its machines.
func (c *Cloud) ofSet(b fakeazure.Entry) {
	event, _, _ := strings.Cut(b.Event, "-")
	event = b.Type + " event " + event
	for _, vm := range slices.Concat(b.VMs, []string{b.VM}) {
		m, ok := c.find(func(m *machine) bool { return m.vm == vm })
		if !ok {
			continue
		}
		e := Entry{Time: b.Time, What: Other, ID: m.ID}
		switch b.What {
		case fakeazure.Announced:
			e.What, e.Text = Notice, event+" is scheduled for "+m.Name
		case fakeazure.Started:
			e.Text = event + " begins for " + m.Name
		case fakeazure.Cancelled:
			e.Text = event + " is cancelled for " + m.Name
		case fakeazure.Acked:
			e.What, e.Text = Answer, event+" is acknowledged by "+m.Name
		case fakeazure.Gone:
			e.What, e.Text, e.Late = Gone, m.Name+" is deleted, acknowledged", b.Late
			if b.Late {
				e.Text = m.Name + " is deleted, its time was over"
			}
		case fakeazure.Enabled:
			e.Text = m.Name + " switches on the scheduled events of its zone"
		case fakeazure.Throttled:
			e.Text = m.Name + " sends more than five requests in a second"
		case fakeazure.Refused:
			e.Text = m.Name + " acknowledges an unknown event"
		default:
			continue
		}
		c.write(e)
	}
}
