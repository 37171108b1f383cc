// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

const (
	// Without KVM, on a loaded host, a second of work may take a minute.
	guestPatience = 5 * time.Minute
	guestShell    = "amsagent-shell" // virtio port for commands to the guest
)

// guest is a virtual machine. Unlike a container it has a kernel of its own, and so the memory controller.
type guest struct {
	dir  string // of this test: image, console
	qemu *exec.Cmd
	over chan struct{} // closed when it has ended
	conn net.Conn
	in   *bufio.Reader
}

// guestDisk is a folder with Debian, a kernel and Ant Media Server, to which a test adds files. seal makes an image of it.
type guestDisk struct {
	*machine
	dir    string
	kernel string // vmlinuz and initrd.img, without their versions
	seal   func(t *testing.T, image string)
}

// newGuestDisk makes a disk. Its tree is cached, as that of the containers.
func newGuestDisk(t *testing.T) *guestDisk {
	t.Helper()
	giveUp := t.Skipf
	if os.Getenv("REQUIRE_SYSTEMD") != "" {
		giveUp = t.Fatalf
	}
	if os.Geteuid() != 0 {
		giveUp("making a disk needs root: run it as root, or with sudo")
	}
	packageTool(t, guestProgram())
	packageTool(t, "mke2fs")
	dir := t.TempDir()
	const script = `. "$1"
NSPAWN_PACKAGES=$NSPAWN_PACKAGES,$3
root=$(root_make "" </dev/null) || exit 77
finish() {
	! mountpoint -q "$2/disk" || umount "$2/disk"
	! mountpoint -q "$2/top" || umount "$2/top"
}
trap 'finish "" "$2"' EXIT
mkdir "$2/top" "$2/disk"
mount -t tmpfs tmpfs "$2/top" && mkdir "$2/top/upper" "$2/top/work" || exit 77
mount -t overlay -o "lowerdir=$root,upperdir=$2/top/upper,workdir=$2/top/work" overlay "$2/disk" || exit 77
mkdir "$2/boot" && cp "$root"/boot/vmlinuz-* "$2/boot/vmlinuz" && cp "$root"/boot/initrd.img-* "$2/boot/initrd.img" || exit 77
echo made
while read -r image; do
	# Sparse, and what is written to it while it runs goes to a file that is gone already.
	mke2fs -q -F -t ext4 -d "$2/disk" "$image" 2G >&2 && echo sealed || echo failed
done
exit 0 # finish says the rest`
	// All such tests share one tree: the SELinux policy has no effect until a kernel parameter enables it.
	needs := []string{"linux-image-cloud-" + runtime.GOARCH, "initramfs-tools", "zstd", "selinux-policy-default"}
	cmd := exec.Command("bash", "-c", script, "bash", "../nspawn/boot.sh", dir, strings.Join(needs, ","))
	shell, err := hold(t, cmd)
	if err != nil {
		giveUp("bash: %v", err)
	}
	t.Cleanup(func() {
		err := shell.end()
		if b, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(b, []byte(dir)) {
			t.Errorf("left behind: mounts\n%s", b)
		}
		if err != nil && !t.Skipped() {
			t.Errorf("%v\n%s", err, shell.said)
		}
	})
	if shell.line() != "made\n" {
		giveUp("no disk with a kernel can be had here: it needs debootstrap, a mirror, and overlays\n%s", shell.said)
	}
	d := &guestDisk{machine: &machine{bootedNode: &bootedNode{}, disk: filepath.Join(dir, "disk")}, dir: dir, kernel: filepath.Join(dir, "boot")}
	d.seal = func(t *testing.T, image string) {
		t.Helper()
		if _, err := fmt.Fprintln(shell.in, image); err != nil {
			t.Fatal(err)
		}
		if line := shell.line(); line != "sealed\n" {
			t.Fatalf("making the image: %q\n%s", line, shell.said)
		}
	}
	d.installAll(t)
	// An emulated processor is slow: a server that gives up on MongoDB at its start never serves.
	d.write(t, nodeFlags, "--control="+serverControl+"\n--period=1s\n--mongo-timeout=60s\n")
	d.asMachine(t)
	return d
}

func guestProgram() string {
	if runtime.GOARCH == "arm64" {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}

// asMachine adds the files that a virtual machine needs and a container does not.
func (d *guestDisk) asMachine(t *testing.T) {
	t.Helper()
	// The machine has its own firmware: no mounts over /sys.
	d.write(t, "/opt/cloud/up", `#!/bin/sh
set -eu
. /opt/cloud/instance
ip link add eth0 type veth peer name amsagent-wire
ip link set lo up
ip link set amsagent-wire up
ip addr add "$IP/24" dev eth0
ip addr add `+nodeMongo+`/24 dev eth0
ip addr add 169.254.169.254/32 dev lo
ip link set eth0 up
`)
	// Each line is a script in base64; the answer is its exit status, stdout and stderr. The machine powers off when the port
	// closes, so it never outlives its test.
	d.write(t, "/opt/guest/shell", `#!/bin/bash
port=/dev/virtio-ports/`+guestShell+`
until [ -e $port ]; do sleep 0.1; done
exec 3<>$port
echo "up" >&3
while IFS= read -r line <&3; do
	printf %s "$line" | base64 -d >/run/guest/script
	env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
		sh -eu /run/guest/script </dev/null >/run/guest/out 2>/run/guest/err 3>&-
	code=$?
	echo "$code,$(base64 -w0 </run/guest/out),$(base64 -w0 </run/guest/err)" >&3
done
systemctl poweroff
`)
	d.write(t, "/etc/systemd/system/guest-shell.service", `[Unit]
DefaultDependencies=no
After=systemd-udevd.service sysinit.target
[Service]
ExecStart=/bin/bash /opt/guest/shell
RuntimeDirectory=guest
OOMScoreAdjust=-1000
[Install]
WantedBy=multi-user.target
`)
	d.onDisk(t, `chroot "$1" systemctl enable -q guest-shell`)
}

// boot makes an image of the disk and boots it, with further kernel parameters and SMBIOS values for the firmware.
func (d *guestDisk) boot(t *testing.T, kernel string, firmware ...string) *guest {
	t.Helper()
	begin := time.Now()
	image := filepath.Join(d.dir, "image")
	d.seal(t, image)
	made := time.Since(begin)
	// An abstract socket: a path has at most 108 bytes, and a test's folder may exceed that.
	name := fmt.Sprintf("amsagent-guest-%d", os.Getpid())
	l, err := net.Listen("unix", "@"+name)
	must.OK(t, err)
	defer func() { _ = l.Close() }()
	console, machine := "ttyS0", []string{"-machine", "pc"}
	if runtime.GOARCH == "arm64" {
		console, machine = "ttyAMA0", []string{"-machine", "virt"}
	}
	args := append(machine,
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none",
		"-serial", "file:"+filepath.Join(d.dir, "console"),
		"-drive", "file="+image+",format=raw,if=virtio,snapshot=on",
		"-chardev", "socket,id=shell,abstract=on,path="+name, "-device", "virtio-serial", "-device", "virtserialport,chardev=shell,name="+guestShell,
		"-kernel", filepath.Join(d.kernel, "vmlinuz"), "-initrd", filepath.Join(d.kernel, "initrd.img"),
		"-append", "root=/dev/vda rw panic=-1 quiet console="+console+" "+kernel)
	for _, f := range firmware {
		args = append(args, "-smbios", f)
	}
	g := &guest{dir: d.dir, qemu: exec.Command(guestProgram(), args...), over: make(chan struct{})}
	g.qemu.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var said bytes.Buffer
	g.qemu.Stdout, g.qemu.Stderr = &said, &said
	begin = time.Now()
	must.OK(t, g.qemu.Start())
	go func() { defer close(g.over); _ = g.qemu.Wait() }()
	t.Cleanup(func() { g.end(t) })
	must.OK(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(guestPatience)))
	if g.conn, err = l.Accept(); err != nil {
		t.Fatalf("%s: %v\n%s", guestProgram(), err, said.String())
	}
	g.in = bufio.NewReader(g.conn)
	if line := g.line(t); line != "up" {
		t.Fatalf("it says %q", line)
	}
	// The pending jobs show what delays the boot.
	r := g.run(t, "timeout 240 systemctl is-system-running --wait || { code=$?; systemctl list-jobs --no-pager; exit $code; }")
	t.Logf("image made in %s, booted in %s: %s", made.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond), strings.TrimSpace(r.stdout))
	if r.code != 0 {
		t.Errorf("%s%s", r, g.sh(t, "systemctl --failed --no-legend --plain"))
	}
	return g
}

// end powers the machine off.
func (g *guest) end(t *testing.T) {
	t.Helper()
	if g.conn != nil {
		_ = g.conn.Close() // the guest powers off then
	}
	ctx, cancel := context.WithTimeout(context.Background(), guestPatience)
	defer cancel()
	select {
	case <-g.over:
	case <-ctx.Done():
		_ = g.qemu.Process.Kill()
		<-g.over
		t.Errorf("it does not power off")
	}
	if t.Failed() {
		t.Logf("its console:\n%s", g.console(t))
	}
}

func (g *guest) console(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, "console"))
	if err != nil {
		t.Log(err)
	}
	return string(b[max(0, len(b)-8000):])
}

func (g *guest) line(t *testing.T) string {
	t.Helper()
	must.OK(t, g.conn.SetReadDeadline(time.Now().Add(guestPatience)))
	line, err := g.in.ReadString('\n')
	if err != nil {
		t.Fatalf("the machine does not answer: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}

// run runs a script in the machine.
func (g *guest) run(t *testing.T, script string) nodeRun {
	t.Helper()
	begin := time.Now()
	if _, err := fmt.Fprintln(g.conn, base64.StdEncoding.EncodeToString([]byte(script))); err != nil {
		t.Fatal(err)
	}
	answer := strings.Split(g.line(t), ",")
	if len(answer) != 3 {
		t.Fatalf("%s: the machine says %q", script, answer)
	}
	code, err := strconv.Atoi(answer[0])
	must.OK(t, err)
	r := nodeRun{code: code, took: time.Since(begin)}
	for i, to := range []*string{&r.stdout, &r.stderr} {
		b, err := base64.StdEncoding.DecodeString(answer[i+1])
		must.OK(t, err)
		*to = string(b)
	}
	return r
}

// sh runs a script that must succeed.
func (g *guest) sh(t *testing.T, script string) string {
	t.Helper()
	r := g.run(t, script)
	if r.code != 0 {
		t.Fatalf("%s\n%s", script, r)
	}
	return r.stdout
}

func (g *guest) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(guestPatience)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		<-tick.C
	}
}

// unit returns properties of a unit.
func (g *guest) unit(t *testing.T, name string) map[string]string {
	t.Helper()
	p := map[string]string{}
	for line := range strings.Lines(g.sh(t, "systemctl show "+name+" -p ActiveState,SubState,Result,MainPID,InvocationID,NRestarts,StatusText,ControlGroup,ExecMainStatus")) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		p[k] = v
	}
	return p
}

// number reads a figure of the unit's control group.
func (g *guest) number(t *testing.T, unit, file string) int64 {
	t.Helper()
	s := strings.TrimSpace(g.sh(t, "cat /sys/fs/cgroup/system.slice/"+unit+"/"+file))
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %q", file, s)
	}
	return n
}

// node is this node in the registry, read by `amsagent nodes`.
func (g *guest) node(t *testing.T) (n cluster.Node, m cluster.Member, ok bool) {
	t.Helper()
	r := g.run(t, "amsagent nodes -o json")
	var answer struct {
		Members []cluster.Member `json:"members"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &answer); err != nil || r.code != 0 {
		return n, m, false // the database is not up yet
	}
	if len(answer.Members) != 1 || answer.Members[0].Node == nil {
		return n, m, false
	}
	return *answer.Members[0].Node, answer.Members[0], true
}
