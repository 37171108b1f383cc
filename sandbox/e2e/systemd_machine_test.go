// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

const (
	daemonUnit    = "amsagent.service"
	convergeUnit  = "amsagent-node.service"
	serverControl = "127.0.0.1:5999" // of the stand-in
	cloudNoMongo  = "/opt/cloud/no-mongo"
)

// machine is a disk that can be booted repeatedly: a golden image without a join. Files on it describe its cloud; its network
// and the database are units of its own that start before the agent.
type machine struct {
	*bootedNode
	disk  string // its files, whether it is booted or not
	shell *held
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := newDisk(t, diskOptions{tree: `root_make ""`, boot: "--private-network"})
	m.installAll(t)
	var err error
	m.mongo, err = mongo.Connect(options.Client().ApplyURI("mongodb://" + nodeMongo + "/?directConnection=true&serverSelectionTimeoutMS=3000").SetDialer(m))
	must.OK(t, err)
	t.Cleanup(func() { _ = m.mongo.Disconnect(context.Background()) })
	return m
}

// diskOptions are what differs between machines that can be booted again and again.
type diskOptions struct {
	tree string // a command of boot.sh that prints which tree it begins with
	boot string // options of systemd-nspawn
	net  int    // the process in whose network it is booted; 0: this one's
	copy string // the disk to begin with, in place of the tree alone
}

// newDisk makes a disk with a Debian on it, and starts the shell that boots it.
func newDisk(t *testing.T, o diskOptions) *machine {
	t.Helper()
	giveUp := t.Skipf
	if os.Getenv("REQUIRE_SYSTEMD") != "" {
		giveUp = t.Fatalf
	}
	if os.Geteuid() != 0 {
		giveUp("booting a systemd needs root: run it as root, or with sudo")
	}
	work := t.TempDir()
	// Not in a network of the test's own: packages come from outside.
	var said strings.Builder
	tree := exec.CommandContext(t.Context(), "bash", "-c", `. "$1"; eval "$2"`, "bash", "../nspawn/boot.sh", o.tree)
	tree.Stderr = &said
	root, err := tree.Output()
	if err != nil {
		giveUp("no tree to boot can be had here: it needs debootstrap and a mirror: %v\n%s", err, said.String())
	}
	mounts, links := nodeTraces(t, work)

	// As in bootNode: the end of standard input ends all of it, in order.
	const script = `. "$1"
root=$3
mkdir "$2/top" "$2/disk"
finish() {
	poweroff
	! mountpoint -q "$2/disk" || umount "$2/disk"
	! mountpoint -q "$2/top" || umount "$2/top"
}
trap 'finish "" "$2"' EXIT
mount -t tmpfs tmpfs "$2/top" && mkdir "$2/top/upper" "$2/top/work" || exit 77
[ -z "$5" ] || cp -a "$5/../top/upper/." "$2/top/upper/" || exit 1
mount -t overlay -o "lowerdir=$root,upperdir=$2/top/upper,workdir=$2/top/work" overlay "$2/disk" || exit 77
echo made
while read -r what; do
	case $what in
	boot) boot "$2/disk" --volatile=no $4 && echo "leader $NSPAWN_LEADER" || echo failed ;;
	poweroff) poweroff && echo off || echo failed ;;
	esac
done`
	args := []string{"bash", "-c", script, "bash", "../nspawn/boot.sh", work, strings.TrimSpace(string(root)), o.boot, o.copy}
	if o.net != 0 {
		args = append([]string{"nsenter", "-t", strconv.Itoa(o.net), "-n"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	// If user data joins, the boot ends after the join.
	cmd.Env = append(os.Environ(), "NSPAWN_BOOT_LIMIT=180")
	shell, err := hold(t, cmd)
	if err != nil {
		giveUp("bash: %v", err)
	}
	m := &machine{bootedNode: &bootedNode{}, disk: filepath.Join(work, "disk"), shell: shell}
	t.Cleanup(func() {
		err := shell.end()
		mountsAfter, linksAfter := nodeTraces(t, work)
		if !slices.Equal(mounts, mountsAfter) || !slices.Equal(links, linksAfter) {
			t.Errorf("left behind: mounts\n%s\nnetwork interfaces %v, before %v", strings.Join(mountsAfter, "\n"), linksAfter, links)
		}
		if err != nil && !t.Skipped() {
			t.Errorf("powering off: %v\n%s", err, m.shell.said)
		}
	})
	if shell.line() != "made\n" {
		giveUp("no disk to boot can be had here: it needs systemd-nspawn and overlays\n%s", m.shell.said)
	}
	m.http = &http.Client{Transport: &http.Transport{DialContext: m.DialContext, DisableKeepAlives: true}}
	return m
}

// inCloud gives the disk the firmware that its cloud has written, and a network, before anything on it asks for one.
func (m *machine) inCloud(t *testing.T, network string) {
	t.Helper()
	m.write(t, "/opt/cloud/up", `#!/bin/sh
set -eu
. /opt/cloud/instance
cp -a /sys/class /run/cloud-class 2>/dev/null || true
rm -rf /run/cloud-class/dmi
cp -a /opt/cloud/firmware/sys/class/dmi /run/cloud-class/
mount --bind /run/cloud-class /sys/class
`+network)
	m.write(t, "/etc/systemd/system/cloud.service", `[Unit]
Wants=network.target network-online.target
Before=network.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /opt/cloud/up
[Install]
WantedBy=multi-user.target
`)
}

// installAll makes of a Debian an instance with Ant Media Server and the agent, as
// their installers leave them, and a cloud around it.
func (m *machine) installAll(t *testing.T) {
	t.Helper()
	for to, from := range map[string]string{
		"/usr/bin/amsagent": bins.agent, "/usr/local/bin/sandbox": bins.sandbox, "/usr/local/bin/mongod": realmongo.Require(t),
	} {
		nodeCopy(t, from, m.disk+to)
	}
	must.OK(t, os.CopyFS(m.disk+"/usr/local/bin", os.DirFS("../../testdata/booted/bin")))
	units, err := filepath.Glob("../../packaging/systemd/*.service")
	if err != nil || len(units) != 4 {
		t.Fatalf("units: %v, %v", units, err)
	}
	for _, u := range units {
		b, err := os.ReadFile(u)
		must.OK(t, err)
		m.write(t, "/usr/lib/systemd/system/"+filepath.Base(u), string(b))
	}
	m.write(t, "/etc/amsagent/config.yaml", "mongo: "+nodeMongo+"\nbeat_interval: 1s\n")
	m.inCloud(t, `
ip link add eth0 type veth peer name amsagent-wire
ip link set amsagent-wire up
ip addr add "$IP/24" dev eth0
ip addr add `+nodeMongo+`/24 dev eth0
ip addr add 169.254.169.254/32 dev lo
ip link set eth0 up
`)
	// Elsewhere in the world both are: there before this machine boots, and still when
	// it goes down.
	m.write(t, "/etc/systemd/system/mongo.service", `[Unit]
After=cloud.service
Before=amsagent-node.service antmedia.service amsagent.service
ConditionPathExists=!`+cloudNoMongo+`
[Service]
Type=exec
ExecStart=/usr/local/bin/sandbox mongo --listen `+nodeMongo+`:27017 --control `+nodeControl+` --dir /opt/cloud/database
# Its control port is the last that it opens.
ExecStartPost=/bin/bash -c 'until : >/dev/tcp/`+strings.Replace(nodeControl, ":", "/", 1)+`; do sleep 0.05; done'
TimeoutStartSec=10min
[Install]
WantedBy=multi-user.target
`)
	m.write(t, "/etc/systemd/system/imds.service", `[Unit]
After=cloud.service
Before=amsagent-node.service antmedia.service amsagent.service
ConditionPathExists=!/opt/cloud/no-metadata
[Service]
Type=exec
EnvironmentFile=/opt/cloud/instance
ExecStart=/usr/local/bin/sandbox aws --listen 169.254.169.254:80 --id ${ID} --ip ${IP} --tag amsagent:role=origin
[Install]
WantedBy=multi-user.target
`)
	m.instance(t, nodeID, nodeAddress)
	m.write(t, nodeFlags, "--control="+serverControl+"\n--period=1s\n--mongo-timeout=1s\n")
	m.installServer(t)
	m.onDisk(t, `mkdir -p "$1/opt/cloud/database"
chroot "$1" systemctl enable -q cloud mongo imds amsagent-node amsagent`)
}

// installServer puts Ant Media Server there as its installer does, and what the firmware says of the cloud.
func (m *machine) installServer(t *testing.T) {
	t.Helper()
	m.onDisk(t, `
"$1/usr/local/bin/sandbox" tree --dmi aws "$1/opt/cloud/firmware" >/dev/null
chroot "$1" useradd --system --home-dir `+nodeHome+` --shell /bin/false antmedia
"$1/usr/local/bin/sandbox" tree --owner "$(chroot "$1" id -u antmedia):$(chroot "$1" id -g antmedia)" \
	--exec 'echo "$$ $AMS_HOST_ADDRESS" >>`+nodeStarts+`; exec /usr/local/bin/sandbox ams --root "$ANTMEDIA_HOME" --hosts-file /etc/hosts @`+nodeFlags+`' "$1" >/dev/null
cp -a "$1`+nodeHome+`" "$1/opt/cloud/vendor"
chroot "$1" systemctl enable -q antmedia`)
}

// write writes a file on the disk.
func (m *machine) write(t *testing.T, path, text string) {
	t.Helper()
	must.OK(t, os.MkdirAll(filepath.Dir(m.disk+path), 0o755))
	must.OK(t, os.WriteFile(m.disk+path, []byte(text), 0o644))
}

// instance changes the id and the address in the machine's metadata, from the next boot on.
func (m *machine) instance(t *testing.T, id, ip string) {
	t.Helper()
	m.write(t, "/opt/cloud/instance", "ID="+id+"\nIP="+ip+"\n")
}

// onDisk runs a script outside of the machine; $1 is the disk.
func (m *machine) onDisk(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("bash", "-euc", script, "bash", m.disk).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func (m *machine) tell(t *testing.T, what string) string {
	t.Helper()
	if _, err := fmt.Fprintln(m.shell.in, what); err != nil {
		t.Fatalf("%v\n%s", err, m.shell.said)
	}
	line, err := m.shell.out.ReadString('\n')
	if err != nil || line == "failed\n" {
		t.Fatalf("%s: %v\n%s", what, err, m.shell.said)
	}
	return line
}

// boot starts the machine and returns when systemd has finished starting.
func (m *machine) boot(t *testing.T) {
	t.Helper()
	m.onDisk(t, `rm -f "$1`+nodeStarts+`"`)
	begin := time.Now()
	if _, err := fmt.Sscanf(m.tell(t, "boot"), "leader %d\n", &m.leader); err != nil {
		t.Fatal(err)
	}
	m.root = fmt.Sprintf("/proc/%d/root", m.leader)
	t.Logf("booted in %s", time.Since(begin).Round(time.Millisecond))
	if state := m.run(t, "systemctl", "is-system-running"); state.stdout != "running\n" {
		t.Errorf("the system is %s%s", state.stdout, m.sh(t, "systemctl --failed --no-legend --plain; journalctl -b -p notice --no-pager -n 60"))
	}
}

// off waits until a machine that shuts down is off.
func (m *machine) off(t *testing.T) {
	t.Helper()
	must.Until(t, "the machine is off", func() bool { return syscall.Kill(m.leader, 0) != nil })
	m.tell(t, "poweroff")
	m.leader = 0
}

func (m *machine) journal(t *testing.T) string {
	t.Helper()
	if m.leader == 0 {
		return ""
	}
	return m.run(t, "journalctl", "--no-pager", "-b", "-o", "short-precise", "-u", "amsagent", "-u", "amsagent-node").stdout
}

// rows are all of the registry, by id.
func (m *machine) rows(t *testing.T) map[string]bson.M {
	t.Helper()
	var all []bson.M
	c, err := m.mongo.Database("amsagent").Collection("nodes").Find(t.Context(), bson.D{})
	if err == nil {
		err = c.All(t.Context(), &all)
	}
	if err != nil {
		return nil // it is not up yet
	}
	rows := map[string]bson.M{}
	for _, r := range all {
		rows[fmt.Sprint(r["_id"])] = r
	}
	return rows
}

// active waits until the record of id is active with this address and gets heartbeats, and the status in systemd agrees.
func (m *machine) active(t *testing.T, id, ip string) bson.M {
	t.Helper()
	must.Until(t, "an active row of "+id+" at "+ip, func() bool {
		r := m.rows(t)[id]
		return r != nil && r["state"] == "active" && r["ip"] == ip
	})
	m.beats(t, id, 1)
	must.Until(t, "the status", func() bool {
		return strings.HasPrefix(m.unit(t, daemonUnit)["StatusText"], "active; 0 publishers; 0 viewers; last heartbeat at ")
	})
	return m.rows(t)[id]
}

// beats waits for more than n heartbeats.
func (m *machine) beats(t *testing.T, id string, n int) {
	t.Helper()
	seen := map[any]bool{}
	must.Until(t, "beats of "+id, func() bool {
		if r := m.rows(t)[id]; r != nil && r["heartbeat"] != nil {
			seen[r["updated_at"]] = true
		}
		return len(seen) > n
	})
}

// started lists the addresses that the server got at each of its starts since the boot.
func (m *machine) started(t *testing.T) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(m.read(t, nodeStarts)) {
		_, address, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		out = append(out, address)
	}
	return out
}

func (m *machine) startedWith(t *testing.T, want ...string) {
	t.Helper()
	if got := m.started(t); !slices.Equal(got, want) {
		t.Errorf("the server was started with the addresses %q, want %q", got, want)
	}
}
