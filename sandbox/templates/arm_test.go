// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// armTemplate is a template of Azure Resource Manager that was evaluated with the
// defaults of its parameters and with the values given. What only Azure can tell
// stands for itself: the id of a resource is "<Type/name>", what reference() reads
// of it "<Type/name>.clientId".
type armTemplate struct {
	t          *testing.T
	parameters map[string]any
	variables  map[string]any // as they are written
	used       map[string]bool
	resources  map[string]object // by id
	outputs    map[string]any
}

var (
	armIDs    = regexp.MustCompile(`<[^<>]+>`)
	armVaults = regexp.MustCompile(`https://([\w-]+)\.vault\.azure\.net`)
)

func loadARM(t *testing.T, text []byte, given map[string]any) *armTemplate {
	t.Helper()
	var top struct {
		Schema     string            `json:"$schema"`
		Version    string            `json:"contentVersion"`
		Metadata   object            `json:"metadata"`
		Parameters map[string]object `json:"parameters"`
		Variables  map[string]any    `json:"variables"`
		Resources  []object          `json:"resources"`
		Outputs    map[string]object `json:"outputs"`
	}
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&top); err != nil {
		t.Fatal(err)
	}
	a := &armTemplate{t: t, parameters: map[string]any{}, variables: top.Variables, used: map[string]bool{}, resources: map[string]object{}, outputs: map[string]any{}}
	for name, v := range given {
		if top.Parameters[name] == nil {
			t.Errorf("there is no parameter %s", name)
		}
		a.parameters[name] = v
	}
	// Defaults of one another come out in any order.
	for range top.Parameters {
		for name, p := range top.Parameters {
			value, ok := p["defaultValue"]
			if _, done := a.parameters[name]; done || !ok {
				continue
			}
			if s, ok := value.(string); ok && strings.HasPrefix(s, "[parameters('") {
				if _, known := a.parameters[strings.TrimSuffix(strings.TrimPrefix(s, "[parameters('"), "')]")]; !known {
					continue
				}
			}
			a.parameters[name] = a.eval(value)
		}
	}
	for name, p := range top.Parameters {
		v, ok := a.parameters[name]
		if !ok {
			t.Fatalf("the parameter %s has no default, and the test gives none", name)
		}
		want := map[any]string{"string": "string", "securestring": "string", "int": "float64", "bool": "bool", "array": "[]interface {}"}[p["type"]]
		if got := fmt.Sprintf("%T", v); got != want {
			t.Errorf("the parameter %s is a %s, and %v is a %s", name, p["type"], v, got)
		}
	}
	for _, r := range top.Resources {
		e := a.eval(r).(object)
		id := fmt.Sprintf("<%v/%v>", e["type"], e["name"])
		if a.resources[id] != nil {
			t.Errorf("%s is there twice", id)
		}
		if e["apiVersion"] == nil {
			t.Errorf("%s has no version", id)
		}
		a.resources[id] = e
	}
	for name, o := range top.Outputs {
		a.outputs[name] = a.eval(o["value"])
	}
	for name := range top.Parameters {
		if !a.used["parameters "+name] {
			t.Errorf("nobody uses the parameter %s", name)
		}
	}
	for name := range top.Variables {
		if !a.used["variables "+name] {
			t.Errorf("nobody uses the variable %s", name)
		}
	}
	a.checkOrder()
	return a
}

// checkOrder: what a resource names is made before it. Azure itself looks for that
// in no text.
func (a *armTemplate) checkOrder() {
	a.t.Helper()
	var before func(id string, seen map[string]bool)
	before = func(id string, seen map[string]bool) {
		for _, on := range strs(a.resources[id]["dependsOn"]) {
			if a.resources[on] == nil {
				a.t.Errorf("%s depends on %s, which is not there", id, on)
			}
			if !seen[on] {
				seen[on] = true
				before(on, seen)
			}
		}
	}
	for id, r := range a.resources {
		seen := map[string]bool{}
		before(id, seen)
		if seen[id] {
			a.t.Errorf("%s depends on itself", id)
		}
		b, err := json.Marshal(r)
		if err != nil {
			a.t.Fatal(err)
		}
		text := string(b)
		text = strings.NewReplacer(`\u003c`, "<", `\u003e`, ">").Replace(text)
		if data, ok := armLookup(r, "properties", "osProfile", "customData").(string); ok {
			plain, err := base64.StdEncoding.DecodeString(data)
			if err != nil {
				a.t.Errorf("%s: %v", id, err)
			}
			for _, line := range strings.Split(string(plain), "\n") {
				if strings.Contains(line, "client_id=") {
					text += armVaults.ReplaceAllString(line, "<Microsoft.KeyVault/vaults/$1>")
				}
			}
		}
		for _, named := range armIDs.FindAllString(text, -1) {
			if a.resources[named] == nil {
				a.t.Errorf("%s names %s, which is not there", id, named)
			} else if named != id && !seen[named] {
				a.t.Errorf("%s names %s, and does not wait for it", id, named)
			}
		}
	}
}

// armLookup follows keys through objects.
func armLookup(v any, keys ...string) any {
	for _, k := range keys {
		o, _ := v.(object)
		v = o[k]
	}
	return v
}

func (a *armTemplate) eval(v any) any {
	a.t.Helper()
	switch v := v.(type) {
	case []any:
		out := []any{}
		for _, e := range v {
			out = append(out, a.eval(e))
		}
		return out
	case object:
		out := object{}
		for k, e := range v {
			out[fmt.Sprint(a.eval(k))] = a.eval(e)
		}
		return out
	case string:
		if strings.HasPrefix(v, "[[") {
			return v[1:]
		}
		if strings.HasPrefix(v, "[") && strings.HasSuffix(v, "]") {
			p := &armParser{a: a, src: v[1 : len(v)-1]}
			out := p.expr(true)
			if p.pos != len(p.src) {
				a.t.Fatalf("%s: what is %q?", v, p.src[p.pos:])
			}
			return out
		}
	}
	return v
}

// armParser reads an expression and evaluates it on the way; of an if() it
// evaluates the half that counts.
type armParser struct {
	a   *armTemplate
	src string
	pos int
}

func (p *armParser) next(s string) bool {
	if strings.HasPrefix(p.src[p.pos:], s) {
		p.pos += len(s)
		return true
	}
	return false
}

func (p *armParser) expr(live bool) any {
	p.a.t.Helper()
	if p.next("'") {
		var b strings.Builder
		for {
			switch {
			case p.next("''"):
				b.WriteByte('\'')
			case p.next("'"):
				return b.String()
			case p.pos == len(p.src):
				p.a.t.Fatalf("%s: no end of a text", p.src)
			default:
				b.WriteByte(p.src[p.pos])
				p.pos++
			}
		}
	}
	from := p.pos
	word := func() string {
		from := p.pos
		for p.pos < len(p.src) && !strings.ContainsRune("(),. '", rune(p.src[p.pos])) {
			p.pos++
		}
		return p.src[from:p.pos]
	}
	name := word()
	if n, err := strconv.Atoi(name); err == nil {
		return float64(n)
	}
	if !p.next("(") {
		p.a.t.Fatalf("%s: no call at %d", p.src, from)
	}
	var args []any
	for i := 0; !p.next(")"); i++ {
		run := live
		if name == "if" && i > 0 {
			run = live && (args[0] == true) == (i == 1)
		}
		args = append(args, p.expr(run))
		if !p.next(", ") && !strings.HasPrefix(p.src[p.pos:], ")") {
			p.a.t.Fatalf("%s: no comma at %d", p.src, p.pos)
		}
	}
	var v any
	if live {
		v = p.a.call(name, args)
	} else if name == "parameters" || name == "variables" {
		p.a.used[name+" "+fmt.Sprint(args[0])] = true
	}
	for p.next(".") {
		property := word()
		if !live {
			continue
		}
		switch of := v.(type) {
		case object:
			if _, ok := of[property]; !ok {
				p.a.t.Fatalf("%s: no %s", p.src, property)
			}
			v = of[property]
		case string: // of reference()
			v = of + "." + property
		}
	}
	return v
}

var armArgument = regexp.MustCompile(`\{\{|\}\}|\{(\d+)\}`)

// call knows the functions that the template uses, and no other.
func (a *armTemplate) call(name string, args []any) any {
	a.t.Helper()
	text := func(i int) string {
		s, ok := args[i].(string)
		if !ok {
			a.t.Fatalf("%s of %v: no text", name, args[i])
		}
		return s
	}
	switch name {
	case "parameters":
		v, ok := a.parameters[text(0)]
		if !ok {
			a.t.Fatalf("there is no parameter %v", args[0])
		}
		a.used["parameters "+text(0)] = true
		return v
	case "variables":
		v, ok := a.variables[text(0)]
		if !ok {
			a.t.Fatalf("there is no variable %v", args[0])
		}
		a.used["variables "+text(0)] = true
		return a.eval(v)
	case "resourceId":
		return "<" + text(0) + "/" + text(1) + ">"
	case "reference":
		return text(0)
	case "resourceGroup":
		return object{"id": "<group>", "name": "GROUP", "location": "westeurope"}
	case "subscription":
		return object{"tenantId": "TENANT"}
	case "environment":
		return object{"suffixes": object{"keyvaultDns": ".vault.azure.net"}}
	case "uniqueString":
		return "unique0000000"
	case "concat":
		out := []any{}
		for _, l := range args {
			list, ok := l.([]any)
			if !ok {
				a.t.Fatalf("concat of %v", l)
			}
			out = append(out, list...)
		}
		return out
	case "createArray":
		return append([]any{}, args...)
	case "createObject":
		out := object{}
		for i := 0; i < len(args); i += 2 {
			out[text(i)] = args[i+1]
		}
		return out
	case "format":
		return armArgument.ReplaceAllStringFunc(text(0), func(s string) string {
			if s == "{{" || s == "}}" {
				return s[:1]
			}
			i, err := strconv.Atoi(s[1 : len(s)-1])
			if err != nil || i+1 >= len(args) {
				a.t.Fatalf("format: no argument %s", s)
			}
			return fmt.Sprint(args[i+1])
		})
	case "replace":
		if !strings.Contains(text(0), text(1)) {
			a.t.Errorf("nothing to replace: %s", text(1))
		}
		return strings.ReplaceAll(text(0), text(1), text(2))
	case "substring":
		return text(0)[int(args[1].(float64)):]
	case "base64":
		return base64.StdEncoding.EncodeToString([]byte(text(0)))
	case "string":
		return fmt.Sprint(args[0])
	case "empty":
		return len(text(0)) == 0
	case "not":
		return args[0] != true
	case "if":
		if args[0] == true {
			return args[1]
		}
		return args[2]
	case "true", "false":
		return name == "true"
	}
	a.t.Fatalf("the function %s is not known", name)
	return nil
}

// of are the properties of all resources of a type, by name.
func (a *armTemplate) of(typ string) map[string]object {
	out := map[string]object{}
	for _, r := range a.resources {
		if r["type"] == typ {
			out[num(r["name"])] = r
		}
	}
	return out
}

// named is the element of a list that has the name.
func (a *armTemplate) named(list any, name string) object {
	a.t.Helper()
	l, _ := list.([]any)
	i := slices.IndexFunc(l, func(e any) bool { return e.(object)["name"] == name })
	if i < 0 {
		a.t.Fatalf("there is no %s in %v", name, list)
	}
	p, _ := l[i].(object)["properties"].(object)
	return p
}
