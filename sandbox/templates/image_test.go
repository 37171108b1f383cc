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
		must.Golden(t, updating(), "image-"+cloud+".txt", string(out))
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
	for line := range strings.Lines(contents(t, filepath.Join(imageFolder, "prepare.sh"))) {
		if args, ok := strings.CutSuffix(strings.TrimSpace(line), " >/etc/amsagent/config.yaml"); ok {
			out, err := exec.CommandContext(t.Context(), "sh", "-c", args).Output()
			must.OK(t, err)
			return string(out)
		}
	}
	t.Fatal("prepare.sh writes no config.yaml")
	return ""
}

// TestPacker: the recipe's variables are used, the images take no metadata without a token and keep no key, and the commands of
// each builder do what TestImagePlan shows.
func TestPacker(t *testing.T) {
	s := read(t, filepath.Join(imageFolder, "amsagent.pkr.hcl"))
	used(t, s.finds(`^variable "(\w+)"`), s.finds(`\bvar\.(\w+)`))
	cell := `
			source.amazon-ebs.node | encrypt_boot = true | imds_support = "v2.0" | http_tokens = "required" | ssh_clear_authorized_keys = true
			source.alicloud-ecs.node | ssh_clear_authorized_keys = true
			build | sources = ["source.amazon-ebs.node", "source.googlecompute.node", "source.azure-arm.node", "source.alicloud-ecs.node"]
			build | only = ["azure-arm.node"] | inline = ["sudo sh -c 'waagent -force -deprovision+user && sync'"]
			locals | amazon-ebs = "aws" | googlecompute = "gcp" | azure-arm = "azure" | alicloud-ecs = "alibaba"
			all ^source = (.+)\ndestination = (.+)
				=> var.ams "/tmp/ant-media-server.zip"; var.installer "/tmp/install_ant-media-server.sh"; var.agent "/tmp/amsagent.deb"; "${path.root}/prepare.sh" "/tmp/prepare.sh"`
	if lacks := s.lacks(cell); lacks != nil {
		t.Errorf("the recipe: %s", strings.Join(lacks, "\n"))
	}
	prepare, err := filepath.Abs(filepath.Join(imageFolder, "prepare.sh"))
	must.OK(t, err)
	for typ, cloud := range map[string]string{"amazon-ebs": "aws", "googlecompute": "gcp", "azure-arm": "azure", "alicloud-ecs": "alibaba"} {
		commands := s.finds(`^"(.+)",$`)
		if typ == "azure-arm" {
			commands = append(commands, s.finds(`^inline = \["(.+)"\]`)...)
		}
		dir := t.TempDir()
		writeStandIns(t, dir, map[string]string{"sudo": `exec "$@"`, "cloud-init": "exit 1", "waagent": `echo "waagent $*"`, "rm": `echo "rm $*"`})
		script := strings.NewReplacer("sh /tmp/prepare.sh ", "sh '"+prepare+"' --dry-run ", "${local.clouds[source.type]}", cloud).Replace(strings.Join(commands, "\n"))
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
			// As TestImagePlan has it, but for where the files come from.
			for line := range strings.Lines(contents(t, filepath.Join("testdata", "image-"+cloud+".txt"))) {
				if !strings.HasPrefix(line, "get: ") && !strings.Contains(string(out), line) {
					t.Errorf("%s does not %s%s", typ, line, out)
				}
			}
			if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); (typ == "azure-arm") != (lines[len(lines)-1] == "waagent -force -deprovision+user") {
				t.Errorf("%s ends with %s", typ, lines[len(lines)-1])
			}
		}
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

// TestCloudInitRecipe runs the recipe without Packer, and checks it with cloud-init if that is installed.
func TestCloudInitRecipe(t *testing.T) {
	file := filepath.Join(imageFolder, "cloud-init.yaml")
	text := contents(t, file)
	if !strings.HasPrefix(text, "#cloud-config\n") {
		t.Error("cloud-init does not take it for a cloud-config")
	}
	var recipe struct {
		Files []struct {
			Path, Permissions, Content string
		} `yaml:"write_files"`
		Run [][]string `yaml:"runcmd"`
	}
	must.OK(t, yaml.Unmarshal([]byte(text), &recipe))
	if len(recipe.Files) != 1 || len(recipe.Run) != 1 || len(recipe.Run[0]) != 3 {
		t.Fatalf("%+v", recipe)
	}
	// Run as it stands, with values of our own, and stand-ins for what fetches and what prepares.
	dir := t.TempDir()
	writeStandIns(t, dir, map[string]string{
		"curl":      `while [ "$1" != -o ]; do shift; done; cp "$HERE/prepare.sh" "$2"`,
		"systemctl": `echo "systemctl $*"`,
	})
	prepare := contents(t, filepath.Join(imageFolder, "prepare.sh"))
	must.OK(t, os.WriteFile(filepath.Join(dir, "prepare.sh"), []byte(prepare), 0o644))
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
