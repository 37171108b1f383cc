// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// ParseEvent parses an object with the placeholders of a lifecycle hook, from an OOS template:
//
//	{"regionId":"cn-hangzhou","instanceIds":["i-1","i-2"],"lifecycleHookId":"ash-1","lifecycleActionToken":"..."}
//
// No placeholder has the transition. A template can add lifecycleTransition; the default is SCALE_IN.
func ParseEvent(o cloud.Fields) (cloud.Event, error) {
	e := cloud.Event{Kind: cloud.Terminate, HookWait: longestWait, Time: o.Time("time"), Shape: "OOS placeholders"}
	var transition string
	err := o.Texts(map[string]*string{
		"lifecycleHookId": &e.Hook.ID, "lifecycleActionToken": &e.Hook.Token,
		"scalingGroupId": &e.Group, "lifecycleTransition": &transition,
	})
	if err != nil {
		return e, err
	}
	ids, err := eventInstances(o)
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
	e.Hook.Provider, e.Hook.Group, e.Hook.Name = Name, e.Group, e.Hook.ID
	if e.InstanceID = ids[0]; len(ids) > 1 {
		e.Instances = ids
	}
	return e, nil
}

// eventInstances returns at least one id, sorted.
func eventInstances(o cloud.Fields) ([]string, error) {
	var ids []string
	if o.Has("instanceIds") {
		// The placeholder expands to a list, a list's text, or comma-separated text.
		ids = strings.FieldsFunc(fmt.Sprint(o["instanceIds"]), func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`[],"`, r) })
	}
	if len(ids) == 0 {
		return nil, errors.New("the event names no instance: instanceIds is missing or empty")
	}
	for _, id := range ids {
		if !cloud.IsID(id) {
			return nil, fmt.Errorf("the event's instanceIds has what is no instance id: %s", cloud.Quote(id))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}
