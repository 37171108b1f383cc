// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/mask"
)

// placeholder is what is shown in place of a secret. Asterisks are legal in a
// URI, so a redacted connection string is still one in form.
const placeholder = "***"

// Secret is text that must not be shown: every verb of fmt, slog, JSON, text
// and BSON give a placeholder, and only [Secret.Reveal] gives the text. An
// empty secret shows as empty, because "none set" is no secret and worth
// seeing.
//
// fmt does not call methods on unexported fields, so a struct that keeps a
// Secret in one and may be printed must hide it behind pointers, as [Target]
// does.
type Secret string

// Reveal returns the text itself. Every use of it is a place to review.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) shown() string {
	if s == "" {
		return ""
	}
	return placeholder
}

// String returns the placeholder.
func (s Secret) String() string { return s.shown() }

// GoString returns the placeholder, quoted.
func (s Secret) GoString() string { return strconv.Quote(s.shown()) }

// Format answers every verb with the placeholder; without it %x or %d would
// print the bytes. Two misuses cannot be helped, fmt asks no method for them:
// %p, and %w with what is no error. go vet reports both.
func (s Secret) Format(f fmt.State, verb rune) {
	out := s.shown()
	if verb == 'q' || (verb == 'v' && f.Flag('#')) {
		out = strconv.Quote(out)
	}
	_, _ = io.WriteString(f, out)
}

// LogValue returns the placeholder.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.shown()) }

// MarshalText returns the placeholder; YAML, XML and map keys of JSON use it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.shown()), nil }

// MarshalJSON returns the placeholder.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(strconv.Quote(s.shown())), nil }

// MarshalBinary returns the placeholder; gob uses it.
func (s Secret) MarshalBinary() ([]byte, error) { return []byte(s.shown()), nil }

// MarshalBSONValue returns the placeholder.
func (s Secret) MarshalBSONValue() (byte, []byte, error) {
	t, data, err := bson.MarshalValue(s.shown())
	return byte(t), data, err
}

// shortSecret is the length below which a secret is masked only where it
// stands alone: masking every "a" of a text for the password "a" would hide
// the text and show the password.
const shortSecret = 4

// RedactText masks every occurrence of the secrets in text: as they are,
// percent-encoded or percent-decoded, escaped as in a .properties file, in
// JSON, in a Go string or in XML, and any mixture of these. It also masks the
// password of anything in text that looks like scheme://user:password@host, and
// what is assigned to a name of a secret (password=x, password: x, name="password"
// value="x", <password>x</password>), whether or not it is among the secrets. It is meant for the words of others
// (a driver, a library, a process) before they are shown.
func RedactText(text string, secrets ...Secret) string {
	var hits []mask.Span
	for _, form := range secretForms(secrets) {
		hits = append(hits, findSecret(text, form)...)
	}
	hits = append(hits, findUserinfo(text)...)
	for _, s := range mask.Text(text) {
		if !strings.HasPrefix(text[s.From:s.To], placeholder) { // masked before
			hits = append(hits, s)
		}
	}
	return mask.Replace(text, hits, placeholder)
}

// character is one character of a secret, or one byte that is none.
type character struct {
	raw string
	r   rune
}

// secretForms returns the distinct texts to look for. A secret taken from a
// URI is percent-encoded and may be met decoded, so both are looked for;
// encoded forms of either are found by findSecret.
func secretForms(secrets []Secret) [][]character {
	seen := make(map[string]bool)
	var forms [][]character
	add := func(s string) {
		if s == "" || seen[s] {
			return
		}
		seen[s] = true
		var form []character
		for len(s) > 0 {
			r, n := utf8.DecodeRuneInString(s)
			if r == utf8.RuneError && n == 1 {
				r = rune(s[0]) // Go and shells write such a byte as \xNN
			}
			form = append(form, character{raw: s[:n], r: r})
			s = s[n:]
		}
		forms = append(forms, form)
	}
	for _, s := range secrets {
		add(s.Reveal())
		if dec, err := url.PathUnescape(s.Reveal()); err == nil {
			add(dec)
		}
	}
	return forms
}

// findSecret returns every place where the secret stands in text, in any mix
// of spellings of its characters.
func findSecret(text string, secret []character) []mask.Span {
	var hits []mask.Span
	for from := range len(text) {
		to := matchSecret(text, from, secret)
		if to < 0 {
			continue
		}
		if len(secret) < shortSecret && !standsAlone(text, from, to) {
			continue
		}
		hits = append(hits, mask.Span{From: from, To: to})
	}
	return hits
}

// matchSecret returns the longest end of a match of secret at text[from:], or
// -1. A character has several spellings of different lengths, so all ends
// reached so far are carried along.
func matchSecret(text string, from int, secret []character) int {
	ends := []int{from}
	for _, c := range secret {
		var next []int
		for _, at := range ends {
			for _, n := range spellings(text[at:], c) {
				if !slices.Contains(next, at+n) {
					next = append(next, at+n)
				}
			}
		}
		if len(next) == 0 {
			return -1
		}
		ends = next
	}
	return slices.Max(ends)
}

// spellings returns the lengths of the spellings of c that text starts with.
func spellings(text string, c character) []int {
	var found []int
	if strings.HasPrefix(text, c.raw) {
		found = append(found, len(c.raw))
	}
	if text == "" {
		return found
	}
	switch text[0] {
	case '%':
		if n := percentLen(text, c.raw); n > 0 {
			found = append(found, n)
		}
	case '\\':
		found = append(found, backslashed(text, c)...)
	case '&':
		for _, entity := range xmlEntities(c.r) {
			if strings.HasPrefix(text, entity) {
				found = append(found, len(entity))
			}
		}
	case '+':
		if c.r == ' ' {
			found = append(found, 1)
		}
	}
	return found
}

// percentLen returns the length of raw percent-encoded at the start of text,
// whatever the case of the digits, or 0.
func percentLen(text, raw string) int {
	for i := range len(raw) {
		at := i * 3
		if at+3 > len(text) || text[at] != '%' {
			return 0
		}
		b, err := strconv.ParseUint(text[at+1:at+3], 16, 8)
		if err != nil || byte(b) != raw[i] {
			return 0
		}
	}
	return len(raw) * 3
}

// backslashed returns the lengths of r written with a backslash: \: of
// .properties, \" of JSON and Go, \uXXXX (a pair of them beyond the basic
// plane), \xXX and \n, \t, \r.
func backslashed(text string, c character) []int {
	var found []int
	if strings.HasPrefix(text[1:], c.raw) {
		found = append(found, 1+len(c.raw))
	}
	r := c.r
	var want string
	switch {
	case r < 0x10000:
		want = fmt.Sprintf(`\u%04x`, r)
	default:
		hi, lo := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
		want = fmt.Sprintf(`\u%04x\u%04x`, hi, lo)
	}
	for _, w := range []string{want, fmt.Sprintf(`\x%02x`, r), fmt.Sprintf(`\U%08x`, r)} {
		if len(text) >= len(w) && strings.EqualFold(text[:len(w)], w) {
			found = append(found, len(w))
		}
	}
	if letter := map[rune]string{'\n': `\n`, '\t': `\t`, '\r': `\r`, '\f': `\f`}[r]; letter != "" &&
		strings.HasPrefix(text, letter) {
		found = append(found, len(letter))
	}
	return found
}

func xmlEntities(r rune) []string {
	switch r {
	case '&':
		return []string{"&amp;", "&#38;"}
	case '<':
		return []string{"&lt;", "&#60;"}
	case '>':
		return []string{"&gt;", "&#62;"}
	case '"':
		return []string{"&quot;", "&#34;"}
	case '\'':
		return []string{"&apos;", "&#39;"}
	}
	return nil
}

// standsAlone reports whether text[from:to] has no letter or digit next to it.
func standsAlone(text string, from, to int) bool {
	before, _ := utf8.DecodeLastRuneInString(text[:from])
	after, _ := utf8.DecodeRuneInString(text[to:])
	word := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
	return (from == 0 || !word(before)) && (to == len(text) || !word(after))
}

// findUserinfo returns the passwords of everything that looks like
// scheme://user:password@. A password may itself hold a slash, an at-sign or a
// quote that its author forgot to encode, so all up to the last at-sign of the
// word is taken.
func findUserinfo(text string) []mask.Span {
	var hits []mask.Span
	for at := 0; ; {
		i := strings.Index(text[at:], "://")
		if i < 0 {
			return hits
		}
		start := at + i + len("://")
		at = start
		word := uriWord(text[start:])
		last := strings.LastIndexByte(word, '@')
		colon := strings.IndexByte(word, ':')
		if colon < 0 || last < colon {
			continue
		}
		hits = append(hits, mask.Span{From: start + colon + 1, To: start + last})
	}
}

// uriWord returns the text up to where a URI ends for certain: at a blank, in
// XML, or where the next string begins in JSON on one line, as in a log. A quote
// alone is no end.
func uriWord(text string) string {
	if end := strings.IndexAny(text, " \t\r\n<>"); end >= 0 {
		text = text[:end]
	}
	for at := 0; ; at++ {
		i := strings.IndexByte(text[at:], '"')
		if i < 0 {
			return text
		}
		at += i
		after := strings.TrimLeft(text[at+1:], "]}")
		if strings.HasPrefix(after, `,"`) || strings.HasPrefix(after, ",{") {
			return text[:at]
		}
	}
}
