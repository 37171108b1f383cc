// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// Each name in the table is refused with its replacement, in each place where it could stand.
func TestRemoved(t *testing.T) {
	var list strings.Builder
	for _, r := range removed {
		type example struct {
			shown, config string
			vars          map[string]string
			args          []string
		}
		var examples []example
		key := func(key, value, shown string) {
			examples = append(examples, example{shown: shown, config: key + ": " + value + "\n", args: []string{"config", "--offline"}})
		}
		variable := func(name, value, shown string) {
			examples = append(examples, example{shown: shown, vars: map[string]string{name: value}, args: []string{"config", "--offline"}})
		}
		switch r.kind {
		case removedSetting:
			key(r.name, "x", r.name)
			name := envPrefix + strings.ToUpper(r.name)
			variable(name, "x", name)
		case removedKey:
			key(r.name, "x", r.name)
		case removedEnv:
			variable(r.name, "x", r.name)
		case removedFlag:
			command := r.of
			if command == "" {
				command = "status"
			}
			examples = append(examples, example{shown: "--" + r.name, args: []string{command, "--" + r.name + "=x"}})
		case removedCommand:
			examples = append(examples, example{shown: r.name, args: strings.Fields(r.of + " " + r.name)})
		case removedItem:
			examples = append(examples, example{shown: r.name, args: []string{r.of, "--remove=" + r.name}})
		case removedValue:
			row, ok := settingByKey(r.of)
			if !ok {
				t.Errorf("%s: there is no setting %s", r.name, r.of)
			}
			key(r.of, r.name, r.name)
			variable(row.env(), r.name, r.name)
		}
		for _, e := range examples {
			fmt.Fprintf(&list, "%s: %s\n", strings.Join(e.args, " "), e.shown)
			vars := map[string]string{"AMSAGENT_ROOT": tree(t, map[string]string{"etc/amsagent/config.yaml": e.config})}
			for name, value := range e.vars {
				vars[name] = value
			}
			code, _, stderr := run(t, vars, e.args...)
			if want := e.shown + " was removed: " + r.instead; code != exitUsage || !strings.Contains(stderr, want) {
				t.Errorf("%s %v %q: exit %d, want %d with %q\n%s", strings.Join(e.args, " "), e.vars, e.config, code, exitUsage, want, stderr)
			}
		}
	}
	golden(t, "removed.txt", list.String())
}

// A removed key is named with its file and line, and a variable that is set to nothing is not refused.
func TestRemovedPlace(t *testing.T) {
	root := tree(t, map[string]string{"etc/amsagent/config.yaml": "role: edge\ndrain_deadlines: {edge: 5m}\n"})
	place := filepath.Join(root, "etc/amsagent/config.yaml") + ":2: drain_deadlines was removed: "
	if code, _, stderr := run(t, map[string]string{"AMSAGENT_ROOT": root}, "config", "--offline"); code != exitUsage || !strings.Contains(stderr, place) {
		t.Errorf("exit %d, %q is not in\n%s", code, place, stderr)
	}
	if code, _, stderr := run(t, map[string]string{"AMSAGENT_DRAIN_DEADLINES": ""}, "config", "--offline"); code != exitOK {
		t.Errorf("a variable without a value: exit %d\n%s", code, stderr)
	}
}
