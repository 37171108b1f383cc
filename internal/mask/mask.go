// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mask

import (
	"slices"
	"strings"
	"unicode"
)

// Span is text[From:To].
type Span struct{ From, To int }

// anywhere are the words that make a name a secret's wherever they stand in it, with the punctuation taken out.
func anywhere() []string {
	return []string{
		"password", "passwd", "passphrase", "passcode", "secret", "token", "credential",
		"accesskey", "apikey", "privatekey", "jwtkey", "signingkey", "encryptionkey", "licensekey", "licencekey",
		"authkey", "masterkey", "sharedkey", "streamkey", "hmac",
		// AMS's own: clusterCommunicationKey, firebaseAccountKeyJSON, subscriberAuthenticationKey.
		"communicationkey", "accountkey", "authenticationkey",
		// MongoDB's, which holds AWS_SESSION_TOKEN.
		"authmechanismproperties",
	}
}

// Name reports whether a setting of that name holds a secret: db.password, rtmps.keystorepass, apiKey, jwt_key.
func Name(name string) bool {
	flat := strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, name)
	for _, w := range anywhere() {
		if strings.Contains(flat, w) {
			return true
		}
	}
	for _, w := range words(name) {
		switch {
		case w == "bypass", w == "compass":
		case w == "pw", strings.HasSuffix(w, "pass"), strings.HasSuffix(w, "pwd"):
			return true
		}
	}
	return false
}

// words takes a name apart at punctuation and at capitals: settings.keyPass is settings, key, pass.
func words(name string) []string {
	var all []string
	var w strings.Builder
	lower := false
	end := func() {
		if w.Len() > 0 {
			all = append(all, w.String())
			w.Reset()
		}
	}
	for _, r := range name {
		letter := unicode.IsLetter(r) || unicode.IsDigit(r)
		if !letter || lower && unicode.IsUpper(r) {
			end()
		}
		if letter {
			w.WriteRune(unicode.ToLower(r))
		}
		lower = letter && !unicode.IsUpper(r)
	}
	end()
	return all
}

// shown reports whether a value may be seen whatever its name: nothing, or a switch.
func shown(value string) bool {
	switch strings.ToLower(strings.Trim(value, `"' `)) {
	case "", "true", "false":
		return true
	}
	return false
}

// Value reports whether the value of the setting is to be masked.
func Value(name, value string) bool { return Name(name) && !shown(value) }

// Assignments finds the values of secrets in the words of a program: name=value, "name": "value", and private keys as
// PEM has them. A value ends at a blank, a closing quote, or, in a URI, at the next option.
func Assignments(text string) []Span {
	found := privateKeys(text)
	var w word
	for i := 0; i < len(text); i++ {
		var s Span
		var ok bool
		switch text[i] {
		case '=':
			s, ok = assignment(text, i, &w)
		case ':':
			s, ok = member(text, i)
		}
		if ok {
			found = append(found, s)
			i = max(i, s.To-1)
		}
	}
	return merge(found)
}

// privateKeys finds what stands between the two lines of PEM, however these are escaped.
func privateKeys(text string) []Span {
	const begin, end, line = "-----BEGIN ", "-----END ", "PRIVATE KEY-----"
	var found []Span
	for at := 0; ; {
		n := strings.Index(text[at:], line)
		if n < 0 {
			return found
		}
		from := at + n + len(line)
		begins := strings.Contains(text[at:from], begin)
		if at = from; !begins {
			continue // the line that ends a key
		}
		if m := strings.Index(text[from:], end); m >= 0 {
			at += m
		} else {
			at = len(text)
		}
		found = append(found, Span{from, at})
	}
}

// word is what stands around a sign, between blanks or quotes. It is looked at once for all
// its signs: somebody's line may be one word with thousands of them.
type word struct {
	end    int // where it ends
	uri    int // where its "://" ends; behind end where it has none
	option int // where its first & is that the last look found; end where there is none
}

// at looks at the word around the sign at text[sign].
func (w *word) at(text string, sign int) {
	if sign >= w.end {
		start := strings.LastIndexAny(text[:sign], wordEnds) + 1
		w.end = wordEnd(text, sign)
		w.uri, w.option = w.end+1, start
		if n := strings.Index(text[start:w.end], "://"); n >= 0 {
			w.uri = start + n + len("://")
		}
	}
	if w.option <= sign {
		w.option = w.end
		if n := strings.IndexByte(text[sign:w.end], '&'); n >= 0 {
			w.option = sign + n
		}
	}
}

const wordEnds = " \t\r\n\"'<>"

// wordEnd is where the word at text[at] ends. A quote within it may be a password's: it is an end only before what
// follows a closing quote.
func wordEnd(text string, at int) int {
	const behind = wordEnds + "`,;:.)]}/\\"
	for ; at < len(text); at++ {
		n := strings.IndexAny(text[at:], wordEnds)
		if n < 0 {
			break
		}
		at += n
		quote := text[at] == '"' || text[at] == '\''
		if !quote || at+1 == len(text) || strings.IndexByte(behind, text[at+1]) >= 0 {
			return at
		}
	}
	return len(text)
}

// assignment is name=value with the sign at text[at].
func assignment(text string, at int, w *word) (Span, bool) {
	name := nameBefore(text, at)
	if name == "" || at+1 == len(text) {
		return Span{}, false
	}
	from := at + 1
	if s, _, ok := quoted(text, from); ok {
		return s, Value(name, text[s.From:s.To])
	}
	w.at(text, at)
	to := w.end
	if w.uri <= at {
		to = w.option
	}
	return Span{from, to}, Value(name, text[from:to])
}

// member is "name": "value" with the colon at text[at].
func member(text string, at int) (Span, bool) {
	before := strings.TrimRight(text[:at], " \t")
	before = strings.TrimSuffix(before, `\`) // as Java writes it
	before, ok := strings.CutSuffix(before, `"`)
	if !ok {
		return Span{}, false
	}
	before = strings.TrimRight(before, `\`) // JSON in a string
	name := nameBefore(before, len(before))
	from := at + 1
	for from < len(text) && (text[from] == ' ' || text[from] == '\t') {
		from++
	}
	s, _, ok := quoted(text, from)
	return s, ok && Value(name, text[s.From:s.To])
}

// quoted is what stands between the quote at text[at] and its end, and where what follows begins. A backslash takes the next
// character with it. Where the quote itself is behind backslashes, as in a string that was quoted again, its end is, too.
func quoted(text string, at int) (s Span, end int, ok bool) {
	depth := len(text[at:]) - len(strings.TrimLeft(text[at:], `\`))
	open := at + depth
	if open >= len(text) || (text[open] != '"' && text[open] != '\'') {
		return Span{}, at, false
	}
	slashes := 0
	for i := open + 1; i < len(text); i++ {
		switch {
		case text[i] == '\\':
			slashes++
			continue
		case text[i] != text[open]:
		case depth == 0 && slashes%2 == 0:
			return Span{open + 1, i}, i + 1, true
		case depth > 0 && slashes <= depth: // what stands in it is deeper
			return Span{open + 1, i - slashes}, i + 1, true
		}
		slashes = 0
	}
	return Span{open + 1, len(text)}, len(text), true
}

// Text finds the values of secrets in the words of others, of which nobody knows what they quote: [Assignments],
// attributes, XML, and lines of YAML (name: value).
func Text(text string) []Span {
	found := slices.Concat(Assignments(text), attributes(text), scalars(text))
	// Prose has <password> as well, for what is to be put in; XML ends what it begins.
	from, to := strings.IndexByte(text, '<'), strings.LastIndexByte(text, '>')
	if from >= 0 && from < to && (strings.Contains(text[from:to], "</") || strings.Contains(text[from:to+1], "/>")) {
		for _, s := range XML(text[from : to+1]) {
			found = append(found, Span{from + s.From, from + s.To})
		}
	}
	return merge(found)
}

// attributes finds the value in name="password" value="x": attributes one after the other, in a tag or what is told of one.
func attributes(text string) []Span {
	var found, values []Span // values: of the attributes that belong together
	secret := false
	last := 0
	flush := func() {
		if secret {
			found = append(found, values...)
		}
		values, secret = nil, false
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '=' {
			continue
		}
		s, end, ok := quoted(text, i+1)
		name := nameBefore(text, i)
		start := i - len(name)
		if start > 0 && text[start-1] == '\\' && strings.IndexByte("nrt", text[start]) >= 0 {
			name = name[1:] // of an escaped line end
		}
		if !ok || strings.Trim(text[last:start], " \t\r\n\\") != "" {
			flush()
		}
		if !ok {
			continue
		}
		switch value := text[s.From:s.To]; name {
		case "name", "key", "property":
			secret = secret || Name(value)
		case "value":
			if !shown(value) {
				values = append(values, s)
			}
		}
		last, i = end, end-1
	}
	flush()
	return found
}

// scalars finds the value in a line of YAML: a name, a colon and one word. A sentence has more words, or begins before it.
func scalars(text string) []Span {
	var found []Span
	for i := 0; i+1 < len(text); i++ {
		if text[i] != ':' || text[i+1] != ' ' {
			continue
		}
		name := nameBefore(text, i)
		if name == "" || !beginsLine(text[:i-len(name)]) {
			continue
		}
		from := i + 1
		for from < len(text) && text[from] == ' ' {
			from++
		}
		s, end, ok := quoted(text, from)
		if !ok {
			end = len(text)
			if n := strings.IndexAny(text[from:], " \t\r\n\"'`"); n >= 0 {
				end = from + n
			}
			s = Span{from, end}
		}
		if endsLine(text[end:]) && Value(name, text[s.From:s.To]) {
			found = append(found, s)
		}
	}
	return found
}

// beginsLine reports whether a line, or what is quoted, begins after the text.
func beginsLine(before string) bool {
	before = strings.TrimRight(before, " \t-#")
	return before == "" || strings.HasSuffix(before, `\n`) || strings.IndexByte("\n\"'`", before[len(before)-1]) >= 0
}

func endsLine(after string) bool {
	after = strings.TrimLeft(after, " \t\r")
	return after == "" || after[0] == '#' || strings.HasPrefix(after, `\n`) || strings.IndexByte("\n\"'`", after[0]) >= 0
}

// nameBefore is the name that ends at text[:at].
func nameBefore(text string, at int) string {
	from := at
	for from > 0 && isName(text[from-1]) {
		from--
	}
	return text[from:at]
}

func isName(c byte) bool {
	return c == '.' || c == '_' || c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// Lines finds the values of secrets in a file of settings or a script, in its comments, too: name=value, name: value,
// #name=value, #name value. A value goes to the end of its line.
func Lines(text string) []Span {
	var found []Span
	off := 0
	for line := range strings.Lines(text) {
		if s, ok := setting(line); ok {
			found = append(found, Span{off + s.From, off + s.To})
		}
		off += len(line)
	}
	return merge(append(found, Assignments(text)...))
}

// setting finds the value in one line. The name is the last word before the sign.
func setting(line string) (Span, bool) {
	body := strings.TrimLeft(line, " \t#!;/*")
	comment := strings.ContainsAny(line[:len(line)-len(body)], "#!;/*")
	end := len(strings.TrimRight(line, " \t\r\n"))
	start := len(line) - len(body)
	if start >= end {
		return Span{}, false
	}
	sign := strings.IndexAny(line[start:end], "=:")
	if sign >= 0 {
		sign += start
		name := strings.TrimRight(line[start:sign], " \t\"'")
		name = name[strings.LastIndexAny(name, " \t\"'")+1:]
		from := sign + 1
		for from < end && (line[from] == ' ' || line[from] == '\t') {
			from++
		}
		if Value(name, line[from:end]) {
			return Span{from, end}, true
		}
	}
	// A properties file may have a blank for a sign; a sentence has more words.
	if f := strings.Fields(line[start:end]); comment && len(f) == 2 && Value(f[0], f[1]) {
		return Span{end - len(f[1]), end}, true
	}
	return Span{}, false
}

// XML finds the values of secrets in XML, commented-out parts included: attributes, <property name="…" value="…"/> and its
// kin, and the text of elements.
func XML(text string) []Span {
	found := Assignments(text)
	pending := false // the text up to the end of an element belongs to a secret
	characters := func(from, to int) {
		if body := text[from:to]; pending && strings.TrimSpace(body) != "" {
			from += len(body) - len(strings.TrimLeftFunc(body, unicode.IsSpace))
			found = append(found, Span{from, from + len(strings.TrimSpace(body))})
		}
	}
	for at := 0; at < len(text); {
		if text[at] != '<' {
			end := len(text)
			if n := strings.IndexByte(text[at:], '<'); n >= 0 {
				end = at + n
			}
			characters(at, end)
			at = end
			continue
		}
		if strings.HasPrefix(text[at:], "<!--") {
			at += len("<!--") // what was commented out is looked at like the rest
			continue
		}
		const cdata, cdataEnd = "<![CDATA[", "]]>"
		if strings.HasPrefix(text[at:], cdata) {
			at += len(cdata)
			if !pending {
				continue // what is in it is looked at like the rest
			}
			end := len(text)
			if n := strings.Index(text[at:], cdataEnd); n >= 0 {
				end = at + n
			}
			characters(at, end)
			at = min(end+len(cdataEnd), len(text))
			continue
		}
		end := tagEnd(text, at)
		tag := text[at:end]
		spans, secret := tagSecrets(tag)
		for _, s := range spans {
			found = append(found, Span{at + s.From, at + s.To})
		}
		switch {
		case strings.HasPrefix(tag, "</"):
			pending = false
		case secret:
			pending = !strings.HasSuffix(tag, "/>")
		}
		at = end
	}
	return merge(found)
}

// tagEnd is where the tag at text[at] ends; a > in quotes does not end it.
func tagEnd(text string, at int) int {
	var quote byte
	for i := at + 1; i < len(text); i++ {
		switch c := text[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '>':
			return i + 1
		case c == '<':
			return i
		}
	}
	return len(text)
}

// tagSecrets finds the secret values of a tag, and tells whether what follows it is one.
func tagSecrets(tag string) (found []Span, secret bool) {
	type attribute struct {
		name  string
		value Span
	}
	var attrs []attribute
	for i := 0; i < len(tag); i++ {
		if tag[i] != '=' {
			continue
		}
		before := strings.TrimRight(tag[:i], " \t\r\n")
		from := i + 1
		for from < len(tag) && strings.IndexByte(" \t\r\n", tag[from]) >= 0 {
			from++
		}
		value, next, ok := attributeValue(tag, from)
		if !ok {
			continue
		}
		attrs = append(attrs, attribute{nameBefore(before, len(before)), value})
		i = next - 1
	}
	element := strings.TrimLeft(tag, "</")
	if n := strings.IndexAny(element, " \t\r\n/>"); n >= 0 {
		element = element[:n]
	}
	secret = Name(element)
	for _, a := range attrs {
		switch a.name {
		case "name", "key", "property":
			secret = secret || Name(tag[a.value.From:a.value.To])
		}
	}
	for _, a := range attrs {
		value := tag[a.value.From:a.value.To]
		if Value(a.name, value) || secret && a.name == "value" && !shown(value) {
			found = append(found, a.value)
		}
	}
	return found, secret
}

// attributeValue is [quoted] for XML, where a backslash is a character like any other unless it stands before the quote.
func attributeValue(tag string, at int) (s Span, end int, ok bool) {
	if at < len(tag) && tag[at] == '\\' {
		return quoted(tag, at)
	}
	if at >= len(tag) || tag[at] != '"' && tag[at] != '\'' {
		return Span{}, at, false
	}
	if n := strings.IndexByte(tag[at+1:], tag[at]); n >= 0 {
		return Span{at + 1, at + 1 + n}, at + n + 2, true
	}
	return Span{at + 1, len(tag)}, len(tag), true
}

// merge sorts spans and makes one of those that touch or overlap.
func merge(spans []Span) []Span {
	slices.SortStableFunc(spans, func(a, b Span) int { return a.From - b.From })
	var out []Span
	for _, s := range spans {
		if n := len(out); n > 0 && s.From <= out[n-1].To {
			out[n-1].To = max(out[n-1].To, s.To)
			continue
		}
		out = append(out, s)
	}
	return out
}

// Replace puts the placeholder in place of every span. Line ends inside of a span stay, so that lines keep their numbers.
func Replace(text string, spans []Span, placeholder string) string {
	var b strings.Builder
	at := 0
	for _, s := range merge(slices.Clone(spans)) {
		if s.From >= s.To {
			continue
		}
		b.WriteString(text[at:s.From])
		b.WriteString(placeholder)
		b.WriteString(strings.Repeat("\n", strings.Count(text[s.From:s.To], "\n")))
		at = s.To
	}
	b.WriteString(text[at:])
	return b.String()
}
