// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package templates

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
)

const alibabaROS = "../../packaging/cloud/alibaba/ros.yaml"

func loadROS(t *testing.T) *stack {
	t.Helper()
	return loadStack(t, alibabaROS, map[string]any{
		"ALIYUN::Region": "REGION", "ALIYUN::TenantId": "ACCOUNT", "MongoDisk": "d-bp1disk",
		"MongoReadyHandle.CurlCli": `curl -i -X POST -H 'Content-Type: application/json' 'https://HANDLE/?a=b&c=d'`,
	})
}

// rosUserData is that of a node ("edge") or of MongoDB's machine ("mongo").
func rosUserData(t *testing.T, role string) string {
	t.Helper()
	c := loadROS(t)
	return fmt.Sprint(c.of(map[string]string{"mongo": "Mongo", "origin": "OriginConfiguration", "edge": "EdgeConfiguration"}[role])["UserData"])
}

func TestROS(t *testing.T) {
	c := loadROS(t)
	c.meets(t, "ros")
	c.references()
}

// TestROSPolicy: the template permits the agent's own policy, the secret and the commands of the hook, nothing else.
func TestROSPolicy(t *testing.T) {
	const secret = "acs:kms:REGION:ACCOUNT:secret/ams-mongo"
	want := map[string][]string{
		"NodeRole": {"Allow kms:GetSecretValue on " + secret}, "MongoRole": {"Allow kms:PutSecretValue on " + secret},
		"OosRole": {"Allow ecs:DescribeInvocationResults ecs:DescribeInvocations ecs:RunCommand on *"},
	}
	// The page for those who make the role by hand says the same.
	page := contents(t, "../../docs/clouds/alibaba.md")
	for _, s := range ownPolicy(t, alibaba.Policy) {
		want["NodeRole"] = append(want["NodeRole"], "Allow "+strings.Join(sorted(s.Action), " ")+" on "+s.Resource)
		for _, action := range s.Action {
			if !strings.Contains(page, `"`+action+`"`) {
				t.Errorf("docs/clouds/alibaba.md does not permit %s", action)
			}
		}
	}
	for role, want := range want {
		must.NoDiff(t, "permissions of "+role, loadROS(t).statements(role), sorted(want))
	}
}

// TestROSHookTellsAgent: what the hook makes Cloud Assistant run is an event that the agent understands, about all machines of
// the token, and it never fails: Auto Scaling would cut who is there.
func TestROSHookTellsAgent(t *testing.T) {
	machines := []string{"i-bp1aaaaaaaaaaaaaaaa1", "i-bp1aaaaaaaaaaaaaaaa2"}
	c := loadROS(t)
	var content yaml.Node
	must.OK(t, yaml.Unmarshal([]byte(fmt.Sprint(c.of("OosTemplate")["Content"])), &content))
	task := at(c.value(content.Content[0]), "Tasks").([]any)[0]
	command := filled(t, fmt.Sprint(at(task, "Properties", "commandContent")), "{{ ", " }}", map[string]string{
		"regionId": "cn-hangzhou", "instanceIds": strings.Join(machines, ","), "lifecycleHookId": "ash-1", "lifecycleActionToken": "T0K3N",
	})
	for _, agent := range []string{`cat; [ "$*" = "event --detach" ]`, `echo 'no daemon' >&2; exit 1`} {
		dir := t.TempDir()
		writeStandIns(t, dir, map[string]string{"amsagent": agent})
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("the command fails: %v", err)
		}
		if strings.HasPrefix(agent, "echo") {
			continue
		}
		e, err := metadata.ParseEvent(out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		mine, ok := e.For(machines[0])
		if !ok || mine.Kind != cloud.Terminate || mine.Hook.Name != "ash-1" || mine.Hook.Token != "T0K3N" || !slices.Equal(mine.Hook.Others, machines[1:]) {
			t.Errorf("the agent reads %+v", mine)
		}
	}
}

// TestROSMongoMachine runs the script of MongoDB's machine: install.sh is a stand-in here, since its own tests run it; the
// program that puts the secret into KMS is the real one, and so is its signature.
func TestROSMongoMachine(t *testing.T) {
	data := rosUserData(t, "mongo")
	for name, tt := range map[string]struct {
		install string
		want    string
		secret  string
	}{
		"good": {`echo "$*" >&2; umask 077; echo mongodb://amsagent:pw@10.42.2.10:27017/admin >"$HERE/uri"; echo said; echo "$HERE/uri"`, "SUCCESS", "mongodb://amsagent:pw@10.42.2.10:27017/admin"},
		"bad":  {"echo broken >&2; exit 1", "FAILURE", "none yet"},
	} {
		t.Run(name, func(t *testing.T) {
			api, meta := kms(t)
			api.SetSecret("ams-mongo", "none yet")
			dir := t.TempDir()
			for _, sub := range []string{"/sbin", "/by-id"} {
				must.OK(t, os.Mkdir(dir+sub, 0o755))
			}
			// The disk comes when it was asked for once, by the name of NVMe; a part of it and another disk are there, too.
			writeStandIns(t, dir, map[string]string{
				// The fourth sleep kills the script: an endless wait fails the test.
				"sleep": `: >"$HERE/by-id/nvme-Alibaba_Cloud_Elastic_Block_Storage_bp1disk"
echo "$*" >>"$HERE/slept"
[ "$(grep -c . "$HERE/slept")" -lt 4 ] || kill "$PPID"`,
				"curl": `echo "$*" >>"$HERE/said"`,
			})
			for _, disk := range []string{"nvme-Alibaba_Cloud_Elastic_Block_Storage_bp1disk-part1", "virtio-bp1other"} {
				must.OK(t, os.WriteFile(dir+"/by-id/"+disk, nil, 0o600))
			}
			body := strings.NewReplacer("/usr/local/sbin/", dir+"/sbin/", "/dev/disk/by-id/", dir+"/by-id/").
				Replace(strings.Replace(data, contents(t, install), "#!/bin/sh\n"+tt.install+"\n", 1))
			cmd := exec.CommandContext(t.Context(), "sh", "-c", body)
			cmd.Env = append(append(os.Environ(), "HERE="+dir, "PATH="+dir+":"+dir+"/sbin:"+os.Getenv("PATH")), kmsEnviron(api, meta)...)
			out, err := cmd.CombinedOutput()
			if (err == nil) != (tt.want == "SUCCESS") {
				t.Errorf("%v\n%s", err, out)
			}
			said, err := os.ReadFile(dir + "/said")
			if err != nil || strings.Count(string(said), "\n") != 1 || !strings.Contains(string(said), `-d {"status":"`+tt.want+`"}`) || !strings.Contains(string(said), "https://HANDLE/?a=b&c=d") {
				t.Errorf("the signal to ROS is %q (%v)\n%s", said, err, out)
			}
			must.Equal(t, "secret", api.Secret("ams-mongo"), tt.secret)
			if want := "--single --release 8.0 --databases live,liveapp,webrtcappee --data-device " + dir + "/by-id/nvme-Alibaba_Cloud_Elastic_Block_Storage_bp1disk\n"; tt.want == "SUCCESS" && !strings.Contains(string(out), want) {
				t.Errorf("install.sh is not called with %q:\n%s", want, out)
			}
			if strings.Contains(string(out), "pw@") {
				t.Errorf("the password is in the output: %s", out)
			}
		})
	}
}
