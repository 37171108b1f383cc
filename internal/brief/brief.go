// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package brief shortens what others wrote, who decide how long it is.
package brief

import (
	"strings"
	"unicode/utf8"
)

// Text is the text, or its beginning with … at its end: most bytes at most, and never a
// part of a character.
func Text(text string, most int) string {
	if len(text) <= most {
		return text
	}
	const ellipsis = "…"
	end := most - len(ellipsis)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	// A copy, since a part of a text keeps all of it in memory.
	return strings.Clone(text[:end]) + ellipsis
}
