// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// face is what all clouds have: their machines, and one log of what happens to them.
type face[M any] struct {
	*cloud.EventLog[Entry]
	name, title string
	lead        time.Duration

	mu       sync.Mutex
	machines map[string]M // by id
}

func newFace[M any](name, title string, o Options) *face[M] {
	f := &face[M]{name: name, title: title, lead: cmp.Or(o.Lead, DefaultLead), machines: map[string]M{}}
	f.EventLog = cloud.NewEventLog[Entry](title, &f.mu, nil)
	return f
}

func (f *face[M]) Name() string        { return f.name }
func (f *face[M]) Title() string       { return f.title }
func (f *face[M]) Lead() time.Duration { return f.lead }

func (f *face[M]) add(id string, m M) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.machines[id] = m
}

func (f *face[M]) find(id string) (M, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, ok := f.machines[id]
	if !ok {
		return m, fmt.Errorf("no machine %q in this cloud", id)
	}
	return m, nil
}

func (f *face[M]) write(e Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Write(e)
}

// Off changes nothing in a cloud that waits for an answer or for its time.
func (f *face[M]) Off(id string) error {
	_, err := f.find(id)
	return err
}

// service is the metadata service of one machine in any of the clouds.
type service interface {
	Endpoint() string
	Close() error
	AddFault(f Fault) error
	ClearFaults()
}

// metadata implements [Metadata].
type metadata struct {
	service
	environ []string
}

func (m metadata) Environ() []string { return m.environ }

func (m metadata) Fail(f Fault) error {
	m.ClearFaults()
	return m.AddFault(f)
}

func (m metadata) Heal() { m.ClearFaults() }

// groups is a cloud whose scaling groups have hooks: AWS and Alibaba Cloud.
type groups struct {
	*face[Machine]
	scaling *cloud.Scaling
	start   func(context.Context, Machine) (Metadata, error)
	scaleIn func(id string) error
	// notice reports whether an entry is the first sign that the machine must leave.
	notice func(cloud.Entry) bool
}

// follow translates the books of the groups into the words of every cloud.
func (c *groups) follow() { c.scaling.Each(c.translate) }

func (c *groups) Close() error { return c.scaling.Close() }

func (c *groups) Machine(ctx context.Context, m Machine) (Metadata, error) {
	c.add(m.ID, m)
	return c.start(ctx, m)
}

func (c *groups) ScaleIn(id string) error { return c.scaleIn(id) }

func (c *groups) translate(b cloud.Entry) {
	m, err := c.find(b.Instance)
	if err != nil {
		return // an instance without an agent
	}
	e := Entry{Time: b.Time, What: Other, ID: b.Instance}
	hook := fmt.Sprintf("hook %q", b.Hook)
	by, _ := c.find(b.By)
	switch {
	case c.notice(b):
		e.What, e.Text = Notice, m.Name+": "+string(b.What)+" "+b.Text
	case b.What == cloud.Wait:
		e.Text = hook + " begins to wait for " + m.Name
	case b.What == cloud.Heartbeat:
		e.What, e.Text = Heartbeat, hook+" gets a heartbeat from "+by.Name
	case b.What == cloud.Completed:
		e.What, e.Text = Answer, hook+" is completed by "+by.Name+": "+b.Text
	case b.What == cloud.TimedOut:
		e.Text = hook + " has expired (" + b.Text + ")"
	case b.What == cloud.Gone:
		e.What, e.Text, e.Late = Gone, m.Name+" is released: "+b.Text, b.Text == cloud.ByTime
	default:
		return
	}
	c.write(e)
}
