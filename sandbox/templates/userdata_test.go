// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/internal/programs"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// joining is the user data by which the nodes of a template join.
type joining struct {
	name, cloud, data string
	// cli is the program of the cloud that reads the secret, and args what it has to be called with.
	cli  string
	args string
	// before is what it is called with before, each time, and token what it answers to that: then args has it on the
	// standard input, as a header.
	before, token string
	// role is what the template says to the machine in its metadata, by the name that the agent reads there.
	role string
}

func joinings(t *testing.T) []joining {
	t.Helper()
	var out []joining
	data := awsUserData(t, "edge")
	must.NoDiff(t, "user data of the module", awsTerraformNode(t), data)
	out = append(out, joining{
		name: "cloudformation", cloud: "aws", data: data, cli: "aws", role: "edge",
		args: "secretsmanager get-secret-value --region REGION --secret-id SECRET --query SecretString --output text",
	}, joining{
		name: "gcp terraform", cloud: "gcp", data: gcpNode(t), cli: "gcloud", role: "edge", args: "secrets versions access latest --project PROJECT --secret SECRET",
	})
	out = append(out, joining{
		name: "azure", cloud: "azure", data: azureNode(t, "edge"), cli: "curl", role: "edge",
		before: "-fsS --noproxy * -H Metadata: true " + azureIdentityURL("ams-edge"), token: "T0K3N",
		args: "-fsS -H @- https://" + azureVaultHost + "/secrets/mongo?api-version=7.4",
	})
	ros := rosUserData(t, "edge")
	role := alibaba.ParseUserData([]byte(ros))["amsagent-role"] // TestROS has the tag
	// The program is ours: TestAlibabaSecret runs it.
	out = append(out, joining{name: "alibaba", cloud: "alibaba", data: ros, cli: "amsagent-secret", role: role, args: "get ams-mongo"})
	return out
}

// userData are all that the templates and recipes give to machines for their first boot.
func userData(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{
		"image recipe": contents(t, filepath.Join(imageFolder, "cloud-init.yaml")), "mongo of aws terraform": awsTerraformMongo(t), "mongo of gcp terraform": gcpMongo(t), "mongo of azure": azureMongo(t),
	}
	for _, role := range []string{"mongo", "origin", "edge"} {
		out[role+" of cloudformation"], out[role+" of alibaba"] = awsUserData(t, role), rosUserData(t, role)
	}
	for _, role := range []string{"origin", "edge"} {
		out[role+" of aws terraform"], out[role+" of gcp terraform"], out[role+" of azure"] = awsTerraformNode(t), gcpNode(t), azureNode(t, role)
	}
	return out
}

// scripts are those of them that a shell runs.
func scripts(t *testing.T) map[string]string {
	t.Helper()
	out := userData(t)
	delete(out, "image recipe")
	return out
}

// TestCloudInitTakesUserData asks cloud-init itself what each of them is, and has it look at those that it would read: a
// cloud-config by its schema. A script it hands on as it came, which is shown here, and TestScriptsParse reads it.
func TestCloudInitTakesUserData(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("cloud-init")
	if err != nil {
		t.Skip("cloud-init is not installed: it does not look at the user data")
	}
	first, _, _ := strings.Cut(contents(t, tool), "\n")
	python := strings.Fields(strings.TrimPrefix(first, "#!"))
	// All at once: the interpreter is slow to start.
	all := userData(t)
	const nonsense, broken = "nonsense", "broken"
	all[nonsense], all[broken] = "until true; do :; done\n", "#cloud-config\nruncmd: 5\n"
	in, err := json.Marshal(all)
	must.OK(t, err)
	cmd := exec.CommandContext(t.Context(), python[0], append(python[1:], "-c", `import json, sys
from cloudinit.user_data import UserDataProcessor
def parts(data):
    return [(p.get_content_type(), p.get_payload(decode=True).decode()) for p in UserDataProcessor(None).process(data.encode()).walk()
            if p.get_content_maintype() != 'multipart']
json.dump({name: parts(data) for name, data in json.load(sys.stdin).items()}, sys.stdout)
`)...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cloud-init's own code: %v", err)
	}
	var parts map[string][][2]string
	if err := json.Unmarshal(out, &parts); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	schema := func(data string) ([]byte, error) {
		file := filepath.Join(t.TempDir(), "user-data")
		must.OK(t, os.WriteFile(file, []byte(data), 0o600))
		return exec.CommandContext(t.Context(), tool, "schema", "--config-file", file).CombinedOutput()
	}
	// It can say no.
	if typ := parts[nonsense][0][0]; strings.HasPrefix(typ, "text/x-shellscript") || typ == "text/cloud-config" {
		t.Errorf("cloud-init takes nonsense for %s", typ)
	}
	if _, err := schema(all[broken]); err == nil {
		t.Error("cloud-init's schema takes all that it is given")
	}
	seen := map[string]int{}
	for name, p := range parts {
		if name == nonsense || name == broken {
			continue
		}
		if len(p) != 1 {
			t.Errorf("%s is %d parts to cloud-init", name, len(p))
		}
		typ, payload := p[0][0], p[0][1]
		seen[typ]++
		switch typ {
		case "text/cloud-config":
			if out, err := schema(all[name]); err != nil {
				t.Errorf("%s: cloud-init schema: %v\n%s", name, err, out)
			}
		case "text/x-shellscript":
			must.NoDiff(t, name+" as it comes to the shell", payload, all[name])
		default:
			t.Errorf("cloud-init takes %s for %s, and runs nothing", name, typ)
		}
	}
	if seen["text/cloud-config"] != 1 || seen["text/x-shellscript"] != 15 {
		t.Errorf("it has seen %v", seen)
	}
}

// TestDoctorIsContent: what the agent says of user data that people copy, it does not say of ours.
func TestDoctorIsContent(t *testing.T) {
	t.Parallel()
	agent, err := programs.Agent(t.Context(), t.TempDir())
	must.OK(t, err)
	doctor := func(data string) (string, error) {
		file := filepath.Join(t.TempDir(), "user-data")
		must.OK(t, os.WriteFile(file, []byte(data), 0o600))
		out, err := exec.CommandContext(t.Context(), agent, "doctor", "--user-data", file).CombinedOutput()
		return string(out), err
	}
	// It can say no.
	if out, err := doctor("#!/bin/sh\ncd /usr/local/antmedia\n./change_server_mode.sh cluster 10.0.0.9\n"); exitCode(err) != 6 {
		t.Errorf("it is content with the vendor's script: %v\n%s", err, out)
	}
	for name, data := range userData(t) {
		if out, err := doctor(data); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestScriptsParse(t *testing.T) {
	shellcheck, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Log("shellcheck is not installed: sh -n alone looks at the scripts")
	}
	for name, data := range scripts(t) {
		t.Run(name, func(t *testing.T) {
			if !strings.HasPrefix(data, "#!/bin/sh\n") {
				t.Errorf("cloud-init does not take it for a script: %.40q", data)
			}
			// A node tries until MongoDB is there, and ends at a wrong command line.
			if !strings.HasPrefix(name, "mongo") && !strings.HasSuffix(data, " | amsagent join --mongo file:-; do [ $? = 2 ] && exit 2; sleep 15; done\n") {
				t.Errorf("a node joins by %s", data)
			}
			file := filepath.Join(t.TempDir(), "script.sh")
			must.OK(t, os.WriteFile(file, []byte(data), 0o600))
			if out, err := exec.CommandContext(t.Context(), "sh", "-n", file).CombinedOutput(); err != nil {
				t.Errorf("sh -n: %v\n%s", err, out)
			}
			if shellcheck != "" {
				if out, err := exec.CommandContext(t.Context(), shellcheck, "-s", "sh", "-S", "style", file).CombinedOutput(); err != nil {
					t.Errorf("shellcheck: %v\n%s", err, out)
				}
			}
		})
	}
}

// TestUserDataJoins runs the user data of each template in a shell, with the real agent, a MongoDB with a password and a stand-in of
// the server. The cloud's program is a stand-in that has no secret yet when it is asked first; the role comes from the metadata.
func TestUserDataJoins(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	_, err := programs.Agent(t.Context(), bin)
	must.OK(t, err)
	sandbox, err := programs.Sandbox(t.Context(), bin)
	must.OK(t, err)
	for _, j := range joinings(t) {
		t.Run(j.name, func(t *testing.T) {
			t.Parallel()
			runJoining(t, j, bin, sandbox)
		})
	}
}

func runJoining(t *testing.T, j joining, bin, sandbox string) {
	t.Helper()
	const password = "0123456789abcdef0123456789abcdef0123456789abcdef"
	dir := t.TempDir()
	mongo := servers.Start(t, mongod.Options{Users: map[string]string{"amsagent": password}})
	// As install.sh writes it.
	uri := "mongodb://amsagent:" + password + "@" + mongo.Addr() + "/admin"

	const address = "10.0.1.77"
	n := rig.New(t, rig.Options{
		Options: standin.Options{Dir: dir, Sandbox: sandbox, Tree: tree.Options{NoUnit: true, Host: "node", HostResolves: true}},
		Agent:   filepath.Join(bin, "amsagent"), Mongo: mongo, Env: []string{"AMSAGENT_TIMEOUT=120s"}, Stopped: true,
	})
	cloud, err := fakecloud.Open(t.Context(), j.cloud, fakecloud.Options{})
	must.OK(t, err)
	t.Cleanup(func() { _ = cloud.Close() })
	machine, err := cloud.Machine(t.Context(), fakecloud.Machine{
		Name: "edge-1", ID: fakecloud.ID(j.cloud, 1), Address: address, Role: j.role, MAC: "02:00:00:00:00:01",
	})
	must.OK(t, err)
	t.Cleanup(func() { _ = machine.Close() })

	n.Write("etc/amsagent/config.yaml", imageConfig(t)) // as the image brings it
	ask, answer := "", uri+"\n\n"
	if j.before != "" {
		needs(t, "jq")
		ask = `[ "$*" != "` + j.before + `" ] || { echo '{"access_token":"` + j.token + `","token_type":"Bearer"}'; exit; }
[ "$(cat)" = "Authorization: Bearer ` + j.token + `" ] || { echo "no token" >&2; exit 22; }
`
		answer = `{"value":"` + uri + `","id":"https://` + azureVaultHost + `/secrets/mongo/1"}`
	}
	writeStandIns(t, dir, map[string]string{
		// The first answer is what a secret without a value is.
		j.cli: `echo "$*" >>"$HERE/calls"
` + ask + `
[ "$*" = "` + j.args + `" ] || { echo "unknown: $*" >&2; exit 252; }
[ -e "$HERE/asked" ] || { : >"$HERE/asked"; echo 'ResourceNotFoundException' >&2; exit 254; }
cat "$HERE/secret"`,
		// The third sleep kills the script: an endless wait fails the test.
		"sleep": `echo "sleep $*" >>"$HERE/calls"
[ "$(grep -c sleep "$HERE/calls")" -lt 3 ] || kill "$PPID"`,
	})
	for name, body := range map[string]string{"secret": answer, "userdata": j.data} {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", filepath.Join(dir, "userdata"))
	cmd.Env = slices.Concat(os.Environ(), n.Cmd().Env, machine.Environ, []string{"AMSAGENT_PROVIDER=" + j.cloud, "HERE=" + dir, "PATH=" + dir + ":" + bin + ":" + os.Getenv("PATH")})
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), password) {
		t.Errorf("the password is in the output, which cloud-init writes to a world-readable file: %s", out)
	}
	calls := contents(t, filepath.Join(dir, "calls"))
	once := []string{j.args}
	if j.before != "" {
		// A pipe starts both ends together.
		once = sorted([]string{j.before, j.args})
	}
	first, second, _ := strings.Cut(calls, "sleep 15\n")
	for _, got := range []string{first, second} {
		must.NoDiff(t, "calls among\n"+calls, sorted(strings.Split(strings.TrimSuffix(got, "\n"), "\n")), once)
	}
	nodes, err := n.Client.Nodes(ctx)
	must.OK(t, err)
	if len(nodes) != 1 || nodes[0].IP != address || nodes[0].Role != "edge" || nodes[0].State != cluster.StateActive {
		t.Errorf("the registry has %+v, want an active edge at %s\n%s", nodes, address, out)
	}
	if out, code := n.Run("config"); code != 0 || !regexp.MustCompile(`(?m)^ *metrics_address\s+0\.0\.0\.0:9771\s`).MatchString(out) {
		t.Errorf("the load balancer does not reach the agent (exit %d):\n%s", code, out)
	}
}
