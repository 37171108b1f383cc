// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/bootstrap"
)

// configTagsTimeout bounds the query for tags. Other commands wait longer; `config` may run on a laptop.
const configTagsTimeout = 5 * time.Second

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
	for _, row := range settingsTable() {
		if row.flag != "" && !row.global {
			g.addSettings(cmd, row.key)
		}
	}
	return cmd
}

func configHelp() string {
	var b strings.Builder
	b.WriteString("Each setting is taken from the first of these that has it:\n\n" +
		"  1. the flag\n" +
		"  2. the variable AMSAGENT_ and the key in capitals\n" +
		"  3. what an earlier join was given, until config.yaml says something else than\n" +
		"     it did then\n" +
		"  4. /etc/amsagent/config.yaml\n" +
		"  5. instance tags (mongo, role, group, drain-deadline): amsagent:role, or\n" +
		"     amsagent-role where the cloud allows no colon\n" +
		"  6. the default\n\n" +
		"The MongoDB address may also be the file mongo in systemd's credentials (after\n" +
		"the variable) and, last of all, /etc/amsagent/mongo, where join keeps it. Role,\n" +
		"group and address of a node are shown as it joined, beside what the settings\n" +
		"have now.\n\n" +
		"config.yaml holds `key: value` lines. All users can read it, so a password in\n" +
		"it is refused: write mongo: file:/etc/amsagent/mongo. A comma list may be a\n" +
		"list of YAML. A fault in it is refused here, by join and by seal. Other\n" +
		"commands ignore an unknown key; with another fault the last good file of a\n" +
		"node counts. The keys:\n\n")
	for _, row := range settingsTable() {
		if row.noFile {
			continue
		}
		name := "  " + row.key
		if row.def != "" {
			name += ": " + row.def
		}
		b.WriteString(name + "\n" + wrap(row.help))
	}
	return b.String()
}

// configRow is one effective setting.
type configRow struct {
	Key string `json:"key"`
	// Value is null where the setting is not set. It never holds a password.
	Value   *string `json:"value"`
	Origin  origin  `json:"origin"`
	Default string  `json:"default,omitempty"`
	// File is the file that held the value, for mongo.
	File string `json:"file,omitempty"`
	// Next is what the settings say by now of the role, the group or the address, where this node joined with another value.
	Next *settingValue `json:"next,omitempty"`
}

// configData is what `config` prints.
type configData struct {
	ConfigFile configPlace `json:"config_file"`
	Settings   []configRow `json:"settings"`
	// Endpoints are the addresses of cloud services that the environment sets.
	Endpoints []configRow `json:"endpoints,omitempty"`
	// Notes say what could not be looked at.
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

	path, perr := underRoot(g.settings.Root, g.settings.Config)
	if perr != nil {
		path = g.settings.Config
	}
	data.ConfigFile.Path = path
	if _, serr := os.Stat(path); serr == nil {
		data.ConfigFile.Found = true
	}
	for _, row := range settingsTable() {
		v := g.settings.values[row.key]
		r := configRow{Key: row.key, Origin: v.origin, Default: row.def}
		text := v.text
		if row.key == keyMongo {
			text = mongo.Target.Redacted()
			if mongo.Origin.Layer != layerDefault {
				r.Origin = mongo.Origin
			}
			r.File = mongo.File
		}
		switch row.key {
		case keyRole, keyGroup, keyAddress:
			// What this node has counts; what the settings say beside that is to come.
			is := g.nodeSetting(row.key)
			text, r.Origin, r.Next = is.Value, is.Origin, is.Next
		}
		if text != "" {
			r.Value = &text
		}
		data.Settings = append(data.Settings, r)
	}
	for _, e := range endpoints() {
		if url, ok := g.settings.Endpoints[e.name]; ok {
			name, _ := e.variable(g.env.LookupEnv)
			data.Endpoints = append(data.Endpoints, configRow{Key: e.name, Value: &url, Origin: origin{Layer: layerEnv, Name: name}})
		}
	}
	return g.result("config", data, func(w *textWriter) { configText(w, data) })
}

// configTags applies the instance's tags. That the cloud does not answer is a note: the other settings are worth seeing.
func configTags(ctx context.Context, g *globals) (note string, _ error) {
	ctx, cancel := context.WithTimeout(ctx, configTagsTimeout)
	defer cancel()
	m, err := g.instance(ctx)
	var bad *settingError
	switch {
	case err == nil:
		return tagsNote(m.Instance), nil
	case errors.As(err, &bad):
		return "", err
	}
	return "instance tags were not read: " + err.Error(), nil
}

func configText(w *textWriter, data configData) {
	set := 0
	rows := [][]string{}
	for _, r := range data.Settings {
		text := "-"
		if r.Value != nil {
			text = *r.Value
		}
		from := r.Origin.String()
		if r.File != "" && r.File != from {
			from += ", in " + r.File
		}
		if r.Origin.Layer != layerDefault {
			set++
		} else if r.Value == nil {
			from = ""
		}
		if r.Next != nil {
			from += "; " + r.Next.nextText(r.Key)
		}
		rows = append(rows, []string{r.Key, text, from})
	}
	w.line("%s; %d of %d differ from the default", w.color.green("the settings are valid"), set, len(rows))
	w.b.WriteByte('\n')
	for _, e := range data.Endpoints {
		rows = append(rows, []string{"endpoint " + e.Key, *e.Value, e.Origin.String()})
	}
	w.table(rows)
	w.b.WriteByte('\n')
	found := "not there"
	if data.ConfigFile.Found {
		found = "read"
	}
	w.line("settings file: %s (%s)", printable(data.ConfigFile.Path), found)
	for _, n := range data.Notes {
		w.line("note: %s", oneLine(n))
	}
	w.line("every key and its meaning: %s", w.color.bold("amsagent help config"))
}
