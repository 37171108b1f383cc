// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
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
		if p, err := ParseProperties(after); err == nil {
			old, err := ParseProperties(before)
			if err != nil {
				old = nil
			}
			return p.redacted(old)
		}
	}
	text, find := string(after), mask.Lines
	if strings.HasPrefix(strings.TrimLeft(text, "\ufeff \t\r\n"), "<") {
		find = mask.XML
	}
	return []byte(maskURIs(mask.Replace(text, find(text), Mask)))
}

// redacted replaces the raw values that are secrets.
func (p *Properties) redacted(before *Properties) []byte {
	var spans []Span
	at := 0
	comments := func(to int) {
		text := string(p.src[at:to])
		if masked := maskURIs(mask.Replace(text, mask.Lines(text), Mask)); masked != text {
			spans = append(spans, Span{Anchor: "comment", Off: at, Old: p.src[at:to], New: []byte(masked)})
		}
	}
	for _, e := range p.entries {
		comments(e.start)
		at = e.next
		masked := maskURIs(mask.Replace(e.value, mask.Assignments(e.value), Mask))
		if mask.Value(e.key, e.value) {
			masked = Mask
		}
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
	return maskURIs(mask.Replace(value, mask.Assignments(value), Mask))
}

// maskURIs masks the password of every user:password@host it meets. A scheme is
// not required: releases up to 2.4.1 want their connection string without one.
// It rather masks too much than too little.
func maskURIs(text string) string {
	var b strings.Builder
	for rest := text; rest != ""; {
		end := strings.IndexAny(rest, " \t\r\n\"'<>")
		if end < 0 {
			end = len(rest)
		}
		word := rest[:end]
		if i := strings.Index(word, "://"); i >= 0 {
			b.WriteString(word[:i+3])
			word = word[i+3:]
		}
		b.WriteString(maskAuthority(word))
		if end < len(rest) {
			b.WriteByte(rest[end])
			end++
		}
		rest = rest[end:]
	}
	return b.String()
}

// maskAuthority masks the password in user:password@host….
func maskAuthority(s string) string {
	// The last @: a password somebody forgot to encode may hold one.
	at := strings.LastIndexByte(s, '@')
	if at < 0 {
		return s
	}
	colon := strings.IndexByte(s[:at], ':')
	if colon < 0 {
		return s
	}
	return s[:colon+1] + Mask + s[at:]
}
