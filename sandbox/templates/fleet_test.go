// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/programs"
)

const (
	rollingPlay      = "../../packaging/examples/ansible/rolling-upgrade.yml"
	rollingGuide     = "../../docs/guides/rolling-upgrade.md"
	autoscalingGuide = "../../docs/guides/autoscaling.md"
)

// TestRollingPlay reads the Ansible play: it stops at the first node that fails, runs commands of the agent with flags that there
// are, in this order, and each of its variables has a value in the play or in the guide.
func TestRollingPlay(t *testing.T) {
	t.Parallel()
	text := contents(t, rollingPlay)
	var plays []struct {
		Hosts  string            `yaml:"hosts"`
		Serial int               `yaml:"serial"`
		Most   *int              `yaml:"max_fail_percentage"`
		Order  string            `yaml:"order"`
		Vars   map[string]string `yaml:"vars"`
		Tasks  []map[string]any  `yaml:"tasks"`
	}
	must.OK(t, yaml.Unmarshal([]byte(text), &plays))
	if len(plays) != 1 {
		t.Fatalf("%d plays", len(plays))
	}
	play := plays[0]
	if play.Hosts != "ams" || play.Serial != 1 || play.Most == nil || *play.Most != 0 || play.Order != "inventory" {
		t.Errorf("the play does not stop at the first node that fails, or begins with another: %+v", play)
	}
	agent, err := programs.Agent(t.Context(), t.TempDir())
	must.OK(t, err)
	variable := regexp.MustCompile(`\{\{ (\w+) \}\}`)
	var ran []string
	for _, task := range play.Tasks {
		command, ok := task["ansible.builtin.command"].(string)
		switch {
		case !ok && task["ansible.builtin.meta"] == nil && task["ansible.builtin.pause"] == nil:
			t.Errorf("an unexpected task: %v", task)
		case !ok:
		case strings.HasPrefix(command, "amsagent "):
			words := strings.Fields(variable.ReplaceAllString(command, ""))
			checkAgentCommand(t, agent, words, func(format string, args ...any) { t.Errorf(command+": "+format, args...) })
			ran = append(ran, words[1])
		default:
			ran = append(ran, command)
		}
		if task["ignore_errors"] != nil {
			t.Errorf("%v goes on after an error", task["name"])
		}
	}
	must.NoDiff(t, "commands", ran, []string{"status", "drain", "{{ ams_install }}", "join", "status", "status"})
	given := map[string]string{}
	for _, block := range blocks(t, rollingGuide, "yaml") {
		must.OK(t, yaml.Unmarshal([]byte(block), &given))
	}
	for _, m := range variable.FindAllStringSubmatch(text, -1) {
		_, inPlay := play.Vars[m[1]]
		_, inGuide := given[m[1]]
		if inPlay == inGuide {
			t.Errorf("%s: in the play %v, in the guide's file %v", m[1], inPlay, inGuide)
		}
	}
	for name := range play.Vars {
		if !strings.Contains(contents(t, rollingGuide), "\n| `"+name+"` |") {
			t.Errorf("the guide has no row for %s", name)
		}
	}
	if ansible, err := exec.LookPath("ansible-playbook"); err == nil {
		cmd := exec.CommandContext(t.Context(), ansible, "--syntax-check", "-i", "localhost,", rollingPlay)
		cmd.Env = append(os.Environ(), "LANG=C.UTF-8", "HOME="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// blocks are the fenced blocks of a language in a page.
func blocks(t *testing.T, page, language string) (out []string) {
	t.Helper()
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(contents(t, page), -1) {
		out = append(out, m[1])
	}
	if len(out) == 0 {
		t.Fatalf("%s has no block of %s", page, language)
	}
	return out
}

// protectScripts are the guide's scripts that protect busy nodes, with a file of their own in the place of /run/amsagent-protect.
func protectScripts(t *testing.T, dir string) (aws, alibaba string) {
	t.Helper()
	sh := blocks(t, autoscalingGuide, "sh")
	if len(sh) != 2 {
		t.Fatalf("%d scripts", len(sh))
	}
	count, _, ok := strings.Cut(sh[0], "protect=")
	if !ok {
		t.Fatal("the first script has no line protect=")
	}
	for name, text := range map[string]string{"aws": sh[0], "aliyun": count + sh[1]} {
		must.OK(t, os.WriteFile(filepath.Join(dir, "protect-"+name), []byte(strings.ReplaceAll(text, "/run/amsagent-protect", dir+"/protected")), 0o755))
	}
	return filepath.Join(dir, "protect-aws"), filepath.Join(dir, "protect-aliyun")
}

// Sessions of a node as `amsagent status -o json` has them.
const (
	idleNode    = `{"daemon":{"sessions":{"publishers":0,"viewers":0,"counted_by":"ams","publishers_counted_by":"ams"}}}`
	busyNode    = `{"daemon":{"sessions":{"publishers":0,"viewers":7,"counted_by":"connections","publishers_counted_by":"mongodb"}}}`
	unknownNode = `{"daemon":{"sessions":{"publishers":0}}}`
)

// agentStandIn writes a program amsagent that knows its machine and its sessions.
func agentStandIn(t *testing.T, dir, id, group, region string) {
	t.Helper()
	script := `#!/bin/sh
case $1 in
status) cat "` + dir + `/status" ;;
metadata) echo '{"instance":{"id":"` + id + `","group":"` + group + `","region":"` + region + `"}}' ;;
esac
`
	must.OK(t, os.WriteFile(filepath.Join(dir, "amsagent"), []byte(script), 0o755))
}

// TestProtectScripts runs the guide's scripts with stand-ins: only a node that is known to be idle loses its protection, and
// a call that failed is repeated.
func TestProtectScripts(t *testing.T) {
	t.Parallel()
	needs(t, "jq")
	statuses := []struct {
		name, status string
		protected    bool
	}{
		{"busy", busyNode, true},
		{"idle", idleNode, false},
		{"a publisher", `{"daemon":{"sessions":{"publishers":1,"viewers":0}}}`, true},
		{"unknown viewers", unknownNode, true},
		{"another node fetches a stream", strings.Replace(idleNode, `"viewers":0,`, `"viewers":0,"peers":1,`, 1), true},
		{"publishers by connections", strings.Replace(idleNode, `"publishers_counted_by":"ams"`, `"publishers_counted_by":"connections"`, 1), true},
		{"no daemon", `{"member":true}`, true},
		{"no answer", "", true},
		{"garbage", "no JSON", true},
	}
	for _, cloud := range []struct{ program, yes, no string }{
		{
			"aws", "autoscaling set-instance-protection --region eu-west-1 --instance-ids i-1 --auto-scaling-group-name edge --protected-from-scale-in",
			"autoscaling set-instance-protection --region eu-west-1 --instance-ids i-1 --auto-scaling-group-name edge --no-protected-from-scale-in",
		},
		{
			"aliyun", "ess SetInstancesProtection --RegionId eu-west-1 --InstanceId.1 i-1 --ScalingGroupId edge --ProtectedFromScaleIn true",
			"ess SetInstancesProtection --RegionId eu-west-1 --InstanceId.1 i-1 --ScalingGroupId edge --ProtectedFromScaleIn false",
		},
	} {
		for _, s := range statuses {
			t.Run(cloud.program+" "+s.name, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				protectScripts(t, dir)
				agentStandIn(t, dir, "i-1", "edge", "eu-west-1")
				must.OK(t, os.WriteFile(filepath.Join(dir, "status"), []byte(s.status), 0o600))
				// The first call is refused.
				must.OK(t, os.WriteFile(filepath.Join(dir, cloud.program), []byte("#!/bin/sh\necho \"$*\" >>"+dir+"/calls\n[ \"$(wc -l <"+dir+"/calls)\" -gt 1 ]\n"), 0o755))
				for range 3 {
					cmd := exec.CommandContext(t.Context(), "sh", filepath.Join(dir, "protect-"+cloud.program))
					cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
					_ = cmd.Run() // the first fails
				}
				call := cloud.no
				if s.protected {
					call = cloud.yes
				}
				must.NoDiff(t, "calls", lines(contents(t, filepath.Join(dir, "calls"))), []string{call, call})
			})
		}
	}
}
