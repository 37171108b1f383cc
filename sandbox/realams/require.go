// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realams

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// The releases that `make real-fetch` fetches.
const (
	Newest = "2.17.1"
	Older  = "2.16.2"
	Oldest = "2.10.0"
)

//go:embed java
var beans embed.FS

// Require skips the test where something is missing that the releases need, and says
// what; with REQUIRE_REAL=1, as in `make real`, the test fails.
func Require(t testing.TB, releases ...string) {
	t.Helper()
	realmongo.Require(t)
	err := check(releases)
	switch {
	case err == nil:
	case os.Getenv("REQUIRE_REAL") == "1":
		t.Fatal("not run: ", err)
	default:
		t.Skip(err)
	}
}

func check(releases []string) error {
	if os.Geteuid() != 0 {
		return errors.New("a real Ant Media Server in a namespace of its own needs root")
	}
	for _, program := range []string{"ip", "unshare", "nsenter", "setpriv", "ffmpeg", "unzip"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("a real Ant Media Server needs a program (`make real-fetch` installs it): %w", err)
		}
	}
	if _, err := javaHome(); err != nil {
		return err
	}
	for _, r := range releases {
		if _, err := javaOf(r); err != nil {
			return err
		}
	}
	return nil
}

func cache() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("looking for the cache of real servers: %w", err)
	}
	return filepath.Join(dir, "amsagent", "real"), nil
}

// installed is the folder of an unpacked release.
func installed(release string) (string, error) {
	dir, err := cache()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "ams", release)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("there is no Ant Media Server %s (`make real-fetch RELEASES=%s` fetches it): %w", release, release, err)
	}
	return dir, nil
}

// javaOf is what a release runs on: old ones name Java 11 in their unit, which Debian has
// no more.
func javaOf(release string) (string, error) {
	tree, err := installed(release)
	if err != nil {
		return "", err
	}
	unit, err := os.ReadFile(filepath.Join(tree, "antmedia.service"))
	if err != nil {
		return "", fmt.Errorf("reading the unit of Ant Media Server %s: %w", release, err)
	}
	if !bytes.Contains(unit, []byte("java-11")) {
		return javaHome()
	}
	dir, err := cache()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "java-11")
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("there is no Java 11 (`make real-fetch RELEASES=%s` fetches it): %w", release, err)
	}
	return dir, nil
}

// javaHome is Java 17, which the unit of the server names.
func javaHome() (string, error) {
	found, err := filepath.Glob("/usr/lib/jvm/java-17-openjdk-*/bin/javac")
	if err != nil {
		return "", fmt.Errorf("looking for Java 17: %w", err)
	}
	if len(found) == 0 {
		return "", errors.New("there is no javac 17 in /usr/lib/jvm (`make real-fetch` installs it)")
	}
	return filepath.Dir(filepath.Dir(found[0])), nil
}

// beansJar compiles the beans for a release, once for each state of their sources.
func beansJar(release string) (string, error) {
	home, err := javaHome()
	if err != nil {
		return "", err
	}
	dir, err := cache()
	if err != nil {
		return "", err
	}
	tree, err := installed(release)
	if err != nil {
		return "", err
	}
	sum, err := sumOfBeans()
	if err != nil {
		return "", err
	}
	jar := filepath.Join(dir, "beans", release+"-"+sum+".jar")
	if _, err := os.Stat(jar); err == nil {
		return jar, nil
	}
	if err := os.MkdirAll(filepath.Dir(jar), 0o755); err != nil {
		return "", fmt.Errorf("making a folder for the beans: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(jar), "build-")
	if err != nil {
		return "", fmt.Errorf("making a folder for the beans: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := os.CopyFS(tmp, beans); err != nil {
		return "", fmt.Errorf("writing the beans: %w", err)
	}
	// Old releases have a Tomcat from before Java EE was renamed.
	const script = `set -e
! grep -q java-11 "$3/antmedia.service" || sed -i s/jakarta.servlet/javax.servlet/ $(find "$2/java" -name '*.java')
"$1/bin/javac" -nowarn --release 11 -d "$2/classes" -cp "$3/ant-media-server.jar:$3/lib/*:$3/plugins/*" $(find "$2/java" -name '*.java')
"$1/bin/jar" cf "$2/beans.jar" -C "$2/classes" .
mv "$2/beans.jar" "$4"`
	if out, err := exec.Command("sh", "-c", script, "sh", home, tmp, tree, jar).CombinedOutput(); err != nil {
		return "", fmt.Errorf("compiling the beans for %s: %w\n%s", release, err, out)
	}
	return jar, nil
}

func sumOfBeans() (string, error) {
	h := sha256.New()
	err := fs.WalkDir(beans, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".java") {
			return err
		}
		b, err := beans.ReadFile(path)
		h.Write(b)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading the beans: %w", err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:6]), nil
}
