// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestParseEventRefuses(t *testing.T) {
	const bridge = `"detail-type":"EC2 Instance-terminate Lifecycle Action"`
	for _, tt := range []struct{ name, in, want string }{
		{"empty", "", "the event is empty"},
		{"blank", " \r\n\t", "the event is empty"},
		{"bom alone", "\ufeff", "the event is empty"},
		{"utf-16", "\xff\xfe{\x00}\x00", "cannot be read"},
		{"large", `{"a":"` + strings.Repeat("x", cloud.MaxEvent) + `"}`, "larger than 256 KiB"},
		{"no json", "i-0abc is terminating", "the event cannot be read"},
		{"cut off", `{"detail":{"EC2InstanceId"`, "the event cannot be read: unexpected end"},
		{"a list", `[{}]`, "the event cannot be read"},
		{"a number", `5`, "the event cannot be read"},
		{"null", `null`, "the event is empty"},
		{"two values", `{"EC2InstanceId":"i-1"} {"EC2InstanceId":"i-2"}`, "after top-level value"},
		{"no fields", `{}`, "the event is empty"},
		{"other", `{"hello":1,"world":2}`, `is not one of Auto Scaling: it has "hello, world"`},
		{"many fields", `{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1}`, `it has "a, b, c, d, e`},
		{"other bridge", `{"detail-type":"EC2 Spot Instance Interruption Warning","detail":{"instance-id":"i-1"}}`, `is not about a lifecycle hook: "EC2 Spot Instance Interruption Warning"`},
		{"scaled already", `{"detail-type":"EC2 Instance Terminate Successful","detail":{"EC2InstanceId":"i-1"}}`, `is not about a lifecycle hook: "EC2 Instance Terminate Successful"`},
		{"no detail type", `{"detail":{}}`, "LifecycleTransition is missing"},
		{"sent afterwards", `{"Event":"autoscaling:EC2_INSTANCE_TERMINATE","EC2InstanceId":"i-1","Service":"AWS Auto Scaling"}`, `is not about a lifecycle hook: "autoscaling:EC2_INSTANCE_TERMINATE"`},
		{"detail no object", `{` + bridge + `,"detail":"x"}`, "the event's detail cannot be read"},
		{"no instance", `{` + bridge + `,"detail":{"LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}}`, "EC2InstanceId is missing"},
		{"null instance", `{"EC2InstanceId":null,"LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}`, "EC2InstanceId is missing"},
		{"instance no text", `{"EC2InstanceId":17,"LifecycleTransition":"x"}`, "EC2InstanceId is no text"},
		{"instance odd", `{"EC2InstanceId":"i-1; reboot","LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}`, `no instance id: "i-1; reboot"`},
		{"instance placeholder", `{"EC2InstanceId":"{{ InstanceId }}","LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}`, `no instance id: "{{ InstanceId }}"`},
		{"control characters", `{"EC2InstanceId":"i-1","AutoScalingGroupName":"a\u001b[2J"}`, "AutoScalingGroupName is too long, or has characters"},
		{"long name", `{"EC2InstanceId":"i-1","LifecycleHookName":"` + strings.Repeat("x", 257) + `"}`, "LifecycleHookName is too long"},
		{"sns", `{"Type":"Notification","TopicArn":"arn","Message":"{}"}`, "this is an envelope of SNS or SQS: pass the event in it (`jq -r .Message`)"},
		{"sns list", `{"Records":[{"Sns":{"Message":"{}"}}]}`, "`jq -r '.Records[0] | .Sns.Message // .body'`"},
		{"sqs list", `{"Records":[{"body":"{}"}]}`, "`jq -r '.Records[0] | .Sns.Message // .body'`"},
		{"sqs output", `{"Messages":[{"Body":"{}"}]}`, "`jq -r '.Messages[0].Body'`"},
		{"sqs message", `{"MessageId":"1","Body":"{}"}`, "`jq -r .Body`"},
		{"sqs record", `{"messageId":"1","body":"{}"}`, "`jq -r .body`"},
		{"no transition", `{"EC2InstanceId":"i-1"}`, "LifecycleTransition is missing"},
		{"other transition", `{"EC2InstanceId":"i-1","LifecycleTransition":"autoscaling:EC2_INSTANCE_DANCING"}`, `is not about a lifecycle hook: "autoscaling:EC2_INSTANCE_DANCING"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, err := metadata.ParseEvent([]byte(tt.in))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%+v, %v; want %q", e, err, tt.want)
			}
			if len(err.Error()) > 1000 {
				t.Errorf("a message of %d bytes", len(err.Error()))
			}
		})
	}
}

func FuzzEvent(f *testing.F) {
	files, err := filepath.Glob("aws/testdata/events/*.json")
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
		e, err := metadata.ParseEvent(data)
		if err != nil {
			if diff := cmp.Diff(cloud.Event{}, e); diff != "" || len(err.Error()) > 4000 {
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
		launching := e.Kind == cloud.Launch || e.Kind == cloud.Resume
		if e.InstanceID == "" || e.Kind == "" || e.Hook.Launching != launching || e.Hook.Provider == "" || e.Hook.Group != e.Group {
			t.Fatalf("%+v", e)
		}
		for _, s := range []string{e.InstanceID, e.Group, e.Hook.Name, e.Hook.Token} {
			if strings.ContainsAny(s, "\x00\x1b\n\r") || len(s) > 4*cloud.MaxText {
				t.Fatalf("%+v", e)
			}
		}
		n, _ := e.Notice(time.Now())
		if n.ID == "" || n.Kind != e.Kind || n.Reason == "" {
			t.Fatalf("%+v", n)
		}
		// The same bytes say the same again.
		if again, err := metadata.ParseEvent(data); err != nil || !cmp.Equal(e, again) {
			t.Fatalf("%+v, %v", again, err)
		}
	})
}
