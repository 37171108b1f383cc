// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
)

const (
	imageFolder = "../../packaging/image"
	aSum        = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
)

// TestImagePlan: what prepare.sh would do on each cloud.
func TestImagePlan(t *testing.T) {
	for _, cloud := range []string{"aws", "gcp", "azure", "alibaba", "none"} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(imageFolder, "prepare.sh"), "--dry-run", "--cloud", cloud, "--ams", "https://example.com/ams.zip",
			"--ams-sha256", aSum, "--installer", "/root/install.sh", "--agent", "/root/amsagent.deb").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		golden(t, "image-"+cloud+".txt", string(out))
		lines := strings.Split(string(out), "\n")
		// Nothing that the server writes may come after the seal.
		if stop, seal := slices.Index(lines, "run: systemctl stop antmedia"), slices.Index(lines, "run: amsagent seal --yes"); stop < 0 || seal != stop+1 {
			t.Errorf("%s: stopped in line %d, sealed in line %d", cloud, stop, seal)
		}
	}
}

func TestImageRefuses(t *testing.T) {
	here := []string{"--cloud", "aws", "--ams", "/etc/hostname", "--installer", "/etc/hostname", "--agent", "/etc/hostname", "--dry-run"}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"no cloud", []string{"--cloud", "moon"}, "--cloud"},
		{"nothing", []string{"--cloud", "aws"}, "--ams is missing"},
		{"no sum", append(slices.Clone(here), "--ams", "https://example.com/x.zip"), "--ams-sha256"},
		{"in the clear", append(slices.Clone(here), "--agent", "http://example.com/x.deb", "--agent-sha256", aSum), "https, or a file"},
		{"half a sum", append(slices.Clone(here), "--agent-sha256", aSum[:32]), "64 digits"},
		{"no such file", []string{"--cloud", "aws", "--ams", "/nowhere"}, "cannot be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), filepath.Join(imageFolder, "prepare.sh"), tt.args...).CombinedOutput()
			if exitCode(err) != 2 || !strings.Contains(string(out), tt.want) {
				t.Errorf("exit %d, want 2 and %q:\n%s", exitCode(err), tt.want, out)
			}
		})
	}
}

// imageConfig is the config.yaml of an image.
func imageConfig(t *testing.T) string {
	t.Helper()
	script, err := os.ReadFile(filepath.Join(imageFolder, "prepare.sh"))
	must.OK(t, err)
	for line := range strings.Lines(string(script)) {
		if args, ok := strings.CutSuffix(strings.TrimSpace(line), " >/etc/amsagent/config.yaml"); ok {
			out, err := exec.CommandContext(t.Context(), "sh", "-c", args).Output()
			must.OK(t, err)
			return string(out)
		}
	}
	t.Fatal("prepare.sh writes no config.yaml")
	return ""
}

// TestPacker reads the recipe: every reference leads to something, every variable
// is used, what is uploaded is what prepare.sh is told, and secrets have no place.
func TestPacker(t *testing.T) {
	parser := hclparse.NewParser()
	parsed, diags := parser.ParseHCLFile(filepath.Join(imageFolder, "amsagent.pkr.hcl"))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	declared, used := map[string]bool{}, map[string]bool{}
	locals, plugins := map[string]cty.Value{}, map[string]bool{}
	sources := map[string]*hclsyntax.Body{}
	body := parsed.Body.(*hclsyntax.Body)
	var build *hclsyntax.Body
	for _, b := range body.Blocks {
		switch b.Type {
		case "variable":
			declared["var."+b.Labels[0]] = true
			if b.Body.Attributes["description"] == nil {
				t.Errorf("the variable %s has no description", b.Labels[0])
			}
		case "locals":
			for name, a := range b.Body.Attributes {
				declared["local."+name] = true
				if v, diags := a.Expr.Value(nil); !diags.HasErrors() {
					locals[name] = v
				}
			}
		case "source":
			declared["source."+strings.Join(b.Labels, ".")] = true
			sources[b.Labels[0]] = b.Body
		case "build":
			build = b.Body
		case "packer":
			for name := range b.Body.Blocks[0].Body.Attributes {
				plugins[name] = true
			}
		default:
			t.Errorf("a block %s", b.Type)
		}
		diags := hclsyntax.VisitAll(b.Body, func(node hclsyntax.Node) hcl.Diagnostics {
			if e, ok := node.(*hclsyntax.ScopeTraversalExpr); ok {
				used[traversal(e.Traversal)] = true
			}
			return nil
		})
		if diags.HasErrors() {
			t.Fatal(diags)
		}
	}
	for _, e := range build.Attributes["sources"].Expr.(*hclsyntax.TupleConsExpr).Exprs {
		v, diags := e.Value(nil)
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		used[v.AsString()] = true
	}
	for name := range used {
		if !declared[name] && name != "path.root" && name != "source.type" && name != "string" {
			t.Errorf("%s is not there", name)
		}
	}
	for name := range declared {
		if !used[name] {
			t.Errorf("nobody uses %s", name)
		}
	}
	b, err := os.ReadFile(filepath.Join(imageFolder, "amsagent.pkr.hcl"))
	must.OK(t, err)
	text := string(b)
	for _, name := range []string{"ant-media-server.zip", "install_ant-media-server.sh", "amsagent.deb", "prepare.sh"} {
		if strings.Count(text, `destination = "/tmp/`+name+`"`) != 1 || !strings.Contains(text, " /tmp/"+name) {
			t.Errorf("%s is not uploaded and used", name)
		}
	}
	for _, want := range []string{"encrypt_boot = true", `http_tokens                 = "required"`, `imds_support = "v2.0"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the image has no %s", want)
		}
	}

	// What each builder needs to know, and by which plugin it comes; the words of the plugins' pages.
	for typ, want := range map[string]struct{ plugin, cloud, attributes string }{
		"amazon-ebs":    {"amazon", "aws", "ami_name instance_type region ssh_clear_authorized_keys ssh_username"},
		"googlecompute": {"googlecompute", "gcp", "image_name machine_type project_id source_image_family source_image_project_id ssh_username zone"},
		"azure-arm": {
			"azure", "azure",
			"image_offer image_publisher image_sku location managed_image_name managed_image_resource_group_name os_type use_azure_cli_auth vm_size",
		},
		"alicloud-ecs": {"alicloud", "alibaba", "image_name instance_type internet_charge_type io_optimized region source_image ssh_clear_authorized_keys ssh_username"},
	} {
		if sources[typ] == nil || !plugins[want.plugin] {
			t.Errorf("%s is not there (%v), or its plugin is not", typ, sources[typ])
			continue
		}
		for _, name := range strings.Fields(want.attributes) {
			if sources[typ].Attributes[name] == nil {
				t.Errorf("%s has no %s", typ, name)
			}
		}
		// The commands of each, with what they are about put in its place: prepare.sh says what it would do.
		context := &hcl.EvalContext{Variables: map[string]cty.Value{
			"local": cty.ObjectVal(locals), "source": cty.ObjectVal(map[string]cty.Value{"type": cty.StringVal(typ)}),
		}}
		var commands []string
		for _, p := range build.Blocks {
			only := strs(goList(t, p.Body.Attributes["only"], nil))
			if p.Labels[0] == "shell" && (len(only) == 0 || slices.Contains(only, typ+".node")) {
				commands = append(commands, strs(goList(t, p.Body.Attributes["inline"], context))...)
			}
		}
		dir := t.TempDir()
		for name, body := range map[string]string{"sudo": `exec "$@"`, "cloud-init": "exit 1", "waagent": `echo "waagent $*"`, "rm": `echo "rm $*"`} {
			must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755))
		}
		prepare, err := filepath.Abs(filepath.Join(imageFolder, "prepare.sh"))
		must.OK(t, err)
		script := strings.Replace(strings.Join(commands, "\n"), "sh /tmp/prepare.sh ", "sh '"+prepare+"' --dry-run ", 1)
		for _, root := range []bool{false, true} {
			if root && typ != "azure-arm" {
				// Where Packer is root there may be no sudo.
				must.OK(t, os.Remove(filepath.Join(dir, "sudo")))
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-euc", script)
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+withoutSudo(t))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%s: %v\n%s", typ, err, out)
			}
			golden, err := os.ReadFile(filepath.Join("testdata", "image-"+want.cloud+".txt"))
			must.OK(t, err)
			// As TestImagePlan has it, but for where the files come from.
			for line := range strings.Lines(string(golden)) {
				if !strings.HasPrefix(line, "get: ") && !strings.Contains(string(out), line) {
					t.Errorf("%s does not %s%s", typ, line, out)
				}
			}
			if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); (typ == "azure-arm") != (lines[len(lines)-1] == "waagent -force -deprovision+user") {
				t.Errorf("%s ends with %s", typ, lines[len(lines)-1])
			}
		}
	}
	if len(sources) != 4 {
		t.Errorf("%d sources", len(sources))
	}
}

// withoutSudo is a folder with the programs that the commands need, and no sudo.
func withoutSudo(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"sh", "sync", "true", "cat", "echo", "id", "env"} {
		path, err := exec.LookPath(name)
		must.OK(t, err)
		must.OK(t, os.Symlink(path, filepath.Join(dir, name)))
	}
	return dir
}

// goList is a list of texts in HCL.
func goList(t *testing.T, a *hclsyntax.Attribute, context *hcl.EvalContext) any {
	t.Helper()
	if a == nil {
		return nil
	}
	v, diags := a.Expr.Value(context)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	out := []any{}
	for _, e := range v.AsValueSlice() {
		out = append(out, e.AsString())
	}
	return out
}

// TestCloudInitRecipe reads the recipe without Packer, and has cloud-init look at it where that is installed.
func TestCloudInitRecipe(t *testing.T) {
	file := filepath.Join(imageFolder, "cloud-init.yaml")
	b, err := os.ReadFile(file)
	must.OK(t, err)
	if !strings.HasPrefix(string(b), "#cloud-config\n") {
		t.Error("cloud-init does not take it for a cloud-config")
	}
	var recipe struct {
		Files []struct {
			Path, Permissions, Content string
		} `yaml:"write_files"`
		Run [][]string `yaml:"runcmd"`
	}
	must.OK(t, yaml.Unmarshal(b, &recipe))
	if len(recipe.Files) != 1 || len(recipe.Run) != 1 || len(recipe.Run[0]) != 3 {
		t.Fatalf("%+v", recipe)
	}
	// Run as it stands, with values of our own, and stand-ins for what fetches and what prepares.
	dir := t.TempDir()
	for name, body := range map[string]string{
		"curl":      `while [ "$1" != -o ]; do shift; done; cp "$HERE/prepare.sh" "$2"`,
		"systemctl": `echo "systemctl $*"`,
	} {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	}
	prepare, err := os.ReadFile(filepath.Join(imageFolder, "prepare.sh"))
	must.OK(t, err)
	must.OK(t, os.WriteFile(filepath.Join(dir, "prepare.sh"), prepare, 0o644))
	sum, err := exec.CommandContext(t.Context(), "sha256sum", filepath.Join(dir, "prepare.sh")).Output()
	must.OK(t, err)
	zeros := strings.Repeat("0", 64)
	for _, good := range []bool{true, false} {
		env := strings.ReplaceAll(strings.Replace(recipe.Files[0].Content, "PREPARE_SHA256="+zeros, "PREPARE_SHA256="+string(sum[:64]), 1), zeros, aSum)
		if !good {
			env = strings.Replace(env, string(sum[:64]), aSum, 1)
		}
		must.OK(t, os.WriteFile(filepath.Join(dir, "image.env"), []byte(env), 0o600))
		script := strings.NewReplacer("/run/amsagent-image.env", dir+"/image.env", "/run/prepare.sh", dir+"/got.sh", `--cloud "$CLOUD"`, `--dry-run --cloud "$CLOUD"`).
			Replace(recipe.Run[0][2])
		cmd := exec.CommandContext(t.Context(), recipe.Run[0][0], recipe.Run[0][1], script)
		cmd.Env = append(os.Environ(), "HERE="+dir, "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		sealed, off := strings.Contains(string(out), "run: amsagent seal --yes\n"), strings.Contains(string(out), "systemctl --no-block poweroff\n")
		if good != (err == nil) || sealed != good || off != good {
			t.Errorf("the right file: %v; sealed %v, off %v, %v\n%s", good, sealed, off, err, out)
		}
	}
	if _, err := exec.LookPath("cloud-init"); err != nil {
		t.Skip("cloud-init is not installed: it does not look at the recipe")
	}
	if out, err := exec.CommandContext(t.Context(), "cloud-init", "schema", "--config-file", file).CombinedOutput(); err != nil {
		t.Errorf("cloud-init schema: %v\n%s", err, out)
	}
}

// traversal is a reference as it is written, without indexes: a source's and a
// variable's name is two words.
func traversal(tr hcl.Traversal) string {
	words := []string{tr.RootName()}
	for _, step := range tr[1:] {
		if a, ok := step.(hcl.TraverseAttr); ok {
			words = append(words, a.Name)
		}
	}
	return strings.Join(words, ".")
}
