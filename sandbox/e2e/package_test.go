// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/internal/must"
)

// Versions of the packages that the tests install: an upgrade is from the one to the other.
const (
	packageOld = "0.1.0"
	packageNew = "0.2.0~rc.1"
)

// packageSet is the packages of this machine's kind, by version.
type packageSet struct{ deb, rpm map[string]string }

var packagesOnce = sync.OnceValues(makePackages)

// packages makes those of two versions, once for all tests.
func packages(t *testing.T) packageSet {
	t.Helper()
	set, err := packagesOnce()
	must.OK(t, err)
	return set
}

func packageStep(dir string, env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return nil
}

func makePackages() (packageSet, error) {
	set := packageSet{map[string]string{}, map[string]string{}}
	// Beside what the tests of this package build, and removed with it.
	dir, err := os.MkdirTemp(bins.dir, "packages")
	if err != nil {
		return set, err
	}
	for version, described := range map[string]string{packageOld: "v0.1.0", packageNew: "v0.2.0-rc.1"} {
		build := filepath.Join(dir, described)
		if err := makePackage(build, described); err != nil {
			return set, err
		}
		set.deb[version] = filepath.Join(build, "packages", "amsagent_"+version+"-1_"+runtime.GOARCH+".deb")
		set.rpm[version] = filepath.Join(build, "packages", "amsagent-"+version+"-1."+rpmArch()+".rpm")
	}
	return set, nil
}

// makePackage makes those of one version.
func makePackage(build, described string) error {
	if err := os.MkdirAll(filepath.Join(build, "tools"), 0o755); err != nil {
		return err
	}
	for _, step := range [][]string{
		{"make", "-s", "build/tools/nfpm"},
		{"cp", "build/tools/nfpm", build + "/tools/nfpm"},
		{"make", "-s", "build", "BUILD=" + build, "VERSION=" + described},
		{"cp", build + "/amsagent", build + "/amsagent-linux-" + runtime.GOARCH},
		{"tools/scripts/package.sh", "all", described, build},
	} {
		if err := packageStep("../..", []string{"PACKAGE_ARCHES=" + runtime.GOARCH}, step[0], step[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// rpmArch is this machine as rpm calls it.
func rpmArch() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64"
	}
	return "x86_64"
}

// packageTool finds a program of Debian's, or skips the test with what is lost.
func packageTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("DEPS") == "require" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed (make deps DEPS=install, as root on Debian)", name)
	}
	return path
}

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

// TestPackageScripts runs the scripts of testdata/package, as the user of this process. `needs PROGRAM…` skips the rest where one is
// missing; `image [VARIABLE…]` mounts a tree at $IMAGE.
func TestPackageScripts(t *testing.T) {
	set := packages(t)
	top, err := filepath.Abs("../..")
	must.OK(t, err)
	of := func(ts *testscript.TestScript) *testing.T { return ts.Value("test").(scriptT).T }
	testscript.RunT(scriptT{T: t}, testscript.Params{
		Dir: top + "/testdata/package/script", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Values["test"] = env.T()
			// Make and Go need their caches; the agent would warn of the variables of these tests.
			env.Vars = append(env.Vars, slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AMSAGENT_") })...)
			env.Vars = append(env.Vars, "TOP="+top, "OLD_DEB="+set.deb[packageOld], "NEW_DEB="+set.deb[packageNew],
				"OLD_RPM="+set.rpm[packageOld], "NEW_RPM="+set.rpm[packageNew])
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"needs": func(ts *testscript.TestScript, _ bool, programs []string) {
				for _, name := range programs {
					packageTool(of(ts), name)
				}
			},
			"image": func(ts *testscript.TestScript, _ bool, variables []string) {
				ts.Setenv("IMAGE", newImage(of(ts), variables...).dir)
			},
		},
	})
}

// TestPackageUnits checks the units with systemd-analyze: its verify prints nothing, and their exposure stays low.
func TestPackageUnits(t *testing.T) {
	analyze := packageTool(t, "systemd-analyze")
	dir := t.TempDir()
	must.OK(t, packageStep(".", nil, "dpkg-deb", "-x", packages(t).deb[packageNew], dir))
	units, err := filepath.Glob(dir + "/usr/lib/systemd/system/amsagent*")
	if err != nil || len(units) != 4 {
		t.Fatalf("units %v, %v", units, err)
	}
	// verify exits 0 on an unknown key, so its output counts. Only the program may be missing on this host.
	missing := regexp.MustCompile(`(?m)^amsagent[a-z-]*\.service: Command /usr/bin/amsagent is not executable: No such file or directory\n`)
	out, _ := exec.Command(analyze, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	if rest := missing.ReplaceAll(out, nil); len(rest) > 0 {
		t.Errorf("systemd complains:\n%s", rest)
	}
	policy, err := os.ReadFile("../../SECURITY.md")
	must.OK(t, err)
	level := regexp.MustCompile(`Overall exposure level for (\S+): ([0-9.]+)`)
	open := regexp.MustCompile(`(?m)^✗ ([A-Za-z]+=)`)
	for name, threshold := range map[string]string{"amsagent": "30", "amsagent-node": "28", "amsagent-balance": "12", "amsagent-web": "12"} {
		u := dir + "/usr/lib/systemd/system/" + name + ".service"
		out, err := exec.Command(analyze, "security", "--no-pager", "--offline=true", "--threshold="+threshold, u).CombinedOutput()
		m := level.FindSubmatch(out)
		if err != nil || m == nil {
			t.Errorf("%s: %v\n%s", name, err, out)
			continue
		}
		t.Logf("%s: %s", m[1], m[2])
		for _, m := range open.FindAllSubmatch(out, -1) {
			if string(m[1]) == "CapabilityBoundingSet=" {
				continue // the table names each capability; internal/house compares them
			}
			row := regexp.MustCompile("(?m)^\\|[^|]*`" + string(m[1]) + "`[^|]*\\| (all|([a-z-]+, )*" + name + "(, [a-z-]+)*) \\|")
			if !row.Match(policy) {
				t.Errorf("%s: SECURITY.md does not say why %s is open", name, m[1])
			}
		}
	}
}
