// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
)

// parseProperties reads what java.util.Properties.load reads: ISO-8859-1 text with
// escapes. The last of several values of a key wins.
func parseProperties(b []byte) (map[string]string, error) {
	runes := make([]rune, len(b)) // a byte is a character in ISO-8859-1
	for i, c := range b {
		runes[i] = rune(c)
	}
	props := map[string]string{}
	for pos := 0; pos < len(runes); {
		var line []rune
		line, pos = logicalLine(runes, pos)
		if len(line) == 0 {
			continue
		}
		key, value, err := splitLine(line)
		if err != nil {
			return nil, err
		}
		props[key] = value
	}
	return props, nil
}

func blank(r rune) bool { return r == ' ' || r == '\t' || r == '\f' }
func eol(r rune) bool   { return r == '\n' || r == '\r' }

// logicalLine returns the next line, with continuations joined and without leading whitespace. It is empty for a blank line
// and a comment. Escapes stay.
func logicalLine(in []rune, pos int) (line []rune, next int) {
	first := true // of the natural lines that make it up
	for {
		for pos < len(in) && blank(in[pos]) {
			pos++
		}
		if first && pos < len(in) && (in[pos] == '#' || in[pos] == '!') {
			for pos < len(in) && !eol(in[pos]) {
				pos++
			}
			return nil, skipEOL(in, pos)
		}
		first = false
		backslashes := 0
		for pos < len(in) && !eol(in[pos]) {
			if in[pos] == '\\' {
				backslashes++
			} else {
				backslashes = 0
			}
			line = append(line, in[pos])
			pos++
		}
		if backslashes%2 == 0 || pos >= len(in) {
			if backslashes%2 == 1 {
				line = line[:len(line)-1] // a backslash at the very end means nothing
			}
			return line, skipEOL(in, pos)
		}
		line = line[:len(line)-1]
		pos = skipEOL(in, pos)
	}
}

func skipEOL(in []rune, pos int) int {
	if pos < len(in) && in[pos] == '\r' {
		pos++
		if pos < len(in) && in[pos] == '\n' {
			pos++
		}
		return pos
	}
	if pos < len(in) && in[pos] == '\n' {
		pos++
	}
	return pos
}

func splitLine(line []rune) (key, value string, err error) {
	end, escaped := 0, false
	for ; end < len(line); end++ {
		r := line[end]
		if !escaped && (r == '=' || r == ':' || blank(r)) {
			break
		}
		escaped = r == '\\' && !escaped
	}
	rest := end
	for rest < len(line) && blank(line[rest]) {
		rest++
	}
	if rest < len(line) && (line[rest] == '=' || line[rest] == ':') {
		rest++
		for rest < len(line) && blank(line[rest]) {
			rest++
		}
	}
	if key, err = unescape(line[:end]); err != nil {
		return "", "", err
	}
	value, err = unescape(line[rest:])
	return key, value, err
}

func unescape(in []rune) (string, error) {
	var units []uint16 // Java's strings are UTF-16, and \u may write half a character
	for i := 0; i < len(in); i++ {
		r := in[i]
		if r != '\\' || i+1 == len(in) {
			if r != '\\' {
				units = append(units, uint16(r))
			}
			continue
		}
		i++
		switch in[i] {
		case 't':
			r = '\t'
		case 'n':
			r = '\n'
		case 'r':
			r = '\r'
		case 'f':
			r = '\f'
		case 'u':
			if i+4 >= len(in) {
				return "", fmt.Errorf("malformed \\uxxxx encoding in %q", string(in))
			}
			n, err := strconv.ParseUint(string(in[i+1:i+5]), 16, 16)
			if err != nil || strings.ContainsAny(string(in[i+1:i+5]), "+-_") {
				return "", fmt.Errorf("malformed \\uxxxx encoding in %q", string(in))
			}
			r = rune(n)
			i += 4
		default:
			r = in[i]
		}
		units = append(units, uint16(r))
	}
	return string(utf16.Decode(units)), nil
}
