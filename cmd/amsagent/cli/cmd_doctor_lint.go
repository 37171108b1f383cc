// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/bootstrap/doctor/lint"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	pages "github.com/amsagent/amsagent/docs/errors"
	"github.com/amsagent/amsagent/internal/plain"
)

// lintFile is what was found in one file.
type lintFile struct {
	Name string    `json:"name"`
	Kind lint.Kind `json:"kind"`
	// Opened is what it was packed in; the corrected text is not.
	Opened   []string       `json:"opened,omitempty"`
	Findings []lint.Finding `json:"findings"`
	// Diff turns the file into the corrected text; passwords are masked.
	Diff string `json:"diff,omitempty"`

	text []byte
}

type lintData struct {
	Files []lintFile `json:"files"`
}

// runLint looks at files before a machine runs them.
func runLint(opts doctorOptions, g *globals) error {
	var data lintData
	for _, name := range opts.userData {
		src, err := g.readUserData(name)
		var layers []string
		if err == nil {
			src, layers, err = lint.Open(src)
		}
		if err != nil && g.waiting().Err() != nil {
			return &userError{Msg: "cannot look at " + name, Cause: err}
		}
		if err != nil {
			return &userError{
				Msg: "cannot look at " + name, Cause: err, ID: idUsage, Exit: exitUsage,
				Hints: []string{"a script, a cloud-config, a MIME message, as they are, in gzip or in base64; an haproxy.cfg; a mongod.conf"},
			}
		}
		kind := lint.Kind(opts.kind)
		if kind == "" {
			kind = lint.Recognize(src)
		}
		r := lint.Check(kind, src, opts.ignore...)
		for _, secret := range r.Secrets {
			g.addSecrets(cluster.Secret(secret))
		}
		f := lintFile{Name: name, Kind: r.Kind, Opened: layers, Findings: append([]lint.Finding{}, r.Findings...), text: r.Text}
		shown := "/" + strings.TrimPrefix(name, "/")
		if name == "-" {
			shown = "/user-data"
		}
		f.Diff = conf.Diff(shown, conf.KindWhole, r.Source, r.Text)
		data.Files = append(data.Files, f)
	}
	if opts.fix {
		return g.printFixed(data.Files[0])
	}
	if err := g.result("lint", data, func(w *textWriter) { lintText(w, data) }); err != nil {
		return err
	}
	if slices.ContainsFunc(data.Files, func(f lintFile) bool { return len(f.Findings) > 0 }) {
		return &quietError{exitDegraded}
	}
	return nil
}

// maxUserData is more than any cloud takes.
const maxUserData = maxSmallFile

func (g *globals) readUserData(name string) ([]byte, error) {
	if name != "-" {
		path, err := underRoot(g.settings.Root, name)
		if err != nil {
			return nil, err
		}
		b, _, err := readSmallFile(g.waiting(), path)
		return b, err
	}
	b, err := g.readStdin(g.waiting(), maxUserData, g.within(pipeTime))
	if err == nil && len(b) > maxUserData {
		err = fmt.Errorf("more than %d KiB", maxUserData>>10)
	}
	return b, err
}

// printFixed writes the corrected text alone to stdout: it is to be used as it is, its own secrets included. What was
// found goes where messages go.
func (g *globals) printFixed(f lintFile) error {
	left := false
	for _, x := range f.Findings {
		state := "corrected"
		if !x.Fixed {
			state, left = "not corrected", true
		}
		g.log().Warn(oneLine(fmt.Sprintf("%s: %s (%s)", lintWhere(f, x), x.Text, state))) //nolint:sloglint // the finding's own words
	}
	// A terminal gets no control characters, and a corrected text has no escapes of ours.
	if g.env.IsTerminal(g.env.Stdout) && plain.Text(string(f.text)) != string(f.text) {
		return &userError{
			Msg: "cannot show the corrected text of " + f.Name, Cause: errors.New("it has control characters, or is not UTF-8"), ID: idUsage, Exit: exitUsage,
			Hints: []string{"write it into a file: amsagent doctor --fix --user-data FILE > CORRECTED"},
		}
	}
	if _, err := g.env.Stdout.Write(f.text); err != nil {
		return &outputError{err}
	}
	if left {
		return &quietError{exitDegraded}
	}
	return nil
}

func lintWhere(f lintFile, x lint.Finding) string {
	if x.Line == 0 {
		return f.Name + ": " + x.ID
	}
	return fmt.Sprintf("%s:%d: %s", f.Name, x.Line, x.ID)
}

func lintText(w *textWriter, data lintData) {
	total, fixed := 0, 0
	for _, f := range data.Files {
		for _, x := range f.Findings {
			total++
			if x.Fixed {
				fixed++
			}
		}
	}
	switch {
	case total == 0:
		w.line("%s: nothing is found in %s", w.color.green("OK"), count(len(data.Files), "file"))
	default:
		w.line("%s, %d of them corrected below", w.color.red(count(total, "problem")), fixed)
	}
	for _, f := range data.Files {
		about := string(f.Kind)
		if len(f.Opened) > 0 {
			about += ", out of " + strings.Join(f.Opened, ", ")
		}
		w.heading(printable(f.Name) + " (" + about + ")")
		if len(f.Findings) == 0 {
			w.line("  nothing is found")
			continue
		}
		for _, x := range f.Findings {
			where := "the whole"
			if x.Line > 0 {
				where = fmt.Sprintf("line %d", x.Line)
			}
			w.line("  %s %s: %s", w.color.red(x.ID+":"), where, oneLine(x.Text))
			w.line("      %s", oneLine(x.Hint))
		}
		if f.Diff == "" {
			continue
		}
		w.b.WriteByte('\n')
		for line := range strings.SplitSeq(strings.TrimSuffix(f.Diff, "\n"), "\n") {
			w.line("%s", w.diffLine(printable(line)))
		}
	}
	if total > 0 {
		w.b.WriteByte('\n')
		w.line("the corrected text alone: %s", w.color.bold("amsagent doctor --fix --user-data FILE"))
	}
}

// runExplain prints the page of an id.
// pageData is the page of an id, in Markdown.
type pageData struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

func runExplain(id string, g *globals) error {
	id = strings.ToUpper(id)
	page, err := pages.Page(id)
	if err != nil {
		known := pages.IDs()
		hint := "`amsagent help errors` lists the ids"
		if near := suggest(id, known); near != "" {
			hint = "did you mean " + near + "?"
		}
		return usageError([]string{hint}, "--explain %s: no such id", id)
	}
	if g.isJSON() {
		return g.result("page", pageData{id, string(page)}, nil)
	}
	return g.write(page)
}
