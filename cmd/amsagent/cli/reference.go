// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	pages "github.com/amsagent/amsagent/docs/errors"
)

// Reference is the whole command line as data. What makes the man pages reads it, so that they cannot say anything else
// than the help does; the agent itself never does, and the linker leaves it out.
type Reference struct {
	Commands []CommandReference
	Settings []SettingReference
	// Endpoints are the variables that replace the addresses of clouds' services.
	Endpoints []EndpointReference
	Errors    []ErrorReference
	Findings  []FindingReference
	Exits     []ExitReference
}

// CommandReference is one command. Path begins with the program: "amsagent nodes prune".
type CommandReference struct {
	Path, Short, Long, Usage, Example string
	// Settings tells that it reads config.yaml and the environment's settings.
	Settings bool
	Flags    []FlagReference
	Global   []FlagReference
	Exits    []ExitReference
}

// FlagReference is one flag; Arg is "" where it takes no value. Setting is the key of the setting that it sets, "" for
// a flag of this command alone.
type FlagReference struct{ Name, Letter, Arg, Help, Default, Setting string }

// EndpointReference is a variable of the environment with its meaning.
type EndpointReference struct{ Env, Help string }

// SettingReference is one row of the settings table.
type SettingReference struct {
	Key, Env string
	Arg      string
	Help     string
	Default  string
	Words    []string
	Flag     string
	// Tag is the instance tag's usual name, "" where no tag may say it.
	Tag string
	// File tells that it may stand in config.yaml.
	File bool
}

// ErrorReference is one id of an error, with its usual exit code.
type ErrorReference struct {
	ID      string
	Exit    int
	Meaning string
}

// FindingReference is one id of a check, a warning or of status.
type FindingReference struct{ ID, Meaning string }

// ExitReference is one exit code.
type ExitReference struct {
	Code    int
	Meaning string
}

// Describe gives the reference of this version.
func Describe() Reference {
	var r Reference
	for _, c := range exitCodes() {
		r.Exits = append(r.Exits, ExitReference{c.code, c.meaning})
	}
	for _, c := range namedErrors() {
		r.Errors = append(r.Errors, ErrorReference{c.id, c.exit, c.meaning})
	}
	for _, id := range findingIDs() {
		r.Findings = append(r.Findings, FindingReference{id, pages.Title(id)})
	}
	for _, s := range settingsTable() {
		row := SettingReference{
			Key: s.key, Env: s.env(), Arg: s.arg, Help: s.help, Default: s.def, Words: s.words, Flag: s.flag, File: !s.noFile,
		}
		if s.tag != "" {
			row.Tag = tagPrefix + s.tag
		}
		r.Settings = append(r.Settings, row)
	}
	for _, e := range endpoints() {
		r.Endpoints = append(r.Endpoints, EndpointReference{e.env, e.text()})
	}
	r.add(newRootCommand(newGlobals(Env{}.withDefaults())))
	return r
}

func (r *Reference) add(cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	c := CommandReference{
		Path: cmd.CommandPath(), Short: cmd.Short, Long: cmd.Long, Usage: cmd.UseLine(), Example: cmd.Example,
		Settings: cmd.Annotations[annotationNoLoad] == "", Flags: flagReferences(cmd.LocalNonPersistentFlags()),
	}
	global := cmd.InheritedFlags()
	if !cmd.HasParent() {
		global = cmd.PersistentFlags()
	}
	c.Global = flagReferences(global)
	only := strings.Split(cmd.Annotations[annotationExits], ",")
	for _, e := range r.Exits {
		if slices.Contains(only, strconv.Itoa(e.Code)) {
			c.Exits = append(c.Exits, e)
		}
	}
	r.Commands = append(r.Commands, c)
	below := cmd.Commands()
	if !cmd.HasParent() {
		cmd.InitDefaultHelpCmd()
		below = cmd.Commands()
	}
	for _, b := range below {
		if b.IsAvailableCommand() || b.Name() == "help" {
			r.add(b)
		}
	}
}

func flagReferences(fs *pflag.FlagSet) []FlagReference {
	var all []FlagReference
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		arg, help := pflag.UnquoteUsage(f)
		def := f.DefValue
		if f.NoOptDefVal != "" || def == "false" || def == "0" || def == "0s" || def == "[]" {
			def = ""
		}
		row := FlagReference{Name: f.Name, Letter: f.Shorthand, Arg: arg, Help: help, Default: def}
		if s, ok := f.Value.(*settingFlag); ok && s.fixed == "" {
			row.Setting = s.key
		}
		all = append(all, row)
	})
	return all
}
