// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeazure

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// The types of events that Azure documents.
const (
	Terminate = "Terminate"
	Preempt   = "Preempt"
	Reboot    = "Reboot"
)

// approveDelay is from an acknowledgement until the event begins.
const approveDelay = 200 * time.Millisecond

// SetOptions says how a set behaves; the zero value works.
type SetOptions struct {
	// EnableDelay is from the first call of a machine in a zone until the machines there see events. Zero: at once.
	EnableDelay time.Duration
	// StartedTime is for how long an event that has begun is listed; default 500 ms.
	StartedTime time.Duration
	// Log gets a line for each entry of the books; default none.
	Log *slog.Logger
}

// Set is what machines of one placement group share: the document of their events.
type Set struct {
	*fakes.EventLog[Entry]
	o SetOptions

	mu          sync.Mutex
	incarnation int
	events      []*event
	enabled     map[string]time.Time // zones, and since when
}

type event struct {
	Event
	over, late bool        // late: it began because its time was over
	due        *time.Timer // begins it when its time has come
}

// Event is one scheduled event.
type Event struct {
	ID   string `json:"id"` // empty: one is made
	Type string `json:"type"`
	// VMs are the names of the machines that it is about.
	VMs []string `json:"vms"`
	// Lead is from now until NotBefore, which has whole seconds.
	Lead        time.Duration `json:"lead_ns"`
	NotBefore   time.Time     `json:"not_before"`
	Source      string        `json:"source"` // default User for deletes, Platform for others
	Description string        `json:"description"`
	// Duration is for how long the machines are away; 0: not known.
	Duration time.Duration `json:"duration_ns"`
	// Acked: it was acknowledged. Started: it has begun.
	Acked   bool `json:"acked"`
	Started bool `json:"started"`
}

// Kinds of entries in the event log.
const (
	Announced = "announced" // it is in the document
	moved     = "moved"     // it has another time
	Acked     = "acked"     // a machine said that it may begin
	Refused   = "refused"   // a machine acknowledged an unknown event
	Started   = "started"
	Over      = "over" // the machines are back
	Gone      = "gone" // the machine is no more
	Cancelled = "cancelled"
	Enabled   = "enabled"   // the first call of a zone
	Throttled = "throttled" // a machine asked too often
)

// Entry is one line of the books.
type Entry struct {
	Time time.Time `json:"time"`
	What string    `json:"what"`
	// VM is the name of the machine that spoke, or that is gone.
	VM    string `json:"vm,omitempty"`
	Event string `json:"event,omitempty"` // its id
	Type  string `json:"type,omitempty"`
	// VMs are the machines of an event that is announced, begins or is cancelled.
	VMs []string `json:"vms,omitempty"`
	// Late: the event began because its time was over.
	Late bool `json:"late,omitempty"`
}

// NewSet makes a set of machines.
func NewSet(name string, o SetOptions) *Set {
	o.StartedTime = cmp.Or(o.StartedTime, 500*time.Millisecond)
	s := &Set{o: o, incarnation: 1, enabled: map[string]time.Time{}}
	s.EventLog = fakes.NewEventLog[Entry]("set "+name, &s.mu, o.Log)
	return s
}

// Close ends everything that was under way.
func (s *Set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		e.over = true
	}
	return nil
}

// Announce schedules an event and returns its id.
func (s *Set) Announce(in Event) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case in.Type == "" || len(in.VMs) == 0:
		return "", errors.New("announcing an event: it needs a type and a machine")
	case in.Lead < 0:
		return "", errors.New("announcing an event: a negative lead")
	}
	if in.ID == "" {
		in.ID = fakes.GUID()
	}
	if in.Source == "" {
		in.Source = "Platform"
		if in.Type == Terminate {
			in.Source = "User"
		}
	}
	in.NotBefore = wholeSecond(time.Now().Add(in.Lead))
	in.VMs = slices.Clone(in.VMs)
	e := &event{Event: in}
	s.events = append(s.events, e)
	s.incarnation++
	s.write(Entry{What: Announced, Event: e.ID, Type: e.Type, VMs: e.VMs})
	s.wait(e)
	return e.ID, nil
}

// wholeSecond rounds up, which keeps a lead: the document has seconds.
func wholeSecond(t time.Time) time.Time { return t.Add(time.Second - 1).Truncate(time.Second) }

// wait lets an event begin when its time has come. The lock is held.
func (s *Set) wait(e *event) {
	e.due = s.after(e, time.Until(e.NotBefore), func() { s.begin(e, true) })
}

// after runs something about an event later, under the lock.
func (s *Set) after(e *event, d time.Duration, do func()) *time.Timer {
	return time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !e.over {
			do()
		}
	})
}

// begin begins an event. The lock is held.
func (s *Set) begin(e *event, late bool) {
	if e.Started {
		return
	}
	e.Started, e.late = true, late
	s.incarnation++
	s.write(Entry{What: Started, Event: e.ID, Type: e.Type, VMs: e.VMs, Late: late})
	s.after(e, s.o.StartedTime, func() { s.finish(e) })
}

// finish ends it. The lock is held.
func (s *Set) finish(e *event) {
	s.drop(e)
	if e.Type != Terminate && e.Type != Preempt {
		s.write(Entry{What: Over, Event: e.ID, Type: e.Type, Late: e.late})
		return
	}
	for _, vm := range e.VMs {
		s.write(Entry{What: Gone, VM: vm, Event: e.ID, Type: e.Type, Late: e.late})
	}
}

func (s *Set) drop(e *event) {
	e.over = true
	s.events = slices.DeleteFunc(s.events, func(o *event) bool { return o == e })
	s.incarnation++
}

func (s *Set) find(id string) *event {
	for _, e := range s.events {
		if strings.EqualFold(e.ID, id) {
			return e
		}
	}
	return nil
}

// on changes a listed event. do names the action in errors.
func (s *Set) on(id, do string, change func(*event) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(id)
	if e == nil {
		return fmt.Errorf("%s event %q: no such event", do, id)
	}
	return change(e)
}

// Begin lets an event begin at once, as a failure of hardware does.
func (s *Set) Begin(id string) error {
	return s.on(id, "beginning", func(e *event) error {
		s.begin(e, true)
		return nil
	})
}

// Move gives an event that was not acknowledged another time, and returns it.
func (s *Set) Move(id string, to time.Time) (at time.Time, err error) {
	at = wholeSecond(to)
	return at, s.on(id, "moving", func(e *event) error {
		if e.Acked || e.Started {
			return fmt.Errorf("moving event %q: it is acknowledged, or has begun", id)
		}
		e.due.Stop()
		e.NotBefore = at
		s.incarnation++
		s.write(Entry{What: moved, Event: e.ID, Type: e.Type})
		s.wait(e)
		return nil
	})
}

// Cancel takes an event back.
func (s *Set) Cancel(id string) error {
	return s.on(id, "cancelling", func(e *event) error {
		s.drop(e)
		s.write(Entry{What: Cancelled, Event: e.ID, Type: e.Type, VMs: e.VMs})
		return nil
	})
}

// ack is the word of a machine that an event may begin. It reports whether there is
// such an event. Any machine of the set may say it, for all.
func (s *Set) ack(vm, id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(id)
	if e == nil {
		s.write(Entry{What: Refused, VM: vm, Event: id})
		return false
	}
	s.write(Entry{What: Acked, VM: vm, Event: e.ID, Type: e.Type})
	e.Acked = true
	together := []*event{e}
	if e.Type == Terminate {
		// Of several deletes at one time none goes before all may.
		for _, o := range s.events {
			if o == e || o.Type != Terminate || o.Started || !o.NotBefore.Equal(e.NotBefore) {
				continue
			}
			if !o.Acked {
				return true
			}
			together = append(together, o)
		}
	}
	for _, o := range together {
		s.after(o, approveDelay, func() { s.begin(o, false) })
	}
	return true
}

// Events are those that are listed.
func (s *Set) Events() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Event
	for _, e := range s.events {
		out = append(out, e.Event)
	}
	return out
}

// document returns the events that a machine in a zone sees.
func (s *Set) document(vm, zone string) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	since, ok := s.enabled[zone]
	if !ok {
		since = time.Now()
		s.enabled[zone] = since
		s.write(Entry{What: Enabled, VM: vm})
	}
	if time.Since(since) < s.o.EnableDelay {
		return map[string]any{"DocumentIncarnation": 1, "Events": []any{}}
	}
	list := []any{}
	for _, e := range s.events {
		list = append(list, e.document())
	}
	return map[string]any{"DocumentIncarnation": s.incarnation, "Events": list}
}

func (e *event) document() map[string]any {
	status, notBefore := "Scheduled", e.NotBefore.UTC().Format(http.TimeFormat)
	if e.Started {
		status, notBefore = "Started", ""
	}
	seconds := -1
	if e.Duration > 0 && e.Type != Terminate && e.Type != Preempt {
		seconds = int(e.Duration / time.Second)
	}
	return map[string]any{
		"EventId": e.ID, "EventType": e.Type, "ResourceType": "VirtualMachine", "Resources": e.VMs,
		"EventStatus": status, "NotBefore": notBefore, "Description": e.Description, "EventSource": e.Source, "DurationInSeconds": seconds,
	}
}

// throttled notes that a machine asked too often.
func (s *Set) throttled(vm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(Entry{What: Throttled, VM: vm})
}

// write puts a line into the books. The lock is held.
func (s *Set) write(e Entry) {
	e.Time = time.Now()
	s.Write(e)
}
