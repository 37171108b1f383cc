// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxEvent is EventBridge's maximum size, in bytes.
	MaxEvent = 256 << 10
	// LongestWait is any hook's longest wait, with all heartbeats.
	LongestWait = 48 * time.Hour
)

// Event is the message of a lifecycle hook.
type Event struct {
	InstanceID string `json:"instance_id,omitempty"`
	// Instances is set if there are several.
	Instances []string `json:"instances,omitempty"`
	Group     string   `json:"group,omitempty"`
	Kind      Kind     `json:"kind,omitempty"`
	// Hook.Name is "" if the event lacks it.
	Hook Hook `json:"hook"`
	// HookWait is the cloud's longest wait; 0 if unknown.
	HookWait time.Duration `json:"-"`
	// Time is the creation time; zero if unknown.
	Time time.Time `json:"time,omitzero"`
	// Test notifications concern no instance.
	Test bool `json:"test,omitempty"`
	// Shape is the event's format, for logs.
	Shape string `json:"format"`
}

// For returns the event for one instance; false if it concerns others.
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

// Notice returns the event's notice and its time.
func (e Event) Notice(now time.Time) (Notice, time.Time) {
	n := OfGroup(e.Hook.Provider, e.Kind, map[Kind]string{
		Terminate: "scale-in", Reimage: "root volume replaced", Park: "return to the warm pool", Launch: "launch", Resume: "start out of the warm pool",
	}[e.Kind])
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
	if (e.Kind == Park || e.Kind == Resume || e.Kind == Reimage) && !e.Time.IsZero() {
		return n, e.Time // a redelivery may follow the machine's return or end
	}
	return n, now
}

// Stale reports an event older than [LongestWait].
func (e Event) Stale(now time.Time) bool {
	return !e.Time.IsZero() && now.Sub(e.Time) > LongestWait
}

// Fields are those of an event by their exact names: encoding/json ignores case.
type Fields map[string]any

// ReadEvent also reads a JSON string, as an OOS template may send it.
func ReadEvent(data []byte) (Fields, error) {
	if len(data) > MaxEvent {
		return nil, fmt.Errorf("the event is larger than %d KiB, which no message of the cloud is", MaxEvent>>10)
	}
	data = bytes.TrimSpace(bytes.TrimPrefix(data, []byte("\ufeff")))
	var text string
	if json.Unmarshal(data, &text) == nil {
		data = []byte(text)
	}
	if decoded, err := base64.StdEncoding.DecodeString(string(data)); err == nil && bytes.HasPrefix(decoded, []byte("{")) {
		data = decoded // as Alibaba's queue has it
	}
	var o Fields
	if err := json.Unmarshal(data, &o); err != nil && len(data) > 0 {
		return nil, errors.New("the event cannot be read: " + Printable(err.Error()))
	}
	if len(o) == 0 {
		return nil, errors.New("the event is empty")
	}
	return o, nil
}

// Has reports whether one of the fields is set.
func (o Fields) Has(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return o[name] != nil })
}

// Texts reads optional string fields.
func (o Fields) Texts(fields map[string]*string) error {
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

// Time parses RFC 3339; zero if invalid.
func (o Fields) Time(name string) time.Time {
	text, _ := o[name].(string)
	at, _ := time.Parse(time.RFC3339, text)
	return at
}

var wellFormed = regexp.MustCompile(`^[a-zA-Z0-9-]+$`)

// IsID reports whether a text can be the id of an instance or region.
func IsID(text string) bool { return len(text) <= MaxText && wellFormed.MatchString(text) }
