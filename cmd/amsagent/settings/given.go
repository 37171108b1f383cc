// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/bootstrap"
)

// Kept are the settings that a join keeps, in the order in which they are shown.
func Kept() []Setting {
	var rows []Setting
	for _, row := range Table() {
		if row.kept {
			rows = append(rows, row)
		}
	}
	return rows
}

// readGiven reads the values given to an earlier join. No command fails for an unreadable or damaged file.
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

// GoodConfig is config.yaml for a node to keep; nil if the settings file is another one.
func (s *Settings) GoodConfig() []byte {
	switch {
	case s.Origin(KeyConfig).Layer > FromDefault:
		return nil
	case s.Sources.File == nil:
		return []byte{}
	}
	return s.Sources.File.bytes
}

// Overruled is one note with the lines of config.yaml that do not count, because join was given another value; else none.
func (s *Settings) Overruled(given map[string]string) []string {
	if s.Sources.File == nil {
		return nil
	}
	var counts, flags []string
	for _, row := range Kept() {
		line := s.Sources.File.values[row.Key]
		text, err := row.Canonical(line.text)
		overrules := func(key, flag, instead string) {
			o := Origin{Layer: FromFile, Name: s.Sources.File.path, Line: line.line}
			counts = append(counts, fmt.Sprintf("%s %s counts, not %s (%s)", key, given[key], instead, o))
			flags = append(flags, fmt.Sprintf(` --%s ""`, flag))
		}
		switch value, kept := given[row.Key]; {
		case err != nil:
		case kept && text != value && s.Origin(row.Key).Layer >= FromGiven:
			overrules(row.Key, row.Flag, text)
		case !kept && row.Key == KeyService && text != "" && text != "auto" && given[KeyServiceCommand] != "":
			overrules(KeyServiceCommand, "service-command", "service "+text)
		case !kept && row.Key == KeyServiceCommand && text != "" && given[KeyService] != "" && given[KeyService] != "auto":
			overrules(KeyService, "service", text)
		}
	}
	if counts == nil {
		return nil
	}
	return []string{"given to join: " + strings.Join(counts, ", ") + "; amsagent join" + strings.Join(flags, "") + " makes the file count"}
}

// JoinRequest is the part of a join that the settings decide.
func (s *Settings) JoinRequest() bootstrap.JoinRequest {
	return bootstrap.JoinRequest{
		Role: s.Role, Group: s.Group, Address: s.Address, ForceAddress: s.addressForced(), AddressKept: s.Origin(KeyAddress).Layer == FromGiven,
		Valve: bootstrap.Valve(s.RemoteIPValve), OnFailure: bootstrap.OnFailure(s.OnFailure),
	}
}

// addressForced reports whether an earlier join accepted this address although no interface has it.
func (s *Settings) addressForced() bool {
	return s.Address != "" && s.Address == s.Sources.Given.ForcedAddress
}

// ToKeep is what this join keeps: its flags and variables, what an earlier join kept, and whether its address was forced.
func (s *Settings) ToKeep(force bool) *bootstrap.Given {
	keep := &bootstrap.Given{Settings: s.keptFrom(FromGiven, FromEnv, FromFlag)}
	if force || s.addressForced() {
		keep.ForcedAddress = s.Address
	}
	return keep
}

// GivenToJoin lists the settings that were given to join and count.
func (s *Settings) GivenToJoin() map[string]string { return s.keptFrom(FromGiven) }

func (s *Settings) keptFrom(layers ...Layer) map[string]string {
	list := map[string]string{}
	for _, row := range Kept() {
		if v := s.Values[row.Key]; slices.Contains(layers, v.Origin.Layer) {
			list[row.Key] = v.Text
		}
	}
	return list
}
