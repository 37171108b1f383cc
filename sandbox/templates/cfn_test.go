// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
)

// cloudformation is a template of AWS (or of Alibaba's ROS, which took over its
// form) that was evaluated with the defaults of its parameters and with the values
// given. What only the cloud can tell stands for itself: a Ref to a resource is
// "${Vpc}", an attribute "${Mongo.PrivateIp}".
type cloudformation struct {
	t          *testing.T
	file       string
	ros        bool // of Alibaba Cloud
	parameters map[string]any
	conditions map[string]bool
	all        map[string]object // the resources as they are written
	resources  map[string]object // evaluated, those whose condition holds
	outputs    map[string]any
	used       map[string]bool
}

// object is a resource, or a part of it.
type object = map[string]any

// noValue is what AWS::NoValue becomes: the property is not there.
type noValue struct{}

func load(t *testing.T, file string, given map[string]any) *cloudformation {
	t.Helper()
	c := &cloudformation{
		t: t, file: file, parameters: map[string]any{}, conditions: map[string]bool{}, all: map[string]object{},
		resources: map[string]object{}, outputs: map[string]any{}, used: map[string]bool{},
	}
	b, err := os.ReadFile(file)
	must.OK(t, err)
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	top := c.tree(doc.Content[0]).(object)
	for name := range top {
		if !slices.Contains(strings.Fields("AWSTemplateFormatVersion Conditions Description Metadata Outputs Parameters ROSTemplateFormatVersion Resources"), name) {
			t.Errorf("%s has a section %s", file, name)
		}
	}
	c.ros = top["ROSTemplateFormatVersion"] == "2015-09-01"
	if !c.ros && top["AWSTemplateFormatVersion"] != "2010-09-09" {
		t.Errorf("%s says not whose template it is", file)
	}
	section := func(name string) object {
		o, _ := top[name].(object)
		return o
	}
	for name, p := range section("Parameters") {
		p := p.(object)
		if p["Description"] == nil || p["Type"] == nil {
			t.Errorf("%s: the parameter %s has no description or no type", file, name)
		}
		for key := range p {
			if !slices.Contains(strings.Fields("AllowedPattern AllowedValues Default Description MaxValue MinValue Type"), key) && (!c.ros || key != "AssociationProperty") {
				t.Errorf("%s: the parameter %s has a part %s", file, name, key)
			}
		}
		switch v, ok := given[name]; {
		case ok:
			c.parameters[name] = v
		case p["Default"] != nil:
			c.parameters[name] = p["Default"]
		default:
			t.Fatalf("%s: the parameter %s has no default, and the test gives none", file, name)
		}
		if pattern, ok := p["AllowedPattern"].(string); ok && !regexp.MustCompile(pattern).MatchString(fmt.Sprint(c.parameters[name])) {
			t.Errorf("%s: %s=%v does not match its own pattern %s", file, name, c.parameters[name], pattern)
		}
	}
	for name := range given {
		if c.parameters[name] == nil {
			t.Errorf("%s: there is no parameter %s", file, name)
		}
	}
	for name, r := range section("Resources") {
		c.all[name] = r.(object)
	}
	for name, v := range section("Conditions") {
		c.conditions[name] = c.eval(v) == true
	}
	for name, r := range c.all {
		condition, ok := r["Condition"].(string)
		if ok {
			c.holds(condition)
		}
		on := r["DependsOn"]
		if _, one := on.(string); one {
			on = []any{on}
		}
		list, _ := on.([]any)
		for _, d := range list {
			if c.all[d.(string)] == nil {
				t.Errorf("%s: %s depends on %v, which is not there", file, name, d)
			}
		}
		// Evaluated in any case, so that its references are looked at.
		e := c.eval(r).(object)
		if !ok || c.conditions[condition] {
			c.resources[name] = e
		}
	}
	for name, o := range section("Outputs") {
		o := c.eval(o).(object)
		if o["Description"] == nil {
			t.Errorf("%s: the output %s has no description", file, name)
		}
		c.outputs[name] = o["Value"]
	}
	for name := range c.parameters {
		if !c.used[name] {
			t.Errorf("%s: nobody uses the parameter %s", file, name)
		}
	}
	for name := range c.conditions {
		if !c.used["condition "+name] {
			t.Errorf("%s: nobody uses the condition %s", file, name)
		}
	}
	c.groups(section("Metadata"))
	return c
}

// groups: every parameter is asked for under some heading, and no other.
func (c *cloudformation) groups(metadata object) {
	c.t.Helper()
	for key, v := range metadata {
		shown := map[string]bool{}
		groups, _ := v.(object)["ParameterGroups"].([]any)
		for _, g := range groups {
			list, _ := g.(object)["Parameters"].([]any)
			for _, p := range list {
				shown[p.(string)] = true
				if _, ok := c.parameters[p.(string)]; !ok {
					c.t.Errorf("%s: %s names %v, which is no parameter", c.file, key, p)
				}
			}
		}
		for name := range c.parameters {
			if !shown[name] {
				c.t.Errorf("%s: %s does not name the parameter %s", c.file, key, name)
			}
		}
	}
}

// tree is the document with short forms (!Ref x) spelt out ({Ref: x}).
func (c *cloudformation) tree(n *yaml.Node) any {
	c.t.Helper()
	if n.Anchor != "" || n.Kind == yaml.AliasNode {
		// CloudFormation's own reader is documented to know none.
		c.t.Errorf("%s:%d: anchors and aliases are not for this template", c.file, n.Line)
	}
	var v any
	switch n.Kind {
	case yaml.MappingNode:
		o := object{}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if _, twice := o[key]; twice {
				c.t.Errorf("%s:%d: %s is there twice", c.file, n.Content[i].Line, key)
			}
			o[key] = c.tree(n.Content[i+1])
		}
		v = o
	case yaml.SequenceNode:
		list := []any{}
		for _, e := range n.Content {
			list = append(list, c.tree(e))
		}
		v = list
	default:
		plain := *n
		if strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!") {
			plain.Tag = "!!str"
		}
		if err := plain.Decode(&v); err != nil {
			c.t.Errorf("%s:%d: %v", c.file, n.Line, err)
		}
	}
	switch tag := strings.TrimPrefix(n.Tag, "!"); {
	case strings.HasPrefix(n.Tag, "!!") || tag == "":
		return v
	case tag == "Ref" || tag == "Condition":
		return object{tag: v}
	case tag == "GetAtt":
		name, attribute, _ := strings.Cut(v.(string), ".")
		return object{"Fn::GetAtt": []any{name, attribute}}
	default:
		return object{"Fn::" + tag: v}
	}
}

func (c *cloudformation) holds(condition string) bool {
	c.t.Helper()
	v, ok := c.conditions[condition]
	if !ok {
		c.t.Errorf("%s: there is no condition %s", c.file, condition)
	}
	c.used["condition "+condition] = true
	return v
}

func (c *cloudformation) ref(name string) any {
	c.t.Helper()
	if v, ok := c.parameters[name]; ok {
		c.used[name] = true
		return v
	}
	if pseudo, ok := strings.CutPrefix(name, map[bool]string{false: "AWS::", true: "ALIYUN::"}[c.ros]); ok {
		switch {
		case pseudo == "NoValue":
			return noValue{}
		case pseudo == "Region" || pseudo == "StackName" || c.ros && pseudo == "TenantId" ||
			!c.ros && (pseudo == "AccountId" || pseudo == "Partition" || pseudo == "URLSuffix"):
			return "${" + name + "}"
		}
	} else if base, attribute, _ := strings.Cut(name, "."); c.all[base] != nil {
		if c.ros {
			c.rosAttribute(base, attribute)
		}
		return "${" + name + "}"
	}
	c.t.Errorf("%s: a reference to %s, which is not there", c.file, name)
	return ""
}

func (c *cloudformation) eval(v any) any {
	c.t.Helper()
	switch v := v.(type) {
	case []any:
		list := []any{}
		for _, e := range v {
			if e = c.eval(e); e != (noValue{}) {
				list = append(list, e)
			} else if c.ros {
				c.t.Errorf("%s: ALIYUN::NoValue is documented for properties, and not within a list", c.file)
			}
		}
		return list
	case object:
		if len(v) == 1 {
			for name, arg := range v {
				if name == "Ref" || name == "Condition" || strings.HasPrefix(name, "Fn::") {
					return c.call(name, arg)
				}
			}
		}
		o := object{}
		for key, e := range v {
			if key == "Type" || key == "DependsOn" || key == "Condition" {
				o[key] = e
				continue
			}
			if e = c.eval(e); e != (noValue{}) {
				o[key] = e
			}
		}
		return o
	}
	return v
}

var substitution = regexp.MustCompile(`\$\{(!?)([^}]*)\}`)

// call evaluates the functions that the templates use, and no other.
func (c *cloudformation) call(name string, arg any) any {
	c.t.Helper()
	list := func() []any {
		l, ok := arg.([]any)
		if !ok {
			c.t.Fatalf("%s: %s wants a list, not %v", c.file, name, arg)
		}
		return l
	}
	switch name {
	case "Ref":
		return c.ref(arg.(string))
	case "Condition":
		return c.holds(arg.(string))
	case "Fn::GetAtt":
		return c.ref(list()[0].(string) + "." + list()[1].(string))
	case "Fn::If":
		yes, no := c.eval(list()[1]), c.eval(list()[2])
		if c.holds(list()[0].(string)) {
			return yes
		}
		return no
	case "Fn::Not":
		if !c.ros {
			arg = list()[0]
		}
		not, ok := c.eval(arg).(bool)
		if !ok {
			c.t.Errorf("%s: %s wants a condition, not %v", c.file, name, arg)
		}
		return !not
	case "Fn::Equals":
		return fmt.Sprint(c.eval(list()[0])) == fmt.Sprint(c.eval(list()[1]))
	case map[bool]string{false: "Fn::Base64", true: "Fn::Base64Encode"}[c.ros]:
		return c.eval(arg)
	case "Fn::Join":
		var words []string
		for _, e := range c.eval(list()[1]).([]any) {
			words = append(words, fmt.Sprint(e))
		}
		return strings.Join(words, list()[0].(string))
	case "Fn::Split":
		var out []any
		for _, s := range strings.Split(fmt.Sprint(c.eval(list()[1])), list()[0].(string)) {
			out = append(out, s)
		}
		return out
	case "Fn::Select":
		i, err := strconv.Atoi(fmt.Sprint(list()[0]))
		from, ok := c.eval(list()[1]).([]any)
		if err != nil || !ok || i >= len(from) {
			c.t.Fatalf("%s: nothing to select in %v", c.file, arg)
		}
		return from[i]
	case "Fn::GetAZs":
		return []any{"zone-a", "zone-b", "zone-c"}
	case "Fn::Cidr":
		block, err := netip.ParsePrefix(fmt.Sprint(c.eval(list()[0])))
		must.OK(c.t, err)
		var out []any
		for i := range list()[1].(int) {
			out = append(out, subnet(block, 32-list()[2].(int)-block.Bits(), i).String())
		}
		return out
	case "Fn::Sub":
		pattern, names := arg, object{}
		if l, ok := arg.([]any); ok {
			pattern, names = l[0], c.eval(l[1]).(object)
		}
		return substitution.ReplaceAllStringFunc(pattern.(string), func(s string) string {
			m := substitution.FindStringSubmatch(s)
			if m[1] == "!" {
				return "${" + m[2] + "}"
			}
			if v, ok := names[m[2]]; ok {
				return fmt.Sprint(v)
			}
			return fmt.Sprint(c.ref(m[2]))
		})
	}
	c.t.Fatalf("%s: the function %s is not known", c.file, name)
	return nil
}

// of are the properties of all resources of a type.
func (c *cloudformation) of(typ string) map[string]object {
	out := map[string]object{}
	for name, r := range c.resources {
		if r["Type"] == typ {
			p, _ := r["Properties"].(object)
			if p == nil {
				p = object{}
			}
			out[name] = p
		}
	}
	return out
}

// subnet is the nth of the networks into which bits more bits cut p.
func subnet(p netip.Prefix, bits, n int) netip.Prefix {
	a := p.Addr().As4()
	v := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	v += uint32(n) << (32 - p.Bits() - bits)
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), p.Bits()+bits)
}
