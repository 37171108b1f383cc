// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// ParseEvent parses a lifecycle event of any supported cloud.
func ParseEvent(data []byte) (e cloud.Event, err error) {
	o, err := cloud.ReadEvent(data)
	if err != nil {
		return cloud.Event{}, err
	}
	if content, err := json.Marshal(o["content"]); err == nil && o.Has("content") { // a message of Alibaba's queue
		if inner, err := cloud.ReadEvent(content); err == nil {
			o, inner["time"] = inner, cmp.Or(inner["time"], o["time"])
		}
	}
	switch {
	case o.Has("detail", "LifecycleTransition", "EC2InstanceId", "Event"):
		e, err = aws.ParseEvent(o)
	case o.Has("lifecycleHookId", "lifecycleActionToken"):
		e, err = alibaba.ParseEvent(o)
	default:
		err = unknown(o)
	}
	if err != nil {
		return cloud.Event{}, err
	}
	return e, nil
}

// unknown is the error about another event; for an SNS or SQS message with the command that unwraps it.
func unknown(o cloud.Fields) error {
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
	return fmt.Errorf("the event is not one of Auto Scaling: it has %s", cloud.Quote(strings.Join(slices.Sorted(maps.Keys(o)), ", ")))
}
