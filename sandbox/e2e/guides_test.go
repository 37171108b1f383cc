// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// playedGuides are the guides that a script plays, each command of them.
var playedGuides = []struct {
	guide, script string
	least         int // commands there are at least: a page that is not read has none
}{
	{"../../docs/guides/migrate.md", "../../testdata/script/guide-migrate.txtar", 15},
	{"../../docs/guides/upgrade-ams.md", "../../testdata/script/guide-upgrade.txtar", 8},
}

// agentCode finds a command in backquotes.
var agentCode = regexp.MustCompile("`((?:sudo )?amsagent [^`]+)`")

// guideCommands lists the commands of the agent that a page shows: lines that are indented, or between fences, and code
// within the text. Where the output goes is the reader's.
func guideCommands(page string) []string {
	var out []string
	add := func(c string) {
		c, _, _ = strings.Cut(strings.TrimPrefix(strings.TrimSpace(c), "sudo "), " >")
		if strings.HasPrefix(c, "amsagent ") && !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	fenced := false
	for line := range strings.Lines(page) {
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			fenced = !fenced
		case fenced || strings.HasPrefix(line, "    "):
			add(line)
		default:
			for _, m := range agentCode.FindAllStringSubmatch(line, -1) {
				add(m[1])
			}
		}
	}
	return out
}

// scriptCommands lists the commands of the agent that a script runs, with the address of MongoDB that the guides have.
func scriptCommands(script string) []string {
	var out []string
	for line := range strings.Lines(script) {
		if strings.HasPrefix(line, "-- ") {
			break // the files of the archive
		}
		c := strings.TrimPrefix(strings.TrimSpace(line), "! ")
		c, ok := strings.CutPrefix(c, "exec ")
		if !ok {
			continue
		}
		c, _, _ = strings.Cut(c, " &")         // in the background
		c, _, _ = strings.Cut(c, " --ignore ") // what depends on the machine under the test
		c, _, _ = strings.Cut(c, " --root ")   // what is not taken from the environment
		out = append(out, strings.ReplaceAll(c, "$MONGO", "10.0.2.4"))
	}
	return out
}

// TestGuidesArePlayed: the script of a guide runs each of its commands unchanged, and their flags exist.
func TestGuidesArePlayed(t *testing.T) {
	helps := map[string]string{}
	for _, g := range playedGuides {
		page, err := os.ReadFile(g.guide)
		must.OK(t, err)
		script, err := os.ReadFile(g.script)
		must.OK(t, err)
		commands, played := guideCommands(string(page)), scriptCommands(string(script))
		if len(commands) < g.least {
			t.Errorf("%s: %d commands, at least %d are there: %q", g.guide, len(commands), g.least, commands)
		}
		for _, c := range commands {
			if !slices.Contains(played, c) {
				t.Errorf("%s: %q is not run by %s", g.guide, c, g.script)
			}
			words := strings.Fields(c)
			help, ok := helps[words[1]]
			if !ok {
				b, err := exec.CommandContext(t.Context(), bins.agent, words[1], "--help").Output()
				if err != nil {
					t.Errorf("%s: %q: %v", g.guide, c, err)
				}
				help = string(b)
				helps[words[1]] = help
			}
			for _, w := range words[2:] {
				flag, _, _ := strings.Cut(w, "=")
				if strings.HasPrefix(flag, "-") && !strings.Contains(help, " "+flag+" ") && !strings.Contains(help, " "+flag+",") {
					t.Errorf("%s: %q: there is no %s", g.guide, c, flag)
				}
			}
		}
	}
}

// TestGuideCommands shows that the reading above finds what it is to find.
func TestGuideCommands(t *testing.T) {
	page := "text `amsagent undrain` and `leave`, `sudo amsagent drain`\n\n    sudo amsagent join --mongo 10.0.2.4\n    systemctl stop antmedia\n" +
		"1. in a list\n\n       amsagent status\n\n```sh\namsagent doctor --ignore AMS-GPU >new\n```\n\namsagent is no command here\n"
	want := []string{"amsagent undrain", "amsagent drain", "amsagent join --mongo 10.0.2.4", "amsagent status", "amsagent doctor --ignore AMS-GPU"}
	if got := guideCommands(page); !slices.Equal(got, want) {
		t.Errorf("of the page: %q, want %q", got, want)
	}
	script := "# exec amsagent leave\nexec amsagent join --mongo $MONGO\n! exec amsagent run &d&\nstdout 'exec amsagent seal'\n-- file --\nexec amsagent drain\n"
	want = []string{"amsagent join --mongo 10.0.2.4", "amsagent run"}
	if got := scriptCommands(script); !slices.Equal(got, want) {
		t.Errorf("of the script: %q, want %q", got, want)
	}
}
