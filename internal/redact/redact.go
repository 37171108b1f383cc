// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package redact keeps secrets out of what is shown: those that the agent knows, however they are spelled, and what looks
// like one in the words of others.
package redact

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Placeholder is what is shown in place of a secret. Asterisks are legal in a URI, so that a connection string stays one.
const Placeholder = "***"

// shortSecret is the length below which a secret is masked only when it stands alone: to mask every "a" for the password
// "a" would hide the text and show the password.
const shortSecret = 4

// ownWords are passwords that people use and the agent's own texts contain. To mask such a word in a fixed sentence shows the
// password to every reader who knows the sentence; left there, it does not stand out.
var ownWords = strings.Fields(`admin agent amsagent antmedia client cluster database default drain edge group health hidden hook
join leave live local localhost login machine master media mongo mongodb node none origin passphrase passwd password private public
replica root secret server service stream system test token user username viewer`)

func isOwnWord(secret string) bool { return slices.Contains(ownWords, strings.ToLower(secret)) }

// Span is text[From:To].
type Span struct{ From, To int }

// Text masks the secrets, and what [Find] finds.
func Text(text string, secrets ...Secret) string {
	spans := Find(text)
	for _, s := range secrets {
		for _, spelled := range spellings(string(s)) {
			spans = append(spans, occurrences(text, spelled)...)
		}
	}
	return Replace(text, spans)
}

// Replace puts the placeholder in place of every span. Line ends in a span stay, so that lines keep their numbers.
func Replace(text string, spans []Span) string {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b Span) int { return a.From - b.From })
	var b strings.Builder
	at := 0
	for i := 0; i < len(spans); {
		s := spans[i]
		for i++; i < len(spans) && spans[i].From <= s.To; i++ {
			s.To = max(s.To, spans[i].To)
		}
		if s.From < s.To {
			b.WriteString(text[at:s.From] + Placeholder + strings.Repeat("\n", strings.Count(text[s.From:s.To], "\n")))
			at = s.To
		}
	}
	return b.String() + text[at:]
}

// spellings are the ways in which a text is written in a URI, in a .properties file, in JSON, Go and XML. A secret from a URI is
// met decoded, too.
func spellings(secret string) []string {
	var all []string
	decoded, err := url.PathUnescape(secret)
	if err != nil {
		decoded = secret
	}
	for _, s := range []string{secret, decoded} {
		if s == "" {
			continue
		}
		escaped := strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
		quoted, ascii := strconv.Quote(s), strconv.QuoteToASCII(s)
		all = append(all, s, escaped, lowerHex(escaped), url.QueryEscape(s), url.PathEscape(s), quoted[1:len(quoted)-1], ascii[1:len(ascii)-1])
		var html, plain, x bytes.Buffer
		enc := json.NewEncoder(&plain)
		enc.SetEscapeHTML(false)
		if json.NewEncoder(&html).Encode(s) == nil && enc.Encode(s) == nil && xml.EscapeText(&x, []byte(s)) == nil {
			all = append(all, html.String()[1:html.Len()-2], plain.String()[1:plain.Len()-2], x.String())
			for _, quotes := range [][]string{{"&#34;", "&quot;", "&#39;", "&apos;"}, {"&#34;", `"`, "&#39;", "'"}} {
				all = append(all, strings.NewReplacer(quotes...).Replace(x.String()))
			}
		}
		for _, signs := range []string{"", "=:#!", "=:#! "} { // what we write, and Java
			for _, format := range []string{`\u%04X`, `\u%04x`} {
				all = append(all, property(s, signs, format))
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// lowerHex makes %2f of %2F; both are a slash.
func lowerHex(escaped string) string {
	return percent.ReplaceAllStringFunc(escaped, strings.ToLower)
}

// property writes s as the value of a .properties file, with a backslash before each of the signs, and what is not ASCII by the format.
func property(s, signs, format string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\\' || strings.ContainsRune(signs, r):
			b.WriteString(`\` + string(r))
		case r < ' ' || r > '~':
			for _, u := range utf16.AppendRune(nil, r) {
				fmt.Fprintf(&b, format, u)
			}
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func occurrences(text, secret string) (found []Span) {
	short, own := utf8.RuneCountInString(secret) < shortSecret, isOwnWord(secret)
	for at := 0; ; at++ {
		n := strings.Index(text[at:], secret)
		if n < 0 {
			return found
		}
		at += n
		if (!short || standsAlone(text, at, at+len(secret))) && (!own || isValue(text, at, at+len(secret))) {
			found = append(found, Span{at, at + len(secret)})
		}
	}
}

// standsAlone reports whether text[from:to] has no letter or digit next to it.
func standsAlone(text string, from, to int) bool {
	before, _ := utf8.DecodeLastRuneInString(text[:from])
	after, _ := utf8.DecodeRuneInString(text[to:])
	word := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
	return !word(before) && !word(after)
}

// isValue reports whether text[from:to] is the whole text, in quotes, or between the signs around a value.
func isValue(text string, from, to int) bool {
	before, after := text[:from], text[to:]
	if before == "" {
		return after == ""
	}
	begins := strings.ContainsAny(before[len(before)-1:], "\"'`=:>")
	return begins && (after == "" || strings.ContainsAny(after[:1], "\"'`<&,;@\r\n"))
}

var (
	// A name of a secret has one of these in it, or a word that ends in one of those.
	secretName = regexp.MustCompile(`(?i)pass[._-]?(?:word|wd|phrase|code)|secret|token|credential|hmac|authmechanismproperties` +
		`|(?:access|api|private|jwt|signing|encryption|licen[sc]e|auth|authentication|master|shared|stream|communication|account)[._-]?key`)
	secretWord = regexp.MustCompile(`(?i:pass|pwd)(?:[^a-zA-Z]|$)|[pP](?:ass|wd)[A-Z]|(?:^|[^a-zA-Z])(?i:pw)(?:[^a-zA-Z]|$)|[a-z0-9]Pw(?:[^a-z]|$)`)
	otherPass  = regexp.MustCompile(`(?i)bypass|compass`)
	shown      = regexp.MustCompile(`(?i)^["' ]*(?:true|false)?["' ]*$`)
	// partOfName has a part of each name of a secret: to search it is quick.
	partOfName = []string{"pass", "pw", "secret", "token", "credential", "hmac", "authmechanism", "key"}
)

// Name reports whether a setting of that name holds a secret: db.password, rtmps.keystorepass, apiKey, jwt_key.
func Name(name string) bool {
	lower := strings.ToLower(name)
	if !slices.ContainsFunc(partOfName, func(part string) bool { return strings.Contains(lower, part) }) {
		return false
	}
	return secretName.MatchString(name) || secretWord.MatchString(otherPass.ReplaceAllString(name, ""))
}

// Value reports whether the value of the setting must be masked: a switch is shown whatever its name is.
func Value(name, value string) bool { return Name(name) && !shown.MatchString(value) }

// A word in a text ends at a blank, at a bracket of XML and at a quote that ends a string; a password may hold other quotes.
const (
	inWord   = `(?:[^\s<>"]|"[^\s<>",:\]}])`
	inOption = `(?:[^\s<>"&]|"[^\s<>",:\]}])`
)

// In each of the patterns the first group is the name of a secret, and another one the value; in those of one group that is the secret.
var patterns = []*regexp.Regexp{
	// scheme://user:password@host, and the same without a scheme. The password is all up to the last @, as it may hold one.
	regexp.MustCompile(`://[^\s:/@<>"]*:(` + inWord + `*)@`),
	regexp.MustCompile(`(?:^|[\s"'=,])[^\s:/@<>"'=,]*:([^\s<>"/]` + inWord + `*)@`),
	regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----(.*?)(?:-----END |$)`),
	// A line of settings or of a script, and one of YAML, also in quotes; a sentence has more words.
	regexp.MustCompile(`(?m)^[ \t#!;/*]*(?:export[ \t]+)?([\w.:-]{1,100})[ \t]*=[ \t]*(\S.*?)[ \t\r]*$`),
	regexp.MustCompile(`(?m)^[ \t]*[#!]+[ \t]*([\w.:-]{1,100})[ \t]+(\S+)[ \t\r]*$`),
	regexp.MustCompile(`(?m)(?:^|\\n|["'])[ \t#-]*([\w.-]{1,100}):[ \t]+(?:"([^"\n]*)"|'([^'\n]*)'|([^\s"'\\]+))[ \t\r]*(?:#|$|\\n|["'])`),
	// XML: attributes beside each other, <value> in an element, and the text of an element.
	regexp.MustCompile(`(?:name|key|property)=\\*["']([^"'\\<>]{1,100})\\*["']\s+value=\\*["']([^"'\\]*)`),
	regexp.MustCompile(`(?:name|key|property)=["']([^"'<>]{1,100})["'][^<>]*>\s*<value>\s*(?:<!\[CDATA\[\s*)?([^<\]]*)`),
	regexp.MustCompile(`<([\w.:-]{1,100})>\s*(?:<!\[CDATA\[([^\]<]*)|([^<]*)</)`),
}

var (
	valueFirst = regexp.MustCompile(`value=\\*["']([^"'\\]*)\\*["']\s+(?:name|key|property)=\\*["']([^"'\\<>]{1,100})`)
	// A sign behind a name, in JSON in quotes, and the value behind it, in quotes or up to a blank. A quote behind backslashes
	// ends at the next one.
	sign    = regexp.MustCompile(`([\w.:-]{1,100})(?:[ \t]*=[ \t]*|\\*"[ \t]*:[ \t]*)`)
	value   = regexp.MustCompile(`^(?:"((?:[^"\\]|\\.)*)|'((?:[^'\\]|\\.)*)|\\+"([^"\\]*)|(` + inOption + `*))`)
	percent = regexp.MustCompile(`%[0-9A-F]{2}`)
)

// Find finds what looks like a secret: passwords in URIs, private keys, and what is assigned to the name of a secret
// (password=x, "password": "x", password: x, name="password" value="x", <password>x</password>).
func Find(text string) []Span {
	var found []Span
	named := Name(text)
	if !named && !strings.Contains(text, "@") && !strings.Contains(text, "PRIVATE KEY") {
		return nil
	}
	add := func(name string, from, to int) {
		if Value(name, text[from:to]) && !strings.HasPrefix(text[from:to], Placeholder) {
			found = append(found, Span{from, to})
		}
	}
	for _, p := range patterns {
		if p.NumSubexp() > 1 && !named {
			continue
		}
		for _, m := range p.FindAllStringSubmatchIndex(text, -1) {
			if len(m) == 4 {
				found = append(found, Span{m[2], m[3]})
			}
			for g := 4; g < len(m); g += 2 {
				if m[g] >= 0 {
					add(text[m[2]:m[3]], m[g], m[g+1])
				}
			}
		}
	}
	if !named {
		return found
	}
	for _, m := range valueFirst.FindAllStringSubmatchIndex(text, -1) {
		add(text[m[4]:m[5]], m[2], m[3])
	}
	end := 0
	for _, m := range sign.FindAllStringSubmatchIndex(text, -1) {
		if m[1] < end || !Name(text[m[2]:m[3]]) {
			continue
		}
		v := value.FindStringSubmatchIndex(text[m[1]:])
		for g := 2; g < len(v); g += 2 {
			if v[g] >= 0 {
				end = m[1] + v[g+1]
				add(text[m[2]:m[3]], m[1]+v[g], end)
			}
		}
	}
	return found
}
