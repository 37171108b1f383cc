// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
)

type configOptions struct {
	offline bool
}

func newConfigCommand(g *globals) *cobra.Command {
	var opts configOptions
	cmd := &cobra.Command{
		Use:   "config [flags]",
		Short: "print the effective settings and where each comes from",
		Long:  configHelp(),
		Example: "  amsagent config\n" +
			"  # what a join with these flags would use, and why\n" +
			"  amsagent config --role edge --mongo 10.0.2.4\n" +
			"  # is config.yaml right? exit code 0 says yes\n" +
			"  amsagent config --offline > /dev/null",
		RunE: func(cmd *cobra.Command, _ []string) error { return runConfig(cmd.Context(), opts, g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage, exitInterrupted)
	annotate(cmd, annotationGoodConfig, "true")
	readsOnly(cmd)
	cmd.Flags().BoolVar(&opts.offline, "offline", false, "do not ask the cloud for instance tags")
	for _, row := range settings.Table() {
		if row.Flag != "" && !row.Global {
			g.addSettings(cmd, row.Key)
		}
	}
	return cmd
}

func configHelp() string {
	var b strings.Builder
	b.WriteString("Each setting is taken from the first of these that has it:\n\n" +
		"  1. the flag\n" +
		"  2. the variable AMSAGENT_ and the key in capitals\n" +
		"  3. the flags and variables of an earlier join\n" +
		"  4. /etc/amsagent/config.yaml\n" +
		"  5. instance tags (mongo, role, group, drain-deadline): amsagent:role, or\n" +
		"     amsagent-role where the cloud allows no colon\n" +
		"  6. the default\n\n" +
		"The MongoDB address may also be the file mongo in systemd's credentials (after\n" +
		"the variable) and, last of all, /etc/amsagent/mongo, where join keeps it. Role,\n" +
		"group and address of a node are shown as it has them; a note names settings\n" +
		"that differ.\n\n" +
		"config.yaml holds `key: value` lines. All users can read it, so a password in\n" +
		"it is refused: write mongo: file:/etc/amsagent/mongo. A comma list may be a\n" +
		"list of YAML. A fault in it is refused here, by join and by seal. Other\n" +
		"commands ignore an unknown key; with another fault the last good file of a\n" +
		"node counts. The keys:\n\n")
	for _, row := range settings.Table() {
		if row.NoFile {
			continue
		}
		name := "  " + row.Key
		if row.Def != "" {
			name += ": " + row.Def
		}
		b.WriteString(name + "\n" + wrap(row.Help))
	}
	return b.String()
}

// configRow is one effective setting.
type configRow struct {
	Key string `json:"key"`
	// Value is null if the setting is not set. It never holds a password.
	Value   *string         `json:"value"`
	Origin  settings.Origin `json:"origin"`
	Default string          `json:"default,omitempty"`
	// File is the file that held the value, for mongo.
	File string `json:"file,omitempty"`
}

// configData is what `config` prints.
type configData struct {
	ConfigFile configPlace `json:"config_file"`
	Settings   []configRow `json:"settings"`
	// Endpoints are the addresses of cloud services that the environment sets.
	Endpoints []configRow `json:"endpoints,omitempty"`
	// Notes name what could not be read, and settings that do not count, or not yet.
	Notes []string `json:"notes,omitempty"`
}

type configPlace struct {
	Path  string `json:"path"`
	Found bool   `json:"found"`
}

func runConfig(ctx context.Context, opts configOptions, g *globals) error {
	var data configData
	if !opts.offline {
		note, err := configTags(ctx, g)
		if err != nil {
			return err
		}
		if note != "" {
			data.Notes = append(data.Notes, note)
		}
	}
	if _, err := bootstrap.LoadGiven(g.settings.Root); errors.Is(err, fs.ErrPermission) {
		data.Notes = append(data.Notes, "only root can read what was given to join: "+err.Error())
	}
	mongo, err := g.joinedMongo()
	switch {
	case errors.Is(err, fs.ErrPermission):
		data.Notes = append(data.Notes, "the MongoDB address is in a file that only root can read: "+err.Error())
	case err != nil && !errors.Is(err, errNoMongo):
		return err
	}

	path, perr := settings.UnderRoot(g.settings.Root, g.settings.Config)
	if perr != nil {
		path = g.settings.Config
	}
	_, serr := os.Stat(path)
	data.ConfigFile = configPlace{path, serr == nil}
	node, notes := nodeSettings(g.settings)
	data.Notes = append(data.Notes, notes...)
	for _, row := range settings.Table() {
		v := g.settings.Values[row.Key]
		r := configRow{Key: row.Key, Origin: v.Origin, Default: row.Def}
		text := v.Text
		if row.Key == settings.KeyMongo {
			text = mongo.Target.Redacted()
			if mongo.Origin.Layer != settings.FromDefault {
				r.Origin = mongo.Origin
			}
			r.File = mongo.File
		}
		if is, ok := node[row.Key]; ok {
			text, r.Origin = is.Value, is.Origin
		}
		if text != "" {
			r.Value = &text
		}
		data.Settings = append(data.Settings, r)
	}
	for _, e := range settings.Endpoints() {
		if url, ok := g.settings.Endpoints[e.Name]; ok {
			name, _ := e.Variable(g.env.getenv)
			data.Endpoints = append(data.Endpoints, configRow{Key: e.Name, Value: &url, Origin: settings.Origin{Layer: settings.FromEnv, Name: name}})
		}
	}
	return g.result("config", data, func(w *output.Text) { configText(w, data) })
}

// configTags applies the instance's tags. That the cloud does not answer is a note: the other settings are worth seeing.
func configTags(ctx context.Context, g *globals) (note string, _ error) {
	ctx, cancel := context.WithTimeout(ctx, tagsTime)
	defer cancel()
	inst, err := g.whoami(ctx)
	var bad *settings.Error
	switch {
	case err == nil:
		return tagsNote(inst), nil
	case errors.As(err, &bad):
		return "", err
	}
	return "instance tags were not read: " + err.Error(), nil
}

func configText(w *output.Text, data configData) {
	set := 0
	var rows [][]string
	for _, r := range data.Settings {
		text, from := "-", r.Origin.String()
		if r.Value != nil {
			text = *r.Value
		}
		if r.File != "" && r.File != from {
			from += ", in " + r.File
		}
		if r.Origin.Layer != settings.FromDefault {
			set++
		} else if r.Value == nil {
			from = ""
		}
		rows = append(rows, []string{r.Key, text, from})
	}
	w.Line("%s; %d of %d differ from the default\n", w.Color.Green("the settings are valid"), set, len(rows))
	for _, e := range data.Endpoints {
		rows = append(rows, []string{"endpoint " + e.Key, *e.Value, e.Origin.String()})
	}
	w.Table(rows)
	found := "not there"
	if data.ConfigFile.Found {
		found = "read"
	}
	w.Line("\nsettings file: %s (%s)", output.Printable(data.ConfigFile.Path), found)
	for _, n := range data.Notes {
		w.Line("note: %s", output.OneLine(n))
	}
	w.Line("every key and its meaning: %s", w.Color.Bold("amsagent help config"))
}
