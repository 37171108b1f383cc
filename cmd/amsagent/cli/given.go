// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

// keptKeys lists them for the help of join.
func keptKeys() string {
	var keys []string
	for _, row := range settings.Kept() {
		keys = append(keys, row.Key)
	}
	return wrap(strings.Join(keys, ", "))
}

// wrongText is the fault of config.yaml and what applies instead, or "".
func wrongText(src settings.Sources) string {
	if src.Wrong == nil {
		return ""
	}
	return output.OneLine(src.Wrong.Error()) + "; " + src.Instead
}

// joinedState is the state of a node, or nil. It has values that the settings may lack: of a removed or unreadable tag, or a
// detected address.
func joinedState(root string) *bootstrap.State {
	s, err := (&bootstrap.Machine{Root: root}).StateFile()
	if err != nil || s == nil || s.Phase != bootstrap.PhaseJoined {
		return nil
	}
	return s
}

// settingValue is a value with its origin.
type settingValue struct {
	Value  string          `json:"value"` // "" if none is set
	Origin settings.Origin `json:"origin"`
}

// nodeSettings are role, group and address as this node has them. notes has one if the settings differ by now, and one if
// lines of config.yaml do not count.
func nodeSettings(s *settings.Settings) (node map[string]settingValue, notes []string) {
	joined := cmp.Or(joinedState(s.Root), &bootstrap.State{})
	node = map[string]settingValue{}
	var differ []string
	for key, is := range map[string]string{settings.KeyRole: joined.Role, settings.KeyGroup: joined.Group, settings.KeyAddress: joined.Address} {
		now := s.Values[key]
		node[key] = settingValue{now.Text, now.Origin}
		if is == "" || is == now.Text {
			continue
		}
		node[key] = settingValue{is, settings.Origin{Layer: settings.FromStored, Name: "as joined"}}
		if now.Text != "" {
			differ = append(differ, fmt.Sprintf("%s %s (%s)", key, now.Text, now.Origin))
		}
	}
	slices.Sort(differ)
	if differ != nil {
		notes = []string{"not applied yet: " + strings.Join(differ, ", ") + "; the daemon applies a tag within some minutes, config.yaml after " +
			"'systemctl reload amsagent', and an address only if this machine has it"}
	}
	return node, append(notes, s.Overruled(s.Sources.Given.Settings)...)
}
