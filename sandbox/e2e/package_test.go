// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

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

// packageError is what a step of the making said.
type packageError struct {
	what string
	err  error
	out  []byte
}

func (e *packageError) Error() string { return e.what + ": " + e.err.Error() + "\n" + string(e.out) }

func packageStep(dir string, env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return &packageError{strings.Join(append([]string{name}, args...), " "), err, out}
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

// TestPackageLint asks lintian and rpmlint, which know what their distributions expect.
func TestPackageLint(t *testing.T) {
	set := packages(t)
	t.Run("deb", func(t *testing.T) {
		out, err := exec.Command(packageTool(t, "lintian"), "--allow-root", "--tag-display-limit", "0", "--fail-on", "error,warning", set.deb[packageNew]).CombinedOutput()
		if err != nil || len(bytes.TrimSpace(out)) > 0 {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("rpm", func(t *testing.T) {
		out, err := exec.Command(packageTool(t, "rpmlint"), "-c", "../../packaging/rpm/rpmlint.toml", set.rpm[packageNew]).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "1 packages and 0 specfiles checked; 0 errors, 0 warnings") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// TestPackageVersions: what git describes became what dpkg and rpm read, and each takes the second for newer.
func TestPackageVersions(t *testing.T) {
	set := packages(t)
	dpkg, rpm := packageTool(t, "dpkg-deb"), packageTool(t, "rpm")
	for _, version := range []string{packageOld, packageNew} {
		out, err := exec.Command(dpkg, "-f", set.deb[version], "Version").CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != version+"-1" {
			t.Errorf("deb: %s, %v", out, err)
		}
		out, err = exec.Command(rpm, "-qp", "--qf", "%{VERSION}-%{RELEASE}", set.rpm[version]).Output()
		if err != nil || string(out) != version+"-1" {
			t.Errorf("rpm: %s, %v", out, err)
		}
		// The changelog begins with it: dpkg-parsechangelog and apt-listchanges read it so.
		out, err = exec.Command("sh", "-c", dpkg+` --fsys-tarfile "$1" | tar -xO ./usr/share/doc/amsagent/changelog.Debian.gz | gunzip | head -n 1`, "sh", set.deb[version]).CombinedOutput()
		if want := "amsagent (" + version + "-1) stable; urgency=medium\n"; err != nil || string(out) != want {
			t.Errorf("the changelog begins with %q, %v; want %q", out, err, want)
		}
	}
}

// TestPackageReproducible makes all four packages twice: in two folders of other names, with another mask for new files,
// another time zone and another language.
func TestPackageReproducible(t *testing.T) {
	var sums []string
	must.OK(t, packageStep("../..", nil, "make", "-s", "build/tools/nfpm"))
	for _, as := range []struct{ folder, umask, zone, lang string }{
		{"one", "022", "UTC", "C"},
		{"another-folder/with/a-longer-name", "077", "Asia/Kathmandu", "tr_TR.UTF-8"},
	} {
		dir := filepath.Join(t.TempDir(), as.folder)
		// What git would take, without the module that nothing of a package comes from.
		err := packageStep(".", []string{"TZ=" + as.zone, "LANG=" + as.lang}, "bash", "-euc", `umask "$2"; mkdir -p "$1"; top=$PWD/../..; cd "$top"
git ls-files -z -- . ':!sandbox' | tar -c --null -T - --ignore-failed-read 2>/dev/null | tar -x -C "$1" --no-same-permissions
cd "$1"; mkdir -p build/tools; cp "$top/build/tools/nfpm" build/tools/; touch build/tools/nfpm
make -s package VERSION=v1.0.0-4-gabc1234 >&2`, "bash", dir, as.umask)
		must.OK(t, err)
		if sums == nil {
			packageMachines(t, filepath.Join(dir, "build/packages"))
		}
		b, err := os.ReadFile(filepath.Join(dir, "build/packages/SHA256SUMS"))
		must.OK(t, err)
		sums = append(sums, string(b))
	}
	if strings.Count(sums[0], "\n") != 4 || sums[0] != sums[1] {
		t.Errorf("one:\n%s\nanother:\n%s", sums[0], sums[1])
	}
}

// packageMachines: each package says for which machine it is, and its program is one of that.
func packageMachines(t *testing.T, dir string) {
	t.Helper()
	for _, m := range []struct {
		deb, rpm string
		machine  elf.Machine
	}{{"amd64", "x86_64", elf.EM_X86_64}, {"arm64", "aarch64", elf.EM_AARCH64}} {
		deb := filepath.Join(dir, "amsagent_1.0.0+4.gabc1234-1_"+m.deb+".deb")
		if out, err := exec.Command("dpkg-deb", "-f", deb, "Architecture").CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != m.deb {
			t.Errorf("%s is for %s, %v", filepath.Base(deb), out, err)
		}
		rpm := filepath.Join(dir, "amsagent-1.0.0+4.gabc1234-1."+m.rpm+".rpm")
		if out, err := exec.Command(packageTool(t, "rpm"), "-qp", "--qf", "%{ARCH}", rpm).Output(); err != nil || string(out) != m.rpm {
			t.Errorf("%s is for %s, %v", filepath.Base(rpm), out, err)
		}
		b, err := exec.Command("sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar -xO ./usr/bin/amsagent`, "sh", deb).Output()
		must.OK(t, err)
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil || f.Machine != m.machine {
			t.Errorf("the program in %s: %v, %v", filepath.Base(deb), f, err)
		}
	}
}

// TestPackageCompletions: each shell that is here reads its script.
func TestPackageCompletions(t *testing.T) {
	dir := t.TempDir()
	must.OK(t, packageStep(".", nil, "dpkg-deb", "-x", packages(t).deb[packageNew], dir))
	for shell, file := range map[string]string{
		"bash": "bash-completion/completions/amsagent", "zsh": "zsh/vendor-completions/_amsagent", "fish": "fish/vendor_completions.d/amsagent.fish",
	} {
		t.Run(shell, func(t *testing.T) {
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Skipf("%s is not installed", shell)
			}
			if out, err := exec.Command(path, "-n", dir+"/usr/share/"+file).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%v %s", err, out)
			}
		})
	}
	// And bash completes with it.
	out, err := exec.Command("bash", "-euc", `PATH=$1/usr/bin:$PATH
_get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD; }
_init_completion() { _get_comp_words_by_ref; }
__ltrim_colon_completions() { :; }; compopt() { :; }
. "$1/usr/share/bash-completion/completions/amsagent"
COMP_WORDS=(amsagent sta) COMP_CWORD=1 COMP_LINE='amsagent sta' COMP_POINT=12 COMP_TYPE=9
__start_amsagent
echo "${COMPREPLY[@]}"`, "bash", dir).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "status" {
		t.Errorf("after `amsagent sta` bash offers %q, %v", out, err)
	}
}

// TestPackageManPages formats each page of the package with mandoc and groff, which must print no warning.
func TestPackageManPages(t *testing.T) {
	mandoc, groff, man := packageTool(t, "mandoc"), packageTool(t, "groff"), packageTool(t, "man")
	dir := t.TempDir()
	must.OK(t, packageStep(".", nil, "dpkg-deb", "-x", packages(t).deb[packageNew], dir))
	pages, err := filepath.Glob(dir + "/usr/share/man/man[1-8]/*.gz")
	if err != nil || len(pages) < 15 {
		t.Fatalf("pages %v, %v", pages, err)
	}
	for _, page := range pages {
		name := filepath.Base(page)
		// -Werror: cobra's pages have many warnings of the lower levels, for tabs and dates.
		if out, err := exec.Command(mandoc, "-Tlint", "-Werror", page).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("mandoc: %v\n%s", err, out)
		}
		cmd := exec.Command(man, "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANROFFSEQ=", "MANWIDTH=80")
		var said bytes.Buffer
		cmd.Stderr = &said
		if out, err := cmd.Output(); err != nil || said.Len() > 0 || len(out) == 0 {
			t.Errorf("man %s: %v\n%s", name, err, said.Bytes())
		}
		out, err := exec.Command("sh", "-c", `gunzip -c "$1" | "$2" -ww -man -Kutf8 -Tutf8 2>&1 >/dev/null`, "sh", page, groff).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("groff %s: %v\n%s", name, err, out)
		}
	}
	// Each unit has a man page.
	units, _ := filepath.Glob(dir + "/usr/lib/systemd/system/*")
	for _, u := range units {
		if _, err := os.Stat(dir + "/usr/share/man/man8/" + filepath.Base(u) + ".8.gz"); err != nil {
			t.Error(err)
		}
	}
	if len(units) != 4 {
		t.Errorf("units %v", units)
	}
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

// TestPackageInstall: `make install` installs the package's files under another prefix, and `make uninstall` removes them.
func TestPackageInstall(t *testing.T) {
	dir, build := t.TempDir(), t.TempDir()
	args := []string{"-s", "DESTDIR=" + dir, "PREFIX=/opt/agent", "BUILD=" + build, "VERSION=v1"}
	must.OK(t, packageStep("../..", nil, "make", append(args, "install")...))
	list := func() []string {
		t.Helper()
		out, err := exec.Command("find", dir, "!", "-type", "d", "-printf", "%P\n").Output()
		must.OK(t, err)
		return strings.Fields(string(out))
	}
	got := map[string]bool{}
	for _, f := range list() {
		rest, ok := strings.CutPrefix(f, "opt/agent/")
		if !ok {
			t.Errorf("%s is outside of the prefix", f)
		}
		got[rest] = true
	}
	deb, err := exec.Command("sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar -t`, "sh", packages(t).deb[packageNew]).Output()
	must.OK(t, err)
	for f := range strings.Lines(string(deb)) {
		f = strings.TrimPrefix(strings.TrimSpace(f), "./usr/")
		f = strings.Replace(f, "zsh/vendor-completions", "zsh/site-functions", 1)
		switch {
		case f == "", strings.HasSuffix(f, "/"), strings.HasPrefix(f, "share/lintian/"):
		case f == "share/doc/amsagent/copyright", f == "share/doc/amsagent/changelog.Debian.gz":
		default:
			if !got[f] {
				t.Errorf("the package has %s, make install has not", f)
			}
			delete(got, f)
		}
	}
	if rest := slices.Sorted(maps.Keys(got)); !slices.Equal(rest, []string{"share/doc/amsagent/LICENSE"}) {
		t.Errorf("make install has beside it: %v", rest)
	}
	unit, err := os.ReadFile(dir + "/opt/agent/lib/systemd/system/amsagent.service")
	if err != nil || !strings.Contains(string(unit), "\nExecStart=/opt/agent/bin/amsagent run\n") || strings.Contains(string(unit), "/usr/bin/amsagent") {
		t.Errorf("the unit runs another program: %v\n%s", err, unit)
	}
	if out, err := exec.Command(dir+"/opt/agent/bin/amsagent", "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "amsagent v1 ") {
		t.Errorf("%v %s", err, out)
	}
	must.OK(t, packageStep("../..", nil, "make", append(args, "uninstall")...))
	if rest := list(); len(rest) > 0 {
		t.Errorf("left behind: %v", rest)
	}
	// Root, under sudo, often has no Go: make installs the build of another user, and fails with a hint without one.
	noGo := []string{"PATH=" + pathWithout(t, "go")}
	must.OK(t, packageStep("../..", noGo, "make", append(args, "install")...))
	if out, err := exec.Command(dir+"/opt/agent/bin/amsagent", "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "amsagent v1 ") {
		t.Errorf("without Go: %v %s", err, out)
	}
	if err := packageStep("../..", noGo, "make", append(args, "uninstall")...); err != nil || len(list()) > 0 {
		t.Errorf("without Go: %v, left behind: %v", err, list())
	}
	err = packageStep("../..", noGo, "make", append(args, "BUILD="+t.TempDir(), "install")...)
	if err == nil || !strings.Contains(err.Error(), "nothing is built yet; run this first, as your own user: make build generate") {
		t.Errorf("without Go and with nothing built: %v", err)
	}
	if rest := list(); len(rest) > 0 {
		t.Errorf("nothing was built, and yet these were installed: %v", rest)
	}
}

// pathWithout is a PATH that has every program of this machine's but one.
func pathWithout(t *testing.T, missing string) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range filepath.SplitList(os.Getenv("PATH")) {
		programs, err := os.ReadDir(d)
		if err != nil {
			continue // PATH may name what is not there
		}
		for _, p := range programs {
			// The first of a name is the one that is run.
			if err := os.Symlink(filepath.Join(d, p.Name()), filepath.Join(dir, p.Name())); err != nil && !errors.Is(err, fs.ErrExist) {
				t.Fatal(err)
			}
		}
	}
	must.OK(t, os.Remove(filepath.Join(dir, missing)))
	return dir
}
