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

// The bounds of ParseUserData. ECS accepts 32 KB of user data.
const (
	maxUserData  = 64 << 10
	maxUserTags  = 16
	maxUserValue = 1024
)

// userTag matches a line that sets a tag, also in a comment.
var userTag = regexp.MustCompile(`^[#;/*-]{0,3}\s*(amsagent[-:][a-z_-]{1,31})[ \t]*[=:]\s*(\S+)`)

// ParseUserData finds the agent's settings in user data of any form: a script, a cloud-config, or several of them. A setting is
// one line
//
//	amsagent-role=edge
//	# amsagent:role: edge
//
// with the name of a tag, a colon or an equals sign, and a value without spaces, optionally quoted. The line may be indented,
// and a comment (#, ; or //). The first line for a name counts. Other lines are ignored, and so is user data that is not text.
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
