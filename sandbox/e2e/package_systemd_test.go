// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// TestSystemdPackage installs, upgrades and removes the agent on one machine, first as a .deb and then as an .rpm. Each step
// depends on the one before.
func TestSystemdPackage(t *testing.T) {
	set := packages(t)
	p := &packaged{machine: newMachine(t), set: set}
	p.prepare(t)
	for _, step := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"Install", p.installDeb},
		{"Quiet", p.quiet},
		{"Join", p.joinNode},
		{"Credential", p.credential},
		{"Upgrade", func(t *testing.T) { p.upgrade(t, func() nodeRun { return p.dpkg(t, "-i", packageNew) }) }},
		{"UpgradeOfWhatIsStopped", p.upgradeStopped},
		{"UpgradeWithWrongSettings", p.upgradeWrong},
		{"PolicyForbids", p.policy},
		{"Loop", p.loop},
		{"Remove", p.removeDeb},
		{"Reinstall", p.reinstallDeb},
		{"PurgeOfANode", p.purgeNode},
		{"LeaveAndPurge", p.leaveAndPurge},
		{"Rpm", p.rpmStory},
	} {
		if !t.Run(step.name, step.do) {
			t.Logf("the agent said:\n%s", p.run(t, "sh", "-c", "systemctl list-jobs; journalctl --no-pager -b -o short-precise -u 'amsagent*' -u antmedia -u waits").stdout)
			t.FailNow()
		}
	}
}

// packaged is a machine with Ant Media Server and a cloud, and without an agent.
type packaged struct {
	*machine
	set  packageSet
	pure []string // all files before the first installation
}

// prepare removes the agent that other tests expect on the disk, boots the machine and lists all files.
func (p *packaged) prepare(t *testing.T) {
	p.onDisk(t, `chroot "$1" systemctl disable -q amsagent-node amsagent
rm -r "$1"/usr/bin/amsagent "$1"/usr/lib/systemd/system/amsagent* "$1/etc/amsagent"
mkdir -p "$1/opt/packages" "$1/var/lib/rpm" "$1/etc/credstore"
mkdir -p "$1/usr/share/licenses" # as on every distribution that has rpm`)
	for _, files := range []map[string]string{p.set.deb, p.set.rpm} {
		for _, f := range files {
			nodeCopy(t, f, p.disk+"/opt/packages/"+filepath.Base(f))
		}
	}
	p.boot(t)
	must.Until(t, "a standalone server", func() bool { return p.mode(t) == "standalone" })
	p.pure = p.everything(t)
}

// everything lists the machine's files, without those that change by themselves, and the contents that an agent could change.
func (p *packaged) everything(t *testing.T) []string {
	t.Helper()
	list := p.sh(t, `find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp -o -path /var/log \
	-o -path /opt/cloud -o -path /opt/packages -o -path /var/lib/dpkg -o -path /var/lib/rpm -o -path /var/cache \
	-o -path /var/lib/systemd/random-seed -o -path /var/lib/systemd/timesync -o -path /var/lib/private \) -prune -o -printf '%p %y %m %u:%g %l\n' | sort
find /run -xdev -path '*amsagent*' ! -path '/run/systemd/propagate*' | sort`)
	return append(strings.Split(strings.TrimSpace(list), "\n"), p.bytes(t)...)
}

// nothingLeft compares the files with those before the first installation.
func (p *packaged) nothingLeft(t *testing.T) {
	t.Helper()
	if now := p.everything(t); !slices.Equal(p.pure, now) {
		t.Errorf("not as before\n%s", nodeDifference(p.pure, now))
	}
	// The cloud's units refer to the agent's, so systemd lists them as not-found.
	for line := range strings.Lines(p.run(t, "systemctl", "list-units", "--all", "--no-legend", "--plain", "amsagent*").stdout) {
		if !strings.Contains(line, " not-found ") {
			t.Errorf("systemd still has %s", line)
		}
	}
}

func (p *packaged) dpkg(t *testing.T, verb, version string) nodeRun {
	t.Helper()
	r := p.run(t, "dpkg", verb, "/opt/packages/"+filepath.Base(p.set.deb[version]))
	r.expect(t, 0)
	return r
}

// has checks the state of both units, and whether they are enabled.
func (p *packaged) has(t *testing.T, enabled, daemon string) {
	t.Helper()
	for _, unit := range []string{daemonUnit, convergeUnit} {
		if got := strings.TrimSpace(p.run(t, "systemctl", "is-enabled", unit).stdout); got != enabled {
			t.Errorf("%s is %s, want %s", unit, got, enabled)
		}
	}
	if got := p.unit(t, daemonUnit)["ActiveState"]; got != daemon {
		t.Errorf("the daemon is %s, want %s", got, daemon)
	}
}

// silent checks that do does not restart the server and does not change the number of records.
func (p *packaged) silent(t *testing.T, do func()) {
	t.Helper()
	server, starts, rows := p.unit(t, nodeUnit)["InvocationID"], len(p.started(t)), len(p.rows(t))
	do()
	if p.unit(t, nodeUnit)["InvocationID"] != server || len(p.started(t)) != starts {
		t.Error("the server was restarted")
	}
	if now := len(p.rows(t)); now != rows {
		t.Errorf("%d rows, before %d", now, rows)
	}
}

func (p *packaged) installDeb(t *testing.T) {
	p.silent(t, func() {
		r := p.dpkg(t, "-i", packageOld)
		if strings.Contains(r.stderr, "amsagent:") {
			t.Errorf("%s", r)
		}
		t.Logf("installed in %s", r.took.Round(time.Millisecond))
	})
	p.has(t, "enabled", "inactive")
	if got := p.agent(t, 0, "version").stdout; !strings.HasPrefix(got, "amsagent v0.1.0 ") {
		t.Error(got)
	}
	if got := p.run(t, "dpkg", "--verify", "amsagent"); got.stdout != "" {
		t.Errorf("files are not as in the package: %s", got)
	}
	// The package has an empty folder for the operator's settings.
	if all, err := os.ReadDir(p.Path("/etc/amsagent")); err != nil || len(all) > 0 {
		t.Errorf("/etc/amsagent after the installation: %v, %v", all, err)
	}
	for _, dir := range []string{"/var/lib/amsagent", "/run/amsagent"} {
		if _, err := os.Stat(p.Path(dir)); err == nil {
			t.Errorf("an installation made %s", dir)
		}
	}
	p.unitFiles(t)
}

// unitFiles checks the units with the machine's own systemd.
func (p *packaged) unitFiles(t *testing.T) {
	t.Helper()
	r := p.run(t, "systemd-analyze", "verify", "--man=no", daemonUnit, convergeUnit)
	r.expect(t, 0)
	if r.stderr != "" {
		t.Errorf("systemd complains: %s", r.stderr)
	}
}

// quiet: without a MongoDB URI the machine boots, and its daemon waits and logs little.
func (p *packaged) quiet(t *testing.T) {
	p.reboot(t, func() {})
	p.run(t, "sleep", "7") // longer than RestartSec
	p.has(t, "enabled", "active")
	u := p.unit(t, daemonUnit)
	if u["NRestarts"] != "0" || !strings.Contains(u["StatusText"], "waiting for amsagent join") {
		t.Errorf("the daemon is %v", u)
	}
	said := p.journal(t)
	if strings.Contains(said, "level=WARN") || strings.Contains(said, "level=ERROR") || strings.Count(said, "amsagent[") > 8 {
		t.Errorf("it says:\n%s", said)
	}
	if len(p.rows(t)) != 0 || p.mode(t) != "standalone" {
		t.Errorf("it joined: %v", p.rows(t))
	}
	// The unit's restrictions apply.
	status := p.read(t, "/proc/"+u["MainPID"]+"/status")
	for _, want := range []string{"CapBnd:\t000000000000000f\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
}

// joinNode: a unit that waits for the node starts once the node is active.
func (p *packaged) joinNode(t *testing.T) {
	// As docs/packages.md has it.
	p.sh(t, `systemd-run -q --no-block --unit=waits -p Type=oneshot -p RemainAfterExit=yes -p TimeoutStartSec=infinity -p "ExecStartPre=/usr/bin/amsagent status --wait active --timeout 10m" true`)
	p.run(t, "sleep", "2")
	if got := p.unit(t, "waits.service")["ActiveState"]; got != "activating" {
		t.Errorf("the unit that waits for the node is %s before the join", got)
	}
	p.agent(t, 0, "join", "--mongo", nodeMongo).says(t, "joined: ")
	p.active(t, nodeID, nodeAddress)
	must.Until(t, "the unit that waits for a node", func() bool { return p.unit(t, "waits.service")["ActiveState"] == "active" })
	p.sh(t, "systemctl stop waits")
	// From here on a short heartbeat interval keeps the waits short.
	p.write(t, "/etc/amsagent/config.yaml", "beat_interval: 1s\n")
	p.sh(t, "systemctl restart amsagent")
	p.active(t, nodeID, nodeAddress)
}

// credential: the connection string need not be in a file below /etc/amsagent.
func (p *packaged) credential(t *testing.T) {
	p.write(t, "/etc/credstore/amsagent.mongo", nodeMongo+"\n")
	p.sh(t, `chmod 0600 /etc/credstore/amsagent.mongo; mv /etc/amsagent/mongo /etc/amsagent/aside
mkdir -p /run/systemd/system/amsagent.service.d
printf '[Service]\nLoadCredential=amsagent.mongo:/etc/credstore/amsagent.mongo\n' >/run/systemd/system/amsagent.service.d/credential.conf
systemctl daemon-reload; systemctl restart amsagent`)
	p.active(t, nodeID, nodeAddress)
	p.sh(t, `rm -r /etc/credstore/amsagent.mongo /run/systemd/system/amsagent.service.d; mv /etc/amsagent/aside /etc/amsagent/mongo
systemctl daemon-reload; systemctl restart amsagent`)
	p.active(t, nodeID, nodeAddress)
}

// upgrade: an upgrade restarts the daemon, and the node stays active all the time.
func (p *packaged) upgrade(t *testing.T, do func() nodeRun) {
	was := p.active(t, nodeID, nodeAddress)
	daemon, node := p.unit(t, daemonUnit), p.unit(t, convergeUnit)
	// Poll the record during the upgrade.
	states, end := map[string]int{}, make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			r := p.rows(t)[nodeID]
			if s, _ := r["state"].(string); r != nil {
				states[s]++
			}
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	p.silent(t, func() {
		r := do()
		r.expect(t, 0)
		if strings.Contains(r.stderr, "amsagent:") {
			t.Errorf("%s", r)
		}
		t.Logf("upgraded in %s", r.took.Round(time.Millisecond))
		p.beats(t, nodeID, 2)
	})
	close(end)
	watch.Wait()
	now := p.active(t, nodeID, nodeAddress)
	if len(states) != 1 || states["active"] < 10 {
		t.Errorf("the record's states during the upgrade: %v", states)
	}
	for _, k := range []string{"state", "state_since", "boot_id", "ip"} {
		if now[k] != was[k] {
			t.Errorf("the row's %s was %v and is %v", k, was[k], now[k])
		}
	}
	if now["agent_version"] == was["agent_version"] || now["agent_version"] != "v0.2.0-rc.1" {
		t.Errorf("the row's agent was %v and is %v", was["agent_version"], now["agent_version"])
	}
	if d := p.unit(t, daemonUnit); d["InvocationID"] == daemon["InvocationID"] || d["Result"] != "success" || d["NRestarts"] != "0" {
		t.Errorf("the daemon was %v and is %v", daemon, d)
	}
	if n := p.unit(t, convergeUnit); n["InvocationID"] != node["InvocationID"] || n["ActiveState"] != "active" {
		t.Errorf("%s was %v and is %v", convergeUnit, node, n)
	}
	p.has(t, "enabled", "active")
	p.unitFiles(t)
	if nodes := p.clusternode(t); len(nodes) != 1 {
		t.Errorf("clusternode: %+v", nodes)
	}
}

// upgradeStopped: an upgrade does not start a stopped daemon and does not enable a disabled unit.
func (p *packaged) upgradeStopped(t *testing.T) {
	p.sh(t, "systemctl stop amsagent; systemctl disable -q amsagent-node")
	p.silent(t, func() { p.dpkg(t, "-i", packageNew) })
	if u := p.unit(t, daemonUnit); u["ActiveState"] != "inactive" || u["UnitFileState"] != "enabled" {
		t.Errorf("a daemon that was stopped is %v after an upgrade", u)
	}
	if u := p.unit(t, convergeUnit); u["ActiveState"] != "active" || u["UnitFileState"] != "disabled" {
		t.Errorf("a unit that was disabled is %v after an upgrade", u)
	}
	p.sh(t, "systemctl enable -q amsagent-node; systemctl start amsagent")
	p.active(t, nodeID, nodeAddress)
}

// upgradeWrong: an upgrade reports invalid settings, and the daemon still runs. An upgrade starts a failed daemon if its unit is
// enabled.
func (p *packaged) upgradeWrong(t *testing.T) {
	const config, good = "/etc/amsagent/config.yaml", "beat_interval: 1s\n"
	for _, wrong := range []string{good + "roel: edge\n", "beat_interval: [\n"} {
		p.write(t, config, wrong)
		p.silent(t, func() {
			if r := p.dpkg(t, "-i", packageNew); !strings.Contains(r.stderr, "[AGENT-CONFIG]") {
				t.Errorf("nothing is printed of %q: %s", wrong, r)
			}
			p.active(t, nodeID, nodeAddress)
		})
		if got := p.agent(t, 0, "status").stdout; !strings.Contains(got, "AGENT-CONFIG: ") {
			t.Errorf("with %q:\n%s", wrong, got)
		}
	}
	p.sh(t, "rm /var/lib/amsagent/config.yaml.good; systemctl restart amsagent || true")
	if u := p.unit(t, daemonUnit); u["ActiveState"] != "failed" || u["ExecMainStatus"] != "2" {
		t.Errorf("without the last good settings it is %v", u)
	}
	p.write(t, config, good)
	p.sh(t, "systemctl disable -q amsagent")
	p.dpkg(t, "-i", packageNew)
	if u := p.unit(t, daemonUnit); u["ActiveState"] != "failed" {
		t.Errorf("a daemon that is disabled is %v after an upgrade", u)
	}
	p.sh(t, "systemctl enable -q amsagent")
	p.silent(t, func() {
		p.dpkg(t, "-i", packageNew)
		p.active(t, nodeID, nodeAddress)
	})
}

// policy: an upgrade obeys policy-rc.d, which image builds use to start no services.
func (p *packaged) policy(t *testing.T) {
	p.sh(t, `printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d`)
	was := p.unit(t, daemonUnit)["InvocationID"]
	p.silent(t, func() { p.dpkg(t, "-i", packageNew) })
	if now := p.unit(t, daemonUnit); now["InvocationID"] != was || now["ActiveState"] != "active" {
		t.Errorf("against the policy the daemon became %v", now)
	}
	p.sh(t, "rm /usr/sbin/policy-rc.d")
}

// loop: systemd stops restarting a daemon that always fails. A join starts it again.
func (p *packaged) loop(t *testing.T) {
	p.silent(t, func() {
		p.sh(t, `mkdir -p /run/systemd/system/amsagent.service.d
printf '[Service]\nRestartSec=10ms\nExecStart=\nExecStart=/bin/sh -c "kill -KILL $$$$"\n' >/run/systemd/system/amsagent.service.d/loop.conf
systemctl daemon-reload; systemctl restart --no-block amsagent`)
		must.Until(t, "the end of the loop", func() bool { return p.unit(t, daemonUnit)["ActiveState"] == "failed" })
		u := p.unit(t, daemonUnit)
		t.Logf("given up after %s restarts", u["NRestarts"])
		if n := micros(t, u["NRestarts"]); n < 5 || n > 20 {
			t.Errorf("the daemon is %v", u)
		}
		p.sh(t, "rm -r /run/systemd/system/amsagent.service.d; systemctl daemon-reload")
		p.agent(t, 0, "join").says(t, "nothing to do")
		p.active(t, nodeID, nodeAddress)
	})
}

func (p *packaged) removeDeb(t *testing.T) {
	row := p.rows(t)[nodeID]
	p.silent(t, func() {
		r := p.run(t, "dpkg", "-r", "amsagent")
		r.expect(t, 0)
		if !strings.Contains(r.stderr, "amsagent: this machine stays a node of its cluster") {
			t.Errorf("it does not say what becomes of the node: %s", r)
		}
	})
	if now := p.rows(t)[nodeID]; now["state"] != "active" || now["state_since"] != row["state_since"] {
		t.Errorf("the row is %v, before %v", now, row)
	}
	if p.mode(t) != "cluster" {
		t.Error("the server does not serve as a node any more")
	}
	if got := p.run(t, "systemctl", "is-active", daemonUnit, convergeUnit).stdout; strings.Contains(got, "\nactive") || strings.HasPrefix(got, "active") {
		t.Errorf("the units are %s", got)
	}
	if got := p.run(t, "pgrep", "-x", "amsagent").stdout; got != "" {
		t.Errorf("the agent still runs: %s", got)
	}
	for _, kept := range []string{"/etc/amsagent/mongo", "/etc/amsagent/config.yaml", "/var/lib/amsagent/state.json", nodeDropIn} {
		if _, err := os.Stat(p.Path(kept)); err != nil {
			t.Errorf("a removal took %v", err)
		}
	}
}

func (p *packaged) reinstallDeb(t *testing.T) {
	p.silent(t, func() {
		p.dpkg(t, "-i", packageNew)
		p.active(t, nodeID, nodeAddress)
	})
	p.beats(t, nodeID, 2)
	p.has(t, "enabled", "active")
	// This unit deregisters the node when the machine shuts down.
	if u := p.unit(t, convergeUnit); u["ActiveState"] != "active" {
		t.Errorf("%s is %v", convergeUnit, u)
	}
	if _, err := os.Stat(p.Path("/var/lib/amsagent/resume")); err == nil {
		t.Error("the mark of the removal is still there")
	}
}

// purgeNode: a purge of a node keeps the files that a leave needs, and says so.
func (p *packaged) purgeNode(t *testing.T) {
	p.silent(t, func() {
		r := p.run(t, "dpkg", "-P", "amsagent")
		r.expect(t, 0)
		if !strings.Contains(r.stderr, "amsagent: this machine is still a node of its cluster: /var/lib/amsagent and /etc/amsagent are kept") {
			t.Errorf("%s", r)
		}
	})
	if _, err := os.Stat(p.Path("/var/lib/amsagent/undo.json")); err != nil {
		t.Error(err)
	}
	if got := p.run(t, "sh", "-c", "ls -d /etc/systemd/system/*/amsagent*").stdout; got != "" {
		t.Errorf("still enabled: %s", got)
	}
}

func (p *packaged) leaveAndPurge(t *testing.T) {
	p.dpkg(t, "-i", packageNew)
	p.active(t, nodeID, nodeAddress)
	p.sh(t, `mkdir -p /etc/systemd/system/amsagent.service.d; printf '[Service]\nNice=1\n' >/etc/systemd/system/amsagent.service.d/mine.conf`)
	p.agent(t, 0, "leave").says(t, "left: ")
	p.has(t, "disabled", "inactive")
	// An upgrade does not enable what the leave disabled.
	p.silent(t, func() { p.dpkg(t, "-i", packageNew) })
	p.has(t, "disabled", "inactive")
	p.silent(t, func() {
		r := p.run(t, "dpkg", "-P", "amsagent")
		r.expect(t, 0)
		if strings.Contains(r.stderr, "amsagent:") {
			t.Errorf("%s", r)
		}
	})
	p.nothingLeft(t)
}

// rpmStory repeats the steps with rpm, which passes its scripts a count of installed versions.
func (p *packaged) rpmStory(t *testing.T) {
	p.installRpm(t)
	rpm := func(args ...string) nodeRun {
		t.Helper()
		r := p.run(t, append([]string{"rpm", "--dbpath", "/var/lib/rpm", "--nodeps"}, args...)...)
		r.expect(t, 0)
		// Debian's build of rpm prints warnings.
		said := ""
		for line := range strings.Lines(r.stderr) {
			if !strings.HasPrefix(line, "rpm: ") {
				said += line
			}
		}
		r.stderr = said
		return r
	}
	file := func(version string) string { return "/opt/packages/" + filepath.Base(p.set.rpm[version]) }
	p.silent(t, func() {
		if r := rpm("-i", file(packageOld)); r.stderr != "" {
			t.Errorf("%s", r)
		}
	})
	p.has(t, "enabled", "inactive")
	p.agent(t, 0, "join", "--mongo", nodeMongo)
	p.write(t, "/etc/amsagent/config.yaml", "beat_interval: 1s\n")
	p.sh(t, "systemctl restart amsagent")
	p.active(t, nodeID, nodeAddress)
	p.upgrade(t, func() nodeRun { return rpm("-U", file(packageNew)) })
	p.silent(t, func() {
		if r := rpm("-e", "amsagent"); !strings.Contains(r.stderr, "stays a node of its cluster") || !strings.Contains(r.stderr, "are kept") {
			t.Errorf("%s", r)
		}
	})
	if got := p.run(t, "pgrep", "-x", "amsagent").stdout; got != "" {
		t.Errorf("the agent still runs: %s", got)
	}
	p.silent(t, func() {
		rpm("-i", file(packageNew))
		p.active(t, nodeID, nodeAddress)
	})
	p.agent(t, 0, "leave").says(t, "left: ")
	if r := rpm("-e", "amsagent"); r.stderr != "" {
		t.Errorf("%s", r)
	}
	p.sh(t, "umount /usr/local/sbin")
	p.nothingLeft(t)
}

// installRpm copies this host's rpm to the machine. The test is skipped if it does not run there.
func (p *packaged) installRpm(t *testing.T) {
	t.Helper()
	rpm := packageTool(t, "rpm")
	out, err := exec.Command("sh", "-euc", `cp "$1" "$2/opt/packages/rpm"; mkdir -p "$2/opt/packages/lib"; cp -a /usr/lib/rpm "$2/opt/packages/config"
ldd "$1" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | xargs -I{} cp -L {} "$2/opt/packages/lib/"`, "sh", rpm, p.disk).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.write(t, "/opt/packages/run-rpm", `#!/bin/sh
export RPM_CONFIGDIR=/opt/packages/config
exec "$(ls /lib64/ld-linux-*.so.* /lib/ld-linux-*.so.* 2>/dev/null | head -n 1)" --library-path /opt/packages/lib /opt/packages/rpm "$@"
`)
	p.sh(t, "mount -t tmpfs tmpfs /usr/local/sbin; install -m 0755 /opt/packages/run-rpm /usr/local/sbin/rpm")
	if r := p.run(t, "rpm", "--dbpath", "/var/lib/rpm", "-qa"); r.code != 0 {
		t.Skipf("this machine's rpm does not run in the other one: %s", r)
	}
}
