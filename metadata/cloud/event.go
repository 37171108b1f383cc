// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxEvent is the size of the largest event that is read: EventBridge sends no larger one.
	MaxEvent = 256 << 10
	// LongestWait is the longest time that a hook of any cloud waits, with all its heartbeats. An older event is over.
	LongestWait = 48 * time.Hour
)

// Event is the message of a lifecycle hook about one instance or several.
type Event struct {
	InstanceID string `json:"instance_id,omitempty"`
	// Instances are all that the event is about, if they are several.
	Instances []string `json:"instances,omitempty"`
	Group     string   `json:"group,omitempty"`
	Kind      Kind     `json:"kind,omitempty"`
	// Hook waits for our completion. Its name is "" if the event does not have it.
	Hook Hook `json:"hook"`
	// HookWait is how long the cloud's hooks wait at most; 0 is not known.
	HookWait time.Duration `json:"-"`
	// Time is when the cloud made the event; zero is not known.
	Time time.Time `json:"time,omitzero"`
	// Test: this is a test notification, which is about no instance.
	Test bool `json:"test,omitempty"`
	// Shape is the form of the event, for people.
	Shape string `json:"shape"`
}

// For returns the event as it concerns one instance; false if it does not.
func (e Event) For(instance string) (Event, bool) {
	if instance != e.InstanceID && !slices.Contains(e.Instances, instance) {
		return e, false
	}
	e.InstanceID = instance
	if !e.Hook.Launching {
		e.Hook.Others = slices.DeleteFunc(slices.Clone(e.Instances), func(id string) bool { return id == instance })
	}
	return e, true
}

// Notice returns what the event announces to its instance, and when that was announced.
func (e Event) Notice(now time.Time) (Notice, time.Time) {
	n := Notice{ID: GroupNotice(e.Hook.Provider, e.Kind), Kind: e.Kind, Who: "Auto Scaling"}
	n.Reason = map[Kind]string{
		Terminate: "scale-in", Reimage: "root volume replaced", Park: "return to the warm pool", Launch: "launch", Resume: "start out of the warm pool",
	}[e.Kind]
	if e.Group != "" {
		n.Reason += map[bool]string{true: " into group ", false: " of group "}[e.Kind == Launch] + e.Group
	}
	if e.Hook.Name != "" {
		n.Reason += ", hook " + e.Hook.Name
	}
	if e.Hook.ID != "" || e.Hook.Name != "" && e.Hook.Group != "" { // enough to complete it
		if e.HookWait > 0 {
			e.Hook.Limit = now.Add(e.HookWait)
		}
		n.Hook = &e.Hook
	}
	if (e.Kind == Park || e.Kind == Resume) && !e.Time.IsZero() {
		return n, e.Time // a queue may deliver it again after the machine has come back, or left
	}
	return n, now
}

// Stale reports whether the wait that the event is about is over.
func (e Event) Stale(now time.Time) bool {
	return !e.Time.IsZero() && now.Sub(e.Time) > LongestWait
}

// EventFields are the fields of an event by their exact names, which encoding/json would not insist on.
type EventFields map[string]any

// ReadEvent reads the JSON object that an event is. A template of OOS may hand it over as a text.
func ReadEvent(data []byte) (EventFields, error) {
	if len(data) > MaxEvent {
		return nil, fmt.Errorf("the event is larger than %d KiB, which no message of the cloud is", MaxEvent>>10)
	}
	data = bytes.TrimSpace(bytes.TrimPrefix(data, []byte("\ufeff")))
	var text string
	if json.Unmarshal(data, &text) == nil {
		data = []byte(text)
	}
	var o EventFields
	if err := json.Unmarshal(data, &o); err != nil && len(data) > 0 {
		return nil, errors.New("the event cannot be read: " + Printable(err.Error()))
	}
	if len(o) == 0 {
		return nil, errors.New("the event is empty")
	}
	return o, nil
}

// Has reports whether one of the fields has a value.
func (o EventFields) Has(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return o[name] != nil })
}

// Texts reads fields that must be texts if they are there.
func (o EventFields) Texts(fields map[string]*string) error {
	for name, to := range fields {
		text, ok := o[name].(string)
		switch {
		case o.Has(name) && !ok:
			return fmt.Errorf("the event's %s is no text", name)
		case utf8.RuneCountInString(text) > MaxText || strings.ContainsFunc(text, unicode.IsControl):
			return fmt.Errorf("the event's %s is too long, or has characters that no name has", name)
		}
		*to = text
	}
	return nil
}

// Time reads a time; zero if it is missing or invalid.
func (o EventFields) Time(name string) time.Time {
	text, _ := o[name].(string)
	at, _ := time.Parse(time.RFC3339, text)
	return at
}
