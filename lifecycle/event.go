// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Event is what a cloud's hook tells its target about one instance.
type Event struct {
	InstanceID string `json:"instance_id,omitempty"`
	// Instances are all that the event is about, where they are several.
	Instances []string `json:"instances,omitempty"`
	Group     string   `json:"group,omitempty"`
	Kind      Kind     `json:"kind,omitempty"`
	// Hook waits for our word. Its name is "" where the event does not tell it.
	Hook Hook `json:"hook"`
	// Time is when the cloud made the event; zero is not known.
	Time time.Time `json:"time,omitzero"`
	// Test: this is a test notification, which is about no instance.
	Test bool `json:"test,omitempty"`
	// Shape says for people what the event came in.
	Shape string `json:"shape"`
}

// MaxEvent is the size of the largest event that is read: EventBridge sends no larger one.
const MaxEvent = 256 << 10

const (
	providerAWS     = "aws"
	providerAlibaba = alibaba.Name
	// hookSeparator is in no id and in no token.
	hookSeparator = ","
)

// LongestWait is the longest time that a hook of Auto Scaling waits, however
// often it is told to. What an older event is about is over.
const LongestWait = 48 * time.Hour

// The names of shapes, for people.
const (
	shapeEventBridge = "EventBridge event"
	shapeDetail      = "detail of an EventBridge event"
	shapeFlat        = "Auto Scaling notification"
	shapeTest        = "test notification"
	shapeOOS         = "OOS placeholders"
)

// ParseEvent reads an event of Amazon's Auto Scaling: EventBridge's object, its detail alone, or the flat body of a
// notification. Of Alibaba Cloud it reads what a template of OOS can be made to hand over, an object of the
// placeholders of a lifecycle hook:
//
//	{"regionId":"cn-hangzhou","instanceIds":["i-1","i-2"],"lifecycleHookId":"ash-1","lifecycleActionToken":"..."}
//
// Unknown fields are skipped.
func ParseEvent(data []byte) (Event, error) {
	if len(data) > MaxEvent {
		return Event{}, fmt.Errorf("the event is larger than %d KiB, which no message of the cloud is", MaxEvent>>10)
	}
	data = bytes.TrimSpace(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")))
	var text string
	if json.Unmarshal(data, &text) == nil { // a template of OOS may hand the object over as a text
		data = []byte(text)
	}
	o, err := readObject(data)
	if err != nil {
		return Event{}, fmt.Errorf("the event %w", err)
	}
	switch {
	case o.has("detail"):
		return eventBridge(o)
	case o.has("LifecycleTransition"), o.has("EC2InstanceId"), o.has("Event"):
		if o.has("Service") || o.has("RequestId") || o.has("AccountId") {
			return action(o, "", shapeFlat)
		}
		return action(o, "", shapeDetail)
	case o.has("lifecycleActionToken"), o.has("lifecycleHookId"):
		return oosAction(o)
	}
	if err := o.envelope(); err != nil {
		return Event{}, err
	}
	return Event{}, fmt.Errorf("the event is not one of Auto Scaling: it has %s", o.names())
}

// envelope returns an error with the command that unwraps it, if o is what SNS or SQS wrap an event in.
func (o object) envelope() error {
	switch {
	case o.has("Message") && (o.has("Type") || o.has("TopicArn")):
		return errors.New("this is an SNS envelope: pass its Message (`jq -r .Message`)")
	case o.has("Messages"):
		return errors.New("this is SQS output: pass the Body of its message (`jq -r '.Messages[0].Body'`)")
	case bytes.Contains(o["Records"], []byte(`"Sns"`)):
		return errors.New("this is a list of SNS records: pass the Message of one (`jq -r '.Records[0].Sns.Message'`)")
	case o.has("Records"):
		return errors.New("this is a list of SQS records: pass the body of one (`jq -r '.Records[0].body'`)")
	case o.has("Body"):
		return errors.New("this is an SQS message: pass its Body (`jq -r .Body`)")
	case o.has("body"):
		return errors.New("this is an SQS record: pass its body (`jq -r .body`)")
	}
	return nil
}

func eventBridge(o object) (Event, error) {
	kind, err := o.text("detail-type", maxWord)
	if err != nil {
		return Event{}, err
	}
	detail, err := readObject(o["detail"])
	if err != nil {
		return Event{}, fmt.Errorf("the event's detail %w", err)
	}
	if !detail.has("LifecycleTransition") && !detail.has("Event") && !strings.Contains(kind, "Lifecycle Action") {
		if kind == "" {
			kind = "it has no detail-type"
		}
		return Event{}, fmt.Errorf("the event is not about a lifecycle hook: %s", clean(kind))
	}
	e, err := action(detail, kind, shapeEventBridge)
	if err != nil || e.Test {
		return e, err
	}
	if at, err := o.time("time"); err == nil && !at.IsZero() {
		e.Time = at
	}
	return e, nil
}

// action reads the fields of one lifecycle action.
func action(o object, detailType, shape string) (Event, error) {
	e := Event{Shape: shape}
	var transition, origin, destination string
	var errs []error
	take := func(to *string, name string, most int) {
		var err error
		if *to, err = o.text(name, most); err != nil {
			errs = append(errs, err)
		}
	}
	var test string
	take(&test, "Event", maxWord)
	if test == "autoscaling:TEST_NOTIFICATION" {
		return Event{Test: true, Shape: shapeTest}, nil
	}
	take(&e.InstanceID, "EC2InstanceId", maxWord)
	take(&e.Group, "AutoScalingGroupName", maxName)
	take(&e.Hook.Name, "LifecycleHookName", maxName)
	take(&e.Hook.Token, "LifecycleActionToken", maxWord)
	take(&transition, "LifecycleTransition", maxWord)
	take(&origin, "Origin", maxWord)
	take(&destination, "Destination", maxWord)
	if len(errs) > 0 {
		return Event{}, errors.Join(errs...)
	}
	if e.InstanceID == "" {
		return Event{}, errors.New("the event names no instance: EC2InstanceId is missing")
	}
	if strings.ContainsFunc(e.InstanceID, notInID) {
		return Event{}, fmt.Errorf("the event's EC2InstanceId is no instance id: %q", e.InstanceID)
	}
	if transition == "" && strings.Contains(detailType, "terminate Lifecycle") {
		transition = "autoscaling:EC2_INSTANCE_TERMINATING"
	} else if transition == "" && strings.Contains(detailType, "launch Lifecycle") {
		transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
	}
	const pool = "WarmPool"
	switch transition {
	case "autoscaling:EC2_INSTANCE_TERMINATING":
		if e.Kind = Terminate; destination == pool {
			e.Kind = Park
		}
	case "autoscaling:EC2_INSTANCE_LAUNCHING":
		// A machine that starts into the pool has to be made ready like any other:
		// what follows from there is told by another event.
		if e.Kind = Launch; origin == pool {
			e.Kind = Resume
		}
		e.Hook.Launching = true
	case "":
		if test != "" {
			return Event{}, fmt.Errorf("the event tells what has happened (%s), and is not of a lifecycle hook", clean(test))
		}
		return Event{}, errors.New("the event does not say what happens: LifecycleTransition is missing")
	default:
		return Event{}, fmt.Errorf("the event's LifecycleTransition is neither a launch nor a termination: %q", clean(transition))
	}
	e.Hook.Provider, e.Hook.Group = providerAWS, e.Group
	// A time that cannot be read is one that is not known: nothing hangs on it.
	e.Time, _ = o.time("Time")
	return e, nil
}

// oosAction reads the placeholders of a hook of Alibaba Cloud. They do not say
// what happens; lifecycleTransition, which whoever writes the template adds, is
// SCALE_IN where it is missing.
func oosAction(o object) (Event, error) {
	e := Event{Shape: shapeOOS, Kind: Terminate}
	var transition string
	var errs []error
	for name, to := range map[string]*string{
		"lifecycleHookId": &e.Hook.Name, "lifecycleActionToken": &e.Hook.Token,
		"scalingGroupId": &e.Group, "lifecycleTransition": &transition,
	} {
		var err error
		if *to, err = o.text(name, maxName); err != nil {
			errs = append(errs, err)
		}
	}
	ids, err := o.ids("instanceIds")
	if errs = append(errs, err); errors.Join(errs...) != nil {
		return Event{}, errors.Join(errs...)
	}
	switch {
	case len(ids) == 0:
		return Event{}, errors.New("the event names no instance: instanceIds is missing or empty")
	case e.Hook.Name == "" || e.Hook.Token == "":
		return Event{}, errors.New("the event names no lifecycle action: it has to have lifecycleHookId and lifecycleActionToken")
	case strings.Contains(e.Hook.Name+e.Hook.Token, "${") || strings.Contains(e.Hook.Name+e.Hook.Token, hookSeparator):
		return Event{}, errors.New("the event's lifecycleHookId or lifecycleActionToken is a placeholder that nobody has replaced")
	}
	switch transition {
	case "", "SCALE_IN":
	case "SCALE_OUT":
		e.Kind, e.Hook.Launching = Launch, true
	default:
		return Event{}, fmt.Errorf("the event's lifecycleTransition is neither SCALE_IN nor SCALE_OUT: %q", clean(transition))
	}
	e.InstanceID = ids[0]
	if len(ids) > 1 {
		e.Instances = ids
	}
	e.Hook.Provider, e.Hook.Group = providerAlibaba, e.Group
	e.Time, _ = o.time("time")
	return e, nil
}

// ids reads a list of instance ids: as a list, or as the text that a placeholder becomes, which is that of a list or has
// commas between.
func (o object) ids(name string) ([]string, error) {
	if !o.has(name) {
		return nil, nil
	}
	raw := []byte(o[name])
	var ids []string
	var text string
	if json.Unmarshal(raw, &text) == nil {
		raw = []byte(strings.TrimSpace(text))
	}
	if text != "" && !bytes.HasPrefix(raw, []byte{'['}) {
		ids = strings.FieldsFunc(text, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
	} else if json.Unmarshal(raw, &ids) != nil {
		return nil, fmt.Errorf("the event's %s is no list of instances", name)
	}
	for _, id := range ids {
		if id == "" || len(id) > maxWord || strings.ContainsFunc(id, notInID) {
			return nil, fmt.Errorf("the event's %s holds what is no instance id: %q", name, clean(id))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// For is the event as it concerns one instance; false where it does not.
func (e Event) For(instance string) (Event, bool) {
	if len(e.Instances) == 0 {
		return e, e.InstanceID == instance
	}
	if !slices.Contains(e.Instances, instance) {
		return e, false
	}
	e.InstanceID = instance
	if !e.Hook.Launching {
		e.Hook.Others = slices.DeleteFunc(slices.Clone(e.Instances), func(id string) bool { return id == instance })
	}
	return e, true
}

// Notice is what the event tells the machine that it is about.
func (e Event) Notice(now time.Time) Notice {
	n := Notice{ID: cloud.GroupNotice(e.Hook.Provider, e.Kind), Source: "event", Kind: e.Kind, Who: "Auto Scaling", Received: now}
	if (e.Kind == Park || e.Kind == Resume) && !e.Time.IsZero() {
		// A queue may deliver it again when the machine has come back, or gone; see [Manager.past].
		n.Received = e.Time
	}
	n.Reason = map[Kind]string{
		Terminate: "scale-in", Park: "return to the warm pool", Launch: "launch", Resume: "start out of the warm pool",
	}[e.Kind]
	if e.Group != "" {
		n.Reason += map[bool]string{true: " into group ", false: " of group "}[e.Kind == Launch] + e.Group
	}
	if e.Hook.Name != "" {
		n.Reason += ", hook " + e.Hook.Name
	}
	if e.Hook.Name != "" && (e.Hook.Group != "" || e.Hook.Provider == providerAlibaba) {
		h := e.Hook
		if h.Provider == providerAlibaba { // whose hooks are known by their tokens, and wait no longer than that
			h.ID, h.Limit = h.Name, now.Add(alibaba.LongestWait)
		}
		n.Hook = &h
	}
	return n
}

// Stale reports whether what the event is about is over: no hook waits that long.
func (e Event) Stale(now time.Time) bool {
	return !e.Time.IsZero() && now.Sub(e.Time) > LongestWait
}

// Lengths of what an event may name. A name of Auto Scaling has at most 255
// characters, a token 36.
const (
	maxName = 255
	maxWord = 128
)

func notInID(r rune) bool {
	return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

// object is one JSON object, by the exact names of its fields.
type object map[string]json.RawMessage

func readObject(data []byte) (object, error) {
	var o object
	if len(data) == 0 {
		return nil, errors.New("is empty")
	}
	// An error of json quotes the value that does not fit, whole: a number may have a million digits.
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, errors.New("cannot be read: " + plain.Truncate(err.Error(), 200))
	}
	if o == nil {
		return nil, errors.New("cannot be read: it is no JSON object")
	}
	return o, nil
}

// has reports whether a field is there with a value.
func (o object) has(name string) bool {
	raw, ok := o[name]
	return ok && string(raw) != "null"
}

// text reads a field that must be a text if it is there.
func (o object) text(name string, most int) (string, error) {
	if !o.has(name) {
		return "", nil
	}
	var s string
	if json.Unmarshal(o[name], &s) != nil {
		return "", fmt.Errorf("the event's %s is no text", name)
	}
	if len([]rune(s)) > most || strings.ContainsFunc(s, unicode.IsControl) {
		return "", fmt.Errorf("the event's %s is too long, or has characters that no name has", name)
	}
	return s, nil
}

func (o object) time(name string) (time.Time, error) {
	s, err := o.text(name, maxWord)
	if err != nil || s == "" {
		return time.Time{}, err
	}
	return time.Parse(time.RFC3339, s)
}

// names lists the first fields, so that a person can recognise the text.
func (o object) names() string {
	names := slices.Sorted(maps.Keys(o))
	if len(names) == 0 {
		return "no fields"
	}
	return fmt.Sprintf("%q", clean(strings.Join(names, ", ")))
}

// clean cuts a word of the event for a message.
func clean(s string) string { return plain.Truncate(s, 60) }
