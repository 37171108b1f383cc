// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// ParseEvent parses a lifecycle event. Of AWS it is an EventBridge event, its detail, or the flat message of SNS and SQS; of
// Alibaba Cloud an object with the placeholders of a lifecycle hook, from an OOS template:
//
//	{"regionId":"cn-hangzhou","instanceIds":["i-1","i-2"],"lifecycleHookId":"ash-1","lifecycleActionToken":"..."}
func ParseEvent(data []byte) (e cloud.Event, err error) {
	o, err := readEvent(data)
	if err != nil {
		return cloud.Event{}, err
	}
	switch {
	case o.has("detail", "LifecycleTransition", "EC2InstanceId", "Event"):
		e, err = parseAWS(o)
	case o.has("lifecycleHookId", "lifecycleActionToken"):
		e, err = parseAlibaba(o)
	default:
		err = o.unknown()
	}
	if err != nil {
		return cloud.Event{}, err
	}
	return e, nil
}

// event keeps exact names: encoding/json ignores case.
type event map[string]any

// readEvent also reads a JSON string, as an OOS template may send it.
func readEvent(data []byte) (event, error) {
	if len(data) > cloud.MaxEvent {
		return nil, fmt.Errorf("the event is larger than %d KiB, which no message of the cloud is", cloud.MaxEvent>>10)
	}
	data = bytes.TrimSpace(bytes.TrimPrefix(data, []byte("\ufeff")))
	var text string
	if json.Unmarshal(data, &text) == nil {
		data = []byte(text)
	}
	var o event
	if err := json.Unmarshal(data, &o); err != nil && len(data) > 0 {
		return nil, errors.New("the event cannot be read: " + cloud.Printable(err.Error()))
	}
	if len(o) == 0 {
		return nil, errors.New("the event is empty")
	}
	return o, nil
}

func (o event) has(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return o[name] != nil })
}

// texts reads optional string fields.
func (o event) texts(fields map[string]*string) error {
	for name, to := range fields {
		text, ok := o[name].(string)
		switch {
		case o.has(name) && !ok:
			return fmt.Errorf("the event's %s is no text", name)
		case utf8.RuneCountInString(text) > cloud.MaxText || strings.ContainsFunc(text, unicode.IsControl):
			return fmt.Errorf("the event's %s is too long, or has characters that no name has", name)
		}
		*to = text
	}
	return nil
}

// time parses RFC 3339; zero if invalid.
func (o event) time(name string) time.Time {
	text, _ := o[name].(string)
	at, _ := time.Parse(time.RFC3339, text)
	return at
}

// unknown returns an error; for an SNS or SQS message with the command that unwraps it.
func (o event) unknown() error {
	for _, e := range []struct{ field, filter string }{
		{"Message", ".Message"},
		{"Messages", "'.Messages[0].Body'"},
		{"Records", "'.Records[0] | .Sns.Message // .body'"},
		{"Body", ".Body"},
		{"body", ".body"},
	} {
		if o.has(e.field) {
			return fmt.Errorf("this is an envelope of SNS or SQS: pass the event in it (`jq -r %s`)", e.filter)
		}
	}
	return fmt.Errorf("the event is not one of Auto Scaling: it has %s", cloud.Quote(strings.Join(slices.Sorted(maps.Keys(o)), ", ")))
}

var eventInstance = regexp.MustCompile(`^[a-zA-Z0-9-]+$`)

func parseAWS(o event) (cloud.Event, error) {
	detail, shape := o, "detail of an EventBridge event"
	switch d := o["detail"].(type) {
	case map[string]any:
		detail, shape = d, "EventBridge event"
	case nil:
		if o.has("Service") {
			shape = "Auto Scaling notification"
		}
	default:
		return cloud.Event{}, errors.New("the event's detail cannot be read: it is no JSON object")
	}
	e := cloud.Event{Shape: shape, Time: cmp.Or(o.time("time"), o.time("Time"))}
	var detailType, name, transition, origin, destination, action string
	err := errors.Join(o.texts(map[string]*string{"detail-type": &detailType}), detail.texts(map[string]*string{
		"Event": &name, "EC2InstanceId": &e.InstanceID, "AutoScalingGroupName": &e.Group,
		"LifecycleHookName": &e.Hook.Name, "LifecycleActionToken": &e.Hook.Token, "LifecycleTransition": &transition,
		"Origin": &origin, "Destination": &destination, "Action": &action,
	}))
	if err != nil {
		return e, err
	}
	if name == "autoscaling:TEST_NOTIFICATION" {
		return cloud.Event{Test: true, Shape: "test notification"}, nil
	}
	// An input transformer may have dropped the transition.
	if e.Kind, err = kindAWS(cmp.Or(transition, detailType, name), origin, destination, action); err != nil {
		return e, err
	}
	e.Hook.Launching = e.Kind == cloud.Launch || e.Kind == cloud.Resume
	if !eventInstance.MatchString(e.InstanceID) {
		return e, fmt.Errorf("the event's EC2InstanceId is missing or no instance id: %s", cloud.Quote(e.InstanceID))
	}
	e.Hook.Provider, e.Hook.Group = aws.Name, e.Group
	return e, nil
}

func kindAWS(what, origin, destination, action string) (cloud.Kind, error) {
	const pool = "WarmPool"
	switch what {
	case "autoscaling:EC2_INSTANCE_TERMINATING", "EC2 Instance-terminate Lifecycle Action":
		switch {
		case destination == pool:
			return cloud.Park, nil
		case action == "ReplaceRootVolume":
			return cloud.Reimage, nil
		}
		return cloud.Terminate, nil
	case "autoscaling:EC2_INSTANCE_LAUNCHING", "EC2 Instance-launch Lifecycle Action":
		// A machine that starts into the pool is prepared like any other; another event follows.
		if origin == pool {
			return cloud.Resume, nil
		}
		return cloud.Launch, nil
	case "":
		return "", errors.New("the event does not say what happens: LifecycleTransition is missing")
	}
	return "", fmt.Errorf("the event is not about a lifecycle hook: %s", cloud.Quote(what))
}

// parseAlibaba: no placeholder has the transition. A template can add lifecycleTransition; the default is SCALE_IN.
func parseAlibaba(o event) (cloud.Event, error) {
	e := cloud.Event{Kind: cloud.Terminate, HookWait: alibaba.LongestWait, Time: o.time("time"), Shape: "OOS placeholders"}
	var transition string
	err := o.texts(map[string]*string{
		"lifecycleHookId": &e.Hook.ID, "lifecycleActionToken": &e.Hook.Token,
		"scalingGroupId": &e.Group, "lifecycleTransition": &transition,
	})
	if err != nil {
		return e, err
	}
	ids, err := o.instances()
	switch {
	case err != nil:
		return e, err
	case e.Hook.ID == "" || e.Hook.Token == "" || strings.Contains(e.Hook.ID+e.Hook.Token, "${"):
		return e, errors.New("the event names no lifecycle action: lifecycleHookId or lifecycleActionToken is missing, or still a placeholder")
	case transition == "SCALE_OUT":
		e.Kind, e.Hook.Launching = cloud.Launch, true
	case transition != "" && transition != "SCALE_IN":
		return e, fmt.Errorf("the event's lifecycleTransition is neither SCALE_IN nor SCALE_OUT: %s", cloud.Quote(transition))
	}
	e.Hook.Provider, e.Hook.Group, e.Hook.Name = alibaba.Name, e.Group, e.Hook.ID
	if e.InstanceID = ids[0]; len(ids) > 1 {
		e.Instances = ids
	}
	return e, nil
}

// instances returns at least one id, sorted.
func (o event) instances() ([]string, error) {
	var ids []string
	if o.has("instanceIds") {
		// The placeholder expands to a list, a list's text, or comma-separated text.
		ids = strings.FieldsFunc(fmt.Sprint(o["instanceIds"]), func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`[],"`, r) })
	}
	if len(ids) == 0 {
		return nil, errors.New("the event names no instance: instanceIds is missing or empty")
	}
	for _, id := range ids {
		if len(id) > cloud.MaxText || !eventInstance.MatchString(id) {
			return nil, fmt.Errorf("the event's instanceIds has what is no instance id: %s", cloud.Quote(id))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}
