// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// ParseEvent parses a lifecycle event of any supported cloud.
func ParseEvent(data []byte) (cloud.Event, error) {
	o, err := cloud.ReadEvent(data)
	if err != nil {
		return cloud.Event{}, err
	}
	for _, parse := range []func(cloud.EventFields) (cloud.Event, error){aws.ParseEvent, alibaba.ParseEvent} {
		if e, err := parse(o); !errors.Is(err, cloud.ErrNotThisCloud) {
			return e, err
		}
	}
	return cloud.Event{}, fmt.Errorf("the event is not one of Auto Scaling: it has %s", cloud.Quote(strings.Join(slices.Sorted(maps.Keys(o)), ", ")))
}
