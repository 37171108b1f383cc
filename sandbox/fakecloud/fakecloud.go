// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakecloud is one interface to all fake clouds, for the demo and the end-to-end tests, which run the same scenario on
// each. Features of a single cloud are in fakeaws, fakeazure, fakealibaba and fakegcp.
//
// The API is not stable.
package fakecloud

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakegcp"
)

// Cloud is one emulated cloud with two scaling groups, origins and edges. Its books say what happened, oldest first.
type Cloud struct {
	*fakes.EventLog[Entry]
	// Name is the provider's, as --provider takes it, and Title what people call it.
	Name, Title string
	// Lead is how long after ScaleIn a machine is gone that says nothing.
	Lead time.Duration
	// Scaling is the account behind its scaling API; nil: it has none.
	Scaling *fakes.Scaling

	start   func(context.Context, *machine) (s service, environ []string, err error)
	scaleIn func([]*machine) error
	close   func() error

	mu       sync.Mutex
	machines map[string]*machine // by id
}

// machine is what a cloud knows of a machine.
type machine struct {
	Machine
	vm  string          // as Azure's events call it
	gcp *fakegcp.Server // on Google Cloud
	// interrupt announces that the machine ends at a time, as one of Spot.
	interrupt func(at time.Time) error
}

// Options says how to start. The zero value is a cloud that waits a minute.
type Options struct {
	// Lead is how long the cloud waits for a machine that says nothing; 0: 60 s, or what the cloud has if that is less.
	Lead time.Duration
	// Limit is how long it waits at most, from ScaleIn on, for a machine that asks it to wait; 0: the cloud's own.
	Limit time.Duration
	// Log gets what the fakes log; default nothing.
	Log *slog.Logger
}

// DefaultLead is that of the zero Options.
const DefaultLead = time.Minute

// Machine describes a machine to the cloud.
type Machine struct {
	// Name is what people call it; ID is the instance's id in this cloud's form.
	Name, ID, Address, Role, MAC string
}

// ID is the id of the n-th machine, in the form that ids have in a cloud.
func ID(cloud string, n int) string {
	switch cloud {
	case "azure": // the SMBIOS UUID
		return fmt.Sprintf("5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d%04x", n)
	case "alibaba":
		return fmt.Sprintf("i-bp13znx0m0me8cq%04d", n)
	case "gcp":
		return fmt.Sprintf("456789012345678%04d", n)
	}
	return fmt.Sprintf("i-0a1b2c3d4e5f6%04x", n)
}

// Metadata is the metadata service of one machine.
type Metadata struct {
	service
	// Environ are the settings, as KEY=value, by which the agent finds this cloud's metadata and API.
	Environ []string
}

// service is the metadata service of one machine in any of the clouds.
type service interface {
	Endpoint() string
	Close() error
	AddFault(f Fault) error
	ClearFaults()
}

// Fail spoils every answer, signals among them, until Heal. A second fault replaces the first.
func (m *Metadata) Fail(f Fault) error {
	m.ClearFaults()
	return m.AddFault(f)
}

// Heal releases requests that hang, too.
func (m *Metadata) Heal() { m.ClearFaults() }

// Fault is one way in which a metadata service fails.
type Fault = fakes.Fault

// Kinds of entries in the event log.
const (
	// Notice: the machine can see that it will be terminated.
	Notice = "notice"
	// Heartbeat: it asked the cloud to wait longer, and the cloud does.
	Heartbeat = "heartbeat"
	// Answer: the machine acknowledged the termination, or completed the hook.
	Answer = "answer"
	// Gone: the cloud has terminated it. Text has the reason: the machine's answer, or the end of the time.
	Gone = "gone"
	// Other is any other entry of this cloud.
	Other = "other"
)

// Entry is one line of the books.
type Entry struct {
	Time time.Time
	What string
	// ID is the machine's. Text is a complete line for the reader, with the machine's
	// name if it has one (`hook "drain" is completed by edge-1`).
	ID, Text string
	// Late marks a Gone because the cloud's time ran out.
	Late bool
}

// Of returns the entries about one machine, oldest first.
func Of(books []Entry, id string) []Entry {
	return slices.DeleteFunc(slices.Clone(books), func(e Entry) bool { return e.ID != id })
}

// Names are the clouds that Open knows.
func Names() []string { return []string{"aws", "azure", "alibaba", "gcp"} }

// Check reports whether Open knows a cloud of this name, before anything is begun.
func Check(name string) error {
	if !slices.Contains(Names(), name) {
		return fmt.Errorf("no such cloud: %q (known: %s)", name, strings.Join(Names(), ", "))
	}
	return nil
}

// Open starts the cloud of this name.
func Open(ctx context.Context, name string, o Options) (*Cloud, error) {
	if err := Check(name); err != nil {
		return nil, err
	}
	c := &Cloud{Name: name, Lead: cmp.Or(o.Lead, DefaultLead), machines: map[string]*machine{}}
	c.EventLog = fakes.NewEventLog[Entry](name, &c.mu, nil)
	switch name {
	case "azure":
		c.azure(o)
	case "alibaba":
		return c, c.alibaba(ctx, o)
	case "gcp":
		c.gcp(o)
	default:
		return c, c.aws(ctx, o)
	}
	return c, nil
}

// Machine starts the metadata service of one machine in the group of its role. With its environment the agent learns the id,
// the address, the role and the group (the role with an s) from it.
func (c *Cloud) Machine(ctx context.Context, in Machine) (*Metadata, error) {
	c.mu.Lock()
	m := &machine{Machine: in, vm: fmt.Sprintf("%ss_%d", in.Role, len(c.machines))}
	c.machines[in.ID] = m
	c.mu.Unlock()
	s, environ, err := c.start(ctx, m)
	if err != nil {
		return nil, err
	}
	return &Metadata{s, environ}, nil
}

// ScaleIn begins to take machines of one role away, together, in the way that this cloud is worst at waiting for. It returns
// at once.
func (c *Cloud) ScaleIn(ids ...string) error {
	var all []*machine
	for _, id := range ids {
		m, err := c.machine(id)
		if err != nil {
			return err
		}
		all = append(all, m)
	}
	return c.scaleIn(all)
}

// Interrupt announces that a Spot machine ends at a time. AWS and Alibaba Cloud do not take it away here.
func (c *Cloud) Interrupt(id string, at time.Time) error {
	m, err := c.machine(id)
	if err != nil {
		return err
	}
	return m.interrupt(at)
}

// Off reports that the machine has switched itself off, as a shutdown ends. It changes nothing in a cloud that waits for an
// answer or for its time; on Google Cloud a machine that was about to be taken is Gone, and not Late.
func (c *Cloud) Off(id string) error {
	m, err := c.machine(id)
	if err != nil {
		return err
	}
	if m.gcp != nil {
		m.gcp.Off()
	}
	return nil
}

// Close ends the cloud. The metadata services of its machines are closed by their owners.
func (c *Cloud) Close() error { return c.close() }

func (c *Cloud) machine(id string) (*machine, error) {
	m, ok := c.find(func(m *machine) bool { return m.ID == id })
	if !ok {
		return nil, fmt.Errorf("no machine %q in this cloud", id)
	}
	return m, nil
}

func (c *Cloud) find(fits func(*machine) bool) (*machine, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.machines {
		if fits(m) {
			return m, true
		}
	}
	return &machine{}, false
}

func (c *Cloud) write(e Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Write(e)
}
