// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// The types of scheduled events that Azure documents.
const (
	EventTerminate = "Terminate"
	EventPreempt   = "Preempt"
	EventReboot    = "Reboot"
	EventRedeploy  = "Redeploy"
	EventFreeze    = "Freeze"
)

// The states of an event. There is none for one that is over: it is in the document no longer.
const (
	StatusScheduled = "Scheduled"
	StatusStarted   = "Started"
)

// ResourceVM is the only type of resource that Azure documents.
const ResourceVM = "VirtualMachine"

// maxEvents is many times what a set has at a time.
const maxEvents = 2000

// Event is one scheduled event.
type Event struct {
	ID     string
	Type   string // EventTerminate, ..., or one that Azure has yet to name
	Status string // StatusScheduled, ...
	// ResourceType is what Resources are names of.
	ResourceType string
	Resources    []string
	// NotBefore is the earliest that it begins; zero is not told, or that it has begun.
	NotBefore   time.Time
	Description string
	Source      string // Platform, User
	// Duration is for how long the machine will be away or stand still: 0 is that it will not, negative not known.
	Duration time.Duration
}

// Is tells whether the event is of a type, whatever the case.
func (e Event) Is(kind string) bool { return strings.EqualFold(e.Type, kind) }

// Started tells that it has begun.
func (e Event) Started() bool { return strings.EqualFold(e.Status, StatusStarted) }

// About tells whether a machine is among its resources.
func (e Event) About(name string) bool {
	return name != "" && slices.ContainsFunc(e.Resources, func(r string) bool { return strings.EqualFold(r, name) })
}

// Others are its resources but the one of this name.
func (e Event) Others(name string) []string {
	var out []string
	for _, r := range e.Resources {
		if !strings.EqualFold(r, name) && !slices.ContainsFunc(out, func(o string) bool { return strings.EqualFold(o, r) }) {
			out = append(out, r)
		}
	}
	return out
}

func (e Event) equal(o Event) bool {
	return e.ID == o.ID && e.Type == o.Type && e.Status == o.Status && e.ResourceType == o.ResourceType &&
		slices.Equal(e.Resources, o.Resources) && e.NotBefore.Equal(o.NotBefore)
}

// Document is all that is scheduled for a set of machines.
type Document struct{ Events []Event }

// ParseDocument reads /metadata/scheduledevents. One event that cannot be read takes none of the others away: they come
// with the error. An event that is listed twice is one.
func ParseDocument(body []byte) (Document, error) {
	var doc struct {
		Events *[]json.RawMessage `json:"Events"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return Document{}, fmt.Errorf("the scheduled events are not the JSON expected: %w", err)
	}
	switch {
	case doc.Events == nil:
		return Document{}, errors.New("the scheduled events are not the JSON expected: no Events in it")
	case len(*doc.Events) > maxEvents:
		return Document{}, fmt.Errorf("%d scheduled events", len(*doc.Events))
	}
	var (
		out  Document
		errs []error
	)
	seen := map[string]bool{}
	for _, raw := range *doc.Events {
		e, err := parseEvent(raw)
		if err != nil {
			errs = append(errs, err)
		}
		if e.ID == "" || seen[e.ID] {
			continue
		}
		seen[e.ID] = true
		out.Events = append(out.Events, e)
	}
	return out, errors.Join(errs...)
}

// parseEvent reads one event. With an id the rest of it counts although there is an error.
func parseEvent(raw json.RawMessage) (Event, error) {
	var d struct {
		EventID   string   `json:"EventId"`
		EventType string   `json:"EventType"`
		Resources []string `json:"Resources"`
		// Of what follows none is worth losing the event for.
		ResourceType      json.RawMessage `json:"ResourceType"`
		EventStatus       json.RawMessage `json:"EventStatus"`
		NotBefore         json.RawMessage `json:"NotBefore"`
		Description       json.RawMessage `json:"Description"`
		EventSource       json.RawMessage `json:"EventSource"`
		DurationInSeconds json.RawMessage `json:"DurationInSeconds"`
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return Event{}, fmt.Errorf("a scheduled event is not the JSON expected: %w", err)
	}
	switch {
	case !isWord(d.EventID):
		return Event{}, fmt.Errorf("the id of a scheduled event is %s", cloud.Quote(d.EventID))
	case !isWord(d.EventType):
		return Event{}, fmt.Errorf("the type of scheduled event %s is %s", d.EventID, cloud.Quote(d.EventType))
	}
	e := Event{
		ID: d.EventID, Type: d.EventType, Status: cloud.Printable(text(d.EventStatus)), ResourceType: cloud.Printable(text(d.ResourceType)),
		Description: cloud.Printable(text(d.Description)), Source: cloud.Printable(text(d.EventSource)), Duration: -1,
		Resources: slices.DeleteFunc(d.Resources, func(r string) bool { return !isWord(r) }),
	}
	var seconds float64
	if json.Unmarshal(d.DurationInSeconds, &seconds) == nil && seconds >= 0 && seconds < 1e6 {
		e.Duration = time.Duration(seconds * float64(time.Second))
	}
	if s := strings.TrimSpace(text(d.NotBefore)); s != "" {
		at, err := eventTime(s)
		if err != nil {
			// That something will happen counts more than when.
			return e, fmt.Errorf("the time of scheduled event %s: %w", e.ID, err)
		}
		e.NotBefore = at
	}
	return e, nil
}

// text is the string in raw, "" where it is none.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// eventTime reads a time of an event: Fri, 20 Nov 2026 08:05:00 GMT.
func eventTime(s string) (time.Time, error) {
	for _, layout := range []string{http.TimeFormat, "Mon, 2 Jan 2006 15:04:05 GMT", time.RFC3339} {
		if at, err := time.Parse(layout, s); err == nil && at.Year() >= 2000 && at.Year() <= 9000 {
			return at.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%s is no time", cloud.Quote(s))
}
