// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/amsagent/amsagent/sandbox/fakeaws"
	"github.com/amsagent/amsagent/sandbox/internal/books"
)

// awsHook is the hook of both groups.
const awsHook = "drain"

type awsCloud struct {
	o        Options
	scaling  *fakeaws.AutoScaling
	machines *machines[Machine]
}

// NewAWS starts Auto Scaling with a hook for the end of each machine. One that says
// nothing is waited for as long as the hook's heartbeat timeout.
func NewAWS(ctx context.Context, o Options) (Cloud, error) {
	o.Lead = cmp.Or(o.Lead, DefaultLead)
	scaling, err := fakeaws.StartAutoScaling(ctx, fakeaws.AutoScalingOptions{Log: o.Log})
	if err != nil {
		return nil, err
	}
	hook := fakeaws.Hook{Name: awsHook, HeartbeatTimeout: o.Lead, GlobalTimeout: o.Limit}
	scaling.Group("origins", hook)
	scaling.Group("edges", hook)
	return &awsCloud{o: o, scaling: scaling, machines: newMachines[Machine]()}, nil
}

func (c *awsCloud) Name() string        { return "aws" }
func (c *awsCloud) Title() string       { return "AWS" }
func (c *awsCloud) Lead() time.Duration { return c.o.Lead }
func (c *awsCloud) Close() error        { return c.scaling.Close() }

type awsMetadata struct {
	*fakeaws.Server
	scaling *fakeaws.AutoScaling
}

func (c *awsCloud) Machine(ctx context.Context, m Machine) (Metadata, error) {
	i := fakeaws.Sample()
	i.ID, i.Hostname = m.ID, m.Name+".internal"
	i.NICs[0].MAC, i.NICs[0].IPv4s, i.NICs[0].Public = m.MAC, []string{m.Address}, ""
	i.Tags = map[string]string{"Name": m.Name, "amsagent:role": m.Role}
	s, err := fakeaws.Start(ctx, fakeaws.Options{Instance: &i, Log: c.o.Log})
	if err != nil {
		return nil, err
	}
	c.machines.add(m.ID, m)
	if err := c.scaling.Attach(m.Role+"s", "", s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return awsMetadata{s, c.scaling}, nil
}

func (m awsMetadata) Environ() []string {
	return []string{"AMSAGENT_AWS_ENDPOINT=" + m.Endpoint(), "AMSAGENT_AWS_AUTOSCALING_ENDPOINT=" + m.scaling.Endpoint()}
}

func (m awsMetadata) Fail(f Fault) error {
	m.ClearFaults()
	return m.AddFault(fakeaws.Fault{Status: f.Status, Hang: f.Hang, Reset: f.Reset, Truncate: f.Truncate})
}

func (m awsMetadata) Heal() { m.ClearFaults() }

func (c *awsCloud) ScaleIn(id string) error { return c.scaling.Terminate(id) }

// Off is nothing to the group: its hook waits for word or for its time.
func (c *awsCloud) Off(id string) error {
	_, err := c.machines.find(id)
	return err
}

func (c *awsCloud) Books() []Entry { return c.entries(c.scaling.Books()) }

func (c *awsCloud) WaitFor(ctx context.Context, fits func(Entry) bool) (Entry, error) {
	return books.WaitFor(ctx, c.Title(), func() ([]Entry, <-chan struct{}) {
		entries, more := c.scaling.Follow()
		return c.entries(entries), more
	}, fits)
}

// entries puts the group's books in the words of every cloud.
func (c *awsCloud) entries(all []fakeaws.Entry) []Entry {
	var out []Entry
	late := map[string]bool{}
	for _, b := range all {
		m, _ := c.machines.find(b.Instance) // none for who is none of ours: his lines are left out
		if m.Name == "" {
			continue
		}
		e := Entry{Time: b.Time, What: Other, ID: b.Instance}
		hook := "hook " + strconv.Quote(b.Hook)
		by, _ := c.machines.find(b.By)
		switch b.What {
		case fakeaws.Target:
			if b.Text != "Terminated" {
				continue
			}
			e.What, e.Text = Notice, m.Name+" will be "+b.Text
		case fakeaws.Wait:
			e.Text = hook + " begins to wait"
		case fakeaws.Heartbeat:
			e.What, e.Text = Heartbeat, hook+" gets a heartbeat from "+by.Name
		case fakeaws.Completed:
			e.What, e.Text = Answer, hook+" is completed by "+by.Name+": "+b.Text
		case fakeaws.TimedOut:
			late[b.Instance] = true
			e.Text = hook + " has expired (" + b.Text + ")"
		case fakeaws.State:
			if b.Text != "Terminated" {
				continue
			}
			e.What, e.Text, e.Late = Gone, m.Name+" is "+b.Text, late[b.Instance]
		default:
			continue
		}
		out = append(out, e)
	}
	return out
}
