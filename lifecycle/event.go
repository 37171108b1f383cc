// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/metadata/alibaba"
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
	// Test tells that it is about no instance: a test notification, or the
	// confirmation of a subscription.
	Test bool `json:"test,omitempty"`
	// Shape says for people what the event came in.
	Shape string `json:"shape"`
}

// MaxEvent is the size of the largest event that is read: more does not fit into
// a message of SQS, SNS or EventBridge.
const MaxEvent = 256 << 10

// LongestWait is the longest time that a hook of Auto Scaling waits, however
// often it is told to. What an older event is about is over.
const LongestWait = 48 * time.Hour

// maxWraps bounds how deep an event may be wrapped, a text counting as a layer.
// The deepest that is seen in the field is a list of SQS records, the text of one,
// the envelope of SNS, its text, and an event of EventBridge in that.
const maxWraps = 6

// ParseEvent reads an event of Amazon's Auto Scaling as any of its ways delivers
// it: EventBridge's object or its detail alone, the flat body of an SQS message,
// the envelope of SNS, a list with one record, and these in each other. Of Alibaba
// Cloud it reads what a template of OOS can be made to hand over, an object of the
// placeholders of a lifecycle hook:
//
//	{"regionId":"cn-hangzhou","instanceIds":["i-1","i-2"],"lifecycleHookId":"ash-1","lifecycleActionToken":"..."}
//
// Fields that nobody knows are skipped.
func ParseEvent(data []byte) (Event, error) {
	switch {
	case len(data) > MaxEvent:
		return Event{}, fmt.Errorf("the event is larger than %d KiB, which no message of the cloud is", MaxEvent>>10)
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		return Event{}, errors.New("the event is written in UTF-16; UTF-8 is needed")
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	return parseEvent(data, 0, nil)
}

// The names of shapes, for people.
const (
	shapeEventBridge = "EventBridge event"
	shapeDetail      = "detail of an EventBridge event"
	shapeFlat        = "Auto Scaling notification"
	shapeTest        = "test notification"
	shapeSNS         = "SNS envelope"
	shapeSQS         = "SQS record"
	shapeList        = "list of records"
	shapeOOS         = "OOS placeholders"
)

// parseEvent unwraps one layer. outer are the names of those around it.
func parseEvent(data []byte, depth int, outer []string) (Event, error) {
	if depth > maxWraps {
		return Event{}, fmt.Errorf("the event is wrapped more than %d times", maxWraps)
	}
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return Event{}, errors.New(where("is empty", outer))
	}
	if data[0] == '"' {
		// Messages carry their JSON as a text.
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return Event{}, syntaxError(err, outer)
		}
		return parseEvent([]byte(text), depth+1, outer)
	}
	o, err := readObject(data)
	if err != nil {
		return Event{}, syntaxError(err, outer)
	}
	inner := func(shape string, raw json.RawMessage) (Event, error) {
		return parseEvent(raw, depth+1, append(slices.Clip(outer), shape))
	}
	switch {
	case o.has("Records"):
		raw, name, err := oneRecord(o, "Records", "body", "Sns")
		if err != nil {
			return Event{}, err
		}
		shape := shapeSQS
		if name == "Sns" {
			shape = shapeList
		}
		return inner(shape, raw)
	case o.has("Messages"): // as `aws sqs receive-message` prints it
		raw, _, err := oneRecord(o, "Messages", "Body", "body")
		if err != nil {
			return Event{}, err
		}
		return inner(shapeSQS, raw)
	case o.has("Message") && (o.has("Type") || o.has("TopicArn")):
		kind, err := o.text("Type", maxWord)
		if err != nil {
			return Event{}, err
		}
		if kind == "SubscriptionConfirmation" || kind == "UnsubscribeConfirmation" {
			return Event{Test: true, Shape: strings.Join(append(outer, shapeSNS+", "+kind), ", ")}, nil
		}
		return inner(shapeSNS, o.fields["Message"])
	case o.has("detail"):
		return eventBridge(o, outer)
	case o.has("LifecycleTransition"), o.has("EC2InstanceId"), o.has("Event"):
		shape := shapeDetail
		if o.has("Service") || o.has("RequestId") || o.has("AccountId") {
			shape = shapeFlat
		}
		return action(o, "", append(slices.Clip(outer), shape))
	case o.has("lifecycleActionToken"), o.has("lifecycleHookId"):
		return oosAction(o, append(slices.Clip(outer), shapeOOS))
	case o.has("body"): // one record alone
		return inner(shapeSQS, o.fields["body"])
	case o.has("Body"):
		return inner(shapeSQS, o.fields["Body"])
	}
	return Event{}, fmt.Errorf("%s: it has %s", where("is not one of Auto Scaling", outer), o.names())
}

func eventBridge(o object, outer []string) (Event, error) {
	kind, err := o.text("detail-type", maxWord)
	if err != nil {
		return Event{}, err
	}
	detail, err := readObject(o.fields["detail"])
	if err != nil {
		return Event{}, syntaxError(err, append(slices.Clip(outer), shapeEventBridge))
	}
	if !detail.has("LifecycleTransition") && !detail.has("Event") && !strings.Contains(kind, "Lifecycle Action") {
		if kind == "" {
			kind = "it has no detail-type"
		}
		return Event{}, fmt.Errorf("%s: %s", where("is not about a lifecycle hook", outer), clean(kind))
	}
	e, err := action(detail, kind, append(slices.Clip(outer), shapeEventBridge))
	if err != nil || e.Test {
		return e, err
	}
	if at, err := o.time("time"); err == nil && !at.IsZero() {
		e.Time = at
	}
	return e, nil
}

// action reads the fields of one lifecycle action.
func action(o object, detailType string, shapes []string) (Event, error) {
	e := Event{Shape: strings.Join(shapes, ", ")}
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
		return Event{Test: true, Shape: strings.Join(append(shapes[:len(shapes)-1:len(shapes)-1], shapeTest), ", ")}, nil
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
func oosAction(o object, shapes []string) (Event, error) {
	e := Event{Shape: strings.Join(shapes, ", "), Kind: Terminate}
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

// maxInstances is more than one scaling activity is about.
const maxInstances = 1000

// ids reads a list of instance ids: as a list, or as the text that a placeholder
// becomes, which is that of a list or has commas between.
func (o object) ids(name string) ([]string, error) {
	if !o.has(name) {
		return nil, nil
	}
	var ids []string
	raw := o.fields[name]
	var text string
	if json.Unmarshal(raw, &text) == nil {
		if raw = json.RawMessage(strings.TrimSpace(text)); len(raw) == 0 || raw[0] != '[' {
			ids = strings.FieldsFunc(text, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
			raw = nil
		}
	}
	if raw != nil && json.Unmarshal(raw, &ids) != nil {
		return nil, fmt.Errorf("the event's %s is no list of instances", name)
	}
	for _, id := range ids {
		if id == "" || len(id) > maxWord || strings.ContainsFunc(id, notInID) {
			return nil, fmt.Errorf("the event's %s holds what is no instance id: %q", name, clean(id))
		}
	}
	if len(ids) > maxInstances {
		return nil, fmt.Errorf("the event's %s holds %d instances", name, len(ids))
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

const providerAWS = "aws"

// NoticeID is the ID of a notice about what the cloud wants with an instance. It
// is made of what every source knows, so that the same wish has the same ID
// whichever of them saw it first; a token, which only some are told, is no part
// of it.
func NoticeID(provider, instance string, kind Kind) string {
	return provider + "/" + instance + "/" + string(kind)
}

// Notice is what the event tells the machine that it is about.
func (e Event) Notice(now time.Time) Notice {
	n := Notice{ID: NoticeID(e.Hook.Provider, e.InstanceID, e.Kind), Source: "event", Kind: e.Kind, Who: "Auto Scaling", Received: now}
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
			h.Timeout, h.Limit = alibabaTimeout(max(len(e.Instances)-1, 0)), now.Add(alibaba.LongestWait)
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

// object is one JSON object with each name once.
type object struct{ fields map[string]json.RawMessage }

// readObject takes one object apart. Which of two equal names counts differs from
// reader to reader, so both are refused: one could be checked and the other used.
func readObject(data []byte) (object, error) {
	o := object{fields: map[string]json.RawMessage{}}
	dec := json.NewDecoder(bytes.NewReader(data))
	first, err := dec.Token()
	switch {
	case err != nil:
		return o, err
	case first != json.Delim('{'):
		return o, errNoObject
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return o, err
		}
		key, ok := name.(string)
		if !ok {
			return o, errNoObject
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return o, err
		}
		if _, twice := o.fields[key]; twice {
			return o, fmt.Errorf("%q stands in it twice", clean(key))
		}
		o.fields[key] = raw
	}
	if _, err := dec.Token(); err != nil {
		return o, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return o, errors.New("something follows after it; one event at a time")
	}
	return o, nil
}

var errNoObject = errors.New("it is no JSON object")

// has reports whether a field is there with a value.
func (o object) has(name string) bool {
	raw, ok := o.fields[name]
	return ok && string(raw) != "null"
}

// text reads a field that must be a text where it is there.
func (o object) text(name string, most int) (string, error) {
	if !o.has(name) {
		return "", nil
	}
	var s string
	if json.Unmarshal(o.fields[name], &s) != nil {
		return "", fmt.Errorf("the event's %s is no text", name)
	}
	if utf8.RuneCountInString(s) > most || strings.ContainsFunc(s, unicode.IsControl) || strings.ContainsRune(s, utf8.RuneError) {
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

// names lists some of the fields, for who has to find out what this is.
func (o object) names() string {
	const most = 8
	names := make([]string, 0, len(o.fields))
	for name := range o.fields {
		names = append(names, fmt.Sprintf("%q", clean(name)))
	}
	slices.Sort(names)
	switch n := len(names); {
	case n == 0:
		return "no fields"
	case n > most:
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more fields", n-most)
	}
	return strings.Join(names, ", ")
}

// oneRecord finds what the only record of a list has below one of some names.
func oneRecord(o object, list string, names ...string) (json.RawMessage, string, error) {
	var records []json.RawMessage
	if json.Unmarshal(o.fields[list], &records) != nil {
		return nil, "", fmt.Errorf("the event's %s is no list", list)
	}
	if len(records) != 1 {
		return nil, "", fmt.Errorf("the event's %s has %d entries: hand them over one by one", list, len(records))
	}
	record, err := readObject(records[0])
	if err != nil {
		return nil, "", fmt.Errorf("the entry of %s: %w", list, err)
	}
	for _, name := range names {
		if record.has(name) {
			return record.fields[name], name, nil
		}
	}
	return nil, "", fmt.Errorf("the entry of %s has %s, and no %s", list, record.names(), strings.Join(names, " or "))
}

// where says of which layer something is said.
func where(what string, outer []string) string {
	if len(outer) == 0 {
		return "the event " + what
	}
	return "what is in the " + outer[len(outer)-1] + " " + what
}

func syntaxError(err error, outer []string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New(where("is cut off", outer))
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("%s: %w, at byte %d", where("is no JSON", outer), err, syntax.Offset)
	}
	// It quotes the value that does not fit, whole: a number may have a million digits.
	return fmt.Errorf("%s: %s", where("cannot be read", outer), plain.Truncate(err.Error(), 200))
}

// clean cuts a word of the event for a message.
func clean(s string) string { return plain.Truncate(s, 60) }
