#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Brings the Debian packages that a group of targets uses, or says what goes without them.
# usage: deps.sh test|lint|gate|real|heavy|arm64|release [install|skip|require]
# Only `require`, which CI uses, fails where a package is missing after all; otherwise the tests that need it are skipped.
set -euo pipefail

group=${1:?usage: deps.sh test|lint|gate|real|heavy|arm64|release [install|skip|require]}
mode=${2:-install}

case $group in
# A tier needs what its targets need.
gate) groups='test lint gate' ;;
real) groups='test real' ;;
heavy) groups='test lint gate heavy arm64 release' ;;
test | lint | arm64 | release) groups=$group ;;
*)
  echo "deps: unknown group '$group'" >&2
  exit 2
  ;;
esac

# What proves the presence of each package is a file or a command, not dpkg: a JDK of another vendor will do.
missing=() lost=()
want() { # want GROUP PACKAGE WHAT-IS-LOST TEST...
  local in=$1 package=$2 loss=$3
  shift 3
  [[ " $groups " == *" $in "* ]] || return 0
  if ! "$@" >/dev/null 2>&1; then
    missing+=("$package")
    lost+=("$package: $loss")
  fi
}
has() { command -v "$1"; }
has_pip() { python3 -m pip --version; }
has_library() { [[ $(/sbin/ldconfig -p) == *"$1 "* ]]; }
java17() { printf '%s' "/usr/lib/jvm/java-17-openjdk-$(dpkg --print-architecture)/bin"; }

want test default-jdk-headless "the tests in which Java itself reads our files" has javac
want test libspring-core-java "the tests in which Spring itself reads jee-container.xml" test -e /usr/share/java/spring3-core.jar
want test libspring-beans-java "the same" test -e /usr/share/java/spring3-beans.jar
want test libspring-context-java "the same" test -e /usr/share/java/spring3-context.jar
want test strace "the tests that kill the agent at a chosen system call" has strace
want heavy lintian "the check of the .deb packages" has lintian
want heavy rpm "the tests that install the .rpm packages" has rpm
want heavy rpmlint "the check of the .rpm packages" has rpmlint
want heavy mandoc "the check of the man pages" has mandoc
want heavy groff "the same, by the program that formats them" has groff
want heavy man-db "the same, as a reader sees them" has man
want test python3-pip "the tests on a real mongod, which pip fetches" has_pip
want test libssl3 "the same" has_library libssl.so.3
want test libcurl4 "the same" has_library libcurl.so.4

want lint shellcheck "the check of our shell scripts, and of user data" has shellcheck

want heavy haproxy "the test in which it sends people to booted nodes" has haproxy
want heavy zsh "the check of its completion" has zsh
want heavy fish "the check of its completion" has fish
want heavy cloud-init "the tests in which its own code reads user data" has cloud-init
want heavy xfsprogs "the test that formats a disk for MongoDB" has mkfs.xfs
want gate jq "the tests that run the user data of Azure's template" has jq
want gate python3 "the tests of the program that reads the secret on Alibaba Cloud" has python3
want heavy chromium "the test of the pages in a browser" has chromium
want heavy nodejs "the tests that run the recipe of MongoDB's users" has node

# What the tests named TestReal need besides: docs/reality.md.
want real maven "the tests on a real Ant Media Server, which Maven fetches" has mvn
want real unzip "the same" has unzip
want real openjdk-17-jdk-headless "the same" test -x "$(java17)/javac"
want real libva2 "the same" has_library libva.so.2
want real libva-drm2 "the same" has_library libva-drm.so.2
want real libva-x11-2 "the same" has_library libva-x11.so.2
want real libvdpau1 "the same" has_library libvdpau.so.1
want real libapr1 "the same" has_library libapr-1.so.0
want real openssl "the tests over TLS" has openssl
want real ffmpeg "the tests with a publisher and viewers" has ffmpeg
want real haproxy "the tests in which it sends publishers and viewers to real servers" has haproxy
want real ansible-core "the test that upgrades real servers by a play" has ansible-playbook
want real iproute2 "the tests with network namespaces" has ip

want heavy gcc "the race detector" has gcc
want heavy debootstrap "the tests in booted machines, and the registry's tests on DocumentDB" has debootstrap
want heavy systemd-container "the tests in booted machines" has systemd-nspawn
want heavy iproute2 "the tests with network namespaces" has ip
case $(uname -m) in
aarch64) want heavy qemu-system-arm "the test of the units' limits, on a machine with a kernel of its own" has qemu-system-aarch64 ;;
*) want heavy qemu-system-x86 "the test of the units' limits, on a machine with a kernel of its own" has qemu-system-x86_64 ;;
esac
want heavy e2fsprogs "the same" has mke2fs
want release openssh-client "the signature of a release" has ssh-keygen
want heavy procps "the runs of the gate that are killed" has pkill

want arm64 qemu-user-static "the tests as a program for arm64" has qemu-aarch64-static

[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$mode" != skip ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "deps: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  # The lists may be missing or old on a fresh machine. Another apt-get, of a second clone perhaps, is waited for.
  apt() { apt-get -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1; }
  apt_install() { apt install -y --no-install-recommends "${missing[@]}" || { apt update && apt install -y --no-install-recommends "${missing[@]}"; }; }
  for pause in 5 20 0; do
    if apt_install </dev/null; then exit 0; fi
    [ "$pause" = 0 ] || sleep "$pause"
  done
  echo "deps: apt-get could not install them:" >&2
  tail -n 5 "$log" >&2
fi

echo "deps: not here, so skipped:" >&2
printf 'deps:   %s\n' "${lost[@]}" >&2
echo "deps: to have them: sudo apt-get install ${missing[*]}" >&2
[ "$mode" != require ]
