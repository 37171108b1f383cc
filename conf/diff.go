// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/amsagent/amsagent/internal/mask"
)

// Mask is what is shown in place of a secret.
const Mask = "********"

// another tells what differs from what is shown the same.
const another = " (another one)"

// maskChanged tells a secret that changes from one that stays.
const maskChanged = Mask + another

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
	text := string(after)
	if strings.HasPrefix(strings.TrimLeft(text, "\ufeff \t\r\n"), "<") {
		return []byte(mask.Replace(text, append(mask.XML(text), passwords(text)...), Mask))
	}
	return []byte(maskLines(text))
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

func maskLines(text string) string {
	return mask.Replace(text, append(mask.Lines(text), passwords(text)...), Mask)
}

// redacted replaces the raw values that are secrets.
func (p *Properties) redacted(before *Properties) []byte {
	var spans []Span
	at := 0
	comments := func(to int) {
		text := string(p.src[at:to])
		if masked := maskLines(text); masked != text {
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
				masked = strings.Replace(masked, Mask, maskChanged, 1)
			}
		}
		spans = append(spans, Span{Anchor: e.key, Off: e.valOff, Old: p.src[e.valOff:e.end], New: []byte(escapeValue(masked, false))})
	}
	comments(len(p.src))
	out, err := applySpans(p.src, spans)
	if err != nil {
		return []byte(Mask + "\n") // cannot happen; and if it does, nothing leaks
	}
	return out
}

func maskedAs(key, value string) string {
	if mask.Value(key, value) {
		return Mask
	}
	spans := append(mask.Assignments(value), passwords(value)...)
	// A blank in a password ends a word of a text, but not the value of a setting.
	if i := strings.Index(value, "://"); i >= 0 {
		spans = append(spans, password(value, i+len("://"), len(value))...)
	}
	return mask.Replace(value, spans, Mask)
}

// passwords finds the password of every user:password@host. A scheme is not required:
// releases up to 2.4.1 want their connection string without one. A quote does not end the
// word, since a password may hold one. It rather finds too much than too little.
func passwords(text string) []mask.Span {
	const ends = " \t\r\n<>"
	var found []mask.Span
	for from := 0; from < len(text); {
		to := len(text)
		if n := strings.IndexAny(text[from:], ends); n >= 0 {
			to = from + n
		}
		if i := strings.Index(text[from:to], "://"); i >= 0 {
			// What precedes the scheme may be another string, behind a quote or a comma.
			found = append(found, password(text, from, from+i)...)
			from += i + len("://")
		}
		found = append(found, password(text, from, to)...)
		from = to + 1
	}
	return found
}

// password finds the password in text[from:to], which is user:password@host….
func password(text string, from, to int) []mask.Span {
	// The last @: a password somebody forgot to encode may hold one.
	at := strings.LastIndexByte(text[from:to], '@')
	if at < 0 {
		return nil
	}
	colon := strings.IndexByte(text[from:from+at], ':')
	if colon < 0 {
		return nil
	}
	return []mask.Span{{From: from + colon + 1, To: from + at}}
}
