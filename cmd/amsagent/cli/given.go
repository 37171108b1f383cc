// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
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

// readGiven reads what an earlier join was given. An unreadable or damaged file is no error: no command may fail for it.
func readGiven(root string) (bootstrap.Given, string) {
	given, err := bootstrap.LoadGiven(root)
	switch {
	case given != nil:
		return *given, ""
	case err == nil, errors.Is(err, fs.ErrPermission):
		return bootstrap.Given{}, ""
	}
	return bootstrap.Given{}, fmt.Sprintf("what was given to join cannot be used: %v; run the same amsagent join again", err)
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

// joinedState is the state of a node, or nil. It has what the current settings may lack: the value of a removed or unreadable
// tag, or a detected address.
func (g *globals) joinedState() *bootstrap.State {
	s, err := (&bootstrap.Machine{Root: g.settings.Root}).StateFile()
	if err != nil || s == nil || s.Phase != bootstrap.PhaseJoined {
		return nil
	}
	return s
}

// settingValue is a value with where it comes from.
type settingValue struct {
	Value  string `json:"value"` // "" where none is set
	Origin origin `json:"origin"`
}

// nodeSettings are role, group and address as this node has them. notes has one if the settings differ by now, and one if
// lines of config.yaml do not count.
func (g *globals) nodeSettings() (node map[string]settingValue, notes []string) {
	joined := cmp.Or(g.joinedState(), &bootstrap.State{})
	node = map[string]settingValue{}
	var differ []string
	for key, is := range map[string]string{keyRole: joined.Role, keyGroup: joined.Group, keyAddress: joined.Address} {
		now := g.settings.values[key]
		node[key] = settingValue{now.text, now.origin}
		if is == "" || is == now.text {
			continue
		}
		node[key] = settingValue{is, asJoined()}
		if now.text != "" {
			differ = append(differ, fmt.Sprintf("%s %s (%s)", key, now.text, now.origin))
		}
	}
	slices.Sort(differ)
	if differ != nil {
		notes = []string{"not applied yet: " + strings.Join(differ, ", ") + "; the daemon applies it at its next look, config.yaml after " +
			"'systemctl reload amsagent', and an address only if this machine has it"}
	}
	return node, append(notes, g.settings.overruled(g.settings.src.given.Settings)...)
}

// asJoined is the origin of what the settings do not say.
func asJoined() origin { return origin{Layer: layerStored, Name: "as joined"} }

// nodeText is what this node is for, and its address, with the origins.
func (s *statusView) nodeText() string {
	var parts []string
	for _, row := range []struct {
		key string
		*settingValue
	}{{keyRole, s.Role}, {keyGroup, s.Group}, {keyAddress, s.Address}} {
		if row.settingValue != nil && row.Value != "" {
			parts = append(parts, fmt.Sprintf("%s %s, %s", row.key, printable(row.Value), row.Origin))
		}
	}
	return strings.Join(parts, "; ")
}

// toKeep is what this join keeps: its flags and variables, what an earlier join kept, and whether its address was forced.
func (g *globals) toKeep(force bool) *bootstrap.Given {
	keep := &bootstrap.Given{Settings: map[string]string{}}
	if force || g.settings.addressForced() {
		keep.ForcedAddress = g.settings.Address
	}
	for _, row := range keptSettings() {
		v := g.settings.values[row.key]
		switch v.origin.Layer {
		case layerGiven, layerEnv, layerFlag:
			keep.Settings[row.key] = v.text
		default:
		}
	}
	return keep
}

// overruled is one note with the lines of config.yaml that do not count, because join was given another value; else none.
func (s *settings) overruled(given map[string]string) []string {
	if s.src.file == nil {
		return nil
	}
	var counts, flags []string
	for _, row := range keptSettings() {
		line := s.src.file.values[row.key]
		value, kept := given[row.key]
		text, err := row.canonical(line.text)
		if !kept || err != nil || text == value || s.origin(row.key).Layer < layerGiven {
			continue
		}
		o := origin{Layer: layerFile, Name: s.src.file.path, Line: line.line}
		counts = append(counts, fmt.Sprintf("%s %s counts, not %s (%s)", row.key, value, text, o))
		flags = append(flags, fmt.Sprintf(` --%s ""`, row.flag))
	}
	if counts == nil {
		return nil
	}
	return []string{"given to join: " + strings.Join(counts, ", ") + "; amsagent join" + strings.Join(flags, "") + " makes the file count"}
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
