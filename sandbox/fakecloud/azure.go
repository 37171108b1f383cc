// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/fakeazure"
)

type azureCloud struct {
	o        Options
	sets     map[string]*fakeazure.Set // by role
	machines *machines[azureMachine]
}

type azureMachine struct {
	Machine
	vm     string // as the events call it
	number int
}

// NewAzure starts two uniform scale sets with termination notices. One that says
// nothing is waited for as long as the notice; nothing makes that longer.
func NewAzure(_ context.Context, o Options) (Cloud, error) {
	o.Lead = cmp.Or(o.Lead, DefaultLead)
	c := &azureCloud{o: o, machines: newMachines[azureMachine](), sets: map[string]*fakeazure.Set{}}
	for _, role := range []string{"origin", "edge"} {
		c.sets[role] = fakeazure.NewSet(role+"s", fakeazure.SetOptions{Log: o.Log})
	}
	return c, nil
}

func (c *azureCloud) Name() string        { return "azure" }
func (c *azureCloud) Title() string       { return "Azure" }
func (c *azureCloud) Lead() time.Duration { return c.o.Lead }

func (c *azureCloud) Close() error {
	for _, s := range c.sets {
		_ = s.Close() // it never fails
	}
	return nil
}

type azureMetadata struct{ *fakeazure.Server }

func (c *azureCloud) Machine(ctx context.Context, m Machine) (Metadata, error) {
	set := c.sets[m.Role]
	if set == nil {
		return nil, fmt.Errorf("no set of machines with role %q in this cloud", m.Role)
	}
	c.machines.mu.Lock()
	in := azureMachine{Machine: m, number: len(c.machines.byID)}
	in.vm = fmt.Sprintf("%ss_%d", m.Role, in.number)
	c.machines.byID[m.ID] = in
	c.machines.mu.Unlock()
	vm := fakeazure.Sample()
	vm.ID, vm.Name, vm.ScaleSet, vm.Hostname = m.ID, in.vm, m.Role+"s", m.Name
	vm.NICs = []fakeazure.NIC{{MAC: m.MAC, IPv4s: []string{m.Address}}}
	vm.Tags = map[string]string{"Name": m.Name, "amsagent-role": m.Role}
	s, err := fakeazure.Start(ctx, fakeazure.Options{VM: &vm, Set: set, Log: c.o.Log})
	if err != nil {
		return nil, err
	}
	return azureMetadata{s}, nil
}

func (m azureMetadata) Environ() []string { return []string{"AMSAGENT_AZURE_ENDPOINT=" + m.Endpoint()} }

func (m azureMetadata) Fail(f Fault) error {
	m.ClearFaults()
	return m.AddFault(fakeazure.Fault{Status: f.Status, Hang: f.Hang, Reset: f.Reset, Truncate: f.Truncate})
}

func (m azureMetadata) Heal() { m.ClearFaults() }

func (c *azureCloud) ScaleIn(id string) error {
	m, err := c.machines.find(id)
	if err != nil {
		return err
	}
	_, err = c.sets[m.Role].Announce(fakeazure.Event{Type: fakeazure.Terminate, VMs: []string{m.vm}, Lead: c.o.Lead})
	return err
}

// Off is nothing to the set: its event waits for word or for its time.
func (c *azureCloud) Off(id string) error {
	_, err := c.machines.find(id)
	return err
}

func (c *azureCloud) Books() []Entry {
	entries, _ := c.follow()
	return entries
}

func (c *azureCloud) WaitFor(ctx context.Context, fits func(Entry) bool) (Entry, error) {
	for {
		entries, changed := c.follow()
		if i := slices.IndexFunc(entries, fits); i >= 0 {
			return entries[i], nil
		}
		select {
		case <-changed[0]:
		case <-changed[1]:
		case <-ctx.Done():
			return Entry{}, fmt.Errorf("waiting for an entry in the books of %s: %w", c.Title(), ctx.Err())
		}
	}
}

// follow puts the books of both sets into one, in the words of every cloud.
func (c *azureCloud) follow() ([]Entry, [2]<-chan struct{}) {
	var (
		out     []Entry
		changed [2]<-chan struct{}
	)
	for i, role := range []string{"origin", "edge"} {
		books, more := c.sets[role].Follow()
		changed[i] = more
		out = append(out, c.entries(role, books)...)
	}
	slices.SortStableFunc(out, func(a, b Entry) int { return a.Time.Compare(b.Time) })
	return out, changed
}

func (c *azureCloud) entries(role string, books []fakeazure.Entry) []Entry {
	c.machines.mu.Lock()
	defer c.machines.mu.Unlock()
	by := func(vm string) azureMachine {
		for _, m := range c.machines.byID {
			if m.vm == vm {
				return m
			}
		}
		return azureMachine{}
	}
	about := map[string][]string{} // the machines of an event
	for _, b := range books {
		if b.What == fakeazure.Announced {
			about[b.Event] = b.VMs
		}
	}
	var out []Entry
	for _, b := range books {
		e := Entry{Time: b.Time, What: Other, ID: by(b.VM).ID}
		event, _, _ := strings.Cut(b.Event, "-")
		event = b.Type + " event " + event
		switch b.What {
		case fakeazure.Announced, fakeazure.Started, fakeazure.Cancelled:
			for _, vm := range about[b.Event] {
				m := by(vm)
				e.ID = m.ID
				switch b.What {
				case fakeazure.Announced:
					e.What, e.Text = Notice, event+" is scheduled for "+m.Name
				case fakeazure.Started:
					e.Text = event + " begins for " + m.Name
				default:
					e.Text = event + " is cancelled for " + m.Name
				}
				out = append(out, e)
			}
			continue
		case fakeazure.Acked:
			e.What, e.Text = Answer, event+" is acknowledged by "+by(b.VM).Name
		case fakeazure.Gone:
			e.What, e.Text, e.Late = Gone, by(b.VM).Name+" is deleted, acknowledged", b.Late
			if b.Late {
				e.Text = by(b.VM).Name + " is deleted, its time was over"
			}
		case fakeazure.Enabled:
			e.Text = by(b.VM).Name + " switches on the scheduled events of the " + role + "s in its zone"
		case fakeazure.Throttled:
			e.Text = by(b.VM).Name + " asks more than five times in a second"
		case fakeazure.Refused:
			e.Text = by(b.VM).Name + " acknowledges an event that there is not"
		default:
			continue
		}
		out = append(out, e)
	}
	return out
}
