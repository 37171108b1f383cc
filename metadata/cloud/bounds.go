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
	tags, notes := i.Tags.bounded()
	i.Tags, i.Notes = tags, append(i.Notes, notes...)
	return nil
}

func (t Tags) bounded() (_ Tags, notes []string) {
	long, many := 0, 0
	kept := 0
	out := make(Tags, min(len(t), MaxTags))
	for _, k := range slices.Sorted(maps.Keys(t)) {
		switch {
		case len(k) > MaxText || len(t[k]) > MaxTag:
			long++
		case kept == MaxTags:
			many++
		default:
			kept++
			out[k] = t[k]
		}
	}
	if long == 0 && many == 0 {
		return t, nil
	}
	if long > 0 {
		notes = append(notes, fmt.Sprintf("%d tags are left out: a key has at most %d bytes, a value %d", long, MaxText, MaxTag))
	}
	if many > 0 {
		notes = append(notes, fmt.Sprintf("%d tags are left out: more than %d", many, MaxTags))
	}
	return out, notes
}

func tooLong(n, limit int) error { return fmt.Errorf("it has %d bytes, more than %d", n, limit) }
