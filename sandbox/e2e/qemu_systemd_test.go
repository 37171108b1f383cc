// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

const (
	guestPassword = "s3cret-of-the-firmware"
	guestFirmware = "io.systemd.credential:amsagent.mongo=mongodb://ams:" + guestPassword + "@" + nodeMongo + "/admin"
	guestMiB      = 1 << 20
)

// TestSystemdQEMU tests what a container cannot, on a virtual machine: the units' limits are enforced, and the node survives
// them.
func TestSystemdQEMU(t *testing.T) {
	g := newLimited(t)
	for _, step := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"Firmware", g.firmware},
		{"Ceiling", g.ceiling},
		{"Devices", g.devices},
		{"ChildGrows", g.childGrows},
		{"DaemonGrows", g.daemonGrows},
		{"NeverFits", g.neverFits},
		{"Watchdog", g.watchdog},
		{"AppArmor", g.appArmor},
	} {
		if !t.Run(step.name, step.do) {
			t.Logf("the agent said:\n%s", g.journal(t))
			t.FailNow() // each step depends on the one before
		}
	}
}

// limited is a virtual machine that is a node.
type limited struct{ *guest }

// newLimited boots a machine with the package that has never joined. Its firmware is that of an EC2 instance and has the MongoDB
// URI.
func newLimited(t *testing.T) *limited {
	t.Helper()
	d := newGuestDisk(t)
	d.withPackage(t)
	return &limited{d.boot(t, "", guestInEC2()...)}
}

// guestInEC2 returns the SMBIOS values of an EC2 instance.
func guestInEC2() []string {
	return []string{
		"type=0,vendor=Amazon EC2",
		"type=1,manufacturer=Amazon EC2,product=c7i.2xlarge,uuid=ec2e1916-9099-7caf-fd21-012345abcdef",
		"type=2,asset=" + nodeID, "type=3,asset=Amazon EC2",
		"type=11,value=" + guestFirmware,
	}
}

// withPackage replaces the agent of the other tests by the .deb.
func (d *guestDisk) withPackage(t *testing.T) {
	t.Helper()
	d.onDisk(t, `chroot "$1" systemctl disable -q amsagent-node amsagent
rm -r "$1"/usr/bin/amsagent "$1"/usr/lib/systemd/system/amsagent*
sed -i 's/sandbox mongo /sandbox mongo --user ams:`+guestPassword+` /' "$1/etc/systemd/system/mongo.service"
mkdir -p "$1/opt/packages"`)
	nodeCopy(t, packages(t).deb[packageNew], d.disk+"/opt/packages/amsagent.deb")
	d.onDisk(t, `chroot "$1" dpkg -i /opt/packages/amsagent.deb >&2`)
	d.write(t, "/etc/amsagent/config.yaml", "beat_interval: 1s\n")
	for _, unit := range []string{daemonUnit, convergeUnit} {
		// Without a path systemd (Debian 12 or later) reads the system's credential.
		d.write(t, "/etc/systemd/system/"+unit+".d/credential.conf", "[Service]\nLoadCredential=amsagent.mongo\n")
	}
}

func (g *limited) journal(t *testing.T) string {
	t.Helper()
	return g.run(t, "journalctl --no-pager -b -o short-precise -u 'amsagent*' -u antmedia; journalctl --no-pager -k -b | grep -i oom | tail -n 20").stdout
}

// active waits until this node is active and healthy, and has sent another heartbeat.
func (g *limited) active(t *testing.T) cluster.Node {
	t.Helper()
	var last cluster.Node
	g.until(t, "an active, healthy node", func() bool {
		n, m, ok := g.node(t)
		last = n
		return ok && n.State == cluster.StateActive && m.Health == cluster.Healthy
	})
	seen := last.Seq
	g.until(t, "beats", func() bool {
		n, _, ok := g.node(t)
		last = n
		return ok && n.Seq != seen && n.Load != nil
	})
	g.until(t, "the status", func() bool { return strings.HasPrefix(g.unit(t, daemonUnit)["StatusText"], "active; ") })
	return last
}

// untouched checks that do, which may end the daemon, changes neither the node record nor any other unit.
func (g *limited) untouched(t *testing.T, do func()) {
	t.Helper()
	const others = "systemctl show antmedia mongo imds amsagent-node systemd-journald dbus -p Id,InvocationID,NRestarts"
	was, units := g.active(t), g.sh(t, others)
	events := g.sh(t, "wc -l <"+nodeStarts)
	do()
	now := g.active(t)
	if now.State != was.State || !now.StateSince.Equal(was.StateSince) || now.BootID != was.BootID || now.IP != was.IP || now.Reason != was.Reason {
		t.Errorf("the record was\n%+v\nand is\n%+v", was, now)
	}
	if got := g.sh(t, others); got != units {
		t.Errorf("the other units were\n%s\nand are\n%s", units, got)
	}
	if got := g.sh(t, "wc -l <"+nodeStarts); got != events {
		t.Errorf("the server was started %s times, before %s", got, events)
	}
}

// killed lists the processes that the OOM killer ended, as "group: name".
func (g *limited) killed(t *testing.T) (names []string) {
	t.Helper()
	for line := range strings.Lines(g.sh(t, "journalctl --no-pager -k -b -o cat | grep -a 'oom-kill:' || true")) {
		group, name := "", ""
		for _, f := range strings.Split(strings.TrimSpace(line), ",") {
			k, v, _ := strings.Cut(f, "=")
			switch k {
			case "task_memcg":
				group = v
			case "task":
				name = v
			}
		}
		names = append(names, strings.TrimPrefix(group, "/system.slice/")+": "+name)
	}
	return names
}

// firmware: the machine joined by the MongoDB URI in its firmware, and only root can read its password.
func (g *limited) firmware(t *testing.T) {
	g.active(t)
	if got := g.sh(t, "cat /run/credentials/@system/amsagent.mongo"); !strings.Contains(got, guestPassword) {
		t.Errorf("the credential is %q", got) // then the machine joined by another source
	}
	if got := g.sh(t, secretScript(guestPassword)); got != "" {
		t.Errorf("the password can be read by others:\n%s", got)
	}
}

// ceiling: the unit's limits apply in the kernel, and the daemon stays far below them.
func (g *limited) ceiling(t *testing.T) {
	for file, want := range map[string]string{
		"memory.max": "268435456", "memory.high": "max", "memory.swap.max": "0", "pids.max": "64", "memory.oom.group": "0",
	} {
		if got := strings.TrimSpace(g.sh(t, "cat /sys/fs/cgroup/system.slice/"+daemonUnit+"/"+file)); got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
	}
	// Measured after a request for the metrics.
	g.sh(t, `bash -c 'exec 3<>/dev/tcp/127.0.0.1/9771; printf "GET /metrics HTTP/1.0\r\n\r\n" >&3; grep -q ^amsagent_ <&3'`)
	current, peak, tasks := g.number(t, daemonUnit, "memory.current"), g.number(t, daemonUnit, "memory.peak"), g.number(t, daemonUnit, "pids.current")
	t.Logf("the daemon takes %.1f MiB of 256, at most %.1f until now, with the pages of its file; %d tasks of 64\n%s", float64(current)/guestMiB, float64(peak)/guestMiB, tasks,
		g.sh(t, "cd /sys/fs/cgroup/system.slice/"+daemonUnit+"; grep -E '^(anon|file|kernel) ' memory.stat; grep -E '^(VmHWM|VmRSS)' /proc/$(systemctl show amsagent -p MainPID --value)/status"))
	if peak > 64*guestMiB {
		t.Errorf("it took %d MiB: a quarter of its ceiling is what it may need", peak/guestMiB)
	}
	if tasks > 32 {
		t.Errorf("it has %d tasks", tasks)
	}
	pid := g.unit(t, daemonUnit)["MainPID"]
	if got := strings.TrimSpace(g.sh(t, "cat /proc/"+pid+"/oom_score_adj")); got != "-500" {
		t.Errorf("oom_score_adj is %s", got)
	}
}

// devices: the unit may open NVIDIA's devices and not a disk. "No such device or address" means that it got past the unit's rules:
// there is no driver here.
func (g *limited) devices(t *testing.T) {
	const opened = "/run/opened"
	g.sh(t, `mknod -m 666 /dev/nvidia0 c 195 0; mknod -m 666 /dev/nvidiactl c 195 255; mknod -m 666 /dev/nvidia-uvm c 511 0
cat >/usr/bin/nvidia-smi.new <<'END'
#!/bin/sh
for d in /dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm /dev/vda /dev/mem /dev/null; do
	(exec 3<$d) 2>&1 && echo "$d: opened"
done | sed 's/.*: cannot open //' >`+opened+`.new
mv `+opened+`.new `+opened+`
while :; do
	echo '0, 550.90.07, 37, 81, 12, 1874, 23034, NVIDIA L4'
	sleep 1
done
END
chmod 755 /usr/bin/nvidia-smi.new; mv /usr/bin/nvidia-smi.new /usr/bin/nvidia-smi; systemctl restart amsagent`)
	g.until(t, "a device in the row", func() bool {
		n, _, ok := g.node(t)
		return ok && n.Load != nil && len(n.Load.GPUs) == 1 && n.Load.GPUs[0].Name == "NVIDIA L4"
	})
	got := g.sh(t, "cat "+opened)
	t.Logf("in the unit:\n%s", got)
	for _, want := range []string{
		"/dev/nvidia0: No such device or address\n", "/dev/nvidiactl: No such device or address\n", "/dev/nvidia-uvm: No such device or address\n",
		"/dev/null: opened\n", "/dev/vda: Operation not permitted\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q", want)
		}
	}
	g.sh(t, "rm /usr/bin/nvidia-smi; systemctl restart amsagent")
}

// childGrows: nvidia-smi uses up the memory. The kernel ends only that process, and the heartbeats continue.
func (g *limited) childGrows(t *testing.T) {
	pid := g.unit(t, daemonUnit)["MainPID"]
	g.untouched(t, func() {
		before := len(g.killed(t))
		g.sh(t, `printf '#!/bin/sh\nexec tail /dev/zero\n' >/usr/bin/nvidia-smi; chmod 755 /usr/bin/nvidia-smi`)
		begin := time.Now()
		var longest time.Duration
		g.until(t, "the end of what grows", func() bool {
			_, m, ok := g.node(t)
			if ok && time.Duration(m.Agent.Age) > longest {
				longest = time.Duration(m.Agent.Age)
			}
			return len(g.killed(t)) > before
		})
		for _, k := range g.killed(t)[before:] {
			if k != daemonUnit+": tail" {
				t.Errorf("the kernel ended %q", k)
			}
		}
		t.Logf("ended within %s; the oldest beat seen was of %s", time.Since(begin).Round(time.Millisecond), longest.Round(time.Millisecond))
		// A process that is being killed may still allocate some pages.
		if peak := g.number(t, daemonUnit, "memory.peak"); peak > 264*guestMiB || peak < 250*guestMiB {
			t.Errorf("the ceiling is 256 MiB, and it had %d MiB", peak/guestMiB)
		}
		// The kernel throttled no process: it would have throttled the daemon, too.
		if events := g.sh(t, "cat /sys/fs/cgroup/system.slice/"+daemonUnit+"/memory.events"); !strings.Contains(events, "high 0\n") || !strings.Contains(events, "oom_group_kill 0\n") {
			t.Errorf("memory.events:\n%s", events)
		}
		g.sh(t, "rm /usr/bin/nvidia-smi")
	})
	if now := g.unit(t, daemonUnit); now["MainPID"] != pid || now["NRestarts"] != "0" {
		t.Errorf("the daemon was process %s and is %v", pid, now)
	}
	if said := g.journal(t); !strings.Contains(said, "nvidia-smi ended (signal: killed)") {
		t.Errorf("it said\n%s", said)
	}
	g.sh(t, "rm /dev/nvidia*")
}

// tighten lowers the memory limit to half of what the daemon uses. A daemon that has just started needs little more than that.
func (g *limited) tighten(t *testing.T, more string) {
	t.Helper()
	g.sh(t, "systemctl set-property --runtime amsagent.service MemoryMax=4M "+more)
}

func (g *limited) loosen(t *testing.T) {
	t.Helper()
	g.sh(t, "rm -r /run/systemd/system.control/amsagent.service.d; systemctl daemon-reload")
}

// daemonGrows: the kernel ends only the daemon, systemd restarts it, and the node record does not change.
func (g *limited) daemonGrows(t *testing.T) {
	was := g.unit(t, daemonUnit)
	g.untouched(t, func() {
		before := len(g.killed(t))
		g.tighten(t, "")
		g.until(t, "its end", func() bool {
			return g.unit(t, daemonUnit)["InvocationID"] != was["InvocationID"] || g.unit(t, daemonUnit)["MainPID"] == "0"
		})
		g.loosen(t)
		g.until(t, "another process", func() bool {
			u := g.unit(t, daemonUnit)
			return u["ActiveState"] == "active" && u["MainPID"] != was["MainPID"] && u["NRestarts"] != "0"
		})
		killed := g.killed(t)[before:]
		if len(killed) == 0 {
			t.Error("the kernel ended nothing")
		}
		for _, k := range killed {
			if k != daemonUnit+": amsagent" {
				t.Errorf("the kernel ended %q", k)
			}
		}
		t.Logf("ended %d times, restarted %s times", len(killed), g.unit(t, daemonUnit)["NRestarts"])
	})
	if got := g.number(t, daemonUnit, "memory.max"); got != 256*guestMiB {
		t.Errorf("the ceiling is %d again", got)
	}
}

// neverFits: systemd stops restarting a daemon that is always killed, and a join starts it once the cause is removed. The restart
// limits are lower than the unit's, with which this takes two minutes; packages.txtar uses the unit's limit.
func (g *limited) neverFits(t *testing.T) {
	for name, want := range map[string]string{"RestartUSec": "5s", "StartLimitBurst": "20", "StartLimitIntervalUSec": "15min"} {
		if got := strings.TrimSpace(g.sh(t, "systemctl show amsagent --value -p "+name)); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	before, err := strconv.Atoi(g.unit(t, daemonUnit)["NRestarts"])
	must.OK(t, err)
	g.untouched(t, func() {
		g.sh(t, `mkdir -p /run/systemd/system/amsagent.service.d
printf '[Unit]\nStartLimitBurst=5\n[Service]\nRestartSec=100ms\n' >/run/systemd/system/amsagent.service.d/quick.conf; systemctl daemon-reload`)
		g.tighten(t, "")
		begin := time.Now()
		g.until(t, "the end of the loop", func() bool { return g.unit(t, daemonUnit)["ActiveState"] == "failed" })
		u := g.unit(t, daemonUnit)
		n, err := strconv.Atoi(u["NRestarts"])
		t.Logf("given up after %d restarts in %s: %s", n-before, time.Since(begin).Round(time.Millisecond), u["Result"])
		// NRestarts includes the last restart, which systemd refuses.
		if n -= before; err != nil || n < 3 || n > 6 {
			t.Errorf("the daemon is %v", u)
		}
		if got := g.run(t, "amsagent status"); !strings.Contains(got.stdout, "active") || got.code != 0 {
			t.Logf("without a daemon status says %s", got)
		}
		g.sh(t, "rm -r /run/systemd/system/amsagent.service.d")
		g.loosen(t)
		g.sh(t, "amsagent join") // nothing to join, but a daemon to start
	})
}

// watchdog uses the unit's own timeout.
func (g *limited) watchdog(t *testing.T) {
	was := g.unit(t, daemonUnit)
	restarts, err := strconv.Atoi(was["NRestarts"])
	must.OK(t, err)
	g.untouched(t, func() {
		begin := time.Now()
		g.sh(t, "kill -STOP "+was["MainPID"])
		g.until(t, "another process", func() bool {
			u := g.unit(t, daemonUnit)
			return u["ActiveState"] == "active" && u["MainPID"] != was["MainPID"] && u["MainPID"] != "0" && u["NRestarts"] == strconv.Itoa(restarts+1)
		})
		took := time.Since(begin)
		t.Logf("replaced after %s", took.Round(time.Millisecond))
		if took < 20*time.Second {
			t.Errorf("that was not the watchdog: %s", took)
		}
	})
	if said := g.journal(t); !strings.Contains(said, "Watchdog timeout (limit 30s)") || !strings.Contains(said, "Failed with result 'watchdog'") {
		t.Errorf("that was not the watchdog:\n%s", said)
	}
}

// appArmor: AppArmor is on and has no profile for the agent. All steps above ran so.
func (g *limited) appArmor(t *testing.T) {
	if got := strings.TrimSpace(g.sh(t, "cat /sys/module/apparmor/parameters/enabled; cat /proc/"+g.unit(t, daemonUnit)["MainPID"]+"/attr/current")); got != "Y\nunconfined" {
		t.Errorf("AppArmor: %q", got)
	}
	if got := g.sh(t, "journalctl --no-pager -b -k | grep -a 'apparmor=\"DENIED\"' || true"); got != "" {
		t.Errorf("it refused something:\n%s", got)
	}
}

// secretScript lists the places where a reader of logs, or any user of the machine, can find a secret. It excepts the stand-in
// of the database, which has its users on its command line.
func secretScript(secret string) string {
	return `{ journalctl --no-pager -b; systemctl show --all amsagent amsagent-node antmedia; cat /run/amsagent/*.json; } | grep -F '` + secret + `' | grep -v 'sandbox mongo ' || true
for f in /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do
	words=$(tr '\0' ' ' <$f 2>/dev/null) || continue
	case $words in *"sandbox mongo "*) ;; *'` + secret + `'*) [ ${f%/*} = /proc/$$ ] || echo "$f: $words" ;; esac
done`
}
