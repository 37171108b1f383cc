// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
)

const (
	eventID    = "i-0abc1234567890def"
	eventToken = "87654321-4321-4321-4321-210987654321"
)

var eventAt = time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)

func event(kind lifecycle.Kind, shape string) lifecycle.Event {
	e := lifecycle.Event{
		InstanceID: eventID, Group: "edge-asg", Kind: kind, Time: eventAt, Shape: shape,
		Hook: lifecycle.Hook{Provider: "aws", Group: "edge-asg", Name: "drain", Token: eventToken},
	}
	if kind == lifecycle.Launch || kind == lifecycle.Resume {
		e.Hook.Name, e.Hook.Launching = "ready", true
	}
	return e
}

func at(t time.Time, e lifecycle.Event) lifecycle.Event {
	e.Time = t
	return e
}

func TestParseEventShapes(t *testing.T) {
	const bridge = "EventBridge event"
	const flat = "Auto Scaling notification"
	millis := eventAt.Add(123 * time.Millisecond)
	want := map[string]lifecycle.Event{
		"eventbridge-terminate":           event(lifecycle.Terminate, bridge),
		"eventbridge-terminate-bare":      event(lifecycle.Terminate, bridge),
		"eventbridge-terminate-from-pool": event(lifecycle.Terminate, bridge),
		"eventbridge-park":                event(lifecycle.Park, bridge),
		"eventbridge-launch":              event(lifecycle.Launch, bridge),
		"eventbridge-launch-into-pool":    event(lifecycle.Launch, bridge),
		"eventbridge-resume":              event(lifecycle.Resume, bridge),
		"eventbridge-unknown-fields":      event(lifecycle.Terminate, bridge),
		"detail":                          at(time.Time{}, event(lifecycle.Terminate, "detail of an EventBridge event")),
		"detail-minimal": {
			InstanceID: eventID, Kind: lifecycle.Terminate, Shape: "detail of an EventBridge event", Hook: lifecycle.Hook{Provider: "aws"},
		},
		"sqs-flat":          at(millis, event(lifecycle.Terminate, flat)),
		"text-in-text":      event(lifecycle.Terminate, bridge),
		"test-notification": {Test: true, Shape: "test notification"},
	}
	files, err := filepath.Glob("testdata/events/*.json")
	if err != nil || len(files) != len(want) {
		t.Fatalf("%d files, %d expectations, %v", len(files), len(want), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		data, err := os.ReadFile(f)
		must.OK(t, err)
		// What editors and shells do to a file on its way here.
		for how, data := range map[string][]byte{
			"as it is": data,
			"bom":      append([]byte("\ufeff"), data...),
			"crlf":     bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n")),
			"blanks":   append([]byte(" \t\n\n"), append(bytes.TrimSpace(data), "\n\n\x20"...)...),
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				got, err := lifecycle.ParseEvent(data)
				must.OK(t, err)
				if diff := cmp.Diff(want[name], got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestParseEventRefuses(t *testing.T) {
	const bridge = `"detail-type":"EC2 Instance-terminate Lifecycle Action"`
	for _, tt := range []struct{ name, in, want string }{
		{"empty", "", "the event is empty"},
		{"blank", " \r\n\t", "the event is empty"},
		{"bom alone", "\ufeff", "the event is empty"},
		{"utf-16", "\xff\xfe{\x00}\x00", "cannot be read"},
		{"large", `{"a":"` + strings.Repeat("x", lifecycle.MaxEvent) + `"}`, "larger than 256 KiB"},
		{"no json", "i-0abc is terminating", "the event cannot be read"},
		{"cut off", `{"detail":{"EC2InstanceId"`, "the event cannot be read: unexpected end"},
		{"a list", `[{}]`, "the event cannot be read"},
		{"a number", `5`, "the event cannot be read"},
		{"null", `null`, "the event is empty"},
		{"two values", `{"EC2InstanceId":"i-1"} {"EC2InstanceId":"i-2"}`, "after top-level value"},
		{"no fields", `{}`, "is not one of Auto Scaling: it has no fields"},
		{"other", `{"hello":1,"world":2}`, `is not one of Auto Scaling: it has "hello, world"`},
		{"many fields", `{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1}`, `it has "a, b, c, d, e`},
		{"other bridge", `{"detail-type":"EC2 Spot Instance Interruption Warning","detail":{"instance-id":"i-1"}}`, "is not about a lifecycle hook: EC2 Spot Instance Interruption Warning"},
		{"scaled already", `{"detail-type":"EC2 Instance Terminate Successful","detail":{"EC2InstanceId":"i-1"}}`, "is not about a lifecycle hook: EC2 Instance Terminate Successful"},
		{"no detail type", `{"detail":{}}`, "is not about a lifecycle hook: it has no detail-type"},
		{"told afterwards", `{"Event":"autoscaling:EC2_INSTANCE_TERMINATE","EC2InstanceId":"i-1","Service":"AWS Auto Scaling"}`, "tells what has happened (autoscaling:EC2_INSTANCE_TERMINATE)"},
		{"detail no object", `{` + bridge + `,"detail":"x"}`, "the event's detail cannot be read"},
		{"no instance", `{` + bridge + `,"detail":{"LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}}`, "EC2InstanceId is missing"},
		{"null instance", `{"EC2InstanceId":null,"LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}`, "EC2InstanceId is missing"},
		{"instance no text", `{"EC2InstanceId":17,"LifecycleTransition":"x"}`, "EC2InstanceId is no text"},
		{"instance odd", `{"EC2InstanceId":"i-1; reboot","LifecycleTransition":"x"}`, "EC2InstanceId is no instance id"},
		{"instance placeholder", `{"EC2InstanceId":"{{ InstanceId }}","LifecycleTransition":"x"}`, "EC2InstanceId is no instance id"},
		{"control characters", `{"EC2InstanceId":"i-1","AutoScalingGroupName":"a\u001b[2J"}`, "AutoScalingGroupName is too long, or has characters"},
		{"long name", `{"EC2InstanceId":"i-1","LifecycleHookName":"` + strings.Repeat("x", 256) + `"}`, "LifecycleHookName is too long"},
		{"sns", `{"Type":"Notification","TopicArn":"arn","Message":"{}"}`, "this is an SNS envelope: pass its Message (`jq -r .Message`)"},
		{"sns list", `{"Records":[{"Sns":{"Message":"{}"}}]}`, "`jq -r '.Records[0].Sns.Message'`"},
		{"sqs list", `{"Records":[{"body":"{}"}]}`, "`jq -r '.Records[0].body'`"},
		{"sqs output", `{"Messages":[{"Body":"{}"}]}`, "pass the Body of its message (`jq -r '.Messages[0].Body'`)"},
		{"sqs message", `{"MessageId":"1","Body":"{}"}`, "`jq -r .Body`"},
		{"sqs record", `{"messageId":"1","body":"{}"}`, "`jq -r .body`"},
		{"no transition", `{"EC2InstanceId":"i-1"}`, "LifecycleTransition is missing"},
		{"other transition", `{"EC2InstanceId":"i-1","LifecycleTransition":"autoscaling:EC2_INSTANCE_DANCING"}`, "neither a launch nor a termination"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, err := lifecycle.ParseEvent([]byte(tt.in))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%+v, %v; want %q", e, err, tt.want)
			}
			if len(err.Error()) > 1000 {
				t.Errorf("a message of %d bytes", len(err.Error()))
			}
		})
	}
}

// What an OOS template hands over.
func TestParseEventOOS(t *testing.T) {
	t.Parallel()
	hook := lifecycle.Hook{Provider: "alibaba", Name: "ash-1", Token: "F324B880"}
	e := func(change func(*lifecycle.Event)) lifecycle.Event {
		e := lifecycle.Event{InstanceID: "i-1", Kind: lifecycle.Terminate, Hook: hook, Shape: "OOS placeholders"}
		if change != nil {
			change(&e)
		}
		return e
	}
	several := e(func(e *lifecycle.Event) { e.Instances = []string{"i-1", "i-2"} })
	const rest = `,"lifecycleHookId":"ash-1","lifecycleActionToken":"F324B880"}`
	for _, tt := range []struct {
		name, body string
		want       lifecycle.Event
		bad        string
	}{
		{"one", `{"regionId":"cn-hangzhou","instanceIds":["i-1"]` + rest, e(nil), ""},
		{"several", `{"instanceIds":["i-2","i-1","i-2"]` + rest, several, ""},
		{"a list as text", `{"instanceIds":"[\"i-2\",\"i-1\"]"` + rest, several, ""},
		{"commas", `{"instanceIds":"i-2, i-1"` + rest, several, ""},
		{"all as text", `"{\"instanceIds\":[\"i-1\"],\"lifecycleHookId\":\"ash-1\",\"lifecycleActionToken\":\"F324B880\"}"`, e(nil), ""},
		{"scale-out", `{"instanceIds":["i-1"],"lifecycleTransition":"SCALE_OUT"` + rest, e(func(e *lifecycle.Event) { e.Kind, e.Hook.Launching = lifecycle.Launch, true }), ""},
		{"with the group", `{"scalingGroupId":"asg-1","instanceIds":["i-1"]` + rest, e(func(e *lifecycle.Event) { e.Group, e.Hook.Group = "asg-1", "asg-1" }), ""},
		{"no instances", `{"instanceIds":[]` + rest, lifecycle.Event{}, "names no instance"},
		{"no token", `{"instanceIds":["i-1"],"lifecycleHookId":"ash-1"}`, lifecycle.Event{}, "names no lifecycle action"},
		{"a placeholder", `{"instanceIds":["i-1"],"lifecycleHookId":"${lifecycleHookId}","lifecycleActionToken":"x"}`, lifecycle.Event{}, "placeholder"},
		{"no ids", `{"instanceIds":["rm -rf /"]` + rest, lifecycle.Event{}, "no instance id"},
		{"no list", `{"instanceIds":{"a":1}` + rest, lifecycle.Event{}, "no list"},
		{"another transition", `{"instanceIds":["i-1"],"lifecycleTransition":"PARTY"` + rest, lifecycle.Event{}, "neither SCALE_IN nor SCALE_OUT"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := lifecycle.ParseEvent([]byte(tt.body))
			if (err != nil) != (tt.bad != "") || err != nil && !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("error %v, want %q", err, tt.bad)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, ok := several.For("i-3"); ok {
		t.Error("it is about a machine that it does not name")
	}
	mine, ok := several.For("i-2")
	now := time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)
	n := mine.Notice(now)
	want := lifecycle.Notice{
		ID: "alibaba-lifecycle/terminate", Source: "event", Kind: lifecycle.Terminate, Who: "Auto Scaling", Reason: "scale-in, hook ash-1", Received: now,
		Hook: &lifecycle.Hook{Provider: "alibaba", Name: "ash-1", ID: "ash-1", Token: "F324B880", Others: []string{"i-1"}, Limit: now.Add(6 * time.Hour)},
	}
	if diff := cmp.Diff(want, n); !ok || diff != "" {
		t.Error(diff)
	}
}

// Other spellings of our names are other fields.
func TestParseEventNamesAreExact(t *testing.T) {
	e, err := lifecycle.ParseEvent([]byte(`{"EC2InstanceId":"i-1","ec2instanceid":"i-2","LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}`))
	if err != nil || e.InstanceID != "i-1" {
		t.Errorf("%+v, %v", e, err)
	}
}

// EventBridge's own kind stands in where a transformer dropped the transition.
func TestParseEventKindByDetailType(t *testing.T) {
	for in, want := range map[string]lifecycle.Kind{
		`{"detail-type":"EC2 Instance-terminate Lifecycle Action","detail":{"EC2InstanceId":"i-1"}}`:                          lifecycle.Terminate,
		`{"detail-type":"EC2 Instance-terminate Lifecycle Action","detail":{"EC2InstanceId":"i-1","Destination":"WarmPool"}}`: lifecycle.Park,
		`{"detail-type":"EC2 Instance-launch Lifecycle Action","detail":{"EC2InstanceId":"i-1"}}`:                             lifecycle.Launch,
	} {
		e, err := lifecycle.ParseEvent([]byte(in))
		if err != nil || e.Kind != want || e.Hook.Launching != (want == lifecycle.Launch) {
			t.Errorf("%s: %+v, %v", in, e, err)
		}
	}
}

func TestEventNotice(t *testing.T) {
	now := eventAt.Add(time.Minute)
	full := lifecycle.Hook{Provider: "aws", Group: "edge-asg", Name: "drain", Token: eventToken}
	launching := full
	launching.Name, launching.Launching = "ready", true
	minimal := event(lifecycle.Terminate, "")
	minimal.Group, minimal.Hook = "", lifecycle.Hook{Provider: "aws"}
	for _, tt := range []struct {
		e    lifecycle.Event
		want lifecycle.Notice
	}{
		{event(lifecycle.Terminate, ""), lifecycle.Notice{ID: "aws-lifecycle/terminate", Reason: "scale-in of group edge-asg, hook drain", Hook: &full}},
		{event(lifecycle.Park, ""), lifecycle.Notice{ID: "aws-lifecycle/park", Reason: "return to the warm pool of group edge-asg, hook drain", Hook: &full}},
		{event(lifecycle.Launch, ""), lifecycle.Notice{ID: "aws-lifecycle/launch", Reason: "launch into group edge-asg, hook ready", Hook: &launching}},
		{event(lifecycle.Resume, ""), lifecycle.Notice{ID: "aws-lifecycle/resume", Reason: "start out of the warm pool of group edge-asg, hook ready", Hook: &launching}},
		{minimal, lifecycle.Notice{ID: "aws-lifecycle/terminate", Reason: "scale-in"}},
	} {
		want := tt.want
		want.Source, want.Kind, want.Who, want.Received = "event", tt.e.Kind, "Auto Scaling", now
		if tt.e.Kind == lifecycle.Park || tt.e.Kind == lifecycle.Resume {
			want.Received = eventAt // it may be delivered again when the machine is back, or gone
		}
		if diff := cmp.Diff(want, tt.e.Notice(now)); diff != "" {
			t.Errorf("%s: %s", tt.e.Kind, diff)
		}
	}
	// What the notice holds is not the event's own.
	e := event(lifecycle.Terminate, "")
	e.Notice(now).Hook.Token = "another"
	if e.Hook.Token != eventToken {
		t.Error("the notice shares its hook with the event")
	}
}

func TestEventStale(t *testing.T) {
	e := event(lifecycle.Park, "")
	for age, want := range map[time.Duration]bool{-time.Hour: false, 0: false, 48 * time.Hour: false, 48*time.Hour + time.Second: true} {
		if got := e.Stale(eventAt.Add(age)); got != want {
			t.Errorf("%s: %t", age, got)
		}
	}
	if at(time.Time{}, e).Stale(eventAt) {
		t.Error("an event without a time is stale")
	}
}

func FuzzEvent(f *testing.F) {
	files, err := filepath.Glob("testdata/events/*.json")
	must.OK(f, err)
	for _, name := range files {
		data, err := os.ReadFile(name)
		must.OK(f, err)
		f.Add(data)
	}
	f.Add([]byte(`{"Records":[{"body":"\"{}\""}]}`))
	f.Add(bytes.Repeat([]byte("7"), 4000))
	f.Add([]byte(`{"instanceIds":"[\"i-1\",\"i-2\"]","lifecycleHookId":"ash-1","lifecycleActionToken":"t"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := lifecycle.ParseEvent(data)
		if err != nil {
			if diff := cmp.Diff(lifecycle.Event{}, e); diff != "" || len(err.Error()) > 4000 {
				t.Fatalf("%v with %s", err, diff)
			}
			return
		}
		if e.Shape == "" {
			t.Fatal("no shape")
		}
		if e.Test {
			if e.InstanceID != "" || e.Kind != "" {
				t.Fatalf("%+v", e)
			}
			return
		}
		launching := e.Kind == lifecycle.Launch || e.Kind == lifecycle.Resume
		if e.InstanceID == "" || e.Kind == "" || e.Hook.Launching != launching || e.Hook.Provider == "" || e.Hook.Group != e.Group {
			t.Fatalf("%+v", e)
		}
		for _, s := range []string{e.InstanceID, e.Group, e.Hook.Name, e.Hook.Token} {
			if strings.ContainsAny(s, "\x00\x1b\n\r") || len(s) > 4*255 {
				t.Fatalf("%+v", e)
			}
		}
		n := e.Notice(eventAt)
		if n.ID == "" || n.Kind != e.Kind || n.Reason == "" {
			t.Fatalf("%+v", n)
		}
		// The same bytes say the same again.
		if again, err := lifecycle.ParseEvent(data); err != nil || !cmp.Equal(e, again) {
			t.Fatalf("%+v, %v", again, err)
		}
	})
}
