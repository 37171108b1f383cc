// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// ParseEvent parses a lifecycle event: an EventBridge event, its detail, or the flat message of SNS and SQS. It returns
// [cloud.ErrNotThisCloud] for other events.
func ParseEvent(o cloud.EventFields) (cloud.Event, error) {
	detail, shape, err := detailOf(o)
	if err != nil {
		return cloud.Event{}, err
	}
	e := cloud.Event{Shape: shape}
	var detailType, event, transition, origin, destination, action string
	err = errors.Join(o.Texts(map[string]*string{"detail-type": &detailType}), detail.Texts(map[string]*string{
		"Event": &event, "EC2InstanceId": &e.InstanceID, "AutoScalingGroupName": &e.Group,
		"LifecycleHookName": &e.Hook.Name, "LifecycleActionToken": &e.Hook.Token, "LifecycleTransition": &transition,
		"Origin": &origin, "Destination": &destination, "Action": &action,
	}))
	if err != nil {
		return cloud.Event{}, err
	}
	if event == "autoscaling:TEST_NOTIFICATION" {
		return cloud.Event{Test: true, Shape: "test notification"}, nil
	}
	const pool = "WarmPool"
	// An input transformer may have dropped the transition.
	switch what := cmp.Or(transition, detailType, event); what {
	case "autoscaling:EC2_INSTANCE_TERMINATING", "EC2 Instance-terminate Lifecycle Action":
		switch {
		case destination == pool:
			e.Kind = cloud.Park
		case action == "ReplaceRootVolume":
			e.Kind = cloud.Reimage
		default:
			e.Kind = cloud.Terminate
		}
	case "autoscaling:EC2_INSTANCE_LAUNCHING", "EC2 Instance-launch Lifecycle Action":
		// A machine that starts into the pool is prepared like any other; another event follows.
		if e.Kind = cloud.Launch; origin == pool {
			e.Kind = cloud.Resume
		}
		e.Hook.Launching = true
	case "":
		return cloud.Event{}, errors.New("the event does not say what happens: LifecycleTransition is missing")
	default:
		return cloud.Event{}, fmt.Errorf("the event is not about a lifecycle hook: %s", cloud.Quote(what))
	}
	if e.InstanceID == "" || strings.ContainsFunc(e.InstanceID, notInID) {
		return cloud.Event{}, fmt.Errorf("the event's EC2InstanceId is missing or no instance id: %s", cloud.Quote(e.InstanceID))
	}
	e.Hook.Provider, e.Hook.Group = Name, e.Group
	e.Time = cmp.Or(o.Time("time"), o.Time("Time"))
	return e, nil
}

// detailOf returns the fields of the notification, and its shape.
func detailOf(o cloud.EventFields) (detail cloud.EventFields, shape string, err error) {
	switch {
	case o.Has("detail"):
		fields, ok := o["detail"].(map[string]any)
		if !ok {
			return nil, "", errors.New("the event's detail cannot be read: it is no JSON object")
		}
		return fields, "EventBridge event", nil
	case !o.Has("LifecycleTransition", "EC2InstanceId", "Event"):
		return nil, "", envelope(o)
	case o.Has("Service"):
		return o, "Auto Scaling notification", nil
	}
	return o, "detail of an EventBridge event", nil
}

// envelope returns an error with the command that unwraps an SNS or SQS message.
func envelope(o cloud.EventFields) error {
	for _, e := range []struct{ field, filter string }{
		{"Message", ".Message"},
		{"Messages", "'.Messages[0].Body'"},
		{"Records", "'.Records[0] | .Sns.Message // .body'"},
		{"Body", ".Body"},
		{"body", ".body"},
	} {
		if o.Has(e.field) {
			return fmt.Errorf("this is an envelope of SNS or SQS: pass the event in it (`jq -r %s`)", e.filter)
		}
	}
	return cloud.ErrNotThisCloud
}
