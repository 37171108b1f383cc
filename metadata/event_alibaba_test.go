// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Events of an OOS template.
func TestParseEventOOS(t *testing.T) {
	t.Parallel()
	hook := cloud.Hook{Provider: "alibaba", Name: "ash-1", ID: "ash-1", Token: "F324B880"}
	e := func(change func(*cloud.Event)) cloud.Event {
		e := cloud.Event{InstanceID: "i-1", Kind: cloud.Terminate, Hook: hook, HookWait: 6 * time.Hour, Shape: "OOS placeholders"}
		if change != nil {
			change(&e)
		}
		return e
	}
	at := time.Date(2026, 11, 30, 10, 0, 0, 0, time.UTC)
	encoded := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	several := e(func(e *cloud.Event) { e.Instances = []string{"i-1", "i-2"} })
	const rest = `,"lifecycleHookId":"ash-1","lifecycleActionToken":"F324B880"}`
	for _, tt := range []struct {
		name, body string
		want       cloud.Event
		bad        string
	}{
		{"one", `{"regionId":"cn-hangzhou","instanceIds":["i-1"]` + rest, e(nil), ""},
		{"several", `{"instanceIds":["i-2","i-1","i-2"]` + rest, several, ""},
		{"a list as text", `{"instanceIds":"[\"i-2\",\"i-1\"]"` + rest, several, ""},
		{"commas", `{"instanceIds":"i-2, i-1"` + rest, several, ""},
		{"all as text", `"{\"instanceIds\":[\"i-1\"],\"lifecycleHookId\":\"ash-1\",\"lifecycleActionToken\":\"F324B880\"}"`, e(nil), ""},
		{"scale-out", `{"instanceIds":["i-1"],"lifecycleTransition":"SCALE_OUT"` + rest, e(func(e *cloud.Event) { e.Kind, e.Hook.Launching = cloud.Launch, true }), ""},
		{"with the group", `{"scalingGroupId":"asg-1","instanceIds":["i-1"]` + rest, e(func(e *cloud.Event) { e.Group, e.Hook.Group = "asg-1", "asg-1" }), ""},
		{"a message of the queue", `{"content":{"instanceIds":["i-1"]` + rest + `,"event":"LIFECYCLE_HOOK","product":"ESS","time":"2026-11-30T10:00:00Z"}`, e(func(e *cloud.Event) { e.Time = at }), ""},
		{"its content as text", `{"content":"{\"instanceIds\":[\"i-1\"],\"lifecycleHookId\":\"ash-1\",\"lifecycleActionToken\":\"F324B880\"}","product":"ESS"}`, e(nil), ""},
		{"base64 of the message", encoded(`{"content":{"instanceIds":["i-1"]` + rest + `,"product":"ESS"}`), e(nil), ""},
		{"base64 of its content", `{"content":"` + encoded(`{"instanceIds":["i-1"]`+rest) + `"}`, e(nil), ""},
		{"base64 in lines", encoded(`{"instanceIds":["i-1"]` + rest)[:76] + "\n" + encoded(`{"instanceIds":["i-1"]` + rest)[76:] + "\n", e(nil), ""},
		{"another content", `{"content":"hello"}`, cloud.Event{}, "not one of Auto Scaling"},
		{"base64 of no event", encoded("hello, world"), cloud.Event{}, "cannot be read"},
		{"no instances", `{"instanceIds":[]` + rest, cloud.Event{}, "names no instance"},
		{"no token", `{"instanceIds":["i-1"],"lifecycleHookId":"ash-1"}`, cloud.Event{}, "names no lifecycle action"},
		{"a placeholder", `{"instanceIds":["i-1"],"lifecycleHookId":"${lifecycleHookId}","lifecycleActionToken":"x"}`, cloud.Event{}, "placeholder"},
		{"no ids", `{"instanceIds":["rm -rf /"]` + rest, cloud.Event{}, "no instance id"},
		{"no list", `{"instanceIds":{"a":1}` + rest, cloud.Event{}, "no instance id"},
		{"another transition", `{"instanceIds":["i-1"],"lifecycleTransition":"PARTY"` + rest, cloud.Event{}, "neither SCALE_IN nor SCALE_OUT"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := metadata.ParseEvent([]byte(tt.body))
			if (err != nil) != (tt.bad != "") || err != nil && !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("error %v, want %q", err, tt.bad)
			}
			must.NoDiff(t, "notices", got, tt.want)
		})
	}
}
