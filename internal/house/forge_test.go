// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package house

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
)

// beforeCheckout is the one command of the workflows that the Makefile lacks: at that moment there is no make.
const beforeCheckout = `apt-get update && apt-get install -y --no-install-recommends ca-certificates git make && git config --system --add safe.directory "$GITHUB_WORKSPACE"`

var (
	pinnedAction = regexp.MustCompile(`^[a-z-]+/[a-z-]+@[0-9a-f]{40}$`)
	actionTag    = regexp.MustCompile(`^# v\d+\.\d+\.\d+$`)
	makeCommand  = regexp.MustCompile(`^make ([a-z0-9-]+)(?: [A-Z]+=[a-z0-9]+)*$`)
)

// checkWorkflow reports what a workflow has that a person could not run, or that another could exchange.
func checkWorkflow(text []byte, targets map[string]bool) (found []string) {
	type command struct {
		Run  string    `yaml:"run"`
		Uses yaml.Node `yaml:"uses"`
	}
	var w struct {
		Permissions yaml.Node `yaml:"permissions"`
		Jobs        map[string]struct {
			Timeout int       `yaml:"timeout-minutes"`
			Steps   []command `yaml:"steps"`
		} `yaml:"jobs"`
	}
	if err := yaml.Unmarshal(text, &w); err != nil {
		return []string{err.Error()}
	}
	if w.Permissions.IsZero() {
		found = append(found, "no permissions: the token may write then")
	}
	if len(w.Jobs) == 0 {
		found = append(found, "no jobs")
	}
	for _, name := range slices.Sorted(maps.Keys(w.Jobs)) {
		job := w.Jobs[name]
		if job.Timeout == 0 {
			found = append(found, name+": no timeout-minutes")
		}
		for _, s := range job.Steps {
			m := makeCommand.FindStringSubmatch(s.Run)
			switch {
			case s.Run == "" && !pinnedAction.MatchString(s.Uses.Value):
				found = append(found, fmt.Sprintf("%s: %q is not pinned by its commit", name, s.Uses.Value))
			case s.Run == "" && !actionTag.MatchString(s.Uses.LineComment):
				found = append(found, fmt.Sprintf("%s: %s: the comment %q is not its version", name, s.Uses.Value, s.Uses.LineComment))
			case s.Run != "" && s.Run != ".ci/run" && s.Run != beforeCheckout && (m == nil || !targets[m[1]]):
				found = append(found, fmt.Sprintf("%s: %q is not a make target", name, s.Run))
			}
		}
	}
	return found
}

func TestWorkflows(t *testing.T) {
	targets, pins := makeTargets(t), map[string]string{}
	var names []string
	for _, f := range checkout(t) {
		if path.Dir(f.path) != ".github/workflows" {
			continue
		}
		names = append(names, path.Base(f.path))
		text := f.read(t)
		for _, complaint := range checkWorkflow(text, targets) {
			t.Errorf("%s: %s", f.path, complaint)
		}
		for _, m := range regexp.MustCompile(`uses: ([^@\s]+)@(.*)`).FindAllStringSubmatch(string(text), -1) {
			if pin, ok := pins[m[1]]; ok && pin != m[2] {
				t.Errorf("%s: %s is at %s, elsewhere at %s", f.path, m[1], m[2], pin)
			}
			pins[m[1]] = m[2]
		}
	}
	must.NoDiff(t, "workflows", names, []string{"ci.yml", "nightly.yml", "release.yml"})
}

// TestWorkflowsRefuse holds that the check above finds each of these.
func TestWorkflowsRefuse(t *testing.T) {
	commit := strings.Repeat("0a", 20)
	for _, tt := range []struct {
		change, to, want string
	}{
		{"", "", ""},
		{"permissions: {}\n", "", "no permissions: the token may write then"},
		{"timeout-minutes: 1", "name: x", "j: no timeout-minutes"},
		{"@" + commit, "@v1", `j: "a/b@v1" is not pinned by its commit`},
		{"# v1.2.3", "# v1", `j: a/b@` + commit + `: the comment "# v1" is not its version`},
		{"make gate", "make nothing", `j: "make nothing" is not a make target`},
		{"make gate", "make gate && rm -rf /", `j: "make gate && rm -rf /" is not a make target`},
		{"make gate", "go test ./...", `j: "go test ./..." is not a make target`},
	} {
		text := "permissions: {}\njobs:\n  j:\n    timeout-minutes: 1\n    steps:\n      - uses: a/b@" + commit + " # v1.2.3\n      - run: make gate\n"
		got := checkWorkflow([]byte(strings.Replace(text, tt.change, tt.to, 1)), map[string]bool{"gate": true})
		must.Equal(t, fmt.Sprintf("%q for %q", tt.to, tt.change), strings.Join(got, "\n"), tt.want)
	}
}

// TestDependabot: it looks at each Go module, and at the actions.
func TestDependabot(t *testing.T) {
	var config struct {
		Updates []struct {
			Ecosystem   string   `yaml:"package-ecosystem"`
			Directory   string   `yaml:"directory"`
			Directories []string `yaml:"directories"`
		} `yaml:"updates"`
	}
	must.OK(t, yaml.Unmarshal(file{path: ".github/dependabot.yml"}.read(t), &config))
	got, want := map[string][]string{}, map[string][]string{"github-actions": {"/"}}
	for _, u := range config.Updates {
		if u.Directory != "" {
			u.Directories = append(u.Directories, u.Directory)
		}
		got[u.Ecosystem] = slices.Sorted(slices.Values(u.Directories))
	}
	for _, f := range checkout(t) {
		if path.Base(f.path) == "go.mod" && !isFixture(f) {
			want["gomod"] = append(want["gomod"], path.Join("/", path.Dir(f.path)))
		}
	}
	slices.Sort(want["gomod"])
	must.NoDiff(t, "folders (-modules +dependabot.yml)", got, want)
}

// TestIssueForms: GitHub shows no form that has a mistake, and reports none. Each asks for the output of `amsagent support`.
func TestIssueForms(t *testing.T) {
	forms := 0
	for _, f := range checkout(t) {
		if path.Dir(f.path) != ".github/ISSUE_TEMPLATE" || f.is("/config.yml") {
			continue
		}
		forms++
		var form struct {
			Name        string `yaml:"name"`
			Description string `yaml:"description"`
			Body        []struct {
				Type       string `yaml:"type"`
				ID         string `yaml:"id"`
				Attributes struct {
					Label string `yaml:"label"`
					Value string `yaml:"value"`
				} `yaml:"attributes"`
			} `yaml:"body"`
		}
		text := f.read(t)
		must.Equal(t, f.path, yaml.Unmarshal(text, &form), nil)
		if form.Name == "" || form.Description == "" || len(form.Body) == 0 {
			t.Errorf("%s lacks name, description or body", f.path)
		}
		ids := map[string]bool{}
		for _, item := range form.Body {
			switch item.Type {
			case "markdown":
				if item.Attributes.Value == "" {
					t.Errorf("%s: a text without value", f.path)
				}
			case "textarea", "input":
				if item.ID == "" || ids[item.ID] || item.Attributes.Label == "" {
					t.Errorf("%s: %q has no id of its own or no label", f.path, item.ID)
				}
				ids[item.ID] = true
			default:
				t.Errorf("%s: an item of type %q", f.path, item.Type)
			}
		}
		must.Contain(t, f.path, string(text), "`amsagent support > support.txt`")
	}
	must.Equal(t, "forms", forms, 2)
}
