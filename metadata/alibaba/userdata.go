// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"regexp"

	"github.com/amsagent/amsagent/metadata/cloud"
)

const maxUserTags = 16

var userTag = regexp.MustCompile(`(?m)^[ \t]*[#;/*-]{0,3}[ \t]*(amsagent[-:][a-z_-]{1,31})[ \t]*[=:][ \t]*([^\s[:cntrl:]]+)`)

// ParseUserData finds the agent's tags in any text. A tag is one line, possibly indented or a comment (#, ; or //):
//
//	amsagent-role=edge
//	# amsagent:role: edge
//
// The value has no spaces and may be quoted. The first line for a name wins.
func ParseUserData(body []byte) cloud.Tags {
	var tags cloud.Tags
	for _, found := range userTag.FindAllStringSubmatch(string(body), maxUserTags) {
		name, value := found[1], found[2]
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		if _, twice := tags[name]; twice || value == "" {
			continue
		}
		if tags == nil {
			tags = cloud.Tags{}
		}
		tags[name] = value
	}
	return tags
}
