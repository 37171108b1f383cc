// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/programs"
)

// guideCommand is a line of a guide for the operator to type.
type guideCommand struct {
	file string
	line int
	text string
}

func guideCommands(t *testing.T) []guideCommand {
	t.Helper()
	files, err := filepath.Glob("../../docs/guides/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no guides (%v)", err)
	}
	files = append(files, "../../packaging/image/README.md", "../../packaging/image/mongodb/README.md")
	var out []guideCommand
	for _, file := range files {
		lines := strings.Split(contents(t, file), "\n")
		fenced := false // files and scripts
		for i := 0; i < len(lines); i++ {
			if strings.HasPrefix(lines[i], "```") {
				fenced = !fenced
			}
			text, ok := strings.CutPrefix(lines[i], "    ")
			if !ok || fenced || strings.HasPrefix(text, " ") {
				continue
			}
			c := guideCommand{file: file, line: i + 1, text: text}
			for strings.HasSuffix(c.text, `\`) && i+1 < len(lines) {
				i++
				c.text = strings.TrimSuffix(c.text, `\`) + strings.TrimSpace(lines[i])
			}
			out = append(out, c)
		}
	}
	return out
}

// words splits a command as a shell does, which is asked for it.
func (c guideCommand) words(t *testing.T) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "-fc", `run() { printf '%s\n' "$@"; }; `+"run "+strings.ReplaceAll(c.text, "$(", "(SUBST ")+"").Output()
	if err != nil {
		// A quoted substitution is a single word.
		out, err = exec.CommandContext(t.Context(), "sh", "-fc", `run() { printf '%s\n' "$@"; }; run `+regexp.MustCompile(`"\$\([^)]*\)"`).ReplaceAllString(c.text, "SUBST")).Output()
	}
	if err != nil {
		t.Errorf("%s:%d: no command of a shell: %s", c.file, c.line, c.text)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// TestGuideCommands reads every command in the guides: files and folders that they
// name are there, and so are the flags, variables and parameters.
func TestGuideCommands(t *testing.T) {
	t.Parallel()
	agent, err := programs.Agent(t.Context(), t.TempDir())
	must.OK(t, err)
	seen := map[string]int{}
	var aws [][]string
	for _, c := range guideCommands(t) {
		fail := func(format string, args ...any) {
			t.Errorf("%s:%d: %s: %s", c.file, c.line, c.text, fmt.Sprintf(format, args...))
		}
		words := c.words(t)
		if words[0] == "sudo" {
			words = words[1:]
		}
		seen[words[0]]++
		for _, w := range words {
			// A file of ours, wherever it stands.
			if strings.HasPrefix(w, "packaging/") || strings.HasPrefix(w, "docs/") {
				if _, err := os.Stat(filepath.Join("../..", w)); err != nil {
					fail("%v", err)
				}
			}
		}
		switch words[0] {
		case "amsagent":
			checkAgentCommand(t, agent, words, fail)
		case "./install.sh", "amsagent-mongodb":
			checkInstall(t, words, fail)
		case "ansible-playbook":
			if !slices.Contains(words, strings.TrimPrefix(rollingPlay, "../../")) {
				fail("another play")
			}
		case "make":
			if !strings.Contains(contents(t, "../../Makefile"), "\n"+words[1]+":") {
				fail("no such target")
			}
		case "packer":
			checkVariables(t, filepath.Join(imageFolder, "amsagent.pkr.hcl"), words, fail)
		case "tofu", "terraform":
			dir := ""
			for _, w := range words {
				if d, ok := strings.CutPrefix(w, "-chdir="); ok {
					dir = d
				}
			}
			checkVariables(t, filepath.Join("../..", dir, "variables.tf"), words, fail)
		case "gcloud":
			// Its own words are nowhere to be had for comparing; what it runs on a node is ours.
			if i := slices.Index(words, "--command"); i >= 0 {
				remote := strings.Fields(strings.TrimPrefix(words[i+1], "sudo "))
				if remote[0] != "amsagent" {
					fail("no check for %q", remote)
				} else {
					checkAgentCommand(t, agent, remote, fail)
				}
			}
		case "az":
			checkAzureCommand(t, words, fail)
			for i, w := range words {
				if w == "--scripts" {
					checkRemote(t, agent, words[i+1], fail)
				}
			}
		case "aws":
			checkAWSCommand(t, words, fail)
			aws = append(aws, words[1:])
		case "aliyun":
			checkAliyunCommand(t, words, fail)
			if i := slices.Index(words, "--CommandContent"); i >= 0 {
				checkRemote(t, agent, words[i+1], fail)
			}
		default:
			fail("no check for the command %s", words[0])
		}
	}
	awsTakes(t, aws)
	for _, name := range []string{"aliyun", "ansible-playbook", "aws", "az", "packer", "tofu", "amsagent", "make", "./install.sh"} {
		if seen[name] == 0 {
			t.Errorf("no command %s was found: is the page read at all?", name)
		}
	}
}

// TestQuickStart holds the commands of the README's quick start to the recipe in the guide.
func TestQuickStart(t *testing.T) {
	read := func(file string) string {
		return contents(t, filepath.Join("../..", file))
	}
	guide := read("docs/guides/aws.md")
	_, section, _ := strings.Cut(read("README.md"), "\n## Quick start")
	section, _, _ = strings.Cut(section, "\n## ")
	commands := 0
	for line := range strings.Lines(section) {
		if text, ok := strings.CutPrefix(line, "        "); ok {
			commands++
			if !strings.Contains(guide, text) {
				t.Errorf("docs/guides/aws.md lacks %q", text)
			}
		}
	}
	if commands == 0 {
		t.Error("the quick start of README.md has no commands")
	}
}

// checkRemote: what a cloud runs on one of our machines.
func checkRemote(t *testing.T, agent, command string, fail func(string, ...any)) {
	t.Helper()
	switch remote := strings.Fields(command); remote[0] {
	case "amsagent":
		checkAgentCommand(t, agent, remote, fail)
	case "amsagent-mongodb":
		checkInstall(t, remote, fail)
	default:
		fail("no check for %q", remote)
	}
}

var aliyunParameter = regexp.MustCompile(`^--Parameters\.(\d+)\.Parameter(Key|Value)$`)

// checkAliyunCommand: parameters are the template's, each with a number of its own and a value that it takes, and those without
// a default are all given where a stack is made. The words of aliyun itself are nowhere to be had for comparing.
func checkAliyunCommand(t *testing.T, words []string, fail func(string, ...any)) {
	t.Helper()
	if len(words) < 3 {
		fail("no product or no operation")
		return
	}
	if words[1] == "oss" {
		if words[2] != "cp" || !strings.HasSuffix(words[4], "/"+filepath.Base(words[3])) {
			fail("the template gets another name")
		}
		return
	}
	if !slices.Contains(words, "--RegionId") {
		fail("no region")
	}
	for i, w := range words[3:] {
		if strings.HasPrefix(w, "--") == (i%2 == 1) {
			fail("%s is out of place: each flag has one value", w)
		}
	}
	if words[1] != "ros" || words[2] != "CreateStack" && words[2] != "UpdateStack" {
		return
	}
	if i := slices.Index(words, "--TemplateURL"); i < 0 || !strings.HasSuffix(words[i+1], "/"+filepath.Base(alibabaROS)) {
		fail("the template is another one")
	}
	numbered := map[string]map[string]string{}
	for i, w := range words {
		if m := aliyunParameter.FindStringSubmatch(w); m != nil && i+1 < len(words) {
			if numbered[m[1]] == nil {
				numbered[m[1]] = map[string]string{}
			}
			numbered[m[1]][m[2]] = words[i+1]
		} else if strings.HasPrefix(w, "--Parameters") {
			fail("%s is no parameter", w)
		}
	}
	var template struct {
		Parameters map[string]struct {
			Default any    `yaml:"Default"`
			Pattern string `yaml:"AllowedPattern"`
		} `yaml:"Parameters"`
	}
	must.OK(t, yaml.Unmarshal([]byte(contents(t, alibabaROS)), &template))
	given := map[string]bool{}
	for i := 1; i <= len(numbered); i++ {
		p := numbered[strconv.Itoa(i)]
		name, value := p["Key"], p["Value"]
		known, ok := template.Parameters[name]
		if !ok || value == "" || given[name] {
			fail("the parameter %d is %q", i, p)
		}
		given[name] = true
		if !regexp.MustCompile(known.Pattern).MatchString(value) {
			fail("%s does not take %s", name, value)
		}
	}
	for name, p := range template.Parameters {
		if p.Default == nil && !given[name] && words[2] == "CreateStack" {
			fail("the parameter %s is not given", name)
		}
	}
}

func checkInstall(t *testing.T, words []string, fail func(string, ...any)) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), install, "--help").Output()
	if err != nil {
		fail("install.sh: %v", err)
	}
	for _, w := range words[1:] {
		if strings.HasPrefix(w, "--") && !strings.Contains(string(out), w+" ") {
			fail("install.sh has no %s", w)
		}
	}
}

// checkAzureCommand: parameters are the template's, and those without a default are
// all given. The words of az itself are nowhere to be had for comparing.
func checkAzureCommand(t *testing.T, words []string, fail func(string, ...any)) {
	t.Helper()
	if strings.Join(words[:min(4, len(words))], " ") != "az deployment group create" {
		return
	}
	parameters := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^param (\w+) \w+( =)?`).FindAllStringSubmatch(contents(t, azureBicep), -1) {
		parameters[m[1]] = m[2]
	}
	given := map[string]bool{}
	for _, w := range words[slices.Index(words, "--parameters")+1:] {
		name, _, _ := strings.Cut(w, "=")
		given[name] = true
		if _, ok := parameters[name]; !ok {
			fail("the template has no parameter %s", name)
		}
	}
	for name, value := range parameters {
		if value == "" && !given[name] {
			fail("the parameter %s is not given", name)
		}
	}
}

func checkAgentCommand(t *testing.T, agent string, words []string, fail func(string, ...any)) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), agent, words[1], "--help").Output()
	if err != nil {
		fail("amsagent %s: %v", words[1], err)
	}
	for _, w := range words[2:] {
		flag, _, _ := strings.Cut(w, "=")
		if strings.HasPrefix(flag, "--") && !strings.Contains(string(out), flag+" ") {
			fail("amsagent %s has no %s", words[1], flag)
		}
	}
}

// checkVariables: -var NAME=… names a variable of the file, and those without a default are all given.
func checkVariables(t *testing.T, file string, words []string, fail func(string, ...any)) {
	t.Helper()
	text := contents(t, file)
	given := map[string]bool{}
	for i, w := range words {
		if w == "-var" && i+1 < len(words) {
			name, _, _ := strings.Cut(words[i+1], "=")
			given[name] = true
			if !strings.Contains(text, `variable "`+name+`" {`) {
				fail("%s has no variable %s", file, name)
			}
		}
	}
	if !slices.Contains(words, "build") && !slices.Contains(words, "apply") && !slices.Contains(words, "destroy") {
		return
	}
	for _, m := range regexp.MustCompile(`(?s)variable "(\w+)" \{\n(.*?)\n\}`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(m[2], " default ") && !given[m[1]] {
			fail("the variable %s is not given", m[1])
		}
	}
}

// checkAWSCommand: parameters are the template's.
func checkAWSCommand(t *testing.T, words []string, fail func(string, ...any)) {
	t.Helper()
	i := slices.Index(words, "--parameter-overrides")
	if i < 0 {
		return
	}
	for _, w := range words[i+1:] {
		if name, _, ok := strings.Cut(w, "="); ok && !strings.Contains(contents(t, awsCloudFormation), "\n  "+name+":\n") {
			fail("the template has no parameter %s", name)
		}
	}
}

// awsTakes: where version 1 of the command is installed it takes the words (it reads no credentials to show its own skeleton). One
// process reads all of them, since each takes a second to start. `deploy`, which is several calls of the API, has no skeleton.
func awsTakes(t *testing.T, commands [][]string) {
	t.Helper()
	if exec.CommandContext(t.Context(), "python3", "-c", "import awscli").Run() != nil {
		t.Log("aws is not installed: its own words are not checked")
		return
	}
	commands = append(slices.DeleteFunc(commands, func(c []string) bool { return c[1] == "deploy" }), []string{"elbv2", "describe-target-health", "--target", "x"})
	in, err := json.Marshal(commands)
	must.OK(t, err)
	cmd := exec.CommandContext(t.Context(), "python3", "-c", `import contextlib, json, sys
from awscli.clidriver import create_clidriver
driver, refused = create_clidriver(), []
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(sys.stderr):
        try: code = driver.main(words + ['--generate-cli-skeleton', 'input'])
        except SystemExit as e: code = e.code
    if code: refused.append(words)
json.dump(refused, sys.stdout)`)
	cmd.Env = append(os.Environ(), "AWS_EC2_METADATA_DISABLED=true")
	var said bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &said
	out, err := cmd.Output()
	must.OK(t, err)
	var refused [][]string
	must.OK(t, json.Unmarshal(out, &refused))
	// It can say no.
	must.NoDiff(t, "aws refuses, and says\n"+said.String(), refused, commands[len(commands)-1:])
}
