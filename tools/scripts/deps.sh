#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Brings the Debian packages that a group of targets uses, or says what goes without them.
# usage: deps.sh test|lint|gate|heavy [install|skip|require]
# Only `require`, which CI uses, fails where a package is missing after all; otherwise the tests that need it are skipped.
set -euo pipefail

group=${1:?usage: deps.sh test|lint|gate|heavy [install|skip|require]}
mode=${2:-install}

# What proves the presence of each package is a file or a command, not dpkg: a JDK of another vendor will do.
missing=() lost=()
want() { # want PACKAGE WHAT-IS-LOST TEST...
  local package=$1 loss=$2
  shift 2
  if ! "$@" >/dev/null 2>&1; then
    missing+=("$package")
    lost+=("$package: $loss")
  fi
}
has() { command -v "$1"; }

case $group in
test | lint | gate | heavy) ;;
*)
  echo "deps: unknown group '$group'" >&2
  exit 2
  ;;
esac

case $group in
test | gate | heavy)
  want default-jdk-headless "the tests in which Java itself reads our files" has javac
  want libspring-core-java "the tests in which Spring itself reads jee-container.xml" test -e /usr/share/java/spring3-core.jar
  want libspring-beans-java "the same" test -e /usr/share/java/spring3-beans.jar
  want libspring-context-java "the same" test -e /usr/share/java/spring3-context.jar
  want strace "the tests that kill the agent at a chosen system call" has strace
  want lintian "the check of the .deb packages" has lintian
  want rpm "the tests that install the .rpm packages" has rpm
  want rpmlint "the check of the .rpm packages" has rpmlint
  want mandoc "the check of the man pages" has mandoc
  want groff "the same, by the program that formats them" has groff
  want man-db "the same, as a reader sees them" has man
  ;;
esac
case $group in
lint | gate | heavy)
  want shellcheck "the check of our shell scripts, and of user data" has shellcheck
  ;;
esac
case $group in
gate | heavy)
  # Some of these bring a service with them, which nobody wants on the machine on which he writes code.
  want haproxy "the tests in which HAProxy reads what doctor corrected, and in which it sends people to booted nodes" has haproxy
  want cloud-init "the same for cloud-config" has cloud-init
  want xfsprogs "the test that formats a disk for MongoDB" has mkfs.xfs
  want jq "the tests that run the user data of Azure's template" has jq
  want python3 "the tests of the program that reads the secret on Alibaba Cloud" has python3
  want nodejs "the tests that run the recipe of MongoDB's users" has node
  ;;
esac
case $group in
heavy)
  want gcc "the race detector" has gcc
  want debootstrap "the tests in booted machines" has debootstrap
  want systemd-container "the same" has systemd-nspawn
  case $(uname -m) in
  aarch64) want qemu-system-arm "the test of the units' limits, on a machine with a kernel of its own" has qemu-system-aarch64 ;;
  *) want qemu-system-x86 "the test of the units' limits, on a machine with a kernel of its own" has qemu-system-x86_64 ;;
  esac
  want e2fsprogs "the same" has mke2fs
  ;;
esac

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
