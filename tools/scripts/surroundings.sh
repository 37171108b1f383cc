#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: surroundings.sh [COMMIT]
# The gate in test environments that are not those of a developer: it is killed (SIGKILL) at five random moments, by turns its
# script alone, which ends what it started, and all processes of its session, and then
# runs twice at once, one of them in a path of 150 characters with a blank, with another HOME, TMPDIR and TZ, without
# standard input and without a terminal. Nothing of the killed runs may be left at the end. About half an hour.
set -euo pipefail

unset RERUN TEST_JSON REQUIRE_REAL REQUIRE_SYSTEMD # of the tier that this may run in
commit=${1:-HEAD}
work=$(mktemp -d)
long="$work/a blank$(printf '/%s' {1..9}-------------)"
gates=()
# A gate that is killed ends what it started.
trap '[ ${#gates[@]} = 0 ] || kill -KILL "${gates[@]}" 2>/dev/null || true; rm -rf "$work" || true' EXIT
# What is compiled and fetched stays where it is: another HOME is about what programs read there.
GOMODCACHE=$(go env GOMODCACHE) GOCACHE=$(go env GOCACHE) GOLANGCI_LINT_CACHE=$work/lint XDG_CACHE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}
export GOMODCACHE GOCACHE GOLANGCI_LINT_CACHE XDG_CACHE_HOME

clone() { # clone FOLDER
  git clone -q --no-hardlinks . "$1/project"
  git -C "$1/project" checkout -q --detach "$(git rev-parse "$commit")"
  [ ! -d ../shared ] || ln -s "$(cd ../shared && pwd)" "$1/shared"
}
left() { # what runs that are over have left behind: folders, mounts, processes
  local dir live=(-e 'no such run')
  for dir in /tmp/amst.*; do
    [ ! -e "$dir/lock" ] || flock -n "$dir/lock" true || live+=(-e "$dir")
  done
  {
    ls -d /tmp/amst.* 2>/dev/null || true
    grep -F /tmp/amst. /proc/self/mountinfo || true
    pgrep -af /tmp/amst. || true
  } | grep -vF "${live[@]}" || true
}

mkdir -p "$work/killed" "$work/plain" "$long"
clone "$work/killed"
clone "$work/plain"
clone "$long"

for i in 1 2 3 4 5; do
  moment=$((20 + RANDOM % 120))
  echo "surroundings: killing the gate after $moment s ($i of 5)"
  (cd "$work/killed/project" && exec setsid tools/scripts/tier.sh gate </dev/null >"$work/killed.log" 2>&1) &
  gates=($!)
  sleep "$moment"
  signal=(kill -KILL)
  [ $((i % 2)) = 1 ] || signal=(pkill -KILL -s)
  if "${signal[@]}" $!; then
    wait $! 2>/dev/null || true
    echo "surroundings: killed in $(grep -aE '^=== [a-z]+: ' "$work/killed.log" | tail -n 1)"
  elif wait $!; then
    echo 'surroundings: the gate had passed before'
  else
    echo 'surroundings: the gate failed before' >&2
    tail -n 40 "$work/killed.log"
    exit 1
  fi
  gates=()
done

echo 'surroundings: two clones at once'
failed=0
mkdir -p "$work/home" "$long/tmp"
(cd "$work/plain/project" && exec setsid .ci/run <&- >"$work/plain.log" 2>&1) &
gates+=($!)
(cd "$long/project" && exec env HOME="$work/home" TMPDIR="$long/tmp" TZ=Asia/Kolkata LANG=C setsid .ci/run </dev/null >"$work/long.log" 2>&1) &
gates+=($!)
for gate in "${gates[@]}"; do
  wait "$gate" || failed=1
done
gates=()
for log in plain long; do
  echo "surroundings: $log"
  sed -n '/^=== summary/,$p' "$work/$log.log"
done
rest=$(left)
if [ -n "$rest" ]; then
  echo "surroundings: left behind:"
  echo "$rest"
  failed=1
fi
exit "$failed"
