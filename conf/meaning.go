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

// sameBeans ignores comments, whitespace between elements, the order of attributes, CDATA and entities.
func sameBeans(a, b []byte) bool {
	p, err := parseXML(a)
	if err != nil {
		return false
	}
	q, err := parseXML(b)
	return err == nil && slices.Equal(meaning(p), meaning(q))
}
