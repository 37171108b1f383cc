// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// maxEvents: an instance has one or two system events at a time.
const maxEvents = 100

// SystemEvent is something that Alibaba Cloud is going to do with the instance, or does.
type SystemEvent struct {
	// ID is the cloud's, Type such as SystemMaintenance.Reboot.
	ID, Type string
	// State is Scheduled, Executing, Inquiring, Avoided, Executed, Canceled or Failed; "" where it is not told.
	State string
	// NotBefore is when it is done; zero is not told.
	NotBefore time.Time
	Reason    string
}

// Over tells that nothing more comes of the event.
func (e SystemEvent) Over() bool {
	switch e.State {
	case "Avoided", "Executed", "Canceled", "Failed":
		return true
	}
	return false
}

// Waits tells that nothing comes of the event before somebody has agreed to it.
func (e SystemEvent) Waits() bool { return e.State == "Inquiring" }

// ParseSystemEvents reads the list of active system events.
//
// The list is documented, and what is in it is not. So the names are taken from the API that tells of the same events
// (DescribeInstancesFullStatus), in any spelling: EventId, eventId and event-id are the same, and a type or a state may be
// a word or an object with a Name. With an error the events that could be read are given back, too.
func ParseSystemEvents(body []byte) ([]SystemEvent, error) {
	body = bytes.TrimSpace(body)
	if len(body) == 0 || bytes.EqualFold(body, []byte("none")) {
		// The documentation gives "None" for its example.
		return nil, nil
	}
	var items list[json.RawMessage]
	if err := json.Unmarshal(body, &items); err != nil {
		return nil, fmt.Errorf("the system events are not the JSON expected: %w", err)
	}
	if len(items) > maxEvents {
		return nil, fmt.Errorf("%d system events for one instance", len(items))
	}
	var (
		events []SystemEvent
		errs   []error
	)
	for _, raw := range items {
		e, err := parseSystemEvent(raw)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		events = append(events, e)
	}
	return events, errors.Join(errs...)
}

func parseSystemEvent(raw json.RawMessage) (SystemEvent, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
		return SystemEvent{}, fmt.Errorf("a system event is no object: %s", cloud.Quote(string(raw)))
	}
	texts := map[string]string{}
	for name, v := range fields {
		if text := textOf(v); text != "" {
			texts[plain(name)] = text
		}
	}
	pick := func(names ...string) string {
		for _, n := range names {
			if v := texts[n]; v != "" {
				return v
			}
		}
		return ""
	}
	e := SystemEvent{
		ID: pick("eventid", "id"), Type: pick("eventtype", "instanceeventtype", "eventname", "type", "name"),
		State:  pick("eventcyclestatus", "instanceeventcyclestatus", "eventstatus", "status", "state"),
		Reason: cloud.Printable(pick("reason", "reasoncode", "description")),
	}
	// As events are named elsewhere: Instance:SystemMaintenance.Reboot:Scheduled.
	if parts := strings.Split(e.Type, ":"); len(parts) > 1 {
		e.Type = parts[1]
		if len(parts) > 2 && e.State == "" {
			e.State = parts[2]
		}
	}
	if !isWord(e.Type) || e.State != "" && !isWord(e.State) {
		return SystemEvent{}, fmt.Errorf("a system event is of type %s in state %s", cloud.Quote(e.Type), cloud.Quote(e.State))
	}
	e.State = strings.ToUpper(e.State[:min(1, len(e.State))]) + e.State[min(1, len(e.State)):]
	if at := pick("notbefore", "scheduledtime", "executetime"); at != "" {
		var err error
		if e.NotBefore, err = parseTime(at); err != nil {
			return SystemEvent{}, fmt.Errorf("system event %s is for %s", e.Type, cloud.Quote(at))
		}
	}
	if e.ID == "" {
		// Two events of one type for the same time are one.
		e.ID = e.Type + "@" + e.NotBefore.Format(timeFormat)
	}
	if !isToken(e.ID) && !strings.Contains(e.ID, "@") {
		return SystemEvent{}, fmt.Errorf("the id of a system event is %s", cloud.Quote(e.ID))
	}
	return e, nil
}

// textOf gives a text, or the name in an object of code and name.
func textOf(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var named map[string]json.RawMessage
	if json.Unmarshal(raw, &named) == nil {
		for name, v := range named {
			if plain(name) == "name" && json.Unmarshal(v, &s) == nil {
				return s
			}
		}
	}
	return ""
}

// plain is a name in the spelling that all have in common.
func plain(name string) string {
	return strings.ToLower(strings.NewReplacer("-", "", "_", "", ".", "").Replace(name))
}
