// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// object is an evaluated resource, or a block in it: arguments by name, and blocks
// by name as a list of objects.
type object = map[string]any

// terraform is a module that was evaluated with the defaults of its variables and
// with the values given. What only a cloud can tell (ids, addresses) stands for
// itself: the id of aws_vpc.cluster is "aws_vpc.cluster.id".
type terraform struct {
	t   *testing.T
	dir string
	// resources by address: aws_lb.rtmp, aws_lb_target_group.node["edge"],
	// data.aws_iam_policy_document.mongo.
	resources map[string]object
	outputs   map[string]string
}

// declared is a block of a module before its evaluation.
type declared struct {
	address string
	body    *hclsyntax.Body
	keys    []cty.Value // of for_each, or of count; nil where there is one
	values  []cty.Value // each.value
	count   bool
}

// evaluate reads all .tf files of a folder. Any reference to something that is not
// there fails the test, and so does a variable that nobody uses.
func evaluate(t *testing.T, dir string, given map[string]cty.Value) *terraform {
	t.Helper()
	m := &terraform{t: t, dir: dir, resources: map[string]object{}, outputs: map[string]string{}}
	files, err := filepath.Glob(filepath.Join(dir, "*.tf"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no .tf files (%v)", dir, err)
	}
	parser := hclparse.NewParser()
	var blocks []*hclsyntax.Block
	for _, f := range files {
		parsed, diags := parser.ParseHCLFile(f)
		m.check(diags)
		body := parsed.Body.(*hclsyntax.Body)
		for name := range body.Attributes {
			t.Errorf("%s: %s stands outside of any block", f, name)
		}
		blocks = append(blocks, body.Blocks...)
	}
	used := m.used(blocks)

	variables := map[string]cty.Value{}
	for _, b := range blocks {
		if b.Type != "variable" {
			continue
		}
		name := b.Labels[0]
		if !used["var."+name] {
			t.Errorf("%s: nobody uses the variable %s", dir, name)
		}
		if b.Body.Attributes["description"] == nil || b.Body.Attributes["type"] == nil {
			t.Errorf("%s: the variable %s has no description or no type", dir, name)
		}
		switch d := b.Body.Attributes["default"]; {
		case given[name] != cty.NilVal:
			variables[name] = given[name]
		case d != nil:
			variables[name] = m.value(d.Expr, nil)
		default:
			t.Fatalf("%s: the variable %s has no default, and the test gives none", dir, name)
		}
	}
	for name := range given {
		if _, ok := variables[name]; !ok {
			t.Errorf("%s: there is no variable %s", dir, name)
		}
	}
	scope := &hcl.EvalContext{
		Functions: m.functions(),
		Variables: map[string]cty.Value{
			"var":  cty.ObjectVal(variables),
			"path": cty.ObjectVal(map[string]cty.Value{"module": cty.StringVal(dir)}),
		},
	}
	// Locals of these modules do not refer to resources, nor to each other in circles.
	locals := map[string]cty.Value{}
	for range 3 {
		for _, b := range blocks {
			if b.Type != "locals" {
				continue
			}
			for name, a := range b.Body.Attributes {
				if v, diags := a.Expr.Value(scope); !diags.HasErrors() {
					locals[name] = v
				}
			}
		}
		scope.Variables["local"] = cty.ObjectVal(locals)
	}
	var all []declared
	for _, b := range blocks {
		switch b.Type {
		case "resource":
			all = append(all, declared{address: strings.Join(b.Labels, "."), body: b.Body})
		case "data":
			all = append(all, declared{address: "data." + strings.Join(b.Labels, "."), body: b.Body})
		case "locals":
			for name := range b.Body.Attributes {
				if !used["local."+name] {
					t.Errorf("%s: nobody uses local.%s", dir, name)
				}
				if _, ok := locals[name]; !ok {
					t.Errorf("%s: local.%s cannot be evaluated", dir, name)
				}
			}
		case "variable", "output", "provider", "terraform":
		default:
			t.Errorf("%s: a block %s", dir, b.Type)
		}
	}
	m.placeholders(scope, all, used)
	for _, d := range all {
		if d.keys == nil {
			m.resources[d.address] = m.body(d.body, scope)
			continue
		}
		for i, key := range d.keys {
			inner := scope.NewChild()
			if d.count {
				inner.Variables = map[string]cty.Value{"count": cty.ObjectVal(map[string]cty.Value{"index": key})}
			} else {
				inner.Variables = map[string]cty.Value{"each": cty.ObjectVal(map[string]cty.Value{"key": key, "value": d.values[i]})}
			}
			m.resources[index(d.address, key)] = m.body(d.body, inner)
		}
	}
	for _, b := range blocks {
		switch b.Type {
		case "output":
			if b.Body.Attributes["description"] == nil {
				t.Errorf("%s: the output %s has no description", dir, b.Labels[0])
			}
			m.outputs[b.Labels[0]] = fmt.Sprint(plain(m.value(b.Body.Attributes["value"].Expr, scope)))
		case "provider":
			m.body(b.Body, scope)
		}
	}
	return m
}

func index(address string, key cty.Value) string {
	if key.Type() == cty.String {
		return fmt.Sprintf("%s[%q]", address, key.AsString())
	}
	return fmt.Sprintf("%s[%s]", address, key.AsBigFloat())
}

func (m *terraform) check(diags hcl.Diagnostics) {
	m.t.Helper()
	if diags.HasErrors() {
		m.t.Fatalf("%s: %v", m.dir, diags)
	}
}

func (m *terraform) value(e hcl.Expression, scope *hcl.EvalContext) cty.Value {
	m.t.Helper()
	v, diags := e.Value(scope)
	m.check(diags)
	return v
}

// used are all references of the module, each as its first two, three and four
// names, so that all spellings of an address can be looked up.
func (m *terraform) used(blocks []*hclsyntax.Block) map[string]bool {
	found := map[string]bool{}
	add := func(tr hcl.Traversal) {
		var names []string
		for _, step := range tr {
			switch s := step.(type) {
			case hcl.TraverseRoot:
				names = append(names, s.Name)
			case hcl.TraverseAttr:
				names = append(names, s.Name)
			}
			found[strings.Join(names, ".")] = true
		}
	}
	for _, b := range blocks {
		diags := hclsyntax.VisitAll(b.Body, func(node hclsyntax.Node) hcl.Diagnostics {
			switch n := node.(type) {
			case *hclsyntax.ScopeTraversalExpr:
				add(n.Traversal)
			case *hclsyntax.RelativeTraversalExpr:
				// aws_iam_role.node[each.key].arn: what is taken of the indexed one.
				for _, root := range n.Source.Variables() {
					add(append(slices.Clone(root), n.Traversal...))
				}
			case *hclsyntax.SplatExpr:
				for _, root := range n.Source.Variables() {
					for _, each := range relative(n.Each) {
						add(append(slices.Clone(root), each...))
					}
				}
			}
			return nil
		})
		m.check(diags)
	}
	return found
}

func relative(e hclsyntax.Expression) []hcl.Traversal {
	if r, ok := e.(*hclsyntax.RelativeTraversalExpr); ok {
		return []hcl.Traversal{r.Traversal}
	}
	return nil
}

// placeholders makes a value for each resource, with every attribute that anybody
// refers to, so that references can be told from those to nothing. It finds out
// for_each and count on the way.
func (m *terraform) placeholders(scope *hcl.EvalContext, all []declared, used map[string]bool) {
	m.t.Helper()
	roots := map[string]map[string]cty.Value{}
	data := map[string]map[string]cty.Value{}
	// Those of one resource that an expression may loop over without a name for what it takes.
	loops := []string{"name", "id", "arn"}
	for i := range all {
		d := &all[i]
		if e := d.body.Attributes["count"]; e != nil {
			n, _ := m.value(e.Expr, scope).AsBigFloat().Int64()
			d.count, d.keys = true, []cty.Value{}
			for k := range n {
				d.keys = append(d.keys, cty.NumberIntVal(k))
			}
		}
		attributes := map[string]bool{}
		for _, name := range loops {
			attributes[name] = true
		}
		for ref := range used {
			if rest, ok := strings.CutPrefix(ref, d.address+"."); ok && !strings.Contains(rest, ".") {
				attributes[rest] = true
			}
		}
		one := func(address string) cty.Value {
			values := map[string]cty.Value{}
			for name := range attributes {
				values[name] = cty.StringVal(address + "." + name)
				if name == "names" {
					values[name] = cty.TupleVal([]cty.Value{cty.StringVal("zone-a"), cty.StringVal("zone-b"), cty.StringVal("zone-c")})
				}
			}
			return cty.ObjectVal(values)
		}
		var v cty.Value
		switch e := d.body.Attributes["for_each"]; {
		case e != nil:
			// What it loops over may name resources declared before it.
			inner := scope.NewChild()
			inner.Variables = map[string]cty.Value{}
			for typ, names := range roots {
				inner.Variables[typ] = cty.ObjectVal(names)
			}
			over := m.value(e.Expr, inner)
			d.keys = []cty.Value{}
			values := map[string]cty.Value{}
			for it := over.ElementIterator(); it.Next(); {
				key, value := it.Element()
				if over.Type().IsSetType() {
					key = value
				}
				d.keys, d.values = append(d.keys, key), append(d.values, value)
				values[key.AsString()] = one(index(d.address, key))
			}
			v = cty.ObjectVal(values)
		case d.count:
			var list []cty.Value
			for _, key := range d.keys {
				list = append(list, one(index(d.address, key)))
			}
			v = cty.TupleVal(list)
		default:
			v = one(d.address)
		}
		labels := strings.Split(d.address, ".")
		into := roots
		if labels[0] == "data" {
			into, labels = data, labels[1:]
		}
		if into[labels[0]] == nil {
			into[labels[0]] = map[string]cty.Value{}
		}
		if _, twice := into[labels[0]][labels[1]]; twice {
			m.t.Errorf("%s: %s is declared twice", m.dir, d.address)
		}
		into[labels[0]][labels[1]] = v
	}
	for typ, names := range roots {
		scope.Variables[typ] = cty.ObjectVal(names)
	}
	sources := map[string]cty.Value{}
	for typ, names := range data {
		sources[typ] = cty.ObjectVal(names)
	}
	scope.Variables["data"] = cty.ObjectVal(sources)
}

func (m *terraform) body(b *hclsyntax.Body, scope *hcl.EvalContext) object {
	m.t.Helper()
	o := object{}
	for name, a := range b.Attributes {
		switch name {
		case "for_each", "count":
			continue
		}
		o[name] = plain(m.value(a.Expr, scope))
	}
	for _, inner := range b.Blocks {
		if inner.Type == "lifecycle" {
			// Names of the resource itself, not references.
			continue
		}
		list, _ := o[inner.Type].([]any)
		o[inner.Type] = append(list, m.body(inner.Body, scope))
	}
	return o
}

// plain is a value as Go has it. Numbers are float64, as in JSON.
func plain(v cty.Value) any {
	switch {
	case v.IsNull():
		return nil
	case v.Type() == cty.String:
		return v.AsString()
	case v.Type() == cty.Bool:
		return v.True()
	case v.Type() == cty.Number:
		f, _ := v.AsBigFloat().Float64()
		return f
	case v.Type().IsObjectType(), v.Type().IsMapType():
		o := object{}
		for it := v.ElementIterator(); it.Next(); {
			key, value := it.Element()
			o[key.AsString()] = plain(value)
		}
		return o
	}
	list := []any{}
	for it := v.ElementIterator(); it.Next(); {
		_, value := it.Element()
		list = append(list, plain(value))
	}
	return list
}

func str(name string) function.Parameter { return function.Parameter{Name: name, Type: cty.String} }

func text(params []function.Parameter, f func(args []cty.Value) (string, error)) function.Function {
	return function.New(&function.Spec{
		Params: params, Type: function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			s, err := f(args)
			return cty.StringVal(s), err
		},
	})
}

// functions are those of Terraform that the modules use. What only encodes is left
// out, so that tests read what was encoded; its limits are checked.
func (m *terraform) functions() map[string]function.Function {
	fs := map[string]function.Function{
		"join": stdlib.JoinFunc, "merge": stdlib.MergeFunc, "replace": stdlib.ReplaceFunc, "keys": stdlib.KeysFunc,
		"split": stdlib.SplitFunc, "format": stdlib.FormatFunc, "jsonencode": stdlib.JSONEncodeFunc, "concat": stdlib.ConcatFunc,
		"toset": stdlib.MakeToFunc(cty.Set(cty.DynamicPseudoType)), "lower": stdlib.LowerFunc,
	}
	fs["file"] = text([]function.Parameter{str("path")}, func(args []cty.Value) (string, error) {
		b, err := os.ReadFile(args[0].AsString())
		return string(b), err
	})
	fs["base64encode"] = text([]function.Parameter{str("text")}, func(args []cty.Value) (string, error) {
		s := args[0].AsString()
		if len(s) > userDataLimit {
			return "", fmt.Errorf("user data of %d bytes, and AWS takes %d", len(s), userDataLimit)
		}
		return s, nil
	})
	fs["base64gzip"] = text([]function.Parameter{str("text")}, func(args []cty.Value) (string, error) {
		s := args[0].AsString()
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write([]byte(s)); err != nil {
			return "", err
		}
		if err := z.Close(); err != nil {
			return "", err
		}
		if b.Len() > userDataLimit {
			return "", fmt.Errorf("compressed user data of %d bytes, and AWS takes %d", b.Len(), userDataLimit)
		}
		return s, nil
	})
	fs["cidrsubnet"] = function.New(&function.Spec{
		Params: []function.Parameter{str("prefix"), {Name: "bits", Type: cty.Number}, {Name: "number", Type: cty.Number}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			p, err := netip.ParsePrefix(args[0].AsString())
			bits, _ := args[1].AsBigFloat().Int64()
			n, _ := args[2].AsBigFloat().Int64()
			if err != nil {
				return cty.NilVal, err
			}
			return cty.StringVal(subnet(p, int(bits), int(n)).String()), nil
		},
	})
	fs["templatefile"] = function.New(&function.Spec{
		Params: []function.Parameter{str("path"), {Name: "vars", Type: cty.DynamicPseudoType}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			b, err := os.ReadFile(args[0].AsString())
			if err != nil {
				return cty.NilVal, err
			}
			e, diags := hclsyntax.ParseTemplate(b, args[0].AsString(), hcl.InitialPos)
			if diags.HasErrors() {
				return cty.NilVal, diags
			}
			vars := args[1].AsValueMap()
			for _, tr := range e.Variables() {
				if _, ok := vars[tr.RootName()]; !ok {
					return cty.NilVal, fmt.Errorf("%s is not given", tr.RootName())
				}
			}
			for name := range vars {
				if !slices.ContainsFunc(e.Variables(), func(tr hcl.Traversal) bool { return tr.RootName() == name }) {
					return cty.NilVal, fmt.Errorf("%s is given and not used", name)
				}
			}
			v, diags := e.Value(&hcl.EvalContext{Variables: vars})
			if diags.HasErrors() {
				return cty.NilVal, diags
			}
			return v, nil
		},
	})
	return fs
}

// subnet is the nth of the networks into which bits more bits cut p.
func subnet(p netip.Prefix, bits, n int) netip.Prefix {
	a := p.Addr().As4()
	v := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	v += uint32(n) << (32 - p.Bits() - bits)
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), p.Bits()+bits)
}

// of are the resources of a type, by the rest of their addresses.
func (m *terraform) of(typ string) map[string]object {
	out := map[string]object{}
	for address, o := range m.resources {
		if rest, ok := strings.CutPrefix(address, typ+"."); ok {
			out[rest] = o
		}
	}
	return out
}

// one is the only block of its name.
func (m *terraform) one(o object, name string) object {
	m.t.Helper()
	list, _ := o[name].([]any)
	if len(list) != 1 {
		m.t.Errorf("%s: %d blocks %s in %v, want 1", m.dir, len(list), name, slices.Sorted(maps.Keys(o)))
		return object{}
	}
	return list[0].(object)
}
