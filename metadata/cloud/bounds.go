// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"fmt"
	"maps"
	"slices"
)

// Bounds of values, in bytes, for the registry, logs and memory. Only GCP's attributes, which may be whole scripts, can
// exceed them.
const (
	// MaxText bounds ids and names.
	MaxText = 256
	// MaxTag bounds a tag's value.
	MaxTag  = 1024
	MaxTags = 256
)

// Bound drops long values with a note: a truncated name or connection string is wrong. It returns
// [ErrBadAnswer] for an overlong id.
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
