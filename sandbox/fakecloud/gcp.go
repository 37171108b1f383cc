// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/amsagent/amsagent/sandbox/fakegcp"
	"github.com/amsagent/amsagent/sandbox/internal/books"
)

// gcpNumber is the number of the project.
const gcpNumber = "123456789012"

// gcpCloud is a project on Google Cloud with Spot VMs in two managed instance
// groups. It has no service of its own that is asked anything: each machine has its
// metadata server, and no word of the machine's changes what becomes of it.
type gcpCloud struct {
	o      Options
	cancel context.CancelFunc
	// ctx is that of those who follow the books of the machines.
	ctx context.Context //nolint:containedctx // it ends with the cloud, not with a call
	all sync.WaitGroup

	mu       sync.Mutex
	machines map[string]*fakegcp.Server
	books    *books.Books[Entry]
}

// NewGCP starts a project. A machine that is preempted is switched off after 30 s,
// or after the Lead where that is less.
func NewGCP(ctx context.Context, o Options) (Cloud, error) {
	if o.Lead = cmp.Or(o.Lead, DefaultLead); o.Lead > fakegcp.Sample().Window() {
		o.Lead = fakegcp.Sample().Window()
	}
	c := &gcpCloud{o: o, machines: map[string]*fakegcp.Server{}}
	c.books = books.New[Entry](&c.mu)
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c, nil
}

func (c *gcpCloud) Name() string        { return "gcp" }
func (c *gcpCloud) Title() string       { return "GCP" }
func (c *gcpCloud) Lead() time.Duration { return c.o.Lead }

func (c *gcpCloud) Close() error {
	c.cancel()
	c.mu.Lock()
	var errs []error
	for _, s := range c.machines {
		errs = append(errs, s.Close())
	}
	c.mu.Unlock()
	c.all.Wait()
	return errors.Join(errs...)
}

type gcpMetadata struct{ *fakegcp.Server }

func (c *gcpCloud) Machine(ctx context.Context, m Machine) (Metadata, error) {
	i := fakegcp.Sample()
	i.ID, i.Name = m.ID, m.Name
	i.NICs[0].MAC, i.NICs[0].IPv4, i.NICs[0].Public = m.MAC, m.Address, ""
	i.Attributes = map[string]string{"amsagent-role": m.Role, "created-by": fakegcp.GroupOf(gcpNumber, i.Zone, m.Role+"s")}
	i.Number = gcpNumber
	s, err := fakegcp.Start(ctx, fakegcp.Options{Instance: &i, Log: c.o.Log})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.machines[m.ID] != nil || c.ctx.Err() != nil {
		return nil, errors.Join(fmt.Errorf("machine %q cannot be made", m.ID), s.Close())
	}
	c.machines[m.ID] = s
	c.all.Go(func() { c.follow(m, s) })
	return gcpMetadata{s}, nil
}

// follow copies the books of a machine.
func (c *gcpCloud) follow(m Machine, s *fakegcp.Server) {
	read := 0
	for {
		all, more := s.Follow()
		c.mu.Lock()
		for _, b := range all[read:] {
			e := Entry{Time: b.Time, What: Other, ID: m.ID, Text: m.Name + " " + b.Text, Late: b.Late}
			switch b.What {
			case fakegcp.Notice:
				e.What = Notice
			case fakegcp.Gone:
				e.What = Gone
			}
			c.books.Write(e)
		}
		read = len(all)
		c.mu.Unlock()
		select {
		case <-more:
		case <-c.ctx.Done():
			return
		}
	}
}

func (m gcpMetadata) Environ() []string {
	return []string{"AMSAGENT_GCP_ENDPOINT=" + m.Endpoint()}
}

func (m gcpMetadata) Fail(f Fault) error {
	m.ClearFaults()
	return m.AddFault(fakegcp.Fault{Status: f.Status, Hang: f.Hang, Reset: f.Reset, Truncate: f.Truncate})
}

func (m gcpMetadata) Heal() { m.ClearFaults() }

func (c *gcpCloud) machine(id string) (*fakegcp.Server, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.machines[id]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("no machine %q in this cloud", id)
}

// ScaleIn preempts the machine: of a scale-in of its group it would hear nothing
// before the power button.
func (c *gcpCloud) ScaleIn(id string) error {
	s, err := c.machine(id)
	if err == nil {
		s.Preempt(c.o.Lead)
	}
	return err
}

func (c *gcpCloud) Off(id string) error {
	s, err := c.machine(id)
	if err == nil {
		s.Off()
	}
	return err
}

// inOrder gives the books of all machines as one, by the time of the entries.
func (c *gcpCloud) inOrder() ([]Entry, <-chan struct{}) {
	entries, more := c.books.Follow()
	slices.SortStableFunc(entries, func(a, b Entry) int { return a.Time.Compare(b.Time) })
	return entries, more
}

func (c *gcpCloud) Books() []Entry {
	entries, _ := c.inOrder()
	return entries
}

func (c *gcpCloud) WaitFor(ctx context.Context, fits func(Entry) bool) (Entry, error) {
	return books.WaitFor(ctx, c.Title(), c.inOrder, fits)
}
