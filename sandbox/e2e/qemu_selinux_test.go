// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

// TestSELinux runs a node under an enforced SELinux policy without rules for the agent. Its disk is that of TestSystemdQEMU with
// labels. It is part of `make heavy`.
func TestSELinux(t *testing.T) {
	d := newGuestDisk(t)
	d.withPackage(t)
	d.label(t)
	g := &limited{d.boot(t, "security=selinux selinux=1 enforcing=1", guestInEC2()...)}
	defer func() {
		if t.Failed() {
			t.Logf("the agent said:\n%s\nrefused:\n%s", g.journal(t), g.refused(t, "."))
		}
	}()
	// dmesg has a domain of its own, which may write to no file below /run.
	if got := g.sh(t, "cat /sys/fs/selinux/enforce; dmesg >/run/guest/probe 2>/dev/null || true; wc -c </run/guest/probe"); got != "10\n" {
		t.Fatalf("nothing is enforced: %q", got)
	}
	const files = nodeHome + "/conf/red5.properties " + nodeHome + "/conf/jee-container.xml /etc/hosts"
	labels := "stat -c '%C %n' " + files
	want := "" // by the policy
	for line := range strings.Lines(g.sh(t, "matchpathcon "+files)) {
		path, label, _ := strings.Cut(strings.TrimSpace(line), "\t")
		want += label + " " + path + "\n"
	}

	// The node joins by the credential in its firmware.
	g.active(t)
	domain := strings.TrimRight(g.sh(t, "cat /proc/$(systemctl show amsagent -p MainPID --value)/attr/current"), "\x00\n")
	t.Logf("the daemon runs as %s", domain)
	if !strings.HasSuffix(domain, ":initrc_t:s0") {
		t.Errorf("that is not what Debian's policy starts a service as that it does not know")
	}
	if got := g.sh(t, labels); got != want {
		t.Errorf("the files' labels are\n%s\nwant\n%s", got, want)
	}
	for _, unit := range []string{daemonUnit, convergeUnit} {
		if u := g.unit(t, unit); u["Result"] != "success" || u["NRestarts"] != "0" {
			t.Errorf("%s is %v", unit, u)
		}
	}
	// The agent repairs a file that a server upgrade replaced, before the server starts. A leave restores all files.
	g.sh(t, `cd `+nodeHome+`/conf; cp jee-container.xml /root/joined; systemctl stop amsagent antmedia
cp /opt/cloud/vendor/conf/jee-container.xml .; ! cmp -s jee-container.xml /root/joined
systemctl restart amsagent-node; cmp jee-container.xml /root/joined; systemctl start antmedia amsagent`)
	g.active(t)
	g.sh(t, "amsagent leave")
	if got := g.sh(t, labels); got != want {
		t.Errorf("after a leave the files' labels are\n%s\nwant\n%s", got, want)
	}
	if got := g.refused(t, "amsagent|antmedia|initrc_t"); got != "" {
		t.Errorf("SELinux refused:\n%s", got)
	}
	t.Logf("refused to others:\n%s", g.refused(t, "."))
}

// refused returns SELinux denials that match pattern.
func (g *guest) refused(t *testing.T, pattern string) string {
	t.Helper()
	// This includes USER_AVC, from systemd and D-Bus. The denials of dmesg are the probe of the test.
	return g.run(t, "journalctl --no-pager -b -o cat | grep -aE 'avc: +denied' | grep -av dmesg_t | grep -aE '"+pattern+"' | cut -c1-300").stdout
}

// label sets each file's label by the policy. setfiles requires a running SELinux.
func (d *guestDisk) label(t *testing.T) {
	t.Helper()
	d.onDisk(t, `sed -i 's/^SELINUX=.*/SELINUX=enforcing/' "$1/etc/selinux/config"; mkdir "$1/etc/systemd/system/mongo.service.d"`)
	// mongod compiles JavaScript and does not start without execmem. The agent and the server do not need it.
	d.write(t, "/etc/systemd/system/mongo.service.d/execmem.conf", "[Service]\nExecStartPre=/usr/sbin/setsebool allow_execmem on\n")
	out, err := exec.Command("chroot", d.disk, "sh", "-c", `find / -xdev -print0 | xargs -0 matchpathcon`).Output()
	must.OK(t, err)
	labelled := 0
	for line := range strings.Lines(string(out)) {
		path, label, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !ok || label == "<<none>>" {
			continue
		}
		if err := unix.Lsetxattr(filepath.Join(d.disk, path), "security.selinux", []byte(label+"\x00"), 0); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		labelled++
	}
	t.Logf("%d files have labels", labelled)
}
