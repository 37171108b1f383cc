// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Bounds of ParseUserData. ECS accepts 32 KB of user data.
const (
	maxUserData  = 64 << 10
	maxUserTags  = 16
	maxUserValue = 1024
)

var userTag = regexp.MustCompile(`^[#;/*-]{0,3}\s*(amsagent[-:][a-z_-]{1,31})[ \t]*[=:]\s*(\S+)`)

// ParseUserData finds the agent's tags in any text. A tag is one line, possibly indented or a comment (#, ; or //):
//
//	amsagent-role=edge
//	# amsagent:role: edge
//
// The value has no spaces and may be quoted. The first line for a name wins.
func ParseUserData(body []byte) cloud.Tags {
	if len(body) > maxUserData || !utf8.Valid(body) {
		return nil
	}
	var tags cloud.Tags
	for line := range strings.Lines(string(body)) {
		found := userTag.FindStringSubmatch(strings.TrimSpace(line))
		if found == nil || len(tags) == maxUserTags {
			continue
		}
		name, value := found[1], found[2]
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		if _, twice := tags[name]; twice || value == "" || len(value) > maxUserValue || strings.ContainsFunc(value, unicode.IsControl) {
			continue
		}
		if tags == nil {
			tags = cloud.Tags{}
		}
		tags[name] = value
	}
	return tags
}
