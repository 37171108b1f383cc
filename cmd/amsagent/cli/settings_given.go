// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/amsagent/amsagent/bootstrap"
)

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

// joinRequest is the part of a join that the settings decide.
func (s *settings) joinRequest() bootstrap.JoinRequest {
	return bootstrap.JoinRequest{
		Role: s.Role, Group: s.Group, Address: s.Address, ForceAddress: s.addressForced(), AddressKept: s.origin(keyAddress).Layer == layerGiven,
		Valve: bootstrap.Valve(s.RemoteIPValve), OnFailure: bootstrap.OnFailure(s.OnFailure),
	}
}

// addressForced reports whether an earlier join accepted this address although no interface has it.
func (s *settings) addressForced() bool { return s.Forced != "" && s.Forced == s.Address }

// toKeep is what this join keeps: its flags and variables, what an earlier join kept, and whether its address was forced.
func (s *settings) toKeep(force bool) *bootstrap.Given {
	keep := &bootstrap.Given{Settings: map[string]string{}}
	if force || s.addressForced() {
		keep.ForcedAddress = s.Address
	}
	for _, row := range keptSettings() {
		v := s.values[row.key]
		switch v.origin.Layer {
		case layerGiven, layerEnv, layerFlag:
			keep.Settings[row.key] = v.text
		default:
		}
	}
	return keep
}
