// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package packaging compares files of the packages with the documents. It has no code, and nothing imports it.
package packaging

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
)

type rules struct {
	Groups []struct {
		Rules []struct {
			Record, Alert, Expr string
			Labels, Annotations map[string]string
		}
	}
}

// dashboard has the fields that the test reads.
type dashboard struct {
	Inputs     json.RawMessage `json:"__inputs"`
	Templating struct {
		List []struct {
			Name, Type string
			Query      any
		}
	}
	Panels []struct {
		ID           int
		Type, Title  string
		Datasource   struct{ Type, UID string }
		GridPos      struct{ X, Y, W, H int }
		LibraryPanel json.RawMessage
		Targets      []struct {
			RefID, Expr string
			Datasource  struct{ Type, UID string }
		}
	}
}

func readYAML(t *testing.T, path string, v any) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must.OK(t, err)
	must.OK(t, yaml.Unmarshal(b, v))
	return string(b)
}

// TestMonitoringNames: each metric of the rules and the dashboard is in docs/metrics.md.
func TestMonitoringNames(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/metrics.md")
	must.OK(t, err)
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(amsagent_\\w+)` \\|").FindAllStringSubmatch(string(page), -1) {
		documented[m[1]] = true
	}
	records := map[string]bool{}
	var r rules
	readYAML(t, "monitoring/amsagent.rules.yml", &r)
	for _, g := range r.Groups {
		for _, rule := range g.Rules {
			records[rule.Record] = true
		}
	}
	used := 0
	for _, file := range []string{"amsagent.rules.yml", "dashboard.json"} {
		text, err := os.ReadFile("monitoring/" + file)
		must.OK(t, err)
		for _, name := range regexp.MustCompile(`(\w+:)?\bamsagent_\w+(:\w+)?`).FindAllString(string(text), -1) {
			used++
			if !documented[name] && !records[name] {
				t.Errorf("%s: %s is not in docs/metrics.md", file, name)
			}
		}
	}
	if used < 40 || len(documented) < 30 {
		t.Errorf("only %d names of %d metrics were found", used, len(documented))
	}
}

// TestMonitoringAlerts: each alert has a severity, a summary, a page that is there, and a scene in the rules' own tests.
func TestMonitoringAlerts(t *testing.T) {
	t.Parallel()
	var r rules
	readYAML(t, "monitoring/amsagent.rules.yml", &r)
	var scenes any
	tests := readYAML(t, "monitoring/amsagent.rules.test.yml", &scenes)
	const docs = "https://github.com/amsagent/amsagent/blob/main/"
	alerts, records := map[string]bool{}, 0
	for _, g := range r.Groups {
		for _, rule := range g.Rules {
			if rule.Alert == "" {
				records++
				continue
			}
			alerts[rule.Alert] = true
			if !strings.HasPrefix(rule.Alert, "Amsagent") || !slices.Contains([]string{"critical", "warning", "info"}, rule.Labels["severity"]) ||
				len(rule.Labels) != 1 || len(rule.Annotations) != 2 || rule.Annotations["summary"] == "" {
				t.Errorf("%+v", rule)
			}
			if !regexp.MustCompile(`(?m)alertname: ` + rule.Alert + `$(?:\n.*)?\n +exp_alerts:$`).MatchString(tests) {
				t.Errorf("%s fires in no scene", rule.Alert)
			}
			link, ours := strings.CutPrefix(rule.Annotations["runbook_url"], docs)
			file, section, _ := strings.Cut(link, "#")
			text, err := os.ReadFile("../" + file)
			if !ours || err != nil || section != "" && !slices.Contains(anchors(string(text)), section) {
				t.Errorf("%s: %s is not there: %v", rule.Alert, link, err)
			}
		}
	}
	if len(alerts) != 16 || records != 3 {
		t.Errorf("%d alerts, %d records: %v", len(alerts), records, slices.Sorted(maps.Keys(alerts)))
	}
}

// anchors are those that GitHub makes of the headings of a page.
func anchors(page string) (list []string) {
	for _, m := range regexp.MustCompile(`(?m)^##+ (.*)$`).FindAllStringSubmatch(page, -1) {
		list = append(list, strings.ReplaceAll(regexp.MustCompile(`[^\w -]`).ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return list
}

// TestMonitoringDashboard checks what Grafana would only show when someone looks: it loads any JSON.
func TestMonitoringDashboard(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("monitoring/dashboard.json")
	must.OK(t, err)
	var d dashboard
	must.OK(t, json.Unmarshal(b, &d))
	if d.Inputs != nil || len(d.Templating.List) != 2 || d.Templating.List[0].Type != "datasource" || d.Templating.List[0].Query != "prometheus" || d.Templating.List[1].Name != "role" {
		t.Errorf("the variables: %+v; __inputs: %s", d.Templating.List, d.Inputs)
	}
	must.Equal(t, "panels", len(d.Panels), 12)
	const source = "${datasource}"
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" || p.Datasource.UID != source || p.LibraryPanel != nil || len(p.Targets) == 0 ||
			!slices.Contains([]string{"stat", "timeseries", "state-timeline", "table"}, p.Type) {
			t.Errorf("panel %+v", p)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s lies on %q, or is too wide", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		refs := map[string]bool{}
		for _, target := range p.Targets {
			if refs[target.RefID] || target.RefID == "" || target.Datasource.UID != source || !strings.Contains(target.Expr, `role=~"$role"`) {
				t.Errorf("%s: %+v", p.Title, target)
			}
			refs[target.RefID] = true
		}
	}
}

// TestMonitoringPackaged: nfpm expands no pattern for the documentation of an rpm, so each file has a line.
func TestMonitoringPackaged(t *testing.T) {
	t.Parallel()
	list, err := os.ReadFile("../nfpm.yaml")
	must.OK(t, err)
	files, err := filepath.Glob("monitoring/*")
	must.OK(t, err)
	for _, file := range files {
		if !strings.Contains(string(list), "src: packaging/"+file+", dst: /usr/share/doc/amsagent/examples/"+file+",") {
			t.Errorf("nfpm.yaml does not have %s", file)
		}
	}
	if len(files) < 5 {
		t.Errorf("only %v", files)
	}
}
