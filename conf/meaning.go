// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"slices"
)

// sameMeaning reports whether the server reads the same from both. When it saves its settings, it changes order,
// escapes and the date.
func sameMeaning(kind Kind, a, b []byte) bool {
	switch {
	case a == nil || b == nil:
		return a == nil && b == nil
	case bytes.Equal(a, b):
		return true
	case kind == KindProperties:
		return sameProperties(a, b)
	case kind == KindContainer:
		return sameBeans(a, b)
	}
	return false
}

func sameProperties(a, b []byte) bool {
	p, err := ParseProperties(a)
	if err != nil {
		return false
	}
	q, err := ParseProperties(b)
	if err != nil || len(p.last) != len(q.last) {
		return false
	}
	for key, i := range p.last {
		if j, ok := q.last[key]; !ok || p.entries[i].value != q.entries[j].value {
			return false
		}
	}
	return true
}

// sameBeans ignores comments, blanks between elements, the order of attributes, CDATA and entities.
func sameBeans(a, b []byte) bool {
	p, err := parseXML(a)
	if err != nil {
		return false
	}
	q, err := parseXML(b)
	return err == nil && slices.Equal(meaning(p), meaning(q))
}

// revertKeys reverts the change from before to after in now. Keys that were edited since stay, and are conflicts.
func revertKeys(path string, before, after, now []byte) ([]byte, []Conflict, error) {
	was, err := ParseProperties(before)
	if err != nil {
		return nil, nil, err
	}
	ours, err := ParseProperties(after)
	if err != nil {
		return nil, nil, err
	}
	p, err := ParseProperties(now)
	if err != nil {
		return nil, nil, err
	}
	var conflicts []Conflict
	var dropped []string
	for _, key := range ours.Keys() {
		old, existed := was.Get(key)
		mine, _ := ours.Get(key)
		if existed && old == mine {
			continue
		}
		switch current, ok := p.Get(key); {
		case !ok || existed && current == old:
		case current != mine:
			conflicts = append(conflicts, Conflict{path, "key:" + key, key + " was edited since we wrote it; it is left as it is"})
		case existed:
			p.Set(key, old, nil)
		default:
			dropped = append(dropped, key)
		}
	}
	out := p.Bytes()
	for _, key := range dropped {
		if out, err = dropLine(out, key); err != nil {
			return nil, nil, err
		}
	}
	return out, conflicts, nil
}
