// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// ParseEvent parses an EventBridge event, its detail, or the flat message of SNS and SQS.
func ParseEvent(o cloud.Fields) (cloud.Event, error) {
	detail, shape := o, "detail of an EventBridge event"
	switch d := o["detail"].(type) {
	case map[string]any:
		detail, shape = d, "EventBridge event"
	case nil:
		if o.Has("Service") {
			shape = "Auto Scaling notification"
		}
	default:
		return cloud.Event{}, errors.New("the event's detail cannot be read: it is no JSON object")
	}
	e := cloud.Event{Shape: shape, Time: cmp.Or(o.Time("time"), o.Time("Time"))}
	var detailType, name, transition, origin, destination, action string
	err := errors.Join(o.Texts(map[string]*string{"detail-type": &detailType}), detail.Texts(map[string]*string{
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
	if e.Kind, err = eventKind(cmp.Or(transition, detailType, name), origin, destination, action); err != nil {
		return e, err
	}
	e.Hook.Launching = e.Kind == cloud.Launch || e.Kind == cloud.Resume
	if !cloud.IsID(e.InstanceID) {
		return e, fmt.Errorf("the event's EC2InstanceId is missing or no instance id: %s", cloud.Quote(e.InstanceID))
	}
	e.Hook.Provider, e.Hook.Group = Name, e.Group
	return e, nil
}

func eventKind(what, origin, destination, action string) (cloud.Kind, error) {
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
