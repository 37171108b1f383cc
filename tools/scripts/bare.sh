#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# The gate of a stranger: .ci/run of this commit in an empty Debian 12, made by debootstrap, with git, make and this machine's
# Go, with empty caches and without a folder beside the clone. It shows whether the gate installs all that it needs. Needs
# root. The package mirror, the Go proxy and pip's settings are those of this machine. At the end: what the gate installed.
set -euo pipefail

suite=bookworm
# shellcheck disable=SC2016 # apt's own form
mirror=${DEBIAN_MIRROR:-$({ apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null || true; } | sed -n '/\/debian$/{p;q}')}
try=tools/scripts/try.sh
[ "$(id -u)" = 0 ] || { echo 'bare: only root makes the tree' >&2 && exit 1; }

# The name is one that the sweep before the next run of tests knows (sweep.sh), with what a killed run leaves mounted.
work=$(mktemp -d /tmp/amst.XXXXXX)
exec 9>"$work/lock" && flock -n 9
trap 'tools/scripts/sweep.sh "$work"' EXIT
root=$work/root
# shellcheck disable=SC2016 # for the shell that is started
"$try" "Debian $suite" bash -c 'rm -rf --one-file-system "$2" && debootstrap --variant=minbase --include=ca-certificates,git,make "$1" "$2" $3' \
  debootstrap "$suite" "$root" "$mirror" >"$work/log" 2>&1 9>&- || { tail -n 20 "$work/log" >&2 && exit 1; }
# shellcheck disable=SC2016 # dpkg's own form
packages() { chroot "$root" dpkg-query -W -f '${Package}\n' | sort; }
packages >"$work/before"

for file in /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
  [ ! -e "$file" ] || cp -L "$file" "$root$file"
done
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$(hostname)" >"$root/etc/hosts" # as Debian's installer does
mkdir -p "$root/usr/local/go" "$root/src"
git clone -q --no-hardlinks . "$root/src/amsagent"
git -C "$root/src/amsagent" checkout -q -B main "$(git rev-parse HEAD)"
GOROOT=$(go env GOROOT)
environment=(PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 CI=true
  GOTOOLCHAIN=local "GOPROXY=$(go env GOPROXY)" "GOSUMDB=$(go env GOSUMDB)" "GONOSUMDB=$(go env GONOSUMDB)")
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_CERT PIP_DEFAULT_TIMEOUT; do
  [ -z "${!name:-}" ] || environment+=("$name=${!name}")
done

# shellcheck disable=SC2016 # for the shell that is started
inside='set -e
mount --bind "$2" "$1/usr/local/go"
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount --rbind /dev "$1/dev"
shift 2
exec "$@"'
result=0
unshare --mount --pid --fork --kill-child bash -c "$inside" bare "$root" "$GOROOT" \
  chroot "$root" env -i -C /src/amsagent "${environment[@]}" setsid --wait bash .ci/run </dev/null 9>&- || result=$?
printf '\nbare: what the gate installed:\n'
packages | comm -13 "$work/before" - | paste -sd' ' | fold -sw 120
exit "$result"
