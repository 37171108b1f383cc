// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/amsagent/amsagent/sandbox/fakealibaba"
	"github.com/amsagent/amsagent/sandbox/internal/books"
)

// alibabaHook is the hook of both groups.
const alibabaHook = "ash-drain"

type alibabaCloud struct {
	o        Options
	cloud    *fakealibaba.Cloud
	machines *machines[Machine]
}

// NewAlibaba starts Auto Scaling with a hook for the end of each machine. One that
// says nothing is waited for as long as the hook's own time; nothing in the metadata
// tells of it.
func NewAlibaba(ctx context.Context, o Options) (Cloud, error) {
	o.Lead = cmp.Or(o.Lead, DefaultLead)
	c, err := fakealibaba.StartCloud(ctx, fakealibaba.CloudOptions{Longest: o.Limit, Log: o.Log})
	if err != nil {
		return nil, err
	}
	hook := fakealibaba.Hook{ID: alibabaHook, Timeout: o.Lead}
	c.Group("asg-origins", hook)
	c.Group("asg-edges", hook)
	return &alibabaCloud{o: o, cloud: c, machines: newMachines[Machine]()}, nil
}

func (c *alibabaCloud) Name() string        { return "alibaba" }
func (c *alibabaCloud) Title() string       { return "Alibaba Cloud" }
func (c *alibabaCloud) Lead() time.Duration { return c.o.Lead }
func (c *alibabaCloud) Close() error        { return c.cloud.Close() }

type alibabaMetadata struct {
	*fakealibaba.Server
	cloud *fakealibaba.Cloud
}

func (c *alibabaCloud) Machine(ctx context.Context, m Machine) (Metadata, error) {
	i := fakealibaba.Sample()
	i.ID, i.Name, i.Hostname = m.ID, m.Name, m.Name
	i.NICs = []fakealibaba.NIC{{MAC: m.MAC, IPv4s: []string{m.Address}}}
	i.Tags = map[string]string{"Name": m.Name, "amsagent-role": m.Role, "amsagent-group": m.Role + "s"}
	s, err := fakealibaba.Start(ctx, fakealibaba.Options{Instance: &i, Cloud: c.cloud, Log: c.o.Log})
	if err != nil {
		return nil, err
	}
	c.machines.add(m.ID, m)
	if err := c.cloud.Attach("asg-"+m.Role+"s", "", s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return alibabaMetadata{s, c.cloud}, nil
}

func (m alibabaMetadata) Environ() []string {
	return []string{
		"AMSAGENT_ALIBABA_ENDPOINT=" + m.Endpoint(),
		"AMSAGENT_ALIBABA_ESS_ENDPOINT=" + m.cloud.Endpoint(), "AMSAGENT_ALIBABA_ECS_ENDPOINT=" + m.cloud.Endpoint(),
	}
}

func (m alibabaMetadata) Fail(f Fault) error {
	m.ClearFaults()
	return m.AddFault(fakealibaba.Fault{Status: f.Status, Hang: f.Hang, Reset: f.Reset, Truncate: f.Truncate})
}

func (m alibabaMetadata) Heal() { m.ClearFaults() }

func (c *alibabaCloud) ScaleIn(id string) error { return c.cloud.ScaleIn(id) }

// Off is nothing to the group: its hook waits for word or for its time.
func (c *alibabaCloud) Off(id string) error {
	_, err := c.machines.find(id)
	return err
}

func (c *alibabaCloud) Books() []Entry { return c.entries(c.cloud.Books()) }

func (c *alibabaCloud) WaitFor(ctx context.Context, fits func(Entry) bool) (Entry, error) {
	return books.WaitFor(ctx, c.Title(), func() ([]Entry, <-chan struct{}) {
		entries, more := c.cloud.Follow()
		return c.entries(entries), more
	}, fits)
}

// entries puts the group's books in the words of every cloud.
func (c *alibabaCloud) entries(all []fakealibaba.Entry) []Entry {
	var out []Entry
	for _, b := range all {
		m, _ := c.machines.find(b.Instance) // none for who is none of ours: his lines are left out
		if m.Name == "" {
			continue
		}
		e := Entry{Time: b.Time, What: Other, ID: b.Instance}
		hook := "hook " + strconv.Quote(b.Hook)
		switch b.What {
		case fakealibaba.State:
			if b.Text != "Removing" {
				continue
			}
			e.What, e.Text = Notice, m.Name+" is "+b.Text
		case fakealibaba.Wait:
			e.Text = hook + " begins to wait for " + m.Name
		case fakealibaba.Heartbeat:
			e.What, e.Text = Heartbeat, hook+" gets a heartbeat from "+m.Name+": "+b.Text
		case fakealibaba.Completed:
			e.What, e.Text = Answer, hook+" is completed by "+m.Name+": "+b.Text
		case fakealibaba.TimedOut:
			e.Text = hook + " has expired for " + m.Name
		case fakealibaba.Gone:
			e.What, e.Text, e.Late = Gone, m.Name+" is released: "+b.Text, b.Text == fakealibaba.ByTime
		default:
			continue
		}
		out = append(out, e)
	}
	return out
}
