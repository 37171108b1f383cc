// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/must"
)

// A wrong config.yaml stops only the commands that decide what a node becomes. Others leave an unknown key out, and with another
// fault they use the last good file, or refuse without one.
func TestWrongConfig(t *testing.T) {
	const good = "group: studio\nrole: edge\n"
	const left, kept, refused = "left out", "the last good one counts", ""
	for _, tt := range []struct {
		name, config, good string
		// outcome is what happens instead, and role with its origin is that of `status`.
		outcome, role, from, id string
	}{
		{"unknown key", "roel: edge\nrole: origin\n", good, left, "origin", "/etc/amsagent/config.yaml:2", "AGENT-CONFIG"},
		{"unknown key, nothing kept", "roel: edge\nrole: origin\n", "", left, "origin", "/etc/amsagent/config.yaml:2", "AGENT-CONFIG"},
		{"key of the command line", "root: /mnt\nrole: origin\n", good, left, "origin", "/etc/amsagent/config.yaml:2", "AGENT-CONFIG"},
		{"wrong value", "role: origin\nbeat_interval: soon\n", good, kept, "edge", "/var/lib/amsagent/config.yaml.good:2", "AGENT-CONFIG"},
		{"wrong value beside an unknown key", "roel: x\nbeat_interval: soon\n", good, kept, "edge", "/var/lib/amsagent/config.yaml.good:2", "AGENT-CONFIG"},
		{"not YAML", "role: [\n", good, kept, "edge", "/var/lib/amsagent/config.yaml.good:2", "AGENT-CONFIG"},
		{"twice", "role: a\nrole: b\n", good, kept, "edge", "/var/lib/amsagent/config.yaml.good:2", "AGENT-CONFIG"},
		{"password", "mongo: mongodb://u:hunter22@h/\n", good, kept, "edge", "/var/lib/amsagent/config.yaml.good:2", "AGENT-CONFIG-SECRET"},
		{"unreadable", "", good, kept, "edge", "/var/lib/amsagent/config.yaml.good:2", "AGENT-CONFIG"},
		{"unknown key in the kept one", "role: [\n", "roel: x\nrole: edge\n", kept, "edge", "/var/lib/amsagent/config.yaml.good:2", "AGENT-CONFIG"},
		{"the kept one is empty", "role: [\n", "# empty\n", kept, "", "", "AGENT-CONFIG"},
		{"nothing kept", "beat_interval: soon\n", "", refused, "", "", "AGENT-CONFIG"},
		{"the kept one is wrong", "role: [\n", "beat_interval: soon\n", refused, "", "", "AGENT-CONFIG"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{"etc/amsagent/config.yaml": tt.config}
			if tt.config == "" {
				files = map[string]string{"etc/amsagent/config.yaml/x": ""}
			}
			if tt.good != "" {
				files["var/lib/amsagent/config.yaml.good"] = tt.good
			}
			root := tree(t, files)
			do := func(args ...string) (code int, stdout, stderr string) {
				code, stdout, stderr = run(t, map[string]string{"AMSAGENT_ROOT": root, "AMSAGENT_PROVIDER": "generic"}, args...)
				if strings.Contains(stdout+stderr, "hunter22") {
					t.Errorf("%v: the password is shown", args)
				}
				return code, strings.ReplaceAll(stdout, root, ""), strings.ReplaceAll(stderr, root, "")
			}
			for _, args := range [][]string{
				{"config", "--offline"}, {"seal", "--dry-run"}, {"join", "--offline", "--mongo", "10.0.2.4"},
			} {
				if code, stdout, stderr := do(args...); code != codeUsage || stdout != "" || !strings.Contains(stderr, "["+tt.id+"]") {
					t.Errorf("%v: exit %d\n%s%s", args, code, stdout, stderr)
				}
			}
			code, stdout, stderr := do("status", "-o", "json")
			if tt.outcome == refused {
				if code != codeUsage || !strings.Contains(stderr, `"id":"`+tt.id+`"`) {
					t.Errorf("status: exit %d\n%s", code, stderr)
				}
				return
			}
			var got struct {
				Role     *shownSetting
				Disagree []bootstrap.Finding `json:"disagreements"`
			}
			if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != codeNotMember || got.Role == nil {
				t.Fatalf("status: exit %d, %v\n%s", code, err, stderr)
			}
			from := got.Role.Origin.Name
			if got.Role.Origin.Line > 0 {
				from += ":" + strconv.Itoa(got.Role.Origin.Line)
			}
			if got.Role.Value != tt.role || from != tt.from {
				t.Errorf("role %q from %q", got.Role.Value, from)
			}
			if !slices.ContainsFunc(got.Disagree, func(d bootstrap.Finding) bool { return d.ID == "AGENT-CONFIG" && strings.Contains(d.Text, tt.outcome) }) {
				t.Errorf("status does not show it: %v", got.Disagree)
			}
			if !strings.Contains(stderr, "config.yaml") || !strings.Contains(stderr, tt.outcome) {
				t.Errorf("the log does not have it:\n%s", stderr)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	for _, e := range settings.Endpoints() {
		for _, name := range append([]string{e.Env}, e.AlsoEnv...) {
			vars := map[string]string{name: "http://127.0.0.1:1"}
			code, stdout, _ := run(t, vars, "config", "--offline")
			line := regexp.MustCompile(`(?m)^  endpoint (\S+) +(\S+) +(\S+)$`).FindAllStringSubmatch(stdout, -1)
			if code != codeOK || len(line) != 1 || !slices.Equal(line[0][1:], []string{e.Name, "http://127.0.0.1:1", name}) {
				t.Errorf("%s: exit %d, %q", name, code, line)
			}
			_, stdout, _ = run(t, vars, "config", "--offline", "-o", "json")
			var got struct{ Endpoints []any }
			must.OK(t, json.Unmarshal([]byte(stdout), &got))
			want := []any{map[string]any{"key": e.Name, "value": "http://127.0.0.1:1", "origin": map[string]any{"layer": "env", "name": name}}}
			must.NoDiff(t, "endpoints", got.Endpoints, want)
		}
	}
}
