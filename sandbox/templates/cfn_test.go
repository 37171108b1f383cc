// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
)

// stack is a template of AWS, or of Alibaba's ROS, which took over its form.
type stack struct {
	source
	t     *testing.T
	known map[string]any // by name, what a reference becomes: given, or a parameter's default
	all   map[string]any // the sections, with their references followed
	names []string       // of all that is referred to
}

type object = map[string]any

// loadStack follows the references of a template. Of a choice the half counts that is there if the condition holds.
func loadStack(t *testing.T, file string, given map[string]any) *stack {
	t.Helper()
	c := &stack{source: read(t, file), t: t, known: maps.Clone(given)}
	var doc yaml.Node
	must.OK(t, yaml.Unmarshal([]byte(c.raw), &doc))
	must.OK(t, yaml.Unmarshal([]byte(c.raw), &map[string]any{})) // which refuses a key that is there twice
	var parameters struct {
		Parameters map[string]struct {
			Default any `yaml:"Default"`
		} `yaml:"Parameters"`
	}
	must.OK(t, doc.Decode(&parameters))
	for name, p := range parameters.Parameters {
		if c.known[name] == nil && p.Default != nil {
			c.known[name] = p.Default
		}
	}
	c.all, _ = c.value(doc.Content[0]).(object)
	return c
}

func (c *stack) value(n *yaml.Node) any {
	c.t.Helper()
	if tag, ok := strings.CutPrefix(n.Tag, "!"); ok && !strings.HasPrefix(tag, "!") {
		plain := *n
		plain.Tag = ""
		return c.call(tag, &plain)
	}
	switch n.Kind {
	case yaml.MappingNode:
		o := object{}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i].Value
			name, function := strings.CutPrefix(key, "Fn::")
			if len(n.Content) == 2 && (function || key == "Ref") {
				return c.call(name, n.Content[1])
			}
			o[key] = c.value(n.Content[i+1])
			if key == "DependsOn" || key == "Condition" {
				c.names = append(c.names, strs(o[key])...)
			}
		}
		return o
	case yaml.SequenceNode:
		list := []any{}
		for _, e := range n.Content {
			list = append(list, c.value(e))
		}
		return list
	}
	var v any
	must.OK(c.t, n.Decode(&v))
	return v
}

func (c *stack) ref(name string) any {
	base, _, _ := strings.Cut(name, ".")
	if !strings.Contains(base, "::") {
		c.names = append(c.names, base)
	}
	if v := c.known[name]; v != nil {
		return v
	}
	return "${" + name + "}"
}

// call follows the functions that make texts and choices.
func (c *stack) call(name string, arg *yaml.Node) any {
	c.t.Helper()
	v := c.value(arg)
	list, _ := v.([]any)
	switch name {
	case "Ref":
		return c.ref(fmt.Sprint(v))
	case "GetAtt":
		return c.ref(strings.Join(strs(v), "."))
	case "If":
		c.names = append(c.names, fmt.Sprint(list[0]))
		return list[1]
	case "Join":
		return strings.Join(strs(list[1]), fmt.Sprint(list[0]))
	case "Split":
		return strings.Split(fmt.Sprint(list[1]), fmt.Sprint(list[0]))
	case "Sub":
		names := object{}
		if list != nil {
			v, names = list[0], list[1].(object)
		}
		return reference.ReplaceAllStringFunc(fmt.Sprint(v), func(s string) string {
			name := strings.Trim(s, "${}")
			if local, ok := names[name]; ok {
				return fmt.Sprint(local)
			}
			return fmt.Sprint(c.ref(name))
		})
	}
	return v
}

// of are the properties of a resource.
func (c *stack) of(name string) object {
	c.t.Helper()
	p, ok := at(c.all, "Resources", name, "Properties").(object)
	if !ok {
		c.t.Fatalf("there is no %s", name)
	}
	return p
}

// statements returns the policies of a role as lines, with effect and resources, so that a test sees a deny or an empty resource.
func (c *stack) statements(role string) []string {
	c.t.Helper()
	var out []string
	for _, p := range c.of(role)["Policies"].([]any) {
		for _, s := range at(p, "PolicyDocument", "Statement").([]any) {
			out = append(out, fmt.Sprintf("%v %s on %s", at(s, "Effect"), strings.Join(sorted(strs(at(s, "Action"))), " "), strings.Join(strs(at(s, "Resource")), " ")))
		}
	}
	return sorted(out)
}

// references: what the template refers to is declared, and every parameter and condition is referred to and shown under a heading.
func (c *stack) references() {
	c.t.Helper()
	var parameters, conditions []string
	for name := range c.all["Parameters"].(object) {
		parameters = append(parameters, name)
	}
	for name := range c.all["Conditions"].(object) {
		conditions = append(conditions, name)
	}
	names := slices.DeleteFunc(slices.Clone(c.names), func(name string) bool { return at(c.all, "Resources", name) != nil })
	used(c.t, slices.Concat(parameters, conditions), names)
	var shown []string
	for _, list := range c.finds(`^Parameters: \[(.+)\]$`) {
		shown = append(shown, strings.Split(list, ", ")...)
	}
	used(c.t, parameters, shown)
}

// at follows keys through objects.
func at(v any, keys ...string) any {
	for _, k := range keys {
		o, _ := v.(object)
		v = o[k]
	}
	return v
}

func strs(v any) []string {
	switch v := v.(type) {
	case nil:
		return nil
	case []string:
		return v
	case []any:
		var out []string
		for _, e := range v {
			out = append(out, fmt.Sprint(e))
		}
		return out
	}
	return []string{fmt.Sprint(v)}
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}
