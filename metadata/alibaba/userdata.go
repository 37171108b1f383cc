// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// The bounds of ParseUserData. ECS takes 32 KB of user data.
const (
	maxUserData   = 64 << 10
	maxUserTags   = 16
	maxUserKey    = 32
	maxUserValue  = 1024
	commentMarks  = "#;/-*"
	userTagPrefix = "amsagent"
)

// ParseUserData finds the agent's settings in user data, which is whatever its author wants it to be: a script, a
// cloud-config, several of them. A setting is one line
//
//	amsagent-role=edge
//	# amsagent:role: edge
//
// with the name of a tag, a colon or an equals sign, and one word, quoted or not; it may be a comment (#, ;, //) and
// indented. The first line about a name counts. Everything else is skipped, and what is not text is no user data of ours.
func ParseUserData(body []byte) cloud.Tags {
	if len(body) > maxUserData || !utf8.Valid(body) {
		return nil
	}
	tags := cloud.Tags{}
	for line := range strings.Lines(string(body)) {
		name, value, ok := userTag(line)
		if !ok || len(tags) == maxUserTags {
			continue
		}
		if _, twice := tags[name]; !twice {
			tags[name] = value
		}
	}
	if len(tags) == 0 {
		return nil
	}
	return tags
}

// userTag reads one line. The tag's name is given back with a colon or a dash, as it was written.
func userTag(line string) (name, value string, ok bool) {
	line = strings.TrimSpace(line)
	if rest := strings.TrimLeft(line, commentMarks); len(line)-len(rest) <= 3 {
		line = strings.TrimSpace(rest)
	}
	rest, ok := strings.CutPrefix(line, userTagPrefix)
	if !ok || rest == "" || rest[0] != '-' && rest[0] != ':' {
		return "", "", false
	}
	end := 1
	for end < len(rest) && (rest[end] >= 'a' && rest[end] <= 'z' || rest[end] == '_' || rest[end] == '-') {
		end++
	}
	key := rest[:end]
	if end < 2 || end > maxUserKey {
		return "", "", false
	}
	rest = strings.TrimLeft(rest[end:], " \t")
	if rest == "" || rest[0] != '=' && rest[0] != ':' {
		return "", "", false
	}
	words := strings.Fields(rest[1:])
	if len(words) == 0 {
		return "", "", false
	}
	value = words[0]
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		value = value[1 : n-1]
	}
	if value == "" || len(value) > maxUserValue || strings.ContainsFunc(value, unicode.IsControl) {
		return "", "", false
	}
	return userTagPrefix + key, value, true
}
