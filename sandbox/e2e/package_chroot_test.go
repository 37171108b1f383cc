// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// imageRoot is a Debian tree that was never booted, as in an image build.
type imageRoot struct{ dir string }

// newImage mounts an overlay on the tree that the other tests boot, or on the one that variables of boot.sh describe.
func newImage(t *testing.T, variables ...string) imageRoot {
	t.Helper()
	giveUp := t.Skipf
	if os.Getenv("REQUIRE_SYSTEMD") != "" {
		giveUp = t.Fatalf
	}
	if os.Geteuid() != 0 {
		giveUp("a tree of Debian needs root")
	}
	work := t.TempDir()
	const script = `. "$1"
root=$(root_make "" </dev/null) || exit 77
mkdir "$2/top" "$2/disk"
mount -t tmpfs tmpfs "$2/top" && mkdir "$2/top/upper" "$2/top/work" || exit 77
mount -t overlay -o "lowerdir=$root,upperdir=$2/top/upper,workdir=$2/top/work" overlay "$2/disk" || exit 77`
	t.Cleanup(func() {
		for _, m := range []string{"disk", "top"} {
			_ = exec.Command("umount", filepath.Join(work, m)).Run()
		}
	})
	tree := exec.Command("bash", "-c", script, "bash", "../nspawn/boot.sh", work)
	tree.Env = append(os.Environ(), variables...)
	if out, err := tree.CombinedOutput(); err != nil {
		giveUp("no tree can be had here: it needs debootstrap, a mirror, and overlays: %v\n%s", err, out)
	}
	return imageRoot{filepath.Join(work, "disk")}
}

// run runs a program outside of the tree, with standard input closed, and returns its standard error.
func (i imageRoot) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	var said bytes.Buffer
	cmd.Stderr = &said
	if out, err := cmd.Output(); err != nil {
		t.Fatalf("%s %v: %v\n%s%s", name, args, err, out, said.Bytes())
	}
	var lines strings.Builder
	for line := range strings.Lines(said.String()) {
		if !strings.HasPrefix(line, "rpm: ") { // a warning of Debian's build of rpm
			lines.WriteString(line)
		}
	}
	return lines.String()
}

func (i imageRoot) enabled(unit string) bool {
	_, err := os.Lstat(i.dir + "/etc/systemd/system/multi-user.target.wants/" + unit)
	return err == nil
}

// wantEnabled checks both units.
func (i imageRoot) wantEnabled(t *testing.T, when string, want bool) {
	t.Helper()
	for _, unit := range []string{daemonUnit, convergeUnit} {
		if got := i.enabled(unit); got != want {
			t.Errorf("%s %s is enabled: %v, want %v", when, unit, got, want)
		}
	}
}

func (i imageRoot) list(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sh", "-euc", `cd "$1"; find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./var/lib/dpkg -o -path ./var/lib/rpm -o -path ./var/log -o -path ./var/cache \
	-o -path ./tmp -o -path ./image \) -prune -o -printf '%p %y %m %U:%G %l\n' | sort`, "sh", i.dir).Output()
	must.OK(t, err)
	return string(out)
}

// TestPackageImage installs without a running system: in a folder, as debootstrap, mkosi and Packer's chroots do.
func TestPackageImage(t *testing.T) {
	set := packages(t)
	i := newImage(t)
	for _, dir := range []string{"/image", "/usr/share/licenses", "/var/lib/rpm"} {
		must.OK(t, os.MkdirAll(i.dir+dir, 0o755))
	}
	for _, version := range []string{packageOld, packageNew} {
		nodeCopy(t, set.deb[version], i.dir+"/image/"+version+".deb")
	}
	pure := i.list(t)
	nothingLeft := func(t *testing.T) {
		t.Helper()
		if now := i.list(t); now != pure {
			t.Errorf("not as before\n%s", nodeDifference(strings.SplitAfter(pure, "\n"), strings.SplitAfter(now, "\n")))
		}
	}
	dpkg := func(t *testing.T, args ...string) {
		t.Helper()
		if said := i.run(t, "chroot", append([]string{i.dir, "dpkg"}, args...)...); strings.Contains(said, "amsagent:") {
			t.Errorf("dpkg %v: %s", args, said)
		}
	}

	t.Run("deb", func(t *testing.T) {
		dpkg(t, "-i", "/image/"+packageOld+".deb")
		i.wantEnabled(t, "after the installation", true)
		i.run(t, "chroot", i.dir, "systemctl", "disable", "-q", daemonUnit)
		dpkg(t, "-i", "/image/"+packageNew+".deb")
		if i.enabled(daemonUnit) || !i.enabled(convergeUnit) {
			t.Error("an upgrade enables or disables units")
		}
		i.run(t, "chroot", i.dir, "systemctl", "enable", "-q", daemonUnit)
		dpkg(t, "-r", "amsagent")
		i.wantEnabled(t, "after the removal", true) // as Debian has it: it is configuration
		dpkg(t, "-P", "amsagent")
		i.wantEnabled(t, "after the purge", false)
		nothingLeft(t)
	})
	t.Run("again", func(t *testing.T) {
		// A reinstallation and a downgrade do not prompt, do not enable or disable units, and keep the operator's files.
		dpkg(t, "-i", "/image/"+packageNew+".deb")
		if files := i.run(t, "chroot", i.dir, "dpkg-query", "-W", "-f", "${Conffiles}", "amsagent"); strings.TrimSpace(files) != "" {
			t.Errorf("files that an upgrade would ask about: %s", files)
		}
		i.run(t, "chroot", i.dir, "systemctl", "disable", "-q", daemonUnit)
		const mine = "role: edge # mine\n"
		config := i.dir + "/etc/amsagent/config.yaml"
		must.OK(t, os.MkdirAll(filepath.Dir(config), 0o755))
		must.OK(t, os.WriteFile(config, []byte(mine), 0o644))
		for _, version := range []string{packageNew, packageOld, packageOld, packageNew} {
			dpkg(t, "-i", "/image/"+version+".deb")
			if said := i.run(t, "chroot", i.dir, "dpkg", "--verify", "amsagent"); said != "" {
				t.Errorf("%s: %s", version, said)
			}
			if b, err := os.ReadFile(config); err != nil || string(b) != mine {
				t.Errorf("%s: the settings are %q, %v", version, b, err)
			}
			if i.enabled(daemonUnit) || !i.enabled(convergeUnit) {
				t.Errorf("%s: units were enabled or disabled", version)
			}
		}
		dpkg(t, "-P", "amsagent")
		nothingLeft(t)
	})
	t.Run("preset", func(t *testing.T) {
		preset := i.dir + "/etc/systemd/system-preset"
		must.OK(t, os.MkdirAll(preset, 0o755))
		must.OK(t, os.WriteFile(preset+"/00-mine.preset", []byte("disable amsagent*\n"), 0o644))
		dpkg(t, "-i", "/image/"+packageNew+".deb")
		i.wantEnabled(t, "against a preset", false)
		dpkg(t, "-P", "amsagent")
		must.OK(t, os.RemoveAll(preset))
		nothingLeft(t)
	})
	t.Run("without systemd", func(t *testing.T) {
		i.run(t, "mv", i.dir+"/bin/systemctl", i.dir+"/image/systemctl")
		dpkg(t, "-i", "/image/"+packageNew+".deb")
		i.wantEnabled(t, "without systemctl", true)
		dpkg(t, "-i", "/image/"+packageOld+".deb")
		dpkg(t, "-P", "amsagent")
		i.run(t, "mv", i.dir+"/image/systemctl", i.dir+"/bin/systemctl")
		nothingLeft(t)
	})
	t.Run("words", func(t *testing.T) {
		// dpkg passes these arguments mostly after errors that a test cannot cause. The scripts change nothing and succeed.
		dpkg(t, "-i", "/image/"+packageNew+".deb")
		before := i.list(t)
		info := "/var/lib/dpkg/info/amsagent."
		for _, call := range [][]string{
			{"postinst", "abort-upgrade", packageOld},
			{"postinst", "abort-remove"},
			{"postinst", "abort-remove", "in-favour", "x", "1"},
			{"postinst", "abort-deconfigure", "in-favour", "x", "1"},
			{"postinst", "configure", packageOld},
			{"prerm", "upgrade", packageNew},
			{"prerm", "failed-upgrade", packageOld},
			{"prerm", "deconfigure", "in-favour", "x", "1"},
			{"prerm", "remove"},
			{"prerm", "remove", "in-favour", "x", "1"},
			{"postrm", "upgrade", packageNew},
			{"postrm", "failed-upgrade", packageOld},
			{"postrm", "abort-install"},
			{"postrm", "abort-upgrade", packageOld},
			{"postrm", "disappear", "x", "1"},
			{"postrm", "remove"},
		} {
			if said := i.run(t, "chroot", append([]string{i.dir, info + call[0]}, call[1:]...)...); said != "" {
				t.Errorf("%v: %s", call, said)
			}
		}
		if now := i.list(t); now != before {
			t.Errorf("something changed\n%s", nodeDifference(strings.SplitAfter(before, "\n"), strings.SplitAfter(now, "\n")))
		}
		if said := i.run(t, "chroot", i.dir, info+"postinst", "dance"); !strings.Contains(said, "nothing is known of dance") {
			t.Errorf("an unknown action: %s", said)
		}
		dpkg(t, "-P", "amsagent")
		nothingLeft(t)
	})
	t.Run("rpm", func(t *testing.T) {
		rpm := func(args ...string) string {
			t.Helper()
			return i.run(t, packageTool(t, "rpm"), append([]string{"--root", i.dir, "--dbpath", "/var/lib/rpm", "--nodeps"}, args...)...)
		}
		// The wrapper of /bin/sh records the arguments of each script.
		note := func() {
			t.Helper()
			i.run(t, "sh", "-euc", `mv "$1/bin/sh" "$1/image/sh"; cat >"$1/bin/sh" <<'NOTE'
#!/bin/dash
case ${1:-} in /var/tmp/rpm-tmp.*) echo "$(/usr/bin/sed -n 's/^# \(After the files are\|Before the files\) \(there\|gone\|go\)[ ,].*/\2/p' "$1") $2" >>/image/told ;; esac
exec /bin/dash "$@"
NOTE
chmod 755 "$1/bin/sh"`, "sh", i.dir)
		}
		note()
		wantCalls := func(want string) {
			t.Helper()
			b, err := os.ReadFile(i.dir + "/image/told")
			if err != nil || string(b) != want {
				t.Errorf("the scripts' arguments are %q, %v; want %q", b, err, want)
			}
			_ = os.Remove(i.dir + "/image/told")
		}
		if said := rpm("-i", set.rpm[packageOld]); said != "" {
			t.Error(said)
		}
		wantCalls("there 1\n")
		i.wantEnabled(t, "after the installation", true)
		i.run(t, "chroot", i.dir, "systemctl", "disable", "-q", daemonUnit)
		if said := rpm("-U", set.rpm[packageNew]); said != "" {
			t.Error(said)
		}
		wantCalls("there 2\ngo 1\ngone 1\n")
		if i.enabled(daemonUnit) || !i.enabled(convergeUnit) {
			t.Error("an upgrade enables or disables units")
		}
		if said := rpm("-V", "amsagent"); said != "" {
			t.Error(said)
		}
		// A reinstallation, a downgrade and an upgrade.
		for _, step := range [][]string{{"--replacepkgs", packageNew}, {"--oldpackage", packageOld}, {"", packageNew}} {
			args := []string{"-U", set.rpm[step[1]]}
			if step[0] != "" {
				args = slices.Insert(args, 1, step[0])
			}
			if said := rpm(args...); said != "" {
				t.Errorf("%v: %s", step, said)
			}
			// The scripts must see neither a first installation nor a removal.
			b, err := os.ReadFile(i.dir + "/image/told")
			if err != nil || !strings.HasPrefix(string(b), "there 2\n") || strings.Contains(string(b), " 0\n") {
				t.Errorf("%v: the scripts' arguments are %q, %v", step, b, err)
			}
			_ = os.Remove(i.dir + "/image/told")
			if i.enabled(daemonUnit) || !i.enabled(convergeUnit) {
				t.Errorf("%v: units were enabled or disabled", step)
			}
		}
		// Files that an agent leaves behind.
		for _, f := range []string{"/etc/amsagent/config.yaml", "/var/lib/amsagent/drain.json"} {
			must.OK(t, os.MkdirAll(filepath.Dir(i.dir+f), 0o700))
			must.OK(t, os.WriteFile(i.dir+f, nil, 0o600))
		}
		if said := rpm("-e", "amsagent"); said != "" {
			t.Error(said)
		}
		wantCalls("go 0\ngone 0\n")
		i.run(t, "mv", i.dir+"/image/sh", i.dir+"/bin/sh")
		nothingLeft(t)
	})
}
