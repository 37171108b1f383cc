// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// Properties is a .properties file with the grammar of java.util.Properties (LineReader and loadConvert of OpenJDK
// 17): ISO-8859-1 with \uXXXX, separators "=", ":" or whitespace, a trailing backslash for continuation, "#" and "!"
// comments. The last of equal keys wins. Use [ParseProperties].
type Properties struct {
	src     []byte
	entries []property
	last    map[string]int // index of the entry that wins
	edits   map[string]Span
	values  map[string]string // values after edits
	added   []string          // in order
	eol     string
	// openEnd reports a final backslash, which would join an appended line to the last one.
	openEnd bool
}

// keyAnchor begins the anchor of a key's span.
const keyAnchor = "key:"

// property is a logical line with a key.
type property struct {
	key, value string
	start      int // of the logical line, with leading whitespace
	valOff     int // of the raw value
	end        int // of the line, without the terminator
	next       int // of the next line
	sep        sepKind
}

type sepKind int

const (
	sepNone  sepKind = iota // only a key
	sepBlank                // spaces or tabs
	sepSign                 // "=" or ":"
)

// SyntaxError reports an invalid line.
type SyntaxError struct {
	Line int // 1-based
	Msg  string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Msg) }

// ParseProperties returns a [*SyntaxError] for a malformed \uXXXX escape, the only thing that Java refuses.
func ParseProperties(src []byte) (*Properties, error) {
	p := &Properties{
		src:    bytes.Clone(src),
		last:   map[string]int{},
		edits:  map[string]Span{},
		values: map[string]string{},
		eol:    dominantEOL(src),
	}
	if err := p.scan(); err != nil {
		return nil, err
	}
	return p, nil
}

// dominantEOL returns the most frequent line ending, by default "\n".
func dominantEOL(src []byte) string {
	crlf := bytes.Count(src, []byte("\r\n"))
	lf := bytes.Count(src, []byte("\n")) - crlf
	cr := bytes.Count(src, []byte("\r")) - crlf
	switch {
	case crlf > lf && crlf >= cr:
		return "\r\n"
	case cr > lf:
		return "\r"
	}
	return "\n"
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\f' }

// scan follows LineReader.readLine with its quirks: a comment may begin wherever the logical line is still empty,
// even after a continuation, and an empty line ends a continuation.
func (p *Properties) scan() error {
	src := p.src
	var line []byte // ISO-8859-1 bytes of the logical line
	var pos []int   // their offsets in src
	start := 0      // of the logical line, with leading whitespace
	skipBlanks, appended, backslash := true, false, false

	finish := func(end, next int) error {
		err := p.addLine(line, pos, start, end, next)
		line, pos = line[:0], pos[:0]
		start = next
		skipBlanks, appended, backslash = true, false, false
		return err
	}
	for off := 0; off < len(src); {
		c := src[off]
		if skipBlanks {
			if isBlank(c) {
				off++
				continue
			}
			if !appended && (c == '\r' || c == '\n') {
				off++
				start = off
				continue
			}
			skipBlanks, appended = false, false
		}
		if len(line) == 0 && (c == '#' || c == '!') {
			for off < len(src) && src[off] != '\n' && src[off] != '\r' {
				off++
			}
			if off < len(src) {
				off++
			}
			start = off
			skipBlanks = true
			continue
		}
		if c != '\n' && c != '\r' {
			line, pos = append(line, c), append(pos, off)
			backslash = c == '\\' && !backslash
			off++
			continue
		}
		off++
		if len(line) == 0 {
			skipBlanks, start = true, off
			continue
		}
		if !backslash {
			end := off - 1
			if c == '\r' && off < len(src) && src[off] == '\n' {
				off++ // Java sees an empty line, here it is part of the terminator
			}
			if err := finish(end, off); err != nil {
				return err
			}
			continue
		}
		if off >= len(src) {
			// Java drops the backslash.
			p.openEnd, backslash = true, false
			line, pos = line[:len(line)-1], pos[:len(pos)-1]
			break
		}
		line, pos = line[:len(line)-1], pos[:len(pos)-1]
		skipBlanks, appended, backslash = true, true, false
		if c == '\r' && off < len(src) && src[off] == '\n' {
			off++
		}
	}
	if backslash {
		p.openEnd = true
		line, pos = line[:len(line)-1], pos[:len(pos)-1]
	}
	if appended {
		// An appended line would continue the last one.
		p.openEnd = true
	}
	if len(line) > 0 {
		return finish(len(src), len(src))
	}
	return nil
}

// addLine follows Properties.load0.
func (p *Properties) addLine(line []byte, pos []int, start, end, next int) error {
	if len(line) == 0 {
		return nil
	}
	keyLen, valStart := 0, len(line)
	sep := sepNone
	escaped := false
	for keyLen < len(line) {
		c := line[keyLen]
		if (c == '=' || c == ':') && !escaped {
			valStart, sep = keyLen+1, sepSign
			break
		}
		if isBlank(c) && !escaped {
			valStart, sep = keyLen+1, sepBlank
			break
		}
		escaped = c == '\\' && !escaped
		keyLen++
	}
	for valStart < len(line) {
		c := line[valStart]
		if !isBlank(c) {
			if sep != sepBlank || (c != '=' && c != ':') {
				break
			}
			sep = sepSign
		}
		valStart++
	}
	key, err := unescape(line[:keyLen])
	if err == nil {
		var value string
		value, err = unescape(line[valStart:])
		if err == nil {
			valOff := pos[len(pos)-1] + 1
			if valStart < len(line) {
				valOff = pos[valStart]
			}
			p.last[key] = len(p.entries)
			p.entries = append(p.entries, property{key: key, value: value, start: start, valOff: valOff, end: end, next: next, sep: sep})
			return nil
		}
	}
	return &SyntaxError{Line: lineAt(p.src, pos[0]), Msg: err.Error()}
}

// unescape follows Properties.loadConvert. Lone surrogates become U+FFFD.
func unescape(raw []byte) (string, error) {
	if bytes.IndexByte(raw, '\\') < 0 && isASCII(raw) {
		return string(raw), nil
	}
	units := make([]uint16, 0, len(raw))
	for i := 0; i < len(raw); {
		c := raw[i]
		i++
		if c != '\\' || i == len(raw) {
			units = append(units, uint16(c))
			continue
		}
		c = raw[i]
		i++
		switch c {
		case 'u':
			if i+4 > len(raw) {
				return "", fmt.Errorf("malformed \\uxxxx escape")
			}
			var u uint16
			for _, h := range raw[i : i+4] {
				d := hexDigit(h)
				if d < 0 {
					return "", fmt.Errorf("malformed \\uxxxx escape")
				}
				u = u<<4 | uint16(d)
			}
			i += 4
			units = append(units, u)
		case 't':
			units = append(units, '\t')
		case 'n':
			units = append(units, '\n')
		case 'r':
			units = append(units, '\r')
		case 'f':
			units = append(units, '\f')
		default:
			units = append(units, uint16(c))
		}
	}
	return string(utf16.Decode(units)), nil
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// escapeValue writes ASCII with as few escapes as possible. firstSign escapes a leading "=" or ":", which would be
// a separator.
func escapeValue(value string, firstSign bool) string {
	var b strings.Builder
	for i, r := range value {
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\f':
			b.WriteString(`\f`)
		case r == ' ' && i == 0:
			b.WriteString(`\ `)
		case (r == '=' || r == ':') && i == 0 && firstSign:
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r > 0x7e:
			for _, u := range utf16.AppendRune(nil, r) {
				fmt.Fprintf(&b, `\u%04X`, u)
			}
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func escapeKey(key string) string {
	var b strings.Builder
	for i, r := range key {
		switch {
		case r == '=' || r == ':' || r == ' ', i == 0 && (r == '#' || r == '!'):
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteString(escapeValue(string(r), false))
		}
	}
	return b.String()
}

// Get returns the decoded value, edits included.
func (p *Properties) Get(key string) (value string, ok bool) {
	if v, edited := p.values[key]; edited {
		return v, true
	}
	i, ok := p.last[key]
	if !ok {
		return "", false
	}
	return p.entries[i].value, true
}

// Keys returns the keys in order of appearance, then the added ones.
func (p *Properties) Keys() []string {
	var keys []string
	seen := map[string]bool{}
	for _, e := range p.entries {
		if !seen[e.key] {
			seen[e.key] = true
			keys = append(keys, e.key)
		}
	}
	return append(keys, p.added...)
}

// Set changes the line that wins, or appends one, if the decoded value differs. standalone, if not nil, is for an
// undo after the key was edited again.
func (p *Properties) Set(key, value string, standalone *string) {
	if old, ok := p.Get(key); ok && old == value {
		return
	}
	p.values[key] = value
	span := Span{Anchor: keyAnchor + key, Standalone: standalone}
	if i, ok := p.last[key]; ok {
		e := p.entries[i]
		if e.value == value {
			delete(p.edits, key)
			return
		}
		raw := escapeValue(value, e.sep == sepBlank)
		if e.sep == sepNone {
			raw = "=" + raw
		}
		span.Off, span.Old, span.New = e.valOff, p.src[e.valOff:e.end], []byte(raw)
		p.edits[key] = span
		return
	}
	if _, again := p.edits[key]; !again {
		p.added = append(p.added, key)
	}
	p.edits[key] = span // Spans sets the bytes, which depend on the other added keys
}

// spellAs gives the edited value of key the bytes that it has in q, if they mean the same here.
func (p *Properties) spellAs(key string, q *Properties) {
	span, edited := p.edits[key]
	i, ok := q.last[key]
	if !edited || !ok {
		return
	}
	raw := q.src[q.entries[i].valOff:q.entries[i].end]
	if value, err := unescape(raw); err != nil || value != p.values[key] || len(raw) == 0 || raw[0] == '=' || raw[0] == ':' {
		return // continued in another line, or with a sign that may be a separator
	}
	if p.entries[p.last[key]].sep == sepNone {
		raw = append([]byte{'='}, raw...)
	}
	span.New = raw
	p.edits[key] = span
}

// Spans returns the edits by offset. New lines are appended; a file without a final newline stays so.
func (p *Properties) Spans() []Span {
	var spans []Span
	for i, e := range p.entries {
		if s, ok := p.edits[e.key]; ok && p.last[e.key] == i {
			spans = append(spans, s)
		}
	}
	terminated := len(p.src) == 0 || p.src[len(p.src)-1] == '\n' || p.src[len(p.src)-1] == '\r'
	for i, key := range p.added {
		s := p.edits[key]
		line := escapeKey(key) + "=" + escapeValue(p.values[key], false)
		switch {
		case i == 0 && p.openEnd && terminated:
			line = p.eol + line + p.eol // the empty line ends the continuation
			if p.eol == "\n" && p.src[len(p.src)-1] == '\r' {
				line = "\n" + line // the first is half of a CR LF
			}
		case i == 0 && p.openEnd:
			line = p.eol + p.eol + line
		case terminated:
			line += p.eol
		default:
			line = p.eol + line
		}
		s.Off, s.New = len(p.src), []byte(line)
		spans = append(spans, s)
	}
	return spans
}

// Bytes returns the edited file.
func (p *Properties) Bytes() []byte {
	out, err := applySpans(p.src, p.Spans())
	if err != nil {
		panic("conf: " + err.Error()) // our scan gives no overlaps
	}
	return out
}

func (p *Properties) hasLine(key, value string) bool {
	return slices.ContainsFunc(p.entries, func(e property) bool { return e.key == key && e.value == value })
}

// lineSpan returns the line of e, with its newline. Lines behind it may have been cut off.
func (p *Properties) lineSpan(e property) (off, end int) {
	off, end = e.start, min(e.next, len(p.src))
	if end == e.end && off > 0 {
		// A last line without a newline was added with the one before it.
		switch {
		case off > 1 && p.src[off-1] == '\n' && p.src[off-2] == '\r':
			off -= 2
		case p.src[off-1] == '\n' || p.src[off-1] == '\r':
			off--
		}
	}
	return off, end
}
