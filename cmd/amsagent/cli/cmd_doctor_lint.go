// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor/lint"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	pages "github.com/amsagent/amsagent/docs/errors"
)

// lintFile has the findings in one file.
type lintFile struct {
	Name     string         `json:"name"`
	Findings []lint.Finding `json:"findings"`
}

type lintData struct {
	Files []lintFile `json:"files"`
}

// runLint checks user data before a machine runs them.
func runLint(opts doctorOptions, g *globals) error {
	var data lintData
	refused := func(program string, args []string) (text, hint string) { return refusedCommand(g.env, program, args) }
	counts := map[bootstrap.Severity]int{}
	for _, name := range opts.userData {
		src, err := readUserData(g, name)
		switch {
		case err != nil && g.ctx.Err() != nil:
			return cannot("read "+name, err)
		case err != nil:
			return &userError{Msg: "cannot read " + name, Cause: err, ID: idUsage, Exit: exitUsage, Hints: []string{"a script or a cloud-config"}}
		}
		f := lintFile{name, append([]lint.Finding{}, lint.Check(string(src), refused, opts.ignore...)...)}
		data.Files = append(data.Files, f)
		for _, x := range f.Findings {
			counts[x.Severity]++
		}
	}
	if err := g.result("lint", data, func(w *output.Text) { lintText(w, data, counts) }); err != nil {
		return err
	}
	if counts[bootstrap.Bad] > 0 || opts.strict && len(counts) > 0 {
		return &quietError{exitDegraded}
	}
	return nil
}

// refusedCommand is a [lint.Refused]: it reads a command line as [Main] does. The values of variables and of flags are not known.
func refusedCommand(env Env, program string, args []string) (text, hint string) {
	root := newRootCommand(newGlobals(env))
	cmd, rest, err := root.Find(args)
	switch {
	case len(args) == 0 || err != nil:
		return "", ""
	case program != root.Name():
		return misspelt(root, program, cmd)
	}
	err = cmd.ParseFlags(rest)
	switch {
	case as[*pflag.NotExistError](err), as[*pflag.ValueRequiredError](err):
		err = flagError(cmd, err)
	case err != nil || strings.ContainsAny(strings.Join(args, ""), "$`{<*"):
		return "", ""
	default:
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	ue, ok := errors.AsType[*userError](err)
	if !ok {
		return "", ""
	}
	return "amsagent refuses it: " + ue.Msg, strings.Join(ue.Hints, "; ")
}

// misspelt is for a program that is called almost as the agent is, with a command that the agent has.
func misspelt(root *cobra.Command, program string, cmd *cobra.Command) (text, hint string) {
	const minName = 6 // a shorter one is another program's
	if cmd == root || len(program) < minName || len(settings.NearWords(program, root.Name())) == 0 {
		return "", ""
	}
	return "no program is called " + program, "write " + cmd.CommandPath()
}

// maxUserData is more than any cloud takes.
const maxUserData = settings.MaxSmallFile

func readUserData(g *globals, name string) ([]byte, error) {
	if name != "-" {
		path, err := settings.UnderRoot(g.settings.Root, name)
		if err != nil {
			return nil, err
		}
		b, _, err := settings.ReadSmallFile(path)
		return b, err
	}
	b, err := g.readStdin(maxUserData, within(g.settings.Timeout, pipeTime))
	if err == nil && len(b) > maxUserData {
		err = fmt.Errorf("more than %d KiB", maxUserData>>10)
	}
	return b, err
}

func lintText(w *output.Text, data lintData, counts map[bootstrap.Severity]int) {
	files := output.Count(len(data.Files), "file")
	switch {
	case counts[bootstrap.Bad] > 0:
		w.Line("%s", w.Color.Red(output.Count(counts[bootstrap.Bad]+counts[bootstrap.Warning], "problem")))
	case counts[bootstrap.Unknown] > 0: // never OK
		w.Line("%s", w.Color.Yellow(fmt.Sprintf("%d of %s not checked", counts[bootstrap.Unknown], files)))
	case counts[bootstrap.Warning] > 0:
		w.Line("%s with %s", w.Color.Yellow("OK"), output.Count(counts[bootstrap.Warning], "warning"))
	default:
		w.Line("%s: nothing is found in %s", w.Color.Green("OK"), files)
	}
	for _, f := range data.Files {
		w.Heading(output.Printable(f.Name))
		if len(f.Findings) == 0 {
			w.Line("  nothing is found")
		}
		for _, x := range f.Findings {
			where := fmt.Sprintf("line %d", x.Line)
			if x.Line == 0 {
				where = "the whole"
			}
			paint := w.Color.Red
			if x.Severity != bootstrap.Bad {
				paint = w.Color.Yellow
			}
			w.Line("  %s %s: %s", paint(x.ID+":"), where, output.OneLine(x.Text))
			w.Line("      %s", output.OneLine(x.Hint))
		}
	}
}

// pageData is the page of an id, in Markdown.
type pageData struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

func runExplain(id string, g *globals) error {
	id = strings.ToUpper(id)
	page, err := pages.Page(id)
	if err != nil {
		return usageError([]string{"an id stands beside each problem that a command names, such as AMS-HOSTS"}, "--explain %s: no such id", id)
	}
	if g.out.IsJSON() {
		return g.result("page", pageData{id, string(page)}, nil)
	}
	return g.out.Print(page)
}
