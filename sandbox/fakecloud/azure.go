// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/sandbox/fakeazure"
	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

type azureCloud struct {
	*face[azureMachine]
	o    Options
	sets map[string]*fakeazure.Set // by role
}

type azureMachine struct {
	Machine
	vm string // as the events call it
}

// newAzure starts two uniform scale sets with termination notices. A set waits for the lead of the notice, and no longer.
func newAzure(_ context.Context, o Options) (Cloud, error) {
	c := &azureCloud{face: newFace[azureMachine]("azure", "Azure", o), o: o, sets: map[string]*fakeazure.Set{}}
	for _, role := range []string{"origin", "edge"} {
		c.sets[role] = fakeazure.NewSet(role+"s", fakeazure.SetOptions{Log: o.Log})
		c.sets[role].Each(c.translate)
	}
	return c, nil
}

func (c *azureCloud) Close() error {
	for _, s := range c.sets {
		_ = s.Close() // it never fails
	}
	return nil
}

func (c *azureCloud) Machine(ctx context.Context, m Machine) (Metadata, error) {
	set := c.sets[m.Role]
	if set == nil {
		return nil, fmt.Errorf("no set of machines with role %q in this cloud", m.Role)
	}
	c.mu.Lock()
	in := azureMachine{m, fmt.Sprintf("%ss_%d", m.Role, len(c.machines))}
	c.machines[m.ID] = in
	c.mu.Unlock()
	vm := fakeazure.Sample()
	vm.ID, vm.Name, vm.ScaleSet, vm.Hostname = m.ID, in.vm, m.Role+"s", m.Name
	vm.NICs = []fakeazure.NIC{{MAC: m.MAC, IPv4s: []string{m.Address}}}
	vm.Tags = map[string]string{"Name": m.Name, "amsagent-role": m.Role}
	s, err := fakeazure.Start(ctx, fakeazure.Options{VM: &vm, Set: set, Listen: cloud.Listen{Log: c.o.Log}})
	if err != nil {
		return nil, err
	}
	return metadata{s, []string{"AMSAGENT_AZURE_ENDPOINT=" + s.Endpoint()}}, nil
}

func (c *azureCloud) ScaleIn(id string) error {
	m, err := c.find(id)
	if err != nil {
		return err
	}
	_, err = c.sets[m.Role].Announce(fakeazure.Event{Type: fakeazure.Terminate, VMs: []string{m.vm}, Lead: c.lead})
	return err
}

// translate puts an entry of a set into the words of every cloud. One about an event is about each of its machines.
func (c *azureCloud) translate(b fakeazure.Entry) {
	event, _, _ := strings.Cut(b.Event, "-")
	event = b.Type + " event " + event
	for _, vm := range slices.Concat(b.VMs, []string{b.VM}) {
		m, ok := c.called(vm)
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

// called finds the machine that events call so.
func (c *azureCloud) called(vm string) (azureMachine, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.machines {
		if m.vm == vm {
			return m, true
		}
	}
	return azureMachine{}, false
}
