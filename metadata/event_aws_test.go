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

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestParseEventShapes(t *testing.T) {
	const eventID, bridge, detail, flat = "i-0abc1234567890def", "EventBridge event", "detail of an EventBridge event", "Auto Scaling notification"
	eventAt := time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC)
	times := map[string]time.Time{bridge: eventAt, flat: eventAt.Add(123 * time.Millisecond)}
	event := func(kind cloud.Kind, shape string) cloud.Event {
		hook := cloud.Hook{Provider: "aws", Group: "edge-asg", Name: "drain", Token: "87654321-4321-4321-4321-210987654321"}
		if kind == cloud.Launch || kind == cloud.Resume {
			hook.Name, hook.Launching = "ready", true
		}
		return cloud.Event{InstanceID: eventID, Group: "edge-asg", Kind: kind, Hook: hook, Time: times[shape], Shape: shape}
	}
	want := map[string]cloud.Event{
		"eventbridge-terminate":           event(cloud.Terminate, bridge),
		"eventbridge-terminate-bare":      event(cloud.Terminate, bridge),
		"eventbridge-terminate-from-pool": event(cloud.Terminate, bridge),
		"eventbridge-park":                event(cloud.Park, bridge),
		"eventbridge-replace-root":        event(cloud.Reimage, bridge),
		"eventbridge-launch":              event(cloud.Launch, bridge),
		"eventbridge-launch-into-pool":    event(cloud.Launch, bridge),
		"eventbridge-resume":              event(cloud.Resume, bridge),
		"eventbridge-unknown-fields":      event(cloud.Terminate, bridge),
		"detail":                          event(cloud.Terminate, detail),
		"detail-minimal":                  {InstanceID: eventID, Kind: cloud.Terminate, Shape: detail, Hook: cloud.Hook{Provider: "aws"}},
		"sqs-flat":                        event(cloud.Terminate, flat),
		"text-in-text":                    event(cloud.Terminate, bridge),
		"test-notification":               {Test: true, Shape: "test notification"},
	}
	files, err := filepath.Glob("aws/testdata/events/*.json")
	if err != nil || len(files) != len(want) {
		t.Fatalf("%d files, %d expectations, %v", len(files), len(want), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(f)
			must.OK(t, err)
			// Changes by editors and shells.
			for how, data := range map[string][]byte{
				"as it is": data,
				"bom":      append([]byte("\ufeff"), data...),
				"crlf":     bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n")),
				"spaces":   append([]byte(" \t\n\n"), append(bytes.TrimSpace(data), "\n\n\x20"...)...),
			} {
				got, err := metadata.ParseEvent(data)
				must.OK(t, err)
				must.NoDiff(t, how, got, want[name])
			}
		})
	}
}

// Other spellings of the agent's names are other fields.
func TestParseEventNamesAreExact(t *testing.T) {
	e, err := metadata.ParseEvent([]byte(`{"EC2InstanceId":"i-1","ec2instanceid":"i-2","LifecycleTransition":"autoscaling:EC2_INSTANCE_TERMINATING"}`))
	if err != nil || e.InstanceID != "i-1" {
		t.Errorf("%+v, %v", e, err)
	}
}

// The detail-type of EventBridge is used if a transformer dropped the transition.
func TestParseEventKindByDetailType(t *testing.T) {
	for in, want := range map[string]cloud.Kind{
		`{"detail-type":"EC2 Instance-terminate Lifecycle Action","detail":{"EC2InstanceId":"i-1"}}`:                          cloud.Terminate,
		`{"detail-type":"EC2 Instance-terminate Lifecycle Action","detail":{"EC2InstanceId":"i-1","Destination":"WarmPool"}}`: cloud.Park,
		`{"detail-type":"EC2 Instance-launch Lifecycle Action","detail":{"EC2InstanceId":"i-1"}}`:                             cloud.Launch,
	} {
		e, err := metadata.ParseEvent([]byte(in))
		if err != nil || e.Kind != want || e.Hook.Launching != (want == cloud.Launch) {
			t.Errorf("%s: %+v, %v", in, e, err)
		}
	}
}
