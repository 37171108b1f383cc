// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/tree"
)

const (
	storySeed   = "/var/lib/cloud/seed/nocloud"
	storySecret = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:ams-mongo-AbCdEf"
	storyUndo   = "/var/lib/amsagent/undo.json"
	storyFlags  = "--http-host=file\n--control=" + serverControl + "\n--period=1s\n--mongo-timeout=1s\n--stats=" + shutdownStats + "\n"
)

// storyNode is one machine of the story.
type storyNode struct {
	*goingDown
	world               *storyWorld
	name, role, address string
}

// raise gives the node a disk with Debian, cloud-init and Ant Media Server on it, and a cable to the others. Its firmware and
// metadata are those of EC2; cloud-init's seed is on its disk. There is no agent.
func (n *storyNode) raise(t *testing.T, w *storyWorld, copyOf string) {
	t.Helper()
	n.world = w
	n.machine = newDisk(t, diskOptions{
		tree: "root_with cloud-init curl", boot: "--network-bridge=br0 --machine=" + n.name, net: w.pid, copy: copyOf,
	})
	n.mongo = w.mongo
	n.instance(t, n.id, n.address)
	if copyOf != "" {
		return
	}
	nodeCopy(t, bins.sandbox, n.disk+"/usr/local/bin/sandbox")
	n.inCloud(t, `
ip addr add "$IP/24" dev host0
ip addr add 169.254.169.254/32 dev lo
ip link set host0 up
`)
	n.write(t, "/etc/systemd/system/imds.service", `[Unit]
After=cloud.service
Before=amsagent-node.service antmedia.service amsagent.service
[Service]
Type=exec
EnvironmentFile=/opt/cloud/instance
ExecStart=/usr/local/bin/sandbox aws --listen 169.254.169.254:80 --id ${ID} --ip ${IP} --tag amsagent:role=`+n.role+`
[Install]
WantedBy=multi-user.target
`)
	// The cloud's own tool, of which the templates' user data makes use: it knows one question.
	n.write(t, "/usr/local/bin/aws", `#!/bin/sh
[ "$*" = "secretsmanager get-secret-value --region eu-west-1 --secret-id `+storySecret+` --query SecretString --output text" ] || { echo "aws: $*" >&2; exit 252; }
exec curl -fsS http://`+storyServices+`/secret
`)
	// No resize of the disk, and no user except root.
	n.write(t, "/etc/cloud/cloud.cfg.d/99-story.cfg", `datasource_list: [NoCloud, None]
network: {config: disabled}
locale: false
users: []
ssh_deletekeys: false
ssh_genkeytypes: []
growpart: {mode: 'off'}
resize_rootfs: false
`)
	// The unit's own 15 minutes would delay the end of a failed test.
	n.write(t, "/usr/local/lib/systemd/system/amsagent.service.d/50-patience.conf", "[Service]\nTimeoutStopSec=60s\n")
	n.write(t, nodeFlags, storyFlags)
	n.installServer(t)
	n.onDisk(t, `mkdir -p "$1/var/log/journal" "$1/opt/packages"
chmod 755 "$1/usr/local/bin/aws"
chroot "$1" systemctl enable -q cloud imds`)
}

// seed is what the cloud gives cloud-init: whose first boot this is, and user data.
func (n *storyNode) seed(t *testing.T, userData string) {
	t.Helper()
	n.write(t, storySeed+"/meta-data", "instance-id: "+n.id+"\nlocal-hostname: node-"+n.name+"\n")
	n.write(t, storySeed+"/user-data", userData)
}

// storyTemplate is the user data of the template for AWS, as CloudFormation would hand it on.
func storyTemplate(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../packaging/cloud/aws/cloudformation.yaml")
	must.OK(t, err)
	lines := regexp.MustCompile(`(?m)^ +(#!/bin/sh\n) +(until aws secretsmanager .* amsagent join .*\n)`).FindAllStringSubmatch(string(b), -1)
	if len(lines) != 2 || lines[0][2] != lines[1][2] {
		t.Fatalf("the template's user data: %q", lines)
	}
	return strings.NewReplacer("${AWS::Region}", "eu-west-1", "${MongoSecret}", storySecret).Replace(lines[0][1] + lines[0][2])
}

// boots starts the machine and waits for the end of cloud-init, and so of user data.
func (n *storyNode) boots(t *testing.T) {
	t.Helper()
	n.boot(t)
	if r := n.run(t, "cloud-init", "status", "--long"); r.code != 0 || !strings.Contains(r.stdout, "status: done") {
		t.Errorf("cloud-init: %s\n%s", r, n.read(t, "/var/log/cloud-init-output.log"))
	}
}

// slowly lets the server take a time for its start as a node that is nearer to the real one's.
func (n *storyNode) slowly(t *testing.T, do func()) {
	t.Helper()
	n.write(t, nodeFlags, storyFlags+"--only-in=cluster\n--slow-start=4s\n")
	do()
	n.write(t, nodeFlags, storyFlags)
}

// own returns this node's record.
func (n *storyNode) own(t *testing.T) bson.M {
	t.Helper()
	return n.rows(t)[n.id]
}

// documents are those of Ant Media Server under an address.
func (n *storyNode) documents(t *testing.T, address string) []nodeDocument {
	t.Helper()
	return slices.DeleteFunc(n.clusternode(t), func(d nodeDocument) bool { return d.IP != address })
}

// isNode waits until all agree that this machine is a node: registry, Ant Media Server, agent, load balancer.
func (n *storyNode) isNode(t *testing.T) bson.M {
	t.Helper()
	must.Until(t, "an active row of "+n.name+" at "+n.address, func() bool {
		r := n.own(t)
		return r != nil && r["state"] == "active" && r["ip"] == n.address
	})
	must.Until(t, "a living document of the server of "+n.name, func() bool {
		d := n.documents(t, n.address)
		return len(d) == 1 && time.Since(time.UnixMilli(d[0].Updated)) < 20*time.Second
	})
	n.world.sees(t, n.name, "UP")
	must.Until(t, "readiness of "+n.name, func() bool { v, err := n.status(); return err == nil && v.Ready })
	row := n.own(t)
	if row["role"] != n.role || row["provider"] != "aws" {
		t.Errorf("the row of %s: %v", n.name, row)
	}
	if v, err := n.status(); err != nil || v.RestartPending || v.Trouble != "" {
		t.Errorf("the agent of %s has something to say: %+v, %v", n.name, v, err)
	}
	if env := n.read(t, "/proc/"+n.unit(t, nodeUnit)["MainPID"]+"/environ"); !strings.Contains(env, "\x00AMS_HOST_ADDRESS="+n.address+"\x00") {
		t.Errorf("the server of %s has the environment %q", n.name, env)
	}
	return row
}

// listing is what a join could change, and everything that has our name.
func (n *storyNode) listing(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{nodeHome, "/etc"} {
		s, err := tree.Snapshot(n.disk + dir)
		must.OK(t, err)
		for _, line := range s {
			all = append(all, dir+": "+line)
		}
	}
	out, err := exec.Command("find", n.disk, "-xdev", "-iname", "*amsagent*", "-not", "-path", n.disk+"/var/log/journal/*", "-printf", "/%P\n").Output()
	must.OK(t, err)
	named := strings.Fields(string(out))
	slices.Sort(named)
	return append(all, named...)
}

// It returns the logs to print after a failure.
func (n *storyNode) tells(t *testing.T) string {
	if n.machine == nil {
		return ""
	}
	out, _ := os.ReadFile(n.disk + "/var/log/cloud-init-output.log")
	return fmt.Sprintf("=== %s\n%s\n--- cloud-init:\n%s", n.name, n.lines(t, "-o", "short-precise", "-u", "cloud-final", "-u", "imds", "-u", "cloud"), out)
}
