// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/board"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
)

// resultsOf are the objects that -o json prints, by their kind, with the commands that print them.
func resultsOf() []result {
	return []result{
		{"join", "join", bootstrap.JoinResult{}},
		{"leave", "leave", bootstrap.LeaveResult{}},
		{"converge", "converge", bootstrap.Convergence{}},
		{"status", "status", statusView{}},
		{"nodes", "nodes", board.Nodes{}},
		{"node", "nodes --watch", nodeChange{}},
		{"prune", "nodes prune", pruneData{}},
		{"balance", "balance --once", balanceData{}},
		{"events", "events", board.Events{}},
		{"drain", "drain", drainData{}},
		{"undrain", "undrain", drainData{}},
		{"event", "event", drainData{}},
		{"deregister", "deregister", deregisterResult{}},
		{"doctor", "doctor", doctorData{}},
		{"lint", "doctor --user-data", lintData{}},
		{"page", "doctor --explain", pageData{}},
		{"seal", "seal", bootstrap.SealResult{}},
		{"metadata", "metadata", metadataData{}},
		{"config", "config", configData{}},
		{"support", "support", supportData{}},
		{"version", "version", versionData{}},
	}
}

type result struct {
	kind, command string
	data          any
}

// TestJSONDoc compares the tables of docs/json.md with the printed types. -update writes them.
func TestJSONDoc(t *testing.T) {
	d := &jsonDoc{sources: map[string]map[string]*ast.File{}, named: map[reflect.Type]bool{}}
	page, err := os.ReadFile("../../../docs/json.md")
	must.OK(t, err)
	introduction, _, _ := strings.Cut(string(page), "| field |")
	if version := fmt.Sprintf("`schema_version`, which is %d,", output.SchemaVersion); !strings.Contains(introduction, version) {
		t.Errorf("the introduction lacks %q", version)
	}
	d.b.WriteString(introduction)
	d.table(reflect.TypeFor[errorObject]().Field(2).Type)
	for _, r := range resultsOf() {
		d.line("")
		d.line("## %s: `amsagent %s -o json`", r.kind, r.command)
		d.line("")
		d.table(reflect.TypeOf(r.data))
	}
	d.line("")
	d.line("# Objects in them")
	for len(d.todo) > 0 {
		next := d.todo[0]
		d.todo = d.todo[1:]
		d.line("")
		d.line("## %s", next.String())
		d.line("")
		d.table(next)
	}
	must.OK(t, d.err)
	must.Golden(t, *update, "../../../../docs/json.md", d.b.String())

	// It has every kind that a command prints.
	files, err := filepath.Glob("*.go")
	must.OK(t, err)
	kind := regexp.MustCompile(`\.result\("([a-z]+)"`)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		b, err := os.ReadFile(name)
		must.OK(t, err)
		for _, m := range kind.FindAllSubmatch(b, -1) {
			if !slices.ContainsFunc(resultsOf(), func(r result) bool { return r.kind == string(m[1]) }) {
				t.Errorf("%s prints the kind %s, which docs/json.md does not know", name, m[1])
			}
		}
	}
}

// jsonDoc writes tables of types by reflection and by the comments of the sources.
type jsonDoc struct {
	b       strings.Builder
	sources map[string]map[string]*ast.File // by package, by file
	named   map[reflect.Type]bool
	todo    []reflect.Type
	err     error
}

func (d *jsonDoc) line(format string, args ...any) { fmt.Fprintf(&d.b, format+"\n", args...) }

// table writes the fields of a struct.
func (d *jsonDoc) table(t reflect.Type) {
	d.line("| field | type | |")
	d.line("|---|---|---|")
	d.rows(t)
}

// rows are the fields of a struct; those of embedded ones are its own.
func (d *jsonDoc) rows(t reflect.Type) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			d.rows(inner)
			continue
		}
		if name == "-" || !f.IsExported() || name == "schema_version" || name == "kind" && t == reflect.TypeFor[nodeChange]() {
			continue
		}
		if name == "" {
			d.err = fmt.Errorf("%s.%s has no name in JSON", t, f.Name)
			return
		}
		text := d.typeText(f.Type)
		if text == "seconds" != strings.HasSuffix(name, "_seconds") || f.Type == reflect.TypeFor[time.Duration]() {
			d.err = errors.Join(d.err, fmt.Errorf("%s.%s: a name %q for %s", t, f.Name, name, text))
		}
		if strings.Contains(options, "omit") {
			text = "optional " + text
		}
		d.line("| `%s` | %s | %s |", name, text, d.comment(t, f.Name))
	}
}

func (d *jsonDoc) typeText(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "time"
	case t == reflect.TypeFor[seconds.Duration]():
		return "seconds"
	case t.Kind() == reflect.Pointer:
		return d.typeText(t.Elem())
	case marshals(t):
		return sample(t)
	}
	switch t.Kind() {
	case reflect.Bool:
		return "boolean"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.String:
		if values := d.constants(t); values != "" {
			return values
		}
		return "string"
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return "string, base64"
		}
		return "list of " + d.typeText(t.Elem())
	case reflect.Map:
		return "object: " + d.typeText(t.Elem()) + " by name"
	case reflect.Struct:
		if !d.named[t] {
			d.named[t] = true
			d.todo = append(d.todo, t)
		}
		anchor := strings.ToLower(strings.ReplaceAll(t.String(), ".", ""))
		return fmt.Sprintf("[%s](#%s)", t, anchor)
	case reflect.Interface:
		return "any"
	default:
		return "integer"
	}
}

func marshals(t reflect.Type) bool {
	for _, by := range []reflect.Type{reflect.TypeFor[json.Marshaler](), reflect.TypeFor[encoding.TextMarshaler]()} {
		if t.Implements(by) || reflect.PointerTo(t).Implements(by) {
			return true
		}
	}
	return false
}

// sample is the type of what a type makes of itself.
func sample(t reflect.Type) string {
	b, err := json.Marshal(reflect.New(t).Interface())
	switch {
	case err != nil, bytes.HasPrefix(b, []byte(`"`)):
		return "string"
	case bytes.HasPrefix(b, []byte("{")):
		return "object"
	case t.Kind() == reflect.Map:
		return "object: string by name"
	case bytes.HasPrefix(b, []byte("[")):
		return "list"
	}
	return "string or null"
}

const module = "github.com/amsagent/amsagent"

// files are the sources of the package of a type; none of other modules.
func (d *jsonDoc) files(t reflect.Type) map[string]*ast.File {
	below, ours := strings.CutPrefix(t.PkgPath(), module)
	if !ours {
		return nil
	}
	if files, ok := d.sources[below]; ok {
		return files
	}
	files := map[string]*ast.File{}
	d.sources[below] = files
	names, err := filepath.Glob(filepath.Join("../../..", below, "*.go"))
	if err != nil {
		d.err = err
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		if files[name], err = parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments); err != nil {
			d.err = err
		}
	}
	return files
}

// comment is the first sentence of the comment of a field.
func (d *jsonDoc) comment(t reflect.Type, field string) string {
	text := ""
	for _, file := range d.files(t) {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || spec.Name.Name != t.Name() {
				return true
			}
			if st, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range st.Fields.List {
					if slices.ContainsFunc(f.Names, func(n *ast.Ident) bool { return n.Name == field }) {
						text = f.Doc.Text() + f.Comment.Text()
					}
				}
			}
			return false
		})
	}
	text = strings.Join(strings.Fields(text), " ")
	if i := strings.Index(text, ". "); i > 0 {
		text = text[:i]
	}
	text = strings.TrimSuffix(strings.ReplaceAll(text, "|", "\\|"), ".")
	for _, opening := range []string{field + " is ", field + " are ", field + " says ", field + ": "} {
		text = strings.TrimPrefix(text, opening)
	}
	return text
}

// constants are the values that the sources name for a type of strings.
func (d *jsonDoc) constants(t reflect.Type) string {
	var values []string
	for _, name := range slices.Sorted(maps.Keys(d.files(t))) {
		for _, decl := range d.files(t)[name].Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.CONST {
				continue
			}
			for _, s := range gen.Specs {
				spec := s.(*ast.ValueSpec)
				if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != t.Name() {
					continue
				}
				for _, v := range spec.Values {
					if lit, ok := v.(*ast.BasicLit); ok && lit.Kind == token.STRING {
						if text, err := strconv.Unquote(lit.Value); err == nil && text != "" && !slices.Contains(values, "`"+text+"`") {
							values = append(values, "`"+text+"`")
						}
					}
				}
			}
		}
	}
	return strings.Join(values, ", ")
}
