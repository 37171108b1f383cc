// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realams

import (
	"os/exec"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// Install puts a release into the tree of a machine that is not a Node, as the
// vendor's installer leaves it, with its unit, which is not enabled.
func Install(t testing.TB, release, root string) {
	t.Helper()
	tree, jar := parts(t, release)
	const script = `set -e
mkdir -p "$1/usr/local"
cp -a "$2" "$1/usr/local/antmedia"
cp "$2/antmedia.service" "$1/etc/systemd/system/"
exec bash -c "$4" bash "$1" "$3"`
	if out, err := exec.Command("sh", "-c", script, "sh", root, tree, jar, install).CombinedOutput(); err != nil {
		t.Fatalf("installing Ant Media Server %s in %s: %v\n%s", release, root, err, out)
	}
}

// Java returns options of systemd-nspawn that mount the Java of the server's unit into a machine with the same Debian as this
// one.
func Java(t testing.TB) []string {
	t.Helper()
	home, err := javaHome()
	must.OK(t, err)
	return []string{"--bind-ro=" + home, "--bind-ro=/etc/java-17-openjdk"}
}

// Libraries copies the shared libraries that Java and the server load into the tree of a machine with a minimal system.
func Libraries(t testing.TB, root string) {
	t.Helper()
	home, err := javaHome()
	must.OK(t, err)
	const script = `set -eu
own=$(/sbin/ldconfig -p | sed -n 's/^\t\(libva\|libva-drm\|libva-x11\|libvdpau\|libapr-1\)\.so\.[0-9]* .*=> //p')
{ printf '%s\n' $own; ldd $own "$2"/lib/*.so "$2/lib/server/libjvm.so" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p'; } | sort -u |
while read -r lib; do
  case $lib in "$2"/*) continue ;; esac
  [ -e "$1$lib" ] || cp -L "$lib" "$1$lib"
done
chroot "$1" ldconfig`
	if out, err := exec.Command("sh", "-c", script, "sh", root, home).CombinedOutput(); err != nil {
		t.Fatalf("copying libraries to %s: %v\n%s", root, err, out)
	}
}
