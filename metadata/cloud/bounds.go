// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"fmt"
	"maps"
	"slices"
)

// Bounds of what a metadata service says. Everything of it may end up in a row of the registry, in a log line and in
// memory for as long as the daemon runs. Each is more than any cloud allows, but for GCP's attributes, which may be whole
// scripts: what is longer is not a setting of the agent.
const (
	// MaxText bounds ids and names: of the instance, its group, zone, type and the like.
	MaxText = 256
	// MaxTag bounds the value of a tag.
	MaxTag = 1024
	// MaxTags bounds their number.
	MaxTags = 256
)

// Bound leaves out what is longer than the bounds, and says so in Notes: a part of a name or of a connection string
// would be another one. An id that is too long is an error, because nothing works without it.
func (i *Instance) Bound() error {
	if len(i.ID) > MaxText {
		return &Error{Provider: i.Provider, Item: "id", Kind: ErrBadAnswer, Cause: tooLong(len(i.ID), MaxText)}
	}
	for _, f := range []struct {
		name  string
		value *string
	}{
		{"name", &i.Name},
		{"account_id", &i.AccountID},
		{"region", &i.Region},
		{"zone", &i.Zone},
		{"type", &i.Type},
		{"life_cycle", &i.LifeCycle},
		{"hostname", &i.Hostname},
		{"group", &i.Group},
	} {
		if n := len(*f.value); n > MaxText {
			*f.value = ""
			i.Notes = append(i.Notes, fmt.Sprintf("%s is left out: %v", f.name, tooLong(n, MaxText)))
		}
	}
	kept, left := Tags{}, 0
	for _, k := range slices.Sorted(maps.Keys(i.Tags)) {
		if len(k) > MaxText || len(i.Tags[k]) > MaxTag || len(kept) == MaxTags {
			left++
			continue
		}
		kept[k] = i.Tags[k]
	}
	if left > 0 {
		i.Tags = kept
		i.Notes = append(i.Notes, fmt.Sprintf("%d tags are left out: there are at most %d, a key has at most %d bytes, a value %d", left, MaxTags, MaxText, MaxTag))
	}
	return nil
}

func tooLong(n, limit int) error { return fmt.Errorf("it has %d bytes, more than %d", n, limit) }
