// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/amsagent/amsagent/internal/redact"
)

// another marks a value that differs but looks the same.
const another = " (another one)"

// maskChanged is a secret that changes.
const maskChanged = redact.Placeholder + another

// Diff returns the unified diff from before to after, or "". Secrets and passwords in connection strings are
// masked.
func Diff(path string, kind Kind, before, after []byte) string {
	if bytes.Equal(before, after) {
		return ""
	}
	oldName, newName := "a"+path, "b"+path
	if before == nil {
		oldName = "/dev/null"
	}
	if after == nil {
		newName = "/dev/null"
	}
	a, b := Redact(kind, before), redactAgainst(kind, before, after)
	// The first line is the command, not part of the format.
	out := string(diff.Diff(oldName, a, newName, b))
	if _, rest, ok := strings.Cut(out, "\n"); ok {
		return rest
	}
	return out
}

// Redact returns the file with secrets masked.
func Redact(kind Kind, src []byte) []byte { return redactAgainst(kind, src, src) }

// redactAgainst marks secrets that differ from before: the masks look the same.
func redactAgainst(kind Kind, before, after []byte) []byte {
	if kind == KindProperties {
		if p, err := parseToShow(after); err == nil {
			old, err := parseToShow(before)
			if err != nil {
				old = nil
			}
			return p.redacted(old)
		}
	}
	return []byte(redact.Text(string(after)))
}

// parseToShow treats an invalid escape as text, so that the secrets beside it are found.
func parseToShow(src []byte) (*Properties, error) {
	p, err := ParseProperties(src)
	if err == nil {
		return p, nil
	}
	text := bytes.Clone(src)
	for at := range text {
		if rest := text[at:]; bytes.HasPrefix(rest, []byte(`\u`)) && !isEscape(rest) {
			rest[1] = 'v' // same length, no escape
		}
	}
	if p, err = ParseProperties(text); err != nil {
		return nil, err
	}
	p.src = src
	return p, nil
}

func isEscape(text []byte) bool {
	return len(text) >= 6 && !slices.ContainsFunc(text[2:6], func(c byte) bool { return hexDigit(c) < 0 })
}

func (p *Properties) redacted(before *Properties) []byte {
	var spans []Span
	at := 0
	comments := func(to int) {
		text := string(p.src[at:to])
		if masked := redact.Text(text); masked != text {
			spans = append(spans, Span{Anchor: "comment", Off: at, Old: p.src[at:to], New: []byte(masked)})
		}
	}
	for _, e := range p.entries {
		comments(e.start)
		at = e.next
		masked := maskedAs(e.key, e.value)
		if masked == e.value {
			continue
		}
		if before != nil {
			if was, ok := before.Get(e.key); ok && was != e.value && maskedAs(e.key, was) == masked {
				masked = strings.Replace(masked, redact.Placeholder, maskChanged, 1)
			}
		}
		spans = append(spans, Span{Anchor: e.key, Off: e.valOff, Old: p.src[e.valOff:e.end], New: []byte(escapeValue(masked, false))})
	}
	comments(len(p.src))
	out, err := applySpans(p.src, spans)
	if err != nil {
		return []byte(redact.Placeholder + "\n") // impossible, but must not leak
	}
	return out
}

// wholeURI matches a connection string: a blank in its password ends a word of a text, but not the value of a
// setting.
var wholeURI = regexp.MustCompile(`(?s)^(?:[^:]*://[^:@/]*:(.*)|[^:@/]*:((?:[^/]|/[^/]).*))@`)

func maskedAs(key, value string) string {
	if redact.Value(key, value) {
		return redact.Placeholder
	}
	spans := redact.Find(value)
	if m := wholeURI.FindStringSubmatchIndex(value); m != nil {
		from, to := m[2], m[3]
		if from < 0 {
			from, to = m[4], m[5]
		}
		spans = append(spans, redact.Span{From: from, To: to})
	}
	return redact.Replace(value, spans)
}
