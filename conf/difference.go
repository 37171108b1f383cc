// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/internal/redact"
)

// Difference is a value that a plan changes, with secrets masked.
type Difference struct {
	Path string `json:"path"`
	// Key is a property or, in a file without keys, the kind of change.
	Key string `json:"key"`
	Old string `json:"old"`
	New string `json:"new"`
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: %s is %s, must be %s", d.Path, d.Key, d.Old, d.New)
}

// maxShown is in bytes. The server's user writes the texts, which are stored, logged and shown.
const maxShown = 256

const missing = "(missing)"

// Differences returns the values that the plan changes.
func (f PlannedFile) Differences() []Difference {
	var out []Difference
	add := func(key, was, is string) {
		old, now := plain.Truncate(was, maxShown), plain.Truncate(is, maxShown)
		if old == now && was != is {
			now += another
		}
		out = append(out, Difference{Path: f.Before.Path, Key: plain.Truncate(key, maxShown), Old: old, New: now})
	}
	switch {
	case !f.Changed():
		return nil
	case f.After == nil:
		add("file", "there", missing)
		return out
	case !f.Before.Exists():
		add("file", missing, "there")
		return out
	}
	before, after := f.values(f.Before.Bytes), f.values(f.After)
	for _, key := range sortedKeys(before, after) {
		was, had := before[key]
		is, has := after[key]
		if had == has && was == is {
			continue
		}
		shownWas, shownIs := shown(key, was, had), shown(key, is, has)
		if shownWas == shownIs {
			shownIs = strings.Replace(shownIs, redact.Placeholder, maskChanged, 1)
		}
		add(key, shownWas, shownIs)
	}
	if len(out) == 0 && !bytes.Equal(f.Before.Bytes, f.After) {
		add("content", "edited", "as joined")
	}
	if f.Mode != f.Before.Mode {
		add("permissions", fmt.Sprintf("%04o", f.Before.Mode.Perm()), fmt.Sprintf("%04o", f.Mode.Perm()))
	}
	return out
}

func shown(key, value string, there bool) string {
	switch value = maskedAs(key, value); {
	case !there:
		return missing
	case value == "":
		return "(empty)"
	}
	return value
}

// values returns nil if the file has no keys.
func (f PlannedFile) values(src []byte) map[string]string {
	out := map[string]string{}
	switch f.Kind {
	case KindProperties:
		p, err := ParseProperties(src)
		if err != nil {
			return nil
		}
		for key, i := range p.last {
			out[key] = p.entries[i].value
		}
	case KindContainer:
		c, err := ParseContainer(src)
		if err != nil {
			return nil
		}
		out["mode"] = string(c.Mode())
		if c.HasRemoteIPValve() {
			out["RemoteIpValve"] = "there"
		}
	case KindHosts, KindWhole:
	}
	return out
}

func sortedKeys(maps ...map[string]string) []string {
	var keys []string
	for _, m := range maps {
		for key := range m {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}
