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

// another tells what differs from what is shown the same.
const another = " (another one)"

// maskChanged tells a secret that changes from one that stays.
const maskChanged = redact.Placeholder + another

// Diff is the unified diff that turns before into after, fit to be shown:
// values of keys that name a secret, and passwords inside connection strings,
// are masked on both sides. It is empty when nothing changes.
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
	// The first line is the command `diff OLD NEW`, which is not part of the
	// unified format.
	out := string(diff.Diff(oldName, a, newName, b))
	if _, rest, ok := strings.Cut(out, "\n"); ok {
		return rest
	}
	return out
}

// Redact is the file with its secrets masked.
func Redact(kind Kind, src []byte) []byte { return redactAgainst(kind, src, src) }

// redactAgainst masks the secrets of after; those that differ from before say
// so, because the masks alone would look the same.
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

// parseToShow is [ParseProperties] for a file that is only shown: an escape that Java refuses is text, so that the
// secrets beside it are found.
func parseToShow(src []byte) (*Properties, error) {
	p, err := ParseProperties(src)
	if err == nil {
		return p, nil
	}
	text := bytes.Clone(src)
	for at := range text {
		if rest := text[at:]; bytes.HasPrefix(rest, []byte(`\u`)) && !isEscape(rest) {
			rest[1] = 'v' // as long, and no escape
		}
	}
	if p, err = ParseProperties(text); err != nil {
		return nil, err
	}
	p.src = src
	return p, nil
}

// isEscape reports whether \u at the beginning of text has four hexadecimal digits.
func isEscape(text []byte) bool {
	return len(text) >= 6 && !slices.ContainsFunc(text[2:6], func(c byte) bool { return hexDigit(c) < 0 })
}

// redacted replaces the raw values that are secrets.
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
		return []byte(redact.Placeholder + "\n") // cannot happen; and if it does, nothing leaks
	}
	return out
}

// wholeURI is a value that is a connection string: a blank in its password ends a word of a text, but not the value of a setting.
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
