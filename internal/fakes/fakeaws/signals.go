// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"fmt"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// Signals are the metadata about the future of the instance. The zero value is an instance outside of any group, without notices.
type Signals struct {
	// Target is autoscaling/target-lifecycle-state; empty: not there.
	Target string `json:"target,omitempty"`
	// Spot is spot/instance-action; nil: not there.
	Spot *Interruption `json:"spot,omitempty"`
	// Scheduled is events/maintenance/scheduled; nil: not there.
	Scheduled []Scheduled `json:"scheduled,omitempty"`
}

// Interruption is the notice of a Spot instance.
type Interruption struct {
	Action string    `json:"action,omitempty"`
	Time   time.Time `json:"time"`
}

// Scheduled is one maintenance event.
type Scheduled struct {
	ID          string    `json:"id"`
	Code        string    `json:"code"`  // instance-reboot, instance-retirement, ...
	State       string    `json:"state"` // active, canceled, completed
	NotBefore   time.Time `json:"not_before"`
	Description string    `json:"description"`
}

// items calls meta with each item that is set.
func (s Signals) items(meta func(path, value string)) {
	meta("autoscaling/target-lifecycle-state", s.Target)
	if s.Spot != nil {
		at := s.Spot.Time.UTC().Format(time.RFC3339)
		meta("spot/instance-action", fmt.Sprintf(`{"action": %q, "time": %q}`, s.Spot.Action, at))
	}
	if s.Scheduled == nil {
		return
	}
	const date = "2 Jan 2006 15:04:05 GMT"
	list := []map[string]string{}
	for _, e := range s.Scheduled {
		list = append(list, map[string]string{
			"EventId": e.ID, "Code": e.Code, "State": e.State,
			"NotBefore": e.NotBefore.UTC().Format(date), "Description": e.Description,
		})
	}
	meta("events/maintenance/scheduled", fakes.JSON(list))
}

// SetTarget changes the target lifecycle state; empty: the item is not there.
func (s *Server) SetTarget(state string) { s.Update(func(i *Instance) { i.Signals.Target = state }) }

// Interrupt gives the notice of a Spot instance: action (terminate, stop, hibernate) happens at the time.
func (s *Server) Interrupt(action string, at time.Time) {
	s.Update(func(i *Instance) { i.Signals.Spot = &Interruption{Action: action, Time: at} })
}

// Schedule adds a maintenance event.
func (s *Server) Schedule(e Scheduled) {
	s.Update(func(i *Instance) { i.Signals.Scheduled = append(i.Signals.Scheduled, e) })
}

// ClearSignals takes everything back but the target state.
func (s *Server) ClearSignals() {
	s.Update(func(i *Instance) { i.Signals = Signals{Target: i.Signals.Target} })
}
