// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

const module = "github.com/amsagent/amsagent"

// arrows has, for each folder of the agent's module, the other folders that its packages may import (docs/ARCHITECTURE.md).
// The longest folder of a file decides; internal may be imported by all.
var arrows = map[string][]string{
	"files":                 {},
	"conf":                  {"files"},
	"metadata":              {},
	"cluster":               {},
	"ams":                   {"conf", "files"},
	"bootstrap":             {"conf", "files", "metadata", "ams", "cluster"},
	"heartbeat":             {"conf", "metadata", "ams", "cluster"},
	"lifecycle":             {"conf", "metadata", "ams", "cluster"},
	"lb":                    {"conf", "metadata", "ams", "cluster"},
	"cmd/amsagent/daemon":   {"conf", "files", "metadata", "ams", "cluster", "bootstrap", "heartbeat", "lifecycle", "lb", "cmd/amsagent/web"}, // web for the list of metrics
	"cmd/amsagent/settings": {"metadata", "cluster", "bootstrap"},
	"cmd/amsagent/output":   {},
	"cmd/amsagent/cli":      {"cmd/amsagent/daemon", "cmd/amsagent/settings", "cmd/amsagent/output", "cmd/amsagent/board", "cmd/amsagent/web", "conf", "files", "metadata", "ams", "cluster", "bootstrap", "heartbeat", "lifecycle", "lb", "docs/errors"},
	"internal":              {},
	"docs/errors":           {},
	"cmd/amsagent/board":    {"cmd/amsagent/output", "cluster", "lb", "metadata"},
	"cmd/amsagent/web":      {"cmd/amsagent/board", "cmd/amsagent/output", "cluster", "ams"},
	"packaging":             {"cmd/amsagent/cli"}, // man pages of the commands
}

// A rule forbids imports or calls. Paths are files or folders from the top of the checkout.
type rule struct {
	imports *regexp.Regexp // of packages, by their path
	calls   *regexp.Regexp // of functions, `os.Exit` or `panic`, whatever name the import has in the file
	in      string         // only below these paths; empty: everywhere
	except  string         // not below these paths
	tests   bool           // in tests, too
	why     string
	refused [2]string // a file, and what it must not import or call
}

const notTheAgent = " packaging/ sandbox/ tools/ internal/readback/ internal/fakes/ internal/must/ internal/locked/ metadata/metadatatest/"

var rules = []rule{
	{
		imports: regexp.MustCompile(`^` + module + `/internal/readback`), except: "internal/readback/",
		why:     "it starts Java to read our output back: for tests, never in the agent",
		refused: [2]string{"bootstrap/java.go", module + "/internal/readback"},
	},
	{
		imports: regexp.MustCompile(`^` + module + `/internal/fakes`), except: "internal/fakes/ metadata/metadatatest/ sandbox/",
		why:     "emulated clouds are for tests, never in the agent",
		refused: [2]string{"metadata/aws/x.go", module + "/internal/fakes/fakeaws"},
	},
	{
		imports: regexp.MustCompile(`^go\.mongodb\.org/mongo-driver`), except: "cluster/ sandbox/ internal/fakes/fakemongo/", tests: true,
		why:     "MongoDB is spoken by cluster alone, so that its types, timeouts and errors end there",
		refused: [2]string{"cmd/amsagent/cli/x.go", "go.mongodb.org/mongo-driver/v2/mongo"},
	},
	{
		imports: regexp.MustCompile(`^go\.mongodb\.org/mongo-driver/(mongo|bson)`), tests: true, why: "version 1 of the driver is deprecated: v2",
		refused: [2]string{"cluster/x.go", "go.mongodb.org/mongo-driver/mongo"},
	},
	{
		imports: regexp.MustCompile(`^github\.com/(coreos/go-systemd/v22/(dbus|login1)|godbus/dbus)`), except: "ams/systemd.go ams/service_test.go sandbox/", tests: true,
		why:     "D-Bus is spoken by one file: all else must work without systemd",
		refused: [2]string{"lifecycle/x.go", "github.com/coreos/go-systemd/v22/login1"},
	},
	{
		imports: regexp.MustCompile(`^github\.com/aws/`), except: "metadata/aws/ sandbox/", tests: true, why: "each cloud's SDK is used by one folder",
		refused: [2]string{"metadata/x.go", "github.com/aws/aws-sdk-go-v2/feature/ec2/imds"},
	},
	{
		imports: regexp.MustCompile(`^os/exec$`), except: "ams/command.go ams/address.go heartbeat/gpu.go cmd/amsagent/cli/cmd_support.go" + notTheAgent,
		why:     "the agent starts a child for --service-command, getent, the GPU sampler and support only",
		refused: [2]string{"conf/x.go", "os/exec"},
	},
	{imports: regexp.MustCompile(`^gopkg\.in/yaml`), tests: true, why: "unmaintained: go.yaml.in/yaml/v3", refused: [2]string{"conf/x_test.go", "gopkg.in/yaml.v3"}},
	{imports: regexp.MustCompile(`^math/rand$`), tests: true, why: "math/rand/v2", refused: [2]string{"ams/x.go", "math/rand"}},
	{imports: regexp.MustCompile(`^log$`), tests: true, why: "log/slog, with a logger that was handed in", refused: [2]string{"conf/x.go", "log"}},
	{imports: regexp.MustCompile(`^github\.com/stretchr/testify`), tests: true, why: "the standard library and go-cmp", refused: [2]string{"conf/x_test.go", "github.com/stretchr/testify/assert"}},

	{
		calls: regexp.MustCompile(`^os\.(Getenv|LookupEnv|Environ|ExpandEnv|Stdout|Stderr|Stdin)$|^fmt\.Print|^println?$`), except: "cmd/amsagent/cli/" + notTheAgent,
		why:     "only cli knows the environment and the terminal",
		refused: [2]string{"metadata/aws/x.go", "os.Getenv"},
	},
	{
		calls: regexp.MustCompile(`^os\.Exit$`), except: "cmd/amsagent/main.go cmd/amsagent/cli/env.go" + notTheAgent,
		why:     "only main exits; anywhere else deferred functions would not run",
		refused: [2]string{"cmd/amsagent/cli/x.go", "os.Exit"},
	},
	{
		calls: regexp.MustCompile(`^panic$`), except: "conf/container.go conf/properties.go" + notTheAgent, // spans of our own scan cannot overlap
		why:     "return an error",
		refused: [2]string{"cluster/x.go", "panic"},
	},
	{
		calls: regexp.MustCompile(`^time\.Sleep$`), except: "heartbeat/sampler_test.go", tests: true, // the clock of synctest
		why:     "in tests use synctest or wait for a condition; elsewhere select with ctx.Done()",
		refused: [2]string{"conf/x_test.go", "time.Sleep"},
	},
	{calls: regexp.MustCompile(`^context\.TODO$`), tests: true, why: "take the ctx from the caller", refused: [2]string{"lifecycle/x.go", "context.TODO"}},
	{calls: regexp.MustCompile(`^slog\.(Default|SetDefault)$`), tests: true, why: "no global logger; one is handed in", refused: [2]string{"ams/x.go", "slog.Default"}},
	{
		// These packages handle files that the server's user may exchange. Excepted: /proc, /run and the operator's own command.
		in:     "conf/ ams/ bootstrap/ cluster/ lifecycle/",
		except: "ams/command.go ams/process.go ams/systemd.go bootstrap/doctor/ports.go lifecycle/clock.go",
		calls: regexp.MustCompile(`^os\.(Open.*|Read(File|Dir|link)|DirFS|L?Stat|Create.*|WriteFile|Mkdir.*|Rename|Remove.*|Link|Symlink|Ch(mod|own|times|dir)|Lchown|Truncate|CopyFS|StartProcess)$` +
			`|^filepath\.(Glob|Walk|WalkDir|EvalSymlinks)$|^securejoin\.` +
			`|^(zip\.OpenReader|tls\.LoadX509KeyPair|http\.(Dir|ServeFile|NewFileTransport)|exec\.LookPath|template\.Parse(Files|Glob))$` +
			`|^(unix|syscall)\.(Open.*|Creat|Rename.*|Unlink.*|Rmdir|Link.*|Symlink.*|Readlink.*|Mk(dir|nod|fifo).*|L?Stat|Fstatat|Statx|Statfs|F?access.*|Ch(mod|own|dir|root)|Fch(mod|own)at.*|Lchown|Truncate|L?(Get|Set|List|Remove)xattr|.*[uU]times.*|Mount.*|Unmount|Exec|(Raw)?Syscall.*)$`),
		why:     "files that another user may exchange are reached by package files alone",
		refused: [2]string{"conf/x.go", "os.ReadFile"},
	},
}

var version = regexp.MustCompile(`/v[0-9]+$`)

// check reports what a Go file does against the rules.
func check(f file) (found []string) {
	name := f.path
	complain := func(at token.Pos, what, why string) {
		found = append(found, fmt.Sprintf("%s:%d: %s: %s", name, f.fset.Position(at).Line, what, why))
	}
	names := map[string]string{} // the file's names of packages: the usual ones
	for _, spec := range f.tree.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		usual := path.Base(version.ReplaceAllString(imported, ""))
		names[usual] = usual
		if spec.Name != nil {
			names[spec.Name.Name] = usual
		}
		if target, ours := strings.CutPrefix(imported, module+"/"); ours && !mayImport(name, target) {
			complain(spec.Pos(), target, "no arrow from this folder to that one")
		}
		for _, r := range rules {
			if r.imports != nil && r.covers(name) && r.imports.MatchString(imported) {
				complain(spec.Pos(), imported, r.why)
			}
		}
	}
	var forbidden []rule
	for _, r := range rules {
		if r.calls != nil && r.covers(name) {
			forbidden = append(forbidden, r)
		}
	}
	called := func(at token.Pos, what string) {
		for _, r := range forbidden {
			if r.calls.MatchString(what) {
				complain(at, what, r.why)
			}
		}
	}
	ast.Inspect(f.tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && names[x.Name] != "" {
				called(n.Pos(), names[x.Name]+"."+n.Sel.Name)
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok {
				called(n.Pos(), f.Name)
			}
		}
		return true
	})
	return found
}

func (r rule) covers(name string) bool {
	below := func(paths string) bool {
		return slices.ContainsFunc(strings.Fields(paths), func(p string) bool { return strings.HasPrefix(name, p) })
	}
	return (r.tests || !strings.HasSuffix(name, "_test.go")) && (r.in == "" || below(r.in)) && !below(r.except)
}

// mayImport reports whether a file may import a package of ours, by its path below the module.
func mayImport(name, target string) bool {
	if strings.HasPrefix(name, "sandbox/") {
		return true
	}
	within := func(p, folder string) bool { return p == folder || strings.HasPrefix(p, folder+"/") }
	if strings.HasPrefix(name, "cmd/amsagent/") && path.Dir(name) == "cmd/amsagent" {
		return target == "cmd/amsagent/cli" || within(target, "internal")
	}
	from := ""
	for folder := range arrows {
		if within(name, folder) && len(folder) > len(from) {
			from = folder
		}
	}
	return from != "" && (within(target, from) || within(target, "internal") ||
		slices.ContainsFunc(arrows[from], func(folder string) bool { return within(target, folder) }))
}

func TestRules(t *testing.T) {
	for _, f := range checkout(t) {
		if f.tree == nil {
			continue
		}
		for _, complaint := range check(f) {
			t.Error(complaint)
		}
	}
}

// TestRulesRefuse holds that each rule refuses its example, and that nothing else does.
func TestRulesRefuse(t *testing.T) {
	try := func(name, source, why string) {
		t.Helper()
		fset := token.NewFileSet()
		tree, err := parser.ParseFile(fset, name, source, parser.SkipObjectResolution)
		must.OK(t, err)
		if found := check(file{path: name, tree: tree, fset: fset}); len(found) != 1 || !strings.HasSuffix(found[0], ": "+why) {
			t.Errorf("%s: got %q, want one complaint: %s; of\n%s", name, found, why, source)
		}
	}
	for _, r := range rules {
		name, what := r.refused[0], r.refused[1]
		if r.imports != nil {
			try(name, fmt.Sprintf("package p\n\nimport _ %q\n", what), r.why)
			continue
		}
		pkg, _, selector := strings.Cut(what, ".")
		if !selector {
			try(name, "package p\n\nfunc f() { "+what+"(1) }\n", r.why)
			continue
		}
		paths := map[string]string{"slog": "log/slog"}
		imported := paths[pkg]
		if imported == "" {
			imported = pkg
		}
		try(name, fmt.Sprintf("package p\n\nimport %q\n\nvar _ = %s\n", imported, what), r.why)
		try(name, fmt.Sprintf("package p\n\nimport other %q\n\nvar _ = other.%s\n", imported, what[len(pkg)+1:]), r.why)
	}
	for from, to := range map[string]string{
		"files/x.go": "conf", "conf/x.go": "ams", "metadata/aws/x.go": "conf", "cluster/x.go": "metadata", "ams/x.go": "cluster",
		"bootstrap/x.go": "heartbeat", "heartbeat/x.go": "bootstrap", "lifecycle/x.go": "lb", "lb/x.go": "lifecycle", "lb/y.go": "cmd/amsagent/cli",
		"internal/x/x.go": "conf", "cmd/amsagent/main.go": "bootstrap", "cmd/amsagent/daemon/x.go": "sandbox", "conf/x_test.go": "cluster",
		"cmd/amsagent/daemon/y.go": "cmd/amsagent/cli", "cmd/amsagent/output/x.go": "cmd/amsagent/settings", "new/x.go": "conf", "packaging/x.go": "conf",
	} {
		try(from, fmt.Sprintf("package p\n\nimport _ %q\n", module+"/"+to), "no arrow from this folder to that one")
	}
}

// cloudFiles name a cloud outside of metadata: help texts, settings, endpoints, and what only one cloud needs.
const cloudFiles = "bootstrap/preflight.go cmd/amsagent/cli/adapter.go cmd/amsagent/cli/cmd_event.go " +
	"cmd/amsagent/cli/cmd_metadata.go cmd/amsagent/cli/instance.go " +
	"cmd/amsagent/daemon/http.go cmd/amsagent/settings/endpoints.go cmd/amsagent/settings/table.go"

// TestCloudWords: what differs from cloud to cloud is in metadata.
func TestCloudWords(t *testing.T) {
	word := regexp.MustCompile(`(?i:\baws|azure|alibaba)|AWS|(?i:gcp)(?:[^e]|$)`) // neither "laws" nor GCPercent
	agent := rule{except: "metadata/" + notTheAgent}
	var found []string
	for _, f := range checkout(t) {
		if f.tree == nil || !agent.covers(f.path) {
			continue
		}
		names := false
		ast.Inspect(f.tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Ident:
				names = names || word.MatchString(n.Name)
			case *ast.BasicLit:
				names = names || word.MatchString(n.Value)
			}
			return true
		})
		if names {
			found = append(found, f.path)
		}
	}
	must.NoDiff(t, "files that name a cloud (-listed +found)", found, strings.Fields(cloudFiles))
}
