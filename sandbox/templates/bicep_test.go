// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// bicep reads the part of the language that our template uses: names, texts, lists, objects, calls, a condition and
// loadTextContent. A loop, a module, an operator or an existing resource fails the test. It does not know Azure's schema.
type bicep struct {
	t         *testing.T
	file, src string
	pos       int
}

// bicepExpr is an expression: a kind and its parts.
type bicepExpr struct {
	kind string // text, int, bool, null, name, dot, call, list, object, if
	word string
	keys []*bicepExpr
	args []*bicepExpr
}

type bicepStatement struct {
	kind, name, word string
	decorators       []*bicepExpr
	value            *bicepExpr
}

// azureTemplate is the template, evaluated with the values given and the defaults of the other parameters. What only Azure
// knows stands for itself: the id of a resource is "<Type/name>", a property that Azure gives it "<Type/name>.clientId".
type azureTemplate struct {
	t          *testing.T
	file       string
	statements map[string]bicepStatement
	parameters map[string]any
	used       map[string]bool // names of statements
	resources  map[string]object
	outputs    map[string]any
	secrets    int // parameters that Azure shows to no one
	order      []bicepStatement
}

func readBicep(t *testing.T, file string) *azureTemplate {
	t.Helper()
	b, err := os.ReadFile(file)
	must.OK(t, err)
	c := &bicep{t: t, file: file, src: string(b)}
	a := &azureTemplate{
		t: t, file: file, statements: map[string]bicepStatement{}, parameters: map[string]any{}, used: map[string]bool{},
		resources: map[string]object{}, outputs: map[string]any{},
	}
	for c.blank(); c.pos < len(c.src); c.blank() {
		s := c.statement()
		a.declared(s)
		a.order = append(a.order, s)
		if s.kind == "output" { // may have the name of something else
			continue
		}
		if _, twice := a.statements[s.name]; twice {
			t.Errorf("%s: %s is there twice", file, s.name)
		}
		a.statements[s.name] = s
	}
	return a
}

func loadBicep(t *testing.T, file string, given map[string]any) *azureTemplate {
	t.Helper()
	a := readBicep(t, file)
	for name, v := range given {
		if a.statements[name].kind != "param" {
			t.Errorf("there is no parameter %s", name)
		}
		a.parameters[name] = v
	}
	for _, s := range a.order {
		switch s.kind {
		case "resource":
			a.resource(s)
		case "output":
			a.outputs[s.name] = a.value(s.value)
		}
	}
	for name, s := range a.statements {
		if s.kind != "resource" && !a.used[name] {
			t.Errorf("nothing uses %s %s", s.kind, name)
		}
	}
	a.checkOrder()
	return a
}

// declared checks what is said of a parameter or an output.
func (a *azureTemplate) declared(s bicepStatement) {
	a.t.Helper()
	described := false
	for _, d := range s.decorators {
		switch d.word {
		case "secure":
			a.secrets++
		case "description":
			described = true
		case "minLength", "maxLength", "minValue", "maxValue":
		default:
			a.t.Errorf("%s: @%s of %s", a.file, d.word, s.name)
		}
	}
	if !described && (s.kind == "param" || s.kind == "output") {
		a.t.Errorf("%s: %s has no description", a.file, s.name)
	}
}

func (a *azureTemplate) resource(s bicepStatement) {
	a.t.Helper()
	typ, api, _ := strings.Cut(s.word, "@")
	if api == "" {
		a.t.Errorf("%s: %s has no version", a.file, s.name)
	}
	r := object{"type": typ}
	uses := map[string]bool{}
	for i, k := range s.value.keys {
		key, value := fmt.Sprint(a.value(k)), s.value.args[i]
		if key == "dependsOn" {
			for _, on := range value.args {
				uses[a.id(on.word)] = true
			}
			continue
		}
		a.names(value, uses, map[string]bool{})
		r[key] = a.value(value)
	}
	var on []any
	for _, id := range slices.Sorted(maps.Keys(uses)) {
		on = append(on, id)
	}
	if on != nil {
		r["dependsOn"] = on
	}
	id := a.id(s.name)
	if a.resources[id] != nil {
		a.t.Errorf("%s is there twice", id)
	}
	a.resources[id] = r
}

// names marks what an expression names, in the half of a condition that does not count, too, and adds the ids of resources.
func (a *azureTemplate) names(e *bicepExpr, ids, seen map[string]bool) {
	if e.kind == "name" {
		a.used[e.word] = true
		switch s := a.statements[e.word]; {
		case s.kind == "resource":
			ids[a.id(e.word)] = true
		case s.value != nil && !seen[e.word]:
			seen[e.word] = true
			a.names(s.value, ids, seen)
		}
	}
	for _, part := range slices.Concat(e.keys, e.args) {
		a.names(part, ids, seen)
	}
}

func (a *azureTemplate) id(resource string) string {
	a.t.Helper()
	s := a.statements[resource]
	if s.kind != "resource" {
		a.t.Fatalf("%s: there is no resource %s", a.file, resource)
	}
	typ, _, _ := strings.Cut(s.word, "@")
	return fmt.Sprintf("<%s/%v>", typ, a.value(s.value.field("name")))
}

// value evaluates an expression, in the types of JSON.
func (a *azureTemplate) value(e *bicepExpr) any {
	a.t.Helper()
	switch e.kind {
	case "int":
		n, err := strconv.Atoi(e.word)
		must.OK(a.t, err)
		return float64(n)
	case "bool":
		return e.word == "true"
	case "part":
		return e.word
	case "text":
		var b strings.Builder
		for _, part := range e.args {
			fmt.Fprint(&b, a.value(part))
		}
		return b.String()
	case "list":
		return a.values(e.args)
	case "object":
		out := object{}
		for i, k := range e.keys {
			key := fmt.Sprint(a.value(k))
			if _, twice := out[key]; twice {
				a.t.Errorf("%s: %s is there twice", a.file, key)
			}
			out[key] = a.value(e.args[i])
		}
		return out
	case "if":
		if a.value(e.args[0]) == true {
			return a.value(e.args[1])
		}
		return a.value(e.args[2])
	case "name":
		return a.symbol(e.word)
	case "dot":
		of := e.args[0]
		if of.kind == "name" && a.statements[of.word].kind == "resource" {
			if e.word != "id" && e.word != "properties" {
				a.t.Fatalf("%s: %s of a resource", a.file, e.word)
			}
			return a.id(of.word)
		}
		switch of := a.value(of).(type) {
		case object:
			if v, ok := of[e.word]; ok {
				return v
			}
		case string: // a resource's
			return of + "." + e.word
		}
		a.t.Fatalf("%s: no %s", a.file, e.word)
	case "call":
		return a.call(e.word, a.values(e.args))
	}
	a.t.Fatalf("%s: an expression %s", a.file, e.kind)
	return nil
}

func (a *azureTemplate) values(list []*bicepExpr) []any {
	out := []any{}
	for _, e := range list {
		out = append(out, a.value(e))
	}
	return out
}

// symbol is a parameter or a variable.
func (a *azureTemplate) symbol(name string) any {
	a.t.Helper()
	a.used[name] = true
	s := a.statements[name]
	v, given := a.parameters[name]
	switch {
	case given:
	case s.value == nil || s.kind == "resource":
		a.t.Fatalf("%s: %s is not there, or has no value", a.file, name)
	default:
		v = a.value(s.value)
	}
	if s.kind == "param" {
		want := map[string]string{"string": "string", "int": "float64", "bool": "bool", "array": "[]interface {}"}[s.word]
		if got := fmt.Sprintf("%T", v); got != want {
			a.t.Errorf("the parameter %s is a %s, and %v is a %s", name, s.word, v, got)
		}
	}
	return v
}

// call knows the functions that the template uses, and no other.
func (a *azureTemplate) call(name string, args []any) any {
	a.t.Helper()
	text := func(i int) string {
		s, ok := args[i].(string)
		if !ok {
			a.t.Fatalf("%s of %v: no text", name, args[i])
		}
		return s
	}
	switch name {
	case "loadTextContent":
		b, err := os.ReadFile(filepath.Join(filepath.Dir(a.file), text(0)))
		must.OK(a.t, err)
		return string(b)
	case "resourceId":
		return "<" + text(0) + "/" + text(1) + ">"
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
	}
	a.t.Fatalf("the function %s is not known", name)
	return nil
}

var (
	armIDs    = regexp.MustCompile(`<[^<>]+>`)
	armVaults = regexp.MustCompile(`https://([\w-]+)\.vault\.azure\.net`)
)

// checkOrder: what a resource names is made before it. Azure itself looks for that
// in no text.
func (a *azureTemplate) checkOrder() {
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
		must.OK(a.t, err)
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

// of are the properties of all resources of a type, by name.
func (a *azureTemplate) of(typ string) map[string]object {
	out := map[string]object{}
	for _, r := range a.resources {
		if r["type"] == typ {
			out[num(r["name"])] = r
		}
	}
	return out
}

// named is the element of a list that has the name.
func (a *azureTemplate) named(list any, name string) object {
	a.t.Helper()
	l, _ := list.([]any)
	i := slices.IndexFunc(l, func(e any) bool { return e.(object)["name"] == name })
	if i < 0 {
		a.t.Fatalf("there is no %s in %v", name, list)
	}
	p, _ := l[i].(object)["properties"].(object)
	return p
}
func (c *bicep) fail(format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf("%s:%d: %s", c.file, strings.Count(c.src[:c.pos], "\n")+1, fmt.Sprintf(format, args...))
}

// blank skips what means nothing, ends of lines too.
func (c *bicep) blank() {
	for c.pos < len(c.src) {
		switch rest := c.src[c.pos:]; {
		case strings.HasPrefix(rest, "//"):
			i := strings.IndexByte(rest, '\n')
			if i < 0 {
				i = len(rest)
			}
			c.pos += i
		case strings.ContainsRune(" \n,", rune(rest[0])):
			c.pos++
		default:
			return
		}
	}
}

func (c *bicep) take(s string) bool {
	if strings.HasPrefix(c.src[c.pos:], s) {
		c.pos += len(s)
		return true
	}
	return false
}

func (c *bicep) want(s string) {
	c.t.Helper()
	c.blank()
	if !c.take(s) {
		c.fail("%s is missing before %.20q", s, c.src[c.pos:])
	}
	c.blank()
}

func (c *bicep) word() string {
	c.t.Helper()
	from := c.pos
	for c.pos < len(c.src) && (c.src[c.pos] == '_' || c.src[c.pos] >= '0' && c.src[c.pos] <= '9' || c.src[c.pos]|0x20 >= 'a' && c.src[c.pos]|0x20 <= 'z') {
		c.pos++
	}
	if from == c.pos {
		c.fail("not understood: %.20q", c.src[c.pos:])
	}
	return c.src[from:c.pos]
}

func (c *bicep) statement() bicepStatement {
	c.t.Helper()
	var s bicepStatement
	for c.take("@") {
		s.decorators = append(s.decorators, c.expr())
		c.blank()
	}
	s.kind = c.word()
	c.blank()
	s.name = c.word()
	c.blank()
	switch s.kind {
	case "param", "output":
		s.word = c.word()
		if c.blank(); c.take("=") {
			c.blank()
			s.value = c.expr()
		}
	case "resource":
		s.word = c.text().args[0].word
		c.want("=")
		s.value = c.expr()
	case "var":
		c.want("=")
		s.value = c.expr()
	default:
		c.fail("a statement %s", s.kind)
	}
	return s
}

func (c *bicep) expr() *bicepExpr {
	c.t.Helper()
	e := c.primary()
	for c.take(".") {
		e = &bicepExpr{kind: "dot", word: c.word(), args: []*bicepExpr{e}}
	}
	if c.take(" ? ") {
		yes := c.expr()
		c.want(":")
		e = &bicepExpr{kind: "if", args: []*bicepExpr{e, yes, c.expr()}}
	}
	return e
}

func (c *bicep) primary() *bicepExpr {
	c.t.Helper()
	switch ch := c.src[c.pos]; {
	case ch == '\'':
		return c.text()
	case ch == '!':
		c.pos++
		return &bicepExpr{kind: "call", word: "not", args: []*bicepExpr{c.primary()}}
	case ch == '[':
		c.pos++
		return &bicepExpr{kind: "list", args: c.until("]")}
	case ch == '{':
		c.pos++
		o := &bicepExpr{kind: "object"}
		for c.blank(); !c.take("}"); c.blank() {
			key := &bicepExpr{kind: "text"}
			if c.src[c.pos] == '\'' {
				key = c.text()
			} else {
				key.args = []*bicepExpr{{kind: "part", word: c.word()}}
			}
			o.keys = append(o.keys, key)
			c.want(":")
			o.args = append(o.args, c.expr())
		}
		return o
	case ch >= '0' && ch <= '9':
		return &bicepExpr{kind: "int", word: c.word()}
	}
	w := c.word()
	switch {
	case w == "true" || w == "false":
		return &bicepExpr{kind: "bool", word: w}
	case c.take("("):
		return &bicepExpr{kind: "call", word: w, args: c.until(")")}
	}
	return &bicepExpr{kind: "name", word: w}
}

func (c *bicep) until(end string) []*bicepExpr {
	c.t.Helper()
	var out []*bicepExpr
	for c.blank(); !c.take(end); c.blank() {
		out = append(out, c.expr())
	}
	return out
}

// text is one in quotes: its args are parts as they are and expressions in turn.
func (c *bicep) text() *bicepExpr {
	c.t.Helper()
	if !c.take("'") {
		c.fail("no text: %.20q", c.src[c.pos:])
	}
	e := &bicepExpr{kind: "text"}
	var part strings.Builder
	flush := func() {
		if part.Len() > 0 || len(e.args) == 0 {
			e.args = append(e.args, &bicepExpr{kind: "part", word: part.String()})
		}
		part.Reset()
	}
	for {
		switch {
		case c.take("'"):
			if part.Len() > 0 || len(e.args) == 0 {
				flush()
			}
			return e
		case c.take(`\'`):
			part.WriteByte('\'')
		case c.take("${"):
			if part.Len() > 0 {
				flush()
			}
			e.args = append(e.args, c.expr())
			c.want0("}")
		case strings.HasPrefix(c.src[c.pos:], "\n") || strings.HasPrefix(c.src[c.pos:], `\`):
			c.fail("a text with %.2q", c.src[c.pos:])
		default:
			part.WriteByte(c.src[c.pos])
			c.pos++
		}
	}
}

// want0 is want where blanks count.
func (c *bicep) want0(s string) {
	c.t.Helper()
	if !c.take(s) {
		c.fail("%s is missing before %.20q", s, c.src[c.pos:])
	}
}

func (e *bicepExpr) field(name string) *bicepExpr {
	for i, k := range e.keys {
		if k.plain() && k.args[0].word == name {
			return e.args[i]
		}
	}
	return nil
}

func (e *bicepExpr) plain() bool {
	return e.kind == "text" && len(e.args) == 1 && e.args[0].kind == "part"
}
