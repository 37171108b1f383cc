// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/bootstrap"
)

// annotationKeeps marks the command whose flags are kept. Its empty values drop kept ones.
const annotationKeeps = "keeps"

// keptSettings are the settings that a join keeps, in the order in which they are shown.
func keptSettings() []setting {
	var rows []setting
	for _, row := range settingsTable() {
		if row.kept {
			rows = append(rows, row)
		}
	}
	return rows
}

// keptKeys lists them for the help of join.
func keptKeys() string {
	var keys []string
	for _, row := range keptSettings() {
		keys = append(keys, row.key)
	}
	return wrap(strings.Join(keys, ", "))
}

// pairs are settings of which one means nothing without the other: what is said of one is said of both.
var pairs = [][2]string{{keyService, keyServiceCommand}}

// partner is the other setting of a pair; "" where the key stands alone.
func partner(key string) string {
	for _, p := range pairs {
		switch key {
		case p[0]:
			return p[1]
		case p[1]:
			return p[0]
		}
	}
	return ""
}

// text includes the partner's.
func (f *configFile) text(key string) string {
	if f == nil {
		return ""
	}
	return strings.Trim(f.values[key].text+"\n"+f.values[partner(key)].text, "\n")
}

// readGiven reads what an earlier join was given. An unreadable or damaged file is no error: no command may fail for it.
func readGiven(root string) (*bootstrap.Given, string) {
	given, err := bootstrap.LoadGiven(root)
	switch {
	case err == nil:
		return given, ""
	case errors.Is(err, fs.ErrPermission):
		return nil, ""
	}
	return nil, fmt.Sprintf("what was given to join cannot be used: %v; run the same amsagent join again", err)
}

// goodConfig is config.yaml for a node to keep; nil if it is another file.
func (s *settings) goodConfig() []byte {
	switch {
	case s.origin(keyConfig).Layer > layerDefault:
		return nil
	case s.src.file == nil:
		return []byte{}
	}
	return s.src.file.bytes
}

// joinedWith is a setting of the join that the current settings lack: of a removed or unreadable tag, or a detected address.
func (g *globals) joinedWith(key string) string {
	m := bootstrap.Machine{Root: g.settings.Root}
	s, err := m.StateFile()
	if err != nil || s == nil || s.Phase != bootstrap.PhaseJoined {
		return ""
	}
	switch key {
	case keyRole:
		return s.Role
	case keyGroup:
		return s.Group
	case keyAddress:
		return s.Address
	}
	return ""
}

// settingValue is a value with where it comes from.
type settingValue struct {
	Value  string `json:"value"` // "" where none is set
	Origin origin `json:"origin"`
}

// nodeSetting is the role, the group or the address that this node has.
type nodeSetting struct {
	settingValue
	// Next is the current value of a setting that differs from the join's. The daemon applies it at its next look, or after a
	// reload if it is from config.yaml.
	Next *settingValue `json:"next,omitempty"`
}

func (g *globals) nodeSetting(key string) *nodeSetting {
	now, joined := g.settings.values[key], g.joinedWith(key)
	s := &nodeSetting{settingValue: settingValue{now.text, now.origin}}
	if joined == "" || joined == now.text {
		return s
	}
	if now.text != "" {
		s.Next = &settingValue{now.text, now.origin}
	}
	s.settingValue = settingValue{joined, asJoined()}
	return s
}

// nextText tells of a value of key that the settings have by now, and when the daemon goes by it.
func (v *settingValue) nextText(key string) string {
	when := "from the daemon's next look on"
	if v.Origin.Layer == layerFile {
		when = "after 'systemctl reload amsagent'"
	}
	if key == keyAddress {
		when += ", if this machine has it" // or it was forced: the daemon says so else, and keeps the other one
	}
	return fmt.Sprintf("%s by %s, %s", printable(v.Value), v.Origin, when)
}

// asJoined is the origin of what the settings do not say.
func asJoined() origin { return origin{Layer: layerStored, Name: "as joined"} }

// nodeText is what this node is for, and its address, with the origins.
func (s *statusView) nodeText() string {
	var parts []string
	for _, row := range []struct {
		key string
		*nodeSetting
	}{{keyRole, s.Role}, {keyGroup, s.Group}, {keyAddress, s.Address}} {
		switch {
		case row.nodeSetting == nil || row.Value == "":
		case row.Next != nil:
			parts = append(parts, fmt.Sprintf("%s %s as joined; %s", row.key, printable(row.Value), row.Next.nextText(row.key)))
		default:
			parts = append(parts, fmt.Sprintf("%s %s, %s", row.key, printable(row.Value), row.Origin))
		}
	}
	return strings.Join(parts, "; ")
}

// toKeep is what this join keeps: its flags and variables, what an earlier join kept, and whether its address was forced.
func (g *globals) toKeep(force bool) *bootstrap.Given {
	keep := &bootstrap.Given{Settings: map[string]bootstrap.GivenSetting{}}
	if force || g.addressForced() {
		keep.ForcedAddress = g.explicitAddress()
	}
	for _, row := range keptSettings() {
		v := g.settings.values[row.key]
		switch v.origin.Layer {
		case layerGiven, layerEnv, layerFlag:
			keep.Settings[row.key] = bootstrap.GivenSetting{Value: v.text, Replaced: g.settings.src.file.text(row.key)}
		default:
		}
	}
	return keep
}

// contradicted refuses a join that keeps another value than config.yaml has: the daemon reads both. It checks settings
// without an older rule only.
func (g *globals) contradicted() error {
	file := g.settings.src.file
	if file == nil {
		return nil
	}
	for _, key := range []string{keyDrainDeadline, keyHooks} {
		row, _ := settingByKey(key)
		given, there := g.settings.values[key], file.values[key]
		text, err := row.canonical(there.text)
		if given.origin.Layer < layerEnv || there.text == "" || err != nil || text == given.text {
			continue
		}
		o := origin{Layer: layerFile, Name: file.path, Line: there.line}
		return &settingError{
			source: o.String(), layer: o.Layer, line: o.Line,
			err:   fmt.Errorf("%s is %s, and %s is %s", key, text, given.origin, given.text),
			hints: []string{fmt.Sprintf("remove that line, or leave out %s", given.origin)},
		}
	}
	return nil
}

// dropEmpty takes the flags with an empty value out of those of a command that keeps its flags, and returns their keys.
func (g *globals) dropEmpty(cmd *cobra.Command) (rest map[string]given, dropped []string) {
	if _, ok := cmd.Annotations[annotationKeeps]; !ok {
		return g.given, nil
	}
	rest = maps.Clone(g.given)
	for _, row := range keptSettings() {
		if flag, ok := rest[row.key]; ok && flag.text == "" {
			delete(rest, row.key)
			dropped = append(dropped, row.key)
		}
	}
	return rest, dropped
}
