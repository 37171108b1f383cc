// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"maps"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/metadata"
)

// noCloud is the note of a machine on which nothing names a cloud: without it the first scale-in would cut every session.
const noCloud = "no cloud recognised: no scale-in will be announced here; if there is one, --provider aws|azure|alibaba|gcp"

func (m machine) notes() []string {
	var notes []string
	if m.Unrecognised {
		notes = append(notes, noCloud)
	}
	if text := unreadTags(m.Instance.Tags); text != "" {
		notes = append(notes, text)
	}
	return notes
}

// tagNames are the names of the tags that are settings.
func tagNames() []string {
	var names []string
	for _, row := range settings.Table() {
		if row.Tag != "" {
			names = append(names, settings.TagPrefix+row.Tag)
		}
	}
	return names
}

// unreadTags names the tags that look like ours and are not read, for example one of an earlier version; "" is none.
func unreadTags(tags map[string]string) string {
	read := tagNames()
	var unread []string
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		if strings.HasPrefix(strings.ToLower(name), "amsagent") && !slices.Contains(read, strings.Replace(name, "amsagent-", settings.TagPrefix, 1)) {
			unread = append(unread, name)
		}
	}
	if len(unread) == 0 {
		return ""
	}
	return "tags that are not read: " + strings.Join(unread, ", ") + "; those that are: " + strings.Join(read, ", ") + ", or with a hyphen for the colon"
}

// roleNote is the note of a join without a role, with why no tag names one; "" where there is a role.
func roleNote(role string, inst metadata.Instance) string {
	if role != "" {
		return ""
	}
	text := "no role: balancers by role send nothing here; --role"
	if why := tagsNote(inst); why != "" {
		text += "; " + why
	}
	return text
}

// lastSeen is the machine as it was read last; the zero machine before that.
func (g *globals) lastSeen() machine {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.seen == nil {
		return machine{}
	}
	return *g.seen
}
