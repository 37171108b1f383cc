// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/conf"
)

// Longer values and more placeholders are not resolved: keys that reference each other never end.
const (
	maxPlaceholders = 16
	maxResolved     = 1 << 10
)

// setting is a value of red5.properties without its placeholders. unknown names a variable of the server's environment
// that decides it; text is then the default, or "".
type setting struct {
	text, unknown string
}

// springValue resolves ${KEY} and ${KEY:DEFAULT} in a value, as Spring does: KEY is another key of the file, or a
// variable of the server's environment, which is not known here.
func springValue(p *conf.Properties, key string) (s setting) {
	s.text, _ = p.Get(key)
	for range maxPlaceholders {
		// The last one contains no other.
		open := strings.LastIndex(s.text, "${")
		length := strings.IndexByte(s.text[max(open, 0):], '}')
		if open < 0 || length < 0 {
			s.text = strings.TrimSpace(s.text)
			return s
		}
		name, value, hasDefault := strings.Cut(s.text[open+len("${"):open+length], ":")
		if v, inFile := p.Get(name); inFile {
			value = v
		} else if s.unknown = name; !hasDefault {
			return setting{unknown: name}
		}
		s.text = s.text[:open] + value + s.text[open+length+1:]
		if len(s.text) > maxResolved {
			break
		}
	}
	return setting{text: "${…}"}
}

// port returns the number of a TCP or UDP port.
func (s setting) port() (n int, ok bool) {
	n, err := strconv.Atoi(s.text)
	return n, err == nil && n > 0 && n < 1<<16
}
