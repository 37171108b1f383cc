// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// bicep compiles the part of the language that our template uses to what Azure
// takes, in the form that Bicep's own compiler gives it. It knows names, texts,
// lists, objects, calls, a condition and loadTextContent; no loop, no module, no
// operator, no existing resource: those fail the test. It does not know Azure's
// schema: a property with a wrong name goes through here as it does in JSON.
type bicep struct {
	t         *testing.T
	file, src string
	pos       int
	symbols   map[string]bicepSymbol
	texts     []string        // paths given to loadTextContent
	uses      map[string]bool // symbols of resources in the statement at hand
}

type bicepSymbol struct {
	kind, typ, api string
	name           *bicepExpr
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

// ordered is an object of JSON whose keys stay as they were written.
type ordered []orderedField

type orderedField struct {
	key   string
	value any
}

func (o ordered) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, v := range []any{f.key, f.value} {
			if j == 1 {
				b.WriteByte(':')
			}
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			if err := e.Encode(v); err != nil {
				return nil, err
			}
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func compileBicep(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := &bicep{t: t, file: file, src: string(b), symbols: map[string]bicepSymbol{}}
	var statements []bicepStatement
	for c.blank(); c.pos < len(c.src); c.blank() {
		s := c.statement()
		statements = append(statements, s)
		symbol := bicepSymbol{kind: s.kind}
		if s.kind == "output" {
			continue
		}
		if s.kind == "resource" {
			symbol.typ, symbol.api, _ = strings.Cut(s.word, "@")
			symbol.name = s.value.field("name")
		}
		if _, twice := c.symbols[s.name]; twice {
			t.Errorf("%s: %s is there twice", file, s.name)
		}
		c.symbols[s.name] = symbol
	}
	sections := map[string]ordered{}
	var resources []any
	for _, s := range statements {
		c.uses = map[string]bool{}
		switch s.kind {
		case "param", "output":
			sections[s.kind] = append(sections[s.kind], orderedField{s.name, c.declaration(s)})
		case "var":
			sections[s.kind] = append(sections[s.kind], orderedField{s.name, c.value(s.value)})
		case "resource":
			resources = append(resources, c.resource(s))
		}
	}
	for i, path := range c.texts {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(file), path))
		if err != nil {
			t.Fatal(err)
		}
		sections["var"] = slices.Insert(sections["var"], i, orderedField{fmt.Sprintf("$fxv#%d", i), literal(string(text))})
	}
	compact, err := ordered{
		{"$schema", "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#"},
		{"contentVersion", "1.0.0.0"},
		{"metadata", ordered{{"license", "Copyright The amsagent Authors, Apache-2.0"}, {"comments", "Compiled from main.bicep, which says why things are as they are"}}},
		{"parameters", sections["param"]},
		{"variables", sections["var"]},
		{"resources", resources},
		{"outputs", sections["output"]},
	}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, compact, "", "  "); err != nil {
		t.Fatal(err)
	}
	return append(bytes.ReplaceAll(out.Bytes(), []byte("\r"), nil), '\n')
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

// literal is a text that Azure does not take for an expression.
func literal(s string) string {
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		return "[" + s
	}
	return s
}

// value is an expression where JSON stands.
func (c *bicep) value(e *bicepExpr) any {
	c.t.Helper()
	switch e.kind {
	case "int":
		n, err := strconv.Atoi(e.word)
		if err != nil {
			c.t.Fatal(err)
		}
		return n
	case "bool":
		return e.word == "true"
	case "list":
		out := []any{}
		for _, a := range e.args {
			out = append(out, c.value(a))
		}
		return out
	case "object":
		out := ordered{}
		for i, k := range e.keys {
			key := fmt.Sprint(c.value(k))
			if slices.ContainsFunc(out, func(f orderedField) bool { return f.key == key }) {
				c.t.Errorf("%s: %s is there twice", c.file, key)
			}
			out = append(out, orderedField{key, c.value(e.args[i])})
		}
		return out
	}
	if e.plain() {
		return literal(e.args[0].word)
	}
	return "[" + c.code(e) + "]"
}

// code is an expression within one of Azure's.
func (c *bicep) code(e *bicepExpr) string {
	c.t.Helper()
	each := func(list []*bicepExpr) string {
		var out []string
		for _, a := range list {
			out = append(out, c.code(a))
		}
		return strings.Join(out, ", ")
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	switch e.kind {
	case "int":
		return e.word
	case "bool":
		return e.word + "()"
	case "list":
		return "createArray(" + each(e.args) + ")"
	case "object":
		var out []string
		for i, k := range e.keys {
			out = append(out, c.code(k), c.code(e.args[i]))
		}
		return "createObject(" + strings.Join(out, ", ") + ")"
	case "if":
		return "if(" + each(e.args) + ")"
	case "text":
		if e.plain() {
			return quote(e.args[0].word)
		}
		var pattern strings.Builder
		var args []*bicepExpr
		for _, a := range e.args {
			if a.kind == "part" {
				pattern.WriteString(strings.NewReplacer("{", "{{", "}", "}}").Replace(a.word))
				continue
			}
			fmt.Fprintf(&pattern, "{%d}", len(args))
			args = append(args, a)
		}
		return "format(" + quote(pattern.String()) + ", " + each(args) + ")"
	case "call":
		if e.word == "loadTextContent" {
			path := e.args[0].args[0].word
			i := slices.Index(c.texts, path)
			if i < 0 {
				i, c.texts = len(c.texts), append(c.texts, path)
			}
			return fmt.Sprintf("variables('$fxv#%d')", i)
		}
		return e.word + "(" + each(e.args) + ")"
	case "name":
		switch kind := c.symbols[e.word].kind; kind {
		case "param":
			return "parameters(" + quote(e.word) + ")"
		case "var":
			return "variables(" + quote(e.word) + ")"
		default:
			c.t.Fatalf("%s: %s is not there, or no value (%s)", c.file, e.word, kind)
		}
	case "dot":
		of := e.args[0]
		if of.kind == "name" && c.symbols[of.word].kind == "resource" {
			switch e.word {
			case "id":
				c.uses[of.word] = true
				return c.id(of.word)
			case "properties":
				c.uses[of.word] = true
				return "reference(" + c.id(of.word) + ", " + quote(c.symbols[of.word].api) + ")"
			}
			c.t.Fatalf("%s: %s of a resource", c.file, e.word)
		}
		return c.code(of) + "." + e.word
	}
	c.t.Fatalf("%s: an expression %s", c.file, e.kind)
	return ""
}

func (c *bicep) id(resource string) string {
	c.t.Helper()
	r := c.symbols[resource]
	return "resourceId('" + r.typ + "', " + c.code(r.name) + ")"
}

// declaration is a parameter or an output.
func (c *bicep) declaration(s bicepStatement) ordered {
	c.t.Helper()
	typ := s.word
	out := ordered{}
	var metadata ordered
	for _, d := range s.decorators {
		switch d.word {
		case "secure":
			typ = "securestring"
		case "description":
			metadata = ordered{{"description", c.value(d.args[0])}}
		case "minLength", "maxLength", "minValue", "maxValue":
			out = append(out, orderedField{d.word, c.value(d.args[0])})
		default:
			c.t.Errorf("%s: @%s of %s", c.file, d.word, s.name)
		}
	}
	if metadata == nil {
		c.t.Errorf("%s: %s has no description", c.file, s.name)
	}
	out = append(ordered{{"type", typ}}, out...)
	if s.value != nil {
		out = append(out, orderedField{map[string]string{"param": "defaultValue", "output": "value"}[s.kind], c.value(s.value)})
	}
	return append(out, orderedField{"metadata", metadata})
}

func (c *bicep) resource(s bicepStatement) ordered {
	c.t.Helper()
	symbol := c.symbols[s.name]
	out := ordered{{"type", symbol.typ}, {"apiVersion", symbol.api}}
	for i, k := range s.value.keys {
		key := k.args[0].word
		if key == "dependsOn" {
			for _, on := range s.value.args[i].args {
				if c.symbols[on.word].kind != "resource" {
					c.t.Errorf("%s: %s depends on %s, which is not there", c.file, s.name, on.word)
				}
				c.uses[on.word] = true
			}
			continue
		}
		out = append(out, orderedField{key, c.value(s.value.args[i])})
	}
	var on []string
	for name := range c.uses {
		on = append(on, "["+c.id(name)+"]")
	}
	slices.Sort(on)
	if len(on) > 0 {
		out = append(out, orderedField{"dependsOn", on})
	}
	return out
}
