#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: surroundings.sh [sample]
# The gate in test environments that are not those of a developer: it is killed (SIGKILL) at five random moments, by turns its
# script alone, which ends what it started, and all processes of its session, and then
# runs twice at once, one of them in a path of 150 characters with a blank, with another HOME, TMPDIR and TZ, without
# standard input and without a terminal. Nothing of the killed runs may be left at the end. About 15 minutes.
# A sample is one killed gate, of which the sweep before the next run may leave nothing.
set -euo pipefail

unset RERUN TEST_JSON REQUIRE_REAL REQUIRE_SYSTEMD # of the tier that this may run in
kills=5
[ "${1:-}" != sample ] || kills=1
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
  git -C "$1/project" checkout -q --detach "$(git rev-parse HEAD)"
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

is_clean() {
  local rest
  rest=$(left)
  [ -z "$rest" ] || { printf 'surroundings: left behind:\n%s\n' "$rest"; return 1; }
}

mkdir -p "$work/killed" "$work/plain" "$long"
clone "$work/killed"

for ((i = 1; i <= kills; i++)); do
  moment=$((20 + RANDOM % 120))
  echo "surroundings: killing the gate after $moment s ($i of $kills)"
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

if [ "$kills" = 1 ]; then
  tools/scripts/sweep.sh
  is_clean
  exit
fi

echo 'surroundings: two clones at once'
failed=0
clone "$work/plain"
clone "$long"
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
is_clean || failed=1
exit "$failed"
