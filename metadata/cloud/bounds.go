// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"fmt"
	"maps"
	"slices"

	"github.com/amsagent/amsagent/internal/plain"
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

// Bound truncates names, and drops long tags with a note: a truncated connection string is wrong. It returns
// [ErrBadAnswer] for an overlong id.
func (i *Instance) Bound() error {
	if len(i.ID) > MaxText {
		return &Error{Provider: i.Provider, Item: "id", Kind: ErrBadAnswer, Cause: fmt.Errorf("it has %d bytes, more than %d", len(i.ID), MaxText)}
	}
	for _, name := range []*string{&i.Name, &i.AccountID, &i.Region, &i.Zone, &i.Type, &i.LifeCycle, &i.Hostname, &i.Group} {
		*name = plain.Truncate(*name, MaxText)
	}
	kept := Tags{}
	for _, k := range slices.Sorted(maps.Keys(i.Tags)) {
		if len(k) <= MaxText && len(i.Tags[k]) <= MaxTag && len(kept) < MaxTags {
			kept[k] = i.Tags[k]
		}
	}
	if left := len(i.Tags) - len(kept); left > 0 {
		i.Tags = kept
		i.Notes = append(i.Notes, fmt.Sprintf("%d tags are left out: there are at most %d, a key has at most %d bytes, a value %d", left, MaxTags, MaxText, MaxTag))
	}
	return nil
}
