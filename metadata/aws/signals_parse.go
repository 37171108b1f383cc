// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Target states that AWS documents. They are where the group wants the instance to be, not where it is.
const (
	TargetInService        = "InService"
	TargetTerminated       = "Terminated"
	TargetDetached         = "Detached"
	TargetStandby          = "Standby"
	TargetWarmedTerminated = "Warmed:Terminated"
)

// The states of a scheduled event.
const (
	EventActive    = "active"
	EventCanceled  = "canceled"
	EventCompleted = "completed"
)

// maxEvents: an instance has one or two scheduled events at a time.
const maxEvents = 100

func isState(r rune) bool { return isName(r) || r == ':' }

var (
	// targetState has room for states that AWS has yet to name.
	targetState = word{first: isAlphanum, rest: isState, least: 1, most: 64}
	eventID     = word{first: isAlphanum, rest: isName, least: 1, most: 128}
)

// ParseTargetState reads a target lifecycle state, one that we have never heard of too.
func ParseTargetState(body []byte) (string, error) {
	v := strings.TrimSpace(string(body))
	if !targetState.MatchString(v) {
		return "", fmt.Errorf("%s is no lifecycle state", cloud.Quote(v))
	}
	return v, nil
}

// Interruption is what a Spot instance is told some two minutes before its end.
type Interruption struct {
	Action string // terminate, stop, hibernate
	Time   time.Time
}

// ParseInstanceAction reads spot/instance-action.
func ParseInstanceAction(body []byte) (Interruption, error) {
	var doc struct {
		Action string `json:"action"`
		Time   string `json:"time"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return Interruption{}, fmt.Errorf("the instance action is not the JSON expected: %w", err)
	}
	if !plainWord.MatchString(doc.Action) {
		return Interruption{}, fmt.Errorf("the instance action is %s", cloud.Quote(doc.Action))
	}
	at, err := parseTime(doc.Time)
	if err != nil {
		return Interruption{}, fmt.Errorf("the time of the instance action: %w", err)
	}
	return Interruption{Action: doc.Action, Time: at}, nil
}

// ParseTerminationTime reads spot/termination-time, the older form. What is no time means that none is set: AWS
// documents so.
func ParseTerminationTime(body []byte) (Interruption, error) {
	at, err := parseTime(strings.TrimSpace(string(body)))
	if err != nil {
		return Interruption{}, nil //nolint:nilerr // see above
	}
	return Interruption{Action: "terminate", Time: at}, nil
}

// ScheduledEvent is one maintenance event of this instance.
type ScheduledEvent struct {
	ID    string
	Code  string // instance-stop, instance-retirement, instance-reboot, system-reboot, ...
	State string // EventActive, ...
	// NotBefore is when it happens at the earliest; zero is not told.
	NotBefore   time.Time
	Description string
}

// ParseScheduled reads events/maintenance/scheduled. One event that cannot be read takes none of the others away: they
// come with the error.
func ParseScheduled(body []byte) ([]ScheduledEvent, error) {
	var docs []struct {
		EventID     string `json:"EventId"`
		Code        string `json:"Code"`
		State       string `json:"State"`
		NotBefore   string `json:"NotBefore"`
		Description string `json:"Description"`
	}
	if err := json.Unmarshal(body, &docs); err != nil {
		return nil, fmt.Errorf("the scheduled events are not the JSON expected: %w", err)
	}
	if len(docs) > maxEvents {
		return nil, fmt.Errorf("more than %d scheduled events", maxEvents)
	}
	var (
		out  []ScheduledEvent
		errs []error
		seen = map[string]bool{}
	)
	for _, d := range docs {
		e := ScheduledEvent{ID: d.EventID, Code: d.Code, State: strings.ToLower(d.State), Description: cloud.Printable(d.Description)}
		if e.State == "" {
			e.State = EventActive
		}
		switch {
		case !plainWord.MatchString(e.Code):
			errs = append(errs, fmt.Errorf("the code of a scheduled event is %s", cloud.Quote(e.Code)))
			continue
		case e.State != EventActive && e.State != EventCanceled && e.State != EventCompleted:
			errs = append(errs, fmt.Errorf("the state of a scheduled event is %s", cloud.Quote(d.State)))
			continue
		case e.ID == "":
			// Older events had none; two of one kind at one time are one.
			e.ID = e.Code
		case !eventID.MatchString(e.ID):
			errs = append(errs, fmt.Errorf("the id of a scheduled event is %s", cloud.Quote(e.ID)))
			continue
		}
		var err error
		if e.NotBefore, err = eventTime(d.NotBefore); err != nil {
			// That something will happen counts more than when.
			errs = append(errs, fmt.Errorf("the time of scheduled event %s: %w", e.ID, err))
		}
		if seen[e.ID] {
			continue
		}
		seen[e.ID] = true
		out = append(out, e)
	}
	return out, errors.Join(errs...)
}

// eventTime reads a time of a scheduled event: 21 Jan 2019 09:00:43 GMT. Such a text names its zone and is always GMT.
func eventTime(s string) (time.Time, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse("2 Jan 2006 15:04:05 GMT", s); err == nil {
		return at.UTC(), nil
	}
	return parseTime(s)
}

func parseTime(s string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339, s)
	if err != nil || at.Year() < 2000 || at.Year() > 9000 {
		return time.Time{}, fmt.Errorf("%s is no time", cloud.Quote(s))
	}
	return at.UTC(), nil
}
