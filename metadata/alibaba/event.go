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

// ParseEvent parses the event of an OOS template, an object with the placeholders of a lifecycle hook:
//
//	{"regionId":"cn-hangzhou","instanceIds":["i-1","i-2"],"lifecycleHookId":"ash-1","lifecycleActionToken":"..."}
//
// No placeholder has the transition. A template can add lifecycleTransition; the default is SCALE_IN. ParseEvent returns
// [cloud.ErrNotThisCloud] for other events.
func ParseEvent(o cloud.EventFields) (cloud.Event, error) {
	if !o.Has("lifecycleHookId", "lifecycleActionToken") {
		return cloud.Event{}, cloud.ErrNotThisCloud
	}
	e := cloud.Event{Kind: cloud.Terminate, HookWait: longestWait, Time: o.Time("time"), Shape: "OOS placeholders"}
	var transition string
	err := o.Texts(map[string]*string{
		"lifecycleHookId": &e.Hook.ID, "lifecycleActionToken": &e.Hook.Token,
		"scalingGroupId": &e.Group, "lifecycleTransition": &transition,
	})
	if err != nil {
		return cloud.Event{}, err
	}
	ids, err := instanceIDs(o)
	switch {
	case err != nil:
		return cloud.Event{}, err
	case e.Hook.ID == "" || e.Hook.Token == "" || strings.Contains(e.Hook.ID+e.Hook.Token, "${"):
		return cloud.Event{}, errors.New("the event names no lifecycle action: lifecycleHookId or lifecycleActionToken is missing, or still a placeholder")
	case transition == "SCALE_OUT":
		e.Kind, e.Hook.Launching = cloud.Launch, true
	case transition != "" && transition != "SCALE_IN":
		return cloud.Event{}, fmt.Errorf("the event's lifecycleTransition is neither SCALE_IN nor SCALE_OUT: %s", cloud.Quote(transition))
	}
	e.Hook.Provider, e.Hook.Group, e.Hook.Name = Name, e.Group, e.Hook.ID
	if e.InstanceID = ids[0]; len(ids) > 1 {
		e.Instances = ids
	}
	return e, nil
}

// instanceIDs returns at least one id, sorted.
func instanceIDs(o cloud.EventFields) ([]string, error) {
	var ids []string
	if o.Has("instanceIds") {
		// The placeholder expands to a list, a list's text, or comma-separated text.
		ids = strings.FieldsFunc(fmt.Sprint(o["instanceIds"]), func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`[],"`, r) })
	}
	if len(ids) == 0 {
		return nil, errors.New("the event names no instance: instanceIds is missing or empty")
	}
	for _, id := range ids {
		if len(id) > cloud.MaxText || strings.ContainsFunc(id, notInID) {
			return nil, fmt.Errorf("the event's instanceIds has what is no instance id: %s", cloud.Quote(id))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}
