// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package archlint holds no code, only the proof that .golangci.yml refuses what docs/ARCHITECTURE.md forbids: a rule
// with a mistyped glob looks like a rule that is never broken. It builds two small trees with our package names, one
// with every import that is allowed, one with many that are not, and compares what the linter says of them.
//
// It needs the linter: `make lint-selftest` builds it and says where by GOLANGCI_LINT.
package archlint

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/amsagent/amsagent"
	unix   = "golang.org/x/sys/unix"

	securejoin = "github.com/cyphar/filepath-securejoin"
)

// foreign lists the modules that the trees import, and which packages of them. Stand-ins without code are enough, since
// the rules look at import paths only; so nothing is fetched.
var foreign = map[string][]string{
	"go.mongodb.org/mongo-driver/v2":                {"mongo"},
	"go.mongodb.org/mongo-driver":                   {"mongo"},
	"github.com/coreos/go-systemd/v22":              {"dbus", "daemon", "login1"},
	"github.com/godbus/dbus/v5":                     {"."},
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds": {"."},
	"github.com/Azure/azure-sdk-for-go/sdk/azcore":  {"."},
	"github.com/aliyun/alibaba-cloud-sdk-go":        {"sdk"},
	"github.com/alibabacloud-go/ess-20220222/v2":    {"client"},
	"cloud.google.com/go/compute/metadata":          {"."},
	"google.golang.org/api":                         {"compute/v1"},
	"github.com/stretchr/testify":                   {"assert"},
	"gopkg.in/yaml.v3":                              {"."},
	"golang.org/x/sys":                              {"unix"},
	securejoin:                                      {"."},
}

// stubs are the stand-ins that need code, since the rules look at what is called.
var stubs = map[string]string{
	unix: `package unix

func Stat(string, *int) error                      { return nil }
func Lstat(string, *int) error                     { return nil }
func Fstat(int, *int) error                        { return nil }
func Readlink(string, []byte) (int, error)         { return 0, nil }
func Openat2(int, string, *int) (int, error)       { return 0, nil }
func OpenTree(int, string, uint) (int, error)      { return 0, nil }
func Getxattr(string, string, []byte) (int, error) { return 0, nil }
`,
	securejoin + "/.": "package securejoin\n\nfunc SecureJoin(string, string) (string, error) { return \"\", nil }\n",
}

// allowed is a tree in which each package imports all that it may. The linter must be silent on it.
var allowed = map[string]string{
	"cmd/amsagent/main.go": `package main

import (
	"os"

	"` + module + `/cmd/amsagent/cli"
)

func main() { os.Exit(cli.Main()) }
`,
	"cmd/amsagent/cli/cli.go": `package cli

import (
	"fmt"
	"os"

	_ "` + module + `/ams"
	_ "` + module + `/bootstrap"
	_ "` + module + `/cluster"
	_ "` + module + `/conf"
	_ "` + module + `/heartbeat"
	_ "` + module + `/lb"
	_ "` + module + `/lifecycle"
	_ "` + module + `/metadata/aws"
)

func Main() int {
	fmt.Println(os.Getenv("HOME"))
	fmt.Fprintln(os.Stderr, "done")
	return 0
}
`,
	"files/files.go":                  "package files\n\nimport \"os\"\n\nfunc open() { _, _ = os.Open(\"x\") }\n",
	"conf/conf.go":                    imports("conf", "os", module+"/files"),
	"conf/lock.go":                    "package conf\n\nimport (\n\t\"syscall\"\n\n\t\"" + unix + "\"\n)\n\nfunc lock() error {\n\t_ = unix.Fstat(0, nil)\n\treturn syscall.Flock(0, syscall.O_RDWR)\n}\n",
	"conf/conf_test.go":               imports("conf", module+"/internal/readback", "os/exec"),
	"metadata/metadata.go":            imports("metadata", "net/http"),
	"metadata/aws/aws.go":             imports("aws", module+"/metadata", "github.com/aws/aws-sdk-go-v2/feature/ec2/imds"),
	"metadata/azure/azure.go":         imports("azure", module+"/metadata", "github.com/Azure/azure-sdk-for-go/sdk/azcore"),
	"metadata/alibaba/alibaba.go":     imports("alibaba", "github.com/aliyun/alibaba-cloud-sdk-go/sdk", "github.com/alibabacloud-go/ess-20220222/v2/client"),
	"metadata/gcp/gcp.go":             imports("gcp", "cloud.google.com/go/compute/metadata", "google.golang.org/api/compute/v1"),
	"cluster/cluster.go":              imports("cluster", "go.mongodb.org/mongo-driver/v2/mongo"),
	"ams/ams.go":                      imports("ams", module+"/conf", module+"/files", "github.com/coreos/go-systemd/v22/daemon"),
	"ams/systemd_dbus.go":             imports("ams", "github.com/coreos/go-systemd/v22/dbus", "github.com/godbus/dbus/v5"),
	"ams/command.go":                  imports("ams", "os/exec"),
	"cmd/amsagent/cli/cmd_support.go": imports("cli", "os/exec"),
	"bootstrap/bootstrap.go":          imports("bootstrap", module+"/conf", module+"/files", module+"/metadata", module+"/ams", module+"/cluster"),
	"bootstrap/bootstrap_test.go":     imports("bootstrap_test", module+"/bootstrap", module+"/internal/readback"),
	"heartbeat/heartbeat.go":          imports("heartbeat", module+"/cluster", module+"/ams"),
	"heartbeat/gpu.go":                imports("heartbeat", "os/exec"),
	"lifecycle/lifecycle.go":          imports("lifecycle", module+"/cluster", module+"/metadata"),
	"lb/lb.go":                        imports("lb", module+"/cluster"),
	"internal/readback/readback.go":   imports("readback", "os/exec"),
}

// leaves are packages without imports, one below each of ours, so that the forbidden tree has no import cycle: the
// compiler would refuse that one for us and the rule would not be seen.
var leaves = []string{
	"files/leaf", "conf/leaf", "metadata/leaf", "ams/leaf", "cluster/leaf", "bootstrap/leaf", "heartbeat/leaf", "lifecycle/leaf",
	"lb/leaf", "cmd/amsagent/cli", "internal/readback", "sandbox/leaf",
}

// violation is one file, and a part of what the linter must say about it.
type violation struct {
	file, source string
	want         []string
}

func violations() []violation {
	arrows := func(dir string, reason string, targets ...string) (out []violation) {
		for i, target := range targets {
			out = append(out, violation{
				file:   fmt.Sprintf("%s/arrow%d.go", dir, i),
				source: imports(path.Base(dir), module+"/"+target),
				want:   []string{"depguard: import '" + module + "/" + target + "'", reason},
			})
		}
		return out
	}
	foreigner := func(dir, pkg, reason string) violation {
		return violation{
			file:   dir + "/" + strings.NewReplacer("/", "_", ".", "_").Replace(pkg) + ".go",
			source: imports(path.Base(dir), pkg),
			want:   []string{"depguard: import '" + pkg + "'", reason},
		}
	}
	call := func(file, imported, expr, reason string) violation {
		return violation{
			file: file,
			source: fmt.Sprintf("package %s\n\nimport %q\n\nfunc %s() { %s }\n",
				path.Base(path.Dir(file)), imported, strings.TrimSuffix(path.Base(file), path.Ext(file)), expr),
			want: []string{"forbidigo: use of", reason},
		}
	}
	var v []violation
	v = append(v, arrows("files", "imports no other package of ours", "conf/leaf", "ams/leaf", "cmd/amsagent/cli")...)
	v = append(v, arrows("conf", "imports no other package of ours", "metadata/leaf", "cluster/leaf", "ams/leaf", "bootstrap/leaf", "cmd/amsagent/cli")...)
	v = append(v, arrows("metadata", "imports no other package of ours", "conf/leaf", "cluster/leaf", "ams/leaf", "bootstrap/leaf", "cmd/amsagent/cli")...)
	v = append(v, arrows("metadata/aws", "imports no other package of ours", "conf/leaf", "lifecycle/leaf")...)
	v = append(v, arrows("cluster", "imports no other package of ours", "conf/leaf", "metadata/leaf", "ams/leaf", "bootstrap/leaf", "cmd/amsagent/cli")...)
	v = append(v, arrows("ams", "imports nothing else of ours", "metadata/leaf", "cluster/leaf", "bootstrap/leaf", "cmd/amsagent/cli")...)
	for _, dir := range []string{"bootstrap", "heartbeat", "lifecycle", "lb"} {
		v = append(v, arrows(dir, "must not know it", "cmd/amsagent/cli")...)
	}
	v = append(v,
		violation{"bootstrap/peer.go", imports("bootstrap", module+"/heartbeat/leaf"), []string{"depguard: ", "neither its neighbours nor cli"}},
		violation{"heartbeat/peer.go", imports("heartbeat", module+"/bootstrap/leaf"), []string{"depguard: ", "neither its neighbours nor cli"}},
		violation{"lifecycle/peer.go", imports("lifecycle", module+"/lb/leaf"), []string{"depguard: ", "neither its neighbours nor cli"}},
		violation{"lb/peer.go", imports("lb", module+"/lifecycle/leaf"), []string{"depguard: ", "neither its neighbours nor cli"}},
		violation{"cmd/amsagent/main.go", "package main\n\nimport _ \"" + module + "/bootstrap/leaf\"\n\nfunc main() {}\n", []string{"depguard: ", "handful of lines"}},
		violation{"internal/tree/tree.go", imports("tree", module+"/conf/leaf"), []string{"depguard: ", "must not use them"}},
		violation{"bootstrap/java.go", imports("bootstrap", module+"/internal/readback"), []string{"depguard: ", "never in the agent"}},
		violation{"bootstrap/sandbox.go", imports("bootstrap", module+"/sandbox/leaf"), []string{"depguard: ", "must build without it"}},
		violation{"conf/assert_test.go", imports("conf", "github.com/stretchr/testify/assert"), []string{"depguard: ", "go-cmp"}},

		foreigner("bootstrap", "go.mongodb.org/mongo-driver/v2/mongo", "cluster alone"),
		foreigner("ams", "go.mongodb.org/mongo-driver/v2/mongo", "cluster alone"),
		foreigner("cmd/amsagent/cli", "go.mongodb.org/mongo-driver/v2/mongo", "cluster alone"),
		foreigner("cluster", "go.mongodb.org/mongo-driver/mongo", "version 1"),
		foreigner("ams", "github.com/coreos/go-systemd/v22/dbus", "ams/systemd_dbus.go alone"),
		foreigner("lifecycle", "github.com/coreos/go-systemd/v22/login1", "ams/systemd_dbus.go alone"),
		foreigner("bootstrap", "github.com/godbus/dbus/v5", "ams/systemd_dbus.go alone"),
		foreigner("metadata", "github.com/aws/aws-sdk-go-v2/feature/ec2/imds", "AWS's by metadata/aws"),
		foreigner("lifecycle", "github.com/Azure/azure-sdk-for-go/sdk/azcore", "Azure's by metadata/azure"),
		foreigner("lifecycle", "github.com/aliyun/alibaba-cloud-sdk-go/sdk", "Alibaba's by metadata/alibaba"),
		foreigner("metadata/aws", "github.com/alibabacloud-go/ess-20220222/v2/client", "Alibaba's by metadata/alibaba"),
		foreigner("metadata/azure", "cloud.google.com/go/compute/metadata", "Google's by metadata/gcp"),
		foreigner("bootstrap", "google.golang.org/api/compute/v1", "Google's by metadata/gcp"),
		foreigner("ams", "os/exec", "three places only"),
		foreigner("conf", "os/exec", "three places only"),
		foreigner("cmd/amsagent/cli", "os/exec", "three places only"),
		foreigner("cmd/amsagent/cli", "gopkg.in/yaml.v3", "unmaintained"),
		foreigner("ams", "math/rand", "math/rand/v2"),
		foreigner("conf", "log", "log/slog"),
		foreigner("conf", "io/ioutil", "deprecated since"),

		call("conf/getenv.go", "os", `_ = os.Getenv("HOME")`, "only cli reads the environment"),
		call("cluster/lookup.go", "os", `_, _ = os.LookupEnv("HOME")`, "only cli reads the environment"),
		call("metadata/aws/environ.go", "os", `_ = os.Environ()`, "only cli reads the environment"),
		call("bootstrap/print.go", "fmt", `fmt.Println("done")`, "only cli prints"),
		call("ams/printf.go", "fmt", `fmt.Printf("done")`, "only cli prints"),
		call("bootstrap/stderr.go", "os", `_, _ = os.Stderr.WriteString("done")`, "only cli knows the terminal"),
		call("ams/slogdefault.go", "log/slog", `_ = slog.Default()`, "no global logger"),
		call("bootstrap/exit.go", "os", `os.Exit(1)`, "only main exits"),
		call("cmd/amsagent/cli/exit.go", "os", `os.Exit(1)`, "only main exits"),
		call("heartbeat/sleep.go", "time", `time.Sleep(1)`, "in tests use synctest"),
		call("conf/sleep_test.go", "time", `time.Sleep(1)`, "in tests use synctest"),
		call("conf/open.go", "os", `_, _ = os.Open("x")`, "by package files alone"),
		call("ams/stat.go", "os", `_, _ = os.Stat("x")`, "by package files alone"),
		call("bootstrap/glob.go", "path/filepath", `_, _ = filepath.Glob("x")`, "by package files alone"),
		call("lifecycle/remove.go", "os", `_ = os.Remove("x")`, "by package files alone"),
		call("bootstrap/walk.go", "path/filepath", `_ = filepath.Walk("x", nil)`, "by package files alone"),
		call("bootstrap/walkdir.go", "path/filepath", `_ = filepath.WalkDir("x", nil)`, "by package files alone"),
		call("conf/evalsymlinks.go", "path/filepath", `_, _ = filepath.EvalSymlinks("x")`, "by package files alone"),
		call("ams/openreader.go", "archive/zip", `_, _ = zip.OpenReader("x")`, "by package files alone"),
		call("heartbeat/lookpath.go", "os/exec", `_, _ = exec.LookPath("x")`, "by package files alone"),
		call("cluster/keypair.go", "crypto/tls", `_, _ = tls.LoadX509KeyPair("x", "x")`, "by package files alone"),
		call("ams/sysopen.go", "syscall", `_, _ = syscall.Open("x", 0, 0)`, "by package files alone"),
		call("conf/sysstat.go", "syscall", `_ = syscall.Stat("x", nil)`, "by package files alone"),
		call("conf/sysrename.go", "syscall", `_ = syscall.Rename("x", "y")`, "by package files alone"),
		call("conf/sysunlinkat.go", "syscall", `_ = syscall.Unlinkat(0, "x")`, "by package files alone"),
		call("lifecycle/sysreadlink.go", "syscall", `_, _ = syscall.Readlink("x", nil)`, "by package files alone"),
		call("lifecycle/rawsyscall.go", "syscall", `_, _, _ = syscall.RawSyscall(0, 0, 0, 0)`, "by package files alone"),
		call("bootstrap/syslchown.go", "syscall", `_ = syscall.Lchown("x", 0, 0)`, "by package files alone"),
		// In packages of which other files may.
		call("cmd/amsagent/cli/cmd_new.go", "os", `_, _ = os.Open("x")`, "by package files alone"),
		call("cmd/amsagent/daemon/new.go", "os", `_ = os.Remove("x")`, "by package files alone"),
		call("metadata/generic/new.go", "os", `_, _ = os.ReadFile("x")`, "by package files alone"),
		call("heartbeat/new.go", "os", `_, _ = os.Stat("x")`, "by package files alone"),
		call("bootstrap/doctor/agent.go", "os", `_, _ = os.Stat("x")`, "by package files alone"),
		call("ams/secure.go", securejoin, `_, _ = securejoin.SecureJoin("x", "y")`, "by package files alone"),
		call("ams/unixstat.go", unix, `_ = unix.Stat("x", nil)`, "by package files alone"),
		call("ams/unixlstat.go", unix, `_ = unix.Lstat("x", nil)`, "by package files alone"),
		call("ams/unixreadlink.go", unix, `_, _ = unix.Readlink("x", nil)`, "by package files alone"),
		call("conf/unixopenat2.go", unix, `_, _ = unix.Openat2(0, "x", nil)`, "by package files alone"),
		call("conf/unixopentree.go", unix, `_, _ = unix.OpenTree(0, "x", 0)`, "by package files alone"),
		call("conf/unixgetxattr.go", unix, `_, _ = unix.Getxattr("x", "y", nil)`, "by package files alone"),
		call("lifecycle/todo.go", "context", `_ = context.TODO()`, "from the caller"),
		call("cluster/renamed.go", "os", "panic(os.ErrExist)", "an operator nothing"),
		violation{
			"conf/alias.go", "package conf\n\nimport sys \"os\"\n\nfunc alias() { _ = sys.Getenv(\"HOME\") }\n",
			[]string{"forbidigo: ", "only cli reads the environment"},
		},
	)
	return v
}

func imports(pkg string, paths ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "package %s\n\n", pkg)
	for _, p := range paths {
		fmt.Fprintf(&b, "import _ %q\n", p)
	}
	return b.String()
}

func TestAllowed(t *testing.T) {
	for _, issue := range lint(t, allowed) {
		t.Errorf("refused, but allowed: %s", issue)
	}
}

func TestForbidden(t *testing.T) {
	files := map[string]string{}
	for _, leaf := range leaves {
		files[leaf+"/leaf.go"] = imports(path.Base(leaf))
	}
	all := violations()
	for _, v := range all {
		if _, twice := files[v.file]; twice {
			t.Fatalf("two violations in %s", v.file)
		}
		files[v.file] = v.source
	}
	issues := lint(t, files)
	for _, v := range all {
		i := slices.IndexFunc(issues, func(issue string) bool {
			return strings.HasPrefix(issue, v.file+": ") && !slices.ContainsFunc(v.want, func(part string) bool { return !strings.Contains(issue, part) })
		})
		if i < 0 {
			t.Errorf("not refused: %s, which says\n%s", v.file, v.source)
		}
	}
	for _, issue := range issues {
		if !slices.ContainsFunc(all, func(v violation) bool { return strings.HasPrefix(issue, v.file+": ") }) {
			t.Errorf("refused, but nothing is wrong there: %s", issue)
		}
	}
	t.Logf("%d forbidden things, %d complaints, one of them: %s", len(all), len(issues), issues[0])
}

// lint runs the linter with the project's configuration over a module of these files and returns its complaints as
// "file: linter: text".
func lint(t *testing.T, files map[string]string) []string {
	t.Helper()
	linter := os.Getenv("GOLANGCI_LINT")
	if linter == "" {
		t.Skip("GOLANGCI_LINT does not say where the linter is: use make lint-selftest")
	}
	config, err := os.ReadFile(filepath.Join("..", "..", ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, ".golangci.yml", string(config))
	gomod := "module " + module + "\n\ngo 1.26.0\n"
	for mod, pkgs := range foreign {
		version := "v0.0.0"
		if base := path.Base(mod); len(base) > 1 && base[0] == 'v' && base[1] >= '2' && base[1] <= '9' {
			version = base + ".0.0"
		} else if strings.HasSuffix(mod, ".v3") {
			version = "v3.0.0"
		}
		gomod += fmt.Sprintf("\nrequire %s %s\n\nreplace %s => ./foreign/%s\n", mod, version, mod, mod)
		write(t, dir, "foreign/"+mod+"/go.mod", "module "+mod+"\n")
		for _, pkg := range pkgs {
			source := cmp.Or(stubs[mod+"/"+pkg], "package stub\n")
			write(t, dir, path.Join("foreign", mod, pkg, "stub.go"), source)
		}
	}
	write(t, dir, "go.mod", gomod)
	for name, source := range files {
		write(t, dir, name, source)
	}

	cmd := exec.CommandContext(t.Context(), linter, "run", "--enable-only=depguard,forbidigo", "--show-stats=false", "--output.json.path=stdout", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off", "GOPROXY=off")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var report struct {
		Issues []struct {
			FromLinter, Text string
			Pos              struct{ Filename string }
		}
	}
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil {
		t.Fatalf("golangci-lint: %v, %v\n%s%s", err, jsonErr, out, stderr.String())
	}
	if err != nil && len(report.Issues) == 0 {
		t.Fatalf("golangci-lint found nothing and failed: %v\n%s", err, stderr.String())
	}
	issues := make([]string, 0, len(report.Issues))
	for _, i := range report.Issues {
		issues = append(issues, fmt.Sprintf("%s: %s: %s", filepath.ToSlash(i.Pos.Filename), i.FromLinter, i.Text))
	}
	slices.Sort(issues)
	return issues
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	file := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
